//! What comes next in a queue, as C sees it.

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use engine::queue::{Gap, GapReason, Message, UpstreamGap};

/// What an entry is.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A message.
    Message = 1,
    /// Messages that are missing.
    Gap = 2,
}

/// What comes next in a queue: a message, or messages that are missing.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// CHRONFS_KIND_MESSAGE or CHRONFS_KIND_GAP. A gap has last_seq and reason, and neither time, type nor payload.
    pub kind: Kind,
    /// The message's type, 0 to 65534.
    pub r#type: u16,
    /// The message's sequence number; of a gap, the first one that is missing.
    pub seq: u64,
    /// Of a gap, the last sequence number that is missing; of a message, the same as seq.
    pub last_seq: u64,
    /// When it was appended, in ns since the epoch; never less than that of the message before.
    pub timestamp_ns: u64,
    /// The message's bytes, aligned as the queue's payload_align says. Not NULL, even without bytes. Lent from the mapped
    /// file: chronfs_reader_next says for how long. Other processes that may write to the queue's files can change them at
    /// any time: if you can't trust those, copy them before you check them.
    pub payload: *const c_void,
    /// How many bytes the payload has.
    pub len: usize,
    /// Why messages are missing: "checksum", "segment", "lost", "retired", or, in a copy of another queue, a word that
    /// begins with "upstream". A constant; NULL for a message.
    pub reason: *const c_char,
    /// The number of the segment that the message's record, or the damage, is in.
    pub segment: u32,
    /// Where it starts in the segment's file, in bytes.
    pub offset: u32,
}

impl From<&Message<'_>> for Entry {
    #[inline]
    fn from(message: &Message<'_>) -> Self {
        let &Message { seq, timestamp_ns, msg_type, payload, position } = message;
        Self {
            kind: Kind::Message,
            r#type: msg_type,
            seq,
            last_seq: seq,
            timestamp_ns,
            payload: payload.as_ptr().cast(),
            len: payload.len(),
            reason: ptr::null(),
            segment: position.segment.0,
            offset: position.offset,
        }
    }
}

impl From<&Gap> for Entry {
    fn from(gap: &Gap) -> Self {
        Self {
            kind: Kind::Gap,
            r#type: 0,
            seq: gap.from,
            last_seq: gap.to,
            timestamp_ns: 0,
            payload: ptr::null(),
            len: 0,
            reason: word(gap.reason).as_ptr(),
            segment: gap.position.segment.0,
            offset: gap.position.offset,
        }
    }
}

/// The words of [`GapReason::as_str`].
fn word(reason: GapReason) -> &'static CStr {
    match reason {
        GapReason::Checksum => c"checksum",
        GapReason::Segment => c"segment",
        GapReason::Lost => c"lost",
        GapReason::Retired => c"retired",
        GapReason::Upstream(UpstreamGap::Checksum) => c"upstream-checksum",
        GapReason::Upstream(UpstreamGap::Segment) => c"upstream-segment",
        GapReason::Upstream(UpstreamGap::Lost) => c"upstream-lost",
        GapReason::Upstream(UpstreamGap::Retired) => c"upstream-retired",
        GapReason::Upstream(_) => c"upstream",
        _ => c"unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_the_words_of_the_engine() {
        use UpstreamGap::{Checksum, Lost, Retired, Segment, Unknown};
        let upstream = [Unknown, Checksum, Segment, Lost, Retired].map(GapReason::Upstream);
        let own = [GapReason::Checksum, GapReason::Segment, GapReason::Lost, GapReason::Retired];
        for reason in own.into_iter().chain(upstream) {
            assert_eq!(word(reason).to_bytes(), reason.as_str().as_bytes());
        }
    }
}
