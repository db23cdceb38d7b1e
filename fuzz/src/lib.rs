//! Everything that parses untrusted bytes, by name: for libFuzzer (`cargo fuzz run NAME`) and for `src/bin/soak.rs`.
#![cfg(fuzzing)]

mod decoding;
mod queues;

use chronfs::queue::fuzzing::{Target, targets};
use chronfs::queue::{Entry, Message, Position, SegmentId};
use chronfs::view::{
    Format, InputFormat, format_time, parse_line, parse_seek_target, parse_time, render, rendered_len,
};

/// The targets, with bytes to begin with, and how many cheap executions one of them is worth.
pub fn all() -> Vec<(&'static str, Target, Vec<u8>, u64)> {
    let line = br#"{"seq":1,"type":7,"timestamp_ns":1723108500000000000,"payload":"h\u00e9llo\n","x":[1,{"y":null}]}"#;
    let base64 = br#"{"payload_b64":"/wA=","type":0}"#;
    let mut all: Vec<_> = targets().into_iter().map(|(name, target, seed)| (name, target, seed, 1)).collect();
    all.extend([
        ("jsonl", jsonl as Target, line.to_vec(), 4),
        ("jsonl", jsonl as Target, base64.to_vec(), 4),
        ("time", time as Target, b"2024-08-08T09:30:00.123456789Z".to_vec(), 2),
        ("time", time as Target, b"15m ago".to_vec(), 2),
        ("render", rendering as Target, "\x00\x01text with \u{e9} and \x7f\n\"quotes\"\u{2028}".into(), 4),
        ("files", queues::files as Target, (0..64).collect(), 1_000),
        ("payload", decoding::payload as Target, b"\x038=FIX.4.4\x0135=0\x0110=162\x01".to_vec(), 4),
        ("payload", decoding::payload as Target, (0..80).map(|byte| byte % 7).collect(), 4),
        ("columns", decoding::columns as Target, b"\x038=FIX.4.4\x0135=0\x0110=162\x01".to_vec(), 4),
        ("columns", decoding::columns as Target, (0..80).map(|byte| byte % 7).collect(), 4),
        ("operations", queues::operations as Target, (0..255).collect(), 1_000),
    ]);
    let seeds = decoding::schema_seeds().into_iter();
    all.extend(seeds.map(|seed| ("schema", decoding::schema as Target, seed, 20)));
    all
}

/// Runs one of them.
pub fn run(name: &str, bytes: &[u8]) {
    if let Some((_, target, _, _)) = all().into_iter().find(|(known, ..)| *known == name) {
        target(bytes);
    }
}

fn message(payload: &[u8], msg_type: u16, timestamp_ns: u64) -> Entry<'_> {
    let position = Position { segment: SegmentId(0), offset: 4096 };
    Entry::Message(Message { seq: 1, timestamp_ns, msg_type, payload, position })
}

/// Accepted input is printed by the view and accepted again.
fn jsonl(bytes: &[u8]) {
    let Ok(Some(input)) = parse_line(InputFormat::Jsonl, bytes) else { return };
    let stamp = input.timestamp_ns.unwrap_or(0);
    let mut line = Vec::new();
    render(Format::Jsonl, &message(&input.payload, input.msg_type, stamp), None, &mut line);
    let again = parse_line(InputFormat::Jsonl, line.trim_ascii_end()).expect("what was printed is accepted");
    let again = again.expect("it is a message");
    assert_eq!((again.payload, again.msg_type, again.timestamp_ns), (input.payload, input.msg_type, Some(stamp)));
}

fn time(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let now_ns = 1_723_108_500_000_000_000;
    let _ = parse_seek_target(&text, now_ns);
    if let Ok(time_ns) = parse_time(&text, now_ns) {
        let mut printed = Vec::new();
        format_time(time_ns, &mut printed);
        let printed = String::from_utf8(printed).expect("text");
        assert_eq!(parse_time(&printed, now_ns), Ok(time_ns), "{text} -> {printed}");
    }
}

fn rendering(bytes: &[u8]) {
    let (msg_type, payload) = bytes.split_first_chunk::<2>().map_or((0, bytes), |(t, p)| (u16::from_le_bytes(*t), p));
    for format in Format::ALL {
        let entry = message(payload, msg_type, u64::from(msg_type) << 48);
        let mut out = Vec::new();
        render(format, &entry, None, &mut out);
        assert_eq!(out.len(), rendered_len(format, &entry, None), "{format}");
        let lines = out.iter().filter(|&&byte| byte == b'\n').count();
        match format {
            Format::Jsonl | Format::Txt => assert!(lines == 1 && out.ends_with(b"\n"), "{format}"),
            Format::Bin => assert_eq!(out, payload),
            // Hex, and any format to come that the harness does not know.
            _ => assert!(out.is_ascii()),
        }
    }
}
