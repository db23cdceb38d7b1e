//! Many messages at once, in columns: for numpy and Arrow.

use std::sync::Arc;

use arrow_array::builder::make_view;
use chronfs::queue;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyCapsule;

use crate::arrow::{self, Requested};
use crate::errors::invalid;
use crate::memory::{Kept, Memory, warn_if_much};
use crate::scan::Reading;

/// A payload's place in the memory of its part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// Consecutive messages of a batch whose payloads lie in one mapping.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) kept: Arc<Kept>,
    /// How many messages of the batch are before it.
    pub(crate) first: usize,
    /// Where the first payload starts, and the last one ends.
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// How the places of payloads are stated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// In `places`.
    Places,
    /// In `views`, while the payload is at hand: as Arrow has them, which needs no second pass.
    Views,
}

/// Messages in columns.
#[derive(Debug, Clone)]
pub(crate) struct Columns {
    form: Form,
    pub(crate) seqs: Vec<u64>,
    pub(crate) times_ns: Vec<u64>,
    pub(crate) types: Vec<u16>,
    pub(crate) places: Vec<Place>,
    /// Their buffers are the parts.
    pub(crate) views: Vec<u128>,
    pub(crate) parts: Vec<Part>,
}

impl Columns {
    /// Without messages, and with room for some.
    pub(crate) fn new(form: Form, room: usize) -> Self {
        let (seqs, times_ns, types) = (Vec::with_capacity(room), Vec::with_capacity(room), Vec::with_capacity(room));
        let (places, views) = match form {
            Form::Places => (Vec::with_capacity(room), Vec::new()),
            Form::Views => (Vec::new(), Vec::with_capacity(room)),
        };
        Self { form, seqs, times_ns, types, places, views, parts: Vec::new() }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.seqs.len()
    }

    /// Adds a message; `kept`: the memory in which its payload should lie.
    #[inline]
    pub(crate) fn push(&mut self, kept: &Arc<Kept>, message: &queue::Message<'_>) {
        let &queue::Message { seq, timestamp_ns, msg_type, payload, .. } = message;
        let offset = match self.parts.last().filter(|part| Arc::ptr_eq(&part.kept, kept)) {
            // What is before the end of the part is not in it.
            Some(part) => part.kept.offset_of(payload).filter(|&offset| offset >= part.end),
            None => None,
        };
        let offset = offset.unwrap_or_else(|| self.start_part(kept, payload));
        // Lengths and sizes in a segment are 32-bit numbers.
        #[allow(clippy::cast_possible_truncation)]
        let (len, number) = (payload.len() as u32, self.parts.len().saturating_sub(1) as u32);
        if let Some(part) = self.parts.last_mut() {
            part.end = offset + len;
            match self.form {
                Form::Places => self.places.push(Place { offset, len }),
                Form::Views => self.views.push(make_view(payload, number, offset - part.start)),
            }
        }
        self.seqs.push(seq);
        self.times_ns.push(timestamp_ns);
        self.types.push(msg_type);
    }

    /// Returns the payload's offset in the new part.
    #[cold]
    fn start_part(&mut self, kept: &Arc<Kept>, payload: &[u8]) -> u32 {
        let (kept, offset) = match kept.offset_of(payload) {
            Some(offset) => (Arc::clone(kept), offset),
            None => (Kept::copy(payload), 0),
        };
        self.parts.push(Part { kept, first: self.len(), start: offset, end: offset });
        offset
    }

    /// Passes on each message: number, time, type and payload.
    #[cfg(feature = "decode")]
    pub(crate) fn messages<E>(&self, mut each: impl FnMut(u64, u64, u16, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut heads = self.seqs.iter().zip(&self.times_ns).zip(&self.types);
        for (part, places) in self.parts() {
            let from = places.first().map_or(0, |place| place.offset);
            let lent = part.kept.lend_range(from, part.end);
            for (place, ((seq, time_ns), msg_type)) in places.iter().zip(&mut heads) {
                let at = (place.offset - from) as usize;
                let payload = lent.bytes().get(at..at + place.len as usize).unwrap_or_default();
                each(*seq, *time_ns, *msg_type, payload)?;
            }
        }
        Ok(())
    }

    /// The parts, each with its payloads' places.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&Part, &[Place])> {
        let ends = self.parts.iter().skip(1).map(|part| part.first).chain([self.len()]);
        self.parts.iter().zip(ends).map(|(part, end)| (part, self.places.get(part.first..end).unwrap_or_default()))
    }
}

/// Consecutive messages, as columns. Their payloads stay where they are: in the mapped files, which the batch keeps.
///
/// `batch.to_numpy(dtype)`; pyarrow, polars and others take it as a record batch: `pyarrow.record_batch(batch)`.
#[pyclass(frozen, module = "chronfs")]
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) columns: Arc<Columns>,
}

impl Batch {
    pub(crate) fn new(columns: Columns) -> Self {
        Self { columns: Arc::new(columns) }
    }
}

#[pymethods]
impl Batch {
    fn __len__(&self) -> usize {
        self.columns.len()
    }

    fn __repr__(&self) -> String {
        let (first, last) = (self.columns.seqs.first().unwrap_or(&0), self.columns.seqs.last().unwrap_or(&0));
        format!("Batch({} messages, seq {first} to {last})", self.columns.len())
    }

    /// The sequence numbers: a numpy array of uint64, without a copy.
    #[getter]
    fn seq<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        numpy(py, "column", (Memory::column(&self.columns, |columns| &columns.seqs), "u8"))
    }

    /// When each was appended, ns since the epoch: a numpy array of uint64, without a copy.
    #[getter]
    fn timestamp_ns<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        numpy(py, "column", (Memory::column(&self.columns, |columns| &columns.times_ns), "u8"))
    }

    /// The types: a numpy array of uint16, without a copy.
    #[getter]
    fn r#type<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        numpy(py, "column", (Memory::column(&self.columns, |columns| &columns.types), "u2"))
    }

    /// The payloads as a numpy array of this dtype, one item per message; read-only.
    ///
    /// `copy`: None: without a copy if the messages lie in one segment and follow each other at equal distances, else a
    /// copy; False: never a copy, ValueError where one is needed; True: always a copy.
    ///
    /// Raises InvalidInput if a payload has another length than the dtype.
    #[pyo3(signature = (dtype, *, copy = None))]
    fn to_numpy<'py>(
        slf: &Bound<'py, Self>,
        dtype: &Bound<'py, PyAny>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        numpy(slf.py(), "of_batch", (slf, dtype, copy))
    }

    /// For `to_numpy`: (memory, count, stride) of items of this many bytes without a copy; None if that is impossible.
    fn _strided(&self, py: Python<'_>, item_len: u32) -> PyResult<Option<(Memory, usize, u32)>> {
        check_lengths(py, &self.columns, item_len)?;
        let [part] = self.columns.parts.as_slice() else { return Ok(None) };
        let places = &self.columns.places;
        let (Some(first), Some(last)) = (places.first(), places.last()) else { return Ok(None) };
        let stride = places.get(1).map_or(item_len, |second| second.offset - first.offset);
        let is_even = py.detach(|| places.windows(2).all(|two| matches!(two, [a, b] if b.offset - a.offset == stride)));
        let memory = || Memory::mapped(part.kept.lend_range(first.offset, last.offset + last.len));
        Ok(is_even.then(|| (memory(), places.len(), stride)))
    }

    /// For `to_numpy`: a copy of the payloads, one after the other, each of this many bytes.
    fn _copied(&self, py: Python<'_>, item_len: u32) -> PyResult<Memory> {
        check_lengths(py, &self.columns, item_len)?;
        Ok(Memory::column(&Arc::new(py.detach(|| self.gather())), |bytes| bytes))
    }

    /// For pyarrow, polars and others: the schema and the record batch as Arrow's C structures.
    #[pyo3(signature = (requested_schema = Requested))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Requested,
    ) -> PyResult<(Bound<'py, PyCapsule>, Bound<'py, PyCapsule>)> {
        let Requested = requested_schema;
        arrow::array_capsules(py, &self.columns)
    }
}

impl Batch {
    fn gather(&self) -> Vec<u8> {
        let total = self.columns.places.iter().map(|place| place.len as usize).sum();
        let mut bytes = Vec::with_capacity(total);
        for (part, places) in self.columns.parts() {
            let all = part.kept.lend_range(0, part.end);
            for &Place { offset, len } in places {
                let place = offset as usize..(offset + len) as usize;
                bytes.extend_from_slice(all.bytes().get(place).unwrap_or_default());
            }
        }
        bytes
    }
}

fn check_lengths(py: Python<'_>, columns: &Columns, item_len: u32) -> PyResult<()> {
    let other = py.detach(|| columns.places.iter().position(|place| place.len != item_len));
    match other.and_then(|at| Some((columns.seqs.get(at)?, columns.places.get(at)?.len))) {
        None => Ok(()),
        Some((seq, len)) => {
            let text = format!(
                "message {seq} has {len} bytes and the dtype {item_len}; choose the messages of that size, for example \
                 by types="
            );
            Err(invalid(py, text))
        }
    }
}

/// Calls a function of `chronfs._numpy`, which imports numpy.
fn numpy<'py, A: pyo3::call::PyCallArgs<'py>>(py: Python<'py>, function: &str, args: A) -> PyResult<Bound<'py, PyAny>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = MODULE.get_or_try_init(py, || Ok::<_, PyErr>(py.import("chronfs._numpy")?.unbind()))?;
    module.bind(py).getattr(function)?.call1(args)
}

/// An iterator over batches of consecutive messages, from `Scan.batches()` or `Reader.batches()`.
#[pyclass(frozen, module = "chronfs")]
#[derive(Debug)]
pub(crate) struct Batches {
    pub(crate) reading: Arc<Reading>,
    pub(crate) size: usize,
}

#[pymethods]
impl Batches {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        warn_if_much(py)?;
        self.reading.batch(py, self.size)
    }
}
