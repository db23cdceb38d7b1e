//! Where an append and the helper thread meet, on plain atomics: `tests/model.rs` includes this file and tries every
//! interleaving of it.
//!
//! The writer says at which offset an append is about to store, then loads the limit, without a fence. The helper
//! closes the gate, executes a barrier that reaches the running writer (membarrier), and only then checks where the
//! writer is. Invariant: either the writer sees that the gate is closed, or the helper sees the writer inside.
//! That an append is over is seen from its record: no second store is needed.

use crate::sync::{AtomicU32, Ordering, compiler_fence};

/// Marks an offset at which nothing is being stored; offsets are multiples of 8.
const OUTSIDE: u32 = 1;

/// Where the writer's last append was about to store, or where it has left. Changes with each append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entered(u32);

impl Entered {
    /// The offset at which an append was about to store; None if none is under way there.
    pub(crate) fn storing_at(self) -> Option<u32> {
        (self.0 & OUTSIDE == 0).then_some(self.0)
    }

    /// Where the writer is.
    pub(crate) fn offset(self) -> u32 {
        self.0 & !OUTSIDE
    }
}

/// On cache lines of its own: the writer stores into it with each append.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Gate {
    /// A record that ends after this takes the slow path; 0 is closed.
    soft_limit: AtomicU32,
    /// Where the writer's last append was about to store.
    entered: AtomicU32,
}

impl Gate {
    /// Closed.
    pub(crate) fn new() -> Self {
        Self { soft_limit: AtomicU32::new(0), entered: AtomicU32::new(0) }
    }

    /// An append is about to store at `offset`, if its record ends at the returned limit or before.
    ///
    /// SYNC POINT with `close` and `is_outside`.
    #[inline]
    pub(crate) fn enter(&self, offset: u32) -> u32 {
        // Who knows the offset finds no older commit word there.
        self.entered.store(offset, Ordering::Release);
        // Keeps the compiler from moving the load before the store; the helper's barrier does the rest.
        compiler_fence(Ordering::SeqCst);
        self.soft_limit.load(Ordering::Relaxed)
    }

    /// Nothing is being stored at `offset`, where the next record will start.
    pub(crate) fn leave(&self, offset: u32) {
        self.entered.store(offset | OUTSIDE, Ordering::Release);
    }

    /// Sets the limit. Only by whoever holds the lock beside the gate.
    pub(crate) fn open(&self, soft_limit: u32) {
        self.soft_limit.store(soft_limit, Ordering::Release);
    }

    /// Closes the gate. Returns the limit; None if it was closed. Only by whoever holds the lock beside the gate.
    pub(crate) fn close(&self) -> Option<u32> {
        Some(self.soft_limit.swap(0, Ordering::Relaxed)).filter(|&limit| limit > 0)
    }

    /// Whether the writer is outside and `end` is the end of its records, of which the last one starts at `last`: to be
    /// asked after a barrier that follows `close`.
    pub(crate) fn is_outside(&self, last: Option<u32>, end: u32) -> bool {
        let entered = self.entered();
        match entered.storing_at() {
            None => entered.offset() == end,
            storing_at => storing_at == last,
        }
    }

    /// What the writer said last.
    pub(crate) fn entered(&self) -> Entered {
        Entered(self.entered.load(Ordering::Acquire))
    }
}
