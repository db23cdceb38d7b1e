//! Listings of directories: open directories, and listing them piece by piece.

use std::cell::LazyCell;
use std::ffi::OsStr;
use std::sync::{Arc, Mutex};

use crate::fs::attr::Kind;
use crate::fs::budget::{Kept, Kind as Budgeted, Share};
use crate::fs::errno::{Errno, Result};
use crate::fs::files::message::{Listed, MessageListing};
use crate::fs::lock;
use crate::fs::nodes::DirKind;
use crate::fs::site::Caller;
use crate::fs::site::File as _;
use crate::fs::tree::children;
use crate::fs::tree::inodes::Ino;
use crate::fs::tree::{DirectoryNode, DirectoryOrigin, Entry, FileNode, Item, Node, Tree, ttl};

/// An open directory.
pub(in crate::fs) struct OpenDirectory {
    listing: Listing,
    _share: Share,
}

enum Listing {
    /// A snapshot, taken again when it is read from the start.
    Snapshot { ino: Ino, snapshot: Mutex<Snapshot> },
    /// Of `messages/`: too many entries for a snapshot.
    MessageListing { ino: Ino, directory: DirectoryNode, numbers: Box<Mutex<MessageListing>> },
}

struct Snapshot {
    items: Arc<Vec<Item>>,
    is_fresh: bool,
    kept: Kept,
}

impl Snapshot {
    fn set(&mut self, items: Vec<Item>) -> Result<()> {
        // Each name is a separate allocation.
        let bytes = |item: &Item| size_of::<Item>() + item.name.len() + 16;
        self.kept.set(items.iter().map(bytes).sum())?;
        self.items = Arc::new(items);
        Ok(())
    }
}

impl Tree {
    pub(crate) fn opendir(&self, ino: Ino, caller: &Caller) -> Result<u64> {
        let directory = self.directory_for(ino, caller)?;
        if caller.is_other() {
            children::check_listable(&directory, &self.site(&directory)?, caller)?;
        }
        let share = self.shared.queues.budget().take(caller.uid, Budgeted::Handles, 1)?;
        let listing = if let DirectoryOrigin::Virtual { place: DirKind::Messages, .. } = directory.kind {
            let numbers = Box::new(Mutex::new(MessageListing::new(self.site(&directory)?.queue()?)));
            Listing::MessageListing { ino, directory, numbers }
        } else {
            let kept = self.shared.queues.kept_by(caller);
            let mut snapshot = Snapshot { items: Arc::default(), is_fresh: true, kept };
            snapshot.set(self.list(ino)?)?;
            Listing::Snapshot { ino, snapshot: Mutex::new(snapshot) }
        };
        Ok(self.listings.insert(|_| OpenDirectory { listing, _share: share }))
    }

    /// Passes the entries from `offset` on to `add`, each with a function that looks it up and the offset after it,
    /// until there is no more room.
    pub(crate) fn readdir(
        &self,
        fh: u64,
        offset: u64,
        mut add: impl FnMut(&Item, &dyn Fn() -> Result<Entry>, u64) -> bool,
    ) -> Result<()> {
        let open = self.listings.get(fh)?;
        let (ino, items) = match &open.listing {
            Listing::Snapshot { ino, snapshot } => {
                let mut snapshot = lock(snapshot);
                if offset == 0 && !std::mem::take(&mut snapshot.is_fresh) {
                    snapshot.set(self.list(*ino)?)?;
                }
                (*ino, Arc::clone(&snapshot.items))
            }
            Listing::MessageListing { ino, directory, numbers } => {
                return lock(numbers).list(offset, |name, listed, next| {
                    let name = OsStr::new(name);
                    let (kind, generation) = match &listed {
                        Listed::Message(file) => (Kind::File, file.generation()),
                        Listed::Link(generation) => (Kind::Symlink, *generation),
                        Listed::Itself => (Kind::Directory, 0),
                    };
                    let key = || children::key(directory, name, generation);
                    let number = match &listed {
                        Listed::Message(file) => self.number(&key(), file),
                        Listed::Link(_) => self.inodes.number(&key()),
                        Listed::Itself => *ino,
                    };
                    let enter = || match &listed {
                        Listed::Message(file) => {
                            self.enter(key(), Arc::new(Node::File(FileNode::new(directory, Arc::new(file.clone())))))
                        }
                        // A link is the same for every caller.
                        Listed::Link(_) => self.lookup(*ino, name, &Caller::of_request(0, 0, 0, false)),
                        Listed::Itself => self.getattr(*ino),
                    };
                    add(&Item { name: name.to_owned(), ino: number, kind }, &enter, next)
                });
            }
        };
        let directory = self.directory(ino)?;
        let site = LazyCell::new(|| self.site(&directory));
        let skip = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
        for (item, next) in items.iter().skip(skip).zip(offset + 1..) {
            let enter = || {
                if is_dot(&item.name) {
                    return self.getattr(ino);
                }
                let site = site.as_ref().map_err(|errno| *errno)?;
                let (key, node) = children::find(&directory, site, &item.name)?;
                let attr = if let Node::File(node) = &*node { node.file.quick_attr()? } else { self.attr(&node)? };
                if matches!(&*node, Node::File(node) if node.file.snapshot_max() > 0) {
                    // Without a number the kernel looks it up itself, when it needs the size.
                    return Ok(Entry { ino: Ino(0), shown: item.ino, attr, ttl: ttl(&node) });
                }
                let (ino, node) = self.inodes.enter(key, node);
                Ok(Entry { ino, shown: ino, attr, ttl: ttl(&node) })
            };
            if !add(item, &enter, next) {
                break;
            }
        }
        Ok(())
    }

    /// As [`Self::readdir`], with the result of a lookup of each name: an entry that `add` accepts counts as looked up,
    /// except for `.` and `..`.
    pub(crate) fn readdir_plus(
        &self,
        fh: u64,
        offset: u64,
        mut add: impl FnMut(&OsStr, &Entry, u64) -> bool,
    ) -> Result<()> {
        self.readdir(fh, offset, |item, enter, next| {
            // An entry that vanishes meanwhile is not listed.
            let Ok(entry) = enter() else { return true };
            let has_room = add(&item.name, &entry, next);
            if !has_room && !is_dot(&item.name) {
                self.forget(entry.ino, 1);
            }
            has_room
        })
    }

    pub(crate) fn releasedir(&self, fh: u64) {
        self.listings.remove(fh);
    }

    fn list(&self, ino: Ino) -> Result<Vec<Item>> {
        let directory = &self.directory(ino)?;
        let mut items = vec![
            Item { name: ".".into(), ino, kind: Kind::Directory },
            Item { name: "..".into(), ino, kind: Kind::Directory },
        ];
        children::list(directory, &self.site(directory)?, |name, key, kind| {
            items.push(Item { name: name.to_owned(), ino: self.inodes.number(key), kind });
        })?;
        Ok(items)
    }
}

fn is_dot(name: &OsStr) -> bool {
    name == "." || name == ".."
}
