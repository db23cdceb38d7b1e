//! Messages with their payload decoded, as lines of JSON and for people.

use chronfs_decode::{Decode, Undecodable};

use super::render::{hex_head_named, jsonl_head, jsonl_payload};
use super::{Format, hex, json, render, render_readable, txt};
use crate::queue::{Entry, Message};

/// Appends one entry as [`render`] does in jsonl, with `name` and `decoded` instead of the payload. A message that
/// can't be decoded keeps its payload, after `undecoded`, the reason; one of whose type `decoder` knows nothing is
/// as [`render`] shows it.
///
/// ```
/// use chronfs::queue::{Entry, Message, Position, SegmentId};
/// use chronfs::view::render_decoded;
///
/// let schema = chronfs::decode::Schema::parse(
///     "[[message]]\ntype = 1\nname = \"count\"\nformat = \"fixed\"\nfields = [{ name = \"n\", type = \"u16\" }]",
///     &mut |_| Err("no files".to_owned()),
/// )?;
/// let position = Position { segment: SegmentId(0), offset: 4096 };
/// let message = Message { seq: 1, timestamp_ns: 1_723_108_500_123_456_789, msg_type: 1, payload: &[7, 0], position };
/// let mut line = Vec::new();
/// render_decoded(&Entry::Message(message), None, &mut &schema, &mut line);
/// assert!(line.ends_with(br#""type":1,"name":"count","decoded":{"n":7}}
/// "#));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn render_decoded(entry: &Entry<'_>, queue: Option<&str>, decoder: &mut impl Decode, out: &mut Vec<u8>) {
    let Entry::Message(message) = entry else { return render(Format::Jsonl, entry, queue, out) };
    jsonl_head(message, queue, out);
    let start = out.len();
    match member(message, decoder, out) {
        Ok(true) => out.push(b'}'),
        Ok(false) => jsonl_payload(message.payload, out),
        Err(reason) => {
            out.truncate(start);
            out.extend_from_slice(b",\"undecoded\":\"");
            json::escape(&reason.to_string(), out);
            out.push(b'"');
            jsonl_payload(message.payload, out);
        }
    }
    out.push(b'\n');
}

/// Appends `"name"` and `"decoded"`; false, and nothing, if the decoder knows nothing about such messages.
fn member(message: &Message<'_>, decoder: &mut impl Decode, out: &mut Vec<u8>) -> Result<bool, Undecodable> {
    let Some(name) = decoder.name(message.msg_type, message.payload)? else { return Ok(false) };
    if !name.is_empty() {
        // Names of tables need no escaping.
        out.extend_from_slice(b",\"name\":\"");
        out.extend_from_slice(name.as_bytes());
        out.push(b'"');
    }
    out.extend_from_slice(b",\"decoded\":");
    decoder.json(message.msg_type, message.payload, out)?;
    Ok(true)
}

/// Appends one entry for people: a header line with the message's name, then its fields as JSON. A message that can't
/// be decoded is a hex dump after the reason.
pub fn render_decoded_readable(entry: &Entry<'_>, decoder: &mut impl Decode, out: &mut Vec<u8>) {
    let Entry::Message(message) = entry else { return render_readable(entry, out) };
    let start = out.len();
    let decoded = match decoder.name(message.msg_type, message.payload) {
        Ok(Some(name)) => {
            hex_head_named(message, name, out);
            decoder.json(message.msg_type, message.payload, out).map(|()| true)
        }
        Ok(None) => Ok(false),
        Err(reason) => Err(reason),
    };
    match decoded {
        Ok(true) => out.push(b'\n'),
        Ok(false) => render_readable(entry, out),
        Err(reason) => {
            out.truncate(start);
            hex_head_named(message, "", out);
            out.extend_from_slice(format!("# undecoded: {reason}\n").as_bytes());
            hex::dump(message.payload, out);
        }
    }
}

/// Appends one entry as a line: the fields as JSON, or the payload as [`render`] shows it in txt, after the reason if
/// it should have been decoded.
pub fn render_decoded_txt(entry: &Entry<'_>, decoder: &mut impl Decode, out: &mut Vec<u8>) {
    let Entry::Message(message) = entry else { return render(Format::Txt, entry, None, out) };
    let start = out.len();
    let decoded = match decoder.name(message.msg_type, message.payload) {
        Ok(Some(_)) => decoder.json(message.msg_type, message.payload, out).map(|()| true),
        Ok(None) => Ok(false),
        Err(reason) => Err(reason),
    };
    match decoded {
        Ok(true) => out.push(b'\n'),
        Ok(false) => txt::line(message.payload, out),
        Err(reason) => {
            out.truncate(start);
            out.extend_from_slice(format!("# undecoded: {reason}: ").as_bytes());
            txt::line(message.payload, out);
        }
    }
}
