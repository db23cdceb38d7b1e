//! The queue that an append handle writes to, and the processes that write through the handle.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::fs::backing::Directory;
use crate::fs::callers::{has_open, is_executing, process_of};
use crate::fs::errno::{Errno, Result};
use crate::fs::lock;
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::queues::permission::Permission;
use crate::fs::site::Shared;
use crate::queue::QueueWriter;

/// Why a message is refused that is longer than its queue takes.
pub(super) const TOO_LONG: &str =
    "longer than this queue takes; to let it take more: chron-cli set QUEUE --segment-size SIZE";

pub(super) struct Target {
    /// The queue joined as a writer; None until it exists.
    pub(super) queue: Mutex<Option<Arc<OpenQueue>>>,
    pub(super) shared: Arc<Shared>,
    pub(super) directory: Arc<Directory>,
    pub(super) permission: Permission,
    /// The process that opened it; None if it is not visible.
    pub(super) opener: Option<u32>,
    /// Its path below the mountpoint.
    pub(super) path: PathBuf,
}

impl Target {
    pub(super) fn exists(&self) -> bool {
        lock(&self.queue).is_some()
    }

    /// The queue to append to; the first append creates it.
    fn queue(&self) -> Result<Arc<OpenQueue>> {
        let mut queue = lock(&self.queue);
        if let Some(queue) = &*queue {
            return Ok(Arc::clone(queue));
        }
        let made = self.shared.queues.create(&self.directory, &self.shared.settings, self.permission.caller())?;
        made.join_writer(self.permission.caller())?;
        Ok(Arc::clone(queue.insert(made)))
    }

    /// Runs with the queue's writer. EACCES once the caller may no longer write: it could not start a new segment
    /// either.
    pub(super) fn with_writer<T>(&self, run: impl FnOnce(&mut QueueWriter) -> T) -> Result<T> {
        let queue = self.queue()?;
        if self.permission.check(|caller| queue.check_writable(caller)) == Err(Errno::EACCES) {
            return Err(Errno::EACCES);
        }
        queue.with_writer(self.permission.caller(), run)
    }

    /// Whether a message would be accepted now.
    pub(super) fn check_room(&self, msg_type: u16, len: usize) -> Result<()> {
        let Some(queue) = lock(&self.queue).clone() else { return Ok(()) };
        Ok(queue.with_writer(self.permission.caller(), |writer| writer.reserve(msg_type, len).map(drop))??)
    }

    /// Makes what is in the queue durable.
    pub(super) fn sync(&self) -> Result<()> {
        let Some(queue) = lock(&self.queue).clone() else { return Ok(()) };
        Ok(queue.with_writer(self.permission.caller(), QueueWriter::flush_sync)??)
    }

    /// Whether a thread that is closing a descriptor is the opener's.
    pub(super) fn is_openers(&self, thread: u32) -> bool {
        self.opener.is_some() && process_of(thread) == self.opener
    }

    /// Whether the process that opened the file, of which this thread is closing a descriptor, may have another one.
    pub(super) fn is_open_in_opener(&self, thread: u32) -> bool {
        is_executing(thread) || self.opener.is_some_and(|process| has_open(process, &self.path))
    }

    /// Logs an error that no call can return.
    pub(super) fn failed(&self, errno: Errno) {
        if let Some(queue) = &*lock(&self.queue) {
            queue.failed("release", errno);
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(queue) = lock(&self.queue).take() {
            queue.leave_writer();
        }
    }
}

/// Processes, by the kernel's word for their table of descriptors, that have written and not closed a descriptor since.
#[derive(Default)]
pub(super) struct Writers(Vec<u64>);

impl Writers {
    pub(super) fn wrote(&mut self, owner: Option<u64>) {
        if let Some(owner) = owner.filter(|owner| !self.0.contains(owner)) {
            self.0.push(owner);
        }
    }

    /// A process closes a descriptor. Returns whether it is among them.
    pub(super) fn closed(&mut self, owner: u64) -> bool {
        let before = self.0.len();
        self.0.retain(|other| *other != owner);
        self.0.len() < before
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
