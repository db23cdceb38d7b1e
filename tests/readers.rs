//! Readers and tailers: where they start, what they commit, reading backwards, being stopped, what they count.
#![allow(clippy::unwrap_used, clippy::panic, unsafe_code)]

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use chronfs::queue::{
    Entry, Error, FanInReader, Gap, GapReason, Queue, QueueReader, ReaderOptions, Registration, Settings, Start,
    Stopper, WaitStrategy, WhenFull, WriterOptions,
};

mod common;

use common::{Random, Read, Running, SMALL, filled, new_queue, owned, scratch, signal_to};

fn payload(seq: u64) -> Vec<u8> {
    common::payload(seq, 400)
}

fn starting(start: Start) -> ReaderOptions {
    ReaderOptions { start, ..ReaderOptions::default() }
}

/// A queue of 1,000 messages in several segments, with the time 10 times their number.
fn queue_of_1000() -> (tempfile::TempDir, Queue) {
    let (dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    (1..=1000).for_each(|seq| assert_eq!(writer.append_at(seq * 10, 1, &payload(seq)).unwrap(), seq));
    (dir, queue)
}

/// Removes the first two segments; the number of the first message that is left.
fn retire(queue: &Queue) -> u64 {
    for id in [0, 1] {
        std::fs::remove_file(queue.path().join(format!("{id:09}.q"))).unwrap();
    }
    queue.bounds().unwrap().first_seq
}

fn message(entry: Option<Entry<'_>>) -> u64 {
    entry.and_then(Entry::message).unwrap().seq
}

fn retired(entry: Option<Entry<'_>>) -> (u64, u64) {
    match entry {
        Some(Entry::Gap(Gap { from, to, reason: GapReason::Retired, .. })) => (from, to),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reader_is_where_it_starts_before_it_has_read_anything() {
    let (_dir, queue) = queue_of_1000();
    let cases = [
        (Start::Resume, 1),
        (Start::First, 1),
        (Start::End, 1001),
        (Start::Seq(123), 123),
        (Start::Seq(5000), 1001),
        (Start::Time(4560), 456),
    ];
    for (number, (start, seq)) in cases.into_iter().enumerate() {
        let (new, old) = (format!("new-{number}"), format!("old-{number}"));
        queue.add_reader(&old).unwrap();
        queue.seek_reader(&old, 7).unwrap();
        for (name, expected) in [(new, seq), (old, if start == Start::Resume { 7 } else { seq })] {
            let reader = queue.reader_with(&name, &starting(start)).unwrap();
            assert_eq!(reader.seq(), expected, "{name}, {start:?}");
            let info = queue.inspect().unwrap().readers.into_iter().find(|info| info.name == name).unwrap();
            assert_eq!((info.position, info.lag_messages), (Some(expected), 1001 - expected), "{name}, {start:?}");
            // Not even its destructor is needed.
            std::mem::forget(reader);
            assert_eq!(queue.reader_position(&name).unwrap(), expected);
        }
    }
}

#[test]
fn a_message_that_was_retired_is_a_gap_for_whoever_starts_there() {
    let (_dir, queue) = queue_of_1000();
    let first = retire(&queue);
    for from in [1, 100, first - 1] {
        let name = format!("from-{from}");
        for start in [Start::Seq(from), Start::Resume, Start::Resume] {
            // Until it has been returned and committed, a commit changes nothing.
            let mut reader = queue.reader_with(&name, &starting(start)).unwrap();
            assert!(reader.wait(None).unwrap());
            assert_eq!(reader.seq(), from);
            reader.commit();
        }
        let mut reader = queue.reader(&name).unwrap();
        assert_eq!(retired(reader.next().unwrap()), (from, first - 1));
        assert_eq!(message(reader.next().unwrap()), first);
        reader.seek_seq(from).unwrap();
        assert_eq!(retired(reader.next().unwrap()), (from, first - 1));
        reader.commit();
        drop(reader);
        assert_eq!(message(queue.reader(&name).unwrap().next().unwrap()), first);
        let mut tailer = queue.tailer_with(&starting(Start::Seq(from))).unwrap();
        assert_eq!(retired(tailer.next().unwrap()), (from, first - 1));
        assert_eq!(message(tailer.next().unwrap()), first);
    }
    for start in [Start::First, Start::Resume, Start::Seq(first), Start::Time(10)] {
        assert_eq!(message(queue.tailer_with(&starting(start)).unwrap().next().unwrap()), first, "{start:?}");
    }
}

#[test]
fn a_commit_of_less_than_was_read_is_where_the_reader_continues() {
    let (_dir, queue) = queue_of_1000();
    let mut reader = queue.reader("alice").unwrap();
    assert!(matches!(reader.commit_to(1), Err(Error::NoSuchPosition { .. })), "not read yet");
    reader.commit_to(0).unwrap();
    (1..=500).for_each(|seq| assert_eq!(message(reader.next().unwrap()), seq));
    let mut random = Random(0x5EED);
    let mut committed = 0;
    while committed < 500 {
        let seq = random.below(520);
        let is_allowed = (committed..=500).contains(&seq);
        assert_eq!(reader.commit_to(seq).is_ok(), is_allowed, "{committed}, then {seq}");
        committed = if is_allowed { seq } else { committed };
        assert_eq!(queue.reader_position("alice").unwrap(), committed + 1);
        if random.below(4) == 0 {
            drop(reader);
            reader = queue.reader("alice").unwrap();
            (committed + 1..=500).for_each(|seq| assert_eq!(message(reader.next().unwrap()), seq));
        }
    }
    // To go back is to seek.
    reader.seek_seq(10).unwrap();
    (10..=20).for_each(|seq| assert_eq!(message(reader.next().unwrap()), seq));
    assert!(reader.commit_to(8).is_err() && reader.commit_to(21).is_err());
    reader.commit_to(15).unwrap();
    drop(reader);
    assert_eq!(message(queue.reader("alice").unwrap().next().unwrap()), 16);
}

/// Overwrites timestamps, and removes a segment. Returns the numbers of the messages that are left.
fn damage(queue: &Queue) -> Vec<u64> {
    let mut places = Vec::new();
    let mut scanner = queue.scan().unwrap();
    while let Some(entry) = scanner.next().unwrap() {
        places.push(entry.message().unwrap().position);
    }
    // The first one, the first of a later segment, some next to each other, the last one.
    let third = places.iter().position(|place| place.segment.0 == 2).unwrap_or(9);
    let damaged = [0, 5, 6, third, third + 9, places.len() - 1];
    for index in damaged {
        let path = queue.path().join(format!("{:09}.q", places[index].segment.0));
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&[0xEE; 8], u64::from(places[index].offset) + 16).unwrap();
    }
    std::fs::remove_file(queue.path().join("000000001.q")).unwrap();
    let is_left = |index: &usize| !damaged.contains(index) && places[*index].segment.0 != 1;
    (0..places.len()).filter(is_left).map(|index| index as u64 + 1).collect()
}

/// Takes the steps of a random walk, each checked against the entries in their order.
fn walk(all: &[Read], mut step: impl FnMut(bool) -> Option<Read>) {
    let (mut random, mut at) = (Random(0x5EED), 0_usize);
    for _ in 0..60 {
        let (is_back, count) = (random.below(2) == 0, random.below(2 * all.len() as u64 / 3 + 2));
        for _ in 0..count {
            let expected = if is_back { at.checked_sub(1) } else { Some(at) };
            assert_eq!(step(is_back).as_ref(), expected.and_then(|index| all.get(index)), "back: {is_back}, at {at}");
            at = if is_back { at.saturating_sub(1) } else { all.len().min(at + 1) };
        }
    }
}

fn walk_reader<R: Registration>(all: &[Read], mut reader: chronfs::queue::Reader<R>) {
    walk(all, |is_back| if is_back { reader.prev() } else { reader.next() }.unwrap().map(owned));
}

type Payload = fn(u64) -> Vec<u8>;

#[test]
fn backwards_is_the_reverse_of_forwards() {
    let long = |seq: u64| vec![b'x'; usize::try_from(seq * 7919 % 50_000).unwrap()];
    let shapes: [(u64, Payload); 4] = [(0, payload), (3000, payload), (6000, |_| Vec::new()), (40, long)];
    let aligned = Settings { payload_align: 64, segment_size: 1 << 20, ..SMALL };
    for (settings, (count, payload)) in [SMALL, aligned].into_iter().flat_map(|settings| shapes.map(|s| (settings, s)))
    {
        for is_damaged in [false, true] {
            let dir = scratch();
            let queue = filled(&dir.path().join("q"), &settings, count, payload);
            let left = if is_damaged && count > 0 { damage(&queue) } else { (1..=count).collect() };
            let mut scanner = queue.scan().unwrap();
            let all = common::scan_all(&mut scanner);
            let found: Vec<u64> = all.iter().flatten().map(|(seq, _)| *seq).collect();
            assert_eq!(found, left, "damage takes no sound message with it");
            // From the end to the start in one go, then back and forth.
            for expected in all.iter().rev() {
                assert!(scanner.prev().unwrap().map(owned).as_ref() == Some(expected), "{count} messages");
            }
            assert_eq!(scanner.prev().unwrap(), None);
            walk(&all, |is_back| if is_back { scanner.prev() } else { scanner.next() }.unwrap().map(owned));
            walk_reader(&all, queue.reader("alice").unwrap());
            walk_reader(&all, queue.tailer().unwrap());
        }
    }
}

#[test]
fn a_seek_away_from_a_lost_end_finds_messages() {
    let (_dir, queue) = queue_of_1000();
    let head = queue.bounds().unwrap().head;
    std::fs::remove_file(queue.path().join(format!("{:09}.q", head.segment.0))).unwrap();
    let mut tailer = queue.tailer().unwrap();
    while tailer.next().unwrap().is_some() {}
    tailer.seek_seq(1).unwrap();
    assert_eq!(message(tailer.next().unwrap()), 1);
}

#[test]
fn lag_position_and_seeks_agree_with_the_queue() {
    let (_dir, queue) = queue_of_1000();
    let mut tailer = queue.tailer().unwrap();
    let bounds = queue.bounds().unwrap();
    for read in 0..=1000 {
        if read % 97 == 0 {
            assert_eq!((tailer.lag().unwrap(), tailer.seq()), (1000 - read, read + 1));
        }
        let position = tailer.position();
        if let Some(entry) = tailer.next().unwrap() {
            assert!(entry.message().unwrap().position >= position);
        }
    }
    tailer.seek_first().unwrap();
    assert_eq!((tailer.position(), tailer.lag().unwrap()), (bounds.first, 1000));
    tailer.seek_end().unwrap();
    assert_eq!((tailer.position(), tailer.lag().unwrap()), (bounds.head, 0));
    queue.writer().unwrap().append(1, b"new").unwrap();
    assert_eq!((tailer.lag().unwrap(), message(tailer.next().unwrap())), (1, 1001));
    tailer.seek_seq(10).unwrap();
    let first = retire(&queue);
    assert_eq!(tailer.lag().unwrap(), 1002 - first, "what is retired does not count");
    assert!(queue.reader_names().unwrap().is_empty());
}

#[test]
fn whatever_way_of_reading_sees_and_counts_the_same() {
    let (_dir, queue) = queue_of_1000();
    damage(&queue);
    let all = common::scan_all(&mut queue.scan().unwrap());
    let gaps: Vec<_> = all.iter().filter_map(|entry| entry.as_ref().err().copied()).collect();
    let (received, lost) = ((all.len() - gaps.len()) as u64, gaps.iter().map(Gap::count).sum::<u64>());
    let check = |reader: &QueueReader| {
        let stats = reader.stats();
        assert_eq!((stats.received, stats.gaps, stats.lost), (received, gaps.len() as u64, lost));
    };

    let (mut reader, mut read) = (queue.reader("messages").unwrap(), Vec::new());
    let mut seen = Vec::new();
    while let Some(message) = reader.next_message(|gap| seen.push(Err(gap))).unwrap() {
        let message = owned(Entry::Message(message));
        read.append(&mut seen);
        read.push(message);
    }
    read.append(&mut seen);
    assert_eq!(read, all);
    check(&reader);

    let (mut reader, mut read) = (queue.reader("polls").unwrap(), Vec::new());
    for limit in (0..).step_by(3) {
        let before = read.len();
        let count = reader.poll(limit, |entry| {
            read.push(owned(entry));
            if read.len() % 7 == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let count = count.unwrap();
        assert_eq!(count, read.len() - before);
        if count == 0 && limit > 0 {
            break;
        }
    }
    assert_eq!(read, all);
    check(&reader);

    let mut merged = FanInReader::new();
    let id = merged.add("q", queue.reader("merged").unwrap()).unwrap();
    let (mut read, mut seen) = (Vec::new(), Vec::new());
    while let Some((source, message)) = merged.next_message(|_, gap| seen.push(Err(gap))).unwrap() {
        assert_eq!(source, id);
        let message = owned(Entry::Message(message));
        read.append(&mut seen);
        read.push(message);
    }
    read.append(&mut seen);
    assert_eq!(read, all);
    check(&merged.remove(id).unwrap());

    let mut reader = queue.reader("batches").unwrap();
    while reader.next().unwrap().is_some() {
        reader.available().for_each(drop);
    }
    check(&reader);
    assert_eq!(reader.stats().waits, 0);
    assert!(!reader.wait(Some(Duration::from_millis(1))).unwrap());
    assert_eq!((reader.stats().waits, reader.stats().wakes), (1, 0));
    let described = format!("{reader:?}");
    assert!(described.len() < 300 && described.contains("batches"), "{described}");
}

fn is_stopped<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Stopped { .. }))
}

#[test]
fn a_stop_ends_every_wait_until_it_is_cleared() {
    let (_dir, queue) = new_queue(&SMALL);
    let stopper = Stopper::new();
    let strategies = [WaitStrategy::Sleep, WaitStrategy::BusySpin, WaitStrategy::Hybrid { spin: Duration::ZERO }];
    for wait in strategies {
        for round in 0..20 {
            let options = ReaderOptions { wait, ..ReaderOptions::default() };
            let mut reader = queue.reader_with("alice", &options).unwrap();
            let mut tailer = queue.tailer_with(&options).unwrap();
            let mut merged = FanInReader::new();
            merged.add("q", queue.reader("merged").unwrap()).unwrap();
            let mut empty = FanInReader::new();
            reader.set_stopper(&stopper);
            tailer.set_stopper(&stopper);
            merged.set_stopper(&stopper);
            empty.set_stopper(&stopper);
            std::thread::scope(|scope| {
                let waits = [
                    scope.spawn(|| is_stopped(reader.wait(None))),
                    scope.spawn(|| is_stopped(tailer.wait(None))),
                    scope.spawn(|| is_stopped(merged.wait(None))),
                    scope.spawn(|| is_stopped(empty.wait(None))),
                ];
                // While they spin, fall asleep or sleep.
                (0..round * 2000).for_each(|_| std::hint::spin_loop());
                stopper.stop();
                assert!(waits.into_iter().all(|wait| wait.join().unwrap()));
            });
            assert!(stopper.is_stopped() && is_stopped(reader.wait(None)), "the next one, too");
            stopper.clear();
            assert!(!reader.wait(Some(Duration::ZERO)).unwrap());
        }
    }
    // Otherwise a reader that never runs out of messages would never stop.
    queue.writer().unwrap().append(1, b"hello").unwrap();
    let mut reader = queue.reader("alice").unwrap();
    reader.stopper().stop();
    assert!(is_stopped(reader.wait(None)));
    assert_eq!(message(reader.next().unwrap()), 1);
}

#[test]
fn a_stop_ends_an_append_that_waits_for_room() {
    let (_dir, queue) = new_queue(&Settings { max_bytes: Some(64 << 10), ..SMALL });
    let when_full = WhenFull::Wait(Duration::MAX);
    let mut writer = queue.writer_with(&WriterOptions { when_full, ..WriterOptions::default() }).unwrap();
    let stopper = writer.stopper();
    let appending = std::thread::spawn(move || {
        let error = loop {
            if let Err(error) = writer.append(1, &[7; 1000]) {
                break error;
            }
        };
        (writer.next_seq(), is_stopped::<()>(Err(error)))
    });
    stopper.stop();
    let (next_seq, stopped) = appending.join().unwrap();
    assert!(stopped);
    assert_eq!(queue.bounds().unwrap().next_seq, next_seq, "the message was not appended");
}

/// The queue that the child process is to read.
const CHILD: &str = "CHRONFS_READERS_CHILD";
static OF_CHILD: OnceLock<Stopper> = OnceLock::new();

extern "C" fn stop_child(_: libc::c_int) {
    OF_CHILD.get().unwrap().stop();
}

#[test]
fn a_signal_handler_can_stop_a_wait() {
    if let Some(path) = std::env::var_os(CHILD) {
        let mut reader = Queue::open(path).unwrap().reader("alice").unwrap();
        OF_CHILD.set(reader.stopper()).unwrap();
        // SAFETY: the handler stores into an atomic and makes one system call.
        unsafe { libc::signal(libc::SIGTERM, stop_child as *const () as libc::sighandler_t) };
        println!("\nready");
        assert!(is_stopped(reader.wait(None)));
        return;
    }
    let (_dir, queue) = new_queue(&SMALL);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_signal_handler_can_stop_a_wait", "--nocapture"]).env(CHILD, queue.path());
    let mut child = Running::new(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.child().stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "ready"));
    signal_to(child.id(), "TERM");
    assert!(child.output().status.success());
}
