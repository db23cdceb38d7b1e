//! `.merged/`: all queues below a directory as one, by time. `messages.*` is what is there when it is opened;
//! `follow.*` goes on from then, with queues that come later too. Queues that the caller could not read himself are
//! not in it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::follow::below_chunk;
use crate::fs::attr::{Attr, READ};
use crate::fs::bus_walk;
use crate::fs::errno::{Errno, Result};
use crate::fs::handles::{Handle, Progress};
use crate::fs::nodes::{Access, Caller, File, Site};
use crate::fs::queues::OpenQueue;
use crate::fs::{lock, patience};
use crate::queue::{Gap, GapReason};
use crate::sync::Ordering;
use crate::view::{Format, Merge};

/// How often a follower looks for new queues, at most.
const LOOK_INTERVAL: Duration = Duration::from_millis(350);

struct Merged {
    site: Site,
    format: Format,
    is_live: bool,
}

/// Row constructor.
pub(crate) fn messages(site: &Site, format: Format) -> Result<Arc<dyn File>> {
    Ok(Arc::new(Merged { site: site.clone(), format, is_live: false }))
}

/// Row constructor.
pub(crate) fn follow(site: &Site, format: Format) -> Result<Arc<dyn File>> {
    Ok(Arc::new(Merged { site: site.clone(), format, is_live: true }))
}

impl File for Merged {
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::file(&self.site.directory.stat_now()?, READ))
    }

    fn open(&self, access: Access, caller: Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        if !patience::is_patient() {
            // There may be a thousand queues.
            return Err(Errno::LATER);
        }
        let merge = Merge::new(self.format);
        let mut state = State { merge, queues: Vec::new(), known: HashSet::new(), looked: Instant::now(), at: 0 };
        state.look(&self.site, caller, self.is_live, true)?;
        let (site, is_live) = (self.site.clone(), self.is_live);
        Ok(Box::new(MergedHandle { site, caller, is_live, state: Mutex::new(state) }))
    }
}

struct MergedHandle {
    site: Site,
    caller: Caller,
    is_live: bool,
    state: Mutex<State>,
}

struct State {
    merge: Merge,
    queues: Vec<Arc<OpenQueue>>,
    /// The queues that are in it, by name and identity.
    known: HashSet<(String, u64)>,
    looked: Instant,
    /// How many bytes have been given: a snapshot is read from its start to its end.
    at: u64,
}

impl State {
    /// Adds the queues that are not in it yet. Those that a follower finds later are new from their first message on.
    fn look(&mut self, site: &Site, caller: Caller, is_live: bool, is_first: bool) -> Result<()> {
        for found in bus_walk::queues(&site.shared, &site.relative, caller)? {
            let Ok(queue) = found.queue else { continue };
            if !self.known.insert((found.name.clone(), queue.identity)) {
                continue;
            }
            let mut scanner = queue.queue.scan()?;
            let end_seq = if is_live { None } else { Some(queue.queue.bounds()?.next_seq) };
            if is_live && is_first {
                scanner.seek_end()?;
            }
            self.merge.add(&found.name, scanner, end_seq);
            self.queues.push(queue);
        }
        self.looked = Instant::now();
        Ok(())
    }
}

impl Handle for MergedHandle {
    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        let mut state = lock(&self.state);
        // Nothing is kept of what was given, so that a snapshot can't go back.
        if !self.is_live && offset != state.at {
            return if offset > state.at { Ok(Progress::Done) } else { Err(Errno::ESPIPE) };
        }
        if self.is_live && state.looked.elapsed() >= LOOK_INTERVAL {
            // A directory that can't be read now may be readable later.
            let _ = state.look(&self.site, self.caller, true, false);
        }
        let start = out.len();
        let size = if self.is_live { below_chunk(size, self.site.shared.max_chunk) } else { size };
        loop {
            let room = size - (out.len() - start);
            let before = out.len();
            match state.merge.read(room, out) {
                Ok(Some(Gap { reason: GapReason::Retired, .. })) if out.len() == start => return Err(Errno::EPIPE),
                Ok(Some(_)) if out.len() == start => return Err(Errno::EIO),
                Ok(_) => {}
                Err(_) if out.len() > start => {}
                Err(error) => return Err(error.into()),
            }
            // A short read would be the end of a snapshot for some programs: fill it.
            if self.is_live || out.len() == before || out.len() - start == size {
                break;
            }
        }
        state.at += u64::try_from(out.len() - start).unwrap_or(0);
        if out.len() == start && self.is_live && !self.site.shared.closing.load(Ordering::Acquire) {
            return Ok(Progress::Wait(state.queues.clone()));
        }
        Ok(Progress::Done)
    }

    fn blocked(&self) -> Option<Vec<Arc<OpenQueue>>> {
        let mut state = lock(&self.state);
        match state.merge.ready() {
            Ok(false) if self.is_live => Some(state.queues.clone()),
            // The read will report an error.
            _ => None,
        }
    }

    fn looks_around(&self) -> bool {
        self.is_live
    }
}
