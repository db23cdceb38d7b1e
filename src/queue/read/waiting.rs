//! Waiting for messages: spinning, sleeping, and being stopped.

use std::time::{Duration, Instant};

use crate::queue::error::Result;
use crate::queue::options::WaitStrategy;
use crate::queue::read::reader::{Reader, Registration};
use crate::queue::wait::stop::{self, Stopper};
use crate::queue::wait::wake::Waiter;

/// How often a sleeping reader shows that it is alive and looks at its files.
pub(super) const CHECK_EVERY: Duration = Duration::from_secs(1);

impl<R: Registration> Reader<R> {
    /// Waits until there is something to read, or for `timeout` (None: for ever). False if there is nothing.
    ///
    /// # Errors
    /// [`Error::Stopped`](crate::queue::Error::Stopped) once its [`stopper`](Self::stopper) has been used, even if
    /// there is something to read; otherwise as [`next`](Self::next).
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        stop::check(self.stopper.as_ref(), self.store.dir.path())?;
        if self.has_next()? {
            return Ok(true);
        }
        self.stats.waits += 1;
        let start = Instant::now();
        let left = |limit: Option<Duration>| limit.map(|limit| limit.saturating_sub(start.elapsed()));
        let spin = match self.strategy {
            WaitStrategy::BusySpin => timeout,
            WaitStrategy::Hybrid { spin } => Some(timeout.map_or(spin, |timeout| spin.min(timeout))),
            WaitStrategy::Sleep => Some(Duration::ZERO),
        };
        while left(spin).is_none_or(|left| !left.is_zero()) {
            for _ in 0..64 {
                if self.has_next()? {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            stop::check(self.stopper.as_ref(), self.store.dir.path())?;
        }
        self.registration.heartbeat();
        loop {
            let ticket = self.waiter.prepare();
            stop::check(self.stopper.as_ref(), self.store.dir.path())?;
            if self.has_next()? {
                return Ok(true);
            }
            let left = left(timeout).unwrap_or(Duration::MAX);
            if left.is_zero() {
                return Ok(false);
            }
            let is_woken = self.waiter.wait_or_stop(ticket, left, self.stopper.as_ref(), start.elapsed());
            self.stats.wakes += u64::from(is_woken);
            // Counted over several waits: callers may wait in short steps.
            if self.checked.elapsed() >= CHECK_EVERY {
                self.checked = Instant::now();
                self.look_after_files()?;
            }
            // Before the system calls of the next announcement.
            if self.has_next()? {
                return Ok(true);
            }
        }
    }

    /// For programs that poll with [`next`](Self::next) and never wait: to be called about once a second, as waits do it by
    /// themselves. Shows that the reader is alive, so that it goes on pinning where readers have a time limit
    /// ([`Settings::reader_ttl_ns`](crate::queue::Settings::reader_ttl_ns)), and notices changes that nobody announces.
    ///
    /// # Errors
    /// [`Error::Io`](crate::queue::Error::Io) if the queue has been removed.
    pub fn keep_alive(&mut self) -> Result<()> {
        self.look_after_files()
    }

    /// Once a second: nobody is woken when files are removed, or change without anything being published.
    pub(super) fn look_after_files(&mut self) -> Result<()> {
        self.registration.heartbeat();
        self.registration.touch();
        self.check()?;
        self.stalled = None;
        self.store.check_present()
    }

    /// A handle that ends waits for messages: this reader's, and those of all that were given the same one by
    /// [`set_stopper`](Self::set_stopper).
    ///
    /// ```
    /// # use chronfs::queue::{Error, Queue, Settings};
    /// # let dir = tempfile::tempdir()?;
    /// # let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
    /// let mut reader = queue.reader("alice")?;
    /// let stopper = reader.stopper();
    /// let reading = std::thread::spawn(move || reader.wait(None));
    /// stopper.stop();
    /// assert!(matches!(reading.join().unwrap(), Err(Error::Stopped { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stopper(&mut self) -> Stopper {
        self.stopper.get_or_insert_default().clone()
    }

    /// From now on, this stopper ends its waits, instead of the one before.
    pub fn set_stopper(&mut self, stopper: &Stopper) {
        self.stopper = Some(stopper.clone());
    }

    pub(crate) fn waiter(&self) -> &Waiter {
        &self.waiter
    }
}
