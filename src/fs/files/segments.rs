//! `segments/`: the raw segment files, read-only. Where passthrough is allowed, the kernel reads and maps them itself,
//! so that a mapping sees a native writer's stores as they happen.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::fs::attr::{Attr, Kind, READ};
use crate::fs::backing::FileId;
use crate::fs::errno::{Errno, Result};
use crate::fs::files::backing_file::{open, read_file};
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::site::{Access, Caller, File};
use crate::fs::tree::handles::{Handle, Progress};
use crate::queue::parse_segment_name;

/// The names of the segment files.
pub(crate) fn names(queue: &OpenQueue) -> Result<Vec<OsString>> {
    let mut names = queue.directory.names()?;
    names.retain(|name| name.to_str().is_some_and(is_segment));
    names.sort_unstable();
    Ok(names)
}

/// What a name in `segments/` is.
pub(crate) fn find(queue: &Arc<OpenQueue>, name: &OsStr) -> Result<Arc<dyn File>> {
    if !name.to_str().is_some_and(is_segment) {
        return Err(Errno::ENOENT);
    }
    let (id, born) = queue.directory.identity_of(name)?;
    Ok(Arc::new(Segment { queue: Arc::clone(queue), name: name.to_owned(), id, born }))
}

fn is_segment(name: &str) -> bool {
    parse_segment_name(name).is_some()
}

struct Segment {
    queue: Arc<OpenQueue>,
    name: OsString,
    id: FileId,
    born: i64,
}

impl File for Segment {
    fn messages_of(&self) -> Option<&OpenQueue> {
        Some(&self.queue)
    }

    fn attr(&self) -> Result<Attr> {
        let stat = self.queue.directory.stat_of(&self.name)?;
        if Kind::of(&stat) != Some(Kind::File) {
            return Err(Errno::ENOENT);
        }
        if FileId::of(&stat) != self.id {
            return Err(Errno::ESTALE);
        }
        Ok(Attr::file(&stat, READ).with_size(u64::try_from(stat.st_size).unwrap_or(0)))
    }

    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
        // Required for safety: the kernel would write to the real file even through a descriptor opened for reading.
        access.reading()?;
        Ok(Box::new(SegmentHandle { file: open(&self.queue.directory, &self.name, self.id, caller)? }))
    }

    fn generation(&self) -> u64 {
        self.id.ino.rotate_left(32) ^ self.born.unsigned_abs()
    }

    fn is_current(&self) -> bool {
        self.queue.directory.identity_of(&self.name) == Ok((self.id, self.born))
    }
}

struct SegmentHandle {
    file: std::fs::File,
}

impl Handle for SegmentHandle {
    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        read_file(&self.file, offset, size, out)
    }

    fn backing(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}
