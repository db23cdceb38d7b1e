//! `append.bin`: what is written between open and close is one message.
//!
//! Invariants: all of it becomes a message, or nothing does. An error of a write stays: later writes and closes fail
//! with it, and nothing is appended; likewise if a process that wrote is killed, or the mount ends. One open makes one
//! message at most.
//!
//! It is appended when the process that opened the file closes it, before close(2) returns, unless another process has
//! written and has not closed it yet; otherwise at the last close, which no process waits for. Written bytes are kept
//! in memory until then: in the queue they would keep out everything that others append meanwhile.

use std::sync::Mutex;

use crate::fs::budget::Kept;
use crate::fs::callers::was_killed;
use crate::fs::errno::{Errno, Result};
use crate::fs::files::append::target::{TOO_LONG, Target, Writers};
use crate::fs::lock;
use crate::fs::tree::handles::{Handle, WriteBy};
use crate::view::DEFAULT_TYPE;

pub(super) struct MessageHandle {
    target: Target,
    max_payload: usize,
    /// Before the queue and its writer in the lock order.
    state: Mutex<Message>,
}

struct Message {
    bytes: Vec<u8>,
    kept: Kept,
    writers: Writers,
    /// fsync was called: the end of the message includes it.
    is_synced: bool,
    /// What has become of it.
    outcome: Option<Result<()>>,
}

impl MessageHandle {
    pub(super) fn new(target: Target, max_payload: usize, kept: Kept) -> Self {
        let message = Message { bytes: Vec::new(), kept, writers: Writers::default(), is_synced: false, outcome: None };
        Self { target, max_payload, state: Mutex::new(message) }
    }

    /// Appends the message, if there is one.
    fn finish(&self, message: &mut Message) -> Result<()> {
        if let Some(outcome) = message.outcome {
            return outcome;
        }
        if message.bytes.is_empty() {
            return Ok(());
        }
        let appended = self.target.with_writer(|writer| {
            writer.append(DEFAULT_TYPE, &message.bytes)?;
            if message.is_synced { writer.flush_sync() } else { Ok(()) }
        });
        message.end(appended.and_then(|appended| Ok(appended?)))
    }

    /// Runs a change of the message; its error is the message's end.
    fn change<T>(&self, change: impl FnOnce(&mut Message) -> Result<T>) -> Result<T> {
        let message = &mut *lock(&self.state);
        match message.outcome {
            Some(Ok(())) => Err(Errno::EBADF.because("the message has ended; open the file again for another one")),
            Some(Err(errno)) => Err(errno),
            None => change(message).or_else(|errno| message.end(Err(errno)).and(Err(errno))),
        }
    }
}

impl Message {
    fn end(&mut self, outcome: Result<()>) -> Result<()> {
        (self.bytes, self.outcome) = (Vec::new(), Some(outcome));
        self.kept.set(0)?;
        outcome
    }

    /// Makes it this long, with zeros at the end.
    fn resize(&mut self, len: u64, max: usize) -> Result<()> {
        let len = usize::try_from(len).ok().filter(|len| *len <= max);
        let len = len.ok_or_else(|| Errno::EMSGSIZE.because(TOO_LONG))?;
        self.reserve(len)?;
        self.bytes.resize(len, 0);
        Ok(())
    }

    fn reserve(&mut self, len: usize) -> Result<()> {
        self.kept.set(len)?;
        let more = len.saturating_sub(self.bytes.len());
        self.bytes.try_reserve_exact(more).map_err(|error| Errno::ENOMEM.because(error))
    }
}

impl Handle for MessageHandle {
    fn write(&self, data: &[u8]) -> Result<usize> {
        self.write_by(data, WriteBy::default())
    }

    fn write_by(&self, data: &[u8], by: WriteBy) -> Result<usize> {
        self.change(|message| {
            message.writers.wrote(by.owner);
            let len = message.bytes.len() as u64;
            let at = by.at.unwrap_or(len);
            if at < len {
                return Err(Errno::ESPIPE.because("what was written can't be replaced"));
            }
            // A copy of a sparse file leaves out the holes.
            let end = at.saturating_add(data.len() as u64);
            if end > self.max_payload as u64 {
                return Err(Errno::EMSGSIZE.because(TOO_LONG));
            }
            message.resize(at, self.max_payload)?;
            message.reserve(message.bytes.len() + data.len())?;
            message.bytes.extend_from_slice(data);
            Ok(data.len())
        })
    }

    fn truncate(&self, len: u64) -> Result<()> {
        self.change(|message| message.resize(len, self.max_payload))
    }

    fn fsync(&self) -> Result<()> {
        let mut message = lock(&self.state);
        if let Some(Err(errno)) = message.outcome {
            return Err(errno);
        }
        message.is_synced = true;
        self.target.sync()
    }

    fn flush(&self, thread: u32, owner: u64) -> Result<()> {
        let mut message = lock(&self.state);
        let is_openers = self.target.is_openers(thread);
        let has_written = message.writers.closed(owner);
        if message.outcome.is_none() && (is_openers || has_written) && was_killed(thread) {
            let errno = Errno::EOWNERDEAD.because("a process was killed while it wrote the message");
            return message.end(Err(errno));
        }
        if let Some(outcome) = message.outcome {
            return outcome;
        }
        if is_openers && message.writers.is_empty() && !self.target.is_open_in_opener(thread) {
            return self.finish(&mut message);
        }
        if message.bytes.is_empty() { Ok(()) } else { self.target.check_room(DEFAULT_TYPE, message.bytes.len()) }
    }

    fn is_flushed(&self) -> bool {
        true
    }

    fn release(&self) {
        let message = &mut *lock(&self.state);
        if message.outcome.is_none()
            && let Err(errno) = self.finish(message)
        {
            self.target.failed(errno);
        }
    }

    fn unmounted(&self) {
        let _ = self.change(|_| Err::<(), _>(Errno::ENOTCONN));
    }
}
