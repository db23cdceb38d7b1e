//! Protobuf, by a descriptor set or a .proto file.
//!
//! Fields have the names of the .proto file, enums those of their values; 64-bit integers are numbers. What has no fixed
//! shape (maps, messages that contain themselves) is JSON.

use std::borrow::Cow;
use std::collections::BTreeMap;

use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage as _,
    Value,
};

use crate::error::Undecodable;
use crate::fixed::MAX_NAME;
use crate::json::Json;
use crate::schema::Files;
use crate::sink::{Budget, Field, Name, Shape, Sink};

/// How deep messages have a shape; deeper ones are JSON.
const MAX_DEPTH: usize = 8;
/// Most fields that have a shape.
const MAX_FIELDS: usize = 4096;
/// Most .proto files of a schema, and how deep braces may nest in one: its parser is recursive.
const MAX_FILES: usize = 64;
const MAX_BRACES: usize = 32;

/// One message type.
#[derive(Debug)]
pub(crate) struct Codec {
    message: MessageDescriptor,
    shape: Shape,
}

impl Codec {
    /// `file` is a .proto file, or a descriptor set as `protoc --descriptor_set_out --include_imports` writes it.
    pub(crate) fn new(file: &str, message: &str, files: Files<'_>) -> Result<Self, String> {
        let pool = if file.ends_with(".proto") { compile(file, files)? } else { descriptors(file, files)? };
        for message in pool.all_messages() {
            if message.fields().any(|field| field.name().len() > MAX_NAME) {
                return Err(format!("{file}: a name has at most {MAX_NAME} bytes"));
            }
        }
        let message = pool.get_message_by_name(message).ok_or_else(|| {
            let mut names: Vec<String> = pool.all_messages().map(|message| message.full_name().to_owned()).collect();
            names.truncate(20);
            format!("{file}: there is no message {message:?}; it has {}", names.join(", "))
        })?;
        let mut left = MAX_FIELDS;
        let shape = message_shape(&message, &mut vec![message.full_name().to_owned()], &mut left);
        if matches!(shape, Shape::Json) {
            return Err(format!("{file}: the message has more than {MAX_FIELDS} fields"));
        }
        Ok(Self { message, shape })
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    pub(crate) fn decode<S: Sink>(&self, payload: &[u8], sink: &mut S) -> Result<(), Undecodable> {
        let message = DynamicMessage::decode(self.message.clone(), payload)
            .map_err(|error| Undecodable::new(format!("it is not a {}: {error}", self.message.name())))?;
        Walk { budget: Budget::of(payload) }.message(&message, &self.shape, sink)
    }
}

fn read(name: &str, files: Files<'_>) -> Result<Vec<u8>, String> {
    files(name).map_err(|error| format!("{name}: {error}"))
}

fn descriptors(file: &str, files: Files<'_>) -> Result<DescriptorPool, String> {
    DescriptorPool::decode(read(file, files)?.as_slice()).map_err(|error| format!("{file}: {error}"))
}

/// Compiles a .proto file with its imports, which lie beside it.
fn compile(file: &str, files: Files<'_>) -> Result<DescriptorPool, String> {
    let mut sources: BTreeMap<String, protox::file::File> = BTreeMap::new();
    let mut waiting = vec![file.to_owned()];
    while let Some(name) = waiting.pop() {
        if sources.contains_key(&name) || name.starts_with("google/protobuf/") {
            continue;
        }
        if sources.len() == MAX_FILES {
            return Err(format!("{file}: it imports more than {MAX_FILES} files"));
        }
        let text = String::from_utf8(read(&name, files)?).map_err(|_| format!("{name}: it is not UTF-8"))?;
        if nesting(&text) > MAX_BRACES {
            return Err(format!("{name}: it nests deeper than {MAX_BRACES}"));
        }
        let parsed = protox::file::File::from_source(&name, &text).map_err(|error| described(&name, &error))?;
        waiting.extend(parsed.file_descriptor_proto().dependency.iter().cloned());
        sources.insert(name, parsed);
    }
    let mut compiler = protox::Compiler::with_file_resolver(Resolver { sources });
    compiler.include_imports(true).open_file(file).map_err(|error| described(file, &error))?;
    Ok(compiler.descriptor_pool())
}

fn described(file: &str, error: &protox::Error) -> String {
    let text = format!("{error:?}").lines().next().unwrap_or_default().to_owned();
    if text.starts_with(file) { text } else { format!("{file}: {text}") }
}

/// How deep brackets of any kind nest.
fn nesting(text: &str) -> usize {
    let (mut depth, mut most) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'{' | b'[' | b'(' | b'<' => depth += 1,
            b'}' | b']' | b')' | b'>' => depth = depth.saturating_sub(1),
            _ => {}
        }
        most = most.max(depth);
    }
    most
}

struct Resolver {
    sources: BTreeMap<String, protox::file::File>,
}

impl protox::file::FileResolver for Resolver {
    fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
        match self.sources.get(name) {
            Some(file) => Ok(file.clone()),
            None => protox::file::GoogleFileResolver::new().open_file(name),
        }
    }
}

fn message_shape(message: &MessageDescriptor, open: &mut Vec<String>, left: &mut usize) -> Shape {
    let mut fields = Vec::new();
    for field in message.fields() {
        let Some(rest) = left.checked_sub(1) else { return Shape::Json };
        *left = rest;
        let shape = if field.is_map() {
            Shape::Json
        } else {
            let shape = kind_shape(&field.kind(), open, left);
            if field.cardinality() == Cardinality::Repeated { Shape::List(Box::new(shape)) } else { shape }
        };
        fields.push(Field { name: Name::new(field.name()), shape });
    }
    Shape::Struct(fields)
}

fn kind_shape(kind: &Kind, open: &mut Vec<String>, left: &mut usize) -> Shape {
    match kind {
        Kind::Bool => Shape::Bool,
        Kind::Float => Shape::Float(32),
        Kind::Double => Shape::Float(64),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Shape::Signed(32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Shape::Signed(64),
        Kind::Uint32 | Kind::Fixed32 => Shape::Unsigned(32),
        Kind::Uint64 | Kind::Fixed64 => Shape::Unsigned(64),
        Kind::String | Kind::Enum(_) => Shape::Text,
        Kind::Bytes => Shape::Bytes,
        Kind::Message(message) => {
            let name = message.full_name().to_owned();
            if open.len() > MAX_DEPTH || open.contains(&name) || message.fields().len() == 0 {
                return Shape::Json;
            }
            open.push(name);
            let shape = message_shape(message, open, left);
            open.pop();
            shape
        }
    }
}

/// One payload on its way into a sink.
struct Walk {
    budget: Budget,
}

impl Walk {
    fn message<S: Sink>(&mut self, message: &DynamicMessage, shape: &Shape, sink: &mut S) -> Result<(), Undecodable> {
        let Shape::Struct(fields) = shape else { return self.as_json(&Value::Message(message.clone()), None, sink) };
        sink.begin_struct();
        for (descriptor, field) in message.descriptor().fields().zip(fields) {
            self.budget.spend(1)?;
            sink.key(&field.name);
            if descriptor.supports_presence() && !message.has_field(&descriptor) {
                sink.null();
            } else {
                self.value(&message.get_field(&descriptor), &descriptor, &field.shape, sink)?;
            }
        }
        sink.end_struct();
        Ok(())
    }

    fn value<S: Sink>(
        &mut self,
        value: &Value,
        field: &FieldDescriptor,
        shape: &Shape,
        sink: &mut S,
    ) -> Result<(), Undecodable> {
        match (value, shape) {
            (Value::List(values), Shape::List(shape)) => {
                sink.begin_list();
                for value in values {
                    self.budget.spend(1)?;
                    self.value(value, field, shape, sink)?;
                }
                sink.end_list();
            }
            (Value::Message(message), Shape::Struct(_)) => self.message(message, shape, sink)?,
            (Value::List(_) | Value::Map(_) | Value::Message(_), _) => self.as_json(value, Some(field), sink)?,
            _ => scalar(value, field, sink),
        }
        Ok(())
    }

    /// What has no shape of its own.
    fn as_json<S: Sink>(
        &mut self,
        value: &Value,
        field: Option<&FieldDescriptor>,
        sink: &mut S,
    ) -> Result<(), Undecodable> {
        let mut text = Vec::new();
        self.json(value, field, &mut text)?;
        sink.json(&String::from_utf8_lossy(&text));
        Ok(())
    }

    fn json(&mut self, value: &Value, field: Option<&FieldDescriptor>, out: &mut Vec<u8>) -> Result<(), Undecodable> {
        self.budget.spend(1)?;
        match value {
            Value::Message(message) => {
                out.push(b'{');
                for (at, descriptor) in
                    message.descriptor().fields().filter(|field| message.has_field(field)).enumerate()
                {
                    if at > 0 {
                        out.push(b',');
                    }
                    crate::json::text(descriptor.name(), out);
                    out.push(b':');
                    self.json(&message.get_field(&descriptor), Some(&descriptor), out)?;
                }
                out.push(b'}');
            }
            Value::List(values) => {
                out.push(b'[');
                for (at, value) in values.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    self.json(value, field, out)?;
                }
                out.push(b']');
            }
            Value::Map(map) => {
                let mut entries: Vec<(Cow<'_, str>, &Value)> =
                    map.iter().map(|(key, value)| (key_text(key), value)).collect();
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                let of_value = field.and_then(|field| match field.kind() {
                    Kind::Message(entry) => entry.get_field_by_name("value"),
                    _ => None,
                });
                out.push(b'{');
                for (at, (key, value)) in entries.into_iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    crate::json::text(&key, out);
                    out.push(b':');
                    self.json(value, of_value.as_ref(), out)?;
                }
                out.push(b'}');
            }
            _ => match field {
                Some(field) => scalar(value, field, &mut Json::new(out)),
                None => out.extend_from_slice(b"null"),
            },
        }
        Ok(())
    }
}

fn key_text(key: &MapKey) -> Cow<'_, str> {
    match key {
        MapKey::Bool(key) => key.to_string().into(),
        MapKey::I32(key) => key.to_string().into(),
        MapKey::I64(key) => key.to_string().into(),
        MapKey::U32(key) => key.to_string().into(),
        MapKey::U64(key) => key.to_string().into(),
        MapKey::String(key) => key.as_str().into(),
    }
}

fn scalar<S: Sink>(value: &Value, field: &FieldDescriptor, sink: &mut S) {
    match value {
        Value::Bool(value) => sink.bool(*value),
        Value::I32(value) => sink.signed(i64::from(*value)),
        Value::I64(value) => sink.signed(*value),
        Value::U32(value) => sink.unsigned(u64::from(*value)),
        Value::U64(value) => sink.unsigned(*value),
        Value::F32(value) => sink.single(*value),
        Value::F64(value) => sink.double(*value),
        Value::String(value) => sink.text(value),
        Value::Bytes(value) => sink.bytes(value),
        Value::EnumNumber(number) => match field.kind() {
            Kind::Enum(kind) => match kind.get_value(*number) {
                Some(value) => sink.text(value.name()),
                None => sink.text(&number.to_string()),
            },
            _ => sink.text(&number.to_string()),
        },
        // These have been dealt with.
        Value::Message(_) | Value::List(_) | Value::Map(_) => sink.null(),
    }
}
