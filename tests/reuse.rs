//! Retired segments whose files are reused: never while a process still reads them, and what they held is never taken
//! for messages or for damage.
//!
//! Everything is in /dev/shm, because files are not reused on every file system.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chronfs::QueueWriter;
use chronfs::queue::{Entry, GapReason, Queue, Settings};

mod common;

use common::{Running, SMALL};

const DEADLINE: Duration = Duration::from_secs(30);
const SETTINGS: Settings = Settings { retain_segments: Some(1), ..SMALL };
/// Offset of the writer's boot id in the control block: `format.md`.
const BOOT_ID: u64 = 384 + 24;

fn payload(seq: u64) -> Vec<u8> {
    common::payload(seq, 900)
}

fn append(writer: &mut QueueWriter) {
    common::append(writer, 1, payload);
}

/// The path of the segment that holds the head.
fn active(queue: &Queue) -> PathBuf {
    let id = queue.inspect().unwrap().bounds.head.segment.0;
    queue.path().join(format!("{id:09}.q"))
}

fn is_reused(segment: &Path) -> bool {
    let mut head = [0; 12];
    File::open(segment).unwrap().read_exact_at(&mut head, 0).unwrap();
    head[11] == 1
}

/// A queue whose active segment's file held another one before, and holds ten messages or more. Its writer has exited.
fn reused() -> (tempfile::TempDir, Queue) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let queue = Queue::create(dir.path().join("q"), &SETTINGS).unwrap();
    let mut writer = queue.writer().unwrap();
    let start = Instant::now();
    loop {
        // Retention runs concurrently: sooner or later there is a file to reuse.
        assert!(start.elapsed() < DEADLINE, "no file was used again");
        let segment = queue.inspect().unwrap().bounds.head.segment;
        while queue.inspect().unwrap().bounds.head.segment == segment {
            append(&mut writer);
        }
        if is_reused(&active(&queue)) {
            break;
        }
    }
    (0..10).for_each(|_| append(&mut writer));
    drop(writer);
    (dir, queue)
}

/// Everything in the queue, and the gaps.
fn scan(queue: &Queue) -> (Vec<u64>, Vec<(u64, u64, GapReason)>) {
    let (mut seqs, mut gaps) = (Vec::new(), Vec::new());
    let mut scanner = queue.scan().unwrap();
    while let Some(entry) = scanner.next().unwrap() {
        match entry {
            Entry::Message(message) => {
                assert_eq!(message.payload, payload(message.seq));
                seqs.push(message.seq);
            }
            Entry::Gap(gap) => gaps.push((gap.from, gap.to, gap.reason)),
        }
    }
    (seqs, gaps)
}

/// As if the machine had been rebooted: the published head is no longer known to be exact.
fn restart(queue: &Queue) {
    let control = File::options().write(true).open(queue.path().join("control.meta")).unwrap();
    control.write_all_at(b"another boot id.", BOOT_ID).unwrap();
}

#[test]
fn a_file_that_is_being_read_is_not_reused() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let queue = Queue::create(dir.path().join("q"), &SETTINGS).unwrap();
    let mut writer = queue.writer().unwrap();
    let (start, mut held, mut was_reused) = (Instant::now(), Vec::new(), 0);
    while was_reused < 20 || held.len() < 20 {
        assert!(start.elapsed() < DEADLINE, "{was_reused} files used again, {} held", held.len());
        let path = active(&queue);
        while active(&queue) == path {
            append(&mut writer);
        }
        was_reused += usize::from(is_reused(&active(&queue)));
        // Some of those that have just been sealed; they may be retired already.
        if held.len() < 20
            && held.len() <= was_reused
            && let Ok(mut file) = File::open(&path)
        {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            held.push((path, file, bytes));
        }
    }
    drop(writer);
    for (path, file, before) in held {
        let mut after = vec![0; before.len()];
        file.read_exact_at(&mut after, 0).unwrap();
        assert!(before == after, "{} has changed under its reader", path.display());
    }
}

#[test]
fn files_to_be_reused_count_as_the_queues() {
    const MOST: usize = 3;
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let settings = Settings { max_bytes: Some(MOST as u64 * u64::from(SETTINGS.segment_size)), ..SETTINGS };
    let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
    let mut writer = queue.writer().unwrap();
    let (start, mut was_reused) = (Instant::now(), 0);
    while was_reused < 100 {
        assert!(start.elapsed() < DEADLINE, "{was_reused} files used again");
        let path = active(&queue);
        while active(&queue) == path {
            append(&mut writer);
        }
        was_reused += usize::from(is_reused(&active(&queue)));
        let names = std::fs::read_dir(queue.path()).unwrap().map(|entry| entry.unwrap().file_name());
        // A file that gets its name in between may be seen twice or not at all.
        let files: HashSet<u64> = names
            .filter(|name| name.to_string_lossy().contains(".q"))
            .filter_map(|name| Some(std::fs::metadata(queue.path().join(name)).ok()?.ino()))
            .collect();
        assert!(files.len() <= MOST, "{} files", files.len());
    }
}

#[test]
fn what_a_file_held_before_is_neither_a_message_nor_damage() {
    let (_dir, queue) = reused();
    let head = queue.inspect().unwrap().bounds.head;
    let (seqs, gaps) = scan(&queue);
    assert_eq!(gaps, []);
    let next = seqs.last().unwrap() + 1;
    // A record of an earlier use where the next one would be, as a power cut can leave it.
    let path = active(&queue);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut old = vec![0; 200];
    file.read_exact_at(&mut old, 4096).unwrap();
    file.write_all_at(&old, u64::from(head.offset)).unwrap();
    restart(&queue);

    assert_eq!(scan(&queue), (seqs.clone(), vec![]));
    #[cfg(feature = "mount")]
    {
        let options = chronfs::doctor::Options { deep: true, ..Default::default() };
        let report = chronfs::doctor::examine(queue.path(), options, &mut |_| ()).unwrap();
        assert!(!report.has_problems(), "{:?}", report.findings);
    }
    let mut reader = queue.reader("alice").unwrap();
    while reader.next().unwrap().is_some() {}
    assert_eq!(reader.seq(), next);

    let mut writer = queue.writer().unwrap();
    assert_eq!(writer.next_seq(), next);
    append(&mut writer);
    assert!(matches!(reader.next().unwrap(), Some(Entry::Message(message)) if message.seq == next));
    let (after, gaps) = scan(&queue);
    assert_eq!((after.last(), gaps), (Some(&next), vec![]));
}

#[test]
fn a_flipped_bit_in_the_newest_message_of_a_reused_file_is_a_gap() {
    let (_dir, queue) = reused();
    restart(&queue);
    let (seqs, _) = scan(&queue);
    let newest = *seqs.last().unwrap();
    let mut scanner = queue.scan().unwrap();
    scanner.seek_seq(newest).unwrap();
    let start = u64::from(scanner.position().offset);
    let file = File::options().read(true).write(true).open(active(&queue)).unwrap();
    for bit in 0..(32 + payload(newest).len() as u64) * 8 {
        let (at, mask) = (start + bit / 8, 1 << (bit % 8));
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ mask], at).unwrap();
        let (found, gaps) = scan(&queue);
        assert_eq!(found, seqs[..seqs.len() - 1], "bit {bit}");
        assert_eq!(gaps, [(newest, newest, GapReason::Checksum)], "bit {bit}");
        file.write_all_at(&byte, at).unwrap();
    }
    assert_eq!(scan(&queue), (seqs, vec![]));
}

/// The queue that a child process is to read.
const CHILD: &str = "CHRONFS_REUSE_CHILD";
/// Unused on any machine.
const STRANGER: u32 = 64_001;

#[test]
fn what_a_tailer_has_borrowed_stays_although_retention_overtakes_it() {
    if let Some(path) = std::env::var_os(CHILD) {
        return tail(Path::new(&path));
    }
    // Root can also be somebody who may only read.
    let users = if common::need::is_root() { &[None, Some(STRANGER)][..] } else { &[None] };
    for &user in users {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let queue = Queue::create(dir.path().join("q"), &SETTINGS).unwrap();
        let mut writer = queue.writer().unwrap();
        append(&mut writer);
        // Others may not have access to where it was built.
        let program = dir.path().join("tests");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let mut command = Command::new(program);
        command.args(["--exact", "what_a_tailer_has_borrowed_stays_although_retention_overtakes_it", "--nocapture"]);
        command.env(CHILD, queue.path()).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let mut child = Running::new(command.spawn().unwrap());
        let mut orders = child.child().stdin.take().unwrap();
        for line in BufReader::new(child.child().stdout.take().unwrap()).lines() {
            match line.unwrap().as_str() {
                "holding" => {
                    reuse(&queue, &mut writer, 20);
                    orders.write_all(b"go on\n").unwrap();
                }
                "idle" => append(&mut writer),
                _ => {}
            }
        }
        assert!(child.output().status.success(), "as user {user:?}");
        assert!(queue.reader_names().unwrap().is_empty());
    }
}

/// Appends until this many segments have been written to files that held others before.
fn reuse(queue: &Queue, writer: &mut QueueWriter, count: u32) {
    let (start, mut reused) = (Instant::now(), 0);
    while reused < count {
        assert!(start.elapsed() < DEADLINE, "{reused} files used again");
        let path = active(queue);
        while active(queue) == path {
            append(writer);
        }
        reused += u32::from(is_reused(&active(queue)));
    }
}

/// The child: holds a message until the queue has left it, three times; then waits for one.
fn tail(path: &Path) {
    let may_write = File::options().write(true).open(path.join("control.meta")).is_ok();
    assert_eq!(may_write, rustix::process::geteuid().as_raw() != STRANGER);
    let mut tailer = Queue::open(path).unwrap().tailer().unwrap();
    let mut orders = std::io::stdin().lines();
    for _ in 0..3 {
        let message = tailer.next_message(|gap| panic!("{gap:?}")).unwrap().unwrap();
        println!("\nholding");
        orders.next().unwrap().unwrap();
        assert!(message.payload == payload(message.seq), "message {} has changed", message.seq);
        loop {
            match tailer.next().unwrap().unwrap() {
                Entry::Message(message) => assert!(message.payload == payload(message.seq), "{}", message.seq),
                Entry::Gap(gap) => break assert_eq!(gap.reason, GapReason::Retired),
            }
        }
    }
    tailer.seek_end().unwrap();
    println!("\nidle");
    assert!(tailer.wait(Some(DEADLINE)).unwrap());
    let message = tailer.next_message(|gap| panic!("{gap:?}")).unwrap().unwrap();
    assert!(message.payload == payload(message.seq));
}
