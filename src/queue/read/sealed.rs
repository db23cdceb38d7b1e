//! What identifies a sealed segment: for callers that keep something derived from it, or copy it elsewhere.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::queue::Queue;
use crate::queue::error::{Error, Result};
use crate::queue::files::dir::Access;
use crate::queue::files::segment::Segment;
use crate::queue::format::block::is_sound;
use crate::queue::format::layout::{
    self, HEADER_LEN, SEGMENT_MAGIC, SEGMENT_SEAL, SEGMENT_SETTINGS, SEGMENT_START, SealBlock, SegmentIdentity,
    StartBlock,
};
use crate::queue::position::SegmentId;

/// Identity, start block and seal block.
const BLOCKS_LEN: usize = SEGMENT_SETTINGS as usize;

/// Bytes of a [`Sealed::fingerprint`].
pub(crate) const FINGERPRINT_LEN: usize = SegmentBlocks::LEN + SegmentBlocks::SEAL_LEN;

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

/// What the blocks at the start of a segment's file say, each by itself sound; the records are another matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentBlocks {
    /// The queue's id, see [`Queue::id`].
    pub queue_id: u64,
    /// The segment's number.
    pub id: SegmentId,
    /// A random number, new with every use of a file.
    pub salt: u32,
    /// Size of the file in bytes.
    pub bytes: u32,
    /// The sequence number that it starts with.
    pub first_seq: u64,
    /// Timestamp of the newest message before it, ns since the epoch.
    pub previous_timestamp_ns: u64,
    /// The first sequence number after it, and the timestamp of the newest message up to its end; None if it is not
    /// sealed.
    pub end: Option<(u64, u64)>,
    /// Where the record that seals it starts; 0 if it is not sealed.
    pub end_offset: u32,
}

impl SegmentBlocks {
    /// How many bytes at the start of the file they take.
    pub const LEN: usize = BLOCKS_LEN;
    /// How many bytes the header of the record takes that seals it.
    pub const SEAL_LEN: usize = HEADER_LEN as usize;

    /// Parses the first [`LEN`](Self::LEN) bytes of a segment that is in use, or was. None if it is not one, or damaged.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let identity: SegmentIdentity = block_at(bytes, 0)?;
        let start: StartBlock = block_at(bytes, SEGMENT_START)?;
        let seal: SealBlock = block_at(bytes, SEGMENT_SEAL)?;
        let size = identity.segment_size.get();
        let is_segment = identity.magic == SEGMENT_MAGIC
            && identity.version.get() == layout::VERSION
            && is_sound(&identity, identity.crc)
            && (layout::MIN_SEGMENT_SIZE..=layout::MAX_SEGMENT_SIZE).contains(&size)
            && is_sound(&start, start.crc)
            && start.first_seq.get() > 0;
        let is_sealed = is_sound(&seal, seal.crc) && seal.next_seq.get() >= start.first_seq.get();
        is_segment.then(|| Self {
            queue_id: identity.queue_id.get(),
            id: SegmentId(identity.segment_id.get()),
            salt: identity.salt.get(),
            bytes: size,
            first_seq: start.first_seq.get(),
            previous_timestamp_ns: start.previous_timestamp_ns.get(),
            end: is_sealed.then(|| (seal.next_seq.get(), seal.last_timestamp_ns.get())),
            end_offset: if is_sealed { seal.end_offset.get() } else { 0 },
        })
    }
}

fn block_at<T: FromBytes + IntoBytes + KnownLayout + Immutable>(bytes: &[u8], offset: u32) -> Option<T> {
    T::read_from_prefix(bytes.get(offset as usize..)?).ok().map(|(block, _)| block)
}

/// A segment to which nothing is added any more.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FinishedSegment {
    /// Its number.
    pub id: SegmentId,
    /// Its file.
    pub path: PathBuf,
    /// The sequence number that it starts with.
    pub first_seq: u64,
    /// The first sequence number after it.
    pub next_seq: u64,
    /// Whether it is sealed. If not, its end is damaged, and the queue goes on in the next segment.
    pub is_sealed: bool,
}

impl Queue {
    /// The segments to which nothing is added any more, from that of message `seq` on, oldest first: for programs that
    /// copy them elsewhere. One without messages is among them if it starts there. Segments that can't be opened are left
    /// out. Opens only those that it returns, the one before them and those that are not finished.
    ///
    /// # Errors
    /// [`Error::Io`] if a file can't be read.
    pub fn finished_segments(&self, seq: u64) -> Result<Vec<FinishedSegment>> {
        let mut found = Vec::new();
        // Of the segment after the one that is looked at: the number that it starts with, and whether it is finished.
        let mut after: Option<(u64, bool)> = None;
        for id in self.segment_ids()?.into_iter().rev() {
            let segment = match self.store.open_segment(id, Access::Read) {
                Ok(Some(segment)) if segment.is_started()? => segment,
                Ok(_) => continue,
                Err(error) if error.is_unusable_file() => continue,
                Err(error) => return Err(error),
            };
            let Some(first_seq) = segment.first_seq() else { continue };
            // A writer that was killed may have left the one before the last unsealed: the next one seals it.
            let next_seq = match (segment.seal(), after) {
                (Some(seal), _) => Some(seal.next_seq.get()),
                (None, Some((next_seq, true))) => Some(next_seq),
                (None, _) => None,
            };
            if let Some(next_seq) = next_seq {
                if next_seq <= seq && first_seq < seq {
                    break;
                }
                let is_sealed = segment.seal().is_some();
                found.push(FinishedSegment { id, path: segment.path, first_seq, next_seq, is_sealed });
            }
            after = Some((first_seq, next_seq.is_some()));
        }
        found.reverse();
        Ok(found)
    }

    /// The sequence number that a segment starts with; None if the segment is missing, or damage hides it.
    ///
    /// # Errors
    /// If a file can't be read.
    pub(crate) fn first_seq_of(&self, id: SegmentId) -> Result<Option<u64>> {
        match self.store.open_segment(id, Access::Read) {
            Ok(segment) => Ok(segment.as_ref().and_then(Segment::first_seq)),
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
