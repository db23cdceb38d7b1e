//! How far a stream has come, in the numbers of a queue, and whether the two agree.

use chronfs::queue::{Entry, Queue, ReaderOptions, Start};

use super::link::{Extent, Link, next_up_to};
use super::state::Pair;
use super::wire::{Body, Record, Stored, crc};
use super::{Failure, Result};

/// How many messages may have been on their way when another host took over: no more of them can be void.
pub(super) const MAX_VOID: u64 = 1024;
/// As many messages come between two writes of the state file at most.
const MAX_IN_DOUBT: u64 = 200_000;

/// Where a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The stream's last number.
    pub(super) stream_seq: u64,
    /// The number up to which the queue is in the stream.
    pub(super) seq: u64,
    /// The next message has begun: so many parts of so many are in the stream.
    pub(super) parts: Option<(u32, u32)>,
    /// The stream has more than this queue.
    pub(super) is_ahead: bool,
    /// The stream went back to before the promotion of this queue, and needs this of it again.
    pub(super) needs: Option<Fence>,
}

/// What a promotion publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fence {
    Claim,
    Beginning,
}

/// A queue as the counterpart of a stream.
pub(super) struct Own<'a> {
    pub(super) queue: &'a Queue,
    pub(super) origin: u64,
    pub(super) term: u64,
}

impl Own<'_> {
    /// Finds the place; fails if the queue and the stream contradict each other. `known`: as of an earlier look, what
    /// comes up to there is this queue's.
    pub(super) async fn find(&self, link: &Link, extent: Extent, known: Pair) -> Result<Place> {
        let Extent { first, last, is_new } = extent;
        if is_new {
            return Ok(Place { stream_seq: last, seq: 0, parts: None, is_ahead: false, needs: None });
        }
        let Some((mut stored, at)) = self.last_valid(link, extent).await? else {
            // Expired, purged or deleted.
            if known.stream_seq != last {
                return Err(Failure::Refused(format!(
                    "message {last}, the last one of the stream, has been removed, and it is unknown which message of \
                     the queue it was; empty the stream or make a new one"
                )));
            }
            return Ok(Place { stream_seq: last, seq: known.seq, parts: None, is_ahead: false, needs: None });
        };
        self.check_term(link, extent, known.stream_seq).await?;
        let mut needs = (stored.origin != self.origin).then_some(Fence::Claim);
        if matches!(stored.body, Body::Fence { begins: false, .. }) {
            needs = Some(Fence::Beginning);
            stored = self.before_claim(link, at).await?.unwrap_or(stored);
        }
        let seq = stored.body.last_seq();
        let bounds = self.queue.bounds()?;
        let is_ahead = seq >= bounds.next_seq;
        if !is_ahead && !self.agrees(&stored)? {
            let first_difference = self.first_difference(link, first, at).await?;
            return Err(Failure::Refused(format!(
                "diverged since message {first_difference}: the stream has another one of this number than the queue; \
                 `chron-relay verify` names all of them"
            )));
        }
        let parts = match stored.body {
            Body::Part { part, of, .. } if part < of => Some((part, of)),
            _ => None,
        };
        Ok(Place { stream_seq: last, seq, parts, is_ahead, needs })
    }

    /// The last message of the stream that counts, and its number; None if it has been removed. It is another queue's if
    /// the stream went back to before the promotion of this one.
    async fn last_valid(&self, link: &Link, extent: Extent) -> Result<Option<(Stored, u64)>> {
        let lowest = extent.first.max(extent.last.saturating_sub(MAX_VOID)).max(1);
        if lowest > extent.last {
            return Ok(None);
        }
        let mut other = None;
        for number in (lowest..=extent.last).rev() {
            let Some(stored) = link.get(number).await? else {
                if number == extent.last {
                    return Ok(None);
                }
                continue;
            };
            self.check(&stored)?;
            if stored.origin == self.origin {
                return Ok(Some((stored, number)));
            }
            // Of an earlier term: it was on its way when this queue took over.
            other = other.or(Some((stored, number)));
        }
        if let Some((stored, number)) = other
            && self.has_copied(&stored)?
        {
            return Ok(Some((stored, number)));
        }
        Err(Failure::Refused(format!(
            "the stream belongs to another queue; this is queue {:016x} in term {}. Use a stream of its own, or promote \
             this queue",
            self.origin, self.term
        )))
    }

    /// What comes before a claim of this queue, which must be what the queue has.
    async fn before_claim(&self, link: &Link, claim: u64) -> Result<Option<Stored>> {
        for number in (1..claim).rev() {
            match link.get(number).await? {
                Some(Stored { body: Body::Fence { begins: false, .. }, .. }) => {}
                Some(stored) if !self.has_copied(&stored)? => {
                    return Err(Failure::Refused(format!(
                        "diverged: the stream went back to before the promotion of this queue, and message {} of another \
                         one came to it; make a new stream",
                        stored.body.last_seq()
                    )));
                }
                stored => return Ok(stored),
            }
        }
        Ok(None)
    }

    /// Whether this queue has this very message.
    fn has_copied(&self, stored: &Stored) -> Result<bool> {
        let is_message = match stored.body {
            Body::Message(_) | Body::Frame(_) | Body::Stub { .. } => true,
            Body::Part { part, of, .. } => part == of,
            Body::Fence { begins, .. } => begins,
            Body::Gap { .. } => false,
        };
        Ok(is_message && message(self.queue, stored.body.last_seq())?.is_some() && self.agrees(stored)?)
    }

    /// Whoever takes over says so among this queue's own messages: those that were on their way then come after it.
    async fn check_term(&self, link: &Link, Extent { first, last, .. }: Extent, known: u64) -> Result<()> {
        let is_known = known > 0 && known <= last && last - known <= MAX_IN_DOUBT;
        let from = if is_known { known } else { last.saturating_sub(MAX_VOID) };
        let mut number = from.max(first.saturating_sub(1));
        if number < last {
            let mut messages = link.read_from(number + 1).await?;
            while let Some((at, stored)) = next_up_to(link, messages.as_mut(), number, last).await? {
                self.check(&stored)?;
                number = at;
            }
        }
        Ok(())
    }

    fn check(&self, Stored { origin, term, body }: &Stored) -> Result<()> {
        if *term > self.term || (*origin != self.origin && *term == self.term) {
            return Err(Failure::Refused(format!(
                "the stream belongs to queue {origin:016x} in term {term} since message {}; this is queue {:016x} in \
                 term {}. If that one has been promoted, this one can become its standby",
                body.last_seq(),
                self.origin,
                self.term
            )));
        }
        Ok(())
    }

    /// Whether what is in the stream is what the queue has, as far as that is still there.
    fn agrees(&self, stored: &Stored) -> Result<bool> {
        match &stored.body {
            Body::Message(record) => self.has(record.seq, |here| same(here, record)),
            Body::Part { record, whole_crc, .. } => self.has(record.seq, |here| {
                (here.time_ns, here.msg_type, crc(&here.payload)) == (record.time_ns, record.msg_type, *whole_crc)
            }),
            Body::Frame(records) => {
                records.last().map_or(Ok(true), |record| self.has(record.seq, |here| same(here, record)))
            }
            Body::Stub { seq, time_ns, crc: sum, .. } => {
                self.has(*seq, |here| (here.time_ns, crc(&here.payload)) == (*time_ns, *sum))
            }
            Body::Gap { .. } | Body::Fence { .. } => Ok(true),
        }
    }

    /// Whether the queue's message of this number is as `is_same` says. True if it is missing here.
    fn has(&self, seq: u64, is_same: impl FnOnce(&Record) -> bool) -> Result<bool> {
        Ok(message(self.queue, seq)?.is_none_or(|here| is_same(&here)))
    }

    /// The first number that is another message in the queue than in the stream, up to the stream's message `last`.
    async fn first_difference(&self, link: &Link, first: u64, last: u64) -> Result<u64> {
        let (mut low, mut high) = (first.max(1), last);
        let mut found = 0;
        while low <= high {
            let middle = low + (high - low) / 2;
            let differs = match link.get(middle).await? {
                Some(stored) if !self.agrees(&stored)? => Some(stored.body.last_seq()),
                _ => None,
            };
            match differs {
                Some(seq) => (found, high) = (seq, middle.saturating_sub(1)),
                None => low = middle + 1,
            }
        }
        Ok(found)
    }
}

fn same(here: &Record, there: &Record) -> bool {
    (here.time_ns, here.msg_type) == (there.time_ns, there.msg_type) && here.payload == there.payload
}

/// The queue's message of this number, copied; None if it is missing.
pub(super) fn message(queue: &Queue, seq: u64) -> Result<Option<Record>> {
    let options = ReaderOptions { start: Start::Seq(seq), ..ReaderOptions::default() };
    Ok(match queue.tailer_with(&options)?.next()? {
        Some(Entry::Message(message)) if message.seq == seq => Some(Record {
            seq,
            time_ns: message.timestamp_ns,
            msg_type: message.msg_type,
            payload: bytes::Bytes::copy_from_slice(message.payload),
        }),
        _ => None,
    })
}

/// The number of the stream from which on a copy that needs message `seq` must read: nothing before it is needed.
pub(super) async fn search(link: &Link, extent: Extent, seq: u64) -> Result<u64> {
    let (mut low, mut high) = (extent.first.max(1), extent.last.saturating_add(1));
    while low < high {
        let middle = low + (high - low) / 2;
        match link.get(middle).await? {
            Some(stored) if stored.body.last_seq() >= seq => high = middle,
            _ => low = middle + 1,
        }
    }
    // Void records among them can have misled the search.
    Ok(low.saturating_sub(MAX_VOID).max(extent.first).max(1))
}
