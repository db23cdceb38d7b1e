//! What the writer's helper thread has done after a roll.

use std::sync::Arc;

use crate::queue::files::store::Store;
use crate::queue::os::mapping::Mapping;
use crate::queue::os::thread::Joined;
use crate::queue::write::retention::Retire;

/// The work after a roll, on a new thread each time: unmapping and removing files may take long. The next segment waits for
/// it only where it may yield a file, or room on a full disk.
#[derive(Debug, Default)]
pub(super) struct AfterRoll {
    /// Retention is to be applied.
    pub(super) is_due: bool,
    /// Mappings to be unmapped.
    pub(super) gone: Vec<Arc<Mapping>>,
    thread: Option<Joined>,
}

impl AfterRoll {
    /// Unmaps mappings and applies retention, if there was a roll and the previous run has ended.
    pub(super) fn apply(&mut self, store: &Arc<Store>) {
        if !self.is_due || !self.is_over() {
            return;
        }
        self.is_due = false;
        let (for_thread, gone) = (Arc::clone(store), std::mem::take(&mut self.gone));
        let run = move || {
            // First: a mapped file can't be reused.
            drop(gone);
            retain(&for_thread);
        };
        match std::thread::Builder::new().name("chronfs-retain".into()).spawn(run) {
            Ok(thread) => self.thread = Some(Joined::new(thread)),
            // No more threads; the mappings are gone with the closure.
            Err(_) => retain(store),
        }
    }

    /// Whether no work is in progress.
    pub(super) fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(Joined::is_finished)
    }

    /// Waits for the work in progress and the work that is due. False if there is neither.
    pub(super) fn finish(&mut self, store: &Arc<Store>) -> bool {
        let is_under_way = self.thread.take().is_some();
        let is_due = self.is_due;
        self.apply(store);
        self.thread = None;
        is_under_way || is_due
    }
}

/// What can't be removed now is retried after the next roll; `chron-cli retain` says why.
fn retain(store: &Arc<Store>) {
    drop(store.retain(Retire::ForReuse));
}
