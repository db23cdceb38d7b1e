//! Messages and gaps.
#![allow(unsafe_code)] // The method that Python's buffer protocol calls is declared so; see memory.rs.

use std::ffi::c_int;
use std::sync::Arc;

use chronfs::queue::{self, Position};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyMemoryView};

use crate::memory::{Kept, Lent, fill_view};

/// A message. Its payload is lent from the mapped file, without a copy: `memoryview(m)`, `bytes(m)`,
/// `numpy.frombuffer(m, dtype)`, `struct.unpack_from(format, m)`. The object keeps the file's mapping for as long as it,
/// or a view of it, is alive; `chronfs.kept()` tells how much that is.
#[pyclass(frozen, module = "chronfs")]
#[derive(Debug)]
pub(crate) struct Message {
    /// Its sequence number: 1, 2, 3 … in the order of appending.
    #[pyo3(get)]
    pub(crate) seq: u64,
    /// When it was appended, in nanoseconds since the epoch. Never less than that of the message before.
    #[pyo3(get)]
    pub(crate) timestamp_ns: u64,
    pub(crate) msg_type: u16,
    pub(crate) position: Position,
    pub(crate) lent: Lent<Kept>,
}

impl Message {
    /// A message whose payload should lie in this memory.
    #[inline]
    pub(crate) fn new(kept: &Arc<Kept>, message: &queue::Message<'_>) -> Self {
        let &queue::Message { seq, timestamp_ns, msg_type, position, payload } = message;
        let lent = kept.lend(payload).unwrap_or_else(|| Kept::copy(payload).lend_all());
        Self { seq, timestamp_ns, msg_type, position, lent }
    }
}

#[pymethods]
impl Message {
    /// Its type, 0 to 65534; what it means is the application's business.
    #[getter]
    fn r#type(&self) -> u16 {
        self.msg_type
    }

    /// When it was appended, as an aware datetime in UTC, cut to microseconds.
    #[getter]
    fn time<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        static FROM_NS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        FROM_NS.import(py, "chronfs._time", "from_ns")?.call1((self.timestamp_ns,))
    }

    /// Its bytes, without a copy: the same as `memoryview(m)`.
    #[getter]
    fn payload<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyMemoryView>> {
        PyMemoryView::from(slf.as_any())
    }

    /// Where its record starts: the segment's number, and the offset in its file in bytes.
    #[getter]
    fn position(&self) -> (u32, u32) {
        (self.position.segment.0, self.position.offset)
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.lent.bytes())
    }

    fn __len__(&self) -> usize {
        self.lent.bytes().len()
    }

    fn __bool__(&self) -> bool {
        true
    }

    fn __repr__(&self) -> String {
        let (start, len) = (self.lent.bytes(), self.lent.bytes().len());
        let shown = start.get(..len.min(32)).unwrap_or_default().escape_ascii();
        let more = if len > 32 { "…" } else { "" };
        let Self { seq, timestamp_ns, msg_type, .. } = self;
        format!("Message(seq={seq}, timestamp_ns={timestamp_ns}, type={msg_type}, {len} bytes: b\"{shown}\"{more})")
    }

    /// Called by Python's buffer protocol.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        // SAFETY: Python passes a view to be filled in; the message keeps the bytes.
        unsafe { fill_view(&slf, &slf.get().lent, view, flags) }
    }
}

/// Messages that are missing, and why.
#[pyclass(frozen, eq, module = "chronfs")]
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gap {
    /// The first sequence number that is missing.
    #[pyo3(get)]
    first_seq: u64,
    /// The last sequence number that is missing.
    #[pyo3(get)]
    last_seq: u64,
    /// Why: "checksum", "segment", "lost", "retired", or, in a copy of another queue, one that begins with "upstream".
    #[pyo3(get)]
    reason: &'static str,
    /// Where the damage starts: the segment's number, and the offset in its file in bytes.
    #[pyo3(get)]
    position: (u32, u32),
}

impl From<queue::Gap> for Gap {
    fn from(gap: queue::Gap) -> Self {
        let position = (gap.position.segment.0, gap.position.offset);
        Self { first_seq: gap.from, last_seq: gap.to, reason: gap.reason.as_str(), position }
    }
}

#[pymethods]
impl Gap {
    /// How many messages are missing.
    #[getter]
    pub(crate) fn count(&self) -> u64 {
        self.last_seq.saturating_sub(self.first_seq).saturating_add(1)
    }

    fn __repr__(&self) -> String {
        format!("Gap(first_seq={}, last_seq={}, reason={:?})", self.first_seq, self.last_seq, self.reason)
    }
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.count() {
            1 => write!(f, "message {} is missing: {}", self.first_seq, self.reason),
            _ => write!(f, "messages {} to {} are missing: {}", self.first_seq, self.last_seq, self.reason),
        }
    }
}
