//! Relays and archivers as processes, and what they say of themselves.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Running, signal_to, until};

/// How long one may take to catch up when all is well.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A relay or archiver that runs; killed when dropped.
pub struct Service(Running);

/// Starts a program beside the test. What it prints is appended to `log`.
pub fn start(mut command: Command, log: &Path) -> Running {
    let open = || fs::File::options().create(true).append(true).open(log).unwrap();
    Running::new(command.stdin(Stdio::null()).stdout(open()).stderr(open()).spawn().unwrap())
}

/// Waits until a server that logs there is well.
#[track_caller]
pub fn until_well(log: &Path, is_well: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_well() {
        assert!(Instant::now() < deadline, "the server does not get well:\n{}", fs::read_to_string(log).unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Service {
    /// Its log is appended to `log`.
    pub fn start(command: Command, log: &Path) -> Self {
        Self(start(command, log))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Ends it as systemd does; it must exit with 0.
    pub fn stop(self) {
        self.end(0);
    }

    /// Ends it as systemd does; it must exit with this code.
    pub fn end(self, code: i32) {
        let status = format!("/proc/{}/status", self.id());
        until("it handles SIGTERM", || {
            let status = fs::read_to_string(&status).unwrap();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
            u64::from_str_radix(caught, 16).unwrap() & 1 << 14 != 0
        });
        signal_to(self.0.id(), "TERM");
        assert_eq!(self.exit_code(), Some(code), "SIGTERM");
    }

    /// Waits for it to end by itself.
    pub fn exit_code(mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.child().try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What a relay's state file says.
pub fn report(queue: &Path, name: &str) -> serde_json::Value {
    let file = fs::read(queue.join("relay").join(format!("{name}.json"))).unwrap_or_default();
    serde_json::from_slice(&file).unwrap_or_default()
}

/// Waits until a relay's report is as wanted.
#[track_caller]
pub fn until_report(queue: &Path, name: &str, what: &str, is_so: impl Fn(&serde_json::Value) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so(&report(queue, name)) {
        assert!(Instant::now() < deadline, "timed out: until {what}: {:#}", report(queue, name));
        std::thread::sleep(Duration::from_millis(10));
    }
}
