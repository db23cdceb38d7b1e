//! Limits and strange surroundings: file size and descriptor limits, a read-only file system, another pid namespace, a
//! writer that is stopped in its tracks.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use chronfs::queue::{Entry, Error, Queue, Settings, WriterState};

const CLI: &str = env!("CARGO_BIN_EXE_chron-cli");

fn new_queue(path: &Path, messages: u64) -> Queue {
    let queue = Queue::create(path, &Settings { segment_size: 64 << 10, ..Settings::default() }).unwrap();
    let mut writer = queue.writer().unwrap();
    (0..messages).for_each(|_| assert!(writer.append(1, &[b'x'; 900]).unwrap() > 0));
    queue
}

fn count(queue: &Queue) -> u64 {
    let mut scanner = queue.scan().unwrap();
    let mut count = 0;
    while let Some(entry) = scanner.next().unwrap() {
        count += 1;
        assert_eq!(entry.message().map(|message| message.seq), Some(count));
    }
    count
}

fn sh(dir: &Path, script: &str) -> Output {
    let script = format!("cli={CLI}; {script}");
    Command::new("timeout").args(["-k", "1", "20", "bash", "-c", &script]).current_dir(dir).output().unwrap()
}

/// It has failed by itself, with words and without a panic or a signal.
fn assert_clean_failure(output: &Output, context: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{context}: {} {stderr}", output.status);
    assert!(!stderr.is_empty() && !stderr.contains("panicked"), "{context}: {stderr}");
}

#[test]
fn a_limit_of_the_file_size_is_an_error_and_no_signal() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(&dir.path().join("q"), 60);
    std::fs::write(dir.path().join("input"), "line\n".repeat(5000)).unwrap();
    for kilobytes in [0, 1, 4, 8, 63] {
        let output = sh(dir.path(), &format!("ulimit -f {kilobytes}; exec $cli append q input"));
        assert_clean_failure(&output, &format!("append with a limit of {kilobytes} KiB"));
        let output = sh(dir.path(), &format!("ulimit -f {kilobytes}; exec $cli append new{kilobytes} input"));
        assert_clean_failure(&output, &format!("making with a limit of {kilobytes} KiB"));
        let output = sh(dir.path(), &format!("ulimit -f {kilobytes}; exec $cli readers q add r{kilobytes}"));
        if kilobytes < 4 {
            assert_clean_failure(&output, &format!("registering with a limit of {kilobytes} KiB"));
        }
    }
    let before = count(&queue);
    assert_eq!(queue.writer().unwrap().append(1, b"there is room").unwrap(), before + 1);
}

#[test]
fn too_few_descriptors_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(&dir.path().join("q"), 60);
    std::fs::write(dir.path().join("input"), "line\n".repeat(5000)).unwrap();
    let mut failed = 0;
    for most in 4..16 {
        for command in ["append q input", "tail -n +1 q", "inspect q", "readers q add bob"] {
            let output = sh(dir.path(), &format!("ulimit -n {most}; exec $cli {command}"));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(!stderr.contains("panicked"), "{most} {command}: {stderr}");
            let code = output.status.code();
            assert!(matches!(code, Some(0 | 1 | 126 | 127)), "{most} {command}: {} {stderr}", output.status);
            failed += u64::from(code != Some(0));
        }
    }
    assert!(failed > 4);
    let before = count(&queue);
    assert_eq!(queue.writer().unwrap().append(1, b"still sound").unwrap(), before + 1);
}

/// Detached with the test, also when that fails.
struct ReadOnly<'a>(&'a Path);

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).output();
    }
}

#[test]
fn a_queue_on_a_read_only_file_system_can_be_read_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    new_queue(&dir.path().join("q"), 100);
    let point = dir.path().join("ro");
    std::fs::create_dir(&point).unwrap();
    let bound = Command::new("mount").args(["--bind", "-o", "ro"]).arg(dir.path().join("q")).arg(&point).output();
    if !bound.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no permission to mount");
        return;
    }
    let _mounted = ReadOnly(&point);
    let queue = Queue::open(&point).unwrap();
    assert_eq!(count(&queue), 100);
    assert!(queue.inspect().is_ok());
    let waiter = queue.waiter().unwrap();
    waiter.wait(waiter.prepare(), Duration::from_millis(1));
    for error in [queue.writer().err(), queue.reader("alice").err()] {
        let error = error.unwrap();
        let is_read_only = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ReadOnlyFilesystem;
        assert!(matches!(&error, Error::Io { source, .. } if is_read_only(source)), "{error}");
    }
}

#[test]
fn a_writer_in_another_pid_namespace_is_kept_out_and_not_given_a_wrong_name() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(&dir.path().join("q"), 3);
    if !sh(dir.path(), "unshare -pf --mount-proc true").status.success() {
        eprintln!("skipped: no permission for another pid namespace");
        return;
    }
    let writer = queue.writer().unwrap();
    let output = sh(dir.path(), "echo hello | unshare -pf --mount-proc $cli append q");
    assert_clean_failure(&output, "append from another pid namespace");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains(&format!("process {}", std::process::id())), "{stderr}");
    drop(writer);
    assert!(sh(dir.path(), "echo hello | unshare -pf --mount-proc $cli append q").status.success());
    assert_eq!(count(&queue), 4);
}

/// Ends with the test, also when that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain: until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_stopped_writer_keeps_its_lock_and_is_called_stuck() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(&dir.path().join("q"), 3);
    let child = Command::new(CLI)
        .args(["append", "q"])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    child.0.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
    until("the writer is at work", || queue.writer_info().state == WriterState::Alive);
    let pid = child.0.id().to_string();
    assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    until("it is noticed", || queue.writer_info().state == WriterState::Stuck);
    assert_eq!(queue.writer_info().pid, Some(child.0.id()));
    assert!(matches!(queue.writer(), Err(Error::Locked { .. })), "nobody breaks the lock of a stopped writer");
    assert!(Command::new("kill").args(["-CONT", &pid]).status().unwrap().success());
    until("it is back", || queue.writer_info().state == WriterState::Alive);
    child.0.stdin = None;
    assert!(child.0.wait().unwrap().success());
    assert_eq!(count(&queue), 4);
}

#[test]
fn retention_under_readers_takes_nothing_that_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { segment_size: 64 << 10, retain_segments: Some(1), ..Settings::default() };
    let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
    let mut writer = queue.writer().unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Unregistered: retention waits for none of them.
        let scans: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let (mut next, mut missed) = (1, 0);
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let mut scanner = queue.scan().unwrap();
                        scanner.seek_seq(next).unwrap();
                        while let Some(entry) = scanner.next().unwrap() {
                            match entry {
                                Entry::Message(message) => {
                                    assert!(message.seq >= next && message.payload == [7; 700]);
                                    next = message.seq + 1;
                                    std::thread::yield_now();
                                }
                                Entry::Gap(gap) => {
                                    assert!(gap.from >= next && gap.to >= gap.from, "{gap:?} at {next}");
                                    assert_ne!(gap.reason, chronfs::queue::GapReason::Checksum, "{gap:?}");
                                    (next, missed) = (gap.to + 1, missed + 1);
                                }
                            }
                        }
                    }
                    missed
                })
            })
            .collect();
        for _ in 0..20_000 {
            writer.append(1, &[7; 700]).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let missed: u64 = scans.into_iter().map(|scan| scan.join().unwrap()).sum();
        eprintln!("{missed} gaps by retention");
    });
}
