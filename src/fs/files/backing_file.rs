//! Backing files that do not belong to a queue: shown unchanged and read-only.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::fs::attr::{Attr, Kind, WRITE};
use crate::fs::backing::{Directory, FileId, stays_inside};
use crate::fs::credentials::READ;
use crate::fs::errno::{Errno, Result};
use crate::fs::site::{Access, Caller, File, Shared, Site};
use crate::fs::tree::handles::{Handle, Progress};

/// A regular file or symlink of the backing tree. Holds no descriptor: there may be many.
pub(crate) struct BackingFile {
    shared: Arc<Shared>,
    directory: Arc<Path>,
    name: OsString,
    id: FileId,
}

impl BackingFile {
    /// The entry `name` of a backing directory; `id` identifies the file.
    pub(crate) fn new(site: &Site, name: &OsStr, id: FileId) -> Self {
        let (shared, directory) = (Arc::clone(&site.shared), Arc::clone(&site.relative));
        Self { shared, directory, name: name.to_owned(), id }
    }

    fn directory(&self) -> Result<Directory> {
        self.shared.backing.directory(&self.directory)
    }
}

impl File for BackingFile {
    fn attr(&self) -> Result<Attr> {
        let stat = self.directory()?.stat_of(&self.name)?;
        if FileId::of(&stat) != self.id {
            return Err(Errno::ESTALE);
        }
        match Kind::of(&stat) {
            Some(Kind::Directory) | None => Err(Errno::ESTALE),
            Some(Kind::Symlink) => Ok(Attr::of(&stat, Kind::Symlink)),
            Some(Kind::File) => {
                let attr = Attr::of(&stat, Kind::File);
                Ok(Attr { mode: attr.mode & 0o777 & !WRITE, ..attr })
            }
        }
    }

    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        Ok(Box::new(BackingFileHandle { file: open(&self.directory()?, &self.name, self.id, caller)? }))
    }

    fn target(&self) -> Result<Vec<u8>> {
        let target = self.directory()?.read_link(&self.name)?;
        // As if it did not exist.
        if stays_inside(&self.directory, &target) { Ok(target) } else { Err(Errno::ENOENT) }
    }
}

/// Opens a backing file for the caller. ESTALE unless it is the file that the kernel looked up.
pub(in crate::fs) fn open(directory: &Directory, name: &OsStr, id: FileId, caller: &Caller) -> Result<std::fs::File> {
    let file = caller.act(|| directory.open_file(name))??;
    if FileId::of(&rustix::fs::fstat(&file)?) != id {
        return Err(Errno::ESTALE);
    }
    caller.check(&file, READ)?;
    Ok(file)
}

struct BackingFileHandle {
    file: std::fs::File,
}

impl Handle for BackingFileHandle {
    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        read_file(&self.file, offset, size, out)
    }
}

/// Appends at most `size` bytes of a backing file from `offset` on to `out`.
pub(in crate::fs) fn read_file(file: &std::fs::File, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
    let start = out.len();
    out.resize(start + size, 0);
    let mut filled = start;
    while filled < out.len() {
        let done = u64::try_from(filled - start).map_err(|_| Errno::EINVAL)?;
        match file.read_at(&mut out[filled..], offset.saturating_add(done)) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if filled == start => {
                out.truncate(start);
                return Err(error.into());
            }
            Err(_) => break,
        }
    }
    out.truncate(filled);
    Ok(Progress::Done)
}
