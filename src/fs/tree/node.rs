//! What inode numbers stand for, and what the kernel is told about it.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use crate::fs::attr::{Attr, Kind, Ttl};
use crate::fs::backing::FileId;
use crate::fs::nodes::DirKind;
use crate::fs::site::File;
use crate::fs::tree::inodes::Ino;

/// What an inode number stands for.
pub(crate) enum Node {
    Directory(DirectoryNode),
    File(FileNode),
}

impl Node {
    /// The path of the backing directory, below the root.
    pub(in crate::fs) fn relative(&self) -> &Path {
        match self {
            Self::Directory(node) => &node.relative,
            Self::File(node) => &node.relative,
        }
    }
}

/// A file, and the backing directory that it lies in.
#[derive(Clone)]
pub(crate) struct FileNode {
    pub(in crate::fs) file: Arc<dyn File>,
    pub(in crate::fs) relative: Arc<Path>,
    pub(in crate::fs) id: FileId,
}

impl FileNode {
    pub(in crate::fs) fn new(directory: &DirectoryNode, file: Arc<dyn File>) -> Self {
        Self { file, relative: Arc::clone(&directory.relative), id: directory.id }
    }
}

/// A directory: where it is, not what is in it.
#[derive(Clone)]
pub(crate) struct DirectoryNode {
    pub(in crate::fs) kind: DirectoryOrigin,
    /// Path of the backing directory below the root.
    pub(in crate::fs) relative: Arc<Path>,
    /// The backing directory.
    pub(in crate::fs) id: FileId,
}

#[derive(Clone)]
pub(crate) enum DirectoryOrigin {
    /// The backing directory itself.
    Backing,
    /// One that exists only in the mount, in the backing directory or in another such directory.
    Virtual {
        place: DirKind,
        /// Its subject: a reader's name, a place to read from.
        subject: Option<Arc<str>>,
        /// Its path below the backing directory.
        path: Arc<Path>,
    },
}

/// A node that was looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    /// The number that the kernel uses in requests.
    pub(crate) ino: Ino,
    /// The number that programs see.
    pub(crate) shown: Ino,
    pub(crate) attr: Attr,
    pub(crate) ttl: Ttl,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) name: OsString,
    pub(crate) ino: Ino,
    pub(crate) kind: Kind,
}
