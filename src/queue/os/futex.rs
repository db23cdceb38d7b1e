//! Sleeping on a word of shared memory, and memory barriers that reach other processes, if the system supports them. If
//! it refuses, callers sleep in short steps; builds with `--cfg chronfs_no_futex` always do (`no_futex.rs`).

use std::io;
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec, Wait, WaitFlags, WaitPtr, WaitvFlags};
use rustix::thread::{ClockId, MembarrierCommand, membarrier};

use crate::clock;
use crate::sync::AtomicU32;

/// Sleeps while the word holds `expected`, until it is woken or the timeout expires. False if it timed out. Only the
/// kernel accesses the word: if its file has been truncated, the call returns EFAULT and there is no SIGBUS.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    wake_or_timeout(futex::wait(word, Flags::empty(), expected, Some(&timeout)))
}

/// The result of a futex wait: a wake (also if the word had changed already or a signal came), or a timeout.
fn wake_or_timeout(result: rustix::io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) | Err(Errno::AGAIN | Errno::INTR) => Ok(true),
        Err(Errno::TIMEDOUT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The most words that can be slept on at once.
pub(crate) const MAX_FUTEXES: usize = 128;

/// What ended a wait on several words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// This word was woken.
    Of(usize),
    /// One of them had changed already, or a signal came.
    Some,
    /// The timeout.
    None,
}

/// Like [`futex_wait`], on several words, each with its expected value; at most [`MAX_FUTEXES`].
pub(crate) fn futex_wait_any(words: &[(&AtomicU32, u32)], timeout: Duration) -> io::Result<Wake> {
    let wait = |&(word, expected): &(&AtomicU32, u32)| {
        let mut wait = Wait::new();
        wait.val = u64::from(expected);
        wait.uaddr = WaitPtr::new(word.as_ptr().cast());
        wait.flags = WaitFlags::SIZE_U32;
        wait
    };
    let waits: Vec<Wait> = words.iter().map(wait).collect();
    let end = clock::monotonic_ns().saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
    let end = Timespec {
        tv_sec: i64::try_from(end / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(end % 1_000_000_000).unwrap_or(0),
    };
    match futex::waitv(&waits, WaitvFlags::empty(), Some(&end), ClockId::Monotonic) {
        Ok(index) => Ok(Wake::Of(index)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Wake::Some),
        Err(Errno::TIMEDOUT) => Ok(Wake::None),
        Err(error) => Err(error.into()),
    }
}

/// Wakes all sleepers on the word.
pub(crate) fn futex_wake(word: &AtomicU32) {
    // Nothing can be done about a failure, and sleepers wake by timeout.
    let _ = futex::wake(word, Flags::empty(), i32::MAX.unsigned_abs());
}

/// Makes this process reachable by other processes' [`barrier_everywhere`].
pub(crate) fn join_barriers() -> io::Result<()> {
    Ok(membarrier(MembarrierCommand::RegisterGlobalExpedited)?)
}

/// A full memory barrier on every running thread of every process that has called [`join_barriers`].
pub(crate) fn barrier_everywhere() -> io::Result<()> {
    Ok(membarrier(MembarrierCommand::GlobalExpedited)?)
}
