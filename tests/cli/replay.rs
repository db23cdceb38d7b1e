//! `chron-cli replay` and `tail --replay`: what was recorded, with its spacing.

use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::terminal::terminal;
use super::{Bus, PROGRAM, START_NS, assert_fails, assert_is_usage, stderr};

/// Messages 1 to 4, of which the last three come 0, 200 and 300 ms after the first.
fn bus() -> Bus {
    let bus = Bus::new();
    let line = |n: u64, ms: u64| {
        format!("{{\"payload\":\"{n}\",\"type\":{n},\"timestamp_ns\":{}}}\n", START_NS + ms * 1_000_000)
    };
    bus.append("from", "jsonl", [line(1, 0), line(2, 0), line(3, 200), line(4, 300)].concat().as_bytes());
    bus
}

fn took(run: impl FnOnce()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

#[test]
fn messages_are_appended_with_their_spacing() {
    let bus = bus();
    let before = std::time::UNIX_EPOCH.elapsed().unwrap();
    let took = took(|| drop(bus.stdout(&["replay", "from", "to", "-q"])));
    assert!(took >= Duration::from_millis(300), "{took:?}");
    assert_eq!(bus.stdout(&["tail", "to", "--format", "txt"]), "1\n2\n3\n4\n");
    let lines = bus.stdout(&["tail", "to", "--format", "jsonl"]);
    let field =
        |line: &str, name: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()[name].as_u64().unwrap();
    let times: Vec<_> = lines.lines().map(|line| Duration::from_nanos(field(line, "timestamp_ns")) - before).collect();
    // Not before it is due; how much later, the first one, too, depends on the machine.
    let due = [0, 200, 300].map(Duration::from_millis);
    assert!(times[0] >= due[0] && times[2] >= due[1] && times[3] >= due[2], "{times:?}");
    let types: Vec<u64> = lines.lines().map(|line| field(line, "type")).collect();
    assert_eq!(types, [1, 2, 3, 4]);
}

#[test]
fn max_and_keep_times_make_a_copy() {
    let bus = bus();
    bus.stdout(&["replay", "from", "to", "--speed", "max", "--keep-times"]);
    let jsonl = |queue| bus.stdout(&["tail", queue, "--format", "jsonl"]);
    assert_eq!(jsonl("to"), jsonl("from"));
}

#[test]
fn a_part_can_be_replayed_faster() {
    let bus = bus();
    let since = format!("@{}.1", START_NS / 1_000_000_000);
    let until = format!("@{}.25", START_NS / 1_000_000_000);
    bus.stdout(&["replay", "from", "to", "--speed", "1000", "--since", &since, "--until", &until]);
    assert_eq!(bus.stdout(&["tail", "to", "--format", "txt"]), "3\n");
}

/// A pause of an hour does not look as if nothing happened.
#[test]
fn a_terminal_shows_when_a_long_pause_ends() {
    let bus = Bus::new();
    bus.numbered("from", 1);
    let later = START_NS + 3600 * 1_000_000_000;
    bus.append("from", "jsonl", format!("{{\"payload\":\"late\",\"timestamp_ns\":{later}}}\n").as_bytes());
    for command in ["replay from to", "tail --replay 1 from"] {
        let mut script = terminal(&bus, &format!("{PROGRAM} {command}"));
        let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !seen.ends_with(b"the next message is due in 60 min") {
            let count = script.stdout.as_mut().unwrap().read(&mut byte).unwrap();
            assert_eq!(count, 1, "{}", String::from_utf8_lossy(&seen));
            seen.push(byte[0]);
        }
        // Ctrl-C.
        script.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
        assert!(!script.wait().unwrap().success());
    }
    assert_eq!(bus.stdout(&["tail", "to", "--format", "txt"]), "m1\n");
}

#[test]
fn tail_prints_with_the_spacing() {
    let bus = bus();
    let took = took(|| {
        assert_eq!(bus.stdout(&["tail", "from", "--format", "txt", "--replay", "2x"]), "1\n2\n3\n4\n");
    });
    assert!(took >= Duration::from_millis(150), "{took:?}");
}

#[test]
fn a_queue_is_not_replayed_to_itself() {
    let bus = bus();
    assert_is_usage(&bus.run(&["replay", "from", "./from"]), &["the same queue"]);
    assert_is_usage(&bus.run(&["replay", "from", "to", "--speed", "0"]), &["is not a speed"]);
    assert_fails(&bus.run(&["replay", "none", "to"]), &["none"]);
    assert!(!bus.path("to").exists(), "nothing is created before the other queue is open");
}

#[test]
fn what_replay_says_on_stderr() {
    let bus = bus();
    let output = bus.run(&["replay", "from", "to", "--speed", "1000"]);
    let said = stderr(&output);
    assert!(said.contains("to: replayed 4 messages in "), "{said}");
    let late = said.split_once("; late by: ").unwrap().1.trim_end();
    let words: Vec<_> = late.split(", ").map(|part| part.rsplitn(3, ' ').last().unwrap()).collect();
    assert_eq!(words, ["median", "99 %", "99.9 %", "max"], "{said}");
    let older = bus.run(&["replay", "from", "to", "--speed", "max", "--keep-times"]);
    assert_fails(&older, &["chron-cli: to: timestamp ", "; replay it to a new queue, or without --keep-times\n"]);
    let older = bus.run_with(&["append", "-q", "to", "--format", "jsonl"], b"{\"payload\":\"x\",\"timestamp_ns\":1}\n");
    assert_fails(
        &older,
        &["standard input:1: timestamp 1 is before", "; append it without its timestamp, or to a new"],
    );
}
