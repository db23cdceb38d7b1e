//! Where a queue starts and ends: found from the published head if it can be trusted, else from the segments.

use std::sync::Arc;

use crate::queue::entry::{Bounds, GapReason};
use crate::queue::error::{Error, Result};
use crate::queue::files::control::HeadHint;
use crate::queue::files::dir::Access;
use crate::queue::files::segment;
use crate::queue::files::store::Store;
use crate::queue::format::layout::{self, RECORDS_START};
use crate::queue::position::{Position, SegmentId};
use crate::queue::read::resync::{Waste, find_record};
use crate::queue::read::scan::{Passed, Scanner};
use crate::queue::read::seek::{Target, WALK_BYTES, search};

/// A published head is at most this far from the true one, in bytes of messages, unless it is old or forged.
const NEAR_HEAD: u64 = 1 << 20;
/// A walk to the head checks after this many messages whether a later head has been published.
const LOOK_AT_HEAD_EVERY: u32 = 256;

/// Where a walk to the head may end although the writer continues, perhaps faster than the walk: at a head that was
/// published after the walk began. Whatever was committed before that is before this head.
struct HeadSoFar {
    at_first: Option<HeadHint>,
    end: Option<Position>,
}

impl HeadSoFar {
    fn new(store: &Store) -> Self {
        Self { at_first: store.head_hint(), end: None }
    }

    fn is_passed(&mut self, store: &Store, position: Position) -> bool {
        if self.end.is_none() {
            let later =
                store.head_hint().filter(|_| self.at_first.is_some()).filter(|&hint| Some(hint) != self.at_first);
            self.end = later.map(|hint| hint.position);
        }
        self.end.is_some_and(|end| position >= end)
    }
}

impl Store {
    /// Where the queue starts and ends, now or a moment later.
    pub(crate) fn bounds(self: &Arc<Self>) -> Result<Bounds> {
        let ids = self.segment_ids()?;
        let Some((id, first_seq)) = self.first_retained(&ids)? else {
            let start = Position { segment: SegmentId(0), offset: RECORDS_START };
            let seq = self.geometry().first_seq;
            let end_seq = self.published_seq().unwrap_or(seq);
            return Ok(Bounds {
                first_seq: seq,
                first: start,
                next_seq: seq,
                end_seq,
                head: start,
                last_timestamp_ns: 0,
            });
        };
        let first_position = Position { segment: id, offset: RECORDS_START };
        let (mut scanner, last_timestamp_ns) = self.near_head(&ids, (first_position, first_seq));
        let mut last_timestamp_ns = last_timestamp_ns;
        let (mut end, mut seen, mut next_seq) = (HeadSoFar::new(self), 0_u32, scanner.seq());
        // What has been published and is missing at the end does not count as existing.
        let (mut walked, mut is_near) = (0, false);
        while let Some(passed) = scanner.pass()? {
            walked += match passed {
                Passed::Message(header, _) => {
                    (next_seq, last_timestamp_ns) = (scanner.seq(), header.timestamp_ns);
                    u64::from(header.payload_len)
                }
                Passed::Gap(gap) => {
                    next_seq = if gap.reason == GapReason::Lost { next_seq } else { scanner.seq() };
                    if matches!(gap.reason, GapReason::Upstream(_)) { 0 } else { NEAR_HEAD }
                }
            };
            seen = seen.wrapping_add(1);
            if seen.is_multiple_of(LOOK_AT_HEAD_EVERY) && end.is_passed(self, scanner.position()) {
                break;
            }
            // The published head was not near the true one.
            if walked >= NEAR_HEAD && !is_near {
                is_near = true;
                if let Some((position, seq, _)) = self.search_head(&ids)?.filter(|found| found.0 > scanner.position()) {
                    scanner.go_to(position, seq);
                }
            }
        }
        let end_seq = self.published_seq().unwrap_or(0).max(next_seq);
        Ok(Bounds { first_seq, first: first_position, next_seq, end_seq, head: scanner.position(), last_timestamp_ns })
    }

    /// The first segment whose first sequence number is known, with that number. A damaged file counts too, so that its
    /// contents are reported as a gap and not skipped.
    fn first_retained(&self, ids: &[SegmentId]) -> Result<Option<(SegmentId, u64)>> {
        let lowest_seq = self.geometry().first_seq;
        for &id in ids {
            let seq = match self.open_segment(id, Access::Read) {
                // A segment that is not in use holds nothing, unless it is the only one, or the first of all.
                Ok(Some(segment)) => segment
                    .first_seq()
                    .or_else(|| (id == SegmentId(0) || ids.last() == Some(&id)).then_some(lowest_seq)),
                Ok(None) => None,
                Err(Error::Damaged { .. } | Error::Refused { .. }) if id == SegmentId(0) => Some(lowest_seq),
                Err(Error::Damaged { .. } | Error::Refused { .. }) => segment::start_of_damaged(&self.dir, id),
                Err(error) => return Err(error),
            };
            if let Some(seq) = seq {
                return Ok(Some((id, seq)));
            }
        }
        Ok(None)
    }

    /// A scanner not far before the head: at the published head if there is one, else at the start of the last segment
    /// in use.
    fn near_head(self: &Arc<Self>, ids: &[SegmentId], first: (Position, u64)) -> (Scanner, u64) {
        if let Some(hint) = self.head_hint()
            && hint.position >= first.0
            && ids.contains(&hint.position.segment)
            && let Some((position, seq)) = self.record_before(hint.position)
        {
            return (Scanner::at(Arc::clone(self), position, seq), hint.last_timestamp_ns);
        }
        match self.search_head(ids) {
            Ok(Some((position, seq, timestamp_ns))) => (Scanner::at(Arc::clone(self), position, seq), timestamp_ns),
            _ => (Scanner::at(Arc::clone(self), first.0, first.1), 0),
        }
    }

    /// A record not far before the head, found without the published head: in the last segment in use. Returns a
    /// timestamp that is not later than the record's as well.
    fn search_head(&self, ids: &[SegmentId]) -> Result<Option<(Position, u64, u64)>> {
        for &id in ids.iter().rev() {
            if let Ok(Some(segment)) = self.open_segment(id, Access::Read)
                && let Some(start) = segment.start()
            {
                let (position, seq) = search(&segment, Target::Seq(u64::MAX), None, &mut Waste::default())?;
                return Ok(Some((position, seq, start.previous_timestamp_ns)));
            }
        }
        Ok(None)
    }

    /// Whether a sound record ends at a published head, or the segment starts there, with the published sequence
    /// number. The head may be from before a power cut, or from another state of the queue: a copy or a backup.
    pub(crate) fn is_end(self: &Arc<Self>, hint: HeadHint) -> Result<bool> {
        let Some((position, seq)) = self.record_before(hint.position) else { return Ok(false) };
        let mut scanner = Scanner::at(Arc::clone(self), position, seq);
        while scanner.position() < hint.position {
            match scanner.pass()? {
                Some(Passed::Message(..)) => {}
                Some(Passed::Gap(gap)) if gap.reason.is_jump() => {}
                _ => return Ok(false),
            }
        }
        Ok((scanner.position(), scanner.seq()) == (hint.position, hint.next_seq))
    }

    /// An existing record not far before a published head: after a power cut the head can be where no record will ever
    /// start.
    fn record_before(&self, head: Position) -> Option<(Position, u64)> {
        let segment = self.open_segment(head.segment, Access::Read).ok()??;
        if head.offset > layout::records_end(segment.context.segment_size) {
            return None;
        }
        let (start, mut waste) = (segment.first_seq()?, Waste::default());
        for distance in [WALK_BYTES, WALK_BYTES << 5] {
            let from = head.offset.saturating_sub(distance);
            if from <= RECORDS_START {
                break;
            }
            if let Some((offset, header)) = find_record(&segment, from, head.offset, start, &mut waste).ok()? {
                return Some((Position { offset, ..head }, header.seq));
            }
        }
        Some((Position { offset: segment.context.records_start(), ..head }, start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Queue, Settings};

    #[test]
    fn a_walk_to_the_head_ends_although_the_writer_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::create(dir.path().join("q"), &Settings::default()).unwrap();
        let mut writer = queue.writer().unwrap();
        writer.append(1, b"hello").unwrap();
        let mut end = HeadSoFar::new(&queue.store);
        let head = queue.bounds().unwrap().head;
        assert!(!end.is_passed(&queue.store, head), "nothing has been published since");
        let published = |writer: &mut crate::QueueWriter| {
            let before = queue.store.head_hint();
            while queue.store.head_hint() == before {
                writer.append(1, &[0; 1000]).unwrap();
            }
            queue.store.head_hint().unwrap().position
        };
        let first = published(&mut writer);
        assert!(!end.is_passed(&queue.store, head));
        assert!(end.is_passed(&queue.store, first));
        // What is published later does not matter, or the walk would never end.
        published(&mut writer);
        assert!(end.is_passed(&queue.store, first));
    }
}
