//! The directory that is mirrored, and the only way into it.
//!
//! Invariants: everything is reached from the root's descriptor, never by the root's path, so that a root that was
//! deleted or replaced gives ESTALE; no symlink is followed on the way, in any component, however fast somebody
//! swaps directories for links.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat, StatVfs, StatxFlags};

use super::attr::Kind;
use super::errno::{Errno, Result};

/// What a directory or file is, whatever its name: device and inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

impl FileId {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self { dev: stat.st_dev, ino: stat.st_ino }
    }
}

/// The root of the tree that is mirrored.
#[derive(Debug)]
pub(crate) struct Backing {
    root: OwnedFd,
    path: PathBuf,
    id: FileId,
}

impl Backing {
    /// Opens the root; `path` is absolute.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        let id = FileId::of(&rustix::fs::fstat(&root)?);
        Ok(Self { root, path: path.to_path_buf(), id })
    }

    /// The path by which people know a directory below the root. For messages only.
    pub(crate) fn shown_path(&self, relative: &Path) -> PathBuf {
        if relative.as_os_str().is_empty() { self.path.clone() } else { self.path.join(relative) }
    }

    /// Opens a directory below the root.
    pub(crate) fn directory(&self, relative: &Path) -> Result<Directory> {
        self.check()?;
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(&self.root, relative, flags, Mode::empty(), BENEATH)?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Directory { fd, stat })
    }

    /// The figures of the file system underneath.
    pub(crate) fn statvfs(&self) -> Result<StatVfs> {
        Ok(rustix::fs::fstatvfs(&self.root)?)
    }

    /// ESTALE once the root is no longer what its path names.
    fn check(&self) -> Result<()> {
        match rustix::fs::lstat(&self.path) {
            Ok(stat) if FileId::of(&stat) == self.id => Ok(()),
            Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Err(Errno::ESTALE),
            // Not reachable by its path just now (permissions, a network): the descriptor decides.
            Err(_) => Ok(()),
        }
    }
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// An open directory below the root, and what it was when it was opened.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    pub(crate) stat: Stat,
}

impl Directory {
    pub(crate) fn id(&self) -> FileId {
        FileId::of(&self.stat)
    }

    /// A path that leads here as long as this value lives, for callees that take paths.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Opens a directory in this one.
    pub(crate) fn child(&self, name: &OsStr) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(&self.fd, name, flags, Mode::empty(), BENEATH)?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self { fd, stat })
    }

    /// The directory's attributes now.
    pub(crate) fn stat_now(&self) -> Result<Stat> {
        Ok(rustix::fs::fstat(&self.fd)?)
    }

    /// The attributes of an entry; a symlink's are its own.
    pub(crate) fn stat_of(&self, name: &OsStr) -> Result<Stat> {
        Ok(rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// What tells an entry from any other file that had or will have its name: number and time of birth in ns (0
    /// where the file system does not keep that).
    pub(crate) fn identity_of(&self, name: &OsStr) -> Result<(FileId, i64)> {
        let wanted = StatxFlags::INO | StatxFlags::BTIME;
        let stat = rustix::fs::statx(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW, wanted)?;
        let dev = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
        let born = stat.stx_btime.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(i64::from(stat.stx_btime.tv_nsec));
        Ok((FileId { dev, ino: stat.stx_ino }, born))
    }

    /// Opens a regular file for reading.
    pub(crate) fn open_file(&self, name: &OsStr) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat2(&self.fd, name, flags, Mode::empty(), BENEATH)?);
        if Kind::of(&rustix::fs::fstat(file.as_fd())?) != Some(Kind::File) {
            return Err(Errno::EACCES);
        }
        Ok(file)
    }

    pub(crate) fn read_link(&self, name: &OsStr) -> Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.fd, name, Vec::new())?.into_bytes())
    }

    /// The names of the entries, without `.` and `..`.
    pub(crate) fn names(&self) -> Result<Vec<std::ffi::OsString>> {
        std::fs::read_dir(self.path())?.map(|entry| Ok(entry?.file_name())).collect()
    }

    /// Makes a directory with exactly this mode, owned by `owner` where the daemon may decide that.
    pub(crate) fn make_directory(&self, name: &OsStr, mode: u32, owner: Owner) -> Result<()> {
        rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o700))?;
        owner.take(&self.fd, name)?;
        // After the change of owner, which clears bits. The umask was applied by the kernel already.
        let inherited = self.stat.st_mode & libc::S_ISGID;
        let mode = Mode::from_raw_mode((mode & 0o7777) | inherited);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat2(&self.fd, name, flags, Mode::empty(), BENEATH)?;
        Ok(rustix::fs::fchmod(&made, mode)?)
    }

    pub(crate) fn remove_directory(&self, name: &OsStr) -> Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?)
    }

    /// Gives an entry, a directory, the permissions that this directory has.
    pub(crate) fn copy_mode(&self, name: &OsStr) -> Result<()> {
        let mode = rustix::fs::Mode::from_raw_mode(self.stat_now()?.st_mode & 0o7777);
        Ok(rustix::fs::chmodat(&self.fd, name, mode, AtFlags::empty())?)
    }

    /// Gives an entry to a new owner, where the daemon may decide that.
    pub(crate) fn give(&self, name: &OsStr, owner: Owner) -> Result<()> {
        owner.take(&self.fd, name)
    }
}

/// Who shall own what the daemon makes on somebody's behalf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Owner {
    /// The owner of a backing file.
    pub(crate) fn of(stat: &Stat) -> Self {
        Self { uid: stat.st_uid, gid: stat.st_gid }
    }

    /// Whether what the daemon makes has to be given to this owner. Only root gives files away; an ordinary user's
    /// daemon makes everything as that user.
    pub(crate) fn is_other(self) -> bool {
        rustix::process::geteuid().is_root() && (self.uid, self.gid) != (0, 0)
    }

    fn take(self, dir: &OwnedFd, name: &OsStr) -> Result<()> {
        if !self.is_other() {
            return Ok(());
        }
        let uid = rustix::fs::Uid::from_raw(self.uid);
        let gid = rustix::fs::Gid::from_raw(self.gid);
        Ok(rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}
