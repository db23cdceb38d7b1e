//! The mirrored directory, and the only way into it.
//!
//! Invariants: everything is reached from the root's descriptor, never by the root's path, so that a root that was
//! deleted or replaced fails with ESTALE; no symlink is followed in any component of a path, even if directories are
//! swapped for links meanwhile.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, Mode, OFlags, ResolveFlags, Stat, StatVfs, StatxFlags};

use crate::queue::Dir;

use crate::fs::attr::Kind;
use crate::fs::errno::{Errno, Result};

/// Identity of a directory or file, independent of its name: device and inode number.
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

/// Who is charged for work done on behalf of all readers of a queue: the owner of its directory. On a file system other
/// than the root's, whose server may claim any owner, the file system itself is charged; a few of these are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Payer(u64);

impl Payer {
    const OTHER: u64 = 1 << 32;

    pub(crate) fn user(uid: u32) -> Self {
        Self(u64::from(uid))
    }

    /// A number below 2^40.
    pub(crate) fn key(self) -> u64 {
        self.0
    }

    /// How many pieces of work may be done for it at the same time.
    pub(crate) fn at_once(self) -> usize {
        match self.0 {
            0 => 16,
            Self::OTHER.. => 4,
            _ => 8,
        }
    }
}

/// The root of the tree that is mirrored.
#[derive(Debug)]
pub(crate) struct Backing {
    root: OwnedFd,
    path: PathBuf,
    id: FileId,
    resolve: ResolveFlags,
}

impl Backing {
    /// Opens the root; `path` is absolute. `cross_mounts`: whether other file systems mounted below it belong to the
    /// tree. Their servers may never answer.
    pub(crate) fn open(path: &Path, cross_mounts: bool) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        let id = FileId::of(&rustix::fs::fstat(&root)?);
        let resolve = if cross_mounts { BENEATH } else { BENEATH.union(ResolveFlags::NO_XDEV) };
        Ok(Self { root, path: path.to_path_buf(), id, resolve })
    }

    /// The path by which users know a directory below the root. For messages only.
    pub(crate) fn shown_path(&self, relative: &Path) -> PathBuf {
        if relative.as_os_str().is_empty() { self.path.clone() } else { self.path.join(relative) }
    }

    /// Opens a directory below the root.
    pub(crate) fn directory(&self, relative: &Path) -> Result<Directory> {
        self.check()?;
        let path = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let fd = rustix::fs::openat2(&self.root, path, DIRECTORY, Mode::empty(), self.resolve)?;
        Directory::new(fd, &self.shown_path(relative), self.resolve, self.id.dev)
    }

    /// The statistics of the backing file system.
    pub(crate) fn statvfs(&self) -> Result<StatVfs> {
        Ok(rustix::fs::fstatvfs(&self.root)?)
    }

    /// ESTALE once the root is no longer what its path names.
    fn check(&self) -> Result<()> {
        match rustix::fs::lstat(&self.path) {
            Ok(stat) if FileId::of(&stat) == self.id => Ok(()),
            Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Err(Errno::ESTALE),
            // Not reachable by its path now (permissions, a network): the descriptor decides.
            Err(_) => Ok(()),
        }
    }
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An open directory below the root, and what it was when it was opened.
#[derive(Debug)]
pub(crate) struct Directory {
    dir: Dir,
    pub(crate) stat: Stat,
    resolve: ResolveFlags,
    root_dev: u64,
}

impl Directory {
    fn new(fd: OwnedFd, shown: &Path, resolve: ResolveFlags, root_dev: u64) -> Result<Self> {
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self { dir: Dir::from_fd(fd.into(), shown), stat, resolve, root_dev })
    }

    /// Who is charged for work on a queue in this directory.
    pub(crate) fn payer(&self) -> Payer {
        let dev = self.stat.st_dev;
        if dev == self.root_dev { Payer::user(self.stat.st_uid) } else { Payer(Payer::OTHER | (dev % 8)) }
    }

    pub(crate) fn id(&self) -> FileId {
        FileId::of(&self.stat)
    }

    /// For the engine and the bus: names in it can be opened, but it can't be listed.
    pub(crate) fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Opens a directory in this one.
    pub(crate) fn child(&self, name: &OsStr) -> Result<Self> {
        let fd = rustix::fs::openat2(self.dir.fd(), name, DIRECTORY, Mode::empty(), self.resolve)?;
        Self::new(fd, &self.dir.path().join(name), self.resolve, self.root_dev)
    }

    /// The directory's attributes now.
    pub(crate) fn stat_now(&self) -> Result<Stat> {
        Ok(rustix::fs::fstat(self.dir.fd())?)
    }

    /// The attributes of an entry; a symlink's are its own.
    pub(crate) fn stat_of(&self, name: &OsStr) -> Result<Stat> {
        Ok(rustix::fs::statat(self.dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// As [`Directory::stat_of`], for an entry about which nothing is known. EXDEV where another file system is mounted
    /// there that does not belong to the tree; that file system is not asked.
    pub(crate) fn stat_of_any(&self, name: &OsStr) -> Result<Stat> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // The link itself is opened, which NO_SYMLINKS would forbid.
        let resolve = self.resolve.difference(ResolveFlags::NO_SYMLINKS);
        let entry = rustix::fs::openat2(self.dir.fd(), name, flags, Mode::empty(), resolve)?;
        Ok(rustix::fs::fstat(entry)?)
    }

    /// Distinguishes an entry from any other file that had or will have its name: number and birth time in ns (0 where
    /// the file system does not record it).
    pub(crate) fn identity_of(&self, name: &OsStr) -> Result<(FileId, i64)> {
        let wanted = StatxFlags::INO | StatxFlags::BTIME;
        let stat = rustix::fs::statx(self.dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW, wanted)?;
        let dev = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
        let born = stat.stx_btime.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(i64::from(stat.stx_btime.tv_nsec));
        Ok((FileId { dev, ino: stat.stx_ino }, born))
    }

    /// Opens a regular file for reading.
    pub(crate) fn open_file(&self, name: &OsStr) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat2(self.dir.fd(), name, flags, Mode::empty(), self.resolve)?);
        if Kind::of(&rustix::fs::fstat(file.as_fd())?) != Some(Kind::File) {
            return Err(Errno::EACCES);
        }
        Ok(file)
    }

    pub(crate) fn read_link(&self, name: &OsStr) -> Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(self.dir.fd(), name, Vec::new())?.into_bytes())
    }

    /// The names of the entries, without `.` and `..`.
    pub(crate) fn names(&self) -> Result<Vec<std::ffi::OsString>> {
        let mut names = self.dir.all_names()?;
        names.retain(|name| crate::bus::removed_name(name).is_none());
        Ok(names)
    }

    /// EACCES unless the user whom this thread acts for may list and search it.
    pub(crate) fn check_listable(&self) -> Result<()> {
        self.check_access(OsStr::new("."), Access::READ_OK | Access::EXEC_OK)
    }

    /// EACCES unless the user whom this thread acts for has this access to a file in it. A missing file is not an
    /// error.
    pub(crate) fn check_access(&self, name: &OsStr, access: Access) -> Result<()> {
        // Both flags: without the second one `rustix` may check the real user, on kernels that support no flags.
        match rustix::fs::accessat(self.dir.fd(), name, access, AtFlags::EACCESS | AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => Ok(()),
            checked => Ok(checked?),
        }
    }

    /// Creates a directory with this mode, less the umask.
    pub(crate) fn make_directory(&self, name: &OsStr, mode: u32) -> Result<()> {
        Ok(rustix::fs::mkdirat(self.dir.fd(), name, Mode::from_raw_mode(mode & 0o1777))?)
    }

    pub(crate) fn remove_directory(&self, name: &OsStr) -> Result<()> {
        Ok(rustix::fs::unlinkat(self.dir.fd(), name, AtFlags::REMOVEDIR)?)
    }
}

/// A symlink is shown only if it stays inside the root for every process that resolves it: it is relative, and goes up
/// only at its start, from its real location. After a name, `..` is refused: the name may be another link, which leads
/// to an unknown depth.
pub(crate) fn stays_inside(directory: &Path, target: &[u8]) -> bool {
    use std::os::unix::ffi::OsStringExt;
    use std::path::Component;

    let target = PathBuf::from(std::ffi::OsString::from_vec(target.to_vec()));
    let is_up = |component: &Component<'_>| matches!(component, Component::ParentDir | Component::CurDir);
    let up = target.components().take_while(is_up).filter(|component| *component == Component::ParentDir).count();
    let mut rest = target.components().skip_while(is_up);
    up <= directory.components().count() && rest.all(|component| matches!(component, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symlinks_that_lead_out_are_not_shown() {
        assert!(stays_inside(Path::new("a/b"), b"../c"));
        assert!(stays_inside(Path::new("a"), b"./../c/./d"));
        assert!(!stays_inside(Path::new("a/b"), b"c/../d"), "c may be a link to a directory that lies higher");
        assert!(!stays_inside(Path::new("a"), b"../../etc"));
        assert!(!stays_inside(Path::new(""), b".."));
        assert!(!stays_inside(Path::new("a/b"), b"/etc/passwd"));
    }
}
