//! What an append does only now and then: publishing the head, and rolls, i.e. continuing in the next segment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock;
use crate::queue::entry::Bounds;
use crate::queue::error::{Error, Result};
use crate::queue::files::control::HeadPublisher;
use crate::queue::files::dir::Access;
use crate::queue::files::segment;
use crate::queue::files::store::Store;
use crate::queue::format::layout::{self, HEADER_LEN, SEGMENT_SEAL};
use crate::queue::inspect::SegmentInfo;
use crate::queue::options::{WhenFull, WriterOptions};
use crate::queue::wait::stop::{self, Stopper};
use crate::queue::write::ahead::ClearAhead;
use crate::queue::write::growth::WantedSize;
use crate::queue::write::handover::Prepared;
use crate::queue::write::prefault;
use crate::queue::write::retention::{ActiveSegment, Retention, Retire};
use crate::queue::write::writer::{MAY_BE_MISSING, QueueWriter};

const OTHER_END: &str = "the segment does not end where the writer's messages do: somebody else has stored into it";
/// How often a writer that waits for room in a full queue checks for it.
const LOOK_FOR_ROOM_EVERY: Duration = Duration::from_millis(1);

impl QueueWriter {
    /// Occasional work: a new segment, the published head, the helper's report.
    #[cold]
    pub(in crate::queue) fn make_room(&mut self, record_len: u32, timestamp_ns: u64) -> Result<()> {
        self.check_poison()?;
        // The latest time there is ends nothing.
        let is_over = timestamp_ns >= self.roll_at_ns && self.roll_at_ns < u64::MAX && self.has_messages();
        if is_over || self.offset + record_len > self.segment_limit() {
            self.roll(record_len)?;
        } else {
            self.publish_head();
            self.pages.report(self.offset);
        }
        if !self.has_messages() {
            self.roll_at_ns = self.store.end_of_period(timestamp_ns.max(self.last_timestamp_ns));
        }
        let soft_limit = self.next_soft_limit(self.offset + record_len);
        if self.pages.is_short_of_room() {
            // The page at the limit holds the word that says that no record follows.
            self.populate(self.offset, soft_limit - self.offset + layout::PAGE)?;
            self.pages.set_short_of_room(false);
        }
        if self.offset > self.ask_at
            && let Some(next) = self.segment.id.next()
        {
            let is_fast = self.is_fast();
            // Until then the helper may still be at what the last roll has left; there may be no later chance.
            let is_urgent = self.offset > self.context.segment_size / 4 || soft_limit >= self.segment_limit();
            match self.within_limit(self.size_after_full(is_fast), is_urgent) {
                Ok(size) => {
                    self.supply.want(next, size, is_fast);
                    self.ask_at = u32::MAX;
                }
                Err(_) => self.ask_at = self.offset + self.context.segment_size / 16,
            }
        }
        self.ahead.set_limit(soft_limit);
        self.turn.open(soft_limit, self.head_now(), self.roll_at_ns);
        Ok(())
    }

    /// Ends the active segment if its time is over ([`Settings::roll_period_ns`](crate::queue::Settings::roll_period_ns))
    /// and it has messages; false if not. The next append does this by itself, and so does the writer's helper thread
    /// once nothing has been appended for 10 s, or for that time if it is shorter: this is for who needs it sooner, or
    /// has a system without `membarrier`. True as well if the helper has done it since the last call or append.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn roll_if_due(&mut self) -> Result<bool> {
        let rolls = self.counted.stats.rolls;
        self.enter()?;
        let now_ns = clock::now_ns();
        let rolled = if now_ns >= self.roll_at_ns && self.has_messages() { self.make_room(0, now_ns) } else { Ok(()) };
        self.leave();
        rolled.map(|()| self.counted.stats.rolls > rolls)
    }

    /// How large the next segment is if this one gets full.
    fn size_after_full(&self, is_fast: bool) -> WantedSize {
        WantedSize::after((self.context.segment_size, is_fast), 0, self.store.settings().segment_size)
    }

    /// Whether this writer fills the segment so quickly that the next one may be larger, with huge pages.
    pub(in crate::queue) fn is_fast(&self) -> bool {
        let bytes = self.offset.saturating_sub(self.counted.from_offset);
        self.pages.is_for_fast_writer() || prefault::is_fast(bytes, self.entered.elapsed())
    }

    /// Whether the active segment has any.
    fn has_messages(&self) -> bool {
        self.offset > self.context.records_start()
    }

    /// The timestamp of the active segment's first message.
    pub(in crate::queue) fn first_timestamp_ns(&self) -> Option<u64> {
        // Timestamps never decrease: a damaged one is not later than the newest.
        self.segment.first_timestamp_ns().map(|first_ns| first_ns.min(self.last_timestamp_ns))
    }

    /// Makes sure that the file has room for the next stores.
    fn populate(&mut self, offset: u32, len: u32) -> Result<()> {
        let populated = self.map.populate(offset, len as usize);
        if populated.is_err() {
            self.check()?;
        }
        populated.map_err(Error::io(&self.segment.path, "reserve space for a message in it"))
    }

    /// Where a record of this segment must end at the latest: the seal fits after it.
    fn segment_limit(&self) -> u32 {
        layout::records_end(self.context.segment_size) - HEADER_LEN
    }

    pub(in crate::queue) fn next_soft_limit(&self, after: u32) -> u32 {
        (after / layout::HEAD_EVERY + 1).saturating_mul(layout::HEAD_EVERY).min(self.segment_limit())
    }

    /// Continues in the next segment, where there will be room for a record of `record_len` bytes.
    fn roll(&mut self, record_len: u32) -> Result<()> {
        self.check()?;
        let geometry = self.store.refresh();
        let is_fast = self.is_fast();
        let size = WantedSize::after((self.offset, is_fast), record_len, geometry.settings.segment_size);
        let size = self.wait_for_room(size)?;
        let next = self.supply.take(self.store.id_after(self.segment.id)?, size, is_fast)?;
        self.populate(SEGMENT_SEAL, HEADER_LEN)?;
        self.populate(self.offset, HEADER_LEN)?;
        let Prepared { segment, map } = &next;
        if !segment::change_over(&geometry, (&self.map, &self.context), &self.head_now(), (segment, map)) {
            return Err(map.loss(&segment.file, &segment.path, MAY_BE_MISSING));
        }
        self.go_on_in(next);
        self.waker.published(&self.control);
        self.check_poison()
    }

    /// Makes sure that the helper does not end the segment before [`leave`](Self::leave), or the next record; goes on
    /// in the next segment if it has done so.
    pub(in crate::queue) fn enter(&mut self) -> Result<()> {
        self.check_origin()?;
        if let Some((end, next)) = self.turn.take(self.offset) {
            // The helper has published a head, too.
            self.head = HeadPublisher::new(&self.control);
            if end != self.head_now() {
                self.poisoned = Some(format!("{}: {OTHER_END}", self.segment.path.display()));
                return self.check_poison();
            }
            self.go_on_in(next);
        }
        Ok(())
    }

    /// No append is under way.
    pub(in crate::queue) fn leave(&self) {
        self.turn.gate.leave(self.offset);
    }

    /// Appends go into this segment, which has been started; the one before is sealed.
    fn go_on_in(&mut self, Prepared { segment, map }: Prepared) {
        let (context, settings) = (segment.context, self.store.settings());
        // A busy writer soon needs another one.
        let largest = settings.segment_size;
        let is_busy = context.segment_size == largest && self.offset >= largest / 2;
        self.ask_at = if is_busy { 0 } else { context.segment_size / 2 };
        self.counted.stats.rolls += 1;
        self.counted.stats.bytes += u64::from(self.offset.saturating_sub(self.counted.from_offset));
        (self.offset, self.context) = (context.records_start(), context);
        self.counted.from_offset = self.offset;
        self.ahead = ClearAhead::default();
        self.max_payload_len = settings.max_payload_len();
        if !self.map.has_stores() {
            // The next writer seals it.
            self.poisoned = Some(self.loss().to_string());
        }
        self.map = map;
        let left = std::mem::replace(&mut self.segment, segment);
        // Before the helper knows the segment: what it asks the gate then, and what retention removes, depends on these.
        self.turn.go_on_at(self.offset);
        self.publish_head();
        self.supply.set_active(&self.segment, &self.map, Some(left));
        self.pages.set_active(&self.map, prefault::AT_FIRST);
        self.entered = Instant::now();
    }

    /// A handle that ends waits for room ([`WhenFull::Wait`]) with [`Error::Stopped`]; the message is not appended.
    pub fn stopper(&mut self) -> Stopper {
        self.stopper.get_or_insert_default().clone()
    }

    /// From now on, this stopper ends its waits, instead of the one before.
    pub fn set_stopper(&mut self, stopper: &Stopper) {
        self.stopper = Some(stopper.clone());
    }

    /// The size of one more segment that the queue's limit allows; waits for that if the writer was opened with that
    /// option.
    fn wait_for_room(&mut self, size: WantedSize) -> Result<WantedSize> {
        let start = Instant::now();
        let room = self.look_for_room(size, start);
        if matches!(self.options.when_full, WhenFull::Wait(_)) {
            self.counted.stats.waited += start.elapsed();
        }
        room
    }

    fn look_for_room(&mut self, size: WantedSize, start: Instant) -> Result<WantedSize> {
        loop {
            match (self.within_limit(size, true), self.options.when_full) {
                (Err(Error::QueueFull { .. }), WhenFull::Wait(longest)) if start.elapsed() < longest => {
                    stop::check(self.stopper.as_ref(), self.store.dir.path())?;
                    // Readers commit without a system call: nothing could wake us.
                    let left = longest.saturating_sub(start.elapsed());
                    stop::sleep(self.stopper.as_ref(), LOOK_FOR_ROOM_EVERY.min(left));
                }
                (answer, _) => return answer,
            }
        }
    }

    /// The size of one more segment that the queue's limit allows: a smaller one if that is all, and `is_urgent`.
    fn within_limit(&self, size: WantedSize, is_urgent: bool) -> Result<WantedSize> {
        let Some(max_bytes) = self.store.settings().max_bytes else {
            return Ok(size);
        };
        // A new file is created only if there is no spare, so that spares need not be counted.
        let room = || Ok(max_bytes.saturating_sub(self.store.bytes_until(self.segment.id)?));
        let mut left = room()?;
        let full = || Error::QueueFull { path: self.store.dir.path().to_path_buf(), max_bytes };
        // Retention may now be able to remove segments that it could not remove after the last roll.
        if left < u64::from(size.best) && (self.store.hook.is_set() || !is_urgent) {
            self.supply.request_retention();
            if !is_urgent {
                return Err(full());
            }
        } else if left < u64::from(size.best) && !self.store.retain(Retire::ForReuse)?.removed.is_empty() {
            left = room()?;
        }
        size.within(left).ok_or_else(full)
    }
}

impl Store {
    /// When a segment ends whose first message has this timestamp; the latest time there is if time does not end it.
    pub(in crate::queue) fn end_of_period(&self, first_timestamp_ns: u64) -> u64 {
        let period_ns = self.settings().roll_period_ns();
        period_ns
            .map_or(u64::MAX, |period_ns| (first_timestamp_ns / period_ns).saturating_add(1).saturating_mul(period_ns))
    }

    /// Applies retention, and first ends the active segment if its time is over and there is no writer that would. It
    /// opens one, which publishes the head as well.
    pub(crate) fn apply_retention(self: &Arc<Self>) -> Result<Retention> {
        // First: it may make the room that a new segment needs.
        let first = self.retain(Retire::ForGood)?;
        let now_ns = clock::now_ns();
        let is_over = first.active.as_ref().and_then(|active| active.ends_ns).is_some_and(|ends_ns| now_ns >= ends_ns);
        if !is_over && !first.lacks_head {
            return Ok(first);
        }
        let before = self.segment_infos(&self.bounds()?)?;
        let options = WriterOptions { as_standby: self.geometry().is_standby, ..WriterOptions::default() };
        match QueueWriter::open(self, &options).and_then(|mut writer| writer.roll_if_due()) {
            Err(Error::Locked { .. } | Error::QueueFull { .. }) => return Ok(first),
            rolled => drop(rolled?),
        }
        let second = self.retain(Retire::ForGood)?;
        // That writer has applied retention, too.
        let left = self.segment_ids()?;
        let gone =
            before.into_iter().filter(|info| !left.contains(&info.id)).map(|info| SegmentInfo { sealed: true, ..info });
        Ok(Retention { removed: first.removed.into_iter().chain(gone).collect(), ..second })
    }

    /// The segment that takes messages, if it has some.
    pub(in crate::queue) fn active_segment(&self, bounds: &Bounds) -> Option<ActiveSegment> {
        let segment = self.open_segment(bounds.head.segment, Access::Read).ok()??;
        let oldest_ns = segment.first_timestamp_ns()?.min(bounds.last_timestamp_ns);
        let ends_ns = Some(self.end_of_period(oldest_ns)).filter(|&ends_ns| ends_ns < u64::MAX);
        Some(ActiveSegment { id: segment.id, oldest_ns, ends_ns })
    }
}
