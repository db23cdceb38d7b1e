//! Compares a queue with its stream, message by message.

use std::path::Path;
use std::time::Duration;

use chronfs::queue::Queue;
use serde::Serialize;

use super::link::{Access, Link, Target, next_up_to};
use super::place::message;
use super::wire::{Body, Record, crc};
use super::{Failure, Result, persist};

/// How a queue and its stream compare.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Messages that are the same in both.
    pub equal: u64,
    /// Messages of the stream that the queue no longer has, or lacks.
    pub not_in_queue: u64,
    /// The last number of the queue that the stream has.
    pub stream_to: u64,
    /// The queue has these numbers more than the stream; none if the second one is less.
    pub only_in_queue: (u64, u64),
    /// The numbers that differ, at most a hundred.
    pub different: Vec<u64>,
    /// Numbers that are neither in the stream nor named there as missing: from, to.
    pub holes: Vec<(u64, u64)>,
    /// Records that do not count: void, or there twice.
    pub void: u64,
    /// Gap records.
    pub gaps: u64,
    /// The stream's highest term.
    pub term: u64,
}

impl Verdict {
    /// Whether nothing contradicts.
    pub fn is_sound(&self) -> bool {
        self.different.is_empty() && self.holes.is_empty()
    }

    fn compare(&mut self, queue: &Queue, seq: u64, is_same: impl FnOnce(&Record) -> bool) -> Result<()> {
        match message(queue, seq)? {
            None => self.not_in_queue += 1,
            Some(here) if is_same(&here) => self.equal += 1,
            Some(_) if self.different.len() < 100 => self.different.push(seq),
            Some(_) => {}
        }
        Ok(())
    }

    /// Whether a record for these numbers is the next one.
    fn expect(&mut self, from: u64, to: u64) -> bool {
        if to <= self.stream_to {
            self.void += 1;
            return false;
        }
        if from > self.stream_to + 1 && self.stream_to > 0 {
            self.holes.push((self.stream_to + 1, from - 1));
        }
        self.stream_to = to;
        true
    }
}

/// Reads all of the stream; tries again for this long if that can't be read to its end.
///
/// # Errors
/// If it can't be read in this time.
pub async fn verify(path: &Path, target: &Target, access: &Access, timeout: Duration) -> Result<Verdict> {
    let queue = Queue::open(path)?;
    persist(timeout, async || attempt(&queue, target, access).await).await
}

async fn attempt(queue: &Queue, target: &Target, access: &Access) -> Result<Verdict> {
    let (link, extent) = Link::connect(target, access).await?;
    let extent = extent.ok_or_else(|| Failure::Config(format!("there is no stream {}", target.stream)))?;
    let mut verdict = Verdict::default();
    if !extent.is_new && extent.first <= extent.last {
        let mut messages = link.read_from(extent.first).await?;
        let mut number = 0;
        while let Some((at, stored)) = next_up_to(&link, messages.as_mut(), number, extent.last).await? {
            number = at;
            if stored.term < verdict.term {
                verdict.void += 1;
                continue;
            }
            verdict.term = stored.term;
            match stored.body {
                Body::Message(record) => verdict.record(queue, &record)?,
                Body::Frame(records) => {
                    for record in records {
                        verdict.record(queue, &record)?;
                    }
                }
                Body::Part { record, part, of, whole_crc } if part == of => {
                    if verdict.expect(record.seq, record.seq) {
                        verdict.compare(queue, record.seq, |here| crc(&here.payload) == whole_crc)?;
                    }
                }
                Body::Part { .. } => {}
                Body::Gap { from, to, .. } => verdict.gaps += u64::from(verdict.expect(from, to)),
                Body::Stub { seq, crc: sum, .. } => {
                    if verdict.expect(seq, seq) {
                        verdict.compare(queue, seq, |here| crc(&here.payload) == sum)?;
                    }
                }
                Body::Fence { seq, .. } => {
                    // Nothing of the former term counts any more.
                    verdict.stream_to = verdict.stream_to.max(seq);
                }
            }
        }
    }
    let end = queue.bounds()?.next_seq.saturating_sub(1);
    verdict.only_in_queue = (verdict.stream_to + 1, end);
    Ok(verdict)
}

impl Verdict {
    fn record(&mut self, queue: &Queue, record: &Record) -> Result<()> {
        if self.expect(record.seq, record.seq) {
            let Record { time_ns, msg_type, payload, .. } = record;
            self.compare(queue, record.seq, |here| {
                (here.time_ns, here.msg_type, &here.payload) == (*time_ns, *msg_type, payload)
            })?;
        }
        Ok(())
    }
}
