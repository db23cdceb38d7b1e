//! Opening readers, and moving them: where each start is, and the gap that is there instead.

use std::sync::Arc;
use std::time::Instant;

use crate::queue::entry::{Bounds, Entry, Gap, GapReason};
use crate::queue::error::Result;
use crate::queue::files::cursor::ReaderPosition;
use crate::queue::files::dir::Access;
use crate::queue::files::store::Store;
use crate::queue::format::layout::{CONTROL_FILE, CONTROL_LEN, MIN_SEGMENT_SIZE, RECORD_ALIGN, RECORDS_START};
use crate::queue::format::record::RecordContext;
use crate::queue::options::{ReaderOptions, Start};
use crate::queue::os::mapping::Mapping;
use crate::queue::position::Position;
use crate::queue::read::mapped::Walk;
use crate::queue::read::reader::{Reader, Registration};
use crate::queue::read::scan::Scanner;
use crate::queue::read::stats::ReaderStats;

impl Store {
    /// Where a reader with this start begins; None if it resumes.
    pub(crate) fn place_of(self: &Arc<Self>, start: Start, bounds: &Bounds) -> Result<Option<ReaderPosition>> {
        let at = |seq, position| Some(ReaderPosition { seq, position });
        Ok(match start {
            Start::Resume => None,
            Start::First => at(bounds.first_seq, Some(bounds.first)),
            Start::End => at(bounds.end_seq, Some(bounds.head)),
            // What has been retired stays the place: the reader gets the gap, even if it is killed before.
            Start::Seq(seq) => at(seq.max(self.geometry().first_seq).min(bounds.end_seq), None),
            Start::Time(timestamp_ns) => {
                let mut scanner = Scanner::at(Arc::clone(self), bounds.first, bounds.first_seq);
                scanner.seek_time(timestamp_ns)?;
                at(scanner.seq(), Some(scanner.position()))
            }
        })
    }

    /// Where a reader with this place continues, and the gap to report first.
    fn locate(self: &Arc<Self>, bounds: &Bounds, place: ReaderPosition) -> Result<(Position, u64, Option<Gap>)> {
        let gap = |from, to, reason, position| Some(Gap { from, to, reason, position });
        if place.seq < bounds.first_seq {
            let pending = gap(place.seq, bounds.first_seq - 1, GapReason::Retired, bounds.first);
            return Ok((bounds.first, bounds.first_seq, pending));
        }
        if place.seq > bounds.end_seq {
            let pending = gap(bounds.end_seq, place.seq - 1, GapReason::Lost, bounds.head);
            return Ok((bounds.head, bounds.end_seq, pending));
        }
        if place.seq >= bounds.next_seq {
            return Ok((bounds.head, place.seq, None));
        }
        let mut scanner = Scanner::at(Arc::clone(self), bounds.first, bounds.first_seq);
        let hint = place.position.filter(|position| position.offset >= RECORDS_START);
        if let Some(position) = hint {
            scanner.go_to(position, place.seq);
            let found = scanner.next()?.and_then(Entry::message);
            if found.is_some_and(|message| message.seq == place.seq && message.position == position) {
                return Ok((position, place.seq, None));
            }
        }
        scanner.seek_seq_within(place.seq, bounds)?;
        Ok((scanner.position(), scanner.seq(), None))
    }
}

impl<R: Registration> Reader<R> {
    pub(crate) fn open(
        store: &Arc<Store>,
        registration: R,
        place: ReaderPosition,
        bounds: &Bounds,
        options: &ReaderOptions,
    ) -> Result<Self> {
        let control = store.dir.open_existing_file(CONTROL_FILE, Access::Read)?;
        let control = Mapping::read_only(&control, &store.control_path(), CONTROL_LEN)?;
        let (position, seq, pending) = store.locate(bounds, place)?;
        Ok(Self {
            map: None,
            walk: Walk {
                // Until a segment is mapped.
                context: RecordContext::new(0, MIN_SEGMENT_SIZE, RECORD_ALIGN, false),
                position,
                seq,
                peeked: None,
                verify: options.verify,
                known_to: 0,
                learn_at: 0,
            },
            control,
            registration,
            strategy: options.wait,
            waiter: Arc::new(store.waiter()?),
            stopper: None,
            checked: Instant::now(),
            store: Arc::clone(store),
            lent: None,
            pending,
            stalled: None,
            stats: ReaderStats::default(),
            counted_from: seq,
        })
    }

    /// Moves to a message, or to the first one after it; to the head if it is after all of them. If retention has
    /// removed it, the gap comes first. A registered reader's position is not stored until it commits.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn seek_seq(&mut self, seq: u64) -> Result<()> {
        self.seek(Start::Seq(seq))
    }

    /// Moves to the first message with this timestamp (nanoseconds since the epoch) or a later one; otherwise as
    /// [`seek_seq`](Self::seek_seq), but without a gap: how many such messages retention has removed is unknown.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn seek_time(&mut self, timestamp_ns: u64) -> Result<()> {
        self.seek(Start::Time(timestamp_ns))
    }

    /// Moves to the first retained message; otherwise as [`seek_seq`](Self::seek_seq).
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn seek_first(&mut self) -> Result<()> {
        self.seek(Start::First)
    }

    /// Moves past the newest message; otherwise as [`seek_seq`](Self::seek_seq).
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn seek_end(&mut self) -> Result<()> {
        self.seek(Start::End)
    }

    fn seek(&mut self, start: Start) -> Result<()> {
        self.registration.check_origin()?;
        let bounds = self.store.bounds()?;
        if let Some(place) = self.store.place_of(start, &bounds)? {
            let (position, seq, pending) = self.store.locate(&bounds, place)?;
            self.jump(position, seq);
            self.pending = pending;
            self.registration.moved_to(self.seq());
        }
        Ok(())
    }

    /// How many messages there are that it has not read. Reads up to some 100 KiB at the head of the queue, however
    /// far that is: not for each message.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn lag(&self) -> Result<u64> {
        let bounds = self.store.bounds()?;
        Ok(bounds.next_seq.saturating_sub(self.seq().max(bounds.first_seq)))
    }
}
