//! Every system call that can fail, fails: the Nth one, once or from then on. No panic, a clean error, nothing
//! lost afterwards, and the next run works.
//!
//! `strace` makes them fail in the real `chron-cli`. Here a few N of each; every N with:
//!
//! ```text
//! CHRONFS_SOAK=1 cargo test --test system_calls -- --nocapture
//! ```
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use chronfs::queue::{Entry, Error, Queue, QueueWriter, Settings, SyncPolicy, WriterOptions};

mod common;

use common::need::{Need, require};

/// Messages in the queue before each run.
const BEFORE: u64 = 90;
/// Messages that an append run appends: more than fit into the first segment.
const APPENDED: u64 = 60;

/// What fails, with what.
const FAULTS: [(&str, &str); 19] = [
    ("openat", "EMFILE"),
    ("openat", "EACCES"),
    ("fallocate", "ENOSPC"),
    ("fallocate", "EDQUOT"),
    ("mmap", "ENOMEM"),
    ("madvise", "EFAULT"),
    ("ftruncate", "EIO"),
    ("renameat2", "EIO"),
    ("fsync", "EIO"),
    ("fdatasync", "EIO"),
    ("msync", "EIO"),
    ("pread64", "EIO"),
    ("pwrite64", "ENOSPC"),
    ("fcntl", "ENOLCK"),
    ("flock", "EIO"),
    ("getdents64", "EIO"),
    ("unlinkat", "EIO"),
    ("membarrier", "EPERM"),
    ("clone3", "EAGAIN"),
];

/// The first sync of each thread fails.
const FIRST_SYNC_FAILS: &str = "fdatasync:error=EIO:when=1";
/// Each thread can start one other thread.
const NO_MORE_THREADS: &str = "clone3:error=EAGAIN:when=2+";
/// The first sync of each thread starts 5 s late.
const FIRST_SYNC_IS_SLOW: &str = "fdatasync:delay_enter=5s:when=1";

fn payload(seq: u64) -> String {
    format!("message {seq} {}", "x".repeat(600))
}

/// What a run does with the queue in the current directory.
struct Operation {
    name: &'static str,
    arguments: &'static [&'static str],
    /// The number of messages after success.
    after: u64,
}

const OPERATIONS: [Operation; 5] = [
    Operation { name: "append", arguments: &["append", "--sync", "q", "input"], after: BEFORE + APPENDED },
    Operation {
        name: "consume",
        arguments: &["tail", "--reader", "alice", "--commit", "--format", "txt", "q"],
        after: BEFORE,
    },
    Operation { name: "register", arguments: &["readers", "q", "add", "bob"], after: BEFORE },
    Operation { name: "inspect", arguments: &["inspect", "q"], after: BEFORE },
    Operation { name: "make", arguments: &["append", "new", "input"], after: BEFORE },
];

fn make_template(dir: &Path) {
    let queue = Queue::create(dir.join("q"), &Settings { segment_size: 64 << 10, ..Settings::default() }).unwrap();
    queue.add_reader("alice").unwrap();
    let mut writer = queue.writer().unwrap();
    (1..=BEFORE).for_each(|seq| assert_eq!(writer.append(1, payload(seq).as_bytes()).unwrap(), seq));
    let lines: Vec<_> = (BEFORE + 1..=BEFORE + APPENDED).map(payload).collect();
    std::fs::write(dir.join("input"), lines.join("\n")).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").args(["-r", "--sparse=always"]).arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// Runs `chron-cli` under strace in a fresh copy of the template.
fn trace(template: &Path, scratch: &Path, operation: &Operation, expression: &str) -> Output {
    let _ = std::fs::remove_dir_all(scratch);
    copy(template, scratch);
    Command::new("timeout")
        .args(["-k", "1", "20", "strace", "-f", "-qq", "-o", "trace", "-e", expression])
        .arg(env!("CARGO_BIN_EXE_chron-cli"))
        .args(operation.arguments)
        .current_dir(scratch)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// How often the operation makes this call when nothing fails.
fn count_calls(template: &Path, scratch: &Path, operation: &Operation, call: &str) -> u64 {
    let output = trace(template, scratch, operation, &format!("trace={call}"));
    assert!(output.status.success(), "{}: {}", operation.name, String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(scratch.join("trace")).unwrap();
    text.lines().filter(|line| line.contains(&format!(" {call}("))).count() as u64
}

fn check(path: &Path, context: &str) -> u64 {
    let queue = Queue::open(path).unwrap_or_else(|error| panic!("{context}: {error}"));
    let mut scanner = queue.scan().unwrap();
    let mut count = 0;
    while let Some(entry) = scanner.next().unwrap() {
        let Entry::Message(message) = entry else { panic!("{context}: {entry:?}") };
        count += 1;
        assert_eq!(message.seq, count, "{context}");
        assert!(message.payload == payload(count).as_bytes(), "{context}: message {count}");
    }
    count
}

fn check_run(scratch: &Path, operation: &Operation, output: &Output, context: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let context = format!("{context}: {}\n{stderr}", output.status);
    // Nothing can be done without memory for the program itself: the runtime's messages for that are allowed.
    let is_out_of_memory = ["memory allocation of", "alternative stack", "shared libraries"];
    let excused = context.contains("mmap") && is_out_of_memory.iter().any(|words| stderr.contains(words));
    assert!(excused || !stderr.contains("panicked"), "{context}");
    assert!(excused || matches!(output.status.code(), Some(0 | 1 | 2 | 127)), "{context}");
    assert!(output.status.success() || !stderr.is_empty(), "it fails without a message: {context}");
    let count = check(&scratch.join("q"), &context);
    assert!((BEFORE..=operation.after).contains(&count), "{context}: {count} messages");
    if output.status.success() {
        assert_eq!(count, operation.after, "{context}");
    }
    let queue = Queue::open(scratch.join("q")).unwrap();
    let position = queue.reader_position("alice").unwrap();
    assert!((1..=BEFORE + 1).contains(&position), "{context}");
    let printed = String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with("message ")).count();
    assert!(position <= printed as u64 + 1, "{context}: consumed up to {position}, printed {printed}");
    let mut writer = queue.writer().unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(writer.append(1, payload(count + 1).as_bytes()).unwrap(), count + 1, "{context}");
    drop(writer);
    assert_eq!(check(&scratch.join("q"), &context), count + 1);
    // A queue that was being created exists or does not, and can be created or used now.
    drop(Queue::open_or_create(scratch.join("new"), &Settings::default()).unwrap().writer().unwrap());
    Queue::open(scratch.join("q")).unwrap().reader("bob").unwrap_or_else(|error| panic!("{context}: {error}"));
}

/// Which of the calls fail (`more`: and all after it): every one after the program's start in a soak, else a few.
fn numbers(start: u64, count: u64, more: &str) -> Vec<u64> {
    if std::env::var_os("CHRONFS_SOAK").is_some() {
        return (start + 1..=count).collect();
    }
    let middle = start + (count - start) / 2;
    let mut few = if more.is_empty() { vec![middle, count] } else { vec![start + 1, start + 2, middle] };
    few.retain(|&number| number > start && number <= count);
    few.dedup();
    few
}

/// The template and a place for runs in a directory; None where there is no strace.
#[track_caller]
fn prepare(dir: &Path) -> Option<(PathBuf, PathBuf)> {
    if !require(Need::Strace) {
        return None;
    }
    let (template, scratch) = (dir.join("template"), dir.join("run"));
    std::fs::create_dir(&template).unwrap();
    make_template(&template);
    Some((template, scratch))
}

/// Runs a test of this file again, alone and with a fault in system calls, as strace names it; true in that run.
#[track_caller]
fn runs_with(fault: &str, test: &str) -> bool {
    const AGAIN: &str = "CHRONFS_WITH_A_FAULT";
    if std::env::var_os(AGAIN).is_some() {
        return true;
    }
    if !require(Need::Strace) {
        return false;
    }
    let output = Command::new("timeout")
        .args(["-k", "1", "60", "strace", "-f", "-qq", "-o", "/dev/null", "-e", &format!("inject={fault}")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(AGAIN, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    false
}

/// A queue with one message, and its writer.
fn one_message(sync: SyncPolicy) -> (tempfile::TempDir, Queue, QueueWriter) {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::create(dir.path().join("q"), &Settings::default()).unwrap();
    let mut writer = queue.writer_with(&WriterOptions { sync, ..WriterOptions::default() }).unwrap();
    writer.append(1, payload(1).as_bytes()).unwrap();
    (dir, queue, writer)
}

/// What a writer with a failed sync must do, although the next sync would work.
fn refuses_further_work(queue: &Queue, mut writer: QueueWriter, appended: u64) {
    assert!(matches!(writer.append(1, b"x"), Err(Error::Poisoned { .. })));
    assert!(matches!(writer.flush_sync(), Err(Error::Poisoned { .. })));
    assert!(matches!(writer.check(), Err(Error::Poisoned { .. })));
    // Readers go on, and so does the next writer.
    assert_eq!(check(queue.path(), "beside a writer that has stopped"), appended);
    drop(writer);
    let mut writer = queue.writer().unwrap();
    assert_eq!(writer.append(1, payload(appended + 1).as_bytes()).unwrap(), appended + 1);
}

#[test]
fn a_writer_whose_sync_has_failed_refuses_further_work() {
    if !runs_with(FIRST_SYNC_FAILS, "a_writer_whose_sync_has_failed_refuses_further_work") {
        return;
    }
    let (_dir, queue, mut writer) = one_message(SyncPolicy::Manual);
    assert!(matches!(writer.flush_sync(), Err(Error::Io { .. })));
    refuses_further_work(&queue, writer, 1);
}

#[test]
fn a_writer_whose_sync_has_failed_in_the_background_refuses_further_work() {
    if !runs_with(FIRST_SYNC_FAILS, "a_writer_whose_sync_has_failed_in_the_background_refuses_further_work") {
        return;
    }
    let every = SyncPolicy::Every { messages: 1, interval: Duration::from_millis(1) };
    let (_dir, queue, mut writer) = one_message(every);
    let start = Instant::now();
    while writer.check().is_ok() {
        assert!(start.elapsed() < Duration::from_secs(30), "the failure is not noticed");
        std::thread::yield_now();
    }
    refuses_further_work(&queue, writer, 1);
}

#[test]
fn nothing_is_removed_before_its_numbers_would_survive_a_power_cut() {
    if !runs_with(FIRST_SYNC_FAILS, "nothing_is_removed_before_its_numbers_would_survive_a_power_cut") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::create(dir.path().join("q"), &Settings { retain_segments: Some(1), ..common::SMALL }).unwrap();
    queue.add_reader("keeps-all").unwrap();
    common::append(&mut queue.writer().unwrap(), 400, |seq| payload(seq).into_bytes());
    queue.remove_reader("keeps-all").unwrap();
    let segments = || queue.inspect().unwrap().segments.len();
    let (before, sealed) = (segments(), queue.inspect().unwrap().segments.iter().filter(|it| it.sealed).count());
    let failed = queue.apply_retention().unwrap_err();
    assert!(failed.to_string().contains("control.meta"), "{failed}");
    assert_eq!(segments(), before);
    assert!(queue.apply_retention().is_err(), "what the disk has refused once may never get there");
    let again = Queue::open(queue.path()).unwrap();
    assert_eq!(again.apply_retention().unwrap().removed.len(), sealed - 1);
}

#[test]
fn no_append_waits_for_a_sync_in_the_background() {
    if !runs_with(FIRST_SYNC_IS_SLOW, "no_append_waits_for_a_sync_in_the_background") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::create(dir.path().join("q"), &common::SMALL).unwrap();
    let sync = SyncPolicy::Every { messages: 1, interval: Duration::from_millis(1) };
    let mut writer = queue.writer_with(&WriterOptions { sync, ..WriterOptions::default() }).unwrap();
    while writer.stats().rolls < 8 {
        writer.append(1, &[b'x'; 8 << 10]).unwrap();
    }
    assert_eq!(writer.stats().syncs, 0, "the appends took as long as the sync");
    common::until("everything is synced", || writer.stats().syncs > 0);
}

#[test]
fn without_more_threads_segments_are_removed_and_syncs_done_nevertheless() {
    if !runs_with(NO_MORE_THREADS, "without_more_threads_segments_are_removed_and_syncs_done_nevertheless") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { retain_segments: Some(2), ..common::SMALL };
    let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
    let mut writer = queue.writer().unwrap();
    while writer.stats().rolls < 40 {
        writer.append(1, &[b'x'; 8 << 10]).unwrap();
    }
    common::until("old segments are removed", || queue.inspect().unwrap().segments.len() <= 5);
    writer.flush_async().unwrap();
    common::until("everything is synced", || writer.stats().syncs > 0);
}

#[test]
fn without_more_threads_a_writer_with_a_sync_policy_opens_and_syncs() {
    if !runs_with(NO_MORE_THREADS, "without_more_threads_a_writer_with_a_sync_policy_opens_and_syncs") {
        return;
    }
    let every = SyncPolicy::Every { messages: 1, interval: Duration::from_millis(1) };
    let (_dir, _queue, writer) = one_message(every);
    common::until("everything is synced", || writer.stats().syncs > 0);
}

#[test]
fn an_interrupted_call_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let Some((template, scratch)) = prepare(dir.path()) else { return };
    let append = &OPERATIONS[0];
    let mut runs = 0;
    // Not `futex`: that would drop a wake, which no system does.
    for call in ["openat", "fallocate", "pread64", "pwrite64", "fsync", "fdatasync", "ftruncate"] {
        let nothing = Operation { name: "nothing", arguments: &["--version"], after: BEFORE };
        let start = count_calls(&template, &scratch, &nothing, call);
        let count = count_calls(&template, &scratch, append, call);
        for number in numbers(start, count, "") {
            let expression = format!("inject={call}:error=EINTR:when={number}");
            let output = trace(&template, &scratch, append, &expression);
            assert!(output.status.success(), "{expression}: {}", String::from_utf8_lossy(&output.stderr));
            check_run(&scratch, append, &output, &expression);
            runs += 1;
        }
    }
    eprintln!("{runs} runs with an interrupted system call");
    assert!(runs >= 8, "{runs}");
}

#[test]
fn any_system_call_may_fail() {
    let dir = tempfile::tempdir().unwrap();
    let Some((template, scratch)) = prepare(dir.path()) else { return };
    let nothing = Operation { name: "nothing", arguments: &["--version"], after: BEFORE };
    let (mut runs, mut failed) = (0, 0);
    for operation in &OPERATIONS {
        for (call, error) in FAULTS {
            let start = count_calls(&template, &scratch, &nothing, call);
            let count = count_calls(&template, &scratch, operation, call);
            for more in ["", "+"] {
                for number in numbers(start, count, more) {
                    let expression = format!("inject={call}:error={error}:when={number}{more}");
                    let output = trace(&template, &scratch, operation, &expression);
                    check_run(&scratch, operation, &output, &format!("{} {expression}", operation.name));
                    (runs, failed) = (runs + 1, failed + u64::from(!output.status.success()));
                }
            }
        }
    }
    eprintln!("{runs} runs with a failing system call, {failed} of them ended with an error");
    assert!(failed > runs / 4, "the calls did not fail");
}
