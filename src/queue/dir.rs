//! A queue's directory: the one door to its files. Names are single components, opened relative to a held descriptor,
//! never through symbolic links, and only regular files come in.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::error::{Error, Result};
use super::sys;

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
    /// Writing; makes the file if it is missing.
    WriteOrCreate,
    /// Makes the file; it must not be there yet.
    CreateNew,
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

    /// Opens a directory in this one.
    pub(crate) fn open_dir(&self, name: &str) -> io::Result<Self> {
        let file = sys::open_at(self.fd(), name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Self { file, path: self.path.join(name) })
    }

    /// Opens a directory in this one, making it where it is missing.
    pub(crate) fn make_dir(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        match sys::mkdir_at(self.fd(), name) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io(&path, "make it")(error)),
            _ => self.open_dir(name).map_err(Error::io(&path, "open it")),
        }
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

    /// Opens a regular file; None if there is none of that name. What is no regular file, or is about to be written
    /// and has other names elsewhere, is refused.
    pub(crate) fn open_file(&self, name: &str, access: Access) -> Result<Option<File>> {
        let flags = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
            Access::WriteOrCreate => OFlags::RDWR | OFlags::CREATE,
            Access::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        };
        let file = match sys::open_at(self.fd(), name, flags, Mode::from_raw_mode(0o666)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO | libc::EISDIR)) => {
                return Err(self.refused(name, "it is not a regular file"));
            }
            Err(error) => return Err(Error::io(&self.path_of(name), "open it")(error)),
        };
        let metadata = file.metadata().map_err(Error::io(&self.path_of(name), "look at it"))?;
        if !metadata.is_file() {
            return Err(self.refused(name, "it is not a regular file"));
        }
        if access != Access::Read && metadata.nlink() > 1 {
            return Err(self.refused(name, "it has other names (hard links) and would be changed under them too"));
        }
        Ok(Some(file))
    }

    fn refused(&self, name: &str, why: &str) -> Error {
        Error::refused(&self.path_of(name), format!("{why}; move it away"))
    }

    /// The names in the directory that are UTF-8; the others are none of ours.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        // Reads through the held descriptor, so that a replaced directory is not looked at instead.
        let held = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
        let entries = loop {
            match std::fs::read_dir(&held) {
                // Other than for files, `std` leaves it to us to try again.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                entries => break entries.map_err(Error::io(&self.path, "list it"))?,
            }
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(Error::io(&self.path, "list it"))?.file_name();
            names.extend(name.into_string());
        }
        Ok(names)
    }

    /// Renames a file within the directory.
    pub(crate) fn rename(&self, from: &str, to: &str, replace: bool) -> Result<()> {
        sys::rename_at(self.fd(), from, to, replace).map_err(Error::io(&self.path_of(to), "put it in place"))
    }

    /// Removes a file; a missing one is fine.
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
