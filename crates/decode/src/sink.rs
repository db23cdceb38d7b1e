//! What decoding makes of a payload: a [`Shape`] that is known before, and values in its order, passed to a [`Sink`].

use crate::error::Undecodable;

/// At most this many values come from one payload, besides 64 for each of its bytes: groups of empty entries and the
/// like make more of a few bytes than anybody wants to read.
pub const MAX_VALUES: usize = 65_536;

/// The name of a field, and how JSON writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    text: String,
    /// A comma, the quoted name and a colon.
    json: Box<[u8]>,
}

impl Name {
    pub(crate) fn new(text: &str) -> Self {
        let mut json = b",".to_vec();
        crate::json::text(text, &mut json);
        json.push(b':');
        Self { text: text.to_owned(), json: json.into() }
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// A comma, the quoted name and a colon.
    pub(crate) fn json(&self) -> &[u8] {
        &self.json
    }
}

/// What kind of values a field or a table has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shape {
    /// True or false.
    Bool,
    /// An unsigned integer of 8, 16, 32 or 64 bits.
    Unsigned(u8),
    /// A signed integer of 8, 16, 32 or 64 bits.
    Signed(u8),
    /// A float of 32 or 64 bits.
    Float(u8),
    /// An integer divided by ten to the power of `scale`.
    Decimal {
        /// Digits of the integer.
        precision: u8,
        /// Digits after the point.
        scale: u8,
    },
    /// A time since the epoch, as a signed integer.
    Time(Unit),
    /// UTF-8.
    Text,
    /// Any bytes.
    Bytes,
    /// Text that is JSON: what has no fixed shape.
    Json,
    /// Values one after the other.
    List(Box<Shape>),
    /// Fields in this order.
    Struct(Vec<Field>),
}

/// A field of a [`Shape::Struct`]. Any may be null.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name, unique in the struct.
    pub name: Name,
    /// What it holds.
    pub shape: Shape,
}

/// A unit of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Seconds.
    S,
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
    /// Nanoseconds.
    Ns,
}

/// Takes the values of a payload, in the order of its [`Shape`]: [`Sink::key`] and a value for each field of a struct,
/// values alone in a list.
#[allow(missing_docs)]
pub trait Sink {
    fn begin_struct(&mut self);
    fn key(&mut self, name: &Name);
    fn end_struct(&mut self);
    fn begin_list(&mut self);
    fn end_list(&mut self);
    fn null(&mut self);
    fn bool(&mut self, value: bool);
    fn unsigned(&mut self, value: u64);
    fn signed(&mut self, value: i64);
    fn single(&mut self, value: f32);
    fn double(&mut self, value: f64);
    /// `value` divided by ten to the power of `scale`.
    fn decimal(&mut self, value: i128, scale: u8);
    fn text(&mut self, value: &str);
    fn bytes(&mut self, value: &[u8]);
    /// Text that is JSON, on one line.
    fn json(&mut self, value: &str);
}

/// Counts values, so that no payload makes an unbounded number of them.
pub(crate) struct Budget(usize);

impl Budget {
    pub(crate) fn of(payload: &[u8]) -> Self {
        Self(MAX_VALUES.saturating_add(payload.len().saturating_mul(64)))
    }

    #[inline]
    pub(crate) fn spend(&mut self, values: usize) -> Result<(), Undecodable> {
        self.0 = self.0.checked_sub(values).ok_or_else(|| Undecodable::new("it has too many values for its length"))?;
        Ok(())
    }
}

/// Takes values and forgets them: whether a payload can be decoded.
pub(crate) struct Ignore;

impl Sink for Ignore {
    fn begin_struct(&mut self) {}
    fn key(&mut self, _name: &Name) {}
    fn end_struct(&mut self) {}
    fn begin_list(&mut self) {}
    fn end_list(&mut self) {}
    fn null(&mut self) {}
    fn bool(&mut self, _value: bool) {}
    fn unsigned(&mut self, _value: u64) {}
    fn signed(&mut self, _value: i64) {}
    fn single(&mut self, _value: f32) {}
    fn double(&mut self, _value: f64) {}
    fn decimal(&mut self, _value: i128, _scale: u8) {}
    fn text(&mut self, _value: &str) {}
    fn bytes(&mut self, _value: &[u8]) {}
    fn json(&mut self, _value: &str) {}
}
