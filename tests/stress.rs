//! One writer and several readers, each its own process, at full speed over many rolls, with retention after them.
//!
//! The program is its own children: `CHRONFS_STRESS_ROLE` says which. `CHRONFS_SOAK_SECONDS` makes the soak longer than
//! the few seconds that it takes among the other tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use chronfs::queue::{Entry, Queue, Settings, WhenFull, WriterOptions};

const QUEUE: &str = "CHRONFS_STRESS_QUEUE";
const ROLE: &str = "CHRONFS_STRESS_ROLE";
const READERS: u64 = 3;

fn payload(seq: u64, buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.extend(seq.to_le_bytes());
    buffer.resize(8 + usize::try_from(seq * 31 % 300).unwrap(), u8::try_from(seq % 255).unwrap());
}

struct Process(Child);

impl Process {
    fn start(test: &str, queue: &Path, role: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(QUEUE, queue).env(ROLE, role);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn must_succeed(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Appends up to this sequence number; the last message is empty.
fn write_until(queue: &Queue, mut more: impl FnMut(u64) -> bool) {
    // A long soak must not fill the disk.
    let options = WriterOptions { when_full: WhenFull::Wait(Duration::from_secs(60)), ..WriterOptions::default() };
    let mut writer = queue.writer_with(&options).unwrap();
    let mut buffer = Vec::new();
    while more(writer.next_seq()) {
        payload(writer.next_seq(), &mut buffer);
        writer.append(1, &buffer).unwrap();
    }
    writer.append(2, b"").unwrap();
}

/// Reads until the empty message, and checks each one.
fn read_to_the_end(queue: &Queue, name: &str) {
    let mut reader = queue.reader(name).unwrap();
    let (mut next, mut buffer) = (reader.seq(), Vec::new());
    loop {
        assert!(reader.wait(Some(Duration::from_secs(60))).unwrap(), "{name}: nothing after message {next}");
        while let Some(entry) = reader.next().unwrap() {
            let Entry::Message(message) = entry else { panic!("{name}: {entry:?}") };
            assert_eq!(message.seq, next, "{name}");
            next += 1;
            if message.msg_type == 2 {
                reader.commit();
                return;
            }
            payload(message.seq, &mut buffer);
            assert!(message.payload == buffer, "{name}: message {} differs", message.seq);
        }
        reader.commit();
    }
}

fn new_queue(dir: &Path) -> (PathBuf, Queue) {
    let path = dir.join("q");
    let (retain_segments, max_bytes) = (Some(2), Some(1 << 30));
    let settings = Settings { segment_size: 256 << 10, retain_segments, max_bytes, ..Settings::default() };
    (path.clone(), Queue::create(path, &settings).unwrap())
}

fn child() -> Option<(String, Queue)> {
    let role = std::env::var(ROLE).ok()?;
    Some((role, Queue::open(std::env::var_os(QUEUE).unwrap()).unwrap()))
}

#[test]
fn stress_single_writer() {
    const TEST: &str = "stress_single_writer";
    match child() {
        Some((role, queue)) if role == "writer" => return write_until(&queue, |seq| seq <= 200_000),
        Some((role, queue)) => return read_to_the_end(&queue, &role),
        None => {}
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, queue) = new_queue(dir.path());
    let names: Vec<String> = (0..READERS).map(|index| format!("reader{index}")).collect();
    for name in &names {
        queue.add_reader(name).unwrap();
    }
    let readers: Vec<Process> = names.iter().map(|name| Process::start(TEST, &path, name)).collect();
    Process::start(TEST, &path, "writer").must_succeed();
    readers.into_iter().for_each(Process::must_succeed);
    for name in &names {
        assert_eq!(queue.reader_position(name).unwrap(), 200_002);
    }
    let kept = queue.apply_retention().map(|_| queue.inspect().unwrap().segments.len()).unwrap();
    assert!(kept <= 5, "all readers have passed, yet {kept} segments are kept");
}

#[test]
fn soak_writer_reader() {
    const TEST: &str = "soak_writer_reader";
    let seconds = std::env::var("CHRONFS_SOAK_SECONDS").map_or(3, |seconds| seconds.parse().unwrap());
    let end = Duration::from_secs(seconds);
    match child() {
        Some((role, queue)) if role == "writer" => {
            let start = Instant::now();
            return write_until(&queue, |_| start.elapsed() < end);
        }
        Some((role, queue)) => return read_to_the_end(&queue, &role),
        None => {}
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, queue) = new_queue(dir.path());
    queue.add_reader("victim").unwrap();
    queue.add_reader("steady").unwrap();
    let steady = Process::start(TEST, &path, "steady");
    let mut writer = Process::start(TEST, &path, "writer");
    let mut kills = 0;
    // The victim is killed whenever it has made some progress; it goes on at its last commit.
    while writer.0.try_wait().unwrap().is_none() {
        let victim = Process::start(TEST, &path, "victim");
        let before = queue.reader_position("victim").unwrap();
        let start = Instant::now();
        while queue.reader_position("victim").unwrap() == before && writer.0.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < Duration::from_secs(60), "the reader makes no progress");
            std::thread::yield_now();
        }
        drop(victim);
        kills += 1;
    }
    writer.must_succeed();
    steady.must_succeed();
    let last = queue.bounds().unwrap().next_seq;
    // It may have read the last message before it was killed.
    if queue.reader_position("victim").unwrap() < last {
        Process::start(TEST, &path, "victim").must_succeed();
    }
    assert_eq!(queue.reader_position("victim").unwrap(), last);
    assert!(kills > 3, "{kills}");
    eprintln!("{kills} kills, {} messages", last - 1);
}
