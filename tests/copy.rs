//! Copies of a queue: the same numbers, timestamps and gaps; roles and terms; queues that start at a later number.
#![allow(clippy::unwrap_used, clippy::panic)]

use chronfs::QueueWriter;
use chronfs::queue::{Entry, ErrorKind, Exact, Gap, Settings, UpstreamGap};
use chronfs::queue::{Error, GapReason, Queue, Role, SegmentId, WriterOptions};

mod common;

use common::{Read, SMALL, new_queue, read_all, scan_all, scratch};
use proptest::prelude::*;

fn payload(seq: u64) -> Vec<u8> {
    common::payload(seq, 4_000)
}

fn exact(writer: &mut QueueWriter, seq: u64) -> Exact {
    writer.append_exact(seq, seq * 10, 3, &payload(seq)).unwrap()
}

fn upstream(entries: &[Read]) -> Vec<(u64, u64, GapReason)> {
    entries.iter().filter_map(|entry| entry.as_ref().err()).map(|gap| (gap.from, gap.to, gap.reason)).collect()
}

#[test]
fn a_message_comes_once_with_its_own_number_and_time_or_not_at_all() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    assert_eq!(exact(&mut writer, 1), Exact::Appended);
    assert_eq!(exact(&mut writer, 2), Exact::Appended);
    assert_eq!(exact(&mut writer, 5), Exact::AppendedAfterGap { from: 3, to: 4 });
    for seq in [1, 2, 5] {
        assert_eq!(exact(&mut writer, seq), Exact::Ignored);
    }
    assert_eq!(exact(&mut writer, 3), Exact::Gone(GapReason::Upstream(UpstreamGap::Unknown)));
    assert_eq!(exact(&mut writer, 0), Exact::Gone(GapReason::Retired));
    assert_eq!(writer.next_seq(), 6);

    let (same, other) = (payload(2), payload(1));
    for (timestamp_ns, msg_type, payload) in [(21, 3, &same), (20, 4, &same), (20, 3, &other)] {
        let error = writer.append_exact(2, timestamp_ns, msg_type, payload).unwrap_err();
        assert!(matches!(&error, Error::Diverged { seq: 2, here, given, .. } if here != given), "{error}");
    }
    // What can't be appended leaves no gap.
    assert!(matches!(writer.append_exact(9, 49, 3, b"").unwrap_err(), Error::TimestampInPast { .. }));
    assert!(matches!(writer.append_exact(9, 90, 65_535, b"").unwrap_err(), Error::ReservedType));
    let too_long = vec![0; writer.max_payload_len() + 1];
    assert!(matches!(writer.append_exact(9, 90, 3, &too_long).unwrap_err(), Error::TooLarge { .. }));
    assert!(matches!(writer.append_exact(1 << 62, 90, 3, b"").unwrap_err(), Error::NoSuchPosition { .. }));
    assert_eq!(writer.next_seq(), 6);
    let found = scan_all(&mut queue.scan().unwrap());
    assert_eq!(upstream(&found), [(3, 4, GapReason::Upstream(UpstreamGap::Unknown))]);
    assert_eq!(found.len(), 4);
}

#[test]
fn a_message_that_a_changed_setting_allows_is_taken() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    exact(&mut writer, 1);
    queue.update(|settings| settings.segment_size = 1 << 20).unwrap();
    assert_eq!(writer.append_exact(4, 40, 3, &[7; 500_000]).unwrap(), Exact::AppendedAfterGap { from: 2, to: 3 });
}

#[test]
fn what_retention_has_removed_cannot_be_compared() {
    let (_dir, queue) = new_queue(&Settings { retain_segments: Some(0), ..SMALL });
    let mut writer = queue.writer().unwrap();
    (1..=100).for_each(|seq| assert_eq!(exact(&mut writer, seq), Exact::Appended));
    drop(writer);
    queue.apply_retention().unwrap();
    assert!(queue.bounds().unwrap().first_seq > 1);
    let mut writer = queue.writer().unwrap();
    assert_eq!(writer.append_exact(1, 1, 1, b"anything").unwrap(), Exact::Gone(GapReason::Retired));
    assert_eq!(exact(&mut writer, 100), Exact::Ignored);
}

#[test]
fn each_reason_for_a_gap_is_kept() {
    use GapReason::{Checksum, Lost, Retired, Segment, Upstream};
    let (dir, queue) = new_queue(&SMALL);
    let reasons = [Checksum, Segment, Lost, Retired, Upstream(UpstreamGap::Lost), Upstream(UpstreamGap::Unknown)];
    let mut expected = Vec::new();
    for (reason, from) in reasons.into_iter().zip((1..).step_by(11)) {
        // A new writer each time: it finds its place after a gap.
        let mut writer = queue.writer().unwrap();
        assert_eq!(writer.next_seq(), from);
        assert_eq!(writer.append_gap(from + 9, reason).unwrap(), Some(from));
        assert_eq!(writer.append_gap(from + 9, reason).unwrap(), None, "a second time");
        drop(writer);
        assert_eq!(exact(&mut queue.writer().unwrap(), from + 10), Exact::Appended);
        expected.push((from, from + 9, Upstream(reason.into())));
    }
    drop(queue);
    let queue = Queue::open(dir.path().join("q")).unwrap();
    let scanned = scan_all(&mut queue.scan().unwrap());
    assert_eq!(upstream(&scanned), expected);
    assert_eq!(read_all(&mut queue.reader("r").unwrap()), scanned);
    // What is searched for in a gap is the gap.
    let mut scanner = queue.scan().unwrap();
    scanner.seek_seq(17).unwrap();
    assert!(matches!(scanner.next().unwrap(), Some(Entry::Gap(Gap { from: 12, to: 21, .. }))));
}

#[test]
fn a_gap_at_the_end_counts_for_readers_and_for_the_next_writer() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut reader = queue.reader("r").unwrap();
    let mut writer = queue.writer().unwrap();
    exact(&mut writer, 1);
    writer.append_gap(1_000, GapReason::Lost).unwrap();
    assert_eq!(read_all(&mut reader).len(), 2);
    reader.commit();
    drop((writer, reader));
    let bounds = queue.bounds().unwrap();
    assert_eq!((bounds.first_seq, bounds.next_seq, bounds.end_seq), (1, 1_001, 1_001));
    assert_eq!(queue.reader_position("r").unwrap(), 1_001);
    assert_eq!(queue.writer().unwrap().next_seq(), 1_001);
    assert!(read_all(&mut queue.reader("r").unwrap()).is_empty());
}

/// A copy made in pieces, with a new writer now and then, messages that come again, and gaps.
#[derive(Debug, Clone)]
enum Step {
    Next,
    Again(u64),
    Ahead(u64),
    Gap(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Next),
        2 => (1_u64..40).prop_map(Step::Again),
        1 => (1_u64..5_000).prop_map(Step::Ahead),
        1 => (1_u64..50).prop_map(Step::Gap),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_order_of_arrival_leaves_what_came_first_with_the_gaps_between(
        steps in prop::collection::vec(step(), 1..120),
        first_seq in prop_oneof![Just(1_u64), 1_u64..10_000],
    ) {
        let dir = scratch();
        let queue = Queue::create_at(dir.path().join("q"), &SMALL, first_seq).unwrap();
        let mut reader = queue.reader("model").unwrap();
        let mut writer = Some(queue.writer().unwrap());
        let mut model: Vec<Read> = Vec::new();
        let mut next = first_seq;
        let unknown = GapReason::Upstream(UpstreamGap::Unknown);
        for step in steps {
            let open = writer.as_mut().unwrap();
            let gap = |from, to, reason| Err(Gap { from, to, reason, position: queue.bounds().unwrap().head });
            prop_assert_eq!(open.next_seq(), next);
            match step {
                Step::Next => {
                    prop_assert_eq!(exact(open, next), Exact::Appended);
                    model.push(Ok((next, payload(next))));
                    next += 1;
                }
                Step::Again(back) => {
                    let seq = next.saturating_sub(back).max(first_seq);
                    let is_here = model.iter().any(|entry| matches!(entry, Ok((known, _)) if *known == seq));
                    if seq < next {
                        prop_assert_eq!(exact(open, seq) == Exact::Ignored, is_here);
                    }
                }
                Step::Ahead(by) => {
                    model.push(gap(next, next + by - 1, unknown));
                    prop_assert_eq!(exact(open, next + by), Exact::AppendedAfterGap { from: next, to: next + by - 1 });
                    model.push(Ok((next + by, payload(next + by))));
                    next += by + 1;
                }
                Step::Gap(count) => {
                    model.push(gap(next, next + count - 1, GapReason::Upstream(UpstreamGap::Lost)));
                    open.append_gap(next + count - 1, GapReason::Lost).unwrap();
                    next += count;
                }
                Step::Reopen => {
                    drop(writer.take());
                    writer = Some(queue.writer().unwrap());
                }
            }
        }
        // Where a gap's record is depends on rolls.
        let placeless = |entries: Vec<Read>| -> Vec<_> {
            entries.into_iter().map(|entry| entry.map_err(|gap| (gap.from, gap.to, gap.reason))).collect()
        };
        let model = placeless(model);
        prop_assert_eq!(placeless(read_all(&mut reader)), &model[..]);
        prop_assert_eq!(placeless(scan_all(&mut queue.scan().unwrap())), &model[..]);
        let bounds = queue.bounds().unwrap();
        prop_assert_eq!((bounds.first_seq, bounds.next_seq), (first_seq, next));
    }
}

#[test]
fn a_queue_starts_at_the_number_that_it_was_created_with() {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = Queue::create_at(&path, &SMALL, 500).unwrap();
    let bounds = queue.bounds().unwrap();
    assert_eq!((bounds.first_seq, bounds.next_seq, bounds.end_seq), (500, 500, 500));
    assert_eq!(queue.inspect().unwrap().messages, 0);
    let mut reader = queue.reader("r").unwrap();
    assert!(reader.next().unwrap().is_none());
    // Also without what says so in the control block.
    std::fs::remove_file(path.join("control.meta")).unwrap();
    let queue = Queue::open(&path).unwrap();
    assert_eq!(queue.bounds().unwrap().first_seq, 500);
    let mut writer = queue.writer().unwrap();
    assert_eq!(writer.append(1, b"x").unwrap(), 500);
    drop(writer);
    assert_eq!(scan_all(&mut queue.scan().unwrap()), [Ok((500, b"x".to_vec()))]);
    assert_eq!(queue.segment(0), 500);
    for seq in [0, 1 << 62, u64::MAX] {
        let path = dir.path().join("no");
        let error = Queue::create_at(&path, &SMALL, seq).unwrap_err();
        assert!(matches!(error, Error::NoSuchPosition { .. }) && !path.exists(), "{error}");
    }
}

trait FirstSeq {
    fn segment(&self, id: u32) -> u64;
}

impl FirstSeq for Queue {
    fn segment(&self, id: u32) -> u64 {
        let segments = self.inspect().unwrap().segments;
        segments.iter().find(|info| info.id == SegmentId(id)).unwrap().first_seq
    }
}

#[test]
fn only_who_says_so_writes_to_a_standby_and_terms_only_rise() {
    let (dir, queue) = new_queue(&SMALL);
    let relay = WriterOptions { as_standby: true, ..WriterOptions::default() };
    assert_eq!(queue.role(), Role::default());
    assert!(matches!(queue.writer_with(&relay).unwrap_err(), Error::NotStandby { term: 0, .. }));
    // Not under a writer, which would go on.
    let writer = queue.writer().unwrap();
    assert!(matches!(queue.set_role(Role::Standby { term: 1 }).unwrap_err(), Error::Locked { .. }));
    drop(writer);
    assert_eq!(queue.set_role(Role::Standby { term: 1 }).unwrap(), Role::default());

    let other = Queue::open(dir.path().join("q")).unwrap();
    assert_eq!(other.role(), Role::Standby { term: 1 });
    assert_eq!(other.inspect().unwrap().role, other.role());
    let error = other.writer().unwrap_err();
    assert!(matches!(error, Error::Standby { term: 1, .. }) && error.kind() == ErrorKind::WrongRole, "{error}");
    assert_eq!(std::fs::read_dir(dir.path().join("q")).unwrap().count(), 3, "a refused writer leaves nothing");
    exact(&mut queue.writer_with(&relay).unwrap(), 1);

    let present = |result: chronfs::Result<Role>| match result.unwrap_err() {
        Error::StaleTerm { present, .. } => present,
        error => panic!("{error}"),
    };
    assert_eq!(queue.set_role(Role::Standby { term: 1 }).unwrap(), Role::Standby { term: 1 }, "as it is");
    assert_eq!(present(other.set_role(Role::Active { term: 1 })), 1);
    assert_eq!(present(other.set_role(Role::Standby { term: 0 })), 1);
    other.set_role(Role::Active { term: 7 }).unwrap();
    assert_eq!(present(queue.set_role(Role::Standby { term: 3 })), 7);
    // This handle was opened when it was a standby.
    assert_eq!(queue.writer().unwrap().append(1, b"mine").unwrap(), 2);
    assert_eq!(queue.settings(), SMALL, "nothing else has changed");
}

#[test]
fn what_a_power_cut_took_is_put_back_with_its_numbers() {
    let (dir, queue) = new_queue(&SMALL);
    let segment = dir.path().join("q").join("000000000.q");
    let append = |numbers: std::ops::RangeInclusive<u64>| {
        let mut writer = common::writer(&queue);
        numbers.for_each(|seq| assert_eq!(exact(&mut writer, seq), Exact::Appended));
    };
    append(1..=5);
    let on_disk = std::fs::read(&segment).unwrap();
    append(6..=10);
    let mut reader = queue.reader("alice").unwrap();
    while reader.next().unwrap().is_some() {}
    reader.commit();
    drop(reader);
    std::fs::write(&segment, on_disk).unwrap();

    let queue = Queue::open(dir.path().join("q")).unwrap();
    let refill = WriterOptions { refill: true, ..WriterOptions::default() };
    let mut writer = queue.writer_with(&refill).unwrap();
    assert_eq!(writer.next_seq(), 6);
    (6..=8).for_each(|seq| assert_eq!(exact(&mut writer, seq), Exact::Appended));
    drop(writer);
    // Ended too early: who refills goes on, nobody else gets the missing numbers.
    assert_eq!(queue.writer_with(&refill).unwrap().next_seq(), 9);
    assert_eq!(queue.writer().unwrap().next_seq(), 11);
}
