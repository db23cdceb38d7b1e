//! Requests of the kernel to calls of the tree, results to replies. Nothing is decided here.
//!
//! Invariant: a handler that panics costs its caller an EIO and nobody else anything: `fuser` answers EIO for a
//! reply that is dropped, and the panic ends here.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::fs::attr::{Attr, Kind};
use crate::fs::errno::{Errno, Result};
use crate::fs::handles::{OpenFile, Progress};
use crate::fs::inodes::Ino;
use crate::fs::nodes::{Access, Caller};
use crate::fs::parked::{Answer, Interrupts, ParkedRead};
use crate::fs::patience::Lanes;
use crate::fs::poll;
use crate::fs::tree::{Entry, Item, Tree};
use crate::fs::watch::Watch;

use super::passthrough::Passthrough;

/// The largest read or write that the kernel passes on in one piece, in bytes.
pub(crate) const MAX_WRITE: u32 = 1 << 20;

thread_local! {
    /// What a read returns; kept, because a fresh megabyte a read costs more than filling it.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The file system as `fuser` sees it.
pub(super) struct Adapter {
    pub(super) tree: Arc<Tree>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) lanes: Lanes,
    pub(super) passthrough: Arc<Passthrough>,
    /// Called once when the kernel has let go of the mount.
    pub(super) ended: Box<dyn Fn() + Send + Sync>,
}

pub(super) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.code())
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

fn access(flags: OpenFlags) -> Access {
    match flags.acc_mode() {
        OpenAccMode::O_RDONLY => Access::Read,
        OpenAccMode::O_WRONLY => Access::Write,
        OpenAccMode::O_RDWR => Access::ReadWrite,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
    }
}

fn file_attr(ino: Ino, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino.0),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: attr.mtime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn reply_entry(result: Result<Entry>, reply: ReplyEntry) {
    match result {
        Ok(entry) => {
            let attr = file_attr(entry.ino, &entry.attr);
            reply.entry_with_ttls(&entry.ttl.attr, &entry.ttl.entry, &attr, Generation(0));
        }
        Err(error) => reply.error(errno(error)),
    }
}

fn reply_attr(result: Result<Entry>, reply: ReplyAttr) {
    match result {
        Ok(entry) => reply.attr(&entry.ttl.attr, &file_attr(entry.ino, &entry.attr)),
        Err(error) => reply.error(errno(error)),
    }
}

fn reply_empty(result: Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

/// How a file is opened: uncached, because files grow under native writers and the kernel's cache would show zeros at
/// the old end; and without a message at each close, unless there is something to be done then.
fn open_flags(open: &OpenFile) -> FopenFlags {
    let at_close = if open.handle.is_flushed() { FopenFlags::empty() } else { FopenFlags::FOPEN_NOFLUSH };
    FopenFlags::FOPEN_DIRECT_IO | at_close
}

/// Answers an open: how the kernel is to read the file.
fn opened(tree: &Tree, passthrough: &Passthrough, ino: INodeNo, fh: u64, reply: ReplyOpen) {
    let Ok(open) = tree.files.get(fh) else { return reply.error(fuser::Errno::EBADF) };
    if open.handle.is_constant() {
        return reply.opened(FileHandle(fh), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
    }
    let Some(file) = open.handle.backing() else { return reply.opened(FileHandle(fh), open_flags(&open)) };
    let way = passthrough.share(ino.0, fh, |file| reply.open_backing(file), file);
    match way.as_deref() {
        Some(Some(backing)) => reply.opened_passthrough(FileHandle(fh), FopenFlags::FOPEN_NOFLUSH, backing),
        _ => reply.opened(FileHandle(fh), open_flags(&open)),
    }
}

fn answer(reply: ReplyData) -> Answer {
    Box::new(move |result: Result<&[u8]>| match result {
        Ok(data) => reply.data(data),
        Err(error) => reply.error(errno(error)),
    })
}

impl Adapter {
    /// A read that takes longer than a serving thread may be kept.
    fn read_at_length(&self, open: Arc<OpenFile>, offset: u64, size: usize, reply: ReplyData) {
        let tree = Arc::clone(&self.tree);
        let request = move || {
            let mut data = Vec::new();
            tree.read(&open, offset, size, &mut data).map(|_| data)
        };
        let answer = answer(reply);
        self.lanes.run(request, |result| match result {
            Ok(data) => answer(Ok(&data)),
            Err(error) => answer(Err(error)),
        });
    }
}

/// Runs a handler; see the head of this file for what a panic comes to.
pub(super) fn guarded(handler: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(handler));
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Not asked for: asynchronous direct reads (they would tear streams apart), remote locks. Listings come with
        // attributes where the kernel sees that they are wanted: always would be slow, and fill its memory. What a
        // kernel lacks is not fatal.
        let wanted =
            [InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_READDIRPLUS_AUTO];
        for capability in wanted {
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_write(MAX_WRITE);
        self.passthrough.negotiate(config);
        Ok(())
    }

    fn destroy(&mut self) {
        (self.ended)();
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded(|| {
            let (tree, name) = (Arc::clone(&self.tree), name.to_owned());
            self.lanes.run(move || tree.lookup(Ino(parent.0), &name), |result| reply_entry(result, reply));
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, lookups: u64) {
        guarded(|| self.tree.forget(Ino(ino.0), lookups));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        guarded(|| {
            let tree = Arc::clone(&self.tree);
            self.lanes.run(move || tree.getattr(Ino(ino.0)), |result| reply_attr(result, reply));
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let times = atime.is_some() || mtime.is_some();
        let other = mode.is_some() || uid.is_some() || gid.is_some();
        guarded(|| reply_attr(self.tree.setattr(Ino(ino.0), size, times, other, caller(req)), reply));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        guarded(|| match self.tree.readlink(Ino(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(fuser::Errno::EPERM);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        guarded(|| reply_entry(self.tree.mkdir(Ino(parent.0), name, mode, caller(req)), reply));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded(|| reply_empty(self.tree.unlink(Ino(parent.0), name), reply));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded(|| reply_empty(self.tree.rmdir(Ino(parent.0), name), reply));
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(fuser::Errno::EPERM);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EPERM);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(fuser::Errno::EPERM);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        guarded(|| match self.tree.create(Ino(parent.0), name, access(OpenFlags(flags)), caller(req)) {
            Ok((entry, fh)) => {
                let attr = file_attr(entry.ino, &entry.attr);
                let flags = self.tree.files.get(fh).map_or(FopenFlags::FOPEN_DIRECT_IO, |open| open_flags(&open));
                reply.created(&entry.ttl.entry, &attr, Generation(0), FileHandle(fh), flags);
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        guarded(|| {
            let (tree, passthrough) = (Arc::clone(&self.tree), Arc::clone(&self.passthrough));
            let (access, caller) = (access(flags), caller(req));
            let open = move || tree.open(Ino(ino.0), access, caller);
            let tree = Arc::clone(&self.tree);
            self.lanes.run(open, move |result| match result {
                Ok(fh) => opened(&tree, &passthrough, ino, fh, reply),
                Err(error) => reply.error(errno(error)),
            });
        });
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        guarded(|| {
            let Ok(open) = self.tree.files.get(fh.0) else { return reply.error(fuser::Errno::EBADF) };
            let size = size as usize;
            BUFFER.with_borrow_mut(|buffer| {
                buffer.clear();
                match self.tree.read(&open, offset, size, buffer) {
                    Ok(Progress::Done) => reply.data(buffer),
                    Ok(Progress::Wait(_)) if flags.0 & libc::O_NONBLOCK != 0 => match poll::found_nothing(&open) {
                        Ok(()) => reply.error(fuser::Errno::EAGAIN),
                        Err(error) => reply.error(errno(error)),
                    },
                    Ok(Progress::Wait(queues)) => {
                        let read = Arc::new(ParkedRead::new(answer(reply), open, offset, size, req.pid()));
                        match self.interrupts.watch(&read) {
                            Ok(()) => Watch::park(&queues, &read),
                            Err(error) => read.end(Err(error)),
                        }
                    }
                    Err(Errno::LATER) => self.read_at_length(open, offset, size, reply),
                    Err(error) => reply.error(errno(error)),
                }
            });
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        guarded(|| match self.tree.write(fh.0, data) {
            // The kernel sends less than 4 GiB at a time, and no more than that can have been taken.
            Ok(taken) => reply.written(u32::try_from(taken).unwrap_or(u32::MAX)),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn flush(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        guarded(|| reply_empty(self.tree.flush(fh.0, caller(req)), reply));
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        guarded(|| {
            self.tree.release(fh.0);
            self.passthrough.release(fh.0);
            reply.ok();
        });
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        guarded(|| reply_empty(self.tree.fsync(fh.0), reply));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        guarded(|| match self.tree.opendir(Ino(ino.0)) {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        guarded(|| {
            let add = |item: &Item, _: &dyn Fn() -> Result<Entry>, next| {
                !reply.add(INodeNo(item.ino.0), next, file_type(item.kind), &item.name)
            };
            match self.tree.readdir(fh.0, offset, add) {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn readdirplus(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        guarded(|| {
            let add = |name: &OsStr, entry: &Entry, next| {
                // `fuser` takes one time for name and attributes.
                let ttl = entry.ttl.attr.min(entry.ttl.entry);
                let attr = file_attr(entry.ino, &entry.attr);
                !reply.add(INodeNo(entry.ino.0), next, name, &ttl, &attr, Generation(0))
            };
            match self.tree.readdir_plus(fh.0, offset, add) {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        guarded(|| {
            self.tree.releasedir(fh.0);
            reply.ok();
        });
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        guarded(|| match self.tree.statfs() {
            Ok(s) => {
                let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
                let (size, name_max) = (small(s.f_bsize), small(s.f_namemax));
                reply.statfs(
                    s.f_blocks,
                    s.f_bfree,
                    s.f_bavail,
                    s.f_files,
                    s.f_ffree,
                    size,
                    name_max,
                    small(s.f_frsize),
                );
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EOPNOTSUPP);
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        // Once answered like this the kernel asks no more; any other answer makes `ls -l` ask for every file.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EOPNOTSUPP);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        notifier: PollNotifier,
        _events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        guarded(|| {
            let wanted = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY);
            let notify = wanted.then(|| -> crate::fs::watch::Notify {
                // A poll that nobody waits for any more is no error.
                Box::new(move || drop(notifier.notify()))
            });
            let ready = PollEvents::POLLIN | PollEvents::POLLRDNORM | PollEvents::POLLOUT | PollEvents::POLLWRNORM;
            match self.tree.poll(fh.0, notify) {
                Ok(true) => reply.poll(ready),
                Ok(false) => reply.poll(PollEvents::empty()),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        // Were it called unsupported, the C library would write zeros instead: messages.
        reply.error(fuser::Errno::EPERM);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: fuser::ReplyLseek) {
        // Only asked for holes; the kernel then does without.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel then reads and writes.
        reply.error(fuser::Errno::ENOSYS);
    }
}
