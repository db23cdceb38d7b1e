//! Parked reads: reads of a stream that has nothing to return now.
//!
//! The kernel keeps the caller asleep until the read is answered. So the read is kept here, and answered when there is
//! data (`watch` retries it), when the mount ends, or, with EINTR, when the caller is interrupted, which the kernel
//! reports (FUSE_INTERRUPT) for signals, freezing and tracing alike. The kernel offers nothing better: it never
//! restarts a FUSE read by itself, as it does with pipes.
//!
//! Most programs retry after EINTR. Some take it for an error (sed) or the end (mawk), and would not survive being
//! stopped and continued by a shell. So a caller that is only being stopped is kept waiting for a moment: messages may
//! arrive, and throttles continue their process at once. From then on its signals have to be polled; the kernel reports
//! only once.
//!
//! Lock order: the list of parked reads, then anything. A read's own lock is a leaf: nothing is read under it.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::fs::budget::{Share, set_payer};
use crate::fs::errno::{self, Errno, Result};
use crate::fs::tree::handles::{OpenFile, Progress};
use crate::fs::waiting::signals;
use crate::fs::{lock, spawn};
use crate::sync::{AtomicBool, Ordering};

/// Answers a read, once.
pub(crate) type Answer = Box<dyn FnOnce(Result<&[u8]>) + Send>;

/// How often to retry reads that wait for more than their queues (`looks_around`).
const LOOK_INTERVAL: Duration = Duration::from_millis(400);
/// How long a caller that is being stopped is kept waiting, and how often its signals are checked.
const STOP_LIMIT: Duration = Duration::from_secs(1);
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// Stack of the threads that look after reads, in bytes.
const STACK: usize = 512 << 10;

/// A read that waits for its answer.
pub(crate) struct ParkedRead {
    state: Mutex<State>,
    answered: AtomicBool,
    open: Arc<OpenFile>,
    offset: u64,
    size: usize,
    /// The calling thread; 0 if it is in a pid namespace that is not visible from here.
    caller: u32,
    _share: Share,
}

struct State {
    /// None: the read has been answered.
    answer: Option<Answer>,
    /// A thread is trying the read.
    is_tried: bool,
    /// There may be new messages since it began.
    again: bool,
    /// The error that the read ends with if that thread finds nothing.
    end: Option<Errno>,
}

impl ParkedRead {
    /// `share`: the charge for its memory.
    pub(crate) fn new(
        answer: Answer,
        open: Arc<OpenFile>,
        (offset, size): (u64, usize),
        caller: u32,
        share: Share,
    ) -> Self {
        let state = State { answer: Some(answer), is_tried: false, again: false, end: None };
        Self { state: Mutex::new(state), answered: AtomicBool::new(false), open, offset, size, caller, _share: share }
    }

    /// Tries the read again. True when it has its answer, now or from before. A read that another thread is trying is
    /// left to that one.
    pub(crate) fn attempt(&self, buffer: &mut Vec<u8>) -> bool {
        {
            let mut state = lock(&self.state);
            if state.answer.is_none() {
                return true;
            }
            if std::mem::replace(&mut state.is_tried, true) {
                state.again = true;
                return false;
            }
        }
        loop {
            buffer.clear();
            // A panic fails this read with EIO; the thread continues.
            errno::set_reason(None);
            let read = || self.open.handle.read(self.offset, self.size, buffer);
            let result = catch_unwind(AssertUnwindSafe(read)).unwrap_or(Err(Errno::EIO));
            let mut state = lock(&self.state);
            let result = match (result, state.end) {
                (Ok(Progress::Done), _) => Ok(buffer.as_slice()),
                (Err(errno), _) | (Ok(Progress::Wait(_)), Some(errno)) => Err(errno),
                (Ok(Progress::Wait(_)), None) if std::mem::take(&mut state.again) => continue,
                (Ok(Progress::Wait(_)), None) => {
                    state.is_tried = false;
                    return false;
                }
            };
            let answer = state.answer.take();
            drop(state);
            self.give(answer, result);
            return true;
        }
    }

    /// Ends the read with an error. Never waits: if a thread is trying the read, that thread ends it.
    pub(crate) fn end(&self, errno: Errno) {
        let mut state = lock(&self.state);
        if state.is_tried {
            state.end = Some(errno);
            return;
        }
        let answer = state.answer.take();
        drop(state);
        self.give(answer, Err(errno));
    }

    fn give(&self, answer: Option<Answer>, result: Result<&[u8]>) {
        if let Some(answer) = answer {
            self.answered.store(true, Ordering::Release);
            answer(result);
        }
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    /// Who opened the file.
    pub(crate) fn uid(&self) -> u32 {
        self.open.uid
    }
}

/// All waiting reads, by the kernel's request number.
#[derive(Default)]
pub(crate) struct Parked {
    reads: Mutex<HashMap<u64, Arc<ParkedRead>>>,
    /// Those that wait for more than their queues, by user: one thread per user.
    looking: Mutex<HashMap<u32, Vec<Arc<ParkedRead>>>>,
    /// Those whose callers are being stopped, or were.
    stopped: Mutex<Vec<(Arc<ParkedRead>, Instant)>>,
    /// The mount is ending.
    closed: AtomicBool,
}

impl Parked {
    /// Enters a read. EINTR if its caller was interrupted already.
    pub(crate) fn enter(
        self: &Arc<Self>,
        unique: u64,
        read: &Arc<ParkedRead>,
        leaves: impl Fn() -> bool,
    ) -> Result<()> {
        {
            let mut reads = lock(&self.reads);
            if leaves() {
                return Err(Errno::EINTR);
            }
            if self.closed.load(Ordering::Acquire) {
                return Err(Errno::ENOTCONN);
            }
            reads.insert(unique, Arc::clone(read));
        }
        if read.open.handle.looks_around() { self.look_around(read) } else { Ok(()) }
    }

    /// Ends all reads, with ENOTCONN: this is not the end of their files. From now on no read is parked.
    pub(crate) fn close(&self) {
        let reads: Vec<_> = {
            let reads = lock(&self.reads);
            self.closed.store(true, Ordering::Release);
            reads.values().cloned().collect()
        };
        reads.iter().for_each(|read| read.end(Errno::ENOTCONN));
    }

    /// Forgets a read that is being answered.
    pub(crate) fn forget(&self, unique: u64) {
        let gone = lock(&self.reads).remove(&unique);
        drop(gone);
    }

    /// The caller of a read was interrupted. False if no such read waits, and `is_running` doesn't know it either.
    pub(crate) fn interrupt(self: &Arc<Self>, unique: u64, is_running: &dyn Fn() -> bool) -> bool {
        let read = {
            let reads = lock(&self.reads);
            let Some(read) = reads.get(&unique) else { return is_running() };
            Arc::clone(read)
        };
        let is_stop = signals::of(read.caller).is_some_and(signals::Signals::is_stop);
        if !is_stop || self.keep_stopped(&read).is_err() {
            read.end(Errno::EINTR);
        }
        true
    }

    /// Retries a read periodically, whatever its queues do.
    fn look_around(self: &Arc<Self>, read: &Arc<ParkedRead>) -> Result<()> {
        let mut looking = lock(&self.looking);
        let uid = read.uid();
        if let Some(reads) = looking.get_mut(&uid) {
            reads.push(Arc::clone(read));
            return Ok(());
        }
        let this = Arc::clone(self);
        spawn("chronfs-look", STACK, move || this.run_looks(uid))?;
        looking.insert(uid, vec![Arc::clone(read)]);
        Ok(())
    }

    fn run_looks(&self, uid: u32) {
        set_payer(uid);
        let mut buffer = Vec::new();
        loop {
            std::thread::sleep(LOOK_INTERVAL);
            let reads = {
                let mut looking = lock(&self.looking);
                let Some(reads) = looking.get_mut(&uid) else { return };
                reads.retain(|read| !read.is_answered());
                if reads.is_empty() {
                    looking.remove(&uid);
                    return;
                }
                reads.clone()
            };
            for read in reads {
                read.attempt(&mut buffer);
            }
        }
    }

    fn keep_stopped(self: &Arc<Self>, read: &Arc<ParkedRead>) -> Result<()> {
        let mut stopped = lock(&self.stopped);
        if stopped.is_empty() {
            let this = Arc::clone(self);
            spawn("chronfs-stopped", STACK, move || this.run_stopped())?;
        }
        stopped.push((Arc::clone(read), Instant::now()));
        Ok(())
    }

    fn run_stopped(&self) {
        loop {
            std::thread::sleep(STOP_INTERVAL);
            let mut stopped = lock(&self.stopped);
            stopped.retain_mut(|(read, since)| {
                let leaves = match signals::of(read.caller) {
                    Some(signals) if signals.is_stop() => since.elapsed() >= STOP_LIMIT,
                    Some(signals) => {
                        *since = Instant::now();
                        signals.is_any()
                    }
                    None => true,
                };
                if leaves {
                    read.end(Errno::EINTR);
                }
                !leaves && !read.is_answered()
            });
            if stopped.is_empty() {
                return;
            }
        }
    }
}
