//! The other ways to append: in place, in batches, to a full queue, with a sync policy.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::IoSlice;
use std::time::{Duration, Instant};

use chronfs::clock;
use chronfs::queue::{Entry, Error, Queue, Settings, SyncPolicy, WhenFull, WriterOptions};

mod common;

use common::{SMALL, new_queue};
use proptest::prelude::*;

fn payloads(queue: &Queue) -> Vec<Vec<u8>> {
    let mut scanner = queue.scan().unwrap();
    let mut all = Vec::new();
    while let Some(entry) = scanner.next().unwrap() {
        let Entry::Message(message) = entry else { panic!("{entry:?}") };
        assert_eq!(message.seq, all.len() as u64 + 1);
        all.push(message.payload.to_vec());
    }
    all
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    Parts(Vec<usize>),
    InPlace(usize),
    /// Reserved, and appended at most.
    Shorter(usize, usize),
    Abort(usize),
    /// In every way, one after the other.
    Batch(Vec<usize>),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![0_usize..200, 0_usize..30_000];
    prop_oneof![
        4 => len.clone().prop_map(Step::Append),
        4 => len.clone().prop_map(Step::InPlace),
        3 => prop::collection::vec(prop_oneof![0_usize..20, 0_usize..9_000], 0..6).prop_map(Step::Parts),
        3 => (len.clone(), len.clone()).prop_map(|(reserved, len)| Step::Shorter(reserved, len)),
        2 => len.clone().prop_map(Step::Abort),
        1 => prop::collection::vec(len, 0..5).prop_map(Step::Batch),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_sequence_of_appends_reads_back_as_a_vector_would(steps in prop::collection::vec(step(), 1..60)) {
        let (_dir, queue) = new_queue(&SMALL);
        let mut reader = queue.reader("model").unwrap();
        let mut writer = Some(queue.writer().unwrap());
        let mut model: Vec<Vec<u8>> = Vec::new();
        let mut fill = 0_u8;
        let mut make = |len: usize| {
            fill = fill.wrapping_add(1).max(1);
            vec![fill; len]
        };
        for step in steps {
            let open = writer.as_mut().unwrap();
            match step {
                Step::Append(len) => {
                    let payload = make(len);
                    open.append(1, &payload).unwrap();
                    model.push(payload);
                }
                Step::Parts(lens) => {
                    let parts: Vec<_> = lens.into_iter().map(&mut make).collect();
                    let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
                    open.append_parts(1, &slices).unwrap();
                    model.push(parts.concat());
                }
                Step::Shorter(reserved, len) => {
                    let payload = make(len.min(reserved));
                    let mut record = open.reserve_zeroed(1, reserved).unwrap();
                    prop_assert!(record.iter().all(|&byte| byte == 0));
                    record.fill(0xEE);
                    record[..payload.len()].copy_from_slice(&payload);
                    record.commit_len(payload.len()).unwrap();
                    model.push(payload);
                }
                Step::InPlace(len) => {
                    let payload = make(len);
                    let mut record = open.reserve(1, len).unwrap();
                    record.copy_from_slice(&payload);
                    prop_assert_eq!(record.commit().unwrap(), model.len() as u64 + 1);
                    model.push(payload);
                }
                Step::Abort(len) => {
                    let mut record = open.reserve(1, len).unwrap();
                    record.fill(0xEE);
                }
                Step::Batch(lens) => {
                    let mut batch = open.batch();
                    for (way, len) in lens.into_iter().enumerate() {
                        let payload = make(len);
                        match way {
                            0 => batch.append_at(clock::now_ns(), 1, &payload),
                            1 => batch.append_parts(1, &payload.chunks(100).map(IoSlice::new).collect::<Vec<_>>()),
                            2 => batch.reserve(1, len).and_then(|mut record| {
                                record.copy_from_slice(&payload);
                                record.commit()
                            }),
                            3 => batch.append_as(1, &payload[..]),
                            _ => batch.append(1, &payload),
                        }
                        .unwrap();
                        model.push(payload);
                    }
                }
                Step::Reopen => {
                    drop(writer.take());
                    writer = Some(queue.writer().unwrap());
                }
            }
            while let Some(entry) = reader.next().unwrap() {
                let message = entry.message().unwrap();
                prop_assert_eq!(message.payload, &model[usize::try_from(message.seq).unwrap() - 1][..]);
            }
            prop_assert_eq!(reader.seq(), model.len() as u64 + 1);
        }
        prop_assert_eq!(payloads(&queue), model);
    }
}

#[test]
fn a_reservation_takes_a_time_and_a_shorter_length_and_refuses_others() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    assert_eq!(writer.reserve(7, 5).unwrap().commit_at(1_000).unwrap(), 1);
    assert_eq!(writer.reserve(7, 5).unwrap().commit_len_at(2, 2_000).unwrap(), 2);
    let late = writer.reserve(7, 5).unwrap().commit_at(1_999).unwrap_err();
    assert!(matches!(late, Error::TimestampInPast { last_ns: 2_000, .. }), "{late}");
    let early = writer.reserve(7, 5).unwrap().commit_len_at(5, u64::MAX).unwrap_err();
    assert!(matches!(early, Error::TimestampInFuture { .. }), "{early}");
    let long = writer.reserve(7, 5).unwrap().commit_len(6).unwrap_err();
    assert!(matches!(long, Error::TooLarge { len: 6, max: 5, .. }), "{long}");
    assert!(matches!(writer.batch().append_at(1, 7, b"").unwrap_err(), Error::TimestampInPast { .. }));
    let too_long = vec![0; writer.max_payload_len()];
    let parts = [IoSlice::new(&too_long), IoSlice::new(b"!")];
    assert!(matches!(writer.append_parts(7, &parts).unwrap_err(), Error::TooLarge { .. }));
    writer.append_parts(7, &parts[..1]).unwrap();

    let mut scanner = queue.scan().unwrap();
    let mut next = || scanner.next().unwrap().unwrap().message().map(|m| (m.seq, m.timestamp_ns, m.payload.len()));
    assert_eq!([next(), next()], [Some((1, 1_000, 5)), Some((2, 2_000, 2))]);
    assert_eq!(next().map(|(seq, _, len)| (seq, len)), Some((3, too_long.len())), "nothing else was appended");
}

#[test]
fn values_are_read_as_they_were_appended() {
    use chronfs::zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

    #[derive(Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, KnownLayout, Immutable)]
    #[zerocopy(crate = "chronfs::zerocopy")]
    #[repr(C)]
    struct Quote {
        bid: i64,
        ask: i64,
    }
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    let quote = |at: i64| Quote { bid: at, ask: at + 2 };
    let payload = |at: i64| vec![1_u8; usize::try_from(at % 7).unwrap()];
    for at in 0..100 {
        writer.append(0, &payload(at)).unwrap();
        writer.append_as(1, &quote(at)).unwrap();
    }
    writer.append_as(2, &[1_u32, 2, 3][..]).unwrap();
    let mut reader = queue.reader("typed").unwrap();
    let mut seen = 0;
    while let Some(Entry::Message(message)) = reader.next().unwrap() {
        assert_eq!(message.payload.as_ptr().addr() % 8, 0);
        match message.msg_type {
            1 => {
                assert_eq!((message.read(), message.payload_as()), (Some(quote(seen)), Some(&quote(seen))));
                assert!(message.read::<i64>().is_none(), "another length");
                seen += 1;
            }
            2 => assert_eq!(message.payload_as::<[u32]>(), Some(&[1, 2, 3][..])),
            _ => assert!(message.read::<Quote>().is_none()),
        }
    }
    assert_eq!(seen, 100);
    let mut scanner = queue.scan().unwrap();
    scanner.seek_seq(2).unwrap();
    let copy = scanner.next().unwrap().unwrap().message().unwrap();
    assert_eq!(copy.read(), Some(quote(0)), "wherever the copy lies");
}

#[test]
fn a_batch_wakes_its_sleepers() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut reader = queue.reader("sleeper").unwrap();
    let mut writer = queue.writer().unwrap();
    let sleeping = std::thread::spawn(move || {
        let mut count = 0;
        while count < 100 {
            assert!(reader.wait(Some(Duration::from_secs(20))).unwrap(), "slept through the batch");
            while reader.next().unwrap().is_some() {
                count += 1;
            }
        }
    });
    let mut batch = writer.batch();
    for _ in 0..100 {
        batch.append(1, b"x").unwrap();
    }
    drop(batch);
    sleeping.join().unwrap();
}

#[test]
fn a_writer_that_waits_goes_on_when_retention_has_made_room() {
    let settings = Settings { max_bytes: Some(192 << 10), retain_segments: Some(0), ..SMALL };
    let (_dir, queue) = new_queue(&settings);
    let mut reader = queue.reader("slow").unwrap();
    let waits = WriterOptions { when_full: WhenFull::Wait(Duration::from_secs(20)), ..WriterOptions::default() };
    let mut writer = queue.writer_with(&waits).unwrap();
    let writing = std::thread::spawn(move || {
        for _ in 0..2000 {
            writer.append(1, &[1; 500]).unwrap();
        }
    });
    let mut count = 0;
    while count < 2000 {
        assert!(reader.wait(Some(Duration::from_secs(20))).unwrap(), "nothing came after {count}");
        while let Some(entry) = reader.next().unwrap() {
            assert!(entry.message().is_some(), "{entry:?}");
            count += 1;
            reader.commit();
        }
    }
    writing.join().unwrap();
}

#[test]
fn a_writer_that_waits_in_vain_says_that_the_queue_is_full() {
    let (_dir, queue) = new_queue(&Settings { max_bytes: Some(128 << 10), ..SMALL });
    let waits = WriterOptions { when_full: WhenFull::Wait(Duration::from_millis(20)), ..WriterOptions::default() };
    let mut writer = queue.writer_with(&waits).unwrap();
    let error = loop {
        if let Err(error) = writer.append(1, &[1; 500]) {
            break error;
        }
    };
    assert!(matches!(error, Error::QueueFull { .. }), "{error}");
}

#[test]
fn a_sync_policy_lets_appends_and_rolls_go_on() {
    let (_dir, queue) = new_queue(&SMALL);
    let sync = SyncPolicy::Every { messages: 100, interval: Duration::from_millis(1) };
    let mut writer = queue.writer_with(&WriterOptions { sync, ..WriterOptions::default() }).unwrap();
    for _ in 0..2000 {
        writer.append(1, &[1; 300]).unwrap();
    }
    writer.flush_async().unwrap();
    writer.flush_sync().unwrap();
    drop(writer);
    assert_eq!(payloads(&queue).len(), 2000);
}

#[test]
fn no_thread_outlives_its_writer() {
    let threads = || {
        std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
    };
    let (_dir, queue) = new_queue(&SMALL);
    for _ in 0..20 {
        let mut writer = queue.writer().unwrap();
        for _ in 0..4 {
            writer.append(1, &[1; 40_000]).unwrap();
        }
    }
    // Other tests of this program run beside this one and have their own writers: check until they are gone.
    let start = Instant::now();
    while threads().any(|name| name.starts_with("chronfs-")) {
        assert!(start.elapsed() < Duration::from_secs(60), "a helper thread is still there");
        std::thread::yield_now();
    }
}

#[test]
fn a_notifier_is_readable_exactly_when_something_has_come() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let (_dir, queue) = new_queue(&SMALL);
    let mut reader = queue.reader("loop").unwrap();
    let notifier = queue.notifier().unwrap();
    let is_readable = |wait: bool| {
        let mut events = [PollFd::new(&notifier, PollFlags::IN)];
        let timeout = Timespec { tv_sec: if wait { 20 } else { 0 }, tv_nsec: 0 };
        poll(&mut events, Some(&timeout)).unwrap() == 1
    };
    assert!(!is_readable(false));
    let mut writer = queue.writer().unwrap();
    for seq in 1..=300 {
        writer.append(1, b"x").unwrap();
        assert!(is_readable(true), "message {seq} was not notified");
        notifier.clear();
        assert_eq!(reader.next().unwrap().unwrap().message().unwrap().seq, seq);
        assert_eq!(reader.next().unwrap(), None);
    }
    let appending = std::thread::spawn(move || (0..50_000).for_each(|_| assert!(writer.append(1, b"y").unwrap() > 0)));
    let mut count = 0;
    while count < 50_000 {
        assert!(is_readable(true), "nothing was notified after {count}");
        notifier.clear();
        while reader.next().unwrap().is_some() {
            count += 1;
        }
    }
    appending.join().unwrap();
}
