//! The queues below a directory.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bus::removed_name;
use crate::queue::{Error, Queue, Result};

/// The directories at and below `root` that hold a queue, sorted. Symbolic links are not followed, a queue's own directory
/// is not searched, and queues that are being removed are left out. What can't be searched below `root` is passed to
/// `on_error`.
///
/// ```
/// # use chronfs::queue::{Queue, Settings};
/// # let dir = tempfile::tempdir()?;
/// Queue::create(dir.path().join("feeds/ticks"), &Settings::default())?;
/// let queues = chronfs::bus::queues_below(dir.path(), &mut |error| eprintln!("{error}"))?;
/// assert_eq!(queues, [dir.path().join("feeds/ticks")]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::Io`] if `root` can't be listed.
pub fn queues_below(root: impl AsRef<Path>, on_error: &mut dyn FnMut(Error)) -> Result<Vec<PathBuf>> {
    let root = root.as_ref();
    let mut found = Vec::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        match Queue::exists(&dir) {
            Ok(true) => {
                found.push(dir);
                continue;
            }
            // Listing the root reports what is wrong with it.
            Err(error) if dir != root => {
                on_error(error);
                continue;
            }
            Ok(false) | Err(_) => {}
        }
        let entries = match fs::read_dir(&dir).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            Ok(entries) => entries,
            Err(error) if dir == root => return Err(Error::io(root, "list")(error)),
            Err(error) => {
                on_error(Error::io(&dir, "list")(error));
                continue;
            }
        };
        for entry in entries {
            let is_removed = removed_name(&entry.file_name()).is_some();
            if !is_removed && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}
