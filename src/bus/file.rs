//! Small files that exist whole or not at all: READY and LEASE are written and read through here.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use crate::queue::{Dir, Error, Result};
use crate::sync::{AtomicU32, Ordering};

/// Suffix of files that are still being written.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// The endpoint's directory, which need not be listable.
pub(super) fn open_dir(path: &Path) -> Result<Dir> {
    Dir::open_to_search(path).map_err(Error::io(path, "open"))
}

/// As [`open_dir`]; None where there is no such directory.
pub(super) fn find_dir(path: &Path) -> Result<Option<Dir>> {
    match Dir::open_to_search(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some).map_err(Error::io(path, "open")),
    }
}

/// Replaces the file `name` in `dir` by one that holds `content`: readers see the old file or the new one, never a mix.
/// The new one has the permissions of the old one.
pub(super) fn replace(dir: &Dir, name: &str, content: &[u8]) -> Result<()> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);

    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = format!(".{name}.{}.{number}{TEMPORARY_SUFFIX}", std::process::id());
    let failed = |error| Error::io(&dir.path_of(&temporary), "write")(error);
    let mut file = match dir.create_file_with(&temporary, dir.mode_of(name)) {
        // Left by a killed process of the same id.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            dir.remove(&temporary)?;
            dir.create_file_with(&temporary, dir.mode_of(name)).map_err(failed)?
        }
        created => created.map_err(failed)?,
    };
    let result = file.write_all(content).map_err(failed).and_then(|()| dir.rename(&temporary, name, true));
    if result.is_err() {
        // Best effort: the first error is the one that matters.
        let _ = dir.remove(&temporary);
    }
    result
}

/// At most the first `max_len` bytes of a regular file; None if there is no file.
pub(super) fn read(dir: &Dir, name: &str, max_len: u64) -> Result<Option<(Vec<u8>, File)>> {
    let Some(file) = open(dir, name)? else { return Ok(None) };
    let text = read_some(&file, max_len).map_err(Error::io(&dir.path_of(name), "read"))?;
    Ok(Some((text, file)))
}

pub(super) fn read_some(file: &File, max_len: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(max_len).read_to_end(&mut text)?;
    Ok(text)
}

/// Whether a file of this name is a temporary READY or LEASE, which no listing should show.
pub fn is_temporary(name: &str) -> bool {
    let marker = name.starts_with(".READY.") || name.starts_with(".LEASE.");
    marker && name.ends_with(TEMPORARY_SUFFIX)
}

/// Opens a regular file and nothing else: no symlink, and no FIFO that would block. None if there is no file.
pub(super) fn open(dir: &Dir, name: &str) -> Result<Option<File>> {
    dir.open_file(name, crate::queue::FileAccess::Read)
}

/// Without another process: a fork would hold other tests' locks a moment longer.
#[cfg(test)]
pub(super) fn make_fifo(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
}
