//! `chron-cli tail`: what is printed, where it starts and ends, and following.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use super::{Bus, NONE, assert_fails, assert_is_usage, code, end_quietly, follow, next_line, stderr};

#[test]
fn tail_prints_these_bytes() {
    let bus = Bus::new();
    let lines = concat!(
        r#"{"payload":"hello","type":7,"timestamp_ns":1723108500123456789}"#,
        "\n",
        r#"{"payload_b64":"AP8K","timestamp_ns":1723108500123456790}"#,
        "\n"
    );
    bus.append("q", "jsonl", lines.as_bytes());
    let tail = |format| bus.run(&["tail", "q", "--format", format]).stdout;
    assert_eq!(
        String::from_utf8(tail("jsonl")).unwrap(),
        concat!(
            r#"{"seq":1,"timestamp_ns":1723108500123456789,"time":"2024-08-08T09:15:00.123456789Z","type":7,"payload":"hello"}"#,
            "\n",
            r#"{"seq":2,"timestamp_ns":1723108500123456790,"time":"2024-08-08T09:15:00.123456790Z","type":1,"payload_b64":"AP8K"}"#,
            "\n"
        )
    );
    assert_eq!(String::from_utf8(tail("txt")).unwrap(), "hello\n\\x00\\xff\\n\n");
    assert_eq!(tail("bin"), b"hello\x00\xff\n");
    let hex = concat!(
        "#1 2024-08-08T09:15:00.123456789Z type=7 len=5\n",
        "00000000  68 65 6c 6c 6f                                    |hello|\n",
        "00000005\n",
        "#2 2024-08-08T09:15:00.123456790Z type=1 len=3\n",
        "00000000  00 ff 0a                                          |...|\n",
        "00000003\n",
    );
    assert_eq!(String::from_utf8(tail("hex")).unwrap(), hex);
    let auto = hex.replace("00000000  68 65 6c 6c 6f                                    |hello|\n00000005", "hello");
    assert_eq!(bus.stdout(&["tail", "q"]), auto, "the default");
}

#[test]
fn text_is_printed_as_text_and_everything_else_as_a_dump() {
    let bus = Bus::new();
    let body = |payload: &[u8]| {
        bus.append("q", "bin", payload);
        let printed = bus.stdout(&["tail", "-n1", "q"]);
        let (head, body) = printed.split_once('\n').unwrap();
        assert!(head.starts_with('#') && head.ends_with(&format!("type=1 len={}", payload.len())), "{head}");
        body.to_owned()
    };
    assert_eq!(body("Zürich\ttwo\nlines".as_bytes()), "Zürich\ttwo\nlines\n");
    assert_eq!(body(b"ends\n"), "ends\n");
    assert_eq!(body(b""), "");
    for binary in [&b"\xff"[..], b"a\0", b"\x1b[31m", "\u{9b}31m".as_bytes()] {
        assert!(body(binary).starts_with("00000000  "), "{binary:?}");
    }
}

#[test]
fn several_queues_are_printed_like_several_files() {
    let bus = Bus::new();
    for (queue, text) in [("a", "a1\na2\n"), ("b", "b1\n"), ("empty", "")] {
        bus.append(queue, "txt", text.as_bytes());
    }
    let txt = bus.stdout(&["tail", "--format", "txt", "a", "empty", "b"]);
    assert_eq!(txt, "==> a <==\na1\na2\n\n==> b <==\nb1\n");
    assert_eq!(bus.stdout(&["tail", "-n1", "--format", "bin", "b", "a"]), "b1a2");
    let json = bus.stdout(&["tail", "-n1", "--format", "jsonl", "a", "b"]);
    let queues: Vec<_> =
        json.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["queue"].clone()).collect();
    assert_eq!(queues, ["a", "b"]);
    assert!(!bus.stdout(&["tail", "-n1", "--format", "jsonl", "a"]).contains("queue"));
    assert_fails(&bus.run(&["tail", "a", "missing"]), &["missing: not a queue"]);
    assert_is_usage(&bus.run(&["tail", "--reader", "r", "a", "b"]), &["--reader takes one queue"]);

    let follow = ["tail", "-f", "-n", "1", "--format", "txt", "a", "b"];
    let mut tail = bus.command(&follow).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut expect = |lines: &[&str]| lines.iter().for_each(|line| assert_eq!(next_line(&mut tail), *line));
    expect(&["==> a <==", "a2", "", "==> b <==", "b1"]);
    bus.append("b", "txt", b"b2\n");
    expect(&["b2"]);
    bus.append("a", "txt", b"a3\n");
    expect(&["", "==> a <==", "a3"]);
    // The others go on without one that is removed.
    let mut errors = BufReader::new(tail.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut remove = |queue: &str| {
        bus.stdout(&["rm", "--force", queue]);
        assert!(errors.next().unwrap().contains(&format!("{queue}: cannot go on with the queue: it has been removed")));
    };
    remove("b");
    bus.append("a", "txt", b"a4\n");
    assert_eq!(next_line(&mut tail), "a4");
    remove("a");
    assert_eq!(tail.wait().unwrap().code(), Some(1));
}

#[test]
fn tail_waits_for_queues_that_do_not_exist_yet() {
    let bus = Bus::new();
    bus.append("a", "txt", b"a1\n");
    let mut tail = bus.command(&["tail", "--wait", "--format", "txt", "a", "new/q"]);
    let tail = tail.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut follow = bus.command(&["tail", "-f", "--wait", "-n", "+1", "--format", "txt", "new/q"]);
    let mut follow = follow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    bus.append("new/other", "txt", b"");
    bus.append("new/q", "txt", b"q1\n");
    assert_eq!(next_line(&mut follow), "q1");
    end_quietly(follow);
    let output = tail.wait_with_output().unwrap();
    let printed = String::from_utf8(output.stdout.clone()).unwrap();
    // It may have seen the queue before its first message.
    let is_whole = printed == "==> a <==\na1\n\n==> new/q <==\nq1\n" || printed == "==> a <==\na1\n";
    assert!(code(&output) == 0 && is_whole, "{printed}{}", stderr(&output));
    // One that waits in vain ends when nobody reads it.
    let mut vain = bus.command(&["tail", "--wait", "missing"]);
    end_quietly(vain.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    fs::write(bus.path("file"), "").unwrap();
    assert_fails(&bus.run(&["tail", "--wait", "file"]), &["file: not a queue: it is not a directory"]);
}

#[test]
fn what_tail_prints_can_be_appended_again() {
    let bus = Bus::new();
    bus.append("a", "jsonl", b"{\"payload\":\"x\\ny\",\"type\":3}\n{\"payload_b64\":\"/w==\"}\n");
    let printed = bus.stdout(&["tail", "-n", "+1", "--format", "jsonl", "a"]);
    bus.append("b", "jsonl", printed.as_bytes());
    assert_eq!(bus.stdout(&["tail", "-n", "+1", "--format", "jsonl", "b"]), printed);
}

#[test]
fn tail_starts_where_it_is_told_to() {
    let bus = Bus::new();
    bus.numbered("q", 30);
    let range = |from, to| (from..=to).collect::<Vec<u64>>();
    assert_eq!(bus.tail(&["q"]), range(21, 30), "the last ten by default");
    assert_eq!(bus.tail(&["q", "-n", "3"]), range(28, 30));
    assert_eq!(bus.tail(&["q", "-n0"]), NONE);
    assert_eq!(bus.tail(&["q", "-n", "100"]), range(1, 30));
    assert_eq!(bus.tail(&["q", "-n", "18446744073709551615"]), range(1, 30));
    assert_eq!(bus.tail(&["q", "-n", "+1"]), range(1, 30));
    assert_eq!(bus.tail(&["q", "-n", "+29"]), range(29, 30));
    assert_eq!(bus.tail(&["q", "-n", "+31"]), NONE);
    assert_eq!(bus.tail(&["q", "--from", "1"]), range(1, 30));
    assert_eq!(bus.tail(&["q", "--from", "30"]), [30]);
    assert_eq!(bus.tail(&["q", "--from", "31"]), NONE);
    assert_eq!(bus.tail(&["q", "--from", "18446744073709551615"]), NONE);
    assert_eq!(bus.tail(&["q", "--from", "5", "-n", "2"]), range(29, 30));
}

#[test]
fn tail_selects_by_time() {
    let bus = Bus::new();
    bus.numbered("q", 30);
    assert_eq!(bus.tail(&["q", "--since", "2024-08-08T09:15:28Z"]), [28, 29, 30]);
    assert_eq!(bus.tail(&["q", "--since", "@1723108528.5"]), [29, 30]);
    assert_eq!(bus.tail(&["q", "--since", "2024-08-08T09:15:05Z", "--until", "2024-08-08T09:15:07Z"]), [5, 6, 7]);
    assert_eq!(bus.tail(&["q", "--until", "2024-08-08T09:15:03Z"]), [1, 2, 3]);
    assert_eq!(bus.tail(&["q", "--until", "2024-08-08T09:15:20Z", "-n", "2"]), [19, 20]);
    assert_eq!(bus.tail(&["q", "--since", "1w ago"]), NONE, "the messages are older than that");
    assert_eq!(bus.tail(&["q", "--since", "-15m"]), NONE);
    assert_eq!(bus.tail(&["q", "--until", "2020-01-01T00:00:00Z"]), NONE);
    assert_eq!(code(&bus.run(&["tail", "q", "--since", "yesterday-ish"])), 2);
    assert_eq!(bus.tail(&["q", "--since", "2024-08-08 09:15:29 UTC"]), [29, 30]);
    for wrong in ["tail q --since 10:0", "merge . --since 10:0", "readers q seek r 10:0"] {
        let output = bus.run(&wrong.split(' ').collect::<Vec<_>>());
        assert_is_usage(&output, &["10:0"]);
    }
}

#[test]
fn times_are_the_same_wherever_one_is_taken() {
    let bus = Bus::new();
    bus.numbered("q", 30);
    bus.stdout(&["readers", "q", "add", "r"]);
    let run = |args: &[&str]| {
        let output = bus.command(args).env("TZ", "CEST-2").output().unwrap();
        assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    for time in ["2024-08-08 11:15:28", "@2024-08-08T09:15:28Z", "1723108528000000000", "@1723108528"] {
        let [tail, merge] = [&["tail", "q"][..], &["merge", ".", "--all-queues"]]
            .map(|args| run(&[args, &["--format", "txt", "--since", time]].concat()));
        assert_eq!((tail.as_str(), merge.as_str()), ("m28\nm29\nm30\n", "m28\nm29\nm30\n"), "{time}");
    }
    for time in ["2024-08-08 11:15:28", "@2024-08-08T09:15:28Z", "@1723108528"] {
        run(&["readers", "q", "seek", "r", time]);
        assert_eq!(bus.json(&["readers", "q", "--json"])["position"], 28, "{time}");
    }
}

#[test]
fn tail_filters_and_counts_only_what_it_prints() {
    let bus = Bus::new();
    bus.numbered("q", 30);
    assert_eq!(bus.tail(&["q", "-n", "+1", "--grep", "^m.$"]), (1..=9).collect::<Vec<_>>());
    assert_eq!(bus.tail(&["q", "-n", "2", "--grep", "^m.$"]), [8, 9]);
    assert_eq!(bus.tail(&["q", "--type", "2"]), (2..=29).step_by(3).collect::<Vec<_>>());
    assert_eq!(bus.tail(&["q", "-n", "4", "--type", "1", "--type", "2"]), [25, 26, 28, 29]);
    assert_eq!(bus.tail(&["q", "--from", "3", "--type", "0", "--grep", "1"]), [12, 15, 18, 21]);
    assert_eq!(bus.tail(&["q", "--type", "9"]), NONE);
    assert_eq!(code(&bus.run(&["tail", "q", "--grep", "("])), 2);
}

#[test]
fn the_last_matches_are_found_far_back() {
    let bus = Bus::new();
    bus.numbered("q", 20_000);
    assert_eq!(bus.tail(&["q", "-n", "3", "--grep", "^m..$"]), [97, 98, 99]);
    assert_eq!(bus.tail(&["q", "-n", "200", "--grep", "^m..$"]).len(), 90);
}

#[test]
fn a_reader_goes_on_where_it_committed() {
    let bus = Bus::new();
    bus.numbered("q", 5);
    bus.stdout(&["readers", "q", "add", "alice"]);
    bus.stdout(&["readers", "q", "seek", "alice", "3"]);
    assert_eq!(bus.tail(&["q", "--reader", "alice"]), [3, 4, 5]);
    assert_eq!(bus.tail(&["q", "--reader", "alice"]), [3, 4, 5], "nothing was committed");
    assert_eq!(bus.tail(&["q", "--reader", "alice", "--commit", "--grep", "5"]), [5]);
    assert_eq!(bus.tail(&["q", "--reader", "alice", "--commit"]), NONE, "filtered messages are consumed too");
    assert_eq!(bus.tail(&["q", "--reader", "bob", "--commit"]), [1, 2, 3, 4, 5], "a new one starts at the beginning");
    assert_eq!(code(&bus.run(&["tail", "q", "--commit"])), 2, "whose position?");
    assert_eq!(code(&bus.run(&["tail", "q", "--reader", "bob", "-n", "3"])), 2);
}

#[test]
fn a_damaged_message_is_reported_and_the_others_are_printed() {
    let bus = Bus::new();
    bus.append("q", "txt", b"before\ndamaged\nafter\n");
    let segment = bus.path("q/000000000.q");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(7).position(|window| window == b"damaged").unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let output = bus.run(&["tail", "q", "--format", "txt"]);
    assert_eq!(code(&output), 1);
    let printed = String::from_utf8(output.stdout.clone()).unwrap();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!((lines[0], lines[2], lines.len()), ("before", "after", 3));
    assert!(lines[1].starts_with("# gap"), "{}", lines[1]);
    assert!(
        stderr(&output).contains("q: messages 2 to 2 are missing: checksum (segment 0 offset "),
        "{}",
        stderr(&output)
    );
}

#[test]
fn tail_f_prints_new_messages_and_ends_when_nobody_reads_it() {
    let bus = Bus::new();
    bus.append("q", "txt", b"first\n");
    let mut tail = follow(&bus, "q");
    assert_eq!(next_line(&mut tail), "first");
    for n in 0..20 {
        bus.append("q", "txt", format!("{n}\n").as_bytes());
        assert_eq!(next_line(&mut tail), n.to_string());
    }
    end_quietly(tail);
}

#[test]
fn tail_f_follows_over_segments() {
    let bus = Bus::new();
    bus.stdout(&["create", "q", "--segment-size", "64KiB"]);
    let mut tail =
        bus.command(&["tail", "-f", "-n", "0", "--format", "txt", "q"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines: String = (0..5_000).map(|n| format!("{n:0100}\n")).collect();
    // Several runs: the follower starts somewhere among them, and from there on nothing is missing.
    let mut stdout = BufReader::new(tail.stdout.take().unwrap());
    let mut line = String::new();
    std::thread::scope(|scope| {
        let (sender, seen) = std::sync::mpsc::channel::<()>();
        let bus = &bus;
        let lines = &lines;
        scope.spawn(move || {
            while seen.try_recv().is_err() {
                bus.append("q", "txt", lines.as_bytes());
            }
        });
        let mut expected = None;
        for _ in 0..12_000 {
            line.clear();
            stdout.read_line(&mut line).unwrap();
            let number: u64 = line.trim().parse().unwrap();
            assert!(expected.is_none_or(|e| e == number), "{number} instead of {expected:?}");
            expected = Some((number + 1) % 5_000);
        }
        sender.send(()).unwrap();
    });
    drop(stdout);
    assert!(tail.wait().unwrap().success());
}

#[test]
fn colours_are_for_terminals() {
    let bus = Bus::new();
    bus.append("q", "txt", b"hello\n");
    assert!(!bus.stdout(&["tail", "q"]).contains('\x1b'));
    let coloured = bus.stdout(&["tail", "q", "--color", "always"]);
    assert!(
        coloured.starts_with("\x1b[36m#1 ") && coloured.lines().next().unwrap().ends_with("\x1b[0m"),
        "{coloured:?}"
    );
    assert!(!bus.stdout(&["tail", "q", "--color", "always", "--format", "jsonl"]).contains('\x1b'));
}

#[test]
fn tail_f_ends_when_the_queue_is_removed() {
    let bus = Bus::new();
    bus.append("q", "txt", b"first\n");
    let reader = ["tail", "-f", "--reader", "r", "--format", "txt", "q"];
    let tails = [&["tail", "-f", "--format", "txt", "q"][..], &reader].map(|args| {
        let mut tail = bus.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        assert_eq!(next_line(&mut tail), "first");
        tail
    });
    fs::remove_dir_all(bus.path("q")).unwrap();
    bus.append("q", "txt", b"of another queue\n");
    for tail in tails {
        assert_fails(&tail.wait_with_output().unwrap(), &["q: cannot go on with the queue: it has been removed"]);
    }
}

#[test]
fn tail_capital_f_waits_for_a_queue_and_for_the_one_that_replaces_it() {
    for names in [&["q"][..], &["q", "other"]] {
        let bus = Bus::new();
        bus.append("other", "txt", b"there\n");
        let args = [&["tail", "-F", "--format", "jsonl"][..], names].concat();
        let mut tail = bus.command(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut expect = |payloads: &[&str]| {
            let lines: Vec<String> = payloads.iter().map(|_| next_line(&mut tail)).collect();
            for payload in payloads {
                let found = format!("\"payload\":\"{payload}\"");
                assert!(lines.iter().any(|line| line.contains(&found)), "{payload} is not in {lines:?}");
            }
        };
        bus.append("q", "txt", b"first\n");
        expect(if names.len() == 1 { &["first"] } else { &["first", "there"] });
        for payload in ["second", "third"] {
            fs::remove_dir_all(bus.path("q")).unwrap();
            if names.len() > 1 {
                bus.append("other", "txt", b"meanwhile\n");
                expect(&["meanwhile"]);
            }
            bus.append("q", "txt", format!("{payload}\n").as_bytes());
            expect(&[payload]);
        }
        end_quietly(tail);
    }
}

#[test]
fn tail_capital_f_goes_on_after_a_queue_that_cannot_be_read() {
    let bus = Bus::new();
    bus.append("q", "txt", b"first\n");
    let mut tail = bus.command(&["tail", "-F", "--format", "txt", "q"]);
    let mut tail = tail.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(next_line(&mut tail), "first");
    let mut errors = BufReader::new(tail.stderr.take().unwrap()).lines().map(Result::unwrap);
    fs::remove_dir_all(bus.path("q")).unwrap();
    assert!(errors.any(|line| line.contains("it has been removed")));
    // Half of a queue, as one that is being copied is.
    fs::create_dir(bus.path("q")).unwrap();
    fs::write(bus.path("q").join("control.meta"), b"").unwrap();
    assert!(errors.any(|line| line.contains("q/control.meta: ")));
    fs::remove_dir_all(bus.path("q")).unwrap();
    bus.append("q", "txt", b"second\n");
    assert_eq!(next_line(&mut tail), "second");
    end_quietly(tail);
}
