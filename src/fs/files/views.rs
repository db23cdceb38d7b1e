//! `messages.*`: everything retained, as a regular file that grows.
//!
//! Invariant: the bytes at an offset never change while the file keeps its inode number. So the inode belongs to
//! the first retained segment: when retention takes that away, the name gets another inode with another view, and
//! handles of the old one go on with the old view. So it is too when what was shown before is found damaged.

use std::sync::{Arc, Mutex, OnceLock};

use super::times;
use crate::fs::attr::{Attr, READ};
use crate::fs::errno::{Errno, Result};
use crate::fs::handles::{Handle, Progress};
use crate::fs::nodes::{Access, Caller, File, Site};
use crate::fs::queues::{Generation, OpenQueue};
use crate::fs::{lock, patience};
use crate::queue::{Error, Position};
use crate::sync::{AtomicBool, AtomicU32, Ordering};
use crate::view::{Crossed, Format, View};

/// Messages that a serving thread may index for one request: a few milliseconds' worth.
const QUICK: usize = 20_000;
/// Views that keep their descriptors (two or three each) while nobody has their files open.
const MAX_WARM: u32 = 64;

/// A view and who uses it, shared between the handles of a file.
pub(crate) struct SharedView {
    view: View,
    /// Requests that index it at length; while there are any, serving threads keep away.
    indexing: AtomicU32,
    handles: AtomicU32,
    /// Damage has changed what it showed: the name is to get another one.
    spoilt: AtomicBool,
    /// Keeps descriptors and buffers open though no handle does; counted in `warm_views`.
    warm: AtomicBool,
    warm_views: Arc<AtomicU32>,
}

impl SharedView {
    pub(crate) fn new(view: View, warm_views: &Arc<AtomicU32>) -> Self {
        let (indexing, handles) = (AtomicU32::new(0), AtomicU32::new(0));
        let (spoilt, warm) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { view, indexing, handles, spoilt, warm, warm_views: Arc::clone(warm_views) }
    }

    pub(crate) fn is_spoilt(&self) -> bool {
        self.spoilt.load(Ordering::Relaxed)
    }

    /// Brings the index up to the head; [`Errno::LATER`] where that takes longer than this thread may be kept.
    fn catch_up(&self) -> Result<()> {
        if patience::is_patient() {
            self.indexing.fetch_add(1, Ordering::Relaxed);
            let result = self.view.index_some(usize::MAX);
            self.indexing.fetch_sub(1, Ordering::Relaxed);
            return Ok(result.map(|_| ())?);
        }
        if self.indexing.load(Ordering::Relaxed) > 0 || self.view.index_some(QUICK)? {
            return Err(Errno::LATER);
        }
        Ok(())
    }

    /// True size, and the time of the newest message in it.
    fn attr(&self, queue: &Arc<OpenQueue>) -> Result<Attr> {
        self.catch_up()?;
        if self.handles.load(Ordering::Relaxed) > 0 {
            // Who is told of a size may read that far, whatever retention does.
            self.view.pin();
        }
        queue.index_in_background();
        self.known_attr(queue)
    }

    /// What is known by now.
    fn known_attr(&self, queue: &OpenQueue) -> Result<Attr> {
        let (size, modified_ns) = (self.view.known_size(), self.view.modified_ns());
        self.rest();
        Ok(Attr::file(&queue.data_stat()?, READ).with_size(size).modified_at(modified_ns))
    }

    /// When no handle is open: keeps descriptors and buffers for the next question, if not too many views do.
    fn rest(&self) {
        if self.handles.load(Ordering::Relaxed) > 0 {
            return;
        }
        self.view.unpin();
        if self.warm.load(Ordering::Relaxed) {
            return;
        }
        if self.warm_views.load(Ordering::Relaxed) >= MAX_WARM {
            self.view.trim();
        } else if !self.warm.swap(true, Ordering::Relaxed) {
            self.warm_views.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for SharedView {
    fn drop(&mut self) {
        if self.warm.load(Ordering::Relaxed) {
            self.warm_views.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

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
    fn attr(&self) -> Result<Attr> {
        self.view()?.attr(&self.queue)
    }

    fn quick_attr(&self) -> Result<Attr> {
        self.view()?.known_attr(&self.queue)
    }

    fn open(&self, access: Access, _caller: Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        let (queue, format) = (Arc::clone(&self.queue), self.format);
        let renew = move || queue.view(format, queue.generation(format)?);
        Ok(Box::new(MessagesHandle::new(&self.view()?, renew)))
    }

    fn generation(&self) -> u64 {
        self.generation.number()
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
    fn attr(&self) -> Result<Attr> {
        self.view().attr(&self.queue)
    }

    fn quick_attr(&self) -> Result<Attr> {
        self.view().known_attr(&self.queue)
    }

    fn open(&self, access: Access, _caller: Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        let fresh = Self { queue: Arc::clone(&self.queue), view: OnceLock::new(), ..*self };
        Ok(Box::new(MessagesHandle::new(self.view(), move || Ok(fresh.make_view()))))
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
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::file(&self.queue.data_stat()?, READ))
    }

    fn open(&self, access: Access, _caller: Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        let queue = &self.queue.queue;
        let next_seq = queue.bounds()?.next_seq;
        let mut scanner = queue.scan()?;
        scanner.seek_seq(queue.reader_position(&self.reader)?)?;
        let view = View::since(queue, self.format, scanner.position(), scanner.seq()).until(next_seq);
        // Nobody has seen anything of it yet: what is damaged shows as a gap.
        Ok(Box::new(MessagesHandle::new(&Arc::new(self.queue.share(view)), || Err(Errno::EIO))))
    }

    fn generation(&self) -> u64 {
        self.queue.identity
    }

    fn is_current(&self) -> bool {
        self.queue.is_current()
    }
}

/// Counted among the handles of a view as long as it lives.
struct Held(Arc<SharedView>);

impl Held {
    fn new(shared: Arc<SharedView>) -> Self {
        shared.handles.fetch_add(1, Ordering::Relaxed);
        shared.view.pin();
        Self(shared)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.handles.fetch_sub(1, Ordering::Relaxed);
        self.0.rest();
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
    fn new(shared: &Arc<SharedView>, renew: impl Fn() -> Result<Arc<SharedView>> + Send + Sync + 'static) -> Self {
        Self {
            held: Held::new(Arc::clone(shared)),
            renewed: OnceLock::new(),
            renew: Box::new(renew),
            has_read: AtomicBool::new(false),
            reported: Mutex::new(None),
        }
    }

    fn shared(&self) -> &SharedView {
        &self.renewed.get().unwrap_or(&self.held).0
    }

    fn read_view(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Option<Crossed>> {
        let shared = self.shared();
        let end = offset.saturating_add(u64::try_from(size).unwrap_or(u64::MAX));
        if end > shared.view.known_size() {
            shared.catch_up()?;
            shared.view.pin();
        }
        shared.view.read_at(offset, size, out).map_err(|error| match error {
            // Retention took it away: this file is no longer what its name stands for.
            Error::NoSuchPosition { .. } => Errno::ESTALE,
            error => {
                let damaged = matches!(error, Error::Damaged { .. });
                shared.spoilt.fetch_or(damaged, Ordering::Relaxed);
                error.into()
            }
        })
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
                let _ = self.renewed.set(Held::new((self.renew)()?));
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
}
