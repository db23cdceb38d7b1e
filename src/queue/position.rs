//! Where things are in a queue: segment numbers and positions. Pure.

use std::fmt;

#[cfg(feature = "view")]
use crate::queue::format::layout;

/// The number of a segment file: 0, 1, 2 … in the order of writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SegmentId(pub u32);

impl SegmentId {
    /// The number after this one; None after the largest.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Published and consumed sequence numbers above this are not trusted: nobody has appended this many messages.
pub(crate) const MAX_SEQ: u64 = 1 << 62;

/// A place in a queue: a segment and a byte offset in its file. Positions order like sequence numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The segment.
    pub segment: SegmentId,
    /// Byte offset in the segment's file, a multiple of 8.
    pub offset: u32,
}

impl Position {
    /// Whether a segment's first record can start here: where it does depends on the alignment of its payloads.
    #[cfg(feature = "view")]
    pub(crate) fn can_be_first(self) -> bool {
        [layout::RECORDS_START, layout::records_start(layout::MAX_PAYLOAD_ALIGN)].contains(&self.offset)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {} offset {}", self.segment, self.offset)
    }
}
