//! Waking sleepers: `notify_seq` and the sleeping flag in the control block.
//!
//! A reader that finds nothing announces itself in the flag, issues a memory barrier that reaches the running writer
//! (membarrier), checks once more and sleeps on `notify_seq`. The writer stores the commit word, then loads the flag,
//! without a fence of its own: the sleeper's barrier orders the two. Without membarrier, a writer fences by itself, and
//! a sleeper that can't reach the writer's processor sleeps in short steps instead.
//! Invariants:
//! - No wake is lost: see `handshake.rs`.
//! - The flag is not a count: a sleeper that is killed costs the writer one superfluous wake, no more.
//! - A sleeper changes no byte of the queue but the flag, and touches the control block by system calls only: if the
//!   block is truncated, the call returns an error and there is no SIGBUS.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::queue::error::Result;
use crate::queue::format::layout::{CONTROL_LEN, CONTROL_NOTIFY_SEQ, CONTROL_SLEEPING, CONTROL_WRITER_ASYMMETRIC};
use crate::queue::os::futex;
use crate::queue::os::mapping::Mapping;
use crate::queue::wait::handshake;
use crate::queue::wait::stop::{self, Stopper};
use crate::sync::{AtomicU32, Ordering, fence};

/// The longest uninterrupted sleep: bounds the cost of an unforeseen fault.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// The step of sleepers that can't be woken: no permission to set the flag, or no membarrier.
const POLL_STEP: Duration = Duration::from_millis(1);
/// The shortest and the longest such step of a reader: one in this many of the time for which nothing has come.
const POLL_STEPS: [Duration; 2] = [Duration::from_micros(100), Duration::from_millis(4)];
const POLLS: u32 = 8;
/// How late a stop may be where one can't sleep on two words.
const STOP_STEP: Duration = Duration::from_millis(10);

/// The writer's side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waker {
    /// Sleepers reach us by membarrier, so we need no fence.
    pub(crate) asymmetric: bool,
}

impl Waker {
    pub(crate) fn new() -> Self {
        Self { asymmetric: futex::join_barriers().is_ok() }
    }

    /// Must be called after a commit word has been stored. Costs one load while nobody sleeps.
    ///
    /// SYNC POINT with `Waiter::prepare`.
    #[inline]
    pub(crate) fn published(self, control: &Mapping) {
        if handshake::is_somebody_asleep(control.word(CONTROL_SLEEPING), self.asymmetric) {
            Self::wake(control);
        }
    }

    /// Wakes all sleepers.
    #[cold]
    pub(crate) fn wake(control: &Mapping) {
        let notify_seq = control.word(CONTROL_NOTIFY_SEQ);
        handshake::announce_news(control.word(CONTROL_SLEEPING), notify_seq);
        futex::futex_wake(notify_seq);
    }
}

/// The sleeper's side: waits until something may have been committed to a queue.
///
/// ```
/// # use chronfs::queue::{Queue, Settings};
/// # use std::time::Duration;
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
/// let mut messages = queue.scan()?;
/// let waiter = queue.waiter()?;
/// let mut writer = queue.writer()?;
/// # std::thread::spawn(move || writer.append(1, b"hello").unwrap());
/// let message = loop {
///     let ticket = waiter.prepare();
///     if messages.next()?.is_some() {
///         break;
///     }
///     waiter.wait(ticket, Duration::from_secs(5));
/// };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Waiter {
    control: File,
    /// Never read from user space, only its address is used.
    words: Mapping,
    can_announce: bool,
}

/// The state that [`Waiter::prepare`] saw; passed to [`Waiter::wait`].
#[derive(Debug, Clone, Copy)]
pub struct WaitTicket {
    notify_seq: u32,
    /// The writer can't know that we sleep: sleep in short steps.
    unannounced: bool,
}

impl WaitTicket {
    /// Whether the writer knows of the sleeper.
    pub(crate) fn is_announced(self) -> bool {
        !self.unannounced
    }
}

impl Waiter {
    /// `control`: the control block's file, `can_announce` if it was opened for writing.
    pub(crate) fn new(control: File, can_announce: bool, path: &Path) -> Result<Self> {
        let words = Mapping::read_only(&control, path, CONTROL_LEN)?;
        Ok(Self { control, words, can_announce })
    }

    /// Announces a sleeper. Check for messages after this call: a later commit ends the wait.
    pub fn prepare(&self) -> WaitTicket {
        match self.announce() {
            Ok(notify_seq) => WaitTicket { notify_seq, unannounced: false },
            Err(_) => WaitTicket { notify_seq: 0, unannounced: true },
        }
    }

    fn announce(&self) -> io::Result<u32> {
        if !self.can_announce {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let notify_seq = self.word(CONTROL_NOTIFY_SEQ)?;
        self.control.write_all_at(&1_u32.to_le_bytes(), u64::from(CONTROL_SLEEPING))?;
        if self.word(CONTROL_WRITER_ASYMMETRIC)? != 0 {
            futex::barrier_everywhere()?;
        } else {
            fence(Ordering::SeqCst);
        }
        Ok(notify_seq)
    }

    fn word(&self, offset: u32) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.control.read_exact_at(&mut bytes, u64::from(offset))?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Sleeps until something may have been committed after `prepare`, or for `timeout`, or a little longer than a
    /// second: false if there was no wake. Wakes can be spurious.
    pub fn wait(&self, ticket: WaitTicket, timeout: Duration) -> bool {
        self.wait_or_stop(ticket, timeout, None, POLL_STEP * POLLS)
    }

    /// Like [`wait`](Self::wait), or until stopped. `idle`: for how long the caller has been waiting.
    pub(crate) fn wait_or_stop(
        &self,
        ticket: WaitTicket,
        timeout: Duration,
        stopper: Option<&Stopper>,
        idle: Duration,
    ) -> bool {
        if ticket.unannounced {
            stop::sleep(stopper, timeout.min((idle / POLLS).clamp(POLL_STEPS[0], POLL_STEPS[1])));
            return false;
        }
        let (word, expected, timeout) = (self.notify_seq(), ticket.notify_seq, timeout.min(LONGEST_SLEEP));
        let woken = match stopper {
            None => futex::futex_wait(word, expected, timeout),
            Some(stopper) => futex::futex_wait_any(&[(word, expected), (stopper.word(), 0)], timeout)
                .map(|wake| wake != futex::Wake::None)
                // Linux before 5.16: a stop is noticed late, a message is not.
                .or_else(|_| futex::futex_wait(word, expected, timeout.min(STOP_STEP))),
        };
        woken.unwrap_or_else(|_| {
            stop::sleep(stopper, timeout.min(POLL_STEP));
            false
        })
    }

    /// If something may have been committed since `prepare`: what to wait with for more, without announcing a sleeper.
    /// Always None for a sleeper that can't be woken.
    pub(crate) fn moved(&self, ticket: WaitTicket) -> Option<WaitTicket> {
        match self.word(CONTROL_NOTIFY_SEQ) {
            _ if ticket.unannounced => None,
            Ok(notify_seq) if notify_seq == ticket.notify_seq => None,
            Ok(notify_seq) => Some(WaitTicket { notify_seq, unannounced: false }),
            Err(_) => Some(WaitTicket { notify_seq: 0, unannounced: true }),
        }
    }

    fn notify_seq(&self) -> &AtomicU32 {
        self.words.word(CONTROL_NOTIFY_SEQ)
    }

    /// Wakes all that sleep on this queue, in every process, without news: [`wait`](Self::wait) and [`wait_any`] return.
    /// [`Reader::wait`](crate::queue::Reader::wait) sleeps again, unless its [`Stopper`] has been used. Changes nothing.
    pub fn wake_all(&self) {
        futex::futex_wake(self.notify_seq());
    }
}

/// Sleeps until something may have been committed to one of several queues after their `prepare`, or for `timeout`, or
/// a little longer than a second: false if there was no wake. Wakes can be spurious. Beyond 128 queues, or if the
/// system can't wait for several at once, it waits for each group in turn: then a wake can be late by a millisecond per
/// group.
pub fn wait_any(waits: &[(&Waiter, WaitTicket)], timeout: Duration) -> bool {
    wait_any_or_stop(waits, timeout, None)
}

/// Like [`wait_any`], or until stopped.
pub(crate) fn wait_any_or_stop(waits: &[(&Waiter, WaitTicket)], timeout: Duration, stopper: Option<&Stopper>) -> bool {
    let stop = stopper.map(|stopper| (stopper.word(), 0));
    let waited = waits.iter().map(|(waiter, ticket)| (waiter.notify_seq(), ticket.notify_seq));
    let words: Vec<_> = stop.into_iter().chain(waited).collect();
    let unannounced = waits.iter().any(|(_, ticket)| ticket.unannounced);
    let groups = words.chunks(futex::MAX_FUTEXES);
    let longest = if groups.len() > 1 || unannounced { POLL_STEP } else { LONGEST_SLEEP };
    for group in groups {
        match futex::futex_wait_any(group, timeout.min(longest)) {
            Ok(futex::Wake::None) => {}
            Ok(_) => return true,
            Err(_) => std::thread::sleep(timeout.min(POLL_STEP)),
        }
    }
    false
}

/// Ends a sleep for queues from within the process.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: AtomicU32,
}

/// What ended a sleep for several queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    Bell,
    /// This queue.
    Queue(usize),
    /// Perhaps a queue, perhaps none.
    Unknown,
}

impl Bell {
    pub(crate) fn ring(&self) {
        self.rung.fetch_add(1, Ordering::Release);
        futex::futex_wake(&self.rung);
    }

    /// The argument of [`Self::wait_any`]: the wait ends at once if the bell has been rung since.
    pub(crate) fn listen(&self) -> u32 {
        self.rung.load(Ordering::Acquire)
    }

    /// Like [`wait_any`], for at most 127 queues, or until the bell rings.
    pub(crate) fn wait_any(&self, rung: u32, waits: &[(Arc<Waiter>, WaitTicket)], timeout: Duration) -> Woken {
        let mut words = vec![(&self.rung, rung)];
        // Those that can't be woken are checked in short steps.
        let announced = waits.iter().enumerate().filter(|(_, (_, ticket))| !ticket.unannounced);
        let (indices, sleeps): (Vec<_>, Vec<_>) =
            announced.map(|(index, (waiter, ticket))| (index, (waiter.notify_seq(), ticket.notify_seq))).unzip();
        words.extend(sleeps);
        let longest = if indices.len() < waits.len() { POLL_STEP } else { LONGEST_SLEEP };
        match futex::futex_wait_any(&words, timeout.min(longest)) {
            Ok(futex::Wake::Of(0)) => Woken::Bell,
            Ok(futex::Wake::Of(index)) => indices.get(index - 1).map_or(Woken::Unknown, |index| Woken::Queue(*index)),
            Ok(_) => Woken::Unknown,
            Err(_) => {
                std::thread::sleep(timeout.min(POLL_STEP));
                Woken::Unknown
            }
        }
    }
}
