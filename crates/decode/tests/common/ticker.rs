//! Recorded market data, and what it becomes in each format: a fixed layout, SBE, protobuf, JSON.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)] // No test uses all of it.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde_json::Value;

/// The best bid and ask of a symbol, prices in hundredths.
pub struct Ticker {
    pub update: u64,
    pub symbol: String,
    pub bid: i64,
    pub bid_size: u32,
    pub ask: i64,
    pub ask_size: u32,
}

/// A ticker, when it came, and its JSON.
pub struct Recorded {
    pub ticker: Ticker,
    pub timestamp_ns: u64,
    pub json: Vec<u8>,
}

/// The project's sample, and the large recording if there is one: `CHRONFS_DATA` names a directory with `market/`.
pub fn recordings() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let data = std::env::var_os("CHRONFS_DATA").map_or_else(|| root.join("../shared/data"), PathBuf::from);
    let large = data.join("market/binance-usdm-btcusdt-ethusdt-20240808.log.gz");
    let mut found = vec![root.join("testdata/market-sample.log.gz")];
    found.extend(Some(large).filter(|file| file.exists()));
    found
}

/// The tickers of a recording, at most this many.
pub fn recorded(file: &Path, most: usize) -> Vec<Recorded> {
    let lines = BufReader::new(MultiGzDecoder::new(File::open(file).unwrap())).lines();
    let tickers: Vec<_> = lines.filter_map(|line| ticker(&line.unwrap())).take(most).collect();
    assert!(tickers.len() > 1000.min(most - 1), "{}", tickers.len());
    tickers
}

fn ticker(line: &str) -> Option<Recorded> {
    let (time, text) = line.split_once(' ').unwrap();
    let json: Value = serde_json::from_str(text).unwrap();
    let data = json.get("data").filter(|data| data["e"] == "bookTicker")?;
    let text = |key: &str| data[key].as_str().unwrap().to_owned();
    // In hundredths.
    let price = |key: &str| {
        let price = text(key);
        let (whole, cents) = price.split_once('.').unwrap();
        assert_eq!(cents.len(), 2);
        format!("{whole}{cents}").parse().unwrap()
    };
    // The sizes of the recording have decimals, those of the sample have none.
    let size = |key: &str| text(key).replace('.', "").parse().unwrap();
    let ticker = Ticker {
        update: data["u"].as_u64().unwrap(),
        symbol: text("s"),
        bid: price("b"),
        bid_size: size("B"),
        ask: price("a"),
        ask_size: size("A"),
    };
    Some(Recorded { ticker, timestamp_ns: time.parse().unwrap(), json: serde_json::to_vec(data).unwrap() })
}

impl Ticker {
    pub fn fixed(&self) -> Vec<u8> {
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

    pub fn sbe(&self) -> Vec<u8> {
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

    pub fn protobuf(&self) -> Vec<u8> {
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

pub const SCHEMA: &str = r#"
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

pub const XML: &str = r#"
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

pub const PROTO: &str = "syntax = \"proto3\"; package market; message Ticker { uint64 update = 1; string symbol = 2; \
                     int64 bid = 3; int64 ask = 4; uint32 bid_size = 5; uint32 ask_size = 6; }";
