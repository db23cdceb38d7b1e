//! Client threads of the private page-cache file system, which their own process serves.
//!
//! A process that waits for a file system that it serves itself can't be killed: the wait ends when the device is
//! closed, the device is closed with the descriptor table, and the table goes with the last thread that uses it, which
//! is the waiting one. So each of these threads has its own descriptor table, without the device. They make only these
//! few system calls, each on a copy of a descriptor; in between they wait for orders. Nor must the other threads wait
//! for that file system, not even as they end: the last descriptor of a file is closed here, see [`Call`].
//!
//! A write takes as long as rendering its text: for ever, if a file system does not answer. So each order has its own
//! thread, and one payer's orders have at most a few threads at the same time.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

use crate::fs::backing::Payer;
use crate::fs::lock;
use crate::queue::leave_descriptor_table;

/// Threads in all. Idle ones cost a few KiB each.
const MAX_THREADS: usize = 64;
/// Idle threads beyond this number end.
const MAX_IDLE: usize = 2;

/// An order to a thread.
enum Call {
    /// Opens a file.
    Open(u64, Sender<io::Result<Offer>>),
    /// Writes to the file that has this descriptor in the other threads' table; they keep it open meanwhile.
    Write { fd: RawFd, offset: u64, bytes: Vec<u8>, done: Sender<io::Result<()>> },
    /// Closes a file after the other threads have closed it.
    Close { fd: RawFd, has_copy: Sender<()>, are_done: Receiver<()> },
}

/// A descriptor in the table of a thread, which keeps it open until this is dropped.
struct Offer {
    thread: Pid,
    fd: RawFd,
    _keeps: Sender<()>,
}

impl Offer {
    /// Offers a descriptor of this thread; returns when the other side has its copy, or has given up.
    fn make(fd: &impl AsRawFd, to: &Sender<io::Result<Self>>) -> bool {
        let (keeps, kept) = channel();
        let offer = Self { thread: rustix::thread::gettid(), fd: fd.as_raw_fd(), _keeps: keeps };
        let is_heard = to.send(Ok(offer)).is_ok();
        let _ = kept.recv();
        is_heard
    }

    fn take(&self) -> io::Result<OwnedFd> {
        copy_of(&thread(self.thread)?, self.fd)
    }
}

/// The interface to the threads.
pub(in crate::fs) struct Clients {
    /// The first thread, and the root directory in its table. It never ends.
    first: (Pid, RawFd),
    state: Mutex<State>,
    freed: Condvar,
}

/// An order, with the sender of the thread that executes it: no thread keeps its own sender, so that the threads end
/// with [`Clients`].
type Job = (Call, Jobs);

#[derive(Clone)]
struct Jobs(Sender<Job>);

#[derive(Default)]
struct State {
    idle: Vec<Jobs>,
    threads: usize,
    /// Number of writes by payer.
    busy: HashMap<Payer, usize>,
}

impl Clients {
    /// Starts the first thread, which creates a file system that is not attached to any directory. Returns its device
    /// too, which must be served before the threads are used.
    pub(in crate::fs) fn start() -> io::Result<(Arc<Self>, OwnedFd)> {
        let (tell, told) = channel();
        let (give, given) = channel::<(Weak<Self>, Receiver<Job>)>();
        spawn(move || {
            let (device, root) = match mount() {
                Ok(mounted) => mounted,
                Err(error) => return drop(tell.send(Err(error))),
            };
            let (say_root, root_fd) = (tell.clone(), root.as_raw_fd());
            if !Offer::make(&device, &tell) {
                return;
            }
            drop(device);
            let (keeps, _) = channel();
            let _ = say_root.send(Ok(Offer { thread: rustix::thread::gettid(), fd: root_fd, _keeps: keeps }));
            if let Ok((clients, jobs)) = given.recv() {
                serve(&root, &clients, &jobs, true);
            }
        })?;
        let hear = || told.recv().map_err(io::Error::other)?;
        let device = hear()?.take()?;
        let root: Offer = hear()?;
        let (sender, jobs) = channel();
        let state = State { idle: vec![Jobs(sender)], threads: 1, busy: HashMap::new() };
        let first = (root.thread, root.fd);
        let clients = Arc::new(Self { first, state: Mutex::new(state), freed: Condvar::new() });
        give.send((Arc::downgrade(&clients), jobs)).map_err(|_| broken())?;
        Ok((clients, device))
    }

    /// Opens a file for reading and writing. It must be closed by [`Self::close`].
    pub(in crate::fs) fn open(self: &Arc<Self>, number: u64) -> io::Result<File> {
        let (done, answer) = channel();
        self.order(Call::Open(number, done))?;
        Ok(answer.recv().map_err(|_| broken())??.take()?.into())
    }

    /// Writes into a file.
    pub(in crate::fs) fn write(
        self: &Arc<Self>,
        payer: Payer,
        file: &File,
        offset: u64,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        let _turn = Turn::take(self, payer);
        let (done, answer) = channel();
        self.order(Call::Write { fd: file.as_raw_fd(), offset, bytes, done })?;
        answer.recv().map_err(|_| broken())?
    }

    /// Number of running writes.
    #[cfg(test)]
    pub(in crate::fs) fn writing(&self) -> usize {
        lock(&self.state).busy.values().sum()
    }

    /// Closes a file.
    pub(in crate::fs) fn close(self: &Arc<Self>, file: File) {
        let (has_copy, copied) = channel();
        let (done, are_done) = channel::<()>();
        if self.order(Call::Close { fd: file.as_raw_fd(), has_copy, are_done }).is_ok() {
            let _ = copied.recv();
        }
        drop(file);
        drop(done);
    }

    /// Passes an order to an idle thread; waits for one where no more may be started.
    fn order(self: &Arc<Self>, order: Call) -> io::Result<()> {
        let mut state = lock(&self.state);
        let thread = loop {
            if let Some(thread) = state.idle.pop() {
                break thread;
            }
            if state.threads < MAX_THREADS {
                let thread = self.add_thread()?;
                state.threads += 1;
                break thread;
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        thread.0.send((order, thread.clone())).map_err(|_| broken())
    }

    fn add_thread(self: &Arc<Self>) -> io::Result<Jobs> {
        let (sender, jobs) = channel();
        let (clients, (first, root)) = (Arc::downgrade(self), self.first);
        spawn(move || {
            let root = leave_table().and_then(|()| copy_of(&thread(first)?, root));
            match root {
                Ok(root) => serve(&root, &clients, &jobs, false),
                // Dropping the order answers it.
                Err(_) => drop(clients.upgrade().map(|clients| clients.leave())),
            }
        })?;
        Ok(Jobs(sender))
    }

    /// A thread has finished its order. False: it must end.
    fn is_free(&self, thread: Jobs, is_first: bool) -> bool {
        let mut state = lock(&self.state);
        if state.idle.len() < MAX_IDLE || is_first {
            state.idle.push(thread);
            self.freed.notify_all();
            return true;
        }
        drop(state);
        self.leave();
        false
    }

    fn leave(&self) {
        lock(&self.state).threads -= 1;
        self.freed.notify_all();
    }
}

/// A payer's use of one of the threads.
struct Turn<'a>(&'a Clients, Payer);

impl<'a> Turn<'a> {
    fn take(clients: &'a Clients, payer: Payer) -> Self {
        let mut state = lock(&clients.state);
        while !state.may_write(payer) {
            state = clients.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state.busy.entry(payer).or_default() += 1;
        Self(clients, payer)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Self(clients, payer) = self;
        let mut state = lock(&clients.state);
        if let Some(busy) = state.busy.get_mut(payer) {
            *busy -= 1;
            if *busy == 0 {
                state.busy.remove(payer);
            }
        }
        clients.freed.notify_all();
    }
}

impl State {
    /// A payer may have at most as many threads as remain free.
    fn may_write(&self, payer: Payer) -> bool {
        let own = self.busy.get(&payer).copied().unwrap_or(0);
        let in_all: usize = self.busy.values().sum();
        own < payer.at_once() && own + in_all + 2 <= MAX_THREADS
    }
}

fn spawn(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    crate::fs::spawn("chronfs-hand", 256 << 10, run)
}

fn broken() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

/// A pidfd of a thread, by which its descriptor table is reached.
fn thread(tid: Pid) -> io::Result<OwnedFd> {
    // PIDFD_THREAD has this value.
    let flags = PidfdFlags::from_bits_retain(libc::O_EXCL.unsigned_abs());
    Ok(rustix::process::pidfd_open(tid, flags)?)
}

fn copy_of(owner: &OwnedFd, fd: RawFd) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_getfd(owner, fd, PidfdGetfdFlags::empty())?)
}

/// Replaces this thread's descriptor table by an empty one.
fn leave_table() -> io::Result<()> {
    leave_descriptor_table()?;
    // The message of a panic must not be written to the device, and no process may wait for our copy of a pipe to be
    // closed.
    for _standard_stream in 0..3 {
        std::mem::forget(rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?);
    }
    Ok(())
}

/// The device and the root directory of a new file system, in a descriptor table with nothing else in it.
fn mount() -> io::Result<(OwnedFd, OwnedFd)> {
    leave_table()?;
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let words = [
        ("source", "chronfs-pages".to_owned()),
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", "40000".to_owned()),
        ("user_id", rustix::process::geteuid().as_raw().to_string()),
        ("group_id", rustix::process::getegid().as_raw().to_string()),
    ];
    for (key, value) in words {
        rustix::mount::fsconfig_set_string(&context, key, value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let safe = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, safe)?;
    Ok((device, root))
}

/// Executes orders, until no sender is left.
fn serve(root: &OwnedFd, clients: &Weak<Clients>, jobs: &Receiver<Job>, is_first: bool) {
    // The main thread of the process uses the other threads' table.
    let Ok(others) = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()) else { return };
    for (order, thread) in jobs {
        // A requester that has given up waiting needs no answer.
        match order {
            Call::Open(number, done) => {
                let flags = OFlags::RDWR | OFlags::CLOEXEC;
                let opened = rustix::fs::openat(root, number.to_string(), flags, Mode::empty()).map(File::from);
                // The very first close sends a request, whose answer makes the kernel send no more. It must not be the
                // one at the end of the process.
                let opened = opened.map_err(io::Error::from).and_then(|file| file.try_clone().map(|_| file));
                match opened {
                    Ok(file) => drop(Offer::make(&file, &done)),
                    Err(error) => drop(done.send(Err(error))),
                }
            }
            Call::Write { fd, offset, bytes, done } => {
                let file = copy_of(&others, fd).map(File::from);
                let _ = done.send(file.and_then(|file| file.write_all_at(&bytes, offset)));
            }
            Call::Close { fd, has_copy, are_done } => {
                let copy = copy_of(&others, fd);
                let _ = has_copy.send(());
                let _ = are_done.recv();
                drop(copy);
            }
        }
        if !clients.upgrade().is_some_and(|clients| clients.is_free(thread, is_first)) {
            return;
        }
    }
}
