//! Files that the kernel keeps in its page cache: that they grow without zeros, half lines or delay, whoever reads.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use chronfs::Queue;
use chronfs::queue::{Entry, GapReason, Message, Position, SegmentId, Settings};
use chronfs::view::{Format, render};
use common::{DEADLINE, Random, TestMount, until, wait, writer};

fn time(seq: u64) -> u64 {
    1_700_000_000_000_000_000 + seq * 1_000_003
}

fn payload(seq: u64) -> Vec<u8> {
    let len = usize::try_from(seq * 7919 % 211).unwrap();
    [format!("{seq}:").into_bytes(), vec![b'a'; len], vec![7, 0xff]].concat()
}

/// The rendered bytes of `count` messages, and where each one ends.
fn reference(format: Format, count: u64) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut ends) = (Vec::new(), vec![0]);
    for seq in 1..=count {
        let position = Position { segment: SegmentId(0), offset: 4096 };
        let payload = payload(seq);
        let message = Message { seq, timestamp_ns: time(seq), msg_type: 3, payload: &payload, position };
        render(format, &Entry::Message(message), None, &mut bytes);
        ends.push(bytes.len());
    }
    (bytes, ends)
}

fn offset(at: usize) -> u64 {
    u64::try_from(at).unwrap()
}

/// Reads anywhere, mostly at the end, until told to stop, and compares. `started` and `done` are the sequence numbers
/// of the last message whose append has begun and has returned.
fn read_and_compare(
    file: &File,
    (bytes, ends): &(Vec<u8>, Vec<usize>),
    (started, done): (&AtomicUsize, &AtomicUsize),
    random: &mut Random,
) -> usize {
    let there = ends[done.load(Ordering::Acquire)];
    let is_end = |at: usize| ends.binary_search(&at).is_ok();
    let at = if random.below(4) == 0 { random.index(there + 1) } else { there - random.index(there.min(9000) + 1) };
    let most = [10, 5000, 200_000][random.index(3)];
    let len = 1 + random.index(most);
    let mut read = vec![0xee; len];
    let count = file.read_at(&mut read, offset(at)).unwrap();
    let upto = ends[started.load(Ordering::Acquire)];
    assert!(read[..count] == bytes[at..at + count], "{len} bytes at {at} of {there}");
    assert!(at + count >= there.min(at + len), "{count} of {len} bytes at {at}, there were {there}");
    assert!(at + count <= upto && (count == len || is_end(at + count)), "{count} of {len} at {at}: half a line");
    if random.below(4) == 0 {
        let there = ends[done.load(Ordering::Acquire)];
        let size = usize::try_from(file.metadata().unwrap().len()).unwrap();
        let upto = ends[started.load(Ordering::Acquire)];
        assert!(size >= there && size <= upto && is_end(size), "{there} {size} {upto}");
    }
    count
}

#[test]
fn a_file_grows_by_whole_lines_and_at_once_for_every_reader() {
    const COUNT: u64 = 60_000;
    let Some(mount) = TestMount::new() else { return };
    let settings = Settings { segment_size: 1 << 20, ..Settings::default() };
    let queue = Queue::create(mount.root().join("q"), &settings).unwrap();
    let mut writer = writer(&queue);
    writer.append_at(time(1), 3, &payload(1)).unwrap();
    let formats = [Format::Jsonl, Format::Txt, Format::Hex, Format::Bin];
    let references = formats.map(|format| reference(format, COUNT));
    let (started, done, over) = (AtomicUsize::new(1), AtomicUsize::new(1), AtomicBool::new(false));
    let (started, done, over, mount) = (&started, &done, &over, &mount);
    let compared = &AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..6_usize)
            .map(|n| {
                let (reference, slot) = (&references[n % 4], n % 4);
                scope.spawn(move || {
                    let name = format!("q/messages.{}", formats[slot]);
                    let file = File::open(mount.mountpoint().join(&name)).unwrap();
                    let mut random = Random(u64::try_from(n).unwrap() + 1);
                    while !over.load(Ordering::Acquire) {
                        let mut read = read_and_compare(&file, reference, (started, done), &mut random);
                        if random.below(50) == 0 {
                            let other = File::open(mount.mountpoint().join(&name)).unwrap();
                            read += read_and_compare(&other, reference, (started, done), &mut random);
                        }
                        compared.fetch_add(read, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for seq in 2..=COUNT {
            let message = payload(seq);
            started.store(usize::try_from(seq).unwrap(), Ordering::Release);
            writer.append_at(time(seq), 3, &message).unwrap();
            done.store(usize::try_from(seq).unwrap(), Ordering::Release);
            if seq % 16 == 0 {
                std::thread::yield_now();
            }
        }
        let deadline = Instant::now() + DEADLINE;
        while compared.load(Ordering::Relaxed) < 1_000_000 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        over.store(true, Ordering::Release);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    assert!(compared.load(Ordering::Relaxed) >= 1_000_000, "{compared:?}");
    for (format, (bytes, _)) in formats.iter().zip(&references) {
        let read = std::fs::read(mount.mountpoint().join(format!("q/messages.{format}"))).unwrap();
        assert!(read == *bytes, "{format}");
    }
}

#[test]
fn what_grows_by_much_while_it_is_open_is_right_everywhere() {
    const COUNT: u64 = 80_000;
    let Some(mount) = TestMount::new() else { return };
    let queue = Queue::create(mount.root().join("q"), &Settings::default()).unwrap();
    let (bytes, ends) = reference(Format::Jsonl, COUNT);
    let path = mount.mountpoint().join("q/messages.jsonl");
    let mut seq = 0;
    let mut append = |upto: u64| {
        let mut writer = writer(&queue);
        while seq < upto {
            seq += 1;
            writer.append_at(time(seq), 3, &payload(seq)).unwrap();
        }
    };
    append(100);
    let file = File::open(&path).unwrap();
    let mut before = vec![0; 1 << 20];
    assert_eq!(file.read_at(&mut before, 0).unwrap(), ends[100]);
    // Far more than is written to the page cache at a time.
    for upto in [30_000, 30_001, 60_000, COUNT] {
        append(upto);
        let end = ends[usize::try_from(upto).unwrap()];
        let mut read = vec![0; 5000];
        let count = file.read_at(&mut read, offset(end - 100)).unwrap();
        assert!(read[..count] == bytes[end - 100..end]);
        assert_eq!(file.metadata().unwrap().len(), offset(end));
        for old in [100, 30_000, 30_001, 60_000].map(|seq: usize| ends[seq]).into_iter().filter(|old| *old < end) {
            let from = old.saturating_sub(70_000);
            let len = 140_000.min(end - from);
            let mut read = vec![0; len];
            file.read_exact_at(&mut read, offset(from)).unwrap();
            assert!(read == bytes[from..from + len], "around {old}");
        }
    }
    assert!(std::fs::read(&path).unwrap() == bytes);
}

/// Prints whether each of the files can be mapped shared.
const MAPS: &str = r"
import mmap, sys
for name in sys.argv[1:]:
    with open(name, 'rb') as f:
        try:
            with mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as m: print(name, m[:] == f.read())
        except OSError as e: print(name, e.strerror)
";

#[test]
fn growing_files_can_be_mapped_and_sent() {
    let Some(mount) = TestMount::new() else { return };
    std::fs::write(mount.root().with_file_name("maps.py"), MAPS).unwrap();
    mount.ok("mkdir q; seq 100000 > q/append.txt");
    let script = r#"
        python3 -S ../maps.py q/messages.txt q/messages.jsonl q/messages.hex q/messages.bin
        exec 3< q/messages.txt
        echo more > q/append.txt
        tail -n 1 <&3
        python3 -S ../maps.py q/messages.txt
        python3 -c 'import shutil; shutil.copyfile("q/messages.txt", "../copy")'
        cmp ../copy q/messages.txt"#;
    let expected = "q/messages.txt True\nq/messages.jsonl True\nq/messages.hex True\n\
        q/messages.bin True\nmore\nq/messages.txt True\n";
    assert_eq!(mount.ok(script), expected);
}

#[test]
fn a_gap_that_appears_in_an_open_bin_is_an_error_and_a_new_file_shows_what_follows() {
    let Some(mount) = TestMount::new() else { return };
    let queue = Queue::create(mount.root().join("q"), &Settings::default()).unwrap();
    let mut writer = writer(&queue);
    writer.append(1, b"one").unwrap();
    let path = mount.mountpoint().join("q/messages.bin");
    let read = |file: &File, at: u64| {
        let mut bytes = [0; 100];
        let count = file.read_at(&mut bytes, at).map_err(|error| error.raw_os_error());
        count.map(|count| String::from_utf8_lossy(&bytes[..count]).into_owned())
    };
    let (eio, text) = (Err(Some(libc::EIO)), |text: &str| Ok(text.to_owned()));
    let before = File::open(&path).unwrap();
    assert_eq!(read(&before, 0), text("one"));
    writer.append(1, b"two").unwrap();
    writer.append_gap(5, GapReason::Lost).unwrap();
    assert_eq!(read(&before, 3), text("two"));
    assert_eq!(read(&before, 6), text(""), "nothing follows the gap yet");
    writer.append(1, b"six").unwrap();
    assert_eq!(read(&before, 6), eio);
    let after = File::open(&path).unwrap();
    assert_eq!([read(&after, 0), read(&after, 6)], [text("onetwo"), eio.clone()]);
    assert_eq!([read(&after, 6), read(&after, 7)], [text("s"), text("ix")]);
    assert_ne!(before.metadata().unwrap().ino(), after.metadata().unwrap().ino());
    writer.append(1, b"seven").unwrap();
    assert_eq!(read(&before, 6), eio);
    assert_eq!(read(&after, 7), text("ixseven"));
    let mut start = [0; 6];
    before.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"onetwo");
}

#[test]
fn a_daemon_that_is_killed_while_files_grow_is_gone_at_once() {
    let Some(mut mount) = TestMount::new() else { return };
    let queue = Queue::create(mount.root().join("q"), &Settings::default()).unwrap();
    let mut writer = writer(&queue);
    writer.append(1, b"first").unwrap();
    for cycle in 0..20 {
        let path = mount.mountpoint().join("q/messages.txt");
        let (reads, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let Ok(file) = File::open(&path) else { return };
                    let mut bytes = [0; 100];
                    while !over.load(Ordering::Acquire) {
                        let Ok(metadata) = file.metadata() else { break };
                        let Ok(_) = file.read_at(&mut bytes, metadata.len() - 1) else { break };
                        reads.fetch_add(1, Ordering::Release);
                    }
                });
            }
            until("files are read while they grow", || {
                writer.append(1, format!("in cycle {cycle}").as_bytes()).unwrap();
                reads.load(Ordering::Acquire) > 100
            });
            mount.daemon().kill().unwrap();
            wait(mount.daemon());
            over.store(true, Ordering::Release);
        });
        mount.mount_again("rw");
        writer.append(1, b"last").unwrap();
        assert_eq!(mount.ok("tail -n 1 q/messages.txt"), "last\n");
    }
}
