//! `append.*`: appending messages. Write-only; the mount holds the queue's writer lock while any of these is open.
//!
//! Invariants: the bytes that a write reports as written are in the queue, or are the unfinished last line that is
//! buffered in the handle; no others are. A bad line cuts the write short before it, and the next write fails without
//! effect, so that the caller notices; no part of a refused line ever becomes a message. Once fsync or the last close
//! succeeds, everything is in the queue.
//!
//! Lines end at newlines, and the last one at the last close. Closing one of several descriptors looks the same to us
//! (shells close one before they write, and so does each child that inherited it), so the line is appended when the
//! process that opened the file closes the last one of its own. Any other close only checks whether the line would be
//! accepted; it is appended at release, which no process waits for.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::bus;
use crate::fs::attr::{Attr, WRITE};
use crate::fs::backing::Directory;
use crate::fs::budget::Kept;
use crate::fs::callers::{has_open, process_of};
use crate::fs::errno::{Errno, Result};
use crate::fs::lock;
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::queues::permission::Permission;
use crate::fs::queues::table::Contents;
use crate::fs::site::{Access, Caller, File, Shared, Site};
use crate::fs::tree::handles::Handle;
use crate::queue::{Error, QueueWriter, layout};
use crate::view::{Input, InputFormat, longest_line, parse_line};

/// Capacity kept for an unfinished line while there is none, in bytes.
const KEEP: usize = 4 << 10;

struct Append {
    shared: Arc<Shared>,
    directory: Arc<Directory>,
    /// None: the first message creates it.
    queue: Option<Arc<OpenQueue>>,
    format: InputFormat,
    /// Its path below the mountpoint.
    path: PathBuf,
}

/// Row constructor for a queue.
pub(crate) fn append(site: &Site, format: InputFormat) -> Result<Arc<dyn File>> {
    make(site, Some(Arc::clone(site.queue()?)), format)
}

/// Row constructor for an empty plain directory: the first append creates the queue.
pub(crate) fn first(site: &Site, format: InputFormat) -> Result<Arc<dyn File>> {
    if let Contents::Unreadable(errno) = site.contents {
        return Err(errno);
    }
    let is_nothing = |name: &OsStr| {
        [bus::READY_FILE, bus::LEASE_FILE, layout::INDEX_DIR].iter().any(|other| name == *other)
            || name.to_str().is_some_and(bus::is_temporary)
    };
    if site.directory.names()?.iter().all(|name| is_nothing(name)) {
        make(site, None, format)
    } else {
        Err(Errno::ENOENT)
    }
}

fn make(site: &Site, queue: Option<Arc<OpenQueue>>, format: InputFormat) -> Result<Arc<dyn File>> {
    let (shared, directory) = (Arc::clone(&site.shared), Arc::clone(&site.directory));
    let name = match format {
        InputFormat::Txt => "append.txt",
        InputFormat::Jsonl => "append.jsonl",
        InputFormat::Bin => "append.bin",
    };
    let path = site.relative.join(name);
    Ok(Arc::new(Append { shared, directory, queue, format, path }))
}

impl File for Append {
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::file(&self.directory.stat_now()?, WRITE))
    }

    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
        access.writing()?;
        if let Some(queue) = &self.queue {
            queue.join_writer(caller)?;
        }
        let settings = self.queue.as_ref().map_or(self.shared.settings, |queue| queue.queue.settings());
        let max_payload = settings.max_payload_len();
        let handle = AppendHandle {
            queue: Mutex::new(self.queue.clone()),
            shared: Arc::clone(&self.shared),
            directory: Arc::clone(&self.directory),
            permission: Permission::new(caller),
            format: self.format,
            // The kernel splits larger writes, and unaligned ones up to a page earlier.
            max_write: self.shared.max_chunk.saturating_sub(4096),
            max_line: longest_line(self.format, max_payload),
            opener: process_of(caller.pid),
            path: self.path.clone(),
            state: Mutex::new(Lines::new(self.shared.queues.kept_by(caller))),
        };
        Ok(Box::new(handle))
    }

    fn generation(&self) -> u64 {
        self.queue.as_ref().map_or(u64::MAX, |queue| queue.identity)
    }

    fn is_current(&self) -> bool {
        self.queue.as_ref().is_none_or(|queue| queue.is_current())
    }

    fn truncate(&self) -> Result<()> {
        Ok(())
    }

    fn touch(&self, _caller: &Caller) -> Result<()> {
        Ok(())
    }
}

struct AppendHandle {
    /// The queue joined as a writer; None until it exists. After `state` in the lock order.
    queue: Mutex<Option<Arc<OpenQueue>>>,
    shared: Arc<Shared>,
    directory: Arc<Directory>,
    permission: Permission,
    format: InputFormat,
    /// A write of this many bytes may be part of a larger one.
    max_write: usize,
    /// The longest unfinished line that is kept.
    max_line: usize,
    /// The process that opened it; None if it is not visible.
    opener: Option<u32>,
    /// Its path below the mountpoint.
    path: PathBuf,
    /// Before the queue's writer in the lock order.
    state: Mutex<Lines>,
}

/// What a handle keeps between writes.
struct Lines {
    /// The unfinished last line.
    partial: Vec<u8>,
    kept: Kept,
    /// The last write was cut short before a bad line, or its error may not have reached the caller: the next write or
    /// close returns this.
    refuse: Option<Errno>,
    /// The rest of a refused line has not arrived yet.
    is_refusing: Option<Errno>,
    /// The last write may be continued by the next.
    was_full: bool,
}

impl Lines {
    fn new(kept: Kept) -> Self {
        Self { partial: Vec::new(), kept, refuse: None, is_refusing: None, was_full: false }
    }
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

impl AppendHandle {
    /// The queue to append to; the first append creates it.
    fn queue(&self) -> Result<Arc<OpenQueue>> {
        let mut queue = lock(&self.queue);
        if let Some(queue) = &*queue {
            return Ok(Arc::clone(queue));
        }
        let made = self.shared.queues.create(&self.directory, &self.shared.settings, self.permission.caller())?;
        made.join_writer(self.permission.caller())?;
        Ok(Arc::clone(queue.insert(made)))
    }

    /// Runs with the queue's writer. EACCES once the caller may no longer write: it could not start a new segment
    /// either.
    fn with_writer<T>(&self, run: impl FnOnce(&mut QueueWriter) -> T) -> Result<T> {
        let queue = self.queue()?;
        if self.permission.check(|caller| queue.check_writable(caller)) == Err(Errno::EACCES) {
            return Err(Errno::EACCES);
        }
        queue.with_writer(self.permission.caller(), run)
    }

    /// Whether to create a queue: there is a complete line that is a valid message.
    fn is_worth_a_queue(&self, partial: &[u8], data: &[u8]) -> std::result::Result<bool, Refusal> {
        if lock(&self.queue).is_some() {
            return Ok(true);
        }
        let Some(end) = memchr::memchr(b'\n', data) else { return Ok(false) };
        self.parse(&[partial, &data[..end]].concat()).map(|_| true)
    }

    fn parse<'a>(&self, line: &'a [u8]) -> std::result::Result<Option<Input<'a>>, Refusal> {
        parse_line(self.format, line).map_err(|_| Refusal::Line(Errno::EINVAL))
    }

    fn write_whole(&self, data: &[u8]) -> Result<usize> {
        if data.len() > self.max_write {
            return Err(Errno::EMSGSIZE);
        }
        self.with_writer(|writer| self.append_line(writer, data))?.map_err(|refusal| refusal.errno())?;
        Ok(data.len())
    }

    fn write_lines(&self, data: &[u8]) -> Result<usize> {
        let mut lines = lock(&self.state);
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
            Ok(true) => self.with_writer(|writer| self.append_lines(writer, &mut lines, data))?,
            Ok(false) => (0, None),
            Err(refusal) => (0, Some(refusal)),
        };
        let rest = &data[taken..];
        let refusal = match refusal {
            None if lines.partial.len() + rest.len() > self.max_line => Some(Refusal::Line(Errno::EMSGSIZE)),
            other => other,
        };
        let len = if refusal.is_none() { lines.partial.len() + rest.len() } else { lines.partial.len() };
        let kept = lines.kept.set(len);
        let Some(refusal) = refusal.or(kept.err().map(Refusal::Queue)) else {
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
        let appended = self.with_writer(|writer| self.append_line(writer, &partial));
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
        let Some(queue) = lock(&self.queue).clone() else { return Ok(()) };
        Ok(queue.with_writer(self.permission.caller(), |writer| {
            writer.reserve(input.msg_type, input.payload.len()).map(drop)
        })??)
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

impl Handle for AppendHandle {
    fn write(&self, data: &[u8]) -> Result<usize> {
        match self.format {
            InputFormat::Bin => self.write_whole(data),
            InputFormat::Txt | InputFormat::Jsonl => self.write_lines(data),
        }
    }

    fn fsync(&self) -> Result<()> {
        let mut lines = lock(&self.state);
        if let Some(errno) = lines.refuse {
            return Err(errno);
        }
        self.finish_line(&mut lines)?;
        let queue = lock(&self.queue).clone();
        Ok(queue.map_or(Ok(Ok(())), |queue| queue.with_writer(self.permission.caller(), QueueWriter::flush_sync))??)
    }

    fn flush(&self, caller: Caller) -> Result<()> {
        let mut lines = lock(&self.state);
        if let Some(errno) = lines.refuse.take() {
            return Err(errno);
        }
        if lines.partial.is_empty() {
            return Ok(());
        }
        let process = process_of(caller.pid).filter(|process| self.opener == Some(*process));
        if process.is_some_and(|process| !has_open(process, &self.path)) {
            self.finish_line(&mut lines)
        } else {
            self.check_line(&lines)
        }
    }

    fn is_flushed(&self) -> bool {
        self.format != InputFormat::Bin
    }

    fn release(&self) {
        if let Err(errno) = self.finish_line(&mut lock(&self.state))
            && let Some(queue) = &*lock(&self.queue)
        {
            queue.failed("release", errno);
        }
    }
}

impl Drop for AppendHandle {
    fn drop(&mut self) {
        if let Some(queue) = lock(&self.queue).take() {
            queue.leave_writer();
        }
    }
}
