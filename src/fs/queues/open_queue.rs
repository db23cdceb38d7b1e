//! A queue that the mount has open: its descriptor, the writer that the append handles share, its views.
//!
//! Invariants: one [`OpenQueue`] for one queue, however many names and handles lead to it; at most one writer in it,
//! held exactly while there are append handles. An entry lives while a node or a handle holds it. The table's lock
//! covers the table only, never I/O.

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
    /// Tells it from other queues in the same directory, before and after: the generation of nodes that hold it. As long as
    /// the queue lives it stays, whatever retention takes.
    pub(crate) identity: u64,
    writer: Mutex<SharedWriter>,
    pub(in crate::fs) views: Mutex<HashMap<Format, (Generation, Arc<SharedView>)>>,
    /// Who has a view of everything retained open.
    pub(in crate::fs) holders: Holders,
    /// Of files that damage has changed, by identity, how often.
    pub(in crate::fs) turns: Mutex<HashMap<u64, u32>>,
    first_segment: Mutex<Option<SegmentFile>>,
    /// Of its sealed segments.
    pub(crate) indexes: Arc<SegmentIndexes>,
    common: Arc<Common>,
    /// Where the last message was looked up, while the first segment stays: `ls -l` asks for one after the other.
    walker: Mutex<Option<(SegmentFile, Scanner)>>,
    /// Handles that use a reader of this queue.
    pub(crate) takes: AtomicU32,
    pub(in crate::fs) permissions: Permissions,
    /// When somebody has asked for it last, in questions.
    pub(in crate::fs) used: AtomicU64,
    /// Of descriptors; charged to whoever asked first.
    _share: Share,
}

/// Bytes that a scanner keeps which waits for the next question, and what it reads ahead by.
const SCANNER_MEMORY: usize = 64 << 10;
const SCANNER_AHEAD: usize = 16 << 10;
/// Descriptors that a queue keeps, its writer, a view of it, a reader's handle, each beyond the first of the handle itself.
pub(in crate::fs) const OF_A_QUEUE: u64 = 3;
const OF_A_WRITER: u64 = 4;
pub(crate) const OF_A_READER: u64 = 3;
/// A close is heard of a moment after it has returned: how often, and how long, one's own release is waited for.
const RELEASE_TRIES: u32 = 100;
const RELEASE_PAUSE: Duration = Duration::from_millis(1);
/// How often the first segment is looked for while retention is faster.
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
    /// How many queues are open, and how often one has been asked for.
    pub(in crate::fs) open: AtomicUsize,
    pub(in crate::fs) uses: AtomicU64,
    pub(in crate::fs) views: Arc<shared_view::Common>,
    pub(in crate::fs) indexer: Arc<Indexer<OpenQueue>>,
    /// Whether files may be made for what is derived.
    pub(in crate::fs) may_store: bool,
    /// Held while a queue is made. Its files come one by one, and its maker holds the writer lock meanwhile: whoever
    /// opens it then would take it for another queue, and its maker for another writer.
    pub(in crate::fs) making: Mutex<()>,
    pub(in crate::fs) log: Arc<DaemonLog>,
}

#[derive(Default)]
struct SharedWriter {
    /// With whoever opened it. Its files are his, and come out of his quota, whoever else joins.
    writer: Option<(QueueWriter, Permission)>,
    /// Charged to whoever opened the first one.
    shares: Vec<Share>,
    handles: usize,
    /// The mount ends.
    is_over: bool,
}

/// What is known of who may read, for a moment; see `permissions.rs`.
#[derive(Default)]
pub(in crate::fs) struct Permissions {
    /// Who may read by the modes, and until when that is known, where it takes a look at many files.
    pub(in crate::fs) data_stat: Mutex<Option<(Instant, Stat)>>,
    /// Callers who were found to be able to read, and until when that is known.
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

    /// Charges whoever asks now for this many descriptors.
    pub(crate) fn take_descriptors(&self, count: u64) -> Result<Share> {
        self.common.budget.charge(Kind::Handles, count)
    }

    /// What a handle keeps that this caller opens.
    pub(crate) fn kept_by(&self, caller: &Caller) -> Kept {
        Kept::new(&self.common.budget, caller.uid)
    }

    /// Logs an error that nobody can be told of.
    pub(crate) fn failed(&self, op: &'static str, errno: Errno) {
        let path = self.queue.path();
        self.common.log.failed(&Failure { op, path, queue: path, errno, caller: None });
    }

    /// The first retained segment: as long as it stays, what the views show only grows.
    pub(crate) fn first_segment(&self) -> Result<SegmentFile> {
        let seen = *lock(&self.first_segment);
        self.look_at_first_segment(seen).ok_or(Errno::ESTALE)
    }

    /// Whether this is still the queue that lies in the directory.
    pub(crate) fn is_current(&self) -> bool {
        if self.directory.stat_now().map_or(true, |stat| stat.st_nlink == 0) {
            return false;
        }
        let mut seen = lock(&self.first_segment);
        let now = self.look_at_first_segment(*seen);
        if now == *seen {
            return true;
        }
        // Retention has gone on, or somebody has put other files there.
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
        // Usually what was seen last is still there, and nothing older can come back.
        if let Some(seen) = seen
            && self.identify(seen.segment) == Some(seen)
        {
            return Some(seen);
        }
        // Several times, because retention may retire the segment between the two steps.
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

    /// Has indexes made that views have missed.
    pub(crate) fn index_in_background(self: &Arc<Self>) {
        if self.indexes.take_wanted() {
            self.common.indexer.add(self);
        }
    }

    /// A scanner that stands before a message, or what comes instead of it. To be given back by [`Self::keep_scanner`].
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

    /// Keeps a scanner for the message that it stands at now.
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

    /// Does what needs a reader that nobody uses. If it may be a handle of this mount that was closed just now, waits for
    /// that a little.
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

    /// Runs with the writer that the append handles share, as whoever opened it; for one who has joined.
    pub(crate) fn with_writer<T>(&self, caller: &Caller, run: impl FnOnce(&mut QueueWriter) -> T) -> Result<T> {
        let mut shared = lock(&self.writer);
        // What has stopped it may be over: a full disk, for one. And whoever opened it may have lost the right to.
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

    /// Leaves the append handles; the last lets go of the writer lock.
    pub(crate) fn leave_writer(&self) {
        let mut shared = lock(&self.writer);
        shared.handles = shared.handles.saturating_sub(1);
        if shared.handles == 0 {
            close_writer(shared.writer.take());
            shared.shares.clear();
        }
    }

    /// Lets go of the writer lock though append handles may be open: the mount ends.
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
        // Whatever becomes of it, it is closed.
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
