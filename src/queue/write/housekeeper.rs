//! The writer's helper thread: work that would make an append wait is done here, ahead of time.
//!
//! It creates the next segment before it is needed, ends that of an idle writer when its time is over (`handover.rs`),
//! unmaps segments that the writer has left, applies retention after a roll, and stores the writer's heartbeat. Syncs,
//! which may take long, have a thread of their own, and so has prefaulting the memory just ahead of the writer
//! (`prefault.rs`). All end with the writer: dropping [`Housekeeper`] joins them.
//!
//! The appending thread waits for a lock here only in a roll for which the next segment is not ready.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use crate::clock;
use crate::queue::error::{Error, Result};
use crate::queue::files::dir::Access;
use crate::queue::files::lock::WriterLock;
use crate::queue::files::mtime;
use crate::queue::files::recycle;
use crate::queue::files::retained::RetainedMappings;
use crate::queue::files::segment::Segment;
use crate::queue::files::store::Store;
use crate::queue::format::layout::CONTROL_WRITER_HEARTBEAT;
use crate::queue::format::names::segment_name;
use crate::queue::format::record::RecordContext;
use crate::queue::options::{Settings, SyncPolicy, WriterOptions};
use crate::queue::os::mapping::Mapping;
use crate::queue::os::sys;
use crate::queue::os::thread::Joined;
use crate::queue::position::SegmentId;
use crate::queue::wait::wake::Waker;
use crate::queue::write::after_roll::AfterRoll;
use crate::queue::write::growth::WantedSize;
use crate::queue::write::handover::{Prepared, Quiet, Turn};
use crate::queue::write::prefault;
use crate::queue::write::progress::{Active, Over, Progress};
use crate::queue::write::retention::Retire;
use crate::sync::Ordering;

/// How often the helper looks for work without being asked, and stores a heartbeat.
const IDLE_STEP: Duration = Duration::from_secs(1);

/// A shorter interval between syncs counts as this.
const LEAST_INTERVAL: Duration = Duration::from_millis(1);

/// How often retention is applied without a roll.
const RETAIN_EVERY: Duration = Duration::from_mins(1);
/// How often it applies retention at most where the writer waits for it.
const RETAIN_STEP: Duration = Duration::from_millis(20);

/// The writer's side of the helper thread.
#[derive(Debug)]
pub(crate) struct Housekeeper {
    inner: Arc<Inner>,
    /// Told to stop before it is dropped, and so joined.
    thread: Joined,
}

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    control: Arc<Mapping>,
    writer_lock: Arc<WriterLock>,
    /// The interval between syncs.
    interval: Option<Duration>,
    turn: Arc<Turn>,
    state: Mutex<State>,
    changed: Condvar,
    sync_changed: Condvar,
    /// Held during a sync and until its failure is known: the system reports a failure once, to one of two.
    syncing: Mutex<()>,
}

/// What the thread knows of the active segment.
#[derive(Debug, Default)]
struct Seen {
    progress: Progress,
    quiet: Quiet,
}

#[derive(Debug, Default)]
struct State {
    stop: bool,
    wanted: Option<(SegmentId, WantedSize)>,
    /// Whether the writer is fast enough for huge pages to pay off.
    is_fast: bool,
    ready: Option<Result<Prepared>>,
    active: Option<Active>,
    /// The first segment that has not been synced in the background.
    sync_from: Option<SegmentId>,
    sync_wanted: bool,
    has_sync_thread: bool,
    /// Syncs that have been done, and those that have failed.
    syncs: (u64, u64),
    retention_wanted: bool,
    failure: Option<String>,
    /// Segments that the writer has left.
    left: Vec<Prepared>,
    /// Tests: the active segment is to be ended now, if its time is over; the answer says whether it was.
    #[cfg(test)]
    asked_to_roll: Vec<mpsc::Sender<bool>>,
}

impl State {
    fn has_nothing_to_do(&self) -> bool {
        #[cfg(test)]
        if !self.asked_to_roll.is_empty() {
            return false;
        }
        !self.stop && self.wanted.is_none() && (self.has_sync_thread || !self.sync_wanted)
    }
}

impl Housekeeper {
    pub(crate) fn start(
        store: Arc<Store>,
        control: Arc<Mapping>,
        lock: Arc<WriterLock>,
        options: &WriterOptions,
    ) -> Result<Self> {
        let state = Mutex::new(State::default());
        let interval = match options.sync {
            SyncPolicy::Manual => None,
            SyncPolicy::Every { interval, .. } => Some(interval.max(LEAST_INTERVAL)),
        };
        let turn = Arc::new(Turn::new());
        let (changed, sync_changed) = (Condvar::new(), Condvar::new());
        let inner = Arc::new(Inner {
            store,
            control,
            writer_lock: lock,
            interval,
            turn,
            state,
            changed,
            sync_changed,
            syncing: Mutex::default(),
        });
        let for_thread = Arc::clone(&inner);
        let (placed, is_placed) = mpsc::channel();
        let cpus = options.helper_cpus;
        let run = move || {
            let moved = cpus.map_or(Ok(()), |cpus| sys::run_on(cpus.iter()));
            let is_wrong = moved.is_err();
            drop(placed.send(moved));
            if !is_wrong {
                for_thread.run();
            }
        };
        let path = inner.store.dir.path().to_path_buf();
        let thread = std::thread::Builder::new().name("chronfs-helper".into()).spawn(run);
        let thread = Joined::new(thread.map_err(Error::io(&path, "start the writer's helper thread"))?);
        // Without a choice of processors nothing can go wrong.
        if let Some(Ok(moved)) = cpus.map(|_| is_placed.recv()) {
            moved.map_err(Error::io(&path, "move the writer's helper thread to its processors"))?;
        }
        Ok(Self { inner, thread })
    }

    pub(crate) fn turn(&self) -> Arc<Turn> {
        Arc::clone(&self.inner.turn)
    }

    /// Has the helper end the active segment now if it would after a pause; says whether it did.
    #[cfg(test)]
    pub(in crate::queue) fn pause(&self) -> impl Fn() -> bool + Send + use<> {
        let inner = Arc::clone(&self.inner);
        move || {
            let (answer, answered) = mpsc::channel();
            inner.lock().asked_to_roll.push(answer);
            inner.changed.notify_all();
            answered.recv().unwrap_or(false)
        }
    }

    /// Whether the helper would sync now, at the end of an interval.
    #[cfg(test)]
    pub(in crate::queue) fn is_sync_due(&self, last: &mut Over) -> bool {
        self.inner.is_new(last)
    }

    /// Sets the active segment, and hands over the previous one.
    pub(crate) fn set_active(&self, segment: &Segment, map: &Arc<Mapping>, left: Option<Segment>) {
        let mut state = self.inner.lock();
        // Earlier writers may have ended without a sync.
        state.sync_from.get_or_insert(SegmentId(0));
        let active = Active { id: segment.id, context: segment.context, map: Arc::clone(map) };
        let before = state.active.replace(active);
        state.left.extend(left.zip(before).map(|(segment, Active { map, .. })| Prepared { segment, map }));
    }

    /// Requests a sync of everything, in the background.
    pub(crate) fn request_sync(&self) {
        let mut state = self.inner.lock();
        state.sync_wanted = true;
        let by = if state.has_sync_thread { &self.inner.sync_changed } else { &self.inner.changed };
        by.notify_all();
    }

    /// To be held during a sync of the caller's own.
    pub(crate) fn syncing(&self) -> MutexGuard<'_, ()> {
        self.inner.syncing()
    }

    /// Requests retention, in the background.
    pub(crate) fn request_retention(&self) {
        self.inner.lock().retention_wanted = true;
        self.inner.changed.notify_all();
    }

    /// How many syncs have been done in the background, and how many have failed.
    pub(crate) fn syncs(&self) -> (u64, u64) {
        // See `drop`.
        if self.thread.is_here() { self.inner.lock().syncs } else { (0, 0) }
    }

    /// Why the helper can't vouch for what is written: a disk error, or another writer.
    pub(crate) fn failure(&self) -> Option<String> {
        self.inner.lock().failure.clone()
    }

    /// Requests a segment, which is created at once, in the background.
    pub(crate) fn want(&self, id: SegmentId, size: WantedSize, is_fast: bool) {
        let mut state = self.inner.lock();
        if state.wanted.is_none() && state.ready.is_none() {
            (state.wanted, state.is_fast) = (Some((id, size)), is_fast);
            self.inner.changed.notify_all();
        }
    }

    /// The requested segment (or a later one, if a damaged file has its name), waiting for it if necessary. After a
    /// failure it has to be requested again. One that was requested with another size is replaced if it will not do.
    pub(crate) fn take(&self, id: SegmentId, size: WantedSize, is_fast: bool) -> Result<Prepared> {
        loop {
            self.want(id, size, is_fast);
            let mut state = self.inner.lock();
            while state.ready.is_none() && state.wanted.is_some() {
                state = self.inner.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            match state.ready.take() {
                Some(Ok(prepared)) if prepared.segment.id < id => {}
                Some(Ok(Prepared { segment, .. })) if !self.inner.suits(&segment, size) => {
                    drop(state);
                    self.inner.store.dir.remove(&segment_name(segment.id))?;
                }
                Some(answer) => return answer,
                None => {}
            }
        }
    }
}

impl Drop for Housekeeper {
    fn drop(&mut self) {
        if !self.thread.is_here() {
            // The thread may have held the lock when the fork copied it.
            return;
        }
        self.inner.lock().stop = true;
        self.inner.changed.notify_all();
        self.inner.sync_changed.notify_all();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn syncing(&self) -> MutexGuard<'_, ()> {
        self.syncing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(self: &Arc<Self>) {
        // Started here: by then the writer, which may ask for it, may run elsewhere.
        let mut syncs = None;
        let [mut looked, mut retained] = [Instant::now(); 2];
        let (mut retention, mut left, mut seen) = (AfterRoll::default(), RetainedMappings::default(), Seen::default());
        loop {
            self.control.word64(CONTROL_WRITER_HEARTBEAT).store(clock::boot_ns(), Ordering::Relaxed);
            let is_contested = self.writer_lock.is_contested(&self.store.dir);
            if is_contested {
                self.fail("another writer has replaced the lock file, and is writing too".to_owned());
            }
            let mut state = self.lock();
            if state.stop {
                drop((state, retention, syncs));
                recycle::discard(&self.store.dir);
                return;
            }
            let just_left = std::mem::take(&mut state.left);
            if state.retention_wanted && retained.elapsed() >= RETAIN_STEP {
                (state.retention_wanted, retained, retention.is_due) = (false, Instant::now(), true);
            }
            let (wanted, is_fast) = (state.wanted, state.is_fast);
            let needs_sync_thread = !state.has_sync_thread && (state.sync_wanted || self.interval.is_some());
            let active = state.active.clone();
            drop(state);
            // Retention runs in parallel, so that it may yield a file for the segment that is wanted next.
            for Prepared { segment, map } in just_left {
                let _ = mtime::touch(&segment.file);
                retention.is_due = true;
                match self.store.most_sealed() {
                    // Growing segments are not reused.
                    Some(retained) if map.len() == self.store.settings().segment_size as usize => {
                        retention.gone.extend(left.add(segment.file, map, retained))
                    }
                    _ => retention.gone.push(map),
                }
            }
            // Readers advance, and messages get old, without rolls, too.
            if looked.elapsed() >= RETAIN_EVERY {
                looked = Instant::now();
                retention.is_due |= self.store.refresh().settings.has_retention();
            }
            retention.apply(&self.store);
            // First what the writer may be waiting for.
            if let Some(wanted) = wanted {
                let ready = self.prepare_any(wanted, is_fast, &mut left, &mut retention);
                let mut state = self.lock();
                (state.wanted, state.ready) = (None, Some(ready));
                self.changed.notify_all();
                continue;
            }
            // Not held while this sleeps: its file is to be reused.
            if let Some(active) = active {
                let is_ended = self.look(&active, &mut seen, &mut left, &mut retention);
                retention.is_due |= is_ended;
            }
            if needs_sync_thread {
                syncs = self.start_syncs();
            }
            let state = self.lock();
            if state.has_nothing_to_do() {
                let step = if state.retention_wanted { RETAIN_STEP } else { IDLE_STEP };
                let until_sync = self.interval.filter(|_| !state.has_sync_thread).unwrap_or(step);
                drop(self.changed.wait_timeout(state, step.min(until_sync)));
            }
        }
    }

    /// Starts the thread that syncs. If there can be no more threads, syncs here instead.
    fn start_syncs(self: &Arc<Self>) -> Option<Joined> {
        let inner = Arc::clone(self);
        let thread = std::thread::Builder::new().name("chronfs-sync".into()).spawn(move || inner.run_syncs());
        let Ok(thread) = thread else {
            self.lock().sync_wanted = false;
            self.sync();
            return None;
        };
        self.lock().has_sync_thread = true;
        Some(Joined::new(thread))
    }

    /// Syncs when asked to, and at each interval if something has been appended.
    fn run_syncs(&self) {
        let (mut synced, mut last) = (Instant::now(), None);
        loop {
            let mut state = self.lock();
            if state.stop || state.failure.is_some() {
                return;
            }
            let left = self.interval.map(|interval| interval.saturating_sub(synced.elapsed()));
            let is_wanted = std::mem::take(&mut state.sync_wanted);
            if is_wanted || left.is_some_and(|left| left.is_zero()) {
                drop(state);
                if is_wanted || self.is_new(&mut last) {
                    self.sync();
                }
                synced = Instant::now();
            } else if let Some(left) = left {
                drop(self.sync_changed.wait_timeout(state, left));
            } else {
                drop(self.sync_changed.wait(state));
            }
        }
    }

    /// Whether something may have been appended since this was asked last: an idle writer costs the disk nothing.
    fn is_new(&self, last: &mut Over) -> bool {
        let Some(active) = self.lock().active.clone() else { return false };
        active.is_new(&self.store, self.turn.gate.entered(), last)
    }

    /// Looks after the active segment, and ends it if its time is over and the writer is idle; true if it did.
    fn look(&self, active: &Active, seen: &mut Seen, left: &mut RetainedMappings, retention: &mut AfterRoll) -> bool {
        if let Err(error) = seen.progress.look(&self.store, &self.control, active, self.turn.gate.entered()) {
            self.fail(error.to_string());
        }
        let is_quiet = seen.quiet.is_long_enough(&self.turn, &self.store.settings());
        let is_due = self.turn.is_over(active.id, clock::now_ns()) && active.has_records();
        #[cfg(test)]
        let asked = std::mem::take(&mut self.lock().asked_to_roll);
        #[cfg(test)]
        let is_quiet = is_quiet || !asked.is_empty();
        // What can't be done now is tried again at the next step, or by the next append, which says what is wrong.
        let is_ended = is_due && is_quiet && self.end(active, left, retention).unwrap_or(false);
        #[cfg(test)]
        asked.into_iter().for_each(|asked| asked.send(is_ended).unwrap_or_default());
        is_ended
    }

    fn end(&self, active: &Active, left: &mut RetainedMappings, retention: &mut AfterRoll) -> Result<bool> {
        let geometry = self.store.refresh();
        let id = self.store.id_after(active.id)?;
        let Some(size) = self.size_after(active, &geometry.settings)? else { return Ok(false) };
        let ready = {
            let mut state = self.lock();
            if state.failure.is_some() {
                return Ok(false);
            }
            state.ready.take()
        };
        let next = match ready {
            Some(Ok(ready)) if ready.segment.id >= id && self.suits(&ready.segment, size) => ready,
            _ => self.prepare_any((id, size), false, left, retention)?,
        };
        let Some(not_used) = self.turn.roll(&self.store, (&self.control, &geometry), active, next)? else {
            Waker::wake(&self.control);
            // What is in the segment is synced again, with its seal.
            self.lock().sync_wanted |= self.interval.is_some();
            self.sync_changed.notify_all();
            return Ok(true);
        };
        let mut state = self.lock();
        if state.wanted.is_none() && state.ready.is_none() {
            state.ready = Some(Ok(not_used));
        }
        Ok(false)
    }

    /// The size of a segment after this one; None if the queue's limit has no room for it.
    fn size_after(&self, active: &Active, settings: &Settings) -> Result<Option<WantedSize>> {
        let size = WantedSize::after((self.turn.gate.entered().offset(), false), 0, settings.segment_size);
        let Some(max_bytes) = settings.max_bytes else { return Ok(Some(size)) };
        Ok(size.within(max_bytes.saturating_sub(self.store.bytes_until(active.id)?)))
    }

    /// Syncs what has not been synced yet. A failure is permanent: data that the disk refused once is lost to it, even
    /// if it accepts the next write.
    fn sync(&self) {
        let (first, last) = {
            let state = self.lock();
            match (state.sync_from, &state.active) {
                (Some(first), Some(active)) if state.failure.is_none() => (first, active.id),
                _ => return,
            }
        };
        let _alone = self.syncing();
        match self.store.sync_segments(first, last) {
            Ok(()) => {
                let mut state = self.lock();
                (state.sync_from, state.syncs.0) = (Some(last), state.syncs.0 + 1);
            }
            Err(error) => {
                self.lock().syncs.1 += 1;
                self.fail(error.to_string());
            }
        }
    }

    /// Stops the writer: it checks its mapping after each message, and only then asks for the reason.
    fn fail(&self, reason: String) {
        let mut state = self.lock();
        state.failure.get_or_insert(reason);
        if let Some(active) = &state.active {
            active.map.give_up();
        }
    }

    /// Whether a segment that exists is as the settings want the next one.
    fn suits(&self, segment: &Segment, size: WantedSize) -> bool {
        let RecordContext { segment_size, .. } = segment.context;
        size.allows(segment_size) && segment.context.align() == self.store.settings().payload_align
    }

    /// Opens a segment that has been created and not used, or creates it; one that is too small or too large is replaced.
    /// If something else has its name, that is left unchanged, and the next number without a file is used instead.
    fn open_or_make(
        &self,
        (id, size): (SegmentId, WantedSize),
        is_fast: bool,
        left: &mut RetainedMappings,
    ) -> Result<(Segment, Option<Arc<Mapping>>)> {
        let store = &self.store;
        let id = match store.open_segment(id, Access::Write) {
            Ok(Some(segment)) if !segment.is_started()? && !segment.is_cut_short()? => {
                if self.suits(&segment, size) {
                    return Ok((segment, None));
                }
                store.dir.remove(&segment_name(id))?;
                id
            }
            Ok(None) => id,
            Ok(Some(_)) => store.free_id_after(id)?,
            Err(error) if error.is_unusable_file() => store.free_id_after(id)?,
            Err(error) => return Err(error),
        };
        let made = Segment::create(&store.dir, &store.geometry(), (id, size.best, is_fast), clock::now_ns(), left)?;
        store.dir.sync()?;
        Ok(made)
    }

    /// As [`prepare`](Self::prepare), with less and less room if there is no more.
    fn prepare_any(
        &self,
        (id, mut size): (SegmentId, WantedSize),
        is_fast: bool,
        left: &mut RetainedMappings,
        retention: &mut AfterRoll,
    ) -> Result<Prepared> {
        let store = &self.store;
        if store.settings().has_retention() && !recycle::is_there(&store.dir) && !store.hook.is_set() {
            // If every processor is busy the other thread may be late: better to wait than to create a new file.
            if retention.is_over() {
                // Readers may have advanced since it ran.
                drop(store.retain(Retire::ForReuse));
            } else {
                retention.finish(store);
            }
        }
        let mut ready = self.prepare((id, size), is_fast, left);
        // On a full disk the only room is what retention removes.
        if ready.is_err() && retention.finish(&self.store) {
            ready = self.prepare((id, size), is_fast, left);
        }
        while let (true, Some(smaller)) = (ready.as_ref().is_err_and(Error::is_lack_of_room), size.smaller()) {
            size = smaller;
            ready = self.prepare((id, size), is_fast, left);
        }
        ready
    }

    /// Opens or creates a segment, maps it and prefaults its first pages.
    fn prepare(&self, wanted: (SegmentId, WantedSize), is_fast: bool, left: &mut RetainedMappings) -> Result<Prepared> {
        let (segment, map) = self.open_or_make(wanted, is_fast, left)?;
        let map = match map {
            Some(map) => map,
            None => Arc::new(segment.map_for_writing(0, 0)?),
        };
        if is_fast {
            map.expect_use_from(0);
        }
        map.populate(0, prefault::AT_FIRST as usize).map_err(Error::io(&segment.path, "prefault it"))?;
        Ok(Prepared { segment, map })
    }
}
