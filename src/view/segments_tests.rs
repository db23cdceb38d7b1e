//! Views with the indexes of sealed segments show the same bytes as without, whatever lies in the index files.

use std::path::{Path, PathBuf};

use super::*;
use crate::queue::Settings;
use crate::queue::layout::INDEX_DIR;
use crate::view::{View, render};

/// A queue of a few segments, some messages empty, some of them runs over a segment's end.
fn queue(dir: &Path) -> Queue {
    let settings = Settings { segment_size: 65536, ..Settings::default() };
    let queue = Queue::create(dir.join("q"), &settings).unwrap();
    let mut writer = queue.writer().unwrap();
    let mut state = 7_u64;
    for _ in 0..6_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let len = usize::try_from((state >> 33) % 90).unwrap();
        let payload = if state >> 60 < 5 { &b""[..] } else { &[b'x', 1, 0xff, b'"', b'\n'].repeat(18)[..len] };
        writer.append(1, payload).unwrap();
    }
    drop(writer);
    queue
}

fn reference(queue: &Queue, format: Format) -> Vec<u8> {
    let mut scanner = queue.scan().unwrap();
    let mut bytes = Vec::new();
    while let Some(entry) = scanner.next().unwrap() {
        render(format, &entry, None, &mut bytes);
    }
    bytes
}

fn view(queue: &Queue, format: Format, segments: &Arc<SegmentIndexes>) -> View {
    View::new(queue, format).unwrap().with_segments(segments)
}

/// Compares ranges of every format with the reference.
fn check(queue: &Queue, segments: &Arc<SegmentIndexes>) {
    for format in Format::ALL {
        let (expected, view) = (reference(queue, format), view(queue, format, segments));
        assert_eq!(view.size().unwrap(), len_u64(expected.len()), "{format}");
        let mut at = 1;
        while at < expected.len() {
            for len in [1, 500, 70_000] {
                let mut bytes = Vec::new();
                view.read_at(len_u64(at), len, &mut bytes).unwrap();
                assert_eq!(bytes, expected[at..expected.len().min(at + len)], "{format} {at} {len}");
            }
            at = at * 3 / 2 + 1;
        }
    }
}

/// A message that does not fit into the first segment is the first one of the second segment.
#[test]
fn a_segment_may_be_sealed_without_a_message() {
    for payload_align in [8, 64] {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { payload_align, ..Settings::default() };
        let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
        let mut writer = queue.writer().unwrap();
        for len in [100_000, 10, 1_000_000] {
            writer.append(1, &vec![b'x'; len]).unwrap();
        }
        assert_eq!(queue.first_seq_of(SegmentId(1)).unwrap(), Some(1));
        check(&queue, &Arc::new(SegmentIndexes::new(&queue, true)));
    }
}

fn files(queue: &Queue) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(queue.path().join(INDEX_DIR)) else { return Vec::new() };
    let mut files: Vec<_> =
        entries.map(|e| e.unwrap().path()).map(|p| (p.clone(), std::fs::read(p).unwrap())).collect();
    files.sort();
    files
}

fn is_stored(segments: &SegmentIndexes, id: u32) -> bool {
    matches!(segments.find(SegmentId(id)), Ok(Indexed::Ready(_)))
}

#[test]
fn same_bytes_with_files_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let queue = queue(dir.path());
    check(&queue, &Arc::new(SegmentIndexes::new(&queue, false)));
    assert!(files(&queue).is_empty(), "nothing is stored where that is not allowed");
    check(&queue, &Arc::new(SegmentIndexes::new(&queue, true)));
    let stored = files(&queue);
    assert!(stored.len() >= 6, "{}", stored.len());
    // Somebody else finds what is there and uses it.
    let others = Arc::new(SegmentIndexes::new(&queue, false));
    assert!(is_stored(&others, 0) && is_stored(&others, 5));
    check(&queue, &others);
    others.make_all(|| false).unwrap();
    assert_eq!(files(&queue), stored);
    let head = queue.bounds().unwrap().head.segment;
    assert!(!is_stored(&others, head.0), "the active segment has none");
}

#[test]
fn what_is_wrong_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let queue = queue(dir.path());
    SegmentIndexes::new(&queue, true).make_all(|| false).unwrap();
    let sound = files(&queue);
    let (first, bytes) = &sound[0];
    for at in (0..bytes.len()).step_by(29) {
        let mut wrong = bytes.clone();
        wrong[at] ^= 0x10;
        std::fs::write(first, &wrong).unwrap();
        let segments = Arc::new(SegmentIndexes::new(&queue, true));
        if at < 340 {
            assert!(!is_stored(&segments, 0), "byte {at} of the header is checked");
        }
        let view = view(&queue, Format::Jsonl, &segments);
        let (size, mut read) = (view.size().unwrap(), Vec::new());
        view.read_at(size / 8, 5, &mut read).unwrap();
        assert_eq!(read, reference(&queue, Format::Jsonl)[usize::try_from(size / 8).unwrap()..][..5]);
        for format in Format::ALL {
            assert!(segments.marks(SegmentId(0), format).is_some());
        }
        assert_eq!(files(&queue), sound, "byte {at}");
    }
    for wrong in [&b""[..], b"CHRONIDX", &bytes[..bytes.len() - 1], &sound[1].1] {
        std::fs::write(first, wrong).unwrap();
        assert!(!is_stored(&SegmentIndexes::new(&queue, true), 0));
        check(&queue, &Arc::new(SegmentIndexes::new(&queue, true)));
        assert_eq!(files(&queue), sound);
    }
    // Numbers of marks that a hole in the file seems to bear out.
    for (len, count) in [(u64::MAX, u32::MAX), (1 << 36, 1 << 20), (16 * 65536 - 1, 1 << 20), (16 * 60_000, 14)] {
        let mut wrong = bytes.clone();
        for section in (240..336).step_by(24) {
            wrong[section..section + 8].copy_from_slice(&len.to_le_bytes());
            wrong[section + 8..section + 12].copy_from_slice(&count.to_le_bytes());
        }
        let crc = crc32fast::hash(&wrong[..340]);
        wrong[340..344].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(first, &wrong).unwrap();
        let file = std::fs::File::options().write(true).open(first).unwrap();
        file.set_len(344 + 4 * 24 * u64::from(count)).unwrap();
        let segments = Arc::new(SegmentIndexes::new(&queue, true));
        assert_eq!(is_stored(&segments, 0), count == 14, "{count} marks of {len} bytes");
        assert!(segments.marks(SegmentId(0), Format::Hex).is_some(), "built again");
        drop(segments);
        check(&queue, &Arc::new(SegmentIndexes::new(&queue, true)));
        assert_eq!(files(&queue), sound);
    }
    // Neither followed nor opened.
    std::fs::remove_file(first).unwrap();
    std::os::unix::fs::symlink(&sound[1].0, first).unwrap();
    assert!(!is_stored(&SegmentIndexes::new(&queue, true), 0));
    std::fs::remove_dir_all(queue.path().join(INDEX_DIR)).unwrap();
    std::os::unix::fs::symlink(dir.path(), queue.path().join(INDEX_DIR)).unwrap();
    check(&queue, &Arc::new(SegmentIndexes::new(&queue, true)));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is written through a link");
}

#[test]
fn deleted_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let queue = queue(dir.path());
    let segments = Arc::new(SegmentIndexes::new(&queue, true));
    let view = view(&queue, Format::Txt, &segments);
    let size = view.size().unwrap();
    std::fs::remove_dir_all(queue.path().join(INDEX_DIR)).unwrap();
    let mut bytes = Vec::new();
    view.read_at(0, usize::try_from(size).unwrap(), &mut bytes).unwrap();
    assert_eq!(bytes, reference(&queue, Format::Txt));
    assert!(!files(&queue).is_empty());
}

#[test]
fn no_other_directory_is_cleared_whatever_takes_the_place_of_the_indexes() {
    const EXCHANGES: usize = 5_000;
    let dir = tempfile::tempdir().unwrap();
    let queue = queue(dir.path());
    let [indexes, link] = [INDEX_DIR, "link"].map(|name| queue.path().join(name));
    let file = dir.path().join("000000000.index");
    std::fs::write(&file, "of somebody else").unwrap();
    std::fs::create_dir(&indexes).unwrap();
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    std::thread::scope(|scope| {
        let exchanging = scope.spawn(|| {
            for _ in 0..EXCHANGES {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &indexes, rustix::fs::CWD, &link, flags).unwrap();
            }
        });
        while !exchanging.is_finished() {
            segment_index_file::remove_before(queue.dir(), SegmentId(1));
        }
    });
    assert!(file.exists());
}

#[test]
fn marks_of_passed_segments_are_folded_and_those_of_gone_ones_removed() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::create(dir.path().join("q"), &Settings { segment_size: 65536, ..Settings::default() }).unwrap();
    let mut writer = queue.writer().unwrap();
    let segments = Arc::new(SegmentIndexes::new(&queue, true));
    let views = Format::ALL.map(|format| view(&queue, format, &segments));
    for _ in 0..300 {
        for _ in 0..40 {
            writer.append(1, b"some message").unwrap();
        }
        for view in &views {
            let mut end = Vec::new();
            let size = view.size().unwrap();
            view.read_at(size - 7, 7, &mut end).unwrap();
        }
        if segments.take_wanted() {
            segments.make_all(|| false).unwrap();
        }
    }
    let head = queue.bounds().unwrap().head.segment.0;
    assert!(head > 5);
    for view in &views {
        assert_eq!(view.size().unwrap(), len_u64(reference(&queue, view.format()).len()));
        let whole = view.whole_segments();
        assert!(whole >= usize::try_from(head).unwrap() - 2, "{whole} of {head}");
    }
    for id in 0..3 {
        std::fs::remove_file(queue.path().join(format!("{id:09}.q"))).unwrap();
    }
    segments.make_all(|| false).unwrap();
    assert!(files(&queue)[0].0.ends_with("000000003.index"), "{:?}", files(&queue)[0].0);
    check(&queue, &segments);
}

#[test]
fn a_segment_with_damage_has_no_index() {
    let dir = tempfile::tempdir().unwrap();
    let queue = queue(dir.path());
    let path = queue.path().join("000000001.q");
    let sound = std::fs::read(&path).unwrap();
    let mut bytes = sound.clone();
    bytes[20_000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let segments = Arc::new(SegmentIndexes::new(&queue, true));
    check(&queue, &segments);
    assert_eq!((is_stored(&segments, 1), is_stored(&segments, 2)), (false, true));
    // Damaged only later: an error, no shifted bytes; then the others see the gap.
    std::fs::write(&path, &sound).unwrap();
    let segments = Arc::new(SegmentIndexes::new(&queue, true));
    let before = view(&queue, Format::Jsonl, &segments);
    let size = usize::try_from(before.size().unwrap()).unwrap();
    assert!(is_stored(&segments, 1));
    std::fs::write(&path, &bytes).unwrap();
    assert!(before.read_at(0, size, &mut Vec::new()).is_err());
    assert!(!is_stored(&segments, 1));
    check(&queue, &segments);
    check(&queue, &Arc::new(SegmentIndexes::new(&queue, true)));
}
