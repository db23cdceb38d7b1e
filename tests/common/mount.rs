//! A mount for tests, and programs run on it.
//!
//! The mount is served by its own process, so that a test can kill it, and so that a hanging mount never hangs
//! the test program. Whatever happens, also in a panic, the mount is detached and the children that were started
//! here are killed, by their ids. Every command on a mount runs under a time limit.
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use super::need::{self, Need, require};
use super::process::{Running, text, until};
use super::unmount::detach;

/// A mounted bus directory.
pub struct TestMount {
    /// Holds the root, the mountpoint and the notification socket.
    scratch: tempfile::TempDir,
    daemon: Child,
}

impl TestMount {
    /// Mounts an empty root. None where this machine or user can't mount.
    #[track_caller]
    pub fn new() -> Option<Self> {
        Self::with_options("rw")
    }

    /// As [`TestMount::new`], with options for `-o`.
    #[track_caller]
    pub fn with_options(options: &str) -> Option<Self> {
        Self::over(|_| (), options)
    }

    /// As [`TestMount::new`], of a root that `prepare` has filled.
    #[track_caller]
    pub fn over(prepare: impl FnOnce(&Path), options: &str) -> Option<Self> {
        if !require(Need::Mount) {
            return None;
        }
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("root")).unwrap();
        std::fs::create_dir(scratch.path().join("mnt")).unwrap();
        prepare(&scratch.path().join("root"));
        let daemon = start_daemon(scratch.path(), options, &[]);
        Some(Self { scratch, daemon })
    }

    /// The backing directory.
    pub fn root(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> PathBuf {
        self.scratch.path().join("mnt")
    }

    /// The serving process.
    pub fn daemon(&mut self) -> &mut Child {
        &mut self.daemon
    }

    /// Serves again after the daemon has ended.
    pub fn mount_again(&mut self, options: &str) {
        self.daemon = start_daemon(self.scratch.path(), options, &[]);
    }

    /// As [`TestMount::mount_again`], started by another program, such as one that sets limits.
    pub fn mount_limited(&mut self, options: &str, starter: &[&str]) {
        self.daemon = start_daemon(self.scratch.path(), options, starter);
    }

    /// Runs a shell script in the mountpoint.
    pub fn sh(&self, script: &str) -> Output {
        let output = self.command(script).output().unwrap();
        assert_ne!(output.status.code(), Some(124), "timed out: {script}\n{}", text(&output.stderr));
        output
    }

    /// Runs a shell script that must succeed; returns what it printed.
    pub fn ok(&self, script: &str) -> String {
        let output = self.sh(script);
        assert!(output.status.success(), "failed: {script}\n{}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a shell script that must fail; returns its stderr.
    pub fn fails(&self, script: &str) -> String {
        let output = self.sh(script);
        assert!(!output.status.success(), "succeeded: {script}\n{}", text(&output.stdout));
        text(&output.stderr)
    }

    /// Starts a program beside the test, with its output in a pipe. A shell script would only be its parent.
    pub fn start(&self, program: &str, arguments: &[&str]) -> Running {
        // What starts the tests in the background may ignore signals, which these would inherit.
        let mut command = Command::new("env");
        command.args(["--default-signal", program]).args(arguments).current_dir(self.mountpoint());
        Running::new(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Waits until a follower blocks in its read.
    pub fn wait_until_blocked(&self, running: &Running) {
        until("the reader blocks", || is_blocked(&format!("/proc/{}", running.id())));
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "20", "bash", "-c", script]).current_dir(self.mountpoint()).stdin(Stdio::null());
        command
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        detach(&self.mountpoint());
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        detach(&self.mountpoint());
    }
}

/// Whether a thread, by its directory in /proc, waits for a mount to answer its read(2).
pub fn is_blocked(thread: &str) -> bool {
    let look = |file: &str| std::fs::read_to_string(format!("{thread}/{file}")).unwrap_or_default();
    let place = look("wchan");
    let waits = place.contains("fuse") || place.contains("request_wait");
    waits && look("syscall").split(' ').next() == Some(&libc::SYS_read.to_string())
}

/// The file of the program under test.
pub fn program() -> PathBuf {
    need::program(Path::new(env!("CARGO_BIN_EXE_chron-cli")))
}

/// The program under test.
pub fn chron_cli() -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "20"]).arg(program()).stdin(Stdio::null());
    command
}

fn start_daemon(scratch: &Path, options: &str, starter: &[&str]) -> Child {
    let socket_path = scratch.join("notify");
    let _ = std::fs::remove_file(&socket_path);
    let socket = UnixDatagram::bind(&socket_path).unwrap();
    let program = program();
    let words = [starter, &[program.to_str().unwrap(), "mount"]].concat();
    let mut daemon = Command::new(words[0])
        .args(&words[1..])
        .args([scratch.join("root"), scratch.join("mnt")])
        .args(["-f", "-o", options])
        .env("NOTIFY_SOCKET", &socket_path)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    await_ready(&mut daemon, &socket);
    daemon
}

/// Waits until a mount in the foreground says on its `NOTIFY_SOCKET` that it can be used.
pub fn await_ready(daemon: &mut Child, socket: &UnixDatagram) {
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut message = [0; 200];
    until("the mount is usable", || match socket.recv(&mut message) {
        Ok(len) => text(&message[..len]).starts_with("READY=1"),
        Err(_) => {
            assert!(daemon.try_wait().unwrap().is_none(), "the daemon has exited");
            false
        }
    });
}
