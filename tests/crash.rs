//! A writer and readers killed with SIGKILL at random moments, over and over: nothing that was visible is lost, nothing comes
//! twice, and nobody has to repair anything.
//!
//! The test is its own child: with `CHRONFS_CRASH_QUEUE` set it appends (or reads) until it is killed.
//! `CHRONFS_CRASH_CYCLES` sets the number of kills; the soak is the same test with a large number.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use chronfs::queue::{Entry, Queue, Settings, Start, Waiter};

const QUEUE: &str = "CHRONFS_CRASH_QUEUE";
const CYCLES: &str = "CHRONFS_CRASH_CYCLES";

fn payload(seq: u64) -> Vec<u8> {
    let mut payload = seq.to_le_bytes().to_vec();
    payload.resize(8 + usize::try_from(seq * 7919 % 600).unwrap(), u8::try_from(seq % 251).unwrap());
    payload
}

fn child(test: &str, queue: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(QUEUE, queue)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Ends with the test, also when that fails.
struct Killed(Child);

impl Killed {
    fn kill(mut self) {
        self.0.kill().unwrap();
        assert!(!self.0.wait().unwrap().success(), "the child was to be killed, but ended by itself");
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A small generator of numbers that look random (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn cycles(default: u64) -> u64 {
    std::env::var(CYCLES).ok().map_or(default, |cycles| cycles.parse().unwrap())
}

fn wait_until(waiter: &Waiter, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let ticket = waiter.prepare();
        if reached() {
            return;
        }
        assert!(Instant::now() < deadline, "the writer does not get on");
        waiter.wait(ticket, Duration::from_millis(100));
    }
}

#[test]
fn a_writer_killed_at_any_moment_loses_nothing_that_was_visible() {
    if let Some(path) = std::env::var_os(QUEUE) {
        let mut writer = Queue::open(PathBuf::from(path)).unwrap().writer().unwrap();
        loop {
            let seq = writer.next_seq();
            writer.append(1, &payload(seq)).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    let queue = Queue::create(&path, &Settings { segment_size: 64 << 10, ..Settings::default() }).unwrap();
    let waiter = queue.waiter().unwrap();
    let mut checker = queue.reader("checker").unwrap();
    let mut random = Random(0x5EED);
    let mut seen = 0;
    for cycle in 0..cycles(60) {
        let writer = Killed(child("a_writer_killed_at_any_moment_loses_nothing_that_was_visible", &path));
        let target = seen + 1 + random.below(400);
        let mut check = || {
            while let Some(entry) = checker.next().unwrap() {
                let Entry::Message(message) = entry else { panic!("cycle {cycle}: {entry:?}") };
                assert_eq!(message.seq, seen + 1, "cycle {cycle}");
                assert!(message.payload == payload(message.seq), "cycle {cycle}: message {} differs", message.seq);
                seen = message.seq;
            }
            checker.commit();
            seen >= target
        };
        wait_until(&waiter, &mut check);
        // A little further, to die anywhere in the work.
        for _ in 0..random.below(30_000) {
            std::hint::spin_loop();
        }
        writer.kill();
        check();
    }
    let mut scanner = queue.scan().unwrap();
    let mut next = 1;
    while let Some(entry) = scanner.next().unwrap() {
        assert_eq!(entry.message().map(|message| message.seq), Some(next));
        next += 1;
    }
    assert_eq!(next, seen + 1, "everything that was seen is still there");
}

#[test]
fn a_reader_killed_at_any_moment_goes_on_at_its_last_commit_or_the_one_before() {
    if let Some(path) = std::env::var_os(QUEUE) {
        let mut reader = Queue::open(PathBuf::from(path)).unwrap().reader("victim").unwrap();
        loop {
            while reader.next().unwrap().is_some() {
                reader.commit();
            }
            reader.seek_seq(1).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    let queue = Queue::create(&path, &Settings { segment_size: 64 << 10, ..Settings::default() }).unwrap();
    let mut writer = queue.writer().unwrap();
    (1..=3000).for_each(|seq| assert_eq!(writer.append(1, &payload(seq)).unwrap(), seq));
    queue.add_reader("victim").unwrap();
    let mut random = Random(0xC0FFEE);
    for cycle in 0..cycles(30) {
        let before = queue.reader_position("victim").unwrap();
        let reader = Killed(child("a_reader_killed_at_any_moment_goes_on_at_its_last_commit_or_the_one_before", &path));
        let deadline = Instant::now() + Duration::from_secs(60);
        while queue.reader_position("victim").unwrap() == before {
            assert!(Instant::now() < deadline, "the reader does not get on");
            std::thread::yield_now();
        }
        for _ in 0..random.below(50_000) {
            std::hint::spin_loop();
        }
        reader.kill();
        let position = queue.reader_position("victim").unwrap();
        assert!((1..=3001).contains(&position), "cycle {cycle}: {position}");
        let options = chronfs::queue::ReaderOptions { start: Start::Resume, ..Default::default() };
        let mut reader = queue.reader_with("victim", &options).unwrap();
        assert_eq!(reader.seq(), position);
        if let Some(entry) = reader.next().unwrap() {
            assert_eq!(entry.message().map(|message| message.seq), Some(position), "cycle {cycle}");
        }
    }
}
