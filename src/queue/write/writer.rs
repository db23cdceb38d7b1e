//! The writer: appends messages, one writer per queue.
//!
//! An append is: check, fill, clear the commit word after the new record, store the commit word (Release), check for
//! sleepers. Everything else (a new segment, pages, the published head) is reached through one comparison with
//! the soft limit, which the helper thread may set to 0 (`gate.rs`). Invariants:
//! - The commit word where the next record will start is zero before its predecessor is published (`ahead.rs`): readers
//!   and recovery never see what an aborted append or an earlier use of the file left there.
//! - A record that ends at `soft_limit` or before leaves room for the record that seals the segment.
//! - The next segment exists and is started before the old one is sealed: after a seal there is always a segment.
//! - An error leaves the queue as it was.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use zerocopy::FromZeros;

use crate::clock::{self, FastClock};
use crate::queue::entry::Entry;
use crate::queue::error::{Error, Result};
use crate::queue::files::control;
use crate::queue::files::control::{Geometry, HeadHint, HeadPublisher};
use crate::queue::files::lock::WriterLock;
use crate::queue::files::mtime;
use crate::queue::files::segment::{self, Segment};
use crate::queue::files::settings;
use crate::queue::files::store::Store;
use crate::queue::format::layout::{self, CONTROL_WRITER, PADDING_TYPE, RECORDS_START, WriterBlock};
use crate::queue::format::record::{Header, RecordContext, checked_len};
use crate::queue::options::WriterOptions;
use crate::queue::os::mapping::{CACHE_LINE, CUT_SHORT, Mapping};
use crate::queue::os::origin::Origin;
use crate::queue::position::{Position, SegmentId};
use crate::queue::read::scan::Scanner;
use crate::queue::wait::stop::Stopper;
use crate::queue::wait::wake::Waker;
use crate::queue::write::ahead::ClearAhead;
use crate::queue::write::burst::{BURST_NS, Burst};
use crate::queue::write::growth::WantedSize;
use crate::queue::write::handover::{Prepared, Turn};
use crate::queue::write::housekeeper::Housekeeper;
use crate::queue::write::prefault::Prefaulter;
use crate::queue::write::recover::{Tail, TailPlace, recover};
use crate::queue::write::stats::{Counted, WriterStats};
use crate::sync::Ordering;

pub(in crate::queue) const MAY_BE_MISSING: &str = "what was appended last may be missing";
const HALF_STORED: &str =
    "no space left on device for all of a message, which is incomplete; those before it are complete";

/// How far ahead of the writer the cache lines of long records are prefetched.
const PREFETCH_AHEAD: u32 = 1024;
/// Records up to this length need no prefetch: what is cleared ahead is in the cache.
const SHORT: u32 = 256;

/// The one writer of a queue. Holds the writer lock until it is dropped.
///
/// ```
/// # use chronfs::queue::{Queue, Settings};
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("orders"), &Settings::default())?;
/// let mut writer = queue.writer()?;
/// assert_eq!(writer.append(1, b"hello")?, 1);
/// assert_eq!(writer.append(1, b"world")?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct QueueWriter {
    pub(in crate::queue) map: Arc<Mapping>,
    pub(in crate::queue) offset: u32,
    pub(in crate::queue) ahead: ClearAhead,
    /// Holds the soft limit.
    pub(in crate::queue) turn: Arc<Turn>,
    /// A message of this time or later starts a new segment.
    pub(in crate::queue) roll_at_ns: u64,
    pub(in crate::queue) context: RecordContext,
    pub(in crate::queue) next_seq: u64,
    pub(in crate::queue) last_timestamp_ns: u64,
    burst: Burst,
    pub(in crate::queue) max_payload_len: usize,
    pub(in crate::queue) clock: FastClock,
    pub(in crate::queue) control: Arc<Mapping>,
    pub(in crate::queue) waker: Waker,
    /// When this sequence number is reached, a sync in the background is asked for.
    pub(in crate::queue) sync_at_seq: u64,
    // An append that stays within `soft_limit` touches none of the fields from here on.
    pub(in crate::queue) segment: Segment,
    pub(in crate::queue) store: Arc<Store>,
    pub(in crate::queue) head: HeadPublisher,
    pub(in crate::queue) supply: Housekeeper,
    pub(in crate::queue) pages: Prefaulter,
    /// At this offset the next segment is requested; the largest offset means that it has been.
    pub(in crate::queue) ask_at: u32,
    /// When the writer went on in this segment, at `counted.from_offset`.
    pub(in crate::queue) entered: Instant,
    /// The first segment that may hold unsynced messages.
    pub(in crate::queue) unsynced: SegmentId,
    pub(in crate::queue) poisoned: Option<String>,
    /// The latest timestamp that a caller may pass, as of the last reading of the clock.
    pub(in crate::queue) latest_ns: u64,
    pub(in crate::queue) options: WriterOptions,
    pub(in crate::queue) stopper: Option<Stopper>,
    pub(in crate::queue) counted: Counted,
    origin: Origin,
    _lock: Arc<WriterLock>,
}

impl QueueWriter {
    /// Takes the lock, repairs what a killed writer left, and continues after the last message.
    pub(crate) fn open(store: &Arc<Store>, options: &WriterOptions) -> Result<Self> {
        let lock = WriterLock::take(&store.dir)?;
        let control = Arc::new(settings::map_for_writing(&store.dir, &store.refresh())?);
        check_role(store, options)?;
        lock.check_alone(&store.dir, &control)?;
        let lock = Arc::new(lock);
        let tail = recover(store, options.refill)?;
        let supply = Housekeeper::start(Arc::clone(store), Arc::clone(&control), Arc::clone(&lock), options)?;
        let (next_seq, last_timestamp_ns) = (tail.next_seq, tail.last_timestamp_ns);
        let (segment, map, offset) = enter(store, &supply, tail)?;
        if !map.has_stores() {
            return Err(map.loss(&segment.file, &segment.path, MAY_BE_MISSING));
        }
        // From here on nothing can fail: a failed attempt to become the writer leaves no trace.
        let waker = Waker::new();
        announce_writer(&control, waker, &lock);
        supply.set_active(&segment, &map, None);
        let pages = Prefaulter::new(&map, offset, options.helper_cpus);
        let mut writer = Self {
            offset,
            ahead: ClearAhead::default(),
            turn: supply.turn(),
            roll_at_ns: 0,
            context: segment.context,
            next_seq,
            last_timestamp_ns,
            burst: Burst::new(next_seq),
            max_payload_len: store.settings().max_payload_len(),
            clock: FastClock::new(),
            head: HeadPublisher::new(&control),
            waker,
            // Earlier writers may have ended without a sync.
            unsynced: SegmentId(0),
            poisoned: None,
            latest_ns: 0,
            options: *options,
            stopper: None,
            counted: Counted { from_seq: next_seq, from_offset: offset, ..Counted::default() },
            origin: Origin::here(),
            sync_at_seq: options.sync.next_sync(next_seq),
            store: Arc::clone(store),
            map,
            // Many writers append little: wait for a sign that the next segment will be needed.
            ask_at: segment.context.segment_size / 2,
            entered: Instant::now(),
            segment,
            control,
            supply,
            pages,
            _lock: lock,
        };
        writer.roll_at_ns = writer.store.end_of_period(writer.first_timestamp_ns().unwrap_or(0));
        writer.ahead.set_limit(writer.next_soft_limit(offset));
        writer.turn.open(writer.next_soft_limit(offset), writer.head_now(), writer.roll_at_ns);
        writer.publish_head();
        // Readers that wait at the end of a segment that we have left must check again.
        Waker::wake(&writer.control);
        writer.counted.from_wake = writer.control.word(layout::CONTROL_NOTIFY_SEQ).load(Ordering::Relaxed);
        writer.leave();
        Ok(writer)
    }

    /// Appends a message with the current time; when this returns, every reader sees it. Returns its sequence number.
    ///
    /// The timestamp is the wall clock's, or the newest message's if the clock has gone back.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::ReservedType`], [`Error::QueueFull`], and [`Error::Io`] if there is no room for a
    /// new segment. Then nothing has changed, and a later append may succeed. [`Error::Poisoned`] if this or an earlier
    /// message could not be stored, in part or whole, although room had been reserved for it.
    #[inline]
    pub fn append(&mut self, msg_type: u16, payload: &[u8]) -> Result<u64> {
        let timestamp_ns = self.now_ns();
        self.append_record(timestamp_ns, msg_type, payload)
    }

    /// Appends a message with an explicit timestamp (nanoseconds since the epoch): for imports and replays, and for
    /// messages that share one ([`now_ns`](Self::now_ns)).
    ///
    /// # Errors
    /// [`Error::TimestampInPast`] if it is before the newest message's, [`Error::TimestampInFuture`] if it is after that
    /// and further ahead of the clock than [`WriterOptions::max_ahead`]; otherwise as [`append`](Self::append).
    #[inline]
    pub fn append_at(&mut self, timestamp_ns: u64, msg_type: u16, payload: &[u8]) -> Result<u64> {
        self.check_timestamp(timestamp_ns)?;
        self.append_record(timestamp_ns, msg_type, payload)
    }

    #[inline]
    fn append_record(&mut self, timestamp_ns: u64, msg_type: u16, payload: &[u8]) -> Result<u64> {
        let seq = self.publish(timestamp_ns, msg_type, payload)?;
        self.waker.published(&self.control);
        Ok(seq)
    }

    /// Appends without waking readers.
    #[inline]
    pub(in crate::queue) fn publish(&mut self, timestamp_ns: u64, msg_type: u16, payload: &[u8]) -> Result<u64> {
        let (payload_len, record_len) = self.claim(timestamp_ns, msg_type, payload.len())?;
        let header = Header { payload_len, msg_type, flags: 0, seq: self.next_seq, timestamp_ns };
        let mut place = self.map.place(self.offset, record_len);
        let words = header.words_and_copy(&self.context, self.offset, payload, place.body());
        self.ahead.commit(place, self.offset + record_len, words);
        // One check after the last store: another one before it would cost half a nanosecond.
        if !self.map.has_stores() {
            return self.publish_again(timestamp_ns, msg_type, payload, record_len);
        }
        Ok(self.advance(record_len, timestamp_ns))
    }

    #[cold]
    #[inline(never)]
    fn publish_again(&mut self, timestamp_ns: u64, msg_type: u16, payload: &[u8], record_len: u32) -> Result<u64> {
        if self.map_again(record_len, timestamp_ns)? {
            return Ok(self.advance(record_len, timestamp_ns));
        }
        self.publish(timestamp_ns, msg_type, payload)
    }

    /// Maps the segment again after a store for the next record found no room. Returns whether all of that record is there
    /// nevertheless, because what had no room was stored after it; if not, makes room for it.
    ///
    /// # Errors
    /// [`Error::Io`] if there is still none: nothing has changed, and a later append may succeed. [`Error::Poisoned`]
    /// if the segment is not as the writer left it, or can't be read.
    #[cold]
    pub(in crate::queue) fn map_again(&mut self, record_len: u32, timestamp_ns: u64) -> Result<bool> {
        self.enter()?;
        self.turn.close();
        self.poisoned = self.supply.failure();
        if self.poisoned.is_some() || self.segment.is_cut_short()? {
            self.check()?;
        }
        let after = self.offset + record_len;
        // Readers may see the record: where that is unknown, no other may be stored there.
        let is_stored = match self.stored_to() {
            Ok(Some(end)) if end == self.offset || end == after => end == after,
            Ok(_) => return self.stop_here(HALF_STORED),
            Err(error) => return self.stop_here(&error.to_string()),
        };
        self.ahead.forget();
        // Nothing is cleared before the next append makes room: the gate is closed.
        self.ahead.set_limit(self.offset);
        match Mapping::read_write(&self.segment.file, &self.segment.path, self.context.segment_size) {
            Ok(map) => self.map = Arc::new(map),
            // The next append tries again.
            Err(_) if is_stored => return Ok(true),
            Err(error) => return Err(error),
        }
        self.supply.set_active(&self.segment, &self.map, None);
        self.pages.set_active(&self.map, self.offset);
        self.pages.set_short_of_room(true);
        if !is_stored {
            self.make_room(record_len, timestamp_ns)?;
        }
        Ok(is_stored)
    }

    fn stop_here(&mut self, why: &str) -> Result<bool> {
        self.poisoned = Some(format!("{}: {why}", self.segment.path.display()));
        self.check_poison().map(|()| false)
    }

    /// Why the active segment's mapping is lost.
    pub(in crate::queue) fn loss(&self) -> Error {
        self.map.loss(&self.segment.file, &self.segment.path, MAY_BE_MISSING)
    }

    /// Where the last record in the active segment's file ends; None if one that was appended to it is missing.
    fn stored_to(&self) -> Result<Option<u32>> {
        let Some(start) = self.segment.start() else {
            return Ok(None);
        };
        let position = Position { segment: self.segment.id, offset: RECORDS_START };
        let mut scanner = Scanner::at(Arc::clone(&self.store), position, start.first_seq);
        while let Some(entry) = scanner.next()? {
            if matches!(entry, Entry::Gap(gap) if !gap.reason.is_jump()) {
                return Ok(None);
            }
        }
        let Position { segment, offset } = scanner.position();
        Ok((segment == self.segment.id).then_some(offset))
    }

    /// Makes sure that a record of this payload and time may start at `offset`. Returns the lengths of payload and
    /// record.
    #[inline]
    pub(in crate::queue) fn claim(
        &mut self,
        timestamp_ns: u64,
        msg_type: u16,
        payload_len: usize,
    ) -> Result<(u32, u32)> {
        self.origin.check(self.store.dir.path())?;
        let payload_len = self.checked_len(payload_len, msg_type)?;
        let record_len = self.context.record_len(payload_len);
        // One branch for both.
        if (self.offset + record_len > self.turn.gate.enter(self.offset)) | (timestamp_ns >= self.roll_at_ns) {
            return self.claim_slowly(timestamp_ns, payload_len);
        }
        Ok((payload_len, record_len))
    }

    #[cold]
    #[inline(never)]
    fn claim_slowly(&mut self, timestamp_ns: u64, payload_len: u32) -> Result<(u32, u32)> {
        self.enter()?;
        let record_len = self.context.record_len(payload_len);
        let room = if self.map.has_stores() {
            self.make_room(record_len, timestamp_ns)
        } else {
            // Clearing ahead found no room. Nobody was told of a record that is there nevertheless.
            self.map_again(record_len, timestamp_ns)
                .and_then(|is_stored| if is_stored { self.stop_here(HALF_STORED).map(drop) } else { Ok(()) })
        };
        room.inspect_err(|_| self.leave())?;
        // The next segment may have another alignment.
        Ok((payload_len, self.context.record_len(payload_len)))
    }

    pub(in crate::queue) fn check_origin(&self) -> Result<()> {
        self.origin.check(self.store.dir.path())
    }

    /// The payload's length, if such a message may be appended.
    #[inline]
    pub(in crate::queue) fn checked_len(&mut self, payload_len: usize, msg_type: u16) -> Result<u32> {
        match checked_len(payload_len, self.max_payload_len, msg_type) {
            Some(len) => Ok(len),
            None => self.checked_len_now(payload_len, msg_type),
        }
    }

    /// Likewise, as the settings are now: they may allow larger messages than the writer knows of.
    #[cold]
    #[inline(never)]
    fn checked_len_now(&mut self, len: usize, msg_type: u16) -> Result<u32> {
        if msg_type == PADDING_TYPE {
            return Err(Error::ReservedType);
        }
        self.max_payload_len = self.store.refresh().settings.max_payload_len();
        let max = self.max_payload_len;
        checked_len(len, max, msg_type).ok_or_else(|| Error::TooLarge { path: self.path(), len, max })
    }

    /// Advances past the record just published.
    #[inline]
    pub(in crate::queue) fn advance(&mut self, record_len: u32, timestamp_ns: u64) -> u64 {
        let seq = self.next_seq;
        // Never negative: `now_ns` and `check_timestamp` see to that.
        let since_last_ns = timestamp_ns.wrapping_sub(self.last_timestamp_ns);
        let start = self.offset;
        self.offset += record_len;
        self.next_seq = seq + 1;
        self.last_timestamp_ns = timestamp_ns;
        let is_after_pause = self.burst.is_over(since_last_ns, seq);
        if is_after_pause {
            // Not while long messages follow each other as quickly as they can be copied.
            if since_last_ns >= BURST_NS + u64::from(record_len) {
                self.map.demote(start, record_len + start % CACHE_LINE);
            }
            self.ahead.advance(&self.map, self.offset);
        }
        if !is_after_pause || record_len > SHORT {
            self.map.prefetch_for_write(self.offset + PREFETCH_AHEAD, record_len);
        }
        if self.next_seq >= self.sync_at_seq {
            self.request_sync();
        }
        seq
    }

    /// Checks that everything appended so far is in the queue's files: fails if one of them has been truncated, or if
    /// the disk has refused a write in the background. An append notices that too, but perhaps only every 64 KiB.
    ///
    /// # Errors
    /// [`Error::Poisoned`], with the reason. Every later append fails likewise; readers continue.
    pub fn check(&mut self) -> Result<()> {
        self.origin.check(self.store.dir.path())?;
        if self.poisoned.is_none() && self.segment.is_cut_short()? {
            self.poisoned = Some(format!("{}: {CUT_SHORT}; {MAY_BE_MISSING}", self.segment.path.display()));
        }
        self.check_poison()
    }

    /// Whether the writer has stopped because a store had no room, so that another writer may continue. After a failed
    /// sync it may not: a new writer would report that all is well.
    #[cfg_attr(not(feature = "mount"), allow(dead_code))]
    pub(crate) fn has_lost_its_place(&self) -> bool {
        let is_lost = self.map.is_lost() || self.control.is_lost();
        self.poisoned.is_some() && is_lost && self.supply.failure().is_none()
    }

    /// Like [`check`](Self::check), without a system call.
    pub(in crate::queue) fn check_poison(&mut self) -> Result<()> {
        if self.poisoned.is_none() {
            let of_control = || control::loss(&self.store.dir, &self.control, MAY_BE_MISSING).to_string();
            let lost = self.map.is_lost().then(|| self.loss().to_string());
            let lost = lost.or_else(|| self.control.is_lost().then(of_control));
            // The helper has marked the mapping as lost.
            self.poisoned = self.supply.failure().or(lost);
        }
        match &self.poisoned {
            Some(reason) => {
                self.turn.close();
                Err(Error::Poisoned { path: self.store.dir.path().to_path_buf(), reason: reason.clone() })
            }
            None => Ok(()),
        }
    }

    pub(in crate::queue) fn publish_head(&mut self) {
        let head = self.head_now();
        self.head.publish(&self.control, head);
    }

    pub(in crate::queue) fn head_now(&self) -> HeadHint {
        let position = Position { segment: self.segment.id, offset: self.offset };
        HeadHint { position, next_seq: self.next_seq, last_timestamp_ns: self.last_timestamp_ns }
    }

    /// The sequence number that the next message gets.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Timestamp of the newest message in nanoseconds since the epoch, 0 if there is none.
    pub fn last_timestamp_ns(&self) -> u64 {
        self.last_timestamp_ns
    }

    /// The largest payload that can be appended, in bytes.
    pub fn max_payload_len(&self) -> usize {
        self.max_payload_len
    }

    /// What the writer has done since it was opened.
    ///
    /// ```
    /// # use chronfs::queue::{Queue, Settings};
    /// # let dir = tempfile::tempdir()?;
    /// let mut writer = Queue::create(dir.path().join("q"), &Settings::default())?.writer()?;
    /// writer.append(1, b"hello")?;
    /// assert_eq!((writer.stats().appended, writer.stats().bytes), (1, 40));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stats(&self) -> WriterStats {
        let Counted { stats, from_seq, from_offset, from_wake, skipped } = &self.counted;
        let (synced, failed) = self.supply.syncs();
        WriterStats {
            appended: self.next_seq - from_seq - skipped,
            bytes: stats.bytes + u64::from(self.offset.saturating_sub(*from_offset)),
            wakes: self
                .control
                .word(layout::CONTROL_NOTIFY_SEQ)
                .load(Ordering::Relaxed)
                .wrapping_sub(*from_wake)
                .into(),
            syncs: stats.syncs + synced,
            failed_syncs: stats.failed_syncs + failed,
            ..*stats
        }
    }

    /// The queue's directory.
    pub fn path(&self) -> PathBuf {
        self.store.dir.path().to_path_buf()
    }
}

impl Drop for QueueWriter {
    fn drop(&mut self) {
        if !self.origin.is_here() {
            return;
        }
        // Without `leave`: the helper, which ends later, leaves the segment alone.
        let _ = self.enter();
        self.publish_head();
        self.control.word(layout::CONTROL_WRITER_PID).store(0, Ordering::Relaxed);
        let _ = mtime::touch(&self.segment.file);
        mtime::touch_control(&self.store);
    }
}

/// Whether the queue's role is the one that the writer is for.
fn check_role(store: &Store, options: &WriterOptions) -> Result<()> {
    let Geometry { is_standby, term, .. } = store.refresh();
    let path = || store.dir.path().to_path_buf();
    match (is_standby, options.as_standby) {
        (true, false) => Err(Error::Standby { path: path(), term }),
        (false, true) => Err(Error::NotStandby { path: path(), term }),
        _ => Ok(()),
    }
}

/// Writes the writer's identity into the control block.
fn announce_writer(control: &Mapping, waker: Waker, lock: &WriterLock) {
    let previous: WriterBlock = control.read(CONTROL_WRITER);
    let mut block = WriterBlock::new_zeroed();
    block.epoch = previous.epoch.get().wrapping_add(1).into();
    block.heartbeat_boot_ns = clock::boot_ns().into();
    block.asymmetric = u32::from(waker.asymmetric).into();
    lock.announce(&mut block);
    control.write(CONTROL_WRITER, &block);
}

/// Maps the segment where the writer continues, and starts it if it is a new one. Returns the offset there as well.
fn enter(store: &Store, supply: &Housekeeper, tail: Tail) -> Result<(Segment, Arc<Mapping>, u32)> {
    let id = match tail.place {
        TailPlace::Segment(segment, offset) => {
            let map = segment.map_for_writing(offset, layout::HEAD_EVERY)?;
            map.clear_record(offset);
            return Ok((segment, Arc::new(map), offset));
        }
        TailPlace::Fresh(id) => id,
    };
    let Prepared { segment, map } = supply.take(id, WantedSize::ANY, false)?;
    // The first segment starts with the first message, even if a power cut lost its messages: that is a gap.
    let (geometry, link) = (store.geometry(), store.link_before(segment.id)?);
    let first_seq = if segment.id == SegmentId(0) { geometry.first_seq } else { tail.next_seq };
    segment::start(&map, &geometry, &segment.context, first_seq, tail.last_timestamp_ns, link);
    let offset = segment.context.records_start();
    Ok((segment, map, offset))
}
