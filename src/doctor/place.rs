//! Directories as doctor opens them. Others may write to them meanwhile, and root may run it: so everything below the
//! root directory is opened from its descriptor, through no symbolic link and into no other file system (its server may
//! never reply), and is moved between directories that are held open.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::ASIDE;
use crate::queue::{Dir, Error, Queue};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// For an entry that may be a link, which is opened itself.
const ITSELF: ResolveFlags = RESOLVE.difference(ResolveFlags::NO_SYMLINKS);

/// A directory held open.
pub(super) struct Directory {
    dir: Dir,
}

/// An entry of a directory.
pub(super) struct Entry {
    /// Its path, for people.
    pub(super) path: PathBuf,
    pub(super) name: OsString,
    /// None: another file system is mounted there.
    stat: Option<Stat>,
}

impl Directory {
    /// The directory that was asked for. Only here are links followed: the path comes from the user.
    pub(super) fn root(path: &Path) -> io::Result<Self> {
        Ok(Self { dir: Dir::open(path)? })
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A directory that the caller has opened.
    pub(super) fn opened(dir: Dir) -> Self {
        Self { dir }
    }

    /// For the engine and the bus.
    pub(super) fn dir(&self) -> &Dir {
        &self.dir
    }

    /// The queue in it.
    pub(super) fn queue(&self) -> crate::queue::Result<Queue> {
        Queue::open_in(self.dir.reopen().map_err(Error::io(self.path(), "open it"))?)
    }

    /// A directory below this one; this one again for an empty path.
    ///
    /// # Errors
    /// [`io::ErrorKind::CrossesDevices`] where another file system is mounted.
    pub(super) fn below(&self, relative: &Path) -> io::Result<Self> {
        if relative.as_os_str().is_empty() {
            return Ok(Self { dir: self.dir.reopen()? });
        }
        let file = match rustix::fs::openat2(self.dir.fd(), relative, DIRECTORY, Mode::empty(), RESOLVE) {
            // Linux before 5.6, or a container that refuses the call.
            Err(Errno::NOSYS | Errno::PERM) => step_by_step(self.dir.file(), relative)?,
            opened => opened?.into(),
        };
        Ok(Self { dir: Dir::from_fd(file, &self.path().join(relative)) })
    }

    /// Its entries, in no particular order.
    pub(super) fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for name in self.dir.all_names()? {
            match self.look_at(&name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                entry => entries.push(entry?),
            }
        }
        Ok(entries)
    }

    /// What has this name now. Another file system mounted there is not asked: it may not reply.
    pub(super) fn look_at(&self, name: &OsStr) -> io::Result<Entry> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let stat = match rustix::fs::openat2(self.dir.fd(), name, flags, Mode::empty(), ITSELF) {
            Ok(entry) => Some(rustix::fs::fstat(entry)?),
            Err(Errno::XDEV) => None,
            Err(Errno::NOSYS | Errno::PERM) => {
                Some(rustix::fs::statat(self.dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW)?)
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Entry { path: self.path().join(name), name: name.to_owned(), stat })
    }

    /// Moves a file into the evidence directory in `place`, which is this directory or its parent. Nothing there is
    /// replaced; a file that has been exchanged meanwhile is moved back.
    pub(super) fn move_aside(&self, entry: &Entry, place: &Self) -> io::Result<()> {
        let refuse = |what: &str| Err(io::Error::other(what.to_owned()));
        if !self.is_as_owned(place)? {
            return refuse("its directory and the parent directory have different owners");
        }
        let aside = place.aside()?;
        let name = &entry.name;
        let rename = |from: &Self, to: &Self| {
            rustix::fs::renameat_with(from.dir.fd(), name, to.dir.fd(), name, RenameFlags::NOREPLACE)
        };
        rename(self, &aside)?;
        if aside.look_at(name)?.id() == entry.id() {
            return Ok(());
        }
        rename(&aside, self)?;
        refuse("it has been replaced by another file meanwhile")
    }

    /// Opens or creates the evidence directory, with the owner of this directory.
    fn aside(&self) -> io::Result<Self> {
        let aside = Self { dir: self.dir.open_or_create_dir(ASIDE)? };
        if aside.is_as_owned(self)? {
            Ok(aside)
        } else {
            Err(io::Error::other(format!("{ASIDE} and its parent directory have different owners")))
        }
    }

    /// Whether it belongs to the owner of `place`, or, where that isn't root, to us: then it grants nobody more access
    /// than they have already.
    fn is_as_owned(&self, place: &Self) -> io::Result<bool> {
        let (owner, us) = (self.stat()?.st_uid, rustix::process::geteuid().as_raw());
        Ok(owner == place.stat()?.st_uid || (owner == us && us != 0))
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(self.dir.fd())?)
    }
}

/// Like `openat2`, but without checking for the same file system.
fn step_by_step(root: &File, relative: &Path) -> io::Result<File> {
    let mut at = root.try_clone()?;
    for component in relative.components() {
        let Component::Normal(name) = component else { return Err(io::ErrorKind::InvalidInput.into()) };
        at = rustix::fs::openat(&at, name, DIRECTORY, Mode::empty())?.into();
    }
    Ok(at)
}

impl Entry {
    /// The name, as far as it is UTF-8.
    pub(super) fn text(&self) -> String {
        self.name.to_string_lossy().into_owned()
    }

    pub(super) fn kind(&self) -> FileType {
        // Only a directory can hold queues.
        self.stat.map_or(FileType::Directory, |stat| FileType::from_raw_mode(stat.st_mode))
    }

    pub(super) fn is_file(&self) -> bool {
        self.kind() == FileType::RegularFile
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind() == FileType::Directory
    }

    pub(super) fn len(&self) -> u64 {
        self.stat.and_then(|stat| u64::try_from(stat.st_size).ok()).unwrap_or(0)
    }

    /// How many hard links it has, if more than one.
    pub(super) fn other_links(&self) -> Option<impl std::fmt::Display> {
        // A u64 on some processors, a u32 on others.
        self.stat.map(|stat| stat.st_nlink).filter(|&links| links > 1)
    }

    /// When it was last modified, in ns since the epoch.
    pub(super) fn modified_ns(&self) -> u64 {
        let Some(stat) = self.stat else { return 0 };
        let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec)
    }

    fn id(&self) -> Option<(u64, u64)> {
        self.stat.map(|stat| (stat.st_dev, stat.st_ino))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn site() -> (tempfile::TempDir, Directory) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/q/readers")).unwrap();
        fs::create_dir(dir.path().join("elsewhere")).unwrap();
        fs::write(dir.path().join("root/q/readers/x.tmp"), "x").unwrap();
        let root = Directory::root(&dir.path().join("root")).unwrap();
        (dir, root)
    }

    #[test]
    fn links_lead_nowhere() {
        let (dir, root) = site();
        symlink(dir.path().join("elsewhere"), dir.path().join("root/out")).unwrap();
        symlink("q", dir.path().join("root/in")).unwrap();
        for name in ["out", "in", "in/readers", "../elsewhere"] {
            assert!(root.below(Path::new(name)).is_err(), "{name}");
            assert!(step_by_step(root.dir.file(), Path::new(name)).is_err(), "{name}");
        }
        assert!(root.below(Path::new("q/readers")).is_ok() && root.below(Path::new("")).is_ok());
        assert!(step_by_step(root.dir.file(), Path::new("q/readers")).is_ok());
    }

    #[test]
    fn what_is_moved_is_what_was_examined() {
        let (dir, root) = site();
        let (queue, readers) = (root.below(Path::new("q")).unwrap(), root.below(Path::new("q/readers")).unwrap());
        let seen = readers.look_at(OsStr::new("x.tmp")).unwrap();
        let path = dir.path().join("root/q/readers/x.tmp");
        fs::rename(&path, dir.path().join("taken")).unwrap();
        fs::write(&path, "another").unwrap();
        assert!(readers.move_aside(&seen, &queue).unwrap_err().to_string().contains("another file"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "another");

        let seen = readers.look_at(OsStr::new("x.tmp")).unwrap();
        readers.move_aside(&seen, &queue).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("root/q/.aside/x.tmp")).unwrap(), "another");
        fs::write(&path, "a third").unwrap();
        let seen = readers.look_at(OsStr::new("x.tmp")).unwrap();
        assert!(readers.move_aside(&seen, &queue).is_err(), "nothing there is replaced");
    }

    #[test]
    fn evidence_goes_through_no_link() {
        let (dir, root) = site();
        symlink(dir.path().join("elsewhere"), dir.path().join("root/q/.aside")).unwrap();
        let (queue, readers) = (root.below(Path::new("q")).unwrap(), root.below(Path::new("q/readers")).unwrap());
        let seen = readers.look_at(OsStr::new("x.tmp")).unwrap();
        assert!(readers.move_aside(&seen, &queue).is_err());
        assert_eq!(fs::read_dir(dir.path().join("elsewhere")).unwrap().count(), 0);
        assert!(dir.path().join("root/q/readers/x.tmp").exists());
    }
}
