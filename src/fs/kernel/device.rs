//! The FUSE device of one mount: requests are read from it, replies and notifications written to it.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno as Os;
use zerocopy::IntoBytes;

use crate::fs::daemon_log::Asked;
use crate::fs::errno::Errno;
use crate::fs::kernel::protocol::{self, NotifyInvalEntryOut, NotifyPollOut, OutHeader};
use crate::queue::close_backing;

/// Called for each request that is answered with an error, in the thread that answers it.
pub(in crate::fs) type Refused = dyn Fn(&Asked, Errno) + Send + Sync;

/// An open device.
pub(in crate::fs) struct Device {
    file: OwnedFd,
    refused: Box<Refused>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Device {
    pub(in crate::fs) fn new(file: OwnedFd, refused: Box<Refused>) -> Self {
        Self { file, refused }
    }

    /// Waits for a request, which is one read. None: the mount has ended.
    pub(in crate::fs) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::io::read(&self.file, &mut *buffer) {
                Ok(count) => return Ok(Some(count)),
                // The caller has gone before the request was read; a signal; nothing to read.
                Err(Os::NOENT | Os::INTR | Os::AGAIN) => {}
                Err(Os::NODEV) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Answers a request. Ignores that the caller may have gone.
    pub(in crate::fs) fn answer(&self, unique: u64, result: Result<&[&[u8]], Errno>) {
        let (error, parts) = match result {
            Ok(parts) => (0, parts),
            Err(errno) => (-errno.code(), &[][..]),
        };
        let _ = self.send(unique, error, parts);
    }

    /// Answers a request with an error, and has it logged.
    pub(in crate::fs) fn refuse(&self, unique: u64, asked: &Asked, errno: Errno) {
        // Logged first, so that a caller that has the answer finds it in the log.
        (self.refused)(asked, errno);
        self.answer(unique, Err(errno));
    }

    /// Tells the kernel to ask a polled file again.
    pub(in crate::fs) fn notify_poll(&self, kh: u64) {
        // A poll that has ended meanwhile is not an error.
        let _ = self.send(0, protocol::NOTIFY_POLL, &[NotifyPollOut { kh }.as_bytes()]);
    }

    /// Has the kernel forget a name, and its inode if that is not in use. Must not be called by a thread that serves
    /// requests: the kernel may wait for a request on that directory.
    pub(in crate::fs) fn forget_name(&self, parent: u64, name: &[u8]) {
        let Ok(name_len) = u32::try_from(name.len()) else { return };
        let out = NotifyInvalEntryOut { parent, name_len, flags: 0 };
        // Fails if the kernel does not know the name.
        let _ = self.send(0, protocol::NOTIFY_INVAL_ENTRY, &[out.as_bytes(), name, &[0]]);
    }

    fn send(&self, unique: u64, error: i32, parts: &[&[u8]]) -> io::Result<()> {
        let body: usize = parts.iter().map(|part| part.len()).sum();
        let len = u32::try_from(size_of::<OutHeader>() + body).map_err(io::Error::other)?;
        let header = OutHeader { len, error, unique };
        let empty = IoSlice::new(&[]);
        let mut slices = [IoSlice::new(header.as_bytes()), empty, empty, empty];
        for (slice, part) in slices[1..].iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        loop {
            match rustix::io::writev(&self.file, &slices[..=parts.len().min(3)]) {
                Err(Os::INTR) => {}
                done => return Ok(done.map(drop)?),
            }
        }
    }

    /// Lets the kernel read a file itself.
    pub(in crate::fs) fn open_backing(self: &Arc<Self>, file: BorrowedFd<'_>) -> io::Result<Backing> {
        let id = fuser::BackingId::create_raw(self.file.as_fd(), file)?;
        Ok(Backing { id: i32::try_from(id).map_err(io::Error::other)?, device: Arc::clone(self) })
    }
}

/// A file that the kernel may read itself, until this is dropped.
#[derive(Debug)]
pub(in crate::fs) struct Backing {
    pub(in crate::fs) id: i32,
    device: Arc<Device>,
}

impl Drop for Backing {
    fn drop(&mut self) {
        // Fails once the mount has ended, and the backing with it.
        let _ = close_backing(self.device.file.as_fd(), self.id.unsigned_abs());
    }
}
