//! What identifies a sealed segment: for callers that keep something derived from it.

use std::os::unix::fs::{FileExt, MetadataExt};

use crate::queue::Queue;
use crate::queue::error::{Error, Result};
use crate::queue::files::dir::Access;
use crate::queue::format::layout::{HEADER_LEN, SEGMENT_SETTINGS};
use crate::queue::position::SegmentId;
use crate::queue::read::scan::first_seq;

/// Identity, start block and seal block.
const BLOCKS_LEN: usize = SEGMENT_SETTINGS as usize;

/// Bytes of a [`Sealed::fingerprint`].
pub(crate) const FINGERPRINT_LEN: usize = BLOCKS_LEN + HEADER_LEN as usize;

/// A segment to which nothing is added any more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sealed {
    /// The sequence number that it starts with.
    pub(crate) first_seq: u64,
    /// The first sequence number of the next segment.
    pub(crate) next_seq: u64,
    /// Timestamp of the newest message up to its end, ns since the epoch.
    pub(crate) last_timestamp_ns: u64,
    /// Where the record that seals it starts.
    pub(crate) end_offset: u32,
    /// Its identity, start and seal blocks and the header of the sealing record, as in the file: unique to this segment
    /// with these messages.
    pub(crate) fingerprint: [u8; FINGERPRINT_LEN],
    /// The file's permissions.
    pub(crate) mode: u32,
}

impl Queue {
    /// The sequence number that a segment starts with; None if the segment is missing, or damage hides it.
    ///
    /// # Errors
    /// If a file can't be read.
    pub(crate) fn first_seq_of(&self, id: SegmentId) -> Result<Option<u64>> {
        match self.store.open_segment(id, Access::Read) {
            Ok(segment) => Ok(segment.as_ref().and_then(first_seq)),
            Err(Error::Damaged { .. } | Error::UnsupportedVersion { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is known of a segment once it has been sealed; None before that, if it is missing, and if damage hides it.
    ///
    /// # Errors
    /// If a file can't be read.
    pub(crate) fn sealed(&self, id: SegmentId) -> Result<Option<Sealed>> {
        let segment = match self.store.open_segment(id, Access::Read) {
            Ok(Some(segment)) => segment,
            Ok(None) => return Ok(None),
            Err(error) if error.is_unusable_file() => return Ok(None),
            Err(error) => return Err(error),
        };
        let (Some(start), Some(seal)) = (segment.start(), segment.seal()) else { return Ok(None) };
        let end_offset = seal.end_offset.get();
        let mut fingerprint = [0; FINGERPRINT_LEN];
        let (blocks, record) = fingerprint.split_at_mut(BLOCKS_LEN);
        for (part, offset) in [(blocks, 0), (record, end_offset)] {
            match segment.file.read_exact_at(part, u64::from(offset)) {
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
                other => other.map_err(Error::io(&segment.path, "read it"))?,
            }
        }
        let metadata = segment.file.metadata().map_err(Error::io(&segment.path, "stat it"))?;
        Ok(Some(Sealed {
            first_seq: start.first_seq,
            next_seq: seal.next_seq.get(),
            last_timestamp_ns: seal.last_timestamp_ns.get(),
            end_offset,
            fingerprint,
            mode: metadata.mode() & 0o666,
        }))
    }
}
