//! `append.txt` and `append.jsonl`: each line is a message.
//!
//! Invariants: the bytes that a write reports as written are in the queue, or are the unfinished last line that is
//! buffered in the handle; no others are. A bad line cuts the write short before it, and the next write fails without
//! effect, so that the caller notices; no part of a refused line ever becomes a message. Once fsync or the last close
//! succeeds, everything is in the queue.
//!
//! The last line ends at the last close. Closing one of several descriptors looks the same to us (shells close one
//! before they write, and so does each child that inherited it), so the line is appended when the process that opened
//! the file closes the last one of its own, unless another process has written and not closed it yet. Any other close
//! only checks whether the line would be accepted; it is appended at release, which no process waits for. The line of a
//! process that was killed, and so cut short, is dropped.

use std::borrow::Cow;
use std::sync::Mutex;

use crate::fs::budget::Kept;
use crate::fs::callers::was_killed;
use crate::fs::errno::{Errno, Result};
use crate::fs::files::append::target::{TOO_LONG, Target, Writers};
use crate::fs::lock;
use crate::fs::tree::handles::{Handle, WriteBy};
use crate::queue::{Error, QueueWriter};
use crate::view::{Input, InputFormat, longest_line, parse_line};

/// Capacity kept for an unfinished line while there is none, in bytes.
const KEEP: usize = 4 << 10;

pub(super) struct LinesHandle {
    target: Target,
    format: InputFormat,
    /// A write of this many bytes may be part of a larger one.
    max_write: usize,
    /// The longest unfinished line that is kept.
    max_line: usize,
    /// Before the queue and its writer in the lock order.
    state: Mutex<Lines>,
}

/// What a handle keeps between writes.
struct Lines {
    /// The unfinished last line.
    partial: Vec<u8>,
    kept: Kept,
    writers: Writers,
    /// Who wrote all of the unfinished line and has closed no descriptor since, by the kernel's word for its table of
    /// descriptors, which it may use again for another process.
    line_by: Option<u64>,
    /// The last write was cut short before a bad line, or its error may not have reached the caller: the next write or
    /// close returns this.
    refuse: Option<Errno>,
    /// The rest of a refused line has not arrived yet.
    is_refusing: Option<Errno>,
    /// The last write may be continued by the next.
    was_full: bool,
}

/// Why a line was not accepted.
enum Refusal {
    /// The line is at fault: the next write fails too.
    Line(Errno),
    /// The queue is at fault: the next write may succeed.
    Queue(Errno),
}

impl Refusal {
    fn of(error: Error) -> Self {
        let is_line = matches!(
            error,
            Error::TooLarge { .. }
                | Error::ReservedType
                | Error::TimestampInPast { .. }
                | Error::TimestampInFuture { .. }
        );
        let errno = Errno::from(error);
        if is_line { Self::Line(errno) } else { Self::Queue(errno) }
    }

    fn errno(&self) -> Errno {
        match self {
            Self::Line(errno) | Self::Queue(errno) => *errno,
        }
    }
}

impl LinesHandle {
    pub(super) fn new(target: Target, format: InputFormat, max_write: usize, max_payload: usize, kept: Kept) -> Self {
        let lines = Lines {
            partial: Vec::new(),
            kept,
            writers: Writers::default(),
            line_by: None,
            refuse: None,
            is_refusing: None,
            was_full: false,
        };
        let max_line = longest_line(format, max_payload);
        Self { target, format, max_write, max_line, state: Mutex::new(lines) }
    }

    /// Whether to create a queue: there is a complete line that is a valid message.
    fn is_worth_a_queue(&self, partial: &[u8], data: &[u8]) -> std::result::Result<bool, Refusal> {
        if self.target.exists() {
            return Ok(true);
        }
        let Some(end) = memchr::memchr(b'\n', data) else { return Ok(false) };
        self.parse(&[partial, &data[..end]].concat()).map(|_| true)
    }

    fn parse<'a>(&self, line: &'a [u8]) -> std::result::Result<Option<Input<'a>>, Refusal> {
        parse_line(self.format, line).map_err(|_| Refusal::Line(Errno::EINVAL))
    }

    fn write_lines(&self, data: &[u8], owner: Option<u64>) -> Result<usize> {
        let mut lines = lock(&self.state);
        lines.writers.wrote(owner);
        // The kernel splits a large write into pieces, and returns the error of the first piece only: the caller sees a
        // short write, and gets the error when it continues.
        let is_continued = std::mem::replace(&mut lines.was_full, data.len() >= self.max_write);
        if let Some(errno) = lines.refuse.take() {
            return Err(errno);
        }
        if let Some(errno) = lines.is_refusing {
            if data.contains(&b'\n') {
                lines.is_refusing = None;
            }
            return Err(errno);
        }
        let (taken, refusal) = match self.is_worth_a_queue(&lines.partial, data) {
            Ok(true) => self.target.with_writer(|writer| self.append_lines(writer, &mut lines, data))?,
            Ok(false) => (0, None),
            Err(refusal) => (0, Some(refusal)),
        };
        let rest = &data[taken..];
        let refusal = match refusal {
            None if lines.partial.len() + rest.len() > self.max_line => {
                Some(Refusal::Line(Errno::EMSGSIZE.because(TOO_LONG)))
            }
            other => other,
        };
        let len = if refusal.is_none() { lines.partial.len() + rest.len() } else { lines.partial.len() };
        let kept = lines.kept.set(len);
        let Some(refusal) = refusal.or(kept.err().map(Refusal::Queue)) else {
            if !rest.is_empty() {
                lines.line_by = owner.filter(|_| lines.partial.is_empty() || lines.line_by == owner);
            }
            lines.partial.reserve_exact(rest.len());
            lines.partial.extend_from_slice(rest);
            return Ok(data.len());
        };
        if let Refusal::Line(errno) = refusal {
            if taken > 0 || is_continued {
                lines.refuse = Some(errno);
            }
            if taken == 0 {
                // The line may have begun in an earlier write, and may continue in the next one.
                lines.partial = Vec::new();
                lines.is_refusing = Some(errno).filter(|_| !data.contains(&b'\n'));
            }
        }
        if taken == 0 { Err(refusal.errno()) } else { Ok(taken) }
    }

    /// Appends the unfinished line.
    fn finish_line(&self, lines: &mut Lines) -> Result<()> {
        if lines.partial.is_empty() {
            return Ok(());
        }
        self.parse(&lines.partial).map_err(|refusal| refusal.errno())?;
        let partial = std::mem::take(&mut lines.partial);
        let appended = self.target.with_writer(|writer| self.append_line(writer, &partial));
        match appended {
            Ok(Ok(())) => lines.kept.set(0),
            Ok(Err(Refusal::Line(errno))) => Err(errno),
            // The caller may try again.
            Ok(Err(Refusal::Queue(errno))) | Err(errno) => {
                lines.partial = partial;
                Err(errno)
            }
        }
    }

    /// Whether the unfinished line would be accepted now.
    fn check_line(&self, lines: &Lines) -> Result<()> {
        let Some(input) = self.parse(&lines.partial).map_err(|refusal| refusal.errno())? else { return Ok(()) };
        self.target.check_room(input.msg_type, input.payload.len())
    }

    /// Appends the complete lines of `data`, of which the first continues the kept one. Returns how many bytes of
    /// `data` were consumed.
    fn append_lines(&self, writer: &mut QueueWriter, lines: &mut Lines, data: &[u8]) -> (usize, Option<Refusal>) {
        let mut taken = 0;
        for end in memchr::memchr_iter(b'\n', data) {
            let piece = &data[taken..end];
            let line = if lines.partial.is_empty() {
                Cow::Borrowed(piece)
            } else {
                Cow::Owned([lines.partial.as_slice(), piece].concat())
            };
            if let Err(refusal) = self.append_line(writer, &line) {
                return (taken, Some(refusal));
            }
            lines.partial.clear();
            lines.partial.shrink_to(KEEP);
            taken = end + 1;
        }
        (taken, None)
    }

    fn append_line(&self, writer: &mut QueueWriter, line: &[u8]) -> std::result::Result<(), Refusal> {
        let Some(input) = self.parse(line)? else { return Ok(()) };
        let appended = match input.timestamp_ns {
            Some(timestamp_ns) => writer.append_at(timestamp_ns, input.msg_type, &input.payload),
            None => writer.append(input.msg_type, &input.payload),
        };
        appended.map(drop).map_err(Refusal::of)
    }
}

impl Handle for LinesHandle {
    fn write(&self, data: &[u8]) -> Result<usize> {
        self.write_lines(data, None)
    }

    fn write_by(&self, data: &[u8], by: WriteBy) -> Result<usize> {
        self.write_lines(data, by.owner)
    }

    fn fsync(&self) -> Result<()> {
        let mut lines = lock(&self.state);
        if let Some(errno) = lines.refuse {
            return Err(errno);
        }
        self.finish_line(&mut lines)?;
        self.target.sync()
    }

    fn flush(&self, thread: u32, owner: u64) -> Result<()> {
        let mut lines = lock(&self.state);
        lines.writers.closed(owner);
        let is_its = lines.line_by.take_if(|by| *by == owner).is_some();
        if let Some(errno) = lines.refuse.take() {
            return Err(errno);
        }
        if lines.partial.is_empty() {
            return Ok(());
        }
        if is_its && was_killed(thread) {
            lines.partial = Vec::new();
            lines.kept.set(0)?;
            return Err(Errno::EOWNERDEAD.because("a process was killed while it wrote a line"));
        }
        if lines.writers.is_empty() && self.target.is_openers(thread) && !self.target.is_open_in_opener(thread) {
            self.finish_line(&mut lines)
        } else {
            self.check_line(&lines)
        }
    }

    fn is_flushed(&self) -> bool {
        true
    }

    fn release(&self) {
        if let Err(errno) = self.finish_line(&mut lock(&self.state)) {
            self.target.failed(errno);
        }
    }
}
