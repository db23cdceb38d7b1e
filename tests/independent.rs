//! A reader of its own, written from the section "Walking a queue" of `src/queue/format.md` alone: it uses nothing of the
//! engine and writes nothing. It must read what the engine writes, message by message and gap by gap.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use chronfs::queue::{Entry, Queue, QueueWriter, Settings};

mod common;

use common::{payload, scratch, writer};

/// What a walk finds: messages by number, type, time and payload; and numbers that are missing, the first and the last.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Message(u64, u16, u64, Vec<u8>),
    Missing(u64, u64),
}

fn crc(bytes: &[u8], polynomial: u32) -> u32 {
    !bytes.iter().fold(!0, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (polynomial & (sum & 1).wrapping_neg()))
    })
}

fn crc32(bytes: &[u8]) -> u32 {
    crc(bytes, 0xEDB8_8320)
}

fn crc32c(bytes: &[u8]) -> u32 {
    crc(bytes, 0x82F6_3B78)
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// A block whose last four bytes are the CRC-32 of the others.
fn block(bytes: &[u8], at: usize, len: usize) -> Option<&[u8]> {
    let block = bytes.get(at..at + len)?;
    (number(block, len - 4, 4) == u64::from(crc32(&block[..len - 4]))).then_some(block)
}

/// A segment's file as it is now. Step 3 of the page.
struct Segment {
    id: u64,
    bytes: Vec<u8>,
    size: usize,
    salt: u32,
    align: usize,
    is_reused: bool,
}

struct Record {
    flags: u64,
    msg_type: u16,
    seq: u64,
    timestamp_ns: u64,
    payload: Vec<u8>,
    checksum: u64,
}

impl Segment {
    fn open(dir: &Path, id: u64, queue_id: u64) -> Option<Self> {
        let bytes = std::fs::read(dir.join(format!("{id:09}.q"))).ok()?;
        let is_sound = |at| block(&bytes, at, 64).filter(|block| block.starts_with(b"CHRONSEG"));
        let identity = is_sound(0).or_else(|| is_sound(bytes.len().checked_sub(64)?))?.to_vec();
        assert_eq!((number(&identity, 8, 2), identity[10]), (1, 1), "an unknown version or kind of checksum");
        let size = usize::try_from(number(&identity, 12, 4)).unwrap();
        let align = usize::try_from(number(&identity, 40, 4)).unwrap();
        let is_ours = number(&identity, 16, 8) == queue_id && number(&identity, 24, 4) == id;
        let is_possible =
            (64 << 10..=1 << 30).contains(&size) && size.is_multiple_of(4096) && [8, 16, 64].contains(&align);
        let salt = u32::try_from(number(&identity, 28, 4)).unwrap();
        let is_reused = identity[11] == 1;
        (is_ours && is_possible).then_some(Self { id, bytes, size, salt, align, is_reused })
    }

    fn place(&self, end: usize) -> usize {
        (end + 32).next_multiple_of(self.align) - 32
    }

    fn commit(&self, at: usize) -> u64 {
        if at + 32 <= self.bytes.len().min(self.size - 64) { number(&self.bytes, at, 4) } else { 0 }
    }

    fn start(&self) -> Option<&[u8]> {
        block(&self.bytes, 64, 64).filter(|start| number(start, 0, 8) > 0)
    }

    /// The number that it starts with, if it is in use: step 4.
    fn first_seq(&self) -> Option<u64> {
        let first = self.place(4096);
        let by_record = || (self.commit(first) > 0).then(|| number(&self.bytes, first + 8, 8));
        self.start().map(|start| number(start, 0, 8)).or_else(by_record)
    }

    /// The sound record at an offset: step 6.
    fn record(&self, at: usize) -> Option<Record> {
        let len = usize::try_from(self.commit(at).checked_sub(1)?).unwrap();
        let end = at + 32 + len.next_multiple_of(8);
        if end > self.size - 64 || end > self.bytes.len() {
            return None;
        }
        let header = &self.bytes[at..at + 32];
        let salt = self.salt ^ u32::try_from(number(header, 28, 4)).unwrap();
        let place = [u32::try_from(at).unwrap().to_le_bytes(), salt.to_le_bytes()].concat();
        let summed = [&place, &header[..16], &self.bytes[at + 32..end], &header[16..24]].concat();
        let checksum = number(header, 24, 4);
        (u64::from(crc32c(&summed)) == checksum).then(|| Record {
            flags: number(header, 6, 2),
            msg_type: u16::try_from(number(header, 4, 2)).unwrap(),
            seq: number(header, 8, 8),
            timestamp_ns: number(header, 16, 8),
            payload: self.bytes[at + 32..at + 32 + len].to_vec(),
            checksum,
        })
    }

    /// The checksum of the record that seals it.
    fn seal(&self) -> Option<u64> {
        let at = usize::try_from(number(block(&self.bytes, 128, 64)?, 16, 4)).unwrap();
        self.record(at).filter(|record| record.msg_type == 65_535 && record.flags == 1).map(|record| record.checksum)
    }
}

struct Walk {
    dir: PathBuf,
    queue_id: u64,
    first_seq: u64,
}

impl Walk {
    /// Step 1.
    fn open(dir: &Path) -> Self {
        let control = std::fs::read(dir.join("control.meta")).unwrap_or_default();
        let mut copies: Vec<_> =
            [0, 128].iter().filter_map(|&at| block(&control, at, 128).map(<[u8]>::to_vec)).collect();
        if copies.is_empty() {
            for id in ids(dir) {
                let bytes = std::fs::read(dir.join(format!("{id:09}.q"))).unwrap();
                copies.extend(block(&bytes, 192, 128).map(<[u8]>::to_vec));
            }
        }
        copies.retain(|copy| copy.starts_with(b"CHRONCTL") && number(copy, 8, 2) == 1 && copy[10] == 1);
        let settings = copies.into_iter().max_by_key(|copy| number(copy, 76, 4)).unwrap();
        Self { dir: dir.to_path_buf(), queue_id: number(&settings, 16, 8), first_seq: number(&settings, 88, 8) }
    }

    /// The readable segment of this number that is in use, with its first sequence number: steps 3 and 4.
    fn segment(&self, id: u64) -> Option<(Segment, u64)> {
        let segment = Segment::open(&self.dir, id, self.queue_id)?;
        if let Some(start) = segment.start().filter(|start| number(start, 20, 4) > 0)
            && let Some(before) = Segment::open(&self.dir, number(start, 16, 4), self.queue_id)
            && before.seal().is_some_and(|seal| seal != number(start, 20, 4))
        {
            return None;
        }
        let first_seq = segment.first_seq()?;
        Some((segment, first_seq))
    }

    fn next_after(&self, id: Option<u64>) -> Option<(Segment, u64)> {
        let later = ids(&self.dir).into_iter().filter(|&later| id.is_none_or(|id| later > id));
        later.into_iter().find_map(|later| self.segment(later))
    }

    /// Everything from the first message to the head: steps 5 to 9.
    fn read(&self) -> Vec<Found> {
        let mut found = Vec::new();
        let Some((mut segment, mut seq)) = self.next_after(None) else {
            return found;
        };
        if ids(&self.dir).first() == Some(&0) && segment.id > 0 {
            // Segment 0 is there and can't be read.
            let mut lowest = self.first_seq;
            missing(&mut found, &mut lowest, seq);
        }
        let mut at = segment.place(4096);
        loop {
            let Some(record) = segment.record(at) else {
                let left_over = segment.is_reused
                    && segment.commit(at) > 0
                    && (number(&segment.bytes, at + 8, 8) ^ seq).count_ones() > 1;
                let claims = segment.commit(at) > 0 && !left_over;
                let next = self.next_after(Some(segment.id));
                if !claims && next.is_none() {
                    return found;
                }
                // Step 8: the next sound record, here or in a later segment.
                let places = (1..).map(|n| at + n * segment.align).take_while(|&at| at + 32 <= segment.bytes.len());
                let sound = |&at: &usize| segment.record(at).is_some_and(|record| record.seq >= seq);
                if let Some(later) = places.clone().find(sound) {
                    at = later;
                    missing(&mut found, &mut seq, segment.record(at).unwrap().seq);
                } else if let Some((next, first_seq)) = next {
                    missing(&mut found, &mut seq, first_seq);
                    (at, segment) = (next.place(4096), next);
                } else {
                    let end = seq + 1;
                    missing(&mut found, &mut seq, end);
                    return found;
                }
                continue;
            };
            missing(&mut found, &mut seq, record.seq);
            if record.msg_type == 65_535 && record.flags == 1 {
                let Some((next, first_seq)) = self.next_after(Some(segment.id)) else { return found };
                missing(&mut found, &mut seq, first_seq);
                (at, segment) = (next.place(4096), next);
                continue;
            }
            at = segment.place(at + 32 + record.payload.len());
            if record.msg_type == 65_535 && record.flags == 2 {
                missing(&mut found, &mut seq, number(&record.payload, 0, 8));
            } else if record.msg_type != 65_535 && record.seq == seq {
                found.push(Found::Message(seq, record.msg_type, record.timestamp_ns, record.payload));
                seq += 1;
            }
        }
    }
}

fn missing(found: &mut Vec<Found>, seq: &mut u64, next: u64) {
    if next > *seq {
        found.push(Found::Missing(*seq, next - 1));
        *seq = next;
    }
}

/// Step 2.
fn ids(dir: &Path) -> Vec<u64> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let id = |name: String| {
        let digits = name.strip_suffix(".q")?;
        let id = digits.parse().ok().filter(|id| format!("{id:09}") == digits)?;
        (id <= u64::from(u32::MAX)).then_some(id)
    };
    let mut ids: Vec<u64> = names.filter_map(id).collect();
    ids.sort_unstable();
    ids
}

/// Both readers find the same, and the independent one leaves no trace.
fn compare(queue: &Queue) -> usize {
    let found = Walk::open(queue.path()).read();
    let mut expected = Vec::new();
    let mut scanner = queue.scan().unwrap();
    while let Some(entry) = scanner.next().unwrap() {
        expected.push(match entry {
            Entry::Message(it) => Found::Message(it.seq, it.msg_type, it.timestamp_ns, it.payload.to_vec()),
            Entry::Gap(gap) => Found::Missing(gap.from, gap.to),
        });
    }
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert!(found == expected, "{found:?} instead of {expected:?}");
    }
    found.len()
}

fn fill(writer: &mut QueueWriter, count: u64) {
    common::append(writer, count, |seq| payload(seq, 900));
}

#[test]
fn growing_segments_of_any_alignment_are_walked() {
    for payload_align in [8, 16, 64] {
        let dir = scratch();
        let settings = Settings { segment_size: 256 << 10, payload_align, ..Settings::default() };
        let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
        assert_eq!(compare(&queue), 0);
        let mut writer = writer(&queue);
        assert_eq!(compare(&queue), 0);
        fill(&mut writer, 100);
        writer.append(7, &[9; 200_000]).unwrap();
        writer.append(8, &[]).unwrap();
        fill(&mut writer, 1000);
        assert_eq!(compare(&queue), 1102);
        drop(writer);
        assert_eq!(compare(&queue), 1102);
    }
}

#[test]
fn damage_and_missing_segments_are_gaps() {
    let dir = scratch();
    let queue = common::filled(&dir.path().join("q"), &common::SMALL, 500, |seq| payload(seq, 900));
    let path = |id: u32| queue.path().join(format!("{id:09}.q"));
    let damage = |id, at| File::options().write(true).open(path(id)).unwrap().write_all_at(&[0xFF; 3], at).unwrap();
    damage(0, 20_000);
    damage(1, 30_001);
    compare(&queue);
    // The identity at the start, and the settings.
    damage(1, 3);
    damage(0, 200);
    compare(&queue);
    std::fs::remove_file(path(2)).unwrap();
    compare(&queue);
    std::fs::remove_file(path(0)).unwrap();
    compare(&queue);
    let control = File::options().write(true).open(queue.path().join("control.meta")).unwrap();
    control.write_all_at(&[0; 64], 10).unwrap();
    control.write_all_at(&[0; 64], 138).unwrap();
    assert!(compare(&Queue::open(queue.path()).unwrap()) > 100);
}

#[test]
fn reused_files_and_those_that_time_has_sealed_are_walked() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let settings = Settings { retain_segments: Some(1), roll_every_ns: Some(1_000_000_000), ..common::SMALL };
    let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
    let mut writer = writer(&queue);
    let (mut was_reused, mut timestamp_ns) = (0, 1_000_000_000);
    common::until("files are used again", || {
        for _ in 0..50 {
            let seq = writer.next_seq();
            writer.append_at(timestamp_ns, 1, &payload(seq, 900)).unwrap();
        }
        timestamp_ns += 300_000_000;
        let head = queue.bounds().unwrap().head.segment;
        let mut is_reused = [0];
        let file = File::open(queue.path().join(format!("{:09}.q", head.0))).unwrap();
        file.read_exact_at(&mut is_reused, 11).unwrap();
        was_reused += u32::from(is_reused[0]);
        was_reused > 20
    });
    drop(writer);
    assert!(compare(&queue) > 0);
}
