//! Single messages, points in time, readers that take, segments, leases: the directories of a queue.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use chronfs::Queue;
use chronfs::queue::Settings;
use common::need::{self, Need, require};
use common::{TestMount, text, until, writer};

const T0: u64 = 1_723_108_500_000_000_000;
const SECOND: u64 = 1_000_000_000;

/// A mounted queue `q` of three messages, a second apart from T0 on: "one", "two", bytes.
fn mount() -> Option<TestMount> {
    TestMount::over(
        |root| {
            let settings = Settings { segment_size: 65536, ..Settings::default() };
            let mut writer = writer(&Queue::create(root.join("q"), &settings).unwrap());
            for (index, payload) in [&b"one"[..], b"two", b"\xff\n"].into_iter().enumerate() {
                writer.append_at(T0 + u64::try_from(index).unwrap() * SECOND, 7, payload).unwrap();
            }
        },
        "segment_size=64KiB",
    )
}

fn queue(mount: &TestMount) -> Queue {
    Queue::open(mount.root().join("q")).unwrap()
}

fn append(mount: &TestMount, payloads: &[&[u8]]) {
    let mut writer = writer(&queue(mount));
    for payload in payloads {
        writer.append(1, payload).unwrap();
    }
}

#[test]
fn messages_are_files_by_number() {
    let Some(mount) = mount() else { return };
    assert_eq!(mount.ok("cat q/messages/1 q/messages/2"), "onetwo");
    assert_eq!(std::fs::read(mount.mountpoint().join("q/messages/3")).unwrap(), b"\xff\n");
    assert_eq!(mount.ok("for n in 1 2 3; do cat q/messages/$n.json; done"), mount.ok("cat q/messages.jsonl"));
    assert_eq!(mount.ok("cd q/messages; stat -c '%s %Y %A' 2"), "3 1723108501 -r--r--r--\n");
    assert_eq!(mount.ok("cd q/messages; readlink first last; cat first"), "1\n3\none");
    assert_eq!(mount.ok("ls q/messages"), "1\n2\n3\nfirst\nlast\n");
    for name in ["0", "4", "01", "+1", "1.jso", "x", "99999999999999999999", ".json"] {
        assert!(mount.fails(&format!("cat q/messages/{name}")).contains("No such file"), "{name}");
    }
    assert!(mount.fails("echo x > q/messages/1").contains("Permission denied"));
    // The directory's mode stops all users but root.
    let refusal = if need::is_root() { "Operation not permitted" } else { "Permission denied" };
    assert!(mount.fails("rm -f q/messages/1").contains(refusal));
    append(&mount, &[b"four"]);
    assert_eq!(mount.ok("cd q/messages; cat 4; readlink last"), "four4\n");
    drop(Queue::create(mount.root().join("empty"), &Settings::default()).unwrap());
    mount.ok("ls empty/messages");
    assert!(mount.fails("cat empty/messages/first").contains("No such file"));
    let large: Vec<u8> = (0..50_000_u32).map(|i| i.to_le_bytes()[0]).collect();
    append(&mount, &[&large]);
    assert_eq!(std::fs::read(mount.mountpoint().join("q/messages/5")).unwrap(), large);
}

#[test]
fn a_hundred_thousand_messages_are_listed_and_found_and_cost_the_daemon_nothing() {
    let Some(mut mount) = mount() else { return };
    let mut writer = writer(&queue(&mount));
    for _ in 0..99_997 {
        writer.append(1, b"x").unwrap();
    }
    drop(writer);
    assert_eq!(mount.ok("ls -U q/messages | wc -l").trim(), "100002");
    assert_eq!(mount.ok("ls -U q/messages | grep -cxE '[0-9]+'").trim(), "100000");
    // With attributes too, and the daemon keeps nothing for each.
    let status = format!("/proc/{}/status", mount.daemon().id());
    let resident_kib = || {
        let status = std::fs::read_to_string(&status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = resident_kib();
    assert_eq!(mount.ok("ls -lU q/messages | grep -c '^-r--r--r-- 1 .* 1 '").trim(), "99997");
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB for 100,000 names");
    let listed = mount.ok("cd q/messages; ls -i | awk '$2 <= 500 || $2 ~ /t$/ {print $2, $1}' | sort");
    assert_eq!(listed, mount.ok("cd q/messages; stat -c '%n %i' $(seq 500) first last | sort"));
    assert_eq!(mount.ok("ls -U q/messages | sort -u | wc -l").trim(), "100002");
    mount.ok("for n in 1 50000 99999 77777 100000; do stat -c %s q/messages/$n; done");
}

#[test]
fn retired_messages_are_not_there() {
    let Some(mount) = TestMount::over(
        |root| {
            // So much that the writer itself removes nothing.
            let settings = Settings { segment_size: 65536, retain_bytes: Some(1 << 20), ..Settings::default() };
            let mut writer = writer(&Queue::create(root.join("q"), &settings).unwrap());
            for _ in 0..3 {
                writer.append(1, &[b'x'; 40_000]).unwrap();
            }
        },
        "rw",
    ) else {
        return;
    };
    mount.ok("cat q/messages/1 > ../first");
    let held = std::fs::File::open(mount.mountpoint().join("q/messages/1")).unwrap();
    std::fs::remove_file(mount.root().join("q/000000000.q")).unwrap();
    let path = mount.mountpoint().join("q/messages/1");
    until("the number is gone", || std::fs::metadata(&path).is_err());
    assert!(mount.fails("cat q/messages/1").contains("No such file"));
    assert_eq!(mount.ok("readlink q/messages/first; ls q/messages"), "2\n2\n3\nfirst\nlast\n");
    let mut byte = [0];
    assert_eq!(held.read_at(&mut byte, 39_999).unwrap(), 1, "an open file can still be read");
}

#[test]
fn times_lead_to_messages() {
    let Some(mount) = mount() else { return };
    for (time, seq) in [
        ("2024-08-08T09:15:00Z", 1),
        ("2024-08-08T09:15:00.000000001Z", 2),
        ("2024-08-08T11:15:01+02:00", 2),
        ("1723108500999999999", 2),
        ("1723108502000000000", 3),
        ("@1723108502", 3),
        ("1970-01-01", 1),
        ("0", 1),
    ] {
        assert_eq!(mount.ok(&format!("readlink q/at/{time}")), format!("../messages/{seq}\n"), "{time}");
    }
    assert_eq!(mount.ok("cat q/at/2024-08-08T09:15:01Z"), "two");
    for time in ["2024-08-08T09:15:03Z", "never", "1m", "-", "99999999999999999999999"] {
        assert!(mount.fails(&format!("cat q/at/{time}")).contains("No such file"), "{time}");
    }
    assert_eq!(mount.ok("ls q/at q/since"), "q/at:\n\nq/since:\n");
}

#[test]
fn since_has_all_views() {
    let Some(mount) = mount() else { return };
    for (place, lines) in [
        ("1", 3),
        ("2", 2),
        ("4", 0),
        ("2024-08-08T09:15:01Z", 2),
        ("@1723108502", 1),
        ("1723108502000000000", 1),
        ("1m", 0),
    ] {
        let of = |format: &str| mount.ok(&format!("cat q/since/{place}/messages.{format}"));
        assert_eq!(of("jsonl"), mount.ok(&format!("tail -n {lines} q/messages.jsonl")), "{place}");
        assert_eq!(of("txt"), mount.ok(&format!("tail -n {lines} q/messages.txt")), "{place}");
        let size: usize = mount.ok(&format!("stat -c %s q/since/{place}/messages.hex")).trim().parse().unwrap();
        assert_eq!(size, of("hex").len(), "{place}");
    }
    for place in ["0", "5", "never", "x1"] {
        assert!(mount.fails(&format!("ls q/since/{place}")).contains("No such file"), "{place}");
    }
    assert_eq!(mount.ok("ls q/since/2 | wc -l"), "8\n");
    assert_eq!(mount.ok("head -n 2 q/since/2/follow.txt"), "two\n\\xff\\n\n");
    let follower = mount.start("head", &["-n", "1", "q/since/4/follow.txt"]);
    mount.wait_until_blocked(&follower);
    append(&mount, &[b"four"]);
    assert_eq!(text(&follower.output().stdout), "four\n");
    assert_eq!(mount.ok("cat q/since/4/messages.txt"), "four\n");
}

#[test]
fn a_reader_sees_what_is_pending_and_takes_it() {
    let Some(mount) = mount() else { return };
    mount.ok("mkdir q/readers/a");
    assert_eq!(
        mount.ok("ls q/readers/a").split_whitespace().collect::<Vec<_>>().join(" "),
        "follow.bin follow.hex follow.jsonl follow.txt lag messages.bin messages.hex messages.jsonl messages.txt \
         position status.json take.bin take.jsonl take.txt"
    );
    mount.ok("echo 2 > q/readers/a/position");
    let state = || mount.ok("cat q/readers/a/position q/readers/a/lag");
    assert_eq!(mount.ok("cat q/readers/a/messages.txt"), "two\n\\xff\\n\n");
    assert_eq!(mount.ok("tail -n 1 q/readers/a/messages.jsonl"), mount.ok("tail -n 1 q/messages.jsonl"));
    assert_eq!(mount.ok("head -n 2 q/readers/a/follow.txt"), "two\n\\xff\\n\n");
    assert_eq!(state(), "2\n2\n", "nothing of this consumes");
    assert_eq!(mount.ok("head -n 1 q/readers/a/take.txt"), "two\n");
    assert_eq!(state(), "3\n1\n");
    assert_eq!(
        mount.ok("echo first > q/readers/a/position; head -n 3 q/readers/a/take.jsonl"),
        mount.ok("cat q/messages.jsonl")
    );
    assert_eq!(state(), "4\n0\n");
    // In pieces: consumed with the last byte.
    mount.ok("echo 1 > q/readers/a/position");
    assert_eq!(mount.ok("dd if=q/readers/a/take.bin bs=2 count=1 2> ../err; cat q/readers/a/position"), "on1\n");
    assert_eq!(mount.ok("dd if=q/readers/a/take.bin bs=2 count=2 2> ../err; cat q/readers/a/position"), "one2\n");
    // Waiting at the end, with O_NONBLOCK and without.
    mount.ok("echo end > q/readers/a/position");
    assert!(mount.fails("dd if=q/readers/a/take.txt iflag=nonblock").contains("temporarily unavailable"));
    let taker = mount.start("head", &["-n", "1", "q/readers/a/take.txt"]);
    mount.wait_until_blocked(&taker);
    assert!(mount.fails("echo 1 > q/readers/a/position").contains("Device or resource busy"));
    assert!(mount.fails("cat q/readers/a/take.bin").contains("Device or resource busy"));
    append(&mount, &[b"four", b"five"]);
    assert_eq!(text(&taker.output().stdout), "four\n");
    assert_eq!(state(), "5\n1\n");
    assert_eq!(queue(&mount).reader_position("a").unwrap(), 5);
}

#[test]
fn takers_take_turns_and_give_way_to_native_readers() {
    let Some(mount) = mount() else { return };
    mount.ok("mkdir q/readers/a");
    let payloads: Vec<String> = (0..200).map(|n| format!("m{n}")).collect();
    append(&mount, &payloads.iter().map(String::as_bytes).collect::<Vec<_>>());
    mount.ok("echo 4 > q/readers/a/position");
    // Each open waits for the release of the close before it.
    let taken = mount.ok("for i in {1..200}; do head -n 1 q/readers/a/take.txt || exit 1; done");
    assert_eq!(taken.lines().map(str::to_owned).collect::<Vec<_>>(), payloads);
    let queue = queue(&mount);
    // The kernel tells of the last close after it has returned.
    let mut native = None;
    until("the last taker's handle is released", || {
        native = queue.reader("a").ok();
        native.is_some()
    });
    for script in ["cat q/readers/a/take.txt", "echo 1 > q/readers/a/position", "rmdir q/readers/a"] {
        assert!(mount.fails(script).contains("Device or resource busy"), "{script}");
    }
    drop(native);
    mount.ok("echo end > q/readers/a/position; rmdir q/readers/a");
    // An empty message in bin is not an end of file.
    mount.ok("mkdir q/readers/b; echo end > q/readers/b/position");
    append(&mount, &[b"", b"second"]);
    assert_eq!(mount.ok("head -c 6 q/readers/b/take.bin"), "second");
}

#[test]
fn segments_are_the_raw_files() {
    let Some(mount) = mount() else { return };
    assert_eq!(mount.ok("ls q/segments").lines().next(), Some("000000000.q"));
    mount.ok(&format!("for f in q/segments/*; do cmp $f {}/q/$(basename $f); done", mount.root().display()));
    assert!(mount.fails("dd if=/dev/null of=q/segments/000000000.q conv=notrunc").contains("Permission denied"));
    assert!(mount.fails("exec 3<> q/segments/000000000.q").contains("Permission denied"));
    assert!(mount.fails("cat q/segments/control.meta").contains("No such file"));
    let size = std::fs::metadata(mount.mountpoint().join("q/segments/000000000.q")).unwrap().size();
    assert_eq!(size, 65536);
}

/// The kernel serves files itself from the lower ones of them only.
#[test]
fn segments_and_texts_are_read_in_any_order_from_stacked_file_systems() {
    if !require(Need::Admin) || !require(Need::FileSystem("overlay")) {
        return;
    }
    for order in ["q/segments/000000000.q q/messages.txt", "q/messages.txt q/segments/000000000.q"] {
        let Some(mount) = TestMount::over(stack, "rw") else { return };
        let stacked = Stacked(mount.root());
        mount.ok("mkdir q && echo one > q/append.txt");
        for _ in 0..2 {
            mount.ok(&format!("for f in {order}; do cat $f > /dev/null || exit 1; done"));
        }
        assert_eq!(mount.ok("cmp q/segments/000000000.q ../root/q/000000000.q; cat q/messages.txt"), "one\n");
        drop(stacked);
    }
}

/// Puts an overlay over an overlay over a file system in memory.
fn stack(root: &std::path::Path) {
    let script = "mount -t tmpfs chronfs-test $0 && cd $0 && mkdir a b{1,2}.{up,work} b1 &&\n\
        mount -t overlay -o lowerdir=a,upperdir=b1.up,workdir=b1.work chronfs-test b1 &&\n\
        mount -t overlay -o lowerdir=b1,upperdir=b2.up,workdir=b2.work chronfs-test $0";
    let mounted = std::process::Command::new("bash").args(["-c", script]).arg(root).output().unwrap();
    assert!(mounted.status.success(), "{}", text(&mounted.stderr));
}

/// What [`stack`] has mounted, until it is dropped.
struct Stacked(std::path::PathBuf);

impl Drop for Stacked {
    fn drop(&mut self) {
        common::detach(&self.0);
    }
}

#[test]
fn segments_can_be_mapped_where_root_mounts() {
    if !require(Need::Root) {
        return;
    }
    let Some(mount) = mount() else { return };
    let python = r#"
import mmap, os, sys
fd = os.open("q/segments/000000000.q", os.O_RDONLY)
m = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
assert m.find(b"live store") == -1
print("mapped", flush=True)
sys.stdin.readline()
assert m.find(b"live store") > 0
try:
    mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_WRITE)
    sys.exit(1)
except PermissionError: pass
"#;
    std::fs::write(mount.root().with_file_name("map.py"), python).unwrap();
    let mut child = std::process::Command::new("timeout")
        .args(["20", "python3", "-S", "../map.py"])
        .current_dir(mount.mountpoint())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line, "mapped\n");
    append(&mount, &[b"live store"]);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success(), "the mapping sees a native store");
}

#[test]
fn a_lease_is_written_read_and_removed() {
    let Some(mount) = mount() else { return };
    for place in ["q", "endpoint"] {
        mount.ok(&format!("mkdir -p {place}; echo momentum > {place}/LEASE"));
        let keys = mount.ok(&format!("jq -c 'keys_unsorted' {place}/LEASE"));
        assert_eq!(keys, "[\"pid\",\"epoch\",\"timestamp_ns\",\"age_ms\",\"ttl_ms\",\"state\",\"payload\"]\n");
        assert_eq!(mount.ok(&format!("jq -c '[.state, .payload]' {place}/LEASE")), "[\"live\",\"momentum\"]\n");
        let lease = chronfs::bus::lease(mount.root().join(place)).unwrap().unwrap();
        assert_eq!(lease.payload, b"momentum");
        mount.ok(&format!("touch {place}/LEASE; ls {place} | grep -x LEASE"));
        let renewed = chronfs::bus::lease(mount.root().join(place)).unwrap().unwrap();
        assert!(renewed.timestamp_ns > lease.timestamp_ns && renewed.payload == lease.payload);
        mount.ok(&format!("rm {place}/LEASE"));
        assert!(mount.fails(&format!("cat {place}/LEASE")).contains("No such file"));
        assert_eq!(chronfs::bus::lease(mount.root().join(place)).unwrap(), None);
    }
    chronfs::bus::write_lease(mount.root().join("q"), Duration::from_millis(1), "gone").unwrap();
    until("it expires", || mount.ok("jq -r .state q/LEASE") == "expired\n");
    assert_eq!(mount.ok("jq -r .lease.state q/status.json"), "expired\n");
}

#[test]
fn a_follower_of_a_reader_learns_of_messages_that_retention_removed() {
    let settings =
        Settings { segment_size: 65536, retain_segments: Some(1), max_lag_bytes: Some(0), ..Settings::default() };
    let prepare = |root: &std::path::Path| {
        let queue = Queue::create(root.join("q"), &settings).unwrap();
        queue.add_reader("a").unwrap();
        common::append(&mut writer(&queue), 500, |_| vec![b'x'; 900]);
        queue.apply_retention().unwrap();
        assert!(queue.bounds().unwrap().first_seq > 1);
    };
    let Some(mount) = TestMount::over(prepare, "rw") else { return };
    for name in ["follow.txt", "follow.jsonl", "take.txt"] {
        let script = format!("exec 3< q/readers/a/{name}; cat <&3; head -c 4 <&3");
        let output = mount.sh(&script);
        let complaint = text(&output.stderr);
        assert!(complaint.contains("Broken pipe") && complaint.lines().count() == 1, "{name}: {complaint}");
        assert_eq!(output.stdout.len(), 4, "{name}: it goes on after them");
    }
}

#[test]
fn waiting_for_a_queue_that_is_removed_ends() {
    let Some(mount) = mount() else { return };
    mount.ok("mkdir q/readers/a; echo end > q/readers/a/position");
    let names = ["q/follow.txt", "q/readers/a/follow.jsonl", "q/readers/a/take.txt", "q/since/3/follow.txt"];
    let waiting = names.map(|name| mount.start("cat", &[name]));
    waiting.iter().for_each(|waiting| mount.wait_until_blocked(waiting));
    std::fs::remove_dir_all(mount.root().join("q")).unwrap();
    drop(Queue::create(mount.root().join("q"), &Settings::default()).unwrap());
    append(&mount, &[b"of another queue"]);
    for (name, waiting) in names.iter().zip(waiting) {
        let output = waiting.output();
        assert!(text(&output.stderr).contains("Stale file handle"), "{name}: {output:?}");
    }
    assert_eq!(mount.ok("cat q/messages.txt"), "of another queue\n");
}

#[test]
fn a_directory_that_is_leased_can_become_a_queue() {
    let Some(mount) = TestMount::new() else { return };
    mount.ok("mkdir new; echo momentum > new/LEASE; touch new/READY; echo first > new/append.txt");
    assert_eq!(
        mount.ok("cat new/messages.txt; jq -r .payload new/LEASE; ls new/READY"),
        "first\nmomentum\nnew/READY\n"
    );
}

#[test]
fn a_plain_user_can_do_all_of_this() {
    common::plain_user::run_tests_again("a_plain_user_can_do_all_of_this");
}
