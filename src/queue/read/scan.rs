//! Reading a queue by `pread`: for inspection, the mount, recovery, and readers that meet damage.
//!
//! A scanner registers nothing, maps nothing and changes nothing. It survives files that are truncated while it reads
//! them. Invariants:
//! - `position` is where the next record starts and `seq` is the sequence number expected there.
//! - Bytes in the window may be old. "Not committed" and "wrong checksum" are accepted only from a new read that starts
//!   after the commit word was seen: a copy can hold a new commit word and older bytes around it.
//! - "Not committed" with something after it is damage only if it is still so after that something was seen: the writer
//!   may have continued in between.
//! - Damage is never an error: it is returned as a gap, and the scan continues after it.

use std::collections::VecDeque;
use std::sync::Arc;

use zerocopy::FromBytes;

use crate::queue::entry::{Entry, Gap, GapReason, Message, UpstreamGap};
use crate::queue::error::{Error, Result};
use crate::queue::files::dir::Access;
use crate::queue::files::segment::Segment;
use crate::queue::files::store::Store;
use crate::queue::format::layout::{self, HEADER_LEN, MessageHeader, RECORDS_START};
use crate::queue::format::record::{Header, UncheckedHeader};
use crate::queue::os::sys;
use crate::queue::position::{MAX_SEQ, Position, SegmentId};
use crate::queue::read::resync::{Waste, find_record, verify_in_pieces};
use crate::sync::{Ordering, fence};

/// Longer records are verified piece by piece before memory for a whole one is allocated: the length may be false.
const AT_ONCE: usize = 16 << 20;
/// How much is read ahead: starts at the first, doubles while the scan continues, up to the second.
const WINDOW: [usize; 2] = [4 << 10, 256 << 10];
/// How much before a position is read at once on the way back.
const AROUND: u32 = 28 << 10;
/// Window memory that is kept while nothing comes.
const KEEP: usize = 4 * WINDOW[0];

/// Reads a queue's entries in order, without registering a reader.
///
/// ```
/// # use chronfs::queue::{Queue, Settings};
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
/// queue.writer()?.append(1, b"hello")?;
/// let mut messages = queue.scan()?;
/// while let Some(entry) = messages.next()? {
///     println!("{entry:?}");
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Scanner {
    queue: Arc<Store>,
    position: Position,
    seq: u64,
    pub(super) segment: Option<Segment>,
    window: Vec<u8>,
    window_start: u32,
    read_ahead: usize,
    most_ahead: usize,
    /// What was after `position` when a search past it found nothing: no new search until that changes.
    stalled: Option<(Position, Option<u64>)>,
    /// Since this segment was entered, or since the scanner moved back in it.
    waste: Waste,
    /// For reading backwards.
    pub(super) back: Back,
}

/// The entries before a position, in order: see `back.rs`.
#[derive(Debug, Default)]
pub(super) struct Back {
    pub(super) entries: VecDeque<Before>,
    /// The position that they are before, with its sequence number.
    pub(super) end: Option<(Position, u64)>,
}

/// Where an entry starts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    pub(super) position: Position,
    pub(super) seq: u64,
    pub(super) gap: Option<Gap>,
}

/// What [`Scanner::pass`] passed.
pub(crate) enum Passed {
    Message(Header, Position),
    Gap(Gap),
}

/// The result of one step.
enum Step {
    /// A message; its record has been verified and, unless it is a long one, lies in the window.
    Message(Header, Position),
    Gap(Gap),
    Again,
    Head,
}

/// The state of the record at a position, read again if that matters.
enum Found {
    Record(Header),
    NotCommitted,
    /// Bytes from an earlier use of the file, where nothing has been written since, or what was written is lost.
    LeftOver,
    Bad,
    /// The segment has no more room, or the file ends here.
    End,
}

impl Scanner {
    /// Starts at a place that is known to be the start of a record or the head, with the expected sequence number.
    pub(crate) fn at(queue: Arc<Store>, position: Position, seq: u64) -> Self {
        let (window, [read_ahead, most_ahead]) = (Vec::new(), WINDOW);
        let (segment, stalled, waste, back) = (None, None, Waste::default(), Back::default());
        Self { queue, position, seq, segment, window, window_start: 0, read_ahead, most_ahead, stalled, waste, back }
    }

    /// The next message or gap; None at the head (call again later to continue). Not an `Iterator`, because the message
    /// borrows from the scanner.
    ///
    /// # Errors
    /// Only if a file can't be read at all. Damage is returned as [`Entry::Gap`].
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Entry<'_>>> {
        loop {
            let (header, position) = match self.pass()? {
                Some(Passed::Message(header, position)) => (header, position),
                Some(Passed::Gap(gap)) => return Ok(Some(Entry::Gap(gap))),
                None => return Ok(None),
            };
            if !self.hold(&header, position)? {
                // It has changed since it was verified: an unauthorised process writes here.
                self.waste.add(header.payload_len as usize);
                let waste = self.waste;
                self.go_to(position, header.seq);
                self.waste = waste;
                continue;
            }
            return Ok(Some(Entry::Message(self.held(&header, position))));
        }
    }

    /// A message that is in the window.
    pub(super) fn held(&self, header: &Header, position: Position) -> Message<'_> {
        let start = (position.offset + HEADER_LEN - self.window_start) as usize;
        let payload = &self.window[start..start + header.payload_len as usize];
        let &Header { msg_type, seq, timestamp_ns, .. } = header;
        Message { seq, timestamp_ns, msg_type, payload, position }
    }

    /// Like [`next`](Self::next), without the payload: needs no memory for it.
    pub(crate) fn pass(&mut self) -> Result<Option<Passed>> {
        loop {
            match self.step()? {
                Step::Message(header, position) => return Ok(Some(Passed::Message(header, position))),
                Step::Gap(gap) => return Ok(Some(Passed::Gap(gap))),
                Step::Again => {}
                Step::Head => {
                    if self.segment.as_ref().map_or(Ok(false), |it| it.may_be_replaced(self.position.offset))? {
                        (self.segment, self.position.offset) = (None, RECORDS_START);
                    }
                    self.read_ahead = WINDOW[0];
                    self.trim(KEEP);
                    return Ok(None);
                }
            }
        }
    }

    /// Makes sure that all of a verified record is in the window; false if that record is no longer there.
    pub(super) fn hold(&mut self, header: &Header, position: Position) -> Result<bool> {
        let (len, payload_len) = (HEADER_LEN as usize + header.payload_len as usize, header.payload_len as usize);
        let start = position.offset.checked_sub(self.window_start).map_or(usize::MAX, |start| start as usize);
        if start.saturating_add(len) <= self.window.len() {
            return Ok(true);
        }
        let Some(context) = self.segment.as_ref().map(|segment| segment.context) else { return Ok(false) };
        let Ok((found, rest)) = MessageHeader::ref_from_prefix(self.load_at(position.offset, len, true)?) else {
            return Ok(false);
        };
        let found = UncheckedHeader::parse(found).zip(rest.get(..payload_len));
        Ok(found.and_then(|(found, payload)| found.verify(&context, position.offset, payload)) == Some(*header))
    }

    /// Bytes of memory that it keeps.
    pub(crate) fn kept(&self) -> usize {
        self.window.capacity()
    }

    /// Frees its memory if that is more than `most` bytes.
    pub(crate) fn trim(&mut self, most: usize) {
        if self.window.capacity() > most {
            self.window = Vec::new();
        }
    }

    /// Reads ahead by no more than this many bytes.
    pub(crate) fn read_ahead_at_most(&mut self, bytes: usize) {
        self.most_ahead = bytes.clamp(WINDOW[0], WINDOW[1]);
    }

    /// Where [`next`](Self::next) continues.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The sequence number that [`next`](Self::next) expects.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Moves to a position that a scan of this queue has reported, with the sequence number expected there.
    ///
    /// # Errors
    /// [`Error::NoSuchPosition`] if no record can start there.
    pub fn seek(&mut self, position: Position, seq: u64) -> Result<()> {
        let end = layout::records_end(layout::MAX_SEGMENT_SIZE);
        let is_end = position.offset >= RECORDS_START && position.offset <= end;
        if seq == 0 || !(is_end && position.offset.is_multiple_of(layout::RECORD_ALIGN)) {
            let path = self.queue.dir.path().to_path_buf();
            return Err(Error::NoSuchPosition { path, what: format!("{position}, message {seq}") });
        }
        self.go_to(position, seq);
        Ok(())
    }

    pub(crate) fn go_to(&mut self, position: Position, seq: u64) {
        if position.segment != self.position.segment {
            self.segment = None;
        }
        if position.segment != self.position.segment || position.offset <= self.position.offset {
            self.waste = Waste::default();
        }
        self.window.clear();
        (self.position, self.seq, self.stalled, self.read_ahead) = (position, seq, None, WINDOW[0]);
    }

    /// Like [`go_to`](Self::go_to), within what the window holds.
    pub(super) fn step_to(&mut self, position: Position, seq: u64) {
        if position.segment == self.position.segment {
            (self.position, self.seq, self.stalled, self.waste) = (position, seq, None, Waste::default());
        } else {
            self.go_to(position, seq);
        }
    }

    /// Fills the window with what is before and after the position, unless that is in it.
    pub(super) fn load_around(&mut self) -> Result<()> {
        let offset = self.position.offset;
        let is_in_window = offset.checked_sub(self.window_start).is_some_and(|at| (at as usize) < self.window.len());
        if (self.segment.is_some() && is_in_window) || (self.segment.is_none() && !self.open_segment()?) {
            return Ok(());
        }
        let from = offset.saturating_sub(AROUND).max(RECORDS_START);
        self.load_at(from, (offset - from + HEADER_LEN) as usize, true).map(drop)
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.queue
    }

    fn step(&mut self) -> Result<Step> {
        if self.segment.is_none() && !self.open_segment()? {
            return self.go_to_later_segment(GapReason::Segment);
        }
        match self.record()? {
            Found::Record(header) => Ok(self.take(header)),
            Found::NotCommitted => self.not_committed(false),
            Found::LeftOver => self.not_committed(true),
            Found::Bad => self.resync(true),
            Found::End => self.go_to_later_segment(GapReason::Segment),
        }
    }

    /// Whether the record at `position` is the one that seals its segment.
    pub(crate) fn is_sealed_here(&mut self) -> Result<bool> {
        Ok(self.open_segment()? && matches!(self.record()?, Found::Record(header) if header.is_seal()))
    }

    /// Whether a record can start at `position` and none does.
    pub(crate) fn is_free_here(&mut self) -> Result<bool> {
        Ok(self.open_segment()? && matches!(self.record()?, Found::NotCommitted | Found::LeftOver))
    }

    /// Opens the segment at `position`; false if it is missing or unusable.
    fn open_segment(&mut self) -> Result<bool> {
        self.window.clear();
        match self.queue.open_segment(self.position.segment, Access::Read) {
            Ok(segment) => self.segment = segment,
            Err(error) if error.is_unusable_file() => self.segment = None,
            Err(error) => return Err(error),
        }
        Ok(self.segment.is_some())
    }

    /// Advances past a verified record.
    fn take(&mut self, header: Header) -> Step {
        let position = self.position;
        if header.seq > self.seq {
            let gap = Gap { from: self.seq, to: header.seq - 1, reason: GapReason::Lost, position };
            self.seq = header.seq;
            return Step::Gap(gap);
        }
        if header.is_seal() {
            // Nothing can follow the largest number.
            let Some(next) = position.segment.next() else { return Step::Head };
            self.position = Position { segment: next, offset: RECORDS_START };
            (self.segment, self.waste) = (None, Waste::default());
            return Step::Again;
        }
        self.position.offset += self.segment.as_ref().map_or(0, |it| it.context.record_len(header.payload_len));
        if let Some((next_seq, reason)) = self.gap_record(&header, position).filter(|&(next, _)| next > self.seq) {
            return self.gap_until(next_seq, reason, position);
        }
        if header.is_padding() || header.seq < self.seq {
            return Step::Again;
        }
        self.seq = self.seq.saturating_add(1);
        Step::Message(header, position)
    }

    /// What a verified record says of a gap upstream: the sequence number after it, and the reason.
    fn gap_record(&self, header: &Header, position: Position) -> Option<(u64, GapReason)> {
        if !header.is_gap() {
            return None;
        }
        let start = (position.offset + HEADER_LEN).checked_sub(self.window_start)? as usize;
        let (next_seq, rest) = self.window.get(start..)?.split_first_chunk()?;
        let next_seq = Some(u64::from_le_bytes(*next_seq)).filter(|&seq| seq <= MAX_SEQ)?;
        Some((next_seq, GapReason::Upstream(UpstreamGap::from_code(*rest.first()?))))
    }

    /// Nothing is committed at `position`: the head, unless something follows it. `search`: search even if no hint says
    /// that something does.
    fn not_committed(&mut self, search: bool) -> Result<Step> {
        let ahead = match self.queue.head_hint() {
            Some(hint) => (hint.position > self.position).then_some(hint.next_seq),
            // The control block can't tell: read the files.
            None => self.later_started(self.position.segment)?.map(|(id, _)| u64::from(id.0) << 32),
        };
        if (ahead.is_none() && !search) || self.stalled == Some((self.position, ahead)) {
            return Ok(Step::Head);
        }
        // Only now: what was committed before that something appeared is visible now.
        self.window.clear();
        match self.record()? {
            Found::NotCommitted | Found::LeftOver => {
                let step = self.resync(false)?;
                if matches!(step, Step::Head) {
                    self.stalled = Some((self.position, ahead));
                    return Ok(self.lost_end().unwrap_or(step));
                }
                Ok(step)
            }
            _ => Ok(Step::Again),
        }
    }

    /// At the end of the queue: the published messages that are missing. While there may be a writer they may only be
    /// late, as on a network file system.
    fn lost_end(&mut self) -> Option<Step> {
        let next_seq = self.queue.published_seq()?;
        if next_seq <= self.seq || !self.queue.is_certainly_without_writer() {
            return None;
        }
        Some(self.gap_until(next_seq, GapReason::Lost, self.position))
    }

    /// Searches for the next record past damage at `position`. `claimed`: something claims to be committed there.
    fn resync(&mut self, claimed: bool) -> Result<Step> {
        let Some(segment) = &self.segment else {
            return Ok(Step::Again);
        };
        let position = self.position;
        let size = segment.context.segment_size;
        let (from, end) = (position.offset + layout::RECORD_ALIGN, layout::records_end(size));
        let found = find_record(segment, from, end, self.seq, &mut self.waste)?;
        if let Some((offset, header)) = found {
            self.position.offset = offset;
            return Ok(self.gap_until(header.seq, GapReason::Checksum, position));
        }
        if !claimed || self.later_started(position.segment)?.is_some() {
            return self.go_to_later_segment(GapReason::Checksum);
        }
        if self.queue.closed_at().is_some_and(|head| head.position == position && head.next_seq == self.seq) {
            return Ok(Step::Head);
        }
        // The very last record is damaged: one message, and the writer will continue in a new segment.
        let end = match self.queue.head_hint() {
            // Its length may be what is damaged; the head that was published after it is where it ends.
            Some(hint) if hint.position.segment == position.segment && hint.next_seq == self.seq.saturating_add(1) => {
                Some(hint.position.offset).filter(|&end| end > position.offset)
            }
            _ => self.claimed_len().map(|len| position.offset + len),
        };
        self.position.offset = end.unwrap_or(layout::records_end(size)).min(layout::records_end(size));
        Ok(self.gap_until(self.seq.saturating_add(1), GapReason::Checksum, position))
    }

    /// The length of the record at `position` if what its header claims is possible.
    fn claimed_len(&mut self) -> Option<u32> {
        let context = self.segment.as_ref()?.context;
        let offset = self.position.offset;
        let (header, _) = MessageHeader::read_from_prefix(self.load(HEADER_LEN as usize, false).ok()?).ok()?;
        let len = UncheckedHeader::parse(&header)?.payload_len(&context, offset)?;
        Some(context.record_len(u32::try_from(len).ok()?))
    }

    fn gap_until(&mut self, next_seq: u64, reason: GapReason, position: Position) -> Step {
        let from = self.seq;
        self.seq = self.seq.max(next_seq);
        if next_seq > from { Step::Gap(Gap { from, to: next_seq - 1, reason, position }) } else { Step::Again }
    }

    /// Leaves this segment for the next one in use; stays at the head if there is none.
    fn go_to_later_segment(&mut self, reason: GapReason) -> Result<Step> {
        let Some((id, first_seq)) = self.later_started(self.position.segment)? else { return Ok(Step::Head) };
        // Segments appear in order: this one is there by now, if it appeared after it was looked for.
        if self.segment.is_none() && self.open_segment()? {
            return Ok(Step::Again);
        }
        let first = self.queue.segment_ids()?.first().copied();
        let is_retired = self.segment.is_none() && first.is_some_and(|first| first > self.position.segment);
        let reason = if is_retired { GapReason::Retired } else { reason };
        let position = self.position;
        self.go_to(Position { segment: id, offset: RECORDS_START }, self.seq);
        Ok(self.gap_until(first_seq.unwrap_or(self.seq), reason, position))
    }

    /// The next segment after `id` that is in use, with its first sequence number.
    fn later_started(&self, id: SegmentId) -> Result<Option<(SegmentId, Option<u64>)>> {
        let started = |id| match self.queue.open_segment(id, Access::Read) {
            Ok(Some(segment)) => Ok(segment.is_started()?.then(|| (id, segment.first_seq()))),
            Ok(None) => Ok(None),
            Err(error) if error.is_unusable_file() => Ok(None),
            Err(error) => Err(error),
        };
        let Some(next) = id.next() else { return Ok(None) };
        if let Some(found) = started(next)? {
            return Ok(Some(found));
        }
        // Segments in between are only missing after damage: don't list the directory at every check of the head.
        if self.queue.head_hint().is_some_and(|hint| hint.position.segment <= id) {
            return Ok(None);
        }
        for later in self.queue.segment_ids()?.into_iter().filter(|&later| later > next) {
            if let Some(found) = started(later)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The record at `position`. Anything but a sound record is read again before it is reported.
    fn record(&mut self) -> Result<Found> {
        if let Some(segment) = &self.segment {
            // Where segments start, and what callers pass, need not suit the segment's alignment.
            self.position.offset = segment.context.next_place(self.position.offset);
        }
        let found = self.record_in_window(false)?;
        if matches!(found, Found::Record(_)) {
            return Ok(found);
        }
        // There may be damage everywhere: read no more than necessary.
        self.read_ahead = WINDOW[0];
        let waste = self.waste;
        let found = self.record_in_window(true)?;
        if !matches!(found, Found::Bad) {
            return Ok(found);
        }
        // The kernel may copy byte by byte, also a commit word that is being stored: it is whole by now.
        fence(Ordering::Acquire);
        self.waste = waste;
        self.record_in_window(true)
    }

    fn record_in_window(&mut self, fresh: bool) -> Result<Found> {
        let Some(context) = self.segment.as_ref().map(|segment| segment.context) else {
            return Ok(Found::End);
        };
        let offset = self.position.offset;
        if !context.is_place(offset) {
            return Ok(Found::End);
        }
        let Ok((header, _)) = MessageHeader::read_from_prefix(self.load(HEADER_LEN as usize, fresh)?) else {
            return Ok(Found::End);
        };
        let Some(unchecked) = UncheckedHeader::parse(&header) else { return Ok(Found::NotCommitted) };
        let bad = if unchecked.is_left_over(&context, self.seq) { Found::LeftOver } else { Found::Bad };
        let len = unchecked.payload_len(&context, offset);
        let Some(len) = len.filter(|&len| self.waste.allows(context.segment_size, offset, len)) else {
            return Ok(bad);
        };
        if len > AT_ONCE
            && let Some(segment) = &self.segment
        {
            let verified = verify_in_pieces(segment, unchecked, offset, len)?;
            if verified.is_none() {
                self.waste.add(len);
            }
            return Ok(verified.map_or(bad, Found::Record));
        }
        // Again, even if the header has just been read: all of the record must be read after its commit word was seen.
        fence(Ordering::Acquire);
        let record = self.load(HEADER_LEN as usize + len, fresh)?;
        let Ok((header, rest)) = MessageHeader::ref_from_prefix(record) else {
            return Ok(Found::End);
        };
        let unchecked = UncheckedHeader::parse(header).filter(|again| again.payload_len(&context, offset) == Some(len));
        let verified =
            unchecked.zip(rest.get(..len)).and_then(|(again, payload)| again.verify(&context, offset, payload));
        if verified.is_none() {
            self.waste.add(len);
        }
        Ok(verified.map_or(bad, Found::Record))
    }

    /// The bytes from `position` on: at least `len`, unless the file ends before. `fresh`: not from the window.
    fn load(&mut self, len: usize, fresh: bool) -> Result<&[u8]> {
        self.load_at(self.position.offset, len, fresh)
    }

    fn load_at(&mut self, offset: u32, len: usize, fresh: bool) -> Result<&[u8]> {
        let start = offset.checked_sub(self.window_start).map_or(usize::MAX, |start| start as usize);
        if fresh || start.saturating_add(len) > self.window.len() {
            let Some(segment) = &self.segment else { return Ok(&[]) };
            // A length from a damaged header must not cost more memory than the file has bytes.
            let in_file = segment.file.metadata().map_err(Error::io(&segment.path, "stat it"))?.len();
            let in_file = usize::try_from(in_file.saturating_sub(u64::from(offset))).unwrap_or(usize::MAX);
            let wanted = len.max(self.read_ahead).min(in_file);
            let out_of_memory = |_| Error::io(&segment.path, "read it")(std::io::ErrorKind::OutOfMemory.into());
            self.window.try_reserve(wanted.saturating_sub(self.window.len())).map_err(out_of_memory)?;
            self.window.resize(wanted, 0);
            let count = sys::read_some(&segment.file, &mut self.window, offset);
            self.window.truncate(*count.as_ref().unwrap_or(&0));
            if let Err(error) = count.map_err(Error::io(&segment.path, "read it")) {
                // On a file system that fetches files, what can't be read may be gone: the next call looks by its name.
                self.segment = None;
                return Err(error);
            }
            self.window_start = offset;
            self.read_ahead = (self.read_ahead * 2).min(self.most_ahead);
            return Ok(&self.window);
        }
        Ok(&self.window[start..])
    }
}
