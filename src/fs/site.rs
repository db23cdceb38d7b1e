//! What the files of the mount are made of and what each must be able to do: the vocabulary of `nodes.rs` and `files/`.

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

/// What the whole mount has in common.
pub(crate) struct Shared {
    pub(crate) backing: Backing,
    pub(crate) queues: Queues,
    /// Who waits for them.
    pub(crate) watches: Watches,
    pub(crate) log: Arc<DaemonLog>,
    pub(crate) read_only: bool,
    /// For queues that the mount makes.
    pub(crate) settings: Settings,
    /// The largest chunk in which the kernel passes on a write, in bytes.
    pub(crate) max_chunk: usize,
    /// What searches for queues have to leave alone.
    pub(crate) hanging: Hanging,
    /// The mount goes away: nobody waits any more.
    pub(crate) closing: AtomicBool,
}

/// A directory as it is now: what a row's constructor gets.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) shared: Arc<Shared>,
    /// The backing directory's path below the root.
    pub(crate) relative: Arc<Path>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) contents: Contents,
    /// In a directory that is about something, what: a reader's name, a place to read from.
    pub(crate) subject: Option<Arc<str>>,
    /// The thread that looks a name up here; 0 if nobody in particular does, or it can't be seen.
    pub(crate) caller: u32,
}

impl Site {
    /// The queue, where there must be one.
    pub(crate) fn queue(&self) -> Result<&Arc<OpenQueue>> {
        match &self.contents {
            Contents::Queue(queue) => Ok(queue),
            Contents::Plain => Err(Errno::ENOENT),
            Contents::Unreadable(errno) => Err(*errno),
        }
    }

    /// What the directory is about, where there must be something.
    pub(crate) fn subject(&self) -> Result<Arc<str>> {
        self.subject.clone().ok_or(Errno::ENOENT)
    }

    /// The path by which people know the directory.
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
    /// EACCES unless the file is opened for reading only. Root gets past the permission bits, not past this.
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

    /// As [`Self::attr`], for a listing: at once. Where the true size takes time, what is known of it; who asks for
    /// this file in particular gets the true one.
    fn quick_attr(&self) -> Result<Attr> {
        self.attr()
    }

    /// The queue whose messages it shows: whoever opens it must be able to read them.
    fn messages_of(&self) -> Option<&OpenQueue> {
        None
    }

    /// Opens it. The caller has been found to reach it, and to be able to read what it shows of messages.
    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>>;

    /// Tells apart what follows one another under one name: another generation is another inode.
    fn generation(&self) -> u64 {
        0
    }

    /// Where what it shows is small and changes as a whole, whoever looks the name up gets a snapshot, of at most this many
    /// bytes. 0: no snapshots.
    fn snapshot_max(&self) -> usize {
        0
    }

    /// The generation that people are shown, where it is another one.
    fn shown_generation(&self) -> Option<u64> {
        None
    }

    /// The sequence number, if it is a message and its number says all about it.
    fn message(&self) -> Option<u64> {
        None
    }

    /// Whether its name still stands for it. Asked when it is opened: the kernel may have remembered the name.
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

    /// Where a symlink leads.
    fn target(&self) -> Result<Vec<u8>> {
        Err(Errno::EINVAL)
    }
}

/// Places that threads of earlier searches hang in, by their paths below the root.
#[derive(Default)]
pub(crate) struct Hanging(pub(super) Mutex<HashSet<PathBuf>>);
