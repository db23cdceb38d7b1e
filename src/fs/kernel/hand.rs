//! The thread that uses the file system of `pages`, which its own process serves.
//!
//! A process that waits for a file system of its own can't be killed: the wait ends when the device is closed, the
//! device is closed with the table of descriptors, and the table goes with the last thread that uses it, which is the
//! one that waits. So this thread has a table of its own, without the device in it. It does nothing but these few
//! system calls, with descriptors that it opened itself; in between it waits for orders. Nor must the other threads wait
//! for that file system, not even as they end: see [`Order::Open`].

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

use crate::queue::leave_descriptor_table;

/// What the thread can be asked to do; each order is answered when it is done.
enum Order {
    /// Opens a file and keeps it; the answer is its descriptor in the thread's table. From then on no close waits.
    Open(u64, Sender<io::Result<RawFd>>),
    Write {
        number: u64,
        offset: u64,
        bytes: Vec<u8>,
        done: Sender<io::Result<()>>,
    },
    Close(u64),
}

/// The thread, from outside.
pub(super) struct Hand {
    orders: Sender<Order>,
    thread: OwnedFd,
}

impl Hand {
    /// Starts the thread, which mounts a file system that has no place in the tree. Returns its device too, to be
    /// served from now on: nothing else may be asked of the thread before.
    pub(super) fn start() -> io::Result<(Self, OwnedFd)> {
        let (orders, receiver) = channel();
        let (tell, told) = channel();
        std::thread::Builder::new().name("chronfs-hand".into()).stack_size(256 << 10).spawn(move || {
            match mount() {
                Ok((device, root)) => {
                    let (copied, was_copied) = channel::<()>();
                    let sent = tell.send(Ok((rustix::thread::gettid(), device.as_raw_fd(), copied)));
                    // Ends when the other side has its copy, or has given up.
                    let _ = was_copied.recv();
                    drop(device);
                    if sent.is_ok() {
                        obey(&root, &receiver);
                    }
                }
                Err(error) => drop(tell.send(Err(error))),
            }
        })?;
        let (tid, device, _copied): (Pid, RawFd, Sender<()>) = told.recv().map_err(io::Error::other)??;
        // PIDFD_THREAD has this value.
        let flags = PidfdFlags::from_bits_retain(libc::O_EXCL.unsigned_abs());
        let thread = rustix::process::pidfd_open(tid, flags)?;
        let device = rustix::process::pidfd_getfd(&thread, device, PidfdGetfdFlags::empty())?;
        Ok((Self { orders, thread }, device))
    }

    /// Opens a file for reading and writing. The thread keeps it open too.
    pub(super) fn open(&self, number: u64) -> io::Result<File> {
        let fd = self.ask(|done| Order::Open(number, done))??;
        Ok(rustix::process::pidfd_getfd(&self.thread, fd, PidfdGetfdFlags::empty())?.into())
    }

    /// Writes into a file that the thread keeps open.
    pub(super) fn write(&self, number: u64, offset: u64, bytes: Vec<u8>) -> io::Result<()> {
        self.ask(|done| Order::Write { number, offset, bytes, done })?
    }

    /// Lets the thread close a file.
    pub(super) fn close(&self, number: u64) {
        // Without the thread it is closed already.
        let _ = self.orders.send(Order::Close(number));
    }

    fn ask<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> io::Result<T> {
        let (done, answer) = channel();
        self.orders.send(order(done)).map_err(|_| io::Error::from_raw_os_error(libc::EIO))?;
        answer.recv().map_err(|_| io::Error::from_raw_os_error(libc::EIO))
    }
}

/// The device and the root directory of a new file system, in a table of descriptors with nothing else in it.
fn mount() -> io::Result<(OwnedFd, OwnedFd)> {
    leave_descriptor_table()?;
    // What a panic has to say must not go into the device; nor may anybody wait for the end of our copy of a pipe.
    for _standard_stream in 0..3 {
        std::mem::forget(rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?);
    }
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

fn obey(root: &OwnedFd, orders: &Receiver<Order>) {
    let mut files: HashMap<u64, File> = HashMap::new();
    for order in orders {
        // Whoever has given up waiting needs no answer.
        match order {
            Order::Open(number, done) => {
                let flags = OFlags::RDWR | OFlags::CLOEXEC;
                let opened = rustix::fs::openat(root, number.to_string(), flags, Mode::empty()).map(File::from);
                let fd = opened.map_err(io::Error::from).and_then(|file| {
                    // The first close of all is a request, which teaches the kernel to do without for good. It must not
                    // be the one that the end of the process brings about.
                    drop(file.try_clone()?);
                    Ok(files.entry(number).insert_entry(file).get().as_raw_fd())
                });
                let _ = done.send(fd);
            }
            Order::Write { number, offset, bytes, done } => {
                let gone = || io::Error::from_raw_os_error(libc::EBADF);
                let file = files.get(&number).ok_or_else(gone);
                let _ = done.send(file.and_then(|file| file.write_all_at(&bytes, offset)));
            }
            Order::Close(number) => drop(files.remove(&number)),
        }
    }
}
