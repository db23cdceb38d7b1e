//! Short texts rendered on demand. A handle opened for reading shows a snapshot taken when the name was looked up. A
//! handle that is writable as well renders when it is read from the start, then keeps the text, so that one pass sees
//! one state.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::fs::attr::{Attr, Ttl};
use crate::fs::budget::{Budget, Kept};
use crate::fs::errno::{Errno, Result};
use crate::fs::lock;
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::site::{Access, Caller, File};
use crate::fs::tree::handles::{Caching, Handle, Progress};
use crate::fs::tree::inodes::stable_hash;

/// An open file whose whole text `render` returns.
pub(in crate::fs) struct TextHandle<F> {
    render: F,
    text: Mutex<(Option<Vec<u8>>, Kept)>,
}

impl<F: Fn() -> Result<Vec<u8>> + Send + Sync> TextHandle<F> {
    pub(in crate::fs) fn new(kept: Kept, render: F) -> Self {
        Self { render, text: Mutex::new((None, kept)) }
    }
}

impl<F: Fn() -> Result<Vec<u8>> + Send + Sync> Handle for TextHandle<F> {
    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        let mut text = lock(&self.text);
        let (text, kept) = &mut *text;
        if offset == 0 || text.is_none() {
            let rendered = (self.render)()?;
            kept.set(rendered.len())?;
            *text = Some(rendered);
        }
        give(text.as_deref().unwrap_or_default(), offset, size, out);
        Ok(Progress::Done)
    }
}

/// Maximum size of a text, in bytes.
pub(in crate::fs) const SMALL: usize = 64 << 20;

/// Within this time the kernel repeats the lookup of a name that it has found changed.
const ASKED_AGAIN: Duration = Duration::from_millis(20);

/// What a file showed when its name was looked up: one state with one size, of which a process that opens it reads the
/// whole, whatever its reads. Each lookup takes a new one.
struct Snapshot {
    file: Arc<dyn File>,
    size: u64,
    generation: u64,
    recent: Arc<Recent>,
}

/// A snapshot that was taken of the file at a path, for a caller, and when.
struct Last {
    path: PathBuf,
    caller: Caller,
    when: Instant,
    snapshot: Arc<Snapshot>,
}

/// Bytes of texts kept for processes that have looked up a name and may open it. The last text is always kept.
const RECENT: usize = 16 << 20;
/// Overhead counted for each text: there may be many small ones.
const FOR_EACH: usize = 1 << 10;

/// Those texts, with their generations. Names that the kernel has cached keep none.
struct Recent {
    texts: Mutex<VecDeque<(u64, Vec<u8>)>>,
    /// The budget that handles are charged to.
    budget: Arc<Budget>,
}

impl Recent {
    fn add(&self, generation: u64, text: Vec<u8>) {
        let mut texts = lock(&self.texts);
        texts.push_back((generation, text));
        while texts.len() > 1 && texts.iter().map(|(_, text)| text.len() + FOR_EACH).sum::<usize>() > RECENT {
            texts.pop_front();
        }
    }

    fn take(&self, generation: u64) -> Option<Vec<u8>> {
        let mut texts = lock(&self.texts);
        let at = texts.iter().position(|(other, _)| *other == generation)?;
        texts.remove(at).map(|(_, text)| text)
    }
}

/// The last snapshot taken, until one is read, and the texts of a few.
pub(crate) struct Snapshots {
    last: Mutex<Option<Last>>,
    recent: Arc<Recent>,
}

impl Snapshots {
    /// `budget`: what handles are charged to.
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        let recent = Recent { texts: Mutex::default(), budget: Arc::clone(budget) };
        Self { last: Mutex::default(), recent: Arc::new(recent) }
    }

    /// A snapshot of what the file at a path shows now. When the kernel finds another inode than before under a name,
    /// it repeats the lookup at once, and gets the same snapshot.
    pub(crate) fn take(&self, path: &Path, file: &Arc<dyn File>, caller: &Caller) -> Result<Arc<dyn File>> {
        if let Some(last) = lock(&self.last).take()
            && last.path == path
            // Threads of other pid namespaces have no number here.
            && last.caller == *caller
            && caller.pid != 0
            && last.when.elapsed() < ASKED_AGAIN
        {
            return Ok(last.snapshot);
        }
        let text = read_whole(file, caller)?;
        let size = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let generation = generation(&**file, &text);
        self.recent.add(generation, text);
        let (file, recent) = (Arc::clone(file), Arc::clone(&self.recent));
        let snapshot = Arc::new(Snapshot { file, size, generation, recent });
        let (path, caller, when) = (path.to_path_buf(), caller.clone(), Instant::now());
        *lock(&self.last) = Some(Last { path, caller, when, snapshot: Arc::clone(&snapshot) });
        Ok(snapshot)
    }

    /// A snapshot has been used: the next lookup is not a repetition.
    pub(crate) fn were_seen(&self) {
        *lock(&self.last) = None;
    }
}

fn generation(file: &dyn File, text: &[u8]) -> u64 {
    stable_hash(&[&file.generation().to_le_bytes(), text])
}

/// What `file` shows now to a caller that may open it.
fn read_whole(file: &Arc<dyn File>, caller: &Caller) -> Result<Vec<u8>> {
    let attr = file.attr()?;
    let bits = if caller.uid == attr.uid { 0o400 } else { 0o004 };
    if caller.uid != 0 && attr.mode & bits == 0 {
        // Only the kernel knows, and it checks when the file is opened.
        return Err(Errno::EACCES);
    }
    let handle = file.open(Access::Read, caller)?;
    let (mut text, max) = (Vec::new(), file.snapshot_max());
    loop {
        let at = u64::try_from(text.len()).map_err(|_| Errno::EIO)?;
        let before = text.len();
        match handle.read(at, (1 << 20).min(max + 1 - before), &mut text)? {
            Progress::Done if text.len() == before => return Ok(text),
            Progress::Done if text.len() <= max => {}
            _ => return Err(Errno::EMSGSIZE),
        }
    }
}

impl File for Snapshot {
    fn attr(&self) -> Result<Attr> {
        Ok(self.file.attr()?.with_size(self.size))
    }

    fn messages_of(&self) -> Option<&OpenQueue> {
        self.file.messages_of()
    }

    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
        let handle = self.file.open(access, caller)?;
        if access != Access::Read {
            return Ok(handle);
        }
        let text = match self.recent.take(self.generation) {
            Some(text) => text,
            // Another process has opened it, or many others have been taken since.
            None => read_whole(&self.file, caller)?,
        };
        if generation(&*self.file, &text) != self.generation {
            // The kernel looks the name up again.
            return Err(Errno::ESTALE);
        }
        let mut kept = Kept::new(&self.recent.budget, caller.uid);
        kept.set(text.len())?;
        Ok(Box::new(SnapshotHandle { text, _kept: kept }))
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn shown_generation(&self) -> Option<u64> {
        Some(self.file.generation())
    }

    fn is_current(&self) -> bool {
        self.file.is_current()
    }

    fn ttl(&self) -> Ttl {
        Ttl::NONE
    }

    fn truncate(&self) -> Result<()> {
        self.file.truncate()
    }

    fn touch(&self, caller: &Caller) -> Result<()> {
        self.file.touch(caller)
    }
}

struct SnapshotHandle {
    text: Vec<u8>,
    _kept: Kept,
}

impl Handle for SnapshotHandle {
    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        give(&self.text, offset, size, out);
        Ok(Progress::Done)
    }

    fn caching(&self) -> Caching {
        Caching::Always
    }
}

/// Appends at most `size` bytes of `text` from `offset` on.
fn give(text: &[u8], offset: u64, size: usize, out: &mut Vec<u8>) {
    let rest = usize::try_from(offset).ok().and_then(|offset| text.get(offset..)).unwrap_or_default();
    out.extend_from_slice(&rest[..rest.len().min(size)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::attr::Kind;

    /// A file that shows its caller.
    struct Whose(Arc<Budget>);

    impl File for Whose {
        fn attr(&self) -> Result<Attr> {
            let stat = rustix::fs::stat("/").unwrap();
            Ok(Attr { mode: 0o444, ..Attr::of(&stat, Kind::File) })
        }

        fn snapshot_max(&self) -> usize {
            SMALL
        }

        fn open(&self, _access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
            let text = format!("{}", caller.uid).into_bytes();
            Ok(Box::new(TextHandle::new(Kept::new(&self.0, caller.uid), move || Ok(text.clone()))))
        }
    }

    #[test]
    fn nobody_gets_what_another_has_looked_at() {
        let budget = Budget::of_this_process();
        let snapshots = Snapshots::new(&budget);
        let file: Arc<dyn File> = Arc::new(Whose(budget));
        // Threads of other pid namespaces, and a thread that changes its user.
        for pid in [0, 7] {
            for uid in [64_001, 64_002, 0] {
                let caller = Caller::of_request(uid, uid, 0, false).with_pid(pid);
                let seen = snapshots.take(Path::new("x"), &file, &caller).unwrap();
                let mut text = Vec::new();
                seen.open(Access::Read, &caller).unwrap().read(0, 10, &mut text).unwrap();
                assert_eq!(String::from_utf8(text).unwrap(), uid.to_string(), "{pid}");
            }
        }
        // The kernel looks it up twice.
        let twice = [(); 2].map(|()| snapshots.take(Path::new("x"), &file, &Caller::root()).unwrap());
        assert!(Arc::ptr_eq(&twice[0], &twice[1]));
    }
}
