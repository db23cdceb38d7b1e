//! All queues below a directory that a caller may see.
//!
//! The kernel checks the permissions of files opened by name. Files composed of many queues have to be checked here: no
//! caller may see through them what it could not open itself. Each directory is opened with the caller's rights.
//!
//! A queue may lie on a file system that does not answer. So a separate thread visits the directories: if it does not
//! return in time, another thread continues with the next directory, and all searches skip that place until the first
//! thread returns.

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::fs::backing::Directory;
use crate::fs::budget::set_payer;
use crate::fs::credentials::{Caller, READ, SEARCH};
use crate::fs::daemon_log::Failure;
use crate::fs::errno::{Errno, Reason, Result, set_reason};
use crate::fs::kernel::is_interrupted;
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::queues::table::Contents;
use crate::fs::site::Shared;
use crate::fs::{lock, spawn};
use crate::sync::{AtomicBool, Ordering};

/// Directories nested deeper than this are not searched: each level holds a descriptor.
const MAX_DEPTH: usize = 64;
/// How long one directory or queue may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How often to check whether the caller still waits.
const STEP: Duration = Duration::from_millis(50);

/// What was found at a place.
pub(in crate::fs) enum Found {
    Queue(Arc<OpenQueue>),
    /// A queue that can't be opened, and why.
    Unreadable(Arc<Directory>, Errno),
    /// Not a queue.
    Plain(Arc<Directory>),
    /// A directory that the caller may not read, and why.
    Closed(Errno),
}

/// The result of a search.
pub(in crate::fs) struct Survey<T> {
    /// What `look` returned for each place, sorted by path.
    pub(in crate::fs) seen: Vec<(String, T)>,
    /// Directories that did not answer in time.
    pub(in crate::fs) unanswered: Vec<String>,
}

/// Whether an error says nothing about the place itself: the daemon is short of a resource.
pub(in crate::fs) fn is_scarcity(errno: Errno) -> bool {
    [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM].contains(&errno)
}

/// A name in a directory.
type Child = (Arc<Directory>, OsString);
type Look<T> = Box<dyn Fn(&str, Found) -> Result<Option<T>> + Send + Sync>;

struct Walk<T> {
    shared: Arc<Shared>,
    relative: PathBuf,
    caller: Caller,
    look: Look<T>,
    places: Mutex<Places>,
}

/// What is still to be visited.
#[derive(Default)]
struct Places {
    has_begun: bool,
    levels: Vec<Level>,
}

/// A directory without a queue, and its entries still to be visited.
struct Level {
    path: PathBuf,
    directory: Arc<Directory>,
    names: std::vec::IntoIter<OsString>,
}

/// What a searching thread reports.
enum Step<T> {
    /// It is visiting this now.
    At(PathBuf),
    Seen(String, T),
    Nothing,
    /// Another search is stuck there.
    Hangs(PathBuf),
    Failed(Errno, Option<Reason>),
}

/// Visits all directories and queues below a directory; those that vanish meanwhile are left out. `look` is called for
/// each with its path below that directory, in another thread, and should keep nothing open.
///
/// # Errors
/// Those of the directory itself, those of `look`, and those that mean that descriptors or memory are short: then the
/// search would be incomplete.
pub(in crate::fs) fn survey<T: Send + 'static>(
    shared: &Arc<Shared>,
    relative: &Path,
    caller: &Caller,
    look: impl Fn(&str, Found) -> Result<Option<T>> + Send + Sync + 'static,
) -> Result<Survey<T>> {
    let walk = Arc::new(Walk {
        shared: Arc::clone(shared),
        relative: relative.to_path_buf(),
        caller: caller.clone(),
        look: Box::new(look),
        places: Mutex::default(),
    });
    let mut survey = Survey { seen: Vec::new(), unanswered: Vec::new() };
    let (mut steps, mut left) = walk.start()?;
    let mut at: Option<(PathBuf, Instant)> = None;
    let shown = |path: &Path| path.to_string_lossy().into_owned();
    loop {
        match steps.recv_timeout(STEP) {
            Ok(Step::At(path)) => at = Some((path, Instant::now())),
            Ok(Step::Nothing) => at = None,
            Ok(Step::Seen(name, seen)) => {
                at = None;
                survey.seen.push((name, seen));
            }
            Ok(Step::Hangs(path)) => survey.unanswered.push(shown(&path)),
            Ok(Step::Failed(errno, reason)) => {
                set_reason(reason);
                return Err(errno);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let Some((path, since)) = &at else { continue };
                let is_late = since.elapsed() >= LIMIT;
                if is_late || is_interrupted() {
                    walk.leave(path, &left);
                    if !is_late {
                        return Err(Errno::EINTR);
                    }
                    walk.log_silence(path);
                    survey.unanswered.push(shown(path));
                    at = None;
                    (steps, left) = walk.start()?;
                }
            }
        }
    }
    survey.seen.sort_by(|a, b| a.0.cmp(&b.0));
    survey.unanswered.sort_unstable();
    Ok(survey)
}

impl<T: Send + 'static> Walk<T> {
    /// Starts a thread that continues with what is still to be visited.
    fn start(self: &Arc<Self>) -> Result<(Receiver<Step<T>>, Arc<AtomicBool>)> {
        let (tell, steps) = channel();
        let left = Arc::new(AtomicBool::new(false));
        let (walk, is_left) = (Arc::clone(self), Arc::clone(&left));
        spawn("chronfs-survey", 1 << 20, move || walk.run(&tell, &is_left))?;
        Ok((steps, left))
    }

    /// Abandons a stuck thread.
    fn leave(&self, path: &Path, left: &AtomicBool) {
        let mut hanging = lock(&self.shared.hanging.0);
        left.store(true, Ordering::Release);
        hanging.insert(self.relative.join(path));
    }

    fn log_silence(&self, path: &Path) {
        let (path, errno) = (self.relative.join(path), Errno::ETIMEDOUT.because("does not answer"));
        let caller = Some((self.caller.uid, self.caller.pid));
        self.shared.log.failed(&Failure { op: "survey", path: &path, queue: &path, errno, caller });
    }

    fn run(&self, tell: &Sender<Step<T>>, left: &AtomicBool) {
        set_payer(self.caller.uid);
        while let Some((path, parent)) = self.next() {
            let place = self.relative.join(&path);
            let is_hanging = lock(&self.shared.hanging.0).contains(&place);
            let step = if is_hanging {
                Step::Hangs(path)
            } else {
                if tell.send(Step::At(path.clone())).is_err() {
                    return;
                }
                let visit = || self.visit(path, parent.as_ref());
                let visited = catch_unwind(AssertUnwindSafe(visit)).unwrap_or(Err(Errno::EIO));
                let mut hanging = lock(&self.shared.hanging.0);
                if left.load(Ordering::Acquire) {
                    hanging.remove(&place);
                    return;
                }
                drop(hanging);
                match visited {
                    Ok(Some((name, seen))) => Step::Seen(name, seen),
                    Ok(None) => Step::Nothing,
                    Err(errno) => Step::Failed(errno, errno.take_reason()),
                }
            };
            if tell.send(step).is_err() {
                return;
            }
        }
    }

    /// The next directory, with the one that it is in, if it is not the first.
    fn next(&self) -> Option<(PathBuf, Option<Child>)> {
        let mut places = lock(&self.places);
        if !std::mem::replace(&mut places.has_begun, true) {
            return Some((PathBuf::new(), None));
        }
        loop {
            let level = places.levels.last_mut()?;
            if let Some(name) = level.names.next() {
                return Some((level.path.join(&name), Some((Arc::clone(&level.directory), name))));
            }
            places.levels.pop();
        }
    }

    /// Visits a directory: the queue in it, or, where there is none, the entries to be searched.
    fn visit(&self, path: PathBuf, parent: Option<&Child>) -> Result<Option<(String, T)>> {
        let opened = match parent {
            None => open(&self.caller, || self.shared.backing.directory(&self.relative)),
            Some((parent, name)) => open(&self.caller, || parent.child(name)),
        };
        let name = path.to_string_lossy().into_owned();
        let look = |found| Ok((self.look)(&name, found)?.map(|seen| (name.clone(), seen)));
        let directory = match opened {
            Ok(directory) => Arc::new(directory),
            Err(errno) if parent.is_none() || is_scarcity(errno) => return Err(errno),
            // Gone, or not a directory.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
            Err(errno) => return look(Found::Closed(errno)),
        };
        match self.shared.queues.find(&directory) {
            Contents::Queue(queue) => match queue.check_readable(&self.caller) {
                Ok(()) => look(Found::Queue(queue)),
                Err(errno) if is_scarcity(errno) => Err(errno),
                Err(errno) => look(Found::Closed(errno)),
            },
            Contents::Unreadable(Errno::ENOENT) => Ok(None),
            Contents::Unreadable(errno) if is_scarcity(errno) => Err(errno),
            Contents::Unreadable(errno) => look(Found::Unreadable(directory, errno)),
            Contents::Plain => {
                let names = match directory.names() {
                    Err(errno) if is_scarcity(errno) => return Err(errno),
                    names => names.unwrap_or_default().into_iter(),
                };
                let mut places = lock(&self.places);
                if places.levels.len() <= MAX_DEPTH {
                    places.levels.push(Level { path: path.clone(), directory: Arc::clone(&directory), names });
                }
                drop(places);
                look(Found::Plain(directory))
            }
        }
    }
}

/// Opens a directory that the caller may list and search.
fn open(caller: &Caller, open: impl Fn() -> Result<Directory>) -> Result<Directory> {
    let directory = caller.act(|| open().and_then(|directory| directory.check_listable().map(|()| directory)))??;
    if caller.is_stranger() && !caller.may(&directory.stat, READ | SEARCH) {
        return Err(Errno::EACCES);
    }
    Ok(directory)
}
