//! Arbitrary and hostile bytes in every file of a queue, and long sequences of operations against a list as the model:
//! no panic (overflow checks are on in tests), no hang, nothing allocated or believed because of an invented number.
//!
//! A fixed seed here; `CHRONFS_FUZZ` sets the number of rounds of each test, `CHRONFS_FUZZ_SEED` the seed:
//!
//! ```text
//! CHRONFS_FUZZ=100000 CHRONFS_FUZZ_SEED=7 cargo test --test fuzz -- --nocapture
//! ```
#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use chronfs::queue::{Entry, Error, Queue, QueueReader, QueueWriter, ReaderOptions, Settings, Start, layout};

mod common;

use common::{Random, SMALL, scratch};

/// The promise for a release build; other builds get more time.
const LONGEST: Duration = Duration::from_secs(if cfg!(debug_assertions) { 4 } else { 1 });

impl Random {
    fn new() -> Self {
        Self(std::env::var("CHRONFS_FUZZ_SEED").map_or(0x5EED, |seed| seed.parse::<u64>().unwrap() | 1 << 40))
    }

    /// A number that programs stumble over, or any.
    fn hostile(&mut self) -> u64 {
        let special = [0, 1, 2, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 62, i64::MAX as u64, u64::MAX - 1, u64::MAX];
        let index = self.index(special.len() + 2);
        special.get(index).copied().unwrap_or_else(|| self.next())
    }
}

fn rounds(default: usize) -> usize {
    std::env::var("CHRONFS_FUZZ").map_or(default, |rounds| rounds.parse().unwrap())
}

/// Three segments, a reader.
fn make_queue(path: &Path) {
    let queue = Queue::create(path, &SMALL).unwrap();
    queue.add_reader("alice").unwrap();
    let mut writer = queue.writer().unwrap();
    for seq in 1..=70_u64 {
        writer.append(1, &vec![u8::try_from(seq).unwrap(); 2200]).unwrap();
    }
}

/// Every operation on a queue, whatever it holds. Numbers rise, time is bounded.
fn use_queue(path: &Path, context: &str) -> Duration {
    let started = Instant::now();
    let Ok(queue) = Queue::open(path) else { return started.elapsed() };
    let _ = queue.inspect().map(|inspection| format!("{inspection:?}"));
    let mut last = 0;
    if let Ok(mut scanner) = queue.scan() {
        while let Ok(Some(entry)) = scanner.next() {
            let (from, to) = match entry {
                Entry::Message(message) => (message.seq, message.seq),
                Entry::Gap(gap) => (gap.from, gap.to),
            };
            assert!(from > last && to >= from, "{context}: {from} to {to} after {last}");
            last = to;
            if last == u64::MAX {
                break;
            }
        }
        let (mut steps, mut after) = (0, (scanner.position(), scanner.seq()));
        while let Ok(Some(_)) = scanner.prev() {
            let here = (scanner.position(), scanner.seq());
            assert!(here < after, "{context}: {here:?} before {after:?}");
            (after, steps) = (here, steps + 1);
        }
        assert!(steps < 10_000, "{context}: {steps} entries");
        let _ = (scanner.seek_seq(3), scanner.next().map(drop), scanner.seek_time(u64::MAX));
    }
    for name in ["alice", "bob"] {
        if let Ok(mut reader) = queue.reader(name) {
            for _ in 0..200 {
                if !matches!(reader.next(), Ok(Some(_))) {
                    break;
                }
                reader.commit();
            }
        }
    }
    if let Ok(mut writer) = queue.writer() {
        for _ in 0..3 {
            let expected = writer.next_seq();
            match writer.append(1, &[1; 3000]) {
                Ok(seq) => assert_eq!(seq, expected, "{context}"),
                Err(_) => break,
            }
        }
    }
    let took = started.elapsed();
    assert!(took < LONGEST, "{context}: {took:?}");
    took
}

/// Damages a file, with correct checksums if `repair` says so.
fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    match random.index(6) {
        0 => {
            let len = random.index(bytes.len() + 1);
            bytes.truncate(len);
        }
        1 => {
            let len = random.index(8192);
            bytes.clear();
            bytes.extend((0..len).map(|_| random.next().to_le_bytes()[0]));
        }
        2 => {
            let from = random.index(bytes.len());
            let to = (from + random.index(4096)).min(bytes.len());
            bytes[from..to].fill(random.next().to_le_bytes()[0]);
        }
        _ => {
            for _ in 0..=random.index(8) {
                let at = random.index(bytes.len() / 8) * 8;
                let value = random.hostile().to_le_bytes();
                bytes[at..at + 8].copy_from_slice(&value);
            }
        }
    }
}

/// Blocks with a CRC-32 at their end: where they start and how long they are.
const CONTROL_BLOCKS: [(usize, usize); 4] = [(0, 128), (128, 128), (256, 64), (320, 64)];
const SEGMENT_BLOCKS: [(usize, usize); 4] = [(0, 64), (64, 64), (128, 64), (192, 128)];
const CURSOR_BLOCKS: [(usize, usize); 3] = [(0, 64), (64, 32), (128, 32)];

/// Hostile numbers in a block whose checksum is right.
fn forge(random: &mut Random, bytes: &mut [u8], blocks: &[(usize, usize)]) {
    let (start, len) = blocks[random.index(blocks.len())];
    let Some(block) = bytes.get_mut(start..start + len) else { return };
    for _ in 0..=random.index(2) {
        let width = if random.index(2) == 0 { 8 } else { 4 };
        let at = random.index((len - 4) / width) * width;
        let value = random.hostile().to_le_bytes();
        let end = (at + width).min(len - 4);
        block[at..end].copy_from_slice(&value[..end - at]);
    }
    seal(block);
}

fn seal(block: &mut [u8]) {
    let (body, crc) = block.split_at_mut(block.len() - 4);
    crc.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
}

/// A record whose checksum is right, with hostile sequence number and timestamp.
fn forge_record(random: &mut Random, bytes: &mut [u8]) {
    let Some(salt) = bytes.get(28..32).map(|salt| u32::from_le_bytes(salt.try_into().unwrap())) else { return };
    if bytes.len() < 8192 {
        return;
    }
    let offset = 4096 + random.index(3) * (2200 + 32);
    let (seq, timestamp) = (random.hostile(), random.hostile());
    let len = random.index(64);
    let first = (len as u64 + 1) | u64::from(random.index(2) == 0) << 48 | (random.next() & 0xFFFF) << 32;
    let padded = len.next_multiple_of(8);
    let place = offset as u64 | u64::from(salt) << 32;
    let mut summed: Vec<u8> = [place, first, seq].iter().flat_map(|word| word.to_le_bytes()).collect();
    summed.resize(24 + padded, 0);
    summed.extend(timestamp.to_le_bytes());
    let sum = crc32c::crc32c(&summed);
    let words = [first, seq, timestamp, u64::from(sum)];
    let header: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes[offset..offset + 32].copy_from_slice(&header);
    bytes[offset + 32..offset + 32 + padded].fill(0);
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to.join("readers")).unwrap();
    for dir in ["", "readers"] {
        for entry in std::fs::read_dir(from.join(dir)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), to.join(dir).join(entry.file_name())).unwrap();
            }
        }
    }
}

#[test]
fn whatever_the_files_hold_nothing_panics_or_hangs() {
    let dir = scratch();
    let (template, path) = (dir.path().join("template"), dir.path().join("q"));
    make_queue(&template);
    let mut random = Random::new();
    let files = ["000000000.q", "000000001.q", "000000002.q", "control.meta", "readers/alice.meta", "writer.lock"];
    let (started, mut longest) = (Instant::now(), Duration::ZERO);
    let rounds = rounds(1500);
    for round in 0..rounds {
        copy(&template, &path);
        let seed = random.0;
        for _ in 0..=random.index(2) {
            let name = files[random.index(files.len())];
            let mut bytes = std::fs::read(path.join(name)).unwrap();
            if bytes.is_empty() {
                continue;
            }
            let blocks: &[_] = match name {
                "control.meta" => &CONTROL_BLOCKS,
                "readers/alice.meta" => &CURSOR_BLOCKS,
                _ => &SEGMENT_BLOCKS,
            };
            match random.index(3) {
                0 if bytes.len() >= 64 => damage(&mut random, &mut bytes),
                1 if name.ends_with(".q") => forge_record(&mut random, &mut bytes),
                _ => forge(&mut random, &mut bytes, blocks),
            }
            std::fs::write(path.join(name), bytes).unwrap();
        }
        longest = longest.max(use_queue(&path, &format!("round {round}, seed {seed:#x}")));
    }
    eprintln!("{rounds} damaged queues in {:?}, the longest took {longest:?}", started.elapsed());
}

/// What the queue must hold, and what has it open.
struct Model {
    messages: Vec<(u64, Vec<u8>)>,
    consumed: usize,
    read: usize,
    /// What a commit may go back to.
    floor: usize,
}

fn read_on(reader: &mut QueueReader, model: &mut Model, count: usize) {
    for _ in 0..count {
        match reader.next().unwrap() {
            Some(Entry::Message(message)) => {
                let (timestamp_ns, payload) = &model.messages[model.read];
                assert_eq!(message.seq, model.read as u64 + 1);
                assert_eq!((message.timestamp_ns, message.payload), (*timestamp_ns, &payload[..]));
                model.read += 1;
            }
            Some(gap) => panic!("{gap:?}"),
            None => return assert_eq!(model.read, model.messages.len()),
        }
    }
}

fn read_back(reader: &mut QueueReader, model: &mut Model, count: usize) {
    for _ in 0..count {
        let Some(entry) = reader.prev().unwrap() else {
            assert_eq!(model.read, 0);
            break;
        };
        model.read -= 1;
        let (timestamp_ns, payload) = &model.messages[model.read];
        let message = entry.message().unwrap();
        let (seq, expected) = (model.read as u64 + 1, (*timestamp_ns, &payload[..]));
        assert_eq!((message.seq, (message.timestamp_ns, message.payload)), (seq, expected));
    }
    model.floor = model.floor.min(model.read);
}

fn commit_to(random: &mut Random, reader: &mut QueueReader, model: &mut Model) {
    let to = random.index(model.messages.len() + 2);
    let is_allowed = (model.floor..=model.read).contains(&to);
    assert_eq!(reader.commit_to(to as u64).is_ok(), is_allowed);
    if is_allowed {
        (model.consumed, model.floor) = (to, to);
    }
}

/// A tailer from any message on.
fn tail(random: &mut Random, queue: &Queue, model: &mut Model) {
    let read = random.index(model.messages.len() + 1);
    let options = ReaderOptions { start: Start::Seq(read as u64 + 1), ..ReaderOptions::default() };
    let mut tailer = queue.tailer_with(&options).unwrap();
    assert_eq!(tailer.lag().unwrap(), (model.messages.len() - read) as u64);
    for (seq, (timestamp_ns, payload)) in (1..).zip(&model.messages).skip(read) {
        let message = tailer.next_message(|gap| panic!("{gap:?}")).unwrap().unwrap();
        assert_eq!((message.seq, message.timestamp_ns, message.payload), (seq, *timestamp_ns, &payload[..]));
    }
    assert_eq!(tailer.next().unwrap(), None);
}

fn append(random: &mut Random, writer: &mut QueueWriter, model: &mut Model) {
    let max = writer.max_payload_len();
    let len = [random.index(100), random.index(3000), random.index(max + 1), max, 0][random.index(5)];
    let payload = vec![random.next().to_le_bytes()[0]; len];
    let last = model.messages.last().map_or(0, |message| message.0);
    let timestamp_ns = last + random.next() % 3;
    let seq = model.messages.len() as u64 + 1;
    assert_eq!(writer.append_at(timestamp_ns, 1, &payload).unwrap(), seq);
    model.messages.push((timestamp_ns, payload));
    if last > 0 {
        assert!(matches!(writer.append_at(last - 1, 1, b""), Err(Error::TimestampInPast { .. })));
    }
}

fn run_model(random: &mut Random, steps: usize) {
    let dir = scratch();
    let any_size = |random: &mut Random| [1, 1, 3, 4, 16][random.index(5)] * layout::MIN_SEGMENT_SIZE;
    let any_align = |random: &mut Random| layout::PAYLOAD_ALIGNS[random.index(3)];
    let settings = Settings { segment_size: any_size(random), payload_align: any_align(random), ..SMALL };
    let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
    let mut model = Model { messages: Vec::new(), consumed: 0, read: 0, floor: 0 };
    let mut writer = queue.writer().unwrap();
    let mut reader = queue.reader("alice").unwrap();
    for _ in 0..steps {
        match random.index(16) {
            0..=4 => append(random, &mut writer, &mut model),
            5 | 6 => read_on(&mut reader, &mut model, random.index(5)),
            7 => {
                reader.commit();
                (model.consumed, model.floor) = (model.read, model.read);
            }
            8 => {
                drop(reader);
                reader = Queue::open(queue.path()).unwrap().reader("alice").unwrap();
                (model.read, model.floor) = (model.consumed, model.consumed);
            }
            9 => {
                drop(writer);
                writer = Queue::open(queue.path()).unwrap().writer().unwrap();
                assert_eq!(writer.next_seq(), model.messages.len() as u64 + 1);
            }
            10 => {
                let seq = random.index(model.messages.len() + 2);
                reader.seek_seq(seq as u64).unwrap();
                model.read = seq.max(1).min(model.messages.len() + 1) - 1;
                model.floor = model.floor.min(model.read);
            }
            11 => read_back(&mut reader, &mut model, random.index(20)),
            12 => commit_to(random, &mut reader, &mut model),
            13 => tail(random, &queue, &mut model),
            14 => {
                let (segment_size, payload_align) = (any_size(random), any_align(random));
                queue
                    .update(|settings| (settings.segment_size, settings.payload_align) = (segment_size, payload_align))
                    .unwrap();
            }
            _ => writer.flush_sync().unwrap(),
        }
    }
    read_on(&mut reader, &mut model, usize::MAX);
}

#[test]
fn any_sequence_of_operations_does_what_a_list_does() {
    let mut random = Random::new();
    let rounds = rounds(40);
    (0..rounds).for_each(|_| run_model(&mut random, 250));
    eprintln!("{rounds} sequences of 250 operations");
}

/// Bytes that this thread has read from files so far.
fn bytes_read() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

/// Every other record claims to reach to the end of its segment, with nothing else wrong about it: each would have to
/// be checksummed to the end to be refused.
#[test]
fn lengths_that_lie_everywhere_cost_a_multiple_of_the_segment_not_its_square() {
    const SIZE: u32 = 1 << 20;
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = Queue::create(&path, &Settings { segment_size: SIZE, ..Settings::default() }).unwrap();
    let mut writer = queue.writer().unwrap();
    // After the large one half a segment of the largest size is left.
    let count = u64::from(SIZE) / 80 - 1000;
    writer.append(1, &vec![0; SIZE as usize / 2]).unwrap();
    (2..=count).for_each(|_| assert!(writer.append(1, b"message").is_ok()));
    drop(writer);
    let file = std::fs::OpenOptions::new().write(true).open(path.join("000000001.q")).unwrap();
    let mut scanner = queue.scan().unwrap();
    while let Some(message) = scanner.next().unwrap().and_then(Entry::message) {
        if message.seq.is_multiple_of(2) {
            let len = layout::records_end(SIZE) - message.position.offset - layout::HEADER_LEN;
            file.write_all_at(&(len + 1).to_le_bytes(), u64::from(message.position.offset)).unwrap();
        }
    }
    // As after a power cut: the writer can't trust anything but the segment.
    let control = std::fs::OpenOptions::new().write(true).open(path.join("control.meta")).unwrap();
    control.write_all_at(&[0; 128], 256).unwrap();
    let before = bytes_read();
    let mut scanner = queue.scan().unwrap();
    let mut found = 0;
    while let Some(entry) = scanner.next().unwrap() {
        found += u64::from(matches!(entry, Entry::Message(_)));
    }
    assert_eq!(found, count.div_ceil(2), "undamaged records are read");
    assert_eq!(Queue::open(&path).unwrap().writer().unwrap().next_seq(), count + 1);
    let multiple = (bytes_read() - before) / u64::from(SIZE);
    assert!(multiple < 2000, "{multiple} times the segment was read");
    eprintln!("{multiple} times the segment was read");
}
