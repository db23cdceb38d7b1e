//! Who waits for a queue, and the thread that sleeps for them.
//!
//! One thread a queue, started with the first waiter and gone a little after the last. It sleeps on the queue's own
//! wake word, so a native writer's append wakes it as it wakes any reader; then it asks all parked reads again and
//! tells the kernel about polls.
//!
//! No wake-up is lost: a read is entered into the list before it is tried a last time; the thread announces itself
//! (`prepare`) before it goes through the list. Whatever is committed after the last try ends the thread's sleep.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::errno::{Errno, Result};
use super::handles::OpenFile;
use super::lock;
use super::parked::ParkedRead;
use super::queues::OpenQueue;

/// Tells the kernel to ask a polled handle again.
pub(crate) type Notify = Box<dyn FnOnce() + Send>;

/// Longest sleep. Only a backstop: waking does not depend on it.
const SLEEP: Duration = Duration::from_secs(1);
/// How long the thread outlives its last waiter: a follower comes back for each message.
const LINGER: Duration = Duration::from_secs(2);

/// The waiters of one queue.
#[derive(Default)]
pub(crate) struct Watch {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    reads: Vec<Arc<ParkedRead>>,
    polls: Vec<(Arc<OpenFile>, Notify)>,
    running: bool,
    /// The mount goes away: nobody waits any more.
    closed: bool,
}

impl Watch {
    /// Parks a read until one of the queues moves.
    pub(crate) fn park(queues: &[Arc<OpenQueue>], read: &Arc<ParkedRead>) {
        for queue in queues {
            let entered = enter(queue, |state| {
                // A queue that keeps still would collect the answered reads of those that wait for several.
                state.reads.retain(|other| !other.is_answered());
                state.reads.push(Arc::clone(read));
            });
            match entered {
                Ok(true) => {}
                Ok(false) => return read.end(Errno::ENOTCONN),
                Err(errno) => return read.end(errno),
            }
        }
        // The last try: see the head of this file.
        read.attempt(&mut Vec::new());
    }

    /// Remembers a poll, in place of an earlier one of the same handle. False when there is nothing to wait for.
    pub(crate) fn poll(queue: &Arc<OpenQueue>, open: &Arc<OpenFile>, notify: Notify) -> Result<bool> {
        enter(queue, |state| {
            state.polls.retain(|(other, _)| other.fh != open.fh);
            state.polls.push((Arc::clone(open), notify));
        })
    }

    /// Forgets the polls of a handle that is closed.
    pub(crate) fn forget(&self, fh: u64) {
        let mut state = lock(&self.state);
        let polls = std::mem::take(&mut state.polls);
        let (gone, kept): (Vec<_>, Vec<_>) = polls.into_iter().partition(|(open, _)| open.fh == fh);
        state.polls = kept;
        drop(state);
        drop(gone);
    }

    /// Answers everybody: ENOTCONN. From now on nobody waits here.
    pub(crate) fn close(&self) {
        let (reads, polls) = {
            let mut state = lock(&self.state);
            state.closed = true;
            (std::mem::take(&mut state.reads), std::mem::take(&mut state.polls))
        };
        for read in reads {
            read.end(Errno::ENOTCONN);
        }
        for (_, notify) in polls {
            notify();
        }
    }

    /// Asks every waiter again; keeps those that still have nothing.
    fn serve(&self, buffer: &mut Vec<u8>) {
        let (reads, polls) = {
            let mut state = lock(&self.state);
            (std::mem::take(&mut state.reads), std::mem::take(&mut state.polls))
        };
        let mut waiting = Vec::new();
        for read in reads {
            match catch_unwind(AssertUnwindSafe(|| read.attempt(buffer))) {
                Ok(true) => {}
                Ok(false) => waiting.push(read),
                Err(_) => read.end(Errno::EIO),
            }
        }
        let mut polled = Vec::new();
        for (open, notify) in polls {
            match catch_unwind(AssertUnwindSafe(|| open.handle.blocked().is_some())) {
                Ok(true) => polled.push((open, notify)),
                Ok(false) | Err(_) => notify(),
            }
        }
        let mut state = lock(&self.state);
        if state.closed {
            drop(state);
            waiting.iter().for_each(|read| read.end(Errno::ENOTCONN));
            polled.into_iter().for_each(|(_, notify)| notify());
            return;
        }
        state.reads.append(&mut waiting);
        // A poll that was renewed meanwhile is the newer one.
        polled.retain(|(open, _)| state.polls.iter().all(|(newer, _)| newer.fh != open.fh));
        state.polls.append(&mut polled);
    }

    /// Whether the thread may end; then it is noted as gone in the same moment.
    fn leave(&self, busy_until: &mut Instant) -> bool {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if !state.reads.is_empty() || !state.polls.is_empty() {
            *busy_until = now + LINGER;
            return false;
        }
        let leaves = state.closed || now >= *busy_until;
        state.running &= !leaves;
        leaves
    }
}

/// Enters a waiter and sees to it that the thread runs. False: the mount is going away.
fn enter(queue: &Arc<OpenQueue>, add: impl FnOnce(&mut State)) -> Result<bool> {
    let mut state = lock(&queue.watch.state);
    if state.closed {
        return Ok(false);
    }
    if !state.running {
        let waiter = queue.queue.waiter()?;
        let queue = Arc::clone(queue);
        std::thread::Builder::new()
            .name("chronfs-watch".into())
            .stack_size(512 << 10)
            .spawn(move || run(&queue, &waiter))
            .map_err(Errno::from)?;
        state.running = true;
    }
    add(&mut state);
    Ok(true)
}

fn run(queue: &Arc<OpenQueue>, waiter: &crate::queue::Waiter) {
    let watch = &queue.watch;
    let mut buffer = Vec::new();
    let mut busy_until = Instant::now() + LINGER;
    loop {
        let ticket = waiter.prepare();
        watch.serve(&mut buffer);
        if watch.leave(&mut busy_until) {
            return;
        }
        if waiter.wait(ticket, SLEEP) {
            // Before the system calls of the next announcement.
            watch.serve(&mut buffer);
        }
    }
}
