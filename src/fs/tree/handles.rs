//! The handle table: open files and directories, and the trait that an open file implements.
//!
//! Handles own everything they need (a queue, a stream, a descriptor); they keep working when the node's name is gone
//! or stands for something else.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, RwLock};

use crate::sync::{AtomicU64, Ordering};

use crate::fs::budget::Share;
use crate::fs::errno::{Errno, Result};
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::{read, write};

/// Tells the kernel to ask a polled handle again.
pub(crate) type Notify = Box<dyn FnOnce() + Send>;

/// The outcome of a read.
#[derive(Debug)]
pub(crate) enum Progress {
    /// The available bytes have been appended to the buffer; none appended means the end of the file.
    Done,
    /// Nothing available yet: try again when one of the queues has moved.
    Wait(Vec<Arc<OpenQueue>>),
}

/// What the kernel may cache of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caching {
    /// Nothing: the file may grow, and the kernel would show zeros at the old end.
    Nothing,
    /// Everything, until the file is opened again: the bytes no longer change.
    UntilOpened,
    /// Everything: the bytes never change.
    Always,
}

/// Where a write goes, and whose it is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WriteBy {
    /// The descriptor's offset; None for the end of the file (O_APPEND).
    pub(crate) at: Option<u64>,
    /// The writing process, by the kernel's word for its table of descriptors, where it says that.
    pub(crate) owner: Option<u64>,
}

/// An open file. Several threads may call at once.
pub(crate) trait Handle: Send + Sync {
    /// Appends at most `size` bytes from `offset` on to `out`. Streams ignore the offset.
    fn read(&self, _offset: u64, _size: usize, _out: &mut Vec<u8>) -> Result<Progress> {
        Err(Errno::EBADF)
    }

    /// Accepts bytes; fewer than passed when the rest is refused. There is no offset.
    fn write(&self, _data: &[u8]) -> Result<usize> {
        Err(Errno::EBADF)
    }

    /// As [`Handle::write`], for files to which it matters.
    fn write_by(&self, data: &[u8], _by: WriteBy) -> Result<usize> {
        self.write(data)
    }

    /// `ftruncate(2)`, after the file has accepted truncation.
    fn truncate(&self, _len: u64) -> Result<()> {
        Ok(())
    }

    /// Makes what was written durable.
    fn fsync(&self) -> Result<()> {
        Ok(())
    }

    /// A descriptor is being closed, perhaps not the last one; close(2) waits for this and fails with its error. Only
    /// called for handles that ask for it ([`Handle::is_flushed`]). `thread`: the one that closes it; `owner` as in [`WriteBy`].
    fn flush(&self, _thread: u32, _owner: u64) -> Result<()> {
        Ok(())
    }

    /// Whether [`Handle::flush`] must be called when a descriptor is closed.
    fn is_flushed(&self) -> bool {
        false
    }

    /// The last descriptor was closed. Errors can't be reported.
    fn release(&self) {}

    /// The mount ends while the file is open.
    fn unmounted(&self) {
        self.release();
    }

    /// For `poll`: the queues that a read would wait for; None if it would not block.
    fn blocked(&self) -> Option<Vec<Arc<OpenQueue>>> {
        None
    }

    /// Whether a waiting read must be retried periodically, whatever the queues do.
    fn looks_around(&self) -> bool {
        false
    }

    /// The file that has exactly these bytes: the kernel may read and map it itself.
    fn backing(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What the kernel may cache of its bytes.
    fn caching(&self) -> Caching {
        Caching::Nothing
    }

    /// As [`Handle::read`], for the kernel's pages: of a mapping, or of its cache. The kernel takes fewer bytes than
    /// `size` for the end of the file, and asks only once.
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
    /// The notification of a poll that was answered "ready". An edge-triggered poller asks again only when it is
    /// called.
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
    /// Inserts what `make` returns for its new number.
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
