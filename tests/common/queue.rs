//! Queues for tests.
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use chronfs::Queue;
use chronfs::queue::{Entry, Gap, QueueReader, QueueWriter, Scanner, Settings};
use tempfile::TempDir;

use super::process::until;

/// The smallest segments; nothing is limited or retired.
pub const SMALL: Settings = Settings { segment_size: 64 << 10, ..Settings::DEFAULT };

/// A directory in memory where possible, for tests that create many files and cut no power.
pub fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// An empty queue in its own directory.
pub fn new_queue(settings: &Settings) -> (TempDir, Queue) {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::create(dir.path().join("q"), settings).unwrap();
    (dir, queue)
}

/// A queue of the messages 1 to `count`, without a writer.
pub fn filled(path: &Path, settings: &Settings, count: u64, payload: impl Fn(u64) -> Vec<u8>) -> Queue {
    let queue = Queue::create(path, settings).unwrap();
    append(&mut writer(&queue), count, payload);
    queue
}

/// A queue whose first segment has grown to the configured size already.
pub fn grown(path: &Path, settings: &Settings) -> Queue {
    let queue = Queue::create(path, settings).unwrap();
    let file = File::options().read(true).write(true).open(path.join("000000000.q")).unwrap();
    let mut identity = [0; 64];
    file.read_exact_at(&mut identity, 0).unwrap();
    identity[12..16].copy_from_slice(&settings.segment_size.to_le_bytes());
    let crc = crc32fast::hash(&identity[..60]);
    identity[60..].copy_from_slice(&crc.to_le_bytes());
    let (before, size) = (file.metadata().unwrap().len(), u64::from(settings.segment_size));
    file.set_len(size).unwrap();
    for (bytes, at) in [([0; 64], before - 64), (identity, 0), (identity, size - 64)] {
        file.write_all_at(&bytes, at).unwrap();
    }
    queue
}

/// Appends this many messages.
pub fn append(writer: &mut QueueWriter, count: u64, payload: impl Fn(u64) -> Vec<u8>) {
    for _ in 0..count {
        let seq = writer.next_seq();
        assert_eq!(writer.append(1, &payload(seq)).unwrap(), seq);
    }
}

/// A payload that holds its number and less than `spread` bytes of filling.
pub fn payload(seq: u64, spread: u64) -> Vec<u8> {
    let mut payload = seq.to_le_bytes().to_vec();
    payload.resize(8 + usize::try_from(seq * 7919 % spread).unwrap(), u8::try_from(seq % 251).unwrap());
    payload
}

/// Becomes a queue's writer. A process that another test is starting may hold a copy of the last writer's lock for a
/// moment, and a mount releases it a moment after the last close.
pub fn writer(queue: &chronfs::Queue) -> chronfs::queue::QueueWriter {
    let mut writer = None;
    until("the writer lock is free", || {
        writer = queue.writer().ok();
        writer.is_some()
    });
    writer.unwrap()
}

/// An entry that was read: a message's number and payload, or a gap.
pub type Read = Result<(u64, Vec<u8>), Gap>;

pub fn owned(entry: Entry) -> Read {
    match entry {
        Entry::Message(message) => Ok((message.seq, message.payload.to_vec())),
        Entry::Gap(gap) => Err(gap),
    }
}

/// The remaining entries of a scanner.
pub fn scan_all(scanner: &mut Scanner) -> Vec<Read> {
    std::iter::from_fn(|| scanner.next().unwrap().map(owned)).collect()
}

/// The remaining entries of a reader.
pub fn read_all(reader: &mut QueueReader) -> Vec<Read> {
    std::iter::from_fn(|| reader.next().unwrap().map(owned)).collect()
}

/// The number of messages: 1 to that number, without a gap.
pub fn count(queue: &Queue) -> u64 {
    let mut scanner = queue.scan().unwrap();
    let mut count = 0;
    while let Some(entry) = scanner.next().unwrap() {
        count += 1;
        assert_eq!(entry.message().map(|message| message.seq), Some(count));
    }
    count
}
