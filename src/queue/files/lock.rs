//! Locks: who may write, and who uses a reader. The kernel's locks decide, held through descriptors; a lock is never
//! broken by force.
//!
//! A lock needs only a descriptor, and one opened for reading is enough to keep a writer out. So locks are on files of
//! their own, which only those who may write to the locked object can open, even to read. Others learn the holder from
//! the control block and the cursors.
//!
//! A lock file can be deleted or replaced under its holder. The control block says which one the writer holds; a
//! process that gets the lock on another one asks the kernel whether that one is still held ([`announced`]).

use std::fs::{File, Metadata, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchmod, fchown, fstatfs, statat};

use crate::queue::error::{Error, LockHolder, Result};
use crate::queue::files::dir::{Access, Dir};
use crate::queue::files::process::{Identity, Life, boot_id, command_of, heartbeat_age_ms, life_of, start_of};
use crate::queue::format::layout::{
    CONTROL_FILE, CONTROL_WRITER, CONTROL_WRITER_HEARTBEAT, LOCK_FILE, LOCK_SUFFIX, LivenessBlock, WriterBlock,
};
use crate::queue::os::mapping::Mapping;
use crate::queue::os::origin::Origin;
use crate::queue::os::sys;
use crate::sync::Ordering;

/// The writer lock, held until dropped.
#[derive(Debug)]
pub(crate) struct WriterLock {
    file: File,
    origin: Origin,
}

impl WriterLock {
    /// Takes the lock, or says who has it.
    pub(crate) fn take(dir: &Dir) -> Result<Self> {
        let lock_path = dir.path_of(LOCK_FILE);
        let control = dir.open_file(CONTROL_FILE, Access::Read).ok().flatten();
        let like = control.as_ref().unwrap_or(dir.file()).metadata().map_err(Error::io(dir.path(), "stat it"))?;
        loop {
            let file = open(dir, LOCK_FILE, &like)?;
            if !sys::try_lock(&file).map_err(Error::io(&lock_path, "lock it"))? {
                return Err(Error::Locked { path: dir.path().to_path_buf(), holder: holder(&file) });
            }
            // It may have been deleted since it was opened.
            if is_named(dir, LOCK_FILE, &file) {
                if let Err(error) = describe(&file) {
                    // A new lock file: there may be no room for its text.
                    if file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
                        let _ = dir.remove(LOCK_FILE);
                    }
                    return Err(Error::io(&lock_path, "write to it")(error));
                }
                dir.show_use();
                return Ok(Self { file, origin: Origin::here() });
            }
        }
    }

    /// Fails if another writer holds the queue by another lock file, which was deleted or replaced before we got this
    /// one.
    pub(crate) fn check_alone(&self, dir: &Dir, control: &Mapping) -> Result<()> {
        let block: WriterBlock = control.read(CONTROL_WRITER);
        let is_held = || is_in_table(&block) || (is_layered(dir) && is_ticking(control, &block));
        if block.pid.get() != 0 && !is_of(&block, &self.file) && is_held() {
            let holder = announced(&block).map_or(LockHolder::Unknown, |(_, holder)| holder);
            return Err(Error::Locked { path: dir.path().to_path_buf(), holder });
        }
        Ok(())
    }

    /// Whether another process holds the current lock file: then both of us write.
    pub(crate) fn is_contested(&self, dir: &Dir) -> bool {
        if is_named(dir, LOCK_FILE, &self.file) {
            return false;
        }
        let other = dir.open_file(LOCK_FILE, Access::Read).ok().flatten();
        other.is_some_and(|file| sys::is_locked(&file).unwrap_or(false))
    }

    /// Writes who and where we are into the control block's writer block.
    pub(crate) fn announce(&self, block: &mut WriterBlock) {
        let me = Identity::of_self();
        block.pid = me.pid.into();
        block.boot_id = boot_id();
        block.started = me.started.parse().unwrap_or(0).into();
        block.pid_namespace = me.namespace_number().into();
        if let Ok(metadata) = self.file.metadata() {
            (block.lock_inode, block.lock_device) = (metadata.ino().into(), device_number(&metadata).into());
        }
    }
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        if self.origin.is_here() {
            // See `sys::unlock`.
            sys::unlock(&self.file);
        }
    }
}

/// The lock of a process that changes or repairs the settings: a `flock` on the writer's lock file, which does not
/// concern the writer's own lock. Held until dropped.
#[derive(Debug)]
pub(crate) struct SettingsLock(File);

impl SettingsLock {
    /// Takes the lock; waits for another holder, but not for ever.
    pub(crate) fn take(dir: &Dir) -> Result<Self> {
        const PATIENCE: Duration = Duration::from_secs(5);
        const STEP: Duration = Duration::from_millis(2);
        let path = dir.path_of(LOCK_FILE);
        let control = dir.open_existing_file(CONTROL_FILE, Access::Read)?;
        let like = control.metadata().map_err(Error::io(dir.path(), "stat its control block"))?;
        let start = Instant::now();
        loop {
            let file = open(dir, LOCK_FILE, &like)?;
            match file.try_lock() {
                Ok(()) if is_named(dir, LOCK_FILE, &file) => return Ok(Self(file)),
                // It has been deleted since it was opened.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => std::thread::sleep(STEP),
                Err(TryLockError::WouldBlock) => {
                    let holder = flock_holder(&file);
                    return Err(Error::SettingsLocked { path: dir.path().to_path_buf(), holder });
                }
                Err(TryLockError::Error(error)) => return Err(Error::io(&path, "lock it")(error)),
            }
        }
    }
}

impl Drop for SettingsLock {
    fn drop(&mut self) {
        // See `sys::unlock`.
        let _ = self.0.unlock();
    }
}

/// Opens a lock file; creates it if it is missing. Only those who may write to `like` may open it.
pub(crate) fn open(dir: &Dir, name: &str, like: &Metadata) -> Result<File> {
    loop {
        if let Some(file) = dir.open_file(name, Access::Write)? {
            mend(&file, like);
            return Ok(file);
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        match sys::open_at(dir.fd(), name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => {
                mend(&file, like);
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(&dir.path_of(name), "create it")(error)),
        }
    }
}

/// Sets the owner and the permissions that a lock file should have. Best effort: without permission to change them, the
/// file is used as it is.
fn mend(file: &File, like: &Metadata) {
    let Ok(metadata) = file.metadata() else { return };
    let is_root = rustix::process::geteuid().is_root();
    if is_root && metadata.uid() == 0 && like.uid() != 0 {
        let _ = fchown(file, Some(Uid::from_raw(like.uid())), Some(Gid::from_raw(like.gid())));
    } else if metadata.gid() != like.gid() {
        let _ = fchown(file, None, Some(Gid::from_raw(like.gid())));
    }
    let writers = like.mode() & 0o222 | 0o200;
    let mode = writers | writers << 1;
    if metadata.mode() & 0o777 != mode {
        // After the change of owner, which clears bits.
        let _ = fchmod(file, Mode::from_raw_mode(mode));
    }
}

/// Whether this file has the name now.
pub(crate) fn is_named(dir: &Dir, name: &str, file: &File) -> bool {
    let named = statat(dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW);
    let this = file.metadata();
    matches!((named, this), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.dev(), b.ino()))
}

/// The holder of the lock on this file; None if it is not held.
pub(crate) fn lock_holder(file: &File) -> io::Result<Option<LockHolder>> {
    Ok(sys::is_locked(file)?.then(|| holder(file)))
}

/// Writes who we are into a lock file, for people and for [`holder`].
fn describe(file: &File) -> io::Result<()> {
    let me = Identity::of_self();
    let text = format!("pid {}\nstarted {}\nboot {}\npid_namespace {}\n", me.pid, me.started, me.boot, me.namespace);
    let len = text.len() as u64;
    sys::check_size_limit(len)?;
    // Overwrites the old text: on a full disk there is no other room.
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(len)
}

/// The holder of a lock according to its file, if it can be identified from here.
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

/// The writer that the control block names: whether it is alive, and who it is. None if it has closed the queue.
pub(crate) fn announced(block: &WriterBlock) -> Option<(Life, LockHolder)> {
    let pid = Some(block.pid.get()).filter(|&pid| pid != 0)?;
    let life = life_of(pid, block.started.get(), block.boot_id, block.pid_namespace.get());
    let holder = match life {
        Life::Alive => LockHolder::Process { pid, command: command_of(pid) },
        Life::Gone | Life::Unknown => LockHolder::Unknown,
    };
    Some((life, holder))
}

/// The process that uses a reader, according to its cursor.
pub(crate) fn holder_of(block: Option<&LivenessBlock>) -> LockHolder {
    let life =
        |block: &LivenessBlock| life_of(block.pid.get(), block.started.get(), block.boot_id, block.pid_namespace.get());
    match block.filter(|block| block.pid.get() != 0 && life(block) == Life::Alive) {
        Some(block) => LockHolder::Process { pid: block.pid.get(), command: command_of(block.pid.get()) },
        None => LockHolder::Unknown,
    }
}

/// Whether this is the lock file that the announced writer holds.
pub(crate) fn is_of(block: &WriterBlock, lock: &File) -> bool {
    let of_block = (block.lock_inode.get(), block.lock_device.get());
    lock.metadata().is_ok_and(|metadata| (metadata.ino(), device_number(&metadata)) == of_block)
}

/// A device number in the kernel's form.
fn device_number(metadata: &Metadata) -> u32 {
    libc::major(metadata.dev()) << 20 | libc::minor(metadata.dev())
}

/// Whether the kernel's table of locks has that of the announced writer. Slow if there are many locks: for the rare
/// case that a lock file has been replaced.
fn is_in_table(block: &WriterBlock) -> bool {
    find_in_table(block.lock_device.get(), block.lock_inode.get(), |kind, access, _| {
        (kind == "OFDLCK" && access == "WRITE").then_some(())
    })
    .is_some()
}

/// The process with a `flock` on this file, if it can be identified from here.
fn flock_holder(file: &File) -> LockHolder {
    let metadata = file.metadata().ok();
    let pid = metadata.and_then(|metadata| {
        let pid = |kind: &str, _: &str, pid: &str| if kind == "FLOCK" { pid.parse().ok() } else { None };
        find_in_table(device_number(&metadata), metadata.ino(), pid)
    });
    let pid = pid.filter(|&pid: &u32| pid > 0);
    pid.map_or(LockHolder::Unknown, |pid| LockHolder::Process { pid, command: command_of(pid) })
}

/// Searches the kernel's table for locks on a file, each with its kind, access and process.
fn find_in_table<T>(device: u32, inode: u64, found: impl Fn(&str, &str, &str) -> Option<T>) -> Option<T> {
    let place = format!("{:02x}:{:02x}:{inode}", device >> 20, device & 0xF_FFFF);
    // `1: OFDLCK ADVISORY  WRITE -1 08:01:5678 0 EOF`
    let table = std::fs::read("/proc/locks").unwrap_or_default();
    String::from_utf8_lossy(&table).lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [_, kind, _, access, pid, at, ..] if at == place => found(kind, access, pid),
        _ => None,
    })
}

/// Whether the file system may show the same files with other device or inode numbers elsewhere, or with other numbers
/// than the table of locks: an overlay, btrfs.
fn is_layered(dir: &Dir) -> bool {
    const OVERLAY: u64 = 0x794c_7630;
    const BTRFS: u64 = 0x9123_683E;
    fstatfs(dir.file()).is_ok_and(|stat| [OVERLAY, BTRFS].contains(&u64::try_from(stat.f_type).unwrap_or(0)))
}

/// Whether the announced writer still stores heartbeats, one a second.
fn is_ticking(control: &Mapping, block: &WriterBlock) -> bool {
    const TWO_TICKS: Duration = Duration::from_millis(2_500);
    let is_old = heartbeat_age_ms(block.heartbeat_boot_ns.get(), block.boot_id).is_some_and(|age_ms| age_ms > 10_000);
    if is_old || announced(block).is_none_or(|(life, _)| life == Life::Gone) {
        return false;
    }
    let stamp = || u64::from_le(control.word64(CONTROL_WRITER_HEARTBEAT).load(Ordering::Relaxed));
    let (first, start) = (stamp(), Instant::now());
    while start.elapsed() < TWO_TICKS {
        if stamp() != first {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// The name of the file that the user of a reader locks.
pub(crate) fn reader_lock_name(reader: &str) -> String {
    format!("{reader}{LOCK_SUFFIX}")
}

/// Takes the lock of a reader; `cursor` is its cursor file, for the permissions.
pub(crate) fn take_reader(readers: &Dir, reader: &str, cursor: &File, holder: impl Fn() -> LockHolder) -> Result<File> {
    let name = reader_lock_name(reader);
    let path = readers.path_of(&name);
    let like = cursor.metadata().map_err(Error::io(&path, "stat its cursor file"))?;
    loop {
        let file = open(readers, &name, &like)?;
        if !sys::try_lock(&file).map_err(Error::io(&path, "lock it"))? {
            return Err(Error::ReaderInUse {
                path: readers.path_of(&crate::queue::files::cursor::file_name(reader)),
                holder: holder(),
            });
        }
        if is_named(readers, &name, &file) {
            return Ok(file);
        }
    }
}

/// Whether the lock of a reader is held; None if it can't be examined.
pub(crate) fn is_reader_locked(readers: &Dir, reader: &str) -> Option<bool> {
    match readers.open_file(&reader_lock_name(reader), Access::Read) {
        Ok(Some(file)) => sys::is_locked(&file).ok(),
        Ok(None) => Some(false),
        Err(_) => None,
    }
}
