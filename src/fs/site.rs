//! What the files of the mount are made from and the trait that each implements: the types shared by `nodes.rs` and
//! `files/`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::fs::attr::{Attr, Ttl};
use crate::fs::backing::{Backing, Directory};
pub(crate) use crate::fs::credentials::Caller;
use crate::fs::daemon_log::DaemonLog;
use crate::fs::errno::{Errno, Result};
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::queues::table::{Contents, Queues};
use crate::fs::tree::handles::Handle;
use crate::fs::waiting::watch::Watches;
use crate::queue::Settings;
use crate::sync::AtomicBool;

/// The state shared by the whole mount.
pub(crate) struct Shared {
    pub(crate) backing: Backing,
    pub(crate) queues: Queues,
    /// The readers that wait for them.
    pub(crate) watches: Watches,
    pub(crate) log: Arc<DaemonLog>,
    pub(crate) read_only: bool,
    /// For queues that the mount creates.
    pub(crate) settings: Settings,
    /// The largest write that the kernel sends in one request, in bytes.
    pub(crate) max_chunk: usize,
    /// Places that searches for queues must skip.
    pub(crate) hanging: Hanging,
    /// The mount is ending: nothing may wait any more.
    pub(crate) closing: AtomicBool,
}

/// A directory as it is now: the argument of a row's constructor.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) shared: Arc<Shared>,
    /// The backing directory's path below the root.
    pub(crate) relative: Arc<Path>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) contents: Contents,
    /// The subject of the directory, if it has one: a reader's name, a place to read from.
    pub(crate) subject: Option<Arc<str>>,
    /// The thread that looks a name up; 0 if there is none in particular, or it is not visible.
    pub(crate) caller: u32,
}

impl Site {
    /// The queue, in a directory that has one.
    pub(crate) fn queue(&self) -> Result<&Arc<OpenQueue>> {
        match &self.contents {
            Contents::Queue(queue) => Ok(queue),
            Contents::Plain => Err(Errno::ENOENT),
            Contents::Unreadable(errno) => Err(*errno),
        }
    }

    /// The subject of the directory, in one that has one.
    pub(crate) fn subject(&self) -> Result<Arc<str>> {
        self.subject.clone().ok_or(Errno::ENOENT)
    }

    /// The path by which users know the directory.
    pub(crate) fn shown_path(&self) -> PathBuf {
        self.shared.backing.shown_path(&self.relative)
    }
}

/// How a file is to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    ReadWrite,
}

impl Access {
    /// EACCES unless the file is opened for reading only. Root bypasses the permission bits, but not this.
    pub(crate) fn reading(self) -> Result<()> {
        if self == Self::Read { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// EACCES unless the file is opened for writing only.
    pub(crate) fn writing(self) -> Result<()> {
        if self == Self::Write { Ok(()) } else { Err(Errno::EACCES) }
    }
}

/// A file of the mount. Several threads may call at once.
pub(crate) trait File: Send + Sync {
    /// Its attributes now.
    fn attr(&self) -> Result<Attr>;

    /// As [`Self::attr`], for a listing, without delay: where the true size takes time, the size known so far. A stat
    /// of the file itself returns the true size.
    fn quick_attr(&self) -> Result<Attr> {
        self.attr()
    }

    /// The queue whose messages it shows: the caller of `open` must have the right to read them.
    fn messages_of(&self) -> Option<&OpenQueue> {
        None
    }

    /// Opens it. The caller has been checked to reach it, and to have the right to read the messages that it shows.
    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>>;

    /// Distinguishes successive files under one name: another generation is another inode.
    fn generation(&self) -> u64 {
        0
    }

    /// Where its content is small and changes as a whole, a lookup takes a snapshot of at most this many bytes. 0: no
    /// snapshots.
    fn snapshot_max(&self) -> usize {
        0
    }

    /// The generation that users are shown, where it differs.
    fn shown_generation(&self) -> Option<u64> {
        None
    }

    /// The sequence number, if it is a message that is identified by its number alone.
    fn message(&self) -> Option<u64> {
        None
    }

    /// Whether its name still stands for it. Checked at open: the kernel may have cached the name.
    fn is_current(&self) -> bool {
        true
    }

    fn ttl(&self) -> Ttl {
        Ttl::NAME
    }

    /// `truncate(2)` or O_TRUNC to size 0: accepted where a shell's `>` makes sense.
    fn truncate(&self) -> Result<()> {
        Err(Errno::EPERM)
    }

    /// `utimensat(2)`.
    fn touch(&self, _caller: &Caller) -> Result<()> {
        Err(Errno::EPERM)
    }

    /// The target of a symlink.
    fn target(&self) -> Result<Vec<u8>> {
        Err(Errno::EINVAL)
    }
}

/// Places in which threads of earlier searches are stuck, by their paths below the root.
#[derive(Default)]
pub(crate) struct Hanging(pub(super) Mutex<HashSet<PathBuf>>);
