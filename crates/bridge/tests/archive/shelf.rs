//! An archive of the test's own, the program, and what must hold.
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use chronfs::Queue;
use serde_json::Value;

use crate::common::need::program;
use crate::common::{SMALL, filled, payload, text};
use crate::service::Service;

/// The program.
pub const BUILT: &str = env!("CARGO_BIN_EXE_chron-archive");

/// How many messages take several segments, of 64 KiB.
pub const SEVERAL: u64 = 1500;

/// Where it is, and how to get there.
#[derive(Clone)]
pub struct Archive {
    pub url: String,
    pub options: Vec<String>,
}

impl Archive {
    /// A directory.
    pub fn dir(path: &Path) -> Self {
        Self { url: format!("file://{}", path.display()), options: Vec::new() }
    }

    /// The program, with `what` before the rest of the arguments and the options after them.
    pub fn command(&self, what: &[&str], rest: &[&str]) -> Command {
        let mut command = Command::new(program(Path::new(BUILT)));
        command.args(what).args(rest).args(&self.options);
        // Nothing of the machine's own.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
        command
    }

    pub fn call(&self, what: &[&str], rest: &[&str]) -> Output {
        self.command(what, rest).output().unwrap()
    }

    /// What it prints; it must succeed.
    #[track_caller]
    pub fn json(&self, what: &[&str], rest: &[&str]) -> Value {
        let output = self.call(what, rest);
        assert!(output.status.success(), "{what:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Fails with this exit code and these words.
    #[track_caller]
    pub fn fails(&self, what: &[&str], rest: &[&str], code: i32, words: &str) {
        let output = self.call(what, rest);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{what:?}: {error}");
        assert!(error.contains(words), "{what:?}: {error}");
    }

    pub fn once(&self, queue: &Path) -> Output {
        self.call(&["run", "--once", path(queue), &self.url], &[])
    }

    #[track_caller]
    pub fn archive(&self, queue: &Path) {
        let output = self.once(queue);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    #[track_caller]
    pub fn restore(&self, queue: &Path, more: &[&str]) -> Value {
        self.json(&["restore", &self.url, path(queue)], more)
    }

    pub fn start(&self, queue: &Path, log: &Path) -> Service {
        Service::start(self.command(&["run", path(queue), &self.url], &[]), log)
    }
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A queue of several segments, all but the last one sealed.
pub fn several(path: &Path) -> Queue {
    filled(path, &SMALL, SEVERAL, |seq| payload(seq, 300))
}

/// The sealed segments of a queue: name and contents.
pub fn segments(queue: &Path) -> BTreeMap<String, Vec<u8>> {
    let queue = Queue::open(queue).unwrap();
    let finished = queue.finished_segments(0).unwrap().into_iter();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    finished.map(|segment| (name(&segment.path), fs::read(&segment.path).unwrap())).collect()
}

/// The restored segments must be those of the queue, byte for byte; returns how many there are.
#[track_caller]
pub fn check_same(queue: &Path, restored: &Path) -> usize {
    let (ours, theirs) = (segments(queue), segments(restored));
    assert!(!theirs.is_empty());
    for (name, bytes) in &theirs {
        assert!(ours.get(name) == Some(bytes), "segment {name} differs");
    }
    theirs.len()
}

/// The objects in a directory, with what changes when one is written again.
pub fn objects(dir: &Path) -> BTreeMap<PathBuf, (u64, i64)> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for entry in entries.map(Result::unwrap) {
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            found.extend(objects(&entry.path()));
        } else if !entry.file_name().to_str().unwrap().contains('#') {
            found.insert(entry.path(), (metadata.ino(), metadata.mtime_nsec()));
        }
    }
    found
}

/// The objects of segments in an archive's directory, in the order of their messages.
pub fn segment_objects(dir: &Path) -> Vec<PathBuf> {
    objects(dir).into_keys().filter(|path| path.to_str().unwrap().ends_with(".q.zst")).collect()
}
