//! `chron-cli tail --decode`: payloads as schema.toml says.

use std::fs;

use super::{Bus, assert_fails, assert_is_usage};

const SCHEMA: &str = r#"
[[message]]
type = 7
name = "quote"
format = "fixed"
fields = [
    { name = "id", type = "u32" },
    { name = "bid", type = "i32", scale = 2 },
    { name = "side", type = "u8", names = { 66 = "buy", 83 = "sell" } },
]

[[message]]
type = 8
name = "event"
format = "json"
"#;

/// A queue with a message that can be decoded, one that is too short, JSON, and one that the schema does not know.
fn bus() -> Bus {
    let bus = Bus::new();
    let lines = concat!(
        r#"{"payload_b64":"AQAAAMf///9C","type":7,"timestamp_ns":1723108500123456789}"#,
        "\n",
        r#"{"payload":"xy","type":7,"timestamp_ns":1723108500123456790}"#,
        "\n",
        r#"{"payload":" {\"a\":\n[1]} ","type":8,"timestamp_ns":1723108500123456791}"#,
        "\n",
        r#"{"payload":"hello","type":1,"timestamp_ns":1723108500123456792}"#,
        "\n"
    );
    bus.append("q", "jsonl", lines.as_bytes());
    fs::write(bus.path("q/schema.toml"), SCHEMA).unwrap();
    bus
}

#[test]
fn payloads_are_decoded_in_jsonl_and_the_undecodable_say_why() {
    let head = |seq: u64| {
        let time = 123_456_788 + seq;
        format!(r#"{{"seq":{seq},"timestamp_ns":1723108500{time},"time":"2024-08-08T09:15:00.{time}Z","type":"#)
    };
    let expected = [
        head(1) + r#"7,"name":"quote","decoded":{"id":1,"bid":-0.57,"side":"buy"}}"#,
        head(2) + r#"7,"undecoded":"the layout has 9 bytes, the payload 2","payload":"xy"}"#,
        head(3) + r#"8,"name":"event","decoded":{"a": [1]}}"#,
        head(4) + r#"1,"payload":"hello"}"#,
    ];
    assert_eq!(bus().stdout(&["tail", "--decode", "--format", "jsonl", "q"]), expected.join("\n") + "\n");
}

#[test]
fn people_see_the_name_and_the_fields() {
    let shown = bus().stdout(&["tail", "--decode", "-n", "+1", "q"]);
    let expected = concat!(
        "#1 2024-08-08T09:15:00.123456789Z type=7 len=9 quote\n",
        "{\"id\":1,\"bid\":-0.57,\"side\":\"buy\"}\n",
        "#2 2024-08-08T09:15:00.123456790Z type=7 len=2\n",
        "# undecoded: the layout has 9 bytes, the payload 2\n",
        "00000000  78 79                                             |xy|\n",
        "00000002\n",
        "#3 2024-08-08T09:15:00.123456791Z type=8 len=12 event\n",
        "{\"a\": [1]}\n",
        "#4 2024-08-08T09:15:00.123456792Z type=1 len=5\n",
        "hello\n",
    );
    assert_eq!(shown, expected);
    let lines = bus().stdout(&["tail", "--decode", "--format", "txt", "-n2", "--type", "7", "q"]);
    assert_eq!(
        lines,
        "{\"id\":1,\"bid\":-0.57,\"side\":\"buy\"}\n# undecoded: the layout has 9 bytes, the payload 2: xy\n"
    );
}

#[test]
fn a_schema_that_is_missing_or_wrong_is_named_with_the_line() {
    let bus = bus();
    fs::write(bus.path("q/schema.toml"), SCHEMA.replace("\"u32\"", "\"u33\"")).unwrap();
    assert_fails(&bus.run(&["tail", "--decode", "q"]), &["q/schema.toml:2: field \"id\": \"u33\" is not a type: "]);
    fs::remove_file(bus.path("q/schema.toml")).unwrap();
    assert_fails(&bus.run(&["tail", "--decode", "q"]), &["q: it has no schema.toml; write one (docs/decode.md)"]);
    assert_is_usage(&bus.run(&["tail", "--decode", "--format", "hex", "q"]), &["choose another --format"]);
}

/// Answers with the type and the length of what it got, and can't decode type 8. After three messages it ends.
const DECODER: &str = r#"
import json, struct, sys
for _ in range(3):
    n, kind = struct.unpack("<IH", sys.stdin.buffer.read(6))
    payload = sys.stdin.buffer.read(n - 2)
    answer = b"" if kind == 8 else json.dumps({"type": kind, "bytes": len(payload)}).encode()
    sys.stdout.buffer.write(struct.pack("<I", len(answer)) + answer)
    sys.stdout.buffer.flush()
"#;

#[test]
fn a_command_decodes_and_its_end_does_not_end_the_stream() {
    let bus = bus();
    fs::write(bus.path("decoder.py"), DECODER).unwrap();
    let args = ["tail", "--decode-with", "exec python3 decoder.py", "--format", "jsonl", "q"];
    let lines: Vec<String> =
        bus.stdout(&args).lines().map(|line| line[line.find(r#""type":"#).unwrap()..].to_owned()).collect();
    let expected = [
        r#""type":7,"decoded":{"type": 7, "bytes": 9}}"#,
        r#""type":7,"decoded":{"type": 7, "bytes": 2}}"#,
        r#""type":8,"undecoded":"the command can't decode it","payload":" {\"a\":\n[1]} "}"#,
        r#""type":1,"undecoded":"the command has ended","payload":"hello"}"#,
    ];
    assert_eq!(lines, expected);
}
