//! `readers/<name>/`: the queue's persisted readers, which native clients use too. `mkdir` registers one, `rmdir`
//! removes it; `position` shows and moves it.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use crate::clock;
use crate::fs::attr::{Attr, READ, WRITE};
use crate::fs::backing::Owner;
use crate::fs::errno::{Errno, Result};
use crate::fs::files::take::when_released;
use crate::fs::files::text::TextHandle;
use crate::fs::handles::{Handle, Progress};
use crate::fs::nodes::{Access, Caller, File, Site};
use crate::fs::queues::OpenQueue;
use crate::queue::{self, check_name, layout};
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

/// `mkdir readers/<name>`.
pub(crate) fn register(queue: &OpenQueue, name: &OsStr, caller: Caller) -> Result<()> {
    let name = name.to_str().ok_or(Errno::EINVAL)?;
    let readers = OsStr::new(layout::READERS_DIR);
    let is_first = queue.directory.stat_of(readers).is_err();
    if !queue.queue.add_reader(name)? {
        return Err(Errno::EEXIST);
    }
    queue.give_all_to_owner();
    if is_first {
        // Whoever may write to the queue's directory may register readers.
        queue.directory.copy_mode(readers)?;
    }
    let owner = Owner { uid: caller.uid, gid: caller.gid };
    queue.directory.child(readers)?.give(&cursor_name(name), owner)
}

/// `rmdir readers/<name>`.
pub(crate) fn remove(queue: &OpenQueue, name: &OsStr) -> Result<()> {
    let name = name.to_str().ok_or(Errno::ENOENT)?;
    when_released(queue, || queue.queue.remove_reader(name))
}

/// The cursor file's attributes: it is the reader, and its bits are the reader's permissions.
pub(super) fn cursor_stat(queue: &OpenQueue, name: &str) -> Result<rustix::fs::Stat> {
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
type Render = fn(&OpenQueue, &str) -> Result<String>;

struct ReaderFile {
    queue: Arc<OpenQueue>,
    reader: Arc<str>,
    render: Render,
    writable: bool,
}

fn make(site: &Site, render: Render, writable: bool) -> Result<Arc<dyn File>> {
    Ok(Arc::new(ReaderFile { queue: Arc::clone(site.queue()?), reader: site.subject()?, render, writable }))
}

/// Row constructor of `position`.
pub(crate) fn position(site: &Site) -> Result<Arc<dyn File>> {
    make(site, |queue, name| Ok(format!("{}\n", seq_of(queue, name)?)), true)
}

/// Row constructor of `lag`.
pub(crate) fn lag(site: &Site) -> Result<Arc<dyn File>> {
    let render: Render = |queue, name| {
        let seq = seq_of(queue, name)?;
        let bounds = queue.queue.bounds()?;
        // What retention took away is a gap, not messages that could still be read.
        Ok(format!("{}\n", bounds.next_seq.saturating_sub(seq.max(bounds.first_seq))))
    };
    make(site, render, false)
}

/// Row constructor of `status.json`.
pub(crate) fn status(site: &Site) -> Result<Arc<dyn File>> {
    let render: Render = |queue, name| {
        let inspection = queue.queue.inspect()?;
        let info = inspection.readers.iter().find(|reader| reader.name == name).ok_or(Errno::ENOENT)?;
        Ok(report::reader_json(info) + "\n")
    };
    make(site, render, false)
}

/// The next sequence number that the reader will consume.
fn seq_of(queue: &OpenQueue, name: &str) -> Result<u64> {
    Ok(queue.queue.reader_position(name)?)
}

impl File for ReaderFile {
    fn attr(&self) -> Result<Attr> {
        let mask = if self.writable { READ | WRITE } else { READ };
        Ok(Attr::file(&cursor_stat(&self.queue, &self.reader)?, mask))
    }

    fn open(&self, access: Access, _caller: Caller) -> Result<Box<dyn Handle>> {
        if !self.writable {
            access.reading()?;
        }
        let (queue, reader, render) = (Arc::clone(&self.queue), Arc::clone(&self.reader), self.render);
        let text = TextHandle::new(move || render(&queue, &reader).map(String::into_bytes));
        if !self.writable {
            return Ok(Box::new(text));
        }
        Ok(Box::new(PositionHandle { text, queue: Arc::clone(&self.queue), reader: Arc::clone(&self.reader) }))
    }

    fn generation(&self) -> u64 {
        self.queue.identity
    }

    fn is_current(&self) -> bool {
        self.queue.is_current()
    }

    fn truncate(&self) -> Result<()> {
        if self.writable { Ok(()) } else { Err(Errno::EPERM) }
    }

    fn touch(&self, _caller: Caller) -> Result<()> {
        self.truncate()
    }
}

struct PositionHandle<T> {
    text: T,
    queue: Arc<OpenQueue>,
    reader: Arc<str>,
}

impl<T: Handle> Handle for PositionHandle<T> {
    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        self.text.read(offset, size, out)
    }

    fn write(&self, data: &[u8]) -> Result<usize> {
        let text = std::str::from_utf8(data).map_err(|_| Errno::EINVAL)?;
        let target = parse_seek_target(text.trim(), clock::now_ns()).map_err(|_| Errno::EINVAL)?;
        let seq = target.find(&self.queue.queue, &self.reader)?;
        when_released(&self.queue, || self.queue.queue.seek_reader(&self.reader, seq))?;
        Ok(data.len())
    }
}
