//! Disk space for stores into mapped files: reserved before the first store, because a store can't fail.
//!
//! A file does not own its blocks for ever: a copy of the file may have holes, or share its blocks with the original
//! (`cp --reflink`, the default of `cp` on XFS). If a file system writes each block to a new place (btrfs), blocks
//! can't be reserved at all. A store for which there is no space nevertheless raises `SIGBUS` (`sigbus.rs`), which is
//! noticed before the append returns.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstatfs, seek};
use rustix::io::{Errno, retry_on_intr};

/// File system types as in `statfs`: see statfs(2).
const EXT4: u64 = 0xEF53;
const TMPFS: u64 = 0x0102_1994;
const XFS: u64 = 0x5846_5342;
/// The last page of a file in memory may be this large, and extend past the file's end.
const LARGE_PAGE: u64 = 2 << 20;
/// The unit in which `stat` counts blocks, in bytes.
const STAT_BLOCK: u64 = 512;
/// Bytes copied at once while others may store into the file.
const PIECE: u64 = 4 << 20;
/// Bytes of zeros written at once.
const ZEROS: usize = 64 << 10;

/// Makes the blocks of `from..to` the file's own: fills holes, and copies what it shares with other files. Changes no
/// byte.
///
/// # Errors
/// As the system returns them: `ENOSPC` and `EDQUOT` if there is no space.
pub(crate) fn reserve(file: &File, from: u64, to: u64) -> io::Result<()> {
    if is_whole_in_memory(file, to)? {
        return Ok(());
    }
    let flags = FallocateFlags::KEEP_SIZE | FallocateFlags::UNSHARE_RANGE;
    match allocate(file, flags, from, to) {
        // A file system where no two files share blocks.
        Err(Errno::OPNOTSUPP) => {}
        done => return Ok(done?),
    }
    match allocate(file, FallocateFlags::KEEP_SIZE, from, to) {
        Err(Errno::OPNOTSUPP) => fill_holes(file, from, to),
        done => Ok(done?),
    }
}

/// Like [`reserve`], for a file in use: only where another program may have taken what was reserved, and in pieces,
/// because stores into the file wait for each.
pub(crate) fn renew(file: &File, from: u64, to: u64) -> io::Result<()> {
    if kind(file)? != XFS {
        return Ok(());
    }
    let flags = FallocateFlags::KEEP_SIZE | FallocateFlags::UNSHARE_RANGE;
    let mut at = from;
    while at < to {
        let end = to.min(at + PIECE);
        allocate(file, flags, at, end)?;
        at = end;
    }
    Ok(())
}

/// Whether storing into the file needs no new blocks, once they are allocated.
pub(crate) fn is_overwritten_in_place(file: &File, size: u64) -> io::Result<bool> {
    Ok(match kind(file)? {
        EXT4 | TMPFS => true,
        XFS => allocate(file, FallocateFlags::UNSHARE_RANGE, 0, size).is_ok(),
        _ => false,
    })
}

#[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)] // a magic number, signed or not by architecture
fn kind(file: &File) -> io::Result<u64> {
    Ok(fstatfs(file)?.f_type as u64)
}

/// Whether the file is in a file system in memory, with all its pages. Saves checking each of them.
fn is_whole_in_memory(file: &File, len: u64) -> io::Result<bool> {
    let blocks = file.metadata()?.blocks();
    Ok(len.is_multiple_of(LARGE_PAGE) && blocks * STAT_BLOCK >= len && kind(file)? == TMPFS)
}

fn allocate(file: &File, flags: FallocateFlags, from: u64, to: u64) -> Result<(), Errno> {
    retry_on_intr(|| fallocate(file, flags, from, to.saturating_sub(from)))
}

/// Writes zeros into holes.
fn fill_holes(file: &File, mut from: u64, to: u64) -> io::Result<()> {
    let zeros = [0; ZEROS];
    while from < to {
        let hole = seek(file, SeekFrom::Hole(from))?.min(to);
        // Or up to the end of the file.
        let end = seek(file, SeekFrom::Data(hole)).map_or(to, |data| data.min(to));
        let mut at = hole;
        while at < end {
            let count = usize::try_from(end - at).unwrap_or(ZEROS).min(ZEROS);
            file.write_all_at(&zeros[..count], at)?;
            at += count as u64;
        }
        from = end.max(from + 1);
    }
    Ok(())
}
