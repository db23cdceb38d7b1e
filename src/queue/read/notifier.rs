//! A bridge to event loops: a descriptor (an eventfd) that becomes readable when messages come.
//!
//! A thread that all notifiers share raises it once (`wait/watch.rs`). It does not check again before the descriptor
//! has been cleared, so that a busy queue costs its writer no wakes while the loop is working.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use crate::queue::error::{Error, Result};
use crate::queue::files::store::Store;
use crate::queue::read::scan::Scanner;
use crate::queue::wait::watch::{Alarm, Watch};

/// A descriptor for `poll`, `epoll` and async runtimes that is readable while messages may have come.
///
/// Wait until it is readable, [`clear`](Self::clear) it, then read all there is: in this order nothing is missed. It
/// may be readable although nothing has come. The descriptor is the same for the notifier's whole life, and is closed
/// with it.
///
/// All notifiers of a process share one thread, or one for every 127 queues. It ends with the last of them. A notifier
/// costs three descriptors: its own, and two by which the thread watches the queue.
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
    watch: Watch,
    signal: Arc<Signal>,
}

#[derive(Debug)]
struct Signal {
    counter: File,
    /// Finds what came without a wake.
    scanner: Mutex<Scanner>,
}

impl Notifier {
    pub(crate) fn start(store: &Arc<Store>) -> Result<Self> {
        let failed = Error::io(store.dir.path(), "create an event descriptor");
        let counter = crate::queue::os::sys::event_counter().map_err(failed)?;
        let bounds = store.bounds()?;
        let scanner = Mutex::new(Scanner::at(Arc::clone(store), bounds.head, bounds.end_seq));
        let signal = Arc::new(Signal { counter, scanner });
        let watch = Watch::start(store, Arc::new(store.waiter()?), Arc::clone(&signal) as Arc<dyn Alarm>)?;
        watch.arm();
        Ok(Self { watch, signal })
    }

    /// Makes the descriptor unreadable until more messages come. Read all messages after this call, not before.
    pub fn clear(&self) {
        if self.watch.check_origin().is_ok() {
            let mut value = [0; 8];
            // It is not an error if there is nothing to read.
            let _ = (&self.signal.counter).read(&mut value);
            self.watch.arm();
        }
    }
}

impl Alarm for Signal {
    fn raise(&self) {
        // Can only fail by overflow, and then the descriptor is readable anyway.
        let _ = (&self.counter).write(&1_u64.to_ne_bytes());
    }

    fn has_news(&self) -> bool {
        let mut scanner = self.scanner.lock().unwrap_or_else(PoisonError::into_inner);
        // A read error is left to the reader to report: it raises the descriptor as a message does.
        !matches!(scanner.seek_end_if_lagging(), Ok(false))
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signal.counter.as_fd()
    }
}

impl AsRawFd for Notifier {
    fn as_raw_fd(&self) -> RawFd {
        self.signal.counter.as_raw_fd()
    }
}
