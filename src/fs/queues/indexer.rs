//! The background indexer: creates the indexes of sealed segments of queues that have been looked up, so that no reader
//! has to wait for them later. Its threads have a low priority and live only while there is work.
//!
//! Queues take turns of [`SLICE`]. One thread works at a time, but a thread that does not return (a huge segment, a
//! file system that does not answer) is late after [`LATE`]: then another one continues with the waiting tasks, except
//! for those with the same payer as the late one's.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::fs::backing::Payer;
use crate::fs::lock;
use crate::sync::{AtomicBool, Ordering};

/// How long to work on one queue while others wait.
const SLICE: Duration = Duration::from_millis(250);
/// After how long a thread is late.
const LATE: Duration = Duration::from_secs(2);
/// Threads in all, late ones included.
const MAX_THREADS: usize = 8;

/// Work that is done in slices.
pub(crate) trait Work: Send + Sync + 'static {
    /// Who is charged for it.
    fn payer(&self) -> Payer;

    /// Continues until `is_enough`. False: there is more to do.
    fn go_on(&self, is_enough: &dyn Fn() -> bool) -> bool;
}

/// The tasks, and the threads that do them.
pub(crate) struct Indexer<W> {
    late: Duration,
    state: Mutex<State<W>>,
    changed: Condvar,
    closed: AtomicBool,
}

struct State<W> {
    waiting: VecDeque<Task<W>>,
    /// The task of each thread, and its start.
    running: Vec<(u64, Task<W>, Instant)>,
    next: u64,
    /// A thread checks whether others are late.
    is_supervised: bool,
}

struct Task<W> {
    payer: Payer,
    work: Weak<W>,
}

impl<W> Clone for Task<W> {
    fn clone(&self) -> Self {
        Self { payer: self.payer, work: Weak::clone(&self.work) }
    }
}

impl<W: Work> Default for Indexer<W> {
    fn default() -> Self {
        Self::new(LATE)
    }
}

impl<W: Work> Indexer<W> {
    fn new(late: Duration) -> Self {
        let state = State { waiting: VecDeque::new(), running: Vec::new(), next: 0, is_supervised: false };
        Self { late, state: Mutex::new(state), changed: Condvar::new(), closed: AtomicBool::new(false) }
    }

    /// Queues the indexing of a queue's sealed segments.
    pub(crate) fn add(self: &Arc<Self>, work: &Arc<W>) {
        let task = Task { payer: work.payer(), work: Arc::downgrade(work) };
        let mut state = lock(&self.state);
        let is_known = state.waiting.iter().any(|other| other.work.ptr_eq(&task.work));
        if is_known || self.is_closed() {
            return;
        }
        state.waiting.push_back(task);
        self.attend(&mut state);
    }

    /// No further work is started.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        lock(&self.state).waiting.clear();
        self.changed.notify_all();
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Starts a thread where there is work and all others are late; ensures that a thread checks again.
    fn attend(self: &Arc<Self>, state: &mut State<W>) {
        if state.running.len() < MAX_THREADS
            && state.running.iter().all(|(_, _, since)| since.elapsed() >= self.late)
            && let Some((number, task)) = state.take(self.late)
        {
            let (this, given) = (Arc::clone(self), task.clone());
            // Without a thread, a stat waits for the index.
            if !spawn(move || this.run(number, given)) {
                state.running.retain(|(other, ..)| *other != number);
                state.waiting.push_front(task);
            }
        }
        if !state.waiting.is_empty() && !state.is_supervised {
            let this = Arc::clone(self);
            state.is_supervised = spawn(move || this.supervise());
        }
    }

    fn supervise(self: Arc<Self>) {
        let mut state = lock(&self.state);
        while !state.waiting.is_empty() {
            self.attend(&mut state);
            state = self.changed.wait_timeout(state, self.late).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.is_supervised = false;
    }

    fn run(self: Arc<Self>, mut number: u64, mut task: Task<W>) {
        // On Linux this affects the calling thread only; the priority of its reads follows.
        let _ = rustix::process::setpriority_process(None, 19);
        loop {
            let since = Instant::now();
            let is_enough = || since.elapsed() >= SLICE || self.is_closed();
            // A queue that is no longer held needs no index.
            let is_done = task
                .work
                .upgrade()
                .is_none_or(|work| catch_unwind(AssertUnwindSafe(|| work.go_on(&is_enough))).unwrap_or(true));
            let mut state = lock(&self.state);
            state.running.retain(|(other, ..)| *other != number);
            if !is_done && !self.is_closed() {
                state.waiting.push_back(task);
            }
            let goes_on_without = state.running.iter().any(|(_, _, since)| since.elapsed() < self.late);
            let next = if goes_on_without { None } else { state.take(self.late) };
            let Some(next) = next else { return self.attend(&mut state) };
            (number, task) = next;
        }
    }
}

impl<W> State<W> {
    /// The next task that may start now, marked as running.
    fn take(&mut self, late: Duration) -> Option<(u64, Task<W>)> {
        let is_held_up = |task: &Task<W>| {
            self.running.iter().any(|(_, other, at)| other.payer == task.payer && at.elapsed() >= late)
        };
        let at = self.waiting.iter().position(|task| !is_held_up(task))?;
        let task = self.waiting.remove(at)?;
        self.next += 1;
        self.running.push((self.next, task.clone(), Instant::now()));
        Some((self.next, task))
    }
}

fn spawn(run: impl FnOnce() + Send + 'static) -> bool {
    crate::fs::spawn("chronfs-index", 512 << 10, run).is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::fs::backing::Payer;

    /// Reports each slice; where it `hangs`, a slice ends only on a message.
    struct Fake {
        name: &'static str,
        payer: u32,
        slices: Mutex<u32>,
        began: Sender<&'static str>,
        hangs: Option<Mutex<Receiver<()>>>,
    }

    impl Work for Fake {
        fn payer(&self) -> Payer {
            Payer::user(self.payer)
        }

        fn go_on(&self, _is_enough: &dyn Fn() -> bool) -> bool {
            self.began.send(self.name).unwrap();
            if let Some(hangs) = &self.hangs {
                let _ = lock(hangs).recv();
            }
            let mut slices = lock(&self.slices);
            *slices -= 1;
            *slices == 0
        }
    }

    #[test]
    fn queues_take_turns_and_none_waits_for_one_that_does_not_answer() {
        let (began, told) = channel();
        let (let_go, hangs) = channel();
        let work = |name, payer, slices, hangs: Option<Receiver<()>>| {
            let (slices, hangs) = (Mutex::new(slices), hangs.map(Mutex::new));
            Arc::new(Fake { name, payer, slices, began: began.clone(), hangs })
        };
        let indexer = Arc::new(Indexer::new(Duration::from_millis(20)));
        let next = || told.recv_timeout(Duration::from_secs(20)).unwrap();
        let stuck = work("stuck", 1, 1, Some(hangs));
        indexer.add(&stuck);
        assert_eq!(next(), "stuck");
        let others = [work("same payer", 1, 1, None), work("a", 2, 3, None), work("b", 3, 3, None)];
        others.iter().for_each(|other| indexer.add(other));
        let mut seen: Vec<_> = (0..6).map(|_| next()).collect();
        seen.sort_unstable();
        assert_eq!(seen, ["a", "a", "a", "b", "b", "b"]);
        let_go.send(()).unwrap();
        assert_eq!(next(), "same payer");
        indexer.close();
        indexer.add(&work("later", 4, 1, None));
        assert!(told.try_recv().is_err());
    }
}
