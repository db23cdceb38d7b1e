//! `watch`, `merge`, `retain` and leases in `ls` and `inspect`: commands about more than one queue's messages.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{Bus, assert_fails, code, end_quietly, next_line, stderr};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn watch_reports_the_current_state_and_changes() {
    let bus = Bus::new();
    bus.numbered("a", 1);
    fs::write(bus.path("a/READY"), "").unwrap();
    let once = bus.stdout(&["watch", "--once", "."]);
    let words: Vec<Vec<&str>> = once.lines().map(|line| line.split_whitespace().skip(1).collect()).collect();
    assert_eq!(words, [["added", "a"], ["ready", "a"]]);

    let mut watch = bus.command(&["watch", "--json", "."]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut expect = |event: &str, path: &str| {
        let line: Value = serde_json::from_str(&next_line(&mut watch)).unwrap();
        assert_eq!((&line["event"], &line["path"]), (&event.into(), &path.into()), "{line}");
        assert!(line["time"].is_string() && line["timestamp_ns"].is_u64(), "{line}");
    };
    expect("added", "./a");
    expect("ready", "./a");
    bus.stdout(&["create", "deep/b"]);
    expect("added", "./deep/b");
    chronfs::bus::mark_ready(bus.path("deep/b")).unwrap();
    expect("ready", "./deep/b");
    chronfs::bus::write_lease(bus.path("deep/b"), Duration::from_millis(300), "x").unwrap();
    expect("lease live", "./deep/b");
    expect("lease expired", "./deep/b");
    chronfs::bus::remove_lease(bus.path("deep/b")).unwrap();
    expect("lease removed", "./deep/b");
    fs::remove_dir_all(bus.path("deep")).unwrap();
    expect("removed", "./deep/b");
    fs::remove_file(bus.path("a/READY")).unwrap();
    expect("unready", "./a");
    end_quietly(watch);
}

#[test]
fn ls_and_inspect_show_leases() {
    let bus = Bus::new();
    bus.numbered("q", 1);
    assert_eq!(bus.json(&["inspect", "--json", "q"])["lease"], Value::Null);
    chronfs::bus::write_lease(bus.path("q"), Duration::from_secs(3600), "x").unwrap();
    let lease = &bus.json(&["inspect", "--json", "q"])["lease"];
    assert_eq!(lease["state"], "live");
    assert!(lease["age_ms"].is_u64());
    assert!(bus.stdout(&["ls", "."]).lines().nth(1).unwrap().ends_with("live"));
    assert!(bus.stdout(&["inspect", "q"]).contains("live, renewed"));
    assert_eq!(lines(&bus.stdout(&["ls", "--json", "."]))[0]["lease"]["state"], "live");
}

/// Lines with these payloads and times in seconds.
fn timed(messages: &[(&str, u64)]) -> String {
    let line = |(payload, s): &(&str, u64)| format!("{{\"payload\":\"{payload}\",\"timestamp_ns\":{s}000000000}}\n");
    messages.iter().map(line).collect()
}

#[test]
fn merge_orders_ready_queues_by_time() {
    let bus = Bus::new();
    bus.append("b", "jsonl", timed(&[("b1", 1), ("b3", 3), ("b5", 5)]).as_bytes());
    bus.append("deep/a", "jsonl", timed(&[("a1", 1), ("a2", 2), ("a5", 5)]).as_bytes());
    bus.append("not-ready", "jsonl", timed(&[("n1", 1)]).as_bytes());
    let output = bus.run(&["merge", "."]);
    assert_eq!((code(&output), output.stdout.as_slice()), (0, &b""[..]));
    assert!(
        stderr(&output).contains("none of the 3 queues here is marked as ready; --all-queues includes them"),
        "{}",
        stderr(&output)
    );

    fs::write(bus.path("b/READY"), "").unwrap();
    fs::write(bus.path("deep/a/READY"), "").unwrap();
    assert_eq!(bus.stdout(&["merge", "--format", "txt", "."]), "b1\na1\na2\nb3\nb5\na5\n", "by time, then by path");
    let all = bus.stdout(&["merge", "--format", "bin", "--all-queues", "--since", "@1", "."]);
    assert_eq!(all, "b1a1n1a2b3b5a5");
    assert_eq!(bus.stdout(&["merge", "--format", "txt", "--since", "@3", "."]), "b3\nb5\na5\n");
    let json = lines(&bus.stdout(&["merge", "."]));
    assert_eq!((&json[1]["queue"], &json[1]["seq"], &json[1]["payload"]), (&"deep/a".into(), &1.into(), &"a1".into()));
    assert_eq!(lines(&bus.stdout(&["merge", "b"]))[0]["queue"], "b");
    assert!(!bus.path("b/readers/merge.meta").exists(), "nothing is registered");
}

#[test]
fn merge_f_follows_queues_that_become_ready_later() {
    let bus = Bus::new();
    bus.numbered("a", 2);
    fs::write(bus.path("a/READY"), "").unwrap();
    let mut merge = bus.command(&["merge", "-f", "--all", "--format", "txt", "."]);
    let mut merge = merge.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!((next_line(&mut merge), next_line(&mut merge)), ("m1".to_owned(), "m2".to_owned()));
    bus.append("a", "txt", b"live\n");
    assert_eq!(next_line(&mut merge), "live");
    bus.append("b", "txt", b"from b\n");
    fs::write(bus.path("b/READY"), "").unwrap();
    assert_eq!(next_line(&mut merge), "from b");
    bus.append("b", "txt", b"more of b\n");
    assert_eq!(next_line(&mut merge), "more of b");
    end_quietly(merge);
}

#[test]
fn merge_reports_missing_messages() {
    let bus = Bus::new();
    bus.append("q", "txt", b"before\ndamaged\nafter\n");
    fs::write(bus.path("q/READY"), "").unwrap();
    let segment = bus.path("q/000000000.q");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(7).position(|window| window == b"damaged").unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let output = bus.run(&["merge", "--format", "txt", "."]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("q: messages 2 to 2 are missing: checksum"), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 3);
}

/// A queue of about four segments, of which retention keeps one.
fn several_segments(bus: &Bus) {
    bus.stdout(&["create", "q", "--segment-size", "64KiB", "--retain-bytes", "64KiB"]);
    bus.stdout(&["readers", "q", "add", "slow"]);
    let lines: String = (0..1500).map(|n| format!("{n:0100}\n")).collect();
    bus.append("q", "txt", lines.as_bytes());
}

#[test]
fn retain_says_what_is_removed_and_which_readers_keep_the_rest() {
    let bus = Bus::new();
    several_segments(&bus);
    let segments = || bus.json(&["inspect", "--json", "q"])["segments"].as_array().unwrap().len();
    let before = segments();
    let text = bus.stdout(&["retain", "--dry-run", "q"]);
    assert!(text.starts_with("would be removed: nothing\n") && text.contains("slow"), "{text}");
    bus.stdout(&["readers", "q", "rm", "slow"]);
    let text = bus.stdout(&["retain", "-n", "q"]);
    assert!(text.starts_with("would be removed: ") && text.contains("messages 1 to "), "{text}");
    assert_eq!(segments(), before, "nothing has changed");
    let dry = bus.json(&["retain", "--dry-run", "--json", "q"]);
    assert!(dry["removed_bytes"].as_u64().unwrap() >= 65_536 && dry["dry_run"] == true, "{dry}");
    let json = bus.json(&["retain", "--json", "q"]);
    assert_eq!((&json["removed"], &json["dry_run"]), (&dry["removed"], &Value::Bool(false)));
    assert_eq!(segments(), before - json["removed"].as_array().unwrap().len());
    assert_eq!(bus.stdout(&["retain", "q"]), "removed: nothing\n");

    bus.stdout(&["create", "unlimited"]);
    bus.numbered("unlimited", 1);
    let output = bus.run(&["retain", "unlimited"]);
    assert!(stderr(&output).contains("unlimited: it has no retention limits"), "{}", stderr(&output));
    assert_fails(&bus.run(&["retain", "missing"]), &["missing: not a queue", "chron-cli create"]);
}

#[test]
fn unreadable_directories_are_reported() {
    use std::os::unix::fs::PermissionsExt as _;
    let bus = Bus::new();
    bus.numbered("open", 1);
    bus.numbered("closed", 1);
    let mode = |name: &str, mode| fs::set_permissions(bus.path(name), fs::Permissions::from_mode(mode)).unwrap();
    mode("closed", 0o000);
    // Root may read everything: another user runs a copy, because others may not have access to where this was
    // built.
    mode(".", 0o755);
    fs::copy(super::PROGRAM, bus.path("chron-cli")).unwrap();
    let another: &[&str] = &["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"];
    let words = if super::common::need::is_root() { another } else { &["env"] };
    for args in [&["watch", "--once", "."][..], &["merge", "--all-queues", "."]] {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "60"]).args(words).arg("./chron-cli").args(args).current_dir(bus.path("."));
        let output = command.output().unwrap();
        assert_eq!(code(&output), 1, "{args:?}");
        assert!(stderr(&output).contains("./closed: cannot list: Permission denied; run it as"), "{args:?}");
        assert!(!output.stdout.is_empty(), "the others are still shown");
    }
    mode("closed", 0o755);
}

#[test]
fn dead_mounts_are_reported() {
    if !super::common::need::require(super::common::need::Need::Mount) {
        return;
    }
    let bus = Bus::new();
    bus.append("bus/q", "txt", b"hello\n");
    fs::write(bus.path("bus/q/READY"), "").unwrap();
    fs::create_dir_all(bus.path("bus/dead")).unwrap();
    fs::create_dir_all(bus.path("other")).unwrap();
    let mut daemon = bus.command(&["mount", "-f", "other", "bus/dead"]);
    let daemon = super::common::Running::new(daemon.stderr(Stdio::null()).spawn().unwrap());
    super::common::until("it is mounted", || super::common::is_mounted(&bus.path("bus/dead")));
    // `timeout` forwards the signals that it can.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.id())).unwrap();
    super::common::signal_to(children.trim().parse().unwrap(), "KILL");
    drop(daemon.output());
    for args in [&["merge", "--format", "txt", "bus"][..], &["watch", "--once", "bus"]] {
        let output = bus.run(args);
        let (text, printed) = (stderr(&output), String::from_utf8_lossy(&output.stdout).into_owned());
        assert!(code(&output) == 1 && text.contains("bus/dead: cannot list: "), "{args:?}: {text}");
        assert!(printed.contains("hello") || printed.contains("ready"), "{args:?}: {printed}");
    }
    super::common::detach(&bus.path("bus/dead"));
}

#[test]
fn an_unreadable_directory_is_not_taken_for_one_without_a_queue() {
    use std::os::unix::fs::PermissionsExt as _;
    if !super::common::need::require(super::common::need::Need::Admin) {
        return;
    }
    let bus = Bus::new();
    bus.append("q", "txt", b"hello\n");
    let program = bus.path("chron-cli");
    fs::copy(super::PROGRAM, &program).unwrap();
    for (path, mode) in [("q", 0o733), (".", 0o755), ("chron-cli", 0o755)] {
        fs::set_permissions(bus.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program).args(["create", "q/inner"]);
    let output = command.current_dir(bus.path("")).output().unwrap();
    assert_fails(&output, &["q: cannot ", "Permission denied"]);
    assert!(!bus.path("q/inner").exists());
}
