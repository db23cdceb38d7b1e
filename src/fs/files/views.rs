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
        Ok(Box::new(MessagesHandle::new(&self.view()?)))
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
        self.view.get_or_init(|| {
            let view = View::since(&self.queue.queue, self.format, self.position, self.seq);
            Arc::new(self.queue.share(view))
        })
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
        Ok(Box::new(MessagesHandle::new(self.view())))
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
        Ok(Box::new(MessagesHandle::new(&Arc::new(self.queue.share(view)))))
    }

    fn generation(&self) -> u64 {
        self.queue.identity
    }

    fn is_current(&self) -> bool {
        self.queue.is_current()
    }
}

struct MessagesHandle {
    shared: Arc<SharedView>,
    /// Where the last gap was that a read of the bin format has failed at.
    reported: Mutex<Option<u64>>,
}

impl MessagesHandle {
    fn new(shared: &Arc<SharedView>) -> Self {
        shared.handles.fetch_add(1, Ordering::Relaxed);
        shared.view.pin();
        Self { shared: Arc::clone(shared), reported: Mutex::new(None) }
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
        let view = &self.shared.view;
        let end = offset.saturating_add(u64::try_from(size).unwrap_or(u64::MAX));
        if end > view.known_size() {
            self.shared.catch_up()?;
            view.pin();
        }
        let start = out.len();
        match view.read_at(offset, size, out) {
            Ok(crossed) => self.stop_at_gap(crossed, offset, out, start)?,
            // Retention took it away: this file is no longer what its name stands for.
            Err(Error::NoSuchPosition { .. }) => return Err(Errno::ESTALE),
            Err(error @ Error::Damaged { .. }) => {
                self.shared.spoilt.store(true, Ordering::Relaxed);
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Progress::Done)
    }
}

impl Drop for MessagesHandle {
    fn drop(&mut self) {
        self.shared.handles.fetch_sub(1, Ordering::Relaxed);
        self.shared.rest();
    }
}
