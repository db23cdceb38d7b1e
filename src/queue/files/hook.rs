//! What a program is asked before a segment goes.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use crate::queue::SegmentInfo;

/// What a hook says of a segment that is about to go; see [`Queue::before_removal`](crate::queue::Queue::before_removal).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Removal {
    /// It may go.
    Allow,
    /// It stays for now, and so do the later ones. The hook is asked again.
    NotYet,
}

type Ask = dyn Fn(&Path, &SegmentInfo) -> Removal + Send + Sync;

/// The hook of an opened queue, if it has one.
#[derive(Default)]
pub(crate) struct RemovalHook(RwLock<Option<Arc<Ask>>>);

impl RemovalHook {
    pub(in crate::queue) fn set(&self, ask: Arc<Ask>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(ask);
    }

    fn get(&self) -> Option<Arc<Ask>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(in crate::queue) fn is_set(&self) -> bool {
        self.get().is_some()
    }

    /// Whether the segment may go. It stays if the hook panics.
    pub(in crate::queue) fn allows(&self, path: &Path, segment: &SegmentInfo) -> bool {
        let answer = |ask: Arc<Ask>| catch_unwind(AssertUnwindSafe(|| ask(path, segment)));
        self.get().map(answer).is_none_or(|answer| matches!(answer, Ok(Removal::Allow)))
    }
}

impl fmt::Debug for RemovalHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemovalHook").field(&self.is_set()).finish()
    }
}
