//! Small files that are there whole or not at all: READY and LEASE are written and read through here.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::queue::{Error, Result};
use crate::sync::{AtomicU32, Ordering};

/// How the names of files in the making end.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// Puts `content` in the place of the file `name` in `dir`: readers see the old file or the new one, never a mix.
pub(super) fn replace(dir: &Path, name: &str, content: &[u8]) -> Result<()> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);

    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = dir.join(format!(".{name}.{}.{number}{TEMPORARY_SUFFIX}", std::process::id()));
    let result = write_new(&temporary, content)
        .map_err(Error::io(&temporary, "write"))
        .and_then(|()| fs::rename(&temporary, dir.join(name)).map_err(Error::io(&dir.join(name), "put it in place")));
    if result.is_err() {
        // Best effort: the error that matters is the one already there.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Removes the file; one that is not there is no error.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(path, "remove")(e)),
        _ => Ok(()),
    }
}

/// At most the first `max_len` bytes of a regular file; None if there is no file.
pub(super) fn read(path: &Path, max_len: u64) -> Result<Option<Vec<u8>>> {
    let file = match open_regular(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, "open")(e)),
    };
    let mut text = Vec::new();
    file.take(max_len).read_to_end(&mut text).map_err(Error::io(path, "read"))?;
    Ok(Some(text))
}

/// Whether a file of this name is a READY or LEASE in the making, which no listing should show.
pub fn is_temporary(name: &str) -> bool {
    let marker = name.starts_with(".READY.") || name.starts_with(".LEASE.");
    marker && name.ends_with(TEMPORARY_SUFFIX)
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).open(path)?.write_all(content)
}

/// Opens a regular file and nothing else: no symlink, and no FIFO that would block.
fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// Without another process: a fork would hold other tests' locks for a moment longer.
#[cfg(test)]
pub(super) fn make_fifo(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
}
