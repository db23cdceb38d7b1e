//! Messages of one table as record batches: what `chron-export` writes, and what Python's `scan.decoded()` returns.
//!
//! Columns: `seq`, `timestamp` (when it was appended), `exchange_time` where the schema names a time, `type`, what the
//! table's messages hold, `payload`, `undecoded`. A message that is decoded has no payload; one that can't be has the
//! reason in `undecoded`. Without a schema there is only `payload`.

use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, StringBuilder};
use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Int64Type, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch, TimestampNanosecondArray, UInt16Array, UInt64Array};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};

use crate::columns::{Columns, renewed};
use crate::error::Undecodable;
use crate::schema::{self, Time};
use crate::sink::Unit;

/// Most rows of a batch.
const MOST_ROWS: usize = 1 << 16;
/// A batch ends when its payloads have this many bytes: what they become when decoded is a multiple of it.
const MOST_BYTES: usize = 4 << 20;
/// Names that fields of messages can't have; the last two are those of directories.
const TAKEN: [&str; 8] = ["seq", "timestamp", "exchange_time", "type", "payload", "undecoded", "queue", "date"];

/// Messages of a table that are not in a batch yet.
///
/// ```
/// use std::sync::Arc;
///
/// use chronfs_decode::{Rows, Schema};
///
/// let text = "[[message]]\ntype = 1\nname = \"count\"\nformat = \"fixed\"\nfields = [{ name = \"n\", type = \"u16\" }]";
/// let schema = Arc::new(Schema::parse(text, &mut |_| Err("no files".to_owned()))?);
/// let mut rows = Rows::new(Some(Arc::clone(&schema)), schema.table_of(1, &[7, 0])?);
/// rows.push(1, 1_723_108_500_000_000_000, 1, &[7, 0], None);
/// let batch = rows.take()?.ok_or("no rows")?;
/// let names: Vec<_> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
/// assert_eq!(names, ["seq", "timestamp", "type", "n", "payload", "undecoded"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Rows {
    schema: SchemaRef,
    /// By which payloads are decoded.
    of: Option<Arc<schema::Schema>>,
    seqs: Vec<u64>,
    times_ns: Vec<i64>,
    types: Vec<u16>,
    decoded: Option<Decoded>,
    payloads: BinaryBuilder,
    /// Where there is a schema.
    reasons: Option<StringBuilder>,
    /// Rows at the end that were decoded: their nulls are in neither yet.
    nulls: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Decoded {
    columns: Columns,
    time: Option<Time>,
}

impl Rows {
    /// Of a table of a schema; of messages that are not decoded, for want of a schema or although there is one.
    pub fn new(of: Option<Arc<schema::Schema>>, table: Option<usize>) -> Self {
        let table = of.as_ref().zip(table).and_then(|(schema, table)| schema.tables().get(table));
        let decoded = table.map(|table| Decoded { columns: Columns::new(table), time: table.time().cloned() });
        let time = || DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
        let mut fields = vec![Field::new("seq", DataType::UInt64, false), Field::new("timestamp", time(), false)];
        if decoded.as_ref().is_some_and(|decoded| decoded.time.is_some()) {
            fields.push(Field::new("exchange_time", time(), true));
        }
        fields.push(Field::new("type", DataType::UInt16, false));
        for field in decoded.iter().flat_map(|decoded| decoded.columns.fields().to_vec()) {
            let mut name = field.name().clone();
            let is_taken = |name: &str, fields: &[Field]| {
                let same = |other: &str| other.eq_ignore_ascii_case(name);
                TAKEN.iter().any(|taken| same(taken)) || fields.iter().any(|field| same(field.name()))
            };
            while is_taken(&name, &fields) {
                name.push('_');
            }
            fields.push(field.as_ref().clone().with_name(name));
        }
        fields.push(Field::new("payload", DataType::Binary, of.is_some()));
        if of.is_some() {
            fields.push(Field::new("undecoded", DataType::Utf8, true));
        }
        Self {
            schema: Arc::new(Schema::new(fields)),
            seqs: Vec::new(),
            times_ns: Vec::new(),
            types: Vec::new(),
            decoded,
            payloads: BinaryBuilder::new(),
            reasons: of.as_ref().map(|_| StringBuilder::new()),
            of,
            nulls: 0,
            bytes: 0,
        }
    }

    /// The columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Whether it is time to [`take`](Self::take) them.
    pub fn is_full(&self) -> bool {
        self.seqs.len() >= MOST_ROWS || self.bytes >= MOST_BYTES
    }

    /// Adds a message of this table, decoded; one that can't be decoded keeps its payload, with the reason. Where the
    /// rows are those of no table, all keep it; `reason`: why this message has none, where there is a schema.
    pub fn push(&mut self, seq: u64, timestamp_ns: u64, msg_type: u16, payload: &[u8], reason: Option<&Undecodable>) {
        self.seqs.push(seq);
        // Timestamps after the year 2262 don't fit.
        self.times_ns.push(i64::try_from(timestamp_ns).unwrap_or(i64::MAX));
        self.types.push(msg_type);
        self.bytes += payload.len();
        let decoded = match (&mut self.decoded, &self.of) {
            (Some(decoded), Some(schema)) => decoded.columns.append(schema, msg_type, payload).map_err(Some),
            _ => Err(reason.cloned()),
        };
        match decoded {
            Ok(()) => self.nulls += 1,
            Err(reason) => {
                self.put_nulls();
                self.payloads.append_value(payload);
                if let Some(reasons) = &mut self.reasons {
                    reasons.append_option(reason.map(|reason| reason.to_string()));
                }
            }
        }
    }

    fn put_nulls(&mut self) {
        let nulls = std::mem::take(&mut self.nulls);
        self.payloads.append_nulls(nulls);
        if let Some(reasons) = &mut self.reasons {
            reasons.append_nulls(nulls);
        }
    }

    /// The rows as a batch; None if there are none.
    ///
    /// # Errors
    /// Never, unless this module is wrong.
    pub fn take(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        if self.seqs.is_empty() {
            return Ok(None);
        }
        self.bytes = 0;
        self.put_nulls();
        let times = TimestampNanosecondArray::from(renewed(&mut self.times_ns)).with_timezone("UTC");
        let mut arrays: Vec<ArrayRef> = vec![Arc::new(UInt64Array::from(renewed(&mut self.seqs))), Arc::new(times)];
        let types: ArrayRef = Arc::new(UInt16Array::from(renewed(&mut self.types)));
        match &mut self.decoded {
            Some(decoded) => {
                let columns = decoded.columns.finish()?;
                let time = decoded.time.as_ref();
                arrays.extend(time.and_then(|time| Some(exchange_time(columns.get(time.field)?, time.unit))));
                arrays.push(types);
                arrays.extend(columns);
            }
            None => arrays.push(types),
        }
        arrays.push(Arc::new(self.payloads.finish()));
        arrays.extend(self.reasons.as_mut().map(|reasons| Arc::new(reasons.finish()) as ArrayRef));
        RecordBatch::try_new(Arc::clone(&self.schema), arrays).map(Some)
    }
}

/// A column of times in nanoseconds; null where that is more than 64 bits.
fn exchange_time(column: &ArrayRef, unit: Unit) -> ArrayRef {
    let factor: i64 = match (column.data_type(), unit) {
        (DataType::Timestamp(TimeUnit::Millisecond, _), _) => 1_000_000,
        (DataType::Timestamp(TimeUnit::Microsecond, _), _) => 1000,
        (DataType::Timestamp(..), _) | (_, Unit::Ns) => 1,
        (_, Unit::Us) => 1000,
        (_, Unit::Ms) => 1_000_000,
        (_, Unit::S) => 1_000_000_000,
    };
    let scaled = |value: i64| value.checked_mul(factor);
    let times: TimestampNanosecondArray = match column.data_type() {
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            column.as_primitive::<TimestampMillisecondType>().unary_opt(scaled)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            column.as_primitive::<TimestampMicrosecondType>().unary_opt(scaled)
        }
        DataType::Timestamp(..) => column.as_primitive::<TimestampNanosecondType>().unary_opt(scaled),
        DataType::UInt64 => {
            column.as_primitive::<UInt64Type>().unary_opt(|value| i64::try_from(value).ok().and_then(scaled))
        }
        DataType::Int64 => column.as_primitive::<Int64Type>().unary_opt(scaled),
        // No other type is a time.
        _ => TimestampNanosecondArray::new_null(column.len()),
    };
    Arc::new(times.with_timezone("UTC"))
}
