//! Messages of one table as record batches.
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
use chronfs::queue::Message;
use chronfs_decode::{Columns, Time, Unit};

/// Most rows of a batch.
const MOST_ROWS: usize = 1 << 16;
/// A batch ends when its payloads have this many bytes: what they become when decoded is a multiple of it.
const MOST_BYTES: usize = 4 << 20;
/// Names that fields of messages can't have; the last two are those of directories.
const TAKEN: [&str; 8] = ["seq", "timestamp", "exchange_time", "type", "payload", "undecoded", "queue", "date"];

/// Rows of a table that are not in a batch yet.
#[derive(Debug)]
pub(crate) struct Rows {
    schema: SchemaRef,
    seqs: Vec<u64>,
    times_ns: Vec<i64>,
    types: Vec<u16>,
    decoded: Option<Decoded>,
    payloads: BinaryBuilder,
    /// Where there is a schema.
    reasons: Option<StringBuilder>,
    bytes: usize,
}

#[derive(Debug)]
struct Decoded {
    columns: Columns,
    time: Option<Time>,
}

/// How a message becomes a row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Payload<'a> {
    /// Decoded, if that is possible.
    Decode(&'a chronfs_decode::Schema),
    /// As it is, for this reason if it should have been decoded.
    Keep(Option<&'a str>),
}

impl Rows {
    /// Of a table of a schema; of messages that are not decoded, for want of a schema or although there is one.
    pub(crate) fn new(schema: Option<&chronfs_decode::Schema>, table: Option<usize>) -> Self {
        let table = schema.zip(table).and_then(|(schema, table)| schema.tables().get(table));
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
        fields.push(Field::new("payload", DataType::Binary, schema.is_some()));
        if schema.is_some() {
            fields.push(Field::new("undecoded", DataType::Utf8, true));
        }
        Self {
            schema: Arc::new(Schema::new(fields)),
            seqs: Vec::new(),
            times_ns: Vec::new(),
            types: Vec::new(),
            decoded,
            payloads: BinaryBuilder::new(),
            reasons: schema.map(|_| StringBuilder::new()),
            bytes: 0,
        }
    }

    /// The columns.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(crate) fn is_full(&self) -> bool {
        self.seqs.len() >= MOST_ROWS || self.bytes >= MOST_BYTES
    }

    pub(crate) fn push(&mut self, message: &Message<'_>, payload: Payload<'_>) {
        self.seqs.push(message.seq);
        // Timestamps after the year 2262 don't fit.
        self.times_ns.push(i64::try_from(message.timestamp_ns).unwrap_or(i64::MAX));
        self.types.push(message.msg_type);
        self.bytes += message.payload.len();
        let keeps = match (payload, &mut self.decoded) {
            (Payload::Decode(schema), Some(decoded)) => {
                decoded.columns.append(schema, message.msg_type, message.payload).map_err(|reason| Some(reason.to_string()))
            }
            (Payload::Keep(reason), decoded) => {
                decoded.iter_mut().for_each(|decoded| decoded.columns.append_null());
                Err(reason.map(str::to_owned))
            }
            (Payload::Decode(_), None) => Err(None),
        };
        self.payloads.append_option(keeps.is_err().then_some(message.payload));
        if let Some(reasons) = &mut self.reasons {
            reasons.append_option(keeps.err().flatten());
        }
    }

    /// The rows as a batch; None if there are none.
    pub(crate) fn take(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        if self.seqs.is_empty() {
            return Ok(None);
        }
        self.bytes = 0;
        let times = TimestampNanosecondArray::from(std::mem::take(&mut self.times_ns)).with_timezone("UTC");
        let mut arrays: Vec<ArrayRef> =
            vec![Arc::new(UInt64Array::from(std::mem::take(&mut self.seqs))), Arc::new(times)];
        let types: ArrayRef = Arc::new(UInt16Array::from(std::mem::take(&mut self.types)));
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
