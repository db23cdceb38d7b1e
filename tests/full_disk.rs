//! A full disk: a clean error before anything has changed, and work goes on when there is room again. Uses a small tmpfs, so
//! it needs root.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use chronfs::queue::{Entry, Error, Queue, Settings};
use rustix::fs::{FallocateFlags, fallocate};

mod common;

use common::count;
use common::need::{Need, require};

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
    assert_eq!(count(&Queue::open(&path).unwrap()), appended);
    let leftovers = std::fs::read_dir(&path).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".tmp")
    });
    assert_eq!(leftovers.count(), 0, "half a segment was left");
    free(&ballast);
    assert_eq!(writer.append(1, &[7; 500]).unwrap(), appended + 1);
    drop(writer);
    assert_eq!(count(&Queue::open(&path).unwrap()), appended + 1);
}

#[test]
fn creating_a_queue_on_a_full_disk_fails_and_leaves_no_half_queue() {
    let Some(disk) = SmallDisk::new("100k") else { return };
    let path = disk.path("q");
    let settings = Settings { segment_size: 1 << 20, ..Settings::default() };
    let error = Queue::create(&path, &settings).unwrap_err();
    assert!(is_full(&error), "{error}");
    assert!(!Queue::exists(&path).unwrap());
    assert!(matches!(Queue::open(&path), Err(Error::NotAQueue { .. })));
}

/// Takes what room there is left.
fn fill(disk: &SmallDisk) -> PathBuf {
    let path = disk.path("fill");
    let mut file = File::create(&path).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    path
}

/// Gives that room back; at once, though another test's child may just be inheriting the file.
fn free(ballast: &Path) {
    File::options().write(true).open(ballast).unwrap().set_len(0).unwrap();
}

/// Makes a hole in a file: what `cp --sparse=always`, `rsync -S` and `fallocate -d` leave where they find zeros.
fn punch(path: &Path, from: u64, len: u64) {
    let file = File::options().write(true).open(path).unwrap();
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, len).unwrap();
}

const SEGMENT: u32 = 512 << 10;

fn queue_of_large_segments(disk: &SmallDisk) -> Queue {
    Queue::create(disk.path("q"), &Settings { segment_size: SEGMENT, ..Settings::default() }).unwrap()
}

#[test]
fn a_writer_makes_room_in_a_tail_with_holes_or_is_refused_and_leaves_no_trace() {
    let Some(disk) = SmallDisk::new("1m") else { return };
    let queue = queue_of_large_segments(&disk);
    queue.writer().unwrap().append(1, &[7; 500]).unwrap();
    let segment = disk.path("q/000000000.q");
    punch(&segment, 64 << 10, u64::from(SEGMENT) - (128 << 10));
    let ballast = fill(&disk);
    let before = queue.writer_info().epoch;
    let error = queue.writer().unwrap_err();
    assert!(is_full(&error) && error.to_string().contains("000000000.q"), "{error}");
    assert_eq!((queue.writer_info().epoch, queue.writer_info().pid), (before, None));
    free(&ballast);
    let mut writer = queue.writer().unwrap();
    // All of the segment is the writer's now.
    fill(&disk);
    while writer.next_seq() < 900 {
        writer.append(1, &[7; 500]).unwrap();
    }
    assert_eq!(count(&Queue::open(disk.path("q")).unwrap()), 899);
}

/// Checks that messages 1 to `acknowledged` are there, and after them no message, though perhaps a part of one.
fn check_acknowledged(path: &Path, acknowledged: u64) {
    let mut scanner = Queue::open(path).unwrap().scan().unwrap();
    let mut next = 1;
    while let Some(entry) = scanner.next().unwrap() {
        match entry {
            Entry::Message(message) => assert_eq!(message.seq, next, "of {acknowledged}"),
            Entry::Gap(gap) => assert!(gap.from > acknowledged, "{acknowledged} were acknowledged: {gap:?}"),
        }
        next += 1;
    }
    assert!(next > acknowledged, "{acknowledged} were acknowledged, {next} is not there");
}

/// Holes that are made while the writer is open: nobody can reserve anything then.
#[test]
fn no_message_is_acknowledged_that_had_no_room() {
    for (payload, distance) in [50, 500, 3000, 9000].into_iter().flat_map(|payload| [0, 1, 2, 20].map(|d| (payload, d)))
    {
        let Some(disk) = SmallDisk::new("4m") else { return };
        let queue = queue_of_large_segments(&disk);
        let path = disk.path("q");
        let mut writer = queue.writer().unwrap();
        let mut appended = writer.append(1, &vec![7; payload]).unwrap();
        let hole = u64::from(queue.bounds().unwrap().head.offset).next_multiple_of(4096) + distance * 4096;
        punch(&path.join("000000000.q"), hole, u64::from(SEGMENT) - 4096 - hole);
        let ballast = fill(&disk);
        for _ in 0..3 {
            let error = loop {
                match writer.append(1, &vec![7; payload]) {
                    Ok(seq) => appended = seq,
                    Err(error) => break error,
                }
                assert!(appended < 50_000, "the disk is not full");
            };
            // A message may have been stored in part, up to the end of a page: then the writer can't go on.
            assert!(is_full(&error) || error.to_string().contains("no space left on device"), "{error}");
        }
        check_acknowledged(&path, appended);
        free(&ballast);
        match writer.append(1, &vec![7; payload]) {
            Ok(seq) => {
                assert_eq!(seq, appended + 1);
                drop(writer);
                assert_eq!(queue.writer().unwrap().append(1, b"").unwrap(), appended + 2);
                assert_eq!(count(&Queue::open(&path).unwrap()), appended + 2);
            }
            Err(error) => {
                assert!(matches!(error, Error::Poisoned { .. }), "{payload} bytes: {error}");
                drop(writer);
                assert!(queue.writer().unwrap().append(1, b"").unwrap() > appended);
                check_acknowledged(&path, appended);
            }
        }
    }
}

#[test]
fn a_record_filled_in_place_that_had_no_room_is_not_acknowledged() {
    let Some(disk) = SmallDisk::new("1m") else { return };
    let queue = queue_of_large_segments(&disk);
    let mut writer = queue.writer().unwrap();
    punch(&disk.path("q/000000000.q"), 8 << 10, u64::from(SEGMENT) - (16 << 10));
    let ballast = fill(&disk);
    let mut record = writer.reserve(1, 20_000).unwrap();
    record.fill(7);
    let error = record.commit().unwrap_err();
    assert!(is_full(&error), "{error}");
    assert!(is_full(&writer.reserve(1, 20_000).unwrap_err()));
    assert_eq!(count(&Queue::open(disk.path("q")).unwrap()), 0);
    free(&ballast);
    let mut record = writer.reserve(1, 20_000).unwrap();
    record.fill(7);
    assert_eq!(record.commit().unwrap(), 1);
    assert_eq!(count(&Queue::open(disk.path("q")).unwrap()), 1);
}

#[test]
fn a_commit_that_has_no_room_is_an_error_that_says_so() {
    let Some(disk) = SmallDisk::new("1m") else { return };
    let queue = queue_of_large_segments(&disk);
    queue.writer().unwrap().append(1, b"hello").unwrap();
    let mut reader = queue.reader("alice").unwrap();
    assert!(reader.next().unwrap().is_some());
    punch(&disk.path("q/readers/alice.meta"), 0, 4096);
    fill(&disk);
    let error = reader.commit_sync().unwrap_err();
    assert!(is_full(&error) && error.to_string().contains("alice.meta"), "{error}");
}

#[test]
fn a_reader_is_opened_or_refused_on_a_full_disk() {
    let Some(disk) = SmallDisk::new("1m") else { return };
    let queue = queue_of_large_segments(&disk);
    drop(queue.reader("alice").unwrap());
    let ballast = fill(&disk);
    drop(queue.reader("alice").unwrap());
    let error = queue.reader("bob").unwrap_err();
    assert!(is_full(&error), "{error}");
    assert_eq!(queue.reader_names().unwrap(), ["alice"]);
    free(&ballast);
    drop(queue.reader("bob").unwrap());
}
