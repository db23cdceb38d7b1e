//! The command blocks of pages, run in a directory of their own; what they print is compared with what the page shows.
//!
//! - `console`: lines that start with `$ ` are commands; the lines below one are its output, in which numbers may
//!   differ, and `...` stands for any lines. `^C` after them: the command is interrupted once it has printed them.
//! - `sh`: a script that must succeed.
//! - `toml PATH`, and the same in any other language: a file that the next of these finds there.
//! - A block that can't be run says so after its language, with the reason: `sh not run: needs a network`.
//!
//! `/srv/bus` and `/mnt/bus` stand for directories of the test, and 9464 for a free port.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::need::{Need, require};
use crate::common::{detach, until};

/// Languages of blocks that nobody types into a shell.
const OTHERS: [&str; 12] =
    ["rust", "text", "json", "toml", "yaml", "ini", "python", "c", "cpp", "sql", "svg", "promql"];
/// What pages write for directories of the test.
const PLACES: [&str; 2] = ["/srv/bus", "/mnt/bus"];

pub struct Block {
    pub page: String,
    line: usize,
    language: String,
    lines: Vec<String>,
}

impl Block {
    pub fn place(&self) -> String {
        format!("{}:{}", self.page, self.line)
    }

    /// What a person would type.
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// What comes after the language: why it is not run, or where a file is.
    fn note(&self) -> (&str, &str) {
        self.language.split_once(' ').unwrap_or((&self.language, ""))
    }

    /// Whether somebody types it into a shell.
    pub fn is_typed(&self) -> bool {
        let language = self.note().0.split(',').next().unwrap_or_default();
        let is_other = OTHERS.contains(&language);
        let place = self.place();
        assert!(
            is_other || ["sh", "console"].contains(&language),
            "{place}: a block of {language:?}: sh and console are run, {OTHERS:?} not"
        );
        !is_other
    }

    /// Why nobody runs it, if it says so.
    pub fn reason(&self) -> Option<&str> {
        let (language, note) = self.note();
        let reason = note.strip_prefix("not run: ").filter(|reason| !reason.is_empty());
        let place = self.place();
        assert!(note.is_empty() || reason.is_some(), "{place}: write `{language} not run: REASON`, or nothing");
        reason
    }

    fn run(&self, scratch: &mut Scratch) {
        let (text, place) = (self.text(), self.place());
        if self.language == "console" {
            self.steps().iter().for_each(|step| scratch.run(&place, step));
        } else {
            let command = format!("set -euo pipefail\n{text}");
            scratch.run(&place, &Step { command, shown: Vec::new(), is_interrupted: false });
        }
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        for line in &self.lines {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => {
                    steps.push(Step { command: command.to_owned(), shown: Vec::new(), is_interrupted: false });
                }
                (None, Some(step)) if line == "^C" => step.is_interrupted = true,
                (None, Some(step)) => step.shown.push(line.clone()),
                (None, None) => panic!("{}: a console block starts with `$ `", self.place()),
            }
        }
        steps
    }
}

/// The blocks of a page below the workspace's root.
pub fn blocks(root: &Path, page: &str) -> Vec<Block> {
    let text = fs::read_to_string(root.join(page)).unwrap();
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (line, content) in (1..).zip(text.lines()) {
        match (content.trim_start().strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                open = Some(Block { page: page.to_owned(), line, language: language.to_owned(), lines: Vec::new() });
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (None, Some(block)) => block.lines.push(content.to_owned()),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{page}: a block does not end");
    found
}

/// Runs those that can be run, each in a place that is made for it; returns how many.
pub fn run<'a>(blocks: impl IntoIterator<Item = &'a Block>, mut make: impl FnMut(&Block) -> Scratch) -> usize {
    let mut count = 0;
    let mut files: Vec<&Block> = Vec::new();
    for block in blocks {
        if !block.is_typed() {
            files.extend((!block.note().1.is_empty()).then_some(block));
            continue;
        }
        if block.reason().is_some() || block.text().contains("mount") && !require(Need::Mount) {
            continue;
        }
        let mut scratch = make(block);
        for file in files.drain(..) {
            let path = scratch.at("work").join(scratch.here(file.note().1));
            fs::write(path, file.text() + "\n").unwrap();
        }
        block.run(&mut scratch);
        count += 1;
    }
    assert!(files.is_empty(), "{}: nothing that is run needs this file", files[0].place());
    count
}

/// A command, and what the page shows of its output.
struct Step {
    command: String,
    shown: Vec<String>,
    is_interrupted: bool,
}

/// Where a block is run.
pub struct Scratch {
    dir: tempfile::TempDir,
    children: Vec<Child>,
    /// Commands that hold for those after them: `cd`, `export`.
    prelude: String,
    /// What pages write, and what is meant here.
    meanings: Vec<(String, String)>,
}

impl Scratch {
    /// With these programs.
    pub fn new(programs: &[&Path]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["home", "work", "bin", "mnt/bus", "srv/bus"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let mut meanings = vec![("--listen 9464".to_owned(), "--listen 0".to_owned())];
        meanings.extend(PLACES.map(|place| (place.to_owned(), format!("{}{place}", dir.path().display()))));
        let scratch = Self { dir, children: Vec::new(), prelude: String::new(), meanings };
        programs.iter().for_each(|program| scratch.program(program.file_name().unwrap().to_str().unwrap(), program));
        scratch
    }

    /// What a name stands for in its commands.
    pub fn program(&self, name: &str, program: &Path) {
        std::os::unix::fs::symlink(program, self.at("bin").join(name)).unwrap();
    }

    /// A path in it: `work` is where commands run, `srv/bus` is what pages call `/srv/bus`.
    pub fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// From now on, what a page writes means something else here.
    pub fn means(&mut self, written: &str, meant: &str) {
        self.meanings.insert(0, (written.to_owned(), meant.to_owned()));
    }

    /// A variable of the commands.
    pub fn export(&mut self, name: &str, value: &str) {
        self.prelude += &format!("export {name}='{value}'\n");
    }

    fn here(&self, text: &str) -> String {
        self.meanings.iter().fold(text.to_owned(), |text, (written, meant)| text.replace(written, meant))
    }

    fn start(&mut self, script: &str, out: &Path) -> usize {
        let file = File::create(out).unwrap();
        let path = format!("{}:{}", self.at("bin").display(), std::env::var("PATH").unwrap());
        // Who runs the tests in the background of a script has them ignore the interrupt.
        let mut command = Command::new("env");
        let script = format!("{}{}", self.prelude, self.here(script));
        command.args(["--default-signal=INT", "bash", "-c", &script]).current_dir(self.at("work"));
        command.env("PATH", path).env("HOME", self.at("home")).env_remove("CHRONFS_ROOT").env("TZ", "UTC");
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).process_group(0);
        self.children.push(command.spawn().unwrap());
        self.children.len() - 1
    }

    /// Whether a command ended, and did well.
    fn ended(&mut self, child: usize) -> Option<bool> {
        self.children[child].try_wait().unwrap().map(|status| status.success())
    }

    fn run(&mut self, place: &str, step: &Step) {
        // A file for each: what an earlier one has started may still write to its own.
        let out = self.at(&format!("out{}", self.children.len()));
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
pub fn is_as_shown(shown: &[String], printed: &str) -> bool {
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
