//! The handle of a queue.

use std::path::PathBuf;
use std::time::Duration;

use chronfs::queue::{self, Settings, Start, Stopper};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::core::{Core, Limits, Source};
use crate::errors::{OrRaise, invalid};
use crate::inspect;
use crate::options;
use crate::reader::Reader;
use crate::scan::{OnGap, Reading, Scan};
use crate::writer::Writer;

/// A queue: a directory of files that one process appends to and any number of others read.
///
/// `Queue(path)` opens an existing one. `create=True` creates it if it does not exist, with the settings given by name;
/// an existing one keeps its settings: see `settings` and `set`.
///
/// Settings: `segment_size`, `max_bytes`, `retain_bytes`, `max_lag_bytes` in bytes, or as "1GiB"; `retain_segments`; `payload_align` (8,
/// 16, 64); `retain_age`, `reader_ttl`, `roll_every` as seconds, timedelta, or text as "15m".
///
/// Raises NotAQueue, Damaged, Unsupported, InvalidInput, IoError.
#[pyclass(frozen, module = "chronfs")]
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) inner: queue::Queue,
}

#[pymethods]
impl Queue {
    #[new]
    #[pyo3(signature = (path, *, create = false, **settings))]
    fn new(py: Python<'_>, path: PathBuf, create: bool, settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let mut wanted = Settings::DEFAULT;
        let changes = options::changes(settings)?;
        if !changes.is_empty() && !create {
            return Err(invalid(py, "settings are given with create=True; those of an existing queue change by set()"));
        }
        changes.iter().for_each(|change| change(&mut wanted));
        let open = || if create { queue::Queue::open_or_create(&path, &wanted) } else { queue::Queue::open(&path) };
        Ok(Self { inner: py.detach(open).or_raise(py)? })
    }

    /// Whether a directory holds a queue, sound or damaged.
    #[staticmethod]
    fn exists(py: Python<'_>, path: PathBuf) -> PyResult<bool> {
        py.detach(|| queue::Queue::exists(&path)).or_raise(py)
    }

    /// The queue's directory, as it was given.
    #[getter]
    fn path(&self) -> &std::path::Path {
        self.inner.path()
    }

    /// The settings as they are now, by name; durations in seconds.
    #[getter]
    fn settings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let settings = py.detach(|| self.inner.settings());
        options::as_dict(py, &settings)
    }

    /// Changes settings by name; None lifts a limit. Returns the previous ones. A running writer takes them over at its
    /// next segment.
    #[pyo3(signature = (**settings))]
    fn set<'py>(&self, py: Python<'py>, settings: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyDict>> {
        let changes = options::changes(settings)?;
        let change = move |now: &mut Settings| changes.iter().for_each(|change| change(now));
        let (before, _) = py.detach(|| self.inner.update(change)).or_raise(py)?;
        options::as_dict(py, &before)
    }

    /// The sequence number of the first message that is still there.
    #[getter]
    fn first_seq(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(py.detach(|| self.inner.bounds()).or_raise(py)?.first_seq)
    }

    /// The sequence number that the next message gets.
    #[getter]
    fn next_seq(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(py.detach(|| self.inner.bounds()).or_raise(py)?.next_seq)
    }

    /// Becomes the queue's writer.
    ///
    /// `when_full`: how long an append waits for room before it raises QueueFull (seconds, timedelta, or text); default
    /// not at all. `sync=(messages, interval)`: syncs to disk in the background after that many messages, or that long;
    /// default never. `max_ahead`: how far ahead of the clock explicit timestamps may be; default 1 hour. `as_standby`:
    /// opens a standby, and nothing else.
    ///
    /// Raises Locked, with the holder's `pid`; WrongRole; IoError.
    #[pyo3(signature = (*, when_full = None, sync = None, max_ahead = None, as_standby = false))]
    fn writer(
        &self,
        py: Python<'_>,
        when_full: Option<&Bound<'_, PyAny>>,
        sync: Option<(u64, Bound<'_, PyAny>)>,
        max_ahead: Option<&Bound<'_, PyAny>>,
        as_standby: bool,
    ) -> PyResult<Writer> {
        let patience = when_full.map_or(Ok(Duration::ZERO), options::duration)?;
        let options = options::writer(sync, max_ahead, as_standby)?;
        let writer = py.detach(|| self.inner.writer_with(&options)).or_raise(py)?;
        Ok(Writer::new(writer, patience))
    }

    /// Opens a registered reader, which keeps its position in the queue: a new one starts at the first message there
    /// is, an existing one where it has committed, or as said by one of `start` ("first", "end"), `from_seq`, `since`.
    ///
    /// `types`: a message type or several; others are passed. `on_gap`: "raise" GapError, "yield" the Gap, or a function
    /// to call with it. `verify`: whether checksums are verified. `spin`: for how long it polls before it sleeps; default
    /// 50 µs.
    ///
    /// Raises ReaderInUse, with the holder's `pid`; Damaged; InvalidInput; IoError.
    #[pyo3(signature = (name, *, start = None, from_seq = None, since = None, types = None, on_gap = OnGap::Raise,
        verify = true, spin = None), text_signature = "($self, name, *, start=None, from_seq=None, since=None, \
        types=None, on_gap='raise', verify=True, spin=None)")]
    #[allow(clippy::too_many_arguments)] // keywords
    fn reader(
        &self,
        py: Python<'_>,
        name: String,
        start: Option<&str>,
        from_seq: Option<u64>,
        since: Option<&Bound<'_, PyAny>>,
        types: Option<&Bound<'_, PyAny>>,
        on_gap: OnGap,
        verify: bool,
        spin: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Reader> {
        let options = options::reader(options::start(py, since, from_seq, start)?, verify, spin)?;
        let limits = Limits { types: options::types(types)?, ..Limits::default() };
        let reader = py.detach(|| self.inner.reader_with(&name, &options)).or_raise(py)?;
        Ok(self.follow(Core::new(Source::Registered(Box::new(reader)), limits), on_gap, Some(name)))
    }

    /// Follows the queue without registering: nothing is pinned, nothing changes, reading permission is enough. If
    /// retention overtakes it, there is a gap. Arguments as for `reader`.
    #[pyo3(signature = (*, start = None, from_seq = None, since = None, types = None, on_gap = OnGap::Raise,
        verify = true, spin = None), text_signature = "($self, *, start=None, from_seq=None, since=None, \
        types=None, on_gap='raise', verify=True, spin=None)")]
    #[allow(clippy::too_many_arguments)] // keywords
    fn tailer(
        &self,
        py: Python<'_>,
        start: Option<&str>,
        from_seq: Option<u64>,
        since: Option<&Bound<'_, PyAny>>,
        types: Option<&Bound<'_, PyAny>>,
        on_gap: OnGap,
        verify: bool,
        spin: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Reader> {
        let options = options::reader(options::start(py, since, from_seq, start)?, verify, spin)?;
        let limits = Limits { types: options::types(types)?, ..Limits::default() };
        let tailer = py.detach(|| self.inner.tailer_with(&options)).or_raise(py)?;
        Ok(self.follow(Core::new(Source::Unregistered(Box::new(tailer)), limits), on_gap, None))
    }

    /// What is in the queue now, or a part of it: from `since` (ns since the epoch, a datetime, or how long ago: a
    /// timedelta, or text as "15m"), or from message `from_seq` on; up to `until`, exclusive. Other arguments as for
    /// `reader`.
    #[pyo3(signature = (*, since = None, from_seq = None, until = None, types = None, on_gap = OnGap::Raise,
        verify = true), text_signature = "($self, *, since=None, from_seq=None, until=None, types=None, \
        on_gap='raise', verify=True)")]
    #[allow(clippy::too_many_arguments)] // keywords
    fn scan(
        &self,
        py: Python<'_>,
        since: Option<&Bound<'_, PyAny>>,
        from_seq: Option<u64>,
        until: Option<&Bound<'_, PyAny>>,
        types: Option<&Bound<'_, PyAny>>,
        on_gap: OnGap,
        verify: bool,
    ) -> PyResult<Scan> {
        let start = options::start(py, since, from_seq, None)?;
        let until_ns = until.map(options::time_ns).transpose()?;
        let end_seq = Some(py.detach(|| self.inner.bounds()).or_raise(py)?.end_seq);
        let limits = Limits { types: options::types(types)?, end_seq, until_ns };
        Ok(Scan { queue: self.inner.clone(), start, limits, verify, on_gap })
    }

    /// All that is known of the queue: its messages, writer, settings, segments and readers. Takes no lock.
    fn inspect<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = py.detach(|| self.inner.inspect()).or_raise(py)?;
        inspect::as_dict(py, &found)
    }

    /// The names of the registered readers.
    fn reader_names(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        py.detach(|| self.inner.reader_names()).or_raise(py)
    }

    /// Removes a registered reader that nobody uses.
    fn remove_reader(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        py.detach(|| self.inner.remove_reader(name)).or_raise(py)
    }

    /// Removes the segments that the limits no longer keep and no reader needs, as a running writer does by itself.
    /// Returns how many.
    fn apply_retention(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(py.detach(|| self.inner.apply_retention()).or_raise(py)?.removed.len())
    }

    fn __repr__(&self) -> String {
        format!("Queue({:?})", self.inner.path())
    }
}

impl Queue {
    fn follow(&self, mut core: Core, on_gap: OnGap, name: Option<String>) -> Reader {
        let stopper = Stopper::new();
        core.set_stopper(&stopper);
        Reader::new(Reading::new(core, self.inner.path(), on_gap), self.inner.clone(), name, stopper)
    }
}

impl Scan {
    /// Of all that is in a queue.
    pub(crate) fn of(queue: queue::Queue, limits: Limits, start: Start) -> chronfs::Result<Self> {
        let limits = Limits { end_seq: Some(queue.bounds()?.end_seq), ..limits };
        Ok(Self { queue, start, limits, verify: true, on_gap: OnGap::Raise })
    }
}
