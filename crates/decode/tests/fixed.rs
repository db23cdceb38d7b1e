//! Fixed layouts: every type is read as it was written, and no schema or payload does harm.
#![allow(clippy::unwrap_used, clippy::panic)]

use chronfs_decode::{MAX_FILE, Schema};
use proptest::prelude::*;

fn schema(fields: &str) -> Result<Schema, String> {
    let text = format!("[[message]]\ntype = 1\nname = \"m\"\nformat = \"fixed\"\n{fields}");
    Schema::parse(&text, &mut |_| Err("no files".to_owned())).map_err(|error| error.to_string())
}

fn json(schema: &Schema, payload: &[u8]) -> Result<String, String> {
    let mut out = b"before".to_vec();
    let result = schema.json(1, payload, &mut out).map_err(|error| error.to_string());
    let text = String::from_utf8(out).unwrap();
    let text = text.strip_prefix("before").unwrap().to_owned();
    if result.is_err() {
        assert_eq!(text, "", "nothing is appended");
    }
    result.map(|_| text)
}

#[test]
fn every_type_is_read_in_both_byte_orders() {
    let types = ["u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64"];
    let fields: Vec<String> = types.iter().map(|t| format!("{{ name = \"{t}\", type = \"{t}\" }}")).collect();
    let expected = concat!(
        r#"{"u8":200,"i8":-3,"u16":60000,"i16":-30000,"u32":4000000000,"i32":-2000000000,"#,
        r#""u64":18446744073709551615,"i64":-9223372036854775808,"f32":1.5,"f64":-0.1}"#
    );
    macro_rules! payload {
        ($to:ident) => {
            [
                &200_u8.$to()[..],
                &(-3_i8).$to(),
                &60_000_u16.$to(),
                &(-30_000_i16).$to(),
                &4_000_000_000_u32.$to(),
                &(-2_000_000_000_i32).$to(),
                &u64::MAX.$to(),
                &i64::MIN.$to(),
                &1.5_f32.$to(),
                &(-0.1_f64).$to(),
            ]
            .concat()
        };
    }
    let little = schema(&format!("fields = [{}]", fields.join(", "))).unwrap();
    assert_eq!(json(&little, &payload!(to_le_bytes)).unwrap(), expected);
    let big = schema(&format!("endian = \"big\"\nfields = [{}]", fields.join(", "))).unwrap();
    assert_eq!(json(&big, &payload!(to_be_bytes)).unwrap(), expected);
}

#[test]
fn text_bytes_arrays_nulls_times_and_names() {
    let fields = r#"fields = [
        { name = "symbol", type = "text[8]", offset = 4 },
        { name = "key", type = "bytes[2]" },
        { name = "is_open", type = "bool" },
        { name = "sizes", type = "u16[3]", null = 65535 },
        { name = "tags", type = "text[1][2]" },
        { name = "side", type = "i8", names = { "-1" = "sell", 1 = "buy" } },
        { name = "at", type = "u64", time = "ns" },
    ]"#;
    let schema = schema(fields).unwrap();
    let payload = b"____BTC  \0xx\xff\xfe\x02\x01\0\xff\xff\x03\0ab\xff\x07\0\0\0\0\0\0\0";
    let expected = concat!(
        r#"{"symbol":"BTC","key":"//4=","is_open":true,"sizes":[1,null,3],"tags":["a","b"],"#,
        r#""side":"sell","at":7}"#
    );
    assert_eq!(json(&schema, payload).unwrap(), expected);
    assert_eq!(json(&schema, &payload[1..]).unwrap_err(), "the layout has 32 bytes, the payload 31");
    assert!(json(&schema, &[payload.as_slice(), b"x"].concat()).is_err());
}

#[test]
fn a_layout_that_may_be_longer_takes_longer_payloads() {
    let schema = schema("may_be_longer = true\nfields = [{ name = \"a\", type = \"u8\" }]").unwrap();
    assert_eq!(json(&schema, b"\x01rest").unwrap(), r#"{"a":1}"#);
    assert_eq!(json(&schema, b"").unwrap_err(), "the layout has at least 1 bytes, the payload 0");
}

#[test]
fn wrong_layouts_are_refused_with_the_reason() {
    let long = "x".repeat(257);
    for (fields, reason) in [
        ("fields = []".to_owned(), "1 to 4096 fields"),
        (String::new(), "it needs fields"),
        ("fields = [{ name = \"a\", type = \"text[0]\" }]".into(), "is not a type"),
        ("fields = [{ name = \"a\", type = \"u8[0]\" }]".into(), "1 to 4096 elements"),
        ("fields = [{ name = \"a\", type = \"u8[99999999999999999999]\" }]".into(), "is not a type"),
        ("fields = [{ name = \"a\", type = \"u8\", offset = 9223372036854775807 }]".into(), "ends after"),
        ("fields = [{ name = \"a\", type = \"bytes[2000000]\" }]".into(), "ends after"),
        ("fields = [{ name = \"a\", type = \"u8\" }, { name = \"a\", type = \"u8\" }]".into(), "two of this name"),
        ("fields = [{ name = \"a\", type = \"f64\", scale = 2 }]".into(), "scale is for integers"),
        ("fields = [{ name = \"a\", type = \"u8\", scale = 2, time = \"ns\" }]".into(), "choose one"),
        ("fields = [{ name = \"a\", type = \"u8\", scale = 19 }]".into(), "at most 18"),
        ("fields = [{ name = \"a\", type = \"u8\", nul = 1 }]".into(), "unknown field `nul`"),
        (format!("fields = [{{ name = \"{long}\", type = \"u8\" }}]"), "1 to 256 bytes"),
        ("separator = \"|\"".into(), "separator"),
    ] {
        let error = schema(&fields).unwrap_err();
        assert!(error.contains(reason), "{fields}: {error}");
        assert!(error.starts_with("schema.toml:"), "{error}");
    }
}

#[test]
fn arrays_that_overlap_can_not_multiply_the_work() {
    let field = |at: usize| format!("{{ name = \"a{at}\", type = \"u8[4096]\", offset = 0 }}");
    let fields: Vec<String> = (0..4096).map(field).collect();
    let error = schema(&format!("fields = [{}]", fields.join(", "))).unwrap_err();
    assert!(error.contains("overlap"), "{error}");
}

#[test]
fn types_have_one_entry() {
    let entry =
        |types: &str, name: &str| format!("[[message]]\ntype = {types}\nname = \"{name}\"\nformat = \"json\"\n");
    let parse = |text: String| Schema::parse(&text, &mut |_| Err(String::new())).map_err(|error| error.to_string());
    assert!(parse(entry("1", "a") + &entry("[2, 3]", "b") + &entry("\"*\"", "c")).is_ok());
    for (text, reason) in [
        (entry("1", "a") + &entry("[2, 1]", "b"), "two entries for type 1"),
        (entry("\"*\"", "a") + &entry("\"*\"", "b"), "two entries for type"),
        (entry("1", "a") + &entry("2", "a"), "two messages of the name"),
        (entry("1", "a/b"), "letters, digits"),
        (entry("\"x\"", "a"), "or \"*\""),
        (String::new(), "no [[message]]"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn only_regular_files_of_a_bounded_size_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("schema.toml");
    assert!(Schema::load(dir.path()).unwrap().is_none());
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(Schema::load(dir.path()).unwrap_err().to_string().contains("cannot read it"));
    std::fs::remove_file(&path).unwrap();
    std::fs::File::create(&path).unwrap().set_len(MAX_FILE + 1).unwrap();
    assert!(Schema::load(dir.path()).unwrap_err().to_string().contains("more than"));
}

proptest! {
    #[test]
    fn decimals_and_text_of_any_payload_are_json(payload in proptest::collection::vec(any::<u8>(), 40)) {
        let fields = r#"fields = [
            { name = "a", type = "u64", scale = 3 }, { name = "b", type = "i64", scale = 18 },
            { name = "c", type = "text[16]" }, { name = "d", type = "f64" }, { name = "e", type = "f32", offset = 0 },
        ]"#;
        let text = json(&schema(fields).unwrap(), &payload).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(value.as_object().unwrap().len(), 5);
        prop_assert!(!text.contains('\n'));
    }

    #[test]
    fn no_text_is_a_panic(text in "(\\[\\[message\\]\\]\n|type = |name = |format = |fields = |\"[a-z0-9\\[\\]]{0,9}\"|[0-9]{1,4}|\n|\\{|\\}|\\[|\\]|,| ){0,60}") {
        let _ = Schema::parse(&text, &mut |_| Err(String::new()));
    }
}
