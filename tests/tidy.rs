//! Rules of the house that a compiler does not check: which layer may use which, where unsafe code may stand, how long a
//! file or a function may get, which words are avoided.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest file, in lines.
const MAX_LINES: usize = 550;
/// Files that may hold unsafe code.
const UNSAFE: [&str; 10] = [
    "bindings/c/src/api/mod.rs",
    "bindings/python/src/arrow.rs",
    "bindings/python/src/memory.rs",
    "bindings/python/src/message.rs",
    "src/bin/chron-cli/bench/shared.rs",
    "src/clock.rs",
    "src/queue/format/crc/x86.rs",
    "src/queue/os/mapping.rs",
    "src/queue/os/sigbus.rs",
    "src/queue/os/sys.rs",
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

/// Whether this follows in a line as words of their own.
fn has_words(line: &str, words: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let (starts, ends) = (is_part(words.chars().next()), is_part(words.chars().last()));
    line.match_indices(words).any(|(at, _)| {
        let (before, after) = (line[..at].chars().last(), line[at + words.len()..].chars().next());
        !(starts && is_part(before) || ends && is_part(after))
    })
}

/// The lines of a source that are code, by number: no comments, no items that only tests have.
fn code(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if line.trim_start() == "#[cfg(test)]" {
            let is_end = |line: &str| {
                line.strip_prefix(indent)
                    .is_some_and(|rest| rest == "}" || !rest.starts_with([' ', '#', '/']) && rest.ends_with([';', '}']))
            };
            let _ = lines.find(|(_, line)| is_end(line));
        } else if !line.trim_start().starts_with("//") {
            found.push((number, line));
        }
    }
    found
}

fn refuse(dir: &str, exempt: &[&str], banned: &[&str], why: &str) {
    for (name, text) in sources(dir) {
        if exempt.iter().any(|exempt| name.starts_with(exempt)) {
            continue;
        }
        for (line, content) in code(&text) {
            for word in banned {
                assert!(!has_words(content, word), "{name}:{line}: {word}: {why}");
            }
        }
    }
}

#[test]
fn dependencies_point_down() {
    let engine = ["crate::view", "crate::bus", "crate::fs", "crate::report", "fuser", "serde", "serde_json", "clap"];
    refuse("src/queue", &[], &engine, "the engine knows files and memory only");
    refuse("src/view", &[], &["crate::fs", "crate::bus", "fuser", "clap"], "views know the engine only");
    refuse("src/bus", &[], &["crate::fs", "crate::view", "fuser", "clap"], "the bus knows the engine only");
    refuse("src/fs", &[], &["clap"], "the mount knows no command line");
    refuse("src/bin", &[], &["fuser", "libc::", "crate::queue"], "chron-cli uses the public interface");
}

#[test]
fn some_things_come_from_one_place() {
    let serving = ["src/fs/kernel/", "src/fs/page_cache/"];
    refuse("src", &serving, &["use fuser"], "what speaks with the kernel names fuser");
    refuse("src", &["src/sync.rs", BENCH], &["std::sync::atomic"], "atomics come from crate::sync");
    let clocks = ["SystemTime::now", "clock_gettime"];
    refuse("src", &["src/clock.rs", "src/bin/"], &clocks, "clock.rs reads the clocks");
}

#[test]
fn unsafe_code_stands_where_it_is_expected() {
    for (name, text) in ["src", "crates", "bindings"].into_iter().flat_map(sources) {
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

/// Longest function, in lines.
const MAX_FUNCTION_LINES: usize = 70;
/// Where a longer one stands. May only get fewer.
const LONG_FUNCTIONS: [(&str, &str); 1] = [("src/fs/kernel/adapter.rs", "fn serve(")];

#[test]
fn functions_stay_short() {
    for (name, text) in sources("src") {
        let mut open: Option<(usize, &str, &str)> = None;
        for (number, line) in code(&text) {
            let indent = &line[..line.len() - line.trim_start().len()];
            if let Some((start, head, outer)) = open
                && line.strip_prefix(outer) == Some("}")
            {
                let count = number - start + 1;
                let is_known = LONG_FUNCTIONS.iter().any(|(file, known)| *file == name && head.starts_with(known));
                assert!(count <= MAX_FUNCTION_LINES || is_known, "{name}:{start}: {count} lines: {head}");
                open = None;
            }
            if open.is_none() && has_words(line, "fn") && line.ends_with(['{', '(']) {
                open = Some((number, line.trim(), indent));
            }
        }
    }
}

/// The files of a crate by module path, as `mod` lines lead to them. The library's paths begin with "crate".
fn modules(root: &str) -> BTreeMap<Vec<String>, String> {
    let base = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeMap::new();
    let mut open = vec![(vec!["crate".to_owned()], root.to_owned())];
    while let Some((module, file)) = open.pop() {
        let text = fs::read_to_string(base.join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let dir = Path::new(&file).parent().unwrap();
        let stem = Path::new(&file).file_stem().unwrap();
        let owns_dir = stem == "mod" || file == root;
        let (mut inline, mut elsewhere) = (Vec::new(), None);
        for line in text.lines() {
            if line == "}" {
                inline.clear();
            }
            if let Some((_, path)) = line.split_once("path = \"").filter(|_| line.trim().starts_with("#[")) {
                let other = dir.join(path.split('"').next().unwrap());
                // What a configuration chooses stands beside what it is chosen from.
                if line.contains("cfg_attr") {
                    found.insert(vec![other.to_string_lossy().into_owned()], other.to_string_lossy().into_owned());
                } else {
                    elsewhere = Some(other);
                }
            }
            let words: Vec<&str> = line
                .split_whitespace()
                .skip_while(|word| word.starts_with("pub") || *word == "in" || word.ends_with(')'))
                .collect();
            let ["mod", name, ..] = words[..] else { continue };
            let Some(name) = name.strip_suffix(';') else {
                inline = vec![name.to_owned()];
                continue;
            };
            let mut place = if owns_dir { dir.to_owned() } else { dir.join(stem) };
            place.extend(&inline);
            let path = elsewhere.take().unwrap_or_else(|| {
                let file = place.join(format!("{name}.rs"));
                if base.join(&file).exists() { file } else { place.join(name).join("mod.rs") }
            });
            let child = [&module[..], &inline, &[name.to_owned()]].concat();
            open.push((child, path.to_string_lossy().into_owned()));
        }
        found.insert(module, file);
    }
    found
}

const ROOTS: [&str; 2] = ["src/lib.rs", "src/bin/chron-cli/main.rs"];

#[test]
fn no_file_is_dead() {
    let used: BTreeSet<String> = ROOTS.iter().flat_map(|root| modules(root).into_values()).collect();
    for (name, _) in sources("src") {
        assert!(used.contains(&name), "{name}: no mod line leads there");
    }
}

/// Whether a file stands for a whole folder.
fn is_folder(file: &str) -> bool {
    file.ends_with("/mod.rs") || ROOTS.contains(&file)
}

/// The paths that a `use` names, without braces.
fn spread(path: &str, found: &mut Vec<String>) {
    let Some((head, rest)) = path.split_once('{') else { return found.push(path.trim().to_owned()) };
    let (mut depth, mut part) = (0, String::new());
    for c in rest.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => spread(&format!("{head}{}", std::mem::take(&mut part).trim()), found),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                part.push(c);
            }
        }
    }
    if !part.trim().is_empty() {
        spread(&format!("{head}{}", part.trim()), found);
    }
}

/// Which files a file imports from. What a folder's own file re-exports or keeps does not count.
fn imports(modules: &BTreeMap<Vec<String>, String>) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (module, file) in modules {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let lines: String = code(&text).into_iter().map(|(_, line)| format!("{line}\n")).collect();
        let mut paths = Vec::new();
        for statement in lines.split(';') {
            let start = statement.lines().position(|line| {
                line.trim_start().starts_with("use ") || line.trim_start().starts_with("pub") && has_words(line, "use")
            });
            let Some(start) = start else { continue };
            let text = statement.lines().skip(start).collect::<Vec<_>>().join(" ");
            paths.extend(text.split_once("use ").map(|(_, path)| path.to_owned()));
        }
        let mut spread_out = Vec::new();
        paths.iter().for_each(|path| spread(path, &mut spread_out));
        for path in spread_out {
            let mut target: Vec<String> = module.clone();
            for word in path.split("::") {
                match word {
                    "crate" => target.truncate(1),
                    "super" => drop(target.pop()),
                    "self" => {}
                    name => target.push(name.to_owned()),
                }
            }
            if !["crate", "super", "self"].iter().any(|start| path.starts_with(start)) {
                target = [&module[..], &path.split("::").map(str::to_owned).collect::<Vec<_>>()].concat();
            }
            let other = (1..=target.len()).rev().find_map(|len| modules.get(&target[..len]));
            if let Some(other) = other.filter(|other| *other != file && !is_folder(other) && !is_folder(file)) {
                found.entry(file).or_default().insert(other);
            }
        }
    }
    found
}

#[test]
fn no_files_import_in_a_circle() {
    let mut circling = BTreeSet::new();
    for root in ROOTS {
        let modules = modules(root);
        let imports = imports(&modules);
        let reach = |start: &str| {
            let mut seen = BTreeSet::new();
            let mut open = vec![start];
            while let Some(file) = open.pop() {
                for next in imports.get(file).into_iter().flatten() {
                    if seen.insert((*next).to_owned()) {
                        open.push(next);
                    }
                }
            }
            seen
        };
        circling.extend(imports.keys().filter(|file| reach(file).contains(**file)).map(|file| (*file).to_owned()));
    }
    assert!(circling.is_empty(), "in a circle of imports: {circling:#?}");
}

/// Words that readers stumble over, and what to say instead.
const WORDS: [(&str, &str); 8] = [
    ("behind", "after, past; lagging"),
    ("so many", "this many, at most N"),
    ("is no", "is not a"),
    ("sign of life", "heartbeat"),
    ("anew", "again"),
    ("gives", "returns"),
    ("take away", "remove"),
    ("look at it", "stat it, read it"),
];

#[test]
fn plain_words_are_used() {
    let base = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let rust = ["src", "tests", "examples", "benches", "bench-peers/src", "fuzz/src"];
    let mut texts: Vec<(String, String)> = rust.into_iter().flat_map(sources).collect();
    texts.retain(|(name, _)| name != "tests/tidy.rs");
    let dirs =
        ["", "docs", "scripts", "contrib", "contrib/prometheus", "contrib/shippers", "src/queue", "src/fs/files"];
    for dir in dirs {
        let paths = fs::read_dir(base.join(dir)).unwrap().map(|entry| entry.unwrap().path());
        let is_text = |path: &PathBuf| {
            let ending = path.extension().unwrap_or_default();
            path.is_file() && dir.starts_with("contrib") || ["md", "txt", "sh"].iter().any(|text| ending == *text)
        };
        texts.extend(paths.filter(is_text).map(|path| {
            let name = path.strip_prefix(&base).unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).unwrap())
        }));
    }
    let mut found = String::new();
    for (name, text) in &texts {
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.to_lowercase().replace('_', " ").replace("there is no", "").replace("is no longer", "");
            for (word, better) in WORDS {
                if has_words(&line, word) && !(word == "behind" && line.contains("lag")) {
                    found += &format!("{name}:{number}: {word:?}; say: {better}\n");
                }
            }
        }
    }
    assert!(found.is_empty(), "{found}");
}

/// `pipefail` makes a failure of whoever is ended by the pipe that closed, which depends on who was faster.
#[test]
fn no_pipe_closes_before_all_is_written() {
    let base = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut scripts = vec![base.join(".ci/run")];
    for dir in ["scripts", "examples", "bindings/c", "bench-peers"] {
        let paths = fs::read_dir(base.join(dir)).unwrap().map(|entry| entry.unwrap().path());
        scripts.extend(paths.filter(|path| path.extension().is_some_and(|ending| ending == "sh")));
    }
    assert!(scripts.len() > 10, "{scripts:?}");
    for path in scripts {
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in (1..).zip(text.lines()).filter(|_| text.contains("pipefail")) {
            let pipes = line.replace("||", "").replace("|&", "|");
            let early = pipes.split('|').skip(1).find(|command| {
                let mut words = command.split_whitespace();
                match words.next() {
                    Some("grep") => words.any(|word| word.starts_with('-') && word.contains(['q', 'm'])),
                    command => command == Some("head"),
                }
            });
            assert_eq!(early, None, "{}:{number}: compare $(...) instead", path.display());
        }
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
