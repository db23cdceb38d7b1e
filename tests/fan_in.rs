//! Fan-in: one deterministic order over many queues, live and recorded.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::time::{Duration, Instant};

use chronfs::queue::{FanInReader, Queue, QueueReader, Settings, WriterOptions};
use proptest::prelude::*;

const SMALL: u32 = 64 << 10;

fn queue(dir: &Path, name: &str) -> Queue {
    Queue::create(dir.join(name), &Settings { segment_size: SMALL, ..Settings::default() }).unwrap()
}

fn append_all(queue: &Queue, stamps: &[u64]) {
    let any_time = WriterOptions { max_ahead: Duration::MAX, ..WriterOptions::default() };
    let mut writer = queue.writer_with(&any_time).unwrap();
    for stamp in stamps {
        writer.append_at(*stamp, 1, &stamp.to_le_bytes()).unwrap();
    }
}

fn reader(queue: &Queue) -> QueueReader {
    queue.reader("merge").unwrap()
}

/// Everything available: name of the source, timestamp, sequence number.
fn drain(merged: &mut FanInReader) -> Vec<(String, u64, u64)> {
    let mut all = Vec::new();
    while let Some(next) = merged.next().unwrap() {
        let message = next.entry.message().unwrap();
        all.push((next.name.to_owned(), message.timestamp_ns, message.seq));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_order_is_that_of_timestamp_source_and_number(
        mut stamps in prop::collection::vec(prop::collection::vec(0_u64..50, 0..60), 1..6)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut merged = FanInReader::new();
        let mut expected = Vec::new();
        for (index, stamps) in stamps.iter_mut().enumerate() {
            stamps.sort_unstable();
            let name = format!("q{index}");
            let queue = queue(dir.path(), &name);
            append_all(&queue, stamps);
            merged.add(name.clone(), reader(&queue)).unwrap();
            expected.extend(stamps.iter().zip(1..).map(|(&stamp, seq)| (stamp, index, seq, name.clone())));
        }
        expected.sort();
        let expected: Vec<_> = expected.into_iter().map(|(stamp, _, seq, name)| (name, stamp, seq)).collect();
        prop_assert_eq!(drain(&mut merged), expected);
    }
}

#[test]
fn commits_are_by_source_and_cover_what_was_returned() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (queue(dir.path(), "a"), queue(dir.path(), "b"));
    append_all(&a, &[1, 3, 5]);
    append_all(&b, &[2, 4, 6]);
    let mut merged = FanInReader::new();
    let id = merged.add("a", reader(&a)).unwrap();
    merged.add("b", reader(&b)).unwrap();
    for _ in 0..3 {
        merged.next().unwrap().unwrap();
    }
    merged.commit(id);
    drop(merged);
    assert_eq!((a.reader_position("merge").unwrap(), b.reader_position("merge").unwrap()), (3, 1));
}

#[test]
fn sources_come_and_go_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, c) = (queue(dir.path(), "a"), queue(dir.path(), "b"), queue(dir.path(), "c"));
    append_all(&a, &[1, 4, 7]);
    append_all(&b, &[2, 5, 8]);
    append_all(&c, &[3, 6, 9]);
    let mut merged = FanInReader::new();
    let id = merged.add("a", reader(&a)).unwrap();
    merged.add("b", reader(&b)).unwrap();
    let stamp = |merged: &mut FanInReader| merged.next().unwrap().unwrap().entry.message().unwrap().timestamp_ns;
    assert_eq!([stamp(&mut merged), stamp(&mut merged)], [1, 2]);
    merged.add("c", reader(&c)).unwrap();
    assert_eq!([stamp(&mut merged), stamp(&mut merged)], [3, 4]);
    let mut taken_out = merged.remove(id).unwrap();
    assert_eq!(taken_out.next().unwrap().unwrap().message().unwrap().timestamp_ns, 7);
    let rest: Vec<u64> = drain(&mut merged).into_iter().map(|(_, stamp, _)| stamp).collect();
    assert_eq!(rest, [5, 6, 8, 9]);
    assert_eq!(merged.sources().map(|(_, name)| name).collect::<Vec<_>>(), ["b", "c"]);
}

#[test]
fn an_idle_source_holds_nobody_back_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let (idle, busy) = (queue(dir.path(), "idle"), queue(dir.path(), "busy"));
    let mut merged = FanInReader::with_hold_back(Duration::from_millis(5));
    merged.add("idle", reader(&idle)).unwrap();
    merged.add("busy", reader(&busy)).unwrap();
    // Far in the future: by no clock can an earlier message be ruled out.
    append_all(&busy, &[u64::MAX / 2]);
    assert!(merged.next().unwrap().is_none(), "not at once");
    assert!(merged.wait(Some(Duration::from_secs(20))).unwrap());
    assert_eq!(merged.next().unwrap().unwrap().name, "busy");
    assert!(!merged.wait(Some(Duration::from_millis(5))).unwrap());
}

#[test]
fn a_wait_ends_whichever_of_many_queues_gets_a_message() {
    let dir = tempfile::tempdir().unwrap();
    for count in [3, 200] {
        let queues: Vec<Queue> = (0..count).map(|index| queue(dir.path(), &format!("{count}-{index}"))).collect();
        let mut merged = FanInReader::new();
        for (index, queue) in queues.iter().enumerate() {
            merged.add(index.to_string(), reader(queue)).unwrap();
        }
        for index in [0, count - 1, count / 2] {
            let queue = queues[index].clone();
            let appending = std::thread::spawn(move || queue.writer().unwrap().append(1, b"x").unwrap());
            assert!(merged.wait(Some(Duration::from_secs(20))).unwrap());
            assert_eq!(merged.next().unwrap().unwrap().name, index.to_string());
            appending.join().unwrap();
        }
    }
}

#[test]
fn two_live_feeds_come_in_the_order_of_their_stamps() {
    let dir = tempfile::tempdir().unwrap();
    let queues = [queue(dir.path(), "a"), queue(dir.path(), "b")];
    let mut merged = FanInReader::with_hold_back(Duration::from_secs(1));
    for (index, queue) in queues.iter().enumerate() {
        merged.add(index.to_string(), reader(queue)).unwrap();
    }
    let feeds = queues.map(|queue| {
        std::thread::spawn(move || {
            let mut writer = queue.writer().unwrap();
            let start = Instant::now();
            for number in 0..2000_u32 {
                while start.elapsed() < Duration::from_micros(20) * number {
                    std::hint::spin_loop();
                }
                writer.append(1, b"tick").unwrap();
            }
        })
    });
    let mut last = 0;
    for _ in 0..4000 {
        assert!(merged.wait(Some(Duration::from_secs(20))).unwrap());
        let stamp = merged.next().unwrap().unwrap().entry.message().unwrap().timestamp_ns;
        assert!(stamp >= last, "{stamp} after {last}");
        last = stamp;
    }
    for feed in feeds {
        feed.join().unwrap();
    }
}
