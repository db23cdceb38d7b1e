//! Payloads of a fixed layout, column by column: what a field is made of is asked once for many payloads, not for each.
//! Only payloads whose values all fit their columns are collected; the others go the way of all formats.

use std::sync::Arc;

use super::values::{Values, factor_of};
use super::{Columns, Node};
use crate::fixed::{Column, Element, Layout};
use crate::read::{Number, Value};
use crate::schema::Schema;

/// Bytes that are collected: they stay in the processor's cache.
const ENOUGH: usize = 32 << 10;

/// Payloads that are not in the columns yet.
#[derive(Debug)]
pub(super) struct Collected {
    layout: Arc<Layout>,
    /// One after the other, each of the layout's length.
    payloads: Vec<u8>,
    /// The fields whose times may be too late for their columns.
    times: Vec<Column>,
    /// Up to this many rows the offsets of every column fit into 31 bits, whatever the payloads hold.
    most_rows: usize,
}

impl Collected {
    pub(super) fn new(layout: Arc<Layout>) -> Self {
        let times = layout.columns().iter().filter(|column| may_be_too_late(column)).cloned().collect();
        let longest = layout.columns().iter().map(most_bytes).max().unwrap_or(0).max(1);
        let most_rows = i32::MAX.unsigned_abs() as usize / longest;
        Self { layout, payloads: Vec::new(), times, most_rows }
    }

    /// Collects a payload of this layout; false if it is of another one, or has a value that may not fit its column, which has
    /// this many rows.
    #[inline]
    pub(super) fn take(&mut self, schema: &Schema, msg_type: u16, payload: &[u8], rows: usize) -> bool {
        let fits = schema.has_layout(msg_type, &self.layout)
            && self.layout.fits(payload)
            && rows < self.most_rows
            && self.times.iter().all(|column| fits_time(column, payload));
        if let (true, Some(payload)) = (fits, payload.get(..self.layout.len())) {
            self.payloads.extend_from_slice(payload);
        }
        fits
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.payloads.len() >= ENOUGH
    }
}

impl Columns {
    /// Moves the values of what has been collected to their columns.
    pub(super) fn spread(&mut self) {
        let Some(mut collected) = self.collected.take_if(|collected| !collected.payloads.is_empty()) else { return };
        let (payloads, len) = (&collected.payloads, collected.layout.len());
        let mut at = 1;
        for column in collected.layout.columns() {
            if !self.put_numbers(at, column, payloads, len) {
                for payload in payloads.chunks_exact(len) {
                    self.at = at;
                    column.decode(payload, self);
                }
            }
            at = self.nodes.get(at).map_or(at, |node| node.end);
        }
        if let Some(root) = self.nodes.first_mut() {
            root.nulls.append_n_non_nulls(payloads.len() / len);
        }
        collected.payloads.clear();
        self.collected = Some(collected);
    }

    /// Adds the values of a column of numbers to its node; false if it is another one.
    fn put_numbers(&mut self, at: usize, column: &Column, payloads: &[u8], len: usize) -> bool {
        let (Element::Number(number), None, Some(node)) = (column.element(), column.count(), self.nodes.get_mut(at))
        else {
            return false;
        };
        match number {
            Number::U8 => put::<u8>(node, column, payloads, len),
            Number::I8 => put::<i8>(node, column, payloads, len),
            Number::U16 => put::<u16>(node, column, payloads, len),
            Number::I16 => put::<i16>(node, column, payloads, len),
            Number::U32 => put::<u32>(node, column, payloads, len),
            Number::I32 => put::<i32>(node, column, payloads, len),
            Number::U64 => put::<u64>(node, column, payloads, len),
            Number::I64 => put::<i64>(node, column, payloads, len),
            Number::F32 => put::<f32>(node, column, payloads, len),
            Number::F64 => put::<f64>(node, column, payloads, len),
        }
    }
}

fn put<T: Plain>(node: &mut Node, column: &Column, payloads: &[u8], len: usize) -> bool {
    let is_big = column.is_big_endian();
    let read = |payload: &[u8]| T::read(payload.get(column.offset()..).unwrap_or_default(), is_big);
    let numbers = payloads.chunks_exact(len).map(read);
    match &mut node.values {
        Values::Decimal(values, _) => values.extend(numbers.clone().map(|number| number.integer().unwrap_or(0))),
        Values::Time(values, factor) => {
            let time = |number: T| number.integer().and_then(|value| i64::try_from(value).ok()).unwrap_or(0);
            values.extend(numbers.clone().map(|number| time(number).wrapping_mul(*factor)));
        }
        values => match T::vector(values) {
            Some(values) => values.extend(numbers.clone()),
            None => return false,
        },
    }
    match column.null {
        None => node.nulls.append_n_non_nulls(numbers.len()),
        null => numbers.for_each(|number| node.nulls.append(number.integer() != null)),
    }
    true
}

/// A type of numbers.
trait Plain: Copy {
    /// The number that the bytes begin with.
    fn read(bytes: &[u8], is_big: bool) -> Self;
    /// None if it is a float.
    fn integer(self) -> Option<i128>;
    /// The values of a column of this type.
    fn vector(values: &mut Values) -> Option<&mut Vec<Self>>;
}

macro_rules! plain {
    ($($type:ident $variant:ident $integer:expr;)*) => {$(
        impl Plain for $type {
            #[inline(always)]
            fn read(bytes: &[u8], is_big: bool) -> Self {
                let bytes = bytes.first_chunk().copied().unwrap_or_default();
                if is_big { Self::from_be_bytes(bytes) } else { Self::from_le_bytes(bytes) }
            }

            #[inline(always)]
            fn integer(self) -> Option<i128> {
                $integer(self)
            }

            fn vector(values: &mut Values) -> Option<&mut Vec<Self>> {
                match values {
                    Values::$variant(values) => Some(values),
                    _ => None,
                }
            }
        }
    )*};
}

plain! {
    u8 U8 |number| Some(i128::from(number));
    i8 I8 |number| Some(i128::from(number));
    u16 U16 |number| Some(i128::from(number));
    i16 I16 |number| Some(i128::from(number));
    u32 U32 |number| Some(i128::from(number));
    i32 I32 |number| Some(i128::from(number));
    u64 U64 |number| Some(i128::from(number));
    i64 I64 |number| Some(i128::from(number));
    f32 F32 |_| None;
    f64 F64 |_| None;
}

/// Whether a 64-bit number can be a time that the column can't hold.
fn may_be_too_late(column: &Column) -> bool {
    let is_long = matches!(column.element(), Element::Number(Number::U64 | Number::I64));
    is_long && column.time.is_some()
}

/// Whether the column can hold the times of a payload.
#[inline]
fn fits_time(column: &Column, payload: &[u8]) -> bool {
    let (Element::Number(number), Some(unit)) = (column.element(), column.time) else { return true };
    let fits = |value: i128| column.null == Some(value) || i64::try_from(value * i128::from(factor_of(unit))).is_ok();
    (0..column.count().unwrap_or(1)).all(|at| {
        let value = number.read(payload, column.offset() + at * number.size(), column.is_big_endian());
        value.and_then(Value::integer).is_some_and(fits)
    })
}

/// Most bytes of text, or elements of a list, that a column has for a row.
fn most_bytes(column: &Column) -> usize {
    let of_names = column.names.iter().flat_map(|names| names.values().map(String::len)).max().unwrap_or(0);
    let of_text = match column.element() {
        // A byte that is not UTF-8 becomes three.
        Element::Text(len) | Element::Bytes(len) => len * 3,
        // Digits and a sign.
        Element::Number(_) | Element::Bool => 20,
    };
    of_text.max(of_names).saturating_mul(column.count().unwrap_or(1))
}
