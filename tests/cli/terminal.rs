//! What reaches a terminal: no control sequence of a name or message, and only verified bytes.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::{Bus, PROGRAM, code, stderr};

/// Sets a title, a colour by a C1 character, changes the text direction, ends the line.
const NAME: &str = "a\u{1b}]0;b\u{7}\u{9b}31mc\u{202e}d\u{2028}e\nf\u{7f}";

fn is_obeyed(c: char) -> bool {
    (c.is_control() && !matches!(c, '\n' | '\r' | '\t')) || matches!(c, '\u{202e}' | '\u{2028}')
}

fn assert_harmless(what: &str, output: &Output) {
    for bytes in [&output.stdout, &output.stderr] {
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(!text.contains(is_obeyed), "{what}: {text:?}");
        assert!(!text.contains("e\nf"), "{what}: {text:?}");
    }
}

/// What runs it on a terminal.
pub(super) fn terminal(bus: &Bus, command: &str) -> Command {
    let mut script = Command::new("timeout");
    script.args(["20", "script", "-qec", command, "/dev/null"]).current_dir(bus.0.path()).env("TERM", "xterm");
    script.env_remove("NO_COLOR");
    script
}

/// Runs it with a terminal for its output.
fn on_a_terminal(bus: &Bus, command: &str) -> String {
    let output = terminal(bus, command).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn names_are_shown_and_not_obeyed() {
    let bus = Bus::new();
    fs::create_dir(bus.path(NAME)).unwrap();
    let queue = format!("{NAME}/q");
    bus.append(&queue, "txt", b"x\n");
    fs::write(bus.path(&format!("{queue}/{NAME}.q")), "").unwrap();
    fs::write(bus.path(&format!("{queue}/readers.tmp{NAME}")), "").unwrap();
    let missing = format!("{NAME}/missing");
    for args in [
        &["ls", "."][..],
        &["ls", "--json", "."],
        &["inspect", &queue],
        &["inspect", "--json", &queue],
        &["inspect", &missing],
        &["doctor", "."],
        &["doctor", "--json", "."],
        &["retain", "-n", "--json", &queue],
        &["readers", &queue],
        &["tail", &missing],
        &["merge", "--all-queues", "."],
        &["watch", "--once", "."],
        &["watch", "--once", "--json", "."],
        &["top", "--once", "--interval", "100ms", "."],
        &["create", &queue],
        &["append", &queue, "/dev/null"],
        &["append", &queue, &missing],
        &["mount", &missing, NAME],
    ] {
        let output = bus.run(args);
        // What `merge` prints in a pipe is JSON as in a file.
        if args[0] != "merge" {
            assert_harmless(&format!("{args:?}"), &output);
        }
        assert!(!output.stdout.is_empty() || !output.stderr.is_empty(), "{args:?} says nothing");
    }
    let listed: Value = bus.json(&["ls", "--json", "."]);
    assert_eq!(listed["path"], format!("./{queue}"), "the value is the name itself");
}

#[test]
fn messages_on_a_terminal_are_shown_and_not_obeyed() {
    let bus = Bus::new();
    bus.append("q", "bin", NAME.as_bytes());
    for format in ["txt", "jsonl", "hex"] {
        let shown = on_a_terminal(&bus, &format!("{PROGRAM} tail --color never --format {format} q"));
        assert!(!shown.contains(is_obeyed), "{format}: {shown:?}");
        let piped = String::from_utf8(bus.run(&["tail", "--format", format, "q"]).stdout).unwrap();
        if format == "jsonl" {
            let [shown, piped] = [&shown, &piped].map(|line| serde_json::from_str::<Value>(line).unwrap());
            assert_eq!(shown, piped);
        }
    }
    let merged = on_a_terminal(&bus, &format!("{PROGRAM} merge --all-queues ."));
    assert!(!merged.contains(is_obeyed), "{merged:?}");
}

#[test]
fn a_terminal_gets_our_colours_and_none_of_a_message() {
    let bus = Bus::new();
    bus.numbered("q", 2);
    bus.append("other", "txt", b"\x1b[31mred\n");
    let until = format!("--until @{}", super::START_NS / 1_000_000_000 + 1);
    for options in ["-n 1 q", "--format hex q", "--format jsonl q", "q other", &format!("-f {until} q")] {
        let shown = on_a_terminal(&bus, &format!("{PROGRAM} tail {options}")).replace("\r\n", "\n");
        let args: Vec<_> = ["tail", "--color", "always"].into_iter().chain(options.split(' ')).collect();
        let piped = bus.stdout(&args);
        assert_eq!(shown, piped.replace("\x1b[31mred", "\\u{1b}[31mred"), "{options}");
        assert_eq!(shown.contains("\x1b[36m#"), !options.contains("jsonl"), "{options}: {shown:?}");
    }
    let found = on_a_terminal(&bus, &format!("{PROGRAM} watch --once ."));
    assert!(found.contains("\x1b[32madded"), "{found:?}");
}

/// A process that may write to a queue may change a message in a reader's mapping after its checksum was verified.
#[test]
fn what_tail_prints_was_verified() {
    let bus = Bus::new();
    let len = 4_000_000;
    bus.append("q", "bin", &vec![b'a'; len]);
    let segment = fs::File::options().write(true).open(bus.path("q/000000000.q")).unwrap();
    let (forged, sound) = (br#"","forged":"yes"#, [b'a'; 15]);
    let over = AtomicBool::new(false);
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for bytes in [&sound, forged] {
                    for at in (len / 2..len).step_by(100_000) {
                        segment.write_all_at(bytes, at as u64).unwrap();
                    }
                    // About as long as verifying and printing take, so that both outcomes are as frequent.
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        });
        let run = |n| bus.run(&["tail", "--format", "jsonl", "--reader", &format!("r{n}"), "q"]);
        let outputs = (0..12).map(run).collect();
        over.store(true, Ordering::Relaxed);
        outputs
    });
    for output in outputs {
        assert!(code(&output) <= 1, "{}", stderr(&output));
        let line: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(line["forged"], Value::Null);
        // Otherwise it is reported as missing.
        assert!(line["gap"].is_object() || line["payload"].as_str().unwrap().len() == len);
    }
}

#[test]
fn ls_and_a_snapshot_fit_the_terminal_that_they_are_printed_on() {
    let bus = Bus::new();
    for name in ["momentum/orders_out", "momentum/orders_in", "pairs/orders_out"] {
        bus.append(&format!("orders/queue/{name}"), "txt", b"x\n");
    }
    let lines =
        |columns: usize, command: &str| on_a_terminal(&bus, &format!("stty cols {columns}; {PROGRAM} {command}"));
    let commands = ["ls", "top --once --interval 100ms"];
    for (columns, command) in [40, 60, 80].into_iter().flat_map(|columns| commands.map(|command| (columns, command))) {
        let text = lines(columns, command);
        assert_eq!(text.lines().filter(|line| line.contains("/orders_")).count(), 3, "{columns}: {text}");
        assert!(text.lines().all(|line| line.trim_end().chars().count() <= columns), "{columns}: {text}");
    }
    assert!(lines(0, "ls").contains("orders/queue/momentum/orders_out"), "a terminal that does not know its size");
}
