//! `LEASE`: who holds the endpoint, and whether the holder is alive. Writing renews it, `rm` releases it; `touch`
//! renews it with the same payload. Whether it is live is computed at each read.

use std::ffi::OsStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::bus::{self, LEASE_FILE, MAX_LEASE_PAYLOAD};
use crate::fs::attr::{Attr, Kind, Ttl};
use crate::fs::backing::{Directory, FileId};
use crate::fs::errno::{Errno, Result};
use crate::fs::files::backing_file;
use crate::fs::files::snapshot::{SMALL, TextHandle};
use crate::fs::lock;
use crate::fs::site::{Access, Caller, File, Site};
use crate::fs::tree::handles::{Handle, Progress};

/// Time to live of a lease that is first written here; later writes keep the existing one.
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
pub(crate) fn renew(site: &Site, caller: &Caller) -> Result<()> {
    write(site, caller, None)
}

/// What `rm LEASE` does.
pub(crate) fn give_up(site: &Site, caller: &Caller) -> Result<()> {
    stat(&site.directory)?;
    Ok(caller.act(|| bus::remove_lease_in(site.directory.dir()))??)
}

/// Without a payload, keeps the existing one.
fn write(site: &Site, caller: &Caller, payload: Option<&[u8]>) -> Result<()> {
    let dir = site.directory.dir();
    let renewed = caller.act(|| {
        // A caller that may not read it can't keep anything of it either.
        let before = bus::lease_in(dir).or_else(|error| if payload.is_some() { Ok(None) } else { Err(error) })?;
        let (ttl_ms, kept) = before.map(|lease| (lease.ttl_ms, lease.payload)).unwrap_or_default();
        let ttl = if ttl_ms > 0 { Duration::from_millis(ttl_ms) } else { TTL };
        bus::write_lease_in(dir, ttl, payload.unwrap_or(&kept), caller.pid)
    });
    renewed??;
    Ok(())
}

/// The file's attributes; ENOENT for anything that is not a regular file.
fn stat(directory: &Directory) -> Result<rustix::fs::Stat> {
    let stat = directory.stat_of(OsStr::new(LEASE_FILE))?;
    if Kind::of(&stat) == Some(Kind::File) { Ok(stat) } else { Err(Errno::ENOENT) }
}

fn text(file: &std::fs::File) -> Result<Vec<u8>> {
    Ok((bus::read_lease(file)?.to_json() + "\n").into_bytes())
}

impl File for Lease {
    fn attr(&self) -> Result<Attr> {
        // Its age is part of the text, so the size is only that of this moment.
        let text = text(&self.site.directory.open_file(OsStr::new(LEASE_FILE))?)?;
        let size = u64::try_from(text.len()).unwrap_or(0);
        Ok(Attr::marker(&stat(&self.site.directory)?, &self.site.directory.stat_now()?).with_size(size))
    }

    fn snapshot_max(&self) -> usize {
        SMALL
    }

    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
        let directory = &self.site.directory;
        let file = match access {
            Access::Write => None,
            Access::Read | Access::ReadWrite => {
                Some(backing_file::open(directory, OsStr::new(LEASE_FILE), FileId::of(&stat(directory)?), caller)?)
            }
        };
        let text =
            TextHandle::new(self.site.shared.queues.kept_by(caller), move || text(file.as_ref().ok_or(Errno::EBADF)?));
        let (site, caller) = (self.site.clone(), caller.clone());
        Ok(Box::new(LeaseHandle { text, site, caller, payload: Mutex::default() }))
    }

    fn ttl(&self) -> Ttl {
        Ttl::NONE
    }

    fn truncate(&self) -> Result<()> {
        Ok(())
    }

    fn touch(&self, caller: &Caller) -> Result<()> {
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

    /// Each write renews, with everything written so far, less the final newline of `echo`.
    fn write(&self, data: &[u8]) -> Result<usize> {
        let mut payload = lock(&self.payload);
        if payload.len() + data.len() > MAX_LEASE_PAYLOAD {
            return Err(Errno::EMSGSIZE);
        }
        let whole = [payload.as_slice(), data].concat();
        write(&self.site, &self.caller, Some(whole.strip_suffix(b"\n").unwrap_or(&whole)))?;
        *payload = whole;
        Ok(data.len())
    }
}
