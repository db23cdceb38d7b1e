//! Payloads by every kind of schema, and schemas.

use std::sync::OnceLock;

use chronfs_decode::{Columns, Schema};

const SCHEMA: &str = r#"
[[message]]
type = 0
name = "fixed"
format = "fixed"
may_be_longer = true
fields = [
    { name = "a", type = "u64", scale = 3 }, { name = "b", type = "text[4]" }, { name = "c", type = "f64" },
    { name = "d", type = "i16[3]", endian = "big", null = -1 }, { name = "e", type = "bytes[3]" },
    { name = "f", type = "i64", time = "s", null = 0 }, { name = "g", type = "u64[2]", time = "ns", endian = "big" },
    { name = "h", type = "i8", names = { "-1" = "sell", 1 = "buy" } }, { name = "i", type = "bool", offset = 1 },
]

[[message]]
type = 1
format = "sbe"
file = "bus.xml"

[[message]]
type = 2
name = "proto"
format = "protobuf"
file = "t.proto"
message = "M"

[[message]]
type = 3
name = "fix"
format = "fix"

[[message]]
type = 4
name = "json"
format = "json"
"#;

const XML: &str = include_str!("../../crates/decode/tests/bus.xml");
const PROTO: &str = "syntax = \"proto3\"; message M { uint64 a = 1; string b = 2; repeated M c = 3; map<string, M> d = 4; \
                     optional double e = 5; bytes f = 6; repeated sint32 g = 7; }";

fn compiled() -> &'static Schema {
    static COMPILED: OnceLock<Schema> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let mut files = |name: &str| Ok(if name == "bus.xml" { XML.into() } else { PROTO.into() });
        Schema::parse(SCHEMA, &mut files).expect("the schema")
    })
}

/// The first byte is the type, the rest the payload.
pub(crate) fn payload(bytes: &[u8]) {
    let schema = compiled();
    let Some((msg_type, payload)) = bytes.split_first() else { return };
    let msg_type = u16::from(msg_type % 5);
    let json = || {
        let mut out = Vec::new();
        let is_decoded = schema.json(msg_type, payload, &mut out).is_ok();
        (is_decoded, out)
    };
    let (is_decoded, out) = json();
    assert_eq!(is_decoded, schema.check(msg_type, payload).is_ok());
    assert_eq!((is_decoded, &out), (json().0, &json().1));
    assert!(std::str::from_utf8(&out).is_ok() && !out.contains(&b'\n'));
    assert!(is_decoded || out.is_empty());
}

/// The same, as rows of Arrow.
pub(crate) fn columns(bytes: &[u8]) {
    let Some((msg_type, payload)) = bytes.split_first() else { return };
    rows(compiled(), u16::from(msg_type % 5), payload);
}

/// A payload is the same row wherever it stands, and one that can't be decoded is null.
fn rows(schema: &Schema, msg_type: u16, payload: &[u8]) {
    let Ok(Some(table)) = schema.table_of(msg_type, payload) else { return };
    let mut columns = Columns::new(&schema.tables()[table]);
    let mut append = |payload: &[u8]| columns.append(schema, msg_type, payload).is_ok();
    let cut = &payload[..payload.len() / 2];
    let cut = if schema.table_of(msg_type, cut) == Ok(Some(table)) { cut } else { payload };
    let is_decoded = [append(payload), append(payload), append(cut), append(payload)];
    assert_eq!([is_decoded[1], is_decoded[3]], [is_decoded[0]; 2]);
    assert!(!is_decoded[0] || schema.check(msg_type, payload).is_ok());
    for array in columns.finish().expect("columns") {
        assert_eq!(array.len(), 4);
        assert_eq!((&array.slice(0, 1), &array.slice(0, 1)), (&array.slice(1, 1), &array.slice(3, 1)));
        assert!((0..4).all(|row| is_decoded[row] || array.is_null(row)));
    }
}

/// A schema.toml, a zero byte, and the file that it names.
pub(crate) fn schema(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let file = bytes.get(end + 1..).unwrap_or_default();
    let Ok(text) = std::str::from_utf8(&bytes[..end]) else { return };
    if let Ok(schema) = Schema::parse(text, &mut |_| Ok(file.to_vec())) {
        for msg_type in 0..3 {
            let _ = schema.json(msg_type, file, &mut Vec::new());
            rows(&schema, msg_type, file);
        }
    }
}

/// Where mutations of schemas begin.
pub(crate) fn schema_seeds() -> [Vec<u8>; 3] {
    let entry = |format: &str, file: &str, more: &str| {
        format!("[[message]]\ntype = 1\nformat = \"{format}\"\nfile = \"f.{file}\"\n{more}\0").into_bytes()
    };
    let with = |mut head: Vec<u8>, file: &str| {
        head.extend_from_slice(file.as_bytes());
        head
    };
    [
        SCHEMA.as_bytes().to_vec(),
        with(entry("sbe", "xml", ""), XML),
        with(entry("protobuf", "proto", "name = \"m\"\nmessage = \"M\"\n"), PROTO),
    ]
}
