//! Locks: who may write. The kernel's locks decide, held through descriptors; nothing is ever broken by force.
//!
//! The writer holds two: one on the queue's directory itself, which can't be deleted or replaced while it is held, and
//! one on `writer.lock`, which anybody can ask about without taking it, even from another pid namespace. What
//! stands in the file is for people.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::dir::Dir;
use super::error::{Error, LockHolder, Result};
use super::layout::LOCK_FILE;
use super::sys;
use crate::clock;

/// The writer lock, held until dropped.
#[derive(Debug)]
pub(crate) struct WriterLock {
    directory: Dir,
    file: File,
}

impl WriterLock {
    /// Takes both locks, or says who has them.
    pub(crate) fn take(dir: &Dir) -> Result<Self> {
        let (path, lock_path) = (dir.path(), dir.path_of(LOCK_FILE));
        // A second open of the same directory: the lock belongs to this open file, not to the process.
        let guard = dir.open_dir(".").map_err(Error::io(path, "open it to lock it"))?;
        let file = dir.open_or_create_file(LOCK_FILE)?;
        let locked = || {
            // The file may be another one than the writer's: somebody has deleted that.
            let of_file = lock_holder(&file).ok().flatten();
            let holder = of_file.or_else(|| directory_holder(dir)).unwrap_or(LockHolder::Unknown);
            Error::Locked { path: path.to_path_buf(), holder }
        };
        match guard.file().try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked()),
            // A file system without locks on directories: the lock on the file must do.
            Err(TryLockError::Error(error)) if is_unsupported(&error) => {}
            Err(TryLockError::Error(error)) => return Err(Error::io(path, "lock it")(error)),
        }
        if !sys::try_lock(&file).map_err(Error::io(&lock_path, "lock it"))? {
            return Err(locked());
        }
        describe(&file).map_err(Error::io(&lock_path, "write to it"))?;
        Ok(Self { directory: guard, file })
    }
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        // See `sys::unlock`.
        sys::unlock(&self.file);
        let _ = self.directory.file().unlock();
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS))
}

/// Says who holds the lock on this file; None if nobody does.
pub(crate) fn lock_holder(file: &File) -> io::Result<Option<LockHolder>> {
    Ok(sys::is_locked(file)?.then(|| holder(file)))
}

/// Writes who we are into a lock file, for people and for [`holder`].
fn describe(file: &File) -> io::Result<()> {
    let me = Identity::of_self();
    let text = format!("pid {}\nstarted {}\nboot {}\npid_namespace {}\n", me.pid, me.started, me.boot, me.namespace);
    sys::check_size_limit(text.len() as u64)?;
    file.set_len(0)?;
    file.write_all_at(text.as_bytes(), 0)
}

/// Who a lock file says holds it, if that can be told from here.
fn holder(file: &File) -> LockHolder {
    let mut text = [0; 512];
    let count = file.read_at(&mut text, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&text[..count]);
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let (Some(pid), Some(started), Some(boot), Some(namespace)) =
        (field("pid").and_then(|pid| pid.parse().ok()), field("started"), field("boot"), field("pid_namespace"))
    else {
        return LockHolder::Unknown;
    };
    let me = Identity::of_self();
    if boot != me.boot || namespace != me.namespace || start_of(pid) != started {
        return LockHolder::Unknown;
    }
    LockHolder::Process { pid, command: command_of(pid) }
}

/// What tells a process from every other one, so that a reused pid is not taken for its predecessor.
struct Identity {
    pid: u32,
    started: String,
    boot: String,
    namespace: String,
}

impl Identity {
    fn of_self() -> Self {
        let pid = std::process::id();
        let namespace = std::fs::read_link("/proc/self/ns/pid").map(|l| l.to_string_lossy().into_owned());
        Self { pid, started: start_of(pid), boot: clock::boot_id(), namespace: namespace.unwrap_or_default() }
    }
}

/// When a process started, in clock ticks since boot as the kernel prints it; empty where it can't be read.
pub(crate) fn start_of(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command name may hold spaces and parentheses: count fields after the last one.
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after.split_whitespace().nth(19).unwrap_or("").to_owned()
}

/// Who holds the writer's lock on the queue's directory itself, as the kernel's table of locks has it; None if nobody
/// does, or where that can't be told: other pid namespaces are not in the table, and some file systems stand in it
/// under a device of their own. For when the lock file says that there is no writer, but may not be the writer's.
pub(crate) fn directory_holder(dir: &Dir) -> Option<LockHolder> {
    let metadata = dir.file().metadata().ok()?;
    let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    // The kernel gives the table in pieces, by position: locks that come and go meanwhile can hide one.
    let pid = (0..LOOKS).find_map(|_| {
        let table = std::fs::read("/proc/locks").ok()?;
        // `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`
        let table = String::from_utf8_lossy(&table);
        let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.find_map(|fields| match fields[..] {
            [_, "FLOCK", _, _, pid, at, ..] if at == place => pid.parse().ok(),
            _ => None,
        })
    })?;
    Some(LockHolder::Process { pid, command: command_of(pid) })
}

/// How often the kernel's table of locks is looked at before a lock is taken not to be there.
const LOOKS: u32 = 4;

fn command_of(pid: u32) -> String {
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    command.trim_end().to_owned()
}

/// The identity of this boot, as it is stored beside boot-time stamps; zeros where it can't be had.
pub(crate) fn boot_id() -> [u8; 16] {
    let hex: Vec<u8> = clock::boot_id().bytes().filter(u8::is_ascii_hexdigit).collect();
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(hex.chunks_exact(2)) {
        let digits = std::str::from_utf8(pair).unwrap_or("");
        *byte = u8::from_str_radix(digits, 16).unwrap_or(0);
    }
    id
}

/// A lock on a cursor file: this reader is in use. Held until dropped.
pub(crate) fn take_cursor(file: &File, path: &Path, pid: u32) -> Result<()> {
    if sys::try_lock(file).map_err(Error::io(path, "lock it"))? {
        return Ok(());
    }
    let holder = match pid {
        0 => LockHolder::Unknown,
        pid => LockHolder::Process { pid, command: command_of(pid) },
    };
    Err(Error::ReaderInUse { path: path.to_path_buf(), holder })
}
