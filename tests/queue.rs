//! The engine through its public interface: order, persistence, rolls, recovery, cursors, waiting.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use chronfs::queue::{
    Entry, Error, Gap, GapReason, KeptEntry, LockHolder, Queue, ReaderOptions, Settings, Start, WaitStrategy,
    WriterOptions, WriterState,
};

mod common;

use common::{Read, SMALL, new_queue, read_all, scan_all};

fn payload(seq: u64) -> Vec<u8> {
    common::payload(seq, 400)
}

fn expected(range: std::ops::RangeInclusive<u64>) -> Vec<Read> {
    range.map(|number| Ok((number, payload(number)))).collect()
}

#[test]
fn what_is_appended_is_read_in_order_across_rolls_and_restarts() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut reader = queue.reader("alice").unwrap();
    assert_eq!(read_all(&mut reader), []);
    for start in [1, 501, 1001] {
        let mut writer = queue.writer().unwrap();
        for number in start..start + 500 {
            assert_eq!(writer.append(1, &payload(number)).unwrap(), number);
        }
    }
    assert_eq!(read_all(&mut reader), expected(1..=1500));
    assert_eq!(scan_all(&mut queue.scan().unwrap()), expected(1..=1500));
    let inspection = queue.inspect().unwrap();
    assert_eq!((inspection.bounds.first_seq, inspection.bounds.next_seq), (1, 1501));
    let sealed = inspection.segments.iter().filter(|segment| segment.sealed).count();
    assert!(sealed >= 4, "{:?}", inspection.segments);
}

#[test]
fn a_reader_goes_on_where_it_has_committed() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    (1..=1000).for_each(|number| assert!(writer.append(1, &payload(number)).unwrap() > 0));
    let mut consumed = 0;
    for round in 0..10 {
        let mut reader = queue.reader("alice").unwrap();
        for _ in 0..77 {
            let seq = reader.next().unwrap().unwrap().message().unwrap().seq;
            consumed += 1;
            assert_eq!(seq, consumed, "round {round}");
            reader.commit();
        }
        // Read but not consumed: read again.
        reader.next().unwrap();
    }
    assert_eq!(queue.reader_position("alice").unwrap(), consumed + 1);
}

#[test]
fn a_second_writer_learns_who_holds_the_queue() {
    let (_dir, queue) = new_queue(&SMALL);
    let writer = queue.writer().unwrap();
    let error = Queue::open(queue.path()).unwrap().writer().unwrap_err();
    assert!(error.to_string().contains("this process"), "{error}");
    drop(writer);
    assert!(queue.writer().is_ok());
}

#[test]
fn a_deleted_lock_file_lets_no_second_writer_in() {
    let (_dir, queue) = new_queue(&SMALL);
    let writer = queue.writer().unwrap();
    assert!(queue.writer_info().holds_file);
    std::fs::remove_file(queue.path().join("writer.lock")).unwrap();
    for what in ["deleted", "replaced"] {
        let info = queue.writer_info();
        assert_eq!((info.state, info.holds_file), (WriterState::Alive, false), "{what}");
        let me = std::process::id();
        assert_eq!(info.pid, Some(me), "{what}");
        match queue.writer() {
            Err(Error::Locked { holder: LockHolder::Process { pid, .. }, .. }) => assert_eq!(pid, me),
            other => panic!("{what}: {other:?}"),
        }
    }
    drop(writer);
    assert_eq!(queue.writer_info().state, WriterState::None);
    assert!(queue.writer().is_ok());
}

#[test]
fn a_reader_can_be_used_once_at_a_time() {
    let (_dir, queue) = new_queue(&SMALL);
    let reader = queue.reader("alice").unwrap();
    assert!(matches!(queue.reader("alice"), Err(Error::ReaderInUse { .. })));
    assert!(matches!(queue.seek_reader("alice", 1), Err(Error::ReaderInUse { .. })));
    drop(reader);
    queue.seek_reader("alice", 1).unwrap();
    assert!(matches!(queue.seek_reader("alice", 2), Err(Error::NoSuchPosition { .. })));
    queue.remove_reader("alice").unwrap();
    assert!(matches!(queue.reader_position("alice"), Err(Error::NoSuchReader { .. })));
}

#[test]
fn payloads_of_every_size_up_to_the_limit_fit_and_one_more_byte_does_not() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    let max = writer.max_payload_len();
    let sizes = [0, 1, 7, 8, 9, max - 1, max, 0, max, 5];
    for size in sizes {
        writer.append(3, &vec![b'z'; size]).unwrap();
    }
    assert!(matches!(writer.append(3, &vec![0; max + 1]), Err(Error::TooLarge { .. })));
    assert!(matches!(writer.append(0xFFFF, b""), Err(Error::ReservedType)));
    let mut reader = queue.reader("alice").unwrap();
    let read: Vec<usize> = read_all(&mut reader).into_iter().map(|entry| entry.unwrap().1.len()).collect();
    assert_eq!(read, sizes);
}

#[test]
fn timestamps_never_decrease() {
    let (_dir, queue) = new_queue(&SMALL);
    let any_time = WriterOptions { max_ahead: Duration::MAX, ..WriterOptions::default() };
    let mut writer = queue.writer_with(&any_time).unwrap();
    writer.append_at(1_000, 1, b"a").unwrap();
    writer.append_at(1_000, 1, b"b").unwrap();
    assert!(matches!(writer.append_at(999, 1, b"c"), Err(Error::TimestampInPast { last_ns: 1_000, .. })));
    let far = u64::MAX - 5;
    writer.append_at(far, 1, b"d").unwrap();
    writer.append(1, b"e").unwrap();
    drop(writer);
    let mut writer = queue.writer_with(&any_time).unwrap();
    assert_eq!(writer.last_timestamp_ns(), far);
    writer.append(1, b"f").unwrap();
    let mut scanner = queue.scan().unwrap();
    let mut stamps = Vec::new();
    while let Some(entry) = scanner.next().unwrap() {
        stamps.push(entry.message().unwrap().timestamp_ns);
    }
    assert_eq!(stamps, [1_000, 1_000, far, far, far]);
}

#[test]
fn seeking_finds_every_message_by_number_and_by_time() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    // Three messages share each timestamp.
    (1..=2000_u64).for_each(|number| assert!(writer.append_at(number / 3 * 10, 1, &payload(number)).unwrap() > 0));
    let mut scanner = queue.scan().unwrap();
    for number in (1..=2000).step_by(7).chain([1, 2, 1999, 2000]) {
        scanner.seek_seq(number).unwrap();
        assert_eq!(scanner.next().unwrap().unwrap().message().unwrap().seq, number);
        let time = number / 3 * 10;
        for asked in [time, time.saturating_sub(4)] {
            scanner.seek_time(asked).unwrap();
            assert_eq!(scanner.next().unwrap().unwrap().message().unwrap().seq, (number / 3 * 3).max(1), "{asked}");
        }
    }
    scanner.seek_seq(2001).unwrap();
    assert_eq!((scanner.seq(), scanner.next().unwrap()), (2001, None));
    scanner.seek_seq(0).unwrap();
    assert_eq!(scanner.next().unwrap().unwrap().message().unwrap().seq, 1);
    scanner.seek_time(u64::MAX).unwrap();
    assert_eq!(scanner.next().unwrap(), None);
    let options = ReaderOptions { start: Start::Seq(1234), ..ReaderOptions::default() };
    let mut reader = queue.reader_with("bob", &options).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().message().unwrap().seq, 1234);
}

#[test]
fn a_full_queue_says_so_and_goes_on_when_there_is_room() {
    let (_dir, queue) = new_queue(&Settings { max_bytes: Some(192 << 10), ..SMALL });
    let mut writer = queue.writer().unwrap();
    let mut appended = 0;
    let error = loop {
        match writer.append(1, &[7; 1000]) {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::QueueFull { max_bytes, .. } if max_bytes == 192 << 10), "{error}");
    assert!(matches!(writer.append(1, &[7; 1000]), Err(Error::QueueFull { .. })), "and reports so again");
    assert!(appended > 150, "{appended}");
    std::fs::remove_file(queue.path().join("000000000.q")).unwrap();
    writer.append(1, &[7; 1000]).unwrap();
    let entries = scan_all(&mut queue.scan().unwrap());
    assert_eq!(entries.last().unwrap().as_ref().unwrap().0, appended + 1);
}

#[test]
fn waiting_readers_wake_for_every_message_in_every_strategy() {
    for wait in [WaitStrategy::Sleep, WaitStrategy::BusySpin, WaitStrategy::Hybrid { spin: Duration::from_micros(20) }]
    {
        let (_dir, queue) = new_queue(&SMALL);
        let options = ReaderOptions { wait, ..ReaderOptions::default() };
        let mut there = queue.reader_with("there", &options).unwrap();
        let for_thread = queue.clone();
        // Ping-pong over two queues: each side sleeps before every message.
        let back = Queue::create(queue.path().join("../back"), &SMALL).unwrap();
        let mut answers = back.reader_with("main", &options).unwrap();
        let answering = std::thread::spawn(move || {
            let mut writer = back.writer().unwrap();
            for number in 1..=2000 {
                assert!(there.wait(Some(Duration::from_secs(20))).unwrap(), "question {number} woke nobody");
                assert_eq!(there.next().unwrap().unwrap().message().unwrap().seq, number);
                writer.append(1, b"pong").unwrap();
            }
        });
        let mut writer = for_thread.writer().unwrap();
        for number in 1..=2000 {
            writer.append(1, &payload(number)).unwrap();
            assert!(answers.wait(Some(Duration::from_secs(20))).unwrap(), "answer {number} woke nobody");
            assert_eq!(answers.next().unwrap().unwrap().message().unwrap().seq, number);
        }
        answering.join().unwrap();
    }
}

#[test]
fn a_wait_without_messages_times_out() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut reader = queue.reader("alice").unwrap();
    assert!(!reader.wait(Some(Duration::from_millis(10))).unwrap());
}

#[test]
fn a_reader_that_lost_the_race_with_retention_gets_the_gap() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut reader = queue.reader("slow").unwrap();
    let mut writer = queue.writer().unwrap();
    (1..=1000).for_each(|number| assert!(writer.append(1, &payload(number)).unwrap() > 0));
    let infos = queue.inspect().unwrap().segments;
    reader.next().unwrap();
    for id in 0..2 {
        std::fs::remove_file(queue.path().join(format!("{id:09}.q"))).unwrap();
    }
    let entries = read_all(&mut reader);
    let gaps: Vec<&Gap> = entries.iter().filter_map(|entry| entry.as_ref().err()).collect();
    // The first segment is still mapped: it can be read to its end.
    assert_eq!(gaps.len(), 1);
    assert_eq!((gaps[0].from, gaps[0].to), (infos[1].first_seq, infos[1].last_seq));
    assert_eq!(gaps[0].reason, GapReason::Retired);
    drop(reader);
    let mut late = queue.reader("slow").unwrap();
    let kept = queue.tailer_with(&ReaderOptions { start: Start::Seq(1), ..Default::default() });
    let kept = kept.unwrap().next_kept_entry().unwrap().unwrap();
    assert!(matches!(kept, KeptEntry::Gap(Gap { from: 1, reason: GapReason::Retired, .. })), "{kept:?}");
    let first = late.next().unwrap().unwrap();
    assert!(matches!(first, Entry::Gap(Gap { from: 1, reason: GapReason::Retired, .. })), "{first:?}");
    assert_eq!(late.next().unwrap().unwrap().message().unwrap().seq, infos[2].first_seq);
}

#[test]
fn a_scan_close_to_the_head_never_takes_a_half_written_record_for_damage() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut scanner = queue.scan().unwrap();
    let mut writer = queue.writer().unwrap();
    let count = 200_000;
    let writing = std::thread::spawn(move || {
        for number in 1..=count {
            writer.append(1, &payload(number % 64)).unwrap();
            // Slow enough for the scan to be at the head all the time.
            (0..number % 300).for_each(|_| std::hint::spin_loop());
        }
    });
    let mut next = 1;
    while next <= count {
        match scanner.next().unwrap() {
            Some(Entry::Message(message)) => {
                assert_eq!((message.seq, message.payload), (next, &payload(next % 64)[..]));
                next += 1;
            }
            Some(Entry::Gap(gap)) => panic!("{gap:?}"),
            None => std::hint::spin_loop(),
        }
    }
    writing.join().unwrap();
}

/// Removes a queue, and creates another one in its place if asked to.
fn remove(queue: &Queue, replace: bool) {
    std::fs::remove_dir_all(queue.path()).unwrap();
    if replace {
        Queue::create(queue.path(), &SMALL).unwrap();
    }
}

#[test]
fn waiting_for_a_queue_that_is_removed_is_an_error() {
    for replace in [false, true] {
        let (_dir, queue) = new_queue(&SMALL);
        let mut reader = queue.reader("alice").unwrap();
        assert!(queue.check_present().is_ok());
        let error = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| reader.wait(None).unwrap_err());
            remove(&queue, replace);
            waiting.join().unwrap()
        });
        assert!(error.to_string().contains("it has been removed"), "{error}");
        assert!(queue.check_present().is_err());
    }
    let (dir, queue) = new_queue(&SMALL);
    std::fs::rename(queue.path(), dir.path().join("moved")).unwrap();
    assert!(queue.check_present().is_ok(), "it exists, under another name");
    std::fs::remove_file(dir.path().join("moved/control.meta")).unwrap();
    assert!(queue.check_present().is_ok(), "it is damaged");
}

#[test]
fn waiting_in_short_steps_for_a_queue_that_is_removed_is_an_error_too() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut reader = queue.reader("alice").unwrap();
    remove(&queue, false);
    common::until("the wait fails", || reader.wait(Some(Duration::from_millis(10))).is_err());
}

#[test]
fn a_writer_whose_queue_is_removed_refuses_work() {
    for replace in [false, true] {
        let (_dir, queue) = new_queue(&SMALL);
        let mut writer = queue.writer().unwrap();
        writer.append(1, b"before").unwrap();
        remove(&queue, replace);
        let mut refused = None;
        common::until("an append is refused", || {
            refused = writer.append(1, b"after").err();
            refused.is_some()
        });
        let error = refused.unwrap();
        assert!(matches!(&error, Error::Poisoned { .. }) && error.to_string().contains("removed"), "{error}");
    }
}
