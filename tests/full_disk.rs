//! A full disk: a clean error before anything has changed, and work goes on when there is room again. Uses a small tmpfs, so
//! it needs root.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

use chronfs::queue::{Error, Queue, Settings};

#[path = "common/need.rs"]
mod need;

use need::{Need, require};

struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    #[track_caller]
    fn new(size: &str) -> Option<Self> {
        if !require(Need::Admin) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &options, "chronfs-test"]).arg(dir.path());
        assert!(command.status().unwrap().success());
        Some(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

fn is_full(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull)
}

fn count(path: &Path) -> u64 {
    let mut scanner = Queue::open(path).unwrap().scan().unwrap();
    let mut count = 0;
    while let Some(entry) = scanner.next().unwrap() {
        count += 1;
        assert_eq!(entry.message().map(|message| message.seq), Some(count));
    }
    count
}

#[test]
fn a_queue_on_a_full_disk_refuses_appends_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::new("400k") else { return };
    let ballast = disk.path("ballast");
    std::fs::write(&ballast, vec![1; 200 << 10]).unwrap();
    let path = disk.path("q");
    let queue = Queue::create(&path, &Settings { segment_size: 64 << 10, ..Settings::default() }).unwrap();
    let mut writer = queue.writer().unwrap();
    let mut appended = 0;
    let error = loop {
        match writer.append(1, &[7; 500]) {
            Ok(seq) => appended = seq,
            Err(error) => break error,
        }
        assert!(appended < 10_000, "the disk is not full");
    };
    assert!(is_full(&error), "{error}");
    assert!(error.to_string().contains("/q/00000000"), "{error}");
    assert!(is_full(&writer.append(1, &[7; 500]).unwrap_err()), "and again");
    assert_eq!(count(&path), appended);
    let leftovers = std::fs::read_dir(&path).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".tmp")
    });
    assert_eq!(leftovers.count(), 0, "half a segment was left");
    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(writer.append(1, &[7; 500]).unwrap(), appended + 1);
    drop(writer);
    assert_eq!(count(&path), appended + 1);
}

#[test]
fn creating_a_queue_on_a_full_disk_fails_and_leaves_no_half_queue() {
    let Some(disk) = SmallDisk::new("100k") else { return };
    let path = disk.path("q");
    let settings = Settings { segment_size: 1 << 20, ..Settings::default() };
    let error = Queue::create(&path, &settings).unwrap_err();
    assert!(is_full(&error), "{error}");
    assert!(!Queue::exists(&path));
    assert!(matches!(Queue::open(&path), Err(Error::NotAQueue { .. })));
}
