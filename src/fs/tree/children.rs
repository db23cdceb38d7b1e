//! The contents of a directory of the mount: rows of the table, entries of the backing directory, and names that are
//! resolved at lookup (readers, messages, times, segments).

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fs::attr::{Attr, Kind};
use crate::fs::backing::FileId;
use crate::fs::errno::{Errno, Result};
use crate::fs::files::at_since;
use crate::fs::files::backing_file::BackingFile;
use crate::fs::files::log;
use crate::fs::files::message;
use crate::fs::files::readers;
use crate::fs::files::segments;
use crate::fs::nodes::{self, DirKind, Listed, Make, Row};
use crate::fs::queues::table::Contents;
use crate::fs::site::{Caller, File, Site};
use crate::fs::tree::inodes::Key;
use crate::fs::tree::node::{DirectoryNode, DirectoryOrigin, FileNode, Node};

type Child = (Key, Arc<Node>);

/// What a name in a directory is.
pub(in crate::fs) fn find(directory: &DirectoryNode, site: &Site, name: &OsStr) -> Result<Child> {
    let place = place(directory, site);
    if let Some(row) = nodes::find(place, name) {
        return make_row(row, directory, site);
    }
    let text = || name.to_str().ok_or(Errno::ENOENT);
    match place {
        DirKind::Reader | DirKind::Since | DirKind::Merged | DirKind::Chronfs => Err(Errno::ENOENT),
        DirKind::Readers => {
            let name = text()?;
            readers::reader_attr(site.queue()?, name)?;
            Ok(make_directory(directory, OsStr::new(name), DirKind::Reader, Some(name), site.queue()?.identity))
        }
        DirKind::SinceAll => {
            let name = text()?;
            at_since::check(site.queue()?, name)?;
            Ok(make_directory(directory, OsStr::new(name), DirKind::Since, Some(name), site.queue()?.identity))
        }
        DirKind::Messages => Ok(make_file(directory, name, message::find(site.queue()?, text()?)?)),
        DirKind::At => Ok(make_file(directory, name, at_since::at(site.queue()?, text()?)?)),
        DirKind::Log => Ok(make_file(directory, name, log::find(site.queue()?, text()?)?)),
        DirKind::Segments => Ok(make_file(directory, name, segments::find(site.queue()?, name)?)),
        DirKind::Plain | DirKind::Queue => {
            if nodes::is_hidden(place, name) {
                return Err(Errno::ENOENT);
            }
            if let Contents::Unreadable(errno) = site.contents
                && nodes::find(DirKind::Queue, name).is_some()
            {
                return Err(errno);
            }
            make_backing(directory, site, name)
        }
    }
}

/// Passes the names in a directory to `add`, with their keys and kinds, except for those of `messages/`.
pub(in crate::fs) fn list(
    directory: &DirectoryNode,
    site: &Site,
    mut give: impl FnMut(&OsStr, &Key, Kind),
) -> Result<()> {
    let place = place(directory, site);
    let mut add = |name: &OsStr, made: Result<Child>, must_have_attr: bool| {
        // An entry that vanishes meanwhile is not listed.
        let Ok((key, node)) = made else { return };
        let kind = match &*node {
            Node::Directory(_) => Kind::Directory,
            Node::File(FileNode { file, .. }) if must_have_attr => match file.attr() {
                Ok(attr) => attr.kind,
                Err(_) => return,
            },
            Node::File(_) => Kind::File,
        };
        give(name, &key, kind);
    };
    for row in nodes::rows(place).filter(|row| row.listed != Listed::Never) {
        add(OsStr::new(row.name), make_row(row, directory, site), row.listed == Listed::WhenPresent);
    }
    let names: Vec<OsString> = match place {
        DirKind::Readers => readers::names(site.queue()?)?.into_iter().map(OsString::from).collect(),
        DirKind::Log => log::names(site.queue()?)?,
        DirKind::Segments => segments::names(site.queue()?)?,
        DirKind::Plain | DirKind::Queue => {
            site.directory.names()?.into_iter().filter(|name| !nodes::is_hidden(place, name)).collect()
        }
        DirKind::Reader
        | DirKind::Messages
        | DirKind::At
        | DirKind::SinceAll
        | DirKind::Since
        | DirKind::Merged
        | DirKind::Chronfs => Vec::new(),
    };
    for name in names {
        add(&name, find(directory, site, &name), matches!(place, DirKind::Plain | DirKind::Queue));
    }
    Ok(())
}

/// EACCES unless the caller may list a directory, where that requires more than reaching it.
pub(in crate::fs) fn check_listable(directory: &DirectoryNode, site: &Site, caller: &Caller) -> Result<()> {
    match place(directory, site) {
        DirKind::Plain | DirKind::Queue | DirKind::Merged | DirKind::Chronfs => {
            caller.act(|| site.directory.check_listable())?
        }
        DirKind::Readers => readers::check_listable(site, caller),
        DirKind::Messages | DirKind::Log | DirKind::Segments => site.queue()?.check_readable(caller),
        // These list the same names everywhere.
        DirKind::Reader | DirKind::At | DirKind::SinceAll | DirKind::Since => Ok(()),
    }
}

/// Attributes of a directory that exists only in the mount.
pub(in crate::fs) fn attr(place: DirKind, site: &Site) -> Result<Attr> {
    match place {
        DirKind::Readers => readers::directory_attr(site),
        DirKind::Reader => readers::reader_attr(site.queue()?, &site.subject()?),
        DirKind::Merged | DirKind::Chronfs => Ok(Attr::directory(&site.directory.stat_now()?)),
        _ => Ok(Attr::directory(&site.queue()?.data_stat()?)),
    }
}

/// Which rows a directory has.
pub(in crate::fs) fn place(directory: &DirectoryNode, site: &Site) -> DirKind {
    match (&directory.kind, &site.contents) {
        (DirectoryOrigin::Virtual { place, .. }, _) => *place,
        (DirectoryOrigin::Backing, Contents::Queue(_)) => DirKind::Queue,
        (DirectoryOrigin::Backing, Contents::Plain | Contents::Unreadable(_)) => DirKind::Plain,
    }
}

/// The key of a name in a directory.
pub(in crate::fs) fn key(directory: &DirectoryNode, name: &OsStr, generation: u64) -> Key {
    let path = match &directory.kind {
        DirectoryOrigin::Backing => directory.relative.join(name),
        DirectoryOrigin::Virtual { path, .. } => {
            let mut whole = PathBuf::from(&*directory.relative);
            whole.push(path);
            whole.push(name);
            whole
        }
    };
    Key { path, id: directory.id, generation }
}

fn make_row(row: &Row, directory: &DirectoryNode, site: &Site) -> Result<Child> {
    let name = OsStr::new(row.name);
    match row.make {
        Make::File(make) => Ok(make_file(directory, name, make(site)?)),
        // There is one for the whole mount, in the root.
        Make::Directory(DirKind::Chronfs) if !site.relative.as_os_str().is_empty() => Err(Errno::ENOENT),
        Make::Directory(place) => {
            let generation = if let Contents::Queue(queue) = &site.contents { queue.identity } else { 0 };
            Ok(make_directory(directory, name, place, None, generation))
        }
    }
}

fn make_file(directory: &DirectoryNode, name: &OsStr, file: Arc<dyn File>) -> Child {
    (key(directory, name, file.generation()), Arc::new(Node::File(FileNode::new(directory, file))))
}

/// A virtual directory of the same backing directory.
fn make_directory(directory: &DirectoryNode, name: &OsStr, place: DirKind, subject: Option<&str>, of: u64) -> Child {
    let path = match &directory.kind {
        DirectoryOrigin::Backing => Arc::from(Path::new(name)),
        DirectoryOrigin::Virtual { path, .. } => Arc::from(path.join(name)),
    };
    let kind = DirectoryOrigin::Virtual { place, subject: subject.map(Arc::from), path };
    let node = DirectoryNode { kind, relative: Arc::clone(&directory.relative), id: directory.id };
    (key(directory, name, of), Arc::new(Node::Directory(node)))
}

fn make_backing(directory: &DirectoryNode, site: &Site, name: &OsStr) -> Result<Child> {
    let stat = site.directory.stat_of_any(name)?;
    let id = FileId::of(&stat);
    let path = directory.relative.join(name);
    let node = match Kind::of(&stat).ok_or(Errno::ENOENT)? {
        Kind::Directory => {
            let relative = Arc::from(path.as_path());
            Node::Directory(DirectoryNode { kind: DirectoryOrigin::Backing, relative, id })
        }
        kind => {
            let plain = BackingFile::new(site, name, id);
            if kind == Kind::Symlink {
                // Fails if the link is not shown.
                plain.target()?;
            }
            Node::File(FileNode::new(directory, Arc::new(plain)))
        }
    };
    Ok((Key { path, id, generation: 0 }, Arc::new(node)))
}
