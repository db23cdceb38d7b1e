//! The writer's second helper thread: prefaults pages just ahead of the writer, so that it does not stop for each.
//! Started by the first report, because many writers append one message and exit; dropping [`Prefaulter`] joins it.
//!
//! Only just ahead, because the system write-protects pages again once it has written them to disk.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::queue::format::layout;
use crate::queue::options::Cpus;
use crate::queue::os::mapping::{HUGE_PAGE, Mapping};
use crate::queue::os::sys;
use crate::queue::os::thread::Joined;
use crate::sync::{AtomicBool, AtomicU32, Ordering};

/// How many bytes of a new segment are prefaulted before it is used.
pub(crate) const AT_FIRST: u32 = 4 << 20;
/// How many bytes are prefaulted ahead of a slow writer.
const AT_LEAST: u32 = 1 << 20;
/// How many bytes are prefaulted ahead of a fast writer.
const AT_MOST: u32 = 16 << 20;
/// Otherwise: this multiple of the bytes written since the last check. If every processor is busy, prefaulting too much
/// takes time from the writer.
const STEPS_AHEAD: u32 = 16;
/// Bytes prefaulted at a time. For a fast writer as much as a huge page: half the work. For a slow one less: it may
/// share its processor with this thread, and waits for that long.
const CHUNKS: [u32; 2] = [128 << 10, HUGE_PAGE];
/// How often the thread checks while the writer is fast.
const BUSY_STEP: Duration = Duration::from_micros(500);
/// The writer's speed is measured over at least this time.
const MEASURED_OVER: Duration = Duration::from_micros(100);
/// How long after its last progress the writer counts as busy; the longest time between two checks until then.
const BUSY_FOR: Duration = Duration::from_millis(20);

/// The writer's side of the thread.
#[derive(Debug)]
pub(crate) struct Prefaulter {
    inner: Arc<Inner>,
    /// Where the thread runs: it is started by an append, which may run elsewhere than the thread that opened the writer.
    cpus: Option<Cpus>,
    /// Told to stop before it is dropped, and so joined.
    thread: Option<Joined>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    /// The writer's offset in the active segment, as of its last report.
    progress: AtomicU32,
    /// The writer is fast enough for huge pages to pay off.
    is_fast: AtomicBool,
    /// There was no room for the next pages.
    is_short_of_room: AtomicBool,
    /// The thread sleeps, and is to be notified of progress up to here or further. The largest offset if it is awake or
    /// has been notified, or if there are no more pages to prefault.
    wake_at: AtomicU32,
}

#[derive(Debug)]
struct State {
    stop: bool,
    active: Arc<Mapping>,
    /// Which one of those that have been active.
    segment: u32,
    /// Pages of `active` are prefaulted up to here.
    populated: u32,
}

impl Prefaulter {
    /// `populated`: up to where pages of the active mapping are prefaulted. `cpus`: where the thread runs; by default where
    /// this one does.
    pub(crate) fn new(active: &Arc<Mapping>, populated: u32, cpus: Option<Cpus>) -> Self {
        let state = Mutex::new(State { stop: false, active: Arc::clone(active), segment: 0, populated });
        let (progress, is_fast, wake_at) = (AtomicU32::new(0), AtomicBool::new(false), AtomicU32::new(u32::MAX));
        let is_short_of_room = AtomicBool::new(false);
        let inner = Inner { state, changed: Condvar::new(), progress, is_fast, is_short_of_room, wake_at };
        let cpus = cpus.or_else(|| sys::own_cpus().map(Iterator::collect));
        Self { inner: Arc::new(inner), cpus, thread: None }
    }

    /// Sets the active segment, and how much of it is prefaulted.
    pub(crate) fn set_active(&mut self, active: &Arc<Mapping>, populated: u32) {
        let mut state = self.inner.lock();
        (state.active, state.populated) = (Arc::clone(active), populated);
        self.inner.progress.store(0, Ordering::Relaxed);
        state.segment = state.segment.wrapping_add(1);
        self.inner.wake_at.fetch_min(wake_at(0, populated, active), Ordering::Relaxed);
        self.inner.is_short_of_room.store(false, Ordering::Relaxed);
    }

    /// Whether there was no room for pages ahead of the writer. Then the writer must prefault those that it needs
    /// itself, and report once that works.
    pub(crate) fn is_short_of_room(&self) -> bool {
        self.inner.is_short_of_room.load(Ordering::Relaxed)
    }

    pub(crate) fn set_short_of_room(&self, is_short: bool) {
        self.inner.is_short_of_room.store(is_short, Ordering::Relaxed);
    }

    /// Whether the writer was fast when that was last measured.
    pub(crate) fn is_for_fast_writer(&self) -> bool {
        self.inner.is_fast.load(Ordering::Relaxed)
    }

    /// Reports the writer's progress. A system call only if the thread has not been started, or sleeps for longer than the
    /// prefaulted pages may last.
    pub(crate) fn report(&mut self, offset: u32) {
        self.inner.progress.store(offset, Ordering::Relaxed);
        if self.thread.is_none() {
            let (inner, cpus) = (Arc::clone(&self.inner), self.cpus);
            // Without the thread appends are slower, nothing else.
            self.thread = std::thread::Builder::new()
                .name("chronfs-pages".into())
                .spawn(move || {
                    // Opening the writer has reported processors that can't be used.
                    drop(cpus.map(|cpus| sys::run_on(cpus.iter())));
                    inner.run();
                })
                .ok()
                .map(Joined::new);
        } else if offset >= self.inner.wake_at.load(Ordering::Relaxed) {
            // It need not be told again while it wakes.
            self.inner.wake_at.store(u32::MAX, Ordering::Relaxed);
            drop(self.inner.lock());
            self.inner.changed.notify_all();
        }
    }
}

impl Drop for Prefaulter {
    fn drop(&mut self) {
        if self.thread.as_ref().is_some_and(|thread| !thread.is_here()) {
            // It may have held the lock when the fork copied it.
            return;
        }
        self.inner.lock().stop = true;
        self.inner.changed.notify_all();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        // Until it is measured, the writer may be fast.
        let mut speed = Speed::new((0, self.progress.load(Ordering::Relaxed)), Instant::now());
        let mut is_fast = true;
        // The last mapping for which the kernel was told to expect much. Not held: its file is to be reused.
        let mut expected = Weak::new();
        loop {
            let state = self.lock();
            if state.stop {
                return;
            }
            // Loaded under the lock that `set_active` takes: it is the progress in `active`.
            let progress = self.progress.load(Ordering::Relaxed);
            let (active, populated) = (Arc::clone(&state.active), state.populated.max(page_of(progress)));
            let here = (state.segment, progress);
            let size = u32::try_from(active.len()).unwrap_or(u32::MAX);
            if speed.measure(here, Instant::now()) {
                is_fast = speed.pace.is_fast();
                self.is_fast.store(is_fast, Ordering::Relaxed);
            }
            let pace = speed.pace;
            if populated < progress.saturating_add(pace.ahead).min(size) {
                drop(state);
                if is_fast && !std::ptr::eq(expected.as_ptr(), Arc::as_ptr(&active)) {
                    active.expect_use_from(populated);
                    expected = Arc::downgrade(&active);
                }
                let chunk = CHUNKS[usize::from(is_fast)];
                let worked = active.populate(populated, chunk as usize).is_ok();
                let mut state = self.lock();
                if !Arc::ptr_eq(&state.active, &active) {
                    continue;
                }
                if worked {
                    state.populated = populated.saturating_add(chunk);
                    continue;
                }
                // The writer prefaults the pages that it needs, and reports again.
                self.is_short_of_room.store(true, Ordering::Relaxed);
                drop(active);
                self.sleep(state, progress, None);
                continue;
            }
            let wake_at = wake_at(progress, populated, &active);
            drop(active);
            let is_busy = speed.at.elapsed() < BUSY_FOR;
            self.sleep(state, progress, is_busy.then_some((wake_at, pace.step)));
        }
    }

    /// `busy`: at most for this long, or until the writer gets here; else until it gets any further.
    fn sleep(&self, state: MutexGuard<'_, State>, seen: u32, busy: Option<(u32, Duration)>) {
        let (wake_at, step) = busy.map_or((0, None), |(wake_at, step)| (wake_at, Some(step)));
        // Missing a report here costs nothing: the next one comes before the writer reaches the end of the prefaulted
        // pages, unless its messages are as long as a quarter of them.
        self.wake_at.store(wake_at, Ordering::Relaxed);
        match step {
            Some(step) => drop(self.changed.wait_timeout(state, step)),
            None if self.progress.load(Ordering::Relaxed) == seen => drop(self.changed.wait(state)),
            None => {}
        }
        self.wake_at.store(u32::MAX, Ordering::Relaxed);
    }
}

/// Whether a writer of this many bytes in this time is fast enough for huge pages to pay off.
pub(crate) fn is_fast(bytes: u32, elapsed: Duration) -> bool {
    Pace::UNKNOWN.after(bytes, elapsed).is_fast()
}

/// Where the writer has to get to before it wakes the thread: only a quarter of the prefaulted pages is left. A wake may
/// take the writer longer than a few of them, above all if the thread is put onto its processor. Never, if there are
/// no more pages.
fn wake_at(progress: u32, populated: u32, active: &Mapping) -> u32 {
    if (populated as usize) < active.len() { progress.midpoint(populated).midpoint(populated) } else { u32::MAX }
}

/// The writer's pace, and where the writer was when it was last measured: the segment, and the offset in it.
struct Speed {
    progress: (u32, u32),
    at: Instant,
    pace: Pace,
}

impl Speed {
    fn new(progress: (u32, u32), at: Instant) -> Self {
        Self { progress, at, pace: Pace::UNKNOWN }
    }

    /// The writer has got here; true if that was enough to measure its pace.
    fn measure(&mut self, progress: (u32, u32), now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at);
        let is_in_same_segment = progress.0 == self.progress.0;
        if is_in_same_segment && (progress.1 == self.progress.1 || elapsed < MEASURED_OVER) {
            return false;
        }
        if is_in_same_segment {
            self.pace = self.pace.after(progress.1.saturating_sub(self.progress.1), elapsed);
        }
        (self.progress, self.at) = (progress, now);
        is_in_same_segment
    }
}

/// How far ahead of the writer pages are prefaulted, and how long until the next look.
#[derive(Debug, Clone, Copy)]
struct Pace {
    ahead: u32,
    step: Duration,
}

impl Pace {
    /// Before anything is measured.
    const UNKNOWN: Self = Self { ahead: AT_LEAST, step: BUSY_STEP };

    fn is_fast(self) -> bool {
        self.ahead > AT_FIRST
    }

    /// That of a writer that has written this many bytes in this time.
    fn after(self, bytes: u32, elapsed: Duration) -> Self {
        let bytes_a_step = u128::from(bytes) * BUSY_STEP.as_nanos() / elapsed.as_nanos().max(1);
        let wanted = u32::try_from(bytes_a_step).unwrap_or(AT_MOST).saturating_mul(STEPS_AHEAD).max(1);
        let ahead = wanted.max(self.ahead / 2).clamp(AT_LEAST, AT_MOST);
        // Each wake takes a processor from somebody, perhaps from the writer: not before a quarter of these are used.
        let step = (BUSY_STEP * (STEPS_AHEAD / 4)).mul_f64(f64::from(ahead) / f64::from(wanted));
        let step = step.clamp(BUSY_STEP, BUSY_FOR);
        Self { ahead, step }
    }
}

fn page_of(offset: u32) -> u32 {
    offset / layout::PAGE * layout::PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_last_until_the_next_look_and_slow_writers_are_looked_after_rarely() {
        let mut pace = Pace::UNKNOWN;
        for bytes_per_ms in [1, 10_000, 100_000, 260_000, 1_000_000, 3_000_000, 20_000_000_u32] {
            pace = pace.after(bytes_per_ms, Duration::from_millis(1));
            let used = f64::from(bytes_per_ms) * pace.step.as_secs_f64() * 1e3;
            let most = if pace.ahead == AT_MOST { 1.0 } else { 0.26 };
            assert!(used <= most * f64::from(pace.ahead), "{used} bytes of {pace:?}");
        }
        assert_eq!(pace.step, BUSY_STEP);
        for _ in 0..8 {
            pace = pace.after(10_000, Duration::from_millis(1));
        }
        assert_eq!((pace.ahead, pace.step), (AT_LEAST, BUSY_FOR));
    }

    #[test]
    fn a_new_segment_does_not_make_a_fast_writer_slow() {
        let (start, ms) = (Instant::now(), Duration::from_millis(1));
        let mut speed = Speed::new((0, 0), start);
        assert!(speed.measure((0, 8 << 20), start + ms));
        assert_eq!((speed.pace.ahead, speed.pace.step), (AT_MOST, BUSY_STEP));
        assert!(!speed.measure((1, 9 << 20), start + 2 * ms), "who knows how long the other segment was");
        assert_eq!((speed.pace.ahead, speed.pace.step), (AT_MOST, BUSY_STEP));
        assert!(speed.measure((1, 10 << 20), start + 100 * ms));
        assert!(speed.pace.ahead < AT_MOST, "slower now");
    }
}
