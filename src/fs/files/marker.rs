//! `READY`: there exactly while the endpoint is marked. `touch` marks, `rm` unmarks, reading says who and when.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::bus::{self, Marker, READY_FILE};
use crate::fs::attr::{Attr, Kind, Ttl};
use crate::fs::backing::{Directory, Owner};
use crate::fs::errno::{Errno, Result};
use crate::fs::files::text::TextHandle;
use crate::fs::handles::Handle;
use crate::fs::nodes::{Access, Caller, File, Site};

struct Ready {
    site: Site,
}

/// Row constructor. ENOENT where the endpoint is not marked.
pub(crate) fn ready(site: &Site) -> Result<Arc<dyn File>> {
    stat(&site.directory)?;
    Ok(Arc::new(Ready { site: site.clone() }))
}

/// What `touch READY` does.
pub(crate) fn mark(site: &Site, caller: Caller) -> Result<()> {
    bus::mark_ready_as(site.directory.path(), &Marker::process(caller.pid))?;
    site.directory.give(OsStr::new(READY_FILE), Owner { uid: caller.uid, gid: caller.gid })
}

/// What `rm READY` does.
pub(crate) fn unmark(site: &Site) -> Result<()> {
    stat(&site.directory)?;
    Ok(bus::unmark_ready(site.directory.path())?)
}

/// The marker's attributes; ENOENT for anything that is no regular file.
fn stat(directory: &Directory) -> Result<rustix::fs::Stat> {
    let stat = directory.stat_of(OsStr::new(READY_FILE))?;
    if Kind::of(&stat) == Some(Kind::File) { Ok(stat) } else { Err(Errno::ENOENT) }
}

impl File for Ready {
    fn attr(&self) -> Result<Attr> {
        let stat = stat(&self.site.directory)?;
        Ok(Attr::marker(&stat, &self.site.directory.stat_now()?))
    }

    fn open(&self, access: Access, _caller: Caller) -> Result<Box<dyn Handle>> {
        if access != Access::Read {
            // `touch` and `: >` open for writing and write nothing.
            return Ok(Box::new(Touched));
        }
        let site = self.site.clone();
        Ok(Box::new(TextHandle::new(move || {
            use std::io::Read as _;

            let file = site.directory.open_file(OsStr::new(READY_FILE))?;
            let mut text = Vec::new();
            file.take(64 << 10).read_to_end(&mut text)?;
            Ok(text)
        })))
    }

    fn ttl(&self) -> Ttl {
        Ttl::NONE
    }

    fn truncate(&self) -> Result<()> {
        Ok(())
    }

    fn touch(&self, caller: Caller) -> Result<()> {
        mark(&self.site, caller)
    }
}

/// A marker opened for writing: what it says is not for the caller to choose.
struct Touched;

impl Handle for Touched {
    fn write(&self, _data: &[u8]) -> Result<usize> {
        Err(Errno::EPERM)
    }
}
