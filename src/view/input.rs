//! Input of people and programs as messages: lines of text and jsonl, or bytes as they are. Pure.
//!
//! Invariant: a line of jsonl that [`super::render`] made of a message is accepted, and results in the same payload,
//! type and timestamp; the line of a gap is accepted too, and is not a message.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserializer as _;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};

/// The type of a message if the input names none.
pub const DEFAULT_TYPE: u16 = 1;

/// The formats that an append file or `chron-cli append` accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InputFormat {
    /// Each line is a payload, bytes as they are.
    Txt,
    /// Each line is a JSON object with `payload` or `payload_b64`.
    Jsonl,
    /// The whole input is a payload.
    Bin,
}

/// One message to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Input<'a> {
    /// Its type: [`DEFAULT_TYPE`] if the input does not say.
    pub msg_type: u16,
    /// Its timestamp in ns since the epoch; None: the time of the append.
    pub timestamp_ns: Option<u64>,
    /// Its payload, borrowed from the input where that is possible.
    pub payload: Cow<'a, [u8]>,
}

/// JSON may write a byte as `\u00XX`: a line can be this many times as long as its payload.
const JSON_EXPANSION: usize = 6;
/// Room in a line of JSON for keys and numbers.
const JSON_KEYS: usize = 64 << 10;

/// The longest line, without its newline, whose payload may have `max_payload` bytes.
pub fn longest_line(format: InputFormat, max_payload: usize) -> usize {
    match format {
        InputFormat::Jsonl => max_payload.saturating_mul(JSON_EXPANSION).saturating_add(JSON_KEYS),
        InputFormat::Txt | InputFormat::Bin => max_payload,
    }
}

/// One line of txt or jsonl, without its newline, or one payload. None: there is nothing to append.
///
/// A line of jsonl is an object with `payload` (a string) or `payload_b64` (standard base64, padded), optionally
/// `type` (0 to 65534) and `timestamp_ns`; other keys are ignored. The line of a gap, an object with `gap` and no
/// payload, is not a message: so what is left of a damaged queue can be copied into another one.
///
/// # Errors
/// A short text for people that says what is wrong with the line. Only jsonl can be wrong.
pub fn parse_line(format: InputFormat, line: &[u8]) -> Result<Option<Input<'_>>, String> {
    match format {
        InputFormat::Txt | InputFormat::Bin => {
            Ok(Some(Input { msg_type: DEFAULT_TYPE, timestamp_ns: None, payload: Cow::Borrowed(line) }))
        }
        InputFormat::Jsonl => parse_object(line),
    }
}

fn parse_object(line: &[u8]) -> Result<Option<Input<'_>>, String> {
    let text = std::str::from_utf8(line)
        .map_err(|error| format!("not UTF-8 at column {}; use payload_b64 for such bytes", error.valid_up_to() + 1))?;
    if text.starts_with('\u{feff}') {
        return Err("it begins with a byte order mark; save the file as UTF-8 without one".to_owned());
    }
    if text.trim_ascii().is_empty() {
        return Err("an empty line; each line is an object with payload or payload_b64".to_owned());
    }
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(ObjectVisitor)
        .and_then(|input| json.end().map(|()| input))
        .map_err(|error| plain_words(&error))
}

/// The error of a line for people, without the parser's own terms.
fn plain_words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    // 0 where nothing had been read.
    let column = error.column().max(1);
    if !error.is_data() {
        return format!("not JSON at column {column}: {what}; a line is an object like {{\"payload\":\"hello\"}}");
    }
    let Some((found, expected)) = what.strip_prefix("invalid type: ").and_then(|what| what.split_once(", expected "))
    else {
        return format!("{what} at column {column}");
    };
    let found = match found {
        "map" => "an object",
        "sequence" => "an array",
        found => found,
    };
    let expected = if expected == "u64" { "a whole number" } else { expected };
    format!("expected {expected}, found {found} at column {column}")
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Option<Input<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with payload or payload_b64")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Input<'de>>, A::Error> {
        let mut payload = None;
        let mut is_gap = false;
        let mut msg_type = None;
        let mut timestamp_ns = None;
        while let Some(Text(key)) = map.next_key()? {
            match &*key {
                "payload" => set(&mut payload, into_bytes(map.next_value()?), "payload")?,
                "payload_b64" => {
                    let Text(text) = map.next_value()?;
                    let bytes = STANDARD.decode(&*text);
                    let bytes = bytes.map_err(|error| A::Error::custom(format_args!("payload_b64: {error}")))?;
                    set(&mut payload, Cow::Owned(bytes), "payload")?;
                }
                "type" => set(&mut msg_type, message_type(map.next_value()?)?, "type")?,
                "timestamp_ns" => set(&mut timestamp_ns, map.next_value()?, "timestamp_ns")?,
                other => {
                    is_gap |= other == "gap";
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        match payload {
            Some(payload) => Ok(Some(Input { msg_type: msg_type.unwrap_or(DEFAULT_TYPE), timestamp_ns, payload })),
            None if is_gap => Ok(None),
            None => Err(A::Error::custom("neither payload nor payload_b64")),
        }
    }
}

/// Known keys may occur only once: otherwise it is unclear which one was meant.
fn set<T, E: serde::de::Error>(slot: &mut Option<T>, value: T, what: &str) -> Result<(), E> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(E::custom(format_args!("more than one {what}"))),
    }
}

fn into_bytes(text: Text<'_>) -> Cow<'_, [u8]> {
    match text.0 {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

fn message_type<E: serde::de::Error>(number: u64) -> Result<u16, E> {
    match u16::try_from(number) {
        Ok(msg_type) if msg_type != u16::MAX => Ok(msg_type),
        _ => Err(E::custom(format_args!("type {number} is out of range; use 0 to 65534"))),
    }
}

/// A string, borrowed unless it had escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Text<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string (jq's tojson turns other JSON into one)")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Input<'_>, String> {
        parse_line(InputFormat::Jsonl, line.as_bytes()).map(|input| input.expect("a message"))
    }

    #[test]
    fn lines_of_text_and_writes_are_taken_as_they_are() {
        for format in [InputFormat::Txt, InputFormat::Bin] {
            let line = b"{\"payload\": \xff\0\r";
            let input = parse_line(format, line).unwrap().unwrap();
            assert_eq!(input, Input { msg_type: DEFAULT_TYPE, timestamp_ns: None, payload: Cow::Borrowed(line) });
        }
    }

    #[test]
    fn objects() {
        let input = parse(r#" {"payload":"hello"} "#).unwrap();
        assert!(matches!(input.payload, Cow::Borrowed(b"hello")), "{input:?}");
        assert_eq!((input.msg_type, input.timestamp_ns), (DEFAULT_TYPE, None));

        let line =
            r#"{"seq":1,"queue":"a","timestamp_ns":17,"time":[{}],"type":65534,"payload":"a\n\u0000\ud83d\ude00"}"#;
        let input = parse(line).unwrap();
        assert_eq!(&*input.payload, "a\n\0\u{1f600}".as_bytes());
        assert_eq!((input.msg_type, input.timestamp_ns), (65534, Some(17)));

        assert_eq!(&*parse(r#"{"payload_b64":"/wA="}"#).unwrap().payload, b"\xff\0");
        assert_eq!(&*parse(r#"{"payload_b64":""}"#).unwrap().payload, b"");
        assert_eq!(&*parse(r#"{"p\u0061yload":""}"#).unwrap().payload, b"");
    }

    #[test]
    fn a_gap_is_not_a_message() {
        let line = br#"{"gap":{"from":17,"to":17,"reason":"checksum","segment":0,"offset":4096}}"#;
        assert_eq!(parse_line(InputFormat::Jsonl, line), Ok(None));
        assert_eq!(&*parse(r#"{"gap":{},"payload":"a"}"#).unwrap().payload, b"a");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, expected) in [
            ("", "an empty line"),
            ("hello", "not JSON at column 1: expected value; a line is an object like {"),
            ("[1]", "expected an object with payload or payload_b64, found an array at column 1"),
            ("\"payload\"", "expected an object"),
            ("null", "expected an object"),
            ("{}", "neither payload nor payload_b64"),
            (r#"{"payload":"a","payload_b64":"YQ=="}"#, "more than one payload"),
            (r#"{"payload_b64":"YQ==","payload":"a"}"#, "more than one payload"),
            (r#"{"payload":"a","payload":"a"}"#, "more than one payload"),
            (r#"{"payload":"a","type":1,"type":1}"#, "more than one type"),
            (r#"{"payload":"a","timestamp_ns":1,"timestamp_ns":1}"#, "more than one timestamp_ns"),
            (r#"{"payload":null}"#, "expected a string"),
            (r#"{"payload":1}"#, "expected a string"),
            (
                r#"{"payload":{"a":1}}"#,
                "expected a string (jq's tojson turns other JSON into one), found an object at column",
            ),
            (r#"{"payload":"a","type":65535}"#, "type 65535 is out of range; use 0 to 65534"),
            (r#"{"payload":"a","type":-1}"#, "invalid value: integer `-1`"),
            (r#"{"payload":"a","type":"1"}"#, "expected a whole number, found string"),
            (r#"{"payload":"a","type":1.5}"#, "floating point"),
            (r#"{"payload":"a","timestamp_ns":18446744073709551616}"#, "expected a whole number"),
            (r#"{"payload_b64":"YQ"}"#, "payload_b64: "),
            (r#"{"payload_b64":"Y*=="}"#, "payload_b64: "),
            (r#"{"payload_b64":"_w=="}"#, "payload_b64: "),
            (r#"{"payload":"\ud800"}"#, "hex escape"),
            ("{\"payload\":\"a\tb\"}", "control character"),
            (r#"{"payload":"a"} x"#, "not JSON at column 17: trailing characters"),
            (r#"{"payload":"a"}{"payload":"b"}"#, "trailing characters"),
            (r#"{"payload":"a""#, "EOF"),
            (r#"{"payload":"a",}"#, "trailing comma"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected) && !error.contains("line 1") && error.len() < 150, "{line}: {error}");
        }
        let error = parse_line(InputFormat::Jsonl, b"{\"payload\":\"\xff\"}").unwrap_err();
        assert_eq!(error, "not UTF-8 at column 13; use payload_b64 for such bytes");
    }
}
