//! SBE: every kind of field and other versions of the schema, hostile payloads and hostile schemas.
#![allow(clippy::unwrap_used, clippy::panic)]

use chronfs_decode::Schema;
use proptest::prelude::*;

const XML: &str = include_str!("bus.xml");
const ENTRY: &str = "[[message]]\ntype = 1\nformat = \"sbe\"\nfile = \"bus.xml\"\n";

fn compile(entry: &str, xml: &str) -> Result<Schema, String> {
    let mut files = |name: &str| {
        assert_eq!(name, "bus.xml");
        Ok(xml.as_bytes().to_vec())
    };
    Schema::parse(entry, &mut files).map_err(|error| error.to_string())
}

fn json(schema: &Schema, payload: &[u8]) -> Result<(String, String), String> {
    let mut out = Vec::new();
    let name = schema.json(1, payload, &mut out).map_err(|error| error.to_string())?.unwrap().to_owned();
    Ok((name, String::from_utf8(out).unwrap()))
}

fn header(block_len: u16, template: u16, version: u16) -> Vec<u8> {
    [block_len, template, 91, version].iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The block of a Trade of version 0: everything but the fields that version 2 has added.
fn block() -> Vec<u8> {
    let mut block = 1_723_108_500_000_000_000_u64.to_le_bytes().to_vec();
    block.extend_from_slice(b"BTC-USD\0");
    block.extend_from_slice(&(-123_456_i64).to_le_bytes());
    block.extend_from_slice(b"B\x09");
    block.extend_from_slice(&u32::MAX.to_le_bytes());
    block.extend_from_slice(&f64::NAN.to_le_bytes());
    block.extend([1_u16, 2, 3].iter().flat_map(|level| level.to_le_bytes()));
    block.extend_from_slice(&1_600_u16.to_le_bytes());
    block.extend_from_slice(&i64::MIN.to_le_bytes());
    block.push(7);
    block.extend_from_slice(&15_i32.to_le_bytes());
    block.push(3_u8);
    block.push(0);
    block
}

const FIELDS: &str = concat!(
    r#"{"time":1723108500000000000,"symbol":"BTC-USD","price":-1234.56,"side":"Buy","flags":["last","auction"],"#,
    r#""maybe":null,"ratio":null,"levels":[1,2,3],"venue":"TEST","taker":"Sell","#,
    r#""engine":{"capacity":1600,"strike":null,"fuel":"7"},"amount":15000,"grade":null,"#
);

fn data(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat()
}

fn group(block_len: u16, count: u16, entries: &[u8]) -> Vec<u8> {
    [&block_len.to_le_bytes()[..], &count.to_le_bytes(), entries].concat()
}

/// Two fills, the first with a party.
fn fills() -> Vec<u8> {
    let party = group(8, 1, &[&b"DESK    "[..], &data("n\u{f6}te".as_bytes())].concat());
    let first = [&5_u32.to_le_bytes()[..], &party].concat();
    let second = [&6_u32.to_le_bytes()[..], &group(8, 0, b"")].concat();
    group(4, 2, &[first, second].concat())
}

const FILLS: &str =
    r#""fills":[{"quantity":5,"parties":[{"party":"DESK","note":"nöte"}]},{"quantity":6,"parties":[]}],"#;

fn version_0() -> Vec<u8> {
    let block = block();
    [header(u16::try_from(block.len()).unwrap(), 1, 0), block, fills(), data(b"hello")].concat()
}

fn version_2() -> Vec<u8> {
    let block = [block(), 17_u16.to_le_bytes().to_vec()].concat();
    let legs = group(1, 2, b"\x01\xfe");
    let raw = [&2_u16.to_le_bytes()[..], b"\x00\xff"].concat();
    [header(u16::try_from(block.len()).unwrap(), 1, 2), block, fills(), legs, data(b"hello"), raw].concat()
}

#[test]
fn every_kind_of_field_is_decoded() {
    let schema = compile(ENTRY, XML).unwrap();
    let (name, text) = json(&schema, &version_2()).unwrap();
    let rest = r#""legs":[{"leg":1},{"leg":-2}],"comment":"hello","raw":"AP8="}"#;
    assert_eq!((name.as_str(), text), ("Trade", format!("{FIELDS}\"venue_id\":17,{FILLS}{rest}")));
    let (name, text) = json(&schema, &[header(4, 2, 2), vec![9, 0, 0, 0]].concat()).unwrap();
    assert_eq!((name.as_str(), text.as_str()), ("Heartbeat", r#"{"count":9}"#));
}

#[test]
fn an_older_version_lacks_what_came_later() {
    let (_, text) = json(&compile(ENTRY, XML).unwrap(), &version_0()).unwrap();
    let rest = r#""legs":[],"comment":"hello","raw":null}"#;
    assert_eq!(text, format!("{FIELDS}\"venue_id\":null,{FILLS}{rest}"));
}

#[test]
fn a_newer_version_may_have_longer_blocks_and_more_at_its_end() {
    let schema = compile(ENTRY, XML).unwrap();
    let newer = [header(6, 2, 3), vec![9, 0, 0, 0, 1, 2, 3]].concat();
    assert_eq!(json(&schema, &newer).unwrap().1, r#"{"count":9}"#);
    let same = [header(6, 2, 2), vec![9, 0, 0, 0, 1, 2, 3]].concat();
    assert_eq!(json(&schema, &same).unwrap_err(), "1 bytes are left over at its end");
}

#[test]
fn payloads_without_a_header_are_one_message() {
    let entry = format!("{ENTRY}header = false\nmessage = \"Heartbeat\"\n");
    assert_eq!(json(&compile(&entry, XML).unwrap(), &[1, 0, 0, 0]).unwrap().1, r#"{"count":1}"#);
    assert!(compile(&entry.replace("Heart", "Head"), XML).unwrap_err().contains("no \"Headbeat\""));
    assert!(compile(&format!("{ENTRY}header = false\n"), XML).unwrap_err().contains("belong together"));
}

#[test]
fn what_is_wrong_with_a_payload_is_said() {
    let schema = compile(ENTRY, XML).unwrap();
    let whole = version_2();
    let mut foreign = whole.clone();
    foreign[4] = 7;
    let mut unknown = whole.clone();
    unknown[2] = 9;
    let mut short_block = [header(2, 2, 2), vec![0, 0]].concat();
    for (payload, reason) in [
        (&whole[..3], "the message header needs 8 bytes, the payload has 3"),
        (&whole[..30], "a block needs 71 bytes, the payload has 30"),
        (&whole[..whole.len() - 1], "data raw needs"),
        (&foreign, "it is of schema 7, not of 91"),
        (&unknown, "the schema has no template 9"),
        (&short_block, "field count ends after its block of 2 bytes"),
    ] {
        let error = json(&schema, payload).unwrap_err();
        assert!(error.starts_with(reason), "{error}");
    }
    short_block.clear();
    assert!(json(&schema, &short_block).is_err());
}

#[test]
fn groups_of_nothing_can_not_multiply_the_work() {
    // Entries without a byte: 65,535 of 65,535 of them would be four billion.
    let body = r#"<group name="a" id="1"><group name="b" id="2"><group name="c" id="3"/></group></group>"#;
    let xml = XML.replace(
        "<sbe:message name=\"Heartbeat\" id=\"2\" blockLength=\"4\">",
        "<sbe:message name=\"Hollow\" id=\"3\">",
    );
    let xml = xml.replace("<field name=\"count\" id=\"1\" type=\"uint32\"/>", body);
    let schema = compile(ENTRY, &xml).unwrap();
    let mut payload = header(0, 3, 2);
    payload.extend(group(0, 65_535, &group(0, 65_535, b"").repeat(3)));
    assert!(json(&schema, &payload).is_err());
    let inner = group(0, 65_535, b"\0\0\xff\xff\0\0\xff\xff");
    payload.truncate(8);
    payload.extend(group(0, 65_535, &inner.repeat(100)));
    assert!(json(&schema, &payload).is_err());
}

#[test]
fn hostile_schemas_are_refused() {
    let wrong = |from: &str, to: &str| compile(ENTRY, &XML.replacen(from, to, 1)).unwrap_err();
    for (from, to, reason) in [
        ("primitiveType=\"int64\"", "primitiveType=\"int65\"", "bus.xml:24: \"int65\" is not a primitiveType"),
        ("type=\"symbol\"", "type=\"simbol\"", "there is no type \"simbol\""),
        ("<ref name=\"strike\" type=\"price\"/>", "<ref name=\"strike\" type=\"engine\"/>", "nest deeper than 16"),
        ("name=\"templateId\"", "name=\"template\"", "has no integer \"templateId\""),
        ("id=\"2\" blockLength", "id=\"1\" blockLength", "two messages have the id 1"),
        ("length=\"8\"", "length=\"99999999\"", "more than 65536"),
        ("name=\"time\"", "name=\"symbol\"", "two of the name \"symbol\""),
        ("</sbe:messageSchema>", "", "bus.xml:"),
        ("<types>", "<types>\u{1}", "bus.xml:"),
    ] {
        let error = wrong(from, to);
        assert!(error.contains(reason), "{to}: {error}");
    }
    // Composites that double twenty times.
    let doubling: String = (1..=14)
        .map(|n| {
            let refs = format!("<ref name=\"a\" type=\"d{}\"/><ref name=\"b\" type=\"d{}\"/>", n - 1, n - 1);
            format!("<composite name=\"d{n}\">{refs}</composite>")
        })
        .collect();
    let base = "<composite name=\"d0\"><type name=\"x\" primitiveType=\"int8\"/></composite>";
    let xml = XML.replace("<types>", &format!("<types>{base}{doubling}"));
    let xml = xml.replace("name=\"engine\" id=\"11\" type=\"engine\"", "name=\"engine\" id=\"11\" type=\"d14\"");
    assert!(compile(ENTRY, &xml).unwrap_err().contains("more than 20000 fields"));
    let deep = format!("{}{}", "<a>".repeat(90_000), "</a>".repeat(90_000));
    assert!(compile(ENTRY, &deep).is_err());
}

#[test]
fn types_are_included_from_files_beside_it() {
    let (head, rest) = XML.split_once("<types>").unwrap();
    let (types, rest) = rest.split_once("</types>").unwrap();
    let with = |name: &str, included: &str| {
        let schema = format!("{head}<xi:include xmlns:xi=\"http://www.w3.org/2001/XInclude\" href=\"{name}\"/>{rest}");
        let mut files = |name: &str| match name {
            "bus.xml" => Ok(schema.as_bytes().to_vec()),
            "types.xml" => Ok(included.as_bytes().to_vec()),
            name => Err(format!("{name:?} was asked for")),
        };
        Schema::parse(ENTRY, &mut files).map_err(|error| error.to_string())
    };
    let types = format!("<types>\n{types}</types>");
    let payload = version_2();
    let whole = json(&compile(ENTRY, XML).unwrap(), &payload).unwrap();
    assert_eq!(json(&with("types.xml", &types).unwrap(), &payload).unwrap(), whole);
    for (name, types, reason) in [
        ("../types.xml", types.clone(), "bus.xml:"),
        ("../types.xml", types.clone(), "../types.xml: name a file in the directory of schema.toml"),
        ("/etc/passwd", types.clone(), "/etc/passwd: name a file"),
        ("none.xml", types.clone(), "\"none.xml\" was asked for"),
        ("types.xml", types.replacen("int64", "int65", 1), "types.xml:"),
        ("types.xml", "<types>".to_owned(), "types.xml:1:"),
    ] {
        let error = with(name, &types).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    let many = "types.xml\"/><xi:include xmlns:xi=\"http://www.w3.org/2001/XInclude\" href=\"".repeat(16) + "types.xml";
    assert!(with(&many, &types).unwrap_err().contains("more than 16 files"));
}

proptest! {
    #[test]
    fn any_payload_is_json_or_refused(payload in proptest::collection::vec(any::<u8>(), 0..200), places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let schema = compile(ENTRY, XML).unwrap();
        let mut damaged = version_2();
        for (place, byte) in places {
            let at = place.index(damaged.len());
            damaged[at] = byte;
        }
        let plausible = [header(u16::try_from(payload.len() / 2).unwrap(), 1, 2), payload.clone()].concat();
        for payload in [&payload, &damaged, &plausible] {
            if let Ok((_, text)) = json(&schema, payload) {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
            }
        }
    }

    #[test]
    fn a_damaged_schema_is_no_panic(places in proptest::collection::vec((any::<prop::sample::Index>(), "[ -~]{0,3}"), 1..8), payload in proptest::collection::vec(any::<u8>(), 0..64)) {
        let mut xml = XML.to_owned();
        for (place, text) in places {
            let at = place.index(xml.len());
            xml.replace_range(at..at + 1, &text);
        }
        if let Ok(schema) = compile(ENTRY, &xml) {
            let _ = json(&schema, &version_2());
            let _ = json(&schema, &[header(4, 2, 2), payload].concat());
        }
    }
}
