//! Views and streams over a real queue: whatever range is read, in whatever order and by however many threads, is
//! what rendering one message after the other returns.
#![cfg(feature = "view")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use chronfs::Error;
use chronfs::queue::layout::{HEADER_LEN, SEGMENT_SUFFIX};
use chronfs::queue::{Entry, Gap, GapReason, Position, Queue, QueueWriter, Settings};
use chronfs::view::{Format, Stream, View, render, rendered_len};

mod common;

use common::Random;

fn append(writer: &mut QueueWriter, count: usize, chance: &mut Random) {
    for _ in 0..count {
        let msg_type = u16::try_from(chance.index(65_535)).unwrap();
        writer.append(msg_type, &chance.payload()).unwrap();
    }
}

fn write<T: AsRef<[u8]>>(writer: &mut QueueWriter, payloads: impl IntoIterator<Item = T>) {
    for payload in payloads {
        writer.append(1, payload.as_ref()).unwrap();
    }
}

fn create(dir: &tempfile::TempDir) -> Queue {
    let settings = Settings { segment_size: 64 << 10, ..Settings::default() };
    Queue::create(dir.path().join("queue"), &settings).unwrap()
}

/// Everything, one entry after the other.
fn reference(queue: &Queue, format: Format) -> Vec<u8> {
    let mut out = Vec::new();
    let mut scanner = queue.scan().unwrap();
    while let Some(entry) = scanner.next().unwrap() {
        let before = out.len();
        render(format, &entry, None, &mut out);
        assert_eq!(out.len() - before, rendered_len(format, &entry, None));
    }
    out
}

fn read(view: &View, offset: usize, len: usize) -> Vec<u8> {
    // What was in the buffer before must stay.
    let mut out = b"x".to_vec();
    let crossed = view.read_at(u64::try_from(offset).unwrap(), len, &mut out).unwrap();
    assert_eq!(crossed, None);
    assert_eq!(out.remove(0), b'x');
    out
}

fn size(view: &View) -> usize {
    usize::try_from(view.size().unwrap()).unwrap()
}

fn read_in_pieces(view: &View, piece: usize) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let part = read(view, all.len(), piece);
        if part.is_empty() {
            return all;
        }
        all.extend(part);
    }
}

/// Position of every message.
fn positions(queue: &Queue) -> Vec<Position> {
    let mut positions = Vec::new();
    let mut scanner = queue.scan().unwrap();
    while let Some(Entry::Message(message)) = scanner.next().unwrap() {
        positions.push(message.position);
    }
    positions
}

/// Flips a bit in the payload of the record at a position.
fn damage(queue: &Queue, position: Position) {
    let name = format!("{:09}{SEGMENT_SUFFIX}", position.segment.0);
    let file = std::fs::File::options().read(true).write(true).open(queue.path().join(name)).unwrap();
    let offset = u64::from(position.offset + HEADER_LEN);
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn any_range_while_the_queue_grows() {
    let dir = tempfile::tempdir().unwrap();
    let queue = create(&dir);
    let views = Format::ALL.map(|format| View::new(&queue, format).unwrap());
    let mut writer = queue.writer().unwrap();
    let mut chance = Random(0x5EED);
    for round in 0..30 {
        for view in &views {
            let expected = reference(&queue, view.format());
            // Every other round the index lags when the reads start.
            if round % 2 == 0 {
                assert_eq!(size(view), expected.len());
            }
            for _ in 0..30 {
                let offset = chance.index(expected.len() + 100);
                let largest = if chance.index(4) == 0 { 200_000 } else { 3_000 };
                let len = chance.index(largest);
                let from = offset.min(expected.len());
                let to = (offset + len).min(expected.len());
                assert_eq!(read(view, offset, len), expected[from..to], "{} from {offset}, {len}", view.format());
            }
            assert_eq!(size(view), expected.len());
            assert_eq!(view.modified_ns(), writer.last_timestamp_ns());
        }
        let count = chance.index(200);
        append(&mut writer, count, &mut chance);
    }
    assert!(queue.bounds().unwrap().head.segment.0 > 3, "several segments");
}

#[test]
fn sequential_reads_of_any_size() {
    let dir = tempfile::tempdir().unwrap();
    let queue = create(&dir);
    append(&mut queue.writer().unwrap(), 1500, &mut Random(7));
    for format in Format::ALL {
        let expected = reference(&queue, format);
        let view = View::new(&queue, format).unwrap();
        assert!(read_in_pieces(&view, 4096) == expected, "index growing with the reads");
        view.trim();
        for piece in [513, 128 << 10, usize::MAX] {
            assert!(read_in_pieces(&view, piece) == expected, "{format} by {piece}");
        }
        // More readers than a view keeps cursors for, in turns.
        let mut parts = vec![Vec::new(); 6];
        while parts.iter().any(|part| part.len() < expected.len()) {
            for (i, part) in parts.iter_mut().enumerate() {
                part.extend(read(&view, part.len(), 10_007 * (i + 1)));
            }
        }
        assert!(parts.iter().all(|part| *part == expected));
    }
}

#[test]
fn one_message_of_almost_a_segment() {
    let dir = tempfile::tempdir().unwrap();
    let queue = create(&dir);
    let mut writer = queue.writer().unwrap();
    let largest = vec![b'"'; writer.max_payload_len()];
    for payload in [b"a", &*largest, b"", &*largest, b"b"] {
        writer.append(1, payload).unwrap();
    }
    for format in Format::ALL {
        let view = View::new(&queue, format).unwrap();
        let expected = reference(&queue, format);
        for piece in [1000, 4096, 100_000] {
            assert!(read_in_pieces(&view, piece) == expected, "{format} by {piece}");
        }
    }
}

#[test]
fn a_long_message_is_rendered_once_whatever_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::create(dir.path().join("queue"), &Settings::default()).unwrap();
    let mut writer = queue.writer().unwrap();
    write(&mut writer, [&b"before"[..], &vec![1; 20 << 20], b"after"]);
    let expected = reference(&queue, Format::Txt);
    let view = View::new(&queue, Format::Txt).unwrap();
    assert_eq!(size(&view), expected.len());
    assert!(read(&view, 0, 1000) == expected[..1000]);
    // Whatever else is read.
    let other = View::new(&queue, Format::Hex).unwrap();
    read(&other, size(&other) / 2, 1000);
    damage(&queue, positions(&queue)[1]);
    for offset in (1000..expected.len()).step_by(1 << 20).rev() {
        assert!(read(&view, offset, 1 << 20) == expected[offset..expected.len().min(offset + (1 << 20))]);
    }
    view.unpin();
    assert!(view.read_at(5000, 10, &mut Vec::new()).is_err(), "from the queue again");
}

#[test]
fn views_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<View>();
}

#[test]
fn threads_read_while_one_appends() {
    fn shared<T: Send + Sync>() {}
    shared::<View>();
    let dir = tempfile::tempdir().unwrap();
    let queue = create(&dir);
    let mut writer = queue.writer().unwrap();
    append(&mut writer, 10, &mut Random(3));
    let view = View::new(&queue, Format::Jsonl).unwrap();
    let done = AtomicBool::new(false);
    let parts: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let readers: Vec<_> = [1_000, 4_096, 65_536]
            .into_iter()
            .map(|piece| {
                let (view, done) = (&view, &done);
                scope.spawn(move || {
                    let mut all = Vec::new();
                    loop {
                        let finished = done.load(Ordering::SeqCst);
                        let known = size(view);
                        let part = read(view, all.len(), piece);
                        assert!(all.len() + part.len() >= known.min(all.len() + piece));
                        all.extend(part);
                        assert!(all.len() < size(view) || all.last() == Some(&b'\n'), "no half line at the end");
                        if finished && all.len() == size(view) {
                            return all;
                        }
                    }
                })
            })
            .collect();
        let mut chance = Random(11);
        for _ in 0..150 {
            append(&mut writer, 10, &mut chance);
        }
        done.store(true, Ordering::SeqCst);
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    let expected = reference(&queue, Format::Jsonl);
    assert!(parts.iter().all(|part| *part == expected));
}

#[test]
fn the_index_grows_by_budget() {
    let dir = tempfile::tempdir().unwrap();
    let queue = create(&dir);
    let mut writer = queue.writer().unwrap();
    let view = View::new(&queue, Format::Txt).unwrap();
    assert!(!view.index_some(10).unwrap());
    assert_eq!((view.known_size(), view.modified_ns()), (0, 0));
    write(&mut writer, std::iter::repeat_n("abc", 25));
    for known in [40, 80] {
        assert!(view.index_some(10).unwrap());
        assert_eq!(view.known_size(), known);
    }
    assert!(!view.index_some(10).unwrap());
    assert_eq!(view.known_size(), 100);
    assert_eq!(view.modified_ns(), writer.last_timestamp_ns());
    view.trim();
    writer.append(1, b"d").unwrap();
    assert_eq!(read(&view, 96, 100), b"abc\nd\n");
}

#[test]
fn a_view_starts_and_ends_where_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let queue = create(&dir);
    let mut writer = queue.writer().unwrap();
    write(&mut writer, (1..=5000).map(|i| format!("message {i}")));
    let bounds = queue.bounds().unwrap();
    let all = View::new(&queue, Format::Txt).unwrap();
    assert!(read(&all, 0, 100).starts_with(b"message 1\n"));

    let mut scanner = queue.scan().unwrap();
    scanner.seek_seq(4000).unwrap();
    let view = View::since(&queue, Format::Txt, scanner.position(), scanner.seq()).until(bounds.next_seq);
    assert!(read(&view, 0, 100).starts_with(b"message 4000\n"));
    write(&mut writer, (5001..=5003).map(|i| format!("message {i}")));
    let expected: Vec<u8> = (4000..=5000).flat_map(|i| format!("message {i}\n").into_bytes()).collect();
    assert_eq!(size(&view), expected.len());
    assert!(read_in_pieces(&view, 777) == expected);
    assert!(!view.index_some(1).unwrap());
}

#[test]
fn streams_return_whole_units() {
    let dir = tempfile::tempdir().unwrap();
    let queue = create(&dir);
    let mut writer = queue.writer().unwrap();
    for format in [Format::Jsonl, Format::Txt, Format::Hex] {
        let mut scanner = queue.scan().unwrap();
        scanner.seek_end().unwrap();
        let start = reference(&queue, format).len();
        let mut stream = Stream::new(scanner, format);
        assert!(!stream.ready().unwrap());
        let mut out = b"x".to_vec();
        assert_eq!(stream.read(1000, &mut out).unwrap(), None);
        assert_eq!(out, b"x");

        append(&mut writer, 300, &mut Random(99));
        assert!(stream.ready().unwrap());
        let expected = reference(&queue, format)[start..].to_vec();
        let mut all = Vec::new();
        while stream.ready().unwrap() {
            let before = all.len();
            assert_eq!(stream.read(5000, &mut all).unwrap(), None);
            let part = &all[before..];
            assert!(!part.is_empty() && part.len() <= 5000);
            if format != Format::Hex {
                let starts = before == 0 || all[before - 1] == b'\n';
                let ends = part.last() == Some(&b'\n');
                assert!(
                    ends || starts && part.len() == 5000 || !starts && part.len() == 5000 && !part.contains(&b'\n')
                );
            }
        }
        assert!(all == expected, "{format}");
    }
}

#[test]
fn a_stream_fills_the_buffer_with_all_that_fits() {
    let dir = tempfile::tempdir().unwrap();
    let queue = create(&dir);
    let mut writer = queue.writer().unwrap();
    write(&mut writer, ["one", "two", "", "three", "0123456789abcdef", "x"]);
    let mut stream = Stream::new(queue.scan().unwrap(), Format::Txt);
    let mut reads = Vec::new();
    while stream.ready().unwrap() {
        let mut out = Vec::new();
        stream.read(9, &mut out).unwrap();
        reads.push(String::from_utf8(out).unwrap());
    }
    assert_eq!(reads, ["one\ntwo\n\n", "three\n", "012345678", "9abcdef\n", "x\n"]);
}

/// A queue of `count` messages "message 1" and so on, of which some are damaged.
fn damaged(dir: &tempfile::TempDir, count: usize, seqs: &[usize]) -> Queue {
    let queue = create(dir);
    write(&mut queue.writer().unwrap(), (1..=count).map(|i| format!("message {i}")));
    let positions = positions(&queue);
    seqs.iter().for_each(|seq| damage(&queue, positions[seq - 1]));
    queue
}

fn is_checksum_gap(gap: &Gap, seq: u64) -> bool {
    (gap.from, gap.to, gap.reason) == (seq, seq, GapReason::Checksum)
}

#[test]
fn a_damaged_record_is_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let queue = damaged(&dir, 4000, &[17, 2500]);
    for format in [Format::Jsonl, Format::Txt, Format::Hex] {
        let view = View::new(&queue, format).unwrap();
        let expected = reference(&queue, format);
        assert_eq!(size(&view), expected.len());
        for piece in [100, 10_000] {
            assert!(read_in_pieces(&view, piece) == expected, "{format} by {piece}");
        }
        let text = String::from_utf8(expected).unwrap();
        let gaps: Vec<_> = text.lines().filter(|line| line.contains("gap")).collect();
        assert_eq!(gaps.len(), 2, "{gaps:?}");
        let start = if format == Format::Jsonl { "{\"gap\":{\"from\":17,\"to\":17," } else { "# gap from=17 to=17 " };
        assert!(gaps[0].starts_with(start), "{}", gaps[0]);
    }
}

#[test]
fn bin_reports_the_gap_that_a_read_crosses() {
    let dir = tempfile::tempdir().unwrap();
    let queue = damaged(&dir, 20, &[3]);
    let view = View::new(&queue, Format::Bin).unwrap();
    let at = "message 1message 2".len();
    let crossed = |offset: usize, len: usize| {
        let mut out = Vec::new();
        let crossed = view.read_at(u64::try_from(offset).unwrap(), len, &mut out).unwrap();
        (String::from_utf8(out).unwrap(), crossed.map(|crossed| (crossed.offset, crossed.gap.from)))
    };
    let gap = Some((u64::try_from(at).unwrap(), 3));
    for _ in 0..2 {
        assert_eq!(crossed(0, at), ("message 1message 2".into(), None));
        assert_eq!(crossed(at, 4), ("mess".into(), gap));
        assert_eq!(crossed(at + 4, 5), ("age 4".into(), None));
        assert_eq!(crossed(at - 1, 2), ("2m".into(), gap));
        assert_eq!(crossed(9, 18), ("message 2message 4".into(), gap));
        assert_eq!(crossed(at + 9, 9), ("message 5".into(), None));
    }

    let mut stream = Stream::new(queue.scan().unwrap(), Format::Bin);
    let mut out = Vec::new();
    assert_eq!(stream.read(1000, &mut out).unwrap(), None);
    assert_eq!(out, b"message 1message 2");
    assert!(stream.ready().unwrap());
    assert!(is_checksum_gap(&stream.read(1000, &mut out).unwrap().unwrap(), 3));
    assert_eq!(out.len(), at, "nothing with the gap");
    assert_eq!(stream.read(18, &mut out).unwrap(), None);
    assert!(out.ends_with(b"message 2message 4message 5"));
}

#[test]
fn bytes_never_shift_when_a_record_is_damaged_later() {
    let dir = tempfile::tempdir().unwrap();
    let queue = damaged(&dir, 20_000, &[]);
    let positions = positions(&queue);
    for format in Format::ALL {
        let expected = reference(&queue, format);
        let view = View::new(&queue, format).unwrap();
        assert_eq!(size(&view), expected.len());
        damage(&queue, positions[9_999]);
        view.trim();
        let mut failed = 0;
        for offset in (0..expected.len()).step_by(50_000) {
            let mut out = Vec::new();
            match view.read_at(u64::try_from(offset).unwrap(), 50_000, &mut out) {
                Ok(_) => assert!(out == expected[offset..expected.len().min(offset + 50_000)]),
                Err(Error::Damaged { .. }) => failed += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!((1..=3).contains(&failed), "{format}: {failed}");
        // Undo the damage for the next format.
        damage(&queue, positions[9_999]);
    }
}

#[test]
fn retired_messages_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let queue = damaged(&dir, 5000, &[]);
    let view = View::new(&queue, Format::Txt).unwrap();
    let expected = reference(&queue, Format::Txt);
    assert_eq!(size(&view), expected.len());
    let late = View::new(&queue, Format::Txt).unwrap();
    view.trim();
    std::fs::remove_file(queue.path().join(format!("{:09}{SEGMENT_SUFFIX}", 0))).unwrap();

    assert_eq!(size(&view), expected.len(), "the size stays");
    assert!(matches!(view.read_at(0, 100, &mut Vec::new()), Err(Error::NoSuchPosition { .. })));
    let mut end = b"kept".to_vec();
    view.read_at(view.known_size() - 13, 100, &mut end).unwrap();
    assert_eq!(end, b"keptmessage 5000\n");
    let rest = read(&View::new(&queue, Format::Txt).unwrap(), 0, expected.len());
    let count = rest.split_inclusive(|byte| *byte == b'\n').count();
    let gap = format!("# gap from=1 to={} reason=retired segment=0 offset=4096\n", 5000 - count);
    let grown = size(&late);
    assert!(read(&late, 0, grown) == [gap.as_bytes(), &rest].concat(), "a file that never saw them says so");
    assert!(!read(&View::new(&queue, Format::Txt).unwrap(), 0, 100).starts_with(b"message 1\n"));
}

/// Of an empty queue that keeps little, in each format.
fn pinned_views(dir: &tempfile::TempDir) -> (Queue, QueueWriter, [View; Format::ALL.len()]) {
    let settings = Settings { segment_size: 64 << 10, retain_bytes: Some(2 << 16), ..Settings::default() };
    let queue = Queue::create(dir.path().join("queue"), &settings).unwrap();
    let writer = queue.writer().unwrap();
    let views = Format::ALL.map(|format| View::new(&queue, format).unwrap());
    views.iter().for_each(View::pin);
    (queue, writer, views)
}

fn append_and_retain(queue: &Queue, writer: &mut QueueWriter, count: u64) {
    write(writer, (0..count).map(|n| format!("{n:0>50}")));
    queue.apply_retention().unwrap();
}

#[test]
fn what_retention_removes_unseen_is_a_gap_and_the_view_grows_on() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, mut writer, views) = pinned_views(&dir);
    let mut expected = Format::ALL.map(|_| Vec::new());
    let mut seen = 0;
    for count in [10_000, 1, 10_000, 3] {
        append_and_retain(&queue, &mut writer, count);
        for (view, expected) in views.iter().zip(&mut expected) {
            let from = u64::try_from(expected.len()).unwrap();
            let crossed = view.read_at(from, size(view), expected).unwrap();
            let is_seen = crossed.is_none_or(|crossed| crossed.gap.reason == GapReason::Retired);
            assert!(is_seen && (view.format() == Format::Bin && count > 3) == crossed.is_some());
        }
        let lines = String::from_utf8(expected[0].clone()).unwrap();
        let next = lines.lines().fold(1, |next, line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let number = |value: &serde_json::Value| value.as_u64().unwrap();
            let gap = &line["gap"];
            let (first, last) = if gap.is_null() { (&line["seq"], &line["seq"]) } else { (&gap["from"], &gap["to"]) };
            assert_eq!(number(first), next, "each once and in order");
            number(last) + 1
        });
        seen += count;
        assert_eq!(next, seen + 1);
        assert!(lines.contains("\"retired\""));
    }
    // What is still there is the same wherever a read starts.
    for (view, expected) in views.iter().zip(&expected) {
        view.trim();
        let tail = expected.len() - 5000;
        for offset in (tail..expected.len()).step_by(777) {
            assert!(read(view, offset, 5000) == expected[offset..]);
        }
    }
}

#[test]
fn what_follows_a_gap_at_the_start_is_held_too() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, mut writer, views) = pinned_views(&dir);
    append_and_retain(&queue, &mut writer, 10_000);
    let read = |view: &View, len| {
        let mut bytes = Vec::new();
        view.read_at(0, len, &mut bytes).unwrap_or_else(|error| panic!("{:?}: {error}", view.format()));
        bytes
    };
    let seen = views.each_ref().map(|view| read(view, size(view)));
    append_and_retain(&queue, &mut writer, 10_000);
    for (view, seen) in views.iter().zip(&seen) {
        assert!(!seen.is_empty() && read(view, seen.len()) == *seen);
    }
}

#[test]
fn a_held_segment_is_read_to_its_end_though_the_next_one_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let queue = create(&dir);
    let mut writer = queue.writer().unwrap();
    let view = View::new(&queue, Format::Txt).unwrap();
    view.pin();
    let padding = "x".repeat(1000);
    write(&mut writer, (1..=5000).map(|n| format!("{n} {padding}")));
    let expected = reference(&queue, Format::Txt);
    assert_eq!(size(&view), expected.len());
    // A view holds the first 64.
    let removed = 0..70;
    for segment in removed {
        std::fs::remove_file(queue.path().join(format!("{segment:09}{SEGMENT_SUFFIX}"))).unwrap();
    }
    let mut out = Vec::new();
    let beyond = loop {
        match view.read_at(u64::try_from(out.len()).unwrap(), 300_000, &mut out) {
            Ok(_) if out.len() < expected.len() => {}
            other => break other,
        }
    };
    assert!(matches!(beyond, Err(Error::NoSuchPosition { .. })), "{beyond:?}");
    assert!(expected.starts_with(&out));
    assert!(out.len() > 60 * 60_000 && out.ends_with(b"\n"), "{}", out.len());
}
