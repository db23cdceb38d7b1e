//! A queue in one format as a file: a true size, and any range of its bytes at the cost of that range.
//!
//! It owns the [`Index`], the scanner that extends it, and a few idle cursors: sequential reads go on where an
//! earlier one ended, others start at the nearest mark. Messages are scanned and rendered without holding a lock that
//! other reads need; only one thread at a time extends the index.
//!
//! Invariants: the bytes at an offset never change, and the size never shrinks; the size counts whole units only;
//! nothing past the size is ever returned. If the queue no longer has what the index says (damage, retention), a read
//! fails rather than shift bytes.
//! Sealed segments that have an index of their own ([`SegmentIndexes`]) are not scanned: the index has their length.
//!
//! Lock order: `extender` before `index` before `pins`; the turn of `large` before `index`, and its other locks
//! last; `idle` alone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use super::index::{Growth, Index, Mark, Place, Skip, Whole};
use super::large_unit::LargeUnit;
use super::pins::{MAX_PINS, Pins};
use super::render_cursor::{Cursor, SMALL, Span};
use super::segment_index_file::SegmentIndex;
use super::segments::{Indexed, SegmentIndexes};
use super::{Format, Rendering, len_u64, len_usize, lock};
use crate::queue::layout::RECORDS_START;
use crate::queue::{Entry, Error, Gap, GapReason, Message, Position, Queue, Result, Scanner, SegmentId};

/// Idle cursors kept per view: this many sequential readers continue without a lookup.
const IDLE_MAX: usize = 4;
/// Messages scanned between two publications of a growing index.
const BATCH: usize = 4096;
/// Bytes that [`View::check`] reads at a time.
const CHECKED: u64 = 1 << 20;
/// What asking for a segment's index counts as, in messages scanned.
const WHOLE_COST: usize = 64;

/// A gap that a read of the bin format has crossed: nothing in its bytes shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Crossed {
    /// The gap.
    pub gap: Gap,
    /// The byte offset in the rendered file where it would be: what is before that offset was before the gap.
    pub offset: u64,
}

/// Everything retained of a queue in one format, as a file with random access. Shared between threads.
///
/// A view starts at a fixed message. When retention removes that, the view goes on with what it holds ([`View::pin`])
/// and what is retained: its size stays, reads of other removed messages fail with [`Error::NoSuchPosition`]. Messages
/// that are removed before they count in its size are a gap. A new view then starts at the first retained message.
///
/// ```no_run
/// use chronfs::queue::Queue;
/// use chronfs::view::{Format, View};
///
/// let view = View::new(&Queue::open("bus/market_data/queue/btc")?, Format::Jsonl)?;
/// let size = view.size()?;
/// let mut last_kib = Vec::new();
/// view.read_at(size.saturating_sub(1024), 1024, &mut last_kib)?;
/// # Ok::<(), chronfs::Error>(())
/// ```
#[derive(Debug)]
pub struct View {
    pub(crate) queue: Queue,
    rendering: Rendering,
    end_seq: Option<u64>,
    /// Nothing of the segments that follow it is in the file.
    last_segment: Option<SegmentId>,
    index: RwLock<Index>,
    segments: Option<Arc<SegmentIndexes>>,
    extender: Mutex<Extender>,
    /// The most recently used one last.
    idle: Mutex<VecDeque<Cursor>>,
    large: LargeUnit,
    pins: Mutex<Pins>,
}

/// Extends the index.
#[derive(Debug, Default)]
struct Extender {
    /// At the end of the index, if it is open.
    scanner: Option<Scanner>,
    /// The segment that the index ends in, and where that ends if it was sealed when the index came there: the
    /// sealing record's offset and the sequence number after it.
    segment: Option<(SegmentId, Option<(u32, u64)>)>,
}

impl View {
    /// From the first retained message on. Reads no messages yet.
    ///
    /// # Errors
    /// Those of [`Queue::bounds`].
    pub fn new(queue: &Queue, rendering: impl Into<Rendering>) -> Result<View> {
        let bounds = queue.bounds()?;
        Ok(View::since(queue, rendering, bounds.first, bounds.first_seq))
    }

    /// From a place on, as returned by the queue's [`Scanner::position`] and [`Scanner::seq`], or by [`Queue::bounds`].
    pub fn since(queue: &Queue, rendering: impl Into<Rendering>, position: Position, seq: u64) -> View {
        View {
            queue: queue.clone(),
            rendering: rendering.into(),
            end_seq: None,
            last_segment: None,
            index: RwLock::new(Index::new(position, seq)),
            segments: None,
            extender: Mutex::default(),
            idle: Mutex::new(VecDeque::new()),
            large: LargeUnit::default(),
            pins: Mutex::default(),
        }
    }

    /// The messages of one segment, of which `first_seq` is the first. The file grows until the segment is full.
    pub(crate) fn segment(queue: &Queue, format: Format, segment: SegmentId, first_seq: u64) -> View {
        let start = Position { segment, offset: RECORDS_START };
        View { last_segment: Some(segment), ..View::since(queue, format, start, first_seq) }
    }

    /// Ends the file before message `end_seq`: for a snapshot, the sequence number of the next message at that time.
    /// Must be set before anything is read.
    #[must_use]
    pub fn until(self, end_seq: u64) -> View {
        View { end_seq: Some(end_seq), ..self }
    }

    /// Shares the indexes of sealed segments with other views, unless payloads are decoded. Must be set before anything is read.
    #[must_use]
    pub(crate) fn with_segments(self, segments: &Arc<SegmentIndexes>) -> View {
        View { segments: self.rendering.is_indexed().then(|| Arc::clone(segments)), ..self }
    }

    /// The format.
    pub fn format(&self) -> Format {
        self.rendering.format()
    }

    /// The size in bytes now: extends the index to the head first, which may mean scanning everything; see
    /// [`View::known_size`] and [`View::index_some`].
    ///
    /// # Errors
    /// I/O errors.
    pub fn size(&self) -> Result<u64> {
        self.extend(u64::MAX, usize::MAX)?;
        Ok(self.known_size())
    }

    /// The size in bytes as far as the index reaches; waits for nothing.
    pub fn known_size(&self) -> u64 {
        self.index().end().offset
    }

    /// Timestamp of the newest message that [`View::known_size`] counts, ns since the epoch; 0 if there is none.
    pub fn modified_ns(&self) -> u64 {
        self.index().modified_ns()
    }

    /// Appends up to `len` bytes from `offset` on to `out`: fewer only at the end, and before what retention has
    /// removed. Extends the index if it does not reach that far.
    /// In bin, gaps are not in the bytes: the first one crossed is returned (one at `offset` is, one at the end not).
    /// The other formats show gaps, and never return any.
    ///
    /// # Errors
    /// [`Error::NoSuchPosition`] if retention has removed messages of that range, [`Error::Damaged`] if the queue no
    /// longer has there what it had before; I/O errors. `out` is unchanged then.
    pub fn read_at(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<Option<Crossed>> {
        let wanted = offset.saturating_add(len_u64(len));
        if wanted > self.known_size() {
            self.extend(wanted, usize::MAX)?;
        }
        let (to, marks) = {
            let index = self.index();
            let to = wanted.min(index.end().offset);
            if offset >= to {
                return Ok(None);
            }
            (to, index.span(offset, to))
        };
        let marks = self.unfold(marks, offset, to);
        let before = out.len();
        let mut result = self.copy(&marks, offset, to, out).map(|(crossed, _)| crossed);
        if matches!(result, Err(Error::NoSuchPosition { .. } | Error::Damaged { .. } | Error::Refused { .. })) {
            out.truncate(before);
            if let (Err(Error::Damaged { .. } | Error::Refused { .. }), Some(segments)) = (&result, &self.segments) {
                marks.iter().for_each(|mark| segments.refuse(mark.place.position.segment));
            }
            if let Some(held) = self.copy_held(&marks, offset, to, out) {
                result = held;
            }
        }
        if result.is_err() {
            out.truncate(before);
        }
        result
    }

    /// Extends the index by at most about `budget` messages; false when at the head. For a background thread.
    ///
    /// # Errors
    /// I/O errors.
    pub fn index_some(&self, budget: usize) -> Result<bool> {
        self.extend(u64::MAX, budget)
    }

    /// Holds segments of the index open, a bounded number, so that they can be read after retention has removed them.
    pub fn pin(&self) {
        self.pin_first(usize::MAX);
    }

    /// As [`View::pin`], of the first `count` segments. False if one of them is gone already.
    pub(crate) fn pin_first(&self, count: usize) -> bool {
        let index = self.index();
        lock(&self.pins).extend(&self.queue, &index, count.min(MAX_PINS))
    }

    /// Whether there is a gap, as far as it is indexed, that its bytes don't show.
    pub(crate) fn has_hidden_gap(&self) -> bool {
        self.format() == Format::Bin && self.index().has_gap()
    }

    /// Whether the file is complete.
    pub(crate) fn is_closed(&self) -> bool {
        self.index().is_closed()
    }

    /// Releases what [`View::pin`] holds, and the memory of a long message that was read.
    pub fn unpin(&self) {
        lock(&self.pins).clear();
        self.large.forget();
    }

    /// Closes files and frees buffers; the index stays. For when the file is not open.
    pub fn trim(&self) {
        self.unpin();
        lock(&self.extender).scanner = None;
        lock(&self.idle).clear();
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, growth: Growth) {
        self.index.write().unwrap_or_else(PoisonError::into_inner).put(growth);
    }

    /// Where the unit ends that has the byte at `offset`, which must be before [`View::known_size`].
    pub(crate) fn unit_end(&self, offset: u64) -> Result<u64> {
        let marks = self.index().span(offset, offset + 1);
        let marks = self.unfold(marks, offset, offset + 1);
        Ok(self.copy(&marks, offset, offset + 1, &mut Vec::new())?.1)
    }

    /// Reads all of a segment once more.
    ///
    /// # Errors
    /// As [`View::read_at`]; it exists to find them.
    pub(crate) fn check(&self, segment: SegmentId) -> Result<()> {
        self.large.forget();
        let (mut at, end) = self.index().range(segment);
        let mut bytes = Vec::new();
        while at < end {
            bytes.clear();
            self.read_at(at, len_usize((end - at).min(CHECKED)), &mut bytes)?;
            at += len_u64(bytes.len()).max(1);
        }
        Ok(())
    }

    /// Returns the gap that was crossed, and the end of the last unit that was read from.
    fn copy(&self, marks: &[Mark], from: u64, to: u64, out: &mut Vec<u8>) -> Result<(Option<Crossed>, u64)> {
        let Some(first) = marks.first() else { return Ok((None, to)) };
        let (end, _turn) = self.large.copy(from, to, out);
        if let Some(end) = end.filter(|end| *end >= to) {
            return Ok((None, end));
        }
        let from = end.unwrap_or(from);
        let mark = marks.iter().rfind(|mark| mark.place.offset <= from).unwrap_or(first);
        let mut cursor = self.cursor(from, mark.place)?;
        let span = self.span(marks);
        let crossed = cursor.copy(&span, from, to, out)?;
        let end = cursor.end();
        self.large.keep(&mut cursor);
        self.give_back(cursor);
        Ok((crossed, end))
    }

    fn span<'a>(&'a self, marks: &'a [Mark]) -> Span<'a> {
        let skips = marks.first().map_or_else(Vec::new, |first| self.index().skips(first.place.seq));
        Span { rendering: &self.rendering, marks, skips, path: self.queue.path() }
    }

    /// As [`View::copy`], from segments that are held open: up to the first that is not; None if it starts there.
    fn copy_held(&self, marks: &[Mark], from: u64, to: u64, out: &mut Vec<u8>) -> Option<Result<Option<Crossed>>> {
        let span = self.span(marks);
        let mut pins = lock(&self.pins);
        let groups: Vec<_> = marks.chunk_by(|a, b| a.place.position.segment == b.place.position.segment).collect();
        let mut crossed = None;
        for (at, group) in groups.iter().enumerate() {
            let place = group.first()?.place;
            let end = groups.get(at + 1).and_then(|next| next.first()).map_or(to, |next| next.place.offset.min(to));
            let Some(scanner) = pins.take(place.position.segment) else {
                return (at > 0).then_some(Ok(crossed));
            };
            let copied = Cursor::new(scanner, place).and_then(|mut cursor| {
                let gap = cursor.copy(&span, from.max(place.offset), end, out)?;
                Ok((cursor, gap))
            });
            match copied {
                Ok((mut cursor, gap)) => {
                    self.large.keep(&mut cursor);
                    pins.put(place.position.segment, cursor.into_scanner());
                    crossed = crossed.or(gap);
                }
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(crossed))
    }

    /// A cursor that can read at `from`, for which `mark` is the nearest place that the index knows.
    fn cursor(&self, from: u64, mark: Place) -> Result<Cursor> {
        let spare = {
            let mut idle = lock(&self.idle);
            let near = (0..idle.len()).filter(|&i| idle[i].serves(from, mark.offset)).max_by_key(|&i| idle[i].end());
            if let Some(cursor) = near.and_then(|i| idle.remove(i)) {
                return Ok(cursor);
            }
            if idle.len() < IDLE_MAX { None } else { idle.pop_front() }
        };
        let scanner = match spare {
            Some(cursor) => cursor.into_scanner(),
            None => self.queue.scan()?,
        };
        Cursor::new(scanner, mark)
    }

    fn give_back(&self, cursor: Cursor) {
        let mut idle = lock(&self.idle);
        if idle.len() == IDLE_MAX {
            idle.pop_front();
        }
        idle.push_back(cursor.rested());
    }

    /// Replaces the one mark of a segment by the marks within it.
    fn unfold(&self, marks: Vec<Mark>, from: u64, to: u64) -> Vec<Mark> {
        let Some(segments) = self.segments.as_ref().filter(|_| marks.iter().any(|mark| mark.is_whole)) else {
            return marks;
        };
        let mut unfolded = Vec::new();
        for mark in marks {
            let place = mark.place;
            let inner = if mark.is_whole { segments.marks(place.position.segment, self.format()) } else { None };
            let Some(inner) = inner else {
                unfolded.push(mark);
                continue;
            };
            let first = inner.partition_point(|inner| place.offset.saturating_add(inner.offset) <= from);
            let end = inner.partition_point(|inner| place.offset.saturating_add(inner.offset) < to);
            for inner in inner.get(first.saturating_sub(1)..end).unwrap_or_default() {
                let place = Place { offset: place.offset.saturating_add(inner.offset), ..*inner };
                unfolded.push(Mark { place, has_gap: mark.has_gap, is_whole: false });
            }
        }
        unfolded
    }

    /// Extends the index to `offset` or the head, by about `budget` messages or a segment. False: nothing follows now.
    fn extend(&self, offset: u64, mut budget: usize) -> Result<bool> {
        let (mut extender, all) = (lock(&self.extender), budget);
        loop {
            let mut growth = self.index().growth();
            if growth.closed {
                return Ok(false);
            }
            if growth.end.offset >= offset || budget == 0 {
                return Ok(true);
            }
            match self.next_whole(&mut extender, &growth, if budget == all { usize::MAX } else { budget })? {
                Next::Whole(whole) if growth.add_whole(&whole) => {
                    self.put(growth);
                    extender.scanner = None;
                    budget = budget.saturating_sub(WHOLE_COST);
                    continue;
                }
                Next::TooMuch => return Ok(true),
                Next::Whole(_) | Next::Messages => {}
            }
            // Taken, so that after an error it is opened again, at the end of the index.
            let mut scanner = extender.scanner.take().map_or_else(|| self.scanner_at(growth.end), Ok)?;
            let seal = extender.segment.and_then(|(segment, seal)| Some(Position { segment, offset: seal?.0 }));
            let grown = self.grow(&mut scanner, &mut growth, seal, offset, budget.min(BATCH));
            let closed = growth.closed;
            self.put(growth);
            let (grown, at_head) = grown?;
            budget -= grown;
            if closed {
                return Ok(false);
            }
            scanner.trim(SMALL);
            extender.scanner = Some(scanner);
            if at_head {
                return Ok(false);
            }
        }
    }

    /// Whether a segment with an index of its own comes next.
    fn next_whole(&self, extender: &mut Extender, growth: &Growth, budget: usize) -> Result<Next> {
        let Some(segments) = &self.segments else { return Ok(Next::Messages) };
        let end = growth.end;
        let segment = end.position.segment;
        if extender.segment.is_none_or(|(last, _)| last != segment) {
            // Segments that the index has passed may have an index of their own by now.
            let is_first = extender.segment.is_none();
            extender.segment = Some((segment, self.queue.sealed(segment)?.map(|s| (s.end_offset, s.next_seq))));
            if !is_first {
                self.fold(segments);
            }
        }
        let seal = extender.segment.and_then(|(_, seal)| seal);
        // At its start an empty segment is at its end, too.
        let next = if seal == Some((end.position.offset, end.seq)) {
            let Some(next) = segment.next() else { return Ok(Next::Messages) };
            next
        } else if end.position.can_be_first() {
            segment
        } else {
            return Ok(Next::Messages);
        };
        if self.last_segment.is_some_and(|last| next > last) {
            return Ok(Next::Messages);
        }
        let index = match segments.find(next)? {
            Indexed::Unindexable => return Ok(Next::Messages),
            Indexed::Ready(index) => index,
            Indexed::Missing { messages } if messages > len_u64(budget) => return Ok(Next::TooMuch),
            Indexed::Missing { .. } => match segments.make(next)? {
                Some(index) => index,
                None => return Ok(Next::Messages),
            },
        };
        let place = Place { position: Position { segment: next, offset: RECORDS_START }, seq: end.seq, ..end };
        let fits = index.first_seq == end.seq
            && self.end_seq.is_none_or(|end_seq| index.next_seq <= end_seq)
            && lock(&self.pins).hold_next(&self.queue, place)?;
        Ok(if fits { Next::Whole(self.whole(next, &index)) } else { Next::Messages })
    }

    fn whole(&self, segment: SegmentId, index: &SegmentIndex) -> Whole {
        let section = index.section(self.format());
        Whole {
            segment,
            first_seq: index.first_seq,
            next: (Position { segment, offset: index.end_offset }, index.next_seq),
            len: section.len,
            ends_empty: section.ends_empty,
            last_timestamp_ns: index.last_timestamp_ns,
        }
    }

    /// The number of segments that it covers as a whole.
    #[cfg(test)]
    pub(super) fn whole_segments(&self) -> usize {
        self.index().span(0, u64::MAX).iter().filter(|mark| mark.is_whole).count()
    }

    fn fold(&self, segments: &SegmentIndexes) {
        let find = |segment| match segments.find(segment) {
            Ok(Indexed::Ready(index)) => Some(self.whole(segment, &index)),
            Ok(Indexed::Missing { .. }) => {
                segments.want();
                None
            }
            Ok(Indexed::Unindexable) | Err(_) => None,
        };
        self.index.write().unwrap_or_else(PoisonError::into_inner).fold(find);
    }

    fn scanner_at(&self, place: Place) -> Result<Scanner> {
        let mut scanner = self.queue.scan()?;
        scanner.seek(place.position, place.seq)?;
        Ok(scanner)
    }

    /// Adds up to `limit` units, until `offset`, the segment's end at `seal` or another segment is reached. Returns how
    /// many there were, and whether nothing follows them now.
    fn grow(
        &self,
        scanner: &mut Scanner,
        growth: &mut Growth,
        seal: Option<Position>,
        offset: u64,
        limit: usize,
    ) -> Result<(usize, bool)> {
        let segment = growth.end.position.segment;
        for grown in 0..limit {
            let end = growth.end.position;
            if grown > 0 && (seal == Some(end) || self.segments.is_some() && end.segment != segment) {
                return Ok((grown, false));
            }
            if self.end_seq.is_some_and(|end_seq| growth.end.seq >= end_seq) {
                growth.closed = true;
            }
            if growth.closed || growth.end.offset >= offset {
                return Ok((grown, false));
            }
            let position = scanner.position();
            let Some(entry) = scanner.next()? else { return Ok((grown, true)) };
            let (Entry::Message(Message { position: found, .. }) | Entry::Gap(Gap { position: found, .. })) = entry;
            if self.last_segment.is_some_and(|last| found.segment > last) {
                growth.closed = true;
                return Ok((grown, false));
            }
            let len = self.rendering.len(&entry);
            match entry {
                Entry::Message(message) => {
                    let (position, timestamp_ns) = (message.position, message.timestamp_ns);
                    let place = Place { position, seq: message.seq, ..growth.end };
                    let is_first = position.segment != end.segment || end.can_be_first();
                    if is_first && !lock(&self.pins).hold_next(&self.queue, place)? {
                        // Retention has removed it, though this scanner may have it open.
                        *scanner = self.scanner_at(growth.end)?;
                        return Ok((grown + 1, false));
                    }
                    growth.add_message(position, len, timestamp_ns, (scanner.position(), scanner.seq()));
                }
                Entry::Gap(gap) if gap.reason != GapReason::Retired => {
                    growth.add_gap(position, len, (scanner.position(), scanner.seq()));
                }
                Entry::Gap(_) if self.last_segment.is_some() => growth.closed = true,
                Entry::Gap(gap) => growth.add_skip(Skip { gap, next: (scanner.position(), scanner.seq()) }, len),
            }
        }
        Ok((limit, false))
    }
}

/// What comes next in the index.
enum Next {
    Whole(Whole),
    /// To be scanned.
    Messages,
    /// A segment whose index must still be built, which takes longer than the budget allows.
    TooMuch,
}
