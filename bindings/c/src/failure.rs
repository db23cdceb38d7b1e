//! Why a call failed: its code is what the function returns, its text and path stay with the thread until the next
//! failure. Also here: the guard that lets no panic through to C.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_int};
use std::os::unix::ffi::OsStrExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use engine::queue::{ErrorKind, LockHolder};

/// What a function that returns `int` returns when it fails. Only after CHRONFS_ERROR_BUSY and CHRONFS_ERROR_FULL can the
/// same call succeed later.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// A system call failed: see chronfs_error_errno().
    Io = -1,
    /// The queue, reader or position does not exist.
    NotFound = -2,
    /// It exists already.
    AlreadyExists = -3,
    /// Another process, or another handle in this one, uses it: see chronfs_error_pid().
    Busy = -4,
    /// The queue's max_bytes is reached.
    Full = -5,
    /// The queue is a standby, or is not.
    WrongRole = -6,
    /// An argument is not allowed, always or in this queue: also NULL where something must be given.
    InvalidInput = -7,
    /// A file's contents are not what they should be.
    Damaged = -8,
    /// A file was written by a newer chronfs.
    Unsupported = -9,
    /// The writer saw a failure after which it can't vouch for what it writes, or the handle was opened before a fork by
    /// the process that this one was forked from: open a new one.
    Poisoned = -10,
    /// The wait was ended by its stopper.
    Stopped = -11,
    /// A mistake in chronfs: close the handle, and please report the text.
    Internal = -12,
}

/// A failure.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) text: CString,
    pub(crate) path: Option<CString>,
    /// Of the system call; 0 if none failed.
    pub(crate) errno: c_int,
    /// Of the process that holds what the call needs; 0 if it is not known.
    pub(crate) pid: u32,
}

pub(crate) type Result<T> = std::result::Result<T, Box<Failure>>;

impl Failure {
    fn new(code: Code, text: &str) -> Box<Self> {
        Box::new(Self { code, text: c_string(text.as_bytes()), path: None, errno: 0, pid: 0 })
    }

    /// An argument is not allowed.
    #[cold]
    pub(crate) fn invalid(text: &str) -> Box<Self> {
        Self::new(Code::InvalidInput, text)
    }

    #[cold]
    fn panicked(panic: &(dyn Any + Send)) -> Box<Self> {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic");
        Self::new(Code::Internal, &format!("a mistake in chronfs: {text}"))
    }
}

impl From<engine::Error> for Box<Failure> {
    #[cold]
    fn from(error: engine::Error) -> Self {
        let code = match error.kind() {
            ErrorKind::Io => Code::Io,
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::AlreadyExists => Code::AlreadyExists,
            ErrorKind::Busy => Code::Busy,
            ErrorKind::Full => Code::Full,
            ErrorKind::WrongRole => Code::WrongRole,
            ErrorKind::InvalidInput => Code::InvalidInput,
            ErrorKind::Damaged => Code::Damaged,
            ErrorKind::Unsupported => Code::Unsupported,
            ErrorKind::Poisoned => Code::Poisoned,
            ErrorKind::Stopped => Code::Stopped,
            _ => Code::Internal,
        };
        let mut failure = Failure::new(code, &error.to_string());
        failure.path = error.path().map(|path| c_string(path.as_os_str().as_bytes()));
        if let engine::Error::Io { source, .. } = &error {
            failure.errno = source.raw_os_error().unwrap_or(0);
        }
        if let Some(LockHolder::Process { pid, .. }) = error.holder() {
            failure.pid = *pid;
        }
        failure
    }
}

/// The bytes as a C string, which can't hold zeros.
pub(crate) fn c_string(bytes: &[u8]) -> CString {
    let bytes: Vec<u8> = bytes.iter().copied().filter(|&byte| byte != 0).collect();
    CString::new(bytes).unwrap_or_default()
}

thread_local! {
    static LAST: RefCell<Option<Box<Failure>>> = const { RefCell::new(None) };
}

/// The last failure of this thread. What `f` borrows from it stays where it is until the next failure.
pub(crate) fn last<R>(f: impl FnOnce(&Failure) -> R) -> Option<R> {
    LAST.try_with(|last| last.borrow().as_deref().map(f)).ok().flatten()
}

/// Calls `f`, and returns its number, or the code of its failure, which this thread keeps. A panic is a failure, too.
#[inline]
pub(crate) fn run(f: impl FnOnce() -> Result<c_int>) -> c_int {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(number)) => number,
        Ok(Err(failure)) => keep(failure),
        Err(panic) => keep(Failure::panicked(panic.as_ref())),
    }
}

/// Calls `f`, which returns nothing and does not fail.
pub(crate) fn run_silently(f: impl FnOnce()) {
    run(|| {
        f();
        Ok(0)
    });
}

#[cold]
fn keep(failure: Box<Failure>) -> c_int {
    let code = failure.code as c_int;
    // Not kept in a thread that is ending: there is nobody left to ask for it.
    let _ = LAST.try_with(|last| last.replace(Some(failure)));
    code
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_code() {
        assert_eq!(run(|| panic!("number {}", 7)), Code::Internal as c_int);
        assert_eq!(last(|failure| failure.text.clone()), Some(c"a mistake in chronfs: number 7".to_owned()));
    }

    #[test]
    fn each_thread_has_its_own_failure() {
        assert_eq!(run(|| Err(Failure::invalid("here"))), Code::InvalidInput as c_int);
        let elsewhere = std::thread::spawn(|| last(|failure| failure.code)).join();
        assert!(matches!(elsewhere, Ok(None)));
        assert_eq!(run(|| Ok(3)), 3);
        assert_eq!(last(|failure| failure.text.clone()), Some(c"here".to_owned()));
    }
}
