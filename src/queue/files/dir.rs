//! A queue's directory: the only way to its files. Names are single components, opened relative to a held descriptor,
//! never through symbolic links, and only regular files are opened.
//!
//! Others may write to the directory at the same time. So nothing here changes owner or mode by name: a new file or
//! directory gets both through the descriptor that created it, before it is renamed to its final name.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};

use crate::queue::error::{Error, Result};
use crate::queue::format::layout::{CONTROL_FILE, TEMPORARY_SUFFIX};
use crate::queue::os::sys;

/// A directory held open.
#[derive(Debug)]
pub(crate) struct Dir {
    file: File,
    path: PathBuf,
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

impl Dir {
    /// Opens the directory at `path`. Here, and only here, links in the path are followed: it comes from the user.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Like [`Dir::open`], but needs no permission to list the directory: only for opening files by name; it can't be
    /// locked or synced.
    pub(crate) fn open_to_search(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self::from_fd(rustix::fs::open(path, flags, Mode::empty())?.into(), path))
    }

    /// Wraps a directory that is open already; `path` is its name in messages.
    pub(crate) fn from_fd(file: File, path: &Path) -> Self {
        Self { file, path: path.to_path_buf() }
    }

    /// Opens the same directory again, so that it can be listed, locked and synced.
    pub(crate) fn reopen(&self) -> io::Result<Self> {
        let file = sys::open_at(self.fd(), ".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Self { file, path: self.path.clone() })
    }

    /// Opens a directory in this one.
    pub(crate) fn open_dir(&self, name: &str) -> io::Result<Self> {
        let file = sys::open_at(self.fd(), name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Self { file, path: self.path.join(name) })
    }

    /// Opens a directory in this one; if it is missing, creates it with this directory's permissions: those who may
    /// create files here may do so there.
    pub(crate) fn open_or_create_dir(&self, name: &str) -> Result<Self> {
        let path = self.path_of(name);
        match self.open_dir(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened.map_err(Error::io(&path, "open it")),
        }
        let temporary = self.temporary_name(name)?;
        let created = self.create_dir(&temporary).map_err(Error::io(&path, "create it"));
        match created.and_then(|()| self.rename(&temporary, name, false)) {
            Ok(()) => {}
            Err(error) => {
                let _ = rustix::fs::unlinkat(&self.file, &temporary, AtFlags::REMOVEDIR);
                if !is_already_there(&error) {
                    return Err(error);
                }
            }
        }
        self.open_dir(name).map_err(Error::io(&path, "open it"))
    }

    fn create_dir(&self, name: &str) -> io::Result<()> {
        rustix::fs::mkdirat(&self.file, name, Mode::RWXU)?;
        let created = self.open_dir(name)?;
        // Others who may rename here may have put another directory in its place: only an empty one of our own may
        // change owner.
        let metadata = created.file.metadata()?;
        let is_empty = created.names().is_ok_and(|names| names.is_empty());
        if metadata.uid() != sys::file_ids().0 || !is_empty {
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        }
        self.chown_to(&created.file, &self.file.metadata()?)?;
        let mode = self.file.metadata()?.mode() & 0o777 | metadata.mode() & libc::S_ISGID;
        Ok(rustix::fs::fchmod(&created.file, Mode::from_raw_mode(mode))?)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Opens a regular file; None if there is no file of that name. Refuses what is not a regular file, and, for
    /// writing, a file that has other names elsewhere.
    pub(crate) fn open_file(&self, name: &str, access: Access) -> Result<Option<File>> {
        let flags = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
        };
        let file = match sys::open_at(self.fd(), name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO | libc::EISDIR)) => {
                return Err(self.refused(name, "it is not a regular file"));
            }
            Err(error) => return Err(Error::io(&self.path_of(name), "open it")(error)),
        };
        let metadata = file.metadata().map_err(Error::io(&self.path_of(name), "stat it"))?;
        if !metadata.is_file() {
            return Err(self.refused(name, "it is not a regular file"));
        }
        if access != Access::Read && metadata.nlink() > 1 {
            return Err(self.refused(name, "it has other names (hard links) and would be changed under them too"));
        }
        Ok(Some(file))
    }

    /// Opens a regular file that must exist.
    pub(crate) fn open_existing_file(&self, name: &str, access: Access) -> Result<File> {
        let missing = || Error::io(&self.path_of(name), "open it")(rustix::io::Errno::NOENT.into());
        self.open_file(name, access)?.ok_or_else(missing)
    }

    /// Creates a file, for reading and writing. It has the permissions of the control block, so that a private queue
    /// stays private and a shared one shared; if there is no control block yet, those that the umask leaves. What root
    /// creates in another user's directory belongs to the owner of the directory. The file must not exist yet, and
    /// `name` should be a temporary one.
    ///
    /// # Errors
    /// [`Error::Io`], of kind `AlreadyExists` if it exists.
    pub(crate) fn create_file(&self, name: &str) -> Result<File> {
        let mode = self.mode_of(CONTROL_FILE);
        self.create_file_with(name, mode).map_err(Error::io(&self.path_of(name), "create it"))
    }

    /// Like [`Dir::create_file`], with this mode; with what the umask leaves if it is None.
    pub(crate) fn create_file_with(&self, name: &str, mode: Option<u32>) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = sys::open_at(self.fd(), name, flags, Mode::from_raw_mode(mode.map_or(0o666, |_| 0o600)))?;
        let finished = self.finish(&file, mode);
        if finished.is_err() {
            // Report the first error.
            let _ = self.remove(name);
        }
        finished.map(|()| file)
    }

    fn finish(&self, file: &File, mode: Option<u32>) -> io::Result<()> {
        self.chown_to(file, &self.file.metadata()?)?;
        // After the change of owner, which clears bits.
        mode.map_or(Ok(()), |mode| Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o777))?))
    }

    /// Sets the permissions of a reused file to those that a new one would have.
    pub(crate) fn match_mode(&self, file: &File) -> io::Result<()> {
        match self.mode_of(CONTROL_FILE) {
            Some(mode) if file.metadata()?.mode() & 0o777 != mode => {
                Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?)
            }
            _ => Ok(()),
        }
    }

    /// What root has just created belongs to the owner of this directory.
    fn chown_to(&self, created: &File, owner: &std::fs::Metadata) -> io::Result<()> {
        if owner.uid() == 0 || created.metadata()?.uid() != 0 {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
        match rustix::fs::fchown(created, Some(uid), Some(gid)) {
            // Not root in every namespace (a container): it stays ours.
            Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL) => Ok(()),
            given => Ok(given?),
        }
    }

    /// The permissions of a regular file.
    pub(crate) fn mode_of(&self, name: &str) -> Option<u32> {
        let stat = rustix::fs::statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some(stat.st_mode & 0o666)
    }

    /// The length of a regular file.
    pub(crate) fn len_of(&self, name: &str) -> Option<u64> {
        let stat = rustix::fs::statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        is_file.then(|| u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// A unique name for a file that is being created: random, because two threads, or processes of two pid namespaces,
    /// must not use the same one.
    fn temporary_name(&self, name: &str) -> Result<String> {
        let random = sys::random_u64().map_err(Error::io(&self.path_of(name), "read random bytes"))?;
        Ok(format!(".{name}.{random:016x}{TEMPORARY_SUFFIX}"))
    }

    fn refused(&self, name: &str, why: &str) -> Error {
        Error::refused(&self.path_of(name), format!("{why}; move it away"))
    }

    /// Shows programs that remove old files that the directory is in use, until this is dropped: a shared `flock`,
    /// which excludes no chronfs process.
    pub(crate) fn show_use(&self) {
        // An exclusive holder is just removing files, or the file system does not support such locks.
        let _ = self.file.try_lock_shared();
    }

    /// The names in the directory that are UTF-8; the others are not ours.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let names = self.all_names().map_err(Error::io(&self.path, "list it"))?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// The names in the directory, without `.` and `..`. Read through the held descriptor, so that a directory that has
    /// taken its place is not listed instead.
    pub(crate) fn all_names(&self) -> io::Result<Vec<std::ffi::OsString>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(self.reopen()?.file)? {
            let name = entry?.file_name().to_bytes().to_owned();
            if name != b"." && name != b".." {
                names.push(std::ffi::OsStr::from_bytes(&name).to_owned());
            }
        }
        Ok(names)
    }

    /// Renames a file within the directory.
    pub(crate) fn rename(&self, from: &str, to: &str, replace: bool) -> Result<()> {
        sys::rename_at(self.fd(), from, to, replace).map_err(Error::io(&self.path_of(to), "rename it into place"))
    }

    /// Removes a file; a missing one is not an error.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        match sys::unlink_at(self.fd(), name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(&self.path_of(name), "remove it")(error))
            }
            _ => Ok(()),
        }
    }

    /// Makes the directory's entries survive a power cut.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.path, "sync the directory"))
    }
}

/// Whether another process or thread was faster.
pub(crate) fn is_already_there(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
}
