//! Golden tests: the bytes that `src/queue/format.md` states, repeated by hand. If one of these fails, the
//! format has changed: that needs a new version number.
#![allow(clippy::unwrap_used, clippy::panic)]

use chronfs::queue::{Entry, Gap, GapReason, Queue, Settings};

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn crc_of_block(bytes: &[u8], at: usize, len: usize) -> bool {
    crc32fast::hash(&bytes[at..at + len - 4]) == u32_at(bytes, at + len - 4)
}

/// The checksum as the page defines it, computed by other means than the engine's.
fn record_checksum(segment: &[u8], at: usize) -> u32 {
    let len = u32_at(segment, at) as usize - 1;
    let mut covered = Vec::new();
    covered.extend(u32::try_from(at).unwrap().to_le_bytes());
    covered.extend((u32_at(segment, 28) ^ u32_at(segment, at + 28)).to_le_bytes());
    covered.extend(&segment[at..at + 16]);
    covered.extend(&segment[at + 32..at + 32 + len.next_multiple_of(8)]);
    covered.extend(&segment[at + 16..at + 24]);
    crc32c::crc32c(&covered)
}

fn files() -> (Vec<u8>, Vec<u8>, Vec<u8>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { segment_size: 1 << 16, retain_bytes: Some(5), ..Settings::default() };
    let queue = Queue::create(dir.path(), &settings).unwrap();
    let mut writer = queue.writer().unwrap();
    writer.append_at(1_723_108_500_123_456_789, 7, b"hello").unwrap();
    writer.append_at(1_723_108_500_123_456_790, 8, &[9; 16]).unwrap();
    let mut reader = queue.reader("alice").unwrap();
    reader.next().unwrap();
    reader.commit();
    drop(reader);
    // Fills the first segment: the next message goes into the second one.
    writer.append_at(1_723_108_500_123_456_791, 9, &vec![1; 40_000]).unwrap();
    writer.append_at(1_723_108_500_123_456_792, 9, &vec![2; 40_000]).unwrap();
    drop(writer);
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    (read("000000000.q"), read("control.meta"), read("readers/alice.meta"), dir)
}

#[test]
fn segments_are_as_the_page_says() {
    let (segment, control, _, dir) = files();
    assert_eq!(segment.len(), 1 << 16);
    assert_eq!(&segment[..8], b"CHRONSEG");
    assert_eq!(u16_at(&segment, 8), 1);
    assert_eq!(segment[10], 1);
    assert_eq!(u32_at(&segment, 12), 1 << 16);
    assert_eq!(u64_at(&segment, 16), u64_at(&control, 16), "queue id");
    assert_eq!(u32_at(&segment, 24), 0, "segment number");
    assert_eq!(u32_at(&segment, 40), 8, "alignment of payloads");
    assert!(crc_of_block(&segment, 0, 64));
    assert_eq!(segment[..64], segment[(1 << 16) - 64..], "identity at both ends");
    // Start block, seal block, settings.
    assert_eq!((u64_at(&segment, 64), u64_at(&segment, 72)), (1, 0));
    assert!(crc_of_block(&segment, 64, 64));
    assert_eq!((u64_at(&segment, 128), u64_at(&segment, 136)), (4, 1_723_108_500_123_456_791));
    let seal = u32_at(&segment, 144) as usize;
    assert!(crc_of_block(&segment, 128, 64));
    assert_eq!(segment[192..320], control[..128]);
    // Second segment.
    let second = std::fs::read(dir.path().join("000000001.q")).unwrap();
    assert_eq!((u64_at(&second, 64), u64_at(&second, 72)), (4, 1_723_108_500_123_456_791));
    assert_ne!(u32_at(&second, 28), u32_at(&segment, 28), "salts are random");

    let records = [(4096, 5, 7, 1), (4136, 16, 8, 2), (4184, 40_000, 9, 3), (44_216, 0, 65_535, 4)];
    assert_eq!(seal, 44_216);
    for (at, len, msg_type, seq) in records {
        assert_eq!(u32_at(&segment, at), len + 1);
        assert_eq!(u16_at(&segment, at + 4), msg_type);
        assert_eq!(u16_at(&segment, at + 6), u16::from(at == seal));
        assert_eq!(u64_at(&segment, at + 8), seq);
        assert_eq!(u64_at(&segment, at + 16), 1_723_108_500_123_456_788 + seq.min(3));
        assert_eq!(u32_at(&segment, at + 28), 0);
        assert_eq!(u32_at(&segment, at + 24), record_checksum(&segment, at));
    }
    assert_eq!(&segment[4128..4136], b"hello\0\0\0");
}

#[test]
fn the_control_block_is_as_the_page_says() {
    let (_, control, _, _dir) = files();
    assert_eq!(control.len(), 4096);
    assert_eq!(&control[..8], b"CHRONCTL");
    assert_eq!(u16_at(&control, 8), 1);
    assert_eq!(control[10], 1);
    assert_eq!(u32_at(&control, 12), 1 << 16);
    assert_eq!(u64_at(&control, 32), u64::MAX, "no limit");
    assert_eq!(u64_at(&control, 40), 5, "retained bytes");
    assert_eq!(u32_at(&control, 72), u32::MAX, "no limit");
    assert!(crc_of_block(&control, 0, 128));
    assert_eq!(control[..128], control[128..256]);
    let newest = [256, 320].into_iter().max_by_key(|&at| u64_at(&control, at)).unwrap();
    assert!(crc_of_block(&control, newest, 64));
    assert_eq!(u64_at(&control, newest) % 2 == 1, newest == 320, "even generations stand in slot 0");
    assert_eq!((u64_at(&control, newest + 8), u64_at(&control, newest + 16)), (5, 1_723_108_500_123_456_792));
    assert_eq!((u32_at(&control, newest + 24), u32_at(&control, newest + 28)), (1, 4096 + 40_032));
    assert_eq!(u64_at(&control, 384), 1, "epoch");
    assert_eq!(u32_at(&control, 400), 0, "the writer has closed the queue");
    assert_eq!(u32_at(&control, 512), 1, "woken once, by the writer's start");
    assert_eq!(u32_at(&control, 640), 0, "no reader sleeps");
}

#[test]
fn cursors_are_as_the_page_says() {
    let (_, control, cursor, _dir) = files();
    assert_eq!(cursor.len(), 4096);
    assert_eq!(&cursor[..8], b"CHRONCUR");
    assert_eq!(u16_at(&cursor, 8), 1);
    assert_eq!(u64_at(&cursor, 16), u64_at(&control, 16), "queue id");
    assert!(crc_of_block(&cursor, 0, 64));
    for (at, generation, seq, offset) in [(64, 0, 1, 4096), (128, 1, 2, 4136)] {
        assert_eq!((u64_at(&cursor, at), u64_at(&cursor, at + 8)), (generation, seq));
        assert_eq!((u32_at(&cursor, at + 16), u32_at(&cursor, at + 20)), (0, offset));
        let covered = [&cursor[at..at + 24], &control[16..24]].concat();
        assert_eq!(u32_at(&cursor, at + 28), crc32c::crc32c(&covered));
    }
    assert_eq!(u32_at(&cursor, 216), 0, "the reader has closed it");
}

#[test]
fn an_unknown_kind_of_checksum_is_not_taken_for_another() {
    let with_kind_2 = |bytes: &mut [u8], at: usize, len: usize| {
        bytes[at + 10] = 2;
        let crc = crc32fast::hash(&bytes[at..at + len - 4]);
        bytes[at + len - 4..at + len].copy_from_slice(&crc.to_le_bytes());
    };
    let (mut segment, mut control, _, dir) = files();
    let queue = Queue::open(dir.path()).unwrap();
    with_kind_2(&mut segment, 0, 64);
    with_kind_2(&mut segment, (1 << 16) - 64, 64);
    std::fs::write(dir.path().join("000000000.q"), segment).unwrap();
    let mut scanner = queue.scan().unwrap();
    let entry = scanner.next().unwrap().unwrap();
    assert!(matches!(entry, Entry::Gap(Gap { from: 1, to: 3, reason: GapReason::Segment, .. })), "{entry:?}");
    with_kind_2(&mut control, 0, 128);
    with_kind_2(&mut control, 128, 128);
    std::fs::write(dir.path().join("control.meta"), control).unwrap();
    // Where there are segments, their copies of the settings take the place of the control block's.
    for entry in std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.extension().is_some_and(|extension| extension == "q") {
            std::fs::remove_file(entry).unwrap();
        }
    }
    let error = Queue::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("checksum kind 2 is unknown"), "{error}");
}
