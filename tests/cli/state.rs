//! `create`, `inspect`, `ls` and `readers`: a queue's settings and state; reading changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Bus, NONE, START_NS, assert_fails, assert_is_usage, code, stderr};

#[test]
fn reading_changes_no_byte() {
    let bus = Bus::new();
    bus.numbered("q", 100);
    bus.stdout(&["readers", "q", "add", "alice"]);
    let before = fingerprint(bus.0.path());
    for args in [
        &["inspect", "q"][..],
        &["inspect", "--json", "q"],
        &["ls", "."],
        &["ls", "--json", "."],
        &["tail", "q"],
        &["tail", "-n", "+1", "--format", "jsonl", "q"],
        &["tail", "--since", "2024-08-08T09:15:28Z", "q"],
        &["readers", "q"],
        &["readers", "q", "list", "--json"],
        &["retain", "--dry-run", "q"],
        &["rm", "--dry-run", "q"],
        &["metrics", "."],
        &["merge", "--all-queues", "."],
        &["watch", "--once", "."],
        &["top", "--once", "--interval", "100ms", "."],
        &["doctor", "."],
        &["doctor", "--deep", "."],
    ] {
        bus.stdout(args);
        assert!(fingerprint(bus.0.path()) == before, "{args:?} changed something");
    }
}

/// Everything about the files below a directory that reading might change.
fn fingerprint(dir: &Path) -> Vec<(PathBuf, u64, i64, i64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut waiting = vec![dir.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let bytes = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if meta.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push((path, meta.ino(), meta.mtime(), meta.mtime_nsec(), bytes));
    }
    found.sort();
    found
}

#[test]
fn create_stores_the_settings() {
    let bus = Bus::new();
    let sizes = ["--segment-size", "1MiB", "--max-bytes", "2GiB", "--retain-bytes", "64K", "--retain-age", "7d"];
    bus.stdout(&[&["create", "deep/q"][..], &sizes].concat());
    let settings = &bus.json(&["inspect", "--json", "deep/q"])["settings"];
    assert_eq!(settings["segment_size"], 1 << 20);
    assert_eq!(settings["max_bytes"], 2_u64 << 30);
    assert_eq!(settings["retain_bytes"], 64 << 10);
    assert_eq!(settings["retain_age_ms"], 604_800_000);

    assert_fails(&bus.run(&["create", "deep/q"]), &["deep/q: a queue exists already"]);
    assert_is_usage(&bus.run(&["create", "small", "--segment-size", "4KiB"]), &["64KiB to 1GiB"]);
    assert_is_usage(&bus.run(&["create", "odd", "--segment-size", "65537"]), &["multiple of 4096"]);
    for wrong in ["64MB", "big", "-1", "5TiB"] {
        let argument = format!("--segment-size={wrong}");
        assert_eq!(code(&bus.run(&["create", "q", &argument])), 2, "{wrong}");
    }
    assert_eq!(code(&bus.run(&["create", "q", "--retain-age", "7"])), 2);
    assert!(!bus.path("small").exists() && !bus.path("odd").exists() && !bus.path("q").exists());
}

#[test]
fn inspect_json_has_the_promised_keys() {
    let bus = Bus::new();
    bus.numbered("q", 3);
    bus.stdout(&["readers", "q", "add", "alice"]);
    let json = bus.json(&["inspect", "--json", "q"]);
    let expected = "path first_seq last_seq messages bytes head last_timestamp_ns writer ready lease role term settings active_settings segments \
         readers";
    assert_eq!(keys(&json), expected.split(' ').collect());
    assert_eq!(keys(&json["head"]), ["segment", "offset"].into());
    assert_eq!(keys(&json["writer"]), ["state", "pid", "epoch", "heartbeat_age_ms"].into());
    let settings = "segment_size max_bytes retain_bytes retain_age_ms retain_segments reader_ttl_ms max_lag_bytes \
                    roll_every_ms payload_align";
    assert_eq!(keys(&json["settings"]), settings.split(' ').collect());
    assert_eq!(keys(&json["segments"][0]), ["id", "first_seq", "last_seq", "bytes", "sealed"].into());
    let reader =
        "name position lag_messages lag_bytes lag_seconds heartbeat_age_ms state alive pins_segments pins_bytes";
    assert_eq!(keys(&json["readers"][0]), reader.split(' ').collect());

    assert_eq!((&json["first_seq"], &json["last_seq"], &json["messages"]), (&1.into(), &3.into(), &3.into()));
    assert_eq!(json["last_timestamp_ns"], START_NS + 3_000_000_000);
    assert_eq!((&json["ready"], &json["lease"]), (&Value::Bool(false), &Value::Null));
    assert_eq!((&json["readers"][0]["name"], &json["readers"][0]["lag_messages"]), (&"alice".into(), &3.into()));
    let listed = bus.json(&["readers", "q", "list", "--json"]);
    assert_eq!(bus.json(&["readers", "q", "--json"])["name"], listed["name"], "list is the default");
    assert_eq!(bus.json(&["readers", "list", "q", "--json"])["name"], listed["name"], "in the other order");
    assert_eq!((&listed["name"], &listed["position"]), (&"alice".into(), &1.into()));
    assert_eq!(keys(&listed), reader.split(' ').collect());
}

#[test]
fn an_empty_queue_is_not_special() {
    let bus = Bus::new();
    bus.stdout(&["create", "q"]);
    let json = bus.json(&["inspect", "--json", "q"]);
    assert_eq!((&json["first_seq"], &json["last_seq"], &json["messages"]), (&1.into(), &0.into(), &0.into()));
    let segment = &json["segments"][0];
    assert_eq!((&segment["first_seq"], &segment["last_seq"]), (&1.into(), &0.into()));
    for options in
        [&["q"][..], &["q", "-n", "+1"], &["q", "--from", "5"], &["q", "--since", "1m"], &["q", "--grep", "x"]]
    {
        assert_eq!(bus.tail(options), NONE, "{options:?}");
    }
    assert!(bus.stdout(&["inspect", "q"]).contains("none; the next is seq 1"));
    bus.append("q", "txt", b"");
    assert_eq!(bus.tail(&["q"]), NONE);
}

#[test]
fn inspect_has_a_text_for_people() {
    let bus = Bus::new();
    bus.numbered("q", 3);
    bus.stdout(&["readers", "q", "add", "alice"]);
    let text = bus.stdout(&["inspect", "q"]);
    for part in ["q\n", "3, seq 1 to 3", "2024-08-08T09:15:03.000000000Z", "segment 0 offset ", "64.0 MiB", "alice"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn inspect_reports_damaged_files_and_shows_the_rest() {
    let bus = Bus::new();
    bus.numbered("q", 3);
    for name in ["alice", "bob"] {
        bus.stdout(&["readers", "q", "add", name]);
    }
    for file in ["q/control.meta", "q/readers/alice.meta"] {
        fs::write(bus.path(file), "").unwrap();
        let output = bus.run(&["inspect", "--json", "q"]);
        assert_eq!(code(&output), 1);
        assert!(stderr(&output).contains(file), "{}", stderr(&output));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&json["messages"], json["readers"].as_array().unwrap().len()), (&3.into(), 2), "{file}");
    }
    assert!(String::from_utf8(bus.run(&["inspect", "q"]).stdout).unwrap().contains("damaged"));
    assert_eq!(bus.tail(&["q"]), [1, 2, 3]);
    bus.stdout(&["readers", "q", "seek", "alice", "first"]);
    bus.append("q", "txt", b"m4\n");
    assert_eq!(bus.tail(&["q", "--reader", "alice"]), [1, 2, 3, 4]);
    bus.stdout(&["inspect", "q"]);
}

#[test]
fn ls_lists_queues_at_every_depth() {
    let bus = Bus::new();
    bus.numbered("market/a", 3);
    bus.numbered("b", 2);
    fs::create_dir_all(bus.path("plain/dir")).unwrap();
    fs::write(bus.path("b/READY"), "{}").unwrap();
    std::os::unix::fs::symlink(bus.path("b"), bus.path("link")).unwrap();
    let text = bus.stdout(&["ls", "."]);
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 3, "{text}");
    assert_eq!((rows[1][0], rows[1][1], *rows[1].iter().nth_back(1).unwrap()), ("b", "2", "READY"));
    assert_eq!((rows[2][0], rows[2][1]), ("market/a", "3"));

    let json: Vec<Value> =
        bus.stdout(&["ls", "--json", "."]).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(json.len(), 2);
    assert_eq!((&json[0]["ready"], &json[0]["messages"]), (&Value::Bool(true), &2.into()));
    let whole = bus.json(&["inspect", "--json", "b"]);
    assert!(keys(&json[0]).is_subset(&keys(&whole)));

    assert!(bus.stdout(&["ls", "b"]).contains("\nb  "), "a queue itself has its own name");
    assert_eq!(bus.stdout(&["ls", "plain"]), "");
}

#[test]
fn readers_are_added_moved_and_removed() {
    let bus = Bus::new();
    bus.numbered("q", 30);
    let position = || bus.json(&["readers", "q", "list", "--json"])["position"].as_u64().unwrap();
    let seek = |to| bus.run(&["readers", "q", "seek", "alice", to]);
    bus.stdout(&["readers", "q", "add", "alice"]);
    assert_eq!(position(), 1);
    for (to, expected) in [
        ("12", 12),
        ("+10", 22),
        ("-2", 20),
        ("end", 31),
        ("-31", 31),
        ("first", 1),
        ("@2024-08-08T09:15:07Z", 7),
        ("@1723108509", 9),
        ("31", 31),
        ("1", 1),
    ] {
        let output = seek(to);
        assert_eq!(code(&output), i32::from(to == "-31"), "{to}: {}", stderr(&output));
        assert_eq!(position(), expected, "{to}");
    }
    for nowhere in ["32", "+31", "-1", "0", "@2024-08-08T09:15:31Z"] {
        assert_fails(&seek(nowhere), &["q: no such position"]);
    }
    for wrong in ["x", "", "+", "1.5", "@"] {
        assert_eq!(code(&seek(wrong)), 2, "{wrong:?}");
    }
    assert_eq!(position(), 1, "a refused seek moves nothing");
    assert!(bus.stdout(&["readers", "q"]).contains("alice"));
    assert_eq!(code(&bus.run(&["readers", "q", "add", "alice"])), 1, "it exists already");
    bus.stdout(&["readers", "q", "rm", "alice"]);
    assert_fails(&bus.run(&["readers", "q", "rm", "alice"]), &["no such reader"]);
    assert_fails(&seek("1"), &["no such reader"]);
    assert_eq!(bus.stdout(&["readers", "q"]), "");
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let bus = Bus::new();
    bus.numbered("q", 3);
    let before = fingerprint(bus.0.path());
    for name in ["../x", "a/b", "..", ".", "", "a\nb", &"x".repeat(129), ".hidden"] {
        for args in [
            &["readers", "q", "add", name][..],
            &["readers", "q", "rm", name],
            &["readers", "q", "seek", name, "1"],
            &["tail", "q", "--reader", name],
        ] {
            let output = bus.run(args);
            assert_eq!(code(&output), 1, "{args:?}: {}", stderr(&output));
            assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
        }
    }
    assert!(fingerprint(bus.0.path()) == before);
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}
