//! Spares: files of retired segments, kept for new segments. Their blocks are allocated and their pages are in memory,
//! which is most of the cost of a new segment. There are as many as the number of segments by which retention was late:
//! one if it is never late.
//!
//! Only for the holder of the writer lock. Invariants:
//! - A file is reused only if nothing else has it open, mapped or under another name: a process that still reads a
//!   retired segment can finish, and the file is then removed like any other.
//! - Meanwhile it has a temporary name, which has no meaning: the next writer removes it.
//! - The segment's salt distinguishes its old contents from the new ones; see `format.md` on reused files.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::sync::Arc;

use rustix::fs::{AtFlags, statat};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::queue::error::Result;
use crate::queue::files::dir::{Access, Dir};
use crate::queue::files::retained::{MAX_SPARES, RetainedMappings};
use crate::queue::files::room;
use crate::queue::format::layout;
use crate::queue::os::mapping::Mapping;
use crate::queue::os::sys;

const NAMES: [&str; MAX_SPARES] = ["spare-1.q.tmp", "spare-2.q.tmp", "spare-3.q.tmp", "spare-4.q.tmp"];
/// At most this many places of a file are checked to tell whether it is in memory.
const SAMPLES: u64 = 64;

/// A file to be reused, with its mapping if this process still has it.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) file: File,
    pub(crate) map: Option<Arc<Mapping>>,
}

/// Removes a retired segment from the queue; its file becomes a spare if there are too few.
pub(crate) fn keep(dir: &Dir, segment: &str) -> Result<()> {
    let kept = NAMES.iter().any(|name| dir.rename(segment, name, false).is_ok());
    if kept { Ok(()) } else { dir.remove(segment) }
}

/// Whether there is a spare.
pub(crate) fn is_there(dir: &Dir) -> bool {
    NAMES.iter().any(|name| statat(dir.fd(), *name, AtFlags::SYMLINK_NOFOLLOW).is_ok())
}

/// Removes the spares.
pub(crate) fn discard(dir: &Dir) {
    for name in NAMES {
        // A later writer removes what is left.
        let _ = dir.remove(name);
    }
}

/// Takes a usable spare, which is renamed to `temporary`. Removes unusable ones.
pub(crate) fn take(dir: &Dir, temporary: &str, size: u32, left: &mut RetainedMappings) -> Option<Spare> {
    NAMES.iter().find_map(|name| take_one(dir, name, temporary, size, left))
}

fn take_one(dir: &Dir, name: &str, temporary: &str, size: u32, left: &mut RetainedMappings) -> Option<Spare> {
    let spare = match left.take(dir, name) {
        Some((file, map)) => Some(Spare { file, map: Some(map) }),
        None => match dir.open_file(name, Access::Write) {
            Ok(None) => return None,
            file => file.ok().flatten().map(|file| Spare { file, map: None }),
        },
    };
    let spare = spare.filter(|spare| can_be_used(&spare.file, u64::from(size)).unwrap_or(false));
    // On disk, too, the file must have lost its segment's name before its bytes change.
    let taken = spare.filter(|_| dir.rename(name, temporary, false).and_then(|()| dir.sync()).is_ok());
    if taken.is_none() {
        // A later writer removes what is left.
        let _ = dir.remove(name).and_then(|()| dir.remove(temporary));
    }
    taken
}

fn can_be_used(file: &File, size: u64) -> io::Result<bool> {
    Ok(file.metadata()?.len() == size && room::is_overwritten_in_place(file, size)? && is_in_memory(file, size)? && {
        sys::is_open_here_only(file)?
    })
}

/// Whether the file's pages are in memory: reading them from disk costs more than new ones.
fn is_in_memory(file: &File, size: u64) -> io::Result<bool> {
    let step = (size / SAMPLES).max(u64::from(layout::PAGE));
    for sample in 0..size / step {
        let mut byte = [0];
        let at = sample * step;
        match preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT) {
            Ok(_) => {}
            // A file system that can't say is in memory.
            Err(Errno::OPNOTSUPP) => return Ok(true),
            Err(Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::files::retained::{MAX_RETAINED_BYTES, MAX_SLOTS};
    use crate::sync::AtomicUsize;

    const SIZE: u32 = 64 << 10;

    /// A directory in memory, where every file can be reused.
    fn directory() -> (tempfile::TempDir, Dir) {
        let temporary = tempfile::tempdir_in("/dev/shm").unwrap();
        let dir = Dir::open(temporary.path()).unwrap();
        (temporary, dir)
    }

    fn segment(dir: &Dir, name: &str) -> (File, Arc<Mapping>) {
        let file = dir.create_file(name).unwrap();
        file.set_len(u64::from(SIZE)).unwrap();
        let map = Arc::new(Mapping::read_write(&file, &dir.path_of(name), SIZE).unwrap());
        (file, map)
    }

    /// Retains segments of these names, and retires those that are `retired`.
    fn left(dir: &Dir, names: &[&str], retired: &[&str]) -> (RetainedMappings, Vec<Arc<Mapping>>) {
        let mut left = RetainedMappings::default();
        let maps = names.iter().map(|name| {
            let (file, map) = segment(dir, name);
            assert!(left.add(file, Arc::clone(&map), 2).is_empty());
            map
        });
        let maps = maps.collect();
        retired.iter().for_each(|name| keep(dir, name).unwrap());
        (left, maps)
    }

    #[test]
    fn what_was_left_comes_back_by_its_own_mapping() {
        let (_temporary, dir) = directory();
        let (mut left, maps) = left(&dir, &["a", "b", "c"], &["b", "a"]);
        for (name, index) in [("new b", 1), ("new a", 0)] {
            let spare = take(&dir, name, SIZE, &mut left).unwrap();
            assert!(Arc::ptr_eq(&spare.map.unwrap(), &maps[index]), "{name}");
        }
        assert!(take(&dir, "new c", SIZE, &mut left).is_none(), "c is not retired");
        let mut names = dir.names().unwrap();
        names.sort();
        assert_eq!(names, ["c", "new a", "new b"]);
    }

    #[test]
    fn what_was_left_and_is_open_elsewhere_is_not_used() {
        for access in [Access::Read, Access::Write] {
            let (_temporary, dir) = directory();
            let (mut left, _maps) = left(&dir, &["a"], &[]);
            let reader = dir.open_file("a", access).unwrap();
            keep(&dir, "a").unwrap();
            assert!(take(&dir, "new", SIZE, &mut left).is_none());
            drop(reader);
            assert_eq!(dir.names().unwrap(), [""; 0]);
        }
    }

    #[test]
    fn another_file_of_that_name_is_another_file() {
        let (_temporary, dir) = directory();
        let (mut left, maps) = left(&dir, &["a"], &[]);
        dir.remove("a").unwrap();
        drop(segment(&dir, "a"));
        keep(&dir, "a").unwrap();
        let spare = take(&dir, "new", SIZE, &mut left).unwrap();
        assert!(spare.map.is_none());
        // The first one is removed, and so are its blocks once its mapping is dropped.
        let (file, map) = segment(&dir, "b");
        let gone = left.add(file, map, 2);
        assert!(gone.len() == 1 && Arc::ptr_eq(&gone[0], &maps[0]));
    }

    #[test]
    fn no_more_is_kept_than_may_come_back() {
        let (_temporary, dir) = directory();
        let mut left = RetainedMappings::default();
        let mut gone = 0;
        for number in 0..20 {
            let (file, map) = segment(&dir, &number.to_string());
            gone += left.add(file, map, 2).len();
        }
        assert_eq!(gone, 20 - 2 - NAMES.len());
        let (file, map) = segment(&dir, "too many");
        assert_eq!(left.add(file, map, MAX_RETAINED_BYTES / SIZE as usize + 1).len(), 1 + 2 + NAMES.len());
    }

    #[test]
    fn all_writers_together_keep_a_bounded_number() {
        let (_temporary, dir) = directory();
        static SLOTS: AtomicUsize = AtomicUsize::new(0);
        let new = |_| RetainedMappings { segments: Vec::new(), slots: &SLOTS };
        let mut writers: Vec<_> = (0..MAX_SLOTS).map(new).collect();
        let mut leave = |writer: usize, name: &str| {
            let (file, map) = segment(&dir, name);
            writers[writer].add(file, map, 2).len()
        };
        for writer in 0..MAX_SLOTS {
            assert_eq!(leave(writer, &format!("{writer}")), 0);
        }
        assert_eq!(leave(0, "too many"), 1);
        drop(writers.pop());
        let (file, map) = segment(&dir, "again");
        assert!(writers[0].add(file, map, 2).is_empty());
    }

    #[test]
    fn spares_are_as_many_as_there_are_names() {
        let (_temporary, dir) = directory();
        let names: Vec<String> = (0..6).map(|number| format!("{number:09}.q")).collect();
        for name in &names {
            drop(segment(&dir, name));
            keep(&dir, name).unwrap();
        }
        assert_eq!(dir.names().unwrap().len(), NAMES.len());
        discard(&dir);
        assert_eq!(dir.names().unwrap(), [""; 0]);
    }
}
