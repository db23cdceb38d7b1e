//! Ending waits from within the process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::queue::error::{Error, Result};
use crate::queue::os::futex;
use crate::sync::{AtomicU32, Ordering};

/// Ends waits, from any thread and from signal handlers: of a [`Reader`](crate::queue::Reader), a
/// [`FanInReader`](crate::queue::FanInReader), or a [`QueueWriter`](crate::queue::QueueWriter) that waits for room. Clones are
/// handles of the same stopper; several of those can share one.
///
/// ```
/// # use chronfs::queue::{Queue, Settings, Stopper};
/// # let dir = tempfile::tempdir()?;
/// # let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
/// let shutdown = Stopper::new();
/// let (mut first, mut second) = (queue.reader("first")?, queue.reader("second")?);
/// first.set_stopper(&shutdown);
/// second.set_stopper(&shutdown);
/// shutdown.stop();
/// assert!(first.wait(None).is_err() && second.wait(None).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Stopper {
    /// Not 0 once stopped: sleepers sleep on it.
    stopped: Arc<AtomicU32>,
}

impl Stopper {
    /// One that nobody uses yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the present waits, and all later ones at once, until [`clear`](Self::clear): they fail with
    /// [`Error::Stopped`]. A store and a system call.
    pub fn stop(&self) {
        self.stopped.store(1, Ordering::Release);
        futex::futex_wake(&self.stopped);
    }

    /// Lets later waits wait again.
    pub fn clear(&self) {
        self.stopped.store(0, Ordering::Release);
    }

    /// Whether it has been stopped.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire) != 0
    }

    /// The word to sleep on while it is 0.
    pub(super) fn word(&self) -> &AtomicU32 {
        &self.stopped
    }
}

/// Fails if the wait has been stopped; `path`: of the queue.
pub(crate) fn check(stopper: Option<&Stopper>, path: &Path) -> Result<()> {
    match stopper {
        Some(stopper) if stopper.is_stopped() => Err(Error::Stopped { path: path.to_path_buf() }),
        _ => Ok(()),
    }
}

/// Sleeps for this long, or until stopped.
pub(crate) fn sleep(stopper: Option<&Stopper>, time: Duration) {
    // A failure: no futexes.
    if stopper.is_none_or(|stopper| futex::futex_wait(stopper.word(), 0, time).is_err()) {
        std::thread::sleep(time);
    }
}
