//! The table of open queues: which are open, which are kept for the next lookup, and when there are too many.
//!
//! Every name of a queue that the kernel has cached holds it open. So where descriptors get short, the kernel is told
//! to forget the names of the least recently used ones ([`Queues::rarely_used`]); it looks them up again when needed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use crate::clock;
use crate::fs::backing::{Directory, FileId};
use crate::fs::budget::{Budget, Kept, Kind};
use crate::fs::credentials::Caller;
use crate::fs::daemon_log::DaemonLog;
use crate::fs::errno::{Errno, Result};
use crate::fs::lock;
use crate::fs::page_cache::PageCache;
use crate::fs::page_cache::shared_view;
use crate::fs::queues::open_queue::{Common, OF_A_QUEUE, OpenQueue};
use crate::queue::{self, Queue, Settings, layout};
use crate::sync::{AtomicU64, AtomicUsize, Ordering};

/// Queues kept open though no node holds them.
const MAX_RECENT: usize = 64;
/// Descriptors reserved for each open queue: its own, up to five, and those of its readers and writers.
const DESCRIPTORS_FOR_EACH: u64 = 24;
/// Queues kept open by names only, where descriptors allow more: each takes about 10 KiB with its names.
const MAX_CROWD: u64 = 4096;
/// How long opening a queue waits for others to be closed, where there are far too many.
const CROWD_PAUSE: Duration = Duration::from_millis(300);
/// Plain directories remembered.
const MAX_PLAIN: usize = 10_000;

/// What a directory of the tree is.
#[derive(Clone)]
pub(crate) enum Contents {
    /// Not a queue.
    Plain,
    /// A queue.
    Queue(Arc<OpenQueue>),
    /// A queue that can't be opened, and why.
    Unreadable(Errno),
}

/// All open queues, by their directory.
pub(crate) struct Queues {
    open: Mutex<HashMap<FileId, Weak<OpenQueue>>>,
    /// Kept open for the next lookup though no node holds them: a path walk makes several.
    recent: Mutex<VecDeque<Arc<OpenQueue>>>,
    /// Directories that were found to hold no queue, with their change time then.
    plain: Mutex<HashMap<FileId, (i64, u64)>>,
    crowd: Crowd,
    common: Arc<Common>,
}

/// State of the eviction of queues when more are open than descriptors allow.
struct Crowd {
    /// More than this are too many.
    limit: usize,
    state: Mutex<CrowdState>,
    changed: Condvar,
}

#[derive(Default)]
struct CrowdState {
    is_crowded: bool,
    /// Names are being forgotten.
    is_clearing: bool,
    /// How many were still open after the last eviction: those are in use.
    left: usize,
    is_over: bool,
}

impl Queues {
    /// `may_store`: whether derived files (indexes) may be stored. `pages`: the page cache for text, if available.
    pub(crate) fn new(may_store: bool, pages: Option<Arc<PageCache>>, log: &Arc<DaemonLog>) -> Self {
        let budget = Budget::of_this_process();
        let views = Arc::new(shared_view::Common::new(&budget, pages));
        let common = Common {
            budget,
            views,
            indexer: Arc::default(),
            may_store,
            making: Mutex::default(),
            open: AtomicUsize::new(0),
            uses: AtomicU64::new(0),
            log: Arc::clone(log),
        };
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let limit = usize::try_from((descriptors / DESCRIPTORS_FOR_EACH).min(MAX_CROWD)).unwrap_or(usize::MAX);
        let crowd = Crowd { limit, state: Mutex::default(), changed: Condvar::new() };
        let (open, recent, plain) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { open, recent, plain, crowd, common: Arc::new(common) }
    }

    /// What users may hold.
    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.common.budget
    }

    /// The charge for what a handle opened by this caller keeps.
    pub(crate) fn kept_by(&self, caller: &Caller) -> Kept {
        Kept::new(&self.common.budget, caller.uid)
    }

    /// Ends the background work.
    pub(crate) fn close(&self) {
        self.common.indexer.close();
        lock(&self.crowd.state).is_over = true;
        self.crowd.changed.notify_all();
    }

    /// Waits until more queues are open than there should be. False: the mount is ending.
    pub(crate) fn wait_until_crowded(&self) -> bool {
        let mut state = lock(&self.crowd.state);
        while !state.is_crowded && !state.is_over {
            state = self.crowd.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (state.is_crowded, state.is_clearing) = (false, true);
        !state.is_over
    }

    /// To be called when the kernel has forgotten the names of the rarely used ones.
    pub(crate) fn were_cleared(&self) {
        let mut state = lock(&self.crowd.state);
        (state.is_clearing, state.left) = (false, self.common.open.load(Ordering::Relaxed));
        self.crowd.changed.notify_all();
    }

    /// The directories of the least recently used ones: all but half of how many may be open.
    pub(crate) fn rarely_used(&self) -> HashSet<FileId> {
        let mut queues = self.all();
        queues.sort_unstable_by_key(|queue| std::cmp::Reverse(queue.used.load(Ordering::Relaxed)));
        queues.iter().skip(self.crowd.limit / 2).map(|queue| queue.directory.id()).collect()
    }

    /// To be called when one more was opened. Where there are far too many, waits briefly for others to be closed.
    fn has_come(&self) {
        let open = || self.common.open.load(Ordering::Relaxed);
        let limit = self.crowd.limit;
        if open() <= limit {
            return;
        }
        let mut state = lock(&self.crowd.state);
        // Those that were in use a moment ago are assumed to be in use still.
        state.left = state.left.min(open());
        if open() <= limit.max(state.left + limit / 4) && !state.is_clearing {
            return;
        }
        state.is_crowded |= !state.is_clearing;
        self.crowd.changed.notify_all();
        let until = Instant::now() + CROWD_PAUSE;
        while open() > limit * 2
            && (state.is_crowded || state.is_clearing)
            && !state.is_over
            && let Some(rest) = until.checked_duration_since(Instant::now())
        {
            state = self.crowd.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What a directory contains.
    pub(crate) fn find(&self, directory: &Arc<Directory>) -> Contents {
        match self.holds_queue(directory) {
            Ok(true) => {}
            Ok(false) => return Contents::Plain,
            Err(errno) => return Contents::Unreadable(errno),
        }
        let id = directory.id();
        let known = lock(&self.open).get(&id).and_then(Weak::upgrade);
        if let Some(queue) = known
            && queue.is_current()
        {
            queue.used.store(self.common.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            return Contents::Queue(queue);
        }
        drop(lock(&self.common.making));
        let share = match self.common.budget.charge(Kind::Handles, OF_A_QUEUE) {
            Ok(share) => share,
            Err(errno) => return Contents::Unreadable(errno),
        };
        match OpenQueue::new(Arc::clone(directory), Arc::clone(&self.common), share) {
            Ok(opened) => {
                let queue = self.enter(id, Arc::new(opened));
                self.keep(&queue);
                self.has_come();
                self.common.indexer.add(&queue);
                Contents::Queue(queue)
            }
            Err(error) => Contents::Unreadable(Errno::from(error)),
        }
    }

    fn holds_queue(&self, directory: &Directory) -> Result<bool> {
        if directory.stat_of(OsStr::new(layout::CONTROL_FILE)).is_ok() {
            return Ok(true);
        }
        // There may be segments without a control block. Finding out takes a listing, so it is remembered; but not
        // of a directory that changed just now, and may change again within the resolution of its time stamp.
        let stat = &directory.stat;
        let (id, changed) = (directory.id(), (stat.st_mtime, stat.st_mtime_nsec));
        if lock(&self.plain).get(&id) == Some(&changed) {
            return Ok(false);
        }
        let holds_queue = queue::is_queue(directory.dir())?;
        let age_s = i64::try_from(clock::now_ns() / 1_000_000_000).unwrap_or(0).saturating_sub(stat.st_mtime);
        if !holds_queue && age_s > 1 {
            let mut plain = lock(&self.plain);
            if plain.len() >= MAX_PLAIN {
                plain.clear();
            }
            plain.insert(id, changed);
        }
        Ok(holds_queue)
    }

    /// Creates a queue in a directory for the caller, or finds the one that another caller has just created.
    pub(crate) fn create(
        &self,
        directory: &Arc<Directory>,
        settings: &Settings,
        caller: &Caller,
    ) -> Result<Arc<OpenQueue>> {
        let making = lock(&self.common.making);
        drop(caller.act(|| Queue::open_or_create_in(directory.dir(), settings))??);
        drop(making);
        match self.find(directory) {
            Contents::Queue(queue) => Ok(queue),
            Contents::Plain => Err(Errno::ENOENT),
            Contents::Unreadable(errno) => Err(errno),
        }
    }

    /// Every queue that is open now.
    pub(crate) fn all(&self) -> Vec<Arc<OpenQueue>> {
        lock(&self.open).values().filter_map(Weak::upgrade).collect()
    }

    fn keep(&self, queue: &Arc<OpenQueue>) {
        let gone = {
            let mut recent = lock(&self.recent);
            // A new queue in the same directory replaces the previous one.
            let same = recent.iter().position(|other| other.directory.id() == queue.directory.id());
            let gone = match same {
                Some(at) => recent.remove(at),
                None if recent.len() >= MAX_RECENT.min(self.crowd.limit / 2) => recent.pop_front(),
                None => None,
            };
            recent.push_back(Arc::clone(queue));
            gone
        };
        drop(gone);
    }

    fn enter(&self, id: FileId, opened: Arc<OpenQueue>) -> Arc<OpenQueue> {
        let mut open = lock(&self.open);
        if let Some(other) = open.get(&id).and_then(Weak::upgrade)
            && other.identity == opened.identity
        {
            // Another thread has opened it meanwhile.
            return other;
        }
        if open.len() >= open.capacity() / 2 {
            open.retain(|_, queue| queue.strong_count() > 0);
        }
        open.insert(id, Arc::downgrade(&opened));
        opened
    }
}
