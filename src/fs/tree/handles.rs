//! The handle table: open files and directories, and what an open file must be able to do.
//!
//! Handles own everything they need (a queue, a stream, a descriptor); they go on working when the node's name is
//! gone or means something else.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, RwLock};

use crate::sync::{AtomicU64, Ordering};

use crate::fs::budget::Share;
use crate::fs::credentials::Caller;
use crate::fs::errno::{Errno, Result};
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::{read, write};

/// Tells the kernel to ask a polled handle again.
pub(crate) type Notify = Box<dyn FnOnce() + Send>;

/// What a read came to.
#[derive(Debug)]
pub(crate) enum Progress {
    /// What there is has been appended to the buffer; nothing appended means the end of the file.
    Done,
    /// Nothing there yet: ask again when one of the queues has moved.
    Wait(Vec<Arc<OpenQueue>>),
}

/// What the kernel may keep of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caching {
    /// Nothing: they may grow, and it would show zeros at the old end.
    Nothing,
    /// Everything, until the file is opened again: they are what they are from now on.
    UntilOpened,
    /// Everything: they have always been the same.
    Always,
}

/// An open file. Several threads may call at once.
pub(crate) trait Handle: Send + Sync {
    /// Appends at most `size` bytes from `offset` on to `out`. Streams ignore the offset.
    fn read(&self, _offset: u64, _size: usize, _out: &mut Vec<u8>) -> Result<Progress> {
        Err(Errno::EBADF)
    }

    /// Takes bytes in; fewer than given when the rest is refused. Offsets are not asked for.
    fn write(&self, _data: &[u8]) -> Result<usize> {
        Err(Errno::EBADF)
    }

    /// Makes what was written durable.
    fn fsync(&self) -> Result<()> {
        Ok(())
    }

    /// A descriptor is being closed, perhaps not the last one; close(2) waits for this and fails with its error. For handles
    /// that say so ([`Handle::is_flushed`]).
    fn flush(&self, _caller: Caller) -> Result<()> {
        Ok(())
    }

    /// Whether there is something to be done when a descriptor is closed.
    fn is_flushed(&self) -> bool {
        false
    }

    /// The last descriptor was closed. Nobody hears of errors.
    fn release(&self) {}

    /// For `poll`: whether a read would block, and for what. None: it would not.
    fn blocked(&self) -> Option<Vec<Arc<OpenQueue>>> {
        None
    }

    /// A read that waits is to be tried again now and then, whatever the queues do.
    fn looks_around(&self) -> bool {
        false
    }

    /// The file whose bytes these are, unchanged: the kernel may read and map it itself.
    fn backing(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What the kernel may keep of its bytes.
    fn caching(&self) -> Caching {
        Caching::Nothing
    }

    /// As [`Handle::read`], for pages of the kernel's: of a mapping, or of what the kernel keeps. Fewer bytes than `size` are
    /// the end of the file to it, and it asks once only.
    fn read_pages(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        self.read(offset, size, out)
    }
}

/// A handle with its number.
pub(crate) struct OpenFile {
    pub(crate) fh: u64,
    /// Who opened it.
    pub(crate) uid: u32,
    pub(crate) _share: Share,
    pub(crate) handle: Box<dyn Handle>,
    /// The queues that a `poll` of this handle waits for.
    pub(crate) polled: Mutex<Vec<Arc<OpenQueue>>>,
    /// Of a poll that was told that there is something. Who waits for edges asks again only when it is called.
    pub(crate) edge: Mutex<Option<Notify>>,
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenFile").field("fh", &self.fh).finish_non_exhaustive()
    }
}

/// One kind of handles by number.
#[derive(Debug)]
pub(crate) struct Table<T> {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { next: AtomicU64::new(1), open: RwLock::default() }
    }
}

impl<T> Table<T> {
    /// Enters what `make` makes of its number.
    pub(crate) fn insert(&self, make: impl FnOnce(u64) -> T) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(make(fh));
        let mut open = write(&self.open);
        open.insert(fh, entry);
        fh
    }

    pub(crate) fn get(&self, fh: u64) -> Result<Arc<T>> {
        read(&self.open).get(&fh).cloned().ok_or(Errno::EBADF)
    }

    /// Everything that is open now.
    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        read(&self.open).values().cloned().collect()
    }

    pub(crate) fn remove(&self, fh: u64) -> Option<Arc<T>> {
        write(&self.open).remove(&fh)
    }
}
