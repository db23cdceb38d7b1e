//! `READY`: exists exactly while the endpoint is marked. `touch` marks it, `rm` unmarks it; its content says who marked
//! it and when.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::bus::{self, Marker, READY_FILE};
use crate::fs::attr::{Attr, Kind, Ttl};
use crate::fs::backing::{Directory, FileId};
use crate::fs::errno::{Errno, Result};
use crate::fs::files::backing_file::{self, read_file};
use crate::fs::files::snapshot::{SMALL, TextHandle};
use crate::fs::site::{Access, Caller, File, Site};
use crate::fs::tree::handles::Handle;

struct Ready {
    site: Site,
}

/// Row constructor. ENOENT where the endpoint is not marked.
pub(crate) fn ready(site: &Site) -> Result<Arc<dyn File>> {
    stat(&site.directory)?;
    Ok(Arc::new(Ready { site: site.clone() }))
}

/// What `touch READY` does.
pub(crate) fn mark(site: &Site, caller: &Caller) -> Result<()> {
    let marker = Marker::process(caller.pid);
    Ok(caller.act(|| bus::mark_ready_in(site.directory.dir(), &marker))??)
}

/// What `rm READY` does.
pub(crate) fn unmark(site: &Site, caller: &Caller) -> Result<()> {
    stat(&site.directory)?;
    Ok(caller.act(|| bus::unmark_ready_in(site.directory.dir()))??)
}

/// The marker's attributes; ENOENT for anything that is not a regular file.
fn stat(directory: &Directory) -> Result<rustix::fs::Stat> {
    let stat = directory.stat_of(OsStr::new(READY_FILE))?;
    if Kind::of(&stat) == Some(Kind::File) { Ok(stat) } else { Err(Errno::ENOENT) }
}

impl File for Ready {
    fn attr(&self) -> Result<Attr> {
        let stat = stat(&self.site.directory)?;
        Ok(Attr::marker(&stat, &self.site.directory.stat_now()?))
    }

    fn snapshot_max(&self) -> usize {
        SMALL
    }

    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
        if access != Access::Read {
            // `touch` and `: >` open for writing and write nothing.
            return Ok(Box::new(Touched));
        }
        let id = FileId::of(&stat(&self.site.directory)?);
        let file = backing_file::open(&self.site.directory, OsStr::new(READY_FILE), id, caller)?;
        Ok(Box::new(TextHandle::new(self.site.shared.queues.kept_by(caller), move || {
            let mut text = Vec::new();
            read_file(&file, 0, 64 << 10, &mut text)?;
            Ok(text)
        })))
    }

    fn ttl(&self) -> Ttl {
        Ttl::NONE
    }

    fn truncate(&self) -> Result<()> {
        Ok(())
    }

    fn touch(&self, caller: &Caller) -> Result<()> {
        mark(&self.site, caller)
    }
}

/// A marker opened for writing: the caller can't choose its content.
struct Touched;

impl Handle for Touched {
    fn write(&self, _data: &[u8]) -> Result<usize> {
        Err(Errno::EPERM)
    }
}
