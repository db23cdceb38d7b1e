//! Segments that a writer has left and that are still mapped: unmapping and mapping them again costs more than filling
//! them.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use rustix::fs::{AtFlags, statat};

use crate::queue::files::dir::Dir;
use crate::queue::os::mapping::Mapping;
use crate::sync::{AtomicUsize, Ordering};

/// At most this many files of retired segments are kept for new segments.
pub(in crate::queue) const MAX_SPARES: usize = 4;
/// Above this many retained bytes, mappings are not kept.
pub(in crate::queue) const MAX_RETAINED_BYTES: usize = 512 << 20;
/// Process-wide limit on retained segments: each takes a descriptor, of which there are 1,024 by default.
pub(in crate::queue) const MAX_SLOTS: usize = 64;
/// Segments that the writer has left and may get back. Each is open here only through the file that belongs to its
/// mapping.
#[derive(Debug)]
pub(crate) struct RetainedMappings {
    pub(in crate::queue) segments: Vec<(File, Arc<Mapping>, Slot)>,
    /// The number of retained segments in the whole process.
    pub(in crate::queue) slots: &'static AtomicUsize,
}

/// One of [`MAX_SLOTS`].
#[derive(Debug)]
pub(in crate::queue) struct Slot(&'static AtomicUsize);

impl Slot {
    fn of(slots: &'static AtomicUsize) -> Option<Self> {
        let more = |slots| (slots < MAX_SLOTS).then_some(slots + 1);
        slots.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(slots))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for RetainedMappings {
    fn default() -> Self {
        static SLOTS: AtomicUsize = AtomicUsize::new(0);
        Self { segments: Vec::new(), slots: &SLOTS }
    }
}

impl RetainedMappings {
    /// Adds a segment that the writer has just left. `retained`: how many sealed segments retention keeps. Returns the
    /// mappings that are not to be kept.
    pub(crate) fn add(&mut self, file: File, map: Arc<Mapping>, retained: usize) -> Vec<Arc<Mapping>> {
        let is_too_much = retained.saturating_mul(map.len()) > MAX_RETAINED_BYTES;
        let most = if is_too_much { 0 } else { retained + MAX_SPARES };
        let Some(slot) = Slot::of(self.slots) else {
            return vec![map];
        };
        self.segments.push((file, map, slot));
        let too_many = self.segments.len().saturating_sub(most);
        let mut gone: Vec<_> = self.segments.drain(..too_many).map(|(_, map, _)| map).collect();
        // A removed file that is kept here still occupies its blocks.
        let is_removed = |file: &File| file.metadata().map_or(true, |metadata| metadata.nlink() == 0);
        gone.extend(self.segments.extract_if(.., |(file, ..)| is_removed(file)).map(|(_, map, _)| map));
        gone
    }

    /// Takes the segment whose file has this name.
    pub(in crate::queue) fn take(&mut self, dir: &Dir, name: &str) -> Option<(File, Arc<Mapping>)> {
        let named = statat(dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW).ok().filter(|named| named.st_nlink == 1)?;
        let is_it = |file: &File| file.metadata().is_ok_and(|it| (it.dev(), it.ino()) == (named.st_dev, named.st_ino));
        let index = self.segments.iter().position(|(file, map, _)| is_it(file) && !map.is_lost())?;
        let (file, map, _) = self.segments.remove(index);
        Some((file, map))
    }
}
