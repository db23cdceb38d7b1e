//! All queues below a directory, as far as a caller may see them.
//!
//! The kernel checks permissions of what is opened by name. What is put together from many queues has to be checked
//! here: nobody gets to see through it what he could not open himself. Each directory is opened with the caller's rights.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backing::Directory;
use super::credentials::{Caller, READ, SEARCH};
use super::errno::{Errno, Result};
use super::nodes::Shared;
use super::queues::{Contents, OpenQueue};

/// Directories nested deeper than this are not searched: each level takes a descriptor.
const MAX_DEPTH: usize = 64;

/// What was found in a directory.
pub(super) struct Found {
    /// Its path below the directory that was searched, as text.
    pub(super) name: String,
    pub(super) directory: Arc<Directory>,
    /// The queue, or why it can't be opened.
    pub(super) queue: Result<Arc<OpenQueue>>,
}

/// A directory without a queue, and what is still to be looked at in it.
struct Level {
    path: PathBuf,
    directory: Arc<Directory>,
    names: std::vec::IntoIter<OsString>,
}

/// The queues below a directory, sorted by path. What vanishes while it is looked at is left out.
pub(super) fn queues(shared: &Shared, relative: &Path, caller: &Caller) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut levels = Vec::new();
    let start = open(caller, || shared.backing.directory(relative))?;
    levels.extend(visit(shared, PathBuf::new(), start, caller, &mut found));
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            levels.pop();
            continue;
        };
        // What is not a directory, and what the caller could not list, is not for him.
        let Ok(directory) = open(caller, || level.directory.child(&name)) else { continue };
        let path = level.path.join(name);
        let deeper = visit(shared, path, directory, caller, &mut found);
        levels.extend(deeper.filter(|_| levels.len() <= MAX_DEPTH));
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Opens a directory that the caller may list and search.
fn open(caller: &Caller, open: impl Fn() -> Result<Directory>) -> Result<Directory> {
    let directory = caller.act(|| open().and_then(|directory| directory.check_listable().map(|()| directory)))??;
    if caller.is_stranger() && !caller.may(&directory.stat, READ | SEARCH) {
        return Err(Errno::EACCES);
    }
    Ok(directory)
}

/// Adds the queue that lies in a directory to `found`; where there is none, gives what is to be searched.
fn visit(
    shared: &Shared,
    path: PathBuf,
    directory: Directory,
    caller: &Caller,
    found: &mut Vec<Found>,
) -> Option<Level> {
    let directory = Arc::new(directory);
    let name = path.to_string_lossy().into_owned();
    match shared.queues.find(&directory) {
        Contents::Queue(queue) => {
            if queue.check_readable(caller).is_ok() {
                let directory = Arc::clone(&queue.directory);
                found.push(Found { name, directory, queue: Ok(queue) });
            }
        }
        Contents::Unreadable(Errno::ENOENT) => {}
        Contents::Unreadable(errno) => found.push(Found { name, directory, queue: Err(errno) }),
        Contents::Plain => {
            let names = directory.names().unwrap_or_default().into_iter();
            return Some(Level { path, directory, names });
        }
    }
    None
}
