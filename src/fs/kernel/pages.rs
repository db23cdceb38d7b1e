//! Rendered text in the kernel's page cache: a file system of our own, which nobody else can reach. Where the kernel
//! lets us, it reads `messages.*` from a file of this one (`passthrough`), and keeps what it has read.
//!
//! A file that grows can't simply be cached. The kernel learns of a new size before it learns that the last page it
//! has is no longer whole, and readers in between see zeros. But a write(2) fills the pages first, and sets the size
//! when all of them are filled. So here files grow by being written to, whole lines at a time, and in no other
//! way; a read that comes to the end asks for the size first (attributes are good for no time at all), and before it is
//! answered what has been appended since is written.
//!
//! Invariants: no reply says a size that the kernel has not got from a write, but the first one; a read is answered with
//! all bytes up to the size that was last said or is being written, so that the kernel never keeps a page that is
//! not whole up to there.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use fuser::{
    Config, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, KernelConfig, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, SessionACL, WriteFlags,
};

use super::adapter::{MAX_WRITE, errno, guarded};
use super::hand::Hand;
use crate::fs::errno::{Errno, Result};
use crate::fs::lock;
use crate::fs::patience::Lanes;
use crate::sync::{AtomicU64, Ordering};

/// Threads that serve it.
const THREADS: u32 = 4;
/// How many of them may wait for a file to grow. The others serve what that takes.
const GROWING: u32 = THREADS - 2;

/// What a file of the page cache has for content.
pub(crate) trait Text: Send + Sync {
    /// Its size, when everything appended by now has been written to the file. Takes [`Errno::LATER`] for long.
    fn grow(&self) -> Result<u64>;

    /// Appends its bytes from `offset` on to `out`, at most `size`: fewer only at the end.
    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<()>;
}

/// The file system.
pub(crate) struct PageCache {
    hand: Hand,
    texts: Arc<Texts>,
    next: AtomicU64,
}

/// A file of it. The pages go with it.
pub(crate) struct PageFile {
    cache: Arc<PageCache>,
    number: u64,
    file: File,
}

type Texts = Mutex<HashMap<u64, (Weak<dyn Text>, u64)>>;

impl PageCache {
    /// Mounts it, where that is allowed.
    pub(crate) fn start() -> io::Result<Self> {
        let (hand, device) = Hand::start()?;
        let texts = Arc::new(Texts::default());
        let server = Server { texts: Arc::clone(&texts), growing: Lanes::at_most(GROWING) };
        let mut config = Config::default();
        config.n_threads = Some(THREADS as usize);
        let session = Session::from_fd(server, device, SessionACL::Owner, config)?;
        // It ends with the process.
        std::mem::forget(session.spawn()?);
        Ok(Self { hand, texts, next: AtomicU64::new(2) })
    }

    /// A new file, for a text that has `size` bytes by now.
    pub(crate) fn add(self: &Arc<Self>, text: Weak<dyn Text>, size: u64) -> io::Result<PageFile> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.texts).insert(number, (text, size));
        match self.hand.open(number) {
            Ok(file) => Ok(PageFile { cache: Arc::clone(self), number, file }),
            Err(error) => {
                lock(&self.texts).remove(&number);
                Err(error)
            }
        }
    }
}

impl PageFile {
    /// Makes it grow by bytes that follow its end, all at once for whoever reads it, or, with room left before them,
    /// by that too.
    pub(crate) fn write(&self, offset: u64, bytes: Vec<u8>) -> io::Result<()> {
        self.cache.hand.write(self.number, offset, bytes)
    }
}

impl AsFd for PageFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for PageFile {
    fn drop(&mut self) {
        lock(&self.cache.texts).remove(&self.number);
        self.cache.hand.close(self.number);
    }
}

struct Server {
    texts: Arc<Texts>,
    growing: Lanes,
}

impl Server {
    fn find(&self, number: u64) -> Result<(Arc<dyn Text>, u64)> {
        let (text, size) = lock(&self.texts).get(&number).cloned().ok_or(Errno::ESTALE)?;
        Ok((text.upgrade().ok_or(Errno::ESTALE)?, size))
    }
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn attr(number: INodeNo, kind: FileType, size: u64) -> FileAttr {
    let time = SystemTime::UNIX_EPOCH;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    FileAttr {
        ino: number,
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm: 0o700,
        nlink: 1,
        uid,
        gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Server {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(MAX_WRITE);
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|name| name.parse().ok()).unwrap_or(0);
        match self.find(number) {
            // Not remembered: the file goes when it is closed.
            Ok((_, size)) => {
                let attr = attr(INodeNo(number), FileType::RegularFile, size);
                reply.entry_with_ttls(&Duration::ZERO, &Duration::ZERO, &attr, Generation(0));
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, _req: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The kernel then asks no more, and keeps the pages at each open.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn flush(&self, _req: &Request, _number: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn getattr(&self, _req: &Request, number: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if number == INodeNo::ROOT {
            return reply.attr(&Duration::MAX, &attr(number, FileType::Directory, 0));
        }
        guarded(|| {
            let request = match self.find(number.0) {
                Ok((text, _)) => move || text.grow(),
                Err(error) => return reply.error(errno(error)),
            };
            self.growing.run(request, move |size| match size {
                Ok(size) => reply.attr(&Duration::ZERO, &attr(number, FileType::RegularFile, size)),
                Err(error) => reply.error(errno(error)),
            });
        });
    }

    fn read(
        &self,
        _req: &Request,
        number: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        guarded(|| {
            BUFFER.with_borrow_mut(|buffer| {
                buffer.clear();
                match self.find(number.0).and_then(|(text, _)| text.read(offset, size as usize, buffer)) {
                    Ok(()) => reply.data(buffer),
                    Err(error) => reply.error(errno(error)),
                }
            });
        });
    }

    fn write(
        &self,
        _req: &Request,
        _number: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The hand's. The pages have it now, and it can be rendered again.
        reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX));
    }
}
