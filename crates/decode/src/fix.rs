//! FIX, tag=value: an object with a key for each tag, by its name where it is known. Values are text, as in FIX; a tag
//! that comes several times, as in repeating groups, has a list of them.

use std::collections::{BTreeMap, HashMap};

use crate::error::Undecodable;
use crate::fixed::MAX_NAME;
use crate::json::text;

/// The tags of the standard header and trailer, and of orders, executions and market data.
#[rustfmt::skip]
const NAMES: [(u32, &str); 78] = [
    (1, "Account"), (6, "AvgPx"), (7, "BeginSeqNo"), (8, "BeginString"), (9, "BodyLength"), (10, "CheckSum"),
    (11, "ClOrdID"), (14, "CumQty"), (15, "Currency"), (16, "EndSeqNo"), (17, "ExecID"), (18, "ExecInst"),
    (21, "HandlInst"), (22, "SecurityIDSource"), (31, "LastPx"), (32, "LastQty"), (34, "MsgSeqNum"), (35, "MsgType"),
    (36, "NewSeqNo"), (37, "OrderID"), (38, "OrderQty"), (39, "OrdStatus"), (40, "OrdType"), (41, "OrigClOrdID"),
    (43, "PossDupFlag"), (44, "Price"), (45, "RefSeqNum"), (48, "SecurityID"), (49, "SenderCompID"),
    (50, "SenderSubID"), (52, "SendingTime"), (54, "Side"), (55, "Symbol"), (56, "TargetCompID"), (57, "TargetSubID"),
    (58, "Text"), (59, "TimeInForce"), (60, "TransactTime"), (64, "SettlDate"), (75, "TradeDate"), (95, "RawDataLength"),
    (96, "RawData"), (97, "PossResend"), (98, "EncryptMethod"), (99, "StopPx"), (100, "ExDestination"),
    (102, "CxlRejReason"), (103, "OrdRejReason"), (108, "HeartBtInt"), (110, "MinQty"), (111, "MaxFloor"),
    (112, "TestReqID"), (122, "OrigSendingTime"), (123, "GapFillFlag"), (126, "ExpireTime"), (141, "ResetSeqNumFlag"),
    (150, "ExecType"), (151, "LeavesQty"), (167, "SecurityType"), (200, "MaturityMonthYear"), (207, "SecurityExchange"),
    (262, "MDReqID"), (263, "SubscriptionRequestType"), (264, "MarketDepth"), (265, "MDUpdateType"),
    (267, "NoMDEntryTypes"), (268, "NoMDEntries"), (269, "MDEntryType"), (270, "MDEntryPx"), (271, "MDEntrySize"),
    (272, "MDEntryDate"), (273, "MDEntryTime"), (278, "MDEntryID"), (279, "MDUpdateAction"), (371, "RefTagID"),
    (372, "RefMsgType"), (373, "SessionRejectReason"), (553, "Username"),
];

/// Tags that say how long the data of the next tag is, which may have separators in it.
const LENGTHS: [u32; 14] = [90, 93, 95, 212, 348, 350, 352, 354, 356, 358, 360, 362, 364, 445];
const CHECKSUM: u32 = 10;
const SOH: u8 = 1;

/// How messages are written.
#[derive(Debug)]
pub(crate) struct Codec {
    names: BTreeMap<u32, String>,
    separator: u8,
}

impl Codec {
    pub(crate) fn new(names: Option<&BTreeMap<String, String>>, separator: Option<&str>) -> Result<Self, String> {
        let separator = match separator.map(str::as_bytes) {
            None => SOH,
            Some(&[byte]) if byte.is_ascii() && byte != b'=' && !byte.is_ascii_digit() => byte,
            Some(_) => return Err("separator: give one character".to_owned()),
        };
        let mut all: BTreeMap<u32, String> = NAMES.iter().map(|(tag, name)| (*tag, (*name).to_owned())).collect();
        for (tag, name) in names.into_iter().flatten() {
            let tag = tag.parse().map_err(|_| format!("names: {tag:?} is not a tag"))?;
            if name.is_empty() || name.len() > MAX_NAME {
                return Err(format!("names: a name has 1 to {MAX_NAME} bytes"));
            }
            all.insert(tag, name.clone());
        }
        Ok(Self { names: all, separator })
    }

    /// The payload as JSON.
    pub(crate) fn json(&self, payload: &[u8]) -> Result<String, Undecodable> {
        let pairs = self.pairs(payload)?;
        let mut order: Vec<(u32, Vec<&[u8]>)> = Vec::new();
        let mut places: HashMap<u32, usize> = HashMap::new();
        for (tag, value) in pairs {
            let place = *places.entry(tag).or_insert(order.len());
            match order.get_mut(place) {
                Some((_, values)) => values.push(value),
                None => order.push((tag, vec![value])),
            }
        }
        let mut out = b"{".to_vec();
        for (at, (tag, values)) in order.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            self.name(*tag, &mut out);
            out.push(b':');
            if let [value] = values[..] {
                text(&String::from_utf8_lossy(value), &mut out);
                continue;
            }
            for (at, value) in values.iter().enumerate() {
                out.push(if at == 0 { b'[' } else { b',' });
                text(&String::from_utf8_lossy(value), &mut out);
            }
            out.push(b']');
        }
        out.push(b'}');
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    fn name(&self, tag: u32, out: &mut Vec<u8>) {
        match self.names.get(&tag) {
            Some(name) => text(name, out),
            None => text(&tag.to_string(), out),
        }
    }

    fn pairs<'a>(&self, payload: &'a [u8]) -> Result<Vec<(u32, &'a [u8])>, Undecodable> {
        let mut pairs = Vec::new();
        let mut at = 0;
        // How long the next value is, where the tag before it has said so.
        let mut known: Option<usize> = None;
        while at < payload.len() {
            let rest = &payload[at..];
            let wrong = |what: &str| Undecodable::new(format!("{what} at byte {at}"));
            let equals = rest.iter().take(11).position(|byte| *byte == b'=').ok_or_else(|| wrong("no tag="))?;
            let digits = std::str::from_utf8(&rest[..equals]).ok().filter(|text| !text.starts_with('+'));
            let tag = digits.and_then(|text| text.parse().ok()).ok_or_else(|| wrong("no tag="))?;
            let value = &rest[equals + 1..];
            let end = match known.take() {
                Some(len) if value.get(len).is_none_or(|byte| *byte == self.separator) && len <= value.len() => len,
                Some(_) => return Err(wrong("the data does not have its length")),
                // The last one may do without a separator.
                None => value.iter().position(|byte| *byte == self.separator).unwrap_or(value.len()),
            };
            let value = &value[..end];
            if LENGTHS.contains(&tag) {
                let len = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                known = Some(len.ok_or_else(|| wrong("the length of data is not a number"))?);
            }
            if tag == CHECKSUM && self.separator == SOH {
                check(&payload[..at], value)?;
            }
            pairs.push((tag, value));
            at += equals + 1 + end + 1;
        }
        if pairs.is_empty() {
            return Err(Undecodable::new("it is empty"));
        }
        Ok(pairs)
    }
}

/// The checksum is the sum of all bytes before its tag.
fn check(before: &[u8], value: &[u8]) -> Result<(), Undecodable> {
    let sum = before.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if value == format!("{sum:03}").as_bytes() {
        return Ok(());
    }
    let value = String::from_utf8_lossy(&value[..value.len().min(8)]);
    Err(Undecodable::new(format!("the checksum is {value}, it should be {sum:03}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(separator: Option<&str>, payload: &[u8]) -> Result<String, String> {
        let names = BTreeMap::from([("5001".to_owned(), "Strategy".to_owned())]);
        Codec::new(Some(&names), separator).unwrap().json(payload).map_err(|error| error.to_string())
    }

    #[test]
    fn tags_have_names_and_those_that_come_again_a_list() {
        let message = b"8=FIX.4.4|35=W|268=2|269=0|270=1.5|269=1|270=1.6|5001=a\"b|6000=x|";
        let expected = concat!(
            r#"{"BeginString":"FIX.4.4","MsgType":"W","NoMDEntries":"2","MDEntryType":["0","1"],"#,
            r#""MDEntryPx":["1.5","1.6"],"Strategy":"a\"b","6000":"x"}"#
        );
        assert_eq!(json(Some("|"), message).unwrap(), expected);
    }

    #[test]
    fn data_may_have_separators_in_it() {
        let expected = r#"{"RawDataLength":"5","RawData":"a|b=c","Text":"x"}"#;
        assert_eq!(json(Some("|"), b"95=5|96=a|b=c|58=x").unwrap(), expected);
        assert_eq!(json(Some("|"), b"95=4|96=a|b=c|58=x").unwrap_err(), "the data does not have its length at byte 5");
        assert!(json(Some("|"), b"95=99999999999999999999|96=a").is_err());
        assert!(json(Some("|"), b"95=99|96=a").is_err());
    }

    #[test]
    fn the_checksum_is_verified() {
        let body = b"8=FIX.4.4\x0135=0\x01";
        let sum: u32 = body.iter().map(|byte| u32::from(*byte)).sum::<u32>() % 256;
        let with = |sum: u32| [&body[..], format!("10={sum:03}\x01").as_bytes()].concat();
        assert!(json(None, &with(sum)).is_ok());
        let wrong = json(None, &with((sum + 1) % 256)).unwrap_err();
        assert_eq!(wrong, format!("the checksum is {:03}, it should be {sum:03}", (sum + 1) % 256));
    }

    proptest! {
        #[test]
        fn any_payload_is_json_or_refused(payload in "([0-9]{1,3}=[a-z\u{85}\"]{0,4}[\u{1}|]?|[0-9=|\u{1}]){0,20}") {
            for separator in [None, Some("|")] {
                if let Ok(text) = json(separator, payload.as_bytes()) {
                    prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
                }
            }
        }
    }
}
