//! Files that the kernel reads and maps itself: segments and text in the page cache, in root's mount.
//!
//! Invariants: all open handles of an inode share one backing (the kernel refuses a second one), which is released with
//! the last of them; and an inode is never open both with a backing and without, which would fail with EIO. So the
//! first handle of an inode decides for all that are open at the same time. Where the kernel refuses a backing (not to
//! this user, or not from a file system that is itself stacked) the file is read by requests.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, Weak};

use fuser::{InitFlags, KernelConfig};

use crate::fs::kernel::device::Backing;
use crate::fs::lock;

/// Which files have a backing.
#[derive(Default)]
pub(in crate::fs) struct Passthrough {
    state: Mutex<State>,
}

/// How the handles of an inode are read: from a backing, or by requests.
type Way = Option<Backing>;

#[derive(Default)]
struct State {
    /// The kernel supports backings.
    is_granted: bool,
    by_inode: HashMap<u64, Weak<Way>>,
    by_handle: HashMap<u64, Arc<Way>>,
}

impl Passthrough {
    /// Requests passthrough from the kernel.
    pub(in crate::fs) fn negotiate(&self, config: &mut KernelConfig) {
        // Depth 2: the bus may lie on an overlay.
        let granted =
            config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() && config.set_max_stack_depth(2).is_ok();
        lock(&self.state).is_granted = granted;
    }

    /// Decides how one more handle of an inode is read. `register` requests a backing from the kernel if it is the
    /// first.
    pub(in crate::fs) fn share(
        &self,
        inode: u64,
        handle: u64,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<Backing>,
        file: BorrowedFd<'_>,
    ) -> Option<Arc<Way>> {
        let mut state = lock(&self.state);
        if !state.is_granted {
            return None;
        }
        let known = state.by_inode.get(&inode).and_then(Weak::upgrade);
        let way = known.unwrap_or_else(|| Arc::new(register(file).ok()));
        state.by_inode.retain(|_, way| way.strong_count() > 0);
        state.by_inode.insert(inode, Arc::downgrade(&way));
        state.by_handle.insert(handle, Arc::clone(&way));
        Some(way)
    }

    /// A handle was closed.
    pub(in crate::fs) fn release(&self, handle: u64) {
        let gone = lock(&self.state).by_handle.remove(&handle);
        drop(gone);
    }
}
