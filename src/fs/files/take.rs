//! `readers/<name>/take.*`: one message per read, consumed when its last byte has been returned; waits at the end.
//!
//! Invariants: the reader's lock is held from open to release, so that no other process moves it meanwhile; a message
//! that has not been returned to its end is returned again by the next handle.

use std::sync::{Arc, Mutex};

use crate::fs::attr::{Attr, READ, WRITE, narrowed};
use crate::fs::budget::{Kept, Share};
use crate::fs::errno::{Errno, Result};
use crate::fs::files::follow::below_chunk;
use crate::fs::files::readers::cursor_stat;
use crate::fs::lock;
use crate::fs::queues::open_queue::{OF_A_READER, OpenQueue};
use crate::fs::queues::permission::Permission;
use crate::fs::site::{Access, Caller, File, Shared, Site};
use crate::fs::tree::handles::{Handle, Progress};
use crate::queue::{Entry, GapReason, QueueReader, Scanner};
use crate::sync::Ordering;
use crate::view::{Format, render};

/// Bytes that its scanner keeps.
const SCANNER_MEMORY: usize = 1 << 20;

struct Take {
    queue: Arc<OpenQueue>,
    reader: Arc<str>,
    format: Format,
    shared: Arc<Shared>,
}

/// Row constructor.
pub(crate) fn take(site: &Site, format: Format) -> Result<Arc<dyn File>> {
    let (queue, reader) = (Arc::clone(site.queue()?), site.subject()?);
    Ok(Arc::new(Take { queue, reader, format, shared: Arc::clone(&site.shared) }))
}

impl File for Take {
    fn messages_of(&self) -> Option<&OpenQueue> {
        Some(&self.queue)
    }

    fn attr(&self) -> Result<Attr> {
        let stat = cursor_stat(&self.queue, &self.reader)?;
        let attr = Attr::file(&stat, READ | WRITE);
        // Taking moves the reader: reading requires the right to read and write the cursor, and to read the messages.
        let readable = u16::try_from(narrowed(&stat, &self.queue.data_stat()?) & 0o777).unwrap_or(0);
        Ok(Attr { mode: readable & READ & ((attr.mode & WRITE) << 1), ..attr })
    }

    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        if self.shared.read_only {
            // The kernel allows reads of a read-only mount, but these move the reader.
            return Err(Errno::EROFS);
        }
        cursor_stat(&self.queue, &self.reader)?;
        let share = self.queue.take_descriptors(OF_A_READER)?;
        let reader = self.queue.when_released(|| caller.act(|| self.queue.queue.reader(&self.reader)))?;
        let mut scanner = self.queue.queue.scan()?;
        scanner.seek_seq(reader.seq())?;
        // Messages that retention removed while the reader was not in use are a gap too.
        let is_overtaken = self.queue.queue.reader_position(&self.reader)? < scanner.seq();
        let next = if is_overtaken { Next::Gap(Errno::EPIPE) } else { Next::Unknown };
        self.queue.takes.fetch_add(1, Ordering::AcqRel);
        let permission = Permission::new(caller);
        let kept = self.queue.kept_by(caller);
        let state = Mutex::new(Taking { reader: Some(reader), scanner, next, kept });
        let (queue, format, max_chunk) = (Arc::clone(&self.queue), self.format, self.shared.max_chunk);
        Ok(Box::new(TakeHandle { queue, _share: share, permission, format, max_chunk, state }))
    }

    fn generation(&self) -> u64 {
        self.queue.identity
    }

    fn is_current(&self) -> bool {
        self.queue.is_current()
    }
}

struct TakeHandle {
    queue: Arc<OpenQueue>,
    _share: Share,
    permission: Permission,
    format: Format,
    max_chunk: usize,
    state: Mutex<Taking>,
}

struct Taking {
    /// Holds the lock and the position; None once released. It reads nothing: a truncated segment would break its
    /// mapping.
    reader: Option<QueueReader>,
    scanner: Scanner,
    next: Next,
    kept: Kept,
}

/// What the next read returns.
enum Next {
    /// Not loaded yet.
    Unknown,
    /// A rendered message, and how much of it has been returned.
    Unit(Vec<u8>, usize),
    /// A gap that the format does not show.
    Gap(Errno),
}

impl Taking {
    /// Loads the next unit or gap, unless one is loaded; false at the end.
    fn load(&mut self, format: Format) -> Result<bool> {
        while matches!(self.next, Next::Unknown) {
            let (position, seq) = (self.scanner.position(), self.scanner.seq());
            match self.scanner.next()? {
                None => return Ok(false),
                Some(Entry::Gap(gap)) if format == Format::Bin || gap.reason == GapReason::Retired => {
                    self.next = Next::Gap(gap.into());
                }
                Some(entry) => {
                    let mut unit = Vec::new();
                    render(format, &entry, None, &mut unit);
                    self.scanner.trim(SCANNER_MEMORY);
                    // What must not be kept is read again.
                    if let Err(errno) = self.kept.set(unit.capacity() + self.scanner.kept()) {
                        self.scanner.seek(position, seq)?;
                        return Err(errno);
                    }
                    // An empty payload in bin: an empty read would mean the end of the file.
                    if unit.is_empty() {
                        self.consume()?;
                    } else {
                        self.next = Next::Unit(unit, 0);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Consumes everything that the scanner has passed.
    fn consume(&mut self) -> Result<()> {
        let reader = self.reader.as_mut().ok_or(Errno::EBADF)?;
        reader.seek_seq(self.scanner.seq())?;
        reader.commit();
        self.next = Next::Unknown;
        self.kept.set(0)
    }

    fn take(&mut self, size: usize, out: &mut Vec<u8>) -> Result<()> {
        match &mut self.next {
            Next::Unknown => {}
            Next::Gap(errno) => {
                let errno = *errno;
                self.consume()?;
                return Err(errno);
            }
            Next::Unit(unit, given) => {
                let rest = &unit[*given..];
                let taken = rest.len().min(size);
                out.extend_from_slice(&rest[..taken]);
                *given += taken;
                if *given == unit.len() {
                    self.consume()?;
                }
            }
        }
        Ok(())
    }
}

impl Handle for TakeHandle {
    fn read(&self, _offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        let mut state = lock(&self.state);
        if state.reader.is_none() {
            return Err(Errno::EBADF);
        }
        self.permission.check(|caller| self.queue.check_goes_on(caller))?;
        if !state.load(self.format)? {
            return Ok(Progress::Wait(vec![Arc::clone(&self.queue)]));
        }
        state.take(below_chunk(size, self.max_chunk), out)?;
        Ok(Progress::Done)
    }

    fn release(&self) {
        let reader = lock(&self.state).reader.take();
        if reader.is_some() {
            drop(reader);
            self.queue.takes.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn blocked(&self) -> Option<Vec<Arc<OpenQueue>>> {
        match lock(&self.state).load(self.format) {
            Ok(false) => Some(vec![Arc::clone(&self.queue)]),
            // The read will report an error.
            Ok(true) | Err(_) => None,
        }
    }
}

impl Drop for TakeHandle {
    fn drop(&mut self) {
        self.release();
    }
}
