//! Forged queue directories: numbers, lengths and hints that don't match what exists. Reading or writing one ends soon
//! and takes little memory.
#![cfg(feature = "mount")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use chronfs::doctor;
use chronfs::queue::layout;
use chronfs::queue::{Entry, Queue, Settings};

mod common;

use common::{SMALL, filled, writer};

/// Time limit for anything here, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

fn new_queue(dir: &Path, messages: u64) -> Queue {
    filled(&dir.join("q"), &SMALL, messages, |_| vec![b'x'; 100])
}

fn append(queue: &Queue, messages: u64) {
    common::append(&mut writer(queue), messages, |_| vec![b'x'; 100]);
}

fn segment_path(queue: &Queue, id: u32) -> PathBuf {
    queue.path().join(format!("{id:09}.q"))
}

/// Runs `work` on a thread; panics if it does not end.
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || sender.send(work()));
    match receiver.recv_timeout(DEADLINE) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what} does not end"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => panic!("{what} ended without a result"),
        },
    }
}

/// Writes bytes into a block.
fn put<const N: usize>(block: &mut [u8], at: usize, value: [u8; N]) {
    block[at..at + N].copy_from_slice(&value);
}

/// Corrects the checksum of a block of 64 bytes.
fn sum(block: &mut [u8]) {
    let crc = crc32fast::hash(&block[..60]);
    put(block, 60, crc.to_le_bytes());
}

/// Copies a segment to one of another number that starts with another message.
fn forge_segment(queue: &Queue, from: u32, to: u32, first_seq: u64) {
    let mut bytes = fs::read(segment_path(queue, from)).unwrap();
    let trailer = bytes.len() - layout::TRAILER_LEN as usize;
    for at in [0, trailer] {
        put(&mut bytes[at..], 24, to.to_le_bytes());
        sum(&mut bytes[at..at + 64]);
    }
    let start = &mut bytes[layout::SEGMENT_START as usize..][..64];
    put(start, 0, first_seq.to_le_bytes());
    sum(start);
    bytes[layout::RECORDS_START as usize..trailer].fill(0);
    fs::write(segment_path(queue, to), bytes).unwrap();
}

/// Everything that reads a queue without changing it.
fn look(queue: &Queue) -> Vec<String> {
    queue.inspect().unwrap();
    queue.plan_retention().unwrap();
    let mut scanner = queue.scan().unwrap();
    let mut seen = Vec::new();
    while let Some(entry) = scanner.next().unwrap() {
        if let Entry::Gap(gap) = entry {
            seen.push(format!("{} to {}", gap.from, gap.to));
        }
    }
    for seq in [1, 2, 1 << 20] {
        scanner.seek_seq(seq).unwrap();
        scanner.seek_time(seq).unwrap();
        scanner.next().unwrap();
    }
    // Without a control block there is nothing to wait on, and so no reader.
    if queue.control_damage().is_none() {
        let mut reader = queue.reader("looker").unwrap();
        while reader.next().unwrap().is_some() {}
        drop(reader);
        queue.remove_reader("looker").unwrap();
    }
    for deep in [false, true] {
        let report = doctor::examine(queue.path(), doctor::Options { deep, fix: false }, &mut |_| {}).unwrap();
        seen.extend(report.findings.iter().map(|finding| format!("{} {}", finding.kind, finding.detail)));
    }
    seen
}

#[test]
fn segments_whose_numbers_lie_far_apart_cost_no_more_than_others() {
    for last in [u32::MAX, u32::MAX - 1] {
        for has_control in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let queue = new_queue(dir.path(), 3);
            forge_segment(&queue, 0, last, 9);
            if !has_control {
                fs::remove_file(queue.path().join(layout::CONTROL_FILE)).unwrap();
            }
            let queue = Queue::open(queue.path()).unwrap();
            let seen = in_time("looking", move || look(&queue));
            assert!(seen.iter().any(|what| what.contains("missing")), "{last}: {seen:?}");
        }
    }
}

#[test]
fn after_the_largest_segment_number_a_writer_stops_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(dir.path(), 3);
    forge_segment(&queue, 0, u32::MAX, 9);
    let error = in_time("appending", move || {
        let mut writer = queue.writer().unwrap();
        (0..1_000).find_map(|_| writer.append(1, &[0; 100]).err())
    });
    let error = error.unwrap().to_string();
    assert!(error.contains("4294967295.q") && error.contains("move the file away"), "{error}");
}

#[test]
fn a_writer_passes_any_number_of_files_that_are_not_segments() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(dir.path(), 1);
    let last = 5_000;
    for id in 1..=last {
        File::create(segment_path(&queue, id)).unwrap();
    }
    let path = queue.path().to_path_buf();
    in_time("appending", move || append(&Queue::open(path).unwrap(), 1_000));
    assert!(segment_path(&queue, last + 1).exists());
    let mut scanner = queue.scan().unwrap();
    let mut count = 0;
    while let Some(entry) = scanner.next().unwrap() {
        assert!(entry.message().is_some(), "{entry:?}");
        count += 1;
    }
    assert_eq!(count, 1_001);
}

#[test]
fn a_writer_does_not_write_over_a_segment_that_is_in_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(dir.path(), 1);
    let mut writer = queue.writer().unwrap();
    forge_segment(&queue, 0, 1, 77);
    let before = fs::read(segment_path(&queue, 1)).unwrap();
    for _ in 0..1_000 {
        writer.append(1, &[b'x'; 100]).unwrap();
    }
    assert_eq!(fs::read(segment_path(&queue, 1)).unwrap(), before);
}

/// Fills the first segment with `claims` headers, each of which claims the largest payload that fits.
fn forge_claims(queue: &Queue, segment_size: u32, claims: u32) {
    let file = File::options().write(true).open(segment_path(queue, 0)).unwrap();
    let mut headers = Vec::new();
    for index in 0..claims {
        let offset = layout::RECORDS_START + 32 * index;
        let len = layout::records_end(segment_size) - offset - layout::HEADER_LEN - 8;
        let mut header = [0; 32];
        put(&mut header, 0, (len + 1).to_le_bytes());
        put(&mut header, 4, 1_u16.to_le_bytes());
        put(&mut header, 8, u64::from(index + 1).to_le_bytes());
        put(&mut header, 16, 1_u64.to_le_bytes());
        headers.extend_from_slice(&header);
    }
    file.write_all_at(&headers, u64::from(layout::RECORDS_START)).unwrap();
}

/// The most memory that the process has had at once, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn lengths_that_are_lies_cost_neither_time_nor_memory() {
    const SIZE: u32 = 1 << 30;
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { segment_size: SIZE, ..Settings::default() };
    let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
    // Sparse, as an attacker would make it.
    let path = segment_path(&queue, 0);
    let mut head = fs::read(&path).unwrap().drain(..layout::RECORDS_START as usize).collect::<Vec<_>>();
    put(&mut head, 12, SIZE.to_le_bytes());
    sum(&mut head[..64]);
    fs::remove_file(&path).unwrap();
    let file = File::create(&path).unwrap();
    file.set_len(u64::from(SIZE)).unwrap();
    file.write_all_at(&head, 0).unwrap();
    let mut start = [0; 64];
    put(&mut start, 0, 1_u64.to_le_bytes());
    sum(&mut start);
    file.write_all_at(&start, u64::from(layout::SEGMENT_START)).unwrap();
    forge_claims(&queue, SIZE, 64);
    let before = peak_memory();
    let seen = in_time("looking", {
        let queue = queue.clone();
        move || look(&queue)
    });
    assert!(seen.iter().any(|what| what.contains("checksum")), "{seen:?}");
    let more = peak_memory().saturating_sub(before);
    // The reader maps the segment, and the pages of the hole that it touches count although they are page cache.
    assert!(more < u64::from(SIZE) + (256 << 20), "{} MiB more", more >> 20);
    in_time("writing", move || append(&queue, 1));
}

#[test]
fn a_record_of_many_megabytes_is_read_by_pieces_and_returned_whole() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { segment_size: 64 << 20, ..Settings::default() };
    let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
    let mut payload: Vec<u8> = (0..40 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
    // Zeros, which a copy may turn into a hole.
    payload[8 << 20..30 << 20].fill(0);
    let mut writer = queue.writer().unwrap();
    writer.append(1, &payload).unwrap();
    writer.append(1, b"after it").unwrap();
    drop(writer);
    let holes = File::options().write(true).open(segment_path(&queue, 1)).unwrap();
    rustix::fs::fallocate(
        &holes,
        rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
        9 << 20,
        20 << 20,
    )
    .unwrap();
    let mut scanner = queue.scan().unwrap();
    assert!(scanner.next().unwrap().and_then(Entry::message).is_some_and(|message| message.payload == payload));
    assert_eq!(follow(&mut scanner), ["2"]);
    assert_eq!(queue.bounds().unwrap().next_seq, 3);
    // One wrong bit, far into it.
    holes.write_all_at(&[1], 25 << 20).unwrap();
    let mut scanner = queue.scan().unwrap();
    assert_eq!(follow(&mut scanner), ["1-1", "2"]);
}

/// Makes the control block say that the queue ends elsewhere.
fn forge_head(queue: &Queue, next_seq: u64, segment: u32, offset: u32) {
    let file = File::options().write(true).open(queue.path().join(layout::CONTROL_FILE)).unwrap();
    let mut slot = [0; 64];
    put(&mut slot, 0, 1_000_000_u64.to_le_bytes());
    put(&mut slot, 8, next_seq.to_le_bytes());
    put(&mut slot, 16, 1_u64.to_le_bytes());
    put(&mut slot, 24, segment.to_le_bytes());
    put(&mut slot, 28, offset.to_le_bytes());
    sum(&mut slot);
    file.write_all_at(&slot, u64::from(layout::CONTROL_HEAD[0])).unwrap();
}

#[test]
fn a_head_that_is_too_far_on_hides_nothing_and_what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(dir.path(), 100);
    let head = queue.bounds().unwrap().head;
    forge_head(&queue, 151, head.segment.0, head.offset + 50 * 136);
    let queue = Queue::open(queue.path()).unwrap();
    let bounds = queue.bounds().unwrap();
    assert_eq!((bounds.next_seq, bounds.end_seq, bounds.head), (101, 151, head));
    assert_eq!(queue.inspect().unwrap().messages, 100);
    let mut scanner = queue.scan().unwrap();
    scanner.seek_seq(99).unwrap();
    assert_eq!(follow(&mut scanner), ["99", "100", "101-150"]);
    let mut reader = queue.reader("r").unwrap();
    let mut gap = None;
    while let Some(entry) = reader.next().unwrap() {
        gap = if let Entry::Gap(gap) = entry { Some((gap.from, gap.to)) } else { None };
    }
    assert_eq!(gap, Some((101, 150)));
    for deep in [false, true] {
        let report = doctor::examine(queue.path(), doctor::Options { deep, fix: false }, &mut |_| {}).unwrap();
        let named = report.findings.iter().filter(|finding| finding.detail.contains("101 to 150")).count();
        assert_eq!(named, 1, "deep {deep}: {:?}", report.findings);
    }
    // A writer goes on after the missing ones, in the same place, and no gap is reported twice.
    append(&queue, 2);
    assert_eq!(follow(&mut scanner), ["151", "152"]);
    assert_eq!(reader.next().unwrap().and_then(Entry::message).map(|message| message.seq), Some(151));
}

#[test]
fn an_old_or_forged_head_costs_no_walk_through_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { segment_size: 4 << 20, ..Settings::default() };
    let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
    append(&queue, 300_000);
    let bounds = queue.bounds().unwrap();
    let bytes_read = || {
        let io = fs::read_to_string("/proc/thread-self/io").unwrap();
        io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse::<u64>().unwrap()
    };
    for (segment, offset) in [(0, 4096), (0, 1 << 20), (bounds.head.segment.0, 4096), (7_000, 4096), (0, 7)] {
        forge_head(&queue, 300_001, segment, offset);
        let queue = Queue::open(queue.path()).unwrap();
        let before = bytes_read();
        assert_eq!(queue.bounds().unwrap(), bounds, "{segment} {offset}");
        let read = bytes_read() - before;
        assert!(read < 10 << 20, "{read} bytes read for a head at {segment} {offset}");
    }
    // The writer that closed the queue must have been at an end of it.
    let middle = queue.scan().and_then(|mut scanner| scanner.seek_seq(50_000).map(|()| scanner.position())).unwrap();
    forge_head(&queue, 50_000, middle.segment.0, middle.offset);
    let mut writer = Queue::open(queue.path()).unwrap().writer().unwrap();
    assert_eq!(writer.append(1, b"next").unwrap(), 300_001);
}

#[test]
fn of_any_number_of_files_that_are_no_segments_each_is_looked_at_once_for_a_search() {
    const FILES: u32 = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(dir.path(), 3);
    for id in 1..=FILES {
        File::create(segment_path(&queue, id)).unwrap();
    }
    append(&queue, 1_000);
    let calls = || {
        let io = fs::read_to_string("/proc/thread-self/io").unwrap();
        io.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap().parse::<u64>().unwrap()
    };
    let mut scanner = queue.scan().unwrap();
    let before = calls();
    scanner.seek_seq(2).unwrap();
    let made = calls() - before;
    assert_eq!(scanner.next().unwrap().and_then(Entry::message).map(|message| message.seq), Some(2));
    assert!(made < 6 * u64::from(FILES), "{made} reads");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_segment_of_a_copy_that_went_on_by_itself_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(dir.path(), 100);
    let clone = dir.path().join("clone");
    copy(queue.path(), &clone);
    let clone = Queue::open(&clone).unwrap();
    append(&clone, 1_400);
    append(&queue, 1_400);
    let segments = queue.inspect().unwrap().segments;
    let (second, last) = (segments[1], segments[segments.len() - 1]);
    assert!(second.sealed && segments.len() >= 4);
    // One in the middle: what is before and after it is read.
    let own = fs::read(segment_path(&queue, 1)).unwrap();
    fs::copy(segment_path(&clone, 1), segment_path(&queue, 1)).unwrap();
    let queue = Queue::open(queue.path()).unwrap();
    let seen = look(&queue);
    let gap = format!("{} to {}", second.first_seq, second.last_seq);
    assert_eq!(seen.iter().filter(|what| **what == gap).count(), 1, "{seen:?}");
    assert!(seen.iter().any(|what| what.starts_with("damaged-segment") && what.contains("copy")), "{seen:?}");
    let mut scanner = queue.scan().unwrap();
    let mut count = 0;
    while let Some(entry) = scanner.next().unwrap() {
        count += u64::from(entry.message().is_some());
    }
    assert_eq!(count, 1_500 - (second.last_seq + 1 - second.first_seq));
    // And back.
    fs::write(segment_path(&queue, 1), own).unwrap();
    assert!(look(&queue).iter().all(|what| !what.contains("missing") && !what.contains("damaged")));
    // One far after the end.
    append(&clone, 5_000);
    let stray = clone.bounds().unwrap().head.segment.0;
    fs::copy(segment_path(&clone, stray), segment_path(&queue, stray)).unwrap();
    assert!(stray > last.id.0 + 1);
    let report = doctor::examine(queue.path(), doctor::Options::default(), &mut |_| {}).unwrap();
    assert!(report.findings.iter().any(|finding| finding.kind == "missing-segment"), "{:?}", report.findings);
}

#[test]
fn segments_follow_one_another_over_kills_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(dir.path(), 700);
    // Killed between starting a segment and sealing the one before: that is still unsealed.
    let segments = queue.inspect().unwrap().segments;
    let sealed = segments.iter().rfind(|segment| segment.sealed).unwrap().id.0;
    let file = File::options().write(true).read(true).open(segment_path(&queue, sealed)).unwrap();
    let mut seal = [0; 64];
    file.read_exact_at(&mut seal, u64::from(layout::SEGMENT_SEAL)).unwrap();
    let end = u64::from(u32::from_le_bytes(seal[16..20].try_into().unwrap()));
    file.write_all_at(&[0; 32], end).unwrap();
    file.write_all_at(&[0; 64], u64::from(layout::SEGMENT_SEAL)).unwrap();
    for _ in 0..3 {
        append(&Queue::open(queue.path()).unwrap(), 700);
    }
    let mut again = [0; 64];
    file.read_exact_at(&mut again, u64::from(layout::SEGMENT_SEAL)).unwrap();
    assert_eq!(again, seal, "sealed as it was");
    assert_eq!(look(&queue), [""; 0]);
}

/// What a follower at the end of the queue gets: messages and gaps.
fn follow(scanner: &mut chronfs::queue::Scanner) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(entry) = scanner.next().unwrap() {
        seen.push(match entry {
            Entry::Message(message) => format!("{}", message.seq),
            Entry::Gap(gap) => format!("{}-{}", gap.from, gap.to),
        });
    }
    seen
}

#[test]
fn followers_of_a_segment_that_is_removed_go_on_in_the_next_one() {
    // How many segments, counted from the newest one.
    for removed in [1, 2, u32::MAX] {
        let dir = tempfile::tempdir().unwrap();
        let queue = new_queue(dir.path(), 1_500);
        let head = queue.bounds().unwrap().head.segment.0;
        assert!(head >= 2);
        let mut scanner = queue.scan().unwrap();
        scanner.seek_end().unwrap();
        let mut reader = queue.reader("r").unwrap();
        while reader.next().unwrap().is_some() {}
        for id in head.saturating_sub(removed - 1)..=head + 1 {
            let _ = fs::remove_file(segment_path(&queue, id));
        }
        append(&Queue::open(queue.path()).unwrap(), 2);
        assert_eq!(follow(&mut scanner), ["1501", "1502"], "{removed} removed");
        let mut seqs = Vec::new();
        while let Some(entry) = reader.next().unwrap() {
            seqs.extend(entry.message().map(|message| message.seq));
        }
        assert_eq!(seqs, [1501, 1502], "{removed} removed");
        assert!(queue.bounds().unwrap().head.segment.0 > head, "a number that was in use is not assigned again");
    }
}
