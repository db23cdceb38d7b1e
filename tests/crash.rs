//! A writer and readers killed with SIGKILL at random moments, over and over: nothing that was visible is lost, nothing comes
//! twice, and nobody has to repair anything.
//!
//! The victims are forked by a process of one thread, which is this program again with `CHRONFS_CRASH_QUEUE` set: that
//! makes thousands of kills a minute. `CHRONFS_CRASH_CYCLES` sets their number; the soak is the same test with a large one:
//!
//! ```text
//! CHRONFS_CRASH_CYCLES=1000000 cargo test --release --test crash -- --nocapture
//! ```
#![allow(clippy::unwrap_used, clippy::panic, unsafe_code)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use chronfs::queue::{Entry, Queue, Settings, Start, Waiter};

#[path = "common/random.rs"]
mod random;

use random::Random;

const QUEUE: &str = "CHRONFS_CRASH_QUEUE";
const CYCLES: &str = "CHRONFS_CRASH_CYCLES";
const SETTINGS: Settings = Settings {
    segment_size: 64 << 10,
    checksum: chronfs::queue::Checksum::Crc32c,
    max_bytes: None,
    // What the checker has seen goes after a while, by the victims' own hand: they are killed in that too.
    retain_bytes: Some(256 << 10),
    retain_age_ns: None,
    retain_segments: None,
    reader_ttl_ns: None,
    max_lag_bytes: None,
};

fn payload(seq: u64) -> Vec<u8> {
    let mut payload = seq.to_le_bytes().to_vec();
    payload.resize(8 + usize::try_from(seq * 7919 % 600).unwrap(), u8::try_from(seq % 251).unwrap());
    payload
}

/// Appends in every way there is, until killed.
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
        record.commit();
    }
}

/// Reads and commits, over and over, until killed. Says when it has committed once.
fn read(queue: &Queue) -> ! {
    let mut reader = queue.reader("victim").unwrap();
    let mut word = Some("committed");
    loop {
        while reader.next().unwrap().is_some() {
            reader.commit();
            word.take().into_iter().for_each(|word| println!("{word} {}", std::process::id()));
        }
        reader.seek_seq(1).unwrap();
    }
}

/// Forks a victim for each line of its input, which says its number; waits for its end at the next line.
#[test]
#[ignore = "is started by the others"]
fn the_mother_of_the_victims() {
    let Some(path) = std::env::var_os(QUEUE) else { return };
    let mut lines = std::io::stdin().lines();
    while let Some(Ok(part)) = lines.next() {
        // SAFETY: this process has one thread (the harness runs a single test on its main thread), so that the child is
        // whole.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            println!("victim {}", std::process::id());
            let queue = Queue::open(PathBuf::from(path)).unwrap();
            if part == "write" { write(&queue) } else { read(&queue) }
        }
        if lines.next().is_none() {
            // The test has been ended itself: no victim outlives it.
            // SAFETY: our own child, not waited for yet.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        let mut status = 0;
        // SAFETY: waits for our own child.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        println!("status {status}");
    }
}

/// The process that forks victims. Ends, and lets its victim be killed, with the test.
struct Mother {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    victim: Option<libc::pid_t>,
}

impl Mother {
    fn of(queue: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_mother_of_the_victims", "--ignored", "--nocapture", "--test-threads=1"])
            .env(QUEUE, queue)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let (input, output) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, input, output, victim: None }
    }

    fn answer(&mut self, word: &str) -> i32 {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            // The harness says the test's name in front of the first one.
            if let Some((_, number)) = line.trim_end().rsplit_once(&format!("{word} ")) {
                return number.parse().unwrap();
            }
            line.clear();
        }
        panic!("the process that forks the victims has ended");
    }

    fn start(&mut self, part: &str) {
        writeln!(self.input, "{part}").unwrap();
        self.victim = Some(self.answer("victim"));
    }

    /// Waits until the victim says this. An earlier one may have said it too, and died before anybody asked.
    fn wait_for(&mut self, word: &str) {
        while Some(self.answer(word)) != self.victim {}
    }

    fn kill(&mut self) {
        // SAFETY: the mother has not waited for it, so that the number is its own.
        assert_eq!(unsafe { libc::kill(self.victim.take().unwrap(), libc::SIGKILL) }, 0);
        writeln!(self.input).unwrap();
        assert_eq!(self.answer("status"), libc::SIGKILL, "the victim was to be killed, but ended by itself");
    }
}

impl Drop for Mother {
    fn drop(&mut self) {
        if let Some(victim) = self.victim {
            // SAFETY: as in `kill`.
            unsafe { libc::kill(victim, libc::SIGKILL) };
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn cycles(default: u64) -> u64 {
    std::env::var(CYCLES).ok().map_or(default, |cycles| cycles.parse().unwrap())
}

/// In memory where there is such a place: the kernel's caches are what a kill leaves either way.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn wait_until(waiter: &Waiter, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let ticket = waiter.prepare();
        if reached() {
            return;
        }
        assert!(Instant::now() < deadline, "the writer does not get on");
        waiter.wait(ticket, Duration::from_millis(100));
    }
}

fn spin(count: u64) {
    (0..count).for_each(|_| std::hint::spin_loop());
}

/// Says how far a long run is.
fn report(what: &str, cycle: u64, cycles: u64, seen: u64, started: Instant) {
    if cycle == cycles || cycle.is_multiple_of(1000) {
        eprintln!("{what}: {cycle} kills in {:.0?}, {seen} messages", started.elapsed());
    }
}

#[test]
fn a_writer_killed_at_any_moment_loses_nothing_that_was_visible() {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = Queue::create(&path, &SETTINGS).unwrap();
    let waiter = queue.waiter().unwrap();
    let mut checker = queue.reader("checker").unwrap();
    let mut mother = Mother::of(&path);
    let mut random = Random(0x5EED);
    let (mut seen, started, cycles) = (0, Instant::now(), cycles(1000));
    for cycle in 1..=cycles {
        mother.start("write");
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
        // Now and then it dies before it has appended anything, in what the one before has left.
        if random.below(8) > 0 {
            wait_until(&waiter, &mut check);
        }
        // A little further, to die anywhere in the work.
        spin(random.below(30_000));
        mother.kill();
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
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = Queue::create(&path, &Settings { retain_bytes: None, ..SETTINGS }).unwrap();
    let mut writer = queue.writer().unwrap();
    (1..=3000).for_each(|seq| assert_eq!(writer.append(1, &payload(seq)).unwrap(), seq));
    queue.add_reader("victim").unwrap();
    let mut mother = Mother::of(&path);
    let mut random = Random(0xC0FFEE);
    let (started, cycles) = (Instant::now(), cycles(1000));
    for cycle in 1..=cycles {
        mother.start("read");
        // Now and then it dies before it has committed anything.
        if random.below(8) > 0 {
            mother.wait_for("committed");
        }
        spin(random.below(50_000));
        mother.kill();
        let position = queue.reader_position("victim").unwrap();
        assert!((1..=3001).contains(&position), "cycle {cycle}: {position}");
        let options = chronfs::queue::ReaderOptions { start: Start::Resume, ..Default::default() };
        let mut reader = queue.reader_with("victim", &options).unwrap();
        assert_eq!(reader.seq(), position);
        if let Some(entry) = reader.next().unwrap() {
            assert_eq!(entry.message().map(|message| message.seq), Some(position), "cycle {cycle}");
        }
        report("reader", cycle, cycles, 3000, started);
    }
}
