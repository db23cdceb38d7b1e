//! The mtime of files that are stored into through mappings. The kernel updates it at some later time, and in tmpfs
//! never, but programs that copy changed files rely on it.

use std::fs::File;
use std::io;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};

use crate::queue::files::dir::Access;
use crate::queue::files::store::Store;
use crate::queue::format::layout::CONTROL_FILE;

/// Sets the mtime to now. Best effort: if it fails, the contents are right nevertheless.
pub(crate) fn touch(file: &File) -> io::Result<()> {
    // Both times: anyone who may write to the file may set both to now, but only its owner may set one of them.
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    Ok(futimens(file, &Timestamps { last_access: now, last_modification: now })?)
}

/// Updates the mtime of the control block.
pub(crate) fn touch_control(store: &Store) {
    if let Ok(Some(file)) = store.dir.open_file(CONTROL_FILE, Access::Write) {
        let _ = touch(&file);
    }
}
