//! The kernel's side of the mount: requests become calls of the tree, on the thread of the tree; reads of files that are
//! in the cache are answered at once. Makes no decisions but how a file is opened.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, Request, Session, SessionACL,
};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::cache::Ready;
use super::fetch::read_part;
use super::place::KIND;
use super::problem::Problem;
use super::tree::{Attr, CHANGES, ROOT, Tree};

/// How long the kernel need not ask again: whether a name is still there, and what is known of a file, which never
/// changes.
const NAME_TTL: Duration = Duration::from_secs(1);
const FILE_TTL: Duration = Duration::from_secs(3600);
/// Threads that serve the kernel.
const THREADS: usize = 4;

/// Something to be done on the thread of the tree.
pub(super) type Job = Box<dyn FnOnce(Rc<Tree>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The file system.
pub(super) struct Adapter {
    jobs: UnboundedSender<Job>,
    ready: Arc<Ready>,
    /// Whether files that the kernel does not cache can be mapped.
    can_map: AtomicBool,
    owner: (u32, u32),
}

impl Adapter {
    pub(super) fn new(jobs: UnboundedSender<Job>, ready: Arc<Ready>) -> Self {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self { jobs, ready, can_map: AtomicBool::new(false), owner }
    }

    /// Mounts; the receiver gets the end of it. When this returns the mount is usable.
    pub(super) fn mount(
        self,
        mountpoint: &Path,
        source: &str,
        allow_other: bool,
    ) -> io::Result<oneshot::Receiver<io::Result<()>>> {
        let mut config = Config::default();
        config.mount_options = KIND.mount_options(source);
        config.mount_options.extend([MountOption::RO, MountOption::NoExec]);
        config.acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(THREADS);
        let session = Session::new(self, mountpoint, &config)?;
        let (ended, end) = oneshot::channel();
        std::thread::Builder::new().name("chron-archive-mount".into()).spawn(move || {
            let _ = ended.send(session.run());
        })?;
        Ok(end)
    }

    /// Has something done on the thread of the tree. If that has ended, the reply is dropped, which answers EIO.
    fn ask<F: Future<Output = ()> + 'static>(&self, job: impl FnOnce(Rc<Tree>) -> F + Send + 'static) {
        let _ = self.jobs.send(Box::new(move |tree| Box::pin(job(tree))));
    }
}

fn attributes(ino: u64, (uid, gid): (u32, u32), attr: &Attr) -> FileAttr {
    let since_epoch = Duration::from_millis(u64::try_from(attr.modified_ms).unwrap_or(0));
    let time = SystemTime::UNIX_EPOCH.checked_add(since_epoch).unwrap_or(SystemTime::UNIX_EPOCH);
    let (kind, perm, nlink) =
        if attr.is_dir { (FileType::Directory, 0o555, 2) } else { (FileType::RegularFile, 0o444, 1) };
    FileAttr {
        ino: INodeNo(ino),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink,
        uid,
        gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn ttl(ino: u64, attr: &Attr) -> Duration {
    match attr.is_dir {
        true => NAME_TTL,
        false if ino & CHANGES != 0 => Duration::ZERO,
        false => FILE_TTL,
    }
}

/// Logs it, and gives the number of it.
fn errno(tree: &Tree, problem: &Problem) -> Errno {
    tree.note(problem);
    Errno::from_i32(problem.errno.raw_os_error())
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        let can_map = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP).is_ok();
        self.can_map.store(can_map, Ordering::Relaxed);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(name) = name.to_str().map(str::to_owned) else { return reply.error(Errno::ENOENT) };
        let owner = self.owner;
        self.ask(move |tree| async move {
            let found = async {
                let Some(ino) = tree.find(parent.0, &name).await? else { return Ok(None) };
                Ok::<_, Problem>(Some((ino, tree.attr(ino).await?)))
            };
            match found.await {
                Ok(Some((ino, attr))) => {
                    let entry = attributes(ino, owner, &attr);
                    reply.entry_with_ttls(&ttl(ino, &attr), &NAME_TTL, &entry, Generation(0));
                }
                Ok(None) => reply.error(Errno::ENOENT),
                Err(problem) => reply.error(errno(&tree, &problem)),
            }
        });
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let owner = self.owner;
        self.ask(move |tree| async move {
            match tree.attr(ino.0).await {
                Ok(attr) => reply.attr(&ttl(ino.0, &attr), &attributes(ino.0, owner, &attr)),
                Err(problem) => reply.error(errno(&tree, &problem)),
            }
        });
    }

    /// What is not in the cache is not read through the kernel's: it would read whole pages, and ahead, where the few
    /// bytes are known that say what a segment is.
    fn open(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if ino.0 & CHANGES != 0 {
            return self.ask(move |tree| async move {
                let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
                reply.opened(FileHandle(tree.open_report()), flags);
            });
        }
        let is_here = self.ready.get(ino.0).is_some();
        let can_map = self.can_map.load(Ordering::Relaxed);
        let way = if is_here || !can_map { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::FOPEN_DIRECT_IO };
        reply.opened(FileHandle(0), way | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = size as usize;
        if let Some(bytes) = self.ready.get(ino.0).and_then(|cached| read_part(&cached, offset, size).ok()) {
            return reply.data(&bytes);
        }
        self.ask(move |tree| async move {
            match tree.read(ino.0, fh.0, offset, size).await {
                Ok(bytes) => reply.data(&bytes),
                Err(problem) => reply.error(errno(&tree, &problem)),
            }
        });
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if ino.0 & CHANGES != 0 {
            self.ask(move |tree| async move { tree.close_report(fh.0) });
        }
        reply.ok();
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.ask(move |tree| async move {
            let entries = match tree.entries(ino.0).await {
                Ok(entries) => entries,
                Err(problem) => return reply.error(errno(&tree, &problem)),
            };
            let dots = [(".".to_owned(), ino.0), ("..".to_owned(), ROOT)];
            let all = dots.into_iter().chain(entries).zip(1..).skip(usize::try_from(offset).unwrap_or(usize::MAX));
            for ((name, ino), next) in all {
                let is_dir = tree.node(ino).is_ok_and(|node| node.is_dir());
                let kind = if is_dir { FileType::Directory } else { FileType::RegularFile };
                if reply.add(INodeNo(ino), next, kind, name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }
}
