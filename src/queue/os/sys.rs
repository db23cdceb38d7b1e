//! The system calls that `std` does not offer, one small safe function each; through rustix if it has them.
//!
//! Everything here takes borrowed descriptors and plain values and returns `io::Result`. Interrupted calls are
//! retried where that is what every caller wants.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;

use rustix::event::EventfdFlags;
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, RenameFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::Resource;
use rustix::rand::GetRandomFlags;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens `name`, one path component, in `dir`; never through a symbolic link, never waiting for a FIFO's other end.
pub(crate) fn open_at(dir: BorrowedFd<'_>, name: &str, flags: OFlags, mode: Mode) -> io::Result<File> {
    if name.contains('/') {
        return Err(Errno::INVAL.into());
    }
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    Ok(retry_on_intr(|| rustix::fs::openat(dir, name, flags, mode))?.into())
}

/// Renames `from` to `to` in `dir`; fails with `AlreadyExists` if `to` exists and `replace` is false.
pub(crate) fn rename_at(dir: BorrowedFd<'_>, from: &str, to: &str, replace: bool) -> io::Result<()> {
    let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    match rustix::fs::renameat_with(dir, from, dir, to, flags) {
        // Some file systems support no flags: `link` refuses an existing name just as well.
        Err(Errno::INVAL) if !replace => {
            rustix::fs::linkat(dir, from, dir, to, AtFlags::empty())?;
            unlink_at(dir, from)
        }
        done => Ok(done?),
    }
}

/// Removes the file `name` from `dir`.
pub(crate) fn unlink_at(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
}

/// Fails if the process may not create a file this long (RLIMIT_FSIZE): to be called before writing, because the kernel
/// would send SIGXFSZ.
pub(crate) fn check_size_limit(len: u64) -> io::Result<()> {
    match rustix::process::getrlimit(Resource::Fsize).current {
        Some(limit) if limit < len => Err(Errno::FBIG.into()),
        _ => Ok(()),
    }
}

/// Makes `file` `len` bytes long with every block allocated, so that storing into a mapping of it can't run out of
/// space.
pub(crate) fn allocate(file: &File, len: u64) -> io::Result<()> {
    check_size_limit(len)?;
    match retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len)) {
        // No fallocate on this file system: write the zeros.
        Err(Errno::OPNOTSUPP) => write_zeros(file, len),
        done => Ok(done?),
    }
}

fn write_zeros(file: &File, len: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let count = usize::try_from(len - at).unwrap_or(usize::MAX).min(zeros.len());
        file.write_all_at(&zeros[..count], at)?;
        at += count as u64;
    }
    Ok(())
}

/// Writes bytes and returns once the disk has them. Nothing else of the file is synced.
pub(crate) fn write_synced(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    use rustix::io::{ReadWriteFlags, pwritev2};
    while !bytes.is_empty() {
        match pwritev2(file, &[io::IoSlice::new(bytes)], offset, ReadWriteFlags::DSYNC) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => (bytes, offset) = (&bytes[count..], offset + count as u64),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The next offset at or after `from` where the file holds data rather than a hole; None if there is none. Moves the
/// file's own offset, on which nobody relies.
pub(crate) fn seek_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn whole_file_lock(kind: libc::c_int) -> libc::flock {
    // The constants are small; the fields are short.
    #[allow(clippy::cast_possible_truncation)]
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

/// Takes an exclusive lock on the whole file, owned by its open file description; false if another one holds it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    let lock = whole_file_lock(libc::F_WRLCK);
    // SAFETY: `lock` is a valid description of a lock.
    match check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Releases the lock at once. Closing the file would not, if a process forked in between that has not yet run its own
/// program holds a copy of the descriptor.
pub(crate) fn unlock(file: &File) {
    let lock = whole_file_lock(libc::F_UNLCK);
    // SAFETY: `lock` is a valid description of a lock. Nothing can be done about a failure: closing will unlock.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
}

/// Whether an exclusive lock on the file is held elsewhere. Takes none.
pub(crate) fn is_locked(file: &File) -> io::Result<bool> {
    let mut lock = whole_file_lock(libc::F_WRLCK);
    // SAFETY: `lock` is a valid description of a lock and valid for writing.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) })?;
    // A shared lock is never one of ours: it takes no permission to write.
    Ok(i32::from(lock.l_type) == libc::F_WRLCK)
}

/// Unshares the calling thread's descriptor table and empties it, including the standard streams. From then on the
/// numbers of other threads' descriptors mean nothing here, and vice versa: the thread must use and drop only those
/// that it opens itself.
pub(crate) fn leave_descriptor_table() -> io::Result<()> {
    // SAFETY: the flag copies the table first, so that nothing is closed that other threads use. The caller answers for
    // what the thread uses of the copy (see above).
    let done = unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns freed memory to the system, if the allocator keeps it. May take milliseconds.
pub(crate) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// `FUSE_DEV_IOC_BACKING_CLOSE`: ends passthrough to the backing file that was registered under this number.
pub(crate) fn close_backing(device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    const BACKING_CLOSE: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<u32>(229, 2);
    // SAFETY: this operation reads a u32 and nothing else; files other than a FUSE device do not support it.
    let close = unsafe { rustix::ioctl::Setter::<BACKING_CLOSE, u32>::new(id) };
    // SAFETY: as above.
    Ok(unsafe { rustix::ioctl::ioctl(device, close) }?)
}

/// fcntl(2): the signal by which the holder of a lease is told that others want it. The number is that of most
/// architectures.
const F_SETSIG: libc::c_int = 10;

/// Whether no other descriptor and no other mapping of the file exists, in any process. Takes a write lease for a
/// moment, which the kernel grants only then; an error if the file system does not support leases, or the file belongs
/// to another user.
pub(crate) fn is_open_here_only(file: &File) -> io::Result<bool> {
    let fd = file.as_raw_fd();
    // If the file is opened at this moment, the kernel sends a signal. SIGURG is ignored unless somebody asked for it;
    // the default, SIGIO, would end the process.
    // SAFETY: a plain call on a descriptor that we borrow.
    check(unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) })?;
    // SAFETY: as above.
    match check(unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK) }) {
        // SAFETY: as above.
        Ok(_) => check(unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) }).map(|_| true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// The processors on which the calling thread may run.
pub(crate) fn own_cpus() -> Option<impl Iterator<Item = usize>> {
    let set = rustix::thread::sched_getaffinity(None).ok()?;
    Some((0..rustix::thread::CpuSet::MAX_CPU).filter(move |&cpu| set.is_set(cpu)))
}

/// Moves the calling thread to these processors.
pub(crate) fn run_on(cpus: impl Iterator<Item = usize>) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    cpus.for_each(|cpu| set.set(cpu));
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Registers a function to be called in each child that is forked from now on, for as long as the program runs.
pub(crate) fn call_in_children(function: extern "C" fn()) {
    // `From` a safe function: the callee requires nothing of its caller.
    let function: unsafe extern "C" fn() = function;
    // SAFETY: the function is never unloaded before the program ends. On failure (no memory) children are not noticed.
    unsafe { libc::pthread_atfork(None, None, Some(function)) };
}

/// A counter that can be polled: readable while it is not 0. Reads and writes don't wait.
pub(crate) fn event_counter() -> io::Result<File> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?.into())
}

/// A random number for identities and salts.
pub(crate) fn random_u64() -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    // Requests this small are answered in full.
    let got = rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    if got == bytes.len() { Ok(u64::from_le_bytes(bytes)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Unshares the calling thread's umask, working directory and root.
pub(crate) fn leave_shared_umask() -> io::Result<()> {
    // SAFETY: a plain call; the thread only stops sharing three values with the others.
    check(unsafe { libc::unshare(libc::CLONE_FS) }).map(drop)
}

/// Sets the user and group by which the kernel judges the calling thread's access to files. Neither may be the highest
/// number, which means "unchanged".
pub(crate) fn set_file_ids(uid: u32, gid: u32) -> io::Result<()> {
    if uid == u32::MAX || gid == u32::MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: plain calls that affect this thread only. They return no errors: their effect is read back.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
    if file_ids() == (uid, gid) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

/// The user and group by which the kernel judges the calling thread's access to files.
pub(crate) fn file_ids() -> (u32, u32) {
    // SAFETY: plain calls, with a number that changes nothing.
    let (uid, gid) = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
    (uid.cast_unsigned(), gid.cast_unsigned())
}

/// Reads up to the whole buffer; less only at the end of the file.
pub(crate) fn read_some(file: &File, buffer: &mut [u8], offset: u32) -> std::io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match file.read_at(&mut buffer[count..], u64::from(offset) + count as u64) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}
