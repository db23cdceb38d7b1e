//! Payloads by every kind of schema, and schemas.

use std::sync::OnceLock;

use chronfs::decode::Schema;

const SCHEMA: &str = r#"
[[message]]
type = 0
name = "fixed"
format = "fixed"
fields = [
    { name = "a", type = "u64", scale = 3 }, { name = "b", type = "text[4]" }, { name = "c", type = "f64" },
    { name = "d", type = "i16[3]", endian = "big", null = -1 }, { name = "e", type = "bytes[3]" },
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

/// The first byte is the type, the rest the payload.
pub(crate) fn payload(bytes: &[u8]) {
    static COMPILED: OnceLock<Schema> = OnceLock::new();
    let schema = COMPILED.get_or_init(|| {
        let mut files = |name: &str| Ok(if name == "bus.xml" { XML.into() } else { PROTO.into() });
        Schema::parse(SCHEMA, &mut files).expect("the schema")
    });
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

/// A schema.toml, a zero byte, and the file that it names.
pub(crate) fn schema(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let file = bytes.get(end + 1..).unwrap_or_default();
    let Ok(text) = std::str::from_utf8(&bytes[..end]) else { return };
    if let Ok(schema) = Schema::parse(text, &mut |_| Ok(file.to_vec())) {
        for msg_type in 0..3 {
            let _ = schema.json(msg_type, file, &mut Vec::new());
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
