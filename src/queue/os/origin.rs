//! Which process opened an object. A forked process has copies of its parent's descriptors and memory, but none of its
//! threads: what it does with them affects the parent, whose locks and mappings they are.
//!
//! Counted by a handler that runs in the child of each `fork`, so that checking costs one load. A child created by a
//! raw system call, or by `vfork`, is not noticed; such a child must run another program at once anyway.

use std::path::Path;
use std::sync::Once;

use crate::queue::error::{Error, Result};
use crate::queue::os::sys;
use crate::sync::{AtomicU32, Ordering};

/// The number of forks between the first process and this one, as far as they were noticed.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The process that an object belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin(u32);

impl Origin {
    /// The current process.
    pub(crate) fn here() -> Self {
        static WATCH: Once = Once::new();
        WATCH.call_once(|| sys::call_in_children(count));
        Self(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this is still that process.
    #[inline]
    pub(crate) fn is_here(self) -> bool {
        self.0 == FORKS.load(Ordering::Relaxed)
    }

    /// The item that this process does not share with those that it forks, or with those that it was forked from.
    pub(crate) fn choose<T>(self, items: &[T; 16]) -> &T {
        &items[self.0 as usize % items.len()]
    }

    /// Like [`is_here`](Self::is_here), as an error.
    #[inline]
    pub(crate) fn check(self, path: &Path) -> Result<()> {
        if self.is_here() { Ok(()) } else { Err(forked(path)) }
    }
}

#[cold]
fn forked(path: &Path) -> Error {
    Error::Forked { path: path.to_path_buf() }
}

extern "C" fn count() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}
