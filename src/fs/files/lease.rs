//! `LEASE`: who holds the endpoint, and whether he lives. Writing renews it, `rm` gives it up; `touch` renews it as it
//! is. Whether it is live is derived whenever it is read.

use std::ffi::OsStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::bus::{self, LEASE_FILE, MAX_LEASE_PAYLOAD};
use crate::fs::attr::{Attr, Kind, Ttl};
use crate::fs::backing::{Directory, Owner};
use crate::fs::errno::{Errno, Result};
use crate::fs::files::text::TextHandle;
use crate::fs::handles::{Handle, Progress};
use crate::fs::lock;
use crate::fs::nodes::{Access, Caller, File, Site};

/// How long a lease counts that was first written here; later writes keep what it had.
const TTL: Duration = Duration::from_secs(10);

struct Lease {
    site: Site,
}

/// Row constructor. ENOENT where there is none.
pub(crate) fn lease(site: &Site) -> Result<Arc<dyn File>> {
    stat(&site.directory)?;
    Ok(Arc::new(Lease { site: site.clone() }))
}

/// What `touch LEASE` does.
pub(crate) fn renew(site: &Site, caller: Caller) -> Result<()> {
    let payload = bus::lease(site.directory.path())?.map(|lease| lease.payload).unwrap_or_default();
    write(site, caller, &payload)
}

/// What `rm LEASE` does.
pub(crate) fn give_up(site: &Site) -> Result<()> {
    stat(&site.directory)?;
    Ok(bus::remove_lease(site.directory.path())?)
}

fn write(site: &Site, caller: Caller, payload: &[u8]) -> Result<()> {
    let path = site.directory.path();
    let before = bus::lease(&path)?.map(|lease| lease.ttl_ms).filter(|ttl_ms| *ttl_ms > 0);
    let ttl = before.map_or(TTL, Duration::from_millis);
    bus::write_lease_as(&path, ttl, payload, caller.pid)?;
    site.directory.give(OsStr::new(LEASE_FILE), Owner { uid: caller.uid, gid: caller.gid })
}

/// The file's attributes; ENOENT for anything that is no regular file.
fn stat(directory: &Directory) -> Result<rustix::fs::Stat> {
    let stat = directory.stat_of(OsStr::new(LEASE_FILE))?;
    if Kind::of(&stat) == Some(Kind::File) { Ok(stat) } else { Err(Errno::ENOENT) }
}

fn text(site: &Site) -> Result<Vec<u8>> {
    let lease = bus::lease(site.directory.path())?.ok_or(Errno::ENOENT)?;
    Ok((lease.to_json() + "\n").into_bytes())
}

impl File for Lease {
    fn attr(&self) -> Result<Attr> {
        // Its age is part of the text, so its size is that of a moment ago.
        let size = u64::try_from(text(&self.site)?.len()).unwrap_or(0);
        Ok(Attr::marker(&stat(&self.site.directory)?, &self.site.directory.stat_now()?).with_size(size))
    }

    fn open(&self, _access: Access, caller: Caller) -> Result<Box<dyn Handle>> {
        let site = self.site.clone();
        let text = TextHandle::new(move || text(&site));
        Ok(Box::new(LeaseHandle { text, site: self.site.clone(), caller, payload: Mutex::default() }))
    }

    fn ttl(&self) -> Ttl {
        Ttl::NONE
    }

    fn truncate(&self) -> Result<()> {
        Ok(())
    }

    fn touch(&self, caller: Caller) -> Result<()> {
        renew(&self.site, caller)
    }
}

struct LeaseHandle<T> {
    text: T,
    site: Site,
    caller: Caller,
    /// What was written through this handle so far.
    payload: Mutex<Vec<u8>>,
}

impl<T: Handle> Handle for LeaseHandle<T> {
    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        self.text.read(offset, size, out)
    }

    /// Each write renews, with all that was written so far, less the newline that `echo` puts at the end.
    fn write(&self, data: &[u8]) -> Result<usize> {
        let mut payload = lock(&self.payload);
        if payload.len() + data.len() > MAX_LEASE_PAYLOAD {
            return Err(Errno::EMSGSIZE);
        }
        let whole = [payload.as_slice(), data].concat();
        write(&self.site, self.caller, whole.strip_suffix(b"\n").unwrap_or(&whole))?;
        *payload = whole;
        Ok(data.len())
    }
}
