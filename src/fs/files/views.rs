//! `messages.*`: everything retained, as a regular file that grows.
//!
//! Invariant: the bytes at an offset never change while the file keeps its inode number. So the inode belongs to
//! the first retained segment: when retention takes that away, the name gets another inode with another view, and
//! handles of the old one go on with the old view. So it is too when what was shown before is found damaged.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, OnceLock};

use super::times;
use crate::fs::attr::{Attr, READ, Ttl};
use crate::fs::errno::{Errno, Result};
use crate::fs::handles::{Handle, Progress};
use crate::fs::lock;
use crate::fs::nodes::{Access, Caller, File, Site};
use crate::fs::queues::{Generation, OpenQueue};
use crate::fs::text::{Held, SharedView};
use crate::queue::Position;
use crate::sync::{AtomicBool, Ordering};
use crate::view::{Crossed, Format, View};

struct Messages {
    queue: Arc<OpenQueue>,
    format: Format,
    generation: Generation,
    view: OnceLock<Arc<SharedView>>,
}

/// Row constructor.
pub(crate) fn messages(site: &Site, format: Format) -> Result<Arc<dyn File>> {
    let queue = Arc::clone(site.queue()?);
    let generation = queue.generation(format)?;
    Ok(Arc::new(Messages { queue, format, generation, view: OnceLock::new() }))
}

impl Messages {
    fn view(&self) -> Result<Arc<SharedView>> {
        if let Some(view) = self.view.get() {
            return Ok(Arc::clone(view));
        }
        let view = self.queue.view(self.format, self.generation)?;
        Ok(Arc::clone(self.view.get_or_init(|| view)))
    }
}

impl File for Messages {
    fn messages_of(&self) -> Option<&OpenQueue> {
        Some(&self.queue)
    }

    fn attr(&self) -> Result<Attr> {
        self.view()?.attr(&self.queue)
    }

    fn ttl(&self) -> Ttl {
        // The name stands for another file as soon as retention has taken the beginning of this one.
        Ttl::NONE
    }

    fn quick_attr(&self) -> Result<Attr> {
        self.view()?.known_attr(&self.queue)
    }

    fn open(&self, access: Access, _caller: &Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        let (queue, format) = (Arc::clone(&self.queue), self.format);
        let renew = move || queue.view(format, queue.generation(format)?);
        let held = Held::through_pages(&self.view()?, &self.queue).map_err(|error| match renew() {
            // Not even a gap: nothing is left that could be read.
            Ok(view) if error == Errno::ESTALE && view.catch_up().is_ok() && view.known_size() == 0 => Errno::EIO,
            _ => error,
        })?;
        Ok(Box::new(MessagesHandle::new(held, renew)))
    }

    fn generation(&self) -> u64 {
        self.generation.number(self.queue.identity)
    }

    fn is_current(&self) -> bool {
        self.queue.is_current() && self.queue.generation(self.format) == Ok(self.generation)
    }
}

/// What is there from a place on. It is as large as it is and grows; the place stays what it was at lookup.
struct Since {
    queue: Arc<OpenQueue>,
    format: Format,
    position: Position,
    seq: u64,
    view: OnceLock<Arc<SharedView>>,
}

/// Row constructor, below `since/`.
pub(crate) fn since(site: &Site, format: Format) -> Result<Arc<dyn File>> {
    let queue = Arc::clone(site.queue()?);
    let mut scanner = queue.queue.scan()?;
    times::seek(&queue, &mut scanner, &site.subject()?)?;
    let (position, seq) = (scanner.position(), scanner.seq());
    Ok(Arc::new(Since { queue, format, position, seq, view: OnceLock::new() }))
}

impl Since {
    fn view(&self) -> &Arc<SharedView> {
        self.view.get_or_init(|| self.make_view())
    }

    fn make_view(&self) -> Arc<SharedView> {
        Arc::new(self.queue.share(View::since(&self.queue.queue, self.format, self.position, self.seq)))
    }
}

impl File for Since {
    fn messages_of(&self) -> Option<&OpenQueue> {
        Some(&self.queue)
    }

    fn attr(&self) -> Result<Attr> {
        self.view().attr(&self.queue)
    }

    fn quick_attr(&self) -> Result<Attr> {
        self.view().known_attr(&self.queue)
    }

    fn open(&self, access: Access, _caller: &Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        let fresh = Self { queue: Arc::clone(&self.queue), view: OnceLock::new(), ..*self };
        Ok(Box::new(MessagesHandle::new(Held::new(self.view()), move || Ok(fresh.make_view()))))
    }

    fn generation(&self) -> u64 {
        self.queue.identity.rotate_left(1) ^ self.seq
    }

    fn is_current(&self) -> bool {
        self.queue.is_current()
    }
}

/// What a reader has not consumed: from its position to the head, both as of open. A stream in that its size is not
/// told beforehand.
struct Pending {
    queue: Arc<OpenQueue>,
    reader: Arc<str>,
    format: Format,
}

/// Row constructor, in a reader's directory.
pub(crate) fn pending(site: &Site, format: Format) -> Result<Arc<dyn File>> {
    Ok(Arc::new(Pending { queue: Arc::clone(site.queue()?), reader: site.subject()?, format }))
}

impl File for Pending {
    fn messages_of(&self) -> Option<&OpenQueue> {
        Some(&self.queue)
    }

    fn attr(&self) -> Result<Attr> {
        Ok(Attr::file(&self.queue.data_stat()?, READ))
    }

    fn open(&self, access: Access, _caller: &Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        let queue = &self.queue.queue;
        let next_seq = queue.bounds()?.next_seq;
        let mut scanner = queue.scan()?;
        scanner.seek_seq(queue.reader_position(&self.reader)?)?;
        let view = View::since(queue, self.format, scanner.position(), scanner.seq()).until(next_seq);
        // Nobody has seen anything of it yet: what is damaged shows as a gap.
        Ok(Box::new(MessagesHandle::new(Held::new(&Arc::new(self.queue.share(view))), || Err(Errno::EIO))))
    }

    fn generation(&self) -> u64 {
        self.queue.identity
    }

    fn is_current(&self) -> bool {
        self.queue.is_current()
    }
}

type Renew = Box<dyn Fn() -> Result<Arc<SharedView>> + Send + Sync>;

struct MessagesHandle {
    held: Held,
    /// What the name stands for since damage was found in what others had seen: for a handle that had seen nothing.
    renewed: OnceLock<Held>,
    renew: Renew,
    has_read: AtomicBool,
    /// Where the last gap was that a read of the bin format has failed at.
    reported: Mutex<Option<u64>>,
}

impl MessagesHandle {
    fn new(held: Held, renew: impl Fn() -> Result<Arc<SharedView>> + Send + Sync + 'static) -> Self {
        Self {
            held,
            renewed: OnceLock::new(),
            renew: Box::new(renew),
            has_read: AtomicBool::new(false),
            reported: Mutex::new(None),
        }
    }

    fn shared(&self) -> &SharedView {
        self.renewed.get().unwrap_or(&self.held).view()
    }

    fn read_view(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Option<Crossed>> {
        let shared = self.shared();
        let end = offset.saturating_add(u64::try_from(size).unwrap_or(u64::MAX));
        if end > shared.known_size() {
            shared.catch_up()?;
            shared.pin();
        }
        shared.read_at(offset, size, out)
    }

    /// Cuts a read of the bin format short before a gap, which its bytes don't show. A read that starts at one fails
    /// once, then gives a byte, so that what the next one crosses shows too.
    fn stop_at_gap(&self, crossed: Option<Crossed>, offset: u64, out: &mut Vec<u8>, start: usize) -> Result<()> {
        let Some(Crossed { offset: gap, .. }) = crossed else { return Ok(()) };
        if gap > offset {
            let before = usize::try_from(gap - offset).map_err(|_| Errno::EIO)?;
            out.truncate(start + before);
            return Ok(());
        }
        let mut reported = lock(&self.reported);
        if *reported == Some(gap) {
            out.truncate(start + 1);
            return Ok(());
        }
        *reported = Some(gap);
        out.truncate(start);
        Err(Errno::EIO)
    }
}

impl Handle for MessagesHandle {
    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        let start = out.len();
        let is_first = offset == 0 && !self.has_read.load(Ordering::Relaxed);
        let crossed = match self.read_view(offset, size, out) {
            Err(Errno::EIO) if is_first && self.shared().is_spoilt() => {
                let _ = self.renewed.set(Held::new(&(self.renew)()?));
                let crossed = self.read_view(offset, size, out)?;
                if out.len() == start && crossed.is_none() {
                    // Not even a gap: nothing is left that could be read.
                    return Err(Errno::EIO);
                }
                crossed
            }
            result => result?,
        };
        self.has_read.store(true, Ordering::Relaxed);
        self.stop_at_gap(crossed, offset, out, start)?;
        Ok(Progress::Done)
    }

    fn backing(&self) -> Option<BorrowedFd<'_>> {
        self.held.pages()
    }
}
