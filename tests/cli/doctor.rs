//! `chron-cli doctor`: every state of the fault table that can be made by hand is found, with the path and the remedy;
//! what is safe is repaired; a healthy bus has no findings.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use chronfs::queue::Queue;
use serde_json::Value;

use super::common::{SMALL, SmallDisk};
use super::{Bus, PROGRAM, code, follow, next_line, stderr};

/// Doctor's exit code and findings.
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
fn a_healthy_bus_is_all_well() {
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
fn a_queue_that_is_being_written_to_has_no_findings() {
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
    assert!(fs::read(bus.path("q/control.meta")).unwrap() == before, "examining changes nothing");
    assert!(bus.stdout(&["doctor", "--fix", "."]).contains("control-block"));
    expect(&bus, &[], "info", "evidence", "q/control.meta.damaged");
    assert_eq!(bus.tail(&["q"]), [1, 2, 3]);
    fs::remove_file(bus.path("q/control.meta")).unwrap();
    expect(&bus, &[], "error", "control-block", "q/control.meta");
}

#[test]
fn a_damaged_reader_is_reported_with_the_command_that_resets_it() {
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
fn every_damaged_message_is_found_by_deep() {
    let bus = Bus::new();
    several_segments(&bus);
    let segment = bus.path("q/000000001.q");
    let bytes = fs::read(&segment).unwrap();
    // In the middle of the segment: only reading it shows the damage.
    overwrite(&bus, "q/000000001.q", bytes.len() as u64 / 2, &[bytes[bytes.len() / 2] ^ 1]);
    assert_eq!(findings(&bus, &[]).0, 0);
    let finding = expect(&bus, &["--deep"], "error", "gap", "q/000000001.q");
    assert!(finding["detail"].as_str().unwrap().contains("at offset"), "{finding}");
    // The first record of a segment is always read.
    overwrite(&bus, "q/000000001.q", 4096 + 40, b"\xff\xff\xff");
    expect(&bus, &[], "error", "gap", "q/000000001.q");
}

#[test]
fn truncated_missing_renamed_and_copied_segments_are_found() {
    let bus = Bus::new();
    several_segments(&bus);
    let (first, second) = (bus.path("q/000000001.q"), bus.path("q/000000002.q"));
    let saved = (fs::read(&first).unwrap(), fs::read(&second).unwrap());

    fs::File::options().write(true).open(&first).unwrap().set_len(10_000).unwrap();
    expect(&bus, &[], "error", "truncated-segment", "q/000000001.q");
    fs::write(&first, "").unwrap();
    expect(&bus, &[], "error", "truncated-segment", "q/000000001.q");
    fs::remove_file(&first).unwrap();
    let finding = expect(&bus, &[], "error", "missing-segment", "q/000000001.q");
    assert_eq!(finding["detail"], "the queue has segments 0 and 2");
    fs::write(&first, &saved.1).unwrap();
    expect(&bus, &[], "error", "damaged-segment", "q/000000001.q");
    fs::write(&first, &saved.0).unwrap();
    assert_eq!(findings(&bus, &["--deep"]), (0, vec![]));
    fs::rename(&first, bus.path("q/one.q")).unwrap();
    expect(&bus, &[], "warning", "foreign", "q/one.q");
}

#[test]
fn missing_newest_segments_are_found() {
    let bus = Bus::new();
    several_segments(&bus);
    // Four segments: 0 to 2 are full, 3 was prepared or has the last messages.
    let ids: Vec<u32> = (0..9).filter(|id| bus.path(&format!("q/{id:09}.q")).exists()).collect();
    let is_in_use = |id: u32| fs::read(bus.path(&format!("q/{id:09}.q"))).unwrap()[4096..4100] != [0; 4];
    let head = ids.iter().copied().filter(|&id| is_in_use(id)).max().unwrap();
    for id in ids.iter().filter(|&&id| id >= head) {
        fs::remove_file(bus.path(&format!("q/{id:09}.q"))).unwrap();
    }
    let finding = expect(&bus, &[], "error", "missing-segment", &format!("q/{head:09}.q"));
    assert!(finding["detail"].as_str().unwrap().ends_with(" to 1500"), "{finding}");
    for id in ids.iter().filter(|&&id| id < head) {
        fs::remove_file(bus.path(&format!("q/{id:09}.q"))).unwrap();
    }
    let finding = expect(&bus, &["--deep"], "error", "missing-segment", &format!("q/{head:09}.q"));
    assert!(finding["detail"].as_str().unwrap().contains("messages 1 to 1500"), "{finding}");
}

#[test]
fn a_flipped_bit_in_one_of_two_copies_is_found() {
    let bus = Bus::new();
    bus.numbered("q", 10);
    bus.stdout(&["readers", "q", "add", "alice"]);
    bus.stdout(&["readers", "q", "seek", "alice", "5"]);
    let flip = |file: &str, at: usize| {
        let mut byte = fs::read(bus.path(file)).unwrap()[at];
        byte ^= 4;
        overwrite(&bus, file, at as u64, &[byte]);
    };
    // Both copies of the settings, both slots of the head, both slots of the cursor: `format.md`.
    let files =
        [("q/control.meta", [0, 127, 128, 255, 260, 330]), ("q/readers/alice.meta", [64, 70, 95, 128, 140, 159])];
    for (file, places) in files {
        for at in places {
            flip(file, at);
            let finding = expect(&bus, &[], "warning", "damaged-copy", file);
            assert!(finding["detail"].as_str().unwrap().contains("offset"), "{finding}");
            flip(file, at);
            assert_eq!(findings(&bus, &[]), (0, vec![]), "byte {at}");
        }
    }
    flip("q/control.meta", 5);
    bus.stdout(&["doctor", "--fix", "."]);
    assert_eq!(findings(&bus, &[]), (0, vec![]));
}

#[test]
fn a_damaged_copy_of_a_segments_identity_is_found() {
    let bus = Bus::new();
    several_segments(&bus);
    let file = "q/000000001.q";
    let saved = fs::read(bus.path(file)).unwrap();
    for (at, len) in [(0, 1), (17, 1), (0, 4096), (saved.len() - 1, 1), (saved.len() - 64, 64)] {
        let damaged: Vec<u8> = saved[at..at + len].iter().map(|byte| !byte).collect();
        overwrite(&bus, file, at as u64, &damaged);
        let finding = expect(&bus, &["--deep"], "warning", "damaged-copy", file);
        assert!(finding["detail"].as_str().unwrap().contains("offset"), "{finding}");
        assert!(
            bus.stdout(&["tail", "-n", "+1", "--format", "txt", "q"]).lines().count() == 1500,
            "nothing is missing"
        );
        overwrite(&bus, file, 0, &saved);
        assert_eq!(findings(&bus, &["--deep"]), (0, vec![]), "bytes from {at} on");
    }
    for (at, len) in [(0, 4096), (saved.len() - 64, 64)] {
        overwrite(&bus, file, at as u64, &vec![0xff; len]);
    }
    expect(&bus, &[], "error", "damaged-segment", file);
    let shown = bus.stdout(&["inspect", "q"]);
    assert!(shown.lines().any(|line| line.starts_with("1 ") && line.ends_with("damaged")), "{shown}");
}

#[test]
fn a_segment_that_never_held_a_message_can_be_lost() {
    let bus = Bus::new();
    several_segments(&bus);
    let inspection: Value = serde_json::from_str(&bus.stdout(&["inspect", "q", "--json"])).unwrap();
    let head = inspection["head"]["segment"].as_u64().unwrap();
    // Prepared for the writer, or not.
    let unused = format!("q/{:09}.q", head + 1);
    fs::File::create(bus.path(&unused)).unwrap().set_len(5000).unwrap();
    expect(&bus, &[], "info", "truncated-segment", &unused);
    let lines: String = (0..1500).map(|n| format!("{n:0100}\n")).collect();
    bus.append("q", "txt", lines.as_bytes());
    expect(&bus, &["--deep"], "info", "truncated-segment", &unused);
    fs::remove_file(bus.path(&unused)).unwrap();
    assert_eq!(findings(&bus, &["--deep"]), (0, vec![]));
}

#[test]
fn a_segment_that_holds_messages_is_damaged_whatever_an_older_head_says() {
    let bus = Bus::new();
    bus.stdout(&["create", "q", "--segment-size", "64KiB"]);
    let lines = |count: u32| (0..count).map(|n| format!("{n:0100}\n")).collect::<String>();
    bus.append("q", "txt", lines(300).as_bytes());
    let older = fs::read(bus.path("q/control.meta")).unwrap();
    bus.append("q", "txt", lines(400).as_bytes());
    fs::write(bus.path("q/control.meta"), older).unwrap();
    fs::File::options().write(true).open(bus.path("q/000000001.q")).unwrap().set_len(40_000).unwrap();
    expect(&bus, &[], "error", "truncated-segment", "q/000000001.q");
}

#[test]
fn a_full_file_system_is_reported() {
    let Some(disk) = SmallDisk::new("4m") else { return };
    let doctor = || {
        let output = Command::new(PROGRAM).args(["doctor", "q"]).current_dir(disk.root()).output().unwrap();
        (code(&output), String::from_utf8(output.stdout).unwrap())
    };
    Queue::create(disk.path("q"), &SMALL).unwrap().writer().unwrap().append(1, b"x").unwrap();
    assert_eq!(doctor(), (0, "1 queue checked: all well\n".to_owned()));
    let mut ballast = fs::File::create(disk.path("ballast")).unwrap();
    while ballast.write_all(&[1; 4096]).is_ok() {}
    let (code, said) = doctor();
    assert!(code == 1 && said.contains("disk-full"), "{said}");
}

#[test]
fn an_unreadable_queue_is_an_error() {
    let bus = Bus::new();
    bus.numbered("q", 3);
    overwrite(&bus, "q/control.meta", 0, &[0xff; 4096]);
    overwrite(&bus, "q/000000000.q", 0, &[0xff; 4096]);
    expect(&bus, &[], "error", "unreadable-queue", "q/control.meta");
}

#[test]
fn leases_markers_leftovers_and_foreign_files_are_found() {
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

fn age(bus: &Bus, file: &str) {
    let output = Command::new("touch").args(["-h", "-d", "2 minutes ago"]).arg(bus.path(file)).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn leftovers_are_moved_aside_and_nothing_is_deleted() {
    let bus = Bus::new();
    bus.numbered("q", 1);
    bus.stdout(&["readers", "q", "add", "alice"]);
    fs::create_dir(bus.path("plain")).unwrap();
    let left = ["q/.READY.7.tmp", "q/readers/bob.meta.0123.tmp", "plain/.LEASE.7.tmp"];
    let aside = ["q/.aside/.READY.7.tmp", "q/.aside/bob.meta.0123.tmp", "plain/.aside/.LEASE.7.tmp"];
    for file in left {
        assert!(
            file.starts_with("q/readers") || chronfs::bus::is_temporary(file.rsplit('/').next().unwrap()),
            "{file}"
        );
        fs::write(bus.path(file), file).unwrap();
    }
    assert_eq!(findings(&bus, &["--fix"]), (0, vec![]), "they may be in use");
    for file in left {
        age(&bus, file);
        assert_eq!(expect(&bus, &[], "info", "leftover", file)["fixable"], true);
    }
    // Moving aside replaces no existing file.
    fs::create_dir(bus.path("q/.aside")).unwrap();
    fs::write(bus.path("q/.aside/bob.meta.0123.tmp"), "earlier").unwrap();
    let output = bus.run(&["doctor", "--fix", "."]);
    assert!(stderr(&output).contains("bob.meta.0123.tmp: cannot move it aside: File exists"), "{}", stderr(&output));
    fs::remove_file(bus.path("q/.aside/bob.meta.0123.tmp")).unwrap();
    bus.stdout(&["doctor", "--fix", "."]);
    for (left, aside) in left.into_iter().zip(aside) {
        assert!(!bus.path(left).exists(), "{left}");
        assert_eq!(fs::read_to_string(bus.path(aside)).unwrap(), left);
    }
    expect(&bus, &[], "info", "evidence", "q/.aside");
    assert_eq!(bus.stdout(&["ls", "."]).lines().count(), 2, "no queue is seen in it");
}

#[test]
fn a_lock_file_that_was_replaced_under_a_writer_is_reported() {
    let bus = Bus::new();
    bus.numbered("q", 1);
    let queue = chronfs::Queue::open(bus.path("q")).unwrap();
    let writer = queue.writer().unwrap();
    for replace in [false, true] {
        let _ = fs::remove_file(bus.path("q/writer.lock"));
        if replace {
            fs::write(bus.path("q/writer.lock"), "").unwrap();
        }
        let finding = expect(&bus, &[], "warning", "lock-replaced", "q/writer.lock");
        let me = format!("process {} (", std::process::id());
        assert!(finding["detail"].as_str().unwrap().starts_with(&me), "{finding}");
    }
    drop(writer);
    assert_eq!(findings(&bus, &[]), (0, vec![]));
}

/// Sets the heartbeat in a cursor file back by an hour.
fn silence(bus: &Bus, cursor: &str) {
    let at = u64::from(chronfs::queue::layout::CURSOR_LIVENESS);
    let file = fs::File::options().read(true).write(true).open(bus.path(cursor)).unwrap();
    let mut stamp = [0; 8];
    file.read_exact_at(&mut stamp, at).unwrap();
    // At least 1: 0 says that there was none.
    let earlier = u64::from_le_bytes(stamp).saturating_sub(3_600_000_000_000).max(1);
    file.write_all_at(&earlier.to_le_bytes(), at).unwrap();
}

#[test]
fn a_reader_that_is_in_use_and_does_not_move_is_reported() {
    let bus = Bus::new();
    bus.numbered("q", 3);
    let queue = chronfs::Queue::open(bus.path("q")).unwrap();
    let mut reader = queue.reader("alice").unwrap();
    reader.next().unwrap();
    reader.commit();
    assert_eq!(findings(&bus, &[]), (0, vec![]), "it has just begun");
    silence(&bus, "q/readers/alice.meta");
    let finding = expect(&bus, &[], "warning", "stuck-reader", "q/readers/alice.meta");
    assert!(finding["detail"].as_str().unwrap().contains("lags by 2 messages"), "{finding}");
    // A reader that has read everything needs no heartbeat.
    while reader.next().unwrap().is_some() {}
    reader.commit();
    assert_eq!(findings(&bus, &[]), (0, vec![]));
}

#[test]
fn an_expired_reader_is_reported() {
    let bus = Bus::new();
    let settings = chronfs::queue::Settings {
        segment_size: 64 << 10,
        retain_bytes: Some(1 << 30),
        max_lag_bytes: Some(1 << 20),
        reader_ttl_ns: Some(60_000_000_000),
        ..Default::default()
    };
    let fill = |settings: &chronfs::queue::Settings, name: &str| {
        let queue = chronfs::Queue::create(bus.path(name), settings).unwrap();
        let mut writer = queue.writer().unwrap();
        (0..30).for_each(|_| assert!(writer.append(1, &[7; 60_000]).is_ok()));
        queue
    };
    let queue = fill(&settings, "q");
    queue.add_reader("slow").unwrap();
    queue.add_reader("dead").unwrap();
    queue.seek_reader("dead", 25).unwrap();
    silence(&bus, "q/readers/dead.meta");
    for (reader, why) in [("dead", "no heartbeat"), ("slow", "lags by more")] {
        let finding = expect(&bus, &[], "warning", "ignored-reader", &format!("q/readers/{reader}.meta"));
        assert!(finding["detail"].as_str().unwrap().contains(why), "{finding}");
    }

    // As after retention has removed what the reader had not read.
    let queue = fill(&chronfs::queue::Settings { retain_bytes: None, ..settings }, "r");
    queue.add_reader("late").unwrap();
    fs::remove_file(bus.path("r/000000000.q")).unwrap();
    let finding = expect(&bus, &[], "warning", "missed", "r/readers/late.meta");
    assert!(finding["detail"].as_str().unwrap().starts_with("messages 1 to 1 were retired"), "{finding}");
}

#[test]
fn future_timestamps_and_non_files_are_reported() {
    let bus = Bus::new();
    let line = b"{\"payload\":\"x\",\"timestamp_ns\":4000000000000000000}\n";
    let output = bus.run_with(&["append", "q", "--format", "jsonl", "--max-ahead", "40000d"], line);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    expect(&bus, &[], "warning", "future-timestamp", "q");
    assert!(bus.stdout(&["inspect", "q"]).contains(" days in the future\n"));

    bus.numbered("r", 3);
    bus.stdout(&["readers", "r", "add", "bad"]);
    let make_fifo = |file: &str| {
        let _ = fs::remove_file(bus.path(file));
        assert!(Command::new("mkfifo").arg(bus.path(file)).status().unwrap().success());
    };
    for file in ["r/control.meta", "r/000000001.q", "r/writer.lock"] {
        let saved = fs::read(bus.path(file)).ok();
        make_fifo(file);
        let finding = expect(&bus, &[], "error", "refused", file);
        assert!(finding["remedy"].as_str().unwrap().starts_with("move it elsewhere"), "{finding}");
        fs::remove_file(bus.path(file)).unwrap();
        if let Some(saved) = saved {
            fs::write(bus.path(file), saved).unwrap();
        }
    }
    fs::write(bus.path("r/readers/no such name.meta"), "").unwrap();
    expect(&bus, &[], "info", "foreign", "r/readers/no such name.meta");
    fs::hard_link(bus.path("r/readers/bad.meta"), bus.path("elsewhere")).unwrap();
    expect(&bus, &[], "warning", "hard-link", "r/readers/bad.meta");
    fs::remove_dir_all(bus.path("r/readers")).unwrap();
    fs::write(bus.path("r/readers"), "").unwrap();
    expect(&bus, &[], "error", "refused", "r/readers");
}

#[test]
fn a_queue_that_is_full_or_nearly_full_is_reported() {
    let bus = Bus::new();
    let lines = b"0123456789abcdef\n".repeat(12_000);
    bus.stdout(&["create", "q", "--segment-size", "64KiB", "--max-bytes", "704KiB"]);
    assert_eq!(code(&bus.run_with(&["append", "q"], &lines)), 0);
    let finding = expect(&bus, &[], "warning", "nearly-full", "q");
    // There is nothing that retention could remove.
    assert!(finding["remedy"].as_str().unwrap().contains("chron-cli set ./q --retain-bytes"), "{finding}");
    let limits = ["--segment-size", "64KiB", "--max-bytes", "256KiB", "--retain-bytes", "64KiB"];
    bus.stdout(&[&["create", "r"][..], &limits].concat());
    bus.stdout(&["readers", "r", "add", "slow"]);
    assert_eq!(code(&bus.run_with(&["append", "r"], &lines)), 1);
    let finding = expect(&bus, &[], "warning", "full", "r");
    assert!(finding["remedy"].as_str().unwrap().contains("chron-cli retain ./r"), "{finding}");
}

#[test]
fn exit_code_4_is_for_what_cannot_be_checked() {
    let bus = Bus::new();
    let output = bus.run(&["doctor", "missing"]);
    assert_eq!(code(&output), 4);
    assert!(stderr(&output).starts_with("chron-cli: missing: cannot list: No such file or directory; name a queue"));
    assert_eq!(bus.stdout(&["doctor"]), "0 queues checked: no queues here\n", "what is here");
    assert_eq!(bus.stdout(&["doctor", "."]), "0 queues checked: no queues here\n");
    assert_eq!(bus.json(&["doctor", "--json", "."])["checked"], 0);
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
