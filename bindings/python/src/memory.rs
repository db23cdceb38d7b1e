//! Memory that is lent to Python: all the unsafe code about payloads.
//!
//! Invariants:
//! - What is lent lies in a mapping, or in a vector, whose owner the lender holds; owners are never changed or dropped
//!   while they are held. So the address stays valid for as long as the lender lives, and Python's buffer protocol
//!   keeps the lender alive for as long as anything uses the buffer.
//! - It is lent for reading only.
//! - Another process that may write to the queue's files can change a payload at any time ([`chronfs::Message::payload`]):
//!   the bytes handed to Python are data, on which nothing here depends.
#![allow(unsafe_code)]

use std::any::Any;
use std::ffi::{CStr, c_int};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use chronfs::queue::KeptMessage;
use chronfs::queue::layout::HEADER_LEN;
use pyo3::exceptions::{PyRuntimeWarning, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use pyo3::{PyErr, ffi};

static KEPT_SEGMENTS: AtomicUsize = AtomicUsize::new(0);
static KEPT_BYTES: AtomicUsize = AtomicUsize::new(0);
static WARN_AT: AtomicU64 = AtomicU64::new(1 << 30);

/// Bytes that messages are lent from: a mapped segment, or a copy of one payload, where the segment can't be mapped.
#[derive(Debug)]
pub(crate) struct Kept {
    _owner: Owner,
    /// The address of the first byte.
    start: usize,
    len: usize,
    /// Bytes of the file that it keeps.
    file_bytes: usize,
}

#[derive(Debug)]
enum Owner {
    /// A message of the segment, which keeps its mapping.
    Message {
        _message: KeptMessage,
    },
    Copy {
        _bytes: Arc<[u8]>,
    },
}

impl Kept {
    /// The segment of a message.
    pub(crate) fn new(message: KeptMessage) -> Arc<Self> {
        let len = message.kept_bytes();
        if len == 0 {
            return Self::copy(&message);
        }
        let offset = message.message().position.offset.saturating_add(HEADER_LEN) as usize;
        let start = message.as_ptr().expose_provenance().saturating_sub(offset);
        KEPT_SEGMENTS.fetch_add(1, Ordering::Relaxed);
        KEPT_BYTES.fetch_add(len, Ordering::Relaxed);
        Arc::new(Self { _owner: Owner::Message { _message: message }, start, len, file_bytes: len })
    }

    /// A copy of one payload.
    pub(crate) fn copy(payload: &[u8]) -> Arc<Self> {
        let bytes: Arc<[u8]> = payload.into();
        let (start, len) = (bytes.as_ptr().expose_provenance(), bytes.len());
        Arc::new(Self { _owner: Owner::Copy { _bytes: bytes }, start, len, file_bytes: 0 })
    }

    /// Where these bytes are, as an offset from the first one that is kept; None if they lie elsewhere.
    #[inline]
    pub(crate) fn offset_of(&self, bytes: &[u8]) -> Option<u32> {
        // While the memory is kept, nothing else can have the same addresses.
        let offset = bytes.as_ptr().addr().checked_sub(self.start)?;
        let is_within = offset.checked_add(bytes.len())? <= self.len;
        // The size of a segment is a 32-bit number.
        if is_within { u32::try_from(offset).ok() } else { None }
    }

    /// Lends bytes that lie here; None if they lie elsewhere.
    #[inline]
    pub(crate) fn lend(self: &Arc<Self>, bytes: &[u8]) -> Option<Lent<Self>> {
        self.offset_of(bytes)?;
        Some(Lent { start: bytes.as_ptr(), len: bytes.len(), owner: Arc::clone(self) })
    }

    /// Lends all: of a copy, which is one payload.
    pub(crate) fn lend_all(self: &Arc<Self>) -> Lent<Self> {
        self.lend_range(0, u32::MAX)
    }

    /// Lends the bytes from one offset to another, both of payloads that have been returned: so everything in between
    /// has been published and will not change.
    pub(crate) fn lend_range(self: &Arc<Self>, from: u32, to: u32) -> Lent<Self> {
        let to = (to as usize).min(self.len);
        let from = (from as usize).min(to);
        let start = std::ptr::with_exposed_provenance(self.start + from);
        Lent { start, len: to - from, owner: Arc::clone(self) }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.file_bytes > 0 {
            KEPT_SEGMENTS.fetch_sub(1, Ordering::Relaxed);
            KEPT_BYTES.fetch_sub(self.file_bytes, Ordering::Relaxed);
        }
    }
}

/// Bytes, and the owner that keeps them where they are.
#[derive(Debug)]
pub(crate) struct Lent<O: ?Sized> {
    owner: Arc<O>,
    start: *const u8,
    len: usize,
}

// SAFETY: the bytes are only read, and their owner may be used and dropped by any thread.
unsafe impl<O: Send + Sync + ?Sized> Send for Lent<O> {}
// SAFETY: as above.
unsafe impl<O: Send + Sync + ?Sized> Sync for Lent<O> {}

impl<O: ?Sized> Lent<O> {
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: made from a slice of these bytes, which the owner keeps (see the head of this file).
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

/// Bytes for numpy and others that understand Python's buffer protocol. Read-only; the object keeps them where they are.
#[pyclass(frozen, module = "chronfs")]
#[derive(Debug)]
pub(crate) struct Memory(Lent<dyn Any + Send + Sync>);

impl Memory {
    pub(crate) fn mapped(lent: Lent<Kept>) -> Self {
        let Lent { owner, start, len } = lent;
        Self(Lent { owner, start, len })
    }

    /// The numbers of a vector that `owner` has, and does not change any more.
    pub(crate) fn column<O, T>(owner: &Arc<O>, column: impl FnOnce(&O) -> &Vec<T>) -> Self
    where
        O: Any + Send + Sync,
        T: Number,
    {
        let values = column(owner).as_slice();
        let (start, len) = (values.as_ptr().cast(), size_of_val(values));
        Self(Lent { owner: Arc::clone(owner) as Arc<dyn Any + Send + Sync>, start, len })
    }
}

/// Types without padding, all of whose bytes may be read.
pub(crate) trait Number: Copy {}
impl Number for u8 {}
impl Number for u16 {}
impl Number for u64 {}

#[pymethods]
impl Memory {
    fn __len__(&self) -> usize {
        self.0.len
    }

    /// Called by Python's buffer protocol.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let lent = &slf.get().0;
        // SAFETY: Python passes a view to be filled in; the object keeps the bytes.
        unsafe { fill(&slf, lent.start, lent.len, view, flags) }
    }
}

/// Fills in a buffer view for the bytes of a message.
///
/// # Safety
/// `view` is one that Python passed to `__getbuffer__`; `lent` belongs to `object`.
pub(crate) unsafe fn fill_view<T, O: ?Sized>(
    object: &Bound<'_, T>,
    lent: &Lent<O>,
    view: *mut ffi::Py_buffer,
    flags: c_int,
) -> PyResult<()> {
    // SAFETY: as this function requires.
    unsafe { fill(object, lent.start, lent.len, view, flags) }
}

unsafe fn fill<T>(
    object: &Bound<'_, T>,
    start: *const u8,
    len: usize,
    view: *mut ffi::Py_buffer,
    flags: c_int,
) -> PyResult<()> {
    let len = len.try_into()?;
    // SAFETY: the view is valid, and will hold a reference to the object, which keeps the bytes. It is read-only: a
    // request for a writable view is refused by the call.
    let result = unsafe { ffi::PyBuffer_FillInfo(view, object.as_ptr(), start.cast_mut().cast(), len, 1, flags) };
    if result == 0 { Ok(()) } else { Err(PyErr::fetch(object.py())) }
}

/// A contiguous buffer that some Python object lends; released when dropped.
struct View(ffi::Py_buffer);

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: it was filled in by PyObject_GetBuffer and is released once, with the interpreter attached.
        unsafe { ffi::PyBuffer_Release(&raw mut self.0) };
    }
}

/// Calls `f` with the bytes of a bytes-like object, and with the number of its items along the first dimension.
pub(crate) fn with_bytes<R>(object: &Bound<'_, PyAny>, f: impl FnOnce(&[u8], usize) -> R) -> PyResult<R> {
    if let Ok(bytes) = object.cast::<PyBytes>() {
        let bytes = bytes.as_bytes();
        return Ok(f(bytes, bytes.len()));
    }
    if object.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err("a payload is bytes, not str: encode it first, as in text.encode()"));
    }
    let mut view = View(ffi::Py_buffer::new());
    let mut get = |flags| {
        // SAFETY: `view` is valid for writing. On failure it needs no release, and the release of one without an object
        // does nothing.
        let result = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut view.0, flags) };
        if result == 0 { Ok(()) } else { Err(PyErr::fetch(object.py())) }
    };
    // Some arrays (of numpy's times) have no format that the protocol knows.
    get(ffi::PyBUF_ND | ffi::PyBUF_FORMAT).or_else(|_| get(ffi::PyBUF_ND))?;
    // SAFETY: NULL, or a string that ends with 0.
    if !view.0.format.is_null() && unsafe { CStr::from_ptr(view.0.format) }.to_bytes().contains(&b'O') {
        return Err(PyTypeError::new_err("a payload can't be an array of Python objects"));
    }
    let (len, dimensions) = (usize::try_from(view.0.len)?, view.0.ndim);
    let first = match view.0.shape.is_null() || dimensions < 1 {
        true => 1,
        // SAFETY: PyBUF_ND asks for the shape, which has `ndim` items.
        false => usize::try_from(unsafe { *view.0.shape })?,
    };
    if len == 0 || view.0.buf.is_null() {
        return Ok(f(&[], first));
    }
    // SAFETY: PyBUF_ND without PyBUF_STRIDES asks for contiguous bytes, of which there are `len` until the release.
    // Other threads might store into them only if they use the buffer without holding the GIL; the engine reads each
    // byte once, so that what it appends agrees with its checksum.
    Ok(f(unsafe { std::slice::from_raw_parts(view.0.buf.cast(), len) }, first))
}

/// How many mapped segments Python objects keep, and their size in bytes: `(segments, bytes)`.
///
/// A message, an array or a table that is alive keeps the whole segment that its bytes lie in. A segment that retention
/// has removed meanwhile still takes its space on the disk until then.
#[pyfunction]
pub(crate) fn kept() -> (usize, usize) {
    (KEPT_SEGMENTS.load(Ordering::Relaxed), KEPT_BYTES.load(Ordering::Relaxed))
}

/// Sets from how many bytes of segments that Python objects keep a RuntimeWarning is issued; again whenever that has
/// doubled. Default 1 GiB.
#[pyfunction]
#[pyo3(signature = (bytes, /))]
pub(crate) fn warn_when_kept(bytes: u64) {
    WARN_AT.store(bytes.max(1), Ordering::Relaxed);
}

/// Warns if Python objects keep much.
#[inline]
pub(crate) fn warn_if_much(py: Python<'_>) -> PyResult<()> {
    let bytes = KEPT_BYTES.load(Ordering::Relaxed);
    if bytes as u64 > WARN_AT.load(Ordering::Relaxed) { warn(py, bytes) } else { Ok(()) }
}

#[cold]
fn warn(py: Python<'_>, bytes: usize) -> PyResult<()> {
    WARN_AT.store((bytes as u64).saturating_mul(2), Ordering::Relaxed);
    let text = format!(
        "messages, arrays and tables that are alive keep {} MiB of segments from being removed or reused; drop them, or \
         copy what you keep (bytes(message), array.copy())\0",
        bytes >> 20
    );
    let text = CStr::from_bytes_with_nul(text.as_bytes()).unwrap_or_default();
    PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), text, 2)
}
