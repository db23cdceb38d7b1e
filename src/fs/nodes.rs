//! NODES: the one table of everything virtual that the mount shows. A new virtual file is one row here and one
//! constructor in `files/`.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::fs::errno::Result;
use crate::fs::files::append::{self, Boundary};
use crate::fs::files::dot_chronfs;
use crate::fs::files::follow;
use crate::fs::files::lease;
use crate::fs::files::merged;
use crate::fs::files::messages;
use crate::fs::files::readers;
use crate::fs::files::ready;
use crate::fs::files::status;
use crate::fs::files::take;
use crate::fs::site::{Caller, File, Site};
use crate::queue::layout;
use crate::view::{Format, InputFormat};

/// The kinds of directory that rows can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DirKind {
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
    /// When its attributes are available.
    WhenPresent,
    /// Never, but it can be looked up.
    Never,
}

/// What a row creates.
pub(crate) enum Make {
    File(fn(&Site) -> Result<Arc<dyn File>>),
    Directory(DirKind),
}

/// One name.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) places: &'static [DirKind],
    pub(crate) listed: Listed,
    pub(crate) make: Make,
    /// What `touch` does where the name does not exist yet.
    pub(crate) create: Option<fn(&Site, &Caller) -> Result<()>>,
    /// What `rm` does.
    pub(crate) remove: Option<fn(&Site, &Caller) -> Result<()>>,
}

const fn file(
    name: &'static str,
    places: &'static [DirKind],
    listed: Listed,
    make: fn(&Site) -> Result<Arc<dyn File>>,
) -> Row {
    Row { name, places, listed, make: Make::File(make), create: None, remove: None }
}

const fn directory(name: &'static str, places: &'static [DirKind], place: DirKind) -> Row {
    Row { name, places, listed: Listed::Always, make: Make::Directory(place), create: None, remove: None }
}

const PLAIN: &[DirKind] = &[DirKind::Plain];
const QUEUE: &[DirKind] = &[DirKind::Queue];
const READER: &[DirKind] = &[DirKind::Reader];
const SINCE: &[DirKind] = &[DirKind::Since];
const MERGED: &[DirKind] = &[DirKind::Merged];
const CHRONFS: &[DirKind] = &[DirKind::Chronfs];
/// Directories that are or may become an endpoint.
const ENDPOINT: &[DirKind] = &[DirKind::Plain, DirKind::Queue];

/// Everything virtual, in listing order.
pub(crate) static NODES: &[Row] = &[
    file("messages.jsonl", QUEUE, Listed::Always, |site| messages::messages(site, Format::Jsonl)),
    file("messages.txt", QUEUE, Listed::Always, |site| messages::messages(site, Format::Txt)),
    file("messages.bin", QUEUE, Listed::Always, |site| messages::messages(site, Format::Bin)),
    file("messages.hex", QUEUE, Listed::Always, |site| messages::messages(site, Format::Hex)),
    #[cfg(feature = "decode")]
    file("messages.decoded.jsonl", QUEUE, Listed::WhenPresent, messages::decoded),
    #[cfg(feature = "decode")]
    file("follow.decoded.jsonl", QUEUE, Listed::WhenPresent, follow::follow_decoded),
    file("follow.jsonl", QUEUE, Listed::Always, |site| follow::follow(site, Format::Jsonl)),
    file("follow.txt", QUEUE, Listed::Always, |site| follow::follow(site, Format::Txt)),
    file("follow.bin", QUEUE, Listed::Always, |site| follow::follow(site, Format::Bin)),
    file("follow.hex", QUEUE, Listed::Always, |site| follow::follow(site, Format::Hex)),
    file("append.jsonl", QUEUE, Listed::Always, |site| append::append(site, Boundary::Lines(InputFormat::Jsonl))),
    file("append.txt", QUEUE, Listed::Always, |site| append::append(site, Boundary::Lines(InputFormat::Txt))),
    file("append.bin", QUEUE, Listed::Always, |site| append::append(site, Boundary::Close)),
    file("append.packets", QUEUE, Listed::Always, |site| append::append(site, Boundary::Write)),
    // The first append creates the queue.
    file("append.jsonl", PLAIN, Listed::Never, |site| append::first(site, Boundary::Lines(InputFormat::Jsonl))),
    file("append.txt", PLAIN, Listed::Never, |site| append::first(site, Boundary::Lines(InputFormat::Txt))),
    file("append.bin", PLAIN, Listed::Never, |site| append::first(site, Boundary::Close)),
    file("append.packets", PLAIN, Listed::Never, |site| append::first(site, Boundary::Write)),
    directory("messages", QUEUE, DirKind::Messages),
    directory("at", QUEUE, DirKind::At),
    directory("since", QUEUE, DirKind::SinceAll),
    directory("readers", QUEUE, DirKind::Readers),
    directory("log", QUEUE, DirKind::Log),
    directory("segments", QUEUE, DirKind::Segments),
    file("position", READER, Listed::Always, readers::position),
    file("lag", READER, Listed::Always, readers::lag),
    file("status.json", READER, Listed::Always, readers::status),
    file("messages.jsonl", READER, Listed::Always, |site| messages::pending(site, Format::Jsonl)),
    file("messages.txt", READER, Listed::Always, |site| messages::pending(site, Format::Txt)),
    file("messages.bin", READER, Listed::Always, |site| messages::pending(site, Format::Bin)),
    file("messages.hex", READER, Listed::Always, |site| messages::pending(site, Format::Hex)),
    file("follow.jsonl", READER, Listed::Always, |site| follow::follow_reader(site, Format::Jsonl)),
    file("follow.txt", READER, Listed::Always, |site| follow::follow_reader(site, Format::Txt)),
    file("follow.bin", READER, Listed::Always, |site| follow::follow_reader(site, Format::Bin)),
    file("follow.hex", READER, Listed::Always, |site| follow::follow_reader(site, Format::Hex)),
    file("take.jsonl", READER, Listed::Always, |site| take::take(site, Format::Jsonl)),
    file("take.txt", READER, Listed::Always, |site| take::take(site, Format::Txt)),
    file("take.bin", READER, Listed::Always, |site| take::take(site, Format::Bin)),
    file("messages.jsonl", SINCE, Listed::Always, |site| messages::since(site, Format::Jsonl)),
    file("messages.txt", SINCE, Listed::Always, |site| messages::since(site, Format::Txt)),
    file("messages.bin", SINCE, Listed::Always, |site| messages::since(site, Format::Bin)),
    file("messages.hex", SINCE, Listed::Always, |site| messages::since(site, Format::Hex)),
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
        make: Make::File(ready::ready),
        create: Some(ready::mark),
        remove: Some(ready::unmark),
    },
    Row {
        name: crate::bus::LEASE_FILE,
        places: ENDPOINT,
        listed: Listed::WhenPresent,
        make: Make::File(lease::lease),
        create: Some(lease::renew),
        remove: Some(lease::give_up),
    },
    directory(".merged", PLAIN, DirKind::Merged),
    file("messages.jsonl", MERGED, Listed::Always, |site| merged::messages(site, Format::Jsonl)),
    file("messages.txt", MERGED, Listed::Always, |site| merged::messages(site, Format::Txt)),
    file("messages.bin", MERGED, Listed::Always, |site| merged::messages(site, Format::Bin)),
    file("messages.hex", MERGED, Listed::Always, |site| merged::messages(site, Format::Hex)),
    file("follow.jsonl", MERGED, Listed::Always, |site| merged::follow(site, Format::Jsonl)),
    file("follow.txt", MERGED, Listed::Always, |site| merged::follow(site, Format::Txt)),
    file("follow.bin", MERGED, Listed::Always, |site| merged::follow(site, Format::Bin)),
    file("follow.hex", MERGED, Listed::Always, |site| merged::follow(site, Format::Hex)),
    // In the root only.
    directory(".chronfs", ENDPOINT, DirKind::Chronfs),
    file("metrics", CHRONFS, Listed::Always, dot_chronfs::metrics),
    file("status.json", CHRONFS, Listed::Always, dot_chronfs::status),
    file("doctor", CHRONFS, Listed::Always, dot_chronfs::doctor),
    file("log", CHRONFS, Listed::Always, dot_chronfs::log),
    file("version", CHRONFS, Listed::Always, dot_chronfs::version),
    file("README", CHRONFS, Listed::Always, dot_chronfs::readme),
    #[cfg(test)]
    file("panic", CHRONFS, Listed::Never, crate::fs::kernel::panic_tests::file),
];

/// The rows of a directory.
pub(crate) fn rows(place: DirKind) -> impl Iterator<Item = &'static Row> {
    NODES.iter().filter(move |row| row.places.contains(&place))
}

/// The row of a name.
pub(crate) fn find(place: DirKind, name: &OsStr) -> Option<&'static Row> {
    rows(place).find(|row| name == row.name)
}

/// Whether the mount hides a backing entry of this name.
pub(crate) fn is_hidden(place: DirKind, name: &OsStr) -> bool {
    match place {
        DirKind::Queue => crate::fs::queues::open_queue::is_internal(name) || find(place, name).is_some(),
        _ => {
            name.to_str().is_some_and(crate::bus::is_temporary)
                || crate::bus::removed_name(name).is_some()
                || name == layout::INDEX_DIR
                || find(place, name).is_some()
        }
    }
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
    fn the_manual_page_has_every_name() {
        let page = include_str!("../../man/chronfs.5");
        for row in NODES.iter().filter(|row| row.name != "panic") {
            let has = page.split([' ', '\n', '/', ',']).any(|word| word == row.name);
            assert!(has, "man/chronfs.5 does not mention {}", row.name);
        }
    }

    #[test]
    fn the_engines_files_are_hidden_and_others_are_not() {
        for name in ["control.meta", "writer.lock", "000000000.q", "000000001.q.tmp", "readers", "READY", ".index"] {
            assert!(is_hidden(DirKind::Queue, OsStr::new(name)), "{name}");
        }
        for name in ["notes.md", "snapshot.jsonl", "q"] {
            assert!(!is_hidden(DirKind::Queue, OsStr::new(name)), "{name}");
        }
        for name in [".READY.17.0.tmp", ".q.0123456789abcdef.removed"] {
            assert!(is_hidden(DirKind::Plain, OsStr::new(name)), "{name}");
        }
    }
}
