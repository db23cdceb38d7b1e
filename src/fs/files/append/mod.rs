//! `append.*`: appending messages. Write-only; the mount holds the queue's writer lock while any of these is open.

mod lines;
mod message;
mod packets;
mod target;

use std::ffi::OsStr;
use std::sync::{Arc, Mutex};

use crate::bus;
use crate::fs::attr::{Attr, WRITE};
use crate::fs::callers::process_of;
use crate::fs::errno::{Errno, Result};
use crate::fs::files::append::lines::LinesHandle;
use crate::fs::files::append::message::MessageHandle;
use crate::fs::files::append::packets::PacketsHandle;
use crate::fs::files::append::target::Target;
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::queues::permission::Permission;
use crate::fs::queues::table::Contents;
use crate::fs::site::{Access, Caller, File, Site};
use crate::fs::tree::handles::Handle;
use crate::queue::layout;
use crate::view::InputFormat;

/// Where one message ends and the next one begins.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Boundary {
    /// At each newline.
    Lines(InputFormat),
    /// At the last close.
    Close,
    /// After each write(2), as in a pipe's packet mode.
    Write,
}

impl Boundary {
    fn name(self) -> &'static str {
        match self {
            Self::Lines(InputFormat::Jsonl) => "append.jsonl",
            Self::Lines(_) => "append.txt",
            Self::Close => "append.bin",
            Self::Write => "append.packets",
        }
    }
}

struct Append {
    site: Site,
    /// None: the first message creates it.
    queue: Option<Arc<OpenQueue>>,
    boundary: Boundary,
}

/// Row constructor for a queue.
pub(crate) fn append(site: &Site, boundary: Boundary) -> Result<Arc<dyn File>> {
    let queue = Some(Arc::clone(site.queue()?));
    Ok(Arc::new(Append { site: site.clone(), queue, boundary }))
}

/// Row constructor for an empty plain directory: the first append creates the queue.
pub(crate) fn first(site: &Site, boundary: Boundary) -> Result<Arc<dyn File>> {
    if let Contents::Unreadable(errno) = site.contents {
        return Err(errno);
    }
    let is_nothing = |name: &OsStr| {
        [bus::READY_FILE, bus::LEASE_FILE, layout::INDEX_DIR].iter().any(|other| name == *other)
            || name.to_str().is_some_and(bus::is_temporary)
    };
    if site.directory.names()?.iter().all(|name| is_nothing(name)) {
        Ok(Arc::new(Append { site: site.clone(), queue: None, boundary }))
    } else {
        Err(Errno::ENOENT)
    }
}

impl File for Append {
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::file(&self.site.directory.stat_now()?, WRITE))
    }

    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
        access.writing()?;
        if let Some(queue) = &self.queue {
            queue.join_writer(caller)?;
        }
        let shared = &self.site.shared;
        let settings = self.queue.as_ref().map_or(shared.settings, |queue| queue.queue.settings());
        let (max_payload, kept) = (settings.max_payload_len(), shared.queues.kept_by(caller));
        let target = Target {
            queue: Mutex::new(self.queue.clone()),
            shared: Arc::clone(shared),
            directory: Arc::clone(&self.site.directory),
            permission: Permission::new(caller),
            opener: process_of(caller.pid),
            path: self.site.relative.join(self.boundary.name()),
        };
        // The kernel splits larger writes, and unaligned ones up to a page earlier.
        let max_write = shared.max_chunk.saturating_sub(4096);
        Ok(match self.boundary {
            Boundary::Lines(format) => Box::new(LinesHandle::new(target, format, max_write, max_payload, kept)),
            Boundary::Close => Box::new(MessageHandle::new(target, max_payload, kept)),
            Boundary::Write => Box::new(PacketsHandle { target, max_write }),
        })
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
