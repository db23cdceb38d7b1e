//! Fetched files, in a directory of a bounded size. The one that was read least recently goes first.
//!
//! ```text
//! DIR/lock                     locked by the mount that uses it
//! DIR/address                  what the files are of: those of another address are removed
//! DIR/objects/<path>/<name>    a file, complete and verified; kept for the next mount
//! DIR/objects/fetching.<n>     one that is on its way; without meaning after a crash
//! ```
//!
//! Invariants: a file has its name only when it is complete, verified and on disk; files, also those on their way, never
//! take more than the limit together. Files are shared with the threads that serve the kernel through [`Ready`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, Shared};
use tokio::sync::Notify;

use super::failed;
use super::problem::Problem;
use crate::{Failure, Result};

/// A file that is there.
#[derive(Debug)]
pub(super) struct Cached {
    pub(super) file: File,
    pub(super) size: u64,
    /// When it was last read, by [`Ready::clock`].
    read: AtomicU64,
}

/// The files that are there, by inode.
#[derive(Debug, Default)]
pub(super) struct Ready {
    files: Mutex<HashMap<u64, Arc<Cached>>>,
    clock: AtomicU64,
}

impl Ready {
    /// The file of an inode, which is being read.
    pub(super) fn get(&self, ino: u64) -> Option<Arc<Cached>> {
        let found = self.files.lock().unwrap_or_else(PoisonError::into_inner).get(&ino).cloned()?;
        found.read.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Some(found)
    }

    fn insert(&self, ino: u64, file: File, size: u64) -> Arc<Cached> {
        let read = AtomicU64::new(self.clock.fetch_add(1, Ordering::Relaxed));
        let cached = Arc::new(Cached { file, size, read });
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(ino, Arc::clone(&cached));
        cached
    }

    fn remove(&self, ino: u64) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&ino);
    }
}

type Outcome = Result<Arc<Cached>, Problem>;
type Fetch = Shared<LocalBoxFuture<'static, Outcome>>;

enum Entry {
    /// From a mount before this one, not read yet: when it was written.
    Kept {
        size: u64,
        written: i64,
    },
    Fetching(Fetch),
    Here {
        ino: u64,
        cached: Arc<Cached>,
    },
}

/// The directory.
pub(super) struct Cache {
    dir: PathBuf,
    limit: u64,
    entries: RefCell<HashMap<PathBuf, Entry>>,
    /// Bytes of all files, and of those that are on their way.
    used: Cell<u64>,
    fetches: Cell<u64>,
    changed: Notify,
    pub(super) ready: Arc<Ready>,
    _lock: File,
}

impl Cache {
    /// Opens a directory, or creates it; what is there of the same address is kept.
    ///
    /// # Errors
    /// [`Failure::Config`] if another mount uses it, it is another user's, or it can't be written to.
    pub(super) fn open(dir: &Path, limit: u64, address: &str) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed(dir))?;
        let metadata = fs::metadata(dir).map_err(failed(dir))?;
        if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
            let what = "others may write to it: what is served would be theirs. Choose another --cache";
            return Err(Failure::Config(format!("{}: {what}", dir.display())));
        }
        let path = dir.join("lock");
        let lock = File::options().create(true).append(true).open(&path).map_err(failed(&path))?;
        if lock.try_lock().is_err() {
            let what = "another mount uses this cache: choose another --cache, or unmount that one";
            return Err(Failure::Config(format!("{}: {what}", dir.display())));
        }
        let (objects, known) = (dir.join("objects"), dir.join("address"));
        if fs::read_to_string(&known).is_ok_and(|known| known != address) {
            fs::remove_dir_all(&objects).or_else(is_gone).map_err(failed(&objects))?;
        }
        fs::create_dir_all(&objects).map_err(failed(&objects))?;
        fs::write(&known, address).map_err(failed(&known))?;
        let cache = Self {
            dir: objects.clone(),
            limit,
            entries: RefCell::default(),
            used: Cell::new(0),
            fetches: Cell::new(0),
            changed: Notify::new(),
            ready: Arc::default(),
            _lock: lock,
        };
        cache.adopt(Path::new("")).map_err(failed(&objects))?;
        cache.shrink_to(limit);
        Ok(cache)
    }

    /// Enters what a mount before this one has left.
    fn adopt(&self, below: &Path) -> io::Result<()> {
        for entry in fs::read_dir(self.dir.join(below))? {
            let entry = entry?;
            let (path, metadata) = (below.join(entry.file_name()), entry.metadata()?);
            if metadata.is_dir() {
                self.adopt(&path)?;
            } else if entry.file_name().to_string_lossy().starts_with("fetching.") {
                fs::remove_file(entry.path())?;
            } else {
                self.used.set(self.used.get().saturating_add(metadata.len()));
                let kept = Entry::Kept { size: metadata.len(), written: metadata.mtime() };
                self.entries.borrow_mut().insert(path, kept);
            }
        }
        Ok(())
    }

    /// What the files take, and may take.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.used.get(), self.limit)
    }

    /// A file, from here if it is; else `fetch` writes one of this size. Everybody who asks meanwhile gets the same.
    pub(super) async fn get<F>(
        self: &Rc<Self>,
        (ino, path, size): (u64, PathBuf, u64),
        fetch: impl FnOnce(PathBuf) -> F + 'static,
    ) -> Outcome
    where
        F: Future<Output = Result<File, Problem>> + 'static,
    {
        if let Some(cached) = self.ready.get(ino) {
            return Ok(cached);
        }
        let under_way = match self.entries.borrow().get(&path) {
            Some(Entry::Fetching(fetch)) => Some(fetch.clone()),
            _ => None,
        };
        if let Some(fetch) = under_way {
            return fetch.await;
        }
        if let Some(cached) = self.take_kept(ino, &path, size) {
            return Ok(cached);
        }
        let (this, key) = (Rc::clone(self), path.clone());
        let fetch: LocalBoxFuture<'static, Outcome> = Box::pin(async move {
            let fetched = this.fetch((ino, &key, size), fetch).await;
            let mut entries = this.entries.borrow_mut();
            match &fetched {
                Ok(cached) => drop(entries.insert(key, Entry::Here { ino, cached: Arc::clone(cached) })),
                Err(_) => drop(entries.remove(&key)),
            }
            this.changed.notify_waiters();
            fetched
        });
        let fetch = fetch.shared();
        self.entries.borrow_mut().insert(path, Entry::Fetching(fetch.clone()));
        // It goes on when those who asked have gone.
        tokio::task::spawn_local(fetch.clone());
        fetch.await
    }

    async fn fetch<F>(&self, (ino, path, size): (u64, &Path, u64), fetch: impl FnOnce(PathBuf) -> F) -> Outcome
    where
        F: Future<Output = Result<File, Problem>>,
    {
        self.make_room(size).await?;
        let number = self.fetches.get();
        self.fetches.set(number + 1);
        let (temporary, target) = (self.dir.join(format!("fetching.{number}")), self.dir.join(path));
        let stored = fetch(temporary.clone()).await.and_then(|file| {
            let store = || {
                file.sync_all()?;
                fs::create_dir_all(target.parent().unwrap_or(&self.dir))?;
                fs::rename(&temporary, &target)
            };
            store().map(|()| file).map_err(|error| Problem::local(&target, &error))
        });
        match stored {
            Ok(file) => Ok(self.ready.insert(ino, file, size)),
            Err(problem) => {
                let _ = fs::remove_file(&temporary);
                self.used.set(self.used.get().saturating_sub(size));
                Err(problem)
            }
        }
    }

    /// A file that a mount before this one has left, if it has the right size.
    fn take_kept(&self, ino: u64, path: &Path, size: u64) -> Option<Arc<Cached>> {
        let mut entries = self.entries.borrow_mut();
        let Some(&Entry::Kept { size: kept, .. }) = entries.get(path) else { return None };
        let file = (kept == size).then(|| File::open(self.dir.join(path)).ok()).flatten();
        if let Some(file) = file.filter(|file| file.metadata().is_ok_and(|metadata| metadata.len() == size)) {
            let cached = self.ready.insert(ino, file, size);
            entries.insert(path.to_path_buf(), Entry::Here { ino, cached: Arc::clone(&cached) });
            return Some(cached);
        }
        self.used.set(self.used.get().saturating_sub(kept));
        entries.remove(path);
        let _ = fs::remove_file(self.dir.join(path));
        None
    }

    /// Takes this much of the limit, when there is room.
    async fn make_room(&self, size: u64) -> Result<(), Problem> {
        if size > self.limit {
            return Err(Problem::no_room(size, self.limit));
        }
        loop {
            let changed = self.changed.notified();
            self.shrink_to(self.limit - size);
            if self.used.get() <= self.limit - size {
                self.used.set(self.used.get() + size);
                return Ok(());
            }
            // Others are on their way, each for a bounded time.
            changed.await;
        }
    }

    /// Removes files until they take no more than this, as far as they are not on their way.
    fn shrink_to(&self, most: u64) {
        let mut entries = self.entries.borrow_mut();
        while self.used.get() > most {
            // Those of a mount before this one first.
            let age = |entry: &Entry| match entry {
                Entry::Kept { written, .. } => Some((false, written.unsigned_abs())),
                Entry::Here { cached, .. } => Some((true, cached.read.load(Ordering::Relaxed))),
                Entry::Fetching(_) => None,
            };
            let oldest = entries.iter().filter_map(|(path, entry)| Some((age(entry)?, path))).min();
            let Some(path) = oldest.map(|(_, path)| path.clone()) else { return };
            let size = match entries.remove(&path) {
                Some(Entry::Kept { size, .. }) => size,
                Some(Entry::Here { ino, cached }) => {
                    self.ready.remove(ino);
                    cached.size
                }
                _ => 0,
            };
            let _ = fs::remove_file(self.dir.join(&path));
            self.used.set(self.used.get().saturating_sub(size));
        }
    }
}

/// A directory that is not there need not be removed.
fn is_gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// A file that is being fetched: takes no more than its room, and counts.
pub(super) struct Room {
    pub(super) file: File,
    pub(super) left: u64,
    /// Bytes written so far.
    pub(super) written: Rc<Cell<u64>>,
}

impl Write for Room {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len() as u64;
        self.left = self
            .left
            .checked_sub(len)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is larger than it says"))?;
        self.written.set(self.written.get() + len);
        self.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
