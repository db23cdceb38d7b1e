//! Simple Binary Encoding by its XML schema, at run time: messages, composites, enums, sets, groups, variable-length
//! data, and messages of older and newer versions of the schema.
//!
//! [`xml`] compiles the schema to what stands here; decoding walks it. Every offset is checked against the payload,
//! and every value is counted ([`Budget`]).

mod xml;

use crate::error::Undecodable;
use crate::read::{Number, Value, padded_text};
use crate::sink::{Budget, Field, Name, Shape, Sink};

pub(crate) use xml::compile;

/// An integer at an offset within a header.
#[derive(Debug, Clone, Copy)]
struct At {
    number: Number,
    offset: usize,
}

/// The messages of a schema.
#[derive(Debug)]
pub(crate) struct Codec {
    is_big: bool,
    id: u16,
    version: u16,
    header: Header,
    messages: Vec<Message>,
    /// Payloads are this message, without a header.
    bare: Option<usize>,
}

#[derive(Debug)]
struct Header {
    len: usize,
    block_len: At,
    template: At,
    schema: At,
    version: At,
}

#[derive(Debug)]
struct Message {
    template: u16,
    name: String,
    block_len: usize,
    body: Body,
}

/// What a message or an entry of a group has.
#[derive(Debug)]
struct Body {
    fields: Vec<Member>,
    groups: Vec<Group>,
    data: Vec<Data>,
}

#[derive(Debug, Clone)]
struct Member {
    name: Name,
    /// The version of the schema that has introduced it.
    since: u16,
    offset: usize,
    kind: Kind,
    /// Of the budget.
    cost: usize,
}

impl Member {
    fn new(name: &str, since: u16, offset: usize, kind: Kind) -> Self {
        Self { name: Name::new(name), since, offset, cost: kind.cost(), kind }
    }
}

#[derive(Debug, Clone)]
enum Kind {
    Number { number: Number, null: Option<Null> },
    Char { null: Option<Null> },
    Text(usize),
    Array(Number, usize),
    Decimal { mantissa: At, null: Option<Null>, exponent: Exponent },
    Enum { number: Number, null: Option<Null>, names: Vec<(i128, String)> },
    Set { number: Number, names: Vec<(u32, String)> },
    Composite(Vec<Member>),
    Constant(Constant),
}

#[derive(Debug, Clone, Copy)]
enum Exponent {
    Constant(i8),
    At(At),
}

#[derive(Debug, Clone)]
enum Constant {
    Integer(i64),
    Float(f64),
    Text(String),
}

/// The value that stands for null.
#[derive(Debug, Clone, Copy)]
enum Null {
    Integer(i128),
    Float(f64),
}

#[derive(Debug)]
struct Group {
    name: Name,
    since: u16,
    header_len: usize,
    block_len: At,
    count: At,
    body: Body,
}

#[derive(Debug)]
struct Data {
    name: Name,
    since: u16,
    len: At,
    /// Where the data begins.
    start: usize,
    is_text: bool,
}

impl Null {
    fn is(self, value: Value) -> bool {
        match (self, value) {
            (Self::Integer(null), value) => value.integer() == Some(null),
            (Self::Float(null), Value::Double(value)) => value.is_nan() || value == null,
            (Self::Float(null), Value::Single(value)) => value.is_nan() || f64::from(value) == null,
            (Self::Float(_), _) => false,
        }
    }
}

/// What a payload's header says.
struct Frame<'a> {
    message: &'a Message,
    index: usize,
    version: u16,
    start: usize,
    block_len: usize,
}

impl Codec {
    /// Payloads are the message of this name, without a header.
    pub(crate) fn without_header(mut self, name: &str) -> Result<Self, String> {
        let found = self.messages.iter().position(|message| message.name == name);
        self.bare = Some(found.ok_or_else(|| format!("message: the schema has no {name:?}"))?);
        Ok(self)
    }

    /// The messages: their names and shapes.
    pub(crate) fn tables(&self) -> Vec<(Option<String>, Shape)> {
        self.messages.iter().map(|message| (Some(message.name.clone()), message.body.shape())).collect()
    }

    /// Which message a payload is: an index of [`Codec::tables`].
    #[inline]
    pub(crate) fn table_of(&self, payload: &[u8]) -> Result<usize, Undecodable> {
        self.frame(payload).map(|frame| frame.index)
    }

    #[inline]
    fn frame(&self, payload: &[u8]) -> Result<Frame<'_>, Undecodable> {
        if let Some(index) = self.bare
            && let Some(message) = self.messages.get(index)
        {
            return Ok(Frame { message, index, version: self.version, start: 0, block_len: message.block_len });
        }
        let header = &self.header;
        let read = |at: At| self.integer(payload, at, 0);
        let (Some(block_len), Some(template), Some(schema), Some(version)) =
            (read(header.block_len), read(header.template), read(header.schema), read(header.version))
        else {
            return Err(Undecodable::short("the message header", header.len, payload.len()));
        };
        if schema != usize::from(self.id) {
            return Err(Undecodable::new(format!("it is of schema {schema}, not of {}", self.id)));
        }
        let found = self.messages.binary_search_by_key(&template, |message| usize::from(message.template));
        let (Ok(index), Ok(version)) = (found, u16::try_from(version)) else {
            return Err(Undecodable::new(format!("the schema has no template {template}")));
        };
        let message = self.messages.get(index).ok_or_else(|| Undecodable::new("no such message"))?;
        Ok(Frame { message, index, version, start: header.len, block_len })
    }

    #[inline(always)]
    fn integer(&self, payload: &[u8], at: At, start: usize) -> Option<usize> {
        match at.number.read(payload, start.checked_add(at.offset)?, self.is_big)? {
            Value::Unsigned(value) => usize::try_from(value).ok(),
            Value::Signed(value) => usize::try_from(value).ok(),
            Value::Single(_) | Value::Double(_) => None,
        }
    }

    pub(crate) fn decode<S: Sink>(&self, payload: &[u8], sink: &mut S) -> Result<(), Undecodable> {
        let frame = self.frame(payload)?;
        let mut walk = Walk { codec: self, payload, version: frame.version, budget: Budget::of(payload), sink };
        walk.sink.begin_struct();
        let end = walk.body(&frame.message.body, frame.start, frame.block_len)?;
        walk.sink.end_struct();
        // A newer version may have groups and data that this one does not know.
        if end < payload.len() && frame.version <= self.version {
            return Err(Undecodable::new(format!("{} bytes are left over at its end", payload.len() - end)));
        }
        Ok(())
    }
}

/// One payload on its way into a sink.
struct Walk<'a, S> {
    codec: &'a Codec,
    payload: &'a [u8],
    /// Of the schema that the payload was written by.
    version: u16,
    budget: Budget,
    sink: &'a mut S,
}

impl<S: Sink> Walk<'_, S> {
    /// Decodes what starts at `start`, and returns where it ends.
    fn body(&mut self, body: &Body, start: usize, block_len: usize) -> Result<usize, Undecodable> {
        let end = start.checked_add(block_len).filter(|end| *end <= self.payload.len());
        let end =
            end.ok_or_else(|| Undecodable::short("a block", start.saturating_add(block_len), self.payload.len()))?;
        for member in &body.fields {
            self.budget.spend(member.cost)?;
            self.sink.key(&member.name);
            if member.since > self.version {
                self.sink.null();
                continue;
            }
            // Nothing past the block is part of it.
            self.member(member, start, end).ok_or_else(|| {
                Undecodable::new(format!("field {} ends after its block of {block_len} bytes", member.name.as_str()))
            })?;
        }
        let mut at = end;
        for group in &body.groups {
            at = self.group(group, at)?;
        }
        for data in &body.data {
            at = self.data(data, at)?;
        }
        Ok(at)
    }

    fn group(&mut self, group: &Group, mut at: usize) -> Result<usize, Undecodable> {
        self.budget.spend(1)?;
        self.sink.key(&group.name);
        self.sink.begin_list();
        if group.since <= self.version {
            let read = |field| self.codec.integer(self.payload, field, at);
            let (Some(block_len), Some(count)) = (read(group.block_len), read(group.count)) else {
                let what = format!("the head of group {}", group.name.as_str());
                return Err(Undecodable::short(&what, at.saturating_add(group.header_len), self.payload.len()));
            };
            at = at.saturating_add(group.header_len);
            for _ in 0..count {
                self.budget.spend(1)?;
                self.sink.begin_struct();
                at = self.body(&group.body, at, block_len)?;
                self.sink.end_struct();
            }
        }
        self.sink.end_list();
        Ok(at)
    }

    fn data(&mut self, data: &Data, at: usize) -> Result<usize, Undecodable> {
        self.budget.spend(1)?;
        self.sink.key(&data.name);
        if data.since > self.version {
            self.sink.null();
            return Ok(at);
        }
        let start = at.saturating_add(data.start);
        let len = self.codec.integer(self.payload, data.len, at);
        let bytes = len.and_then(|len| self.payload.get(start..start.checked_add(len)?)).ok_or_else(|| {
            let what = format!("data {}", data.name.as_str());
            Undecodable::short(&what, start.saturating_add(len.unwrap_or(0)), self.payload.len())
        })?;
        if data.is_text {
            self.sink.text(&String::from_utf8_lossy(bytes));
        } else {
            self.sink.bytes(bytes);
        }
        Ok(start + bytes.len())
    }

    #[inline]
    fn member(&mut self, member: &Member, start: usize, end: usize) -> Option<()> {
        let start = start.checked_add(member.offset)?;
        let block = self.payload.get(..end)?;
        let read = |number: Number| number.read(block, start, self.codec.is_big);
        match &member.kind {
            Kind::Number { number, null } => put(read(*number)?, *null, self.sink),
            Kind::Char { null } => match read(Number::U8)? {
                value if null.is_some_and(|null| null.is(value)) => self.sink.null(),
                _ => self.sink.text(&padded_text(block.get(start..)?.get(..1)?)),
            },
            Kind::Text(len) => self.sink.text(&padded_text(block.get(start..)?.get(..*len)?)),
            Kind::Array(number, count) => {
                self.sink.begin_list();
                for at in 0..*count {
                    put(number.read(block, start + at * number.size(), self.codec.is_big)?, None, self.sink);
                }
                self.sink.end_list();
            }
            Kind::Decimal { mantissa, null, exponent } => self.decimal(block, start, *mantissa, *null, *exponent)?,
            Kind::Enum { number, null, names } => {
                let value = read(*number)?;
                let integer = value.integer()?;
                match names.binary_search_by_key(&integer, |(value, _)| *value) {
                    Ok(found) => self.sink.text(&names.get(found)?.1),
                    Err(_) if null.is_some_and(|null| null.is(value)) => self.sink.null(),
                    Err(_) => self.sink.text(&integer.to_string()),
                }
            }
            Kind::Set { number, names } => {
                let bits = read(*number)?.integer()?;
                self.sink.begin_list();
                for bit in (0..u32::from(number.bits())).filter(|bit| bits >> bit & 1 == 1) {
                    match names.binary_search_by_key(&bit, |(bit, _)| *bit) {
                        Ok(found) => self.sink.text(&names.get(found)?.1),
                        Err(_) => self.sink.text(&bit.to_string()),
                    }
                }
                self.sink.end_list();
            }
            Kind::Composite(members) => {
                self.sink.begin_struct();
                for member in members {
                    self.sink.key(&member.name);
                    if member.since > self.version {
                        self.sink.null();
                    } else {
                        self.member(member, start, end)?;
                    }
                }
                self.sink.end_struct();
            }
            Kind::Constant(Constant::Integer(value)) => self.sink.signed(*value),
            Kind::Constant(Constant::Float(value)) => self.sink.double(*value),
            Kind::Constant(Constant::Text(value)) => self.sink.text(value),
        }
        Some(())
    }

    fn decimal(
        &mut self,
        block: &[u8],
        start: usize,
        mantissa: At,
        null: Option<Null>,
        exponent: Exponent,
    ) -> Option<()> {
        let value = mantissa.number.read(block, start.checked_add(mantissa.offset)?, self.codec.is_big)?;
        let exponent = match exponent {
            Exponent::Constant(exponent) => i128::from(exponent),
            Exponent::At(at) => at.number.read(block, start.checked_add(at.offset)?, self.codec.is_big)?.integer()?,
        };
        let integer = value.integer()?;
        if null.is_some_and(|null| null.is(value)) {
            self.sink.null();
        } else if let Ok(scale @ ..=38) = u8::try_from(-exponent) {
            self.sink.decimal(integer, scale);
        } else if let Ok(power @ ..=18) = u32::try_from(exponent) {
            self.sink.decimal(integer.saturating_mul(10_i128.pow(power)), 0);
        } else {
            #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
            self.sink.double(integer as f64 * 10_f64.powi(exponent.clamp(-1000, 1000) as i32));
        }
        Some(())
    }
}

#[inline(always)]
fn put<S: Sink>(value: Value, null: Option<Null>, sink: &mut S) {
    if null.is_some_and(|null| null.is(value)) {
        return sink.null();
    }
    match value {
        Value::Unsigned(value) => sink.unsigned(value),
        Value::Signed(value) => sink.signed(value),
        Value::Single(value) => sink.single(value),
        Value::Double(value) => sink.double(value),
    }
}

impl Body {
    fn shape(&self) -> Shape {
        let fields = self.fields.iter().map(|member| Field { name: member.name.clone(), shape: member.kind.shape() });
        let groups = self
            .groups
            .iter()
            .map(|group| Field { name: group.name.clone(), shape: Shape::List(Box::new(group.body.shape())) });
        let data = self.data.iter().map(|data| Field {
            name: data.name.clone(),
            shape: if data.is_text { Shape::Text } else { Shape::Bytes },
        });
        Shape::Struct(fields.chain(groups).chain(data).collect())
    }
}

fn number_shape(number: Number) -> Shape {
    match (number.is_float(), number.is_signed()) {
        (true, _) => Shape::Float(number.bits()),
        (_, true) => Shape::Signed(number.bits()),
        (_, false) => Shape::Unsigned(number.bits()),
    }
}

impl Kind {
    fn shape(&self) -> Shape {
        match self {
            Self::Number { number, .. } => number_shape(*number),
            Self::Char { .. } | Self::Text(_) | Self::Enum { .. } | Self::Constant(Constant::Text(_)) => Shape::Text,
            Self::Array(number, _) => Shape::List(Box::new(number_shape(*number))),
            Self::Decimal { mantissa, exponent: Exponent::Constant(exponent), .. } => {
                let scale = u8::try_from(-i16::from(*exponent)).unwrap_or(0);
                let power = u8::try_from(*exponent).unwrap_or(0);
                match mantissa.number.digits().saturating_add(power).max(scale) {
                    precision @ ..=38 => Shape::Decimal { precision, scale },
                    _ => Shape::Float(64),
                }
            }
            Self::Decimal { exponent: Exponent::At(_), .. } => Shape::Float(64),
            Self::Set { .. } => Shape::List(Box::new(Shape::Text)),
            Self::Composite(members) => {
                let field = |member: &Member| Field { name: member.name.clone(), shape: member.kind.shape() };
                Shape::Struct(members.iter().map(field).collect())
            }
            Self::Constant(Constant::Integer(_)) => Shape::Signed(64),
            Self::Constant(Constant::Float(_)) => Shape::Float(64),
        }
    }

    /// What it costs of the budget.
    fn cost(&self) -> usize {
        match self {
            Self::Text(len) | Self::Array(_, len) => len.saturating_add(1),
            Self::Composite(members) => members.iter().fold(1, |sum, member| sum.saturating_add(member.cost)),
            _ => 1,
        }
    }

    /// Bytes that it takes.
    fn size(&self) -> usize {
        match self {
            Self::Number { number, .. } | Self::Enum { number, .. } | Self::Set { number, .. } => number.size(),
            Self::Char { .. } => 1,
            Self::Text(len) => *len,
            Self::Array(number, count) => number.size().saturating_mul(*count),
            Self::Decimal { mantissa, exponent, .. } => {
                let end = |at: &At| at.offset.saturating_add(at.number.size());
                end(mantissa).max(if let Exponent::At(at) = exponent { end(at) } else { 0 })
            }
            Self::Composite(members) => {
                let end = |member: &Member| member.offset.saturating_add(member.kind.size());
                members.iter().map(end).max().unwrap_or(0)
            }
            Self::Constant(_) => 0,
        }
    }
}
