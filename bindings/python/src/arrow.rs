//! Batches as Arrow's C structures (<https://arrow.apache.org/docs/format/CDataInterface.html>), which pyarrow, polars,
//! pandas, duckdb and others read: columns `seq`, `timestamp`, `type`, and `payload` as a BinaryView array, whose data
//! buffers are the mapped segments.
#![allow(unsafe_code)] // Two calls: a buffer whose owner is a mapping, an array that need not be checked.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ptr::NonNull;
use std::sync::Arc;

use arrow_array::builder::make_view;
use arrow_array::ffi::{FFI_ArrowArray, FFI_ArrowSchema};
use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_array::{
    Array, ArrayRef, BinaryViewArray, RecordBatch, RecordBatchReader, StructArray, TimestampNanosecondArray,
    UInt16Array, UInt64Array,
};
use arrow_buffer::{Buffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::batch::{Columns, Form, Place};
use crate::memory::{Kept, Lent};
use crate::scan::{OnGap, Reading};

/// The schema that a consumer asks for: any object. The protocol allows to return another one, which is what is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requested;

impl<'py> FromPyObject<'_, 'py> for Requested {
    type Error = Infallible;

    fn extract(_: Borrowed<'_, 'py, PyAny>) -> Result<Self, Infallible> {
        Ok(Self)
    }
}

/// The columns of every batch.
pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("seq", DataType::UInt64, false),
        Field::new("timestamp", DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())), false),
        Field::new("type", DataType::UInt16, false),
        Field::new("payload", DataType::BinaryView, false),
    ]))
}

/// The messages as a record batch; the payloads stay where they are.
pub(crate) fn record_batch(columns: Columns) -> Result<RecordBatch, ArrowError> {
    let buffers = columns.parts.iter().map(|part| buffer(part.kept.lend_range(part.start, part.end)));
    let buffers: Arc<[Buffer]> = buffers.collect();
    let views = if columns.views.is_empty() { views(&columns) } else { columns.views };
    // SAFETY: each view was made of a payload and says where that is: in the buffer of its part, which begins where the
    // part's first payload starts, and ends where the last one does; the payloads of a part ascend.
    let payloads = unsafe { BinaryViewArray::new_unchecked(ScalarBuffer::from(views), buffers, None) };
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from(columns.seqs)),
        Arc::new(times(columns.times_ns)),
        Arc::new(UInt16Array::from(columns.types)),
        Arc::new(payloads),
    ];
    RecordBatch::try_new(schema(), arrays)
}

/// Timestamps after the year 2262 don't fit, and become the last one that does.
fn times(mut times_ns: Vec<u64>) -> TimestampNanosecondArray {
    times_ns.iter_mut().for_each(|ns| *ns = (*ns).min(i64::MAX as u64));
    // The same bytes: no number is negative.
    let times = ScalarBuffer::<i64>::from(Buffer::from_vec(times_ns));
    TimestampNanosecondArray::new(times, None).with_timezone("UTC")
}

fn views(columns: &Columns) -> Vec<u128> {
    let mut views = Vec::with_capacity(columns.len());
    for (number, (part, places)) in (0..).zip(columns.parts()) {
        let lent = part.kept.lend_range(part.start, part.end);
        let bytes = lent.bytes();
        for &Place { offset, len } in places {
            let at = offset - part.start;
            let payload = bytes.get(at as usize..(at + len) as usize).unwrap_or_default();
            views.push(make_view(payload, number, at));
        }
    }
    views
}

/// An Arrow buffer of lent bytes.
fn buffer(lent: Lent<Kept>) -> Buffer {
    let (start, len) = (NonNull::from(lent.bytes()).cast(), lent.bytes().len());
    // SAFETY: the bytes are valid for as long as their owner, which the buffer keeps (memory.rs).
    unsafe { Buffer::from_custom_allocation(start, len, Arc::new(lent)) }
}

/// Schema and array for `__arrow_c_array__`.
pub(crate) fn array_capsules<'py>(
    py: Python<'py>,
    columns: &Columns,
) -> PyResult<(Bound<'py, PyCapsule>, Bound<'py, PyCapsule>)> {
    let batch = py.detach(|| record_batch(columns.clone())).map_err(failed)?;
    let schema = FFI_ArrowSchema::try_from(batch.schema().as_ref()).map_err(failed)?;
    let array = FFI_ArrowArray::new(&StructArray::from(batch).to_data());
    Ok((PyCapsule::new_with_value(py, schema, c"arrow_schema")?, PyCapsule::new_with_value(py, array, c"arrow_array")?))
}

/// A stream for `__arrow_c_stream__`.
pub(crate) fn stream_capsule<'py>(
    py: Python<'py>,
    reading: Arc<Reading>,
    size: usize,
) -> PyResult<Bound<'py, PyCapsule>> {
    stream_capsule_of(py, reading, (Form::Views, size), schema(), |columns| {
        record_batch(columns).map(|batch| vec![batch])
    })
}

/// The same, of what is made of the messages, which come in this form, and no more than `size` at once.
pub(crate) fn stream_capsule_of<'py>(
    py: Python<'py>,
    reading: Arc<Reading>,
    (form, size): (Form, usize),
    schema: SchemaRef,
    convert: impl FnMut(Columns) -> Result<Vec<RecordBatch>, ArrowError> + Send + 'static,
) -> PyResult<Bound<'py, PyCapsule>> {
    let stream =
        FFI_ArrowArrayStream::new(Box::new(Stream { reading, form, size, schema, convert, ready: VecDeque::new() }));
    PyCapsule::new_with_value(py, stream, c"arrow_array_stream")
}

fn failed(error: ArrowError) -> PyErr {
    pyo3::exceptions::PyRuntimeError::new_err(error.to_string())
}

/// Batches of a scan, one after the other. Its consumer may call it from any thread, with the GIL or without.
struct Stream<F> {
    reading: Arc<Reading>,
    form: Form,
    size: usize,
    schema: SchemaRef,
    convert: F,
    /// What has been made of messages and not been returned yet.
    ready: VecDeque<RecordBatch>,
}

impl<F: FnMut(Columns) -> Result<Vec<RecordBatch>, ArrowError>> Iterator for Stream<F> {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Some(Ok(batch));
            }
            let error = |text: String| Some(Err(ArrowError::ExternalError(text.into())));
            return match self.reading.batch_without_gil(self.form, self.size) {
                Ok(None) => None,
                Ok(Some(Ok(columns))) if columns.len() == 0 => continue,
                Ok(Some(Ok(columns))) => match (self.convert)(columns) {
                    Ok(batches) => {
                        self.ready.extend(batches);
                        continue;
                    }
                    Err(failure) => Some(Err(failure)),
                },
                Ok(Some(Err(gap))) => match &self.reading.on_gap {
                    OnGap::Call(callback) => {
                        let called = Python::try_attach(|py| callback.call1(py, (gap,)).map(drop));
                        match called {
                            Some(Ok(())) => continue,
                            Some(Err(error_raised)) => error(error_raised.to_string()),
                            None => error("the interpreter has ended".to_owned()),
                        }
                    }
                    _ => error(format!(
                        "{}: {gap}; on_gap=FUNCTION calls it and continues",
                        self.reading.path().display()
                    )),
                },
                Err(text) => error(text),
            };
        }
    }
}

impl<F: FnMut(Columns) -> Result<Vec<RecordBatch>, ArrowError>> RecordBatchReader for Stream<F> {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}
