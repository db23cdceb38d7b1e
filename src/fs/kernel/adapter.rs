//! Translates requests of the kernel to calls of the tree, and results to replies. Makes no decisions.
//!
//! Invariant: a handler that panics fails its caller with EIO and affects no other request (`serve`, [`Reply`]).

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::SessionACL;

use crate::fs::credentials::visible;
use crate::fs::errno::{Errno, Result};
use crate::fs::kernel::passthrough::Passthrough;
use crate::fs::kernel::protocol::{
    BatchForgetIn, CreateIn, FlushIn, ForgetIn, ForgetOne, FsyncIn, MkdirIn, OpenIn, POLL_SCHEDULE_NOTIFY, PollIn,
    READ_LOCKOWNER, ReadIn, ReleaseIn, Request, SetattrIn, WRITE_LOCKOWNER, WriteIn, fattr, fopen, opcode,
};
use crate::fs::kernel::reply::{Lines, Reply};
use crate::fs::kernel::serve::{Account, Service, is_interrupted};
use crate::fs::site::{Access, Caller};
use crate::fs::tree::Tree;
use crate::fs::tree::handles::{Caching, Notify, OpenFile, Progress, WriteBy};
use crate::fs::tree::inodes::Ino;
use crate::fs::waiting::parked::{Answer, Parked, ParkedRead};
use crate::fs::waiting::poll;

/// The largest read or write that the kernel sends in one request, in bytes.
pub(crate) const MAX_WRITE: u32 = 1 << 20;
/// How many requests of one user are served at the same time, and how many of root's.
const AT_ONCE: usize = 8;
const AT_ONCE_ROOT: usize = 24;

/// The poll events of a file that can be read or written now.
const READY: u32 = (libc::POLLIN | libc::POLLRDNORM | libc::POLLOUT | libc::POLLWRNORM).unsigned_abs() as u32;

thread_local! {
    /// Buffer for what a read returns; reused, because allocating a megabyte per read costs more than filling it.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The tree as the kernel sees it.
pub(in crate::fs) struct Adapter {
    pub(in crate::fs) tree: Arc<Tree>,
    pub(in crate::fs) parked: Arc<Parked>,
    pub(in crate::fs) passthrough: Arc<Passthrough>,
    pub(in crate::fs) acl: SessionACL,
    pub(in crate::fs) owner: u32,
    /// Called once when the kernel has released the mount.
    pub(in crate::fs) ended: Box<dyn Fn() + Send + Sync>,
}

fn caller(request: &Request<'_>) -> Caller {
    caller_who(request, false)
}

/// `creates`: whether a file may be created for it though the request carries no mode.
fn caller_who(request: &Request<'_>, creates: bool) -> Caller {
    Caller::of_request(request.header.uid, request.header.gid, request.header.pid, creates)
}

fn access(flags: i32) -> Result<Access> {
    match flags & libc::O_ACCMODE {
        libc::O_RDONLY => Ok(Access::Read),
        libc::O_WRONLY => Ok(Access::Write),
        libc::O_RDWR => Ok(Access::ReadWrite),
        _ => Err(Errno::EINVAL),
    }
}

/// How a file is opened: uncached, because files grow under native writers and the kernel's cache would show zeros at
/// the old end; and without a FLUSH request at each close, unless the handle needs it.
fn open_flags(open: &OpenFile) -> u32 {
    let kept = match open.handle.caching() {
        Caching::Nothing => fopen::DIRECT_IO,
        Caching::UntilOpened => 0,
        Caching::Always => fopen::KEEP_CACHE,
    };
    kept | if open.handle.is_flushed() { 0 } else { fopen::NOFLUSH }
}

/// EIO for a request that is too short.
fn cut<T>(value: Option<T>) -> Result<T> {
    value.ok_or(Errno::EIO)
}

impl Service for Adapter {
    fn account(&self, request: &Request<'_>) -> Option<Account> {
        let mut uid = request.header.uid;
        let mut may_refuse = true;
        match request.header.opcode {
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT | opcode::DESTROY | opcode::NOTIFY_REPLY => {
                return None;
            }
            opcode::RELEASE | opcode::RELEASEDIR => {
                // The kernel doesn't say who closes; it is charged to the user who opened.
                may_refuse = false;
                if request.header.opcode == opcode::RELEASE {
                    let mut body = request.body;
                    let fh = body.take().map(|ReleaseIn { fh, .. }| fh);
                    uid = fh.and_then(|fh| self.tree.files.get(fh).ok()).map_or(uid, |open| open.uid);
                }
            }
            _ => {}
        }
        let at_once = if uid == 0 { AT_ONCE_ROOT } else { AT_ONCE };
        Some(Account { key: u64::from(uid), at_once, may_refuse })
    }

    fn serve(&self, mut request: Request<'_>, reply: Reply) {
        if !self.is_admitted(&request) {
            return reply.error(Errno::EACCES);
        }
        let ino = Ino(request.header.nodeid);
        match request.header.opcode {
            opcode::LOOKUP => {
                reply.entry(name(&mut request).and_then(|name| self.tree.lookup(ino, name, &caller(&request))))
            }
            opcode::FORGET => {
                reply.none();
                if let Some(ForgetIn { lookups }) = request.body.take() {
                    self.tree.forget(ino, lookups);
                }
            }
            opcode::BATCH_FORGET => {
                reply.none();
                let count = request.body.take().map_or(0, |BatchForgetIn { count, .. }| count);
                for _ in 0..count {
                    let Some(ForgetOne { nodeid, lookups }) = request.body.take() else { return };
                    self.tree.forget(Ino(nodeid), lookups);
                }
            }
            opcode::DESTROY => reply.empty(Ok(())),
            opcode::NOTIFY_REPLY => reply.none(),
            opcode::GETATTR => reply.attr(self.tree.getattr(ino)),
            opcode::SETATTR => reply.attr(self.setattr(&mut request)),
            opcode::READLINK => reply.data(self.tree.readlink(ino).as_deref().map_err(|errno| *errno)),
            opcode::MKDIR => {
                reply.entry(cut(request.body.take()).and_then(|MkdirIn { mode, .. }| {
                    self.tree.mkdir(ino, name(&mut request)?, mode, &caller(&request))
                }))
            }
            opcode::UNLINK => {
                reply.empty(name(&mut request).and_then(|name| self.tree.unlink(ino, name, &caller(&request))))
            }
            opcode::RMDIR => {
                reply.empty(name(&mut request).and_then(|name| self.tree.rmdir(ino, name, &caller(&request))))
            }
            opcode::CREATE => self.create(request, reply),
            opcode::OPEN => self.open(request, reply),
            opcode::READ => self.read(request, reply),
            opcode::WRITE => reply.written(self.write(request)),
            opcode::FLUSH => {
                // Not all that is known of the caller: one that executes another program closes files meanwhile, and
                // then most of what /proc shows of it waits for our answer.
                let thread = visible(request.header.pid);
                let flush = cut(request.body.take());
                reply.empty(flush.and_then(|FlushIn { fh, lock_owner, .. }| self.tree.flush(fh, thread, lock_owner)));
            }
            opcode::RELEASE => {
                if let Some(ReleaseIn { fh, .. }) = request.body.take() {
                    self.tree.release(fh);
                    self.passthrough.release(fh);
                }
                reply.empty(Ok(()));
            }
            opcode::FSYNC => {
                reply.empty(cut(request.body.take()).and_then(|FsyncIn { fh, .. }| self.tree.fsync(fh)));
            }
            opcode::OPENDIR => match self.tree.opendir(ino, &caller(&request)) {
                Ok(fh) => reply.opened(fh, 0, 0),
                Err(errno) => reply.error(errno),
            },
            opcode::READDIR | opcode::READDIRPLUS => self.readdir(request, reply),
            opcode::RELEASEDIR => {
                if let Some(ReleaseIn { fh, .. }) = request.body.take() {
                    self.tree.releasedir(fh);
                }
                reply.empty(Ok(()));
            }
            opcode::FSYNCDIR => reply.empty(Ok(())),
            opcode::STATFS => reply.statfs(self.tree.statfs()),
            opcode::POLL => self.poll(request, reply),
            refused => reply.error(refusal(refused)),
        }
    }

    fn interrupt(&self, unique: u64, is_running: &dyn Fn() -> bool) -> bool {
        self.parked.interrupt(unique, is_running)
    }

    fn ended(&self) {
        (self.ended)();
    }
}

/// The error for unsupported requests.
fn refusal(opcode: u32) -> Errno {
    match opcode {
        opcode::MKNOD | opcode::SYMLINK | opcode::RENAME | opcode::RENAME2 | opcode::LINK => Errno::EPERM,
        // If it were reported as unsupported, the C library would write zeros instead, which would become messages.
        opcode::FALLOCATE => Errno::EPERM,
        opcode::SETXATTR | opcode::REMOVEXATTR => Errno::EOPNOTSUPP,
        opcode::IOCTL => Errno::ENOTTY,
        // After ENOSYS the kernel never asks again, and does without: extended attributes for `ls -l` (another error
        // would make it ask for every file), holes, copies, access(2).
        _ => Errno::ENOSYS,
    }
}

fn name<'a>(request: &mut Request<'a>) -> Result<&'a OsStr> {
    cut(request.body.name()).map(OsStr::from_bytes)
}

impl Adapter {
    /// Whether the caller may use the mount at all: with `allow_other` the kernel lets every user through.
    fn is_admitted(&self, request: &Request<'_>) -> bool {
        let uid = request.header.uid;
        let is_let_in = match self.acl {
            SessionACL::All => true,
            SessionACL::RootAndOwner => uid == self.owner || uid == 0,
            SessionACL::Owner => uid == self.owner,
        };
        // Requests that the kernel makes on its own behalf, or for open files.
        let of_nobody = matches!(
            request.header.opcode,
            opcode::FORGET
                | opcode::BATCH_FORGET
                | opcode::DESTROY
                | opcode::NOTIFY_REPLY
                | opcode::READ
                | opcode::WRITE
                | opcode::FLUSH
                | opcode::FSYNC
                | opcode::FSYNCDIR
                | opcode::RELEASE
                | opcode::RELEASEDIR
                | opcode::READDIR
                | opcode::READDIRPLUS
        );
        is_let_in || of_nobody
    }

    fn setattr(&self, request: &mut Request<'_>) -> Result<crate::fs::tree::node::Entry> {
        let SetattrIn { valid, size, fh, .. } = cut(request.body.take())?;
        let size = (valid & fattr::SIZE != 0).then_some(size);
        let times = valid & (fattr::ATIME | fattr::MTIME | fattr::ATIME_NOW | fattr::MTIME_NOW) != 0;
        let other = valid & (fattr::MODE | fattr::UID | fattr::GID) != 0;
        let entry = self.tree.setattr(Ino(request.header.nodeid), size, times, other, &caller(request))?;
        if let Some(size) = size.filter(|_| valid & fattr::FH != 0) {
            self.tree.truncate(fh, size)?;
        }
        Ok(entry)
    }

    fn write(&self, mut request: Request<'_>) -> Result<usize> {
        let WriteIn { fh, offset, size, write_flags, lock_owner, flags, .. } = cut(request.body.take())?;
        let data = cut(usize::try_from(size).ok().and_then(|size| request.body.bytes(size)))?;
        let by = WriteBy {
            at: (flags & libc::O_APPEND == 0).then_some(offset),
            owner: (write_flags & WRITE_LOCKOWNER != 0).then_some(lock_owner),
        };
        self.tree.write(fh, data, by)
    }

    fn create(&self, mut request: Request<'_>, reply: Reply) {
        let created = cut(request.body.take()).and_then(|CreateIn { flags, umask, .. }| {
            let (name, caller) = (name(&mut request)?, caller(&request).with_umask(umask));
            self.tree.create(Ino(request.header.nodeid), name, access(flags)?, &caller)
        });
        match created.and_then(|(entry, fh)| Ok((entry, fh, self.tree.files.get(fh)?))) {
            Ok((entry, fh, open)) => reply.created(&entry, fh, open_flags(&open)),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, mut request: Request<'_>, reply: Reply) {
        let ino = request.header.nodeid;
        let opened = cut(request.body.take())
            .and_then(|OpenIn { flags, .. }| {
                let access = access(flags)?;
                self.tree.open(Ino(ino), access, &caller_who(&request, access != Access::Read))
            })
            .and_then(|fh| Ok((fh, self.tree.files.get(fh)?)));
        let (fh, open) = match opened {
            Ok(opened) => opened,
            Err(errno) => return reply.error(errno),
        };
        let Some(file) = open.handle.backing() else { return reply.opened(fh, open_flags(&open), 0) };
        let way = self.passthrough.share(ino, fh, |file| reply.device().open_backing(file), file);
        match way.as_deref() {
            Some(Some(backing)) => reply.opened(fh, fopen::PASSTHROUGH | fopen::NOFLUSH, backing.id),
            _ => reply.opened(fh, open_flags(&open), 0),
        }
    }

    fn read(&self, mut request: Request<'_>, reply: Reply) {
        let Some(ReadIn { fh, offset, size, flags, read_flags, .. }) = request.body.take() else {
            return reply.error(Errno::EIO);
        };
        let Ok(open) = self.tree.files.get(fh) else { return reply.error(Errno::EBADF) };
        let size = size as usize;
        // read(2) sets a lock owner; the kernel does not when it fills its own pages.
        if read_flags & READ_LOCKOWNER == 0 {
            let pages = self.tree.read_pages(&open, offset, size, request.header.pid);
            return reply.data(pages.as_deref().map_err(|errno| *errno));
        }
        BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            match self.tree.read(&open, offset, size, buffer) {
                Ok(Progress::Done) => reply.data(Ok(buffer)),
                Ok(Progress::Wait(_)) if flags & libc::O_NONBLOCK != 0 => {
                    reply.error(poll::found_nothing(self.tree.watches(), &open).err().unwrap_or(Errno::EAGAIN));
                }
                Ok(Progress::Wait(queues)) => {
                    let share = match self.tree.charge_waiting(&open, &queues) {
                        Ok(share) => share,
                        Err(errno) => return reply.error(errno),
                    };
                    let unique = reply.unique();
                    let parked = Arc::clone(&self.parked);
                    let answer: Answer = Box::new(move |result| {
                        parked.forget(unique);
                        reply.data(result);
                    });
                    let read = Arc::new(ParkedRead::new(answer, open, (offset, size), request.header.pid, share));
                    match self.parked.enter(unique, &read, is_interrupted) {
                        Ok(()) => self.tree.park(&queues, &read),
                        Err(errno) => read.end(errno),
                    }
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdir(&self, mut request: Request<'_>, reply: Reply) {
        let Some(ReadIn { fh, offset, size, .. }) = request.body.take() else { return reply.error(Errno::EIO) };
        BUFFER.with_borrow_mut(|buffer| {
            let mut lines = Lines::new(buffer, size as usize);
            let result = if request.header.opcode == opcode::READDIR {
                self.tree.readdir(fh, offset, |item, _, next| lines.add(item, next))
            } else {
                self.tree.readdir_plus(fh, offset, |name, entry, next| lines.add_entry(name, entry, next))
            };
            reply.data(result.map(|()| buffer.as_slice()));
        });
    }

    fn poll(&self, mut request: Request<'_>, reply: Reply) {
        let Some(PollIn { fh, kh, flags, .. }) = request.body.take() else { return reply.error(Errno::EIO) };
        let device = Arc::clone(reply.device());
        let notify: Option<Notify> =
            if flags & POLL_SCHEDULE_NOTIFY != 0 { Some(Box::new(move || device.notify_poll(kh))) } else { None };
        match self.tree.poll(fh, notify) {
            Ok(is_ready) => reply.polled(if is_ready { READY } else { 0 }),
            Err(errno) => reply.error(errno),
        }
    }
}
