//! Compiles an SBE schema.

use std::collections::BTreeMap;

use roxmltree::{Document, Node, ParsingOptions};

use super::{At, Body, Codec, Constant, Data, Exponent, Group, Header, Kind, Member, Message, Null};
use crate::error::SchemaError;
use crate::fixed::MAX_NAME;
use crate::read::Number;
use crate::schema::Files;
use crate::sink::Name;

/// How deep groups and composites may nest.
const MAX_DEPTH: usize = 16;
/// Most fields of all messages together, with those of the composites that they use.
const MAX_MEMBERS: usize = 20_000;
/// Longest array, in elements.
const MAX_ARRAY: usize = 65_536;
/// Most files that a schema includes.
const MAX_INCLUDES: usize = 16;
/// Most elements of an XML file.
const MAX_NODES: u32 = 100_000;

type Result<T> = std::result::Result<T, SchemaError>;
type Element<'a> = Node<'a, 'a>;

/// Compiles the schema in a file, with the files of types that it includes.
pub(crate) fn compile(file: &str, files: Files<'_>) -> Result<Codec> {
    let mut read = |name: &str| {
        let bytes = files(name).map_err(|error| SchemaError::new(name, None, error))?;
        String::from_utf8(bytes).map_err(|_| SchemaError::new(name, None, "it is not UTF-8"))
    };
    let text = read(file)?;
    let document = parse(file, &text)?;
    let root = document.root_element();
    let mut texts = Vec::new();
    for node in elements(root, "include") {
        let name = node.attribute("href").unwrap_or_default();
        if texts.len() == MAX_INCLUDES {
            return Err(error(file, node, &format!("it includes more than {MAX_INCLUDES} files")));
        }
        texts.push((name, read(name).map_err(|problem| error(file, node, &problem.to_string()))?));
    }
    let included = texts.iter().map(|(name, text)| Ok((*name, parse(name, text)?))).collect::<Result<Vec<_>>>()?;
    let mut compiler = Compiler { file, included: &included, types: BTreeMap::new(), members: 0 };
    if root.tag_name().name() != "messageSchema" {
        return Err(compiler.error(root, "the root element is not a messageSchema"));
    }
    for (_, document) in &included {
        compiler.types(document.root_element())?;
    }
    for types in elements(root, "types") {
        compiler.types(types)?;
    }
    let header = compiler.header(root)?;
    let mut messages = Vec::new();
    for node in elements(root, "message") {
        messages.push(compiler.message(node)?);
    }
    if messages.is_empty() {
        return Err(compiler.error(root, "it has no message"));
    }
    messages.sort_by_key(|message: &Message| message.template);
    if let Some(pair) = messages.windows(2).find(|pair| pair[0].template == pair[1].template) {
        return Err(compiler.error(root, &format!("two messages have the id {}", pair[0].template)));
    }
    let version = compiler.integer(root, "version")?.unwrap_or(0);
    let id = compiler.integer(root, "id")?.unwrap_or(0);
    let is_big = root.attribute("byteOrder") == Some("bigEndian");
    Ok(Codec { is_big, id, version, header, messages, bare: None })
}

fn parse<'a>(file: &str, text: &'a str) -> Result<Document<'a>> {
    let options = ParsingOptions { nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).map_err(|error| {
        let line = usize::try_from(error.pos().row).ok();
        SchemaError::new(file, line, error.to_string())
    })
}

fn error(file: &str, node: Element<'_>, what: &str) -> SchemaError {
    let line = node.document().text_pos_at(node.range().start).row;
    SchemaError::new(file, usize::try_from(line).ok(), what)
}

fn elements<'a>(parent: Element<'a>, name: &'static str) -> impl Iterator<Item = Element<'a>> {
    parent.children().filter(move |node| node.is_element() && node.tag_name().name() == name)
}

struct Compiler<'a> {
    file: &'a str,
    included: &'a [(&'a str, Document<'a>)],
    types: BTreeMap<&'a str, Element<'a>>,
    members: usize,
}

fn primitive(name: &str) -> Option<Number> {
    Some(match name {
        "char" | "uint8" => Number::U8,
        "int8" => Number::I8,
        "int16" => Number::I16,
        "uint16" => Number::U16,
        "int32" => Number::I32,
        "uint32" => Number::U32,
        "int64" => Number::I64,
        "uint64" => Number::U64,
        "float" => Number::F32,
        "double" => Number::F64,
        _ => return None,
    })
}

/// The null value that the standard has for a type.
fn default_null(name: &str, number: Number) -> Null {
    let bits = u32::from(number.bits());
    match number {
        _ if name == "char" => Null::Integer(0),
        Number::F32 | Number::F64 => Null::Float(f64::NAN),
        _ if number.is_signed() => Null::Integer(-(1 << (bits - 1))),
        _ => Null::Integer((1 << bits) - 1),
    }
}

/// What a field adds to its type.
#[derive(Clone, Copy, Default)]
struct Use<'a> {
    presence: Option<&'a str>,
    value_ref: Option<&'a str>,
    null: Option<&'a str>,
}

impl<'a> Compiler<'a> {
    fn error(&self, node: Element<'_>, what: &str) -> SchemaError {
        let included = self.included.iter().find(|(_, document)| std::ptr::eq(document, node.document()));
        error(included.map_or(self.file, |(name, _)| *name), node, what)
    }

    /// Makes the types below an element known.
    fn types(&mut self, parent: Element<'a>) -> Result<()> {
        for node in parent.children().filter(Node::is_element) {
            self.types.insert(self.name(node)?, node);
        }
        Ok(())
    }

    fn name(&self, node: Element<'a>) -> Result<&'a str> {
        match node.attribute("name") {
            Some(name) if !name.is_empty() && name.len() <= MAX_NAME => Ok(name),
            _ => Err(self.error(node, &format!("it needs a name of 1 to {MAX_NAME} bytes"))),
        }
    }

    fn integer<T: std::str::FromStr>(&self, node: Element<'a>, attribute: &str) -> Result<Option<T>> {
        let Some(text) = node.attribute(attribute) else { return Ok(None) };
        let wrong = || self.error(node, &format!("{attribute} {text:?} is not a number in its range"));
        text.trim().parse().map(Some).map_err(|_| wrong())
    }

    fn count(&mut self, node: Element<'a>) -> Result<()> {
        self.members += 1;
        if self.members > MAX_MEMBERS {
            return Err(self.error(node, &format!("the schema has more than {MAX_MEMBERS} fields")));
        }
        Ok(())
    }

    fn header(&mut self, root: Element<'a>) -> Result<Header> {
        let name = root.attribute("headerType").unwrap_or("messageHeader");
        let members = self.composite_of(root, name)?;
        let at = |field| self.integer_at(root, &members, name, field);
        Ok(Header {
            len: Kind::Composite(members.clone()).size(),
            block_len: at("blockLength")?,
            template: at("templateId")?,
            schema: at("schemaId")?,
            version: at("version")?,
        })
    }

    fn composite_of(&mut self, node: Element<'a>, name: &str) -> Result<Vec<Member>> {
        match self.types.get(name).copied() {
            Some(found) if found.tag_name().name() == "composite" => self.composite(found, 0),
            _ => Err(self.error(node, &format!("there is no composite {name:?}"))),
        }
    }

    fn integer_at(&self, node: Element<'a>, members: &[Member], composite: &str, name: &str) -> Result<At> {
        let found = members.iter().find(|member| member.name.as_str() == name);
        match found.map(|member| (&member.kind, member.offset)) {
            Some((Kind::Number { number, .. }, offset)) if !number.is_float() => Ok(At { number: *number, offset }),
            _ => Err(self.error(node, &format!("composite {composite:?} has no integer {name:?}"))),
        }
    }

    fn message(&mut self, node: Element<'a>) -> Result<Message> {
        let name = self.name(node)?.to_owned();
        let template = self.integer(node, "id")?.ok_or_else(|| self.error(node, "it needs an id"))?;
        let (body, end) = self.body(node, 0)?;
        let block_len = self.integer(node, "blockLength")?.unwrap_or(end);
        Ok(Message { template, name, block_len, body })
    }

    /// The contents of a message or group, and the length of its block.
    fn body(&mut self, node: Element<'a>, depth: usize) -> Result<(Body, usize)> {
        if depth > MAX_DEPTH {
            return Err(self.error(node, &format!("groups nest deeper than {MAX_DEPTH}")));
        }
        let mut body = Body { fields: Vec::new(), groups: Vec::new(), data: Vec::new() };
        let (mut next, mut end) = (0_usize, 0);
        let mut names = std::collections::BTreeSet::new();
        for child in node.children().filter(Node::is_element) {
            let tag = child.tag_name().name();
            if !matches!(tag, "field" | "group" | "data") {
                continue;
            }
            self.count(child)?;
            let name = self.name(child)?;
            if !names.insert(name) {
                return Err(self.error(child, &format!("there are two of the name {name:?}")));
            }
            let since = self.integer(child, "sinceVersion")?.unwrap_or(0);
            match tag {
                "field" => {
                    let offset = self.integer(child, "offset")?.unwrap_or(next);
                    let kind = self.field(child)?;
                    next = offset.saturating_add(kind.size());
                    end = end.max(next);
                    body.fields.push(Member::new(name, since, offset, kind));
                }
                "group" => body.groups.push(self.group(child, name, since, depth)?),
                _ => body.data.push(self.data(child, name, since)?),
            }
        }
        Ok((body, end))
    }

    fn group(&mut self, node: Element<'a>, name: &str, since: u16, depth: usize) -> Result<Group> {
        let dimension = node.attribute("dimensionType").unwrap_or("groupSizeEncoding");
        let members = self.composite_of(node, dimension)?;
        let (body, _) = self.body(node, depth + 1)?;
        Ok(Group {
            name: Name::new(name),
            since,
            block_len: self.integer_at(node, &members, dimension, "blockLength")?,
            count: self.integer_at(node, &members, dimension, "numInGroup")?,
            header_len: Kind::Composite(members).size(),
            body,
        })
    }

    fn data(&mut self, node: Element<'a>, name: &str, since: u16) -> Result<Data> {
        let composite = node.attribute("type").unwrap_or("varDataEncoding");
        let members = self.composite_of(node, composite)?;
        let len = self.integer_at(node, &members, composite, "length")?;
        let start = members.iter().find(|member| member.name.as_str() == "varData").map(|member| member.offset);
        let start = start.ok_or_else(|| self.error(node, &format!("composite {composite:?} has no varData")))?;
        let encoding = self.types.get(composite).and_then(|found| {
            let node = elements(*found, "type").find(|node| node.attribute("name") == Some("varData"))?;
            node.attribute("characterEncoding").or_else(|| node.attribute("primitiveType").filter(|t| *t == "char"))
        });
        let is_text = encoding.is_some_and(|encoding| !encoding.is_empty());
        Ok(Data { name: Name::new(name), since, len, start, is_text })
    }

    fn field(&mut self, node: Element<'a>) -> Result<Kind> {
        let name = node.attribute("type").ok_or_else(|| self.error(node, "it needs a type"))?;
        let wanted = Use {
            presence: node.attribute("presence"),
            value_ref: node.attribute("valueRef"),
            null: node.attribute("nullValue"),
        };
        self.named(node, name, wanted, 0)
    }

    /// A type by its name.
    fn named(&mut self, node: Element<'a>, name: &'a str, wanted: Use<'a>, depth: usize) -> Result<Kind> {
        if let (Some("constant"), Some(reference)) = (wanted.presence, wanted.value_ref) {
            let value = reference.rsplit_once('.').map_or(reference, |(_, value)| value);
            return Ok(Kind::Constant(Constant::Text(self.text(node, value)?)));
        }
        match self.types.get(name).copied() {
            Some(found) => self.kind(found, wanted, depth),
            None => match primitive(name) {
                Some(number) => {
                    let null = self.null(node, name, number, wanted.presence, wanted.null)?;
                    Ok(if name == "char" { Kind::Char { null } } else { Kind::Number { number, null } })
                }
                None => Err(self.error(node, &format!("there is no type {name:?}"))),
            },
        }
    }

    /// A type by its definition.
    fn kind(&mut self, node: Element<'a>, wanted: Use<'a>, depth: usize) -> Result<Kind> {
        match node.tag_name().name() {
            "type" => self.simple(node, wanted),
            "composite" => {
                let members = self.composite(node, depth)?;
                Ok(decimal(&members).unwrap_or(Kind::Composite(members)))
            }
            "enum" => self.enumeration(node, wanted),
            "set" => self.set(node),
            other => Err(self.error(node, &format!("{other:?} is not a type"))),
        }
    }

    fn composite(&mut self, node: Element<'a>, depth: usize) -> Result<Vec<Member>> {
        if depth > MAX_DEPTH {
            return Err(self.error(node, &format!("composites nest deeper than {MAX_DEPTH}")));
        }
        let mut members: Vec<Member> = Vec::new();
        let mut next = 0_usize;
        for child in node.children().filter(Node::is_element) {
            self.count(child)?;
            let name = self.name(child)?;
            if members.iter().any(|member| member.name.as_str() == name) {
                return Err(self.error(child, &format!("there are two of the name {name:?}")));
            }
            let kind = match child.tag_name().name() {
                "ref" => {
                    let target = child.attribute("type").ok_or_else(|| self.error(child, "it needs a type"))?;
                    self.named(child, target, Use::default(), depth + 1)?
                }
                _ => self.kind(child, Use::default(), depth + 1)?,
            };
            let offset = self.integer(child, "offset")?.unwrap_or(next);
            let since = self.integer(child, "sinceVersion")?.unwrap_or(0);
            next = offset.saturating_add(kind.size());
            members.push(Member::new(name, since, offset, kind));
        }
        Ok(members)
    }

    fn simple(&mut self, node: Element<'a>, wanted: Use<'a>) -> Result<Kind> {
        let kind = node.attribute("primitiveType").unwrap_or_default();
        let number = primitive(kind).ok_or_else(|| self.error(node, &format!("{kind:?} is not a primitiveType")))?;
        let presence = wanted.presence.or_else(|| node.attribute("presence"));
        let len: Option<usize> = self.integer(node, "length")?;
        if let Some(len) = len.filter(|len| *len > MAX_ARRAY) {
            return Err(self.error(node, &format!("length {len} is more than {MAX_ARRAY}")));
        }
        if presence == Some("constant") {
            return self.constant(node, kind, number);
        }
        let null = self.null(node, kind, number, presence, wanted.null.or_else(|| node.attribute("nullValue")))?;
        Ok(match (kind, len) {
            ("char", None | Some(1)) => Kind::Char { null },
            ("char", Some(len)) => Kind::Text(len),
            (_, None | Some(1)) => Kind::Number { number, null },
            (_, Some(len)) => Kind::Array(number, len),
        })
    }

    fn constant(&mut self, node: Element<'a>, kind: &str, number: Number) -> Result<Kind> {
        let text = node.text().unwrap_or_default().trim();
        let wrong = || self.error(node, &format!("the constant {text:?} is not a {kind}"));
        Ok(Kind::Constant(match number {
            _ if kind == "char" => Constant::Text(self.text(node, text)?),
            Number::F32 | Number::F64 => Constant::Float(text.parse().map_err(|_| wrong())?),
            _ => Constant::Integer(text.parse().map_err(|_| wrong())?),
        }))
    }

    fn text(&self, node: Element<'a>, text: &str) -> Result<String> {
        if text.len() > MAX_NAME {
            return Err(self.error(node, &format!("a constant has at most {MAX_NAME} bytes")));
        }
        Ok(text.to_owned())
    }

    fn null(
        &self,
        node: Element<'a>,
        kind: &str,
        number: Number,
        presence: Option<&str>,
        value: Option<&str>,
    ) -> Result<Option<Null>> {
        if presence != Some("optional") {
            return Ok(None);
        }
        let Some(text) = value else { return Ok(Some(default_null(kind, number))) };
        let null = if number.is_float() {
            text.parse().ok().map(Null::Float)
        } else {
            text.parse().ok().or_else(|| single_char(text)).map(Null::Integer)
        };
        null.map(Some).ok_or_else(|| self.error(node, &format!("nullValue {text:?} is not a {kind}")))
    }

    /// The integer type by which an enum or set is written.
    fn encoding(&self, node: Element<'a>) -> Result<(&'a str, Number)> {
        let name = node.attribute("encodingType").unwrap_or_default();
        let kind = match self.types.get(name) {
            Some(found) => found.attribute("primitiveType").unwrap_or_default(),
            None => name,
        };
        match primitive(kind).filter(|number| !number.is_float()) {
            Some(number) => Ok((kind, number)),
            None => Err(self.error(node, &format!("encodingType {name:?} is not an integer or char"))),
        }
    }

    fn enumeration(&mut self, node: Element<'a>, wanted: Use<'a>) -> Result<Kind> {
        let (kind, number) = self.encoding(node)?;
        let mut names = Vec::new();
        for child in elements(node, "validValue") {
            self.count(child)?;
            let text = child.text().unwrap_or_default().trim();
            let value = if kind == "char" { single_char(text) } else { text.parse().ok() };
            let value = value.ok_or_else(|| self.error(child, &format!("{text:?} is not a {kind}")))?;
            names.push((value, self.name(child)?.to_owned()));
        }
        names.sort();
        names.dedup_by_key(|(value, _)| *value);
        // Enums may be null without saying so.
        let null = self.null(node, kind, number, Some("optional"), wanted.null)?;
        Ok(Kind::Enum { number, null, names })
    }

    fn set(&mut self, node: Element<'a>) -> Result<Kind> {
        let (_, number) = self.encoding(node)?;
        let mut names = Vec::new();
        for child in elements(node, "choice") {
            self.count(child)?;
            let text = child.text().unwrap_or_default().trim();
            let bit = text.parse().ok().filter(|bit| *bit < u32::from(number.bits()));
            let bit = bit.ok_or_else(|| self.error(child, &format!("{text:?} is not a bit of the set")))?;
            names.push((bit, self.name(child)?.to_owned()));
        }
        names.sort();
        names.dedup_by_key(|(bit, _)| *bit);
        Ok(Kind::Set { number, names })
    }
}

fn single_char(text: &str) -> Option<i128> {
    let [byte] = text.as_bytes() else { return None };
    Some(i128::from(*byte))
}

/// A mantissa and an exponent are one decimal number.
fn decimal(members: &[Member]) -> Option<Kind> {
    let [mantissa, exponent] = members else { return None };
    if (mantissa.name.as_str(), exponent.name.as_str()) != ("mantissa", "exponent") {
        return None;
    }
    let Kind::Number { number, null } = mantissa.kind else { return None };
    let at = |number: Number, offset| (!number.is_float()).then_some(At { number, offset });
    let exponent = match &exponent.kind {
        Kind::Constant(Constant::Integer(value)) => Exponent::Constant(i8::try_from(*value).ok()?),
        Kind::Number { number, .. } => Exponent::At(at(*number, exponent.offset)?),
        _ => return None,
    };
    Some(Kind::Decimal { mantissa: at(number, mantissa.offset)?, null, exponent })
}
