//! A queue that the mount has open: its descriptor, the writer that the append handles share, its views.
//!
//! Invariants: one [`OpenQueue`] per queue, however many names and handles lead to it; it has at most one writer, held
//! exactly while there are append handles. An entry lives while a node or a handle holds it. The table's lock covers
//! the table only, never I/O.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::Stat;

use crate::queue::{self, Queue, QueueWriter, Scanner, SegmentId, layout, segment_name};
use crate::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::view::{Format, SegmentIndexes, View};

use crate::fs::backing::{Directory, Payer};
use crate::fs::budget::{Budget, Kept, Kind, Share};
use crate::fs::credentials::Caller;
use crate::fs::daemon_log::{DaemonLog, Failure};
use crate::fs::errno::{Errno, Result};
use crate::fs::lock;
use crate::fs::page_cache::shared_view::{self, SharedView};
use crate::fs::queues::generation::{Generation, SegmentFile};
use crate::fs::queues::holders::Holders;
use crate::fs::queues::indexer::{Indexer, Work};
use crate::fs::queues::permission::Permission;

/// A queue that the mount has open.
pub(crate) struct OpenQueue {
    pub(crate) queue: Queue,
    pub(crate) directory: Arc<Directory>,
    /// Distinguishes it from earlier and later queues in the same directory: the generation of nodes that hold it. It
    /// never changes during the queue's life, whatever retention removes.
    pub(crate) identity: u64,
    writer: Mutex<SharedWriter>,
    pub(in crate::fs) views: Mutex<HashMap<Format, (Generation, Arc<SharedView>)>>,
    /// The processes that have a view of everything retained open.
    pub(in crate::fs) holders: Holders,
    /// How often damage has changed files, by identity.
    pub(in crate::fs) turns: Mutex<HashMap<u64, u32>>,
    first_segment: Mutex<Option<SegmentFile>>,
    /// The indexes of its sealed segments.
    pub(crate) indexes: Arc<SegmentIndexes>,
    #[cfg(feature = "decode")]
    pub(in crate::fs) schema: Mutex<Option<crate::fs::queues::schema::Loaded>>,
    common: Arc<Common>,
    /// A scanner at the last message that was looked up, valid while the first segment stays: `ls -l` looks up one
    /// after another.
    walker: Mutex<Option<(SegmentFile, Scanner)>>,
    /// Number of handles that use a reader of this queue.
    pub(crate) takes: AtomicU32,
    pub(in crate::fs) permissions: Permissions,
    /// When it was last looked up, as a count of lookups.
    pub(in crate::fs) used: AtomicU64,
    /// Its descriptors; charged to the user who looked it up first.
    _share: Share,
}

/// Bytes that an idle scanner keeps, and reads ahead.
const SCANNER_MEMORY: usize = 64 << 10;
const SCANNER_AHEAD: usize = 16 << 10;
/// Descriptors that each of these holds, besides that of the handle itself: a queue, its writer, a view of it, a
/// reader's handle.
pub(in crate::fs) const OF_A_QUEUE: u64 = 3;
const OF_A_WRITER: u64 = 4;
pub(crate) const OF_A_READER: u64 = 3;
/// FUSE delivers RELEASE after close(2) has returned: how often, and at what intervals, to wait for it.
const RELEASE_TRIES: u32 = 100;
const RELEASE_PAUSE: Duration = Duration::from_millis(1);
/// How often to look for the first segment while retention keeps removing it.
const FIRST_TRIES: u32 = 20;

impl Drop for OpenQueue {
    fn drop(&mut self) {
        self.common.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for OpenQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenQueue").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// What all queues of a mount share.
pub(in crate::fs) struct Common {
    pub(in crate::fs) budget: Arc<Budget>,
    /// How many queues are open, and how many lookups of queues there were.
    pub(in crate::fs) open: AtomicUsize,
    pub(in crate::fs) uses: AtomicU64,
    pub(in crate::fs) views: Arc<shared_view::Common>,
    pub(in crate::fs) indexer: Arc<Indexer<OpenQueue>>,
    /// Whether derived files (indexes) may be stored.
    pub(in crate::fs) may_store: bool,
    /// Held while a queue is created. Its files appear one by one, and its creator holds the writer lock meanwhile: a
    /// thread that opened it then would take it for another queue, and its creator for another writer.
    pub(in crate::fs) making: Mutex<()>,
    pub(in crate::fs) log: Arc<DaemonLog>,
}

#[derive(Default)]
struct SharedWriter {
    /// With the user who opened it, who owns the files and whose quota they count against, whoever joins later.
    writer: Option<(QueueWriter, Permission)>,
    /// Charged to the user who opened the first one.
    shares: Vec<Share>,
    handles: usize,
    /// The mount is ending.
    is_over: bool,
}

/// Short-lived knowledge of who may read; see `permissions.rs`.
#[derive(Default)]
pub(in crate::fs) struct Permissions {
    /// Attributes whose mode decides who may read, and until when they are valid: computing them can take a stat of
    /// many files.
    pub(in crate::fs) data_stat: Mutex<Option<(Instant, Stat)>>,
    /// Callers that were found to be able to read, and until when that is valid.
    pub(in crate::fs) readable_by: Mutex<HashMap<Caller, Instant>>,
}

impl Work for OpenQueue {
    fn payer(&self) -> Payer {
        self.directory.payer()
    }

    fn go_on(&self, is_enough: &dyn Fn() -> bool) -> bool {
        self.indexes.make_all(is_enough).unwrap_or_else(|error| {
            self.failed("index", error.into());
            true
        })
    }
}

impl OpenQueue {
    pub(in crate::fs) fn new(directory: Arc<Directory>, common: Arc<Common>, share: Share) -> queue::Result<Self> {
        let queue = open_queue(&directory)?;
        let indexes = Arc::new(SegmentIndexes::new(&queue, common.may_store));
        let opened = Self {
            identity: queue.id(),
            queue,
            directory,
            writer: Mutex::default(),
            views: Mutex::default(),
            holders: Holders::default(),
            turns: Mutex::default(),
            first_segment: Mutex::default(),
            indexes,
            #[cfg(feature = "decode")]
            schema: Mutex::default(),
            common,
            walker: Mutex::default(),
            takes: AtomicU32::new(0),
            permissions: Permissions::default(),
            used: AtomicU64::new(0),
            _share: share,
        };
        opened.common.open.fetch_add(1, Ordering::Relaxed);
        opened.used.store(opened.common.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        *lock(&opened.first_segment) = opened.look_at_first_segment(None);
        Ok(opened)
    }

    /// Charges this many descriptors to the current user.
    pub(crate) fn take_descriptors(&self, count: u64) -> Result<Share> {
        self.common.budget.charge(Kind::Handles, count)
    }

    /// The charge for what a handle opened by this caller keeps.
    pub(crate) fn kept_by(&self, caller: &Caller) -> Kept {
        Kept::new(&self.common.budget, caller.uid)
    }

    /// Logs an error that can't be returned to a caller.
    pub(crate) fn failed(&self, op: &'static str, errno: Errno) {
        let path = self.queue.path();
        self.common.log.failed(&Failure { op, path, queue: path, errno, caller: None });
    }

    /// The first retained segment: as long as it stays, what the views show only grows.
    pub(crate) fn first_segment(&self) -> Result<SegmentFile> {
        let seen = *lock(&self.first_segment);
        self.look_at_first_segment(seen).ok_or(Errno::ESTALE)
    }

    /// Whether this is still the queue in the directory.
    pub(crate) fn is_current(&self) -> bool {
        if self.directory.stat_now().map_or(true, |stat| stat.st_nlink == 0) {
            return false;
        }
        let mut seen = lock(&self.first_segment);
        let now = self.look_at_first_segment(*seen);
        if now == *seen {
            return true;
        }
        // Retention has removed it, or another queue was put there.
        if !open_queue(&self.directory).is_ok_and(|queue| queue.id() == self.identity) {
            return false;
        }
        if let (Some(before), Some(now)) = (*seen, now)
            && before.segment >= now.segment
        {
            self.indexes.forget();
        }
        *seen = now.or(*seen);
        true
    }

    fn look_at_first_segment(&self, seen: Option<SegmentFile>) -> Option<SegmentFile> {
        // Usually the last one seen still exists, and no older one can come back.
        if let Some(seen) = seen
            && self.identify(seen.segment) == Some(seen)
        {
            return Some(seen);
        }
        // Repeatedly, because retention may remove the segment between the two steps.
        (0..FIRST_TRIES).find_map(|_| self.identify(self.queue.bounds().ok()?.first.segment))
    }

    pub(in crate::fs) fn identify(&self, segment: SegmentId) -> Option<SegmentFile> {
        let (id, born) = self.directory.identity_of(segment_name(segment).as_ref()).ok()?;
        Some(SegmentFile { segment, id, born })
    }

    /// A view of this queue for handles to share.
    pub(crate) fn share(&self, view: View) -> SharedView {
        SharedView::new(view.with_segments(&self.indexes), &self.common.views, self.directory.payer())
    }

    /// Queues the creation of indexes that views have missed.
    pub(crate) fn index_in_background(self: &Arc<Self>) {
        if self.indexes.take_wanted() {
            self.common.indexer.add(self);
        }
    }

    /// A scanner at a message, or at the gap in its place. To be returned by [`Self::keep_scanner`].
    pub(crate) fn scanner_at(&self, seq: u64) -> Result<(SegmentFile, Scanner)> {
        let first = self.first_segment()?;
        let kept = lock(&self.walker).take();
        if let Some((segment, scanner)) = kept
            && segment == first
            && scanner.seq() == seq
        {
            return Ok((segment, scanner));
        }
        let mut scanner = self.queue.scan()?;
        scanner.read_ahead_at_most(SCANNER_AHEAD);
        scanner.seek_seq(seq)?;
        Ok((first, scanner))
    }

    /// Keeps a scanner for the message that it is at now.
    pub(crate) fn keep_scanner(&self, first: SegmentFile, mut scanner: Scanner) {
        scanner.trim(SCANNER_MEMORY);
        *lock(&self.walker) = Some((first, scanner));
    }

    /// When each of the retained segments was last written to.
    pub(crate) fn written(&self) -> Result<Vec<(SegmentId, (i64, u64))>> {
        Ok(self.retained_segments()?.into_iter().filter_map(|segment| self.written_at(segment)).collect())
    }

    /// When a segment was last written to.
    pub(crate) fn written_at(&self, segment: SegmentId) -> Option<(SegmentId, (i64, u64))> {
        let stat = self.directory.stat_of(segment_name(segment).as_ref()).ok()?;
        Some((segment, (stat.st_mtime, stat.st_mtime_nsec)))
    }

    /// The segments that hold what is retained.
    pub(crate) fn retained_segments(&self) -> Result<Vec<SegmentId>> {
        let bounds = self.queue.bounds()?;
        let mut ids = self.queue.segment_ids()?;
        ids.retain(|id| (bounds.first.segment..=bounds.head.segment).contains(id));
        Ok(ids)
    }

    /// Runs something that needs a reader that is not in use. If the user may be a handle of this mount that was just
    /// closed, waits briefly for its release.
    pub(crate) fn when_released<T>(&self, run: impl Fn() -> Result<queue::Result<T>>) -> Result<T> {
        for _ in 0..RELEASE_TRIES {
            match run()? {
                Err(queue::Error::ReaderInUse { .. }) if self.takes.load(Ordering::Acquire) > 0 => {
                    std::thread::sleep(RELEASE_PAUSE);
                }
                result => return Ok(result?),
            }
        }
        Ok(run()??)
    }

    /// Joins the append handles; the first takes the writer lock.
    pub(crate) fn join_writer(&self, caller: &Caller) -> Result<()> {
        self.check_writable(caller)?;
        let mut shared = lock(&self.writer);
        if shared.handles == 0 {
            let shares = [(Kind::Writers, 1), (Kind::Handles, OF_A_WRITER)];
            let shares = shares.map(|(kind, amount)| self.common.budget.take(caller.uid, kind, amount));
            shared.shares = shares.into_iter().collect::<Result<_>>()?;
            shared.writer = Some(self.open_writer(caller)?);
        }
        shared.handles += 1;
        Ok(())
    }

    fn open_writer(&self, caller: &Caller) -> Result<(QueueWriter, Permission)> {
        Ok((caller.act(|| self.queue.writer())??, Permission::new(caller)))
    }

    /// Runs with the shared writer, with the rights of the user who opened it. The caller must have joined.
    pub(crate) fn with_writer<T>(&self, caller: &Caller, run: impl FnOnce(&mut QueueWriter) -> T) -> Result<T> {
        let mut shared = lock(&self.writer);
        // The cause of its failure may be over, such as a full disk. And the user who opened it may have lost the right
        // to.
        let has_stopped = |(writer, opener): &mut (QueueWriter, Permission)| {
            writer.has_lost_its_place() || opener.check(|opener| self.check_writable(opener)) == Err(Errno::EACCES)
        };
        close_writer(shared.writer.take_if(has_stopped));
        if shared.writer.is_none() && shared.handles > 0 && !shared.is_over {
            shared.writer = Some(self.open_writer(caller)?);
        }
        let (writer, opener) = shared.writer.as_mut().ok_or(Errno::EBADF)?;
        opener.caller().act(|| run(writer))
    }

    /// Leaves the append handles; the last one releases the writer lock.
    pub(crate) fn leave_writer(&self) {
        let mut shared = lock(&self.writer);
        shared.handles = shared.handles.saturating_sub(1);
        if shared.handles == 0 {
            close_writer(shared.writer.take());
            shared.shares.clear();
        }
    }

    /// Releases the writer lock though append handles may be open: the mount is ending.
    pub(crate) fn drop_writer(&self) {
        let mut shared = lock(&self.writer);
        shared.is_over = true;
        let writer = shared.writer.take();
        drop(shared);
        close_writer(writer);
    }
}

fn open_queue(directory: &Directory) -> queue::Result<Queue> {
    let dir = directory.dir().reopen().map_err(queue::Error::io(directory.dir().path(), "open it"))?;
    Queue::open_in(dir)
}

fn close_writer(writer: Option<(QueueWriter, Permission)>) {
    if let Some((writer, opener)) = writer {
        // The result does not matter: the writer is closed either way.
        let _ = opener.caller().act(|| drop(writer));
    }
}

/// Whether a file in a queue's directory is the engine's own.
pub(crate) fn is_internal(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    name.starts_with(layout::CONTROL_FILE)
        || name == layout::LOCK_FILE
        || name == layout::INDEX_DIR
        || name.ends_with(layout::SEGMENT_SUFFIX)
        || name.ends_with(layout::TEMPORARY_SUFFIX)
}
