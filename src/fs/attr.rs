//! What `stat` shows of a node, in our own types.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Stat};

/// The kinds of node that the mount shows. Sockets, FIFOs and devices below the root are not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    Symlink,
}

impl Kind {
    /// The kind of a backing file; None for kinds that are not shown.
    pub(crate) fn of(stat: &Stat) -> Option<Self> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Some(Self::Directory),
            FileType::RegularFile => Some(Self::File),
            FileType::Symlink => Some(Self::Symlink),
            _ => None,
        }
    }
}

/// Attributes, without the inode number, which the tree assigns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attr {
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    /// Permission bits, at most `0o7777`.
    pub(crate) mode: u16,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: SystemTime,
    pub(crate) ctime: SystemTime,
}

impl Attr {
    /// The attributes of a backing file, unchanged.
    pub(crate) fn of(stat: &Stat, kind: Kind) -> Self {
        Self {
            kind,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: mode_of(stat),
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// A virtual file: owner, group, times and the bits of `mask` from the backing file, size 0.
    pub(crate) fn file(stat: &Stat, mask: u16) -> Self {
        Self { size: 0, mode: mode_of(stat) & mask, nlink: 1, ..Self::of(stat, Kind::File) }
    }

    /// A marker. Write permission on its directory is enough to renew it, because that creates a new file. Reading it
    /// takes read permission on both.
    pub(crate) fn marker(stat: &Stat, directory: &Stat) -> Self {
        let readable = narrowed(directory, stat) & u32::from(READ);
        let mode = readable | directory.st_mode & u32::from(WRITE);
        let file = Self::of(stat, Kind::File);
        Self { mode: u16::try_from(mode).unwrap_or(0), nlink: 1, uid: directory.st_uid, gid: directory.st_gid, ..file }
    }

    /// A virtual directory with the permissions of a backing file: read permission grants search permission.
    pub(crate) fn directory(stat: &Stat) -> Self {
        let read = mode_of(stat) & READ;
        Self { kind: Kind::Directory, size: 0, mode: read | (read >> 2), nlink: 2, ..Self::of(stat, Kind::Directory) }
    }

    pub(crate) fn with_size(self, size: u64) -> Self {
        Self { size, ..self }
    }

    /// Modified at this many nanoseconds since the epoch; 0 keeps the existing time.
    pub(crate) fn modified_at(self, timestamp_ns: u64) -> Self {
        match timestamp_ns {
            0 => self,
            ns => Self { mtime: UNIX_EPOCH + Duration::from_nanos(ns), ..self },
        }
    }
}

/// The three read bits of a mode.
pub(crate) const READ: u16 = 0o444;
/// The three write bits of a mode.
pub(crate) const WRITE: u16 = 0o222;

/// A mode that grants access only to those who may read both the file and `other`, whose owner and group may differ.
/// Where a user's class in `other` can't be determined, the strictest class counts.
pub(crate) fn narrowed(file: &Stat, other: &Stat) -> u32 {
    let (same_owner, same_group) = (file.st_uid == other.st_uid, file.st_gid == other.st_gid);
    let [owner, group, others] = [6, 3, 0].map(|shift| other.st_mode >> shift & 7);
    let foreign_owner = if same_owner { 7 } else { owner };
    let for_owner = if same_owner { owner } else { group & others };
    let for_group = foreign_owner & if same_group { group } else { group & others };
    let for_others = foreign_owner & others & if same_group { 7 } else { group };
    file.st_mode & (!0o777 | for_owner << 6 | for_group << 3 | for_others)
}

fn mode_of(stat: &Stat) -> u16 {
    u16::try_from(stat.st_mode & 0o7777).unwrap_or(0)
}

fn time(seconds: i64, nanoseconds: u64) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let start = if seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
    start + Duration::from_nanos(nanoseconds)
}

/// How long the kernel may cache an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ttl {
    pub(crate) attr: Duration,
    pub(crate) entry: Duration,
}

impl Ttl {
    /// The default: attributes are fetched each time, a name may be cached for a second.
    pub(crate) const NAME: Ttl = Ttl { attr: Duration::ZERO, entry: Duration::from_secs(1) };
    /// For directories: the kernel checks permissions at every step of a path, and asks again once an answer has
    /// expired.
    pub(crate) const DIRECTORY: Ttl = Ttl { attr: Duration::from_secs(1), entry: Duration::from_secs(1) };
    /// For what never changes.
    pub(crate) const LONG: Ttl = Ttl { attr: Duration::from_secs(60), entry: Duration::from_secs(60) };
    /// For names that come and go.
    pub(crate) const NONE: Ttl = Ttl { attr: Duration::ZERO, entry: Duration::ZERO };
}
