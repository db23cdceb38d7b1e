//! What holds for rendering and parsing whatever the message: checked with generated messages, and with the nasty
//! strings of the shared data where they are at hand.

use std::io::Read;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;
use crate::queue::{Entry, Gap, GapReason, Message, Position, SegmentId};

const POSITION: Position = Position { segment: SegmentId(3), offset: 4096 };
const QUEUES: [Option<&str>; 3] = [None, Some("a/b"), Some("odd \"\\\u{1}\u{e9}")];

fn message(payload: &[u8]) -> Message<'_> {
    Message { seq: 1, timestamp_ns: 1_723_108_500_123_456_789, msg_type: 1, payload, position: POSITION }
}

fn rendered(format: Format, entry: &Entry<'_>, queue: Option<&str>) -> Vec<u8> {
    let mut out = b"before".to_vec();
    render(format, entry, queue, &mut out);
    assert_eq!(&out[..6], b"before");
    out.drain(..6);
    assert_eq!(out.len(), rendered_len(format, entry, queue), "{format} of {entry:?}");
    out
}

/// Checks everything that must hold for any message.
fn check(message: Message<'_>) {
    let entry = Entry::Message(message);
    for queue in QUEUES {
        let line = rendered(Format::Jsonl, &entry, queue);
        check_jsonl(&message, queue, std::str::from_utf8(&line).unwrap());
    }
    let line = String::from_utf8(rendered(Format::Txt, &entry, None)).unwrap();
    assert_eq!(line.find(|c: char| c.is_control() && c != '\t'), Some(line.len() - 1), "{line:?}");
    assert_eq!(rendered(Format::Bin, &entry, None), message.payload);
    let hex = String::from_utf8(rendered(Format::Hex, &entry, None)).unwrap();
    let mut time = Vec::new();
    format_time(message.timestamp_ns, &mut time);
    let time = String::from_utf8(time).unwrap();
    let head = format!("#{} {time} type={} len={}", message.seq, message.msg_type, message.payload.len());
    assert_eq!(hex.lines().next(), Some(&*head));
    assert!(hex.ends_with('\n'));
}

fn check_jsonl(message: &Message<'_>, queue: Option<&str>, line: &str) {
    assert_eq!(line.find(|c: char| c < ' '), Some(line.len() - 1), "one line: {line:?}");
    let json: serde_json::Value = serde_json::from_str(line).unwrap();
    let payload = match json.get("payload_b64") {
        Some(text) => {
            assert!(std::str::from_utf8(message.payload).is_err());
            STANDARD.decode(text.as_str().unwrap()).unwrap()
        }
        None => json["payload"].as_str().unwrap().into(),
    };
    assert_eq!(payload, message.payload);
    assert_eq!(json.get("queue").map(|queue| queue.as_str().unwrap()), queue);
    assert_eq!(json["seq"], message.seq);
    assert_eq!(json["type"], message.msg_type);
    assert_eq!(json["timestamp_ns"], message.timestamp_ns);
    assert_eq!(parse_time(json["time"].as_str().unwrap(), 0), Ok(message.timestamp_ns));

    let input = parse_line(InputFormat::Jsonl, line.strip_suffix('\n').unwrap().as_bytes()).unwrap().unwrap();
    assert_eq!(&*input.payload, message.payload);
    assert_eq!((input.msg_type, input.timestamp_ns), (message.msg_type, Some(message.timestamp_ns)));
    let again = Message { msg_type: input.msg_type, payload: &input.payload, ..*message };
    assert_eq!(rendered(Format::Jsonl, &Entry::Message(again), queue), line.as_bytes());
}

#[test]
fn lines_exactly() {
    let text = |format, entry: Entry<'_>, queue| String::from_utf8(rendered(format, &entry, queue)).unwrap();
    let hello = Entry::Message(message(b"hello"));
    assert_eq!(
        text(Format::Jsonl, hello, None),
        "{\"seq\":1,\"timestamp_ns\":1723108500123456789,\"time\":\"2024-08-08T09:15:00.123456789Z\",\"type\":1,\
         \"payload\":\"hello\"}\n"
    );
    assert_eq!(
        text(Format::Jsonl, Entry::Message(message(b"\xff\"")), Some("md/btc")),
        "{\"seq\":1,\"queue\":\"md/btc\",\"timestamp_ns\":1723108500123456789,\
         \"time\":\"2024-08-08T09:15:00.123456789Z\",\"type\":1,\"payload_b64\":\"/yI=\"}\n"
    );
    assert_eq!(text(Format::Txt, hello, None), "hello\n");
    assert_eq!(text(Format::Bin, hello, None), "hello");
    assert_eq!(
        text(Format::Hex, hello, None),
        "#1 2024-08-08T09:15:00.123456789Z type=1 len=5\n\
         00000000  68 65 6c 6c 6f                                    |hello|\n\
         00000005\n"
    );
    let empty = Entry::Message(message(b""));
    assert_eq!(text(Format::Hex, empty, None), "#1 2024-08-08T09:15:00.123456789Z type=1 len=0\n");
    assert_eq!(text(Format::Txt, empty, None), "\n");
}

#[test]
fn gaps_exactly() {
    let position = Position { segment: SegmentId(0), offset: 4096 };
    let gap = Entry::Gap(Gap { from: 17, to: 18, reason: GapReason::Checksum, position });
    let text = |format, queue| String::from_utf8(rendered(format, &gap, queue)).unwrap();
    let json = "{\"gap\":{\"from\":17,\"to\":18,\"reason\":\"checksum\",\"segment\":0,\"offset\":4096}";
    assert_eq!(text(Format::Jsonl, None), format!("{json}}}\n"));
    assert_eq!(text(Format::Jsonl, Some("md/btc")), format!("{json},\"queue\":\"md/btc\"}}\n"));
    for format in [Format::Txt, Format::Hex] {
        assert_eq!(text(format, None), "# gap from=17 to=18 reason=checksum segment=0 offset=4096\n");
    }
    assert_eq!(text(Format::Bin, None), "");
}

/// Payloads of many kinds: bytes, text, JSON, repetitions.
fn payloads() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..300),
        ".{0,200}".prop_map(String::into_bytes),
        "(.|[\"\\\\\\x00-\\x1f\\x7f-\\x9f]){0,200}".prop_map(String::into_bytes),
        "[\\[\\]{}\",:a-z0-9.]{0,300}".prop_map(String::into_bytes),
        ("[\"\\\\\\n a]{1,3}", 0_usize..100).prop_map(|(text, count)| text.repeat(count).into_bytes()),
        ("[ -~]{0,90}", any::<u8>()).prop_map(|(text, byte)| [text.as_bytes(), &[byte]].concat()),
    ]
}

proptest! {
    #[test]
    fn any_message(payload in payloads(), seq: u64, timestamp_ns: u64, shift in 0_u32..64, msg_type in 0..u16::MAX) {
        check(Message { seq: seq >> shift, timestamp_ns: timestamp_ns >> shift, msg_type, ..message(&payload) });
    }

    #[test]
    fn parsing_never_panics(line: Vec<u8>) {
        let _ = parse_line(InputFormat::Jsonl, &line);
    }
}

/// The directory of real input, if it is there.
fn data() -> Option<PathBuf> {
    let fallback = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data"));
    let data = std::env::var_os("CHRONFS_DATA").map_or_else(fallback, PathBuf::from);
    if !data.is_dir() {
        eprintln!("skipped: no real input; set CHRONFS_DATA to its directory");
        return None;
    }
    Some(data)
}

#[test]
fn naughty_strings() {
    let Some(data) = data() else { return };
    for name in ["blns.json", "blns.base64.json"] {
        let strings: Vec<String> =
            serde_json::from_slice(&std::fs::read(data.join("nasty").join(name)).unwrap()).unwrap();
        assert!(strings.len() > 500);
        for text in strings {
            check(message(text.as_bytes()));
            check(message(&STANDARD.decode(&text).unwrap_or_default()));
        }
    }
    let stress = std::fs::read(data.join("nasty/UTF-8-test.txt")).unwrap();
    stress.split(|&byte| byte == b'\n').for_each(|line| check(message(line)));
    check(message(&stress));
}

/// Names and contents of a tar archive's regular files with short names.
fn untar(mut archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    while archive.len() >= 512 && archive[0] != 0 {
        let field = |range: std::ops::Range<usize>| {
            let text = &archive[range];
            let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
            String::from_utf8_lossy(&text[..end]).trim().to_owned()
        };
        let (name, len) = (field(0..100), usize::from_str_radix(&field(124..136), 8).unwrap());
        if matches!(archive[156], b'0' | 0) {
            files.push((name, archive[512..512 + len].to_vec()));
        }
        archive = &archive[512 + len.div_ceil(512) * 512..];
    }
    files
}

#[test]
fn json_that_must_and_must_not_parse() {
    let Some(data) = data() else { return };
    let packed = std::fs::File::open(data.join("nasty/JSONTestSuite.tar.gz")).unwrap();
    let mut archive = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut archive).unwrap();
    let (mut good, mut bad) = (0, 0);
    for (path, content) in untar(&archive) {
        check(message(&content));
        let _ = parse_line(InputFormat::Jsonl, &content);
        let name = path.rsplit('/').next().unwrap();
        let line = [b"{\"payload\":\"x\",\"other\":", &*content, b"}"].concat();
        let parsed = parse_line(InputFormat::Jsonl, &line);
        if name.starts_with("y_") {
            good += 1;
            assert_eq!(&*parsed.unwrap().unwrap().payload, b"x", "{path}");
        } else if name.starts_with("n_") {
            bad += 1;
            assert!(parsed.is_err(), "{path}: {}", String::from_utf8_lossy(&content));
        }
    }
    assert!(good > 50 && bad > 100, "{good} good, {bad} bad");
}
