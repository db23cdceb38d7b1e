//! Fixed layouts: fields at fixed offsets, as a C struct or a packed record has them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::Undecodable;
use crate::read::{Number, Value, padded_text};
use crate::sink::{Field, MAX_VALUES, Name, Shape, Sink, Unit};

/// Most fields of a layout, and most elements of an array.
const MAX_FIELDS: usize = 4096;
/// Longest payload that a layout describes, in bytes.
const MAX_LEN: usize = 1 << 20;
/// Most digits after the point.
const MAX_SCALE: u8 = 18;
/// Longest name of a field or a value, in bytes.
pub(crate) const MAX_NAME: usize = 256;

/// A field as `schema.toml` has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FieldSpec {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    offset: Option<usize>,
    endian: Option<Endian>,
    scale: Option<u8>,
    null: Option<i128>,
    time: Option<Unit>,
    names: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Endian {
    Little,
    Big,
}

/// What an element of a [`Column`] is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Element {
    /// An integer or a float.
    Number(Number),
    /// A byte; 0 is false.
    Bool,
    /// This many bytes of text, filled up with NUL or spaces.
    Text(usize),
    /// This many bytes.
    Bytes(usize),
}

impl Element {
    fn parse(text: &str) -> Option<Self> {
        let sized = |base: &str| text.strip_prefix(base)?.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
        Some(match (text, Number::parse(text), sized("text")) {
            ("bool", ..) => Self::Bool,
            (_, Some(number), _) => Self::Number(number),
            (.., Some(len)) => Self::Text(len),
            _ => Self::Bytes(sized("bytes")?),
        })
    }

    fn number(self) -> Option<Number> {
        match self {
            Self::Number(number) => Some(number),
            Self::Bool | Self::Text(_) | Self::Bytes(_) => None,
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::Number(number) => number.size(),
            Self::Bool => 1,
            Self::Text(len) | Self::Bytes(len) => len,
        }
    }
}

/// A field of a [`Layout`].
#[derive(Debug, Clone)]
pub struct Column {
    name: Name,
    offset: usize,
    element: Element,
    /// Of an array.
    count: Option<usize>,
    is_big: bool,
    pub(crate) null: Option<i128>,
    scale: Option<u8>,
    pub(crate) time: Option<Unit>,
    /// What integers are called.
    pub(crate) names: Option<BTreeMap<i128, String>>,
}

impl Column {
    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Bytes before it in the payload.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// What it is made of.
    pub fn element(&self) -> Element {
        self.element
    }

    /// How many elements it has, if it is an array.
    pub fn count(&self) -> Option<usize> {
        self.count
    }

    /// Whether its numbers are big-endian.
    pub fn is_big_endian(&self) -> bool {
        self.is_big
    }

    /// The shape of its values.
    pub fn shape(&self) -> Shape {
        let shape = self.element_shape();
        if self.count.is_some() { Shape::List(Box::new(shape)) } else { shape }
    }

    fn element_shape(&self) -> Shape {
        if self.names.is_some() {
            return Shape::Text;
        }
        if let Some(unit) = self.time {
            return Shape::Time(unit);
        }
        let Some(number) = self.element.number() else {
            return match self.element {
                Element::Bool => Shape::Bool,
                Element::Text(_) => Shape::Text,
                _ => Shape::Bytes,
            };
        };
        match self.scale {
            Some(scale) => Shape::Decimal { precision: number.digits().max(scale), scale },
            None if number.is_float() => Shape::Float(number.bits()),
            None if number.is_signed() => Shape::Signed(number.bits()),
            None => Shape::Unsigned(number.bits()),
        }
    }

    /// Passes its value in a payload to `sink`; null if the payload ends before it does.
    pub fn decode<S: Sink>(&self, payload: &[u8], sink: &mut S) {
        let is_there = self.end().is_some_and(|end| end <= payload.len());
        if !is_there || self.put_value(payload, sink).is_none() {
            sink.null();
        }
    }

    fn end(&self) -> Option<usize> {
        self.offset.checked_add(self.element.size().checked_mul(self.count.unwrap_or(1))?)
    }

    #[inline(always)]
    fn put<S: Sink>(&self, payload: &[u8], sink: &mut S) -> Option<()> {
        sink.key(&self.name);
        self.put_value(payload, sink)
    }

    #[inline(always)]
    fn put_value<S: Sink>(&self, payload: &[u8], sink: &mut S) -> Option<()> {
        let Some(count) = self.count else { return self.put_element(payload, self.offset, sink) };
        sink.begin_list();
        for at in 0..count {
            self.put_element(payload, self.offset + at * self.element.size(), sink)?;
        }
        sink.end_list();
        Some(())
    }

    #[inline(always)]
    fn put_element<S: Sink>(&self, payload: &[u8], offset: usize, sink: &mut S) -> Option<()> {
        let Some(number) = self.element.number() else {
            let bytes = payload.get(offset..)?.get(..self.element.size())?;
            match self.element {
                Element::Bool => sink.bool(*bytes.first()? != 0),
                Element::Text(_) => sink.text(&padded_text(bytes)),
                _ => sink.bytes(bytes),
            }
            return Some(());
        };
        let value = number.read(payload, offset, self.is_big)?;
        if self.null.is_some() && self.null == value.integer() {
            sink.null();
            return Some(());
        }
        if self.names.is_some() || self.scale.is_some() {
            return self.put_special(value, sink);
        }
        match value {
            Value::Unsigned(value) => sink.unsigned(value),
            Value::Signed(value) => sink.signed(value),
            Value::Single(value) => sink.single(value),
            Value::Double(value) => sink.double(value),
        }
        Some(())
    }

    #[inline(always)]
    fn put_special<S: Sink>(&self, value: Value, sink: &mut S) -> Option<()> {
        let integer = value.integer()?;
        if let Some(scale) = self.scale {
            sink.decimal(integer, scale);
        } else if let Some(name) = self.names.as_ref()?.get(&integer) {
            sink.text(name);
        } else {
            sink.text(&integer.to_string());
        }
        Some(())
    }
}

/// Fields at fixed offsets.
#[derive(Debug, Clone)]
pub struct Layout {
    columns: Vec<Column>,
    len: usize,
    may_be_longer: bool,
}

impl Layout {
    pub(crate) fn new(fields: &[FieldSpec], endian: Option<Endian>, may_be_longer: bool) -> Result<Self, String> {
        if fields.is_empty() || fields.len() > MAX_FIELDS {
            return Err(format!("a layout has 1 to {MAX_FIELDS} fields, this one {}", fields.len()));
        }
        let mut layout = Self { columns: Vec::new(), len: 0, may_be_longer };
        let mut next = 0;
        for field in fields {
            let column = column(field, next, endian.unwrap_or(Endian::Little))
                .map_err(|what| format!("field {:?}: {what}", field.name))?;
            if layout.columns.iter().any(|other| other.name == column.name) {
                return Err(format!("field {:?}: there are two of this name", field.name));
            }
            next = column.end().filter(|end| *end <= MAX_LEN).ok_or_else(|| {
                format!("field {:?}: it ends after {MAX_LEN} bytes, the most that a layout describes", field.name)
            })?;
            layout.len = layout.len.max(next);
            layout.columns.push(column);
        }
        let values: usize = layout.columns.iter().map(|column| column.count.unwrap_or(1)).sum();
        if values > MAX_VALUES.saturating_add(layout.len.saturating_mul(64)) {
            return Err(format!("its arrays overlap: {values} values in {} bytes", layout.len));
        }
        Ok(layout)
    }

    /// Its fields, in their order in the schema.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The length of a payload, in bytes; it is the least one, where payloads may be longer.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether a payload has the length of the layout.
    #[inline]
    pub fn fits(&self, payload: &[u8]) -> bool {
        payload.len() == self.len || self.may_be_longer && payload.len() > self.len
    }

    pub(crate) fn shape(&self) -> Shape {
        let field = |column: &Column| Field { name: column.name.clone(), shape: column.shape() };
        Shape::Struct(self.columns.iter().map(field).collect())
    }

    #[inline]
    pub(crate) fn decode<S: Sink>(&self, payload: &[u8], sink: &mut S) -> Result<(), Undecodable> {
        if !self.fits(payload) {
            return Err(self.wrong_length(payload));
        }
        sink.begin_struct();
        for column in &self.columns {
            column.put(payload, sink).ok_or_else(|| self.wrong_length(payload))?;
        }
        sink.end_struct();
        Ok(())
    }

    #[cold]
    fn wrong_length(&self, payload: &[u8]) -> Undecodable {
        let least = if self.may_be_longer { "at least " } else { "" };
        Undecodable::new(format!("the layout has {least}{} bytes, the payload {}", self.len, payload.len()))
    }
}

/// Splits "u32[10]" into element and count. Text and bytes have a size in brackets, and may have a count after it.
fn parse_kind(text: &str) -> Option<(Element, Option<usize>)> {
    if let Some(element) = Element::parse(text) {
        return Some((element, None));
    }
    let (element, count) = text.strip_suffix(']')?.rsplit_once('[')?;
    Some((Element::parse(element)?, Some(count.parse().ok()?)))
}

fn column(field: &FieldSpec, next: usize, endian: Endian) -> Result<Column, String> {
    let (element, count) = parse_kind(&field.kind).filter(|(element, _)| element.size() > 0).ok_or_else(|| {
        format!(
            "{:?} is not a type: u8 to u64, i8 to i64, f32, f64, bool, text[N], bytes[N], or an array of them, u32[N]",
            field.kind
        )
    })?;
    if let Some(count) = count.filter(|count| !(1..=MAX_FIELDS).contains(count)) {
        return Err(format!("an array has 1 to {MAX_FIELDS} elements, this one {count}"));
    }
    if field.name.is_empty() || field.name.len() > MAX_NAME {
        return Err(format!("a name has 1 to {MAX_NAME} bytes"));
    }
    let is_integer = element.number().is_some_and(|number| !number.is_float());
    let special = [
        ("scale", field.scale.is_some()),
        ("null", field.null.is_some()),
        ("time", field.time.is_some()),
        ("names", field.names.is_some()),
    ];
    if let Some((key, _)) = special.iter().find(|(_, is_set)| *is_set && !is_integer) {
        return Err(format!("{key} is for integers"));
    }
    if [field.scale.is_some(), field.time.is_some(), field.names.is_some()].iter().filter(|set| **set).count() > 1 {
        return Err("it has two of scale, time and names; choose one".to_owned());
    }
    if field.scale.is_some_and(|scale| scale > MAX_SCALE) {
        return Err(format!("scale is at most {MAX_SCALE}"));
    }
    let names = field.names.as_ref().map(|names| {
        let parse = |(number, name): (&String, &String)| {
            let number = number.parse().map_err(|_| format!("names: {number:?} is not a number"))?;
            if name.len() > MAX_NAME {
                return Err(format!("names: a name has at most {MAX_NAME} bytes"));
            }
            Ok((number, name.clone()))
        };
        names.iter().map(parse).collect::<Result<BTreeMap<_, _>, String>>()
    });
    Ok(Column {
        name: Name::new(&field.name),
        offset: field.offset.unwrap_or(next),
        element,
        count,
        is_big: field.endian.unwrap_or(endian) == Endian::Big,
        null: field.null,
        scale: field.scale,
        time: field.time,
        names: names.transpose()?,
    })
}
