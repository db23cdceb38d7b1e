//! Messages that others have published, with what they say is in them. They are put together here, from these values; that
//! they are the published ones, byte for byte, is what their length and checksum say. `published.md` has the sources.
#![allow(clippy::unwrap_used, clippy::panic)]

use chronfs_decode::Schema;
use serde_json::{Map, Value, json};

fn schema(entry: &str, files: &[(&str, &str)]) -> Schema {
    let mut read = |name: &str| {
        let found = files.iter().find(|(file, _)| *file == name);
        found.map(|(_, text)| text.as_bytes().to_vec()).ok_or_else(|| "there is no such file".to_owned())
    };
    Schema::parse(&format!("[[message]]\ntype = 1\n{entry}"), &mut read).unwrap_or_else(|error| panic!("{error}"))
}

fn decoded(schema: &Schema, payload: &[u8]) -> Result<Value, String> {
    let mut out = Vec::new();
    schema.json(1, payload, &mut out).map_err(|error| error.to_string())?;
    Ok(serde_json::from_slice(&out).unwrap())
}

#[track_caller]
fn assert_is_published(payload: &[u8], len: usize, crc: u32) {
    let mut sum = flate2::Crc::new();
    sum.update(payload);
    assert_eq!((payload.len(), format!("{:08x}", sum.sum())), (len, format!("{crc:08x}")));
}

mod sbe {
    use super::*;

    const TYPES: &str = r#"
        <types>
            <composite name="messageHeader">
                <type name="blockLength" primitiveType="uint16"/>
                <type name="templateId" primitiveType="uint16"/>
                <type name="schemaId" primitiveType="uint16"/>
                <type name="version" primitiveType="uint16"/>
            </composite>
            <composite name="groupSizeEncoding">
                <type name="blockLength" primitiveType="uint16"/>
                <type name="numInGroup" primitiveType="uint16"/>
            </composite>
            <composite name="text">
                <type name="length" primitiveType="uint32"/>
                <type name="varData" primitiveType="uint8" length="0" characterEncoding="UTF-8"/>
            </composite>
        </types>"#;
    /// Of version 1, which has two more fields than the captures.
    const CAR: &str = r#"
        <s:messageSchema xmlns:s="http://fixprotocol.io/2016/sbe" xmlns:xi="http://www.w3.org/2001/XInclude" id="1" version="1">
            <xi:include href="types.xml"/>
            <types>
                <composite name="Engine">
                    <type name="capacity" primitiveType="uint16"/>
                    <type name="numCylinders" primitiveType="uint8"/>
                    <type name="maxRpm" primitiveType="uint16" presence="constant">9000</type>
                    <type name="manufacturerCode" primitiveType="char" length="3"/>
                    <type name="fuel" primitiveType="char" presence="constant">Petrol</type>
                    <type name="efficiency" primitiveType="int8"/>
                    <ref name="boosterEnabled" type="Boolean"/>
                    <ref name="booster" type="Booster"/>
                </composite>
                <composite name="Booster">
                    <enum name="boostType" encodingType="char">
                        <validValue name="TURBO">T</validValue>
                        <validValue name="NITROUS">N</validValue>
                    </enum>
                    <type name="horsePower" primitiveType="uint8"/>
                </composite>
                <enum name="Boolean" encodingType="uint8">
                    <validValue name="F">0</validValue>
                    <validValue name="T">1</validValue>
                </enum>
                <enum name="Model" encodingType="char">
                    <validValue name="A">A</validValue>
                    <validValue name="C">C</validValue>
                </enum>
                <set name="Extras" encodingType="uint8">
                    <choice name="sunRoof">0</choice>
                    <choice name="sportsPack">1</choice>
                    <choice name="cruiseControl">2</choice>
                </set>
                <type name="numbers" primitiveType="uint32" length="4"/>
                <type name="vehicleCode" primitiveType="char" length="6"/>
                <type name="uuid" primitiveType="int64" length="2" presence="optional"/>
                <type name="count" primitiveType="uint8" presence="optional"/>
            </types>
            <s:message name="Car" id="1">
                <field name="serialNumber" id="1" type="uint64"/>
                <field name="modelYear" id="2" type="uint16"/>
                <field name="available" id="3" type="Boolean"/>
                <field name="code" id="4" type="Model"/>
                <field name="someNumbers" id="5" type="numbers"/>
                <field name="vehicleCode" id="6" type="vehicleCode"/>
                <field name="extras" id="7" type="Extras"/>
                <field name="discountedModel" id="8" type="Model" presence="constant" valueRef="Model.C"/>
                <field name="engine" id="9" type="Engine"/>
                <field name="uuid" id="100" type="uuid" sinceVersion="1"/>
                <field name="cupHolderCount" id="101" type="count" sinceVersion="1"/>
                <group name="fuelFigures" id="10" dimensionType="groupSizeEncoding">
                    <field name="speed" id="11" type="uint16"/>
                    <field name="mpg" id="12" type="float"/>
                    <data name="usageDescription" id="200" type="text"/>
                </group>
                <group name="performanceFigures" id="13" dimensionType="groupSizeEncoding">
                    <field name="octaneRating" id="14" type="uint8"/>
                    <group name="acceleration" id="15" dimensionType="groupSizeEncoding">
                        <field name="mph" id="16" type="uint16"/>
                        <field name="seconds" id="17" type="float"/>
                    </group>
                </group>
                <data name="manufacturer" id="18" type="text"/>
                <data name="model" id="19" type="text"/>
                <data name="activationCode" id="20" type="text"/>
            </s:message>
        </s:messageSchema>"#;

    fn shorts(numbers: &[u16]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn data(text: &str) -> Vec<u8> {
        [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat()
    }

    const FUEL: [(u16, f32, &str); 3] =
        [(30, 35.9, "Urban Cycle"), (55, 49.0, "Combined Cycle"), (75, 40.0, "Highway Cycle")];
    const ACCELERATION: [(u8, [(u16, f32); 3]); 2] =
        [(95, [(30, 4.0), (60, 7.5), (100, 12.2)]), (99, [(30, 3.8), (60, 7.1), (100, 11.8)])];

    fn car(numbers: [u32; 4]) -> Vec<u8> {
        let mut bytes = shorts(&[45, 1, 1, 0]);
        bytes.extend(1234_u64.to_le_bytes());
        bytes.extend(shorts(&[2013]));
        bytes.extend(b"\x01A");
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(b"abcdef\x06");
        bytes.extend(shorts(&[2000]));
        bytes.extend(b"\x04123\x23\x01N\xc8");
        bytes.extend(shorts(&[6, 3]));
        for (speed, mpg, usage) in FUEL {
            bytes.extend(shorts(&[speed]));
            bytes.extend(mpg.to_le_bytes());
            bytes.extend(data(usage));
        }
        bytes.extend(shorts(&[1, 2]));
        for (octane, figures) in ACCELERATION {
            bytes.push(octane);
            bytes.extend(shorts(&[6, 3]));
            for (mph, seconds) in figures {
                bytes.extend(shorts(&[mph]));
                bytes.extend(seconds.to_le_bytes());
            }
        }
        bytes.extend([data("Honda"), data("Civic VTi"), data("abcdef")].concat());
        bytes
    }

    #[test]
    fn the_car_of_the_examples_has_the_values_of_its_program() {
        let schema = schema("format = \"sbe\"\nfile = \"car.xml\"\n", &[("car.xml", CAR), ("types.xml", TYPES)]);
        for (numbers, crc) in [([1, 2, 3, 4], 0xb969_7284), ([0, 1, 2, 3], 0xd9a6_2093)] {
            let payload = car(numbers);
            assert_is_published(&payload, 207, crc);
            let expected = json!({
                "serialNumber": 1234, "modelYear": 2013, "available": "T", "code": "A", "someNumbers": numbers,
                "vehicleCode": "abcdef", "extras": ["sportsPack", "cruiseControl"], "discountedModel": "C",
                "engine": {
                    "capacity": 2000, "numCylinders": 4, "maxRpm": 9000, "manufacturerCode": "123", "fuel": "Petrol",
                    "efficiency": 35, "boosterEnabled": "T", "booster": {"boostType": "NITROUS", "horsePower": 200},
                },
                "uuid": null, "cupHolderCount": null,
                "fuelFigures": [
                    {"speed": 30, "mpg": 35.9, "usageDescription": "Urban Cycle"},
                    {"speed": 55, "mpg": 49.0, "usageDescription": "Combined Cycle"},
                    {"speed": 75, "mpg": 40.0, "usageDescription": "Highway Cycle"},
                ],
                "performanceFigures": [
                    {"octaneRating": 95, "acceleration": [
                        {"mph": 30, "seconds": 4.0}, {"mph": 60, "seconds": 7.5}, {"mph": 100, "seconds": 12.2},
                    ]},
                    {"octaneRating": 99, "acceleration": [
                        {"mph": 30, "seconds": 3.8}, {"mph": 60, "seconds": 7.1}, {"mph": 100, "seconds": 11.8},
                    ]},
                ],
                "manufacturer": "Honda", "model": "Civic VTi", "activationCode": "abcdef",
            });
            assert_eq!(decoded(&schema, &payload).unwrap(), expected);
        }
    }
}

mod protobuf {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use prost_reflect::prost::Message as _;
    use prost_reflect::{DescriptorPool, DynamicMessage, Kind, Value as Proto};

    use super::*;

    /// The types of which the message has fields: the name that follows `optional_`, `repeated_` or `default_`, the type,
    /// and the number of the optional one. A repeated one has a number that is 30 higher, one with a default 60.
    const FIELDS: [(&str, &str, u32); 26] = [
        ("int32", "int32", 1),
        ("int64", "int64", 2),
        ("uint32", "uint32", 3),
        ("uint64", "uint64", 4),
        ("sint32", "sint32", 5),
        ("sint64", "sint64", 6),
        ("fixed32", "fixed32", 7),
        ("fixed64", "fixed64", 8),
        ("sfixed32", "sfixed32", 9),
        ("sfixed64", "sfixed64", 10),
        ("float", "float", 11),
        ("double", "double", 12),
        ("bool", "bool", 13),
        ("string", "string", 14),
        ("bytes", "bytes", 15),
        ("nested_message", "Nested", 18),
        ("foreign_message", "Foreign", 19),
        ("import_message", "Import", 20),
        ("nested_enum", "NestedEnum", 21),
        ("foreign_enum", "ForeignEnum", 22),
        ("import_enum", "ImportEnum", 23),
        ("string_piece", "string", 24),
        ("cord", "string", 25),
        ("public_import_message", "PublicImport", 26),
        ("lazy_message", "Nested", 27),
        ("unverified_lazy_message", "Nested", 28),
    ];
    const TYPES: &str = "
        enum NestedEnum { FOO = 1; BAR = 2; BAZ = 3; }
        enum ForeignEnum { FOREIGN_FOO = 4; FOREIGN_BAR = 5; FOREIGN_BAZ = 6; }
        enum ImportEnum { IMPORT_FOO = 7; IMPORT_BAR = 8; IMPORT_BAZ = 9; }
        message Nested { optional int32 bb = 1; }
        message Foreign { optional int32 c = 1; }
        message Import { optional int32 d = 1; }
        message PublicImport { optional int32 e = 1; }";

    fn proto() -> String {
        let mut text = format!("syntax = \"proto2\"; {TYPES} message All {{\n");
        for (label, name, offset) in
            [("optional", "optional", 0), ("repeated", "repeated", 30), ("optional", "default", 60)]
        {
            for (field, kind, number) in FIELDS {
                let is_there = match name {
                    "repeated" => !matches!(number, 26 | 28),
                    "default" => !matches!(number, 18..=20 | 26..),
                    _ => true,
                };
                if is_there {
                    text += &format!("{label} {kind} {name}_{field} = {};\n", number + offset);
                }
            }
        }
        text += "optional group OptionalGroup = 16 { optional int32 a = 17; }\n";
        text += "repeated group RepeatedGroup = 46 { optional int32 a = 47; }\n";
        text + "oneof one { uint32 oneof_uint32 = 111; bytes oneof_bytes = 114; } }"
    }

    /// A value of a type, and what it is in JSON. `rank` is which of its values an enum has.
    fn value(kind: &Kind, number: u32, rank: usize) -> (Proto, Value) {
        let signed = i32::try_from(number).unwrap();
        let (text, is_small) = (number.to_string(), number < 300);
        match kind {
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => (Proto::I32(signed), json!(number)),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => (Proto::I64(signed.into()), json!(number)),
            Kind::Uint32 | Kind::Fixed32 => (Proto::U32(number), json!(number)),
            Kind::Uint64 | Kind::Fixed64 => (Proto::U64(number.into()), json!(number)),
            #[allow(clippy::cast_precision_loss)]
            Kind::Float => (Proto::F32(number as f32), json!(f64::from(number))),
            Kind::Double => (Proto::F64(number.into()), json!(f64::from(number))),
            Kind::Bool => (Proto::Bool(is_small), json!(is_small)),
            Kind::String => (Proto::String(text.clone()), json!(text)),
            Kind::Bytes => (Proto::Bytes(text.clone().into()), json!(BASE64_STANDARD.encode(text))),
            Kind::Enum(of) => {
                let value = of.values().nth(rank).unwrap();
                (Proto::EnumNumber(value.number()), json!(value.name()))
            }
            Kind::Message(of) => {
                let mut message = DynamicMessage::new(of.clone());
                let field = of.fields().next().unwrap();
                message.set_field(&field, Proto::I32(signed));
                (Proto::Message(message), json!({field.name(): number}))
            }
        }
    }

    #[test]
    fn the_golden_message_has_its_values() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("all.proto"), proto()).unwrap();
        let set = protox::compile(["all.proto"], [dir.path()]).unwrap();
        let all = DescriptorPool::from_file_descriptor_set(set).unwrap().get_message_by_name("All").unwrap();
        let (mut message, mut expected) = (DynamicMessage::new(all.clone()), Map::new());
        for field in all.fields() {
            let at = field.number();
            // What it would be if the group did not take a number for its field.
            let number = at + u32::from((14..=16).contains(&(at % 30)));
            let kind = field.kind();
            let (set, json) = match (at, field.is_list()) {
                (111, _) => {
                    expected.insert(field.name().to_owned(), Value::Null);
                    continue;
                }
                (114, _) => value(&kind, 604, 0),
                (_, true) => {
                    let values = [(number + 170, 1), (number + 270, 2)];
                    let (set, json) = values.map(|(number, rank)| value(&kind, number, rank)).into_iter().unzip();
                    (Proto::List(set), Value::Array(json))
                }
                (..60, _) => value(&kind, number + 100, 2),
                _ => value(&kind, number + 340, 0),
            };
            message.set_field(&field, set);
            expected.insert(field.name().to_owned(), json);
        }
        let payload = message.encode_to_vec();
        assert_is_published(&payload, 521, 0xf96a_3d9f);
        let entry = "format = \"protobuf\"\nfile = \"all.proto\"\nmessage = \"All\"\nname = \"all\"\n";
        let schema = schema(entry, &[("all.proto", &proto())]);
        assert_eq!(decoded(&schema, &payload).unwrap(), Value::Object(expected));
    }
}

mod fix {
    use super::*;

    /// With SOH after each field.
    fn message(fields: &[&str]) -> Vec<u8> {
        fields.iter().flat_map(|field| format!("{field}\x01").into_bytes()).collect()
    }

    /// BodyLength counts from the third field to before the last one, CheckSum adds up all bytes before itself.
    fn assert_is_framed(fields: &[&str]) {
        let [begin, length, body @ .., sum] = fields else { panic!("{fields:?}") };
        assert_eq!(*length, format!("9={}", message(body).len()));
        let bytes = [message(&[begin, length]), message(body)].concat();
        assert_eq!(*sum, format!("10={:03}", bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>() % 256));
    }

    #[test]
    fn messages_of_quickfix_are_decoded_and_its_wrong_ones_refused() {
        let schema = schema("format = \"fix\"\nname = \"fix\"\nnames = { 66 = \"ListID\" }\n", &[]);
        let heartbeat = ["8=FIX.4.2", "9=45", "35=0", "34=3", "49=TW", "52=20000426-12:05:06", "56=ISLD", "10=218"];
        assert_is_framed(&heartbeat);
        let expected = json!({
            "BeginString": "FIX.4.2", "BodyLength": "45", "MsgType": "0", "MsgSeqNum": "3", "SenderCompID": "TW",
            "SendingTime": "20000426-12:05:06", "TargetCompID": "ISLD", "CheckSum": "218",
        });
        assert_eq!(decoded(&schema, &message(&heartbeat)).unwrap(), expected);

        // A list of two orders: a group, whose fields come twice.
        let order = |id, number| [id, number, "1=00303", "55=fred", "54=1", "40=1", "59=3"];
        let head = ["8=FIX.4.3", "9=199", "35=E", "34=126", "49=BUYSIDE", "50=00303", "52=20040916-16:19:18.328"];
        let list = ["56=SELLSIDE", "66=1095350459", "68=2", "73=2"];
        let orders = [order("11=1095350459", "67=1"), order("11=1095350460", "67=2")].concat();
        let fields = [&head[..], &list, &orders, &["394=3", "10=138"]].concat();
        assert_is_framed(&fields);
        let expected = json!({
            "BeginString": "FIX.4.3", "BodyLength": "199", "MsgType": "E", "MsgSeqNum": "126", "SenderCompID": "BUYSIDE",
            "SenderSubID": "00303", "SendingTime": "20040916-16:19:18.328", "TargetCompID": "SELLSIDE",
            "ListID": "1095350459", "68": "2", "73": "2", "ClOrdID": ["1095350459", "1095350460"], "67": ["1", "2"],
            "Account": ["00303", "00303"], "Symbol": ["fred", "fred"], "Side": ["1", "1"], "OrdType": ["1", "1"],
            "TimeInForce": ["3", "3"], "394": "3", "CheckSum": "138",
        });
        assert_eq!(decoded(&schema, &message(&fields)).unwrap(), expected);

        let [head @ .., _] = heartbeat;
        for wrong in ["10=000", "10=ABC", "10=219"] {
            let payload = message(&[&head[..], &[wrong]].concat());
            assert!(decoded(&schema, &payload).is_err(), "{wrong}");
        }
    }
}
