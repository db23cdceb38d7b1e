//! Queue directories that somebody has made up: numbers, lengths and hints that say what is not there. Whoever looks at
//! one, and whoever writes to it, comes to an end soon and with little memory.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use chronfs::doctor;
use chronfs::queue::layout::{self, SegmentIdentity, StartBlock};
use chronfs::queue::{Entry, Queue, Settings};
use zerocopy::{FromBytes, IntoBytes};

/// How long anything here may take on a machine that does much else besides.
const DEADLINE: Duration = Duration::from_secs(30);

fn new_queue(dir: &Path, messages: u64) -> Queue {
    let settings = Settings { segment_size: 64 << 10, ..Settings::default() };
    let queue = Queue::create(dir.join("q"), &settings).unwrap();
    append(&queue, messages);
    queue
}

fn append(queue: &Queue, messages: u64) {
    let mut writer = queue.writer().unwrap();
    for _ in 0..messages {
        writer.append(1, &[b'x'; 100]).unwrap();
    }
}

fn segment_path(queue: &Queue, id: u32) -> PathBuf {
    queue.path().join(format!("{id:09}.q"))
}

/// Runs `work` on a thread; panics if it does not come to an end.
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || sender.send(work()));
    match receiver.recv_timeout(DEADLINE) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what} goes on and on"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => panic!("{what} has ended without a result"),
        },
    }
}

/// Puts a copy of a segment beside it, as the one of another number that starts with another message.
fn forge_segment(queue: &Queue, from: u32, to: u32, first_seq: u64) {
    let mut bytes = fs::read(segment_path(queue, from)).unwrap();
    let trailer = bytes.len() - layout::TRAILER_LEN as usize;
    for at in [0, trailer] {
        let (mut identity, _) = SegmentIdentity::read_from_prefix(&bytes[at..]).unwrap();
        identity.segment_id = to.into();
        identity.crc = crc32fast::hash(&identity.as_bytes()[..60]).into();
        bytes[at..at + 64].copy_from_slice(identity.as_bytes());
    }
    let at = layout::SEGMENT_START as usize;
    let (mut start, _) = StartBlock::read_from_prefix(&bytes[at..]).unwrap();
    start.first_seq = first_seq.into();
    start.crc = crc32fast::hash(&start.as_bytes()[..60]).into();
    bytes[at..at + 64].copy_from_slice(start.as_bytes());
    bytes[layout::RECORDS_START as usize..trailer].fill(0);
    fs::write(segment_path(queue, to), bytes).unwrap();
}

/// All that looks at a queue without changing it.
fn look(queue: &Queue) -> Vec<String> {
    queue.inspect().unwrap();
    queue.retain(true).unwrap();
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
fn behind_the_largest_segment_number_a_writer_stops_and_says_why() {
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
fn a_writer_passes_any_number_of_files_that_are_no_segments() {
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

/// What a follower that stands at the end of the queue gets until `count` messages have come: gaps and messages.
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
    // How many segments from the newest one on.
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
        assert!(queue.bounds().unwrap().head.segment.0 > head, "a number that was in use is not given out again");
    }
}
