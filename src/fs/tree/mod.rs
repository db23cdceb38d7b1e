//! The tree of the mount: lookups, attributes, listings, handles. In our own types; no kernel needed.
//!
//! A directory's contents are never kept: each operation reads the backing directory as it is now, so that a queue
//! created or removed by a native process shows at once. Only identity is kept: the kernel's inode of a directory
//! stands for one backing directory (ESTALE once the path leads to another one), that of a file for what its row
//! created at lookup.

pub(in crate::fs) mod children;
pub(in crate::fs) mod handles;
pub(in crate::fs) mod inodes;
pub(in crate::fs) mod listing;
pub(in crate::fs) mod message_inodes;
pub(in crate::fs) mod node;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::bus;
use crate::queue::Settings;
use crate::sync::{AtomicBool, Ordering};

use crate::fs::attr::{Attr, Kind, Ttl};
use crate::fs::backing::{Backing, Directory, FileId};
use crate::fs::budget::{Kind as Budgeted, Share};
use crate::fs::callers::is_sending;
use crate::fs::daemon_log::{Asked, DaemonLog};
use crate::fs::errno::{Errno, Result};
use crate::fs::files::message;
use crate::fs::files::readers;
use crate::fs::files::snapshot::Snapshots;
use crate::fs::lock;
use crate::fs::nodes::{self, DirKind, Row};
use crate::fs::page_cache::PageCache;
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::queues::table::{Contents, Queues};
use crate::fs::site::{Access, Caller, File, Hanging, Shared, Site};
use crate::fs::tree::handles::{Caching, Notify, OpenFile, Progress, Table, WriteBy};
use crate::fs::tree::inodes::{Ino, Inodes, Key, MESSAGE_BIT};
use crate::fs::tree::message_inodes::{MessageDir, MessageInodes};
pub(crate) use crate::fs::tree::node::{DirectoryNode, DirectoryOrigin, Entry, FileNode, Item, Node};
use crate::fs::waiting::parked::ParkedRead;
use crate::fs::waiting::poll;
use crate::fs::waiting::watch::Watches;

/// Bytes charged for a waiting read, and for each queue that it waits for.
const WAITING_READ: usize = 1 << 10;
const WAITING_FOR_QUEUE: usize = 64;
/// Longest name of a directory entry, in bytes.
const MAX_NAME_LEN: usize = 255;

/// The whole tree of a mount.
pub(crate) struct Tree {
    shared: Arc<Shared>,
    inodes: Inodes<Node>,
    messages: MessageInodes<Node>,
    snapshots: Snapshots,
    pub(crate) files: Table<OpenFile>,
    listings: Table<listing::OpenDirectory>,
}

impl Tree {
    /// The tree over an opened root. `max_chunk`: the largest write that the kernel sends in one request, in bytes.
    /// `pages`: the kernel's page cache for text, if available. `log`: where errors are logged.
    pub(crate) fn new(
        backing: Backing,
        read_only: bool,
        settings: Settings,
        max_chunk: usize,
        pages: Option<Arc<PageCache>>,
        log: Arc<DaemonLog>,
    ) -> Result<Self> {
        let id = backing.directory(Path::new(""))?.id();
        let relative: Arc<Path> = Arc::from(Path::new(""));
        let root = DirectoryNode { kind: DirectoryOrigin::Backing, relative, id };
        let (closing, queues) = (AtomicBool::new(false), Queues::new(!read_only, pages, &log));
        let (snapshots, hanging) = (Snapshots::new(queues.budget()), Hanging::default());
        let watches = Watches::default();
        let shared = Shared { backing, queues, watches, log, read_only, settings, max_chunk, hanging, closing };
        Ok(Self {
            shared: Arc::new(shared),
            inodes: Inodes::new(Key { path: PathBuf::new(), id, generation: 0 }, Node::Directory(root)),
            messages: MessageInodes::default(),
            snapshots,
            files: Table::default(),
            listings: Table::default(),
        })
    }

    /// Ends all waiting, now and from now on.
    pub(crate) fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.queues.close();
        self.shared.watches.close();
    }

    /// Waits until too many queues are open, and returns the names that hold the least used ones open. None: the mount
    /// is ending.
    pub(crate) fn superfluous_names(&self) -> Option<Vec<(Ino, std::ffi::OsString)>> {
        if !self.shared.queues.wait_until_crowded() {
            return None;
        }
        self.messages.forget_recent();
        let rarely_used = self.shared.queues.rarely_used();
        Some(self.inodes.names(|key, node| matches!(node, Node::File(_)) && rarely_used.contains(&key.id)))
    }

    /// To be called when the kernel has been told to forget them.
    pub(crate) fn names_were_forgotten(&self) {
        self.shared.queues.were_cleared();
    }

    /// At the end of the mount: appends what append handles still buffer, and releases the writer locks.
    pub(crate) fn finish(&self) {
        self.close();
        for open in self.files.all() {
            open.handle.unmounted();
        }
        for queue in self.shared.queues.all() {
            queue.drop_writer();
        }
        self.shared.log.finish();
    }

    /// Logs that a request fails with an error, which is this thread's last one.
    pub(crate) fn refused(&self, asked: &Asked, errno: Errno) {
        self.shared.log.refused(asked, errno, || {
            if let Some((home, seq)) = self.messages.find(asked.ino) {
                return (home.path.join(seq.to_string()), home.path);
            }
            let path = self.inodes.path(asked.ino).unwrap_or_default();
            let queue = self.node(asked.ino).map(|node| node.relative().to_path_buf()).unwrap_or_default();
            (path, queue)
        });
    }

    pub(crate) fn lookup(&self, parent: Ino, name: &OsStr, caller: &Caller) -> Result<Entry> {
        check_len(name)?;
        let directory = self.directory(parent)?;
        let site = Site { caller: caller.pid, ..self.site(&directory)? };
        let (mut key, mut node) = children::find(&directory, &site, name)?;
        if let Node::File(it) = &*node
            && it.file.snapshot_max() > 0
            // Where it fails, the open reports the error.
            && let Ok(snapshot) = self.snapshot(&key.path, it, caller)
        {
            key.generation = snapshot.generation();
            node = Arc::new(Node::File(FileNode { file: snapshot, ..it.clone() }));
        }
        self.enter(key, node)
    }

    fn snapshot(&self, path: &Path, node: &FileNode, caller: &Caller) -> Result<Arc<dyn File>> {
        self.check_open(node, caller)?;
        self.snapshots.take(path, &node.file, caller)
    }

    pub(crate) fn forget(&self, ino: Ino, lookups: u64) {
        // Nothing is kept for messages.
        if ino.0 & MESSAGE_BIT == 0 {
            self.inodes.forget(ino, lookups);
        }
    }

    pub(crate) fn getattr(&self, ino: Ino) -> Result<Entry> {
        let node = self.node(ino)?;
        if matches!(&*node, Node::File(node) if node.file.shown_generation().is_some()) {
            self.snapshots.were_seen();
        }
        Ok(Entry { ino, shown: self.shown(ino, &node), attr: self.attr(&node)?, ttl: ttl(&node) })
    }

    /// The number to be shown for a node.
    fn shown(&self, ino: Ino, node: &Node) -> Ino {
        let generation = if let Node::File(node) = node { node.file.shown_generation() } else { None };
        generation.map_or(ino, |generation| self.inodes.sibling(ino, generation))
    }

    /// Truncation to `size`, new times, or (EPERM) anything else.
    pub(crate) fn setattr(&self, ino: Ino, size: Option<u64>, times: bool, other: bool, who: &Caller) -> Result<Entry> {
        self.writable()?;
        let node = self.node(ino)?;
        match &*node {
            Node::File(_) | Node::Directory(_) if other => return Err(Errno::EPERM),
            Node::Directory(_) => return Err(Errno::EPERM),
            Node::File(node) => {
                self.reach(&node.relative, node.id, who)?;
                if size.is_some() {
                    node.file.truncate()?;
                }
                if times {
                    node.file.touch(who)?;
                }
            }
        }
        self.getattr(ino)
    }

    pub(crate) fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        match &*self.node(ino)? {
            Node::File(node) => node.file.target(),
            Node::Directory(_) => Err(Errno::EINVAL),
        }
    }

    pub(crate) fn mkdir(&self, parent: Ino, name: &OsStr, mode: u32, caller: &Caller) -> Result<Entry> {
        self.writable()?;
        check_len(name)?;
        let directory = self.directory_for(parent, caller)?;
        let site = self.site(&directory)?;
        match directory.kind {
            DirectoryOrigin::Backing => {
                if nodes::find(children::place(&directory, &site), name).is_some() {
                    return Err(Errno::EEXIST);
                }
                if matches!(site.contents, Contents::Queue(_) | Contents::Unreadable(_)) {
                    return Err(Errno::EPERM);
                }
                // It may become a queue, and so may its parent, of which its name must not look like a file.
                bus::check_queue_name(name.to_str().ok_or(Errno::EINVAL)?)?;
                // The mode has had the umask applied.
                caller.clone().with_umask(0).act(|| site.directory.make_directory(name, mode))??;
            }
            DirectoryOrigin::Virtual { place: DirKind::Readers, .. } => readers::register(site.queue()?, name, caller)?,
            DirectoryOrigin::Virtual { .. } => return Err(Errno::EPERM),
        }
        self.lookup(parent, name, caller)
    }

    pub(crate) fn rmdir(&self, parent: Ino, name: &OsStr, caller: &Caller) -> Result<()> {
        self.writable()?;
        let directory = self.directory_for(parent, caller)?;
        let (_, node) = self.child(&directory, name)?;
        let site = self.site(&directory)?;
        match (&directory.kind, &*node) {
            (_, Node::File(_)) => Err(Errno::ENOTDIR),
            (DirectoryOrigin::Virtual { place: DirKind::Readers, .. }, _) => {
                readers::remove(site.queue()?, name, caller)
            }
            (DirectoryOrigin::Backing, Node::Directory(DirectoryNode { kind: DirectoryOrigin::Backing, .. })) => {
                caller.act(|| site.directory.remove_directory(name))?
            }
            _ => Err(Errno::EPERM),
        }
    }

    pub(crate) fn unlink(&self, parent: Ino, name: &OsStr, caller: &Caller) -> Result<()> {
        self.writable()?;
        let directory = self.directory_for(parent, caller)?;
        let site = self.site(&directory)?;
        match nodes::find(children::place(&directory, &site), name) {
            Some(Row { remove: Some(remove), .. }) => remove(&site, caller),
            _ => self.child(&directory, name).and(Err(Errno::EPERM)),
        }
    }

    /// `open(2)` with O_CREAT of a name that does not exist.
    pub(crate) fn create(&self, parent: Ino, name: &OsStr, access: Access, caller: &Caller) -> Result<(Entry, u64)> {
        self.writable()?;
        check_len(name)?;
        let directory = self.directory_for(parent, caller)?;
        let site = self.site(&directory)?;
        if let Some(Row { create: Some(create), .. }) = nodes::find(children::place(&directory, &site), name) {
            create(&site, caller)?;
        } else if self.child(&directory, name).is_err() {
            return Err(Errno::EPERM);
        }
        let entry = self.lookup(parent, name, caller)?;
        match self.open(entry.ino, access, caller) {
            Ok(fh) => Ok((entry, fh)),
            Err(errno) => {
                self.forget(entry.ino, 1);
                Err(errno)
            }
        }
    }

    pub(crate) fn open(&self, ino: Ino, access: Access, caller: &Caller) -> Result<u64> {
        let node = self.node(ino)?;
        let Node::File(node) = &*node else { return Err(Errno::EISDIR) };
        let file = &node.file;
        if access != Access::Read {
            self.writable()?;
        }
        if !file.is_current() {
            // The kernel looks the name up again.
            return Err(Errno::ESTALE);
        }
        self.check_open(node, caller)?;
        self.snapshots.were_seen();
        let share = self.shared.queues.budget().take(caller.uid, Budgeted::Handles, 1)?;
        let handle = file.open(access, caller)?;
        let (uid, polled, edge) = (caller.uid, Mutex::default(), Mutex::default());
        Ok(self.files.insert(|fh| OpenFile { fh, uid, _share: share, handle, polled, edge }))
    }

    /// EACCES unless the caller can reach a file, and may read the messages that it shows.
    fn check_open(&self, node: &FileNode, caller: &Caller) -> Result<()> {
        self.reach(&node.relative, node.id, caller)?;
        node.file.messages_of().map_or(Ok(()), |queue| queue.check_readable(caller))
    }

    /// Appends the available bytes to `out`, or returns what to wait for. Fails instead of waiting when the mount is
    /// ending.
    pub(crate) fn read(&self, open: &OpenFile, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        match open.handle.read(offset, size, out)? {
            Progress::Wait(_) if self.shared.closing.load(Ordering::Acquire) => Err(Errno::ENOTCONN),
            progress => Ok(progress),
        }
    }

    /// A read for the kernel's pages. It must not cache those of a growing file: it would show zeros after the end
    /// until the last page is full. It asks for them nevertheless, for mappings, sendfile and splice, whatever flags
    /// the file was opened with. sendfile and splice are refused, so that the program falls back to read.
    pub(crate) fn read_pages(&self, open: &OpenFile, offset: u64, size: usize, thread: u32) -> Result<Vec<u8>> {
        if open.handle.caching() == Caching::Nothing && is_sending(thread) {
            return Err(Errno::EINVAL);
        }
        let mut out = Vec::new();
        match open.handle.read_pages(offset, size, &mut out)? {
            Progress::Done => Ok(out),
            Progress::Wait(_) => Err(Errno::EINVAL),
        }
    }

    /// Charges for a read that waits for these queues.
    pub(crate) fn charge_waiting(&self, open: &OpenFile, queues: &[Arc<OpenQueue>]) -> Result<Share> {
        let bytes = WAITING_READ + WAITING_FOR_QUEUE * queues.len();
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.shared.queues.budget().take(open.uid, Budgeted::Bytes, bytes)
    }

    /// Parks a read that found nothing, to be retried when one of the queues moves.
    pub(crate) fn park(&self, queues: &[Arc<OpenQueue>], read: &Arc<ParkedRead>) {
        self.shared.watches.park(queues, read);
    }

    /// The readers that wait for queues.
    pub(crate) fn watches(&self) -> &Watches {
        &self.shared.watches
    }

    /// As [`poll::poll`], of an open handle.
    pub(crate) fn poll(&self, fh: u64, notify: Option<Notify>) -> Result<bool> {
        let open = self.files.get(fh)?;
        Ok(poll::poll(&self.shared.watches, &open, notify)? || self.shared.closing.load(Ordering::Acquire))
    }

    pub(crate) fn write(&self, fh: u64, data: &[u8], by: WriteBy) -> Result<usize> {
        self.files.get(fh)?.handle.write_by(data, by)
    }

    /// `ftruncate(2)`, after [`Self::setattr`].
    pub(crate) fn truncate(&self, fh: u64, len: u64) -> Result<()> {
        self.files.get(fh)?.handle.truncate(len)
    }

    pub(crate) fn fsync(&self, fh: u64) -> Result<()> {
        self.files.get(fh)?.handle.fsync()
    }

    pub(crate) fn flush(&self, fh: u64, thread: u32, owner: u64) -> Result<()> {
        self.files.get(fh)?.handle.flush(thread, owner)
    }

    pub(crate) fn release(&self, fh: u64) {
        if let Some(open) = self.files.remove(fh) {
            open.handle.release();
            if !std::mem::take(&mut *lock(&open.polled)).is_empty() {
                self.shared.watches.forget(&open);
            }
        }
    }

    pub(crate) fn statfs(&self) -> Result<rustix::fs::StatVfs> {
        self.shared.backing.statvfs()
    }

    fn writable(&self) -> Result<()> {
        if self.shared.read_only { Err(Errno::EROFS) } else { Ok(()) }
    }

    fn directory(&self, ino: Ino) -> Result<DirectoryNode> {
        match &*self.node(ino)? {
            Node::Directory(directory) => Ok(directory.clone()),
            Node::File(_) => Err(Errno::ENOTDIR),
        }
    }

    /// As [`Self::directory`]; EACCES unless the caller can reach it.
    fn directory_for(&self, ino: Ino, caller: &Caller) -> Result<DirectoryNode> {
        let node = self.directory(ino)?;
        self.reach(&node.relative, node.id, caller)?;
        Ok(node)
    }

    /// EACCES unless the caller can reach a backing directory with its own rights. The kernel has checked modes only,
    /// and cached ones.
    fn reach(&self, relative: &Path, id: FileId, caller: &Caller) -> Result<()> {
        if !caller.is_other() {
            return Ok(());
        }
        let directory = caller.act(|| self.shared.backing.directory(relative))??;
        if directory.id() == id { Ok(()) } else { Err(Errno::ESTALE) }
    }

    fn backing_directory(&self, node: &DirectoryNode) -> Result<Directory> {
        let directory = self.shared.backing.directory(&node.relative)?;
        if directory.id() == node.id { Ok(directory) } else { Err(Errno::ESTALE) }
    }

    /// The directory as it is now, with its queue.
    fn site(&self, node: &DirectoryNode) -> Result<Site> {
        let directory = Arc::new(self.backing_directory(node)?);
        let contents = self.shared.queues.find(&directory);
        // The queue's own descriptor, where there is one, so that nodes do not each keep one open.
        let directory = match &contents {
            Contents::Queue(queue) => Arc::clone(&queue.directory),
            _ => directory,
        };
        let subject = match &node.kind {
            DirectoryOrigin::Virtual { subject, .. } => subject.clone(),
            DirectoryOrigin::Backing => None,
        };
        let (shared, relative) = (Arc::clone(&self.shared), Arc::clone(&node.relative));
        Ok(Site { shared, relative, directory, contents, subject, caller: 0 })
    }

    fn attr(&self, node: &Node) -> Result<Attr> {
        match node {
            Node::File(node) => node.file.attr(),
            Node::Directory(directory) => match &directory.kind {
                DirectoryOrigin::Backing => Ok(Attr::of(&self.backing_directory(directory)?.stat, Kind::Directory)),
                DirectoryOrigin::Virtual { place, .. } => children::attr(*place, &self.site(directory)?),
            },
        }
    }

    fn enter(&self, key: Key, node: Arc<Node>) -> Result<Entry> {
        // Attributes first: a node without them does not exist, and must not be entered.
        let attr = self.attr(&node)?;
        if let Node::File(FileNode { file, .. }) = &*node
            && let Some(ino) = self.message_number(&key, &**file)
        {
            self.messages.remember(ino, &node);
            return Ok(Entry { ino, shown: ino, attr, ttl: ttl(&node) });
        }
        let (ino, node) = self.inodes.enter(key, node);
        Ok(Entry { ino, shown: self.shown(ino, &node), attr, ttl: ttl(&node) })
    }

    /// The inode number that a file has, or will get when it is looked up.
    fn number(&self, key: &Key, file: &dyn File) -> Ino {
        self.message_number(key, file).unwrap_or_else(|| self.inodes.number(key))
    }

    fn message_number(&self, key: &Key, file: &dyn File) -> Option<Ino> {
        let seq = file.message()?;
        let path = key.path.parent()?.to_path_buf();
        self.messages.number(&MessageDir { path, id: key.id, generation: key.generation }, seq)
    }

    /// What an inode number stands for.
    fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        if ino.0 & MESSAGE_BIT == 0 {
            return self.inodes.get(ino);
        }
        if let Some(node) = self.messages.recent(ino) {
            return Ok(node);
        }
        let (home, seq) = self.messages.find(ino).ok_or(Errno::ESTALE)?;
        let relative = Arc::from(home.path.parent().ok_or(Errno::ESTALE)?);
        let directory = DirectoryNode { kind: DirectoryOrigin::Backing, relative, id: home.id };
        let site = self.site(&directory)?;
        let queue = site.queue().map_err(|_| Errno::ESTALE)?;
        if queue.identity != home.generation {
            return Err(Errno::ESTALE);
        }
        let file = message::find(queue, &seq.to_string()).map_err(|errno| match errno {
            Errno::ENOENT => Errno::ESTALE,
            other => other,
        })?;
        let node = Arc::new(Node::File(FileNode::new(&directory, file)));
        self.messages.remember(ino, &node);
        Ok(node)
    }

    /// What a name in a directory is.
    fn child(&self, directory: &DirectoryNode, name: &OsStr) -> Result<(Key, Arc<Node>)> {
        check_len(name)?;
        children::find(directory, &self.site(directory)?, name)
    }
}

fn ttl(node: &Node) -> Ttl {
    match node {
        Node::Directory(_) => Ttl::DIRECTORY,
        Node::File(node) => node.file.ttl(),
    }
}

fn check_len(name: &OsStr) -> Result<()> {
    if name.len() > MAX_NAME_LEN { Err(Errno::ENAMETOOLONG) } else { Ok(()) }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
