//! `chron-cli doctor`: every state of the fault table that can be made by hand is found, with the path and the remedy;
//! what is safe is repaired; a sound bus raises no alarm.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{Bus, PROGRAM, code, follow, next_line, stderr};

/// What doctor says: exit code and findings.
fn findings(bus: &Bus, options: &[&str]) -> (i32, Vec<Value>) {
    let output = bus.run(&[&["doctor", "--json", "."][..], options].concat());
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(&output)));
    (code(&output), json["findings"].as_array().unwrap().clone())
}

/// Expects this finding, and nothing worse than it.
fn expect(bus: &Bus, options: &[&str], severity: &str, kind: &str, path: &str) -> Value {
    let (code, found) = findings(bus, options);
    let finding = found.iter().find(|finding| finding["kind"] == kind && finding["path"] == format!("./{path}"));
    let finding = finding.unwrap_or_else(|| panic!("no {kind} at {path} in {found:#?}")).clone();
    assert_eq!(finding["severity"], severity, "{finding}");
    let problems = found.iter().any(|finding| finding["severity"] != "info");
    assert_eq!(code, i32::from(problems), "{found:#?}");
    assert!(!finding["remedy"].as_str().unwrap().is_empty() && !finding["detail"].as_str().unwrap().is_empty());
    finding
}

fn several_segments(bus: &Bus) {
    bus.stdout(&["create", "q", "--segment-size", "64KiB"]);
    let lines: String = (0..1500).map(|n| format!("{n:0100}\n")).collect();
    bus.append("q", "txt", lines.as_bytes());
}

fn overwrite(bus: &Bus, file: &str, at: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(bus.path(file)).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn a_sound_bus_is_all_well() {
    let bus = Bus::new();
    several_segments(&bus);
    bus.numbered("deep/b", 3);
    bus.stdout(&["readers", "deep/b", "add", "alice"]);
    chronfs::bus::mark_ready(bus.path("q")).unwrap();
    chronfs::bus::write_lease(bus.path("q"), Duration::from_secs(3600), "").unwrap();
    for options in [&[][..], &["--deep"], &["--fix"]] {
        assert_eq!(findings(&bus, options), (0, vec![]), "{options:?}");
    }
    assert_eq!(bus.stdout(&["doctor", "."]), "2 queues checked: all well\n");
    assert_eq!(bus.stdout(&["doctor", "--deep", "q"]), "1 queue checked: all well\n");
}

#[test]
fn a_queue_that_is_being_written_to_raises_no_alarm() {
    let bus = Bus::new();
    let mut writer = Command::new(PROGRAM)
        .args(["append", "q"])
        .current_dir(bus.0.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    use std::io::Write as _;
    let stdin = writer.stdin.as_mut().unwrap();
    stdin.write_all(b"here\n").unwrap();
    let mut tail = follow(&bus, "q");
    assert_eq!(next_line(&mut tail), "here");
    assert_eq!(findings(&bus, &["--deep"]), (0, vec![]));
    tail.kill().unwrap();
    tail.wait().unwrap();

    // Killed: the next one repairs it, or doctor does.
    writer.kill().unwrap();
    writer.wait().unwrap();
    let finding = expect(&bus, &[], "warning", "dead-writer", "q");
    assert_eq!(finding["fixable"], true);
    expect(&bus, &[], "info", "stale-lock", "q/writer.lock");
    let text = bus.stdout(&["doctor", "--fix", "."]);
    assert!(text.starts_with("fixed  ") && text.ends_with("all well\n"), "{text}");
    assert_eq!(findings(&bus, &[]), (0, vec![]));
    assert_eq!(bus.stdout(&["tail", "q", "--format", "txt"]), "here\n");
}

#[test]
fn a_damaged_control_block_is_repaired_and_its_evidence_kept() {
    let bus = Bus::new();
    bus.numbered("q", 3);
    overwrite(&bus, "q/control.meta", 0, &[0xff; 256]);
    let before = fs::read(bus.path("q/control.meta")).unwrap();
    expect(&bus, &[], "error", "control-block", "q/control.meta");
    assert!(fs::read(bus.path("q/control.meta")).unwrap() == before, "looking changes nothing");
    assert!(bus.stdout(&["doctor", "--fix", "."]).contains("control-block"));
    expect(&bus, &[], "info", "evidence", "q/control.meta.damaged");
    assert_eq!(bus.tail(&["q"]), [1, 2, 3]);
    fs::remove_file(bus.path("q/control.meta")).unwrap();
    expect(&bus, &[], "error", "control-block", "q/control.meta");
}

#[test]
fn a_damaged_reader_is_named_with_the_command_that_resets_it() {
    let bus = Bus::new();
    bus.numbered("q", 3);
    bus.stdout(&["readers", "q", "add", "alice"]);
    overwrite(&bus, "q/readers/alice.meta", 0, &[0xff; 4096]);
    for options in [&[][..], &["--fix"]] {
        let finding = expect(&bus, options, "error", "damaged-reader", "q/readers/alice.meta");
        assert!(finding["remedy"].as_str().unwrap().contains("chron-cli readers ./q seek alice first"), "{finding}");
    }
    bus.stdout(&["readers", "q", "seek", "alice", "first"]);
    assert_eq!(findings(&bus, &[]), (0, vec![]));
}

#[test]
fn every_damaged_message_is_found_by_looking_deep() {
    let bus = Bus::new();
    several_segments(&bus);
    let segment = bus.path("q/000000001.q");
    let bytes = fs::read(&segment).unwrap();
    // In the middle of the segment: it shows only to who reads it.
    overwrite(&bus, "q/000000001.q", bytes.len() as u64 / 2, &[bytes[bytes.len() / 2] ^ 1]);
    assert_eq!(findings(&bus, &[]).0, 0);
    let finding = expect(&bus, &["--deep"], "error", "gap", "q/000000001.q");
    assert!(finding["detail"].as_str().unwrap().contains("at offset"), "{finding}");
    // The first record of a segment shows without.
    overwrite(&bus, "q/000000001.q", 4096 + 40, b"\xff\xff\xff");
    expect(&bus, &[], "error", "gap", "q/000000001.q");
}

#[test]
fn segments_that_are_cut_short_missing_renamed_or_copied_are_found() {
    let bus = Bus::new();
    several_segments(&bus);
    let (first, second) = (bus.path("q/000000001.q"), bus.path("q/000000002.q"));
    let saved = (fs::read(&first).unwrap(), fs::read(&second).unwrap());

    fs::File::options().write(true).open(&first).unwrap().set_len(10_000).unwrap();
    expect(&bus, &[], "error", "truncated-segment", "q/000000001.q");
    fs::write(&first, "").unwrap();
    expect(&bus, &[], "error", "truncated-segment", "q/000000001.q");
    fs::remove_file(&first).unwrap();
    expect(&bus, &[], "error", "missing-segment", "q/000000001.q");
    fs::write(&first, &saved.1).unwrap();
    expect(&bus, &[], "error", "damaged-segment", "q/000000001.q");
    fs::write(&first, &saved.0).unwrap();
    assert_eq!(findings(&bus, &["--deep"]), (0, vec![]));
    fs::rename(&first, bus.path("q/one.q")).unwrap();
    expect(&bus, &[], "warning", "foreign", "q/one.q");
}

#[test]
fn a_queue_of_which_nothing_can_be_read_is_an_error() {
    let bus = Bus::new();
    bus.numbered("q", 3);
    overwrite(&bus, "q/control.meta", 0, &[0xff; 4096]);
    overwrite(&bus, "q/000000000.q", 0, &[0xff; 4096]);
    expect(&bus, &[], "error", "unreadable-queue", "q/control.meta");
}

#[test]
fn leases_markers_leftovers_and_things_that_do_not_belong_there() {
    let bus = Bus::new();
    bus.numbered("q", 1);
    chronfs::bus::mark_ready(bus.path("q")).unwrap();
    chronfs::bus::write_lease(bus.path("q"), Duration::from_millis(1), "").unwrap();
    while chronfs::bus::lease(bus.path("q")).unwrap().unwrap().state == chronfs::bus::LeaseState::Live {}
    let finding = expect(&bus, &[], "warning", "expired-lease", "q/LEASE");
    assert!(finding["detail"].as_str().unwrap().contains("still marked as READY"), "{finding}");
    fs::write(bus.path("q/LEASE"), "").unwrap();
    expect(&bus, &[], "warning", "unknown-lease", "q/LEASE");
    fs::remove_file(bus.path("q/LEASE")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", bus.path("q/LEASE")).unwrap();
    expect(&bus, &[], "warning", "bad-marker", "q/LEASE");
    fs::remove_file(bus.path("q/LEASE")).unwrap();

    fs::write(bus.path("q/000000007.q.tmp"), "x").unwrap();
    let finding = expect(&bus, &[], "info", "leftover", "q/000000007.q.tmp");
    assert_eq!(finding["fixable"], true);
    bus.stdout(&["doctor", "--fix", "."]);
    assert!(!bus.path("q/000000007.q.tmp").exists());

    fs::create_dir(bus.path("q/inner")).unwrap();
    expect(&bus, &[], "info", "foreign", "q/inner");
    std::os::unix::fs::symlink("control.meta", bus.path("q/link")).unwrap();
    expect(&bus, &[], "warning", "refused", "q/link");
    fs::remove_file(bus.path("q/link")).unwrap();
    fs::hard_link(bus.path("q/000000000.q"), bus.path("elsewhere")).unwrap();
    expect(&bus, &[], "warning", "hard-link", "q/000000000.q");
    fs::remove_file(bus.path("elsewhere")).unwrap();
    fs::create_dir(bus.path("unfinished")).unwrap();
    fs::write(bus.path("unfinished/writer.lock"), "").unwrap();
    expect(&bus, &[], "warning", "unfinished-queue", "unfinished/writer.lock");
}

#[test]
fn a_queue_that_is_nearly_full_is_named() {
    let bus = Bus::new();
    bus.stdout(&["create", "q", "--segment-size", "64KiB", "--max-bytes", "64KiB"]);
    let finding = expect(&bus, &[], "warning", "nearly-full", "q");
    assert!(finding["remedy"].as_str().unwrap().contains("chron-cli retain ./q"), "{finding}");
}

#[test]
fn what_cannot_be_looked_at_is_4() {
    let bus = Bus::new();
    let output = bus.run(&["doctor", "missing"]);
    assert_eq!(code(&output), 4);
    assert!(stderr(&output).starts_with("chron-cli: missing: cannot list: No such file or directory; give a queue"));
    assert_eq!(code(&bus.run(&["doctor"])), 2);
    bus.numbered("q", 1);
    fs::set_permissions(bus.path("q"), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read_dir(bus.path("q")).is_err() {
        let output = bus.run(&["doctor", "."]);
        assert_eq!(code(&output), 4, "{}", stderr(&output));
    }
    fs::set_permissions(bus.path("q"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn people_get_a_line_for_what_and_one_for_what_to_do() {
    let bus = Bus::new();
    bus.numbered("q", 3);
    bus.stdout(&["readers", "q", "add", "alice"]);
    overwrite(&bus, "q/readers/alice.meta", 0, &[0xff; 4096]);
    let output = bus.run(&["doctor", "."]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("error    ./q/readers/alice.meta: damaged-reader: "), "{text}");
    assert!(lines[1].trim_start().starts_with("-> ") && lines[1].contains("chron-cli readers"), "{text}");
    assert_eq!(lines.last(), Some(&"1 queue checked: 1 error, 0 warnings"), "{text}");
    assert_eq!((code(&output), stderr(&output)), (1, String::new()));
    assert!(!text.contains('\x1b'));
    let coloured = bus.run(&["doctor", "--color", "always", "."]).stdout;
    assert!(String::from_utf8_lossy(&coloured).starts_with("\x1b[31merror"));
}
