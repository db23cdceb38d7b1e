//! `readers/<name>/`: the queue's persisted readers, which native clients use too. `mkdir` registers one, `rmdir`
//! removes it; `position` shows and moves it.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use crate::clock;
use crate::fs::attr::{Attr, READ, WRITE};
use crate::fs::credentials;
use crate::fs::errno::{Errno, Result};
use crate::fs::files::snapshot::{SMALL, TextHandle};
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::site::{Access, Caller, File, Site};
use crate::fs::tree::handles::{Handle, Progress};
use crate::queue::{self, CursorFile, FileAccess, check_name, layout};
use crate::report;
use crate::view::parse_seek_target;

/// Attributes of `readers/`.
pub(crate) fn directory_attr(site: &Site) -> Result<Attr> {
    let queue = site.queue()?;
    let stat = match queue.directory.stat_of(OsStr::new(layout::READERS_DIR)) {
        Ok(stat) => stat,
        Err(_) => queue.directory.stat_now()?,
    };
    Ok(Attr { size: 0, ..Attr::of(&stat, crate::fs::attr::Kind::Directory) })
}

/// Attributes of `readers/<name>/`. ENOENT where there is no such reader.
pub(crate) fn reader_attr(queue: &OpenQueue, name: &str) -> Result<Attr> {
    Ok(Attr::directory(&cursor_stat(queue, name)?))
}

/// The names of the readers.
pub(crate) fn names(queue: &OpenQueue) -> Result<Vec<String>> {
    Ok(queue.queue.reader_names()?)
}

/// EACCES unless the caller may list `readers/`.
pub(crate) fn check_listable(site: &Site, caller: &Caller) -> Result<()> {
    match site.queue()?.directory.child(OsStr::new(layout::READERS_DIR)) {
        Err(Errno::ENOENT) => Ok(()),
        readers => {
            let readers = readers?;
            caller.act(|| readers.check_listable())?
        }
    }
}

/// `mkdir readers/<name>`.
pub(crate) fn register(queue: &OpenQueue, name: &OsStr, caller: &Caller) -> Result<()> {
    let name = name.to_str().ok_or(Errno::EINVAL)?;
    let bounds = queue.queue.bounds()?;
    if caller.act(|| queue.queue.add_reader_at(name, &bounds))?? { Ok(()) } else { Err(Errno::EEXIST) }
}

/// `rmdir readers/<name>`.
pub(crate) fn remove(queue: &OpenQueue, name: &OsStr, caller: &Caller) -> Result<()> {
    let name = name.to_str().ok_or(Errno::ENOENT)?;
    queue.when_released(|| caller.act(|| queue.queue.remove_reader(name)))
}

/// The cursor file's attributes: its permission bits are the reader's permissions.
pub(in crate::fs) fn cursor_stat(queue: &OpenQueue, name: &str) -> Result<rustix::fs::Stat> {
    check_name(name).map_err(|error| match error {
        queue::Error::NameTooLong { .. } => Errno::ENAMETOOLONG,
        _ => Errno::ENOENT,
    })?;
    queue.directory.child(OsStr::new(layout::READERS_DIR))?.stat_of(&cursor_name(name))
}

fn cursor_name(reader: &str) -> OsString {
    format!("{reader}{}", layout::CURSOR_SUFFIX).into()
}

/// What one of the files of a reader shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shows {
    Position,
    Lag,
    Status,
}

struct ReaderFile {
    queue: Arc<OpenQueue>,
    reader: Arc<str>,
    shows: Shows,
}

fn make(site: &Site, shows: Shows) -> Result<Arc<dyn File>> {
    Ok(Arc::new(ReaderFile { queue: Arc::clone(site.queue()?), reader: site.subject()?, shows }))
}

/// Row constructor of `position`.
pub(crate) fn position(site: &Site) -> Result<Arc<dyn File>> {
    make(site, Shows::Position)
}

/// Row constructor of `lag`.
pub(crate) fn lag(site: &Site) -> Result<Arc<dyn File>> {
    make(site, Shows::Lag)
}

/// Row constructor of `status.json`.
pub(crate) fn status(site: &Site) -> Result<Arc<dyn File>> {
    make(site, Shows::Status)
}

impl Shows {
    fn is_writable(self) -> bool {
        self == Self::Position
    }

    fn render(self, queue: &OpenQueue, cursor: &CursorFile) -> Result<String> {
        let text = match self {
            Self::Position => queue.queue.cursor_seq(cursor)?.to_string(),
            Self::Lag => {
                let (seq, bounds) = (queue.queue.cursor_seq(cursor)?, queue.queue.bounds()?);
                // Messages that retention has removed are a gap, not lag.
                bounds.next_seq.saturating_sub(seq.max(bounds.first_seq)).to_string()
            }
            Self::Status => report::reader_json(&queue.queue.inspect_cursor(cursor)?),
        };
        Ok(text + "\n")
    }
}

impl File for ReaderFile {
    fn attr(&self) -> Result<Attr> {
        let mask = if self.shows.is_writable() { READ | WRITE } else { READ };
        Ok(Attr::file(&cursor_stat(&self.queue, &self.reader)?, mask))
    }

    fn snapshot_max(&self) -> usize {
        SMALL
    }

    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
        if !self.shows.is_writable() {
            access.reading()?;
        }
        let file_access = if access == Access::Read { FileAccess::Read } else { FileAccess::Write };
        // Even a handle opened for writing only needs the reader's position for `+10`.
        let open = || self.queue.queue.cursor(&self.reader, file_access);
        let cursor = Arc::new(caller.act(open)??);
        let bits = if access == Access::Read { credentials::READ } else { credentials::WRITE };
        caller.check(cursor.file(), bits)?;
        let (queue, shows, shown) = (Arc::clone(&self.queue), self.shows, Arc::clone(&cursor));
        let text =
            TextHandle::new(self.queue.kept_by(caller), move || shows.render(&queue, &shown).map(String::into_bytes));
        if access == Access::Read {
            return Ok(Box::new(text));
        }
        Ok(Box::new(PositionHandle { text, queue: Arc::clone(&self.queue), cursor }))
    }

    fn generation(&self) -> u64 {
        self.queue.identity
    }

    fn is_current(&self) -> bool {
        self.queue.is_current()
    }

    fn truncate(&self) -> Result<()> {
        if self.shows.is_writable() { Ok(()) } else { Err(Errno::EPERM) }
    }

    fn touch(&self, _caller: &Caller) -> Result<()> {
        self.truncate()
    }
}

struct PositionHandle<T> {
    text: T,
    queue: Arc<OpenQueue>,
    cursor: Arc<CursorFile>,
}

impl<T: Handle> Handle for PositionHandle<T> {
    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        self.text.read(offset, size, out)
    }

    fn write(&self, data: &[u8]) -> Result<usize> {
        let text = std::str::from_utf8(data).map_err(|_| Errno::EINVAL)?;
        let target = parse_seek_target(text.trim(), clock::now_ns()).map_err(|_| Errno::EINVAL)?;
        let queue = &self.queue.queue;
        let seq = target.find_from(queue, || queue.cursor_seq(&self.cursor))?;
        self.queue.when_released(|| Ok(queue.seek_cursor(&self.cursor, seq)))?;
        Ok(data.len())
    }
}
