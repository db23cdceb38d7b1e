//! The background indexer: one thread, of low priority and only while there is something to do, that makes the indexes
//! of sealed segments of the queues that somebody has come by, so that nobody has to wait for them later.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Weak};

use super::lock;
use super::queues::OpenQueue;

/// What is to be done.
#[derive(Default)]
pub(crate) struct Indexer {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queues: VecDeque<Weak<OpenQueue>>,
    running: bool,
    closed: bool,
}

impl Indexer {
    /// Sees to it that the queue's sealed segments get their indexes.
    pub(crate) fn add(self: &Arc<Self>, queue: &Arc<OpenQueue>) {
        let mut state = lock(&self.state);
        let added = Arc::downgrade(queue);
        if state.closed || state.queues.iter().any(|other| other.ptr_eq(&added)) {
            return;
        }
        state.queues.push_back(added);
        if !state.running {
            let this = Arc::clone(self);
            let thread = std::thread::Builder::new().name("chronfs-index".into()).stack_size(512 << 10);
            // Without a thread whoever asks for a size waits for the index.
            state.running = thread.spawn(move || this.run()).is_ok();
        }
    }

    /// Nothing more is begun.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.queues.clear();
    }

    fn run(&self) {
        // On Linux this is about the calling thread; the priority of its reads follows.
        let _ = rustix::process::setpriority_process(None, 19);
        loop {
            let next = {
                let mut state = lock(&self.state);
                let next = state.queues.pop_front();
                state.running = next.is_some();
                next
            };
            let Some(next) = next else { return };
            // Queues that nobody holds any more are of no interest; one that can't be read will say so when asked.
            if let Some(queue) = next.upgrade() {
                let make = || queue.indexes.make_all(|| lock(&self.state).closed);
                drop(catch_unwind(AssertUnwindSafe(make)));
            }
        }
    }
}
