//! A writer and readers killed with SIGKILL at random moments, over and over: nothing that was visible is lost, nothing
//! comes twice, and nothing needs a repair.
//!
//! The victims are forked by a process of one thread, which is this program again with `CHRONFS_CRASH_ALONE` set: that
//! makes hundreds of kills a second. `CHRONFS_CRASH_CYCLES` sets their number; the soak is the same test with a large
//! one:
//!
//! ```text
//! CHRONFS_CRASH_CYCLES=1000000 cargo test --release --test crash -- --nocapture
//! ```
#![allow(clippy::unwrap_used, clippy::panic, unsafe_code)]

use std::io::{PipeWriter, Read as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chronfs::queue::{Entry, Error, Queue, QueueReader, Settings, Waiter};

mod common;

use common::{Random, SMALL, scratch};

const ALONE: &str = "CHRONFS_CRASH_ALONE";
const CYCLES: &str = "CHRONFS_CRASH_CYCLES";
// The victims retire what the checker has seen, and are killed while doing so and while segments grow, too.
const SETTINGS: Settings = Settings { segment_size: 1 << 20, retain_bytes: Some(2 << 20), payload_align: 64, ..SMALL };

fn payload(seq: u64) -> Vec<u8> {
    common::payload(seq, 600)
}

/// Appends in every way, until killed.
fn write(queue: &Queue) -> ! {
    let mut writer = queue.writer().unwrap();
    loop {
        let seq = writer.next_seq();
        writer.append(1, &payload(seq)).unwrap();
        let mut batch = writer.batch();
        (1..4).for_each(|next| assert_eq!(batch.append(1, &payload(seq + next)).unwrap(), seq + next));
        drop(batch);
        let payload = payload(seq + 4);
        writer.reserve(1, payload.len() / 2).unwrap().fill(0xFF);
        let mut record = writer.reserve(1, payload.len()).unwrap();
        record.copy_from_slice(&payload);
        record.commit().unwrap();
    }
}

/// Reads and commits, over and over, until killed. Says when it has committed once.
fn read(queue: &Queue, committed: PipeWriter) -> ! {
    let mut reader = queue.reader("victim").unwrap();
    let mut committed = Some(committed);
    loop {
        while reader.next().unwrap().is_some() {
            reader.commit();
            if let Some(mut pipe) = committed.take() {
                pipe.write_all(b"!").unwrap();
            }
        }
        reader.seek_seq(1).unwrap();
    }
}

/// Runs a test in a process without other threads, so that it can fork safely.
fn alone(test: &str, run: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return run();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(ALONE, "1");
    assert!(command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap().success());
}

/// A forked process. Dies with its parent.
struct Victim(libc::pid_t);

impl Victim {
    fn start(work: impl FnOnce()) -> Self {
        // SAFETY: this process has one thread (see `alone`), so that no lock is held in the child.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "{}", std::io::Error::last_os_error());
        if pid == 0 {
            // SAFETY: takes plain numbers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let _ = catch_unwind(AssertUnwindSafe(work));
            // SAFETY: exits this process, without its parent's exit handlers.
            unsafe { libc::_exit(101) };
        }
        Self(pid)
    }

    fn kill(self) {
        let mut status = 0;
        // SAFETY: our own child, which has not been waited for.
        unsafe {
            assert_eq!(libc::kill(self.0, libc::SIGKILL), 0);
            assert_eq!(libc::waitpid(self.0, &raw mut status, 0), self.0);
        }
        assert_eq!(status, libc::SIGKILL, "the victim was to be killed, but ended by itself");
    }
}

fn cycles(default: u64) -> u64 {
    std::env::var(CYCLES).ok().map_or(default, |cycles| cycles.parse().unwrap())
}

/// Waits without reading a clock: a machine may stand still longer than any time limit.
fn wait_until(waiter: &Waiter, mut reached: impl FnMut() -> bool) {
    let mut in_vain = 0;
    loop {
        let ticket = waiter.prepare();
        if reached() {
            return;
        }
        in_vain += u32::from(!waiter.wait(ticket, Duration::from_millis(100)));
        assert!(in_vain < 600, "the writer makes no progress");
    }
}

fn spin(count: u64) {
    (0..count).for_each(|_| std::hint::spin_loop());
}

/// Reports the progress of a long run.
fn report(what: &str, cycle: u64, cycles: u64, seen: u64, started: Instant) {
    if cycle == cycles || cycle.is_multiple_of(1000) {
        eprintln!("{what}: {cycle} kills in {:.0?}, {seen} messages", started.elapsed());
    }
}

#[test]
fn a_writer_killed_at_any_moment_loses_nothing_that_was_visible() {
    alone("a_writer_killed_at_any_moment_loses_nothing_that_was_visible", kill_writers);
}

fn kill_writers() {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = Queue::create(&path, &SETTINGS).unwrap();
    let waiter = queue.waiter().unwrap();
    let mut checker = queue.reader("checker").unwrap();
    let mut random = Random(0x5EED);
    let (mut seen, started, cycles) = (0, Instant::now(), cycles(1000));
    for cycle in 1..=cycles {
        let victim = Victim::start(|| write(&Queue::open(&path).unwrap()));
        let target = seen + random.below(300);
        let mut check = || {
            while let Some(entry) = checker.next().unwrap() {
                let Entry::Message(message) = entry else { panic!("cycle {cycle}: {entry:?}") };
                assert_eq!(message.seq, seen + 1, "cycle {cycle}");
                assert!(message.payload == payload(message.seq), "cycle {cycle}: message {} differs", message.seq);
                seen = message.seq;
            }
            checker.commit();
            seen >= target
        };
        // Sometimes it dies before it has appended anything, on what the previous one has left.
        if random.below(8) > 0 {
            wait_until(&waiter, &mut check);
        }
        // A little longer, to die anywhere in its work.
        spin(random.below(30_000));
        victim.kill();
        check();
        report("writer", cycle, cycles, seen, started);
    }
    let mut scanner = queue.scan().unwrap();
    let first = queue.bounds().unwrap().first_seq;
    let mut next = first;
    while let Some(entry) = scanner.next().unwrap() {
        assert_eq!(entry.message().map(|message| message.seq), Some(next));
        next += 1;
    }
    assert_eq!(next, seen + 1, "everything that was seen and is retained is still there");
    assert!(first > 1, "retention has been at work");
    assert!(queue.control_damage().is_none() && queue.inspect().unwrap().readers[0].damage.is_none());
}

#[test]
fn a_reader_killed_at_any_moment_goes_on_at_its_last_commit_or_the_one_before() {
    alone("a_reader_killed_at_any_moment_goes_on_at_its_last_commit_or_the_one_before", kill_readers);
}

/// The lock is the dead process's until the kernel has torn it down, which may be a moment after its exit while another
/// process reads its memory.
fn open_after_death(queue: &Queue) -> QueueReader {
    for _ in 0..1000 {
        match queue.reader("victim") {
            Err(Error::ReaderInUse { .. }) => std::thread::sleep(Duration::from_millis(1)),
            reader => return reader.unwrap(),
        }
    }
    panic!("the lock outlives its holder");
}

fn kill_readers() {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = Queue::create(&path, &Settings { retain_bytes: None, ..SETTINGS }).unwrap();
    let mut writer = queue.writer().unwrap();
    (1..=3000).for_each(|seq| assert_eq!(writer.append(1, &payload(seq)).unwrap(), seq));
    drop(writer);
    queue.add_reader("victim").unwrap();
    let mut random = Random(0xC0FFEE);
    let (started, cycles) = (Instant::now(), cycles(1000));
    for cycle in 1..=cycles {
        let (mut committed, pipe) = std::io::pipe().unwrap();
        let victim = Victim::start(|| read(&Queue::open(&path).unwrap(), pipe));
        // Sometimes it dies before it has committed anything.
        if random.below(8) > 0 {
            committed.read_exact(&mut [0]).unwrap();
        }
        spin(random.below(50_000));
        victim.kill();
        let position = queue.reader_position("victim").unwrap();
        assert!((1..=3001).contains(&position), "cycle {cycle}: {position}");
        let mut reader = open_after_death(&queue);
        assert_eq!(reader.seq(), position);
        if let Some(entry) = reader.next().unwrap() {
            assert_eq!(entry.message().map(|message| message.seq), Some(position), "cycle {cycle}");
        }
        report("reader", cycle, cycles, 3000, started);
    }
}
