//! Copies records of a stream into a queue: into a standby, or back into the queue that has lost them.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use chronfs::queue::{Exact, GapReason, Queue, QueueWriter, WriterOptions};

use super::link::{Extent, Link, next_up_to};
use super::place::{Place, search};
use super::wire::{Body, Record, Stored, crc};
use super::{Failure, Result, term_of};

/// Of messages that the queue has already, one of this many is compared, and the last one.
const COMPARED_EVERY: u64 = 256;

/// Copies the records of a stream into a queue, in order.
pub(super) struct Copier {
    pub(super) writer: QueueWriter,
    /// Records of a lower term are void.
    pub(super) term: u64,
    /// The claim of its term has been taken, and not its beginning, which must fit what the queue has then. Later on, the
    /// queue has messages of that term, and may meet the beginning again.
    pub(super) is_claimed: bool,
    /// The parts of a message so far.
    parts: BytesMut,
    next_part: u32,
}

/// What became of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// So many messages were appended, of so many bytes.
    Appended(u64, u64),
    Gap,
    /// Void, or known already.
    Skipped,
    /// Another host has taken over, in this term.
    Fence {
        term: u64,
        origin: u64,
    },
}

impl Copier {
    pub(super) fn new(writer: QueueWriter, term: u64) -> Self {
        Self { writer, term, is_claimed: false, parts: BytesMut::new(), next_part: 1 }
    }

    pub(super) fn next_seq(&self) -> u64 {
        self.writer.next_seq()
    }

    /// Takes the next record of the stream.
    pub(super) fn take(&mut self, stored: Stored) -> Result<Taken> {
        let Stored { origin, term, body } = stored;
        if term < self.term {
            return Ok(Taken::Skipped);
        }
        let next = self.writer.next_seq();
        if let Body::Fence { seq, begins } = body {
            if begins && seq + 1 < next && (self.is_claimed || term > self.term) {
                return Err(Failure::Refused(format!(
                    "queue {origin:016x} took over in term {term} after message {seq}, and this queue has messages up to \
                     {}: run it with --rejoin",
                    next - 1
                )));
            }
            self.is_claimed &= !begins;
            return Ok(if term > self.term { Taken::Fence { term, origin } } else { Taken::Skipped });
        }
        if term > self.term {
            // The fence itself is no longer in the stream.
            return Ok(Taken::Fence { term, origin });
        }
        match body {
            Body::Message(record) if self.is_passed_over(record.seq) => Ok(Taken::Skipped),
            Body::Message(record) => self.append(&record),
            Body::Frame(records) => {
                let (mut count, mut bytes) = (0, 0);
                // Of those that are known, the last one speaks for all: looking each of them up would take longer than
                // a connection lasts when servers fail.
                let last = records.last().map_or(0, |record| record.seq);
                for record in records.iter().filter(|record| record.seq + 1 >= next || record.seq == last) {
                    if let Taken::Appended(more, len) = self.append(record)? {
                        (count, bytes) = (count + more, bytes + len);
                    }
                }
                Ok(if count == 0 { Taken::Skipped } else { Taken::Appended(count, bytes) })
            }
            Body::Part { record, part, of, whole_crc } => self.part(record, part, of, whole_crc),
            Body::Gap { from, to, .. } if to < next || from > next => self.expect(from, to).map(|()| Taken::Skipped),
            Body::Gap { to, reason, .. } => {
                self.writer.append_gap(to, GapReason::Upstream(reason))?;
                Ok(Taken::Gap)
            }
            Body::Stub { seq, len, .. } if seq >= next => Err(Failure::Refused(format!(
                "message {seq} of {len} bytes is in the stream without its payload: relay with --too-large split"
            ))),
            Body::Stub { .. } | Body::Fence { .. } => Ok(Taken::Skipped),
        }
    }

    /// Of known messages that are not in frames, too, few are looked up: the last one speaks for all before it. Where the
    /// stream ends before the queue does, a difference in its last 255 messages is found once it has more.
    fn is_passed_over(&self, seq: u64) -> bool {
        seq + 1 < self.writer.next_seq() && !seq.is_multiple_of(COMPARED_EVERY)
    }

    fn append(&mut self, record: &Record) -> Result<Taken> {
        let Record { seq, time_ns, msg_type, payload } = record;
        self.expect(*seq, *seq)?;
        match self.writer.append_exact(*seq, *time_ns, *msg_type, payload) {
            Ok(Exact::Appended) => Ok(Taken::Appended(1, payload.len() as u64)),
            Ok(_) => Ok(Taken::Skipped),
            Err(error @ chronfs::Error::Diverged { .. }) => Err(Failure::Refused(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// Numbers must not be missing in the stream without a gap record.
    fn expect(&self, from: u64, to: u64) -> Result<()> {
        let next = self.writer.next_seq();
        if from > next && to >= next {
            return Err(Failure::Refused(format!(
                "a hole in the stream: messages {next} to {} are neither in it nor named as missing. If the stream no \
                 longer keeps them, move this queue away and start again",
                from - 1
            )));
        }
        Ok(())
    }

    fn part(&mut self, record: Record, part: u32, of: u32, whole_crc: u32) -> Result<Taken> {
        if record.seq < self.writer.next_seq() {
            return Ok(Taken::Skipped);
        }
        if part == 1 {
            self.parts.clear();
            self.next_part = 1;
        }
        if part != self.next_part {
            let seq = record.seq;
            return Err(Failure::Refused(format!(
                "part {part} of {of} of message {seq} follows part {}",
                self.next_part - 1
            )));
        }
        self.parts.extend_from_slice(&record.payload);
        self.next_part += 1;
        if part < of {
            return Ok(Taken::Skipped);
        }
        let payload: Bytes = std::mem::take(&mut self.parts).freeze();
        if crc(&payload) != whole_crc {
            return Err(Failure::Refused(format!("message {} is damaged: its {of} parts do not add up", record.seq)));
        }
        self.append(&Record { payload, ..record })
    }
}

/// Appends what the stream has and the queue has lost; returns how many messages that were.
pub(super) async fn refill(link: &Link, queue: &Queue, place: Place) -> Result<u64> {
    let options = WriterOptions { refill: true, max_ahead: Duration::MAX, ..WriterOptions::default() };
    let writer = queue.writer_with(&options)?;
    let extent = Extent { first: 1, last: place.stream_seq, is_new: false };
    let from = search(link, extent, writer.next_seq()).await?;
    let mut copier = Copier::new(writer, term_of(queue));
    let mut messages = link.read_from(from).await?;
    let mut count = 0;
    let mut number = from - 1;
    while let Some((at, stored)) = next_up_to(link, messages.as_mut(), number, place.stream_seq).await? {
        number = at;
        if let Taken::Appended(appended, _) = copier.take(stored)? {
            count += appended;
        }
    }
    copier.writer.flush_sync()?;
    Ok(count)
}

/// The writer of a standby.
pub(super) fn standby_writer(queue: &Queue) -> Result<QueueWriter> {
    let options = WriterOptions { as_standby: true, max_ahead: Duration::MAX, ..WriterOptions::default() };
    Ok(queue.writer_with(&options)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_known_messages_a_few_and_the_last_one_are_compared() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::create(dir.path().join("q"), &chronfs::queue::Settings::default()).unwrap();
        let mut copier = Copier::new(queue.writer().unwrap(), 1);
        let mut take = |seq, payload: &'static [u8]| {
            let payload = Bytes::from_static(payload);
            copier.take(Stored {
                origin: 1,
                term: 1,
                body: Body::Message(Record { seq, time_ns: 1, msg_type: 1, payload }),
            })
        };
        for seq in 1..=600 {
            assert_eq!(take(seq, b"x").unwrap(), Taken::Appended(1, 1));
        }
        for seq in 1..=600 {
            assert_eq!(take(seq, b"x").unwrap(), Taken::Skipped);
        }
        for (seq, is_compared) in [(255, false), (256, true), (512, true), (599, false), (600, true)] {
            assert_eq!(matches!(take(seq, b"y"), Err(Failure::Refused(_))), is_compared, "{seq}");
        }
        assert_eq!(take(601, b"x").unwrap(), Taken::Appended(1, 1));
    }
}
