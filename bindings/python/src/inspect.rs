//! What is known of a queue, as a dictionary.

use chronfs::queue::{Inspection, ReaderInfo, SegmentInfo, WriterInfo};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::options;

/// Makes a dictionary of fields of the same names.
macro_rules! dict {
    ($py:expr, $from:expr, $($field:ident),+) => {{
        let dict = PyDict::new($py);
        $(dict.set_item(stringify!($field), $from.$field.clone())?;)+
        dict
    }};
}

pub(crate) fn as_dict<'py>(py: Python<'py>, found: &Inspection) -> PyResult<Bound<'py, PyDict>> {
    let dict = dict!(py, found, path, messages, bytes);
    dict.set_item("first_seq", found.bounds.first_seq)?;
    dict.set_item("next_seq", found.bounds.next_seq)?;
    dict.set_item("last_timestamp_ns", found.bounds.last_timestamp_ns)?;
    dict.set_item("role", found.role.as_str())?;
    dict.set_item("term", found.role.term())?;
    dict.set_item("settings", options::as_dict(py, &found.settings)?)?;
    dict.set_item("writer", writer(py, &found.writer)?)?;
    dict.set_item("segments", list(py, &found.segments, segment)?)?;
    dict.set_item("readers", list(py, &found.readers, reader)?)?;
    Ok(dict)
}

fn list<'py, T>(
    py: Python<'py>,
    items: &[T],
    dict: impl Fn(Python<'py>, &T) -> PyResult<Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyList>> {
    let items: PyResult<Vec<_>> = items.iter().map(|item| dict(py, item)).collect();
    PyList::new(py, items?)
}

fn writer<'py>(py: Python<'py>, info: &WriterInfo) -> PyResult<Bound<'py, PyDict>> {
    let dict = dict!(py, info, pid, epoch, heartbeat_age_ms);
    dict.set_item("state", info.state.as_str())?;
    Ok(dict)
}

fn segment<'py>(py: Python<'py>, info: &SegmentInfo) -> PyResult<Bound<'py, PyDict>> {
    let dict = dict!(py, info, first_seq, last_seq, bytes, sealed);
    dict.set_item("id", info.id.0)?;
    Ok(dict)
}

fn reader<'py>(py: Python<'py>, info: &ReaderInfo) -> PyResult<Bound<'py, PyDict>> {
    let dict = dict!(
        py,
        info,
        name,
        position,
        damage,
        in_use,
        lag_messages,
        lag_bytes,
        lag_seconds,
        heartbeat_age_ms,
        pins_segments,
        pins_bytes
    );
    dict.set_item("state", info.state())?;
    Ok(dict)
}
