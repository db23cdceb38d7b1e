//! Reading, whoever reads: a registered reader or a tailer of the engine, with what Python's readers have in addition:
//! the mapping that is kept for messages, a choice of types, an end.

use std::sync::Arc;
use std::time::Duration;

use chronfs::queue::{self, KeptEntry, KeptMessage, QueueReader, Stopper, Tailer};
use chronfs::{Error, Result};

use crate::batch::{Columns, Form};
use crate::memory::Kept;
use crate::message::{Gap, Message};

/// The reader of the engine.
#[derive(Debug)]
pub(crate) enum Source {
    Registered(Box<QueueReader>),
    Unregistered(Box<Tailer>),
}

/// Calls a method of either reader.
macro_rules! of {
    ($source:expr, $reader:ident => $call:expr) => {
        match $source {
            Source::Registered($reader) => $call,
            Source::Unregistered($reader) => $call,
        }
    };
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Item {
    Message(Message),
    Gap(Gap),
    /// Many messages of other types have been passed: an opportunity to look for signals.
    Others,
}

/// For at most this many messages room is made at once.
const MAX_ROOM: usize = 1 << 16;
/// After how many messages of other types the caller has a turn, if it holds the GIL.
const OTHERS: usize = 1 << 12;
/// The same, if it does not.
const OTHERS_DETACHED: u64 = 1 << 20;

/// The types of the messages that are read: a bit for each of them.
#[derive(Debug, Clone)]
pub(crate) struct Types(Arc<[u64]>);

impl FromIterator<u16> for Types {
    fn from_iter<I: IntoIterator<Item = u16>>(types: I) -> Self {
        let mut words = vec![0_u64; 1 << 10];
        for msg_type in types {
            if let Some(word) = words.get_mut(usize::from(msg_type / 64)) {
                *word |= 1 << (msg_type % 64);
            }
        }
        Self(words.into())
    }
}

impl Types {
    /// The types that are also in another choice.
    #[cfg(feature = "decode")]
    pub(crate) fn and(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(other.0.iter()).map(|(one, two)| one & two).collect())
    }

    fn contain(&self, msg_type: u16) -> bool {
        self.0.get(usize::from(msg_type / 64)).is_some_and(|word| word & 1 << (msg_type % 64) != 0)
    }
}

/// What is read, and where it ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    /// None: all.
    pub(crate) types: Option<Types>,
    /// The first sequence number that is not read.
    pub(crate) end_seq: Option<u64>,
    /// The first time that is not read, ns since the epoch.
    pub(crate) until_ns: Option<u64>,
}

impl Limits {
    fn end_before(&self, seq: u64, timestamp_ns: u64) -> bool {
        self.end_seq.is_some_and(|end| seq >= end) || self.until_ns.is_some_and(|until_ns| timestamp_ns >= until_ns)
    }

    fn take(&self, message: &queue::Message<'_>) -> bool {
        self.types.as_ref().is_none_or(|types| types.contain(message.msg_type))
    }
}

#[derive(Debug)]
pub(crate) struct Core {
    source: Source,
    limits: Limits,
    /// The segment that messages are lent from now.
    kept: Option<Arc<Kept>>,
    /// Whether the engine's reader is still in its mapping.
    is_there: bool,
    /// A gap to be returned before anything else.
    gap: Option<Gap>,
    has_ended: bool,
}

impl Core {
    pub(crate) fn new(source: Source, limits: Limits) -> Self {
        Self { source, limits, kept: None, is_there: false, gap: None, has_ended: false }
    }

    pub(crate) fn registered(&mut self) -> Option<&mut QueueReader> {
        match &mut self.source {
            Source::Registered(reader) => Some(reader),
            Source::Unregistered(_) => None,
        }
    }

    /// The next message or gap; None at the head, or at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Item>> {
        if let Some(gap) = self.gap.take() {
            return Ok(Some(Item::Gap(gap)));
        }
        for _ in 0..OTHERS {
            let Self { source, limits, kept, is_there, has_ended, .. } = self;
            // The next one in the mapping that is kept anyway costs no reference to it.
            if *is_there
                && !*has_ended
                && let Some(kept) = kept
                && let Some(message) = of!(source, reader => reader.available().next())
            {
                if limits.end_before(message.seq, message.timestamp_ns) {
                    *has_ended = true;
                    return Ok(None);
                }
                if limits.take(&message) {
                    return Ok(Some(Item::Message(Message::new(kept, &message))));
                }
                continue;
            }
            match self.next_entry()? {
                None => return Ok(None),
                Some(KeptEntry::Gap(gap)) => return Ok(Some(Item::Gap(gap.into()))),
                Some(KeptEntry::Message(message)) => {
                    let kept = self.keep(&message);
                    if self.limits.take(&message.message()) {
                        return Ok(Some(Item::Message(Message::new(&kept, &message.message()))));
                    }
                }
            }
        }
        Ok(Some(Item::Others))
    }

    fn next_entry(&mut self) -> Result<Option<KeptEntry>> {
        self.is_there = false;
        if self.has_ended {
            return Ok(None);
        }
        let entry = of!(&mut self.source, reader => reader.next_kept_entry())?;
        self.has_ended = match &entry {
            Some(KeptEntry::Message(message)) => {
                let message = message.message();
                self.limits.end_before(message.seq, message.timestamp_ns)
            }
            Some(KeptEntry::Gap(gap)) => self.limits.end_before(gap.from, 0),
            None => false,
        };
        Ok(entry.filter(|_| !self.has_ended))
    }

    /// Up to `limit` messages; None at the head, or at the end. A gap ends a batch and comes alone. A batch without
    /// messages: many of other types have been passed.
    pub(crate) fn batch(&mut self, form: Form, limit: usize) -> Result<Option<std::result::Result<Columns, Gap>>> {
        if let Some(gap) = self.gap.take() {
            return Ok(Some(Err(gap)));
        }
        let first = self.seq();
        // What a scan will find, if that is known.
        let left = self.limits.end_seq.map_or(0, |end| end.saturating_sub(first));
        let room = usize::try_from(left).map_or(limit, |left| left.min(limit)).min(MAX_ROOM);
        let mut columns = Columns::new(form, if self.limits.types.is_some() { 0 } else { room });
        while columns.len() < limit {
            if columns.len() == 0 && self.seq().saturating_sub(first) > OTHERS_DETACHED {
                return Ok(Some(Ok(columns)));
            }
            match self.next_entry()? {
                None => break,
                Some(KeptEntry::Gap(gap)) if columns.len() == 0 => return Ok(Some(Err(gap.into()))),
                Some(KeptEntry::Gap(gap)) => {
                    self.gap = Some(gap.into());
                    break;
                }
                Some(KeptEntry::Message(message)) => {
                    // Whether it is taken or not: those that follow lie in its mapping.
                    let kept = self.keep(&message);
                    if self.limits.take(&message.message()) {
                        columns.push(&kept, &message.message());
                    }
                    self.extend(&mut columns, &kept, limit);
                }
            }
        }
        Ok((columns.len() > 0).then_some(Ok(columns)))
    }

    /// Adds the messages that are available in the segment of the one before.
    fn extend(&mut self, columns: &mut Columns, kept: &Arc<Kept>, limit: usize) {
        let (limits, has_ended) = (&self.limits, &mut self.has_ended);
        of!(&mut self.source, reader => {
            let mut available = reader.available();
            while columns.len() < limit {
                let Some(message) = available.next() else { break };
                if limits.end_before(message.seq, message.timestamp_ns) {
                    *has_ended = true;
                    break;
                }
                if limits.take(&message) {
                    columns.push(kept, &message);
                }
            }
        });
    }

    /// Keeps the mapping of a message that [`next_entry`](Self::next_entry) has returned, for it and those after it.
    fn keep(&mut self, message: &KeptMessage) -> Arc<Kept> {
        self.is_there = message.kept_bytes() > 0;
        match &self.kept {
            Some(kept) if kept.offset_of(message).is_some() => Arc::clone(kept),
            _ => Arc::clone(self.kept.insert(Kept::new(message.clone()))),
        }
    }

    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<bool> {
        if self.gap.is_some() {
            return Ok(true);
        }
        // It may enter the next segment.
        self.is_there = false;
        of!(&mut self.source, reader => reader.wait(Some(timeout)))
    }

    /// The sequence number that comes next.
    pub(crate) fn seq(&self) -> u64 {
        of!(&self.source, reader => reader.seq())
    }

    pub(crate) fn lag(&self) -> Result<u64> {
        of!(&self.source, reader => reader.lag())
    }

    pub(crate) fn stats(&self) -> queue::ReaderStats {
        of!(&self.source, reader => reader.stats())
    }

    pub(crate) fn set_stopper(&mut self, stopper: &Stopper) {
        of!(&mut self.source, reader => reader.set_stopper(stopper));
    }

    /// Moves to another place.
    pub(crate) fn seek(&mut self, start: queue::Start) -> Result<()> {
        use queue::Start::{End, First, Resume, Seq, Time};
        self.gap = None;
        (self.is_there, self.has_ended) = (false, false);
        of!(&mut self.source, reader => match start {
            First => reader.seek_first(),
            End => reader.seek_end(),
            Seq(seq) => reader.seek_seq(seq),
            Time(ns) => reader.seek_time(ns),
            Resume => Ok(()),
            other => Err(Error::InvalidSetting(format!("{other:?} is not a place to go to"))),
        })
    }
}
