//! Errors as the kernel knows them. The mapping from the engine's errors is one exhaustive match: a new variant
//! there does not compile until somebody has decided here what a shell shall say.

use std::fmt;
use std::io;

use crate::queue::Error;

/// An error number. Nothing else crosses the boundary to the kernel, so nothing else is carried.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(i32);

/// The result of an operation of the mount.
pub(crate) type Result<T> = std::result::Result<T, Errno>;

macro_rules! errnos {
    ($($name:ident)*) => {
        impl Errno {
            $(pub(crate) const $name: Errno = Errno(libc::$name);)*

            fn name(self) -> Option<&'static str> {
                match self.0 {
                    $(libc::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EACCES EAGAIN EBADF EBUSY EDQUOT EEXIST EINTR EINVAL EIO EISDIR ELOOP EMFILE EMSGSIZE ENAMETOOLONG ENFILE ENOENT ENOMEM ENOSYS ENOTCONN ENOTDIR
    ENOTTY EOPNOTSUPP EPERM EPIPE EPROTONOSUPPORT EROFS ESTALE ETIMEDOUT
}

impl Errno {
    /// The number that the kernel expects, positive.
    pub(crate) fn code(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Self::from(&error)
    }
}

impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Self {
        Self(error.raw_os_error().filter(|code| *code > 0).unwrap_or(libc::EIO))
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(error: rustix::io::Errno) -> Self {
        Self(error.raw_os_error())
    }
}

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<&Error> for Errno {
    fn from(error: &Error) -> Self {
        match error {
            Error::Io { source, .. } => Self::from(source),
            Error::NotAQueue { .. } | Error::NoSuchReader { .. } => Self::ENOENT,
            Error::AlreadyExists { .. } => Self::EEXIST,
            Error::Damaged { .. } | Error::Poisoned { .. } | Error::Forked { .. } => Self::EIO,
            // Nothing is wrong with the disk, and no permission would help.
            Error::Refused { .. } => Self::EPERM,
            Error::UnsupportedVersion { .. } => Self::EPROTONOSUPPORT,
            Error::Locked { .. } | Error::ReaderInUse { .. } => Self::EBUSY,
            Error::NameTooLong { .. } => Self::ENAMETOOLONG,
            Error::TooLarge { .. } => Self::EMSGSIZE,
            Error::QueueFull { .. } => Self::EDQUOT,
            Error::InvalidName { .. }
            | Error::ReservedType
            | Error::TimestampInPast { .. }
            | Error::TimestampInFuture { .. }
            | Error::InvalidSetting(_)
            | Error::NoSuchPosition { .. } => Self::EINVAL,
        }
    }
}
