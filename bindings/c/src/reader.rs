//! Readers: registered ones, tailers and scans, as one type. What it adds to the engine's readers is that the payload
//! returned last stays where it is until the next one is asked for, whatever else is called meanwhile.

use std::sync::Arc;
use std::time::Duration;

use engine::queue::{KeptEntry, KeptMessage, QueueReader, Start, Stopper, Tailer};

use crate::entry::Entry;
use crate::failure::{Failure, Result};

/// Follows a queue: a registered reader, a tailer or a scan.
#[derive(Debug)]
pub struct Reader {
    source: Source,
    /// The first sequence number that a scan does not read.
    end_seq: Option<u64>,
    /// A message of the segment that the last message lies in: keeps its mapping.
    kept: Option<Arc<KeptMessage>>,
    /// Whether the engine's reader is still in that mapping.
    is_there: bool,
    /// Whether the last entry was a message.
    has_message: bool,
}

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

impl Reader {
    pub(crate) fn new(source: Source, end_seq: Option<u64>) -> Self {
        Self { source, end_seq, kept: None, is_there: false, has_message: false }
    }

    /// The next message or gap; None at the head, or at the end of a scan.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        if self.end_seq.is_some_and(|end_seq| self.seq() >= end_seq) {
            return Ok(None);
        }
        // The next one in the mapping that is kept anyway costs no reference to it.
        if self.is_there
            && let Some(message) = of!(&mut self.source, reader => reader.available().next())
        {
            return Ok(Some(Entry::from(&message)));
        }
        self.next_elsewhere()
    }

    #[cold]
    fn next_elsewhere(&mut self) -> Result<Option<Entry>> {
        (self.is_there, self.has_message) = (false, false);
        match of!(&mut self.source, reader => reader.next_kept_entry())? {
            None => Ok(None),
            Some(KeptEntry::Gap(gap)) => Ok(Some(Entry::from(&gap))),
            Some(KeptEntry::Message(message)) => {
                // A copy keeps no mapping: then the next one has its own.
                (self.is_there, self.has_message) = (message.kept_bytes() > 0, true);
                let kept = self.kept.insert(Arc::new(message));
                Ok(Some(Entry::from(&kept.message())))
            }
        }
    }

    /// What keeps the last message's payload where it is.
    pub(crate) fn keep(&self) -> Result<Arc<KeptMessage>> {
        let kept = self.kept.as_ref().filter(|_| self.has_message);
        kept.cloned().ok_or_else(|| Failure::invalid("the last entry was not a message: there is nothing to keep"))
    }

    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        if self.end_seq.is_some() {
            return Err(Failure::invalid("a scan ends and has nothing to wait for; open a tailer"));
        }
        // It may enter the next segment.
        self.is_there = false;
        Ok(of!(&mut self.source, reader => reader.wait(timeout))?)
    }

    pub(crate) fn keep_alive(&mut self) -> Result<()> {
        Ok(of!(&mut self.source, reader => reader.keep_alive())?)
    }

    pub(crate) fn registered(&mut self) -> Result<&mut QueueReader> {
        match &mut self.source {
            Source::Registered(reader) => Ok(reader),
            Source::Unregistered(_) => {
                Err(Failure::invalid("tailers and scans have no position to commit; open a reader with a name"))
            }
        }
    }

    /// The sequence number that comes next.
    #[inline]
    pub(crate) fn seq(&self) -> u64 {
        of!(&self.source, reader => reader.seq())
    }

    pub(crate) fn lag(&self) -> Result<u64> {
        Ok(of!(&self.source, reader => reader.lag())?)
    }

    pub(crate) fn set_stopper(&mut self, stopper: &Stopper) {
        of!(&mut self.source, reader => reader.set_stopper(stopper));
    }

    pub(crate) fn seek(&mut self, start: Start) -> Result<()> {
        self.is_there = false;
        of!(&mut self.source, reader => match start {
            Start::First => reader.seek_first(),
            Start::End => reader.seek_end(),
            Start::Seq(seq) => reader.seek_seq(seq),
            Start::Time(ns) => reader.seek_time(ns),
            _ => return Err(Failure::invalid("a reader can't go to CHRONFS_START_RESUME; open it again")),
        })?;
        Ok(())
    }
}
