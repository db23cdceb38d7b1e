//! Every command block of the README and the pages is run, in a directory of its own, and what it prints is compared
//! with what the page shows.
//!
//! - `console`: lines that start with `$ ` are commands; the lines below one are its output, in which numbers may
//!   differ, and `...` stands for any lines. `^C` after them: the command is interrupted once it has printed them.
//! - `sh`: a script that must succeed.
//! - `toml PATH`, and the same in any other language: a file that the next block finds there.
//! - A block that can't be run here says so after its language, with the reason: `sh not run: needs a network`.
//!
//! `/srv/bus` and `/mnt/bus` stand for directories of the test, and 9464 for a free port; the bus has the queues `ticks`
//! and `orders`.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::need::{Need, require};
use common::{detach, program, until};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Languages of blocks that nobody types into a shell.
const OTHERS: [&str; 10] = ["rust", "text", "json", "toml", "yaml", "ini", "python", "c", "svg", "promql"];
/// Pages about programs of other packages of the workspace, which tests of this one can't expect to be built. The blocks
/// of docs/export.md are run by that crate's test_readers.py.
const ELSEWHERE: [&str; 5] =
    ["docs/archive.md", "docs/c.md", "docs/distributed.md", "docs/export.md", "docs/python.md"];
/// The page of what only a build with the feature `decode` can do.
const DECODING: &str = "docs/decode.md";
/// What pages call these directories.
const BUS: &str = "/srv/bus";
const MOUNT: &str = "/mnt/bus";

struct Block {
    page: String,
    line: usize,
    language: String,
    lines: Vec<String>,
}

impl Block {
    fn place(&self) -> String {
        format!("{}:{}", self.page, self.line)
    }
}

/// The README of each directory that has one, and all pages of docs/.
fn pages() -> Vec<PathBuf> {
    let ends_in_md = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "md");
    let below = |dir: &str| fs::read_dir(Path::new(ROOT).join(dir)).unwrap().map(|entry| entry.unwrap().path());
    let mut pages: Vec<PathBuf> =
        ["", "docs", "contrib"].iter().flat_map(|dir| below(dir)).filter(ends_in_md).collect();
    pages.extend(["examples/README.md", "bench-peers/README.md"].map(|page| Path::new(ROOT).join(page)));
    let is_elsewhere = |page: &PathBuf| {
        ELSEWHERE.iter().any(|other| page.ends_with(other)) || !cfg!(feature = "decode") && page.ends_with(DECODING)
    };
    pages.retain(|page| page.exists() && !is_elsewhere(page));
    pages.sort();
    pages
}

fn blocks() -> Vec<Block> {
    let mut found = Vec::new();
    for path in pages() {
        let page = path.strip_prefix(ROOT).unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let mut open: Option<Block> = None;
        for (line, content) in (1..).zip(text.lines()) {
            match (content.trim_start().strip_prefix("```"), &mut open) {
                (Some(language), None) => {
                    open = Some(Block { page: page.clone(), line, language: language.to_owned(), lines: Vec::new() });
                }
                (Some(_), Some(_)) => found.extend(open.take()),
                (None, Some(block)) => block.lines.push(content.to_owned()),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{page}: a block does not end");
    }
    found
}

/// A command, and what the page shows of its output.
struct Step {
    command: String,
    shown: Vec<String>,
    is_interrupted: bool,
}

fn steps(block: &Block) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in &block.lines {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => {
                steps.push(Step { command: command.to_owned(), shown: Vec::new(), is_interrupted: false });
            }
            (None, Some(step)) if line == "^C" => step.is_interrupted = true,
            (None, Some(step)) => step.shown.push(line.clone()),
            (None, None) => panic!("{}: a console block starts with `$ `", block.place()),
        }
    }
    steps
}

/// Where a block is run, with the bus that the pages speak of.
struct Scratch {
    dir: tempfile::TempDir,
    children: Vec<Child>,
    /// Commands that hold for those after them: `cd`, `export`.
    prelude: String,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["home", "work", "bin", "mnt/bus", "srv/bus"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("work/lines.txt"), "one\ntwo\n").unwrap();
        std::os::unix::fs::symlink(program(), dir.path().join("bin/chron-cli")).unwrap();
        let scratch = Self { dir, children: Vec::new(), prelude: String::new() };
        let bus = scratch.dir.path().join("srv/bus");
        for (queue, texts) in [("ticks", ["BTC 61.25", "ETH 2650"]), ("orders", ["buy 100", "sell 50"])] {
            let mut command = Command::new(program());
            command.arg("send").arg(bus.join(queue)).args(texts).stderr(Stdio::null());
            assert!(command.status().unwrap().success());
        }
        chronfs::bus::mark_ready(bus.join("ticks")).unwrap();
        scratch
    }

    /// A page's text with the directories and ports of this test.
    fn here(&self, text: &str) -> String {
        let dir = self.dir.path().to_string_lossy();
        let text = text.replace(BUS, &format!("{dir}{BUS}")).replace(MOUNT, &format!("{dir}{MOUNT}"));
        text.replace("--listen 9464", "--listen 0")
    }

    fn start(&mut self, script: &str, out: &Path) -> usize {
        let file = File::create(out).unwrap();
        let at = |name: &str| self.dir.path().join(name);
        let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.args(["-c", &format!("{}{}", self.prelude, self.here(script))]).current_dir(at("work"));
        command.env("PATH", path).env("HOME", at("home")).env_remove("CHRONFS_ROOT").env("TZ", "UTC");
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).process_group(0);
        self.children.push(command.spawn().unwrap());
        self.children.len() - 1
    }

    /// Whether a command ended, and did well.
    fn ended(&mut self, child: usize) -> Option<bool> {
        self.children[child].try_wait().unwrap().map(|status| status.success())
    }

    fn run(&mut self, place: &str, step: &Step) {
        let out = self.dir.path().join("out");
        let child = self.start(&step.command, &out);
        let read = |scratch: &Self| {
            let dir = scratch.dir.path().to_string_lossy().into_owned();
            String::from_utf8_lossy(&fs::read(&out).unwrap()).replace(&dir, "")
        };
        if step.is_interrupted {
            until(&format!("{place}: {} has printed {:?}", step.command, step.shown), || {
                let has_ended = self.ended(child).is_some();
                assert!(!has_ended, "{place}: `{}` does not wait:\n{}", step.command, read(self));
                is_as_shown(&step.shown, &read(self))
            });
            self.signal(child, "INT");
            until(&format!("{place}: {} ends", step.command), || self.ended(child).is_some());
            return;
        }
        until(&format!("{place}: {} ends", step.command), || self.ended(child).is_some());
        let printed = read(self);
        assert!(self.ended(child) == Some(true), "{place}: `{}` fails:\n{printed}", step.command);
        let is_right = step.shown.is_empty() || is_as_shown(&step.shown, &printed);
        assert!(is_right, "{place}: `{}` prints\n{printed}instead of\n{}", step.command, step.shown.join("\n"));
        if ["cd ", "export "].iter().any(|word| step.command.starts_with(word)) {
            self.prelude += &format!("{}\n", self.here(&step.command));
        }
    }

    /// To a command and all that it has started.
    fn signal(&self, child: usize, signal: &str) {
        let group = format!("-{}", self.children[child].id());
        let _ = Command::new("kill").args([&format!("-{signal}"), "--", &group]).stderr(Stdio::null()).status();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let places = table.lines().filter_map(|line| line.split(' ').nth(4));
        places.filter(|place| Path::new(place).starts_with(self.dir.path())).for_each(|place| detach(Path::new(place)));
        for child in 0..self.children.len() {
            self.signal(child, "KILL");
            let _ = self.children[child].wait();
        }
    }
}

/// The same text, but for numbers, and for what `...` stands for.
fn is_as_shown(shown: &[String], printed: &str) -> bool {
    fn matches(shown: &[String], printed: &[String]) -> bool {
        match (shown, printed) {
            ([], []) => true,
            ([any, rest @ ..], _) if any == "..." => (0..=printed.len()).any(|from| matches(rest, &printed[from..])),
            ([line, rest @ ..], [first, others @ ..]) => line == first && matches(rest, others),
            _ => false,
        }
    }
    let masked = |line: &str| {
        let mut text = String::new();
        for c in line.trim_end().chars() {
            if !c.is_ascii_digit() {
                text.push(c);
            } else if !text.ends_with('0') {
                text.push('0');
            }
        }
        text
    };
    let shown: Vec<String> = shown.iter().map(|line| masked(line)).collect();
    let printed: Vec<String> = printed.lines().map(masked).collect();
    matches(&shown, &printed)
}

/// Runs the blocks of the pages whose name this is.
fn run(is_page: impl Fn(&str) -> bool) {
    let mut count = 0;
    let mut files = Vec::new();
    let blocks = blocks();
    for block in blocks.iter().filter(|block| is_page(&block.page)) {
        let place = block.place();
        let (language, note) = block.language.split_once(' ').unwrap_or((&block.language, ""));
        match language {
            "sh" | "console" if note.strip_prefix("not run: ").is_some_and(|reason| !reason.is_empty()) => continue,
            "sh" | "console" => assert!(note.is_empty(), "{place}: write `{language} not run: REASON`, or nothing"),
            _ => {
                let first = language.split(',').next().unwrap_or_default();
                assert!(
                    OTHERS.contains(&first),
                    "{place}: a block of {language:?}: sh and console are run, {OTHERS:?} not"
                );
                if !note.is_empty() {
                    files.push((note, block));
                }
                continue;
            }
        }
        let text = block.lines.join("\n");
        if text.contains("mount") && !require(Need::Mount) {
            continue;
        }
        let mut scratch = Scratch::new();
        for (path, file) in files.drain(..) {
            let path = scratch.dir.path().join("work").join(scratch.here(path));
            fs::write(path, file.lines.join("\n") + "\n").unwrap();
        }
        if language == "console" {
            steps(block).iter().for_each(|step| scratch.run(&place, step));
        } else {
            let command = format!("set -euo pipefail\n{text}");
            scratch.run(&place, &Step { command, shown: Vec::new(), is_interrupted: false });
        }
        count += 1;
    }
    assert!(files.is_empty(), "{}: no block follows that needs this file", files[0].1.place());
    println!("{count} blocks");
}

#[test]
fn the_readme_does_what_it_says() {
    run(|page| page == "README.md");
}

#[test]
fn the_pages_do_what_they_say() {
    run(|page| page != "README.md");
}

#[test]
fn the_readme_is_short() {
    let lines = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap().lines().count();
    assert!(lines <= 150, "{lines} lines: move details to docs/");
}

/// Links of pages to other pages, and to headings in them.
#[test]
fn links_lead_somewhere() {
    let anchor = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
    };
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", page.display());
            if !heading.is_empty() {
                let other = fs::read_to_string(&target).unwrap();
                let has = other.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == heading);
                assert!(has, "{}: no heading for {link}", page.display());
            }
        }
    }
}

#[test]
fn numbers_may_differ_and_words_may_not() {
    let shown = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert!(is_as_shown(&shown("seq 1 at 12:30\n...\nend"), "seq 17 at 9:05\na\nb\nend\n"));
    assert!(is_as_shown(&shown("...\nend"), "end"));
    assert!(!is_as_shown(&shown("seq 1"), "seq\n"));
    assert!(!is_as_shown(&shown("one"), "one\ntwo\n"));
}
