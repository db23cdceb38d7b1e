//! Limits and unusual environments: file size and descriptor limits, a read-only file system, another pid namespace, a
//! writer that is stopped, sleepers that are killed, words that wrap, clocks that jump.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use chronfs::queue::{
    Entry, Error, GapReason, LockHolder, Queue, ReaderOptions, Settings, WaitStrategy, WriterState, layout,
};

mod common;

use common::need::{Need, require};
use common::{Running, SMALL, count, filled, until};

const CLI: &str = env!("CARGO_BIN_EXE_chron-cli");

fn new_queue(path: &Path, messages: u64) -> Queue {
    filled(path, &SMALL, messages, |_| vec![b'x'; 900])
}

fn sh(dir: &Path, script: &str) -> Output {
    let script = format!("cli={CLI}; {script}");
    Command::new("timeout").args(["-k", "1", "20", "bash", "-c", &script]).current_dir(dir).output().unwrap()
}

/// It has failed with a message, not by a panic or a signal.
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

/// Whether containers can have their own clocks.
fn has_time_namespaces(dir: &Path) -> bool {
    let is_there = sh(dir, "unshare -T --boottime 100000 true").status.success();
    if !is_there {
        common::need::skip("there are no time namespaces");
    }
    is_there
}

/// A container whose boot-time clock is a day ahead: its stamps are current, and so are those that it reads.
#[test]
fn a_time_namespace_makes_nobody_old_or_of_the_future() {
    let dir = tempfile::tempdir().unwrap();
    if !require(Need::Admin) || !has_time_namespaces(dir.path()) {
        return;
    }
    let settings = Settings { reader_ttl_ns: Some(60_000_000_000), retain_segments: Some(1), ..SMALL };
    let queue = filled(&dir.path().join("q"), &settings, 1, |_| vec![b'x'; 900]);
    let ahead = "unshare -T --boottime 100000";
    for (there, here) in [(ahead, ""), ("", ahead), (ahead, "unshare -T --boottime 5")] {
        let ok = |place: &str, script: &str| {
            let output = sh(dir.path(), &script.replace("IN", place));
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{script} {place}: {stderr}");
            common::text(&output.stdout)
        };
        ok(there, "IN $cli tail --reader alice --commit q");
        let idle = ok(here, "IN $cli inspect --json q | jq '.readers[0].heartbeat_age_ms'");
        assert!(idle.trim().parse::<u64>().is_ok_and(|idle| idle < 50_000), "{there:?} {here:?}: {idle}");
        // A writer, with a heartbeat from there.
        let mut writer = Command::new("timeout");
        let words = there.split_whitespace().chain([CLI, "append", "q"]);
        writer.arg("60").args(words).current_dir(dir.path()).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut writer = Running::new(writer.spawn().unwrap());
        writer.child().stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
        until("it writes", || queue.writer_info().pid.is_some());
        assert_eq!(ok(here, "IN $cli inspect --json q | jq -r .writer.state"), "alive\n", "{there:?} {here:?}");
        writer.child().stdin = None;
        assert!(writer.output().status.success());
    }
    // Nothing that the reader has not consumed is removed.
    let before = queue.reader_position("alice").unwrap();
    common::append(&mut common::writer(&queue), 500, |_| vec![b'x'; 900]);
    queue.apply_retention().unwrap();
    assert!(queue.bounds().unwrap().first_seq <= before);
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
    if !require(Need::Admin) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    new_queue(&dir.path().join("q"), 100);
    let point = dir.path().join("ro");
    std::fs::create_dir(&point).unwrap();
    let bound = Command::new("mount").args(["--bind", "-o", "ro"]).arg(dir.path().join("q")).arg(&point).output();
    assert!(bound.unwrap().status.success());
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
fn a_writer_in_another_pid_namespace_is_kept_out_and_not_misidentified() {
    if !require(Need::Admin) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(&dir.path().join("q"), 3);
    let writer = queue.writer().unwrap();
    let output = sh(dir.path(), "echo hello | unshare -pf --mount-proc $cli append q");
    assert_clean_failure(&output, "append from another pid namespace");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains(&format!("process {}", std::process::id())), "{stderr}");
    drop(writer);
    assert!(sh(dir.path(), "echo hello | unshare -pf --mount-proc $cli append q").status.success());
    assert_eq!(count(&queue), 4);
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
    let mut child = Running::new(child);
    child.child().stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
    until("the writer is at work", || queue.writer_info().pid == Some(child.id()) && count(&queue) == 4);
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    until("it is noticed", || queue.writer_info().state == WriterState::Stuck);
    assert_eq!(queue.writer_info().pid, Some(child.id()));
    assert!(matches!(queue.writer(), Err(Error::Locked { .. })), "a stopped writer keeps its lock");
    assert!(Command::new("kill").args(["-CONT", &pid]).status().unwrap().success());
    until("it is back", || queue.writer_info().state == WriterState::Alive);
    child.child().stdin = None;
    assert!(child.child().wait().unwrap().success());
    assert_eq!(count(&queue), 4);
}

/// A word of the control block, as stored.
fn word(queue: &Queue, offset: u32) -> u32 {
    let bytes = std::fs::read(queue.path().join("control.meta")).unwrap();
    u32::from_le_bytes(bytes[offset as usize..][..4].try_into().unwrap())
}

fn is_somebody_asleep(queue: &Queue) -> bool {
    word(queue, layout::CONTROL_SLEEPING) != 0
}

#[test]
fn the_wake_word_may_wrap() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(&dir.path().join("q"), 0);
    let control = std::fs::File::options().write(true).open(queue.path().join("control.meta")).unwrap();
    let nearly = u32::MAX - 2;
    control.write_all_at(&nearly.to_le_bytes(), layout::CONTROL_NOTIFY_SEQ.into()).unwrap();
    let mut writer = queue.writer().unwrap();
    let options = ReaderOptions { wait: WaitStrategy::Sleep, ..ReaderOptions::default() };
    let mut reader = queue.reader_with("alice", &options).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for seq in 1..=8 {
                assert!(reader.wait(Some(Duration::from_secs(60))).unwrap());
                assert_eq!(reader.next().unwrap().and_then(Entry::message).map(|message| message.seq), Some(seq));
                reader.commit();
            }
        });
        for seq in 1..=8 {
            until("it sleeps", || is_somebody_asleep(&queue));
            writer.append(1, b"x").unwrap();
            until("it has read", || queue.reader_position("alice").unwrap() == seq + 1);
        }
    });
    let wrapped = word(&queue, layout::CONTROL_NOTIFY_SEQ);
    assert!(wrapped < 1000, "it should have wrapped: {wrapped}");
}

#[test]
fn a_sleeper_that_is_killed_costs_at_most_one_wake() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(&dir.path().join("q"), 3);
    let mut writer = queue.writer().unwrap();
    let child = Command::new(CLI)
        .args(["tail", "-f", "-n", "0", "q"])
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let child = Running::new(child);
    until("it sleeps", || is_somebody_asleep(&queue));
    drop(child);
    let before = word(&queue, layout::CONTROL_NOTIFY_SEQ);
    (0..1000).for_each(|_| assert!(writer.append(1, b"x").is_ok()));
    // Each wake increments the word. The flag that it left costs one wake; more would be a system call per append.
    assert!(word(&queue, layout::CONTROL_NOTIFY_SEQ).wrapping_sub(before) <= 1);
    assert!(!is_somebody_asleep(&queue));
}

#[test]
fn a_process_that_has_the_number_of_the_writer_is_not_taken_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(&dir.path().join("q"), 3);
    let _writer = queue.writer().unwrap();
    let path = queue.path().join("writer.lock");
    let text = std::fs::read_to_string(&path).unwrap();
    let me = std::process::id();
    assert_eq!(queue.writer_info().pid, Some(me));
    let field = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
    for (name, other) in [("started", "started 1"), ("boot", "boot x"), ("pid_namespace", "pid_namespace pid:[1]")] {
        // In the same file: the lock stays.
        std::fs::write(&path, text.replace(field(name), other)).unwrap();
        let info = queue.writer_info();
        assert_eq!((info.state, info.pid), (WriterState::Alive, None), "{name}");
        assert!(matches!(queue.writer(), Err(Error::Locked { holder: LockHolder::Unknown, .. })), "{name}");
    }
    // Nor does a killed one's id matter: without a lock there is no writer.
    std::fs::write(&path, &text).unwrap();
    drop(_writer);
    assert_eq!(queue.writer_info().state, WriterState::None);
}

/// `chron-cli` with its view of the wall clock shifted by this many seconds.
fn with_clock(dir: &Path, offset: &str, arguments: &str) -> Output {
    let script = format!("faketime -f '{offset}' {CLI} {arguments}");
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "60", "sh", "-c", &script]).current_dir(dir).stdin(Stdio::null());
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").output().unwrap()
}

#[test]
fn a_wall_clock_that_jumps_expires_no_reader_and_turns_no_timestamp_back() {
    if !require(Need::Faketime) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        segment_size: 64 << 10,
        retain_segments: Some(1),
        reader_ttl_ns: Some(600_000_000_000),
        ..Settings::default()
    };
    let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
    queue.add_reader("alice").unwrap();
    chronfs::bus::write_lease(queue.path(), Duration::from_secs(3600), "").unwrap();
    let mut writer = queue.writer().unwrap();
    (0..300).for_each(|_| assert!(writer.append(1, &[7; 900]).is_ok()));
    drop(writer);
    std::fs::write(dir.path().join("line"), "x\n").unwrap();
    for offset in ["+1000d", "-1000d", "+0"] {
        let output = with_clock(dir.path(), offset, "append q line");
        assert!(output.status.success(), "{offset}: {}", String::from_utf8_lossy(&output.stderr));
        let retained = with_clock(dir.path(), offset, "retain q");
        assert!(retained.status.success(), "{offset}: {}", String::from_utf8_lossy(&retained.stderr));
        let ls = with_clock(dir.path(), offset, "ls --json .");
        assert!(String::from_utf8_lossy(&ls.stdout).contains(r#""state":"live""#), "{offset}: {ls:?}");
    }
    let (mut scanner, mut last, mut count) = (queue.scan().unwrap(), 0, 0);
    while let Some(entry) = scanner.next().unwrap() {
        let message = entry.message().unwrap();
        assert!(message.timestamp_ns >= last, "{}", message.seq);
        (last, count) = (message.timestamp_ns, count + 1);
    }
    assert_eq!(count, 303, "what alice needs was removed");
    assert!(last > chronfs::clock::now_ns() + 900 * 86_400_000_000_000, "the clock should have jumped");
}

#[test]
fn retention_removes_nothing_that_a_registered_reader_needs_and_others_get_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { segment_size: 64 << 10, retain_segments: Some(1), ..Settings::default() };
    let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
    let mut writer = queue.writer().unwrap();
    writer.append(1, &[7; 700]).unwrap();
    let last = 20_000;
    let mut reader = queue.reader("alice").unwrap();
    // Unregistered, and stopped after its first message: nothing waits for it.
    let mut scanner = queue.scan().unwrap();
    scanner.next().unwrap().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for seq in 1..=last {
                assert!(reader.wait(Some(Duration::from_secs(60))).unwrap());
                let message = reader.next().unwrap().unwrap().message();
                assert_eq!(message.map(|message| (message.seq, message.payload)), Some((seq, &[7; 700][..])));
                reader.commit();
            }
        });
        (1..last).for_each(|_| assert!(writer.append(1, &[7; 700]).is_ok()));
    });
    drop(writer);
    queue.apply_retention().unwrap();
    let first = queue.bounds().unwrap().first_seq;
    assert!(first > last / 2, "retention has been at work: {first}");
    // It can finish what it has mapped; then it gets everything that is gone as a gap.
    let (mut next, mut gaps) = (2, Vec::new());
    while let Some(entry) = scanner.next().unwrap() {
        match entry {
            Entry::Message(message) => assert_eq!(std::mem::replace(&mut next, message.seq + 1), message.seq),
            Entry::Gap(gap) => {
                assert_eq!(gap.from, next);
                next = gap.to + 1;
                gaps.push((gap.to, gap.reason));
            }
        }
    }
    assert_eq!((next, gaps), (last + 1, vec![(first - 1, GapReason::Retired)]));
}

#[test]
fn a_deep_examination_beside_a_writer_and_retention_has_no_findings() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { segment_size: 64 << 10, retain_segments: Some(2), ..Settings::default() };
    let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
    queue.add_reader("alice").unwrap();
    let mut writer = queue.writer().unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let options = chronfs::doctor::Options { deep: true, fix: false };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut reader = queue.reader("alice").unwrap();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                writer.append(1, &[7; 700]).unwrap();
                while reader.next().unwrap().is_some() {}
                reader.commit();
            }
        });
        let start = queue.bounds().unwrap().first_seq;
        let mut looks = 0;
        let mut found = Vec::new();
        // Until much has been retired meanwhile.
        while found.is_empty() && (looks < 40 || queue.bounds().unwrap().first_seq < start + 2000) {
            let report = chronfs::doctor::examine(dir.path(), options, &mut |_| {}).unwrap();
            found.extend(report.findings.into_iter().filter(|f| f.severity > chronfs::doctor::Severity::Info));
            assert!(report.unchecked.is_empty(), "{:?}", report.unchecked);
            looks += 1;
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(found.is_empty(), "after {looks} looks: {found:#?}");
    });
}
