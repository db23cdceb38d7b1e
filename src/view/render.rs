//! One message or gap as bytes in a format, and their length. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Format;
use super::{hex, json, txt};
use crate::queue::{Entry, Gap, Message};
use crate::time::decimal::{Decimal, digits};
use crate::time::{Stamp, TIME_LEN};

/// Appends the bytes of one entry (message or gap), a whole unit, to `out`.
///
/// `queue` is the queue's path relative to the root, for the jsonl lines of merged queues: a message shows it after
/// `seq`, a gap after the gap; the other formats do not show it. A gap is a line in every format but bin, which
/// does not show it.
///
/// ```
/// use chronfs::queue::{Entry, Message, Position, SegmentId};
/// use chronfs::view::{Format, render};
///
/// let position = Position { segment: SegmentId(0), offset: 4096 };
/// let message = Message { seq: 1, timestamp_ns: 1_723_108_500_123_456_789, msg_type: 1, payload: b"hello", position };
/// let mut line = Vec::new();
/// render(Format::Jsonl, &Entry::Message(message), None, &mut line);
/// assert_eq!(line,
/// br#"{"seq":1,"timestamp_ns":1723108500123456789,"time":"2024-08-08T09:15:00.123456789Z","type":1,"payload":"hello"}
/// "#);
/// ```
pub fn render(format: Format, entry: &Entry<'_>, queue: Option<&str>, out: &mut Vec<u8>) {
    match (entry, format) {
        (Entry::Message(message), Format::Jsonl) => jsonl(message, queue, out),
        (Entry::Message(message), Format::Txt) => txt::line(message.payload, out),
        (Entry::Message(message), Format::Bin) => out.extend_from_slice(message.payload),
        (Entry::Message(message), Format::Hex) => {
            hex_head(message, out);
            hex::dump(message.payload, out);
        }
        (Entry::Gap(gap), Format::Jsonl) => jsonl_gap(gap, queue, out),
        (Entry::Gap(_), Format::Bin) => {}
        (Entry::Gap(gap), Format::Txt | Format::Hex) => text_gap(gap, out),
    }
}

/// Appends one entry for people: as [`render`] does in hex, but a payload that is text is shown as text.
///
/// ```
/// use chronfs::queue::{Entry, Message, Position, SegmentId};
/// use chronfs::view::render_readable;
///
/// let position = Position { segment: SegmentId(0), offset: 4096 };
/// let message = Message { seq: 1, timestamp_ns: 1_723_108_500_123_456_789, msg_type: 1, payload: b"hello", position };
/// let mut text = Vec::new();
/// render_readable(&Entry::Message(message), &mut text);
/// assert_eq!(text, b"#1 2024-08-08T09:15:00.123456789Z type=1 len=5\nhello\n");
/// ```
pub fn render_readable(entry: &Entry<'_>, out: &mut Vec<u8>) {
    match entry {
        Entry::Message(message) if is_text(message.payload) => {
            hex_head(message, out);
            out.extend_from_slice(message.payload);
            if message.payload.last().is_some_and(|last| *last != b'\n') {
                out.push(b'\n');
            }
        }
        _ => render(Format::Hex, entry, None, out),
    }
}

/// UTF-8 without control characters other than those of text files.
fn is_text(payload: &[u8]) -> bool {
    let is_shown = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
    std::str::from_utf8(payload).is_ok_and(|text| text.chars().all(is_shown))
}

/// The length in bytes of what [`render`] appends for the same arguments, without making it.
pub fn rendered_len(format: Format, entry: &Entry<'_>, queue: Option<&str>) -> usize {
    match (entry, format) {
        (Entry::Message(message), Format::Jsonl) => jsonl_len(message, queue),
        (Entry::Message(message), Format::Txt) => txt::line_len(message.payload),
        (Entry::Message(message), Format::Bin) => message.payload.len(),
        (Entry::Message(message), Format::Hex) => hex_head_len(message) + hex::dump_len(message.payload),
        (Entry::Gap(_), Format::Bin) => 0,
        (Entry::Gap(_), Format::Jsonl | Format::Txt | Format::Hex) => {
            // Gaps are rare: rendering them once more is cheap enough, and can't disagree.
            let mut line = Vec::new();
            render(format, entry, queue, &mut line);
            line.len()
        }
    }
}

/// The constant parts of a line of jsonl.
const SEQ: &[u8] = b"{\"seq\":";
const QUEUE: &[u8] = b",\"queue\":\"";
const TIMESTAMP: &[u8] = b",\"timestamp_ns\":";
const TIME: &[u8] = b",\"time\":\"";
const TYPE: &[u8] = b"\",\"type\":";
const PAYLOAD: &[u8] = b",\"payload\":\"";
const PAYLOAD_B64: &[u8] = b",\"payload_b64\":\"";
const END: &[u8] = b"\"}";

/// Longest text gathered by [`Head`].
const HEAD_MAX: usize = 160;

/// The start of a line, gathered on the stack: short pieces are cheaper there than in a vector.
struct Head {
    bytes: [u8; HEAD_MAX],
    len: usize,
}

impl Head {
    #[inline(always)]
    fn new(text: &[u8]) -> Self {
        let mut head = Self { bytes: [0; HEAD_MAX], len: 0 };
        head.put(text);
        head
    }

    #[inline(always)]
    fn put(&mut self, text: &[u8]) {
        self.bytes[self.len..self.len + text.len()].copy_from_slice(text);
        self.len += text.len();
    }

    /// Copies more than there is: a fixed number of bytes is cheaper than the right one.
    #[inline(always)]
    fn number(&mut self, number: &Decimal) {
        self.bytes[self.len..self.len + number.bytes.len()].copy_from_slice(&number.bytes);
        self.len += number.len;
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes[..self.len]);
        self.len = 0;
    }
}

const _: () = {
    const NUMBERS: usize = 20 + 20 + 20;
    let jsonl = SEQ.len() + TIMESTAMP.len() + TIME.len() + TIME_LEN + TYPE.len();
    assert!(jsonl + NUMBERS <= HEAD_MAX);
};

fn jsonl(message: &Message<'_>, queue: Option<&str>, out: &mut Vec<u8>) {
    jsonl_head(message, queue, out);
    jsonl_payload(message.payload, out);
    out.push(b'\n');
}

/// What stands before the payload.
#[inline(always)]
pub(super) fn jsonl_head(message: &Message<'_>, queue: Option<&str>, out: &mut Vec<u8>) {
    let mut head = Head::new(SEQ);
    head.number(&Decimal::new(message.seq));
    if let Some(queue) = queue {
        head.flush(out);
        out.extend_from_slice(QUEUE);
        json::escape(queue, out);
        out.push(b'"');
    }
    let stamp = Stamp::new(message.timestamp_ns);
    head.put(TIMESTAMP);
    head.number(&stamp.ns);
    head.put(TIME);
    head.put(&stamp.time);
    head.put(TYPE);
    head.number(&Decimal::new(u64::from(message.msg_type)));
    head.flush(out);
}

/// The payload, and the end of the object.
#[inline(always)]
pub(super) fn jsonl_payload(payload: &[u8], out: &mut Vec<u8>) {
    if let Ok(text) = std::str::from_utf8(payload) {
        out.extend_from_slice(PAYLOAD);
        json::escape(text, out);
    } else {
        out.extend_from_slice(PAYLOAD_B64);
        let start = out.len();
        out.resize(start + base64_len(payload.len()), b'=');
        // The space is exact, so this can't fail.
        let _ = STANDARD.encode_slice(payload, &mut out[start..]);
    }
    out.extend_from_slice(END);
}

fn jsonl_len(message: &Message<'_>, queue: Option<&str>) -> usize {
    let queue = queue.map_or(0, |queue| QUEUE.len() + json::escaped_len(queue) + 1);
    let payload = match std::str::from_utf8(message.payload) {
        Ok(text) => PAYLOAD.len() + json::escaped_len(text),
        Err(_) => PAYLOAD_B64.len() + base64_len(message.payload.len()),
    };
    let numbers = digits(message.seq) + digits(message.timestamp_ns) + digits(u64::from(message.msg_type));
    SEQ.len() + queue + TIMESTAMP.len() + TIME.len() + TIME_LEN + TYPE.len() + numbers + payload + END.len() + 1
}

/// Standard base64, padded.
fn base64_len(len: usize) -> usize {
    len.div_ceil(3) * 4
}

const HEX_TYPE: &[u8] = b" type=";
const HEX_LEN: &[u8] = b" len=";

fn hex_head(message: &Message<'_>, out: &mut Vec<u8>) {
    hex_head_named(message, "", out);
}

/// The header line, with the name of what the message is.
pub(super) fn hex_head_named(message: &Message<'_>, name: &str, out: &mut Vec<u8>) {
    let mut head = Head::new(b"#");
    head.number(&Decimal::new(message.seq));
    head.put(b" ");
    head.put(&Stamp::new(message.timestamp_ns).time);
    head.put(HEX_TYPE);
    head.number(&Decimal::new(u64::from(message.msg_type)));
    head.put(HEX_LEN);
    head.number(&Decimal::new(super::len_u64(message.payload.len())));
    head.flush(out);
    if !name.is_empty() {
        out.push(b' ');
        out.extend_from_slice(name.as_bytes());
    }
    out.push(b'\n');
}

fn hex_head_len(message: &Message<'_>) -> usize {
    let numbers =
        digits(message.seq) + digits(u64::from(message.msg_type)) + digits(super::len_u64(message.payload.len()));
    3 + TIME_LEN + HEX_TYPE.len() + HEX_LEN.len() + numbers
}

fn jsonl_gap(gap: &Gap, queue: Option<&str>, out: &mut Vec<u8>) {
    let Gap { from, to, reason, position } = gap;
    let (reason, segment, offset) = (reason.as_str(), position.segment, position.offset);
    let text = format!(
        "{{\"gap\":{{\"from\":{from},\"to\":{to},\"reason\":\"{reason}\",\"segment\":{segment},\"offset\":{offset}}}"
    );
    out.extend_from_slice(text.as_bytes());
    if let Some(queue) = queue {
        out.extend_from_slice(QUEUE);
        json::escape(queue, out);
        out.push(b'"');
    }
    out.extend_from_slice(b"}\n");
}

fn text_gap(gap: &Gap, out: &mut Vec<u8>) {
    let Gap { from, to, reason, position } = gap;
    let (reason, segment, offset) = (reason.as_str(), position.segment, position.offset);
    let text = format!("# gap from={from} to={to} reason={reason} segment={segment} offset={offset}\n");
    out.extend_from_slice(text.as_bytes());
}
