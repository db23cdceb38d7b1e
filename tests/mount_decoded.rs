//! `messages.decoded.jsonl` and `follow.decoded.jsonl`: there where the queue has a schema, as long as it has it.
#![cfg(all(feature = "cli", feature = "decode"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::Command;

use common::{TestMount, until};

const SCHEMA: &str = "[[message]]\ntype = 1\nname = \"pair\"\nformat = \"fixed\"\n\
                      fields = [{ name = \"a\", type = \"u8\" }, { name = \"b\", type = \"u8\" }]\n";

fn mount() -> Option<TestMount> {
    let mount = TestMount::with_options("segment_size=64KiB")?;
    mount.ok("mkdir q && printf 'AB\\nxyz\\nCD\\n' > q/append.txt");
    Some(mount)
}

/// What `chron-cli tail --decode` prints of the queue.
fn tail(mount: &TestMount) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chron-cli"));
    command.args(["tail", "--decode", "--format", "jsonl", "-n", "+1"]).arg(mount.root().join("q"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn decoded_messages_are_there_only_with_a_schema() {
    let Some(mount) = mount() else { return };
    assert!(!mount.ok("ls q").contains("decoded"));
    assert!(mount.fails("cat q/messages.decoded.jsonl").contains("No such file"));
    fs::write(mount.root().join("q/schema.toml"), SCHEMA).unwrap();
    assert!(mount.ok("ls q").contains("follow.decoded.jsonl\n"));
    let shown = mount.ok("cat q/messages.decoded.jsonl");
    assert_eq!(shown, tail(&mount));
    let ends: Vec<&str> = shown.lines().map(|line| line.split_once("\"type\":1,").unwrap().1).collect();
    let expected = [
        r#""name":"pair","decoded":{"a":65,"b":66}}"#,
        r#""undecoded":"the layout has 2 bytes, the payload 3","payload":"xyz"}"#,
        r#""name":"pair","decoded":{"a":67,"b":68}}"#,
    ];
    assert_eq!(ends, expected);
    assert_eq!(mount.ok("stat -c %s q/messages.decoded.jsonl").trim(), shown.len().to_string());
    assert_eq!(mount.ok("tail -c 20 q/messages.decoded.jsonl"), shown[shown.len() - 20..]);
    fs::remove_file(mount.root().join("q/schema.toml")).unwrap();
    assert!(mount.fails("cat q/messages.decoded.jsonl").contains("No such file"));
}

#[test]
fn many_segments_are_decoded_as_they_are_by_tail() {
    let Some(mount) = mount() else { return };
    mount.ok("for i in $(seq 60); do seq -f %.0f 10 99; done > q/append.txt");
    fs::write(mount.root().join("q/schema.toml"), SCHEMA).unwrap();
    let shown = mount.ok("cat q/messages.decoded.jsonl");
    assert_eq!(shown.lines().count(), 3 + 60 * 90);
    assert_eq!(shown, tail(&mount));
}

#[test]
fn another_schema_is_another_file() {
    let Some(mount) = mount() else { return };
    let path = mount.root().join("q/schema.toml");
    fs::write(&path, SCHEMA).unwrap();
    let before = mount.ok("cat q/messages.decoded.jsonl");
    fs::write(&path, SCHEMA.replace("\"b\"", "\"second\"")).unwrap();
    let after = mount.ok("cat q/messages.decoded.jsonl");
    assert_eq!(after, before.replace("\"b\"", "\"second\""));
}

#[test]
fn a_broken_schema_is_an_error_that_the_log_explains() {
    let Some(mount) = mount() else { return };
    let path = mount.root().join("q/schema.toml");
    fs::write(&path, SCHEMA.replace("u8", "u9")).unwrap();
    assert!(mount.fails("cat q/messages.decoded.jsonl").contains("Invalid argument"));
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(mount.fails("cat q/messages.decoded.jsonl").contains("Invalid argument"));
    assert_eq!(mount.ok("cat q/messages.txt"), "AB\nxyz\nCD\n");
}

#[test]
fn followers_see_new_messages_decoded() {
    let Some(mount) = mount() else { return };
    fs::write(mount.root().join("q/schema.toml"), SCHEMA).unwrap();
    let path = mount.root().with_file_name("follow.out");
    let script = format!("exec cat q/follow.decoded.jsonl > {}", path.display());
    let _running = mount.start("bash", &["-c", &script]);
    let seen = || fs::read_to_string(&path).unwrap_or_default();
    // Only what is appended after the file is open is shown.
    until("a message", || {
        mount.ok("echo EF > q/append.txt");
        !seen().is_empty()
    });
    assert!(seen().lines().next().unwrap().ends_with(r#""name":"pair","decoded":{"a":69,"b":70}}"#), "{}", seen());
}
