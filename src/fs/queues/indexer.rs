//! The background indexer: makes the indexes of sealed segments of the queues that somebody has come by, so that nobody
//! has to wait for them later. Its threads have a low priority and live only while there is something to do.
//!
//! Queues take turns of [`SLICE`]. One thread works at a time, but a thread that does not come back (a huge segment, a file
//! system that does not answer) is late after [`LATE`]: then another one goes on with what waits, but for what has the same
//! payer as what the late one is at.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::fs::backing::Payer;
use crate::fs::lock;
use crate::sync::{AtomicBool, Ordering};

/// How long one queue is worked at while others wait.
const SLICE: Duration = Duration::from_millis(250);
/// After how long another thread goes on.
const LATE: Duration = Duration::from_secs(2);
/// Threads in all, late ones included.
const MAX_THREADS: usize = 8;

/// Something to be done in slices.
pub(crate) trait Work: Send + Sync + 'static {
    /// Whom it is charged to.
    fn payer(&self) -> Payer;

    /// Goes on until `is_enough`. False: there is more to do.
    fn go_on(&self, is_enough: &dyn Fn() -> bool) -> bool;
}

/// What is to be done.
pub(crate) struct Indexer<W> {
    late: Duration,
    state: Mutex<State<W>>,
    changed: Condvar,
    closed: AtomicBool,
}

struct State<W> {
    waiting: VecDeque<Task<W>>,
    /// What each of the threads is at.
    running: Vec<(u64, Task<W>, Instant)>,
    next: u64,
    /// A thread looks whether others are late.
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

    /// Sees to it that the queue's sealed segments get their indexes.
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

    /// Nothing more is begun.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        lock(&self.state).waiting.clear();
        self.changed.notify_all();
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Starts a thread where there is something to do and all others are late; sees to it that somebody looks again.
    fn attend(self: &Arc<Self>, state: &mut State<W>) {
        if state.running.len() < MAX_THREADS
            && state.running.iter().all(|(_, _, since)| since.elapsed() >= self.late)
            && let Some((number, task)) = state.take(self.late)
        {
            let (this, given) = (Arc::clone(self), task.clone());
            // Without a thread whoever asks for a size waits for the index.
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
        // On Linux this is about the calling thread; the priority of its reads follows.
        let _ = rustix::process::setpriority_process(None, 19);
        loop {
            let since = Instant::now();
            let is_enough = || since.elapsed() >= SLICE || self.is_closed();
            // What nobody holds any more is of no interest.
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
    /// The next task that may be begun now, noted as running.
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
    std::thread::Builder::new().name("chronfs-index".into()).stack_size(512 << 10).spawn(run).is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::fs::backing::Payer;

    /// Tells of each slice, and ends one only when it is told to, where it `hangs`.
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
