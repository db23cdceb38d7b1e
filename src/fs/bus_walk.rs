//! All queues below a directory, as far as a caller may see them.
//!
//! The kernel checks permissions of what is opened by name. What is put together from many queues has to be checked
//! here: nobody gets to see through it what he could not open himself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Stat;

use super::attr::Kind;
use super::backing::Directory;
use super::errno::{Errno, Result};
use super::nodes::{Caller, Shared};
use super::queues::{Contents, OpenQueue};

/// Directories nested deeper than this are not searched.
const MAX_DEPTH: usize = 64;

/// What was found in a directory.
pub(super) struct Found {
    /// Its path below the directory that was searched, as text.
    pub(super) name: String,
    pub(super) directory: Arc<Directory>,
    /// The queue, or why it can't be opened.
    pub(super) queue: Result<Arc<OpenQueue>>,
}

/// The queues below a directory, sorted by path. What vanishes while it is looked at is left out.
pub(super) fn queues(shared: &Shared, relative: &Path, caller: Caller) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    let who = Who::new(caller);
    let start = Arc::new(shared.backing.directory(relative)?);
    let mut open = vec![(PathBuf::new(), start)];
    while let Some((path, directory)) = open.pop() {
        if !who.may(&directory.stat, READ | SEARCH) {
            continue;
        }
        let name = path.to_string_lossy().into_owned();
        match shared.queues.find(&directory) {
            Contents::Queue(queue) => {
                if queue.data_stat().is_ok_and(|stat| who.may(&stat, READ)) {
                    found.push(Found { name, directory, queue: Ok(queue) });
                }
            }
            Contents::Unreadable(Errno::ENOENT) => {}
            Contents::Unreadable(errno) => found.push(Found { name, directory, queue: Err(errno) }),
            Contents::Plain if path.components().count() >= MAX_DEPTH => {}
            Contents::Plain => {
                for name in directory.names().unwrap_or_default() {
                    let is_directory = directory.stat_of(&name).is_ok_and(|s| Kind::of(&s) == Some(Kind::Directory));
                    if is_directory && let Ok(child) = directory.child(&name) {
                        open.push((path.join(name), Arc::new(child)));
                    }
                }
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

const READ: u32 = 4;
const SEARCH: u32 = 1;

/// A caller with his groups.
struct Who {
    uid: u32,
    groups: Vec<u32>,
}

impl Who {
    fn new(caller: Caller) -> Self {
        let mut groups = vec![caller.gid];
        if caller.uid != 0 && caller.pid != 0 {
            let status = std::fs::read_to_string(format!("/proc/{}/status", caller.pid)).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
            groups.extend(line.split_whitespace().filter_map(|gid| gid.parse::<u32>().ok()));
        }
        Self { uid: caller.uid, groups }
    }

    /// Whether all of these bits (of one digit of a mode) are granted.
    fn may(&self, stat: &Stat, bits: u32) -> bool {
        let shift = if self.uid == stat.st_uid {
            6
        } else if self.groups.contains(&stat.st_gid) {
            3
        } else {
            0
        };
        self.uid == 0 || (stat.st_mode >> shift) & bits == bits
    }
}
