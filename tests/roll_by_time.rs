//! Segments that end by time: at multiples since the epoch, by the messages' timestamps, and for retention by age.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::IoSlice;
use std::time::Duration;

use chronfs::clock;
use chronfs::queue::{Queue, QueueWriter, SegmentInfo, Settings, WriterOptions};

mod common;

use common::{SMALL, count, new_queue, until};

const MINUTE: u64 = 60_000_000_000;
const DAY: u64 = 24 * 60 * MINUTE;
/// A day on which clocks went back an hour in New York: days of the queue are those of UTC.
const NOVEMBER_3: u64 = 20_030 * DAY;
const BY_DAY: Settings = Settings { roll_every_ns: Some(DAY), ..SMALL };

/// First and last message of each segment that has messages.
fn segments(queue: &Queue) -> Vec<(u64, u64)> {
    let has_messages = |info: &SegmentInfo| info.first_seq > 0 && info.last_seq >= info.first_seq;
    let segments = queue.inspect().unwrap().segments;
    segments.iter().filter(|info| has_messages(info)).map(|info| (info.first_seq, info.last_seq)).collect()
}

fn append_at(writer: &mut QueueWriter, timestamps: &[u64]) {
    for timestamp_ns in timestamps {
        writer.append_at(*timestamp_ns, 1, b"x").unwrap();
    }
}

#[test]
fn a_message_of_a_later_period_starts_a_segment_and_empty_periods_make_none() {
    let (_dir, queue) = new_queue(&BY_DAY);
    let mut writer = queue.writer().unwrap();
    let last = NOVEMBER_3 + DAY - 1;
    append_at(
        &mut writer,
        &[NOVEMBER_3, NOVEMBER_3 + DAY / 2, last, last + 1, last + 1 + 30 * DAY, last + 1 + 30 * DAY],
    );
    assert_eq!(segments(&queue), [(1, 3), (4, 4), (5, 6)]);
    assert_eq!(queue.inspect().unwrap().segments.iter().filter(|info| info.sealed).count(), 2, "none is empty");
    assert_eq!(count(&queue), 6);
}

#[test]
fn the_latest_time_there_is_ends_no_segment() {
    for settings in [SMALL, BY_DAY] {
        let (_dir, queue) = new_queue(&settings);
        let options = WriterOptions { max_ahead: Duration::MAX, ..WriterOptions::default() };
        let mut writer = queue.writer_with(&options).unwrap();
        append_at(&mut writer, &[u64::MAX; 3]);
        writer.reserve(1, 1).unwrap().commit().unwrap();
        drop(writer);
        append_at(&mut queue.writer_with(&options).unwrap(), &[u64::MAX; 3]);
        assert_eq!(segments(&queue), [(1, 7)]);
        assert_eq!(count(&queue), 7);
    }
}

#[test]
fn every_way_to_append_obeys_the_time() {
    let (_dir, queue) = new_queue(&BY_DAY);
    let mut writer = queue.writer().unwrap();
    append_at(&mut writer, &[NOVEMBER_3]);
    writer.batch().append_at(NOVEMBER_3 + DAY, 1, b"x").unwrap();
    writer.batch().append_at(NOVEMBER_3 + DAY, 1, b"x").unwrap();
    for (len, day) in [(300, NOVEMBER_3 + 2 * DAY), (2, NOVEMBER_3 + 3 * DAY)] {
        let mut record = writer.reserve(1, 300).unwrap();
        record.fill(7);
        record.commit_len_at(len, day).unwrap();
    }
    // The clock's: another day than any of those.
    writer.append_parts(1, &[IoSlice::new(b"x")]).unwrap();
    writer.append(1, b"x").unwrap();
    assert_eq!(segments(&queue), [(1, 1), (2, 3), (4, 4), (5, 5), (6, 7)]);
    let mut scanner = queue.scan().unwrap();
    let payloads = std::iter::from_fn(|| scanner.next().unwrap().map(|entry| entry.message().unwrap().payload.len()));
    assert_eq!(payloads.collect::<Vec<_>>(), [1, 1, 1, 300, 2, 1, 1]);
}

#[test]
fn the_next_writer_goes_on_with_the_same_period() {
    let (_dir, queue) = new_queue(&BY_DAY);
    append_at(&mut queue.writer().unwrap(), &[NOVEMBER_3]);
    append_at(&mut queue.writer().unwrap(), &[NOVEMBER_3 + DAY - 1]);
    append_at(&mut queue.writer().unwrap(), &[NOVEMBER_3 + DAY]);
    assert_eq!(segments(&queue), [(1, 2), (3, 3)]);
}

#[test]
fn an_idle_writer_can_be_told_to_end_its_segment() {
    let (_dir, queue) = new_queue(&BY_DAY);
    let mut writer = queue.writer().unwrap();
    assert!(!writer.roll_if_due().unwrap(), "it has no messages");
    append_at(&mut writer, &[NOVEMBER_3]);
    assert!(writer.roll_if_due().unwrap());
    assert!(!writer.roll_if_due().unwrap(), "once");
    append_at(&mut writer, &[NOVEMBER_3, NOVEMBER_3 + 1]);
    assert_eq!(segments(&queue), [(1, 1), (2, 3)]);
    assert!(!queue.writer().is_ok_and(|mut other| other.roll_if_due().unwrap()), "another one has the queue");
}

#[test]
fn the_segment_of_an_idle_writer_ends_by_itself() {
    let second = 1_000_000_000;
    let (_dir, queue) = new_queue(&Settings { roll_every_ns: Some(second), ..SMALL });
    let mut writer = queue.writer().unwrap();
    append_at(&mut writer, &[NOVEMBER_3]);
    let sealed = || queue.inspect().unwrap().segments.iter().any(|segment| segment.sealed);
    until("the segment is sealed", sealed);
    append_at(&mut writer, &[NOVEMBER_3, NOVEMBER_3]);
    assert_eq!((segments(&queue)[0], count(&queue)), ((1, 1), 3));
}

#[test]
fn without_a_period_only_a_full_segment_ends() {
    let (_dir, queue) = new_queue(&SMALL);
    append_at(&mut queue.writer().unwrap(), &[1, NOVEMBER_3, NOVEMBER_3 + 100 * DAY]);
    assert_eq!(segments(&queue), [(1, 3)]);
}

#[test]
fn retention_by_age_ends_segments_in_time() {
    let settings = Settings { retain_age_ns: Some(8 * DAY), ..SMALL };
    assert_eq!(settings.roll_period_ns(), Some(DAY));
    assert_eq!(Settings { roll_every_ns: Some(MINUTE), ..settings }.roll_period_ns(), Some(MINUTE));
    let (_dir, queue) = new_queue(&BY_DAY);
    let today = clock::now_ns() / DAY * DAY;
    append_at(&mut queue.writer().unwrap(), &[today - 12 * DAY, today - 10 * DAY, today - DAY]);
    queue.set(&settings).unwrap();
    assert_eq!(queue.apply_retention().unwrap().removed.iter().map(|info| info.last_seq).max(), Some(2));
    // The last one's time is over, too: it is sealed, and stays for as long as it should.
    assert!(queue.inspect().unwrap().segments.iter().all(|info| info.sealed == (info.first_seq == 3)));
    assert_eq!(queue.apply_retention().unwrap().removed, []);
}

#[test]
fn retention_ends_the_segment_of_a_quiet_queue_and_says_until_when_others_take_messages() {
    let age = Settings { retain_age_ns: Some(8 * MINUTE), ..SMALL };
    let (_dir, queue) = new_queue(&age);
    let old = clock::now_ns() - DAY;
    append_at(&mut queue.writer().unwrap(), &[old, old]);
    let plan = queue.plan_retention().unwrap();
    assert_eq!((plan.removed.len(), plan.active.unwrap().oldest_ns), (0, old));
    assert_eq!(plan.active.unwrap().ends_ns, Some((old / MINUTE + 1) * MINUTE));
    assert_eq!(queue.apply_retention().unwrap().removed.len(), 1);
    assert_eq!(queue.bounds().unwrap().first_seq, 3, "nothing is left");
    let mut writer = queue.writer().unwrap();
    assert_eq!(writer.append(1, b"x").unwrap(), 3);
    drop(writer);
    assert_eq!(queue.apply_retention().unwrap().removed, []);
    assert_eq!(count_from(&queue, 3), 1);
}

fn count_from(queue: &Queue, first: u64) -> usize {
    let mut scanner = queue.scan().unwrap();
    let seqs = std::iter::from_fn(|| scanner.next().unwrap().map(|entry| entry.message().unwrap().seq));
    seqs.inspect(|seq| assert!(*seq >= first)).count()
}

#[test]
fn a_timestamp_far_in_the_future_does_no_harm() {
    let (_dir, queue) = new_queue(&BY_DAY);
    let options = chronfs::queue::WriterOptions { max_ahead: std::time::Duration::MAX, ..Default::default() };
    let mut writer = queue.writer_with(&options).unwrap();
    append_at(&mut writer, &[NOVEMBER_3, u64::MAX - 1, u64::MAX, u64::MAX]);
    assert_eq!(count(&queue), 4);
    assert!(queue.apply_retention().unwrap().removed.is_empty());
}
