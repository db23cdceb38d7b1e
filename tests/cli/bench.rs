//! `chron-cli bench`: that it measures, has the promised output, and leaves no files.

use std::fs;

use super::{Bus, assert_fails, code, stderr};

#[test]
fn bench_has_the_promised_keys_and_floors() {
    let bus = Bus::new();
    let output = bus
        .command(&["bench", "--messages", "1000", "--payload-bytes", "100", "--json"])
        .env("TMPDIR", bus.0.path())
        .output()
        .unwrap();
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["payload_bytes"], &json["messages"]), (&100.into(), &1000.into()));
    for (part, keys) in [
        ("append", "ns floor_ns ratio"),
        ("read", "ns floor_ns ratio"),
        ("one_way", "p50_ns p99_ns p999_ns floor_p50_ns ratio"),
        ("round_trip", "p50_ns p99_ns floor_p50_ns ratio"),
        ("wake", "p50_ns p99_ns floor_p50_ns ratio"),
    ] {
        for key in keys.split(' ') {
            assert!(json[part][key].as_f64().unwrap() > 0.0, "{part} {key}: {json}");
        }
    }
    // No process wakes another in less than a microsecond.
    assert!(json["wake"]["floor_p50_ns"].as_u64().unwrap() > 1000, "{json}");
    assert!(json["wake"]["p50_ns"].as_u64().unwrap() > 1000, "{json}");
    let counted: u64 =
        json["one_way"]["histogram"].as_array().unwrap().iter().map(|bucket| bucket[1].as_u64().unwrap()).sum();
    assert_eq!(counted, 1000);
    assert_eq!(fs::read_dir(bus.0.path()).unwrap().count(), 0, "nothing is left over");
}

#[test]
fn bench_keeps_a_queue_that_was_asked_for_and_touches_no_other() {
    let bus = Bus::new();
    let text = bus.stdout(&["bench", "--histogram", "--messages", "1000", "q"]);
    for part in [
        "1000 messages of 64 bytes",
        "append",
        "round trip p99",
        "a bare futex",
        "#",
        "chronfs ns",
        "\nOn this machine an append takes ",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert_eq!(bus.json(&["inspect", "--json", "q"])["messages"], 1000);
    assert_eq!(fs::read_dir(bus.0.path()).unwrap().count(), 1);
    assert_fails(&bus.run(&["bench", "q"]), &["q: it exists already", "choose another path"]);
    for wrong in ["7", "2MiB", "x"] {
        assert_eq!(code(&bus.run(&["bench", "--payload-bytes", wrong])), 2, "{wrong}");
    }
    assert_eq!(code(&bus.run(&["bench", "--rate", "0"])), 2);
}

#[test]
fn bench_creates_its_queue_where_other_commands_do() {
    let bus = Bus::new();
    for name in ["bus", "here"] {
        fs::create_dir(bus.path(name)).unwrap();
    }
    let run = |args: &[&str]| {
        let mut command = bus.command_in("here", args);
        command.env("CHRONFS_ROOT", bus.path("bus")).output().unwrap()
    };
    assert_eq!(code(&run(&["send", "ticks", "x"])), 0);
    assert_fails(&run(&["bench", "--messages", "1000", "ticks"]), &["bus/ticks: it exists already"]);
    assert_eq!(code(&run(&["bench", "--messages", "1000", "--rate", "1000000", "fresh"])), 0);
    assert!(bus.path("bus/fresh/control.meta").exists());
    assert_eq!(fs::read_dir(bus.path("here")).unwrap().count(), 0);
}
