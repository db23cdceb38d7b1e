//! Stand-in for `futex.rs` on systems without it: everything is refused, and callers sleep in short steps.

use std::io;
use std::time::Duration;

use crate::sync::AtomicU32;

/// The most words that can be slept on at once.
pub(crate) const MAX_FUTEXES: usize = 128;

pub(crate) fn futex_wait(_: &AtomicU32, _: u32, _: Duration) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}

/// What ended a wait on several words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code)]
pub(crate) enum Wake {
    Of(usize),
    Some,
    None,
}

pub(crate) fn futex_wait_any(_: &[(&AtomicU32, u32)], _: Duration) -> io::Result<Wake> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn futex_wake(_: &AtomicU32) {}

pub(crate) fn join_barriers() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn barrier_everywhere() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
