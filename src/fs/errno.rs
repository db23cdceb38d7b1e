//! Error numbers for the kernel. The mapping from the engine's errors is one exhaustive match: a new variant does not
//! compile until its error number has been decided here.
//!
//! The kernel takes no error texts, so each thread keeps the last one as the reason for the error number that it was
//! mapped to ([`Errno::because`]). The code that answers the request takes it for the log ([`Errno::take_reason`]).

use std::cell::RefCell;
use std::fmt::{self, Display};
use std::io;

use crate::queue::{Error, Gap, GapReason};

/// An error number. Nothing else can be passed to the kernel, so nothing else is carried.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(i32);

/// Why an operation failed: the text of its error.
pub(crate) struct Reason {
    errno: Errno,
    text: Box<dyn Display + Send>,
}

thread_local! {
    /// The reason for this thread's last error.
    static REASON: RefCell<Option<Reason>> = const { RefCell::new(None) };
}

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
    EACCES EAGAIN EBADF EBUSY EDQUOT EEXIST EINTR EINVAL EIO EISDIR ELOOP EMFILE EMSGSIZE ENAMETOOLONG ENFILE ENOENT ENOMEM ENOSPC ENOSYS ENOTCONN ENOTDIR
    ENOTTY EOPNOTSUPP EOWNERDEAD EPERM EPIPE EPROTONOSUPPORT EROFS ESPIPE ESTALE ETIMEDOUT
}

impl Errno {
    /// The number that the kernel expects, positive.
    pub(crate) fn code(self) -> i32 {
        self.0
    }

    /// Records the reason.
    pub(crate) fn because(self, text: impl Display + Send + 'static) -> Self {
        set_reason(Some(Reason { errno: self, text: Box::new(text) }));
        self
    }

    /// The reason why this thread has returned this error, if known.
    pub(crate) fn take_reason(self) -> Option<Reason> {
        set_reason(None).filter(|reason| reason.errno == self)
    }
}

/// Sets this thread's reason, to that of another thread's error or to none; returns the previous one.
pub(crate) fn set_reason(reason: Option<Reason>) -> Option<Reason> {
    REASON.try_with(|last| last.replace(reason)).ok().flatten()
}

impl Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
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
        match Self::of_system(&error) {
            Some(errno) => errno,
            None => Self::EIO.because(error),
        }
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(error: rustix::io::Errno) -> Self {
        Self(error.raw_os_error())
    }
}

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        Self::of(&error).because(error)
    }
}

impl From<Gap> for Errno {
    fn from(gap: Gap) -> Self {
        let errno = if gap.reason == GapReason::Retired { Self::EPIPE } else { Self::EIO };
        errno.because(missing(gap))
    }
}

/// Describes a gap in words.
pub(crate) fn missing(Gap { from, to, reason, position }: Gap) -> String {
    let (reason, segment, offset) = (reason.as_str(), position.segment, position.offset);
    format!("messages {from} to {to} are missing ({reason}, segment {segment}, offset {offset})")
}

impl Errno {
    fn of_system(error: &io::Error) -> Option<Self> {
        error.raw_os_error().filter(|code| *code > 0).map(Self)
    }

    fn of(error: &Error) -> Self {
        match error {
            Error::Io { source, .. } => Self::of_system(source).unwrap_or(Self::EIO),
            Error::NotAQueue { .. } | Error::NoSuchReader { .. } => Self::ENOENT,
            Error::AlreadyExists { .. } => Self::EEXIST,
            Error::Damaged { .. } | Error::Poisoned { .. } | Error::Forked { .. } => Self::EIO,
            // Not EIO, because the disk is fine; not EACCES, because no permission would help.
            Error::Refused { .. } => Self::EPERM,
            Error::UnsupportedVersion { .. } => Self::EPROTONOSUPPORT,
            Error::Locked { .. } | Error::SettingsLocked { .. } | Error::ReaderInUse { .. } => Self::EBUSY,
            Error::NameTooLong { .. } => Self::ENAMETOOLONG,
            Error::TooLarge { .. } => Self::EMSGSIZE,
            Error::QueueFull { .. } => Self::EDQUOT,
            Error::Standby { .. } | Error::NotStandby { .. } => Self::EROFS,
            Error::Stopped { .. } => Self::EINTR,
            Error::InvalidName { .. }
            | Error::ReservedType
            | Error::TimestampInPast { .. }
            | Error::TimestampInFuture { .. }
            | Error::Diverged { .. }
            | Error::StaleTerm { .. }
            | Error::InvalidSetting(_)
            | Error::NoSuchPosition { .. } => Self::EINVAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_belongs_to_its_error() {
        let refused = Error::Refused { path: "q".into(), reason: "a symbolic link".into() };
        let text = refused.to_string();
        let errno = Errno::from(refused);
        assert_eq!(errno, Errno::EPERM);
        assert_eq!(errno.take_reason().unwrap().to_string(), text);
        assert!(errno.take_reason().is_none(), "taken");
        let _ = Errno::EIO.because("of another one");
        assert!(errno.take_reason().is_none());
        assert!(Errno::EIO.take_reason().is_none(), "the take before has cleared it");
    }
}
