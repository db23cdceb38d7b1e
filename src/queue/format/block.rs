//! Blocks of fixed length: reading and verifying them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::queue::error::{Error, Result};
use crate::queue::format::crc::block_checksum;
use crate::queue::format::layout;

pub(crate) fn check_checksum_kind(found: u8, path: &Path, offset: u32) -> Result<()> {
    if found == layout::CHECKSUM_KIND {
        return Ok(());
    }
    Err(Error::damaged(path, u64::from(offset), format!("checksum kind {found} is unknown")))
}

pub(crate) fn check_version(found: u16, path: &Path) -> Result<()> {
    if found == layout::VERSION {
        return Ok(());
    }
    Err(Error::UnsupportedVersion { path: path.to_path_buf(), found, supported: layout::VERSION })
}

/// Reads a block at an offset in a file; None if the file ends before.
pub(crate) fn read_block<T: FromZeros + FromBytes + IntoBytes + KnownLayout>(file: &File, offset: u32) -> Option<T> {
    let mut block = T::new_zeroed();
    file.read_exact_at(block.as_mut_bytes(), u64::from(offset)).ok()?;
    Some(block)
}

/// Like [`read_block`], but a failure to read the block is an error: for decisions that must not take a failing disk
/// for missing or damaged bytes.
pub(crate) fn read_block_strictly<T>(file: &File, path: &Path, offset: u32) -> Result<Option<T>>
where
    T: FromZeros + FromBytes + IntoBytes + KnownLayout,
{
    let mut block = T::new_zeroed();
    match file.read_exact_at(block.as_mut_bytes(), u64::from(offset)) {
        Ok(()) => Ok(Some(block)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(Error::io(path, "read it")(error)),
    }
}

/// Whether a block's last four bytes are the checksum of the others.
pub(crate) fn is_sound<T: IntoBytes + Immutable>(block: &T, crc: layout::U32) -> bool {
    crc.get() == block_checksum(block.as_bytes())
}
