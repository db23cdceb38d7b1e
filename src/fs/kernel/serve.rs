//! The threads that serve a device: each reads a request and serves it.
//!
//! A request may take long, or for ever: a directory of 200,000 entries, an index of a huge queue, a backing file
//! system that is stuck. So each request is charged to an account (a user), and one account never holds more than a few
//! threads: further requests wait in the account's own queue, and the thread that finishes one of its requests
//! continues with the next. There are as many threads as needed, up to a limit, and the last ones are reserved for
//! accounts that have nothing running.
//!
//! Invariant: one thread always waits for the next request, so that interrupts are received and an account's first
//! request never waits for another account's. The lock covers counts and queues only.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use crate::fs::budget::set_payer;
use crate::fs::errno::{self, Errno};
use crate::fs::kernel::device::Device;
use crate::fs::kernel::protocol::{InterruptIn, Request, opcode};
use crate::fs::kernel::reply::Reply;
use crate::fs::waiting::signals;
use crate::fs::{lock, spawn};
use crate::sync::{AtomicBool, Ordering};

/// Threads in all. Idle ones cost a few KiB each.
const MAX_THREADS: usize = 160;
/// Of these, for accounts that have nothing running.
const RESERVED: usize = 32;
/// Idle threads beyond this number end, if none was needed recently.
const MAX_IDLE: usize = 4;
const LATELY: Duration = Duration::from_secs(1);
/// Limits of one account's queue: requests, and their bytes. A thread makes one request at a time.
const MAX_WAITING: usize = 4096;
const MAX_WAITING_BYTES: usize = 64 << 20;
/// How long running requests may take when the mount has ended.
const GRACE: Duration = Duration::from_secs(2);

/// Who is charged for a request.
#[derive(Debug, Clone, Copy)]
pub(in crate::fs) struct Account {
    pub(in crate::fs) key: u64,
    /// How many of its requests run at the same time.
    pub(in crate::fs) at_once: usize,
    /// Whether it is refused (EAGAIN) when too many wait already.
    pub(in crate::fs) may_refuse: bool,
}

/// A file system.
pub(in crate::fs) trait Service: Send + Sync + 'static {
    /// Whom a request is charged to; None for requests that never block and are served at once.
    fn account(&self, request: &Request<'_>) -> Option<Account>;

    /// Serves a request. If it panics, the caller gets EIO.
    fn serve(&self, request: Request<'_>, reply: Reply);

    /// The caller of a request was interrupted. `is_running` marks the request if it is still running, and returns
    /// whether it is. False where the request isn't known, or not yet.
    fn interrupt(&self, unique: u64, is_running: &dyn Fn() -> bool) -> bool;

    /// The mount has ended.
    fn ended(&self);
}

/// A device, its threads and what they serve.
pub(in crate::fs) struct Server<S> {
    device: Arc<Device>,
    service: S,
    /// Size of the buffers that requests are read into, in bytes.
    buffer_len: usize,
    state: Mutex<State>,
    /// Notified when no request is running.
    quiet: Condvar,
}

#[derive(Default)]
struct State {
    threads: usize,
    /// Threads that wait for a request.
    idle: usize,
    grown: Option<Instant>,
    running: HashMap<u64, Running>,
    accounts: HashMap<u64, Load>,
    /// Accounts with requests that wait for any thread, rather than for one of the account's own.
    starved: VecDeque<u64>,
    has_ended: bool,
}

/// The properties of a request that matter here.
#[derive(Debug, Clone, Copy)]
struct Whose {
    unique: u64,
    account: Account,
    /// The calling thread.
    caller: u32,
    is_read: bool,
}

impl Whose {
    /// Whether an interrupted caller gets EINTR. Programs don't expect calls other than reads to be interrupted, unless
    /// the process is killed.
    fn may_leave(self) -> bool {
        self.is_read || signals::of(self.caller).is_none_or(signals::Signals::is_fatal)
    }
}

struct Running {
    whose: Whose,
    interrupted: Arc<AtomicBool>,
}

/// The requests of one account.
#[derive(Default)]
struct Load {
    running: usize,
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

/// A request that waits for its turn.
struct Waiting {
    /// Its bytes, in words: requests are aligned.
    words: Box<[u64]>,
    len: usize,
    whose: Whose,
}

enum Turn {
    Now,
    Later,
    Never,
}

thread_local! {
    static INTERRUPTED: RefCell<Arc<AtomicBool>> = RefCell::default();
}

/// Whether the caller of the request that this thread is serving was interrupted.
pub(crate) fn is_interrupted() -> bool {
    INTERRUPTED.with_borrow(|interrupted| interrupted.load(Ordering::Acquire))
}

impl<S: Service> Server<S> {
    /// Serves a device with this many threads at first. `max_write`: the largest write that was negotiated with the
    /// kernel, in bytes.
    pub(in crate::fs) fn start(
        device: &Arc<Device>,
        service: S,
        max_write: usize,
        threads: usize,
    ) -> io::Result<Arc<Self>> {
        let server = Arc::new(Self {
            device: Arc::clone(device),
            service,
            buffer_len: max_write + 4096,
            state: Mutex::default(),
            quiet: Condvar::new(),
        });
        for _ in 0..threads.max(2) {
            server.add_thread(&mut lock(&server.state))?;
        }
        Ok(server)
    }

    fn add_thread(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let server = Arc::clone(self);
        spawn("chronfs-serve", 1 << 20, move || server.run())?;
        state.threads += 1;
        state.idle += 1;
        Ok(())
    }

    fn run(self: Arc<Self>) {
        let mut buffer = vec![0_u64; self.buffer_len / 8];
        let interrupted = INTERRUPTED.with_borrow(Arc::clone);
        // On an error other than the end of the mount, other threads may still serve; the mount ends with the last one.
        while let Ok(Some(len)) = self.device.receive(buffer.as_mut_bytes()) {
            let Some(request) = Request::parse(&buffer.as_bytes()[..len]) else { continue };
            let Some(account) = self.service.account(&request) else {
                self.attend(request);
                continue;
            };
            let unique = request.header.unique;
            match self.turn(&request, account, &buffer[..len.div_ceil(8)], len, &interrupted) {
                Turn::Now => self.serve(request),
                Turn::Later => continue,
                Turn::Never => {
                    let errno = Errno::EAGAIN.because("too many requests of this user wait already");
                    Reply::new(&self.device, &request).error(errno);
                    continue;
                }
            }
            let mut done = unique;
            while let Some(next) = self.next(done, &interrupted) {
                if let Some(request) = Request::parse(&next.words.as_bytes()[..next.len]) {
                    self.serve(request);
                }
                done = next.whose.unique;
            }
            if self.is_superfluous() {
                return;
            }
        }
        self.end();
    }

    fn serve(&self, request: Request<'_>) {
        errno::set_reason(None);
        let reply = Reply::new(&self.device, &request);
        set_payer(request.header.uid);
        // A panic drops the reply, which answers EIO.
        let _ = catch_unwind(AssertUnwindSafe(|| self.service.serve(request, reply)));
    }

    /// Serves a request that never blocks.
    fn attend(&self, mut request: Request<'_>) {
        let header = request.header;
        if header.opcode != opcode::INTERRUPT {
            return self.serve(request);
        }
        let Some(InterruptIn { unique }) = request.body.take() else { return };
        if !self.service.interrupt(unique, &|| self.note_interrupted(unique)) {
            // Either it has been answered, and the kernel will notice; or another thread has read it, but not
            // registered it yet. The kernel asks again.
            std::thread::yield_now();
            self.device.answer(header.unique, Err(Errno::EAGAIN));
        }
    }

    /// Records that the caller of a running or queued request was interrupted.
    fn note_interrupted(&self, unique: u64) -> bool {
        let mut state = lock(&self.state);
        if let Some(running) = state.running.get(&unique) {
            if running.whose.may_leave() {
                running.interrupted.store(true, Ordering::Release);
            }
            return true;
        }
        for load in state.accounts.values_mut() {
            let Some(at) = load.waiting.iter().position(|waiting| waiting.whose.unique == unique) else { continue };
            if load.waiting[at].whose.may_leave()
                && let Some(waiting) = load.waiting.remove(at)
            {
                load.bytes -= waiting.len;
                self.device.answer(unique, Err(Errno::EINTR));
            }
            return true;
        }
        false
    }

    /// Whether a request can run now. If not, it is queued, or refused if there is no room.
    fn turn(
        self: &Arc<Self>,
        request: &Request<'_>,
        account: Account,
        words: &[u64],
        len: usize,
        interrupted: &Arc<AtomicBool>,
    ) -> Turn {
        let Request { header, .. } = request;
        let whose =
            Whose { unique: header.unique, account, caller: header.pid, is_read: header.opcode == opcode::READ };
        let mut state = lock(&self.state);
        let busy = state.running.len();
        let load = state.accounts.entry(account.key).or_default();
        let is_fair = load.running < account.at_once;
        let has_room = load.running == 0 || busy < MAX_THREADS - RESERVED;
        if is_fair && has_room && (state.idle > 1 || self.grow(&mut state)) {
            state.idle -= 1;
            state.begin(whose, interrupted);
            return Turn::Now;
        }
        let load = state.accounts.entry(account.key).or_default();
        let is_full = load.waiting.len() >= MAX_WAITING || load.bytes + len > MAX_WAITING_BYTES;
        if is_full && account.may_refuse {
            return Turn::Never;
        }
        load.waiting.push_back(Waiting { words: words.into(), len, whose });
        load.bytes += len;
        if is_fair {
            state.starved.push_back(account.key);
        }
        Turn::Later
    }

    /// Starts one more thread, if the limit allows.
    fn grow(self: &Arc<Self>, state: &mut State) -> bool {
        let grows = state.threads < MAX_THREADS && self.add_thread(state).is_ok();
        if grows {
            state.grown = Some(Instant::now());
        }
        grows
    }

    /// Ends a request; returns the waiting one that this thread serves next, if any.
    fn next(&self, done: u64, interrupted: &Arc<AtomicBool>) -> Option<Waiting> {
        let mut state = lock(&self.state);
        let key = state.finish(done);
        let next = state.starving().or_else(|| state.waiting(key?));
        match &next {
            Some(next) => state.begin(next.whose, interrupted),
            None => {
                state.idle += 1;
                // A system call even if nobody waits.
                if state.has_ended && state.running.is_empty() {
                    self.quiet.notify_all();
                }
            }
        }
        next
    }

    /// Whether this thread may end.
    fn is_superfluous(&self) -> bool {
        let mut state = lock(&self.state);
        let leaves = state.idle > MAX_IDLE && state.grown.is_none_or(|grown| grown.elapsed() > LATELY);
        if leaves {
            state.idle -= 1;
            state.threads -= 1;
        }
        leaves
    }

    fn end(&self) {
        let mut state = lock(&self.state);
        state.threads -= 1;
        state.idle -= 1;
        if std::mem::replace(&mut state.has_ended, true) {
            return;
        }
        let until = Instant::now() + GRACE;
        while let Some(rest) = until.checked_duration_since(Instant::now())
            && !state.running.is_empty()
        {
            state = self.quiet.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        self.service.ended();
    }
}

impl State {
    fn begin(&mut self, whose: Whose, interrupted: &Arc<AtomicBool>) {
        interrupted.store(false, Ordering::Release);
        self.running.insert(whose.unique, Running { whose, interrupted: Arc::clone(interrupted) });
        self.accounts.entry(whose.account.key).or_default().running += 1;
    }

    /// Records the end of a request; returns its account.
    fn finish(&mut self, unique: u64) -> Option<u64> {
        let key = self.running.remove(&unique)?.whose.account.key;
        let load = self.accounts.get_mut(&key)?;
        load.running -= 1;
        if load.running == 0 && load.waiting.is_empty() && self.accounts.len() > MAX_THREADS {
            self.accounts.remove(&key);
        }
        Some(key)
    }

    /// The next request that found no thread.
    fn starving(&mut self) -> Option<Waiting> {
        for _ in 0..self.starved.len() {
            let key = self.starved.pop_front()?;
            let next = self.waiting(key);
            if next.is_some() {
                return next;
            }
        }
        None
    }

    /// An account's next request, if another one may run.
    fn waiting(&mut self, key: u64) -> Option<Waiting> {
        let load = self.accounts.get_mut(&key)?;
        if load.running >= load.waiting.front()?.whose.account.at_once {
            return None;
        }
        let next = load.waiting.pop_front()?;
        load.bytes -= next.len;
        Some(next)
    }
}
