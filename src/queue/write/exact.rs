//! Copying another queue message by message: same numbers, same timestamps, the same gaps.

use std::sync::Arc;

use zerocopy::IntoBytes;

use crate::queue::entry::{Entry, Gap, GapReason, Message, UpstreamGap};
use crate::queue::error::{Error, Result};
use crate::queue::format::layout::{FLAG_GAP, GAP_LEN, PADDING_TYPE};
use crate::queue::position::MAX_SEQ;
use crate::queue::read::scan::Scanner;
use crate::queue::write::writer::QueueWriter;

/// What [`QueueWriter::append_exact`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exact {
    /// It was the next message, and has been appended.
    Appended,
    /// It has been appended after a gap: these messages, the last one included, will never come.
    AppendedAfterGap {
        /// The first missing sequence number.
        from: u64,
        /// The last one.
        to: u64,
    },
    /// The queue has an equal message with this number already.
    Ignored,
    /// Its number has been passed, and there is nothing to compare it with: retention has removed the message of this
    /// number ([`GapReason::Retired`]), or it is in a gap.
    Gone(GapReason),
}

impl QueueWriter {
    /// Appends a message of another queue with its number and timestamp. For copies of a queue: it may be called again
    /// with messages that the queue has already, and never assigns a number twice.
    ///
    /// The next number is appended. A later one is appended after a gap, whose reason is unknown: call
    /// [`append_gap`](Self::append_gap) before, if you know it. A number that has been passed is compared with what is
    /// here, which reads it back: for the few messages after a restart.
    ///
    /// ```
    /// # use chronfs::queue::{Queue, Settings};
    /// use chronfs::queue::Exact;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let mut copy = Queue::create_at(dir.path().join("copy"), &Settings::default(), 500)?.writer()?;
    /// assert_eq!(copy.append_exact(500, 1_000, 1, b"hello")?, Exact::Appended);
    /// assert_eq!(copy.append_exact(500, 1_000, 1, b"hello")?, Exact::Ignored);
    /// assert_eq!(copy.append_exact(503, 2_000, 1, b"world")?, Exact::AppendedAfterGap { from: 501, to: 502 });
    /// assert!(copy.append_exact(500, 1_000, 1, b"HELLO").is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Diverged`] if another message has this number here; [`Error::NoSuchPosition`] for a number that no queue
    /// reaches; otherwise as [`append_at`](Self::append_at). A gap may have been appended then, and the message is the
    /// next one.
    pub fn append_exact(&mut self, seq: u64, timestamp_ns: u64, msg_type: u16, payload: &[u8]) -> Result<Exact> {
        let from = self.next_seq;
        if seq < from {
            return self.compare(seq, timestamp_ns, msg_type, payload);
        }
        // Before the gap: what can't be appended shall leave none.
        self.check_timestamp(timestamp_ns)?;
        self.checked_len(payload.len(), msg_type)?;
        self.append_gap(seq.saturating_sub(1), GapReason::Upstream(UpstreamGap::Unknown))?;
        self.append_at(timestamp_ns, msg_type, payload)?;
        Ok(if seq > from { Exact::AppendedAfterGap { from, to: seq - 1 } } else { Exact::Appended })
    }

    /// Says that the messages from the next one to `to`, inclusive, will never come, because they are missing in the
    /// queue that this one is a copy of. Readers get a gap with [`GapReason::Upstream`]. Returns the gap's first number;
    /// None if `to` has been passed already.
    ///
    /// # Errors
    /// [`Error::NoSuchPosition`] for a number that no queue reaches; otherwise as [`append`](Self::append).
    pub fn append_gap(&mut self, to: u64, reason: GapReason) -> Result<Option<u64>> {
        let from = self.next_seq;
        if to < from {
            return Ok(None);
        }
        if to >= MAX_SEQ - 1 {
            let path = self.store.dir.path().to_path_buf();
            return Err(Error::NoSuchPosition { path, what: format!("message {to}, which nobody has reached") });
        }
        let mut payload = [0; GAP_LEN as usize];
        payload[..8].copy_from_slice((to + 1).as_bytes());
        payload[8] = UpstreamGap::from(reason).code();
        let kind = (PADDING_TYPE, FLAG_GAP);
        self.publish_filled(self.last_timestamp_ns, kind, payload.len(), |to| to.copy_from_slice(&payload))?;
        self.next_seq = to + 1;
        self.counted.skipped += to + 1 - from;
        self.waker.published(&self.control);
        Ok(Some(from))
    }

    /// Compares a message with the one that has its number here.
    fn compare(&self, seq: u64, timestamp_ns: u64, msg_type: u16, payload: &[u8]) -> Result<Exact> {
        let bounds = self.store.bounds()?;
        if seq < bounds.first_seq {
            return Ok(Exact::Gone(GapReason::Retired));
        }
        let mut scanner = Scanner::at(Arc::clone(&self.store), bounds.first, bounds.first_seq);
        scanner.seek_seq_within(seq, &bounds)?;
        let here = match scanner.next()? {
            Some(Entry::Message(message)) if message.seq == seq => message,
            Some(Entry::Gap(Gap { from, reason, .. })) if from <= seq => return Ok(Exact::Gone(reason)),
            _ => return Ok(Exact::Gone(GapReason::Lost)),
        };
        let given = Message { timestamp_ns, msg_type, payload, ..here };
        if given == here {
            return Ok(Exact::Ignored);
        }
        let path = self.store.dir.path().to_path_buf();
        Err(Error::Diverged { path, seq, here: describe(&here), given: describe(&given) })
    }
}

fn describe(message: &Message<'_>) -> String {
    let Message { msg_type, timestamp_ns, payload, .. } = message;
    let (len, sum) = (payload.len(), crc32fast::hash(payload));
    format!("type {msg_type}, timestamp {timestamp_ns}, {len} bytes with CRC-32 {sum:08x}")
}
