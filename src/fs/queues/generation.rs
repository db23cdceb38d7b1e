//! What distinguishes the bytes under a name from earlier ones.

use crate::fs::backing::FileId;
use crate::fs::tree::inodes::stable_hash;
use crate::queue::SegmentId;

/// The identity of a segment file, distinct from another of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SegmentFile {
    pub(in crate::fs) segment: SegmentId,
    pub(in crate::fs) id: FileId,
    /// Inode numbers are reused at once; birth times are not.
    pub(in crate::fs) born: i64,
}

/// Identifies what a view of everything retained shows: other bytes have another generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Generation {
    pub(in crate::fs) first: SegmentFile,
    /// Incremented when damage has changed what was shown before.
    pub(in crate::fs) turn: u32,
}

impl Generation {
    /// As a node's generation, of the queue with this identity.
    pub(crate) fn number(self, identity: u64) -> u64 {
        let Self { first, turn } = self;
        let (segment, born) = (first.segment.0.to_le_bytes(), first.born.to_le_bytes());
        stable_hash(&[&identity.to_le_bytes(), &segment, &born, &turn.to_le_bytes()])
    }
}
