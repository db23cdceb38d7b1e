//! The values of one node of [`Columns`](super::Columns): a vector of the type that its shape asks for.

use arrow_schema::{DataType, TimeUnit};

use crate::sink::{Shape, Unit};

/// The values of one node.
#[derive(Debug)]
pub(super) enum Values {
    Bool(Vec<bool>),
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Decimal(Vec<i128>, u8),
    /// A value is multiplied by the factor.
    Time(Vec<i64>, i64),
    /// Text or bytes, and where each ends.
    Bytes(Vec<u8>, Vec<i32>),
    /// Where each ends in the node that follows.
    List(Vec<i32>),
    Struct,
}

/// A node's values, and its type unless that depends on other nodes.
pub(super) fn values_of(shape: &Shape) -> (Values, DataType) {
    let time =
        |arrow, unit| (Values::Time(Vec::new(), factor_of(unit)), DataType::Timestamp(arrow, Some("UTC".into())));
    match shape {
        Shape::Bool => (Values::Bool(Vec::new()), DataType::Boolean),
        Shape::Unsigned(8) => (Values::U8(Vec::new()), DataType::UInt8),
        Shape::Unsigned(16) => (Values::U16(Vec::new()), DataType::UInt16),
        Shape::Unsigned(32) => (Values::U32(Vec::new()), DataType::UInt32),
        Shape::Unsigned(_) => (Values::U64(Vec::new()), DataType::UInt64),
        Shape::Signed(8) => (Values::I8(Vec::new()), DataType::Int8),
        Shape::Signed(16) => (Values::I16(Vec::new()), DataType::Int16),
        Shape::Signed(32) => (Values::I32(Vec::new()), DataType::Int32),
        Shape::Signed(_) => (Values::I64(Vec::new()), DataType::Int64),
        Shape::Float(32) => (Values::F32(Vec::new()), DataType::Float32),
        Shape::Float(_) => (Values::F64(Vec::new()), DataType::Float64),
        Shape::Decimal { precision, scale } => {
            (Values::Decimal(Vec::new(), *scale), DataType::Decimal128(*precision, scale.cast_signed()))
        }
        Shape::Time(unit @ (Unit::S | Unit::Ms)) => time(TimeUnit::Millisecond, *unit),
        Shape::Time(unit @ Unit::Us) => time(TimeUnit::Microsecond, *unit),
        Shape::Time(unit @ Unit::Ns) => time(TimeUnit::Nanosecond, *unit),
        Shape::Bytes => (Values::Bytes(Vec::new(), Vec::new()), DataType::Binary),
        Shape::List(_) => (Values::List(Vec::new()), DataType::Null),
        Shape::Struct(fields) if !fields.is_empty() => (Values::Struct, DataType::Null),
        // Parquet has no structs without fields.
        Shape::Text | Shape::Json | Shape::Struct(_) => (Values::Bytes(Vec::new(), Vec::new()), DataType::Utf8),
    }
}

/// What a time is multiplied by for its column: Parquet has no seconds.
pub(super) fn factor_of(unit: Unit) -> i64 {
    if unit == Unit::S { 1000 } else { 1 }
}

/// Calls an expression with the vector of numbers, whatever they are.
macro_rules! of_numbers {
    ($values:expr, $vector:ident => $call:expr) => {
        match $values {
            Values::Bool($vector) => $call,
            Values::U8($vector) => $call,
            Values::U16($vector) => $call,
            Values::U32($vector) => $call,
            Values::U64($vector) => $call,
            Values::I8($vector) => $call,
            Values::I16($vector) => $call,
            Values::I32($vector) => $call,
            Values::I64($vector) => $call,
            Values::F32($vector) => $call,
            Values::F64($vector) => $call,
            Values::Decimal($vector, _) => $call,
            Values::Time($vector, _) => $call,
            Values::Bytes(..) | Values::List(_) | Values::Struct => {}
        }
    };
}

impl Values {
    /// Takes back all but the first `len` numbers.
    pub(super) fn truncate(&mut self, len: usize) {
        of_numbers!(self, vector => vector.truncate(len));
    }

    /// Adds what stands for a null.
    pub(super) fn push_default(&mut self) {
        of_numbers!(self, vector => vector.push(Default::default()));
    }
}

#[inline(always)]
pub(super) fn push<T, U: TryFrom<T>>(values: &mut Vec<U>, value: T) -> bool {
    U::try_from(value).map(|value| values.push(value)).is_ok()
}

/// An integer for a column of another type.
#[inline(always)]
pub(super) fn put_integer(values: &mut Values, value: i128) -> bool {
    match values {
        Values::Time(values, factor) => {
            let scaled = value.checked_mul(i128::from(*factor));
            scaled.is_some_and(|value| push(values, value))
        }
        Values::Decimal(..) => put_decimal(values, value, 0),
        Values::U8(values) => push(values, value),
        Values::U16(values) => push(values, value),
        Values::U32(values) => push(values, value),
        Values::U64(values) => push(values, value),
        Values::I8(values) => push(values, value),
        Values::I16(values) => push(values, value),
        Values::I32(values) => push(values, value),
        Values::I64(values) => push(values, value),
        _ => false,
    }
}

/// A decimal for a column of another scale, or of floats where the scale is in the payload.
#[cold]
pub(super) fn put_decimal(values: &mut Values, value: i128, scale: u8) -> bool {
    match values {
        Values::Decimal(values, own) => {
            let scaled = own.checked_sub(scale).and_then(|more| 10_i128.checked_pow(more.into())?.checked_mul(value));
            scaled.map(|value| values.push(value)).is_some()
        }
        // By its digits, which rounds once.
        Values::F64(values) => format!("{value}e-{scale}").parse().map(|value| values.push(value)).is_ok(),
        _ => false,
    }
}

#[inline(always)]
pub(super) fn put_bytes(bytes: &mut Vec<u8>, ends: &mut Vec<i32>, value: &[u8]) -> bool {
    match bytes.len().checked_add(value.len()).map(i32::try_from) {
        Some(Ok(end)) => {
            bytes.extend_from_slice(value);
            ends.push(end);
            true
        }
        _ => false,
    }
}
