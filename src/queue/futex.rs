//! Sleeping on a word of shared memory, and memory barriers that reach other processes: where the system has them. Where
//! it refuses, callers sleep in short steps; builds with `--cfg chronfs_no_futex` always do (`no_futex.rs`).
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

use crate::clock;
use crate::sync::AtomicU32;

/// Sleeps while the word holds `expected`, until it is woken or the timeout ends. False if it timed out. The word
/// is only touched by the kernel: where its file has been truncated, the answer is EFAULT, not SIGBUS.
pub(crate) fn futex_wait(word: *const AtomicU32, expected: u32, timeout: Duration) -> io::Result<bool> {
    let timeout = libc::timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // SAFETY: the kernel checks the address itself; `timeout` lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, expected, &raw const timeout) };
    wake_or_timeout(result)
}

/// What the answer of a futex wait means: a wake, also where the word had changed already or a signal came, or a timeout.
fn wake_or_timeout(result: libc::c_long) -> io::Result<bool> {
    if result >= 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR) => Ok(true),
        Some(libc::ETIMEDOUT) => Ok(false),
        _ => Err(error),
    }
}

/// The most words that can be slept on at once.
pub(crate) const MAX_FUTEXES: usize = 128;

/// Like [`futex_wait`], on several words, each with the value expected in it; at most [`MAX_FUTEXES`].
pub(crate) fn futex_wait_any(words: &[(*const AtomicU32, u32)], timeout: Duration) -> io::Result<bool> {
    /// `struct futex_waitv` of the kernel.
    #[repr(C)]
    struct FutexWait {
        value: u64,
        address: u64,
        flags: u32,
        reserved: u32,
    }
    /// `FUTEX2_SIZE_U32`: a 32-bit word, shared between processes.
    const SIZE_U32: u32 = 2;
    let wait = |&(word, expected): &(*const AtomicU32, u32)| FutexWait {
        value: u64::from(expected),
        address: word.expose_provenance() as u64,
        flags: SIZE_U32,
        reserved: 0,
    };
    let waits: Vec<FutexWait> = words.iter().map(wait).collect();
    let end = clock::monotonic_ns().saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
    let end = libc::timespec {
        tv_sec: i64::try_from(end / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(end % 1_000_000_000).unwrap_or(0),
    };
    let clock = libc::CLOCK_MONOTONIC;
    // SAFETY: `waits` holds as many structures as it says; the kernel checks the addresses in them itself; `end` lives
    // through the call.
    let result = unsafe { libc::syscall(libc::SYS_futex_waitv, waits.as_ptr(), waits.len(), 0, &raw const end, clock) };
    wake_or_timeout(result)
}

/// Wakes everybody who sleeps on the word.
pub(crate) fn futex_wake(word: *const AtomicU32) {
    // SAFETY: the kernel checks the address itself. Nothing can be done about a failure, and sleepers wake by timeout.
    unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE, i32::MAX) };
}

/// Asks to be reached by other processes' [`barrier_everywhere`].
pub(crate) fn join_barriers() -> io::Result<()> {
    membarrier(libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED)
}

/// A full memory barrier on every running thread of every process that has called [`join_barriers`].
pub(crate) fn barrier_everywhere() -> io::Result<()> {
    membarrier(libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED)
}

fn membarrier(command: libc::c_int) -> io::Result<()> {
    // SAFETY: the call takes plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
