//! Waiting for a queue that does not exist yet: consumers may start before what they consume.

use std::path::Path;

use inotify::{Inotify, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::queue::layout::CONTROL_FILE;
use crate::queue::{Error, Queue, Result};

/// A notification ends a wait at once. Checked again after this long without one: links may lead to directories that
/// are not watched, and some network file systems don't notify.
const RECHECK_S: i64 = 10;

/// Opens a queue as soon as it exists. Its directory, and directories above it, may be missing as well. To stop
/// waiting, end the process.
///
/// ```
/// use chronfs::queue::{Queue, Settings};
///
/// # let dir = tempfile::tempdir()?;
/// let path = dir.path().join("not/yet/there");
/// let consumer = std::thread::spawn({
///     let path = path.clone();
///     move || chronfs::bus::wait_for_queue(&path)
/// });
/// Queue::create(&path, &Settings::default())?;
/// assert_eq!(consumer.join().unwrap()?.path(), path);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`Queue::open`], if something else is in its place; [`Error::Io`] if it can't be waited for.
pub fn wait_for_queue(path: impl AsRef<Path>) -> Result<Queue> {
    let path = path.as_ref();
    let failed = |e| Error::io(path, "wait for it")(e);
    loop {
        let inotify = Inotify::init().map_err(failed)?;
        let watched = nearest_directory(path);
        let mask = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
        let is_watched = inotify.watches().add(watched, mask | WatchMask::ONLYDIR);
        // Only now: whatever is created from here on ends the wait.
        match Queue::open(path) {
            Err(Error::NotAQueue { .. }) if path.is_dir() || path.symlink_metadata().is_err() => {}
            // It is being created: its first segment is there, and messages could not be waited for yet.
            Ok(_) if !path.join(CONTROL_FILE).exists() => {}
            opened => return opened,
        }
        if nearest_directory(path) != watched {
            continue;
        }
        is_watched.map_err(failed)?;
        let timeout = Timespec { tv_sec: RECHECK_S, tv_nsec: 0 };
        match poll(&mut [PollFd::new(&inotify, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// The directory at this path, or the nearest one above it.
fn nearest_directory(path: &Path) -> &Path {
    let here = Path::new(".");
    let is_relative = path.is_relative();
    let mut above = path.ancestors().filter(|above| !above.as_os_str().is_empty());
    above.find(|above| above.is_dir()).unwrap_or(if is_relative { here } else { Path::new("/") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Settings;

    /// In a child directory that is created, moved and removed while it waits.
    #[test]
    fn a_queue_is_found_however_it_appears() {
        let dir = tempfile::tempdir().unwrap();
        for (name, is_moved) in [("a", false), ("deep/below/b", false), ("c", true), ("moved/with/its/parents", true)] {
            let path = dir.path().join(name);
            let waiting = std::thread::spawn({
                let path = path.clone();
                move || wait_for_queue(path).map(|queue| queue.settings().segment_size)
            });
            let settings = Settings { segment_size: 64 << 10, ..Settings::default() };
            if is_moved {
                let (first, elsewhere) = (name.split('/').next().unwrap(), dir.path().join("elsewhere"));
                Queue::create(elsewhere.join(name), &settings).unwrap();
                std::fs::rename(elsewhere.join(first), dir.path().join(first)).unwrap();
            } else {
                Queue::create(path, &settings).unwrap();
            }
            assert_eq!(waiting.join().unwrap().unwrap(), 64 << 10, "{name}");
        }
    }

    /// Creating a queue takes several steps.
    #[test]
    fn a_queue_that_is_being_created_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("q"), dir.path().join("aside"));
        drop(Queue::create(&path, &Settings::default()).unwrap().writer().unwrap());
        std::fs::rename(path.join(CONTROL_FILE), &aside).unwrap();
        assert!(Queue::open(&path).is_ok(), "a segment makes it a queue");
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || wait_for_queue(path).and_then(|queue| queue.waiter().map(drop))
        });
        // Time to go wrong.
        let deadline = std::time::Instant::now() + std::time::Duration::from_millis(100);
        while !waiting.is_finished() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        std::fs::rename(&aside, path.join(CONTROL_FILE)).unwrap();
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn what_can_never_become_a_queue_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(wait_for_queue(&file), Err(Error::NotAQueue { .. })));
    }
}
