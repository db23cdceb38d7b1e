//! Answers to the kernel, in its structures.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zerocopy::IntoBytes;

use crate::fs::attr::{Attr, Kind};
use crate::fs::daemon_log::Asked;
use crate::fs::errno::{Errno, Result};
use crate::fs::kernel::device::Device;
use crate::fs::kernel::protocol::{
    AttrBlock, AttrOut, CreateIn, CreateOut, Dirent, EntryOut, MkdirIn, OpenOut, PollOut, Request, StatfsOut, WriteOut,
    opcode,
};
use crate::fs::tree::inodes::Ino;
use crate::fs::tree::node::{Entry, Item};

/// The pending answer to a request. If it is dropped unanswered, as by a handler that panics, it answers EIO.
#[derive(Debug)]
pub(in crate::fs) struct Reply {
    device: Arc<Device>,
    unique: u64,
    /// For the log.
    asked: Asked,
    is_given: bool,
}

impl Reply {
    pub(in crate::fs) fn new(device: &Arc<Device>, request: &Request<'_>) -> Self {
        Self { device: Arc::clone(device), unique: request.header.unique, asked: asked(request), is_given: false }
    }

    pub(in crate::fs) fn unique(&self) -> u64 {
        self.unique
    }

    pub(in crate::fs) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    fn give(mut self, parts: &[&[u8]]) {
        self.is_given = true;
        self.device.answer(self.unique, Ok(parts));
    }

    pub(in crate::fs) fn error(mut self, errno: Errno) {
        self.is_given = true;
        self.device.refuse(self.unique, &self.asked, errno);
    }

    /// For requests that expect no answer.
    pub(in crate::fs) fn none(mut self) {
        self.is_given = true;
    }

    /// Success without data, or an error.
    pub(in crate::fs) fn empty(self, result: Result<()>) {
        match result {
            Ok(()) => self.give(&[]),
            Err(errno) => self.error(errno),
        }
    }

    pub(in crate::fs) fn data(self, result: Result<&[u8]>) {
        match result {
            Ok(data) => self.give(&[data]),
            Err(errno) => self.error(errno),
        }
    }

    pub(in crate::fs) fn entry(self, result: Result<Entry>) {
        match result {
            Ok(entry) => self.give(&[entry_out(&entry).as_bytes()]),
            Err(errno) => self.error(errno),
        }
    }

    pub(in crate::fs) fn attr(self, result: Result<Entry>) {
        match result {
            Ok(entry) => {
                let (attr_valid, attr_valid_ns) = valid(entry.ttl.attr);
                let attr = attr_block(entry.shown, &entry.attr);
                self.give(&[AttrOut { attr_valid, attr_valid_ns, padding: 0, attr }.as_bytes()]);
            }
            Err(errno) => self.error(errno),
        }
    }

    pub(in crate::fs) fn opened(self, fh: u64, open_flags: u32, backing_id: i32) {
        self.give(&[OpenOut { fh, open_flags, backing_id }.as_bytes()]);
    }

    pub(in crate::fs) fn created(self, entry: &Entry, fh: u64, open_flags: u32) {
        let open = OpenOut { fh, open_flags, backing_id: 0 };
        self.give(&[CreateOut { entry: entry_out(entry), open }.as_bytes()]);
    }

    pub(in crate::fs) fn written(self, result: Result<usize>) {
        match result {
            // The kernel sends less than 4 GiB at a time, so `taken` is less too.
            Ok(taken) => {
                let size = u32::try_from(taken).unwrap_or(u32::MAX);
                self.give(&[WriteOut { size, padding: 0 }.as_bytes()]);
            }
            Err(errno) => self.error(errno),
        }
    }

    pub(in crate::fs) fn polled(self, revents: u32) {
        self.give(&[PollOut { revents, padding: 0 }.as_bytes()]);
    }

    pub(in crate::fs) fn statfs(self, result: Result<rustix::fs::StatVfs>) {
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        match result {
            Ok(s) => {
                let out = StatfsOut {
                    blocks: s.f_blocks,
                    bfree: s.f_bfree,
                    bavail: s.f_bavail,
                    files: s.f_files,
                    ffree: s.f_ffree,
                    bsize: small(s.f_bsize),
                    namelen: small(s.f_namemax),
                    frsize: small(s.f_frsize),
                    ..StatfsOut::default()
                };
                self.give(&[out.as_bytes()]);
            }
            Err(errno) => self.error(errno),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.is_given {
            self.device.refuse(self.unique, &self.asked, Errno::EIO);
        }
    }
}

fn asked(request: &Request<'_>) -> Asked {
    let Request { header, mut body } = *request;
    match header.opcode {
        opcode::MKDIR => drop(body.take::<MkdirIn>()),
        opcode::CREATE => drop(body.take::<CreateIn>()),
        _ => {}
    }
    let name = match header.opcode {
        opcode::LOOKUP | opcode::MKDIR | opcode::CREATE | opcode::UNLINK | opcode::RMDIR => body.name(),
        _ => None,
    };
    let (op, ino) = (opcode::word(header.opcode), Ino(header.nodeid));
    Asked { op, ino, name: name.unwrap_or_default().into(), uid: header.uid, pid: header.pid }
}

/// The lines of a listing, as many as the kernel has room for.
pub(in crate::fs) struct Lines<'a> {
    out: &'a mut Vec<u8>,
    room: usize,
}

impl<'a> Lines<'a> {
    pub(in crate::fs) fn new(out: &'a mut Vec<u8>, room: usize) -> Self {
        out.clear();
        Self { out, room }
    }

    /// Adds a line, if there is room for it.
    pub(in crate::fs) fn add(&mut self, item: &Item, next: u64) -> bool {
        self.push(&[], item.ino.0, item.kind, &item.name, next)
    }

    /// As [`Self::add`], with the result of a lookup of the name.
    pub(in crate::fs) fn add_entry(&mut self, name: &OsStr, entry: &Entry, next: u64) -> bool {
        self.push(entry_out(entry).as_bytes(), entry.shown.0, entry.attr.kind, name, next)
    }

    fn push(&mut self, before: &[u8], ino: u64, kind: Kind, name: &OsStr, offset: u64) -> bool {
        let name = name.as_bytes();
        let len = (before.len() + size_of::<Dirent>() + name.len()).next_multiple_of(8);
        let Ok(name_len) = u32::try_from(name.len()) else { return false };
        if self.out.len() + len > self.room {
            return false;
        }
        let end = self.out.len() + len;
        self.out.extend_from_slice(before);
        // As in d_type: the format bits of the mode.
        let kind = format_bits(kind) >> 12;
        self.out.extend_from_slice(Dirent { ino, offset, name_len, kind }.as_bytes());
        self.out.extend_from_slice(name);
        self.out.resize(end, 0);
        true
    }
}

fn format_bits(kind: Kind) -> u32 {
    match kind {
        Kind::Directory => libc::S_IFDIR,
        Kind::File => libc::S_IFREG,
        Kind::Symlink => libc::S_IFLNK,
    }
}

fn valid(ttl: Duration) -> (u64, u32) {
    (ttl.as_secs(), ttl.subsec_nanos())
}

/// Seconds and nanoseconds since the epoch; nanoseconds count forwards before it too.
fn parts(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(error) => {
            let before = error.duration();
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => (-seconds, 0),
                ns => (-seconds - 1, 1_000_000_000 - ns),
            }
        }
    }
}

fn attr_block(shown: Ino, attr: &Attr) -> AttrBlock {
    let ((mtime, mtime_ns), (ctime, ctime_ns)) = (parts(attr.mtime), parts(attr.ctime));
    AttrBlock {
        ino: shown.0,
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime,
        atime_ns: mtime_ns,
        mtime_ns,
        ctime_ns,
        mode: format_bits(attr.kind) | u32::from(attr.mode),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn entry_out(entry: &Entry) -> EntryOut {
    let ((entry_valid, entry_valid_ns), (attr_valid, attr_valid_ns)) = (valid(entry.ttl.entry), valid(entry.ttl.attr));
    let attr = attr_block(entry.shown, &entry.attr);
    EntryOut { nodeid: entry.ino.0, generation: 0, entry_valid, attr_valid, entry_valid_ns, attr_valid_ns, attr }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_count_forwards() {
        assert_eq!(parts(UNIX_EPOCH + Duration::new(3, 7)), (3, 7));
        assert_eq!(parts(UNIX_EPOCH - Duration::new(3, 0)), (-3, 0));
        assert_eq!(parts(UNIX_EPOCH - Duration::new(3, 1)), (-4, 999_999_999));
    }

    #[test]
    fn a_listing_takes_what_there_is_room_for() {
        let item = |name: &str| Item { name: name.into(), ino: Ino(7), kind: Kind::File };
        let mut out = vec![1, 2, 3];
        let mut lines = Lines::new(&mut out, 64);
        assert!(lines.add(&item("12345678"), 1));
        assert!(lines.add(&item("1"), 2));
        assert!(!lines.add(&item(""), 3));
        assert_eq!(out.len(), 64);
        assert_eq!(out[24..32], *b"12345678");
    }
}
