//! Threads that end before their owners do.

use std::thread::JoinHandle;

use crate::queue::os::origin::Origin;

/// A thread that ends before its owner: dropping it waits for it.
#[derive(Debug)]
pub(in crate::queue) struct Joined {
    thread: Option<JoinHandle<()>>,
    origin: Origin,
}

impl Joined {
    pub(in crate::queue) fn new(thread: JoinHandle<()>) -> Self {
        Self { thread: Some(thread), origin: Origin::here() }
    }

    /// Whether it runs in this process.
    pub(in crate::queue) fn is_here(&self) -> bool {
        self.origin.is_here()
    }

    pub(in crate::queue) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if thread.thread().id() == std::thread::current().id() {
            // It can't wait for itself, and is about to end.
        } else if self.origin.is_here() {
            // A panic in it has been reported by the panic hook; nothing is left to do.
            let _ = thread.join();
        } else {
            // It runs in the parent only.
            std::mem::forget(thread);
        }
    }
}
