//! What readers of a queue return: messages and gaps.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::queue::position::Position;

/// One message in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its sequence number: 1, 2, 3 … in the order of appending.
    pub seq: u64,
    /// When it was appended, in nanoseconds since the epoch. Never less than that of the message before.
    pub timestamp_ns: u64,
    /// Its type, 0 to 65534; what it means is the application's business.
    pub msg_type: u16,
    /// Its bytes.
    ///
    /// A [`QueueReader`](super::QueueReader) lends it from memory shared with the writer: it was verified when `next`
    /// returned, and a writer that keeps to the protocol never changes it again. Any other process that may write to
    /// the queue's files can change it at any time, even after you have checked it. If you cannot trust all of them,
    /// copy it and check the copy, or read with a [`Scanner`](super::Scanner), whose messages are verified copies.
    ///
    /// In memory it starts at a multiple of 8 bytes, or of the queue's
    /// [`payload_align`](super::Settings::payload_align), so that structures can be used in place
    /// ([`payload_as`](Self::payload_as)). That does not hold for copies: those of a scanner, and what a reader returns
    /// from a file that was truncated under it.
    pub payload: &'a [u8],
    /// Where its record starts.
    pub position: Position,
}

impl<'a> Message<'a> {
    /// The value whose bytes the payload is, copied; None if it has another length. Works wherever the payload lies.
    /// [`QueueWriter::append_as`](super::QueueWriter::append_as) has an example.
    pub fn read<T: FromBytes>(&self) -> Option<T> {
        T::read_from_bytes(self.payload).ok()
    }

    /// The value whose bytes the payload is, in place; None if it has another length, or if `T` needs a higher alignment
    /// than the payload has. Works for slices, too: `payload_as::<[u32]>()`.
    pub fn payload_as<T: FromBytes + KnownLayout + Immutable + ?Sized>(&self) -> Option<&'a T> {
        T::ref_from_bytes(self.payload).ok()
    }
}

/// Missing sequence numbers, and why they are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The first sequence number that is missing.
    pub from: u64,
    /// The last sequence number that is missing, inclusive.
    pub to: u64,
    /// Why.
    pub reason: GapReason,
    /// Where the damage starts, or, if nothing is left of it, where the next record is; where the record is that says
    /// what is missing upstream.
    pub position: Position,
}

impl Gap {
    /// How many messages are missing.
    pub fn count(&self) -> u64 {
        self.to.saturating_sub(self.from).saturating_add(1)
    }
}

/// Why messages are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GapReason {
    /// A record's checksum does not match its bytes.
    Checksum,
    /// A segment file is missing, truncated, or not what its name says.
    Segment,
    /// They never reached the disk: a power cut lost the end of the queue, which had not been synced.
    Lost,
    /// Retention removed them before they were read.
    Retired,
    /// They never came to this queue, which is a copy of another one: they were missing there already, for this reason.
    /// The writer has said so ([`append_gap`](super::QueueWriter::append_gap),
    /// [`append_exact`](super::QueueWriter::append_exact)).
    Upstream(UpstreamGap),
}

/// Why messages were missing where a queue is copied from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpstreamGap {
    /// The writer did not say.
    Unknown,
    /// As [`GapReason::Checksum`].
    Checksum,
    /// As [`GapReason::Segment`].
    Segment,
    /// As [`GapReason::Lost`].
    Lost,
    /// As [`GapReason::Retired`].
    Retired,
}

impl UpstreamGap {
    /// The number for it in files; see `format.md`.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Checksum => 1,
            Self::Segment => 2,
            Self::Lost => 3,
            Self::Retired => 4,
        }
    }

    /// The reason with this number.
    pub(crate) fn from_code(code: u8) -> Self {
        let all = [Self::Checksum, Self::Segment, Self::Lost, Self::Retired];
        all.into_iter().find(|reason| reason.code() == code).unwrap_or(Self::Unknown)
    }
}

impl From<GapReason> for UpstreamGap {
    fn from(reason: GapReason) -> Self {
        match reason {
            GapReason::Checksum => Self::Checksum,
            GapReason::Segment => Self::Segment,
            GapReason::Lost => Self::Lost,
            GapReason::Retired => Self::Retired,
            GapReason::Upstream(reason) => reason,
        }
    }
}

impl GapReason {
    /// Whether nothing is damaged here: the records follow each other, and their numbers jump.
    pub(crate) fn is_jump(self) -> bool {
        matches!(self, Self::Lost | Self::Upstream(_))
    }

    /// The word for it in views and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Checksum => "checksum",
            Self::Segment => "segment",
            Self::Lost => "lost",
            Self::Retired => "retired",
            Self::Upstream(UpstreamGap::Unknown) => "upstream",
            Self::Upstream(UpstreamGap::Checksum) => "upstream-checksum",
            Self::Upstream(UpstreamGap::Segment) => "upstream-segment",
            Self::Upstream(UpstreamGap::Lost) => "upstream-lost",
            Self::Upstream(UpstreamGap::Retired) => "upstream-retired",
        }
    }
}

/// What comes next in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A message.
    Message(Message<'a>),
    /// Messages that are missing.
    Gap(Gap),
}

impl<'a> Entry<'a> {
    /// The message, if it is one.
    pub fn message(self) -> Option<Message<'a>> {
        match self {
            Self::Message(message) => Some(message),
            Self::Gap(_) => None,
        }
    }
}

/// What comes next: a message, or a gap, which is due immediately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    /// The message's timestamp, ns since the epoch; 0 for a gap.
    pub(crate) timestamp_ns: u64,
    /// The message's sequence number; for a gap, the first missing one.
    pub(crate) seq: u64,
}

/// Where a queue starts and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bounds {
    /// The sequence number of the first retained message (of the next one, if none is retained).
    pub first_seq: u64,
    /// Where the records of the first retained segment start.
    pub first: Position,
    /// The sequence number after the newest message that exists.
    pub next_seq: u64,
    /// Like `next_seq`, but if messages at the end are missing that had been appended (a power cut, an incomplete
    /// copy), the sequence number after those: the next message gets this one or a later one.
    pub end_seq: u64,
    /// Where the next message goes.
    pub head: Position,
    /// Timestamp of the newest message in nanoseconds since the epoch, 0 if there is none.
    pub last_timestamp_ns: u64,
}
