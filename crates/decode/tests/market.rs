//! Recorded market data, converted to a fixed layout, SBE and protobuf: what is decoded is what was recorded.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "common/ticker.rs"]
mod ticker;

use chronfs_decode::Schema;
use serde_json::Value;

use ticker::{PROTO, Recorded, SCHEMA, XML, recorded, recordings};

#[test]
fn what_was_recorded_comes_back_from_every_format() {
    let mut files = |name: &str| Ok(if name.ends_with("xml") { XML.into() } else { PROTO.into() });
    let schema = Schema::parse(SCHEMA, &mut files).unwrap();
    let json = |msg_type: u16, payload: &[u8]| {
        let mut out = Vec::new();
        schema.json(msg_type, payload, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    for Recorded { ticker, json: recorded, .. } in recorded(&recordings()[0], usize::MAX) {
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
