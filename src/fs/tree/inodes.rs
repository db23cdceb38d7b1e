//! The inode table: what the kernel's inode numbers stand for.
//!
//! A number is a hash of the node's identity (its path in the mount, the inode number of its backing file, its
//! generation), so that the same file has the same number after the kernel forgot it, after a remount and after a
//! reboot; another file at the same path has another number. Device numbers are not part of it: they are not stable.
//! Numbers are below 2^53, so that programs that keep them as floating point can distinguish them. Entries live while
//! the kernel knows them.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use crate::fs::backing::FileId;
use crate::fs::errno::{Errno, Result};
use crate::fs::{read, write};
use crate::queue::give_memory_back;

/// An inode number of the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ino(pub(crate) u64);

/// Set in the numbers of messages (`message_inodes.rs`), and in no others. All numbers are below its double.
pub(crate) const MESSAGE_BIT: u64 = 1 << 52;

/// A hash that must never change between builds: FNV-1a of the parts with their lengths, mixed as in SplitMix64.
pub(crate) fn stable_hash(parts: &[&[u8]]) -> u64 {
    let lengths_and_parts =
        parts.iter().flat_map(|part| part.len().to_le_bytes().into_iter().chain(part.iter().copied()));
    let fnv = lengths_and_parts
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3));
    let mixed = (fnv ^ (fnv >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

impl Ino {
    /// The root of every FUSE mount.
    pub(crate) const ROOT: Ino = Ino(1);
}

/// The identity of a node.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Its path in the mount, relative to the root.
    pub(crate) path: PathBuf,
    /// The backing file or directory that it belongs to.
    pub(crate) id: FileId,
    /// Distinguishes successive files under one name.
    pub(crate) generation: u64,
}

impl Key {
    fn hash(&self) -> u64 {
        let (path, number, generation) = (self.path.as_os_str().as_bytes(), self.id.ino, self.generation);
        // 0 and 1 are reserved.
        (stable_hash(&[path, &number.to_le_bytes(), &generation.to_le_bytes()]) % MESSAGE_BIT) | 2
    }
}

/// Capacity that the table never shrinks below, in names.
const MIN_CAPACITY: usize = 1024;

/// The table. `N` is what a number stands for.
#[derive(Debug)]
pub(crate) struct Inodes<N> {
    tables: RwLock<Tables<N>>,
}

#[derive(Debug)]
struct Tables<N> {
    nodes: HashMap<Ino, Held<N>>,
    numbers: HashMap<Arc<Key>, Ino>,
}

#[derive(Debug)]
struct Held<N> {
    node: Arc<N>,
    key: Arc<Key>,
    lookups: u64,
}

impl<N> Inodes<N> {
    /// A table with the root, which is never forgotten.
    pub(crate) fn new(key: Key, root: N) -> Self {
        let key = Arc::new(key);
        let held = Held { node: Arc::new(root), key: Arc::clone(&key), lookups: 1 };
        let tables = Tables { nodes: HashMap::from([(Ino::ROOT, held)]), numbers: HashMap::from([(key, Ino::ROOT)]) };
        Self { tables: RwLock::new(tables) }
    }

    /// Records a lookup. A node that is known already is kept, with its state.
    pub(crate) fn enter(&self, key: Key, node: Arc<N>) -> (Ino, Arc<N>) {
        let mut tables = write(&self.tables);
        let ino = tables.number(&key);
        if let Some(held) = tables.nodes.get_mut(&ino) {
            held.lookups += 1;
            return (ino, Arc::clone(&held.node));
        }
        let key = Arc::new(key);
        tables.numbers.insert(Arc::clone(&key), ino);
        tables.nodes.insert(ino, Held { node: Arc::clone(&node), key, lookups: 1 });
        (ino, node)
    }

    /// The number that a node has, or will have when it is looked up.
    pub(crate) fn number(&self, key: &Key) -> Ino {
        read(&self.tables).number(key)
    }

    /// The number that a node of another generation under the same name has.
    pub(crate) fn sibling(&self, ino: Ino, generation: u64) -> Ino {
        let tables = read(&self.tables);
        let Some(held) = tables.nodes.get(&ino) else { return ino };
        let Key { path, id, .. } = &*held.key;
        Ino(Key { path: path.clone(), id: *id, generation }.hash())
    }

    pub(crate) fn get(&self, ino: Ino) -> Result<Arc<N>> {
        read(&self.tables).nodes.get(&ino).map(|held| Arc::clone(&held.node)).ok_or(Errno::ESTALE)
    }

    /// The path by which the kernel has found a node, below the root.
    pub(crate) fn path(&self, ino: Ino) -> Option<PathBuf> {
        read(&self.tables).nodes.get(&ino).map(|held| held.key.path.clone())
    }

    /// The names of some nodes, each with the directory in which the kernel knows it.
    pub(crate) fn names(&self, is_wanted: impl Fn(&Key, &N) -> bool) -> Vec<(Ino, OsString)> {
        let tables = read(&self.tables);
        let wanted = tables.nodes.values().filter(|held| is_wanted(&held.key, &held.node)).map(|held| &held.key.path);
        let wanted: Vec<_> = wanted.filter_map(|path| Some((path.parent()?, path.file_name()?))).collect();
        let parents: HashSet<_> = wanted.iter().map(|(parent, _)| *parent).collect();
        let known = tables.numbers.iter().filter(|(key, _)| parents.contains(key.path.as_path()));
        let known: HashMap<_, _> = known.map(|(key, ino)| (key.path.as_path(), *ino)).collect();
        wanted.iter().filter_map(|(parent, name)| Some((*known.get(parent)?, (*name).to_owned()))).collect()
    }

    /// The kernel forgets this many lookups.
    pub(crate) fn forget(&self, ino: Ino, lookups: u64) {
        if ino == Ino::ROOT {
            return;
        }
        let (gone, has_shrunk) = {
            let mut tables = write(&self.tables);
            let Some(held) = tables.nodes.get_mut(&ino) else { return };
            held.lookups = held.lookups.saturating_sub(lookups);
            if held.lookups > 0 {
                return;
            }
            let gone = tables.nodes.remove(&ino);
            if let Some(held) = &gone {
                tables.numbers.remove(&held.key);
            }
            (gone, tables.shrink())
        };
        // Dropped here, outside the lock: a node may own descriptors and indexes.
        drop(gone);
        if has_shrunk {
            give_memory_back();
        }
    }
}

impl<N> Tables<N> {
    /// Releases memory when most of the names are gone. Returns whether it did.
    fn shrink(&mut self) -> bool {
        let wanted = self.nodes.len().max(MIN_CAPACITY) * 2;
        let is_large = self.nodes.capacity() > wanted * 2;
        if is_large {
            self.nodes.shrink_to(wanted);
            self.numbers.shrink_to(wanted);
        }
        is_large
    }

    fn number(&self, key: &Key) -> Ino {
        if let Some(ino) = self.numbers.get(key) {
            return *ino;
        }
        let mut number = key.hash();
        while self.nodes.contains_key(&Ino(number)) {
            number = (number.wrapping_add(1) % MESSAGE_BIT).max(2);
        }
        Ino(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str, generation: u64) -> Key {
        Key { path: path.into(), id: FileId { dev: 1, ino: 2 }, generation }
    }

    #[test]
    fn a_node_keeps_its_number_and_a_new_generation_gets_another() {
        let inodes = Inodes::new(key("", 0), "root");
        let (first, _) = inodes.enter(key("a", 0), Arc::new("a"));
        let (again, kept) = inodes.enter(key("a", 0), Arc::new("other"));
        assert_eq!((first, *kept), (again, "a"));
        assert_ne!(inodes.enter(key("a", 1), Arc::new("rotated")).0, first);
        inodes.forget(first, 1);
        assert!(inodes.get(first).is_ok());
        inodes.forget(first, 1);
        assert!(inodes.get(first).is_err());
        assert_eq!(inodes.number(&key("a", 0)), first, "the number is a function of the key");
        let elsewhere = Key { id: FileId { dev: 7, ino: 2 }, ..key("a", 0) };
        assert_eq!(inodes.number(&elsewhere), first, "whatever device it is on");
        inodes.forget(Ino::ROOT, 100);
        assert!(inodes.get(Ino::ROOT).is_ok());
    }

    #[test]
    fn what_the_kernel_has_forgotten_takes_no_memory() {
        let inodes = Inodes::new(key("", 0), ());
        let numbers: Vec<_> = (0..100_000).map(|n| inodes.enter(key(&n.to_string(), 0), Arc::new(())).0).collect();
        numbers.iter().skip(10).for_each(|ino| inodes.forget(*ino, 1));
        let tables = read(&inodes.tables);
        assert_eq!((tables.nodes.len(), tables.numbers.len()), (11, 11));
        assert!(tables.nodes.capacity().max(tables.numbers.capacity()) < 10_000);
    }

    #[test]
    fn numbers_are_the_same_for_all_time() {
        let inodes = Inodes::new(key("", 0), ());
        assert_eq!(stable_hash(&[]), 0xF52A_15E9_A9B5_E89B);
        assert_eq!(stable_hash(&[b"a", b""]), 0xF10D_8135_3D1E_2B31);
        assert_ne!(stable_hash(&[b"", b"a"]), stable_hash(&[b"a", b""]));
        assert_eq!(inodes.number(&key("q/messages.jsonl", 17)), Ino(0x0006_F2A6_159C_9FDA));
    }
}
