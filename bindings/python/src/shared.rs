//! A writer or reader that any thread may call: one at a time uses it, the others wait without holding the GIL.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use chronfs::Error;
use pyo3::prelude::*;

use crate::errors::{closed, exception};

/// How long a blocking call works without looking for signals, so that Ctrl-C is heard.
pub(crate) const SLICE: Duration = Duration::from_millis(100);
/// How long a call that blocks leaves the object to other threads that want it.
const TURN: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(crate) struct Shared<T> {
    inner: Mutex<Option<T>>,
    /// How many threads wait for the lock.
    wanted: AtomicUsize,
    path: PathBuf,
    pid: u32,
}

impl<T: Send> Shared<T> {
    pub(crate) fn new(inner: T, path: &Path) -> Self {
        let (wanted, path) = (AtomicUsize::new(0), path.to_path_buf());
        Self { inner: Mutex::new(Some(inner)), wanted, path, pid: std::process::id() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn lock(&self, py: Python<'_>) -> PyResult<MutexGuard<'_, Option<T>>> {
        loop {
            match self.inner.try_lock() {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(guard)) => return Ok(guard.into_inner()),
                Err(TryLockError::WouldBlock) => self.wait_for_lock(py)?,
            }
        }
    }

    #[cold]
    fn wait_for_lock(&self, py: Python<'_>) -> PyResult<()> {
        // A thread that held it at the time of a fork does not exist in the child.
        if std::process::id() != self.pid {
            return Err(exception(py, &Error::Forked { path: self.path.clone() }));
        }
        self.wanted.fetch_add(1, Ordering::Relaxed);
        py.detach(|| drop(self.inner.lock()));
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    /// Calls `f` holding the GIL: for what takes no time.
    #[inline]
    pub(crate) fn with<R>(&self, py: Python<'_>, f: impl FnOnce(&mut T) -> R) -> PyResult<R> {
        match self.lock(py)?.as_mut() {
            Some(inner) => Ok(f(inner)),
            None => Err(closed(py, &self.path)),
        }
    }

    /// Calls `f` without the GIL.
    pub(crate) fn with_detached<R: Send>(&self, py: Python<'_>, f: impl FnOnce(&mut T) -> R + Send) -> PyResult<R> {
        // Not locked by a thread that a fork left behind.
        drop(self.lock(py)?);
        let result = py.detach(|| self.inner.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(f));
        result.ok_or_else(|| closed(py, &self.path))
    }

    /// Calls `f` for a caller that may or may not hold the GIL; None if it has been closed, or if this is a child of the
    /// process that opened it.
    pub(crate) fn with_nothing<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        if std::process::id() != self.pid {
            return None;
        }
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(f)
    }

    /// Calls `f` without the GIL, again and again, until it returns something or `timeout` has passed. It must return
    /// within the time that it is given. Signals are handled in between.
    pub(crate) fn wait<R: Send>(
        &self,
        py: Python<'_>,
        timeout: Option<Duration>,
        mut f: impl FnMut(&mut T, Duration) -> Option<R> + Send,
    ) -> PyResult<Option<R>> {
        let start = Instant::now();
        loop {
            let left = timeout.map_or(SLICE, |timeout| timeout.saturating_sub(start.elapsed()).min(SLICE));
            if let Some(result) = self.with_detached(py, |inner| f(inner, left))? {
                return Ok(Some(result));
            }
            py.check_signals()?;
            if timeout.is_some_and(|timeout| start.elapsed() >= timeout) {
                return Ok(None);
            }
            if self.wanted.load(Ordering::Relaxed) > 0 {
                py.detach(|| std::thread::sleep(TURN));
            }
        }
    }

    /// Closes it: other calls fail from now on.
    pub(crate) fn close(&self, py: Python<'_>) -> PyResult<()> {
        let inner = self.lock(py)?.take();
        py.detach(|| drop(inner));
        Ok(())
    }

    pub(crate) fn is_closed(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.lock(py)?.is_none())
    }
}
