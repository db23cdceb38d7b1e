//! The writer of a queue.

use std::time::{Duration, Instant};

use chronfs::queue::Stopper;
use chronfs::{Error, QueueWriter};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::{OrRaise, exception, invalid};
use crate::memory::with_bytes;
use crate::shared::Shared;

/// How often a writer that waits for room looks for it.
const LOOK_FOR_ROOM_EVERY: Duration = Duration::from_millis(5);
/// Messages that are appended from an iterable before signals are handled.
const AT_ONCE: usize = 1 << 12;

/// Appends messages to a queue, which has one writer at a time. It belongs to the process that opened it: in a child that
/// was forked its methods raise Forked.
#[pyclass(frozen, module = "chronfs")]
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Shared<QueueWriter>,
    /// How long an append waits for room.
    patience: Duration,
    stopper: Stopper,
}

impl Writer {
    pub(crate) fn new(writer: QueueWriter, patience: Duration) -> Self {
        let path = writer.path();
        Self { shared: Shared::new(writer, &path), patience, stopper: Stopper::new() }
    }

    /// Calls `append` until it succeeds: while the queue is full, as long as the writer is to wait.
    #[inline]
    fn with_patience(
        &self,
        py: Python<'_>,
        mut append: impl FnMut(&mut QueueWriter) -> chronfs::Result<u64>,
    ) -> PyResult<u64> {
        match self.shared.with(py, &mut append)? {
            Ok(seq) => Ok(seq),
            Err(Error::QueueFull { .. }) if !self.patience.is_zero() => self.wait_for_room(py, append),
            Err(error) => Err(exception(py, &error)),
        }
    }

    #[cold]
    fn wait_for_room(
        &self,
        py: Python<'_>,
        mut append: impl FnMut(&mut QueueWriter) -> chronfs::Result<u64>,
    ) -> PyResult<u64> {
        let start = Instant::now();
        loop {
            // Readers commit without a system call: nothing could wake us.
            py.detach(|| std::thread::sleep(LOOK_FOR_ROOM_EVERY));
            py.check_signals()?;
            if self.stopper.is_stopped() {
                return Err(exception(py, &Error::Stopped { path: self.shared.path().to_path_buf() }));
            }
            match self.shared.with(py, &mut append)? {
                Err(Error::QueueFull { .. }) if start.elapsed() < self.patience => {}
                result => return result.or_raise(py),
            }
        }
    }
}

#[pymethods]
impl Writer {
    /// Appends a message and returns its sequence number. `payload`: bytes, or anything that lends contiguous bytes.
    ///
    /// `type`: 0 to 65534. `timestamp_ns`: ns since the epoch, not before the newest one in the queue; None: now.
    ///
    /// It survives the process at once, and a power cut after `flush_sync()`. Raises QueueFull, TooLarge, InvalidInput,
    /// Poisoned, Forked, IoError; the message is not in the queue then.
    #[pyo3(signature = (payload, r#type = 0, timestamp_ns = None))]
    fn append(
        &self,
        py: Python<'_>,
        payload: &Bound<'_, PyAny>,
        r#type: u16,
        timestamp_ns: Option<u64>,
    ) -> PyResult<u64> {
        with_bytes(payload, |bytes, _| {
            self.with_patience(py, |writer| match timestamp_ns {
                None => writer.append(r#type, bytes),
                Some(ns) => writer.append_at(ns, r#type, bytes),
            })
        })?
    }

    /// Appends each payload of an iterable, all of one type; returns how many. Sleeping readers are woken by each.
    ///
    /// After an error those before it are in the queue: `next_seq` tells how many.
    #[pyo3(signature = (payloads, r#type = 0))]
    fn extend(&self, py: Python<'_>, payloads: &Bound<'_, PyAny>, r#type: u16) -> PyResult<usize> {
        let mut count = 0_usize;
        for payload in payloads.try_iter()? {
            with_bytes(&payload?, |bytes, _| self.with_patience(py, |writer| writer.append(r#type, bytes)))??;
            count += 1;
            if count.is_multiple_of(AT_ONCE) {
                py.check_signals()?;
            }
        }
        Ok(count)
    }

    /// Appends each item of a contiguous array (numpy's, for example) along its first dimension as a message; returns
    /// how many. Sleeping readers are woken once, at the end.
    #[pyo3(signature = (array, r#type = 0))]
    fn append_items(&self, py: Python<'_>, array: &Bound<'_, PyAny>, r#type: u16) -> PyResult<usize> {
        with_bytes(array, |bytes, count| {
            let len = bytes.len().checked_div(count).unwrap_or(0);
            if len == 0 || len * count != bytes.len() {
                return if count == 0 { Ok(0) } else { Err(invalid(py, "its items have no bytes")) };
            }
            let (mut items, mut done) = (bytes.chunks_exact(len).peekable(), 0);
            while items.peek().is_some() {
                let end = done + AT_ONCE;
                self.with_patience(py, |writer| {
                    let (mut batch, mut seq) = (writer.batch(), 0);
                    // An item that the queue has no room for stays the next one.
                    while let Some(item) = items.peek().filter(|_| done < end) {
                        seq = batch.append(r#type, item)?;
                        done += 1;
                        items.next();
                    }
                    Ok(seq)
                })?;
                py.check_signals()?;
            }
            Ok(done)
        })?
    }

    /// Returns when all that has been appended is on disk. Releases the GIL.
    fn flush_sync(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.with_detached(py, QueueWriter::flush_sync)?.or_raise(py)
    }

    /// Starts to write what has been appended to disk, and does not wait for it.
    fn flush_async(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.with_detached(py, QueueWriter::flush_async)?.or_raise(py)
    }

    /// The sequence number that the next message gets.
    #[getter]
    fn next_seq(&self, py: Python<'_>) -> PyResult<u64> {
        self.shared.with(py, |writer| writer.next_seq())
    }

    /// The newest timestamp in the queue, ns since the epoch; 0 if there is none.
    #[getter]
    fn last_timestamp_ns(&self, py: Python<'_>) -> PyResult<u64> {
        self.shared.with(py, |writer| writer.last_timestamp_ns())
    }

    /// The longest payload that the queue takes, in bytes.
    #[getter]
    fn max_payload_len(&self, py: Python<'_>) -> PyResult<usize> {
        self.shared.with(py, |writer| writer.max_payload_len())
    }

    /// What it has written since it was opened: `appended` messages, `bytes` of
    /// their records, `rolls`, `wakes`, `syncs`, `failed_syncs`.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.shared.with(py, |writer| writer.stats())?;
        let dict = PyDict::new(py);
        for (name, value) in [
            ("appended", stats.appended),
            ("bytes", stats.bytes),
            ("rolls", stats.rolls),
            ("wakes", stats.wakes),
            ("syncs", stats.syncs),
            ("failed_syncs", stats.failed_syncs),
        ] {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }

    /// Ends an append of another thread that waits for room: it raises Stopped.
    fn stop(&self) {
        self.stopper.stop();
    }

    /// Closes it: another writer can open the queue.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.stopper.stop();
        self.shared.close(py)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, py: Python<'_>, _args: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        format!("Writer({:?})", self.shared.path())
    }
}
