//! A bridge to event loops: a descriptor (an eventfd) that becomes readable when messages come.
//!
//! A thread sleeps on the queue like any reader and raises the descriptor once. It does not check again before the
//! descriptor has been cleared, so that a busy queue costs its writer no wakes while the loop is working. It checks for
//! messages after it has announced itself: a message that comes after the last raise causes another one. The thread
//! ends with the notifier.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::queue::error::{Error, Result};
use crate::queue::files::store::Store;
use crate::queue::os::origin::Origin;
use crate::queue::read::scan::Scanner;
use crate::queue::wait::wake::Waiter;

/// The longest uninterrupted sleep of the thread.
const SLEEP: Duration = Duration::from_secs(1);

/// A descriptor for `poll`, `epoll` and async runtimes that is readable while messages may have come.
///
/// Wait until it is readable, [`clear`](Self::clear) it, then read all there is: in this order nothing is missed.
///
/// ```
/// # use chronfs::queue::{Queue, Settings};
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
/// let mut reader = queue.reader("alice")?;
/// let notifier = queue.notifier()?;
/// queue.writer()?.append(1, b"hello")?;
/// let mut events = [rustix::event::PollFd::new(&notifier, rustix::event::PollFlags::IN)];
/// rustix::event::poll(&mut events, None)?;
/// notifier.clear();
/// assert!(reader.next()?.is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Notifier {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
    origin: Origin,
}

#[derive(Debug)]
struct Inner {
    counter: File,
    waiter: Waiter,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stop: bool,
    raised: bool,
}

impl Notifier {
    pub(crate) fn start(store: &Arc<Store>) -> Result<Self> {
        let failed = |doing| Error::io(store.dir.path(), doing);
        let counter = crate::queue::os::sys::event_counter().map_err(failed("create an event descriptor"))?;
        let waiter = store.waiter()?;
        let bounds = store.bounds()?;
        let scanner = Scanner::at(Arc::clone(store), bounds.head, bounds.end_seq);
        let (state, changed) = (Mutex::default(), Condvar::new());
        let inner = Arc::new(Inner { counter, waiter, state, changed });
        let for_thread = Arc::clone(&inner);
        let thread = std::thread::Builder::new().name("chronfs-notify".into()).spawn(move || for_thread.run(scanner));
        let thread = thread.map_err(failed("start a thread that waits for it"))?;
        Ok(Self { inner, thread: Some(thread), origin: Origin::here() })
    }

    /// Makes the descriptor unreadable until more messages come. Read all messages after this call, not before.
    pub fn clear(&self) {
        if !self.origin.is_here() {
            return;
        }
        let mut state = self.inner.lock();
        let mut value = [0; 8];
        // It is not an error if there is nothing to read.
        let _ = (&self.inner.counter).read(&mut value);
        state.raised = false;
        self.inner.changed.notify_all();
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.counter.as_fd()
    }
}

impl AsRawFd for Notifier {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.counter.as_raw_fd()
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        if !self.origin.is_here() {
            // The thread runs in the parent only, and may have held the lock when the fork copied it.
            std::mem::forget(self.thread.take());
            return;
        }
        self.inner.lock().stop = true;
        self.inner.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // Repeatedly, because the thread may be about to fall asleep.
            while !thread.is_finished() {
                self.inner.waiter.wake_all();
                std::thread::yield_now();
            }
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut scanner: Scanner) {
        loop {
            let mut state = self.lock();
            while state.raised && !state.stop {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop {
                return;
            }
            drop(state);
            let ticket = self.waiter.prepare();
            // A read error is left to the reader to report: it raises the descriptor as a message does.
            let mut has_news = || !matches!(scanner.seek_end_if_lagging(), Ok(false));
            // The second check comes before the system calls of the next announcement.
            if has_news() || (self.waiter.wait(ticket, SLEEP) && has_news()) {
                self.raise();
            }
        }
    }

    fn raise(&self) {
        let mut state = self.lock();
        state.raised = true;
        // Can only fail by overflow, and then the descriptor is readable anyway.
        let _ = (&self.counter).write(&1_u64.to_ne_bytes());
    }
}
