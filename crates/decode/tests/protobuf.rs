//! Protobuf, by .proto files and by descriptor sets.
#![allow(clippy::unwrap_used, clippy::panic)]

use chronfs_decode::{Schema, Shape};
use proptest::prelude::*;

const PROTO: &str = r#"
    syntax = "proto3";
    package ticks;
    import "side.proto";
    import "google/protobuf/timestamp.proto";
    message Level { sint64 price = 1; uint32 size = 2; }
    message Quote {
        uint64 id = 1;
        string symbol = 2;
        Side side = 3;
        repeated Level bids = 4;
        repeated int32 codes = 5;
        optional double ratio = 6;
        bytes raw = 7;
        map<string, Level> by_venue = 8;
        google.protobuf.Timestamp at = 9;
        Tree tree = 10;
        oneof kind { bool is_open = 11; float weight = 12; }
    }
    message Tree { int32 value = 1; repeated Tree children = 2; }
"#;
const SIDE: &str = "syntax = \"proto3\"; package ticks; enum Side { NONE = 0; BUY = 1; }";
const ENTRY: &str =
    "[[message]]\ntype = 1\nname = \"quote\"\nformat = \"protobuf\"\nfile = \"t.proto\"\nmessage = \"ticks.Quote\"\n";

fn compile(entry: &str, proto: &str) -> Result<Schema, String> {
    let mut files = |name: &str| match name {
        "t.proto" => Ok(proto.as_bytes().to_vec()),
        "side.proto" => Ok(SIDE.as_bytes().to_vec()),
        _ => Err("there is no such file".to_owned()),
    };
    Schema::parse(entry, &mut files).map_err(|error| error.to_string())
}

fn json(schema: &Schema, payload: &[u8]) -> Result<String, String> {
    let mut out = Vec::new();
    schema.json(1, payload, &mut out).map_err(|error| error.to_string())?;
    Ok(String::from_utf8(out).unwrap())
}

/// id 7, symbol, side 1, two bids, packed codes, ratio, raw, a map entry, a time, a tree, is_open.
fn quote() -> Vec<u8> {
    let mut bytes = b"\x08\x07\x12\x03BTC\x18\x01\x22\x04\x08\x03\x10\x05\x22\x02\x10\x01\x2a\x03\x01\xac\x02".to_vec();
    bytes.extend_from_slice(b"\x31\0\0\0\0\0\0\xe0\x3f\x3a\x02\x00\xff\x42\x08\x0a\x02ab\x12\x02\x10\x04");
    bytes.extend_from_slice(b"\x4a\x02\x08\x05\x52\x06\x08\x01\x12\x02\x08\x02\x58\x01");
    bytes
}

#[test]
fn a_message_of_every_kind_of_field() {
    let expected = concat!(
        r#"{"id":7,"symbol":"BTC","side":"BUY","bids":[{"price":-2,"size":5},{"price":0,"size":1}],"codes":[1,300],"#,
        r#""ratio":0.5,"raw":"AP8=","by_venue":{"ab":{"size":4}},"at":{"seconds":5,"nanos":0},"#,
        r#""tree":{"value":1,"children":[{"value":2}]},"is_open":true,"weight":null}"#
    );
    assert_eq!(json(&compile(ENTRY, PROTO).unwrap(), &quote()).unwrap(), expected);
}

#[test]
fn a_descriptor_set_is_the_same_as_its_source() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("t.proto"), PROTO).unwrap();
    std::fs::write(dir.path().join("side.proto"), SIDE).unwrap();
    let mut compiler = protox::Compiler::new([dir.path()]).unwrap();
    let set = compiler.include_imports(true).open_file("t.proto").unwrap().encode_file_descriptor_set();
    let mut files = |_: &str| Ok(set.clone());
    let by_set = Schema::parse(&ENTRY.replace("t.proto", "t.desc"), &mut files).unwrap();
    let by_source = compile(ENTRY, PROTO).unwrap();
    assert_eq!(json(&by_set, &quote()).unwrap(), json(&by_source, &quote()).unwrap());
}

#[test]
fn what_is_absent_is_null_or_the_default() {
    let text = json(&compile(ENTRY, PROTO).unwrap(), b"").unwrap();
    assert!(text.starts_with(r#"{"id":0,"symbol":"","side":"NONE","bids":[],"codes":[],"ratio":null,"#), "{text}");
}

#[test]
fn shapes_are_known_before() {
    let schema = compile(ENTRY, PROTO).unwrap();
    let Shape::Struct(fields) = schema.tables()[0].shape() else { panic!("not a struct") };
    let shape = |name: &str| &fields.iter().find(|field| field.name.as_str() == name).unwrap().shape;
    assert_eq!(*shape("id"), Shape::Unsigned(64));
    assert_eq!(*shape("side"), Shape::Text);
    assert_eq!(*shape("by_venue"), Shape::Json);
    assert!(matches!(shape("bids"), Shape::List(inner) if matches!(**inner, Shape::Struct(_))));
}

#[test]
fn wrong_schemas_are_refused_with_the_reason() {
    for (entry, proto, reason) in [
        (ENTRY.replace("ticks.Quote", "Quote"), PROTO.to_owned(), "there is no message \"Quote\"; it has"),
        (
            ENTRY.replace("t.proto", "../t.proto"),
            PROTO.to_owned(),
            "../t.proto: name a file in the directory of schema.toml",
        ),
        (ENTRY.replace("t.proto", "none.proto"), PROTO.to_owned(), "none.proto: there is no such file"),
        (ENTRY.to_owned(), PROTO.replace("uint64 id", "uint65 id"), "t.proto"),
        (ENTRY.to_owned(), PROTO.replace("side.proto", "other.proto"), "other.proto: there is no such file"),
        (ENTRY.to_owned(), "message a {".repeat(90_000), "nests deeper"),
    ] {
        let error = compile(&entry, &proto).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn imports_do_not_leave_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let queue = dir.path().join("q");
    std::fs::create_dir(&queue).unwrap();
    std::fs::write(dir.path().join("side.proto"), SIDE).unwrap();
    std::fs::write(queue.join("schema.toml"), ENTRY).unwrap();
    std::os::unix::fs::symlink(dir.path(), queue.join("elsewhere")).unwrap();
    std::fs::write(queue.join("t.proto"), PROTO.replace("side.proto", "elsewhere/side.proto")).unwrap();
    let error = Schema::load(&queue).unwrap_err().to_string();
    assert!(error.contains("elsewhere/side.proto: name a file in the directory of schema.toml"), "{error}");
    for import in ["../side.proto".to_owned(), dir.path().join("side.proto").display().to_string()] {
        std::fs::write(queue.join("t.proto"), PROTO.replace("side.proto", &import)).unwrap();
        Schema::load(&queue).unwrap_err();
    }
    std::fs::write(queue.join("t.proto"), PROTO).unwrap();
    std::fs::copy(dir.path().join("side.proto"), queue.join("side.proto")).unwrap();
    Schema::load(&queue).unwrap();
}

proptest! {
    #[test]
    fn any_payload_is_json_or_refused(payload in proptest::collection::vec(any::<u8>(), 0..100), places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let schema = compile(ENTRY, PROTO).unwrap();
        let mut damaged = quote();
        for (place, byte) in places {
            let at = place.index(damaged.len());
            damaged[at] = byte;
        }
        for payload in [&payload, &damaged] {
            if let Ok(text) = json(&schema, payload) {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
            }
        }
    }

    #[test]
    fn a_damaged_descriptor_set_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut files = |_: &str| Ok(bytes.clone());
        let _ = Schema::parse(&ENTRY.replace("t.proto", "t.desc"), &mut files);
    }
}
