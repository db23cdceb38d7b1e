//! Blocked reads: readers of a stream that has nothing for them now.
//!
//! The kernel keeps such a caller asleep, deaf to signals, until the read is answered. So the answer is kept here
//! and given when there is data (`watch` asks again), when the mount goes away (end of file), or when the caller has
//! a signal to attend to (EINTR). The last cannot be learned from the kernel, which reports interrupts only by a
//! message that `fuser` does not pass on: one thread looks at the pending signals of the parked callers, about every
//! 50 ms and only while there are any, most of the time at no more than whether they have run. EINTR to everybody on a
//! timer would be simpler and would break programs (mawk, sed) that take it for an error.
//!
//! Lock order: a read's `answer` before the state of its handle.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::errno::{Errno, Result};
use super::handles::{OpenFile, Progress};
use super::lock;
use crate::sync::{AtomicBool, Ordering};

/// Gives a read its answer, once.
pub(crate) type Answer = Box<dyn FnOnce(Result<&[u8]>) + Send>;

/// How often pending signals are looked for, while that is cheap.
const SWEEP_INTERVAL: Duration = Duration::from_millis(50);
/// The most that is ever waited between two looks. A killed reader must be gone within 250 ms.
const SWEEP_INTERVAL_MAX: Duration = Duration::from_millis(180);
/// So many looks in a row may rely on the caller not having run.
const TRUSTED_LOOKS: u32 = 15;
/// How often those reads are tried again that look around for more than their queues.
const LOOK_INTERVAL: Duration = Duration::from_millis(400);
/// How long a caller may be blocked whose signals can't be seen: it lives in a foreign pid namespace (pid 0).
const UNSEEN_CALLER_LIMIT: Duration = Duration::from_millis(200);

/// A read that waits for its answer.
pub(crate) struct ParkedRead {
    answer: Mutex<Option<Answer>>,
    answered: AtomicBool,
    open: Arc<OpenFile>,
    offset: u64,
    size: usize,
    /// The calling thread; 0 if it is in a pid namespace that can't be seen from here.
    caller: u32,
    /// Its status file, open: half the cost of a look.
    status: Option<File>,
    /// Whether it has run since the last look, where that tells.
    ran: Option<Ran>,
    since: Instant,
}

/// How often a sleeping thread has run. A signal that ends it lets it run for a moment, so that as long as it has not run
/// its status, which costs ten times as much, need not be looked at: unless it catches signals, for those wake nobody here.
struct Ran {
    file: File,
    /// What the file said, and how many looks have relied on it.
    last: Mutex<(Vec<u8>, u32)>,
}

impl Ran {
    fn of(caller: u32) -> Option<Self> {
        let file = File::open(format!("/proc/{caller}/schedstat")).ok()?;
        Some(Self { file, last: Mutex::default() })
    }

    /// Whether its status has to be looked at: it has run, or it is time for one of the looks that trust nothing.
    fn is_due(&self) -> bool {
        let mut text = [0; 128];
        let now = self.file.read_at(&mut text, 0).map_or(&[][..], |count| &text[..count]);
        let (last, looks) = &mut *lock(&self.last);
        if !now.is_empty() && now == last.as_slice() && *looks < TRUSTED_LOOKS {
            *looks += 1;
            return false;
        }
        (*last, *looks) = (now.to_vec(), 0);
        true
    }
}

impl ParkedRead {
    pub(crate) fn new(answer: Answer, open: Arc<OpenFile>, offset: u64, size: usize, caller: u32) -> Self {
        let answered = AtomicBool::new(false);
        // Without descriptors to spare it is opened at each look.
        let status = File::open(format!("/proc/{caller}/status")).ok().filter(|_| caller != 0);
        let ran = status.as_ref().filter(|status| catches_nothing(status)).and_then(|_| Ran::of(caller));
        let (answer, since) = (Mutex::new(Some(answer)), Instant::now());
        Self { answer, answered, open, offset, size, caller, status, ran, since }
    }

    /// Tries the read again. True when it has its answer, now or from before.
    pub(crate) fn attempt(&self, buffer: &mut Vec<u8>) -> bool {
        let mut slot = lock(&self.answer);
        if slot.is_none() {
            return true;
        }
        buffer.clear();
        let result = match self.open.handle.read(self.offset, self.size, buffer) {
            Ok(Progress::Wait(_)) => return false,
            Ok(Progress::Done) => Ok(buffer.as_slice()),
            Err(errno) => Err(errno),
        };
        if let Some(answer) = slot.take() {
            self.answered.store(true, Ordering::Release);
            answer(result);
        }
        true
    }

    /// Ends the read without data; an empty `Ok` is the end of the file.
    pub(crate) fn end(&self, result: Result<()>) {
        if let Some(answer) = lock(&self.answer).take() {
            self.answered.store(true, Ordering::Release);
            answer(result.map(|()| [].as_slice()));
        }
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    /// Tries again a read that looks around for more than its queues; true when it has its answer.
    fn look_around(&self, buffer: &mut Vec<u8>) -> bool {
        if !self.open.handle.looks_around() {
            return false;
        }
        // A panic costs this read an EIO, not the thread its life.
        catch_unwind(AssertUnwindSafe(|| self.attempt(buffer))).unwrap_or_else(|_| {
            self.end(Err(Errno::EIO));
            true
        })
    }

    /// Whether the caller would leave the system call if it could.
    fn is_interrupted(&self) -> bool {
        match self.caller {
            0 => self.since.elapsed() >= UNSEEN_CALLER_LIMIT,
            _ if self.ran.as_ref().is_some_and(|ran| !ran.is_due()) => false,
            caller => {
                let mut text = [0; 4096];
                let count = match &self.status {
                    Some(status) => status.read_at(&mut text, 0),
                    None => {
                        File::open(format!("/proc/{caller}/status")).and_then(|status| status.read_at(&mut text, 0))
                    }
                };
                match count {
                    Ok(count) => has_deliverable_signal(&text[..count]),
                    Err(error) => error.raw_os_error() != Some(libc::EMFILE),
                }
            }
        }
    }
}

/// The thread that looks for signals.
#[derive(Default)]
pub(crate) struct Interrupts {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    parked: Vec<Weak<ParkedRead>>,
    /// Those of them that look around: there may be no queue whose list holds them.
    kept: Vec<Arc<ParkedRead>>,
    running: bool,
}

impl Interrupts {
    /// Watches over a parked read from now on.
    pub(crate) fn watch(self: &Arc<Self>, read: &Arc<ParkedRead>) -> Result<()> {
        let mut state = lock(&self.state);
        state.parked.push(Arc::downgrade(read));
        if read.open.handle.looks_around() {
            state.kept.push(Arc::clone(read));
        }
        if !state.running {
            let this = Arc::clone(self);
            std::thread::Builder::new()
                .name("chronfs-signals".into())
                .stack_size(256 << 10)
                .spawn(move || this.run())
                .map_err(Errno::from)?;
            state.running = true;
        }
        Ok(())
    }

    fn run(&self) {
        let mut pause = SWEEP_INTERVAL;
        let mut looked = Instant::now();
        let mut buffer = Vec::new();
        loop {
            std::thread::sleep(pause);
            let started = Instant::now();
            let parked: Vec<Arc<ParkedRead>> = {
                let mut state = lock(&self.state);
                state.kept.retain(|read| !read.is_answered());
                state.parked.retain(|read| read.upgrade().is_some_and(|read| !read.is_answered()));
                if state.parked.is_empty() {
                    state.running = false;
                    return;
                }
                state.parked.iter().filter_map(Weak::upgrade).collect()
            };
            for read in parked.iter().filter(|read| read.is_interrupted()) {
                read.end(Err(Errno::EINTR));
            }
            if looked.elapsed() >= LOOK_INTERVAL {
                for read in &parked {
                    read.look_around(&mut buffer);
                }
                looked = Instant::now();
            }
            // With thousands of readers the sweep itself costs: as little of one processor as the promise allows.
            pause = (started.elapsed() * 200).clamp(SWEEP_INTERVAL, SWEEP_INTERVAL_MAX);
        }
    }
}

/// Whether a thread has no handler for any signal, as its status file tells.
fn catches_nothing(status: &File) -> bool {
    let mut text = [0; 4096];
    status.read_at(&mut text, 0).is_ok_and(|count| signals(&text[..count], "SigCgt") == Some(0))
}

/// A set of signals in the text of `/proc/<tid>/status`.
fn signals(status: &[u8], name: &str) -> Option<u64> {
    // These lines follow one another.
    let start = memchr::memmem::find(status, b"\nSigPnd:")?;
    let lines = std::str::from_utf8(&status[start..]).ok()?;
    let value = lines.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

/// Whether `/proc/<tid>/status` shows a pending signal that is neither blocked nor ignored.
fn has_deliverable_signal(status: &[u8]) -> bool {
    let mask = |name: &str| signals(status, name).unwrap_or(0);
    (mask("SigPnd") | mask("ShdPnd")) & !mask("SigBlk") & !mask("SigIgn") != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signals_that_would_be_delivered_count() {
        let status = |pending: u64, shared: u64, blocked: u64, ignored: u64| {
            format!(
                "Name:\tcat\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t0\n"
            )
        };
        assert!(!has_deliverable_signal(status(0, 0, 0, 0).as_bytes()));
        assert!(has_deliverable_signal(status(0x100, 0, 0, 0).as_bytes()));
        assert!(has_deliverable_signal(status(0, 0x2, 0, 0).as_bytes()));
        assert!(!has_deliverable_signal(status(0, 0x2, 0x2, 0).as_bytes()));
        assert!(!has_deliverable_signal(status(0, 0x1000, 0, 0x1000).as_bytes()));
        assert!(!has_deliverable_signal(b"nothing of the kind"));
    }
}
