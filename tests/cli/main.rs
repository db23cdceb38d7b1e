//! The command line as people and scripts use it: what is printed where, exit codes, what stays unchanged.
//!
//! Every test runs the built program in its own directory. No test sleeps: where two processes must meet, one reads
//! what the other prints. `timeout` only ends a test that hangs.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod append;
mod bench;
mod bus;
#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "decode")]
mod decode;
mod doctor;
mod doctor_fix;
mod mount;
mod remove;
mod replay;
mod send;
mod settings;
mod state;
mod tail;
mod terminal;
mod top;
mod usage;

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_chron-cli");
/// 2024-08-08T09:15:00Z, ns since the epoch.
const START_NS: u64 = 1_723_108_500_000_000_000;
/// No message.
const NONE: [u64; 0] = [];

/// A directory for queues, and the program run in it.
struct Bus(TempDir);

impl Bus {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "60", PROGRAM]).args(args).current_dir(self.0.path());
        command.env_remove("NO_COLOR").env_remove("CHRONFS_ROOT").stdin(Stdio::null());
        command
    }

    /// As [`Bus::command`], in a directory of the bus.
    fn command_in(&self, dir: &str, args: &[&str]) -> Command {
        let mut command = self.command(args);
        command.current_dir(self.path(dir));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn run_with(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child =
            self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            // A program that exits early closes its stdin: that is fine.
            scope.spawn(move || stdin.write_all(input));
            child.wait_with_output().unwrap()
        })
    }

    /// Runs and expects success; what was printed.
    fn stdout(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.stdout(args)).unwrap()
    }

    fn append(&self, queue: &str, format: &str, input: &[u8]) {
        let output = self.run_with(&["append", queue, "--format", format], input);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
    }

    /// A queue of messages `m1` to `m<count>`, a second apart, their types in turn 0, 1 and 2.
    fn numbered(&self, queue: &str, count: u64) {
        let line = |n| {
            let timestamp_ns = START_NS + n * 1_000_000_000;
            format!("{{\"payload\":\"m{n}\",\"type\":{},\"timestamp_ns\":{timestamp_ns}}}\n", n % 3)
        };
        self.append(queue, "jsonl", (1..=count).map(line).collect::<String>().as_bytes());
    }

    /// The numbers of the messages of a numbered queue that `tail` prints with these options.
    fn tail(&self, options: &[&str]) -> Vec<u64> {
        let args = [&["tail", "--format", "txt"], options].concat();
        self.stdout(&args).lines().map(|line| line.strip_prefix('m').unwrap().parse().unwrap()).collect()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Exit code 1, nothing on stdout, and one line on stderr that starts with the program's name and says all of `parts`.
fn assert_fails(output: &Output, parts: &[&str]) {
    assert_ends_with(1, output, parts);
}

/// The same with exit code 2: the command line is wrong.
fn assert_is_usage(output: &Output, parts: &[&str]) {
    assert_ends_with(2, output, parts);
}

fn assert_ends_with(expected: i32, output: &Output, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(code(output), expected, "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("chron-cli: "), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    assert_eq!(output.stdout, b"");
}

/// `tail -f` on a queue that may not exist yet: tries until it does.
fn follow(bus: &Bus, queue: &str) -> Child {
    while code(&bus.run(&["inspect", queue])) != 0 {}
    let args = ["tail", "-f", "-n", "+1", "--format", "txt", queue];
    bus.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Reads byte by byte, so that nothing is read ahead and lost.
fn next_line(child: &mut Child) -> String {
    let stdout = child.stdout.as_mut().unwrap();
    let mut line = Vec::new();
    let mut byte = [0];
    while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// Closes the pipe that the child writes to: it exits at once, silently.
fn end_quietly(mut child: Child) {
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
}
