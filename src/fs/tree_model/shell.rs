//! The tree as a shell uses the mount: by paths.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::fs::backing::Backing;
use crate::fs::daemon_log::DaemonLog;
use crate::fs::errno::{Errno, Result};
use crate::fs::site::{Access, Caller};
use crate::fs::tree::handles::{Progress, WriteBy};
use crate::fs::tree::inodes::Ino;
use crate::fs::tree::{Entry, Item, Tree};
use crate::queue::Settings;

const CHUNK: usize = 1 << 20;

/// The mount as a shell uses it, by paths.
pub(in crate::fs) struct Mount {
    pub(in crate::fs) tree: Tree,
    pub(in crate::fs) root: tempfile::TempDir,
    caller: Caller,
}

impl Mount {
    pub(in crate::fs) fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let root =
            tempfile::tempdir_in(if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }).unwrap();
        let settings = Settings { segment_size: 64 << 10, ..Settings::DEFAULT };
        let log = DaemonLog::new(Path::new("/mnt"), log::LevelFilter::Off);
        let tree = Tree::new(Backing::open(root.path(), false).unwrap(), false, settings, CHUNK, None, log).unwrap();
        Self { tree, root, caller: Caller::root() }
    }

    pub(in crate::fs) fn look(&self, path: &str) -> Result<Entry> {
        let mut entry = self.tree.getattr(Ino::ROOT)?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            entry = self.tree.lookup(entry.ino, OsStr::new(name), &self.caller)?;
        }
        Ok(entry)
    }

    /// The directory that a path lies in, and its name there.
    fn parent<'a>(&self, path: &'a str) -> Result<(Ino, &'a OsStr)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.look(parent)?.ino, OsStr::new(name)))
    }

    pub(in crate::fs) fn mkdir(&self, path: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        self.tree.mkdir(parent, name, 0o755, &self.caller).map(drop)
    }

    pub(in crate::fs) fn rmdir(&self, path: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        self.tree.rmdir(parent, name, &self.caller)
    }

    pub(in crate::fs) fn remove(&self, path: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        self.tree.unlink(parent, name, &self.caller)
    }

    pub(in crate::fs) fn open(&self, path: &str) -> Result<u64> {
        self.tree.open(self.look(path)?.ino, Access::Read, &self.caller)
    }

    /// As a shell's `>`.
    pub(in crate::fs) fn open_for_writing(&self, path: &str) -> Result<u64> {
        match self.look(path) {
            Ok(entry) => self.tree.open(entry.ino, Access::Write, &self.caller),
            Err(Errno::ENOENT) => {
                let (parent, name) = self.parent(path)?;
                self.tree.create(parent, name, Access::Write, &self.caller).map(|(_, fh)| fh)
            }
            Err(errno) => Err(errno),
        }
    }

    pub(in crate::fs) fn write(&self, path: &str, pieces: &[&[u8]]) -> Result<()> {
        let fh = self.open_for_writing(path)?;
        let written = pieces.iter().try_for_each(|piece| {
            assert_eq!(self.write_to(fh, piece)?, piece.len(), "{path}");
            Ok(())
        });
        self.tree.release(fh);
        written
    }

    /// One write(2).
    pub(in crate::fs) fn write_to(&self, fh: u64, data: &[u8]) -> Result<usize> {
        self.tree.write(fh, data, WriteBy::default())
    }

    /// One read(2); None where it would wait.
    pub(in crate::fs) fn read(&self, fh: u64, offset: u64) -> Result<Option<String>> {
        let mut out = Vec::new();
        match self.tree.read(&*self.tree.files.get(fh)?, offset, CHUNK, &mut out)? {
            Progress::Done => Ok(Some(String::from_utf8(out).unwrap())),
            Progress::Wait(_) => Ok(None),
        }
    }

    pub(in crate::fs) fn cat(&self, path: &str) -> Result<String> {
        let fh = self.open(path)?;
        let mut text = String::new();
        while let Some(more) = self.read(fh, text.len() as u64)?
            && !more.is_empty()
        {
            text += &more;
        }
        self.tree.release(fh);
        Ok(text)
    }

    pub(in crate::fs) fn list(&self, path: &str) -> BTreeSet<String> {
        let fh = self.tree.opendir(self.look(path).unwrap().ino, &self.caller).unwrap();
        let mut names = BTreeSet::new();
        let add = |item: &Item, _: &dyn Fn() -> Result<Entry>, _| {
            let name = item.name.to_str().unwrap().to_owned();
            assert!(name == "." || name == ".." || names.insert(name), "{path}: {:?} is listed twice", item.name);
            true
        };
        self.tree.readdir(fh, 0, add).unwrap();
        self.tree.releasedir(fh);
        names.retain(|name| !name.starts_with('.'));
        names
    }

    pub(in crate::fs) fn native(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }
}

/// A text in two pieces, of which the first has this many percent.
pub(in crate::fs) fn split(text: &str, percent: usize) -> Vec<Vec<u8>> {
    let (head, tail) = text.as_bytes().split_at(text.len() * percent / 100);
    vec![head.to_vec(), tail.to_vec()]
}

/// Runs of filler as their length, so that a failure can be read.
pub(in crate::fs) fn short(text: Option<String>) -> Option<String> {
    let shorten = |line: &str| match line.trim_end_matches(['x', '\n']) {
        start if line.len() > start.len() + 30 => {
            format!("{start}{}{}", line.len() - start.len(), if line.ends_with('\n') { "\n" } else { "" })
        }
        _ => line.to_owned(),
    };
    text.map(|text| text.split_inclusive('\n').map(shorten).collect())
}
