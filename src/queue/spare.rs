//! The spare: the file of a retired segment, kept for the next one. Its blocks are there and its pages are in memory, which
//! is most of what a new segment costs.
//!
//! Only for the holder of the writer lock. Invariants:
//! - A file is used again only if nobody else has it open, mapped or under another name: whoever still reads a retired
//!   segment can finish, and its file is then removed as any other.
//! - Meanwhile it has a temporary name, which means nothing: the next writer clears it away.
//! - What it held is told from what it will hold by the segment's salt; see `format.md` on segments that are used again.

use std::fs::File;
use std::io::{self, IoSliceMut};

use rustix::fs::{FallocateFlags, fallocate, fstatfs};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::dir::{Access, Dir};
use super::error::Result;
use super::{layout, sys};

const NAME: &str = "spare.q.tmp";
/// At most so many places of a file are looked at to tell whether it is in memory.
const SAMPLES: u64 = 64;
/// Kinds of file systems, as `statfs` tells them: see statfs(2).
const EXT4: u64 = 0xEF53;
const TMPFS: u64 = 0x0102_1994;
const XFS: u64 = 0x5846_5342;

/// Takes a retired segment out of the queue; its file becomes the spare if there is none yet.
pub(crate) fn keep(dir: &Dir, segment: &str) -> Result<()> {
    dir.rename(segment, NAME, false).or_else(|_| dir.remove(segment))
}

/// Removes the spare, if there is one.
pub(crate) fn discard(dir: &Dir) {
    // What stays is cleared away by the next writer.
    let _ = dir.remove(NAME);
}

/// The spare, under the name `temporary` now, if it can be used again; otherwise it is gone.
pub(crate) fn take(dir: &Dir, temporary: &str, size: u32) -> Option<File> {
    let file = dir.open_file(NAME, Access::Write);
    if let Ok(None) = file {
        return None;
    }
    let file = file.ok().flatten().filter(|file| can_be_used(file, u64::from(size)).unwrap_or(false));
    // On the disk, too, it must have lost its segment's name before its bytes change.
    let taken = file.filter(|_| dir.rename(NAME, temporary, false).and_then(|()| dir.sync()).is_ok());
    if taken.is_none() {
        discard(dir);
        // What stays is cleared away by the next writer.
        let _ = dir.remove(temporary);
    }
    taken
}

fn can_be_used(file: &File, size: u64) -> io::Result<bool> {
    Ok(file.metadata()?.len() == size && is_overwritten_in_place(file, size)? && is_in_memory(file, size)? && {
        sys::is_open_here_only(file)?
    })
}

/// Whether storing into the file needs no new blocks: where it does, a full disk would show as `SIGBUS`.
fn is_overwritten_in_place(file: &File, size: u64) -> io::Result<bool> {
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)] // a magic number, signed or not by architecture
    Ok(match fstatfs(file)?.f_type as u64 {
        EXT4 | TMPFS => true,
        // A copy may share its blocks (`cp --reflink`).
        XFS => fallocate(file, FallocateFlags::UNSHARE_RANGE, 0, size).is_ok(),
        _ => false,
    })
}

/// Whether the file's pages are in memory: to read them from the disk costs more than new ones.
fn is_in_memory(file: &File, size: u64) -> io::Result<bool> {
    let step = (size / SAMPLES).max(u64::from(layout::PAGE));
    for sample in 0..size / step {
        let mut byte = [0];
        let at = sample * step;
        match preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT) {
            Ok(_) => {}
            // Where a file system can't say, it is one in memory.
            Err(Errno::OPNOTSUPP) => return Ok(true),
            Err(Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
