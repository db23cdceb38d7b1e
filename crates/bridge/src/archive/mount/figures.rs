//! What the mount says of itself: the file `relay/mount.json` of each queue that it shows, as an archiver's or a relay's.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;

use rustix::io::Errno;

use super::problem::Problem;
use crate::state::{Condition, MOUNT, MountFigures, State};

/// The name of the file.
pub(super) const REPORT_FILE: &str = "mount.json";

/// What has happened since it was mounted.
pub(super) struct Figures {
    state: Rc<State>,
    fetched: Cell<(u64, u64)>,
    failures: Cell<u64>,
    last_failure: RefCell<Option<Rc<str>>>,
}

impl Figures {
    /// Of a mount of this address, whose files are in the directory `cache`.
    pub(super) fn new(cache: &Path, address: &str) -> Self {
        let state = State::shared(cache, MOUNT, MOUNT, address);
        state.change(|report| report.condition = Condition::Running);
        Self { state, fetched: Cell::default(), failures: Cell::default(), last_failure: RefCell::default() }
    }

    /// The store has answered.
    pub(super) fn answered(&self) {
        self.state.change(|report| (report.condition, report.reason) = (Condition::Running, None));
    }

    /// A segment of this size has been fetched.
    pub(super) fn fetched(&self, size: u64) {
        let (segments, bytes) = self.fetched.get();
        self.fetched.set((segments + 1, bytes + size));
        self.answered();
    }

    /// Something could not be read.
    pub(super) fn failed(&self, problem: &Problem) {
        self.failures.set(self.failures.get() + 1);
        self.last_failure.replace(Some(Rc::clone(&problem.text)));
        if problem.errno == Errno::TIMEDOUT {
            // Up to now all was well.
            self.rest();
            let reason = Some(problem.text.to_string());
            self.state.change(|report| (report.condition, report.reason) = (Condition::Waiting, reason));
        }
    }

    /// Nobody has to wait for the store.
    fn rest(&self) {
        if self.state.report().condition == Condition::Running {
            self.state.progressed();
        }
    }

    /// The file. `cache_bytes`: what the files in the cache take, and may take.
    pub(super) fn file(&self, cache_bytes: (u64, u64)) -> Vec<u8> {
        self.rest();
        let (fetched_segments, fetched_bytes) = self.fetched.get();
        let figures = MountFigures {
            fetched_segments,
            fetched_bytes,
            cache_bytes: cache_bytes.0,
            max_cache_bytes: cache_bytes.1,
            failures: self.failures.get(),
            last_failure: self.last_failure.borrow().as_deref().map(str::to_owned),
        };
        self.state.change(|report| report.mount = Some(figures));
        let mut text = serde_json::to_vec_pretty(&self.state.report()).unwrap_or_default();
        text.push(b'\n');
        text
    }
}
