//! Which queues exist below a directory, which are READY, which have a live LEASE: kept up to date.
//!
//! [`RouterDiscovery::poll`] never waits. What it knows comes from scanning; inotify only says where to scan again, so
//! a lost, duplicate or late notification does no harm: when the kernel's event queue overflows, when watches run out,
//! and periodically in any case, everything is scanned again. A directory is watched before it is scanned: what changes
//! in between is seen twice rather than not at all, and what did not change is not reported.
//!
//! Symbolic links are not followed, and a queue's own directory is not searched.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};

use super::lease::{LEASE_FILE, Lease, LeaseState, lease};
use super::ready::{READY_FILE, ready};
use super::remove::removed_name;
use crate::queue::layout::CONTROL_FILE;
use crate::queue::parse_segment_name;
use crate::queue::{Error, Queue, Result, WriterState};

/// Everything is scanned again after this long, notified or not.
const RESCAN_EVERY: Duration = Duration::from_secs(10);
/// The same, while some directories could not be watched.
const RESCAN_UNWATCHED: Duration = Duration::from_secs(1);
/// The interval between rescans is at least this multiple of a rescan's duration.
const RESCAN_SHARE: u32 = 10;
/// Bytes of notifications that are read at once.
const EVENT_BUFFER: usize = 64 << 10;

/// Something that changed, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiscoveryEvent {
    /// The queue's directory: the root as it was given, and the path below it.
    pub path: PathBuf,
    /// What happened.
    pub change: Change,
}

/// What happened to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Change {
    /// It is gone: its directory, or the queue in it. Close whatever is open of it.
    Removed,
    /// A queue that did not exist before, or one that replaces a removed one.
    Added,
    /// It is no longer marked as ready.
    Unready,
    /// It is marked as ready.
    Ready,
    /// Its lease was removed.
    LeaseRemoved,
    /// Its lease was not renewed in time.
    LeaseExpired,
    /// It has a lease that may or may not be live.
    LeaseUnknown,
    /// It has a live lease.
    LeaseLive,
}

impl Change {
    /// The word for it in `chron-cli watch`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Added => "added",
            Self::Unready => "unready",
            Self::Ready => "ready",
            Self::LeaseRemoved => "lease removed",
            Self::LeaseExpired => "lease expired",
            Self::LeaseUnknown => "lease unknown",
            Self::LeaseLive => "lease live",
        }
    }
}

/// A queue as discovery knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Endpoint {
    /// Whether it is marked as ready.
    pub ready: bool,
    /// Its lease, if it has one.
    pub lease: Option<LeaseState>,
    /// When its lease expires, if it is live.
    expires: Option<Instant>,
}

/// A known directory.
#[derive(Debug)]
struct Node {
    watch: Watch,
    endpoint: Option<Endpoint>,
    /// Why its contents are unknown.
    trouble: Option<i32>,
}

/// Whether a directory is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Watch {
    On(WatchDescriptor),
    /// This user has no watches left.
    Exhausted,
    /// The directory can't be read.
    Off,
}

/// Finds the queues below a directory, and notices when they are added or removed, become ready or lose their lease.
///
/// ```
/// use chronfs::bus::{self, Change, RouterDiscovery};
/// use chronfs::queue::{Queue, Settings};
///
/// # let dir = tempfile::tempdir()?;
/// # let root = dir.path();
/// let mut discovery = RouterDiscovery::new(root)?;
/// assert!(discovery.poll()?.is_empty());
/// let queue = Queue::create(root.join("momentum/orders_out"), &Settings::default())?;
/// bus::mark_ready(queue.path())?;
/// let changes: Vec<Change> = discovery.poll()?.into_iter().map(|event| event.change).collect();
/// assert_eq!(changes, [Change::Added, Change::Ready]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct RouterDiscovery {
    root: PathBuf,
    inotify: Inotify,
    nodes: BTreeMap<PathBuf, Node>,
    watches: HashMap<WatchDescriptor, PathBuf>,
    /// Live leases by the time when they expire.
    expiries: BTreeSet<(Instant, PathBuf)>,
    rescan_every: Duration,
    next_rescan: Instant,
    events: Vec<DiscoveryEvent>,
}

impl RouterDiscovery {
    /// Watches the queues below `root`. The first [`poll`](Self::poll) reports the existing ones.
    ///
    /// # Errors
    /// [`Error::Io`] if `root` is not a directory that can be listed, or if there are no inotify instances left
    /// (`/proc/sys/fs/inotify/max_user_instances`).
    pub fn new(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref().to_path_buf();
        fs::read_dir(&root).map_err(Error::io(&root, "list"))?;
        let inotify = Inotify::init().map_err(Error::io(&root, "watch"))?;
        Ok(Self {
            root,
            inotify,
            nodes: BTreeMap::new(),
            watches: HashMap::new(),
            expiries: BTreeSet::new(),
            rescan_every: RESCAN_EVERY,
            next_rescan: Instant::now(),
            events: Vec::new(),
        })
    }

    /// Everything is scanned again after this long even without notifications; 10 s by default.
    #[must_use]
    pub fn with_rescan(mut self, every: Duration) -> Self {
        self.rescan_every = every;
        self
    }

    /// What has changed since the last call; never waits. What was added and removed in between is not reported; what
    /// was removed and added again is reported as removed and then added. Sorted by path.
    ///
    /// # Errors
    /// [`Error::Io`] if notifications can't be read. A root that is gone is not an error: its queues are removed.
    pub fn poll(&mut self) -> Result<Vec<DiscoveryEvent>> {
        let mut dirty = BTreeSet::new();
        let mut all = Instant::now() >= self.next_rescan;
        all |= self.take_notifications(&mut dirty)?;
        if all {
            self.rescan();
        } else {
            for dir in dirty {
                self.look_at(dir, false);
            }
        }
        self.expire();
        let mut events = std::mem::take(&mut self.events);
        // Stable: an endpoint's changes stay in order.
        events.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(events)
    }

    /// Waits until [`poll`](Self::poll) may have something to report, or for `timeout`.
    ///
    /// # Errors
    /// [`Error::Io`] if the system call fails.
    pub fn wait(&self, timeout: Duration) -> Result<()> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};

        let timeout = timeout.min(self.due_in());
        let timespec = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], Some(&timespec)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(Error::io(&self.root, "wait for changes below")(e.into())),
        }
    }

    /// When [`poll`](Self::poll) should be called even if the descriptor has not become readable: a lease may expire
    /// then, or a rescan is due.
    pub fn due_in(&self) -> Duration {
        let due = self.expiries.first().map_or(self.next_rescan, |(expiry, _)| self.next_rescan.min(*expiry));
        due.saturating_duration_since(Instant::now())
    }

    /// The queues known since the last [`poll`](Self::poll), in the order of their paths.
    pub fn endpoints(&self) -> impl Iterator<Item = (&Path, &Endpoint)> {
        self.nodes.iter().filter_map(|(path, node)| Some((path.as_path(), node.endpoint.as_ref()?)))
    }

    /// How many directories can't be watched because this user has no watches left
    /// (`/proc/sys/fs/inotify/max_user_watches`). They are scanned every second instead.
    pub fn unwatched(&self) -> usize {
        self.nodes.values().filter(|node| node.watch == Watch::Exhausted).count()
    }

    /// The directories that can't be read, and why: no permission, a dead mount, a broken disk. What is in them is not
    /// found. They are tried again whenever everything is scanned.
    pub fn denied(&self) -> impl Iterator<Item = (&Path, io::Error)> {
        let reason = |node: &Node| node.trouble.map(io::Error::from_raw_os_error);
        self.nodes.iter().filter_map(move |(path, node)| Some((path.as_path(), reason(node)?)))
    }

    /// Collects the directories to scan. True: notifications were lost, or the root is gone.
    fn take_notifications(&mut self, dirty: &mut BTreeSet<PathBuf>) -> Result<bool> {
        let mut all = false;
        let mut buffer = vec![0; EVENT_BUFFER];
        loop {
            let events = match self.inotify.read_events(&mut buffer) {
                Ok(events) => events,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(all),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io(&self.root, "read notifications about it")(e)),
            };
            let mut gone = Vec::new();
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    all = true;
                    continue;
                }
                let Some(dir) = self.watches.get(&event.wd) else { continue };
                if event.mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF) {
                    // Parents are watched too, but the root's parent is not.
                    all |= *dir == self.root;
                    dirty.insert(dir.clone());
                } else if let Some(name) = event.name.and_then(|name| name.to_str()) {
                    let away = event.mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM);
                    if name == CONTROL_FILE && away {
                        gone.push(dir.clone());
                    }
                    if event.mask.contains(EventMask::ISDIR) || says_something(name) {
                        dirty.insert(dir.clone());
                    }
                    if event.mask.contains(EventMask::ISDIR) && away {
                        // Another directory may have taken the name already, and as long as the old one is held
                        // one open, no notification about it comes.
                        dirty.insert(dir.join(name));
                    }
                }
            }
            for dir in gone {
                // The queue was moved out of its directory. What is there now is another one.
                self.forget_endpoint(&dir);
            }
        }
    }

    /// Scans everything.
    fn rescan(&mut self) {
        let started = Instant::now();
        let known: Vec<PathBuf> = self.nodes.keys().cloned().collect();
        self.look_at(self.root.clone(), true);
        for dir in known {
            // Its parent was scanned first, so it is known whether it still exists.
            if self.nodes.contains_key(&dir) {
                self.look_at(dir, true);
            }
        }
        let hurry = self.unwatched() > 0 || !self.nodes.contains_key(&self.root);
        let every = if hurry { self.rescan_every.min(RESCAN_UNWATCHED) } else { self.rescan_every };
        self.next_rescan = Instant::now() + every.max(started.elapsed() * RESCAN_SHARE);
    }

    /// Scans a directory, and those in it that were not known. `all`: as part of scanning everything.
    fn look_at(&mut self, dir: PathBuf, all: bool) {
        let mut waiting = vec![dir];
        while let Some(dir) = waiting.pop() {
            if !self.watch(&dir) {
                self.forget(&dir);
                continue;
            }
            match find_queue(&dir, all) {
                Found::Error(code) => self.set_trouble(&dir, Some(code)),
                Found::Queue => {
                    self.forget_below(&dir, |_| false);
                    self.update(&dir);
                }
                Found::Unclear => {}
                Found::Directories(children) => {
                    self.forget_endpoint(&dir);
                    self.forget_below(&dir, |child| children.contains(child));
                    waiting.extend(children.into_iter().filter(|child| !self.nodes.contains_key(child)));
                }
                Found::Nothing => self.forget(&dir),
            }
        }
    }

    fn set_trouble(&mut self, dir: &Path, trouble: Option<i32>) {
        if let Some(node) = self.nodes.get_mut(dir) {
            node.trouble = trouble;
        }
    }

    /// Watches `dir`, whichever directory has that name now. False if there is none.
    fn watch(&mut self, dir: &Path) -> bool {
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR
            | WatchMask::DONT_FOLLOW;
        let mut trouble = None;
        let watch = match self.inotify.watches().add(dir, mask) {
            Ok(watch) => Watch::On(watch),
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => Watch::Exhausted,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return false,
            Err(e) => {
                trouble = e.raw_os_error().or(Some(libc::EIO));
                Watch::Off
            }
        };
        self.set_trouble(dir, trouble);
        match self.nodes.get(dir).map(|node| &node.watch) {
            Some(before) if *before == watch => return true,
            // Another directory under the same name: a watch stays with its directory.
            Some(Watch::On(_)) => self.forget(dir),
            Some(Watch::Exhausted | Watch::Off) | None => {}
        }
        if let Watch::On(watch) = &watch {
            // A directory that was renamed keeps its watch: it belongs to the new name now.
            self.watches.insert(watch.clone(), dir.to_path_buf());
        }
        match self.nodes.get_mut(dir) {
            Some(node) => node.watch = watch,
            None => drop(self.nodes.insert(dir.to_path_buf(), Node { watch, endpoint: None, trouble })),
        }
        true
    }

    /// Compares what is known of an endpoint with its files.
    fn update(&mut self, dir: &Path) {
        let Some(node) = self.nodes.get_mut(dir) else { return };
        let before = node.endpoint;
        // A marker that can't be read (no permission, a link, a FIFO) does not count.
        let lease = lease(dir).unwrap_or(None);
        let now = Endpoint {
            ready: ready(dir).is_ok_and(|ready| ready.is_some()),
            lease: lease.as_ref().map(|lease| lease.state),
            expires: lease.as_ref().and_then(Lease::remaining).and_then(|left| Instant::now().checked_add(left)),
        };
        node.endpoint = Some(now);
        if let Some(expiry) = before.and_then(|before| before.expires) {
            self.expiries.remove(&(expiry, dir.to_path_buf()));
        }
        if let Some(expiry) = now.expires {
            self.expiries.insert((expiry, dir.to_path_buf()));
        }
        if before.is_none() {
            self.report(dir, Change::Added);
        }
        let before = before.unwrap_or_default();
        if before.ready != now.ready {
            self.report(dir, if now.ready { Change::Ready } else { Change::Unready });
        }
        if before.lease != now.lease {
            self.report(
                dir,
                match now.lease {
                    Some(LeaseState::Live) => Change::LeaseLive,
                    Some(LeaseState::Expired) => Change::LeaseExpired,
                    Some(LeaseState::Unknown) => Change::LeaseUnknown,
                    None => Change::LeaseRemoved,
                },
            );
        }
    }

    fn report(&mut self, dir: &Path, change: Change) {
        self.events.push(DiscoveryEvent { path: dir.to_path_buf(), change });
    }

    /// Checks the endpoints whose lease should have been renewed by now.
    fn expire(&mut self) {
        while let Some((expiry, dir)) = self.expiries.first().cloned()
            && expiry <= Instant::now()
        {
            self.expiries.remove(&(expiry, dir.clone()));
            self.update(&dir);
        }
    }

    /// The directory is gone, with everything below it.
    fn forget(&mut self, dir: &Path) {
        self.forget_below(dir, |_| false);
        self.forget_endpoint(dir);
        let Some(Node { watch: Watch::On(watch), .. }) = self.nodes.remove(dir) else { return };
        // Only if it is still this directory's: see `watch`.
        if self.watches.get(&watch).is_some_and(|path| path == dir) {
            self.watches.remove(&watch);
            // The kernel has removed it already if the directory was deleted.
            let _ = self.inotify.watches().remove(watch);
        }
    }

    /// The directories in `dir` are gone, except those to be kept.
    fn forget_below(&mut self, dir: &Path, keep: impl Fn(&PathBuf) -> bool) {
        let below = self.nodes.range(dir.to_path_buf()..).map(|(path, _)| path);
        let below = below.skip_while(|path| *path == dir).take_while(|path| path.starts_with(dir));
        let children = below.filter(|path| path.parent() == Some(dir) && !keep(path));
        for child in children.cloned().collect::<Vec<_>>() {
            self.forget(&child);
        }
    }

    fn forget_endpoint(&mut self, dir: &Path) {
        let Some(endpoint) = self.nodes.get_mut(dir).and_then(|node| node.endpoint.take()) else { return };
        if let Some(expiry) = endpoint.expires {
            self.expiries.remove(&(expiry, dir.to_path_buf()));
        }
        self.report(dir, Change::Removed);
    }
}

/// The inotify descriptor, for an event loop: readable when [`RouterDiscovery::poll`] has something to do, which it
/// also has after [`RouterDiscovery::due_in`].
impl AsFd for RouterDiscovery {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// Whether a file of this name tells that a queue exists, or its state.
fn says_something(name: &str) -> bool {
    [READY_FILE, LEASE_FILE, CONTROL_FILE].contains(&name) || parse_segment_name(name).is_some()
}

/// What a directory holds.
enum Found {
    Queue,
    /// Segments without a control block: a queue that is just being created or removed. What was known of it stays.
    Unclear,
    /// It can't be read now. What was known of it stays.
    Error(i32),
    Directories(BTreeSet<PathBuf>),
    Nothing,
}

/// A queue without its control block is damaged and still a queue; but when something has just changed, it is more
/// likely being created (the control block comes last) or removed. That is left to the next full scan.
fn find_queue(dir: &Path, all: bool) -> Found {
    if fs::symlink_metadata(dir.join(CONTROL_FILE)).is_ok() {
        return Found::Queue;
    }
    match Queue::exists(dir) {
        Ok(true) => {
            let is_held = || Queue::open(dir).is_ok_and(|queue| queue.writer_info().state == WriterState::Alive);
            return if all && !is_held() { Found::Queue } else { Found::Unclear };
        }
        Ok(false) => {}
        Err(Error::Io { source, .. }) => return Found::Error(source.raw_os_error().unwrap_or(libc::EIO)),
        Err(_) => return Found::Unclear,
    }
    let Ok(entries) = fs::read_dir(dir) else {
        return if dir.is_dir() { Found::Directories(BTreeSet::new()) } else { Found::Nothing };
    };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let directories = directories.filter(|entry| removed_name(&entry.file_name()).is_none());
    Found::Directories(directories.map(|entry| entry.path()).collect())
}
