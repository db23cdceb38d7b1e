//! `schema.toml`: which type of message is read how.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use crate::SCHEMA_FILE;
use crate::error::{SchemaError, Undecodable};
use crate::fix;
use crate::fixed::{Endian, FieldSpec, Layout, MAX_NAME};
use crate::json::{Json, one_line};
use crate::proto;
use crate::sbe;
use crate::sink::{Ignore, Shape, Sink, Unit};

/// Largest file of a schema, in bytes.
pub const MAX_FILE: u64 = 1 << 20;

/// The text of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(default)]
    message: Vec<toml::Spanned<EntrySpec>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntrySpec {
    #[serde(rename = "type")]
    types: Types,
    name: Option<String>,
    format: FormatName,
    time: Option<String>,
    time_unit: Option<Unit>,
    // Of fixed.
    fields: Option<Vec<FieldSpec>>,
    endian: Option<Endian>,
    may_be_longer: Option<bool>,
    // Of sbe and protobuf.
    file: Option<String>,
    message: Option<String>,
    header: Option<bool>,
    // Of fix.
    names: Option<BTreeMap<String, String>>,
    separator: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Types {
    One(u16),
    Several(Vec<u16>),
    Any(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FormatName {
    Fixed,
    Sbe,
    Protobuf,
    Fix,
    Json,
}

/// How the payloads of some types are read.
#[derive(Debug)]
enum Decoder {
    Fixed(Arc<Layout>),
    Sbe(sbe::Codec),
    Proto(proto::Codec),
    Fix(fix::Codec),
    Json,
}

/// Messages of one kind: what an export makes one table of.
#[derive(Debug)]
pub struct Table {
    name: String,
    shape: Shape,
    layout: Option<Arc<Layout>>,
    time: Option<Time>,
}

/// The field by which a message says when it came into being, at an exchange for example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Time {
    /// The index of the field in the table's struct.
    pub field: usize,
    /// What it counts.
    pub unit: Unit,
}

impl Table {
    /// Its name, unique in the schema.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its messages hold: a [`Shape::Struct`], or [`Shape::Json`] where that is not known before.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Where its fields are, if that is fixed.
    pub fn layout(&self) -> Option<&Arc<Layout>> {
        self.layout.as_ref()
    }

    /// Its time of origin.
    pub fn time(&self) -> Option<&Time> {
        self.time.as_ref()
    }
}

#[derive(Debug)]
struct Entry {
    decoder: Decoder,
    /// The index of its first table.
    first_table: usize,
}

/// What the messages of a queue hold. Immutable, and shared between threads.
#[derive(Debug)]
pub struct Schema {
    entries: Vec<Entry>,
    /// The entry of a type, sorted by type.
    types: Vec<(u16, usize)>,
    /// The entry of all other types.
    other: Option<usize>,
    tables: Vec<Table>,
}

/// The other files of a schema, by name: their contents, or why they can't be read.
pub(crate) type Files<'a> = &'a mut dyn FnMut(&str) -> Result<Vec<u8>, String>;

impl Schema {
    /// Reads `schema.toml` and the files that it names from a directory. None if there is no such file.
    ///
    /// Only regular files of at most [`MAX_FILE`] bytes are read, and no symbolic links.
    ///
    /// # Errors
    /// A file can't be read, or is not a schema.
    pub fn load(dir: &Path) -> Result<Option<Self>, SchemaError> {
        let path = dir.join(SCHEMA_FILE);
        match read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            text => Self::loaded(&path, text).map(Some),
        }
    }

    /// Like [`load`](Self::load), from a file of any name, with those beside it that it names.
    ///
    /// # Errors
    /// As [`load`](Self::load); or there is no such file.
    pub fn load_file(path: &Path) -> Result<Self, SchemaError> {
        Self::loaded(path, read(path))
    }

    fn loaded(path: &Path, text: std::io::Result<Vec<u8>>) -> Result<Self, SchemaError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = text.map_err(|error| SchemaError::new(&name, None, format!("cannot read it: {error}")))?;
        let text = String::from_utf8(text).map_err(|_| SchemaError::new(&name, None, "it is not UTF-8"))?;
        let mut beside = |other: &str| read(&path.with_file_name(other)).map_err(|error| error.to_string());
        Self::compile(&name, &text, &mut beside)
    }

    /// Compiles the text of a `schema.toml`. `files` returns the contents of other files that it names, whose names
    /// have no slash.
    ///
    /// # Errors
    /// It is not a schema, or one of the files is not.
    pub fn parse(text: &str, files: Files<'_>) -> Result<Self, SchemaError> {
        Self::compile(SCHEMA_FILE, text, files)
    }

    fn compile(name: &str, text: &str, files: Files<'_>) -> Result<Self, SchemaError> {
        let line_of = |offset: usize| text.get(..offset).map(|before| before.matches('\n').count() + 1);
        let parsed: Text = toml::from_str(text).map_err(|error| {
            let line = error.span().and_then(|span| line_of(span.start));
            SchemaError::new(name, line, error.message().replace('\n', " "))
        })?;
        let mut schema = Self { entries: Vec::new(), types: Vec::new(), other: None, tables: Vec::new() };
        // Whoever names it: this file, or one of those.
        let mut beside = |name: &str| {
            if name.is_empty() || name.contains(['/', '\0']) || name.starts_with('.') {
                return Err("name a file in the directory of schema.toml".to_owned());
            }
            files(name)
        };
        for spanned in &parsed.message {
            let line = line_of(spanned.span().start);
            schema.add(spanned.get_ref(), &mut beside).map_err(|error| match error {
                Problem::Here(what) => SchemaError::new(name, line, what),
                Problem::Elsewhere(error) => error,
            })?;
        }
        if schema.entries.is_empty() {
            return Err(SchemaError::new(name, None, "it has no [[message]]"));
        }
        schema.types.sort_unstable();
        Ok(schema)
    }

    fn add(&mut self, spec: &EntrySpec, files: Files<'_>) -> Result<(), Problem> {
        let index = self.entries.len();
        let types: &[u16] = match &spec.types {
            Types::One(one) => &[*one],
            Types::Several(several) => several,
            Types::Any(any) if any == "*" && self.other.is_none() => {
                self.other = Some(index);
                &[]
            }
            Types::Any(any) if any == "*" => return Err("there are two entries for type \"*\"".into()),
            Types::Any(any) => return Err(format!("type {any:?}: give a number, a list of numbers, or \"*\"").into()),
        };
        for number in types {
            if self.types.iter().any(|(other, _)| other == number) {
                return Err(format!("there are two entries for type {number}").into());
            }
            self.types.push((*number, index));
        }
        let (decoder, shapes) = decoder(spec, files)?;
        let first_table = self.tables.len();
        for (name, shape) in shapes {
            let name = name.or_else(|| spec.name.clone()).ok_or("it needs a name")?;
            let layout = match &decoder {
                Decoder::Fixed(layout) => Some(Arc::clone(layout)),
                _ => None,
            };
            self.tables.push(Table { time: time(&shape, spec)?, name, shape, layout });
        }
        for (at, table) in self.tables.iter().enumerate() {
            check_name(&table.name)?;
            if self.tables[..at].iter().any(|other| other.name == table.name) {
                return Err(format!("there are two messages of the name {:?}", table.name).into());
            }
        }
        self.entries.push(Entry { decoder, first_table });
        Ok(())
    }

    /// The tables that its messages belong to.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// The types of the messages of a table.
    pub fn types(&self, table: usize) -> impl Iterator<Item = u16> {
        let has = move |entry: &Entry| {
            let end = self.entries.iter().map(|other| other.first_table).find(|first| *first > entry.first_table);
            (entry.first_table..end.unwrap_or(self.tables.len())).contains(&table)
        };
        (0..u16::MAX).filter(move |msg_type| self.entry(*msg_type).is_some_and(has))
    }

    #[inline]
    fn entry(&self, msg_type: u16) -> Option<&Entry> {
        let listed = self.types.binary_search_by_key(&msg_type, |(known, _)| *known);
        let index = listed.ok().and_then(|at| self.types.get(at)).map(|(_, entry)| *entry).or(self.other)?;
        self.entries.get(index)
    }

    /// Whether messages of a type have this layout: the same one, not one that is equal.
    #[cfg(feature = "arrow")]
    #[inline]
    pub(crate) fn has_layout(&self, msg_type: u16, layout: &Arc<Layout>) -> bool {
        let decoder = self.entry(msg_type).map(|entry| &entry.decoder);
        matches!(decoder, Some(Decoder::Fixed(own)) if Arc::ptr_eq(own, layout))
    }

    /// The table that a message belongs to: an index of [`Schema::tables`]; None if the schema says nothing about its
    /// type.
    ///
    /// # Errors
    /// The payload does not say which message it is.
    #[inline]
    pub fn table_of(&self, msg_type: u16, payload: &[u8]) -> Result<Option<usize>, Undecodable> {
        let Some(entry) = self.entry(msg_type) else { return Ok(None) };
        Ok(Some(match &entry.decoder {
            Decoder::Sbe(codec) => entry.first_table + codec.table_of(payload)?,
            _ => entry.first_table,
        }))
    }

    /// Whether a payload can be decoded.
    ///
    /// # Errors
    /// It can't; this is why.
    pub fn check(&self, msg_type: u16, payload: &[u8]) -> Result<(), Undecodable> {
        self.decode(msg_type, payload, &mut Ignore)
    }

    /// Passes the values of a payload to `sink`; nothing if the schema says nothing about its type.
    ///
    /// # Errors
    /// The payload is not what the schema says. Values before that have been passed.
    #[inline]
    pub fn decode<S: Sink>(&self, msg_type: u16, payload: &[u8], sink: &mut S) -> Result<(), Undecodable> {
        let Some(entry) = self.entry(msg_type) else { return Ok(()) };
        match &entry.decoder {
            Decoder::Fixed(layout) => layout.decode(payload, sink),
            Decoder::Sbe(codec) => codec.decode(payload, sink),
            Decoder::Proto(codec) => codec.decode(payload, sink),
            Decoder::Fix(codec) => {
                sink.json(&codec.json(payload)?);
                Ok(())
            }
            Decoder::Json => {
                sink.json(&json_text(payload)?);
                Ok(())
            }
        }
    }

    /// Appends a payload as JSON on one line, and returns the name of its table. None, and nothing is appended, if the
    /// schema says nothing about its type.
    ///
    /// # Errors
    /// The payload is not what the schema says; nothing is appended.
    #[inline]
    pub fn json(&self, msg_type: u16, payload: &[u8], out: &mut Vec<u8>) -> Result<Option<&str>, Undecodable> {
        let Some(table) = self.table_of(msg_type, payload)? else { return Ok(None) };
        let start = out.len();
        self.decode(msg_type, payload, &mut Json::new(out)).inspect_err(|_| out.truncate(start))?;
        Ok(self.tables.get(table).map(|table| table.name.as_str()))
    }
}

/// Decodes payloads to JSON.
pub trait Decode {
    /// What a message is called; empty if it has no name. None if nothing is known about its type.
    ///
    /// # Errors
    /// The payload does not say which message it is.
    fn name(&mut self, msg_type: u16, payload: &[u8]) -> Result<Option<&str>, Undecodable>;

    /// Appends a payload as JSON on one line.
    ///
    /// # Errors
    /// The payload can't be decoded. What was appended is of no use.
    fn json(&mut self, msg_type: u16, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Undecodable>;
}

impl Decode for &Schema {
    #[inline]
    fn name(&mut self, msg_type: u16, payload: &[u8]) -> Result<Option<&str>, Undecodable> {
        let table = self.table_of(msg_type, payload)?.and_then(|table| self.tables.get(table));
        Ok(table.map(|table| table.name.as_str()))
    }

    #[inline]
    fn json(&mut self, msg_type: u16, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Undecodable> {
        self.decode(msg_type, payload, &mut Json::new(out))
    }
}

/// What is wrong with an entry: in `schema.toml`, or in a file that it names.
enum Problem {
    Here(String),
    Elsewhere(SchemaError),
}

impl From<SchemaError> for Problem {
    fn from(error: SchemaError) -> Self {
        Self::Elsewhere(error)
    }
}

impl From<String> for Problem {
    fn from(what: String) -> Self {
        Self::Here(what)
    }
}

impl From<&str> for Problem {
    fn from(what: &str) -> Self {
        Self::Here(what.to_owned())
    }
}

type Tables = Vec<(Option<String>, Shape)>;

const NO_FILE: &str = "it needs a file";

fn decoder(spec: &EntrySpec, files: Files<'_>) -> Result<(Decoder, Tables), Problem> {
    use FormatName::{Fix, Fixed, Json, Protobuf, Sbe};
    let keys: [(&str, bool, &[FormatName]); 9] = [
        ("fields", spec.fields.is_some(), &[Fixed]),
        ("endian", spec.endian.is_some(), &[Fixed]),
        ("may_be_longer", spec.may_be_longer.is_some(), &[Fixed]),
        ("file", spec.file.is_some(), &[Sbe, Protobuf]),
        ("message", spec.message.is_some(), &[Sbe, Protobuf]),
        ("header", spec.header.is_some(), &[Sbe]),
        ("names", spec.names.is_some(), &[Fix]),
        ("separator", spec.separator.is_some(), &[Fix]),
        ("name", spec.name.is_some(), &[Fixed, Protobuf, Fix, Json]),
    ];
    if let Some((key, ..)) = keys.iter().find(|(_, is_set, formats)| *is_set && !formats.contains(&spec.format)) {
        return Err(format!("{key} is not a key of this format").into());
    }
    Ok(match spec.format {
        Fixed => {
            let fields = spec.fields.as_deref().ok_or("it needs fields")?;
            let layout = Layout::new(fields, spec.endian, spec.may_be_longer.unwrap_or(false))?;
            let shape = layout.shape();
            (Decoder::Fixed(Arc::new(layout)), vec![(None, shape)])
        }
        Sbe => {
            let codec = sbe::compile(spec.file.as_deref().ok_or(NO_FILE)?, files)?;
            let codec = match (spec.header, &spec.message) {
                (Some(false), Some(message)) => codec.without_header(message)?,
                (None | Some(true), None) => codec,
                _ => return Err("header = false and message = NAME belong together".into()),
            };
            let tables = codec.tables();
            (Decoder::Sbe(codec), tables)
        }
        Protobuf => {
            let message = spec.message.as_deref().ok_or("it needs message, the full name of a message type")?;
            let codec = proto::Codec::new(spec.file.as_deref().ok_or(NO_FILE)?, message, files)?;
            let shape = codec.shape().clone();
            (Decoder::Proto(codec), vec![(None, shape)])
        }
        Fix => {
            let codec = fix::Codec::new(spec.names.as_ref(), spec.separator.as_deref())?;
            (Decoder::Fix(codec), vec![(None, Shape::Json)])
        }
        Json => (Decoder::Json, vec![(None, Shape::Json)]),
    })
}

fn time(shape: &Shape, spec: &EntrySpec) -> Result<Option<Time>, Problem> {
    Ok(match (&spec.time, shape) {
        (None, _) => None,
        (Some(name), Shape::Struct(fields)) => {
            let found = fields.iter().position(|field| field.name.as_str() == name);
            let field = found.ok_or_else(|| format!("time: there is no field {name:?}"))?;
            let unit = match fields.get(field).map(|field| &field.shape) {
                Some(Shape::Time(unit)) => *unit,
                Some(Shape::Unsigned(64) | Shape::Signed(64)) => spec.time_unit.unwrap_or(Unit::Ns),
                _ => return Err(format!("time: {name:?} is not a 64-bit integer").into()),
            };
            Some(Time { field, unit })
        }
        (Some(_), _) => return Err("time: this format has no fields that are known before".into()),
    })
}

/// Names become parts of file names.
fn check_name(name: &str) -> Result<(), Problem> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_good) {
        return Err(format!("name {name:?}: use 1 to {MAX_NAME} letters, digits, underscores and dots").into());
    }
    Ok(())
}

/// A payload that is JSON, on one line.
pub(crate) fn json_text(payload: &[u8]) -> Result<String, Undecodable> {
    let text = std::str::from_utf8(payload).map_err(|error| Undecodable::new(format!("it is not UTF-8: {error}")))?;
    serde_json::from_str::<serde::de::IgnoredAny>(text)
        .map_err(|error| Undecodable::new(format!("it is not JSON: {error}")))?;
    let mut line = text.trim_ascii().as_bytes().to_vec();
    one_line(0, &mut line);
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Reads a regular file of a bounded size, without following a symbolic link or waiting for a pipe's writer.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use rustix::fs::{Mode, OFlags};
    use std::io::{Error, ErrorKind};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("it has more than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}
