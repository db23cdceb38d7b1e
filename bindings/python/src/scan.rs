//! Reading what is there, once and from a given place: scans.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chronfs::queue::{ReaderOptions, Start, WaitStrategy};
use chronfs::{Error, Queue};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::arrow::{self, Requested};
use crate::batch::{Batch, Batches, Columns, Form};
#[cfg(feature = "decode")]
use crate::core::Types;
use crate::core::{Core, Item, Limits, Source};
use crate::errors::{self, OrRaise};
use crate::memory::warn_if_much;
use crate::message::Gap;
use crate::shared::Shared;

/// Messages per batch, unless another number is given.
pub(crate) const BATCH: usize = 1 << 16;

/// What is done about messages that are missing.
#[derive(Debug)]
pub(crate) enum OnGap {
    /// GapError is raised; the next call goes on after the gap.
    Raise,
    /// The Gap is returned in its place.
    Yield,
    /// A function is called with it.
    Call(Py<PyAny>),
}

impl OnGap {
    pub(crate) fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::Raise => Self::Raise,
            Self::Yield => Self::Yield,
            Self::Call(function) => Self::Call(function.clone_ref(py)),
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for OnGap {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.extract::<String>().as_deref() {
            Ok("raise") => Ok(Self::Raise),
            Ok("yield") => Ok(Self::Yield),
            _ if object.is_callable() => Ok(Self::Call(object.to_owned().unbind())),
            _ => Err(errors::invalid(object.py(), "on_gap is \"raise\", \"yield\", or a function of one argument")),
        }
    }
}

/// A reader that any thread may call, and what it does about gaps.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) shared: Shared<Core>,
    pub(crate) on_gap: OnGap,
}

impl Reading {
    pub(crate) fn new(core: Core, path: &Path, on_gap: OnGap) -> Self {
        Self { shared: Shared::new(core, path), on_gap }
    }

    pub(crate) fn path(&self) -> &Path {
        self.shared.path()
    }

    /// The next message; a gap as `on_gap` says. None at the head, or at the end.
    pub(crate) fn next(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        warn_if_much(py)?;
        loop {
            match self.shared.with(py, Core::next)?.or_raise(py)? {
                Some(Item::Message(message)) => return Ok(Some(Py::new(py, message)?.into_any())),
                Some(Item::Gap(gap)) => {
                    if let Some(gap) = self.handle(py, gap)? {
                        return Ok(Some(gap));
                    }
                }
                Some(Item::Others) => give_way(py)?,
                None => return Ok(None),
            }
        }
    }

    /// The next batch; a gap as `on_gap` says. None at the head, or at the end.
    pub(crate) fn batch(&self, py: Python<'_>, size: usize) -> PyResult<Option<Py<PyAny>>> {
        loop {
            match self.shared.with_detached(py, |core| core.batch(Form::Places, size))?.or_raise(py)? {
                Some(Ok(columns)) if columns.len() == 0 => py.check_signals()?,
                Some(Ok(columns)) => return Ok(Some(Py::new(py, Batch::new(columns))?.into_any())),
                Some(Err(gap)) => {
                    if let Some(gap) = self.handle(py, gap)? {
                        return Ok(Some(gap));
                    }
                }
                None => return Ok(None),
            }
        }
    }

    /// Like `batch`, for callers that may or may not hold the GIL. An error is its text.
    pub(crate) fn batch_without_gil(&self, form: Form, size: usize) -> Result<Option<Result<Columns, Gap>>, String> {
        match self.shared.with_nothing(|core| core.batch(form, size)) {
            Some(result) => result.map_err(|error| error.to_string()),
            None => Err(Error::Forked { path: self.path().to_path_buf() }.to_string()),
        }
    }

    /// The gap, if it is to be returned.
    fn handle(&self, py: Python<'_>, gap: Gap) -> PyResult<Option<Py<PyAny>>> {
        match &self.on_gap {
            OnGap::Raise => Err(errors::gap(py, self.path(), gap)),
            OnGap::Yield => Ok(Some(Py::new(py, gap)?.into_any())),
            OnGap::Call(function) => function.call1(py, (gap,)).map(|_| None),
        }
    }
}

/// Lets other threads run, and signal handlers.
pub(crate) fn give_way(py: Python<'_>) -> PyResult<()> {
    py.detach(|| ());
    py.check_signals()
}

/// The messages that were in the queue when the scan was made, or a part of them: `queue.scan(…)`.
///
/// It reads without registering: nothing is pinned, nothing changes, and reading permission is enough. Each iteration
/// starts at its beginning. Besides iterating over messages: `batches()`, `to_numpy(dtype)`, and as Arrow stream for
/// `pyarrow.table(scan)`, `polars.DataFrame(scan)`, `pandas`, or duckdb's `SELECT … FROM scan`.
#[pyclass(frozen, module = "chronfs")]
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) queue: Queue,
    pub(crate) start: Start,
    pub(crate) limits: Limits,
    pub(crate) verify: bool,
    pub(crate) on_gap: OnGap,
}

impl Scan {
    pub(crate) fn read(&self, py: Python<'_>) -> PyResult<Reading> {
        let core = py.detach(|| self.open()).or_raise(py)?;
        Ok(Reading::new(core, self.queue.path(), self.on_gap.clone_ref(py)))
    }

    /// The same, of these types only.
    #[cfg(feature = "decode")]
    pub(crate) fn of_types(&self, py: Python<'_>, types: impl Iterator<Item = u16>) -> Self {
        let types = Types::from_iter(types);
        let types = self.limits.types.as_ref().map_or_else(|| types.clone(), |own| own.and(&types));
        Self {
            queue: self.queue.clone(),
            start: self.start,
            limits: Limits { types: Some(types), ..self.limits.clone() },
            verify: self.verify,
            on_gap: self.on_gap.clone_ref(py),
        }
    }

    /// A reader for a table, which can't hold gaps.
    pub(crate) fn read_for_table(&self, py: Python<'_>) -> PyResult<Reading> {
        if matches!(self.on_gap, OnGap::Yield) {
            return Err(errors::invalid(
                py,
                "a table can't hold gaps; make the scan with on_gap=\"raise\" or a function",
            ));
        }
        self.read(py)
    }

    pub(crate) fn open(&self) -> chronfs::Result<Core> {
        let wait = WaitStrategy::Hybrid { spin: Duration::ZERO };
        let tailer = self.queue.tailer_with(&ReaderOptions { start: self.start, verify: self.verify, wait })?;
        Ok(Core::new(Source::Unregistered(Box::new(tailer)), self.limits.clone()))
    }
}

#[pymethods]
impl Scan {
    fn __iter__(&self, py: Python<'_>) -> PyResult<Messages> {
        Ok(Messages { reading: self.read(py)? })
    }

    /// Batches of up to `size` consecutive messages.
    #[pyo3(signature = (size = BATCH))]
    fn batches(&self, py: Python<'_>, size: usize) -> PyResult<Batches> {
        Ok(Batches { reading: Arc::new(self.read(py)?), size: at_least_one(py, size)? })
    }

    /// The payloads as a numpy array of this dtype, one item per message; read-only unless it is a copy.
    ///
    /// `copy`: None: without a copy if the messages lie in one segment and follow each other at equal distances, else a
    /// copy; False: never a copy, ValueError where one is needed (take `batches()`, whose arrays can be had without one);
    /// True: always a copy.
    ///
    /// Raises InvalidInput if a payload has another length than the dtype.
    #[pyo3(signature = (dtype, *, copy = None))]
    pub(crate) fn to_numpy<'py>(
        slf: &Bound<'py, Self>,
        dtype: &Bound<'py, PyAny>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("chronfs._numpy")?.getattr("of_scan")?.call1((slf, dtype, copy))
    }

    /// The messages with their payload decoded as the queue's schema.toml says, or another such file: a Decoded.
    /// `table`: only those that the schema calls so.
    ///
    /// Raises InvalidInput if there is no schema, or it can't be used.
    #[cfg(feature = "decode")]
    #[pyo3(signature = (schema = None, *, table = None))]
    fn decoded(
        slf: &Bound<'_, Self>,
        schema: Option<std::path::PathBuf>,
        table: Option<&str>,
    ) -> PyResult<crate::decoded::Decoded> {
        crate::decoded::Decoded::new(slf, schema, table)
    }

    /// For pyarrow, polars, pandas, duckdb: an Arrow stream with the columns `seq` (uint64), `timestamp` (ns, UTC), `type`
    /// (uint16) and `payload` (binary view). The payloads are not copied: the table keeps the mapped segments.
    ///
    /// A gap ends the stream with an error, unless `on_gap` is a function: it is called, and the stream continues.
    #[pyo3(signature = (requested_schema = Requested))]
    fn __arrow_c_stream__<'py>(&self, py: Python<'py>, requested_schema: Requested) -> PyResult<Bound<'py, PyCapsule>> {
        let Requested = requested_schema;
        arrow::stream_capsule(py, Arc::new(self.read_for_table(py)?), BATCH)
    }

    fn __repr__(&self) -> String {
        format!("Scan({:?}, up to seq {})", self.queue.path(), self.limits.end_seq.unwrap_or(0).saturating_sub(1))
    }
}

pub(crate) fn at_least_one(py: Python<'_>, size: usize) -> PyResult<usize> {
    if size == 0 { Err(errors::invalid(py, "a batch has at least one message")) } else { Ok(size) }
}

/// The messages of a scan, one after the other.
#[pyclass(frozen, module = "chronfs")]
#[derive(Debug)]
pub(crate) struct Messages {
    reading: Reading,
}

#[pymethods]
impl Messages {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.reading.next(py)
    }
}
