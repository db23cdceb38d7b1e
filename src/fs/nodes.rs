//! NODES: the one table of everything virtual that the mount shows. A new virtual file is one row here and one
//! constructor in `files/`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::queue::{Settings, layout};
use crate::sync::AtomicBool;
use crate::view::{Format, InputFormat};

use super::attr::{Attr, Ttl};
use super::backing::{Backing, Directory};
use super::bus_walk::Hanging;
pub(crate) use super::credentials::Caller;
use super::daemon_log::DaemonLog;
use super::errno::{Errno, Result};
use super::files::{append, chronfs, follow, lease, marker, merged, readers, status, take, views};
use super::handles::Handle;
use super::queues::{Contents, OpenQueue, Queues};

/// What the whole mount has in common.
pub(crate) struct Shared {
    pub(crate) backing: Backing,
    pub(crate) queues: Queues,
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

/// The kinds of directory that rows can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A directory of the backing tree without a queue.
    Plain,
    /// A directory of the backing tree with a queue.
    Queue,
    /// `readers/` of a queue.
    Readers,
    /// `readers/<name>/`.
    Reader,
    /// `messages/` of a queue.
    Messages,
    /// `at/` of a queue.
    At,
    /// `since/` of a queue.
    SinceAll,
    /// `since/<place>/`.
    Since,
    /// `log/` of a queue.
    Log,
    /// `segments/` of a queue.
    Segments,
    /// `.merged/` of a plain directory.
    Merged,
    /// `.chronfs/` of the root.
    Chronfs,
}

/// Whether `ls` shows a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listed {
    Always,
    /// When its attributes can be had.
    WhenPresent,
    /// Never: it can be looked up all the same.
    Never,
}

/// What a row makes.
pub(crate) enum Make {
    File(fn(&Site) -> Result<Arc<dyn File>>),
    Directory(Place),
}

/// One name.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) places: &'static [Place],
    pub(crate) listed: Listed,
    pub(crate) make: Make,
    /// What `touch` does where the name is not there yet.
    pub(crate) create: Option<fn(&Site, &Caller) -> Result<()>>,
    /// What `rm` does.
    pub(crate) remove: Option<fn(&Site, &Caller) -> Result<()>>,
}

const fn file(
    name: &'static str,
    places: &'static [Place],
    listed: Listed,
    make: fn(&Site) -> Result<Arc<dyn File>>,
) -> Row {
    Row { name, places, listed, make: Make::File(make), create: None, remove: None }
}

const fn directory(name: &'static str, places: &'static [Place], place: Place) -> Row {
    Row { name, places, listed: Listed::Always, make: Make::Directory(place), create: None, remove: None }
}

const PLAIN: &[Place] = &[Place::Plain];
const QUEUE: &[Place] = &[Place::Queue];
const READER: &[Place] = &[Place::Reader];
const SINCE: &[Place] = &[Place::Since];
const MERGED: &[Place] = &[Place::Merged];
const CHRONFS: &[Place] = &[Place::Chronfs];
/// Where an endpoint is, or may become one.
const ENDPOINT: &[Place] = &[Place::Plain, Place::Queue];

/// Everything virtual, in the order in which it is listed.
pub(crate) static NODES: &[Row] = &[
    file("messages.jsonl", QUEUE, Listed::Always, |site| views::messages(site, Format::Jsonl)),
    file("messages.txt", QUEUE, Listed::Always, |site| views::messages(site, Format::Txt)),
    file("messages.bin", QUEUE, Listed::Always, |site| views::messages(site, Format::Bin)),
    file("messages.hex", QUEUE, Listed::Always, |site| views::messages(site, Format::Hex)),
    file("follow.jsonl", QUEUE, Listed::Always, |site| follow::follow(site, Format::Jsonl)),
    file("follow.txt", QUEUE, Listed::Always, |site| follow::follow(site, Format::Txt)),
    file("follow.bin", QUEUE, Listed::Always, |site| follow::follow(site, Format::Bin)),
    file("follow.hex", QUEUE, Listed::Always, |site| follow::follow(site, Format::Hex)),
    file("append.jsonl", QUEUE, Listed::Always, |site| append::append(site, InputFormat::Jsonl)),
    file("append.txt", QUEUE, Listed::Always, |site| append::append(site, InputFormat::Txt)),
    file("append.bin", QUEUE, Listed::Always, |site| append::append(site, InputFormat::Bin)),
    // The first append makes the queue.
    file("append.jsonl", PLAIN, Listed::Never, |site| append::first(site, InputFormat::Jsonl)),
    file("append.txt", PLAIN, Listed::Never, |site| append::first(site, InputFormat::Txt)),
    file("append.bin", PLAIN, Listed::Never, |site| append::first(site, InputFormat::Bin)),
    directory("messages", QUEUE, Place::Messages),
    directory("at", QUEUE, Place::At),
    directory("since", QUEUE, Place::SinceAll),
    directory("readers", QUEUE, Place::Readers),
    directory("log", QUEUE, Place::Log),
    directory("segments", QUEUE, Place::Segments),
    file("position", READER, Listed::Always, readers::position),
    file("lag", READER, Listed::Always, readers::lag),
    file("status.json", READER, Listed::Always, readers::status),
    file("messages.jsonl", READER, Listed::Always, |site| views::pending(site, Format::Jsonl)),
    file("messages.txt", READER, Listed::Always, |site| views::pending(site, Format::Txt)),
    file("messages.bin", READER, Listed::Always, |site| views::pending(site, Format::Bin)),
    file("messages.hex", READER, Listed::Always, |site| views::pending(site, Format::Hex)),
    file("follow.jsonl", READER, Listed::Always, |site| follow::follow_reader(site, Format::Jsonl)),
    file("follow.txt", READER, Listed::Always, |site| follow::follow_reader(site, Format::Txt)),
    file("follow.bin", READER, Listed::Always, |site| follow::follow_reader(site, Format::Bin)),
    file("follow.hex", READER, Listed::Always, |site| follow::follow_reader(site, Format::Hex)),
    file("take.jsonl", READER, Listed::Always, |site| take::take(site, Format::Jsonl)),
    file("take.txt", READER, Listed::Always, |site| take::take(site, Format::Txt)),
    file("take.bin", READER, Listed::Always, |site| take::take(site, Format::Bin)),
    file("messages.jsonl", SINCE, Listed::Always, |site| views::since(site, Format::Jsonl)),
    file("messages.txt", SINCE, Listed::Always, |site| views::since(site, Format::Txt)),
    file("messages.bin", SINCE, Listed::Always, |site| views::since(site, Format::Bin)),
    file("messages.hex", SINCE, Listed::Always, |site| views::since(site, Format::Hex)),
    file("follow.jsonl", SINCE, Listed::Always, |site| follow::follow_since(site, Format::Jsonl)),
    file("follow.txt", SINCE, Listed::Always, |site| follow::follow_since(site, Format::Txt)),
    file("follow.bin", SINCE, Listed::Always, |site| follow::follow_since(site, Format::Bin)),
    file("follow.hex", SINCE, Listed::Always, |site| follow::follow_since(site, Format::Hex)),
    file("status", QUEUE, Listed::Always, status::for_people),
    file("status.json", QUEUE, Listed::Always, status::for_scripts),
    Row {
        name: crate::bus::READY_FILE,
        places: ENDPOINT,
        listed: Listed::WhenPresent,
        make: Make::File(marker::ready),
        create: Some(marker::mark),
        remove: Some(marker::unmark),
    },
    Row {
        name: crate::bus::LEASE_FILE,
        places: ENDPOINT,
        listed: Listed::WhenPresent,
        make: Make::File(lease::lease),
        create: Some(lease::renew),
        remove: Some(lease::give_up),
    },
    directory(".merged", PLAIN, Place::Merged),
    file("messages.jsonl", MERGED, Listed::Always, |site| merged::messages(site, Format::Jsonl)),
    file("messages.txt", MERGED, Listed::Always, |site| merged::messages(site, Format::Txt)),
    file("messages.bin", MERGED, Listed::Always, |site| merged::messages(site, Format::Bin)),
    file("messages.hex", MERGED, Listed::Always, |site| merged::messages(site, Format::Hex)),
    file("follow.jsonl", MERGED, Listed::Always, |site| merged::follow(site, Format::Jsonl)),
    file("follow.txt", MERGED, Listed::Always, |site| merged::follow(site, Format::Txt)),
    file("follow.bin", MERGED, Listed::Always, |site| merged::follow(site, Format::Bin)),
    file("follow.hex", MERGED, Listed::Always, |site| merged::follow(site, Format::Hex)),
    // In the root only.
    directory(".chronfs", ENDPOINT, Place::Chronfs),
    file("metrics", CHRONFS, Listed::Always, chronfs::metrics),
    file("status.json", CHRONFS, Listed::Always, chronfs::status),
    file("doctor", CHRONFS, Listed::Always, chronfs::doctor),
    file("log", CHRONFS, Listed::Always, chronfs::log),
    file("version", CHRONFS, Listed::Always, chronfs::version),
    file("README", CHRONFS, Listed::Always, chronfs::readme),
    #[cfg(test)]
    file("panic", CHRONFS, Listed::Never, super::kernel::panics::file),
];

/// The rows of a directory.
pub(crate) fn rows(place: Place) -> impl Iterator<Item = &'static Row> {
    NODES.iter().filter(move |row| row.places.contains(&place))
}

/// The row of a name.
pub(crate) fn find(place: Place, name: &OsStr) -> Option<&'static Row> {
    rows(place).find(|row| name == row.name)
}

/// Names of a directory's backing entries that the mount does not show.
pub(crate) fn is_hidden(place: Place, name: &OsStr) -> bool {
    match place {
        Place::Queue => super::queues::is_internal(name) || find(place, name).is_some(),
        _ => {
            name.to_str().is_some_and(crate::bus::is_temporary)
                || name == layout::INDEX_DIR
                || find(place, name).is_some()
        }
    }
}

/// A symlink is shown only if it stays inside the root, whoever resolves it: it is relative, and goes up only at its start,
/// from where it really is. What comes after a name may be another link, of which nobody knows how deep it leads.
pub(crate) fn stays_inside(directory: &Path, target: &[u8]) -> bool {
    use std::os::unix::ffi::OsStringExt;
    use std::path::Component;

    let target = PathBuf::from(OsString::from_vec(target.to_vec()));
    let is_up = |component: &Component<'_>| matches!(component, Component::ParentDir | Component::CurDir);
    let up = target.components().take_while(is_up).filter(|component| *component == Component::ParentDir).count();
    let mut rest = target.components().skip_while(is_up);
    up <= directory.components().count() && rest.all(|component| matches!(component, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_directory_has_a_name_twice() {
        for place in NODES.iter().flat_map(|row| row.places).copied() {
            let mut names: Vec<_> = rows(place).map(|row| row.name).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{place:?}");
        }
    }

    #[test]
    fn the_engines_files_are_hidden_and_others_are_not() {
        for name in ["control.meta", "writer.lock", "000000000.q", "000000001.q.tmp", "readers", "READY", ".index"] {
            assert!(is_hidden(Place::Queue, OsStr::new(name)), "{name}");
        }
        for name in ["notes.md", "snapshot.jsonl", "q"] {
            assert!(!is_hidden(Place::Queue, OsStr::new(name)), "{name}");
        }
        assert!(is_hidden(Place::Plain, OsStr::new(".READY.17.0.tmp")));
    }

    #[test]
    fn symlinks_that_lead_out_are_not_shown() {
        assert!(stays_inside(Path::new("a/b"), b"../c"));
        assert!(stays_inside(Path::new("a"), b"./../c/./d"));
        assert!(!stays_inside(Path::new("a/b"), b"c/../d"), "c may be a link to a directory that lies higher");
        assert!(!stays_inside(Path::new("a"), b"../../etc"));
        assert!(!stays_inside(Path::new(""), b".."));
        assert!(!stays_inside(Path::new("a/b"), b"/etc/passwd"));
    }
}
