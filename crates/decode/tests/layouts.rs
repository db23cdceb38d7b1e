//! Random fixed layouts and payloads: the columns, which are filled many payloads at a time, hold what each payload yields
//! by itself.
#![cfg(feature = "arrow")]
#![allow(clippy::unwrap_used, clippy::panic)]

use arrow_array::cast::AsArray as _;
use arrow_array::types::*;
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, TimeUnit};
use chronfs_decode::{Column, Columns, Name, Schema, Shape, Sink, Unit};
use proptest::prelude::*;
use proptest::sample::select;

/// The values of a payload, one after the other.
#[derive(Default)]
struct Values(Vec<String>);

impl Sink for Values {
    fn begin_struct(&mut self) {}
    fn key(&mut self, _name: &Name) {}
    fn end_struct(&mut self) {}
    fn begin_list(&mut self) {
        self.0.push("[".into());
    }
    fn end_list(&mut self) {
        self.0.push("]".into());
    }
    fn null(&mut self) {
        self.0.push("null".into());
    }
    fn bool(&mut self, value: bool) {
        self.0.push(value.to_string());
    }
    fn unsigned(&mut self, value: u64) {
        self.0.push(value.to_string());
    }
    fn signed(&mut self, value: i64) {
        self.0.push(value.to_string());
    }
    // All bits: there are many that are no number.
    fn single(&mut self, value: f32) {
        self.0.push(value.to_bits().to_string());
    }
    fn double(&mut self, value: f64) {
        self.0.push(value.to_bits().to_string());
    }
    fn decimal(&mut self, value: i128, scale: u8) {
        self.0.push(format!("{value}e-{scale}"));
    }
    fn text(&mut self, value: &str) {
        self.0.push(format!("{value:?}"));
    }
    fn bytes(&mut self, value: &[u8]) {
        self.0.push(format!("{value:x?}"));
    }
    fn json(&mut self, value: &str) {
        panic!("{value}");
    }
}

/// The values of a payload, or why no row has them.
fn by_itself(schema: &Schema, payload: &[u8]) -> Result<Vec<String>, String> {
    let mut values = Values::default();
    schema.decode(1, payload, &mut values).map_err(|error| error.to_string())?;
    let is_too_late = |column: &Column| {
        let factor = match column.shape() {
            Shape::Time(Unit::S) => 1000,
            Shape::List(shape) if *shape == Shape::Time(Unit::S) => 1000,
            Shape::Time(_) => 1,
            Shape::List(shape) if matches!(*shape, Shape::Time(_)) => 1,
            _ => return false,
        };
        let mut times = Values::default();
        column.decode(payload, &mut times);
        times.0.iter().filter_map(|time| time.parse().ok()).any(|time: i128| i64::try_from(time * factor).is_err())
    };
    if schema.tables()[0].layout().unwrap().columns().iter().any(is_too_late) {
        return Err("it has a value that its column can't hold".to_owned());
    }
    Ok(values.0)
}

/// Passes a value of a column on.
fn put(array: &ArrayRef, row: usize, shape: &Shape, values: &mut Values) {
    macro_rules! number {
        ($type:ty) => {
            array.as_primitive::<$type>().value(row)
        };
    }
    if array.is_null(row) {
        return values.null();
    }
    match (shape, array.data_type()) {
        (Shape::List(shape), _) => {
            values.begin_list();
            let list = array.as_list::<i32>().value(row);
            (0..list.len()).for_each(|at| put(&list, at, shape, values));
            values.end_list();
        }
        (Shape::Bool, _) => values.bool(array.as_boolean().value(row)),
        (Shape::Unsigned(8), _) => values.unsigned(number!(UInt8Type).into()),
        (Shape::Unsigned(16), _) => values.unsigned(number!(UInt16Type).into()),
        (Shape::Unsigned(32), _) => values.unsigned(number!(UInt32Type).into()),
        (Shape::Unsigned(_), _) => values.unsigned(number!(UInt64Type)),
        (Shape::Signed(8), _) => values.signed(number!(Int8Type).into()),
        (Shape::Signed(16), _) => values.signed(number!(Int16Type).into()),
        (Shape::Signed(32), _) => values.signed(number!(Int32Type).into()),
        (Shape::Signed(_), _) => values.signed(number!(Int64Type)),
        (Shape::Float(32), _) => values.single(number!(Float32Type)),
        (Shape::Float(_), _) => values.double(number!(Float64Type)),
        (Shape::Decimal { scale, .. }, _) => values.decimal(number!(Decimal128Type), *scale),
        (Shape::Time(Unit::S), _) => values.signed(number!(TimestampMillisecondType) / 1000),
        (_, DataType::Timestamp(TimeUnit::Millisecond, _)) => values.signed(number!(TimestampMillisecondType)),
        (_, DataType::Timestamp(TimeUnit::Microsecond, _)) => values.signed(number!(TimestampMicrosecondType)),
        (_, DataType::Timestamp(..)) => values.signed(number!(TimestampNanosecondType)),
        (Shape::Text, _) => values.text(array.as_string::<i32>().value(row)),
        (Shape::Bytes, _) => values.bytes(array.as_binary::<i32>().value(row)),
        (shape, kind) => panic!("{shape:?} {kind}"),
    }
}

/// The fields of a layout, in TOML.
fn fields() -> impl Strategy<Value = Vec<String>> {
    let integers = ["u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"];
    let special = prop_oneof![
        4 => Just(String::new()),
        2 => (0..19_u8).prop_map(|scale| format!(", scale = {scale}")),
        2 => select(vec!["s", "ms", "us", "ns"]).prop_map(|unit| format!(", time = \"{unit}\"")),
        1 => Just(", names = { 0 = \"none\", 1 = \"\", \"-1\" = \"minus one\" }".to_owned()),
    ];
    let null =
        prop_oneof![3 => Just(String::new()), 1 => select(vec![-1, 0, 1, 255]).prop_map(|n| format!(", null = {n}"))];
    let integer = (select(integers.to_vec()), special, null).prop_map(|(kind, a, b)| (kind.to_owned(), a + &b));
    let other = prop_oneof![
        select(vec!["f32", "f64", "bool"]).prop_map(str::to_owned),
        (select(vec!["text", "bytes"]), 1..12_u8).prop_map(|(kind, len)| format!("{kind}[{len}]")),
    ];
    let kind = prop_oneof![3 => integer, 1 => other.prop_map(|kind| (kind, String::new()))];
    let count = prop_oneof![3 => Just(String::new()), 1 => (1..5_u8).prop_map(|count| format!("[{count}]"))];
    let offset = prop_oneof![4 => Just(String::new()), 1 => (0..40_u8).prop_map(|at| format!(", offset = {at}"))];
    let endian = select(vec!["", "", ", endian = \"big\""]);
    let field = (kind, count, offset, endian)
        .prop_map(|((kind, more), count, offset, endian)| format!("type = \"{kind}{count}\"{more}{offset}{endian}"));
    proptest::collection::vec(field, 1..8)
}

/// Bytes of which many are such as mean something.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => select(vec![0, 1, 0xff, b' ', b'a', 0x7f, 0x80]), 2 => any::<u8>()];
    proptest::collection::vec(byte, 1..200)
}

proptest! {
    #[test]
    fn columns_hold_what_each_payload_yields_by_itself(
        fields in fields(),
        may_be_longer in any::<bool>(),
        payloads in proptest::collection::vec((bytes(), prop_oneof![8 => Just(0), 1 => -2..3_isize]), 1..20),
        times in prop_oneof![4 => 1..4_usize, 1 => 100..400_usize],
    ) {
        let fields: Vec<_> = (0..).zip(fields).map(|(at, field): (u32, _)| format!("{{ name = \"f{at}\", {field} }}")).collect();
        let text = format!(
            "[[message]]\ntype = 1\nname = \"m\"\nformat = \"fixed\"\nmay_be_longer = {may_be_longer}\nfields = [{}]",
            fields.join(", ")
        );
        let schema = Schema::parse(&text, &mut |_| Err(String::new())).unwrap();
        let table = &schema.tables()[0];
        let (len, Shape::Struct(shapes)) = (table.layout().unwrap().len(), table.shape()) else { panic!("{text}") };
        let payload = |(bytes, more): &(Vec<u8>, isize)| -> Vec<u8> {
            bytes.iter().copied().cycle().take(len.saturating_add_signed(*more)).collect()
        };
        let payloads: Vec<_> = payloads.iter().map(payload).collect();
        let expected: Vec<_> = payloads.iter().map(|payload| by_itself(&schema, payload)).collect();

        let mut columns = Columns::new(table);
        let mut results = Vec::new();
        for _ in 0..times {
            results.extend(payloads.iter().map(|payload| columns.append(&schema, 1, payload).map_err(|e| e.to_string())));
        }
        prop_assert_eq!(columns.len(), results.len());
        let arrays = columns.finish().unwrap();
        prop_assert!(columns.is_empty() && arrays.len() == shapes.len());
        for (row, result) in results.iter().enumerate() {
            let mut values = Values::default();
            arrays.iter().zip(shapes).for_each(|(array, field)| put(array, row, &field.shape, &mut values));
            match &expected[row % payloads.len()] {
                Err(reason) => {
                    prop_assert_eq!(result, &Err(reason.clone()));
                    prop_assert!(values.0.iter().all(|value| value == "null"));
                }
                Ok(expected) => {
                    prop_assert_eq!(result, &Ok(()));
                    prop_assert_eq!(&values.0, expected);
                }
            }
        }
        // What was collected before is gone.
        let _ = columns.append(&schema, 1, &payloads[0]);
        prop_assert!(columns.finish().unwrap().iter().all(|array| array.len() == 1));
    }
}
