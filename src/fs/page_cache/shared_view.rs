//! A view that handles share, and how they read it: directly, by one request per read; or, where the kernel supports
//! it, through its page cache (`mod.rs`).
//!
//! A view is read in one way all its life: the kernel does not allow a file to be open in both ways at a time.
//!
//! Lock order: `usage`, `size` of a [`Cached`], the locks of the view.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use rustix::fs::Stat;

use crate::fs::attr::{Attr, READ};
use crate::fs::backing::Payer;
use crate::fs::budget::{Budget, Kind, Share};
use crate::fs::errno::{Errno, Result, missing};
use crate::fs::kernel::is_interrupted;
use crate::fs::page_cache::{PageCache, PageFile, PageSource};
use crate::fs::{lock, spawn};
use crate::queue::{Error, Gap, SegmentId};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::view::{Crossed, View};

/// Messages indexed between two checks whether the caller still waits: a few milliseconds' worth.
const STEP: usize = 20_000;
/// Descriptors held by a view that is being read.
const OF_A_VIEW: u64 = 4;
/// Views that keep their descriptors (two or three each) and pages while their files are not open.
const MAX_WARM: u32 = 64;
/// Size of a kernel page in bytes, or a multiple of it.
const PAGE: u64 = 64 << 10;
/// Growth up to this many bytes is written to the page cache in full; of more only what is needed, the rest when it is
/// read.
const AT_ONCE: u64 = 1 << 20;
/// Why there are fewer bytes than the size that the kernel was told.
const SHRUNK: &str = "what was indexed can no longer be read";

/// How long a file is held open for a process that has looked it up, and how many of its segments: retention removes
/// the first ones first.
const TOLD: Duration = Duration::from_secs(1);
const TOLD_SEGMENTS: usize = 4;

/// The views that are held for processes that have looked them up, and, while there are any, a thread that releases
/// them.
#[derive(Default)]
struct Told {
    state: Mutex<(VecDeque<Weak<SharedView>>, bool)>,
}

impl Told {
    fn add(self: &Arc<Self>, view: &Arc<SharedView>) {
        let mut state = lock(&self.state);
        state.0.push_back(Arc::downgrade(view));
        if !state.1 {
            let this = Arc::clone(self);
            state.1 = spawn("chronfs-told", 256 << 10, move || this.run()).is_ok();
        }
    }

    fn run(&self) {
        loop {
            std::thread::sleep(TOLD / 4);
            let views = std::mem::take(&mut lock(&self.state).0);
            // The views are upgraded only briefly.
            let rest: Vec<_> =
                views.into_iter().filter(|view| view.upgrade().is_some_and(|view| view.is_told())).collect();
            let mut state = lock(&self.state);
            state.0.extend(rest);
            if state.0.is_empty() {
                state.1 = false;
                return;
            }
        }
    }
}

/// The state shared by all views of a mount.
pub(crate) struct Common {
    budget: Arc<Budget>,
    /// How many keep descriptors open without being used.
    warm: AtomicU32,
    pages: Option<Arc<PageCache>>,
    told: Arc<Told>,
}

impl Common {
    /// `pages`: the kernel's page cache for text, if available.
    pub(crate) fn new(budget: &Arc<Budget>, pages: Option<Arc<PageCache>>) -> Self {
        Self { budget: Arc::clone(budget), warm: AtomicU32::new(0), pages, told: Arc::default() }
    }
}

/// A view and who uses it, shared between the handles of a file.
pub(crate) struct SharedView {
    view: View,
    usage: Mutex<Use>,
    /// Damage has changed its content: the name must get another view.
    damaged: AtomicBool,
    /// Keeps descriptors and buffers though no handle is open; counted in `common`.
    warm: AtomicBool,
    /// Until when its first segments are held open for a process that has looked it up and may open it.
    told: Mutex<Option<Instant>>,
    common: Arc<Common>,
    /// Who is charged for rendering.
    payer: Payer,
}

#[derive(Default)]
struct Use {
    handles: u32,
    /// Its descriptors, while there are handles; charged to the user who opened the first.
    share: Option<Share>,
    /// The file in the page cache: kept for later handles.
    cached: Option<Arc<Cached>>,
    /// The queue's files when the first handle was opened.
    files: Files,
}

/// The state of a queue's files.
#[derive(Default)]
struct Files {
    size: u64,
    written: Vec<(SegmentId, (i64, u64))>,
}

impl Files {
    /// Segments that may have been written to since, other than by appending.
    fn suspects(&self, now: &Self) -> Vec<SegmentId> {
        let head = self.written.last().map(|(segment, _)| *segment).filter(|_| now.size > self.size);
        // Both are in the order of the segments.
        let is_same = |file: &(SegmentId, (i64, u64))| now.written.binary_search(file).is_ok();
        let is_suspect = |file: &&(SegmentId, (i64, u64))| Some(file.0) != head && !is_same(file);
        self.written.iter().filter(is_suspect).map(|(segment, _)| *segment).collect()
    }
}

/// A view's file in the page cache.
struct Cached {
    view: Weak<SharedView>,
    file: OnceLock<PageFile>,
    /// The size that the kernel knows. Locked while it is being extended.
    size: Mutex<u64>,
    /// The size that the kernel knows or is being told.
    stated: AtomicU64,
}

impl SharedView {
    pub(crate) fn new(view: View, common: &Arc<Common>, payer: Payer) -> Self {
        Self {
            usage: Mutex::default(),
            damaged: AtomicBool::new(false),
            warm: AtomicBool::new(false),
            told: Mutex::new(None),
            common: Arc::clone(common),
            payer,
            view,
        }
    }

    /// Holds the file so that the size that a lookup reports can be read if it is opened at once, whatever retention
    /// removes meanwhile.
    pub(crate) fn hold_for_opener(self: &Arc<Self>) {
        if self.has_handles() {
            return;
        }
        let is_first = lock(&self.told).replace(Instant::now() + TOLD).is_none();
        self.view.pin_first(TOLD_SEGMENTS);
        if is_first {
            self.common.told.add(self);
        }
    }

    /// Whether it is held open: by handles, or for a process that has just looked it up.
    pub(crate) fn is_held(&self) -> bool {
        lock(&self.told).is_some() || lock(&self.usage).handles > 0
    }

    /// Whether handles of it are open.
    pub(crate) fn has_handles(&self) -> bool {
        lock(&self.usage).handles > 0
    }

    /// Whether it is complete, and its bytes no longer change.
    pub(crate) fn is_settled(&self) -> bool {
        self.view.is_closed() && !self.view.has_hidden_gap()
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Extends the index to the head. Takes seconds for a large queue that is not indexed yet.
    pub(crate) fn catch_up(&self) -> Result<()> {
        while self.view.index_some(STEP)? {
            if is_interrupted() {
                return Err(Errno::EINTR);
            }
        }
        Ok(())
    }

    /// True size, and the time of the newest message in it. `stat`: attributes with the permissions that it gets.
    pub(crate) fn attr(&self, stat: impl FnOnce() -> Result<Stat>) -> Result<Attr> {
        self.catch_up()?;
        let (is_open, cached) = {
            let used = lock(&self.usage);
            (used.handles > 0, used.cached.clone().filter(|_| used.handles > 0))
        };
        if is_open {
            // A caller that is told a size must be able to read that far, whatever retention removes.
            self.view.pin();
        }
        let attr = self.known_attr(&stat()?);
        // A handle must be able to read and map up to the size it is told.
        Ok(cached.map_or(attr, |cached| attr.with_size(cached.grow_with(self).unwrap_or_else(|_| *lock(&cached.size)))))
    }

    /// The attributes as far as it is indexed, with the permissions of `stat`.
    pub(crate) fn known_attr(&self, stat: &Stat) -> Attr {
        let (size, modified_ns) = (self.view.known_size(), self.view.modified_ns());
        self.release_if_idle(&mut lock(&self.usage));
        Attr::file(stat, READ).with_size(size).modified_at(modified_ns)
    }

    pub(crate) fn known_size(&self) -> u64 {
        self.view.known_size()
    }

    pub(crate) fn pin(&self) {
        self.view.pin();
    }

    /// Appends bytes to `out`; see [`View::read_at`].
    pub(crate) fn read_at(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Option<Crossed>> {
        self.view.read_at(offset, size, out).map_err(|error| self.to_errno(error))
    }

    fn to_errno(&self, error: Error) -> Errno {
        match &error {
            // Retention has removed it: the name no longer stands for this file.
            Error::NoSuchPosition { .. } => return Errno::ESTALE,
            error if error.is_unusable_file() => self.damaged.store(true, Ordering::Relaxed),
            _ => {}
        }
        Errno::from(error)
    }

    /// Checks that a segment still has the messages that cached pages may show.
    fn check(&self, segment: SegmentId) -> Result<()> {
        match self.view.check(segment).map_err(|error| self.to_errno(error)) {
            // The name stands for another file now, which the kernel looks up.
            Err(_) if self.is_damaged() => Err(Errno::ESTALE),
            checked => checked,
        }
    }

    /// Whether it must still be held for a process that has looked it up; releases it if not.
    fn is_told(&self) -> bool {
        {
            let mut told = lock(&self.told);
            if told.is_some_and(|until| Instant::now() < until) {
                return true;
            }
            *told = None;
        }
        self.release_if_idle(&mut lock(&self.usage));
        false
    }

    /// Adds a handle.
    fn join(&self, used: &mut Use) -> Result<()> {
        if used.handles == 0 {
            used.share = Some(self.common.budget.charge(Kind::Handles, OF_A_VIEW)?);
        }
        used.handles += 1;
        Ok(())
    }

    /// When no handle is open: keeps descriptors and buffers for the next request, unless too many views do.
    fn release_if_idle(&self, used: &mut Use) {
        if used.handles > 0 {
            return;
        }
        if lock(&self.told).is_some() {
            return;
        }
        self.view.unpin();
        if self.warm.load(Ordering::Relaxed) {
            return;
        }
        if self.common.warm.load(Ordering::Relaxed) >= MAX_WARM {
            self.view.trim();
            used.cached = None;
        } else if !self.warm.swap(true, Ordering::Relaxed) {
            self.common.warm.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A handle's hold on a view.
pub(crate) struct ViewHandle {
    view: Arc<SharedView>,
    cached: Option<Arc<Cached>>,
    /// Retention had already removed part of it when it was opened.
    is_late: bool,
}

impl ViewHandle {
    /// For a handle that reads by requests.
    pub(crate) fn new(view: &Arc<SharedView>) -> Result<Self> {
        view.join(&mut lock(&view.usage))?;
        let is_late = !view.view.pin_first(usize::MAX);
        Ok(Self { view: Arc::clone(view), cached: None, is_late })
    }

    /// Whether retention had already removed part of it when it was opened.
    pub(crate) fn is_late(&self) -> bool {
        self.is_late
    }

    /// For a handle that reads through the page cache, where there is one. Cached pages may outlive their messages, but
    /// not the next open: segments that were written to, other than by appending, are checked again.
    pub(crate) fn through_pages(
        view: &Arc<SharedView>,
        written: impl FnOnce() -> Result<Vec<(SegmentId, (i64, u64))>>,
    ) -> Result<Self> {
        let Some(pages) = view.common.pages.as_ref() else { return Self::new(view) };
        view.catch_up()?;
        // In this order: up to that size there is no gap.
        let size = view.known_size();
        if view.view.has_hidden_gap() {
            // An error for each reader, which cached pages can't report.
            let mut used = lock(&view.usage);
            if used.cached.is_some() && used.handles > 0 {
                view.damaged.store(true, Ordering::Relaxed);
                return Err(Errno::ESTALE);
            }
            used.cached = None;
            drop(used);
            return Self::new(view);
        }
        let files = Files { size, written: written()? };
        let suspects = lock(&view.usage).files.suspects(&files);
        suspects.into_iter().try_for_each(|segment| view.check(segment))?;
        let mut used = lock(&view.usage);
        used.files = files;
        let cached = match &used.cached {
            Some(cached) => Arc::clone(cached),
            None => Cached::new(view, pages, size)?,
        };
        view.join(&mut used)?;
        used.cached = Some(Arc::clone(&cached));
        drop(used);
        let is_late = !view.view.pin_first(usize::MAX);
        let held = Self { view: Arc::clone(view), cached: Some(cached), is_late };
        let grown = held.cached.iter().try_for_each(|cached| cached.grow_with(view).map(drop));
        if view.is_damaged() {
            // The name stands for another file now, which the kernel looks up.
            return Err(Errno::ESTALE);
        }
        grown.map(|()| held)
    }

    pub(crate) fn view(&self) -> &SharedView {
        &self.view
    }

    /// The file that the kernel may read instead of sending requests.
    pub(crate) fn pages(&self) -> Option<BorrowedFd<'_>> {
        self.cached.as_ref()?.file.get().and_then(PageFile::backing)
    }
}

impl Drop for ViewHandle {
    fn drop(&mut self) {
        let mut used = lock(&self.view.usage);
        used.handles -= 1;
        if used.handles == 0 {
            used.share = None;
        }
        self.view.release_if_idle(&mut used);
    }
}

impl Cached {
    fn new(view: &Arc<SharedView>, pages: &Arc<PageCache>, size: u64) -> Result<Arc<Self>> {
        let (file, stated) = (OnceLock::new(), AtomicU64::new(size));
        let cached = Arc::new(Self { view: Arc::downgrade(view), file, size: Mutex::new(size), stated });
        let text: Weak<Self> = Arc::downgrade(&cached);
        let file = pages.add(text, size, view.payer)?;
        cached.file.get_or_init(|| file);
        Ok(cached)
    }

    /// Extends the file to what is indexed by now, or to a gap that its bytes don't show: what follows that belongs to
    /// another file, which the name stands for from now on. Returns its size.
    fn grow_with(&self, shared: &SharedView) -> Result<u64> {
        let view = &shared.view;
        let mut size = lock(&self.size);
        let before = *size;
        let (end, gap) = Self::limit(shared, *size)?;
        // Readers may have mapped the last page before the end. It must be complete before the file grows; they have
        // none of the following pages yet, and will request them.
        let needed = *size / PAGE * PAGE + PAGE;
        if end > needed.saturating_add(AT_ONCE) {
            let upto = view.unit_end(needed).map_err(|error| shared.to_errno(error))?;
            self.write(shared, *size, upto)?;
            *size = upto;
        }
        if end > *size {
            let from = if end > size.saturating_add(AT_ONCE + PAGE) { end - 1 } else { *size };
            self.write(shared, from, end)?;
            *size = end;
        }
        let Some(gap) = gap else { return Ok(*size) };
        shared.damaged.store(true, Ordering::Relaxed);
        // Whoever has just been told of more can read that first.
        if *size > before { Ok(*size) } else { Err(Errno::EIO.because(missing(gap))) }
    }

    /// Up to where a file of this size may grow, and the hidden gap that it ends at, if there is one.
    fn limit(shared: &SharedView, size: u64) -> Result<(u64, Option<Gap>)> {
        // Before asking for gaps: there may be one past this by then.
        let (mut at, end) = (size, shared.known_size());
        let mut bytes = Vec::new();
        while at < end && shared.view.has_hidden_gap() {
            bytes.clear();
            let len = usize::try_from(AT_ONCE.min(end - at)).map_err(|_| Errno::EIO)?;
            if let Some(Crossed { gap, offset }) = shared.read_at(at, len, &mut bytes)? {
                return Ok((offset, Some(gap)));
            }
            at += bytes.len().max(1) as u64;
        }
        Ok((end, None))
    }

    fn write(&self, shared: &SharedView, from: u64, to: u64) -> Result<()> {
        let len = usize::try_from(to - from).map_err(|_| Errno::EIO)?;
        let mut bytes = Vec::with_capacity(len);
        shared.read_at(from, len, &mut bytes)?;
        let file = self.file.get().ok_or(Errno::EIO)?;
        if bytes.len() < len {
            return Err(Errno::EIO.because(SHRUNK));
        }
        self.stated.store(to, Ordering::Release);
        Ok(file.write(from, bytes)?)
    }
}

impl PageSource for Cached {
    fn grow(&self) -> Result<u64> {
        let shared = self.view.upgrade().ok_or(Errno::ESTALE)?;
        shared.catch_up()?;
        self.grow_with(&shared)
    }

    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<()> {
        let shared = self.view.upgrade().ok_or(Errno::ESTALE)?;
        let there = usize::try_from(shared.known_size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let (start, wanted) = (out.len(), out.len() + size.min(there));
        if let Some(Crossed { gap, offset: end }) = shared.read_at(offset, size.min(there), out)? {
            // The file ends there at the latest.
            let upto = usize::try_from(end.saturating_sub(offset)).map_err(|_| Errno::EIO)?;
            out.truncate(start + upto);
            let is_past_it = end >= self.stated.load(Ordering::Acquire);
            return if is_past_it { Ok(()) } else { Err(Errno::EIO.because(missing(gap))) };
        }
        // The kernel would take fewer bytes for the end of the file.
        if out.len() < wanted { Err(Errno::EIO.because(SHRUNK)) } else { Ok(()) }
    }

    fn queue(&self) -> PathBuf {
        self.view.upgrade().map_or_else(PathBuf::new, |shared| shared.view.queue.path().to_path_buf())
    }
}

impl Drop for SharedView {
    fn drop(&mut self) {
        if self.warm.load(Ordering::Relaxed) {
            self.common.warm.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
