//! A full disk: a clean error before anything has changed, and work resumes when there is room again. Uses a small
//! tmpfs, so it needs root.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::io::IoSlice;
use std::path::Path;
use std::time::Duration;

use chronfs::queue::{Entry, Error, Queue, QueueWriter, Settings};
use rustix::fs::{FallocateFlags, fallocate};

mod common;

use common::{SMALL, SmallDisk, count, until};

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
    common::free(&ballast);
    assert_eq!(writer.append(1, &[7; 500]).unwrap(), appended + 1);
    drop(writer);
    assert_eq!(count(&Queue::open(&path).unwrap()), appended + 1);
}

#[test]
fn where_there_is_no_room_for_a_large_segment_smaller_ones_use_what_there_is() {
    let Some(disk) = SmallDisk::new("21m") else { return };
    let queue = Queue::create(disk.path("q"), &Settings { segment_size: 16 << 20, ..Settings::default() }).unwrap();
    let mut writer = queue.writer().unwrap();
    let error = std::iter::repeat_with(|| writer.append(1, &[7; 500])).find_map(Result::err).unwrap();
    assert!(is_full(&error), "{error}");
    let bytes = queue.inspect().unwrap().bytes;
    // The room for the smallest segment may be left, and a little at the end of each.
    assert!(bytes > 20 << 20, "{bytes} bytes of messages");
    assert_eq!(count(&Queue::open(queue.path()).unwrap()) + 1, writer.next_seq());
}

/// The entries of a directory.
fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn creating_a_queue_on_a_full_disk_leaves_nothing_and_works_when_there_is_room() {
    // Limited by pages, and by files.
    let limits = (3..26).map(|pages| format!("size={}k", pages * 4)).chain((2..9).map(|n| format!("nr_inodes={n}")));
    let (mut failed, mut created) = (0, 0);
    for limit in limits {
        let Some(disk) = SmallDisk::with(&limit) else { return };
        let path = disk.path("deep/er/q");
        match Queue::create(&path, &SMALL) {
            Ok(queue) => {
                created += 1;
                assert_eq!(count(&queue), 0);
            }
            Err(error) => {
                failed += 1;
                assert!(is_full(&error), "{limit}: {error}");
                assert_eq!(names(disk.root()), [""; 0], "{limit}");
                if std::fs::create_dir(disk.path("there")).is_ok() && Queue::create(disk.path("there"), &SMALL).is_err()
                {
                    assert_eq!(names(&disk.path("there")), [""; 0], "{limit}");
                }
                disk.remount("size=1m,nr_inodes=100");
                let queue = Queue::create(&path, &SMALL).unwrap();
                assert_eq!(queue.writer().unwrap().append(1, b"there is room").unwrap(), 1);
            }
        }
    }
    assert!(failed > 10 && created > 2, "{failed} failed, {created} were created");
}

#[test]
fn a_writer_that_goes_on_where_it_was_needs_no_room() {
    let Some(disk) = SmallDisk::new("1m") else { return };
    let queue = Queue::create(disk.path("q"), &SMALL).unwrap();
    queue.writer().unwrap().append(1, b"before").unwrap();
    let lock = disk.path("q/writer.lock");
    // Left by a process with a longer id.
    std::fs::write(&lock, [&std::fs::read(&lock).unwrap()[..], &[b'\n'; 100]].concat()).unwrap();
    disk.fill();
    for seq in 2..5 {
        assert_eq!(queue.writer().unwrap().append(1, b"more").unwrap(), seq);
    }
    let text = std::fs::read_to_string(lock).unwrap();
    assert!(text.starts_with(&format!("pid {}\n", std::process::id())) && !text.contains("\n\n"), "{text}");
}

#[test]
fn what_retention_removes_is_room_on_a_full_disk() {
    let Some(disk) = SmallDisk::new("1m") else { return };
    let queue = Queue::create(disk.path("q"), &Settings { retain_segments: Some(2), ..SMALL }).unwrap();
    let mut writer = queue.writer().unwrap();
    common::append(&mut writer, 1000, |_| vec![7; 500]);
    let ballast = disk.fill();
    // Each roll needs a segment: one that retention has removed. It is refused while another test's child, which
    // inherits all files for a moment, has that one open.
    let append = |writer: &mut QueueWriter| {
        let seq = writer.next_seq();
        common::until("there is room", || match writer.append(1, &[7; 500]) {
            Ok(appended) => {
                assert_eq!(appended, seq);
                true
            }
            Err(error) => {
                assert!(is_full(&error), "{error}");
                false
            }
        });
    };
    (0..2000).for_each(|_| append(&mut writer));
    drop(writer);
    assert!(queue.apply_retention().unwrap().pins.is_empty());
    let mut writer = queue.writer().unwrap();
    (0..2000).for_each(|_| append(&mut writer));
    drop(writer);
    let bounds = queue.bounds().unwrap();
    assert_eq!(bounds.next_seq, 5001);
    assert!(bounds.first_seq > 4000, "{bounds:?}");
    common::free(&ballast);
}

#[test]
#[cfg(feature = "bus")]
fn markers_on_a_full_disk_are_written_whole_or_stay_as_they_were() {
    use chronfs::bus;
    let Some(disk) = SmallDisk::new("1m") else { return };
    let queue = Queue::create(disk.path("q"), &SMALL).unwrap();
    let lease = |payload: &str| bus::write_lease(queue.path(), std::time::Duration::from_secs(60), payload);
    lease("before").unwrap();
    let before = names(queue.path());
    let ballast = disk.fill();
    assert!(is_full(&lease("after").unwrap_err()));
    assert_eq!(bus::lease(queue.path()).unwrap().unwrap().payload, b"before");
    // An empty file takes no room here; if it did, there would be none.
    let _ = bus::mark_ready(queue.path());
    bus::unmark_ready(queue.path()).unwrap();
    let (mut now, mut before) = (names(queue.path()), before);
    now.sort();
    before.sort();
    assert_eq!(now, before, "something was left");
    common::free(&ballast);
    lease("after").unwrap();
    bus::mark_ready(queue.path()).unwrap();
    assert_eq!(bus::lease(queue.path()).unwrap().unwrap().payload, b"after");
}

/// Punches a hole in a file, as `cp --sparse=always`, `rsync -S` and `fallocate -d` do where they find zeros.
fn punch(path: &Path, from: u64, len: u64) {
    let file = File::options().write(true).open(path).unwrap();
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, len).unwrap();
}

const SEGMENT: u32 = 512 << 10;

fn queue_of_large_segments(disk: &SmallDisk) -> Queue {
    common::grown(&disk.path("q"), &Settings { segment_size: SEGMENT, ..Settings::default() })
}

#[test]
fn a_writer_makes_room_in_a_tail_with_holes_or_is_refused_and_leaves_no_trace() {
    let Some(disk) = SmallDisk::new("1m") else { return };
    let queue = queue_of_large_segments(&disk);
    queue.writer().unwrap().append(1, &[7; 500]).unwrap();
    let segment = disk.path("q/000000000.q");
    punch(&segment, 64 << 10, u64::from(SEGMENT) - (128 << 10));
    let ballast = disk.fill();
    let before = queue.writer_info().epoch;
    let error = queue.writer().unwrap_err();
    assert!(is_full(&error) && error.to_string().contains("000000000.q"), "{error}");
    assert_eq!((queue.writer_info().epoch, queue.writer_info().pid), (before, None));
    common::free(&ballast);
    let mut writer = queue.writer().unwrap();
    // All of the segment is the writer's now.
    disk.fill();
    while writer.next_seq() < 900 {
        writer.append(1, &[7; 500]).unwrap();
    }
    assert_eq!(count(&Queue::open(disk.path("q")).unwrap()), 899);
}

/// Checks that messages 1 to `acknowledged` exist, and no message after them, though perhaps a part of one.
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

/// Holes that are punched while the writer is open: nothing can be reserved then.
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
        let ballast = disk.fill();
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
        common::free(&ballast);
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

/// Only the word that says that nothing follows has no room: the message itself is stored.
#[test]
fn a_message_that_ends_where_the_room_ends_is_acknowledged() {
    let append = |writer: &mut QueueWriter, payload: &[u8]| writer.append(1, payload);
    let append_parts = |writer: &mut QueueWriter, payload: &[u8]| writer.append_parts(1, &[IoSlice::new(payload)]);
    let reserve = |writer: &mut QueueWriter, payload: &[u8]| {
        let mut record = writer.reserve(1, payload.len())?;
        record.copy_from_slice(payload);
        record.commit()
    };
    for way in [append, append_parts, reserve] {
        let Some(disk) = SmallDisk::new("1m") else { return };
        let queue = queue_of_large_segments(&disk);
        let mut writer = queue.writer().unwrap();
        writer.append(1, b"hello").unwrap();
        let head = queue.bounds().unwrap().head.offset;
        // Further than what is cleared ahead.
        let end = head.next_multiple_of(4096) + 4096;
        punch(&disk.path("q/000000000.q"), u64::from(end), u64::from(SEGMENT - 4096 - end));
        let ballast = disk.fill();
        assert_eq!(way(&mut writer, &vec![7; (end - head - 32) as usize]).unwrap(), 2);
        let error = way(&mut writer, b"no room").unwrap_err();
        assert!(is_full(&error), "{error}");
        assert_eq!(count(&queue), 2);
        common::free(&ballast);
        assert_eq!(way(&mut writer, b"room").unwrap(), 3);
        assert_eq!(count(&queue), 3);
    }
}

/// The writer's helper updates the mtime of a segment that has grown. Looking for the end of the records must not touch
/// the page after them, which has no room.
#[test]
fn a_writer_without_room_is_not_stopped_by_its_helper() {
    let Some(disk) = SmallDisk::new("1m") else { return };
    let queue = queue_of_large_segments(&disk);
    let mut writer = queue.writer().unwrap();
    let segment = disk.path("q/000000000.q");
    let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1);
    let set_back = || File::options().write(true).open(&segment).unwrap().set_modified(long_ago).unwrap();
    let wait = || until("it has looked", || std::fs::metadata(&segment).unwrap().modified().unwrap() > long_ago);
    set_back();
    writer.append(1, b"hello").unwrap();
    wait();
    set_back();
    let head = queue.bounds().unwrap().head.offset;
    let end = head.next_multiple_of(4096) + 4096;
    punch(&segment, u64::from(end), u64::from(SEGMENT - 4096 - end));
    let ballast = disk.fill();
    assert_eq!(writer.append(1, &vec![7; (end - head - 32) as usize]).unwrap(), 2);
    wait();
    writer.check().unwrap();
    assert!(is_full(&writer.append(1, b"no room").unwrap_err()));
    common::free(&ballast);
    assert_eq!(writer.append(1, b"room").unwrap(), 3);
    assert_eq!(count(&queue), 3);
}

#[test]
fn a_record_filled_in_place_that_had_no_room_is_not_acknowledged() {
    let Some(disk) = SmallDisk::new("1m") else { return };
    let queue = queue_of_large_segments(&disk);
    let mut writer = queue.writer().unwrap();
    punch(&disk.path("q/000000000.q"), 8 << 10, u64::from(SEGMENT) - (16 << 10));
    let ballast = disk.fill();
    let mut record = writer.reserve(1, 20_000).unwrap();
    record.fill(7);
    let error = record.commit().unwrap_err();
    assert!(is_full(&error), "{error}");
    assert!(is_full(&writer.reserve(1, 20_000).unwrap_err()));
    assert_eq!(count(&Queue::open(disk.path("q")).unwrap()), 0);
    common::free(&ballast);
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
    disk.fill();
    let error = reader.commit_sync().unwrap_err();
    assert!(is_full(&error) && error.to_string().contains("alice.meta"), "{error}");
}

#[test]
fn a_reader_is_opened_or_refused_on_a_full_disk() {
    let Some(disk) = SmallDisk::new("1m") else { return };
    let queue = queue_of_large_segments(&disk);
    drop(queue.reader("alice").unwrap());
    let ballast = disk.fill();
    drop(queue.reader("alice").unwrap());
    let error = queue.reader("bob").unwrap_err();
    assert!(is_full(&error), "{error}");
    assert_eq!(queue.reader_names().unwrap(), ["alice"]);
    common::free(&ballast);
    drop(queue.reader("bob").unwrap());
}
