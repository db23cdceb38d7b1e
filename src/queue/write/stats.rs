//! What a writer counts: nothing on the way of an append, which changes the figures that these are derived from.

use std::time::Duration;

/// What a [`QueueWriter`](crate::queue::QueueWriter) has done since it was opened. No system call is needed to get it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriterStats {
    /// Messages appended.
    pub appended: u64,
    /// Bytes of their records: headers, payloads, alignment.
    pub bytes: u64,
    /// Segments that it has left for the next one.
    pub rolls: u64,
    /// Time for which appends have waited for room in the full queue
    /// ([`WhenFull::Wait`](crate::queue::WhenFull::Wait)).
    pub waited: Duration,
    /// Wakes of sleeping readers, each a system call; those by [`Waiter::wake_all`](crate::queue::Waiter::wake_all) are
    /// included.
    pub wakes: u64,
    /// Syncs to disk, asked for or by the policy.
    pub syncs: u64,
    /// Syncs that have failed: after one the writer refuses work.
    pub failed_syncs: u64,
}

/// What the writer itself adds to on rare occasions, and where it has started to count.
#[derive(Debug, Default)]
pub(in crate::queue) struct Counted {
    /// Without what has been appended since `from_offset`, and without the syncs in the background.
    pub(in crate::queue) stats: WriterStats,
    pub(in crate::queue) from_seq: u64,
    pub(in crate::queue) from_offset: u32,
    pub(in crate::queue) from_wake: u32,
    /// Numbers that have been passed without a message.
    pub(in crate::queue) skipped: u64,
}
