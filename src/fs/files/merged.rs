//! `.merged/`: all queues below a directory merged by time. `messages.*` has the messages that exist at open;
//! `follow.*` has those that come after, with queues created later too. Queues that the caller could not read itself
//! are left out.
//!
//! Returned bytes are not kept: a read that does not start where the last one ended merges the snapshot again up to
//! there.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::fs::attr::{Attr, READ};
use crate::fs::backing::FileId;
use crate::fs::budget::{Kept, Kind as Budgeted, Share};
use crate::fs::errno::{Errno, Result};
use crate::fs::files::follow::below_chunk;
use crate::fs::lock;
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::site::{Access, Caller, File, Site};
use crate::fs::survey::{self, Found, is_scarcity};
use crate::fs::tree::handles::{Handle, Progress};
use crate::queue::Position;
use crate::view::{Format, Merge};

/// Minimum interval between a follower's searches for new queues.
const LOOK_INTERVAL: Duration = Duration::from_millis(350);
/// Bytes merged when the name is looked up.
const SNAPSHOT_MAX: usize = 1 << 20;
/// Descriptors that a queue holds while it is merged.
const DESCRIPTORS: u64 = 4;
/// Bytes merged at a time when skipping to an offset.
const SKIP: usize = 256 << 10;

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

    /// A small one shows its size. The size of a larger one is unknown until it is merged.
    fn snapshot_max(&self) -> usize {
        if self.is_live { 0 } else { SNAPSHOT_MAX }
    }

    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        let mut state = State {
            merge: Merge::new(self.format),
            kept: self.site.shared.queues.kept_by(caller),
            queues: Vec::new(),
            starts: Vec::new(),
            known: HashSet::new(),
            share: Arc::new(Mutex::new(self.site.shared.queues.budget().take(caller.uid, Budgeted::Handles, 0)?)),
            looked: Instant::now(),
            at: 0,
            failed: None,
            lacks: false,
        };
        state.look(&self.site, caller, self.is_live, true)?;
        let (site, caller, format, is_live) = (self.site.clone(), caller.clone(), self.format, self.is_live);
        Ok(Box::new(MergedHandle { site, caller, format, is_live, state: Mutex::new(state) }))
    }
}

struct MergedHandle {
    site: Site,
    caller: Caller,
    format: Format,
    is_live: bool,
    state: Mutex<State>,
}

/// A queue's part in a snapshot.
struct Start {
    name: String,
    position: Position,
    seq: u64,
    end_seq: u64,
}

struct State {
    merge: Merge,
    kept: Kept,
    queues: Vec<Arc<OpenQueue>>,
    /// In a snapshot, one per queue.
    starts: Vec<Start>,
    /// The queues that are in it, by directory and identity: not by name, nor by a handle that is kept open.
    known: HashSet<(FileId, u64)>,
    /// The descriptors of all queues.
    share: Arc<Mutex<Share>>,
    looked: Instant,
    /// In a snapshot, where the last read ended.
    at: u64,
    /// The error of the next read of a snapshot, because this one had bytes to return.
    failed: Option<Errno>,
    /// Some queues have not answered in time. The end of a snapshot then fails once.
    lacks: bool,
}

impl State {
    /// Adds the queues that are not in it yet. Those that a follower finds later are followed from their first message
    /// on.
    fn look(&mut self, site: &Site, caller: &Caller, is_live: bool, is_first: bool) -> Result<()> {
        let (known, share) = (self.known.clone(), Arc::clone(&self.share));
        let open = move |name: &str, found| {
            let Found::Queue(queue) = found else { return Ok(None) };
            let key = (queue.directory.id(), queue.identity);
            if known.contains(&key) {
                return Ok(None);
            }
            // Charges for queues that are not added after all are released below.
            lock(&share).grow(DESCRIPTORS)?;
            let mut scanner = queue.queue.scan()?;
            let mut start = None;
            if !is_live {
                let bounds = queue.queue.bounds()?;
                let (position, seq) = (bounds.first, bounds.first_seq);
                scanner.seek(position, seq)?;
                start = Some(Start { name: name.to_owned(), position, seq, end_seq: bounds.next_seq });
            } else if is_first {
                scanner.seek_end()?;
            }
            Ok(Some((key, queue, scanner, start)))
        };
        let survey = survey::survey(&site.shared, &site.relative, caller, open);
        let survey = survey.inspect_err(|_| self.share_queues())?;
        for (name, (key, queue, scanner, start)) in survey.seen {
            if self.known.insert(key) {
                self.merge.add(&name, scanner, start.as_ref().map(|start| start.end_seq));
                self.starts.extend(start);
                self.queues.push(queue);
            }
        }
        self.share_queues();
        self.lacks = !survey.unanswered.is_empty();
        self.looked = Instant::now();
        Ok(())
    }

    /// Charges for exactly the queues that are in it.
    fn share_queues(&self) {
        let held = u64::try_from(self.queues.len()).unwrap_or(u64::MAX).saturating_mul(DESCRIPTORS);
        // No more than before.
        let _ = lock(&self.share).resize(held);
    }

    /// Moves a snapshot to `offset`, or to its end if that comes first.
    fn seek(&mut self, offset: u64, format: Format) -> Result<()> {
        if offset < self.at {
            self.merge = Merge::new(format);
            for (queue, start) in self.queues.iter().zip(&self.starts) {
                let mut scanner = queue.queue.scan()?;
                scanner.seek(start.position, start.seq)?;
                self.merge.add(&start.name, scanner, Some(start.end_seq));
            }
            (self.at, self.failed) = (0, None);
        }
        let mut skipped = Vec::new();
        while self.at < offset {
            skipped.clear();
            self.fill(usize::try_from(offset - self.at).map_or(SKIP, |left| left.min(SKIP)), &mut skipped)?;
            if skipped.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Appends `size` bytes of a snapshot to `out`: some programs take a short read for the end of the file.
    fn fill(&mut self, size: usize, out: &mut Vec<u8>) -> Result<()> {
        if let Some(errno) = self.failed.take() {
            return Err(errno);
        }
        let start = out.len();
        loop {
            let before = out.len();
            match self.give(size - (before - start), out) {
                Ok(()) if out.len() > before && out.len() - start < size => {}
                Ok(()) => break,
                Err(errno) if before == start => return Err(errno),
                Err(errno) => {
                    self.failed = Some(errno);
                    break;
                }
            }
        }
        if out.len() == start && std::mem::take(&mut self.lacks) {
            return Err(Errno::ETIMEDOUT.because("a queue does not answer and was left out"));
        }
        self.at += u64::try_from(out.len() - start).unwrap_or(0);
        Ok(())
    }

    /// Appends the available bytes, up to `size`, to `out`. A gap that the format does not show is an error, once.
    fn give(&mut self, size: usize, out: &mut Vec<u8>) -> Result<()> {
        // An error occurs again at the next read.
        let _ = self.merge.ready();
        self.charge()?;
        let start = out.len();
        let result = self.merge.read(size, out);
        let _ = self.charge();
        match result {
            Ok(Some(gap)) if out.len() == start => Err(gap.into()),
            Err(error) if out.len() == start => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Charges for what the merge keeps; what must not be kept is read again.
    fn charge(&mut self) -> Result<()> {
        self.kept.set(self.merge.kept()).inspect_err(|_| {
            self.merge.put_back();
            // No more than before.
            let _ = self.kept.set(self.merge.kept());
        })
    }
}

impl Handle for MergedHandle {
    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        let mut state = lock(&self.state);
        let start = out.len();
        if !self.is_live {
            if offset != state.at {
                state.seek(offset, self.format)?;
            }
            if offset == state.at {
                state.fill(size, out)?;
            }
            return Ok(Progress::Done);
        }
        if state.looked.elapsed() >= LOOK_INTERVAL {
            match state.look(&self.site, &self.caller, true, false) {
                Err(errno) if is_scarcity(errno) => return Err(errno),
                // A directory that can't be read now may be readable later.
                _ => {}
            }
            // A native reader could not continue either.
            state.queues.iter().try_for_each(|queue| queue.check_readable(&self.caller))?;
        }
        state.give(below_chunk(size, self.site.shared.max_chunk), out)?;
        if out.len() == start {
            return Ok(Progress::Wait(state.queues.clone()));
        }
        Ok(Progress::Done)
    }

    fn blocked(&self) -> Option<Vec<Arc<OpenQueue>>> {
        let mut state = lock(&self.state);
        let is_ready = state.merge.ready();
        let _ = state.charge();
        match is_ready {
            Ok(false) if self.is_live => Some(state.queues.clone()),
            // The read will report an error.
            _ => None,
        }
    }

    fn looks_around(&self) -> bool {
        self.is_live
    }
}
