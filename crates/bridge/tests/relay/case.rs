//! A queue of a test, its relays and its copy.
use std::path::{Path, PathBuf};

use chronfs::Queue;
use chronfs::queue::Settings;

use crate::common::{SMALL, append, filled, payload, writer};
use crate::relay::{Relay, check_same, until_caught_up};
use crate::service::{Service, report, until_report};

/// A queue that is relayed, and where things of the test are. What its relays have said is printed if the test fails.
pub struct Case {
    pub dir: tempfile::TempDir,
    pub queue: Queue,
}

impl Case {
    /// With this many messages.
    pub fn new(count: u64) -> Self {
        Self::with(&SMALL, count)
    }

    pub fn with(settings: &Settings, count: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let queue = filled(&dir.path().join("q"), settings, count, |seq| payload(seq, 300));
        Self { dir, queue }
    }

    pub fn path(&self) -> &Path {
        self.queue.path()
    }

    /// Something else beside the queue.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the copy is.
    pub fn copy(&self) -> PathBuf {
        self.file("copy")
    }

    /// A relay of the queue.
    pub fn start(&self, target: &str, options: &[&str]) -> Service {
        Relay::start(self.path().to_str().unwrap(), target, options, &self.file("log"))
    }

    /// A relay into the copy.
    pub fn standby(&self, target: &str, options: &[&str]) -> Service {
        Relay::start(target, self.copy().to_str().unwrap(), options, &self.file("log"))
    }

    pub fn append(&self, count: u64) {
        append(&mut writer(&self.queue), count, |seq| payload(seq, 300));
    }

    /// The number of the last message.
    pub fn last(&self) -> u64 {
        self.queue.bounds().unwrap().next_seq - 1
    }

    #[track_caller]
    pub fn until_caught_up(&self) {
        until_caught_up(&self.queue, "relay");
    }

    /// Waits until the relay of this name has brought the copy to this number at least.
    #[track_caller]
    pub fn until_copied(&self, name: &str, seq: u64) {
        let is_there = |report: &serde_json::Value| report["pair"]["seq"].as_u64() >= Some(seq);
        until_report(&self.copy(), name, "the copy has it", is_there);
    }

    /// Relays all that there is.
    #[track_caller]
    pub fn relay_all(&self, target: &str, options: &[&str]) {
        let relay = self.start(target, options);
        self.until_caught_up();
        relay.stop();
    }

    /// Copies the stream up to the queue's last message.
    #[track_caller]
    pub fn copy_all(&self, target: &str, options: &[&str]) {
        let standby = self.standby(target, options);
        self.until_copied("relay", self.last());
        standby.stop();
    }

    /// The copy must be the same; returns how many messages it has.
    #[track_caller]
    pub fn check_copy(&self) -> u64 {
        check_same(&self.queue, &Queue::open(self.copy()).unwrap())
    }

    /// What the relay says of itself.
    pub fn report(&self) -> serde_json::Value {
        report(self.path(), "relay")
    }

    /// What the relays have said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// Waits until the relay waits for this reason.
    #[track_caller]
    pub fn until_waiting(&self, reason: &str) {
        until_report(self.path(), "relay", reason, |report| {
            report["condition"] == "waiting" && report["reason"].as_str().is_some_and(|given| given.contains(reason))
        });
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log());
        }
    }
}
