//! Recorded market data, converted to a fixed layout, SBE and protobuf: what is decoded is what was recorded.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;

use chronfs_decode::Schema;
use serde_json::Value;

/// The best bid and ask of a symbol, prices in hundredths.
struct Ticker {
    update: u64,
    symbol: String,
    bid: i64,
    bid_size: u32,
    ask: i64,
    ask_size: u32,
}

/// The tickers of the project's sample, with their JSON.
fn recorded() -> Vec<(Ticker, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/market-sample.log.gz");
    let lines = BufReader::new(flate2::read::MultiGzDecoder::new(std::fs::File::open(path).unwrap())).lines();
    let mut tickers = Vec::new();
    for line in lines {
        let line = line.unwrap();
        let json: Value = serde_json::from_str(line.split_once(' ').unwrap().1).unwrap();
        let data = &json["data"];
        if data["e"] != "bookTicker" {
            continue;
        }
        let text = |key: &str| data[key].as_str().unwrap().to_owned();
        let price = |key: &str| {
            let (whole, cents) = data[key].as_str().unwrap().split_once('.').unwrap();
            assert_eq!(cents.len(), 2);
            format!("{whole}{cents}").parse().unwrap()
        };
        let ticker = Ticker {
            update: data["u"].as_u64().unwrap(),
            symbol: text("s"),
            bid: price("b"),
            bid_size: text("B").parse().unwrap(),
            ask: price("a"),
            ask_size: text("A").parse().unwrap(),
        };
        tickers.push((ticker, serde_json::to_vec(data).unwrap()));
    }
    assert!(tickers.len() > 1000, "{}", tickers.len());
    tickers
}

impl Ticker {
    fn fixed(&self) -> Vec<u8> {
        let mut bytes = self.update.to_le_bytes().to_vec();
        let mut symbol = self.symbol.clone().into_bytes();
        symbol.resize(8, 0);
        bytes.extend(symbol);
        bytes.extend(self.bid.to_le_bytes());
        bytes.extend(self.ask.to_le_bytes());
        bytes.extend(self.bid_size.to_le_bytes());
        bytes.extend(self.ask_size.to_le_bytes());
        bytes
    }

    fn sbe(&self) -> Vec<u8> {
        let block = self.fixed();
        let header = [u16::try_from(block.len()).unwrap(), 5, 17, 0];
        header.iter().flat_map(|number| number.to_be_bytes()).chain(self.big_endian()).collect()
    }

    fn big_endian(&self) -> Vec<u8> {
        let mut bytes = self.update.to_be_bytes().to_vec();
        let mut symbol = self.symbol.clone().into_bytes();
        symbol.resize(8, b' ');
        bytes.extend(symbol);
        bytes.extend(self.bid.to_be_bytes());
        bytes.extend(self.ask.to_be_bytes());
        bytes.extend(self.bid_size.to_be_bytes());
        bytes.extend(self.ask_size.to_be_bytes());
        bytes
    }

    fn protobuf(&self) -> Vec<u8> {
        fn varint(mut number: u64, out: &mut Vec<u8>) {
            while number >= 128 {
                out.push(u8::try_from(number & 127).unwrap() | 128);
                number >>= 7;
            }
            out.push(u8::try_from(number).unwrap());
        }
        let mut bytes = vec![0x08];
        varint(self.update, &mut bytes);
        bytes.push(0x12);
        varint(self.symbol.len() as u64, &mut bytes);
        bytes.extend(self.symbol.bytes());
        for (tag, number) in [
            (0x18, self.bid.unsigned_abs()),
            (0x20, self.ask.unsigned_abs()),
            (0x28, u64::from(self.bid_size)),
            (0x30, u64::from(self.ask_size)),
        ] {
            bytes.push(tag);
            varint(number, &mut bytes);
        }
        bytes
    }
}

const SCHEMA: &str = r#"
[[message]]
type = 1
name = "ticker"
format = "fixed"
fields = [
    { name = "update", type = "u64" },
    { name = "symbol", type = "text[8]" },
    { name = "bid", type = "i64", scale = 2 },
    { name = "ask", type = "i64", scale = 2 },
    { name = "bid_size", type = "u32" },
    { name = "ask_size", type = "u32" },
]

[[message]]
type = 2
format = "sbe"
file = "ticker.xml"

[[message]]
type = 3
name = "proto_ticker"
format = "protobuf"
file = "ticker.proto"
message = "market.Ticker"

[[message]]
type = 4
name = "raw"
format = "json"
"#;

const XML: &str = r#"
<messageSchema id="17" version="0" byteOrder="bigEndian">
    <types>
        <composite name="messageHeader">
            <type name="blockLength" primitiveType="uint16"/>
            <type name="templateId" primitiveType="uint16"/>
            <type name="schemaId" primitiveType="uint16"/>
            <type name="version" primitiveType="uint16"/>
        </composite>
        <type name="symbol" primitiveType="char" length="8"/>
        <composite name="price">
            <type name="mantissa" primitiveType="int64"/>
            <type name="exponent" primitiveType="int8" presence="constant">-2</type>
        </composite>
    </types>
    <message name="sbe_ticker" id="5">
        <field name="update" id="1" type="uint64"/>
        <field name="symbol" id="2" type="symbol"/>
        <field name="bid" id="3" type="price"/>
        <field name="ask" id="4" type="price"/>
        <field name="bid_size" id="5" type="uint32"/>
        <field name="ask_size" id="6" type="uint32"/>
    </message>
</messageSchema>
"#;

const PROTO: &str = "syntax = \"proto3\"; package market; message Ticker { uint64 update = 1; string symbol = 2; \
                     int64 bid = 3; int64 ask = 4; uint32 bid_size = 5; uint32 ask_size = 6; }";

#[test]
fn what_was_recorded_comes_back_from_every_format() {
    let mut files = |name: &str| Ok(if name.ends_with("xml") { XML.into() } else { PROTO.into() });
    let schema = Schema::parse(SCHEMA, &mut files).unwrap();
    let json = |msg_type: u16, payload: &[u8]| {
        let mut out = Vec::new();
        schema.json(msg_type, payload, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    for (ticker, recorded) in recorded() {
        let fixed = json(1, &ticker.fixed());
        assert_eq!(json(2, &ticker.sbe()), fixed);
        // With the digits that were recorded.
        let data: Value = serde_json::from_slice(&recorded).unwrap();
        let text = |key: &str| data[key].as_str().unwrap().to_owned();
        let expected = format!(
            "{{\"update\":{},\"symbol\":\"{}\",\"bid\":{},\"ask\":{},\"bid_size\":{},\"ask_size\":{}}}",
            data["u"],
            text("s"),
            text("b"),
            text("a"),
            text("B"),
            text("A")
        );
        assert_eq!(fixed, expected);
        let proto: Value = serde_json::from_str(&json(3, &ticker.protobuf())).unwrap();
        assert_eq!(proto["bid"].as_i64(), Some(ticker.bid));
        assert_eq!(proto["ask_size"].as_u64(), Some(u64::from(ticker.ask_size)));
        assert_eq!(serde_json::from_str::<Value>(&json(4, &recorded)).unwrap(), data);
    }
}
