//! Errors of the queue engine. Every variant that concerns a file names it and, where possible, the position in it and
//! the remedy, in terms of the library: commands say what to do in terms of commands. The file system maps errors to
//! errnos (`fs/errno.rs`).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The result of a queue operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a program can do about an [`Error`]; see [`Error::kind`]. Only after [`Busy`](Self::Busy) and
/// [`Full`](Self::Full) can the same call succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A system call failed: see its [`io::Error`].
    Io,
    /// The queue, reader or position does not exist: create it, or choose another one.
    NotFound,
    /// It exists already: open it.
    AlreadyExists,
    /// Another process uses it: try again later.
    Busy,
    /// There is no room: try again once readers have advanced and retention has removed segments.
    Full,
    /// The queue is a standby, or is not: append to the one that is active.
    WrongRole,
    /// An argument is not allowed, always or in this queue: try another one.
    InvalidInput,
    /// A file's contents are not what they should be: an operator has to look.
    Damaged,
    /// A file was written by a newer chronfs.
    Unsupported,
    /// This writer, or what was opened before a fork, can't be used any more: open a new one.
    Poisoned,
    /// A wait was ended by its [`Stopper`](super::Stopper).
    Stopped,
}

/// An error of the queue engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, as a verb phrase.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The path does not hold a queue.
    #[error("{}: not a queue: {reason}", path.display())]
    NotAQueue {
        /// The directory that was opened.
        path: PathBuf,
        /// Why it is not one.
        reason: String,
    },
    /// A queue exists there already.
    #[error("{}: a queue exists already; open it instead, or choose another path", path.display())]
    AlreadyExists {
        /// The queue's directory.
        path: PathBuf,
    },
    /// A file's bytes violate the format.
    #[error("{}: damaged at offset {offset}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Byte offset in the file.
        offset: u64,
        /// What is wrong, and the remedy if there is one.
        what: String,
    },
    /// A queue file's name belongs to something that chronfs does not open or write to: a symbolic link, a FIFO, a file
    /// with other names (hard links), another queue's file. It is left unchanged.
    #[error("{}: refused: {reason}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What it is, and the remedy.
        reason: String,
    },
    /// The file was written by a newer chronfs.
    #[error("{}: format version {found}, this program reads version {supported}; upgrade chronfs to open it", path.display())]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// The version found in it.
        found: u16,
        /// The version that this program reads.
        supported: u16,
    },
    /// Another process (or another handle in this one) is the queue's writer.
    #[error("{}: another writer holds the queue: {holder}; stop it first, or append through it", path.display())]
    Locked {
        /// The queue's directory.
        path: PathBuf,
        /// Who holds it.
        holder: LockHolder,
    },
    /// The queue is a standby.
    #[error("{}: the queue is a standby since term {term}: only the program that copies another queue into it writes; append to that one, or make this one active in a higher term", path.display())]
    Standby {
        /// The queue's directory.
        path: PathBuf,
        /// The term in which it became one.
        term: u64,
    },
    /// The queue is not a standby, and was to be opened as one.
    #[error("{}: the queue is active since term {term}, not a standby", path.display())]
    NotStandby {
        /// The queue's directory.
        path: PathBuf,
        /// The term in which it became active.
        term: u64,
    },
    /// The role of a queue can only be changed in a higher term.
    #[error("{}: term {term} is not higher than the queue's present one, {present}", path.display())]
    StaleTerm {
        /// The queue's directory.
        path: PathBuf,
        /// The term asked for.
        term: u64,
        /// The queue's term.
        present: u64,
    },
    /// Another process is changing the queue's settings, and has not finished after some seconds.
    #[error("{}: {holder} is changing its settings; try again", path.display())]
    SettingsLocked {
        /// The queue's directory.
        path: PathBuf,
        /// Who is changing them.
        holder: LockHolder,
    },
    /// Another process (or another handle in this one) uses this reader.
    #[error("{}: reader is in use: {holder}; stop it first, or choose another reader name", path.display())]
    ReaderInUse {
        /// The cursor file.
        path: PathBuf,
        /// Who holds it.
        holder: LockHolder,
    },
    /// No reader of that name is registered.
    #[error("{}: no such reader", path.display())]
    NoSuchReader {
        /// The cursor file that does not exist.
        path: PathBuf,
    },
    /// A name that is not allowed.
    #[error("invalid name {name:?}: {reason}")]
    InvalidName {
        /// The name as given (lossy where it is not UTF-8).
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The name is longer than [`crate::queue::MAX_NAME_LEN`] bytes.
    #[error("name of {len} bytes is too long; at most {max} bytes are allowed")]
    NameTooLong {
        /// Its length in bytes.
        len: usize,
        /// The longest that is allowed.
        max: usize,
    },
    /// The payload is larger than the queue's segments allow.
    #[error("{}: payload of {len} bytes is too large; this queue takes at most {max}", path.display())]
    TooLarge {
        /// The queue's directory.
        path: PathBuf,
        /// The payload's length in bytes.
        len: usize,
        /// The largest payload that the queue takes.
        max: usize,
    },
    /// Message type 65535 marks padding and can't be used.
    #[error("message type 65535 is reserved; use 0 to 65534")]
    ReservedType,
    /// An explicit timestamp is before the newest one in the queue.
    #[error("timestamp {timestamp_ns} is before the newest one in the queue, {last_ns}; timestamps never decrease")]
    TimestampInPast {
        /// The timestamp asked for, ns since the epoch.
        timestamp_ns: u64,
        /// The newest timestamp in the queue, ns since the epoch.
        last_ns: u64,
    },
    /// An explicit timestamp is further ahead of the wall clock than the writer allows.
    #[error("timestamp {timestamp_ns} is too far ahead of this machine's clock, {now_ns}: at most {} s are allowed, because no later message can have an earlier one", max_ahead.as_secs_f64())]
    TimestampInFuture {
        /// The timestamp asked for, ns since the epoch.
        timestamp_ns: u64,
        /// The wall clock, ns since the epoch.
        now_ns: u64,
        /// How far ahead a timestamp may be.
        max_ahead: Duration,
    },
    /// A message of this number is here already, and it is another one: this queue and the one that it is a copy of have
    /// gone different ways.
    #[error("{}: message {seq} is another one here ({here}) than the one to be appended ({given}): the queues have diverged", path.display())]
    Diverged {
        /// The queue's directory.
        path: PathBuf,
        /// The sequence number of both.
        seq: u64,
        /// The message that is here: type, timestamp, length, checksum.
        here: String,
        /// The other one.
        given: String,
    },
    /// The queue's `max_bytes` limit is reached.
    #[error("{}: queue is full: its limit is {max_bytes} bytes", path.display())]
    QueueFull {
        /// The queue's directory.
        path: PathBuf,
        /// The limit in bytes.
        max_bytes: u64,
    },
    /// The writer saw a failure after which it can't vouch for what it writes.
    #[error("{}: the writer has stopped after an earlier failure ({reason}); open a new writer to continue", path.display())]
    Poisoned {
        /// The queue's directory.
        path: PathBuf,
        /// The failure.
        reason: String,
    },
    /// A writer, reader or notifier was opened by the process that this one was forked from.
    #[error("{}: opened before a fork, by the process that this one was forked from; open it again here", path.display())]
    Forked {
        /// The queue's directory, or the file.
        path: PathBuf,
    },
    /// A wait was ended by its [`Stopper`](super::Stopper). Nothing has changed.
    #[error("{}: stopped waiting, as told to", path.display())]
    Stopped {
        /// The queue's directory.
        path: PathBuf,
    },
    /// A setting is outside what the format allows.
    #[error("invalid setting: {0}")]
    InvalidSetting(String),
    /// There is no such position in the queue.
    #[error("{}: no such position: {what}", path.display())]
    NoSuchPosition {
        /// The queue's directory.
        path: PathBuf,
        /// What was asked for, and what exists.
        what: String,
    },
}

impl Error {
    /// What a program can do about it.
    ///
    /// ```
    /// use chronfs::Queue;
    /// use chronfs::queue::ErrorKind;
    ///
    /// let error = Queue::open("/no/such/queue").map(drop).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::NotFound);
    /// assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::NotFound);
    /// ```
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } => ErrorKind::Io,
            Self::NotAQueue { .. } | Self::NoSuchReader { .. } | Self::NoSuchPosition { .. } => ErrorKind::NotFound,
            Self::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            Self::Locked { .. } | Self::SettingsLocked { .. } | Self::ReaderInUse { .. } => ErrorKind::Busy,
            Self::QueueFull { .. } => ErrorKind::Full,
            Self::Standby { .. } | Self::NotStandby { .. } => ErrorKind::WrongRole,
            Self::InvalidName { .. }
            | Self::NameTooLong { .. }
            | Self::TooLarge { .. }
            | Self::ReservedType
            | Self::TimestampInPast { .. }
            | Self::TimestampInFuture { .. }
            | Self::Diverged { .. }
            | Self::StaleTerm { .. }
            | Self::InvalidSetting(_) => ErrorKind::InvalidInput,
            Self::Damaged { .. } | Self::Refused { .. } => ErrorKind::Damaged,
            Self::UnsupportedVersion { .. } => ErrorKind::Unsupported,
            Self::Poisoned { .. } | Self::Forked { .. } => ErrorKind::Poisoned,
            Self::Stopped { .. } => ErrorKind::Stopped,
        }
    }

    /// The file or directory that it concerns; None for what concerns none, as a setting or a name that is not allowed.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Io { path, .. }
            | Self::NotAQueue { path, .. }
            | Self::AlreadyExists { path }
            | Self::Damaged { path, .. }
            | Self::Refused { path, .. }
            | Self::UnsupportedVersion { path, .. }
            | Self::Locked { path, .. }
            | Self::Standby { path, .. }
            | Self::NotStandby { path, .. }
            | Self::StaleTerm { path, .. }
            | Self::SettingsLocked { path, .. }
            | Self::ReaderInUse { path, .. }
            | Self::NoSuchReader { path }
            | Self::TooLarge { path, .. }
            | Self::Diverged { path, .. }
            | Self::QueueFull { path, .. }
            | Self::Poisoned { path, .. }
            | Self::Forked { path }
            | Self::Stopped { path }
            | Self::NoSuchPosition { path, .. } => Some(path),
            Self::InvalidName { .. }
            | Self::NameTooLong { .. }
            | Self::ReservedType
            | Self::TimestampInPast { .. }
            | Self::TimestampInFuture { .. }
            | Self::InvalidSetting(_) => None,
        }
    }

    /// Who holds what the call needs; None unless its kind is [`ErrorKind::Busy`].
    pub fn holder(&self) -> Option<&LockHolder> {
        match self {
            Self::Locked { holder, .. } | Self::ReaderInUse { holder, .. } | Self::SettingsLocked { holder, .. } => {
                Some(holder)
            }
            _ => None,
        }
    }

    /// Wraps a system error with its path and the attempted operation.
    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, doing, source }
    }

    /// A damaged file.
    pub(crate) fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_path_buf(), offset, what: what.into() }
    }

    /// A file that chronfs does not open or write to.
    pub(crate) fn refused(path: &Path, reason: impl Into<String>) -> Self {
        Self::Refused { path: path.to_path_buf(), reason: reason.into() }
    }

    /// Whether the disk, a quota or a limit has no room for a file of some size.
    pub(crate) fn is_lack_of_room(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if [StorageFull, QuotaExceeded, FileTooLarge].contains(&source.kind()))
    }

    /// Whether the file exists, can be read, and can't be used as what its name says. Readers report its contents as a
    /// gap; writers leave it alone and continue in another file.
    pub(crate) fn is_unusable_file(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Refused { .. } | Self::UnsupportedVersion { .. })
    }
}

/// The system's error kind if a system call failed, else the nearest one. The [`Error`] is the inner error.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match (error.kind(), &error) {
            (_, Error::Io { source, .. }) => source.kind(),
            (ErrorKind::NotFound, _) => io::ErrorKind::NotFound,
            (ErrorKind::AlreadyExists, _) => io::ErrorKind::AlreadyExists,
            (ErrorKind::Busy, _) => io::ErrorKind::ResourceBusy,
            (ErrorKind::Full, _) => io::ErrorKind::QuotaExceeded,
            (ErrorKind::WrongRole, _) => io::ErrorKind::ReadOnlyFilesystem,
            (ErrorKind::InvalidInput, _) => io::ErrorKind::InvalidInput,
            (ErrorKind::Damaged, _) => io::ErrorKind::InvalidData,
            (ErrorKind::Unsupported, _) => io::ErrorKind::Unsupported,
            // Not `Interrupted`, after which callers try again.
            (ErrorKind::Io | ErrorKind::Poisoned | ErrorKind::Stopped, _) => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// What is known of the process that holds a lock. For people: the kernel's lock decides; this is information only.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockHolder {
    /// A process of this pid namespace.
    Process {
        /// Its process id.
        pid: u32,
        /// Its command name, empty if it can't be read.
        command: String,
    },
    /// Held, but the holder can't be identified from here (another pid namespace, or information from another boot).
    Unknown,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, .. } if *pid == std::process::id() => f.write_str("this process"),
            Self::Process { pid, command } if command.is_empty() => write!(f, "process {pid}"),
            Self::Process { pid, command } => write!(f, "process {pid} ({command})"),
            Self::Unknown => f.write_str(
                "a process that can't be identified from here (in another container, or forked from one that has ended?)",
            ),
        }
    }
}
