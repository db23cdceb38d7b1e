//! The stored indexes of sealed segments: kept across mounts, checked, rebuilt, hidden.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chronfs::Queue;
use chronfs::queue::Settings;
use common::{TestMount, until, wait, writer};

const LINES: u64 = 3000;

/// A queue `q` of several segments, and a bystander.
fn prepare(root: &Path) {
    let settings = Settings { segment_size: 65536, ..Settings::default() };
    let mut writer = writer(&Queue::create(root.join("q"), &settings).unwrap());
    for n in 0..LINES {
        writer
            .append_at(1_700_000_000_000_000_000 + n, 1, format!("message number {n} of some length").as_bytes())
            .unwrap();
    }
}

fn index(mount: &TestMount) -> PathBuf {
    mount.root().join("q/.index")
}

fn indexes(mount: &TestMount) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(index(mount)) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().unwrap() == "index");
    let mut files: Vec<_> = paths.map(|path| (path.clone(), std::fs::read(&path).unwrap_or_default())).collect();
    files.sort();
    files
}

fn sealed(mount: &TestMount) -> usize {
    let head = Queue::open(mount.root().join("q")).unwrap().bounds().unwrap().head;
    usize::try_from(head.segment.0).unwrap()
}

fn stop(mount: &mut TestMount) {
    common::signal_to(mount.daemon().id(), "TERM");
    wait(mount.daemon());
}

fn again(mount: &mut TestMount, options: &str) {
    stop(mount);
    mount.mount_again(options);
}

#[test]
fn an_index_is_made_in_the_background_and_used_by_the_next_mount() {
    let Some(mut mount) = TestMount::over(prepare, "rw") else { return };
    // Reading the directory is enough.
    mount.ok("ls q");
    until("all sealed segments have their index", || indexes(&mount).len() == sealed(&mount));
    assert!(!mount.ok("ls -A q").contains("index"));
    assert!(mount.fails("ls q/.index").contains("No such file"));
    assert!(mount.fails("mkdir q/.index").contains("Operation not permitted"));
    assert_eq!(mount.ok("wc -l < q/messages.txt"), format!("{LINES}\n"));
    let size: u64 = mount.ok("stat -c %s q/messages.jsonl").trim().parse().unwrap();
    let before = indexes(&mount);
    let kept = || std::fs::metadata(&before[0].0).map(|file| (file.ino(), file.mtime_nsec())).unwrap();
    let file = kept();
    again(&mut mount, "rw");
    assert_eq!(mount.ok("stat -c %s q/messages.jsonl").trim(), size.to_string());
    assert_eq!((indexes(&mount), kept()), (before.clone(), file), "nothing was made again");

    // That it is used shows when it is wrong. A wrong length costs one error, and shows no byte of
    // another place.
    stop(&mut mount);
    let mut bytes = before[1].1.clone();
    let len = u64::from_le_bytes(bytes[240..248].try_into().unwrap());
    bytes[240..248].copy_from_slice(&(len + 1000).to_le_bytes());
    let sum = crc32fast::hash(&bytes[..340]);
    bytes[340..344].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&before[1].0, &bytes).unwrap();
    mount.mount_again("rw");
    assert_eq!(mount.ok("stat -c '%s %i' q/messages.jsonl").split(' ').next().unwrap(), (size + 1000).to_string());
    assert!(mount.fails("{ head -c 1; cat; } < q/messages.jsonl > /dev/null").contains("Input/output error"));
    until("the name stands for another file", || mount.ok("stat -c %s q/messages.jsonl").trim() == size.to_string());
    assert_eq!(mount.ok("jq -c .seq q/messages.jsonl | sha256sum"), mount.ok(&format!("seq {LINES} | sha256sum")));
    again(&mut mount, "rw");
    assert_eq!(mount.ok("stat -c %s q/messages.jsonl").trim(), size.to_string());
    until("it is made again", || indexes(&mount) == before);
}

#[test]
fn indexes_can_be_deleted_and_damaged_at_any_time() {
    let Some(mut mount) = TestMount::over(prepare, "rw") else { return };
    let sum = mount.ok("cat q/messages.jsonl q/messages.txt q/messages.bin q/messages.hex | sha256sum");
    until("all sealed segments have their index", || indexes(&mount).len() == sealed(&mount));
    let sound = indexes(&mount);
    std::fs::remove_dir_all(index(&mount)).unwrap();
    let again_sum = mount.ok("cat q/messages.jsonl q/messages.txt q/messages.bin q/messages.hex | sha256sum");
    assert_eq!(again_sum, sum);
    for damage in [&b""[..], b"nonsense", &sound[1].1] {
        stop(&mut mount);
        std::fs::create_dir_all(index(&mount)).unwrap();
        std::fs::write(&sound[0].0, damage).unwrap();
        std::fs::write(index(&mount).join("000000003.index.tmp"), "left over").unwrap();
        mount.mount_again("rw");
        let again_sum = mount.ok("cat q/messages.jsonl q/messages.txt q/messages.bin q/messages.hex | sha256sum");
        assert_eq!(again_sum, sum);
        until("they are made again", || indexes(&mount) == sound);
    }
    // The queue is not affected.
    let diagnosis = common::chron_cli().arg("doctor").arg(mount.root()).output().unwrap();
    assert!(diagnosis.status.success(), "{diagnosis:?}");
    assert!(common::text(&diagnosis.stdout).contains("all well"), "{diagnosis:?}");
    // Retention removes the indexes, too.
    std::fs::remove_file(mount.root().join("q/000000000.q")).unwrap();
    again(&mut mount, "rw");
    mount.ok("ls q");
    until("it is gone", || !sound[0].0.exists());
}

#[test]
fn a_read_only_mount_stores_nothing() {
    let Some(mount) = TestMount::over(prepare, "ro") else { return };
    assert_eq!(mount.ok("wc -l < q/messages.txt"), format!("{LINES}\n"));
    assert_eq!(mount.ok("tail -n 1 q/messages.jsonl | jq .seq"), format!("{LINES}\n"));
    assert!(!index(&mount).exists());
}

#[test]
fn later_damage_changes_the_inode_of_the_name() {
    let Some(mount) = TestMount::over(prepare, "rw") else { return };
    let before = mount.ok("stat -c %i q/messages.jsonl");
    until("all sealed segments have their index", || indexes(&mount).len() == sealed(&mount));
    let path = mount.root().join("q/000000001.q");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(7).position(|window| window == b"message").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    // No shifted bytes under the old inode; under the new one a gap. If opening noticed it, it is the new one.
    let begun = mount.sh("{ head -c 1; cat; } < q/messages.jsonl > ../begun");
    if begun.status.success() {
        assert_eq!(mount.ok("grep -c gap ../begun; wc -l < ../begun"), format!("1\n{LINES}\n"));
    } else {
        assert!(common::text(&begun.stderr).contains("Input/output error"), "{begun:?}");
    }
    until("the name stands for another file", || mount.ok("stat -c %i q/messages.jsonl") != before);
    assert_eq!(mount.ok("grep -c gap q/messages.jsonl; wc -l < q/messages.jsonl"), format!("1\n{LINES}\n"));
}
