//! Payloads as columns of Arrow: a row for each, a column for each field of their table.
//!
//! The shape is laid out as a list of nodes in the order in which values come, each with its own vector, so that a value
//! is one comparison of types and one push. `at` is the node of the next value, `open` the list or struct around it.
//! Rows that can't be decoded are taken back, and null in all columns. Payloads of fixed layouts are collected, and become
//! values column by column (`fixed`).

mod fixed;
mod values;

use std::sync::Arc;

use arrow_array::types::{
    Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{
    ArrayRef, ArrowPrimitiveType, BinaryArray, BooleanArray, ListArray, PrimitiveArray, StringArray, StructArray,
};
use arrow_buffer::{NullBuffer, NullBufferBuilder, OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field, FieldRef, Fields, TimeUnit};

use crate::error::Undecodable;
use crate::schema::{Schema, Table};
use crate::sink::{Name, Shape, Sink};
use fixed::Collected;
use values::{Values, push, put_bytes, put_decimal, put_integer, values_of};

/// The column of a table whose messages have no fields that are known before: their JSON.
const WHOLE: &str = "decoded";

#[derive(Debug)]
struct Node {
    values: Values,
    nulls: NullBufferBuilder,
    field: FieldRef,
    /// The node of the value after one of this node.
    after: usize,
    /// The list or struct that it is in.
    outer: usize,
    /// The node after it and all that is in it.
    end: usize,
}

/// Collects decoded payloads of one table.
///
/// Types: integers, floats and booleans have their own; decimals are Decimal128; times are timestamps in UTC, of
/// milliseconds where they count seconds; text and JSON are Utf8, bytes Binary; a table without fields that are known
/// before has one column, `decoded`. Everything may be null.
#[derive(Debug)]
pub struct Columns {
    nodes: Vec<Node>,
    /// Rows whose values are in no node yet. They are the last ones.
    collected: Option<Collected>,
    rows: usize,
    at: usize,
    open: usize,
    trouble: Option<&'static str>,
}

impl Columns {
    /// Without rows.
    pub fn new(table: &Table) -> Self {
        let collected = table.layout().map(|layout| Collected::new(Arc::clone(layout)));
        let mut columns = Self { nodes: Vec::new(), collected, rows: 0, at: 0, open: 0, trouble: None };
        columns.add(WHOLE, table.shape(), 0, false);
        columns
    }

    /// Adds the nodes of a shape.
    fn add(&mut self, name: &str, shape: &Shape, outer: usize, in_list: bool) -> FieldRef {
        let at = self.nodes.len();
        let (values, plain) = values_of(shape);
        let placeholder = Arc::new(Field::new(name, DataType::Null, true));
        let nulls = NullBufferBuilder::new(1024);
        self.nodes.push(Node { values, nulls, field: placeholder, after: at, outer, end: at });
        let kind = match shape {
            Shape::List(element) => DataType::List(self.add("item", element, at, true)),
            Shape::Struct(fields) if !fields.is_empty() => {
                let fields = fields.iter().map(|field| self.add(field.name.as_str(), &field.shape, at, false));
                DataType::Struct(fields.collect())
            }
            _ => plain,
        };
        let (field, end) = (Arc::new(Field::new(name, kind, true)), self.nodes.len());
        if let Some(node) = self.nodes.get_mut(at) {
            (node.field, node.end, node.after) = (Arc::clone(&field), end, if in_list { at } else { end });
        }
        field
    }

    /// What the columns are.
    pub fn fields(&self) -> Fields {
        match self.nodes.first().map(|root| &root.field) {
            Some(root) => match root.data_type() {
                DataType::Struct(fields) => fields.clone(),
                _ => Fields::from(vec![Arc::clone(root)]),
            },
            None => Fields::empty(),
        }
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds a row: a payload. If that is impossible, the row is null in all columns.
    ///
    /// # Errors
    /// The payload can't be decoded, or has a value that no column can hold.
    #[inline]
    pub fn append(&mut self, schema: &Schema, msg_type: u16, payload: &[u8]) -> Result<(), Undecodable> {
        if let Some(collected) = &mut self.collected {
            if collected.take(schema, msg_type, payload, self.rows) {
                self.rows += 1;
                if collected.is_full() {
                    self.spread();
                }
                return Ok(());
            }
            self.spread();
        }
        (self.at, self.open) = (0, 0);
        let decoded = schema.decode(msg_type, payload, self);
        let result = match self.trouble.take() {
            Some(trouble) => Err(Undecodable::new(trouble)),
            None => decoded,
        };
        if result.is_err() {
            self.truncate(0, self.rows);
            self.append_null();
        } else {
            self.rows += 1;
        }
        result
    }

    /// Adds a row that is null in all columns.
    pub fn append_null(&mut self) {
        self.spread();
        self.put_null(0);
        self.rows += 1;
    }

    /// The columns, in the order of [`Columns::fields`]; then there are no rows.
    ///
    /// # Errors
    /// Never, unless this module is wrong.
    pub fn finish(&mut self) -> Result<Vec<ArrayRef>, ArrowError> {
        self.spread();
        self.rows = 0;
        let is_struct = self.nodes.first().is_some_and(|root| matches!(root.values, Values::Struct));
        if !is_struct {
            return Ok(vec![self.array(0)?]);
        }
        if let Some(root) = self.nodes.first_mut() {
            root.nulls.finish();
        }
        self.inner(0)
    }

    /// The arrays of what is in a struct.
    fn inner(&mut self, of: usize) -> Result<Vec<ArrayRef>, ArrowError> {
        let end = self.nodes.get(of).map_or(0, |node| node.end);
        let (mut at, mut arrays) = (of + 1, Vec::new());
        while at < end {
            arrays.push(self.array(at)?);
            at = self.nodes.get(at).map_or(end, |node| node.end);
        }
        Ok(arrays)
    }

    fn array(&mut self, at: usize) -> Result<ArrayRef, ArrowError> {
        let Some(node) = self.nodes.get_mut(at) else {
            return Err(ArrowError::InvalidArgumentError("there is no such column".to_owned()));
        };
        let (len, nulls, field) = (node.nulls.len(), node.nulls.finish(), Arc::clone(&node.field));
        match &mut node.values {
            Values::Bool(values) => Ok(Arc::new(BooleanArray::new(renewed(values).into(), nulls))),
            Values::U8(values) => numbers::<UInt8Type>(values, nulls, &field),
            Values::U16(values) => numbers::<UInt16Type>(values, nulls, &field),
            Values::U32(values) => numbers::<UInt32Type>(values, nulls, &field),
            Values::U64(values) => numbers::<UInt64Type>(values, nulls, &field),
            Values::I8(values) => numbers::<Int8Type>(values, nulls, &field),
            Values::I16(values) => numbers::<Int16Type>(values, nulls, &field),
            Values::I32(values) => numbers::<Int32Type>(values, nulls, &field),
            Values::I64(values) => numbers::<Int64Type>(values, nulls, &field),
            Values::F32(values) => numbers::<Float32Type>(values, nulls, &field),
            Values::F64(values) => numbers::<Float64Type>(values, nulls, &field),
            Values::Decimal(values, _) => numbers::<Decimal128Type>(values, nulls, &field),
            Values::Time(values, _) => match field.data_type() {
                DataType::Timestamp(TimeUnit::Millisecond, _) => {
                    numbers::<TimestampMillisecondType>(values, nulls, &field)
                }
                DataType::Timestamp(TimeUnit::Microsecond, _) => {
                    numbers::<TimestampMicrosecondType>(values, nulls, &field)
                }
                _ => numbers::<TimestampNanosecondType>(values, nulls, &field),
            },
            Values::Bytes(bytes, ends) => {
                let (offsets, bytes) = (offsets(ends)?, renewed(bytes).into());
                if *field.data_type() == DataType::Utf8 {
                    Ok(Arc::new(StringArray::try_new(offsets, bytes, nulls)?))
                } else {
                    Ok(Arc::new(BinaryArray::try_new(offsets, bytes, nulls)?))
                }
            }
            Values::List(ends) => {
                let offsets = offsets(ends)?;
                let (element, inner) =
                    (self.nodes.get(at + 1).map(|node| Arc::clone(&node.field)), self.array(at + 1)?);
                let element = element.unwrap_or(field);
                Ok(Arc::new(ListArray::try_new(element, offsets, inner, nulls)?))
            }
            Values::Struct => {
                let DataType::Struct(fields) = field.data_type() else {
                    return Err(ArrowError::InvalidArgumentError(format!("{field:?} is not a struct")));
                };
                let inner = self.inner(at)?;
                Ok(Arc::new(StructArray::try_new_with_length(fields.clone(), inner, nulls, len)?))
            }
        }
    }

    /// Takes back what came after the first `len` values of a node.
    #[cold]
    fn truncate(&mut self, at: usize, len: usize) {
        let Some(node) = self.nodes.get_mut(at) else { return };
        node.nulls.truncate(len);
        let (end, mut next) = (node.end, at + 1);
        let inner_len = match &mut node.values {
            Values::Bytes(bytes, ends) => {
                ends.truncate(len);
                bytes.truncate(last(ends));
                0
            }
            Values::List(ends) => {
                ends.truncate(len);
                last(ends)
            }
            Values::Struct => len,
            values => {
                values.truncate(len);
                0
            }
        };
        while next < end {
            self.truncate(next, inner_len);
            next = self.nodes.get(next).map_or(end, |node| node.end);
        }
    }

    /// A null value of a node.
    fn put_null(&mut self, at: usize) {
        let Some(node) = self.nodes.get_mut(at) else { return };
        node.nulls.append_null();
        let (end, mut next) = (node.end, at + 1);
        match &mut node.values {
            Values::Bytes(_, ends) => ends.push(ends.last().copied().unwrap_or(0)),
            Values::List(ends) => ends.push(ends.last().copied().unwrap_or(0)),
            Values::Struct => {
                while next < end {
                    self.put_null(next);
                    next = self.nodes.get(next).map_or(end, |node| node.end);
                }
            }
            values => values.push_default(),
        }
    }

    /// Lets `put` add a value to the node whose turn it is; it returns false if it can't.
    #[inline(always)]
    fn value(&mut self, put: impl FnOnce(&mut Values) -> bool) {
        let Some(node) = self.nodes.get_mut(self.at) else { return self.refuse() };
        if !put(&mut node.values) {
            return self.refuse();
        }
        node.nulls.append_non_null();
        self.at = node.after;
    }

    #[cold]
    fn refuse(&mut self) {
        self.trouble.get_or_insert("it has a value that its column can't hold");
    }

    /// Ends the list or struct that is open.
    fn close(&mut self) {
        self.at = self.open;
        self.open = self.nodes.get(self.at).map_or(0, |node| node.outer);
        let inner = self.nodes.get(self.at + 1).map_or(0, |node| node.nulls.len());
        self.value(|values| match values {
            Values::List(ends) => match i32::try_from(inner) {
                Ok(end) => {
                    ends.push(end);
                    true
                }
                Err(_) => false,
            },
            // What has no fields is text.
            Values::Bytes(bytes, ends) => put_bytes(bytes, ends, b"{}"),
            Values::Struct => true,
            _ => false,
        });
    }
}

impl Sink for Columns {
    fn begin_struct(&mut self) {
        (self.open, self.at) = (self.at, self.at + 1);
    }

    #[inline(always)]
    fn key(&mut self, _name: &Name) {}

    fn end_struct(&mut self) {
        self.close();
    }

    fn begin_list(&mut self) {
        (self.open, self.at) = (self.at, self.at + 1);
    }

    fn end_list(&mut self) {
        self.close();
    }

    fn null(&mut self) {
        self.put_null(self.at);
        match self.nodes.get(self.at) {
            Some(node) => self.at = node.after,
            None => self.refuse(),
        }
    }

    #[inline(always)]
    fn bool(&mut self, value: bool) {
        self.value(|values| match values {
            Values::Bool(values) => {
                values.push(value);
                true
            }
            _ => false,
        });
    }

    #[inline(always)]
    fn unsigned(&mut self, value: u64) {
        self.value(|values| match values {
            Values::U64(values) => {
                values.push(value);
                true
            }
            Values::U32(values) => push(values, value),
            Values::U16(values) => push(values, value),
            Values::U8(values) => push(values, value),
            values => put_integer(values, i128::from(value)),
        });
    }

    #[inline(always)]
    fn signed(&mut self, value: i64) {
        self.value(|values| match values {
            Values::I64(values) => {
                values.push(value);
                true
            }
            Values::I32(values) => push(values, value),
            Values::I16(values) => push(values, value),
            Values::I8(values) => push(values, value),
            values => put_integer(values, i128::from(value)),
        });
    }

    #[inline(always)]
    fn single(&mut self, value: f32) {
        self.value(|values| match values {
            Values::F32(values) => {
                values.push(value);
                true
            }
            Values::F64(values) => {
                values.push(f64::from(value));
                true
            }
            _ => false,
        });
    }

    #[inline(always)]
    fn double(&mut self, value: f64) {
        self.value(|values| match values {
            Values::F64(values) => {
                values.push(value);
                true
            }
            _ => false,
        });
    }

    #[inline(always)]
    fn decimal(&mut self, value: i128, scale: u8) {
        self.value(|values| match values {
            Values::Decimal(values, own) if *own == scale => {
                values.push(value);
                true
            }
            values => put_decimal(values, value, scale),
        });
    }

    #[inline(always)]
    fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    #[inline(always)]
    fn bytes(&mut self, value: &[u8]) {
        self.value(|values| match values {
            Values::Bytes(bytes, ends) => put_bytes(bytes, ends, value),
            _ => false,
        });
    }

    fn json(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }
}

fn last(ends: &[i32]) -> usize {
    ends.last().map_or(0, |end| usize::try_from(*end).unwrap_or(0))
}

/// The vector, leaving an empty one of its size.
pub(crate) fn renewed<T>(values: &mut Vec<T>) -> Vec<T> {
    let len = values.len();
    std::mem::replace(values, Vec::with_capacity(len))
}

fn offsets(ends: &mut Vec<i32>) -> Result<OffsetBuffer<i32>, ArrowError> {
    let mut offsets = Vec::with_capacity(ends.len() + 1);
    offsets.push(0);
    offsets.append(ends);
    // They never decrease.
    Ok(OffsetBuffer::new(ScalarBuffer::from(offsets)))
}

fn numbers<T: ArrowPrimitiveType>(
    values: &mut Vec<T::Native>,
    nulls: Option<NullBuffer>,
    field: &FieldRef,
) -> Result<ArrayRef, ArrowError> {
    let array = PrimitiveArray::<T>::try_new(ScalarBuffer::from(renewed(values)), nulls)?;
    Ok(Arc::new(array.with_data_type(field.data_type().clone())))
}
