//! `chron-cli send`, and `$CHRONFS_ROOT`.

use std::fs;

use super::{Bus, assert_fails, assert_is_usage, code, stderr};

#[test]
fn send_appends_each_argument_as_it_is() {
    let bus = Bus::new();
    let output = bus.run(&["send", "deep/q", "hello", "two words\n", ""]);
    assert_eq!((code(&output), output.stdout.as_slice()), (0, &b""[..]));
    assert!(stderr(&output).starts_with("chron-cli: deep/q: created; it keeps "), "{}", stderr(&output));
    assert_eq!(bus.stdout(&["send", "-v", "--type", "7", "--sync", "deep/q", "a", "b"]), "4\n5\n");
    assert_eq!(bus.stdout(&["tail", "deep/q", "--format", "txt"]), "hello\ntwo words\\n\n\na\nb\n");
    assert_eq!(bus.stdout(&["tail", "deep/q", "--format", "bin", "--type", "7"]), "ab");
    bus.stdout(&["send", "deep/q", "--", "-5"]);
    assert_eq!(bus.stdout(&["tail", "deep/q", "-n1", "--format", "bin"]), "-5");
    for wrong in [&["send"][..], &["send", "q"], &["send", "q", "x", "--type", "65535"]] {
        assert_is_usage(&bus.run(wrong), &[]);
    }
    assert!(!bus.path("q").exists());
}

#[test]
fn send_says_why_it_can_not() {
    let bus = Bus::new();
    bus.stdout(&["create", "q", "--segment-size", "64KiB"]);
    assert_fails(&bus.run(&["send", "q", &"x".repeat(70_000)]), &["q: payload of 70000 bytes is too large"]);
    let queue = chronfs::Queue::open(bus.path("q")).unwrap();
    let writer = queue.writer().unwrap();
    assert_fails(&bus.run(&["send", "q", "x"]), &["q: another writer holds the queue: process"]);
    drop(writer);
    fs::create_dir(bus.path("plain")).unwrap();
    fs::write(bus.path("plain/file"), "").unwrap();
    assert_fails(&bus.run(&["send", "plain", "x"]), &["plain: not a queue"]);
}

#[test]
fn queues_are_found_in_the_root_of_the_environment() {
    let bus = Bus::new();
    fs::create_dir(bus.path("here")).unwrap();
    fs::create_dir(bus.path("bus")).unwrap();
    let run = |args: &[&str]| {
        let mut command = bus.command(args);
        let output = command.env("CHRONFS_ROOT", bus.path("bus")).current_dir(bus.path("here")).output().unwrap();
        assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["send", "ticks", "in the root"]);
    run(&["send", "./ticks", "here"]);
    run(&["create", "./other"]);
    assert!(bus.path("bus/ticks/control.meta").exists() && bus.path("here/ticks/control.meta").exists());
    assert_eq!(run(&["tail", "--format", "txt", "ticks"]), "here\n", "what is here comes first");
    fs::remove_dir_all(bus.path("here/ticks")).unwrap();
    assert_eq!(run(&["tail", "--format", "txt", "ticks"]), "in the root\n");
    assert!(run(&["inspect", "ticks"]).contains("seq 1 to 1"));
    assert!(run(&["doctor", "ticks"]).contains("1 queue checked"));
    assert!(run(&["ls"]).contains("\nticks  "), "{}", run(&["ls"]));
    assert!(run(&["merge", "--all-queues"]).contains("in the root"));
    assert!(run(&["watch", "--once"]).contains("ticks"));
    assert!(run(&["top", "--once", "--interval", "100ms"]).contains("ticks"));
    // Without a root: what is here.
    let output = bus.command(&["ls"]).env("CHRONFS_ROOT", "").current_dir(bus.path("here")).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("\nother  "));
}

#[test]
fn a_root_of_the_environment_that_does_not_exist_is_not_created() {
    let bus = Bus::new();
    for args in [&["send", "ticks", "x"][..], &["create", "ticks"], &["tail", "-F", "ticks"], &["doctor", "ticks"]] {
        let output = bus.command(args).env("CHRONFS_ROOT", "typo").output().unwrap();
        assert_is_usage(&output, &["CHRONFS_ROOT is typo, and there is no such directory", "mkdir -p typo"]);
    }
    assert!(!bus.path("typo").exists());
    let output = bus.command(&["send", "./ticks", "x"]).env("CHRONFS_ROOT", "typo").output().unwrap();
    assert_eq!(code(&output), 0, "what does not need it: {}", stderr(&output));
}
