//! Rules of the house that a compiler does not check: which layer may use which, where unsafe code may stand, how long a
//! file may get.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

/// Longest file, in lines.
const MAX_LINES: usize = 550;
/// Files that may hold unsafe code.
const UNSAFE: [&str; 6] = [
    "src/bin/chron-cli/bench/shared.rs",
    "src/clock.rs",
    "src/queue/checksum.rs",
    "src/queue/mapping.rs",
    "src/queue/sigbus.rs",
    "src/queue/sys.rs",
];
/// The other program that shares memory with itself: `bench` measures what the engine is measured against.
const BENCH: &str = "src/bin/chron-cli/bench/";

fn sources(dir: &str) -> Vec<(String, String)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut open = vec![root.join(dir)];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {dir}");
    found
}

/// The lines of a source that are code: no comments, nothing behind the unit tests' start.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().take_while(|(_, line)| *line != "#[cfg(test)]");
    lines.filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(index, line)| (index + 1, line))
}

fn refuse(dir: &str, exempt: &[&str], banned: &[&str], why: &str) {
    for (name, text) in sources(dir) {
        if exempt.iter().any(|exempt| name.starts_with(exempt)) {
            continue;
        }
        for (line, content) in code(&text) {
            for word in banned {
                assert!(!content.contains(word), "{name}:{line}: {word}: {why}");
            }
        }
    }
}

#[test]
fn dependencies_point_down() {
    let engine = ["crate::view", "crate::bus", "crate::fs", "crate::report", "fuser", "serde", "clap"];
    refuse("src/queue", &[], &engine, "the engine knows files and memory only");
    refuse("src/view", &[], &["crate::fs", "crate::bus", "fuser", "clap"], "views know the engine only");
    refuse("src/bus", &[], &["crate::fs", "crate::view", "fuser", "clap"], "the bus knows the engine only");
    refuse("src/fs", &[], &["clap"], "the mount knows no command line");
    refuse("src/bin", &[], &["fuser", "libc::", "crate::queue"], "chron-cli uses the public interface");
}

#[test]
fn some_things_come_from_one_place() {
    refuse("src", &["src/fs/kernel/"], &["use fuser"], "only fs/kernel/ names fuser");
    refuse("src", &["src/sync.rs", BENCH], &["std::sync::atomic"], "atomics come from crate::sync");
    let clocks = ["SystemTime::now", "clock_gettime"];
    refuse("src", &["src/clock.rs", "src/bin/"], &clocks, "clock.rs reads the clocks");
}

#[test]
fn unsafe_code_stands_where_it_is_expected() {
    for (name, text) in sources("src") {
        let allowed = text.contains("allow(unsafe_code)");
        assert_eq!(allowed, UNSAFE.contains(&name.as_str()), "{name}: keep this list and the files in step");
    }
}

#[test]
fn files_stay_readable() {
    for (name, text) in sources("src").into_iter().chain(sources("tests")) {
        let count = text.lines().count();
        assert!(count <= MAX_LINES, "{name} has {count} lines; split it (at most {MAX_LINES})");
    }
    for (name, text) in sources("src") {
        assert!(text.starts_with("//!"), "{name}: say at its head what it is");
    }
}

#[test]
fn the_format_page_states_the_constants_of_the_code() {
    use chronfs::queue::layout;
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/queue/format.md")).unwrap();
    let grouped = |number: u32| {
        let digits = number.to_string();
        let parts: Vec<&[u8]> = digits.as_bytes().rchunks(3).rev().collect();
        parts.iter().map(|part| String::from_utf8_lossy(part)).collect::<Vec<_>>().join(",")
    };
    for number in [layout::MIN_SEGMENT_SIZE, layout::MAX_SEGMENT_SIZE] {
        assert!(page.contains(&grouped(number)), "{number}");
    }
    for magic in [layout::CONTROL_MAGIC, layout::SEGMENT_MAGIC, layout::CURSOR_MAGIC] {
        assert!(page.contains(std::str::from_utf8(&magic).unwrap()));
    }
    for offset in
        [layout::CONTROL_HEAD[1], layout::CONTROL_WRITER, layout::CONTROL_NOTIFY_SEQ, layout::CONTROL_SLEEPING]
    {
        assert!(page.contains(&format!("| {offset} |")), "{offset}");
    }
}
