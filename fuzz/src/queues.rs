//! Whole queues: hostile bytes in their files, and sequences of operations against a list.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use chronfs::queue::layout::PAYLOAD_ALIGNS;
use chronfs::queue::{Entry, Queue, QueueReader, QueueWriter, ReaderOptions, Settings, Start};

const SETTINGS: Settings = Settings { segment_size: 64 << 10, ..Settings::DEFAULT };

fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a directory")
}

/// The files of an intact queue.
struct Template {
    dir: tempfile::TempDir,
    files: Vec<(&'static str, Vec<u8>)>,
}

fn template() -> Template {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = Queue::create(&path, &SETTINGS).expect("a queue");
    queue.add_reader("alice").expect("a reader");
    let mut writer = queue.writer().expect("a writer");
    for seq in 1..=40_u8 {
        writer.append(1, &vec![seq; 2200]).expect("room");
    }
    drop(writer);
    let names = ["000000000.q", "control.meta", "readers/alice.meta", "000000001.q"];
    let files = names.map(|name| (name, fs::read(path.join(name)).expect("a file"))).into();
    Template { dir, files }
}

thread_local! {
    static TEMPLATE: RefCell<Option<Template>> = const { RefCell::new(None) };
}

/// Offsets that matter in each file: its blocks, the first records.
const PLACES: [u32; 16] = [0, 64, 128, 192, 256, 320, 384, 28, 4096, 4100, 4104, 4112, 4120, 6328, 6352, 65_472];

/// Each five bytes: a file, a place in it, how it is changed, with what.
pub fn files(bytes: &[u8]) {
    TEMPLATE.with_borrow_mut(|slot| {
        let template = slot.get_or_insert_with(template);
        let path = template.dir.path().join("q");
        let mut files = template.files.clone();
        for change in bytes.chunks_exact(5).take(8) {
            let &[file, place, how, value, width] = change else { continue };
            let (_, bytes) = &mut files[usize::from(file) % 4];
            let at = PLACES[usize::from(place & 15)] as usize + usize::from(place >> 4) * 4;
            if how & 7 == 7 {
                bytes.truncate(at);
                continue;
            }
            let value = match value & 7 {
                0 => 0,
                1 => u64::MAX,
                2 => u64::MAX >> 1,
                3 => 1 << 32,
                _ => u64::from(value) << (value & 56),
            };
            let width = 1 << (width & 3);
            if let Some(target) = bytes.get_mut(at..at + width) {
                target.copy_from_slice(&value.to_le_bytes()[..width]);
            }
            // The checksum of the block around this, if one of those lengths ends at a checksum.
            let len = [64, 128, 0, 0][usize::from(how & 3)];
            if len > 0
                && let Some(block) = bytes.get_mut(at / len * len..(at / len + 1) * len)
            {
                let (body, sum) = block.split_at_mut(len - 4);
                sum.copy_from_slice(&crc32(body).to_le_bytes());
            }
        }
        for extra in ["000000002.q", "000000003.q"] {
            let _ = fs::remove_file(path.join(extra));
        }
        for (name, bytes) in &files {
            fs::write(path.join(name), bytes).expect("room");
        }
        use_queue(&path);
    });
}

/// CRC-32 (ISO-HDLC), bit by bit: blocks are short.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0xEDB8_8320 & (sum & 1).wrapping_neg()))
    })
}

fn use_queue(path: &Path) {
    let Ok(queue) = Queue::open(path) else { return };
    let _ = queue.inspect();
    let mut last = 0;
    if let Ok(mut scanner) = queue.scan() {
        while let Ok(Some(entry)) = scanner.next() {
            let (from, to) = match entry {
                Entry::Message(message) => (message.seq, message.seq),
                Entry::Gap(gap) => (gap.from, gap.to),
            };
            assert!(from > last && to >= from, "{from} to {to} after {last}");
            last = to;
            if last == u64::MAX {
                break;
            }
        }
        let _ = (scanner.seek_seq(3), scanner.next().map(drop), scanner.seek_time(u64::MAX));
    }
    if let Ok(mut reader) = queue.reader("alice") {
        for _ in 0..100 {
            if !matches!(reader.next(), Ok(Some(_))) {
                break;
            }
            reader.commit();
        }
    }
    if let Ok(mut writer) = queue.writer() {
        let expected = writer.next_seq();
        if let Ok(seq) = writer.append(1, &[1; 3000]) {
            assert_eq!(seq, expected);
        }
    }
}

/// What must be in the queue, and which handles are open.
struct Model {
    path: PathBuf,
    messages: Vec<Vec<u8>>,
    read: usize,
    consumed: usize,
    /// What a commit may go back to.
    floor: usize,
    writer: Option<QueueWriter>,
    reader: Option<QueueReader>,
}

/// Each two bytes are an operation and its number.
pub fn operations(bytes: &[u8]) {
    let dir = scratch();
    let path = dir.path().join("q");
    let kind = usize::from(bytes.first().copied().unwrap_or(0));
    let segment_size = [64 << 10, 1 << 20][kind % 2];
    let settings = Settings { segment_size, payload_align: PAYLOAD_ALIGNS[kind / 2 % 3], ..SETTINGS };
    let queue = Queue::create(&path, &settings).expect("a queue");
    let mut model = Model { path, messages: Vec::new(), read: 0, consumed: 0, floor: 0, writer: None, reader: None };
    for step in bytes.chunks_exact(2).take(200) {
        model.step(&queue, step[0], usize::from(step[1]));
    }
    model.reader = None;
    model.read = model.consumed;
    model.read_on(&queue, usize::MAX);
    assert_eq!(model.read, model.messages.len());
    let mut scanner = queue.scan().expect("readable");
    for (index, expected) in model.messages.iter().enumerate() {
        let message = scanner.next().expect("readable").and_then(Entry::message).expect("a message");
        assert!(message.seq == index as u64 + 1 && message.payload == expected);
    }
    assert!(scanner.next().expect("readable").is_none());
}

impl Model {
    fn writer(&mut self, queue: &Queue) -> &mut QueueWriter {
        self.writer.get_or_insert_with(|| queue.writer().expect("the one writer"))
    }

    fn step(&mut self, queue: &Queue, operation: u8, number: usize) {
        let payload = vec![operation; number * [1, 16, 200][usize::from(operation >> 4) % 3]];
        match operation & 15 {
            0..=3 => {
                let seq = self.writer(queue).append(1, &payload).expect("room");
                self.messages.push(payload);
                assert_eq!(seq, self.messages.len() as u64);
            }
            4 => {
                let writer = self.writer(queue);
                let mut batch = writer.batch();
                (0..3).for_each(|_| assert!(batch.append(2, &payload).is_ok()));
                drop(batch);
                self.messages.extend([payload.clone(), payload.clone(), payload]);
            }
            5 => {
                let mut record = self.writer(queue).reserve(3, payload.len()).expect("room");
                record.copy_from_slice(&payload);
                record.commit().unwrap();
                self.messages.push(payload);
            }
            6 => {
                let mut record = self.writer(queue).reserve(3, payload.len()).expect("room");
                record.fill(0xFF);
            }
            7 => self.writer = None,
            8 => self.read_on(queue, number),
            9 => self.read_back(queue, number),
            10 => self.commit(number),
            11 => {
                self.reader = None;
                (self.read, self.floor) = (self.consumed, self.consumed);
            }
            12 => {
                let seq = (number as u64).clamp(1, self.messages.len() as u64 + 1);
                self.reader(queue).seek_seq(seq).expect("readable");
                self.read = usize::try_from(seq).unwrap_or(1) - 1;
                self.floor = self.floor.min(self.read);
            }
            13 => self.writer(queue).flush_sync().expect("a disk"),
            14 => {
                // As after a reboot: nothing is known of the writer but what the files say.
                if self.writer.is_none() {
                    let control = self.path.join("control.meta");
                    let mut bytes = fs::read(&control).expect("a file");
                    bytes[256..384].fill(0);
                    fs::write(control, bytes).expect("room");
                }
            }
            _ if number % 2 == 0 => drop(queue.apply_retention().expect("readable")),
            _ => self.tail(queue, number),
        }
    }

    fn reader(&mut self, queue: &Queue) -> &mut QueueReader {
        self.reader.get_or_insert_with(|| queue.reader("alice").expect("the one reader"))
    }

    fn commit(&mut self, number: usize) {
        let Some(reader) = &mut self.reader else { return };
        // Half of them commit what has been read, the others up to some message.
        let to = if number % 2 == 0 { self.read } else { number * self.read.max(1) / 200 };
        let is_allowed = (self.floor..=self.read).contains(&to);
        if number % 2 == 0 {
            reader.commit();
        } else {
            assert!(reader.commit_to(to as u64).is_ok() == is_allowed);
        }
        if is_allowed {
            (self.consumed, self.floor) = (to, to);
        }
    }

    fn read_back(&mut self, queue: &Queue, count: usize) {
        let left = self.read;
        self.reader(queue);
        let Some(reader) = &mut self.reader else { return };
        for _ in 0..count.min(left) {
            let message = reader.prev().expect("readable").and_then(Entry::message).expect("a message");
            self.read -= 1;
            assert!(message.seq == self.read as u64 + 1 && message.payload == self.messages[self.read]);
        }
        if count > left {
            assert!(reader.prev().expect("readable").is_none());
        }
        self.floor = self.floor.min(self.read);
    }

    /// A tailer from anywhere on sees what there is.
    fn tail(&mut self, queue: &Queue, number: usize) {
        let first = number.clamp(1, self.messages.len() + 1);
        let options = ReaderOptions { start: Start::Seq(first as u64), ..ReaderOptions::default() };
        let mut tailer = queue.tailer_with(&options).expect("readable");
        for (index, expected) in self.messages.iter().enumerate().skip(first - 1) {
            let message = tailer.next().expect("readable").and_then(Entry::message).expect("a message");
            assert!(message.seq == index as u64 + 1 && message.payload == expected);
        }
        assert!(tailer.next().expect("readable").is_none() && tailer.lag().expect("readable") == 0);
    }

    fn read_on(&mut self, queue: &Queue, count: usize) {
        let left = self.messages.len() - self.read;
        self.reader(queue);
        let Some(reader) = &mut self.reader else { return };
        for _ in 0..count.min(left) {
            let message = reader.next().expect("readable").and_then(Entry::message).expect("a message");
            assert!(message.seq == self.read as u64 + 1 && message.payload == self.messages[self.read]);
            self.read += 1;
        }
        if count > left {
            assert!(reader.next().expect("readable").is_none());
        }
    }
}
