//! Readers that follow a queue: registered ones and tailers.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use chronfs::Queue;
use chronfs::queue::{Notifier, Start, Stopper};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::batch::Batches;
use crate::core::Core;
use crate::errors::{OrRaise, closed, invalid};
use crate::options;
use crate::scan::{BATCH, Reading, at_least_one};

/// Follows a queue. A registered reader (`queue.reader(name)`) keeps its position in the queue, `commit()` stores it, and
/// retention keeps what it has not read; a tailer (`queue.tailer()`) does neither.
///
/// Iterating blocks at the head until there is more; `poll` does not. Any thread may call it, one at a time reads. It
/// belongs to the process that opened it: in a child that was forked its methods raise Forked.
#[pyclass(frozen, module = "chronfs")]
#[derive(Debug)]
pub(crate) struct Reader {
    reading: Arc<Reading>,
    queue: Queue,
    name: Option<String>,
    stopper: Stopper,
    notifier: OnceLock<Notifier>,
}

impl Reader {
    pub(crate) fn new(reading: Reading, queue: Queue, name: Option<String>, stopper: Stopper) -> Self {
        Self { reading: Arc::new(reading), queue, name, stopper, notifier: OnceLock::new() }
    }

    /// The next entry, if there is one now.
    fn try_next(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        if let Some(found) = self.reading.next(py)? {
            return Ok(Some(found));
        }
        match self.notifier.get() {
            None => Ok(None),
            // What comes after this makes the descriptor readable; what came before it is found now.
            Some(notifier) => {
                notifier.clear();
                self.reading.next(py)
            }
        }
    }

    fn wait_until(&self, py: Python<'_>, timeout: Option<Duration>) -> PyResult<bool> {
        let step = |core: &mut Core, left| match core.wait(left) {
            Ok(false) => None,
            result => Some(result),
        };
        self.reading.shared.wait(py, timeout, step)?.unwrap_or(Ok(false)).or_raise(py)
    }
}

#[pymethods]
impl Reader {
    /// Its name; None for a tailer.
    #[getter]
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The sequence number that it expects next.
    #[getter]
    fn seq(&self, py: Python<'_>) -> PyResult<u64> {
        self.reading.shared.with(py, |core| core.seq())
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        loop {
            if let Some(found) = self.try_next(py)? {
                return Ok(Some(found));
            }
            self.wait_until(py, None)?;
        }
    }

    /// The next message, or Gap (with `on_gap="yield"`); None if there is none after `timeout` seconds.
    #[pyo3(signature = (timeout = None))]
    fn poll(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Py<PyAny>>> {
        if let Some(found) = self.try_next(py)? {
            return Ok(Some(found));
        }
        let Some(timeout) = timeout else { return Ok(None) };
        let timeout = options::duration(timeout)?;
        let start = Instant::now();
        // Something of another type may come, and end a wait.
        while self.wait_until(py, Some(timeout.saturating_sub(start.elapsed())))? {
            if let Some(found) = self.try_next(py)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Waits until there is something to read, at most `timeout` seconds (None: for ever); False if there is nothing.
    /// Releases the GIL; signals are handled every tenth of a second.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        let timeout = timeout.map(options::duration).transpose()?;
        self.wait_until(py, timeout)
    }

    /// What is there now, in batches of up to `size` messages. Unlike iterating over the reader, it ends at the head.
    #[pyo3(signature = (size = BATCH))]
    fn batches(&self, py: Python<'_>, size: usize) -> PyResult<Batches> {
        Ok(Batches { reading: Arc::clone(&self.reading), size: at_least_one(py, size)? })
    }

    /// Consumes what has been read, or the messages up to `seq`. It survives the process at once, and a power cut with
    /// `sync=True`, which waits for the disk (and takes no `seq`).
    #[pyo3(signature = (seq = None, *, sync = false))]
    fn commit(&self, py: Python<'_>, seq: Option<u64>, sync: bool) -> PyResult<()> {
        if seq.is_some() && sync {
            return Err(invalid(py, "commit(sync=True) commits all that has been read; it takes no seq"));
        }
        let commit = move |core: &mut Core| {
            let reader = core.registered()?;
            Some(match seq {
                _ if sync => reader.commit_sync(),
                Some(seq) => reader.commit_to(seq),
                // Not `commit`, which does nothing after a fork and does not say so.
                None => reader.commit_to(reader.seq().saturating_sub(1)),
            })
        };
        let shared = &self.reading.shared;
        let done = if sync { shared.with_detached(py, commit)? } else { shared.with(py, commit)? };
        let Some(done) = done else {
            return Err(invalid(
                py,
                "a tailer has no position to store; open a reader with a name: queue.reader(name)",
            ));
        };
        done.or_raise(py)
    }

    /// Moves to another place: one of `first=True`, `end=True`, `seq=`, or `since=` (as for `Queue.scan`). A registered
    /// reader's position is not stored until it commits.
    #[pyo3(signature = (*, seq = None, since = None, first = false, end = false))]
    fn seek(
        &self,
        py: Python<'_>,
        seq: Option<u64>,
        since: Option<&Bound<'_, PyAny>>,
        first: bool,
        end: bool,
    ) -> PyResult<()> {
        let start = match (seq, since, first, end) {
            (Some(seq), None, false, false) => Start::Seq(seq),
            (None, Some(since), false, false) => Start::Time(options::time_ns(since)?),
            (None, None, true, false) => Start::First,
            (None, None, false, true) => Start::End,
            _ => return Err(invalid(py, "seek takes one of seq=, since=, first=True, end=True")),
        };
        self.reading.shared.with_detached(py, |core| core.seek(start))?.or_raise(py)
    }

    /// How many messages there are that it has not read. Reads files: not for each message.
    fn lag(&self, py: Python<'_>) -> PyResult<u64> {
        self.reading.shared.with_detached(py, |core| core.lag())?.or_raise(py)
    }

    /// What it has read and waited for since it was opened: `received`, `gaps`, `lost`, `waits`, `wakes`.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.reading.shared.with(py, |core| core.stats())?;
        let dict = PyDict::new(py);
        for (name, value) in [
            ("received", stats.received),
            ("gaps", stats.gaps),
            ("lost", stats.lost),
            ("waits", stats.waits),
            ("wakes", stats.wakes),
        ] {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }

    /// A descriptor for selectors and asyncio that becomes readable when messages come. Then call `poll()` until it
    /// returns None. It is closed when the object goes.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        if self.reading.shared.is_closed(py)? {
            return Err(closed(py, self.reading.path()));
        }
        if self.notifier.get().is_none() {
            let notifier = py.detach(|| self.queue.notifier()).or_raise(py)?;
            // Another thread may have been faster; its descriptor is as good.
            let _ = self.notifier.set(notifier);
        }
        let notifier = self.notifier.get().map(|notifier| notifier.as_fd().as_raw_fd());
        notifier.ok_or_else(|| closed(py, self.reading.path()))
    }

    /// An asynchronous iterator: `async for message in reader`.
    fn __aiter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("chronfs._aio")?.getattr("messages")?.call1((slf,))
    }

    /// Ends the waits of other threads, now and from now on: they raise Stopped.
    fn stop(&self) {
        self.stopper.stop();
    }

    /// Closes it. A thread that waits in it gets Stopped.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.stopper.stop();
        self.reading.shared.close(py)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, py: Python<'_>, _args: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        match &self.name {
            Some(name) => format!("Reader({:?}, {name:?})", self.queue.path()),
            None => format!("Reader({:?}, unregistered)", self.queue.path()),
        }
    }
}
