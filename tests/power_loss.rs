//! What power cuts leave when writes reach the disk in any order, simulated: the control block ahead of the segments,
//! pages missing at the end. The cuts themselves are in `power_cut.rs`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::FileExt;
use std::path::Path;

use chronfs::queue::{Entry, GapReason, Queue, ReaderOptions, Start};

mod common;

use common::{SMALL, filled};

fn payload(seq: u64) -> Vec<u8> {
    common::payload(seq, 50)
}

/// The bytes of a segment from `from` on never reached the disk.
fn lose(path: &Path, segment: &str, from: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path.join(segment)).unwrap();
    let end = file.metadata().unwrap().len() - 64;
    file.write_all_at(&vec![0; usize::try_from(end - from).unwrap()], from).unwrap();
}

/// Says in the control block that a writer is at work: a cut does not come after a clean close.
fn claim_a_writer(path: &Path) {
    let file = std::fs::OpenOptions::new().write(true).open(path.join("control.meta")).unwrap();
    file.write_all_at(&1_u32.to_le_bytes(), 400).unwrap();
}

#[test]
fn when_only_the_control_block_reached_the_disk_everything_before_is_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    filled(&path, &SMALL, 10, payload);
    lose(&path, "000000000.q", 64);
    claim_a_writer(&path);
    let queue = Queue::open(&path).unwrap();
    assert_eq!(queue.writer().unwrap().append(1, b"eleven").unwrap(), 11);
    let mut scanner = queue.scan().unwrap();
    let Some(Entry::Gap(gap)) = scanner.next().unwrap() else { panic!("the loss of messages 1 to 10 is not reported") };
    assert_eq!((gap.from, gap.to), (1, 10));
    assert_eq!(scanner.next().unwrap().and_then(Entry::message).map(|message| message.seq), Some(11));
}

#[test]
fn a_reader_at_the_end_after_a_cut_misses_no_new_message() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    let queue = filled(&path, &SMALL, 100, payload);
    let mut scanner = queue.scan().unwrap();
    scanner.seek_seq(61).unwrap();
    lose(&path, "000000000.q", u64::from(scanner.position().offset));
    claim_a_writer(&path);
    let queue = Queue::open(&path).unwrap();
    let options = ReaderOptions { start: Start::End, ..ReaderOptions::default() };
    let mut at_end = queue.reader_with("at-end", &options).unwrap();
    let mut scan_end = queue.scan().unwrap();
    scan_end.seek_end().unwrap();
    assert!(at_end.next().unwrap().is_none());
    let mut writer = queue.writer().unwrap();
    let first = writer.next_seq();
    assert_eq!(first, 101, "published numbers are not assigned again");
    for seq in first..first + 100 {
        writer.append(1, &payload(seq)).unwrap();
    }
    // A reader at the published end gets every new message, and for the lost ones at most a gap.
    let check = |entry: Entry, next: &mut u64| match entry {
        Entry::Message(message) => {
            assert_eq!(message.seq, *next);
            *next += 1;
        }
        Entry::Gap(gap) => assert!(gap.reason == GapReason::Lost && gap.to < first, "{gap:?}"),
    };
    let mut next = first;
    while let Some(entry) = at_end.next().unwrap() {
        check(entry, &mut next);
    }
    assert_eq!(next, first + 100);
    let mut next = first;
    while let Some(entry) = scan_end.next().unwrap() {
        check(entry, &mut next);
    }
    assert_eq!(next, first + 100);
}
