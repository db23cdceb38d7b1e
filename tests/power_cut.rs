//! Power cuts: what was synced before the cut exists after it, whole, once, in order; what is missing is reported.
//!
//! A file system in an image file is shut down under a writer without its caches being written
//! (`FS_IOC_SHUTDOWN`), mounted again and read. Needs root and loop devices.
//! `CHRONFS_CUTS` sets the number of cuts of each file system:
//!
//! ```text
//! CHRONFS_CUTS=500 cargo test --release --test power_cut -- --nocapture
//! ```
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use chronfs::queue::{Entry, Queue, SegmentId, Settings};

mod common;

use common::{Disk, Random, Running, SMALL};

const QUEUE: &str = "CHRONFS_CUT_QUEUE";
const SEED: &str = "CHRONFS_CUT_SEED";

fn payload(seq: u64) -> Vec<u8> {
    common::payload(seq, 3000)
}

/// What the child does until the power cut: appends, syncs, reads, and reports what is safe now.
fn work(path: &Path, seed: u64) {
    let mut random = Random(seed);
    let queue = Queue::open(path).unwrap();
    let mut writer = queue.writer().unwrap();
    let mut reader = queue.reader_position("alice").is_ok().then(|| queue.reader("alice").unwrap());
    let control = File::open(path.join("control.meta")).unwrap();
    let mut out = std::io::stdout();
    loop {
        for _ in 0..random.below(80) {
            let seq = writer.next_seq();
            writer.append(1, &payload(seq)).unwrap();
        }
        match random.below(8) {
            // A writer's sync must also cover what its predecessor left unsynced.
            0 => {
                drop(writer);
                writer = queue.writer().unwrap();
            }
            1 | 6 => {
                let Some(reader) = &mut reader else { continue };
                while reader.next().unwrap().is_some() {}
                reader.commit_sync().unwrap();
                writeln!(out, "consumed {}", reader.seq()).unwrap();
            }
            // The system may write back anything at any time.
            2 => control.sync_all().unwrap(),
            3 => {
                let first = std::fs::read_dir(path).unwrap().next().unwrap().unwrap().path();
                if first.is_file() {
                    File::open(first).unwrap().sync_all().unwrap();
                }
            }
            _ => {
                writer.flush_sync().unwrap();
                writeln!(out, "synced {}", writer.next_seq()).unwrap();
            }
        }
    }
}

fn child(path: &Path, seed: u64) -> Running {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_was_synced_survives_power_cuts", "--nocapture"])
        .env(QUEUE, path)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Running::new(child)
}

/// What has been promised so far: every message before these numbers is safe, consumed.
#[derive(Debug, Default, Clone, Copy)]
struct Promised {
    synced: u64,
    consumed: u64,
}

impl Promised {
    fn hear(&mut self, line: &str) {
        // The test program's own words come before the child's on the first line.
        let words: Vec<&str> = line.split_whitespace().collect();
        let [.., what, number] = words[..] else { return };
        match (what, number.parse()) {
            ("synced", Ok(number)) => self.synced = number,
            ("consumed", Ok(number)) => self.consumed = number,
            _ => {}
        }
    }
}

/// One cut in the middle of the child's work. Returns what had been promised.
fn cut(disk: &Disk, path: &Path, random: &mut Random, mut promised: Promised) -> Promised {
    let mut child = child(path, random.below(u64::MAX) | 1);
    let mut lines = BufReader::new(child.child().stdout.take().unwrap()).lines();
    for _ in 0..=random.below(12) {
        let line = lines.next().unwrap_or_else(|| panic!("the child has exited by itself")).unwrap();
        promised.hear(&line);
    }
    for _ in 0..random.below(300_000) {
        std::hint::spin_loop();
    }
    disk.cut(random.below(2) == 0);
    drop(child);
    lines.map_while(Result::ok).for_each(|line| promised.hear(&line));
    promised
}

/// Reads everything; returns the number after the last message.
fn check(path: &Path, promised: Promised, cut: u64) -> u64 {
    let queue = Queue::open(path).unwrap();
    let consumed = match queue.reader_position("alice") {
        Ok(position) => position,
        Err(_) if has_no_readers(cut) => 1,
        Err(error) => panic!("cut {cut}: {promised:?}, {error}"),
    };
    assert!(consumed >= promised.consumed, "cut {cut}: {promised:?}, the reader is at {consumed}");
    let mut scanner = queue.scan().unwrap();
    // Retention removes what has been consumed.
    let mut next = queue.inspect().unwrap().bounds.first_seq;
    while let Some(entry) = scanner.next().unwrap() {
        match entry {
            Entry::Message(message) => {
                assert_eq!(message.seq, next, "cut {cut}: a message without a gap before it: {:?}", queue.inspect());
                assert!(message.payload == payload(next), "cut {cut}: message {next} has other bytes");
                next += 1;
            }
            Entry::Gap(gap) => {
                assert_eq!(gap.from, next, "cut {cut}");
                next = gap.to + 1;
                // Nothing tells what retention had removed before, where the start of the next segment is lost.
                let is_retired = retains(cut) && gap.from == 1 && gap.position.segment > SegmentId(0);
                let may_be = gap.from >= promised.synced || is_retired;
                assert!(may_be, "cut {cut}: synced before {}, lost: {gap:?}", promised.synced);
            }
        }
    }
    let is_there = next.max(consumed) >= promised.synced || has_no_readers(cut);
    assert!(is_there, "cut {cut}: synced before {}, there is {next}", promised.synced);
    next
}

/// How many of the segments are in files that held another one before.
fn reused_files(path: &Path) -> usize {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let segments = entries.filter(|path| path.extension().is_some_and(|ending| ending == "q"));
    segments.filter(|path| std::fs::read(path).unwrap().get(11) == Some(&1)).count()
}

/// Every other queue retires segments, and uses their files again.
fn retains(cut: u64) -> bool {
    cut.is_multiple_of(2)
}

/// Whether nothing but retention's limits keeps what this queue has: it removes what was synced last, too.
fn has_no_readers(cut: u64) -> bool {
    cut % 4 == 2
}

fn cut_often(kind: &'static str, cuts: u64) {
    let Some(disk) = Disk::new(kind, if kind == "xfs" { 320 } else { 64 }) else { return };
    let path = disk.mountpoint().join("q");
    let mut random = Random(0x5EED + cuts);
    let (mut messages, mut reused) = (0, 0);
    for number in 0..cuts {
        let retain_segments = retains(number).then_some(1);
        let settings = Settings { retain_segments, ..SMALL };
        // A new queue for each: what is missing after a cut would hide what the next one loses.
        let _ = std::fs::remove_dir_all(&path);
        let queue = Queue::create(&path, &settings).unwrap();
        if !has_no_readers(number) {
            queue.add_reader("alice").unwrap();
        }
        drop(queue);
        let promised = cut(&disk, &path, &mut random, Promised::default());
        disk.mount_again();
        reused += reused_files(&path);
        let next = check(&path, promised, number);
        let mut writer = Queue::open(&path).unwrap().writer().unwrap();
        assert!(
            writer.next_seq() >= next.max(promised.consumed).max(promised.synced),
            "cut {number}: a number is assigned twice: {promised:?}, {}",
            writer.next_seq()
        );
        let seq = writer.next_seq();
        writer.append(1, &payload(seq)).unwrap();
        writer.flush_sync().unwrap();
        drop(writer);
        assert_eq!(check(&path, promised, number), seq + 1, "cut {number}");
        messages += promised.synced;
    }
    assert!(reused > 0 || cuts < 10, "{kind}: no file was used again");
    eprintln!("{kind}: {cuts} cuts, {messages} messages synced before them; {reused} files that had been used again");
}

#[test]
fn what_was_synced_survives_power_cuts() {
    if let Some(path) = std::env::var_os(QUEUE) {
        work(Path::new(&path), std::env::var(SEED).unwrap().parse().unwrap());
        return;
    }
    let cuts = std::env::var("CHRONFS_CUTS").map_or(12, |cuts| cuts.parse().unwrap());
    cut_often("ext4", cuts);
    cut_often("xfs", cuts);
}
