//! `set`, and the settings of `create` and of queues that come into being by the way.

use chronfs::queue::Queue;

use super::{Bus, assert_fails, assert_is_usage, code, stderr};

#[test]
fn set_shows_and_changes_settings() {
    let bus = Bus::new();
    let all = ["--retain-segments", "5", "--reader-ttl", "1h", "--max-lag", "1GiB", "--roll-every", "day"];
    bus.stdout(&[&["create", "q", "--retain-age", "7d", "--payload-align", "64"][..], &all].concat());
    let settings = bus.stdout(&["set", "q"]);
    for line in ["retain-segments  5", "reader-ttl       1h", "roll-every       1d", "retain-bytes     none"] {
        assert!(settings.lines().any(|found| found == line), "{line}: {settings}");
    }
    assert_eq!(settings.lines().count(), 9);

    let changed = bus.stdout(&["set", "q", "--retain-bytes", "1GiB", "--max-lag", "none", "--retain-segments", "5"]);
    assert_eq!(changed, "retain-bytes     none -> 1GiB\nmax-lag          1GiB -> none\n");
    let json = &bus.json(&["inspect", "--json", "q"])["settings"];
    assert_eq!((&json["retain_bytes"], &json["max_lag_bytes"]), (&(1 << 30).into(), &serde_json::Value::Null));
    let same = bus.run(&["set", "q", "--retain-bytes", "1GiB"]);
    assert!(code(&same) == 0 && same.stdout.is_empty() && stderr(&same).contains("nothing to change"), "{same:?}");

    let changed = bus.stdout(&["set", "q", "--retain-bytes", "1025MiB"]);
    assert_eq!(changed, "retain-bytes     1GiB -> 1025MiB\n", "however small the change");

    assert_is_usage(&bus.run(&["set", "q", "--max-bytes", "1KiB"]), &["less than one segment"]);
    assert_is_usage(&bus.run(&["set", "q", "--segment-size", "none"]), &["not a size"]);
    assert_is_usage(&bus.run(&["set", "q", "--roll-every", "fortnight"]), &["not a time span"]);
    assert_fails(&bus.run(&["set", "missing", "--max-bytes", "1GiB"]), &["missing: not a queue"]);
}

#[test]
fn set_says_when_a_running_writer_takes_it_over_and_inspect_shows_both() {
    let bus = Bus::new();
    bus.stdout(&["create", "q", "--segment-size", "64KiB", "--retain-segments", "9"]);
    let queue = Queue::open(bus.path("q")).unwrap();
    let mut writer = queue.writer().unwrap();
    let set = bus.run(&["set", "q", "--retain-segments", "3"]);
    let said = stderr(&set);
    assert!(said.contains(&format!("process {}", std::process::id())) && said.contains("next segment"), "{said}");
    let text = bus.stdout(&["inspect", "q"]);
    assert!(text.contains("3 sealed segments") && text.contains("until the next segment: "), "{text}");
    let json = bus.json(&["inspect", "--json", "q"]);
    assert_eq!(json["active_settings"]["retain_segments"], 9);
    writer.append(1, &[0; 60_000]).unwrap();
    writer.append(1, &[0; 60_000]).unwrap();
    assert_eq!(bus.json(&["inspect", "--json", "q"])["active_settings"], serde_json::Value::Null);
    assert!(!bus.stdout(&["inspect", "q"]).contains("next segment"));
}

#[test]
fn no_disk_is_filled_without_a_word() {
    let bus = Bus::new();
    let create = |options: &[&str]| stderr(&bus.run(&[&["create"][..], options].concat()));
    let said = create(&["everything"]);
    assert!(said.contains("everything is kept") && said.contains("chron-cli set everything --retain-bytes"), "{said}");
    assert_eq!(create(&["limited", "--retain-age", "7d"]), "");
    let said = create(&["full", "--segment-size", "64KiB", "--max-bytes", "256KiB"]);
    assert!(said.contains("refused for ever"), "{said}");
    assert_eq!(create(&["fine", "--segment-size", "64KiB", "--max-bytes", "256KiB", "--retain-bytes", "64KiB"]), "");

    for (args, kept) in
        [(&["append", "appended"][..], true), (&["append", "-q", "quiet"], false), (&["send", "sent", "x"], true)]
    {
        let output = bus.run_with(args, b"x\n");
        let text = stderr(&output);
        assert_eq!((code(&output), text.contains("created; it keeps")), (0, kept), "{text}");
        let queue = args.iter().find(|word| bus.path(word).is_dir()).unwrap();
        assert!(bus.json(&["inspect", "--json", queue])["settings"]["retain_bytes"].is_u64());
        assert!(!stderr(&bus.run_with(args, b"x\n")).contains("created"), "only once");
    }
}

#[test]
fn what_a_full_queue_advises_helps() {
    let bus = Bus::new();
    let lines = |queue: &str| bus.run_with(&["append", queue], &b"0123456789abcdef\n".repeat(10_000));
    bus.stdout(&["create", "q", "--segment-size", "64KiB", "--max-bytes", "256KiB"]);
    let text = stderr(&lines("q"));
    assert!(text.contains("--retain-bytes") && text.contains("chron-cli set"), "{text}");
    bus.stdout(&["set", "q", "--retain-bytes", "64KiB"]);
    assert_eq!(code(&lines("q")), 0);
    // Full again, because of a reader.
    bus.stdout(&["readers", "q", "add", "slow"]);
    let text = stderr(&lines("q"));
    assert!(text.contains("let readers catch up") && text.contains("--max-bytes"), "{text}");
}

#[test]
fn retain_says_why_nothing_goes() {
    let bus = Bus::new();
    bus.stdout(&["create", "q", "--retain-age", "80d"]);
    assert_eq!(code(&bus.run_with(&["append", "q"], b"x\n")), 0);
    let output = bus.run(&["retain", "q"]);
    let text = stderr(&output);
    assert!(text.contains("takes messages") && text.contains("it ends in"), "{text}");
    bus.stdout(&["set", "q", "--retain-age", "none", "--retain-segments", "1"]);
    assert!(stderr(&bus.run(&["retain", "q"])).contains("it ends when it is full"));
}

#[test]
fn doctor_takes_a_reader_that_keeps_many_times_the_limits_for_a_problem() {
    let bus = Bus::new();
    bus.stdout(&["create", "q", "--segment-size", "64KiB", "--retain-bytes", "64KiB"]);
    bus.stdout(&["readers", "q", "add", "forgotten"]);
    assert_eq!(code(&bus.run_with(&["append", "q"], &b"0123456789abcdef\n".repeat(5_000))), 0);
    assert_eq!(code(&bus.run(&["doctor", "q"])), 0, "a little more than the limits is normal");
    assert_eq!(code(&bus.run_with(&["append", "q"], &b"0123456789abcdef\n".repeat(10_000))), 0);
    let output = bus.run(&["doctor", "q"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(code(&output), 1, "{text}");
    for part in ["forgotten", "times as much", "readers q rm forgotten", "--max-lag", "--reader-ttl"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
