//! A mapped file is truncated while processes use it: they get an error or a gap, never `SIGBUS`, and what was whole
//! before stays whole. Real processes, because what is tested is that they don't die.
//!
//! The test is its own child: with `CHRONFS_CUT_QUEUE` set it plays the part that `CHRONFS_CUT_PART` names, line by
//! line with its parent.
#![allow(clippy::unwrap_used, clippy::panic, unsafe_code)]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use chronfs::queue::{Entry, Error, GapReason, Queue, QueueReader, Settings, disable_sigbus_handler};

const QUEUE: &str = "CHRONFS_CUT_QUEUE";
const PART: &str = "CHRONFS_CUT_PART";
mod common;

const SEGMENT: u32 = 256 << 10;
const PAYLOAD: usize = 1000;

fn payload(seq: u64) -> Vec<u8> {
    let mut payload = seq.to_le_bytes().to_vec();
    payload.resize(PAYLOAD, u8::try_from(seq % 251).unwrap() + 1);
    payload
}

fn queue(dir: &Path, messages: u64) -> Queue {
    let queue = common::grown(&dir.join("q"), &Settings { segment_size: SEGMENT, ..Settings::default() });
    let mut writer = queue.writer().unwrap();
    (1..=messages).for_each(|seq| assert_eq!(writer.append(1, &payload(seq)).unwrap(), seq));
    queue
}

fn cut(file: &Path, len: u64) {
    File::options().write(true).open(file).unwrap().set_len(len).unwrap();
}

/// The other process.
struct Other {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Other {
    fn start(part: &str, queue: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_other_process", "--nocapture", "--ignored"])
            .env(QUEUE, queue)
            .env(PART, part)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut other = Self { child, input, output };
        other.expect("ready");
        other
    }

    /// Reads on until a line that begins so; returns the rest of it.
    fn expect(&mut self, word: &str) -> String {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            if let Some(rest) = line.trim_end().strip_prefix(word) {
                return rest.trim_start().to_owned();
            }
            line.clear();
        }
        panic!("the other process exited, {:?}, before it said {word:?}", self.child.wait().unwrap());
    }

    fn go_on(&mut self) {
        writeln!(self.input, "go on").unwrap();
    }

    fn end(mut self) -> ExitStatus {
        drop(self.input);
        self.child.wait().unwrap()
    }
}

fn say(line: &str) {
    println!("{line}");
}

fn wait_for_parent() {
    let mut line = String::new();
    assert!(std::io::stdin().read_line(&mut line).unwrap() > 0);
}

fn say_what_is_read(reader: &mut QueueReader) {
    let (mut last, mut bad) = (0, 0);
    loop {
        match reader.next() {
            Ok(Some(Entry::Message(message))) => {
                bad += u64::from(message.payload != payload(message.seq));
                last = message.seq;
            }
            Ok(Some(Entry::Gap(gap))) => {
                say(&format!("gap {} {} {} {}", gap.from, gap.to, gap.reason.as_str(), gap.position.segment));
            }
            Ok(None) => break say(&format!("end {last} bad {bad}")),
            Err(error) => break say(&format!("error {error}")),
        }
    }
}

extern "C" fn leave(_: libc::c_int) {
    // SAFETY: exits the process at once.
    unsafe { libc::_exit(42) };
}

extern "C" fn leave_if_blocked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: a valid place for the answer; calls that a handler may make.
    unsafe {
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut blocked);
        libc::_exit(if libc::sigismember(&raw const blocked, libc::SIGUSR1) == 1 { 42 } else { 43 });
    }
}

extern "C" fn say_fault(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: a call that a handler may make.
    unsafe { libc::write(1, c"fault\n".as_ptr().cast(), 6) };
}

/// Installs a handler with `SIGUSR1` blocked while it runs.
fn handle(handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void), flags: libc::c_int) {
    // SAFETY: a complete action, of a handler that does what handlers may do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | flags;
        libc::sigaddset(&raw mut action.sa_mask, libc::SIGUSR1);
        assert_eq!(libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// A fault in a mapping that is not the engine's.
fn fault_elsewhere(path: &Path) {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path.join("mine")).unwrap();
    file.set_len(8192).unwrap();
    // SAFETY: a test of what happens when the file is changed.
    let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
    file.set_len(0).unwrap();
    say(&format!("read {}", map[4096]));
}

#[test]
#[ignore = "is started by the others"]
fn the_other_process() {
    let Some(path) = std::env::var_os(QUEUE) else { return };
    let path = Path::new(&path);
    let part = std::env::var(PART).unwrap();
    if part == "reader without" {
        assert!(disable_sigbus_handler());
    }
    if part == "elsewhere handled" {
        // SAFETY: the handler only exits the process.
        unsafe { libc::signal(libc::SIGBUS, leave as *const () as usize) };
    }
    match part.as_str() {
        "elsewhere masked" => handle(leave_if_blocked, 0),
        "elsewhere once" => handle(say_fault, libc::SA_RESETHAND),
        _ => {}
    }
    let queue = Queue::open(path).unwrap();
    match part.as_str() {
        "writer" => {
            let mut writer = queue.writer().unwrap();
            say("ready");
            wait_for_parent();
            for count in 0.. {
                let seq = writer.next_seq();
                if let Err(error) = writer.append(1, &payload(seq)) {
                    say(&format!("appended {count}"));
                    say(&format!("error {error}"));
                    assert!(matches!(error, Error::Poisoned { .. }));
                    // Not even a small one that would fit.
                    assert!(matches!(writer.append(1, b""), Err(Error::Poisoned { .. })));
                    assert!(matches!(writer.flush_sync(), Err(Error::Poisoned { .. })));
                    break;
                }
            }
        }
        "flushing writer" => {
            let mut writer = queue.writer().unwrap();
            writer.append(1, &payload(writer.next_seq())).unwrap();
            say("ready");
            wait_for_parent();
            say(&format!("error {}", writer.flush_sync().unwrap_err()));
        }
        "elsewhere" | "elsewhere handled" | "elsewhere masked" | "elsewhere once" => {
            let _writer = queue.writer().unwrap();
            say("ready");
            fault_elsewhere(path);
        }
        _ => {
            let mut reader = queue.reader("other").unwrap();
            reader.next().unwrap();
            reader.commit();
            say("ready");
            wait_for_parent();
            say_what_is_read(&mut reader);
            if part == "cursor" {
                reader.commit();
                say(&format!("error {}", reader.commit_sync().unwrap_err()));
            }
            if part == "cursor" || part == "control" {
                say(&format!("error {}", reader.wait(Some(Duration::from_secs(60))).unwrap_err()));
            }
            if part == "reader twice" {
                say("read");
                wait_for_parent();
                assert!(reader.wait(Some(Duration::from_secs(60))).unwrap());
                say_what_is_read(&mut reader);
            }
        }
    }
    // The harness reports what has failed by this process' end.
}

#[test]
fn a_writer_whose_segment_is_cut_short_gets_an_error_and_the_next_one_goes_on() {
    for keep in [0, 5000, 8192, 100_000] {
        let dir = tempfile::tempdir().unwrap();
        let queue = queue(dir.path(), 50);
        let segment = queue.path().join("000000000.q");
        let mut other = Other::start("writer", queue.path());
        cut(&segment, keep);
        other.go_on();
        let appended: u64 = other.expect("appended").parse().unwrap();
        assert!(appended < u64::from(SEGMENT) / PAYLOAD as u64, "noticed after {appended} messages");
        let error = other.expect("error");
        assert!(error.contains("000000000.q") && error.contains("the file was cut short"), "{error}");
        assert!(other.end().success());
        // What was whole stays whole, and the next writer assigns no number twice.
        let next = queue.writer().unwrap().append(1, &payload(0)).unwrap();
        assert!(next > 50, "{next}");
        let (mut scanner, mut whole, mut lost) = (queue.scan().unwrap(), 0, 0);
        while let Some(entry) = scanner.next().unwrap() {
            match entry {
                Entry::Message(message) if message.seq < next => {
                    assert_eq!(message.payload, payload(message.seq));
                    whole += 1;
                }
                Entry::Message(message) => assert_eq!(message.seq, next),
                Entry::Gap(gap) => {
                    assert!(matches!(gap.reason, GapReason::Segment | GapReason::Checksum), "{gap:?}");
                    lost += gap.to + 1 - gap.from;
                }
            }
        }
        assert_eq!(whole + lost, next - 1, "{keep}");
        let records = keep.saturating_sub(4096) / (PAYLOAD as u64 + 32);
        assert!(whole >= records.min(50), "{whole} of {records} that were left: {keep}");
    }
}

#[test]
fn a_flush_into_a_file_that_was_cut_short_does_not_succeed() {
    let dir = tempfile::tempdir().unwrap();
    let queue = queue(dir.path(), 50);
    for (file, keep) in [("000000000.q", 200_000), ("000000000.q", 0), ("control.meta", 0)] {
        let mut other = Other::start("flushing writer", queue.path());
        let active = if file == "control.meta" { file.to_owned() } else { newest_segment(queue.path()) };
        cut(&queue.path().join(&active), keep);
        other.go_on();
        let error = other.expect("error");
        assert!(error.contains(&active), "{error}");
        assert!(other.end().success());
    }
}

fn newest_segment(queue: &Path) -> String {
    let names = std::fs::read_dir(queue).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    // The last one may be prepared and not in use: the writers of this test stay in the one that they start with.
    names.filter(|name| name.ends_with(".q")).max().unwrap()
}

#[test]
fn a_reader_whose_segment_is_cut_short_gets_a_gap_and_goes_on() {
    // More than one segment, so that there is something to go on with.
    let dir = tempfile::tempdir().unwrap();
    let queue = queue(dir.path(), 600);
    let mut other = Other::start("reader", queue.path());
    cut(&queue.path().join("000000000.q"), 20_000);
    other.go_on();
    let gap = other.expect("gap");
    let words: Vec<&str> = gap.split(' ').collect();
    assert!(words[0].parse::<u64>().unwrap() > 10 && words[3] == "0", "{gap}");
    assert_eq!(other.expect("end"), "600 bad 0");
    assert!(other.end().success());
}

#[test]
fn a_reader_reads_on_in_a_file_that_was_cut_short_and_restored() {
    let dir = tempfile::tempdir().unwrap();
    let queue = queue(dir.path(), 100);
    let segment = queue.path().join("000000000.q");
    let bytes = std::fs::read(&segment).unwrap();
    let mut other = Other::start("reader twice", queue.path());
    cut(&segment, 20_000);
    other.go_on();
    let end = other.expect("end");
    assert!(end.ends_with("bad 0"), "{end}");
    other.expect("read");
    let file = File::options().write(true).open(&segment).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    other.go_on();
    assert_eq!(other.expect("end"), "100 bad 0");
    assert!(other.end().success());
}

#[test]
fn a_cursor_or_control_block_that_is_cut_short_is_an_error_that_names_it() {
    for (part, file, errors) in [("cursor", "readers/other.meta", 2), ("control", "control.meta", 1)] {
        let dir = tempfile::tempdir().unwrap();
        let queue = queue(dir.path(), 3);
        let mut other = Other::start(part, queue.path());
        cut(&queue.path().join(file), 0);
        other.go_on();
        other.expect("end 3 bad 0");
        for _ in 0..errors {
            let error = other.expect("error");
            assert!(error.contains("the file was cut short"), "{part}: {error}");
            assert!(error.contains(if errors == 2 { "readers" } else { file }), "{part}: {error}");
        }
        assert!(other.end().success());
    }
}

/// What this file's other tests would see without the protection; and that it is limited to the engine.
#[test]
fn without_the_handler_and_outside_the_engine_sigbus_is_what_it_always_was() {
    let dir = tempfile::tempdir().unwrap();
    let queue = queue(dir.path(), 50);
    let other = Other::start("elsewhere", queue.path());
    assert_eq!(other.end().signal(), Some(libc::SIGBUS));
    let other = Other::start("elsewhere handled", queue.path());
    assert_eq!(other.end().code(), Some(42), "the handler that was there before is called");
    let other = Other::start("elsewhere masked", queue.path());
    assert_eq!(other.end().code(), Some(42), "with the signals blocked that it asked for");
    let mut other = Other::start("elsewhere once", queue.path());
    other.expect("fault");
    assert_eq!(other.end().signal(), Some(libc::SIGBUS), "and only once if it asked for that");
    let mut other = Other::start("reader without", queue.path());
    cut(&queue.path().join("000000000.q"), 0);
    other.go_on();
    assert_eq!(other.end().signal(), Some(libc::SIGBUS));
}
