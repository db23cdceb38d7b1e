//! Messages with their payload decoded: `scan.decoded()`.

use std::path::PathBuf;
use std::sync::Arc;

use arrow_schema::ArrowError;
use chronfs_decode::{Element, Name, Number, Rows, SCHEMA_FILE, Schema, Sink, Undecodable};
use pyo3::IntoPyObjectExt as _;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyCapsule, PyDict, PyList};

use crate::arrow::{self, Requested};
use crate::batch::Form;
use crate::errors::invalid;
use crate::message::Message;
use crate::scan::{BATCH, Reading, Scan};

/// The messages of a scan, decoded as the queue's schema.toml says, or another file: `scan.decoded()`.
///
/// Iterating yields a dict for each message, with the keys that `chron-cli tail --decode --format jsonl` prints: `seq`,
/// `timestamp_ns`, `type`, then `name` and `decoded`, or `undecoded` (the reason) and `payload`. Decimals are
/// decimal.Decimal, times integers.
///
/// As Arrow stream (`polars.DataFrame(decoded)`, `pyarrow.table(decoded)`, `SELECT … FROM decoded`) it has the columns of
/// `chron-cli export`, for the messages of one `table`; `to_numpy()` is for fixed layouts.
#[pyclass(frozen, module = "chronfs._chronfs")]
#[derive(Debug)]
pub(crate) struct Decoded {
    scan: Py<Scan>,
    schema: Arc<Schema>,
    /// The only one whose messages are wanted.
    table: Option<usize>,
}

impl Decoded {
    pub(crate) fn new(slf: &Bound<'_, Scan>, schema: Option<PathBuf>, table: Option<&str>) -> PyResult<Self> {
        let py = slf.py();
        let queue = slf.get().queue.path().to_owned();
        let loaded = py.detach(|| match &schema {
            Some(file) => Schema::load_file(file).map(Some).map_err(|error| (file.with_file_name(""), error)),
            None => Schema::load(&queue).map_err(|error| (queue.join(""), error)),
        });
        let schema = match loaded {
            Ok(Some(schema)) => schema,
            Ok(None) => return Err(invalid(py, format!("{}: it has no {SCHEMA_FILE}", queue.display()))),
            Err((dir, error)) => return Err(invalid(py, format!("{}{error}", dir.display()))),
        };
        let find = |name: &str| {
            let found = schema.tables().iter().position(|table| table.name() == name);
            found.ok_or_else(|| invalid(py, format!("no messages are called {name:?}; {}", names(&schema))))
        };
        let table = table.map(find).transpose()?;
        Ok(Self { scan: slf.clone().unbind(), schema: Arc::new(schema), table })
    }

    /// The table that was asked for, or the only one.
    fn one(&self, py: Python<'_>) -> PyResult<usize> {
        match (self.table, self.schema.tables()) {
            (Some(table), _) => Ok(table),
            (None, [_]) => Ok(0),
            (None, _) => Err(invalid(py, format!("choose a table: {}", names(&self.schema)))),
        }
    }

    /// The numpy type of a fixed layout, as the arguments of `numpy.dtype`.
    fn layout<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let table = self.one(py)?;
        let no_layout = || invalid(py, "only messages with a fixed layout are arrays");
        let layout = self.schema.tables().get(table).and_then(|table| table.layout()).ok_or_else(no_layout)?;
        let formats = PyList::empty(py);
        for column in layout.columns() {
            let order = if column.is_big_endian() { '>' } else { '<' };
            let kind = match column.element() {
                Element::Number(number) => format!("{order}{}{}", letter(number), number.size()),
                Element::Bool => "?".to_owned(),
                Element::Text(len) => format!("S{len}"),
                element => format!("V{}", element.size()),
            };
            match column.count() {
                Some(count) => formats.append((kind, (count,)))?,
                None => formats.append(kind)?,
            }
        }
        let columns = || layout.columns().iter();
        let dict = PyDict::new(py);
        dict.set_item("names", columns().map(|column| column.name().as_str()).collect::<Vec<_>>())?;
        dict.set_item("formats", formats)?;
        dict.set_item("offsets", columns().map(|column| column.offset()).collect::<Vec<_>>())?;
        dict.set_item("itemsize", layout.len())?;
        Ok(dict)
    }
}

#[pymethods]
impl Decoded {
    /// What the messages of the schema are called.
    #[getter]
    fn tables(&self) -> Vec<&str> {
        self.schema.tables().iter().map(|table| table.name()).collect()
    }

    fn __iter__(&self, py: Python<'_>) -> PyResult<DecodedMessages> {
        let reading = self.scan.get().read(py)?;
        Ok(DecodedMessages { reading, schema: Arc::clone(&self.schema), table: self.table })
    }

    /// The numpy dtype of a fixed layout. Integers are as they are in the payload: without the layout's `scale` and `names`.
    #[getter]
    fn dtype<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        py.import("numpy")?.getattr("dtype")?.call1((self.layout(py)?,))
    }

    /// The payloads of messages with a fixed layout as a numpy array of that `dtype`; `copy` as for Scan.to_numpy.
    ///
    /// Raises InvalidInput if a payload has another length than the layout.
    #[pyo3(signature = (*, copy = None))]
    fn to_numpy<'py>(&self, py: Python<'py>, copy: Option<bool>) -> PyResult<Bound<'py, PyAny>> {
        let dtype = self.dtype(py)?;
        let scan = self.scan.get().of_types(py, self.schema.types(self.one(py)?));
        Scan::to_numpy(&Bound::new(py, scan)?, &dtype, copy)
    }

    /// For pyarrow, polars, pandas, duckdb: an Arrow stream of the messages of one table.
    #[pyo3(signature = (requested_schema = Requested))]
    fn __arrow_c_stream__<'py>(&self, py: Python<'py>, requested_schema: Requested) -> PyResult<Bound<'py, PyCapsule>> {
        let Requested = requested_schema;
        let table = self.one(py)?;
        let (schema, mut rows) = (Arc::clone(&self.schema), Rows::new(Some(Arc::clone(&self.schema)), Some(table)));
        let columns = Arc::clone(rows.schema());
        let reading = Arc::new(self.scan.get().read_for_table(py)?);
        arrow::stream_capsule_of(py, reading, (Form::Places, BATCH), columns, move |columns| {
            let mut batches = Vec::new();
            columns.messages(|seq, timestamp_ns, msg_type, payload| {
                if schema.table_of(msg_type, payload) == Ok(Some(table)) {
                    rows.push(seq, timestamp_ns, msg_type, payload, None);
                }
                // Before all of a batch: payloads may be long.
                if rows.is_full() {
                    batches.extend(rows.take()?);
                }
                Ok::<_, ArrowError>(())
            })?;
            batches.extend(rows.take()?);
            Ok(batches)
        })
    }
}

fn names(schema: &Schema) -> String {
    let names: Vec<_> = schema.tables().iter().map(|table| table.name()).collect();
    format!("there are {}", names.join(", "))
}

fn letter(number: Number) -> char {
    match (number.is_float(), number.is_signed()) {
        (true, _) => 'f',
        (_, true) => 'i',
        (_, false) => 'u',
    }
}

/// The messages of a scan, decoded, one after the other.
#[pyclass(frozen, module = "chronfs._chronfs")]
#[derive(Debug)]
pub(crate) struct DecodedMessages {
    reading: Reading,
    schema: Arc<Schema>,
    table: Option<usize>,
}

#[pymethods]
impl DecodedMessages {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        while let Some(entry) = self.reading.next(py)? {
            let Ok(message) = entry.bind(py).cast::<Message>() else { return Ok(Some(entry)) };
            let message = message.get();
            let table = self.schema.table_of(message.msg_type, message.lent.bytes());
            if self.table.is_some() && table != Ok(self.table) {
                continue;
            }
            return self.row(py, message, table).map(|row| Some(row.into_any().unbind()));
        }
        Ok(None)
    }
}

impl DecodedMessages {
    fn row<'py>(
        &self,
        py: Python<'py>,
        message: &Message,
        table: Result<Option<usize>, Undecodable>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let payload = message.lent.bytes();
        let row = PyDict::new(py);
        row.set_item("seq", message.seq)?;
        row.set_item("timestamp_ns", message.timestamp_ns)?;
        row.set_item("type", message.msg_type)?;
        let reason = match table {
            Ok(Some(table)) => {
                let mut values = Values { py, open: Vec::new(), whole: None, trouble: None };
                let decoded = self.schema.decode(message.msg_type, payload, &mut values);
                if let Some(trouble) = values.trouble {
                    return Err(trouble);
                }
                match decoded {
                    Ok(()) => {
                        row.set_item("name", self.schema.tables().get(table).map(|table| table.name()))?;
                        row.set_item("decoded", values.whole)?;
                        return Ok(row);
                    }
                    Err(reason) => Some(reason),
                }
            }
            Ok(None) => None,
            Err(reason) => Some(reason),
        };
        if let Some(reason) = reason {
            row.set_item("undecoded", reason.to_string())?;
        }
        row.set_item("payload", PyBytes::new(py, payload))?;
        Ok(row)
    }
}

/// Decoded values as Python's own.
struct Values<'py> {
    py: Python<'py>,
    open: Vec<Open<'py>>,
    whole: Option<Bound<'py, PyAny>>,
    trouble: Option<PyErr>,
}

/// A list or struct that is not complete.
enum Open<'py> {
    List(Bound<'py, PyList>),
    Struct(Bound<'py, PyDict>, String),
}

impl<'py> Values<'py> {
    fn put<T: IntoPyObject<'py>>(&mut self, value: T) {
        let result = value.into_bound_py_any(self.py).and_then(|value| match self.open.last() {
            None => {
                self.whole = Some(value);
                Ok(())
            }
            Some(Open::List(list)) => list.append(value),
            Some(Open::Struct(dict, key)) => dict.set_item(key, value),
        });
        self.note(result);
    }

    fn note(&mut self, result: PyResult<()>) {
        if let Err(error) = result {
            self.trouble.get_or_insert(error);
        }
    }

    fn call(&mut self, of: &'static PyOnceLock<Py<PyAny>>, module: &str, name: &str, text: &str) {
        match of.import(self.py, module, name).and_then(|function| function.call1((text,))) {
            Ok(value) => self.put(value),
            Err(error) => self.note(Err(error)),
        }
    }

    fn close(&mut self) {
        match self.open.pop() {
            Some(Open::List(list)) => self.put(list),
            Some(Open::Struct(dict, _)) => self.put(dict),
            None => {}
        }
    }
}

impl Sink for Values<'_> {
    fn begin_struct(&mut self) {
        self.open.push(Open::Struct(PyDict::new(self.py), String::new()));
    }

    fn key(&mut self, name: &Name) {
        if let Some(Open::Struct(_, key)) = self.open.last_mut() {
            name.as_str().clone_into(key);
        }
    }

    fn end_struct(&mut self) {
        self.close();
    }

    fn begin_list(&mut self) {
        self.open.push(Open::List(PyList::empty(self.py)));
    }

    fn end_list(&mut self) {
        self.close();
    }

    fn null(&mut self) {
        self.put(self.py.None());
    }

    fn bool(&mut self, value: bool) {
        self.put(value);
    }

    fn unsigned(&mut self, value: u64) {
        self.put(value);
    }

    fn signed(&mut self, value: i64) {
        self.put(value);
    }

    fn single(&mut self, value: f32) {
        self.put(value);
    }

    fn double(&mut self, value: f64) {
        self.put(value);
    }

    fn decimal(&mut self, value: i128, scale: u8) {
        static DECIMAL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        self.call(&DECIMAL, "decimal", "Decimal", &format!("{value}e-{scale}"));
    }

    fn text(&mut self, value: &str) {
        self.put(value);
    }

    fn bytes(&mut self, value: &[u8]) {
        self.put(PyBytes::new(self.py, value));
    }

    fn json(&mut self, value: &str) {
        static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        self.call(&LOADS, "json", "loads", value);
    }
}
