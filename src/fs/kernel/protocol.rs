//! The structures of the FUSE protocol that are used here, as in linux/fuse.h (7.31 and later). Structures are taken
//! from the front of a request's bytes, and a request that is too short for its opcode is refused.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a request asks for.
pub(in crate::fs) mod opcode {
    pub(in crate::fs) const LOOKUP: u32 = 1;
    pub(in crate::fs) const FORGET: u32 = 2;
    pub(in crate::fs) const GETATTR: u32 = 3;
    pub(in crate::fs) const SETATTR: u32 = 4;
    pub(in crate::fs) const READLINK: u32 = 5;
    pub(in crate::fs) const SYMLINK: u32 = 6;
    pub(in crate::fs) const MKNOD: u32 = 8;
    pub(in crate::fs) const MKDIR: u32 = 9;
    pub(in crate::fs) const UNLINK: u32 = 10;
    pub(in crate::fs) const RMDIR: u32 = 11;
    pub(in crate::fs) const RENAME: u32 = 12;
    pub(in crate::fs) const LINK: u32 = 13;
    pub(in crate::fs) const OPEN: u32 = 14;
    pub(in crate::fs) const READ: u32 = 15;
    pub(in crate::fs) const WRITE: u32 = 16;
    pub(in crate::fs) const STATFS: u32 = 17;
    pub(in crate::fs) const RELEASE: u32 = 18;
    pub(in crate::fs) const FSYNC: u32 = 20;
    pub(in crate::fs) const SETXATTR: u32 = 21;
    pub(in crate::fs) const REMOVEXATTR: u32 = 24;
    pub(in crate::fs) const FLUSH: u32 = 25;
    pub(in crate::fs) const OPENDIR: u32 = 27;
    pub(in crate::fs) const READDIR: u32 = 28;
    pub(in crate::fs) const RELEASEDIR: u32 = 29;
    pub(in crate::fs) const FSYNCDIR: u32 = 30;
    pub(in crate::fs) const CREATE: u32 = 35;
    pub(in crate::fs) const INTERRUPT: u32 = 36;
    pub(in crate::fs) const DESTROY: u32 = 38;
    pub(in crate::fs) const IOCTL: u32 = 39;
    pub(in crate::fs) const POLL: u32 = 40;
    pub(in crate::fs) const NOTIFY_REPLY: u32 = 41;
    pub(in crate::fs) const BATCH_FORGET: u32 = 42;
    pub(in crate::fs) const FALLOCATE: u32 = 43;
    pub(in crate::fs) const READDIRPLUS: u32 = 44;
    pub(in crate::fs) const RENAME2: u32 = 45;

    /// The name of an operation in the log.
    pub(in crate::fs) fn word(opcode: u32) -> &'static str {
        match opcode {
            LOOKUP => "lookup",
            GETATTR => "getattr",
            SETATTR => "setattr",
            READLINK => "readlink",
            MKDIR => "mkdir",
            UNLINK => "unlink",
            RMDIR => "rmdir",
            OPEN => "open",
            READ => "read",
            WRITE => "write",
            STATFS => "statfs",
            RELEASE => "release",
            FSYNC => "fsync",
            FLUSH => "flush",
            OPENDIR => "opendir",
            READDIR | READDIRPLUS => "readdir",
            CREATE => "create",
            POLL => "poll",
            SYMLINK | MKNOD | RENAME | RENAME2 | LINK | FALLOCATE | SETXATTR | REMOVEXATTR | IOCTL => "other",
            _ => "unknown",
        }
    }
}

/// Notification codes: a polled file may be ready; a name must be forgotten.
pub(in crate::fs) const NOTIFY_POLL: i32 = 1;
pub(in crate::fs) const NOTIFY_INVAL_ENTRY: i32 = 3;
/// In a poll request: the kernel wants to be notified.
pub(in crate::fs) const POLL_SCHEDULE_NOTIFY: u32 = 1;
/// In [`ReadIn`]: a lock owner is set, as for read(2).
pub(in crate::fs) const READ_LOCKOWNER: u32 = 1 << 1;
/// Likewise in [`WriteIn`].
pub(in crate::fs) const WRITE_LOCKOWNER: u32 = 1 << 1;

/// How the kernel is to treat an open file.
pub(in crate::fs) mod fopen {
    pub(in crate::fs) const DIRECT_IO: u32 = 1;
    pub(in crate::fs) const KEEP_CACHE: u32 = 1 << 1;
    pub(in crate::fs) const NOFLUSH: u32 = 1 << 5;
    pub(in crate::fs) const PASSTHROUGH: u32 = 1 << 7;
}

/// What a SETATTR request changes.
pub(in crate::fs) mod fattr {
    pub(in crate::fs) const MODE: u32 = 1;
    pub(in crate::fs) const UID: u32 = 1 << 1;
    pub(in crate::fs) const GID: u32 = 1 << 2;
    pub(in crate::fs) const SIZE: u32 = 1 << 3;
    pub(in crate::fs) const ATIME: u32 = 1 << 4;
    pub(in crate::fs) const MTIME: u32 = 1 << 5;
    pub(in crate::fs) const FH: u32 = 1 << 6;
    pub(in crate::fs) const ATIME_NOW: u32 = 1 << 7;
    pub(in crate::fs) const MTIME_NOW: u32 = 1 << 8;
}

macro_rules! incoming {
    ($($(#[$about:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {
        $($(#[$about])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
        pub(in crate::fs) struct $name { $(pub(in crate::fs) $field: $type,)* })*
    };
}

macro_rules! outgoing {
    ($($(#[$about:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {
        $($(#[$about])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, IntoBytes, KnownLayout, Immutable)]
        pub(in crate::fs) struct $name { $(pub(in crate::fs) $field: $type,)* })*
    };
}

incoming! {
    /// Header of every request.
    InHeader {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, extensions: u16, padding: u16,
    }
    ForgetIn { lookups: u64, }
    ForgetOne { nodeid: u64, lookups: u64, }
    BatchForgetIn { count: u32, padding: u32, }
    InterruptIn { unique: u64, }
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: i64, mtime: i64, ctime: i64,
        atime_ns: u32, mtime_ns: u32, ctime_ns: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    MkdirIn { mode: u32, umask: u32, }
    OpenIn { flags: i32, open_flags: u32, }
    CreateIn { flags: i32, mode: u32, umask: u32, open_flags: u32, }
    ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: i32, padding: u32, }
    WriteIn { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: i32, padding: u32, }
    /// RELEASE and RELEASEDIR.
    ReleaseIn { fh: u64, flags: i32, release_flags: u32, lock_owner: u64, }
    FlushIn { fh: u64, unused: u32, padding: u32, lock_owner: u64, }
    FsyncIn { fh: u64, flags: u32, padding: u32, }
    PollIn { fh: u64, kh: u64, flags: u32, events: u32, }
}

outgoing! {
    /// Header of every reply and notification.
    OutHeader { len: u32, error: i32, unique: u64, }
    AttrBlock {
        ino: u64, size: u64, blocks: u64, atime: i64, mtime: i64, ctime: i64, atime_ns: u32, mtime_ns: u32,
        ctime_ns: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_ns: u32, attr_valid_ns: u32,
        attr: AttrBlock,
    }
    AttrOut { attr_valid: u64, attr_valid_ns: u32, padding: u32, attr: AttrBlock, }
    OpenOut { fh: u64, open_flags: u32, backing_id: i32, }
    CreateOut { entry: EntryOut, open: OpenOut, }
    WriteOut { size: u32, padding: u32, }
    StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    PollOut { revents: u32, padding: u32, }
    NotifyPollOut { kh: u64, }
    NotifyInvalEntryOut { parent: u64, name_len: u32, flags: u32, }
    Dirent { ino: u64, offset: u64, name_len: u32, kind: u32, }
}

/// The rest of a request, to be taken piece by piece.
#[derive(Debug, Clone, Copy)]
pub(in crate::fs) struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    pub(in crate::fs) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The structure at the front; None where there are fewer bytes.
    pub(in crate::fs) fn take<T: FromBytes + Copy>(&mut self) -> Option<T> {
        let (value, rest) = T::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(value)
    }

    /// The name at the front, which a NUL byte ends.
    pub(in crate::fs) fn name(&mut self) -> Option<&'a [u8]> {
        let end = memchr::memchr(0, self.0)?;
        let name = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Some(name)
    }

    /// Exactly this many bytes from the front.
    pub(in crate::fs) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }
}

/// A request as it came from the device.
#[derive(Debug, Clone, Copy)]
pub(in crate::fs) struct Request<'a> {
    pub(in crate::fs) header: InHeader,
    pub(in crate::fs) body: Body<'a>,
}

impl<'a> Request<'a> {
    /// None where the bytes are not a request: their number is not the length in the header.
    pub(in crate::fs) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, body) = InHeader::read_from_prefix(bytes).ok()?;
        let is_whole = usize::try_from(header.len).is_ok_and(|len| len == bytes.len());
        is_whole.then_some(Self { header, body: Body::new(body) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_protocol() {
        let sizes = [
            (size_of::<InHeader>(), 40),
            (size_of::<SetattrIn>(), 88),
            (size_of::<ReadIn>(), 40),
            (size_of::<WriteIn>(), 40),
            (size_of::<ReleaseIn>(), 24),
            (size_of::<FlushIn>(), 24),
            (size_of::<PollIn>(), 24),
            (size_of::<OutHeader>(), 16),
            (size_of::<AttrBlock>(), 88),
            (size_of::<EntryOut>(), 128),
            (size_of::<AttrOut>(), 104),
            (size_of::<OpenOut>(), 16),
            (size_of::<StatfsOut>(), 80),
            (size_of::<Dirent>(), 24),
        ];
        for (index, (size, expected)) in sizes.into_iter().enumerate() {
            assert_eq!(size, expected, "structure {index}");
        }
    }

    #[test]
    fn requests_that_are_too_short_are_refused() {
        let mut bytes = vec![0_u8; 44];
        bytes[0] = 44;
        assert!(Request::parse(&bytes[..39]).is_none());
        assert!(Request::parse(&bytes[..43]).is_none(), "its header says that it is longer");
        let mut request = Request::parse(&bytes).unwrap();
        assert!(request.body.take::<ReadIn>().is_none());
        assert_eq!(request.body.name(), Some(&b""[..]));
        assert_eq!(request.body.bytes(4), None);
        assert_eq!(request.body.bytes(3), Some(&[0; 3][..]));
        assert_eq!(request.body.name(), None, "no end");
    }
}
