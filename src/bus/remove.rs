//! Removing a queue, and nothing else that lies in its directory.
//!
//! The directory is first renamed to a hidden name beside it, so that nobody ever sees a part of a queue, and a new one
//! can be created under the name at once. If the process is killed after that, the next removal of the same name goes
//! on where it stopped, and `doctor` says so. What is not the queue's own stays, under the old name again.
//!
//! The directory is held open and is not looked up again; only regular files in it and in its own directories are
//! removed, by names that a queue's files have.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, statat, unlinkat};

use super::{LEASE_FILE, READY_FILE, is_temporary};
use crate::bus::relays::{RELAY_DIR, RELAY_SUFFIX};
use crate::queue::layout::{
    CONTROL_FILE, CURSOR_SUFFIX, INDEX_DIR, LOCK_FILE, LOCK_SUFFIX, READERS_DIR, TEMPORARY_SUFFIX,
};
use crate::queue::{
    Dir, Error, FileAccess, Queue, Result, WriterLock, WriterState, check_name, is_named, is_queue, lock_reader,
    parse_segment_name, random_u64, reader_names,
};

/// The ending of a queue's directory that is being removed.
const REMOVED_SUFFIX: &str = ".removed";
/// How often a directory into which another process puts files of a queue is emptied again.
const ATTEMPTS: usize = 8;

/// What is removed with a queue, and what stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removal {
    /// The queue's own files.
    pub files: u64,
    /// Their size, as far as it takes space on disk.
    pub bytes: u64,
    /// Files and directories that are not the queue's own. They stay where they are.
    pub stays: Vec<PathBuf>,
}

/// The name of the queue whose removal was interrupted, if this is the name of what is left of it.
pub fn removed_name(name: &OsStr) -> Option<&str> {
    let (queue, number) = name.to_str()?.strip_prefix('.')?.strip_suffix(REMOVED_SUFFIX)?.rsplit_once('.')?;
    let is_ours = number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_ours.then_some(queue)
}

/// Removes a queue that no process writes to or uses a reader of. Files in its directory that are not its own stay,
/// and so does the directory then. Finishes a removal that was interrupted.
///
/// Who reads without a registered reader gets an error, as do waiting readers ([`Queue::check_present`]).
///
/// ```
/// use chronfs::bus;
/// use chronfs::queue::{Queue, Settings};
///
/// # let dir = tempfile::tempdir()?;
/// let path = dir.path().join("q");
/// Queue::create(&path, &Settings::default())?;
/// assert!(bus::remove_queue(&path)?.stays.is_empty());
/// assert!(!path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::NotAQueue`], [`Error::Locked`], [`Error::ReaderInUse`], [`Error::Refused`] for a symbolic link;
/// [`Error::Io`], above all without permission to change the directory or the one above.
pub fn remove_queue(path: impl AsRef<Path>) -> Result<Removal> {
    Place::of(path.as_ref())?.remove()
}

/// What [`remove_queue`] would remove. Changes nothing and takes no lock.
///
/// # Errors
/// As [`remove_queue`].
pub fn plan_removal(path: impl AsRef<Path>) -> Result<Removal> {
    Place::of(path.as_ref())?.plan()
}

/// A name in a directory.
struct Place {
    parent: Dir,
    name: String,
    path: PathBuf,
}

impl Place {
    fn of(path: &Path) -> Result<Self> {
        let whole;
        let named = match path.file_name() {
            Some(_) => path,
            // `.`, `..`
            None => {
                whole = path.canonicalize().map_err(Error::io(path, "find it"))?;
                &whole
            }
        };
        let name = named.file_name().unwrap_or_default();
        let invalid = || Error::InvalidName { name: name.to_string_lossy().into_owned(), reason: "it is not UTF-8" };
        let above = match named.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = name.to_str().ok_or_else(invalid)?.to_owned();
        let parent = Dir::open(above).map_err(Error::io(above, "open it"))?;
        Ok(Self { parent, name, path: path.to_path_buf() })
    }

    fn plan(&self) -> Result<Removal> {
        let mut removal = Removal::default();
        let queue = self.queue()?;
        for dir in queue.iter().chain(&self.unfinished()?) {
            in_use(dir)?;
            sweep(dir, Kind::Queue, &mut removal, false)?;
        }
        Ok(removal)
    }

    fn remove(&self) -> Result<Removal> {
        let mut removal = Removal::default();
        let queue = self.queue()?;
        for hidden in self.unfinished()? {
            let _lock = WriterLock::take(&hidden)?;
            self.finish(&hidden, &mut removal)?;
        }
        let Some(dir) = queue else { return Ok(removal) };
        in_use(&dir)?;
        let _lock = WriterLock::take(&dir)?;
        let _readers = hold_readers(&dir)?;
        let random = random_u64().map_err(Error::io(&self.path, "read random bytes"))?;
        let hidden = format!(".{}.{random:016x}{REMOVED_SUFFIX}", self.name);
        self.parent.rename(&self.name, &hidden, true).map_err(|error| self.because(error))?;
        if !is_named(&self.parent, &hidden, dir.file()) {
            self.parent.rename(&hidden, &self.name, true)?;
            return Err(Error::io(&self.path, "remove it")(std::io::Error::other("it has just been replaced")));
        }
        self.parent.sync()?;
        self.finish(&Dir::from_fd(reopened(&dir)?, &self.parent.path_of(&hidden)), &mut removal)?;
        Ok(removal)
    }

    /// An error of the rename, in terms of what was asked for.
    fn because(&self, error: Error) -> Error {
        match error {
            Error::Io { source, .. } => Error::io(&self.path, "remove it")(source),
            error => error,
        }
    }

    /// The queue of this name; None if there is only one that was not removed to the end.
    fn queue(&self) -> Result<Option<Dir>> {
        let none = |reason: &str| {
            let missing = Err(Error::NotAQueue { path: self.path.clone(), reason: reason.to_owned() });
            if self.unfinished()?.is_empty() { missing } else { Ok(None) }
        };
        let stat = statat(self.parent.fd(), &self.name, AtFlags::SYMLINK_NOFOLLOW);
        if stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink) {
            return Err(Error::refused(&self.path, "it is a symbolic link; name the queue's own directory"));
        }
        match self.parent.open_dir(&self.name) {
            Ok(dir) if is_queue(&dir)? => Ok(Some(Dir::from_fd(reopened(&dir)?, &self.path))),
            Ok(_) => none("the directory holds no control.meta and no segments"),
            Err(error) if error.kind() == ErrorKind::NotFound => none("there is no such directory"),
            Err(error) if error.kind() == ErrorKind::NotADirectory => none("it is not a directory"),
            Err(error) => Err(Error::io(&self.path, "open it")(error)),
        }
    }

    /// What interrupted removals of this name have left.
    fn unfinished(&self) -> Result<Vec<Dir>> {
        let mut names = self.parent.names()?;
        names.retain(|name| removed_name(name.as_ref()) == Some(&self.name));
        Ok(names.iter().filter_map(|name| self.parent.open_dir(name).ok()).collect())
    }

    /// Removes what a hidden directory holds, and the directory; one that is not empty has its name again.
    fn finish(&self, hidden: &Dir, removal: &mut Removal) -> Result<()> {
        let name = hidden.path().file_name().unwrap_or_default();
        for _ in 0..ATTEMPTS {
            removal.stays.clear();
            sweep(hidden, Kind::Queue, removal, true)?;
            hidden.remove(LOCK_FILE)?;
            match unlinkat(self.parent.fd(), name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => return self.parent.sync(),
                Err(rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST) if removal.stays.is_empty() => {}
                Err(rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST) => break,
                Err(error) => return Err(Error::io(hidden.path(), "remove it")(error.into())),
            }
        }
        // Not if there is another queue of that name by now.
        let is_back = self.parent.rename(&name.to_string_lossy(), &self.name, false).is_ok();
        let place = if is_back { &self.path } else { hidden.path() };
        for path in &mut removal.stays {
            *path = place.join(path.strip_prefix(hidden.path()).unwrap_or(path));
        }
        Ok(())
    }
}

fn reopened(dir: &Dir) -> Result<std::fs::File> {
    dir.file().try_clone().map_err(Error::io(dir.path(), "open it"))
}

/// Fails if a process uses the queue.
fn in_use(dir: &Dir) -> Result<()> {
    let again = dir.reopen().map_err(Error::io(dir.path(), "open it"))?;
    // A queue that can't be opened has no users.
    let Ok(queue) = Queue::open_in(again) else { return Ok(()) };
    let writer = queue.writer_info();
    if let (WriterState::Alive | WriterState::Stuck, Some(holder)) = (writer.state, writer.holder) {
        return Err(Error::Locked { path: dir.path().to_path_buf(), holder });
    }
    for name in reader_names(dir)? {
        let cursor = match queue.cursor(&name, FileAccess::Read) {
            Ok(cursor) => cursor,
            Err(error) if error.is_unusable_file() => continue,
            Err(error) => return Err(error),
        };
        if cursor.is_in_use() == Some(true) {
            return Err(Error::ReaderInUse { path: dir.path_of(READERS_DIR).join(name), holder: cursor.holder() });
        }
    }
    Ok(())
}

/// Keeps all registered readers from being used.
fn hold_readers(dir: &Dir) -> Result<Vec<std::fs::File>> {
    let mut held = Vec::new();
    for name in reader_names(dir)? {
        match lock_reader(dir, &name) {
            Ok(lock) => held.push(lock),
            Err(error) if error.is_unusable_file() || matches!(error, Error::NoSuchReader { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(held)
}

/// A queue's directory, and those in it.
#[derive(Clone, Copy)]
enum Kind {
    Queue,
    Readers,
    Index,
    Relays,
}

impl Kind {
    /// What a directory of this name in it is.
    fn directory(self, name: &str) -> Option<Self> {
        let is_unfinished = || name.starts_with(".readers.") && name.ends_with(TEMPORARY_SUFFIX);
        match self {
            Self::Queue if name == READERS_DIR || is_unfinished() => Some(Self::Readers),
            Self::Queue if name == INDEX_DIR => Some(Self::Index),
            Self::Queue if name == RELAY_DIR => Some(Self::Relays),
            _ => None,
        }
    }

    fn has_file(self, name: &str) -> bool {
        let is_temporary_file = name.ends_with(TEMPORARY_SUFFIX);
        match self {
            Self::Queue => {
                let control = name.strip_prefix(CONTROL_FILE);
                let is_segment = |name| parse_segment_name(name).is_some();
                control.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                    || [READY_FILE, LEASE_FILE].contains(&name)
                    || is_temporary(name)
                    || is_segment(name.strip_suffix(TEMPORARY_SUFFIX).unwrap_or(name))
            }
            Self::Readers => {
                let reader = name.strip_suffix(CURSOR_SUFFIX).or_else(|| name.strip_suffix(LOCK_SUFFIX));
                is_temporary_file || reader.is_some_and(|name| check_name(name).is_ok())
            }
            Self::Index => is_temporary_file || name.ends_with(".index"),
            Self::Relays => is_temporary_file || name.ends_with(RELAY_SUFFIX),
        }
    }
}

/// Counts what is the queue's own in a directory, and removes it. The writer's lock stays: it is held.
fn sweep(dir: &Dir, kind: Kind, removal: &mut Removal, removes: bool) -> Result<()> {
    let names = dir.all_names().map_err(Error::io(dir.path(), "list it"))?;
    for name in names {
        let text = name.to_str().unwrap_or_default();
        let Ok(stat) = statat(dir.fd(), &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if text == LOCK_FILE && matches!(kind, Kind::Queue) => {}
            FileType::RegularFile if kind.has_file(text) => {
                removal.files += 1;
                removal.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
                if removes {
                    dir.remove(text)?;
                }
            }
            FileType::Directory if let Some(below) = kind.directory(text) => {
                let path = dir.path_of(text);
                let inner = dir.open_dir(text).map_err(Error::io(&path, "open it"))?;
                sweep(&inner, below, removal, removes)?;
                if removes {
                    // Not empty if something in it stays.
                    let _ = unlinkat(dir.fd(), text, AtFlags::REMOVEDIR);
                }
            }
            _ => removal.stays.push(dir.path().join(&name)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Settings;
    use std::fs;

    /// A queue with three segments, a reader, markers, and leftovers of every kind.
    fn queue(path: &Path) -> Queue {
        let queue = Queue::create(path, &Settings { segment_size: 64 << 10, ..Settings::default() }).unwrap();
        let mut writer = queue.writer().unwrap();
        for _ in 0..3 {
            writer.append(1, &[7; 40_000]).unwrap();
        }
        drop(writer);
        queue.add_reader("alice").unwrap();
        crate::bus::mark_ready(path).unwrap();
        crate::bus::write_lease(path, std::time::Duration::from_secs(1), "x").unwrap();
        fs::create_dir(path.join(INDEX_DIR)).unwrap();
        fs::create_dir(path.join(RELAY_DIR)).unwrap();
        let index = ".index/000000000.index";
        for name in ["control.meta.damaged", "000000009.q.tmp", ".READY.1.2.tmp", index, "relay/out.json"] {
            fs::write(path.join(name), "").unwrap();
        }
        queue
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_queue_is_removed_with_everything_that_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q");
        queue(&path);
        let plan = plan_removal(&path).unwrap();
        assert!(plan.files >= 10 && plan.bytes >= 3 * 40_000, "{plan:?}");
        let removal = remove_queue(&path).unwrap();
        assert_eq!((removal.bytes, removal.stays), (plan.bytes, plan.stays));
        assert_eq!(names(dir.path()), [""; 0]);
        assert!(matches!(remove_queue(&path), Err(Error::NotAQueue { .. })));
        assert!(matches!(plan_removal(dir.path()), Err(Error::NotAQueue { .. })));
    }

    #[test]
    fn what_is_not_its_own_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q");
        queue(&path);
        fs::create_dir_all(path.join("readers/deep")).unwrap();
        fs::create_dir(path.join("000000017.q")).unwrap();
        fs::write(dir.path().join("elsewhere"), "precious").unwrap();
        for (name, target) in [("000000018.q", "elsewhere"), ("readers/eve.meta", "elsewhere"), ("more", "..")] {
            std::os::unix::fs::symlink(dir.path().join(target), path.join(name)).unwrap();
        }
        for name in ["notes.md", "x.q", "readers/notes"] {
            fs::write(path.join(name), "mine").unwrap();
        }
        let mut removal = remove_queue(&path).unwrap();
        removal.stays.sort();
        let stays = "000000017.q 000000018.q more notes.md readers/deep readers/eve.meta readers/notes x.q";
        assert_eq!(removal.stays, stays.split(' ').map(|name| path.join(name)).collect::<Vec<_>>());
        assert!(removal.stays.iter().all(|path| path.symlink_metadata().is_ok()));
        assert_eq!(names(&path), ["000000017.q", "000000018.q", "more", "notes.md", "readers", "x.q"]);
        assert_eq!(fs::read(dir.path().join("elsewhere")).unwrap(), b"precious");
    }

    #[test]
    fn a_queue_in_use_stays_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q");
        let queue = queue(&path);
        let kept = || names(&path).into_iter().filter(|name| !name.ends_with(".tmp") && name != LOCK_FILE);
        let before: Vec<_> = kept().collect();
        let writer = queue.writer().unwrap();
        assert!(matches!(remove_queue(&path), Err(Error::Locked { .. })));
        // A lock file that has been deleted lets nobody in.
        fs::remove_file(path.join(LOCK_FILE)).unwrap();
        assert!(matches!(remove_queue(&path), Err(Error::Locked { .. })));
        drop(writer);
        let reader = queue.reader("alice").unwrap();
        assert!(matches!(remove_queue(&path), Err(Error::ReaderInUse { .. })));
        assert!(matches!(plan_removal(&path), Err(Error::ReaderInUse { .. })));
        assert_eq!(kept().collect::<Vec<_>>(), before);
        drop(reader);
        assert!(remove_queue(&path).unwrap().stays.is_empty());
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("q"), dir.path().join("link"));
        queue(&path);
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for name in [link.clone(), link.join("")] {
            assert!(matches!(remove_queue(name), Err(Error::Refused { .. })));
        }
        assert!(Queue::open(&path).is_ok());
    }

    /// Whatever has been removed when the process is killed: the next removal goes on, and a new queue may have the
    /// name meanwhile.
    #[test]
    fn a_removal_that_was_killed_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q");
        let hidden = dir.path().join(".q.0123456789abcdef.removed");
        for killed_after in 0.. {
            queue(&path);
            fs::rename(&path, &hidden).unwrap();
            let own: Vec<_> = names(&hidden).into_iter().filter(|name| hidden.join(name).is_file()).collect();
            own.iter().take(killed_after).for_each(|name| fs::remove_file(hidden.join(name)).unwrap());
            if killed_after % 2 == 1 {
                queue(&path);
            }
            assert!(plan_removal(&path).unwrap().stays.is_empty());
            assert!(remove_queue(&path).unwrap().stays.is_empty());
            assert_eq!(names(dir.path()), [""; 0], "{killed_after}");
            if killed_after > own.len() {
                break;
            }
        }
    }

    #[test]
    fn a_damaged_queue_can_be_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q");
        queue(&path);
        for name in ["control.meta", "000000000.q", "000000001.q", "000000002.q", "readers/alice.meta"] {
            fs::write(path.join(name), "garbage").unwrap();
        }
        assert!(remove_queue(&path).unwrap().stays.is_empty());
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn names_of_removed_queues() {
        assert_eq!(removed_name(OsStr::new(".a.b.0123456789abcdef.removed")), Some("a.b"));
        for name in ["q", ".q.removed", ".q.0123.removed", "q.0123456789abcdef.removed", ".q.0123456789abcdeg.removed"]
        {
            assert_eq!(removed_name(OsStr::new(name)), None, "{name}");
        }
    }
}
