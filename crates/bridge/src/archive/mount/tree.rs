//! What the mount shows: each archived queue as the directory of a queue.
//!
//! ```text
//! <path below the address>/                 of a queue, if that is the only one there; else of directories
//! <path>/<queue id>/                        one of several queues that are archived at the same place
//!     control.meta                          made from the newest segment's settings
//!     000000000.q …                         the segments, fetched when they are read
//!     .index/000000000.index …              their indexes
//!     relay/mount.json                      what the mount says of itself
//! ```
//!
//! Listings are taken again when somebody looks and they are older than [`REFRESH`]. The start of a segment and the
//! header of the record that seals it are known from its index, so that a queue can be opened without fetching it.
//! Everything that comes from the store is untrusted: names, sizes and contents.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chronfs::bus::RELAY_DIR;
use chronfs::queue::layout::{CONTROL_FILE, CONTROL_LEN, INDEX_DIR, READERS_DIR, SEGMENT_SUFFIX};
use chronfs::queue::{SegmentBlocks, check_name};
use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, Shared};
use rustix::io::Errno;
use tokio::sync::Semaphore;

use super::cache::{Cache, Cached, Room};
use super::facts::Facts;
use super::fetch::{new_file, part, read_part, timely, while_it_moves};
use super::figures::{Figures, REPORT_FILE};
use super::problem::Problem;
use crate::Failure;
use crate::archive::name::{VERSION, queue_dir};
use crate::archive::segment::{CONTROL_SOURCE, control_block};
use crate::archive::shelf::{Held, Listing, Shelf, queues};
use crate::archive::store::{Access, Address, Store};

/// A listing that is older is taken again when somebody looks; or when so many times the time has passed that it took.
const REFRESH: Duration = Duration::from_secs(5);
const REFRESH_FACTOR: u32 = 20;
/// For so long a look waits for the new listing; then it gets the one before.
const FRESH_PATIENCE: Duration = Duration::from_secs(2);
/// Segments are fetched so many at a time.
const FETCHES: usize = 4;
/// Directories below the address are shown to this depth.
const MAX_DEPTH: usize = 16;
/// For a control block, this many of the newest segments are asked.
const ASKED_FOR_SETTINGS: usize = 3;
/// The mount's root.
pub(super) const ROOT: u64 = 1;
/// In the inodes of files whose contents change.
pub(super) const CHANGES: u64 = 1 << 63;

/// A listing under way, of which everybody who looks waits for the end.
type Refresh = Shared<LocalBoxFuture<'static, Result<(), Problem>>>;

/// What an inode is.
pub(super) enum Node {
    Directory(Rc<Directory>),
    /// `.index` of a queue.
    Indexes(Rc<Directory>),
    Control(Rc<Directory>),
    Segment(Segment),
    Index(Segment),
    /// `relay` of a queue: its inode, and that of the file in it.
    Reports(Rc<Directory>, u64),
    Report,
}

impl Node {
    pub(super) fn is_dir(&self) -> bool {
        matches!(self, Self::Directory(_) | Self::Indexes(_) | Self::Reports(..))
    }
}

/// An archived segment of a queue.
#[derive(Clone)]
pub(super) struct Segment {
    queue: Rc<Directory>,
    /// Its inode. The next one is that of its index.
    id: u64,
    held: Held,
    facts: Rc<OnceCell<Facts>>,
}

/// What the kernel is told of an inode.
pub(super) struct Attr {
    pub(super) is_dir: bool,
    pub(super) size: u64,
    /// When it was archived, in ms since the epoch.
    pub(super) modified_ms: i64,
}

/// A directory: of the archive's tree, or a queue's, or both.
pub(super) struct Directory {
    /// Names below the address.
    names: Vec<String>,
    /// Of this queue alone.
    only: Option<u64>,
    listed: RefCell<Option<Rc<Listed>>>,
    /// When it is to be listed again.
    due: Cell<Instant>,
    refreshing: RefCell<Option<Refresh>>,
    control: RefCell<Option<(Held, Rc<[u8]>)>>,
}

/// What is in a directory.
#[derive(Default)]
pub(super) struct Listed {
    /// Names and inodes.
    pub(super) children: BTreeMap<String, u64>,
    pub(super) indexes: BTreeMap<String, u64>,
    /// Its queue.
    queue: Option<(u64, Vec<Held>)>,
}

/// The tree.
pub(super) struct Tree {
    address: Address,
    access: Access,
    store: RefCell<Option<Store>>,
    cache: Rc<Cache>,
    nodes: RefCell<HashMap<u64, Rc<Node>>>,
    next_ino: Cell<u64>,
    fetching: Semaphore,
    log: RefCell<HashMap<Rc<str>, Instant>>,
    figures: Figures,
    /// Those that are open, each as it was then: it would change between the reads of its parts.
    reports: RefCell<HashMap<u64, Vec<u8>>>,
    me: Weak<Tree>,
}

impl Tree {
    pub(super) fn new(address: Address, access: Access, id: Option<u64>, cache: Cache, figures: Figures) -> Rc<Self> {
        let root = Rc::new(Directory::new(Vec::new(), id));
        Rc::new_cyclic(|me| Self {
            address,
            access,
            store: RefCell::new(None),
            cache: Rc::new(cache),
            nodes: RefCell::new(HashMap::from([(ROOT, Rc::new(Node::Directory(root)))])),
            next_ino: Cell::new(ROOT + 1),
            fetching: Semaphore::new(FETCHES),
            log: RefCell::default(),
            figures,
            reports: RefCell::default(),
            me: me.clone(),
        })
    }

    pub(super) fn node(&self, ino: u64) -> Result<Rc<Node>, Problem> {
        self.nodes.borrow().get(&ino).cloned().ok_or_else(|| Problem::new(Errno::STALE, "it is archived no longer"))
    }

    /// Counts a problem, and logs it; the same one again after a minute.
    pub(super) fn note(&self, problem: &Problem) {
        self.figures.failed(problem);
        const AGAIN_AFTER: Duration = Duration::from_secs(60);
        let mut log = self.log.borrow_mut();
        log.retain(|_, said| said.elapsed() < AGAIN_AFTER);
        if log.len() < 1000 && log.insert(Rc::clone(&problem.text), Instant::now()).is_none() {
            eprintln!("chron-archive: {}", problem.text);
        }
    }

    /// What is in a directory now, or was a moment ago if the store does not answer.
    pub(super) async fn look(&self, dir: &Rc<Directory>) -> Result<Rc<Listed>, Problem> {
        let known = dir.listed.borrow().clone();
        if let Some(known) = &known
            && Instant::now() < dir.due.get()
        {
            return Ok(Rc::clone(known));
        }
        let under_way = dir.refreshing.borrow().clone();
        let refresh = under_way.unwrap_or_else(|| {
            let (this, dir_again) = (self.me.clone(), Rc::clone(dir));
            let refresh: LocalBoxFuture<'static, Result<(), Problem>> = Box::pin(async move {
                let Some(this) = this.upgrade() else { return Ok(()) };
                let refreshed = this.refresh(&dir_again).await;
                dir_again.refreshing.borrow_mut().take();
                if let Err(problem) = &refreshed {
                    this.note(problem);
                    this.store.borrow_mut().take();
                    dir_again.due.set(Instant::now() + REFRESH);
                }
                refreshed
            });
            let refresh = refresh.shared();
            *dir.refreshing.borrow_mut() = Some(refresh.clone());
            tokio::task::spawn_local(refresh.clone());
            refresh
        });
        match known {
            None => refresh.await?,
            // That it fails is no reason to forget what is there.
            Some(_) => drop(tokio::time::timeout(FRESH_PATIENCE, refresh).await),
        }
        let listed = dir.listed.borrow().clone();
        listed.ok_or_else(|| Problem::new(Errno::IO, "it has not been listed"))
    }

    /// The store; opened again after a failure, since credentials may have changed.
    fn store(&self) -> Result<Store, Problem> {
        let mut store = self.store.borrow_mut();
        if let Some(store) = &*store {
            return Ok(store.clone());
        }
        let opened = Store::open(&self.address, &self.access)?;
        Ok(store.insert(opened).clone())
    }

    /// What is wrong if there is nothing at the address.
    pub(super) fn nothing(&self) -> Failure {
        self.store().map_or_else(|problem| Failure::Again(problem.text.to_string()), |store| store.nothing())
    }

    fn store_of(&self, dir: &Directory) -> Result<Store, Problem> {
        Ok(self.store()?.below(&dir.names))
    }

    async fn refresh(&self, dir: &Rc<Directory>) -> Result<(), Problem> {
        let began = Instant::now();
        let store = self.store_of(dir)?;
        let (ids, subdirs) = timely(list(&store, dir)).await?;
        let had_any = dir.listed.borrow().as_ref().is_some_and(|listed| !listed.children.is_empty());
        if had_any && ids.is_empty() && subdirs.is_empty() && store.is_directory() {
            // A prune leaves directories.
            return Err(Problem::new(Errno::TIMEDOUT, store.nothing().to_string()));
        }
        let queue = match (dir.only, &ids[..]) {
            (Some(id), ids) if ids.contains(&id) => Some(id),
            (None, [id]) => Some(*id),
            _ => None,
        };
        let mut listed = Listed::default();
        if let Some(id) = queue {
            let listing = timely(Shelf::new(&store, id).list_at_once()).await?;
            check(&store, id, &listing)?;
            listed.queue = Some((id, listing.held)).filter(|(_, held)| !held.is_empty());
        }
        let before = dir.listed.borrow().clone().unwrap_or_default();
        let several = if dir.only.is_none() && queue.is_none() { &ids[..] } else { &[] };
        let of_queue = |id: &u64| (queue_dir(*id), Rc::new(Directory::new(dir.names.clone(), Some(*id))));
        let below = |name: String| {
            let names = [&dir.names[..], std::slice::from_ref(&name)].concat();
            (name, Rc::new(Directory::new(names, None)))
        };
        let subdirs = subdirs.into_iter().map(below).chain(several.iter().map(of_queue)).collect();
        self.enter(dir, &before, &mut listed, subdirs);
        self.figures.answered();
        dir.listed.replace(Some(Rc::new(listed)));
        dir.due.set(Instant::now() + REFRESH.max(began.elapsed() * REFRESH_FACTOR));
        Ok(())
    }

    /// Gives what is in a directory its inodes: what was there before has the same.
    fn enter(&self, dir: &Rc<Directory>, before: &Listed, listed: &mut Listed, subdirs: Vec<(String, Rc<Directory>)>) {
        let mut nodes = self.nodes.borrow_mut();
        for (name, subdir) in subdirs {
            let known = before.children.get(&name).copied();
            let known = known.filter(|ino| matches!(nodes.get(ino).map(Rc::as_ref), Some(Node::Directory(_))));
            let ino = known.unwrap_or_else(|| self.add(&mut nodes, Node::Directory(subdir)));
            listed.children.insert(name, ino);
        }
        if listed.queue.is_some() {
            for (name, make) in [(CONTROL_FILE, Node::Control as fn(_) -> _), (INDEX_DIR, Node::Indexes as fn(_) -> _)]
            {
                let known = before.children.get(name).copied();
                let ino = known.unwrap_or_else(|| self.add(&mut nodes, make(Rc::clone(dir))));
                listed.children.insert(name.to_owned(), ino);
            }
            let known = before.children.get(RELAY_DIR).copied();
            let ino = known.unwrap_or_else(|| {
                let report = self.next_ino.get() | CHANGES;
                nodes.insert(report, Rc::new(Node::Report));
                self.add(&mut nodes, Node::Reports(Rc::clone(dir), report))
            });
            listed.children.insert(RELAY_DIR.to_owned(), ino);
        }
        for held in listed.queue.iter().flat_map(|(_, held)| held) {
            let number = held.name.segment.0;
            let (name, index) = (format!("{number:09}{SEGMENT_SUFFIX}"), format!("{number:09}.index"));
            let known = before.children.get(&name).copied();
            let is_same = |node: &Node| matches!(node, Node::Segment(known) if known.held == *held);
            let ino = known.filter(|ino| nodes.get(ino).is_some_and(|node| is_same(node))).unwrap_or_else(|| {
                let id = self.next_ino.get();
                let segment = Segment { queue: Rc::clone(dir), id, held: held.clone(), facts: Rc::default() };
                self.add(&mut nodes, Node::Segment(segment.clone()));
                self.add(&mut nodes, Node::Index(segment));
                id
            });
            listed.children.insert(name, ino);
            if held.index.is_some() {
                listed.indexes.insert(index, ino + 1);
            }
        }
        let kept: HashSet<u64> = listed.children.values().copied().collect();
        for ino in before.children.values().filter(|ino| !kept.contains(ino)) {
            if let Some(Node::Segment(_)) = nodes.remove(ino).as_deref() {
                nodes.remove(&(ino + 1));
            }
        }
    }

    fn add(&self, nodes: &mut HashMap<u64, Rc<Node>>, node: Node) -> u64 {
        let ino = self.next_ino.get();
        self.next_ino.set(ino + 1);
        nodes.insert(ino, Rc::new(node));
        ino
    }

    /// The inode of a name in a directory, if it is there.
    pub(super) async fn find(&self, parent: u64, name: &str) -> Result<Option<u64>, Problem> {
        Ok(match &*self.node(parent)? {
            Node::Directory(dir) => self.look(dir).await?.children.get(name).copied(),
            Node::Indexes(dir) => self.look(dir).await?.indexes.get(name).copied(),
            Node::Reports(_, report) => (name == REPORT_FILE).then_some(*report),
            _ => None,
        })
    }

    /// Names and inodes of what is in a directory.
    pub(super) async fn entries(&self, ino: u64) -> Result<Vec<(String, u64)>, Problem> {
        let entries = match &*self.node(ino)? {
            Node::Directory(dir) => self.look(dir).await?.children.clone(),
            Node::Indexes(dir) => self.look(dir).await?.indexes.clone(),
            Node::Reports(_, report) => BTreeMap::from([(REPORT_FILE.to_owned(), *report)]),
            _ => return Err(Problem::new(Errno::NOTDIR, "it is no directory")),
        };
        Ok(entries.into_iter().collect())
    }

    pub(super) async fn attr(&self, ino: u64) -> Result<Attr, Problem> {
        let attr = |is_dir, size, modified_ms| Attr { is_dir, size, modified_ms };
        Ok(match &*self.node(ino)? {
            Node::Directory(dir) | Node::Indexes(dir) | Node::Reports(dir, _) => attr(true, 0, dir.modified_ms()),
            Node::Report => attr(false, self.report().len() as u64, now_ms()),
            Node::Control(dir) => attr(false, CONTROL_LEN.into(), dir.modified_ms()),
            Node::Segment(segment) => attr(false, self.facts(segment).await?.size, segment.held.modified_ms),
            Node::Index(segment) => attr(false, segment.held.index.unwrap_or(0), segment.held.modified_ms),
        })
    }

    /// Reads a part of a file. `handle`: of one that changes, that of [`Tree::open_report`].
    pub(super) async fn read(&self, ino: u64, handle: u64, offset: u64, size: usize) -> Result<Vec<u8>, Problem> {
        match &*self.node(ino)? {
            Node::Directory(_) | Node::Indexes(_) | Node::Reports(..) => {
                Err(Problem::new(Errno::ISDIR, "it is a directory"))
            }
            Node::Report => {
                let reports = self.reports.borrow();
                Ok(part(reports.get(&handle).map(Vec::as_slice).unwrap_or_default(), offset, size).to_vec())
            }
            Node::Control(dir) => Ok(part(&self.control(dir).await?, offset, size).to_vec()),
            Node::Index(segment) => read_part(&*self.index(segment).await?, offset, size),
            Node::Segment(segment) => {
                let facts = self.facts(segment).await?;
                match facts.known(offset, size) {
                    Some(bytes) => Ok(bytes),
                    None => read_part(&*self.segment(segment, facts).await?, offset, size),
                }
            }
        }
    }

    pub(super) fn open_report(&self) -> u64 {
        let mut reports = self.reports.borrow_mut();
        let handle = (1..).find(|handle| !reports.contains_key(handle)).unwrap_or(0);
        reports.insert(handle, self.report());
        handle
    }

    pub(super) fn close_report(&self, handle: u64) {
        self.reports.borrow_mut().remove(&handle);
    }

    /// What the mount says of itself.
    fn report(&self) -> Vec<u8> {
        self.figures.file(self.cache.bytes())
    }

    /// The control block: the settings of the newest segment. There is no head in it; that is found in the segments.
    async fn control(&self, dir: &Directory) -> Result<Rc<[u8]>, Problem> {
        let listed = dir.listed.borrow().clone();
        let (id, held) = listed
            .as_ref()
            .and_then(|listed| listed.queue.as_ref())
            .ok_or_else(|| Problem::new(Errno::STALE, "the queue is archived no longer"))?;
        let newest = held.last();
        let known = dir.control.borrow().clone();
        if let Some((_, known)) = known.filter(|(of, _)| Some(of) == newest) {
            return Ok(known);
        }
        let store = self.store_of(dir)?;
        let shelf = Shelf::new(&store, *id);
        let mut damage = Problem::new(Errno::IO, "no segment is archived");
        for held in held.iter().rev().take(ASKED_FOR_SETTINGS) {
            match timely(shelf.start(held, CONTROL_SOURCE)).await {
                Ok(start) => {
                    if let Some(block) = control_block(&start) {
                        let block: Rc<[u8]> = block.into();
                        dir.control.replace(newest.cloned().map(|newest| (newest, Rc::clone(&block))));
                        return Ok(block);
                    }
                    damage = shelf.bad(&held.name.object(), "it does not hold a segment").into();
                }
                Err(problem) if problem.errno == Errno::IO => damage = problem,
                Err(problem) => return Err(self.failed(dir, problem)),
            }
        }
        Err(damage)
    }

    /// What is known of a segment: from its index, or else from the start of its object.
    async fn facts<'a>(&self, segment: &'a Segment) -> Result<&'a Facts, Problem> {
        if let Some(facts) = segment.facts.get() {
            return Ok(facts);
        }
        let from_index = if segment.held.index.is_some() {
            match self.index(segment).await {
                Ok(index) => Facts::of_index(&read_part(&index, 0, usize::MAX)?),
                Err(problem) if problem.errno == Errno::IO => {
                    self.note(&problem);
                    None
                }
                Err(problem) => return Err(problem),
            }
        } else {
            None
        };
        let facts = match from_index {
            Some(facts) => facts,
            None => self.facts_of_object(segment).await?,
        };
        Ok(segment.facts.get_or_init(|| facts))
    }

    async fn facts_of_object(&self, segment: &Segment) -> Result<Facts, Problem> {
        let store = self.store_of(&segment.queue)?;
        let shelf = Shelf::new(&store, segment.queue.queue_id()?);
        let start = async {
            let start = shelf.start(&segment.held, SegmentBlocks::LEN).await?;
            let blocks = SegmentBlocks::parse(&start);
            let blocks = blocks.ok_or_else(|| shelf.bad(&segment.held.name.object(), "it does not hold a segment"))?;
            shelf.check(&segment.held, &blocks)?;
            Ok::<_, Failure>(Facts { size: blocks.bytes.into(), start, seal: None })
        };
        timely(start).await.map_err(|problem| self.failed(&segment.queue, problem))
    }

    /// The file of an index, verified.
    async fn index(&self, segment: &Segment) -> Result<Arc<Cached>, Problem> {
        let (queue, held) = (Rc::clone(&segment.queue), segment.held.clone());
        let id = queue.queue_id()?;
        let size = held.index.unwrap_or(0);
        let store = self.store_of(&queue)?;
        let fetch = move |path: PathBuf| async move {
            let shelf = Shelf::new(&store, id);
            let bytes = timely(shelf.index_bytes(&held, size)).await?;
            let blocks = chronfs::view::segment_of_index(&bytes);
            let what = "it is damaged, or the index of another segment";
            let blocks = blocks.ok_or_else(|| shelf.bad(&held.name.index(), what))?;
            shelf.check(&held, &blocks)?;
            let mut file = new_file(&path)?;
            file.write_all(&bytes).map_err(|error| Problem::local(&path, &error))?;
            Ok::<_, Problem>(file)
        };
        let path = segment.path(id, segment.held.name.index());
        let fetched = self.cache.get((segment.id + 1, path, size), fetch).await;
        fetched.map_err(|problem| self.failed(&segment.queue, problem))
    }

    /// The file of a segment, verified.
    async fn segment(&self, segment: &Segment, facts: &Facts) -> Result<Arc<Cached>, Problem> {
        let (queue, held) = (Rc::clone(&segment.queue), segment.held.clone());
        let id = queue.queue_id()?;
        let store = self.store_of(&queue)?;
        let (size, start, seal) = (facts.size, facts.start.clone(), facts.seal.clone());
        let (me, path) = (self.me.clone(), segment.path(id, format!("{}{SEGMENT_SUFFIX}", held.name)));
        let fetch = move |path: PathBuf| async move {
            let Some(tree) = me.upgrade() else { return Err(Problem::new(Errno::IO, "the mount has ended")) };
            let _turn = tree.fetching.acquire().await;
            let shelf = Shelf::new(&store, id);
            let written = Rc::new(Cell::new(0));
            let room = Room { file: new_file(&path)?, left: size, written: Rc::clone(&written) };
            let file = while_it_moves(shelf.unpack(&held, room, &path), &written).await?.file;
            let is_it = |offset: u64, bytes: &[u8]| {
                let mut found = vec![0; bytes.len()];
                file.read_exact_at(&mut found, offset).is_ok_and(|()| found == bytes)
            };
            if written.get() != size || !is_it(0, &start) || !seal.iter().all(|(at, bytes)| is_it(*at, bytes)) {
                let what = "it does not hold the segment that its start, or its index, says";
                return Err(shelf.bad(&held.name.object(), what).into());
            }
            tree.figures.fetched(size);
            Ok(file)
        };
        let fetched = self.cache.get((segment.id, path, size), fetch).await;
        fetched.map_err(|problem| self.failed(&segment.queue, problem))
    }

    /// Before the next attempt the store is opened again, and what has been deleted is no longer shown.
    fn failed(&self, dir: &Directory, problem: Problem) -> Problem {
        match problem.errno {
            Errno::TIMEDOUT => drop(self.store.borrow_mut().take()),
            Errno::STALE => dir.due.set(Instant::now()),
            _ => {}
        }
        problem
    }
}

impl Directory {
    fn new(names: Vec<String>, only: Option<u64>) -> Self {
        Self {
            names,
            only,
            listed: RefCell::new(None),
            due: Cell::new(Instant::now()),
            refreshing: RefCell::new(None),
            control: RefCell::new(None),
        }
    }

    fn queue_id(&self) -> Result<u64, Problem> {
        let listed = self.listed.borrow();
        let queue = listed.as_ref().and_then(|listed| listed.queue.as_ref());
        queue.map(|(id, _)| *id).ok_or_else(|| Problem::new(Errno::STALE, "the queue is archived no longer"))
    }

    /// When the newest segment was archived.
    fn modified_ms(&self) -> i64 {
        let listed = self.listed.borrow();
        let queue = listed.as_ref().and_then(|listed| listed.queue.as_ref());
        queue.and_then(|(_, held)| held.last()).map_or(0, |held| held.modified_ms)
    }
}

impl Segment {
    /// Of a file in the cache.
    fn path(&self, id: u64, name: String) -> PathBuf {
        self.queue.names.iter().cloned().chain([queue_dir(id), name]).collect()
    }
}

fn now_ms() -> i64 {
    i64::try_from(chronfs::clock::now_ns() / 1_000_000).unwrap_or(i64::MAX)
}

/// The ids of the queues in a directory of the archive, and the names of the directories in it that can be shown.
async fn list(store: &Store, dir: &Directory) -> crate::Result<(Vec<u64>, Vec<String>)> {
    let mut dirs = store.directories(&store.path(&[])).await?;
    let ids = if dirs.iter().any(|name| name == VERSION) { queues(store).await? } else { Vec::new() };
    let is_shown = |name: &String| {
        let is_of_queue = [CONTROL_FILE, INDEX_DIR, READERS_DIR].contains(&name.as_str())
            || name.ends_with(SEGMENT_SUFFIX)
            || name == RELAY_DIR && !ids.is_empty();
        check_name(name).is_ok() && name != VERSION && !is_of_queue
    };
    dirs.retain(|name| dir.only.is_none() && dir.names.len() < MAX_DEPTH && is_shown(name));
    Ok((ids, dirs))
}

/// Refuses an archive that can't be that of one queue.
fn check(store: &Store, id: u64, listing: &Listing) -> Result<(), Problem> {
    let Some((one, other)) = listing.contradiction() else { return Ok(()) };
    let what = format!("it can't be of the same queue as {}", other.object());
    Err(Shelf::new(store, id).bad(&one.object(), &what).into())
}
