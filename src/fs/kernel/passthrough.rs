//! Files that the kernel reads and maps itself: the segments, where it is asked by root.
//!
//! Invariants: all open handles of an inode share one backing (the kernel refuses a second one), which is let go with
//! the last of them; and an inode is never opened both with a backing and without, which would give EIO. So whether
//! it can be done at all is found out once; later failures fail the open.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, Weak};

use fuser::{BackingId, InitFlags, KernelConfig};

use crate::fs::lock;

/// Which files have a backing.
#[derive(Default)]
pub(super) struct Passthrough {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    support: Support,
    by_inode: HashMap<u64, Weak<BackingId>>,
    by_handle: HashMap<u64, Arc<BackingId>>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Support {
    #[default]
    No,
    Perhaps,
    Yes,
}

impl Passthrough {
    /// Asks the kernel for it.
    pub(super) fn negotiate(&self, config: &mut KernelConfig) {
        // Depth 2: the bus may lie on an overlay.
        let granted =
            config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() && config.set_max_stack_depth(2).is_ok();
        lock(&self.state).support = if granted { Support::Perhaps } else { Support::No };
    }

    /// The backing of an inode for one more handle, registered by `register` if it is the first. None where there is
    /// no such thing.
    pub(super) fn share(
        &self,
        inode: u64,
        handle: u64,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
        file: BorrowedFd<'_>,
    ) -> io::Result<Option<Arc<BackingId>>> {
        let mut state = lock(&self.state);
        if state.support == Support::No {
            return Ok(None);
        }
        let known = state.by_inode.get(&inode).and_then(Weak::upgrade);
        let backing = match known {
            Some(backing) => backing,
            None => match register(file) {
                Ok(backing) => Arc::new(backing),
                Err(_) if state.support == Support::Perhaps => {
                    // Not allowed to this user, or not with this file system: it will stay so.
                    state.support = Support::No;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            },
        };
        state.support = Support::Yes;
        state.by_inode.retain(|_, backing| backing.strong_count() > 0);
        state.by_inode.insert(inode, Arc::downgrade(&backing));
        state.by_handle.insert(handle, Arc::clone(&backing));
        Ok(Some(backing))
    }

    /// A handle was closed.
    pub(super) fn release(&self, handle: u64) {
        let gone = lock(&self.state).by_handle.remove(&handle);
        drop(gone);
    }
}
