//! Damaged files: what can be read is read, what can't is a gap that says so, and nothing ever leads to a panic, a hang
//! or the loss of an undamaged message.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::FileExt;
use std::path::Path;

use chronfs::queue::{Entry, Error, GapReason, Queue, Scanner, SegmentId, layout};

mod common;

use common::{SMALL, filled, scratch};

fn payload(seq: u64) -> Vec<u8> {
    common::payload(seq, 1500)
}

/// A queue of three segments, the last one partly used. The number of prepared files does not matter.
fn new_queue(dir: &Path) -> (Queue, u64) {
    const MESSAGES: u64 = 190;
    let queue = filled(dir, &SMALL, MESSAGES, payload);
    assert_eq!(queue.bounds().unwrap().head.segment, SegmentId(2));
    (queue, MESSAGES)
}

#[derive(Debug, Default, PartialEq)]
struct Outcome {
    read: Vec<u64>,
    gaps: Vec<(u64, u64)>,
}

impl Outcome {
    fn add(&mut self, entry: Entry<'_>) {
        match entry {
            Entry::Message(message) => {
                assert!(message.payload == payload(message.seq), "message {} has other bytes", message.seq);
                self.read.push(message.seq);
            }
            Entry::Gap(gap) => self.gaps.push((gap.from, gap.to)),
        }
    }

    /// Every message of `1..=last` was read or lies in a gap, each once and in order.
    fn is_complete(&self, last: u64) -> bool {
        let mut ranges: Vec<_> = self.read.iter().map(|&seq| (seq, seq)).chain(self.gaps.iter().copied()).collect();
        ranges.sort_unstable();
        let mut next = 1;
        let dense = ranges.iter().all(|&(from, to)| std::mem::replace(&mut next, to + 1) == from);
        dense && next == last + 1 && self.read.is_sorted()
    }

    fn lost(&self, last: u64) -> u64 {
        last - self.read.len() as u64
    }
}

fn scan(scanner: &mut Scanner) -> Outcome {
    let mut outcome = Outcome::default();
    while let Some(entry) = scanner.next().unwrap() {
        outcome.add(entry);
    }
    outcome
}

/// Reads in both ways, which must agree.
fn read(path: &Path) -> Outcome {
    let queue = Queue::open(path).unwrap();
    let by_scan = scan(&mut queue.scan().unwrap());
    let mut by_reader = Outcome::default();
    let mut reader = queue.reader("checker").unwrap();
    while let Some(entry) = reader.next().unwrap() {
        by_reader.add(entry);
    }
    assert_eq!(by_scan, by_reader);
    by_scan
}

fn flip(path: &Path, byte: u64, bit: u32) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut value = [0];
    file.read_exact_at(&mut value, byte).unwrap();
    file.write_all_at(&[value[0] ^ 1 << bit], byte).unwrap();
}

/// Makes the queue look as if last written before this boot.
fn restart_machine(queue: &Path) {
    let control = std::fs::OpenOptions::new().write(true).open(queue.join("control.meta")).unwrap();
    control.write_all_at(&[0xB0; 16], 384 + 24).unwrap();
}

#[test]
fn one_flipped_bit_costs_at_most_one_message_and_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    let (_queue, last) = new_queue(&path);
    assert_eq!(read(&path).read.len() as u64, last);
    let mut lossy = 0;
    for segment in 0..3 {
        let file = path.join(format!("{segment:09}.q"));
        // All of the header page's blocks, the first records with their headers, and a walk through the rest.
        let bytes = (0..320).chain(4096..4096 + 200).chain((4300..u64::from(SMALL.segment_size)).step_by(397));
        for (byte, bit) in bytes.zip([0, 3, 7, 1, 6].into_iter().cycle()) {
            flip(&file, byte, bit);
            let outcome = read(&path);
            let context = format!("segment {segment} byte {byte} bit {bit}: {:?}", outcome.gaps);
            assert!(outcome.is_complete(last), "{context}");
            assert!(outcome.lost(last) <= 1, "{context}");
            lossy += outcome.lost(last);
            flip(&file, byte, bit);
        }
    }
    assert!(lossy > 300, "the flips hit records: {lossy}");
    assert_eq!(read(&path).lost(last), 0);
}

#[test]
fn a_flipped_bit_in_the_length_of_the_newest_message_costs_no_number_after_it() {
    let dir = scratch();
    let path = dir.path().join("q");
    let (queue, last) = new_queue(&path);
    let mut scanner = queue.scan().unwrap();
    let mut newest = scanner.position();
    while let Some(message) = scanner.next().unwrap().and_then(Entry::message) {
        newest = message.position;
    }
    let (head, file) = (scanner.position(), path.join(format!("{:09}.q", newest.segment.0)));
    for bit in 0..32 {
        let (byte, bit) = (u64::from(newest.offset + bit / 8), bit % 8);
        flip(&file, byte, bit);
        let outcome = scan(&mut Queue::open(&path).unwrap().scan().unwrap());
        assert_eq!((outcome.lost(last), outcome.is_complete(last)), (1, true), "byte {byte} bit {bit}");
        flip(&file, byte, bit);
    }
    // The next message's place holds none that could be lost.
    for bit in 0..32 {
        let (byte, bit) = (u64::from(head.offset + bit / 8), bit % 8);
        flip(&file, byte, bit);
        let outcome = scan(&mut Queue::open(&path).unwrap().scan().unwrap());
        assert_eq!((outcome.lost(last), outcome.is_complete(last)), (0, true), "byte {byte} bit {bit}");
        flip(&file, byte, bit);
    }
}

/// The bytes of the three segments, one segment after the other, that a long run is to damage: all, or
/// `CHRONFS_DAMAGE=65536..131072`.
fn places() -> impl DoubleEndedIterator<Item = (u32, u64)> {
    let size = u64::from(SMALL.segment_size);
    let range = std::env::var("CHRONFS_DAMAGE").ok().map_or(0..3 * size, |range| {
        let (from, to) = range.split_once("..").unwrap();
        from.parse().unwrap()..to.parse().unwrap()
    });
    range.map(move |place| (u32::try_from(place / size).unwrap(), place % size))
}

/// The sampling tests of this file, without sampling:
///
/// ```text
/// cargo test --release --test damage every_ -- --ignored --nocapture
/// ```
#[test]
#[ignore = "takes many minutes"]
fn every_bit() {
    let dir = scratch();
    let path = dir.path().join("q");
    let (queue, last) = new_queue(&path);
    drop(queue);
    let (mut flips, mut lossy) = (0_u64, 0_u64);
    for (segment, byte) in places() {
        let file = path.join(format!("{segment:09}.q"));
        for bit in 0..8 {
            flip(&file, byte, bit);
            // Both ways to read, at every eighth; they share the code that handles damage.
            let outcome = if (byte + u64::from(bit)).is_multiple_of(8) {
                read(&path)
            } else {
                scan(&mut Queue::open(&path).unwrap().scan().unwrap())
            };
            let context = format!("segment {segment} byte {byte} bit {bit}: {:?}", outcome.gaps);
            assert!(outcome.is_complete(last) && outcome.lost(last) <= 1, "{context}");
            lossy += outcome.lost(last);
            flip(&file, byte, bit);
            flips += 1;
        }
        if (byte + 1).is_multiple_of(4096) {
            eprintln!("{flips} flips, up to byte {byte} of segment {segment}; {lossy} of them cost a message");
        }
    }
    assert_eq!(read(&path).lost(last), 0);
}

#[test]
#[ignore = "takes many minutes"]
fn every_length() {
    let dir = scratch();
    let path = dir.path().join("q");
    let (queue, _) = new_queue(&path);
    let mut records = Vec::new();
    let mut scanner = queue.scan().unwrap();
    while let Some(message) = scanner.next().unwrap().and_then(Entry::message) {
        let end = message.position.offset as usize + layout::HEADER_LEN as usize + message.payload.len();
        records.push((message.position.segment.0, end as u64));
    }
    drop(queue);
    let names = [0, 1, 2].map(|segment| format!("{segment:09}.q"));
    let whole = names.each_ref().map(|name| std::fs::read(path.join(name)).unwrap());
    let (mut cuts, mut cut_before) = (0_u64, None);
    for (segment, len) in places().rev() {
        if let Some(before) = cut_before.replace(segment as usize).filter(|&before| before != segment as usize) {
            std::fs::write(path.join(&names[before]), &whole[before]).unwrap();
        }
        std::fs::OpenOptions::new()
            .write(true)
            .open(path.join(&names[segment as usize]))
            .unwrap()
            .set_len(len)
            .unwrap();
        let outcome =
            if len.is_multiple_of(8) { read(&path) } else { scan(&mut Queue::open(&path).unwrap().scan().unwrap()) };
        let left = (1..).zip(&records).filter(|(_, (of, end))| *of != segment || *end <= len);
        assert!(outcome.read.iter().copied().eq(left.map(|(seq, _)| seq)), "segment {segment} length {len}");
        cuts += 1;
        if len.is_multiple_of(4096) {
            eprintln!("{cuts} lengths, down to {len} of segment {segment}");
        }
    }
}

#[test]
fn after_a_flipped_bit_a_writer_goes_on_and_assigns_no_number_twice() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("template");
    let (queue, last) = new_queue(&template);
    let head = queue.bounds().unwrap().head.offset;
    drop(queue);
    for byte in (4096..u64::from(head)).step_by(211).chain(u64::from(head) - 1200..u64::from(head)) {
        let path = dir.path().join("copy");
        copy_queue(&template, &path);
        flip(&path.join("000000002.q"), byte, 2);
        if byte % 2 == 0 {
            restart_machine(&path);
        }
        let mut writer = Queue::open(&path).unwrap().writer().unwrap();
        let seq = writer.next_seq();
        assert_eq!(seq, last + 1, "byte {byte}");
        writer.append(1, &payload(seq)).unwrap();
        drop(writer);
        let outcome = read(&path);
        assert!(outcome.is_complete(seq) && outcome.lost(seq) <= 1, "byte {byte}: {:?}", outcome.gaps);
        std::fs::remove_dir_all(&path).unwrap();
    }
}

fn copy_queue(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn a_segment_cut_short_anywhere_costs_only_what_was_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("template");
    let (_queue, last) = new_queue(&template);
    let path = dir.path().join("copy");
    for segment in 0..3 {
        let name = format!("{segment:09}.q");
        for len in (0..SMALL.segment_size).step_by(1999).chain([0, 1, 63, 64, 100, 4095, 4096, 4097, 4128]) {
            copy_queue(&template, &path);
            let file = std::fs::OpenOptions::new().write(true).open(path.join(&name)).unwrap();
            file.set_len(u64::from(len)).unwrap();
            let outcome = read(&path);
            assert!(outcome.read.is_sorted(), "{segment} {len}");
            let mut writer = Queue::open(&path).unwrap().writer().unwrap();
            let seq = writer.next_seq();
            assert_eq!(seq, last + 1, "segment {segment} length {len}");
            writer.append(1, &payload(seq)).unwrap();
            drop(writer);
            let outcome = read(&path);
            let first = outcome.read.first().copied().unwrap_or(seq).min(outcome.gaps.first().map_or(seq, |gap| gap.0));
            assert!(first == 1, "segment {segment} length {len}: starts at {first}");
            assert!(outcome.is_complete(seq), "segment {segment} length {len}: {:?}", outcome.gaps);
            std::fs::remove_dir_all(&path).unwrap();
        }
    }
}

#[test]
fn a_file_cut_short_under_a_scan_is_a_gap_or_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    let (queue, _) = new_queue(&path);
    let mut scanner = queue.scan().unwrap();
    scanner.next().unwrap();
    for name in ["000000000.q", "000000001.q"] {
        std::fs::OpenOptions::new().write(true).open(path.join(name)).unwrap().set_len(0).unwrap();
    }
    let outcome = scan(&mut scanner);
    assert_eq!(outcome.gaps.len(), 1, "{:?}", outcome.gaps);
    assert!(outcome.read.len() > 10);
}

#[test]
fn segments_that_are_missing_swapped_or_copied_are_gaps() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("template");
    let (queue, last) = new_queue(&template);
    let infos = queue.inspect().unwrap().segments;
    let middle = (infos[1].first_seq, infos[1].last_seq);
    let check = |what: &str, damage: &dyn Fn(&Path)| {
        let path = dir.path().join(what);
        copy_queue(&template, &path);
        damage(&path);
        let outcome = read(&path);
        assert_eq!(outcome.gaps, [middle], "{what}");
        assert!(outcome.is_complete(last), "{what}");
    };
    check("missing", &|path| std::fs::remove_file(path.join("000000001.q")).unwrap());
    check("empty", &|path| std::fs::write(path.join("000000001.q"), "").unwrap());
    check("zeros", &|path| std::fs::write(path.join("000000001.q"), vec![0; SMALL.segment_size as usize]).unwrap());
    check("a copy of another", &|path| {
        std::fs::copy(path.join("000000000.q"), path.join("000000001.q")).unwrap();
    });
    check("of another queue", &|path| {
        let other = dir.path().join("other");
        new_queue(&other);
        std::fs::copy(other.join("000000001.q"), path.join("000000001.q")).unwrap();
    });
    check("a link", &|path| {
        std::fs::rename(path.join("000000001.q"), path.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", path.join("000000001.q")).unwrap();
    });
}

#[test]
fn a_damaged_control_block_loses_nothing_and_the_next_writer_repairs_it() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("template");
    let (_queue, last) = new_queue(&template);
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path));
    let damages: [Damage<'_>; 5] = [
        ("missing", &|file| std::fs::remove_file(file).unwrap()),
        ("empty", &|file| std::fs::write(file, "").unwrap()),
        ("short", &|file| std::fs::write(file, "hello").unwrap()),
        ("zeros", &|file| std::fs::write(file, [0; 4096]).unwrap()),
        ("garbage", &|file| std::fs::write(file, [0xA5; 4096]).unwrap()),
    ];
    for (what, damage) in damages {
        let path = dir.path().join(what);
        copy_queue(&template, &path);
        damage(&path.join("control.meta"));
        let queue = Queue::open(&path).unwrap();
        let reported = queue.control_damage().map(ToString::to_string).unwrap_or_default();
        assert!(reported.contains("control.meta"), "{what}: {reported}");
        assert_eq!(scan(&mut queue.scan().unwrap()).lost(last), 0, "{what}");
        assert_eq!(queue.settings().segment_size, SMALL.segment_size);
        let mut writer = queue.writer().unwrap();
        assert_eq!(writer.append(1, &payload(last + 1)).unwrap(), last + 1, "{what}");
        drop(writer);
        let repaired = Queue::open(&path).unwrap();
        assert!(repaired.control_damage().is_none(), "{what}");
        assert_eq!(read(&path).lost(last + 1), 0, "{what}");
        let evidence = path.join("control.meta.damaged");
        assert_eq!(evidence.exists(), what != "missing", "{what}");
    }
}

#[test]
fn one_damaged_copy_of_the_settings_is_repaired_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    new_queue(&path);
    for byte in [5, 20, 127, 128, 150, 255] {
        flip(&path.join("control.meta"), byte, 1);
        let queue = Queue::open(&path).unwrap();
        assert!(queue.control_damage().is_none());
        drop(queue.writer().unwrap());
        let control = std::fs::read(path.join("control.meta")).unwrap();
        assert_eq!(control[..128], control[128..256], "byte {byte}");
    }
}

#[test]
fn a_damaged_cursor_stops_only_its_reader_and_can_be_reset() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    let (queue, last) = new_queue(&path);
    queue.add_reader("alice").unwrap();
    queue.add_reader("bob").unwrap();
    for contents in [&b""[..], b"hello", &[0; 4096], &[0xFF; 4096]] {
        std::fs::write(path.join("readers/alice.meta"), contents).unwrap();
        let error = queue.reader("alice").unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("readers/alice.meta") && error.to_string().contains("seek"), "{error}");
        assert_eq!(queue.reader_position("bob").unwrap(), 1);
        let inspection = queue.inspect().unwrap();
        assert_eq!(inspection.readers.iter().map(|reader| reader.state()).collect::<Vec<_>>(), ["damaged", "idle"]);
        assert_eq!(inspection.readers[0].pins_segments, 2, "it may need everything");
        queue.seek_reader("alice", last).unwrap();
        let mut reader = queue.reader("alice").unwrap();
        assert_eq!(reader.next().unwrap().unwrap().message().unwrap().seq, last);
    }
}

#[test]
fn a_torn_commit_leaves_the_cursor_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    let (queue, _) = new_queue(&path);
    let mut reader = queue.reader("alice").unwrap();
    for _ in 0..5 {
        reader.next().unwrap();
        reader.commit();
    }
    drop(reader);
    let file = path.join("readers/alice.meta");
    let bytes = std::fs::read(&file).unwrap();
    let generation = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let newer: u64 = if generation(64) > generation(128) { 64 } else { 128 };
    for byte in newer..newer + 32 {
        flip(&file, byte, 4);
        assert_eq!(queue.reader_position("alice").unwrap(), 5, "byte {byte}");
        flip(&file, byte, 4);
    }
    assert_eq!(queue.reader_position("alice").unwrap(), 6);
}

#[test]
fn what_is_not_a_queue_is_reported_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "hello").unwrap();
    for path in [dir.path().join("missing"), dir.path().to_path_buf(), file] {
        let error = Queue::open(&path).unwrap_err();
        assert!(matches!(error, Error::NotAQueue { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    let newer = dir.path().join("newer");
    new_queue(&newer);
    for copy in [0, 128] {
        let control = newer.join("control.meta");
        let mut bytes = std::fs::read(&control).unwrap();
        bytes[copy + 8] = 2;
        let crc = crc32fast::hash(&bytes[copy..copy + 124]);
        bytes[copy + 124..copy + 128].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&control, bytes).unwrap();
    }
    let error = Queue::open(&newer).unwrap_err();
    assert!(matches!(error, Error::UnsupportedVersion { found: 2, supported: 1, .. }), "{error}");
}

#[test]
fn what_is_not_a_regular_file_is_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    new_queue(&path);
    let lock = path.join("writer.lock");
    std::fs::remove_file(&lock).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&lock).status().unwrap();
    assert!(made.success());
    let assert_refused = |what: &str| {
        let error = Queue::open(&path).unwrap().writer().unwrap_err();
        assert!(matches!(&error, Error::Refused { path, .. } if *path == lock), "{what}: {error}");
        assert!(error.to_string().contains("move it away"), "{what}: {error}");
    };
    assert_refused("a FIFO");
    std::fs::remove_file(&lock).unwrap();
    let target = dir.path().join("precious");
    std::fs::write(&target, "keep me").unwrap();
    std::os::unix::fs::symlink(&target, &lock).unwrap();
    assert_refused("a symbolic link");
    std::fs::remove_file(&lock).unwrap();
    std::fs::hard_link(&target, &lock).unwrap();
    assert_refused("a hard link");
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "keep me");
}

#[test]
fn messages_lost_in_a_power_cut_are_a_gap_and_their_numbers_are_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    let (queue, last) = new_queue(&path);
    let mut reader = queue.reader("alice").unwrap();
    while reader.next().unwrap().is_some() {}
    reader.commit();
    drop(reader);
    // The last pages never made it to the disk; the cursor did.
    let head = queue.bounds().unwrap().head;
    let file = std::fs::OpenOptions::new().write(true).open(path.join("000000002.q")).unwrap();
    let mut scanner = queue.scan().unwrap();
    scanner.seek_seq(last - 9).unwrap();
    let from = scanner.position().offset;
    file.write_all_at(&vec![0; (head.offset - from) as usize], u64::from(from)).unwrap();
    restart_machine(&path);
    let mut writer = queue.writer().unwrap();
    assert_eq!(writer.append(1, &payload(last + 1)).unwrap(), last + 1);
    let mut scanner = queue.scan().unwrap();
    let mut gaps = Vec::new();
    while let Some(entry) = scanner.next().unwrap() {
        if let Entry::Gap(gap) = entry {
            gaps.push((gap.from, gap.to, gap.reason));
        }
    }
    assert_eq!(gaps, [(last - 9, last, GapReason::Lost)]);
    let mut reader = queue.reader("alice").unwrap();
    assert_eq!(reader.next().unwrap().unwrap().message().unwrap().seq, last + 1);
}
