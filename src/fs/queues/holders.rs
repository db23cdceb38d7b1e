//! Which processes have a queue's `messages.*` open, and which generation of it.

use std::sync::{Arc, Mutex, Weak};

use crate::fs::callers::process_of;
use crate::fs::lock;
use crate::fs::page_cache::shared_view::SharedView;
use crate::fs::queues::generation::Generation;
use crate::view::Format;

/// A process that has a view of everything retained open.
struct Holder {
    process: u32,
    format: Format,
    generation: Generation,
    view: Weak<SharedView>,
    /// Dropped when the handle is closed.
    token: Weak<()>,
}

/// The processes that have a view of one queue open.
#[derive(Default)]
pub(in crate::fs) struct Holders {
    list: Mutex<Vec<Holder>>,
}

impl Holders {
    /// What a name stands for to a process that has an older generation open: that one. So a program that follows a
    /// file by name (`tail -F`), and checks now and then whether the name still stands for it, keeps reading its file.
    pub(in crate::fs) fn find(&self, now: (Format, Generation), thread: u32) -> Option<(Generation, Arc<SharedView>)> {
        let mut list = lock(&self.list);
        list.retain(|holder| holder.token.strong_count() > 0);
        if list.iter().all(|holder| holder.format != now.0 || holder.generation == now.1) {
            return None;
        }
        drop(list);
        let process = process_of(thread)?;
        let list = lock(&self.list);
        let own = list.iter().rev().filter(|holder| holder.format == now.0 && holder.process == process);
        let own: Vec<_> = own.filter_map(|holder| Some((holder.generation, holder.view.upgrade()?))).collect();
        drop(list);
        own.into_iter().find(|(_, view)| !view.is_damaged()).filter(|(generation, _)| *generation != now.1)
    }

    /// A process has opened one. It counts as long as the token lives.
    pub(in crate::fs) fn enter(
        &self,
        thread: u32,
        what: (Format, Generation),
        view: &Arc<SharedView>,
    ) -> Option<Arc<()>> {
        let process = process_of(thread)?;
        let token = Arc::new(());
        let (view, held) = (Arc::downgrade(view), Arc::downgrade(&token));
        let mut list = lock(&self.list);
        list.retain(|holder| holder.token.strong_count() > 0);
        list.push(Holder { process, format: what.0, generation: what.1, view, token: held });
        Some(token)
    }
}
