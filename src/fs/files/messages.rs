//! `messages.*`: everything retained, as a regular file that grows.
//!
//! Invariant: the bytes at an offset never change while the file keeps its inode number. So the inode belongs to the
//! first retained segment: when retention removes that, the name gets another inode with another view, and handles of
//! the old one keep the old view. The same happens when messages shown before are found damaged.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, OnceLock};

use crate::fs::attr::{Attr, Ttl};
use crate::fs::errno::{Errno, Result, missing};
use crate::fs::files::at_since;
use crate::fs::lock;
use crate::fs::page_cache::shared_view::{SharedView, ViewHandle};
use crate::fs::queues::generation::Generation;
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::site::{Access, Caller, File, Site};
use crate::fs::tree::handles::{Caching, Handle, Progress};
use crate::fs::tree::inodes::stable_hash;
use crate::queue::{Position, Scanner};
use crate::sync::{AtomicBool, Ordering};
use crate::view::{Crossed, Format, Rendering, View};

struct Messages {
    queue: Arc<OpenQueue>,
    format: Format,
    generation: Generation,
    view: OnceLock<Arc<SharedView>>,
}

/// Row constructor.
pub(crate) fn messages(site: &Site, format: Format) -> Result<Arc<dyn File>> {
    let queue = Arc::clone(site.queue()?);
    let (generation, held) = queue.generation_for(format, site.caller)?;
    let view = held.map_or_else(OnceLock::new, OnceLock::from);
    Ok(Arc::new(Messages { queue, format, generation, view }))
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
        let view = self.view()?;
        let attr = self.queue.attr_of(&view)?;
        if self.queue.queue.settings().has_retention() {
            view.hold_for_opener();
        }
        Ok(attr)
    }

    fn ttl(&self) -> Ttl {
        // The name stands for another file as soon as retention has removed the beginning of this one.
        Ttl::NONE
    }

    fn quick_attr(&self) -> Result<Attr> {
        self.queue.known_attr_of(&*self.view()?)
    }

    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        let (queue, format) = (Arc::clone(&self.queue), self.format);
        let renew = move || queue.view(format, queue.generation(format)?);
        let view = self.view()?;
        let is_followed = view.has_handles();
        let held = ViewHandle::through_pages(&view, || self.queue.written()).map_err(|error| match renew() {
            // Not even a gap: nothing is left that could be read.
            Ok(view) if error == Errno::ESTALE && view.catch_up().is_ok() && view.known_size() == 0 => {
                Errno::EIO.because("no message is left that can be read")
            }
            _ => error,
        })?;
        if held.is_late() && !is_followed && self.queue.generation(self.format) != Ok(self.generation) {
            // Retention has removed it meanwhile. The kernel looks the name up again.
            return Err(Errno::ESTALE);
        }
        let token = self.queue.opened_by(caller.pid, (self.format, self.generation), &view);
        Ok(Box::new(MessagesHandle { _opened: token, ..MessagesHandle::new(held, renew) }))
    }

    fn generation(&self) -> u64 {
        self.generation.number(self.queue.identity)
    }

    fn is_current(&self) -> bool {
        let is_held = || self.view.get().is_some_and(|view| view.is_held() && !view.is_damaged());
        self.queue.is_current() && (self.queue.generation(self.format) == Ok(self.generation) || is_held())
    }
}

/// The messages from a place on that is fixed at lookup: with a true, growing size; or, for a reader, those that it has
/// not consumed, up to the head at lookup.
struct Since {
    queue: Arc<OpenQueue>,
    rendering: Rendering,
    /// Of the schema by which payloads are decoded.
    schema: Option<u64>,
    position: Position,
    seq: u64,
    end_seq: Option<u64>,
    identity: u64,
    generation: u64,
    view: OnceLock<Arc<SharedView>>,
}

/// Row constructor, below `since/`.
pub(crate) fn since(site: &Site, format: Format) -> Result<Arc<dyn File>> {
    let queue = site.queue()?;
    let mut scanner = queue.queue.scan()?;
    at_since::seek(queue, &mut scanner, &site.subject()?)?;
    Ok(Arc::new(Since::new(queue, (format.into(), None), &scanner, None)))
}

/// Row constructor, in a reader's directory.
pub(crate) fn pending(site: &Site, format: Format) -> Result<Arc<dyn File>> {
    let queue = site.queue()?;
    let next_seq = queue.queue.bounds()?.next_seq;
    let mut scanner = queue.queue.scan()?;
    scanner.seek_seq(queue.queue.reader_position(&site.subject()?)?)?;
    Ok(Arc::new(Since::new(queue, (format.into(), None), &scanner, Some(next_seq))))
}

/// Row constructor: everything retained, decoded, where the queue has a schema.
#[cfg(feature = "decode")]
pub(crate) fn decoded(site: &Site) -> Result<Arc<dyn File>> {
    let queue = site.queue()?;
    let (schema, stamp) = queue.schema()?;
    Ok(Arc::new(Since::new(queue, (schema.into(), Some(stamp)), &queue.queue.scan()?, None)))
}

impl Since {
    fn new(
        queue: &Arc<OpenQueue>,
        (rendering, schema): (Rendering, Option<u64>),
        from: &Scanner,
        end_seq: Option<u64>,
    ) -> Self {
        let (position, seq) = (from.position(), from.seq());
        let numbers = [queue.identity, u64::from(position.segment.0), u64::from(position.offset), seq];
        let mut bytes: Vec<u8> = numbers.into_iter().chain(end_seq).flat_map(u64::to_le_bytes).collect();
        bytes.extend_from_slice(rendering.format().name().as_bytes());
        bytes.extend(schema.into_iter().flat_map(u64::to_le_bytes));
        let identity = stable_hash(&[&bytes]);
        let (queue, generation) = (Arc::clone(queue), queue.turned(identity));
        Self { queue, rendering, schema, position, seq, end_seq, identity, generation, view: OnceLock::new() }
    }

    fn view(&self) -> &Arc<SharedView> {
        self.view.get_or_init(|| self.make_view())
    }

    /// When damage has changed its content, the name must stand for another file.
    fn turn_if_spoilt(&self) {
        if self.view.get().is_some_and(|view| view.is_damaged()) {
            self.queue.turn(self.identity, self.generation);
        }
    }

    fn has_its_schema(&self) -> bool {
        #[cfg(feature = "decode")]
        return self.schema.is_none_or(|stamp| self.queue.schema().is_ok_and(|(_, now)| now == stamp));
        #[cfg(not(feature = "decode"))]
        self.schema.is_none()
    }

    fn make_view(&self) -> Arc<SharedView> {
        let view = View::since(&self.queue.queue, self.rendering.clone(), self.position, self.seq);
        Arc::new(self.queue.share(match self.end_seq {
            Some(end_seq) => view.until(end_seq),
            None => view,
        }))
    }
}

impl File for Since {
    fn messages_of(&self) -> Option<&OpenQueue> {
        Some(&self.queue)
    }

    fn attr(&self) -> Result<Attr> {
        let attr = self.queue.attr_of(self.view())?;
        if self.queue.queue.settings().has_retention() {
            self.view().hold_for_opener();
        }
        Ok(attr)
    }

    fn quick_attr(&self) -> Result<Attr> {
        self.queue.known_attr_of(self.view())
    }

    fn open(&self, access: Access, _caller: &Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        let held = ViewHandle::through_pages(self.view(), || self.queue.written());
        self.turn_if_spoilt();
        let held = held?;
        if held.is_late() {
            return Err(Errno::ESTALE);
        }
        let rendering = self.rendering.clone();
        let fresh = Self { queue: Arc::clone(&self.queue), rendering, view: OnceLock::new(), ..*self };
        Ok(Box::new(MessagesHandle::new(held, move || Ok(fresh.make_view()))))
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn is_current(&self) -> bool {
        self.turn_if_spoilt();
        self.queue.is_current() && self.queue.turned(self.identity) == self.generation && self.has_its_schema()
    }

    fn ttl(&self) -> Ttl {
        // A reader's pending messages are another file as soon as it consumes one or a new one arrives; decoded ones
        // as soon as the schema changes.
        if self.end_seq.is_some() || self.schema.is_some() { Ttl::NONE } else { Ttl::NAME }
    }
}

type Renew = Box<dyn Fn() -> Result<Arc<SharedView>> + Send + Sync>;

pub(in crate::fs) struct MessagesHandle {
    held: ViewHandle,
    /// Shows the queue that the file is open.
    _opened: Option<Arc<()>>,
    /// The view that the name stands for since damage was found in bytes that others had read: for a handle that had
    /// read nothing.
    renewed: OnceLock<ViewHandle>,
    renew: Renew,
    has_read: AtomicBool,
    /// The offset of the last gap at which a read of the bin format has failed.
    reported: Mutex<Option<u64>>,
}

impl MessagesHandle {
    pub(in crate::fs) fn new(
        held: ViewHandle,
        renew: impl Fn() -> Result<Arc<SharedView>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            held,
            _opened: None,
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

    /// Cuts a read of the bin format short before a gap, which its bytes don't show. A read that starts at a gap fails
    /// once, then returns one byte, so that the next read shows the gaps that it crosses.
    fn stop_at_gap(&self, crossed: Option<Crossed>, offset: u64, out: &mut Vec<u8>, start: usize) -> Result<()> {
        let Some(Crossed { gap: lost, offset: gap }) = crossed else { return Ok(()) };
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
        Err(Errno::EIO.because(missing(lost)))
    }
}

impl Handle for MessagesHandle {
    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        let start = out.len();
        let is_first = offset == 0 && !self.has_read.load(Ordering::Relaxed);
        let crossed = match self.read_view(offset, size, out) {
            Err(Errno::EIO) if is_first && self.shared().is_damaged() => {
                let _ = self.renewed.set(ViewHandle::new(&(self.renew)()?)?);
                let crossed = self.read_view(offset, size, out)?;
                if out.len() == start && crossed.is_none() {
                    // Not even a gap: nothing is left that could be read.
                    return Err(Errno::EIO.because("no message is left that can be read"));
                }
                crossed
            }
            result => result?,
        };
        self.has_read.store(true, Ordering::Relaxed);
        self.stop_at_gap(crossed, offset, out, start)?;
        Ok(Progress::Done)
    }

    fn read_pages(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        match self.read_view(offset, size, out)? {
            // The pages can't show the gap: return none.
            Some(Crossed { gap, .. }) => Err(Errno::EIO.because(missing(gap))),
            None => Ok(Progress::Done),
        }
    }

    fn caching(&self) -> Caching {
        if self.held.view().is_settled() { Caching::UntilOpened } else { Caching::Nothing }
    }

    fn backing(&self) -> Option<BorrowedFd<'_>> {
        self.held.pages()
    }
}
