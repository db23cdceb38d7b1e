//! What a reader counts.

use crate::queue::entry::Gap;

/// What a [`Reader`](crate::queue::Reader) has read and waited for since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReaderStats {
    /// Messages returned; those read again after a seek count again.
    pub received: u64,
    /// Gaps returned.
    pub gaps: u64,
    /// Messages missing in these gaps.
    pub lost: u64,
    /// Waits that found nothing at first.
    pub waits: u64,
    /// Sleeps that the writer (or a stop) has ended.
    pub wakes: u64,
}

impl ReaderStats {
    pub(super) fn count(&mut self, gap: Gap) -> Gap {
        self.gaps += 1;
        self.lost = self.lost.saturating_add(gap.count());
        gap
    }
}
