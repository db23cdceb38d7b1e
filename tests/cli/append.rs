//! `chron-cli append`: what becomes a message, what is refused, and where a queue is created.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Bus, PROGRAM, assert_fails, code, end_quietly, follow, next_line, stderr};

#[test]
fn append_takes_lines_files_and_standard_input() {
    let bus = Bus::new();
    fs::write(bus.path("one"), "a\nb\n").unwrap();
    fs::write(bus.path("two"), "c\n\nlast without newline").unwrap();
    let output = bus.run_with(&["append", "q", "--type", "9", "--sync", "one", "-", "two"], b"from stdin\r\n");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(output.stdout, b"");
    assert!(stderr(&output).contains("q: appended 6 messages, seq 1 to 6"), "{}", stderr(&output));
    assert_eq!(bus.stdout(&["tail", "q", "--format", "txt"]), "a\nb\nfrom stdin\\r\nc\n\nlast without newline\n");
    assert_eq!(bus.stdout(&["tail", "q", "--type", "9", "--format", "bin"]), "abfrom stdin\rclast without newline");
}

#[test]
fn append_can_be_quiet_and_points_to_send() {
    let bus = Bus::new();
    let output = bus.run_with(&["append", "-q", "q"], b"a\n");
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
    let output = bus.run(&["append", "q", "hello"]);
    assert_fails(
        &output,
        &["hello: cannot open: No such file or directory; to append it as text: chron-cli send QUEUE"],
    );
    let output = bus.run_with(&["append", "-q", "q", "--format", "jsonl"], b"{\"payload\":{\"price\":1}}\n");
    let part = "standard input:1: expected a string (jq's tojson turns other JSON into one), found an object";
    assert_fails(&output, &[part]);
}

#[test]
fn append_bin_makes_one_message_of_each_file() {
    let bus = Bus::new();
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    fs::write(bus.path("one"), &bytes).unwrap();
    fs::write(bus.path("empty"), "").unwrap();
    assert_eq!(code(&bus.run(&["append", "q", "--format", "bin", "one", "empty"])), 0);
    bus.append("q", "bin", b"all\nof\nit\n");
    assert_eq!(bus.json(&["inspect", "--json", "q"])["messages"], 3);
    let printed = bus.run(&["tail", "q", "--format", "bin"]).stdout;
    assert!(printed == [&bytes[..], b"all\nof\nit\n"].concat());
}

#[test]
fn a_bad_line_is_reported_and_what_came_before_it_stays() {
    let bus = Bus::new();
    fs::write(bus.path("in.jsonl"), "{\"payload\":\"good\"}\n{\"payload\":\"good too\"}\n{\"paylod\":1}\n{}\n")
        .unwrap();
    let output = bus.run(&["append", "q", "--format", "jsonl", "in.jsonl"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("chron-cli: in.jsonl:3: "), "{}", stderr(&output));
    assert!(stderr(&output).contains("appended 2 messages"), "{}", stderr(&output));
    assert_eq!(bus.stdout(&["tail", "q", "--format", "txt"]), "good\ngood too\n");

    for (input, part) in [
        (&b"\xef\xbb\xbf{\"payload\":\"marked\"}\n"[..], "standard input:1: it begins with a byte order mark"),
        (b"{\"payload\":\"third\"}\n\n{\"payload\":\"not reached\"}\n", "standard input:2: an empty line"),
    ] {
        let output = bus.run_with(&["append", "q", "--format", "jsonl"], input);
        assert!(code(&output) == 1 && stderr(&output).contains(part), "{}", stderr(&output));
    }
    assert_eq!(bus.stdout(&["tail", "q", "--format", "txt"]), "good\ngood too\nthird\n");

    let output = bus.run_with(&["append", "q", "--format", "jsonl"], b"{\"payload\":\"old\",\"timestamp_ns\":1}\n");
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("standard input:1: timestamp 1 is before"), "{}", stderr(&output));
}

#[test]
fn a_missing_file_among_others_is_found_before_anything_is_appended() {
    let bus = Bus::new();
    fs::write(bus.path("one"), "a\n").unwrap();
    assert_fails(&bus.run(&["append", "q", "one", "missing"]), &["chron-cli: missing: cannot open: No such file"]);
    assert!(!bus.path("q").exists());
}

#[test]
fn a_payload_over_the_limit_is_refused_in_every_format() {
    let bus = Bus::new();
    bus.stdout(&["create", "q", "--segment-size", "64KiB"]);
    let long = "x".repeat(70_000);
    let max = 64 * 1024 - 4128 - 64 - 64;
    let more = format!("more than the {max} bytes that this queue takes");
    let inputs = [
        ("txt", format!("ok\n{long}\n"), format!("standard input:2: {more}")),
        ("txt", format!("ok\n{long}"), format!("standard input:2: {more}")),
        (
            "jsonl",
            format!("{{\"payload\":\"ok\"}}\n{{\"payload\":\"{long}\"}}\n"),
            format!("standard input:2: q: payload of 70000 bytes is too large; this queue takes at most {max}"),
        ),
        ("bin", long.clone(), format!("standard input: {more}")),
    ];
    for (format, input, what) in &inputs {
        let output = bus.run_with(&["append", "-q", "q", "--format", format], input.as_bytes());
        // Of the others nothing is known but that they are longer.
        let size = if *format == "jsonl" { "1MiB" } else { "SIZE (up to 1GiB)" };
        let remedy = format!("; to let it take more: chron-cli set q --segment-size {size}\n");
        assert_fails(&output, &[&format!("chron-cli: {what}{remedy}")]);
    }
    assert_eq!(bus.stdout(&["tail", "q", "--format", "txt"]), "ok\nok\nok\n");
    bus.append("q", "txt", "x".repeat(max).as_bytes());
    assert_eq!(code(&bus.run_with(&["append", "q"], "x".repeat(max + 1).as_bytes())), 1);
    bus.stdout(&["set", "q", "--segment-size", "1MiB"]);
    for (format, input, _) in &inputs {
        bus.append("q", format, input.as_bytes());
    }
}

#[test]
fn append_creates_a_queue_only_in_an_empty_place() {
    let bus = Bus::new();
    fs::create_dir_all(bus.path("ready")).unwrap();
    fs::write(bus.path("ready/READY"), "{}").unwrap();
    bus.append("ready", "txt", b"x\n");
    bus.append("deep/down/q", "txt", b"x\n");

    fs::create_dir(bus.path("home")).unwrap();
    fs::write(bus.path("home/letter"), "").unwrap();
    assert_fails(&bus.run_with(&["append", "home"], b"x\n"), &["home: not a queue"]);
    assert_eq!(fs::read_dir(bus.path("home")).unwrap().count(), 1);
    assert_eq!(code(&bus.run_with(&["append", "home/letter"], b"x\n")), 1);
}

#[test]
fn queues_have_valid_names_and_do_not_nest() {
    let bus = Bus::new();
    bus.append("q", "txt", b"x\n");
    for (place, part) in [
        ("q/inner", "another queue's directory"),
        ("a b", "invalid name"),
        (".hidden", "invalid name"),
        ("control.meta", "reserved"),
        ("READY", "reserved"),
    ] {
        assert_fails(&bus.run(&["create", place]), &[place, part]);
        assert_fails(&bus.run_with(&["append", place], b"x\n"), &[place, part]);
    }
    let inside = bus.command(&["create", "inner"]).current_dir(bus.path("q")).output().unwrap();
    assert_fails(&inside, &["another queue's directory"]);
    assert_eq!(bus.stdout(&["ls", "--json", "."]).lines().count(), 1);
}

#[test]
fn types_are_0_to_65534() {
    let bus = Bus::new();
    for wrong in ["65535", "-1", "x", ""] {
        assert_eq!(code(&bus.run_with(&["append", "q", "--type", wrong], b"x\n")), 2, "{wrong:?}");
    }
    assert_eq!(code(&bus.run_with(&["append", "q", "--type", "65534"], b"x\n")), 0);
}

#[test]
fn the_second_writer_is_told_who_the_first_one_is() {
    let bus = Bus::new();
    // Directly, without `timeout`: the process id matters. It ends when its stdin is closed.
    let mut first = Command::new(PROGRAM)
        .args(["append", "q"])
        .current_dir(bus.0.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = first.stdin.take().unwrap();
    stdin.write_all(b"here\n").unwrap();
    // Its message is visible: it holds the lock.
    let mut tail = follow(&bus, "q");
    assert_eq!(next_line(&mut tail), "here");

    assert_fails(
        &bus.run_with(&["append", "q"], b"x\n"),
        &["q: another writer holds", &format!("process {}", first.id())],
    );
    assert_eq!(bus.json(&["inspect", "--json", "q"])["writer"]["pid"], first.id());
    assert_eq!(bus.json(&["inspect", "--json", "q"])["writer"]["state"], "alive");
    drop(stdin);
    assert!(first.wait().unwrap().success());
    bus.append("q", "txt", b"second\n");
    assert_eq!(next_line(&mut tail), "second");
    end_quietly(tail);
}

/// Directly, without `timeout`: signals matter here. None is ignored, as nohup would have it.
fn with_signals(bus: &Bus, args: &[&str]) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal").args(args).current_dir(bus.0.path());
    command
}

fn start_append(bus: &Bus, script: &str) -> Child {
    let mut command = with_signals(bus, &["sh", "-c", &format!("{script}; exec {PROGRAM} append q")]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_signal_closes_the_queue_and_then_ends_the_command() {
    for (name, number) in [("-INT", 2), ("-TERM", 15), ("-HUP", 1)] {
        let bus = Bus::new();
        bus.stdout(&["create", "q"]);
        let mut child = start_append(&bus, ":");
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"one\ntwo\nunfinished").unwrap();
        let mut tail = follow(&bus, "q");
        assert_eq!([next_line(&mut tail), next_line(&mut tail)], ["one", "two"]);
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.signal(), Some(number));
        assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
        assert!(stderr(&output).contains("q: appended 2 messages, seq 1 to 2"), "{}", stderr(&output));
        assert_eq!(bus.json(&["inspect", "--json", "q"])["writer"]["state"], "none");
        assert_eq!(code(&bus.run(&["doctor", "q"])), 0);
        drop(stdin);
        end_quietly(tail);
    }
}

#[test]
fn a_signal_in_the_middle_of_much_input_loses_nothing_of_what_is_reported() {
    let bus = Bus::new();
    fs::write(bus.path("endless"), "line\n".repeat(40_000_000 / 5)).unwrap();
    let args = [PROGRAM, "append", "q", "endless", "endless", "endless", "endless"];
    let child = with_signals(&bus, &args).stderr(Stdio::piped()).spawn().unwrap();
    let mut tail = follow(&bus, "q");
    assert_eq!(next_line(&mut tail), "line");
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    end_quietly(tail);
    let said = stderr(&output);
    let last: u64 = said.split(" to ").nth(1).and_then(|rest| rest.split(',').next()).unwrap().parse().unwrap();
    assert_eq!(bus.json(&["inspect", "--json", "q"])["last_seq"], last);
    assert_eq!(output.status.signal(), Some(2), "all {last} were appended before the signal arrived");
}

#[test]
fn signals_that_are_ignored_stay_ignored() {
    let bus = Bus::new();
    let mut child = start_append(&bus, "trap '' INT HUP");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\n").unwrap();
    let mut tail = follow(&bus, "q");
    assert_eq!(next_line(&mut tail), "one");
    signal(&child, "-INT");
    signal(&child, "-HUP");
    stdin.write_all(b"two\n").unwrap();
    assert_eq!(next_line(&mut tail), "two");
    drop(stdin);
    assert!(child.wait_with_output().unwrap().status.success());
    end_quietly(tail);
}

#[test]
fn a_fifo_is_read_from_its_first_byte_and_waiting_for_one_can_be_stopped() {
    let bus = Bus::new();
    assert!(Command::new("mkfifo").arg(bus.path("fifo")).status().unwrap().success());
    let start = || with_signals(&bus, &[PROGRAM, "append", "q", "fifo"]).stderr(Stdio::piped()).spawn().unwrap();
    let child = start();
    fs::write(bus.path("fifo"), "one\ntwo\n").unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    assert_eq!(bus.stdout(&["tail", "q", "--format", "txt"]), "one\ntwo\n");

    let mut child = start();
    let deadline = Instant::now() + Duration::from_secs(20);
    // It is the writer: from here on it only waits.
    while bus.json(&["inspect", "--json", "q"])["writer"]["pid"] != child.id() && Instant::now() < deadline {}
    signal(&child, "-TERM");
    let mut status = None;
    while status.is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
        status = child.try_wait().unwrap();
    }
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(status.and_then(|status| status.signal()), Some(15));
}
