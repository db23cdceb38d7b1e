//! Why something can't be read: the error number for the kernel, and the text for the log.

use std::io;
use std::path::Path;
use std::rc::Rc;

use rustix::io::Errno;

use crate::Failure;

/// Why it can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// - ETIMEDOUT: the store does not answer, or refuses; a later attempt may succeed
    /// - EIO: what it has is not what it must be
    /// - ESTALE: it has been deleted from the archive
    /// - ENOSPC: the cache has no room for it
    pub(super) errno: Errno,
    pub(super) text: Rc<str>,
}

impl Problem {
    pub(super) fn new(errno: Errno, text: impl Into<Rc<str>>) -> Self {
        Self { errno, text: text.into() }
    }

    /// A file of the cache can't be written or read.
    pub(super) fn local(path: &Path, error: &io::Error) -> Self {
        Self::new(Errno::from_io_error(error).unwrap_or(Errno::IO), format!("{}: {error}", path.display()))
    }

    /// The cache is too small.
    pub(super) fn no_room(size: u64, limit: u64) -> Self {
        Self::new(
            Errno::NOSPC,
            format!("the cache has room for {limit} bytes, and this takes {size}: see --cache-size"),
        )
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let errno = match failure {
            Failure::Missing(_) => Errno::STALE,
            _ if failure.is_temporary() => Errno::TIMEDOUT,
            _ => Errno::IO,
        };
        Self::new(errno, failure.to_string())
    }
}
