//! Columns of Arrow: each type of field becomes what the page says, and what can't be decoded leaves no trace.
#![cfg(feature = "arrow")]
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "common/ticker.rs"]
mod ticker;

use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::*;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use chronfs_decode::{Columns, Rows, Schema};
use proptest::prelude::*;

fn compile(text: &str) -> Arc<Schema> {
    let mut files = |name: &str| match name {
        "bus.xml" => Ok(include_bytes!("bus.xml").to_vec()),
        "ticker.xml" => Ok(ticker::XML.into()),
        "tree.proto" => Ok(TREE.into()),
        _ => Ok(ticker::PROTO.into()),
    };
    Arc::new(Schema::parse(text, &mut files).unwrap())
}

const TREE: &str = "syntax = \"proto3\"; message Tree { repeated Leaf leaves = 1; optional Leaf first = 2; Empty e = 3; \
                    map<string, int32> m = 4; } message Leaf { int32 n = 1; repeated string words = 2; } message Empty {}";

/// A batch of payloads of type 1.
fn batch(schema: &Arc<Schema>, payloads: &[&[u8]]) -> RecordBatch {
    let mut rows = Rows::new(Some(Arc::clone(schema)), Some(0));
    for (seq, payload) in (1..).zip(payloads) {
        rows.push(seq, 1_723_108_500_000_000_000 + seq, 1, payload, None);
    }
    rows.take().unwrap().unwrap()
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> &'a ArrayRef {
    batch.column_by_name(name).unwrap()
}

#[test]
fn every_type_of_a_fixed_layout_has_its_column() {
    let schema = compile(
        r#"
[[message]]
type = 1
name = "all"
format = "fixed"
time = "t_ms"
fields = [
    { name = "u8", type = "u8" }, { name = "i8", type = "i8" }, { name = "u16", type = "u16" },
    { name = "i16", type = "i16", endian = "big" }, { name = "u32", type = "u32" }, { name = "i32", type = "i32", null = -1 },
    { name = "u64", type = "u64" }, { name = "i64", type = "i64" }, { name = "f32", type = "f32" },
    { name = "f64", type = "f64" }, { name = "bool", type = "bool" }, { name = "text", type = "text[4]" },
    { name = "bytes", type = "bytes[2]" }, { name = "price", type = "i64", scale = 2 },
    { name = "side", type = "u8", names = { 66 = "buy" } }, { name = "t_s", type = "u32", time = "s" },
    { name = "t_ms", type = "i64", time = "ms" }, { name = "t_us", type = "i64", time = "us" },
    { name = "t_ns", type = "u64", time = "ns" }, { name = "list", type = "u16[2]" }, { name = "Seq", type = "u8" },
]
"#,
    );
    let mut payload = Vec::new();
    payload.extend([200_u8, 0xff]);
    payload.extend(60_000_u16.to_le_bytes());
    payload.extend((-2_i16).to_be_bytes());
    payload.extend(4_000_000_000_u32.to_le_bytes());
    payload.extend((-1_i32).to_le_bytes());
    payload.extend(u64::MAX.to_le_bytes());
    payload.extend(i64::MIN.to_le_bytes());
    payload.extend(1.5_f32.to_le_bytes());
    payload.extend((-0.25_f64).to_le_bytes());
    payload.push(2);
    payload.extend(b"ab\0\0\x01\xff");
    payload.extend((-12_345_i64).to_le_bytes());
    payload.push(66);
    payload.extend(1_723_108_500_u32.to_le_bytes());
    payload.extend(1_723_108_500_123_i64.to_le_bytes());
    payload.extend(1_723_108_500_123_456_i64.to_le_bytes());
    payload.extend(1_723_108_500_123_456_789_u64.to_le_bytes());
    payload.extend([1, 0, 2, 0, 9]);
    // A time that no column can hold; one byte too few.
    let mut late = payload.clone();
    let at = late.len() - 13;
    late[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    let short = &payload[1..];
    let batch = batch(&schema, &[&payload, &late, short, &payload]);

    let time = |unit| DataType::Timestamp(unit, Some("UTC".into()));
    let kinds: Vec<_> = batch.schema().fields().iter().map(|f| (f.name().clone(), f.data_type().clone())).collect();
    let item = batch.schema().field_with_name("list").unwrap().data_type().clone();
    assert!(matches!(&item, DataType::List(item) if *item.data_type() == DataType::UInt16));
    let expected = [
        ("seq", DataType::UInt64),
        ("timestamp", time(TimeUnit::Nanosecond)),
        ("exchange_time", time(TimeUnit::Nanosecond)),
        ("type", DataType::UInt16),
        ("u8", DataType::UInt8),
        ("i8", DataType::Int8),
        ("u16", DataType::UInt16),
        ("i16", DataType::Int16),
        ("u32", DataType::UInt32),
        ("i32", DataType::Int32),
        ("u64", DataType::UInt64),
        ("i64", DataType::Int64),
        ("f32", DataType::Float32),
        ("f64", DataType::Float64),
        ("bool", DataType::Boolean),
        ("text", DataType::Utf8),
        ("bytes", DataType::Binary),
        ("price", DataType::Decimal128(19, 2)),
        ("side", DataType::Utf8),
        ("t_s", time(TimeUnit::Millisecond)),
        ("t_ms", time(TimeUnit::Millisecond)),
        ("t_us", time(TimeUnit::Microsecond)),
        ("t_ns", time(TimeUnit::Nanosecond)),
        ("list", item),
        ("Seq_", DataType::UInt8),
        ("payload", DataType::Binary),
        ("undecoded", DataType::Utf8),
    ];
    assert_eq!(kinds, expected.map(|(name, kind)| (name.to_owned(), kind)));

    for row in [0, 3] {
        assert_eq!(column(&batch, "u8").as_primitive::<UInt8Type>().value(row), 200);
        assert_eq!(column(&batch, "i8").as_primitive::<Int8Type>().value(row), -1);
        assert_eq!(column(&batch, "u16").as_primitive::<UInt16Type>().value(row), 60_000);
        assert_eq!(column(&batch, "i16").as_primitive::<Int16Type>().value(row), -2);
        assert_eq!(column(&batch, "u32").as_primitive::<UInt32Type>().value(row), 4_000_000_000);
        assert!(column(&batch, "i32").is_null(row));
        assert_eq!(column(&batch, "u64").as_primitive::<UInt64Type>().value(row), u64::MAX);
        assert_eq!(column(&batch, "i64").as_primitive::<Int64Type>().value(row), i64::MIN);
        assert_eq!(column(&batch, "f32").as_primitive::<Float32Type>().value(row), 1.5);
        assert_eq!(column(&batch, "f64").as_primitive::<Float64Type>().value(row), -0.25);
        assert!(column(&batch, "bool").as_boolean().value(row));
        assert_eq!(column(&batch, "text").as_string::<i32>().value(row), "ab");
        assert_eq!(column(&batch, "bytes").as_binary::<i32>().value(row), b"\x01\xff");
        assert_eq!(column(&batch, "price").as_primitive::<Decimal128Type>().value_as_string(row), "-123.45");
        assert_eq!(column(&batch, "side").as_string::<i32>().value(row), "buy");
        let ms = |name: &str| column(&batch, name).as_primitive::<TimestampMillisecondType>().value(row);
        assert_eq!((ms("t_s"), ms("t_ms")), (1_723_108_500_000, 1_723_108_500_123));
        let us = column(&batch, "t_us").as_primitive::<TimestampMicrosecondType>().value(row);
        assert_eq!(us, 1_723_108_500_123_456);
        let ns = |name: &str| column(&batch, name).as_primitive::<TimestampNanosecondType>().value(row);
        assert_eq!((ns("t_ns"), ns("exchange_time")), (1_723_108_500_123_456_789, 1_723_108_500_123_000_000));
        let list = column(&batch, "list").as_list::<i32>().value(row);
        assert_eq!(list.as_primitive::<UInt16Type>().values(), &[1, 2]);
        assert_eq!(column(&batch, "Seq_").as_primitive::<UInt8Type>().value(row), 9);
        assert!(column(&batch, "payload").is_null(row) && column(&batch, "undecoded").is_null(row));
    }
    let reasons = [
        (1, "it has a value that its column can't hold".to_owned()),
        (2, format!("the layout has {} bytes, the payload {}", payload.len(), short.len())),
    ];
    for (row, reason) in reasons {
        assert!(batch.columns()[4..25].iter().all(|column| column.is_null(row)), "{row}");
        assert_eq!(column(&batch, "undecoded").as_string::<i32>().value(row), reason);
        assert_eq!(column(&batch, "payload").as_binary::<i32>().value(row).len(), payload.len() + 1 - row);
    }
}

#[test]
fn lists_of_structs_nest_and_what_is_absent_is_null() {
    let schema = compile(
        "[[message]]\ntype = 1\nname = \"tree\"\nformat = \"protobuf\"\nfile = \"tree.proto\"\nmessage = \"Tree\"\n",
    );
    // leaves: {n: 1, words: [a, b]}, {}; first: absent; e: there; then a message of nothing, and one that is cut.
    let full = b"\x0a\x08\x08\x01\x12\x01a\x12\x01b\x0a\x00\x1a\x00\x22\x05\x0a\x01k\x10\x07";
    let batch = batch(&schema, &[full, b"", &full[..5], full]);
    let leaves = column(&batch, "leaves").as_list::<i32>();
    assert_eq!([0, 1, 3].map(|row| leaves.value_length(row)), [2, 0, 2]);
    assert!(leaves.is_null(2) && !leaves.is_null(1));
    for row in [0, 3] {
        let leaves = leaves.value(row);
        let leaves = leaves.as_struct();
        assert_eq!(leaves.column(0).as_primitive::<Int32Type>().values(), &[1, 0]);
        let words = leaves.column(1).as_list::<i32>();
        assert_eq!((words.value_length(0), words.value_length(1)), (2, 0));
        assert_eq!(words.value(0).as_string::<i32>().value(1), "b");
        assert_eq!(column(&batch, "m").as_string::<i32>().value(row), "{\"k\":7}");
        assert_eq!(column(&batch, "e").as_string::<i32>().value(row), "{}");
    }
    assert!((0..4).all(|row| column(&batch, "first").is_null(row)));
    let undecoded = column(&batch, "undecoded");
    assert_eq!([0, 1, 2, 3].map(|row| undecoded.is_null(row)), [true, true, false, true]);
}

#[test]
fn messages_without_known_fields_are_a_column_of_json() {
    let schema = compile("[[message]]\ntype = 1\nname = \"raw\"\nformat = \"json\"\n");
    let batch = batch(&schema, &[b"{\"a\": 1}", b"{", b" [2]\n"]);
    let texts = column(&batch, "decoded").as_string::<i32>();
    assert_eq!((texts.value(0), texts.is_null(1), texts.value(2)), ("{\"a\": 1}", true, "[2]"));
    let payloads = column(&batch, "payload").as_binary::<i32>();
    assert_eq!((payloads.is_null(0), payloads.value(1)), (true, &b"{"[..]));
}

#[test]
fn what_was_recorded_is_the_same_in_columns_of_every_format() {
    let schema = compile(ticker::SCHEMA);
    for file in ticker::recordings() {
        let tickers = ticker::recorded(&file, 20_000);
        let columns = |msg_type: u16, bytes: fn(&ticker::Ticker) -> Vec<u8>| {
            let first = bytes(&tickers[0].ticker);
            let table = schema.table_of(msg_type, &first).unwrap().unwrap();
            let mut columns = Columns::new(&schema.tables()[table]);
            for recorded in &tickers {
                columns.append(&schema, msg_type, &bytes(&recorded.ticker)).unwrap();
            }
            columns.finish().unwrap()
        };
        let fixed = columns(1, ticker::Ticker::fixed);
        assert_eq!(fixed[2].len(), tickers.len());
        for (row, recorded) in tickers.iter().enumerate() {
            assert_eq!(fixed[1].as_string::<i32>().value(row), recorded.ticker.symbol);
            assert_eq!(fixed[2].as_primitive::<Decimal128Type>().value(row), i128::from(recorded.ticker.bid));
            assert_eq!(fixed[5].as_primitive::<UInt32Type>().value(row), recorded.ticker.ask_size);
        }
        let sbe = columns(2, ticker::Ticker::sbe);
        assert_eq!(fixed, sbe);
        let protobuf = columns(3, ticker::Ticker::protobuf);
        assert_eq!([&fixed[0], &fixed[1], &fixed[4]], [&protobuf[0], &protobuf[1], &protobuf[4]]);
        let bids = (protobuf[2].as_primitive::<Int64Type>(), fixed[2].as_primitive::<Decimal128Type>());
        assert!(bids.0.values().iter().zip(bids.1.values()).all(|(one, two)| i128::from(*one) == *two));
    }
}

proptest! {
    /// A payload that can't be decoded, wherever it fails, leaves the rows around it as they are.
    #[test]
    fn damaged_messages_leave_no_trace(places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>()) {
        let schema = compile(
            "[[message]]\ntype = 1\nformat = \"sbe\"\nfile = \"bus.xml\"\n\n[[message]]\ntype = 2\nname = \"tree\"\nformat = \
             \"protobuf\"\nfile = \"tree.proto\"\nmessage = \"Tree\"\n",
        );
        let tree = b"\x0a\x08\x08\x01\x12\x01a\x12\x01b\x0a\x00\x1a\x00\x22\x05\x0a\x01k\x10\x07".to_vec();
        let mut damaged = tree.clone();
        for (place, byte) in places {
            let at = place.index(damaged.len());
            damaged[at] = byte;
        }
        damaged.truncate(cut.index(damaged.len()) + 1);
        let table = schema.table_of(2, &tree).unwrap().unwrap();
        let rows = |payloads: &[&[u8]]| {
            let mut columns = Columns::new(&schema.tables()[table]);
            let results: Vec<_> = payloads.iter().map(|payload| columns.append(&schema, 2, payload).is_ok()).collect();
            (results, columns.finish().unwrap())
        };
        let (results, with) = rows(&[&tree, &damaged, &tree]);
        prop_assert_eq!(results[1], schema.check(2, &damaged).is_ok());
        let (_, without) = rows(&[&tree, &tree]);
        for (with, without) in with.iter().zip(&without) {
            prop_assert_eq!(with.len(), 3);
            prop_assert_eq!(&with.slice(0, 1), &without.slice(0, 1));
            prop_assert_eq!(&with.slice(2, 1), &without.slice(1, 1));
            prop_assert!(results[1] || with.is_null(1));
        }
    }
}
