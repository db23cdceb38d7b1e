//! A queue costs what it holds: segments begin small, grow with the queue, and fit large messages. Payloads are aligned as
//! the settings say.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use chronfs::queue::{Entry, Error, GapReason, Queue, QueueWriter, Settings, layout};

mod common;

use common::until;
use common::{new_queue, payload, scratch, writer};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The sizes of the segment files, in order.
fn sizes(queue: &Queue) -> Vec<u64> {
    let mut files: Vec<_> = std::fs::read_dir(queue.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(".q"))
        .map(|entry| (entry.file_name(), entry.metadata().unwrap().len()))
        .collect();
    files.sort();
    files.into_iter().map(|(_, len)| len).collect()
}

/// The sizes of those that hold messages.
fn used_sizes(queue: &Queue) -> Vec<u64> {
    let segments = queue.inspect().unwrap().segments;
    segments.iter().filter(|segment| segment.first_seq > 0).map(|segment| segment.bytes).collect()
}

/// What `du` says of a directory, in bytes.
fn disk_use(path: &Path) -> u64 {
    let below = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let below: u64 = below
        .map(|entry| match entry.file_type().unwrap().is_dir() {
            true => disk_use(&entry.path()),
            false => entry.metadata().unwrap().blocks() * 512,
        })
        .sum();
    below + std::fs::metadata(path).unwrap().blocks() * 512
}

/// Appends until this many segments hold messages.
fn fill(writer: &mut QueueWriter, queue: &Queue, segments: usize, payload: impl Fn(u64) -> Vec<u8>) {
    while used_sizes(queue).len() < segments {
        for _ in 0..20 {
            common::append(writer, 1, &payload);
        }
    }
}

/// All messages are there, by a scanner and a reader.
fn check(queue: &Queue, payload: impl Fn(u64) -> Vec<u8>) {
    let bounds = queue.bounds().unwrap();
    let mut scanner = queue.scan().unwrap();
    let mut reader = queue.reader("checker").unwrap();
    for seq in bounds.first_seq..bounds.next_seq {
        let message = scanner.next().unwrap().and_then(Entry::message).unwrap();
        assert!(message.seq == seq && message.payload == payload(seq), "message {seq}");
        let message = reader.next().unwrap().and_then(Entry::message).unwrap();
        assert!(message.seq == seq && message.payload == payload(seq), "message {seq}");
    }
    assert_eq!((scanner.next().unwrap(), reader.next().unwrap()), (None, None));
    drop(reader);
    queue.remove_reader("checker").unwrap();
}

/// With `CHRONFS_SOAK=1` ten thousand of them.
#[test]
fn queues_of_one_message_take_at_most_128_kib_each() {
    let count = if std::env::var_os("CHRONFS_SOAK").is_some() { 10_000 } else { 100 };
    let dir = tempfile::tempdir().unwrap();
    let path = |index: usize| dir.path().join(format!("q{index}"));
    let mut writers = Vec::new();
    for index in 0..count {
        let mut writer = Queue::create(path(index), &Settings::default()).unwrap().writer().unwrap();
        // Up to what just fits into the first segment.
        writer.append(1, &vec![1; index % 100 * 600]).unwrap();
        if index < 10 {
            writers.push(writer);
        }
    }
    let all = disk_use(dir.path());
    eprintln!("{count} queues of one message: {} KiB", all / KIB);
    assert!(all <= count as u64 * 128 * KIB, "{} KiB", all / KIB);
    for index in 0..100 {
        let queue = Queue::open(path(index)).unwrap();
        let mut reader = queue.reader("alice").unwrap();
        reader.next().unwrap().unwrap();
        // What is mapped is what there is.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let is_its =
            |line: &&str| line.contains(&format!("/q{index}/")) && line.ends_with(".q") && line.contains(" r--s ");
        let mapped: u64 = maps.lines().filter(is_its).map(mapped_len).sum();
        assert!((1..=128 * KIB).contains(&mapped), "{mapped} bytes mapped");
        drop(reader);
        assert!(disk_use(queue.path()) <= 128 * KIB, "queue {index}: {} KiB", disk_use(queue.path()) / KIB);
    }
}

/// The bytes of a line of `/proc/PID/maps`.
fn mapped_len(line: &str) -> u64 {
    let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
    u64::from_str_radix(to, 16).unwrap() - u64::from_str_radix(from, 16).unwrap()
}

#[test]
fn segments_grow_until_they_have_the_configured_size() {
    for segment_size in [MIB, MIB - 4096] {
        let settings = Settings { segment_size: u32::try_from(segment_size).unwrap(), ..Settings::default() };
        let (_dir, queue) = new_queue(&settings);
        let mut writer = writer(&queue);
        let payload = |seq| payload(seq, 3000);
        fill(&mut writer, &queue, 7, payload);
        let sizes = used_sizes(&queue);
        // Twice as large, or four times if the writer is quick enough.
        let grows = |&from: &u64, &to: &u64| [2, 4].map(|times| (from * times).min(segment_size)).contains(&to);
        assert!(sizes[0] == 64 * KIB && sizes[6] == segment_size && sizes.is_sorted_by(grows), "{sizes:?}");
        check(&queue, payload);
        // Each place in any of them is found.
        let next_seq = writer.next_seq();
        for seq in (1..next_seq).step_by(97) {
            let mut scanner = queue.scan().unwrap();
            scanner.seek_seq(seq).unwrap();
            assert_eq!(scanner.next().unwrap().and_then(Entry::message).map(|message| message.seq), Some(seq));
        }
        drop(writer);
        fill(&mut common::writer(&queue), &queue, 8, payload);
        check(&queue, payload);
    }
}

#[test]
fn a_large_message_gets_a_segment_that_fits() {
    let (_dir, queue) = new_queue(&Settings::default());
    let mut writer = writer(&queue);
    let max = writer.max_payload_len();
    let large = |seq| {
        vec![
            u8::try_from(seq % 251).unwrap();
            match seq {
                2 => 100_000,
                4 => 5_000_000,
                6 => max,
                _ => 100,
            }
        ]
    };
    common::append(&mut writer, 7, large);
    assert_eq!(used_sizes(&queue), [64 * KIB, 128 * KIB, 8 * MIB, 64 * MIB, 64 * MIB]);
    assert!(matches!(writer.append(1, &vec![0; max + 1]), Err(Error::TooLarge { .. })));
    check(&queue, large);
    let rest: Vec<_> = (1..8).map(|seq| large(seq).len() as u64).collect();
    let inspection = queue.inspect().unwrap();
    assert!(inspection.bytes > rest.iter().sum() && inspection.bytes < rest.iter().sum::<u64>() + 1000);
    // The next one is not made for what is never going to come.
    drop(writer);
    common::append(&mut common::writer(&queue), 1, large);
    check(&queue, large);
}

/// A queue whose writer has prepared a segment of 64 KiB, and ended; its segments may have 1 MiB from now on.
fn with_prepared(path: &Path) -> Queue {
    let queue = Queue::create(path, &common::SMALL).unwrap();
    let mut writer = queue.writer().unwrap();
    fill(&mut writer, &queue, 2, |seq| payload(seq, 900));
    until("the next segment is there", || sizes(&queue).len() == 3);
    drop(writer);
    queue.update(|settings| settings.segment_size = 1 << 20).unwrap();
    Queue::open(path).unwrap()
}

#[test]
fn a_prepared_segment_that_is_too_small_is_replaced() {
    let dir = scratch();
    for kill in [false, true] {
        let queue = with_prepared(&dir.path().join(format!("q{kill}")));
        let mut writer = writer(&queue);
        let first_large = writer.next_seq();
        let payload = |seq| if seq == first_large { vec![7; 500_000] } else { payload(seq, 900) };
        common::append(&mut writer, 3, payload);
        assert_eq!(used_sizes(&queue), [64 * KIB, 64 * KIB, 512 * KIB]);
        check(&queue, payload);
        drop(writer);
        common::append(&mut common::writer(&queue), 3, payload);
        check(&queue, payload);
        let ids: Vec<_> = queue.inspect().unwrap().segments.iter().map(|segment| segment.id.0).collect();
        assert_eq!(ids[..3], [0, 1, 2]);
    }
}

#[test]
fn readers_at_a_prepared_segment_see_the_one_that_replaces_it() {
    for (before, after) in [(8, 16), (8, 64), (64, 8), (16, 8)] {
        let (_dir, queue) = new_queue(&Settings { payload_align: before, ..common::SMALL });
        let (mut scanner, mut tailer) = (queue.scan().unwrap(), queue.tailer().unwrap());
        let mut reader = queue.reader("alice").unwrap();
        let mut read = || {
            let entries = [scanner.next().unwrap(), tailer.next().unwrap(), reader.next().unwrap()];
            entries.map(|entry| entry.map(common::owned))
        };
        assert_eq!(read(), [const { None }; 3]);
        queue.update(|settings| settings.payload_align = after).unwrap();
        let mut writer = writer(&queue);
        assert_eq!(read(), [const { None }; 3]);
        for seq in 1..=200 {
            common::append(&mut writer, 1, |seq| payload(seq, 900));
            assert_eq!(read(), [(); 3].map(|()| Some(Ok((seq, payload(seq, 900))))), "{before} to {after}");
        }
    }
}

#[test]
fn a_reader_finds_the_file_that_takes_the_place_of_the_one_it_reads() {
    let (_dir, queue) = new_queue(&common::SMALL);
    let mut first = writer(&queue);
    common::append(&mut first, 10, |seq| payload(seq, 900));
    let mut reader = queue.reader("alice").unwrap();
    assert_eq!(common::read_all(&mut reader).len(), 10);
    drop(first);
    // As a backup is restored.
    let path = queue.path().join("000000000.q");
    std::fs::copy(&path, path.with_extension("copy")).unwrap();
    std::fs::rename(path.with_extension("copy"), &path).unwrap();
    let mut writer = writer(&queue);
    common::append(&mut writer, 90, |seq| payload(seq, 900));
    drop(writer);
    let read: Vec<_> = common::read_all(&mut reader);
    let expected: Vec<common::Read> = (11..=100).map(|seq| Ok((seq, payload(seq, 900)))).collect();
    assert_eq!(read, expected);
}

#[test]
fn what_the_limit_leaves_is_used_to_the_end() {
    let (_dir, queue) = new_queue(&Settings { max_bytes: Some(5 * MIB), segment_size: 4 << 20, ..Settings::default() });
    let mut writer = writer(&queue);
    let payload = |seq| payload(seq, 3000);
    let error = loop {
        let seq = writer.next_seq();
        if let Err(error) = writer.append(1, &payload(seq)) {
            break error;
        }
    };
    assert!(matches!(error, Error::QueueFull { .. }), "{error}");
    let total: u64 = sizes(&queue).iter().sum();
    assert!(total <= 5 * MIB && queue.inspect().unwrap().bytes > 9 * MIB / 2, "{:?}", sizes(&queue));
    check(&queue, payload);
    // There is room for a small message where there is none for a large one.
    assert!(matches!(writer.append(1, &vec![0; 1 << 20]), Err(Error::QueueFull { .. })));
}

#[test]
fn retention_by_bytes_counts_what_the_files_have() {
    let (_dir, queue) = new_queue(&Settings { segment_size: 1 << 20, ..Settings::default() });
    let mut writer = writer(&queue);
    fill(&mut writer, &queue, 5, |seq| payload(seq, 900));
    drop(writer);
    // Of which the last is not sealed.
    let sizes = used_sizes(&queue);
    let sealed = |count: usize| sizes[4 - count..4].iter().sum::<u64>();
    for (most, left) in [(sealed(4) + MIB, 5), (sealed(2), 3), (sealed(2) - KIB, 2), (sealed(1) - KIB, 1)] {
        queue.update(|settings| settings.retain_bytes = Some(most)).unwrap();
        let queue = Queue::open(queue.path()).unwrap();
        queue.apply_retention().unwrap();
        assert_eq!(used_sizes(&queue).len(), left, "{most}");
    }
    check(&queue, |seq| payload(seq, 900));
}

#[test]
fn files_of_the_configured_size_are_reused() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let settings = Settings { segment_size: 256 << 10, retain_segments: Some(1), ..Settings::default() };
    let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
    let mut writer = writer(&queue);
    until("a file is used again", || {
        fill(&mut writer, &queue, 1, |seq| payload(seq, 3000));
        common::append(&mut writer, 100, |seq| payload(seq, 3000));
        let head = queue.bounds().unwrap().head.segment;
        let Ok(file) = File::open(queue.path().join(format!("{:09}.q", head.0))) else { return false };
        let mut is_reused = [0];
        file.read_exact_at(&mut is_reused, 11).unwrap();
        assert!(is_reused == [0] || file.metadata().unwrap().len() == 256 * KIB);
        is_reused == [1]
    });
    drop(writer);
    check(&queue, |seq| payload(seq, 3000));
}

#[test]
fn payloads_are_aligned_as_the_settings_say() {
    for align in layout::PAYLOAD_ALIGNS {
        let (_dir, queue) =
            new_queue(&Settings { payload_align: align, segment_size: 256 << 10, ..Settings::default() });
        let payload = |seq: u64| vec![u8::try_from(seq % 251).unwrap(); usize::try_from(seq * 7919 % 700).unwrap()];
        for _ in 0..4 {
            let mut writer = writer(&queue);
            common::append(&mut writer, 400, payload);
            let seq = writer.next_seq();
            let mut record = writer.reserve(1, 700).unwrap();
            assert_eq!(record.as_ptr().addr() % align as usize, 0);
            record.fill(u8::try_from(seq % 251).unwrap());
            record.commit_len(payload(seq).len()).unwrap();
            let max = writer.max_payload_len();
            assert!(matches!(writer.append(1, &vec![0; max + 1]), Err(Error::TooLarge { .. })));
        }
        check(&queue, payload);
        let mut reader = queue.reader("alice").unwrap();
        let mut count = 0;
        while let Some(entry) = reader.next().unwrap() {
            let message = entry.message().unwrap();
            assert_eq!(message.payload.as_ptr().addr() % align as usize, 0);
            assert_eq!((message.position.offset + layout::HEADER_LEN) % align, 0);
            count +=
                1 + reader.available().inspect(|it| assert_eq!(it.payload.as_ptr().addr() % align as usize, 0)).count();
        }
        assert_eq!(count, 4 * 401);
        assert!(used_sizes(&queue).len() > 2);
        drop(reader);
        let largest = vec![1; writer(&queue).max_payload_len()];
        writer(&queue).append(1, &largest).unwrap();
        let mut scanner = queue.scan().unwrap();
        scanner.seek_seq(4 * 401 + 1).unwrap();
        assert!(scanner.next().unwrap().and_then(Entry::message).is_some_and(|message| message.payload == largest));
    }
}

#[test]
fn the_alignment_can_change_from_segment_to_segment() {
    let (_dir, queue) = new_queue(&common::SMALL);
    let payload = |seq| payload(seq, 900);
    let mut aligns = Vec::new();
    for align in [64, 8, 16, 64] {
        queue.update(|settings| settings.payload_align = align).unwrap();
        let mut writer = writer(&queue);
        let segments = used_sizes(&queue).len();
        fill(&mut writer, &queue, segments + 2, payload);
    }
    for id in 0..used_sizes(&queue).len() {
        let mut align = [0; 4];
        File::open(queue.path().join(format!("{id:09}.q"))).unwrap().read_exact_at(&mut align, 40).unwrap();
        aligns.push(u32::from_le_bytes(align));
    }
    assert_eq!(aligns.iter().collect::<BTreeSet<_>>().len(), 3, "{aligns:?}");
    check(&queue, payload);
}

/// Writes 4 bytes into both copies of a segment's identity, and corrects their checksums.
fn forge(path: &Path, at: usize, value: u32) {
    let mut bytes = std::fs::read(path).unwrap();
    let end = bytes.len() - 64;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    bytes.copy_within(..64, end);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn sizes_and_alignments_that_are_lies_cost_the_segment_and_nothing_else() {
    const SIZE: usize = 12;
    const ALIGN: usize = 40;
    let sizes = [0, 1, 4096, 64, 65_535, 65_537, 69_632, 1 << 20, 1 << 30, (1 << 30) + 4096, 1 << 31, u32::MAX];
    let aligns = [0, 1, 7, 16, 24, 32, 64, 128, 1 << 31, u32::MAX];
    let cases = sizes.map(|size| (SIZE, size)).into_iter().chain(aligns.map(|align| (ALIGN, align)));
    for (at, value) in cases {
        let dir = scratch();
        let queue = Queue::create(dir.path().join("q"), &common::SMALL).unwrap();
        let mut first = writer(&queue);
        fill(&mut first, &queue, 3, |seq| payload(seq, 900));
        drop(first);
        let next_seq = queue.bounds().unwrap().next_seq;
        forge(&queue.path().join("000000001.q"), at, value);
        let mut seen = BTreeSet::new();
        let mut scanner = queue.scan().unwrap();
        let mut gaps = Vec::new();
        while let Some(entry) = scanner.next().unwrap() {
            match entry {
                Entry::Message(message) => {
                    assert!(message.payload == payload(message.seq, 900) && seen.insert(message.seq))
                }
                Entry::Gap(gap) => gaps.push(gap),
            }
        }
        let mut reader = queue.reader("alice").unwrap();
        while reader.next().unwrap().is_some() {}
        assert_eq!(reader.seq(), next_seq, "{value} at {at}");
        let missing: u64 = gaps.iter().map(|gap| gap.to - gap.from + 1).sum();
        assert_eq!(seen.len() as u64 + missing, next_seq - 1, "{value} at {at}: {gaps:?}");
        assert!(
            gaps.iter().all(|gap| matches!(gap.reason, GapReason::Segment | GapReason::Checksum | GapReason::Lost))
        );
        queue.inspect().unwrap();
        let mut again = writer(&queue);
        assert_eq!(again.append(1, b"next").unwrap(), next_seq);
    }
}
