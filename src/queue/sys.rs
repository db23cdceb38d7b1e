//! The system calls that `std` does not offer, one small safe function each.
//!
//! Everything here takes borrowed descriptors and plain values and returns `io::Result`. Interrupted calls are
//! retried where that is what every caller wants.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_name(name: &str) -> io::Result<CString> {
    CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Opens `name`, one path component, in `dir`; never through a symbolic link, never waiting for a FIFO's other end.
pub(crate) fn open_at(dir: BorrowedFd<'_>, name: &str, flags: libc::c_int, mode: u32) -> io::Result<File> {
    if name.contains('/') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let name = c_name(name)?;
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    loop {
        // SAFETY: `name` is NUL-terminated and lives through the call; the flags ask for no more arguments than `mode`.
        match check(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, mode) }) {
            // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
            Ok(fd) => return Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) })),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Renames `from` to `to` in `dir`; fails with `AlreadyExists` where `to` is there and `replace` is not wanted.
pub(crate) fn rename_at(dir: BorrowedFd<'_>, from: &str, to: &str, replace: bool) -> io::Result<()> {
    let (from, to) = (c_name(from)?, c_name(to)?);
    let flags = if replace { 0 } else { libc::RENAME_NOREPLACE };
    // SAFETY: both names are NUL-terminated and live through the call.
    let done = check(unsafe { libc::renameat2(dir.as_raw_fd(), from.as_ptr(), dir.as_raw_fd(), to.as_ptr(), flags) });
    match done {
        // Some file systems know no flags: `link` refuses an existing name just as well.
        Err(error) if !replace && error.raw_os_error() == Some(libc::EINVAL) => {
            let raw = dir.as_raw_fd();
            // SAFETY: as above.
            check(unsafe { libc::linkat(raw, from.as_ptr(), raw, to.as_ptr(), 0) })?;
            // SAFETY: as above.
            check(unsafe { libc::unlinkat(raw, from.as_ptr(), 0) }).map(drop)
        }
        done => done.map(drop),
    }
}

/// Removes the file `name` from `dir`.
pub(crate) fn unlink_at(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let name = c_name(name)?;
    // SAFETY: `name` is NUL-terminated and lives through the call.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

/// Makes the directory `name` in `dir`.
pub(crate) fn mkdir_at(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let name = c_name(name)?;
    // SAFETY: `name` is NUL-terminated and lives through the call.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), 0o777) }).map(drop)
}

/// Fails where the process may not make a file this long: to be asked before writing, because the kernel's answer is
/// SIGXFSZ.
pub(crate) fn check_size_limit(len: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    check(unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) })?;
    if limit.rlim_cur != libc::RLIM_INFINITY && limit.rlim_cur < len {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    Ok(())
}

/// Makes `file` `len` bytes long with every block allocated, so that storing into a mapping of it can't run out of
/// space.
pub(crate) fn allocate(file: &File, len: u64) -> io::Result<()> {
    check_size_limit(len)?;
    let signed = i64::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    loop {
        // SAFETY: a plain call on a descriptor that we borrow.
        match check(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, signed) }) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // No fallocate on this file system: write the zeros.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return write_zeros(file, len),
            Err(error) => return Err(error),
        }
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

/// Writes bytes, and returns when the disk has them. Nothing else of the file is synced.
pub(crate) fn write_synced(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    use rustix::io::{Errno, ReadWriteFlags, pwritev2};
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

/// The next offset at or after `from` where the file holds data rather than a hole; None if there is none.
pub(crate) fn seek_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: a plain call on a descriptor that we borrow; nobody relies on its file offset.
    let at = unsafe { libc::lseek(file.as_raw_fd(), from, libc::SEEK_DATA) };
    if at < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) };
    }
    Ok(u64::try_from(at).ok())
}

fn whole_file_lock(kind: libc::c_int) -> libc::flock {
    // The constants are small; the fields are short.
    #[allow(clippy::cast_possible_truncation)]
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

/// Takes an exclusive lock on the whole file, owned by its open file description; false if somebody else has it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    let lock = whole_file_lock(libc::F_WRLCK);
    // SAFETY: `lock` is a valid description of a lock.
    match check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Lets go of the lock at once. Closing the file would do it only when no process that was forked in between, and has
/// not yet run its own program, holds a copy of the descriptor.
pub(crate) fn unlock(file: &File) {
    let lock = whole_file_lock(libc::F_UNLCK);
    // SAFETY: `lock` is a valid description of a lock. Nothing can be done about a failure: closing will unlock.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
}

/// Whether somebody else holds a lock on the file. Takes none.
pub(crate) fn is_locked(file: &File) -> io::Result<bool> {
    let mut lock = whole_file_lock(libc::F_WRLCK);
    // SAFETY: `lock` is a valid description of a lock and a valid place for the answer.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) })?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Gives the calling thread a table of descriptors of its own, with nothing in it, not even the standard streams. From then
/// on the numbers of other threads' descriptors mean nothing here, nor the other way round: the thread must use and
/// drop none but those that it opens itself.
pub(crate) fn leave_descriptor_table() -> io::Result<()> {
    // SAFETY: the flag makes a copy of the table first, so that nothing is closed that anybody else uses. What the thread
    // uses of the copy its caller answers for (see above).
    let done = unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `FUSE_DEV_IOC_BACKING_CLOSE`: the kernel need not read a file itself any more that it was told to by this number.
pub(crate) fn close_backing(device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    const BACKING_CLOSE: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<u32>(229, 2);
    // SAFETY: this operation reads a u32 and nothing else; other files than a FUSE device know it not.
    let close = unsafe { rustix::ioctl::Setter::<BACKING_CLOSE, u32>::new(id) };
    // SAFETY: as above.
    Ok(unsafe { rustix::ioctl::ioctl(device, close) }?)
}

/// fcntl(2): which signal tells of a lease that others want. The number is that of most architectures.
const F_SETSIG: libc::c_int = 10;

/// Whether no other descriptor and no other mapping of the file exists, in any process. Takes a write lease for a moment,
/// which the kernel grants only then; an error where the file system knows none, or the file is somebody else's.
pub(crate) fn is_open_here_only(file: &File) -> io::Result<bool> {
    let fd = file.as_raw_fd();
    // Whoever opens the file in this moment makes the kernel tell us, by a signal that is ignored unless somebody asked for
    // it. The usual one, SIGIO, would end the process.
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

/// A counter that can be polled: readable while it is not 0. Reads and writes don't wait.
pub(crate) fn event_counter() -> io::Result<File> {
    // SAFETY: a plain call.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// A random number for identities and salts.
pub(crate) fn random_u64() -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    // SAFETY: `bytes` is a valid place for that many bytes; requests this small are answered whole.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(got).ok() == Some(bytes.len()) {
        Ok(u64::from_le_bytes(bytes))
    } else {
        Err(io::Error::last_os_error())
    }
}
