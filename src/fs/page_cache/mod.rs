//! Rendered messages in the kernel's page cache: a private file system, which no other process can reach. Where
//! passthrough is permitted, the kernel reads `messages.*` from a file of this one, and caches what it has read.
//!
//! A growing file can't simply be cached. The kernel learns a new size before it learns that its last page is stale,
//! and readers in between see zeros. But a write(2) fills the pages first, and sets the size when all of them are
//! filled. So here files grow only by writes, whole units at a time; a read that reaches the end asks for the size
//! first (attributes are never cached), and before that is answered, the messages appended since are written.
//!
//! Invariants: except for the first, no reply states a size that the kernel did not get from a write; a read is
//! answered with all bytes up to the size that was last stated or is being written, so that the kernel never keeps a
//! page that is incomplete up to there; a gap that its bytes don't show (bin) ends a file.

pub(in crate::fs) mod client;
pub(in crate::fs) mod shared_view;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::str;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use fuser::{Config, KernelConfig, Session, SessionACL};

use crate::fs::attr::{Attr, Kind, Ttl};
use crate::fs::backing::Payer;
use crate::fs::daemon_log::{Asked, DaemonLog};
use crate::fs::errno::{Errno, Result};
use crate::fs::kernel::adapter::MAX_WRITE;
use crate::fs::kernel::device::Device;
use crate::fs::kernel::protocol::{ReadIn, Request, WriteIn, opcode};
use crate::fs::kernel::reply::Reply;
use crate::fs::kernel::serve::{Account, Server, Service};
use crate::fs::lock;
use crate::fs::page_cache::client::Clients;
use crate::fs::tree::inodes::Ino;
use crate::fs::tree::node::Entry;
use crate::sync::{AtomicU64, Ordering};

/// The content of a file of the page cache.
pub(crate) trait PageSource: Send + Sync {
    /// Writes everything appended by now to the file, and returns its size. May take long.
    fn grow(&self) -> Result<u64>;

    /// Appends its bytes from `offset` on to `out`, at most `size`: fewer only at the end.
    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<()>;

    /// The path of the queue that it shows.
    fn queue(&self) -> PathBuf;
}

/// The file system.
pub(crate) struct PageCache {
    clients: Arc<Clients>,
    texts: Arc<Texts>,
    next: AtomicU64,
}

/// A file of it. Dropping it frees the pages.
pub(crate) struct PageFile {
    cache: Arc<PageCache>,
    number: u64,
    payer: Payer,
    /// None: it is being closed.
    file: Option<File>,
}

type Texts = Mutex<HashMap<u64, Known>>;

/// What is known about a file.
#[derive(Clone)]
struct Known {
    text: Weak<dyn PageSource>,
    /// Its initial size.
    size: u64,
    payer: Payer,
}

impl PageCache {
    /// Mounts it, where that is permitted.
    pub(crate) fn start(log: &Arc<DaemonLog>) -> io::Result<Self> {
        let (clients, device) = Clients::start()?;
        let texts = Arc::new(Texts::default());
        let session = Session::from_fd(Handshake, device.try_clone()?, SessionACL::Owner, Config::default())?;
        // The session ends with the process.
        std::mem::forget(session);
        let files = Files { texts: Arc::clone(&texts) };
        let refused = {
            let (log, texts) = (Arc::clone(log), Arc::clone(&texts));
            // Only the kernel knows who reads.
            Box::new(move |asked: &Asked, errno| log.refused(asked, errno, || place(&texts, asked.ino)))
        };
        Server::start(&Arc::new(Device::new(device, refused)), files, MAX_WRITE as usize, 2)?;
        Ok(Self { clients, texts, next: AtomicU64::new(2) })
    }

    /// Creates a file for a text that has `size` bytes now.
    pub(crate) fn add(self: &Arc<Self>, text: Weak<dyn PageSource>, size: u64, payer: Payer) -> io::Result<PageFile> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.texts).insert(number, Known { text, size, payer });
        match self.clients.open(number) {
            Ok(file) => Ok(PageFile { cache: Arc::clone(self), number, payer, file: Some(file) }),
            Err(error) => {
                lock(&self.texts).remove(&number);
                Err(error)
            }
        }
    }
}

impl PageFile {
    /// Extends it by bytes that follow its end, atomically for readers, or, with room left before them, by that room
    /// too.
    pub(crate) fn write(&self, offset: u64, bytes: Vec<u8>) -> io::Result<()> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        self.cache.clients.write(self.payer, file, offset, bytes)
    }

    /// The file that the kernel can read itself.
    pub(crate) fn backing(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(File::as_fd)
    }
}

impl Drop for PageFile {
    fn drop(&mut self) {
        lock(&self.cache.texts).remove(&self.number);
        if let Some(file) = self.file.take() {
            self.cache.clients.close(file);
        }
    }
}

/// The path of a text, and that of its queue.
fn place(texts: &Texts, ino: Ino) -> (PathBuf, PathBuf) {
    let text = lock(texts).get(&ino.0).and_then(|known| known.text.upgrade());
    let queue = text.map_or_else(PathBuf::new, |text| text.queue());
    (queue.clone(), queue)
}

struct Handshake;

impl fuser::Filesystem for Handshake {
    fn init(&mut self, _request: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(MAX_WRITE);
        Ok(())
    }
}

struct Files {
    texts: Arc<Texts>,
}

impl Files {
    fn find(&self, number: u64) -> Result<(Arc<dyn PageSource>, u64)> {
        let Known { text, size, .. } = lock(&self.texts).get(&number).cloned().ok_or(Errno::ESTALE)?;
        Ok((text.upgrade().ok_or(Errno::ESTALE)?, size))
    }

    fn getattr(&self, number: u64) -> Result<Entry> {
        if Ino(number) == Ino::ROOT {
            let forever = Ttl { attr: Duration::MAX, entry: Duration::MAX };
            return Ok(entry(number, Kind::Directory, 0, forever));
        }
        let size = self.find(number)?.0.grow()?;
        Ok(entry(number, Kind::File, size, Ttl::NONE))
    }

    fn lookup(&self, request: &mut Request<'_>) -> Result<Entry> {
        let name = request.body.name().and_then(|name| str::from_utf8(name).ok());
        let number = name.and_then(|name| name.parse().ok()).unwrap_or(0);
        // Not cached: the file is removed when it is closed.
        Ok(entry(number, Kind::File, self.find(number)?.1, Ttl::NONE))
    }

    fn read(&self, request: &mut Request<'_>, reply: Reply) {
        let Some(ReadIn { offset, size, .. }) = request.body.take() else { return reply.error(Errno::EIO) };
        BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            let text = self.find(request.header.nodeid);
            let result = text.and_then(|(text, _)| text.read(offset, size as usize, buffer));
            reply.data(result.map(|()| buffer.as_slice()));
        });
    }
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn entry(number: u64, kind: Kind, size: u64, ttl: Ttl) -> Entry {
    let (mtime, ctime) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let attr = Attr { kind, size, mode: 0o700, nlink: 1, uid, gid, mtime, ctime };
    Entry { ino: Ino(number), shown: Ino(number), attr, ttl }
}

impl Service for Files {
    fn account(&self, request: &Request<'_>) -> Option<Account> {
        // A growing file is written to, and for that the kernel may have to read it.
        let is_read = match request.header.opcode {
            opcode::GETATTR => false,
            opcode::READ => true,
            _ => return None,
        };
        // An unknown file is answered at once.
        let payer = lock(&self.texts).get(&request.header.nodeid)?.payer;
        Some(Account { key: (payer.key() << 1) | u64::from(is_read), at_once: payer.at_once(), may_refuse: false })
    }

    fn serve(&self, mut request: Request<'_>, reply: Reply) {
        match request.header.opcode {
            opcode::LOOKUP => reply.entry(self.lookup(&mut request)),
            opcode::GETATTR => reply.attr(self.getattr(request.header.nodeid)),
            opcode::READ => self.read(&mut request, reply),
            // From our client thread. The kernel has cached the data; there is nothing to store, since it can be
            // rendered again.
            opcode::WRITE => {
                let size = request.body.take().map(|WriteIn { size, .. }| size as usize);
                reply.written(size.ok_or(Errno::EIO));
            }
            opcode::FORGET | opcode::BATCH_FORGET => reply.none(),
            opcode::RELEASE | opcode::RELEASEDIR => reply.empty(Ok(())),
            // After ENOSYS for open and flush the kernel never sends them again, and keeps the pages across opens.
            _ => reply.error(Errno::ENOSYS),
        }
    }

    fn interrupt(&self, _unique: u64, is_running: &dyn Fn() -> bool) -> bool {
        is_running()
    }

    fn ended(&self) {}
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::fs::kernel::need::{Need, require};

    const SIZE: usize = 100;

    /// A text that is read at once, or when it is released.
    struct Fake {
        began: Sender<()>,
        waits: Option<Mutex<Receiver<()>>>,
    }

    impl PageSource for Fake {
        fn grow(&self) -> Result<u64> {
            Ok(SIZE as u64)
        }

        fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<()> {
            let _ = self.began.send(());
            if let Some(waits) = &self.waits {
                let _ = lock(waits).recv();
            }
            let rest = usize::try_from(offset).map_or(0, |offset| SIZE.saturating_sub(offset));
            out.resize(out.len() + rest.min(size), b'x');
            Ok(())
        }

        fn queue(&self) -> PathBuf {
            PathBuf::new()
        }
    }

    #[test]
    fn texts_that_do_not_answer_hold_up_nobody_elses() {
        if !require(Need::Root) || !require(Need::Mount) {
            return;
        }
        let log = DaemonLog::new(std::path::Path::new("/mnt"), log::LevelFilter::Off);
        let cache = Arc::new(PageCache::start(&log).unwrap());
        let first_byte = |file: &PageFile| {
            let copy = File::from(file.backing().unwrap().try_clone_to_owned().unwrap());
            let mut byte = [0];
            copy.read_exact_at(&mut byte, 0).unwrap();
            byte[0]
        };
        let (began, has_begun) = channel();
        let add = |payer, waits: Option<Receiver<()>>| {
            let fake = Arc::new(Fake { began: began.clone(), waits: waits.map(Mutex::new) });
            let text: Weak<Fake> = Arc::downgrade(&fake);
            (cache.add(text, SIZE as u64, Payer::user(payer)).unwrap(), fake)
        };
        let count = Payer::user(1).at_once();
        let (let_go, waits): (Vec<_>, Vec<_>) = (0..count).map(|_| channel::<()>()).unzip();
        let stuck: Vec<_> = waits.into_iter().map(|waits| add(1, Some(waits))).collect();
        std::thread::scope(|scope| {
            // Dropped whatever happens: a process that waits for its own file system can't be killed.
            let let_go = let_go;
            for (file, _) in &stuck {
                scope.spawn(|| assert_eq!(first_byte(file), b'x'));
                has_begun.recv().unwrap();
                // The page is being read; the write waits for it.
                scope.spawn(|| file.write(SIZE as u64, b"more".to_vec()).unwrap());
            }
            while cache.clients.writing() < count {
                std::thread::yield_now();
            }
            let (other, _fake) = add(2, None);
            assert_eq!(first_byte(&other), b'x');
            other.write(SIZE as u64, b"more".to_vec()).unwrap();
            drop(let_go);
        });
        assert_eq!(cache.clients.writing(), 0);
    }
}
