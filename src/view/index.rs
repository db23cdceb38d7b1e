//! The sparse index of a rendered file: which unit of the queue starts at which offset, about every 64 KiB and where
//! a segment begins (so that reading one segment needs no other). Pure.
//!
//! It is derived from the queue and can be rebuilt at any time. It grows at its end only, by whole units. A segment
//! that has an index of its own (`segments.rs`) is a single mark here.
//!
//! Invariants: there is always a first mark, at offset 0; the offsets of marks increase strictly; the end is never
//! before the last mark; if several units start at one offset (empty ones), a mark is at the first of them.

use crate::queue::layout::RECORDS_START;
use crate::queue::{Gap, Position, SegmentId};

/// Minimum of rendered bytes between two marks in a segment.
pub(super) const SPAN: u64 = 64 << 10;

/// Where a unit starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Byte offset in the rendered file.
    pub(super) offset: u64,
    /// Where its record starts in the queue.
    pub(super) position: Position,
    /// The sequence number expected there.
    pub(super) seq: u64,
}

/// An entry of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) place: Place,
    /// Whether there is a gap between here and the next mark.
    pub(super) has_gap: bool,
    /// Whether it covers a whole segment, whose own index has its marks.
    pub(super) is_whole: bool,
}

/// Messages that retention removed before they were indexed. A scanner would not find the same gap again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Skip {
    pub(super) gap: Gap,
    /// What follows it.
    pub(super) next: (Position, u64),
}

/// A segment that has an index of its own, in one format.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole {
    pub(super) segment: SegmentId,
    pub(super) first_seq: u64,
    /// What follows it.
    pub(super) next: (Position, u64),
    pub(super) len: u64,
    /// Whether its last unit is empty.
    pub(super) ends_empty: bool,
    pub(super) last_timestamp_ns: u64,
}

/// The index, as far as it reaches.
#[derive(Debug)]
pub(super) struct Index {
    marks: Vec<Mark>,
    skips: Vec<Skip>,
    end: Place,
    /// Timestamp of the newest message before the end, ns since the epoch; 0 if there is none.
    modified_ns: u64,
    /// Whether an empty unit already starts at the end.
    end_is_taken: bool,
    closed: bool,
}

impl Index {
    /// An empty file.
    pub(super) fn new(position: Position, seq: u64) -> Self {
        let start = Place { offset: 0, position, seq };
        Self {
            marks: vec![Mark { place: start, has_gap: false, is_whole: false }],
            skips: Vec::new(),
            end: start,
            modified_ns: 0,
            end_is_taken: false,
            closed: false,
        }
    }

    /// Where the index ends: the size of the file, and where to continue.
    pub(super) fn end(&self) -> Place {
        self.end
    }

    /// Whether nothing may follow.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether there is a gap anywhere.
    pub(super) fn has_gap(&self) -> bool {
        self.marks.iter().any(|mark| mark.has_gap)
    }

    pub(super) fn modified_ns(&self) -> u64 {
        self.modified_ns
    }

    /// The marks from the last one at or before `from` to the last one before `to`.
    pub(super) fn span(&self, from: u64, to: u64) -> Vec<Mark> {
        let first = self.marks.partition_point(|mark| mark.place.offset <= from).saturating_sub(1);
        let last = self.marks.partition_point(|mark| mark.place.offset < to).max(first + 1);
        self.marks.get(first..last).unwrap_or_default().to_vec()
    }

    /// What retention has removed from `seq` on before it was indexed.
    pub(super) fn skips(&self, seq: u64) -> Vec<Skip> {
        let first = self.skips.partition_point(|skip| skip.gap.from < seq);
        self.skips.get(first..).unwrap_or_default().to_vec()
    }

    /// The range of offsets that holds the units of a segment.
    pub(super) fn range(&self, segment: SegmentId) -> (u64, u64) {
        let offset = |at: usize| self.marks.get(at).map_or(self.end.offset, |mark| mark.place.offset);
        let first = self.marks.partition_point(|mark| mark.place.position.segment < segment);
        (offset(first), offset(self.marks.partition_point(|mark| mark.place.position.segment <= segment)))
    }

    /// The first mark of each segment, at most `count` from the start.
    pub(super) fn segment_starts(&self, count: usize) -> Vec<Place> {
        let mut starts = Vec::new();
        let mut at = 0;
        while let Some(mark) = self.marks.get(at).filter(|_| starts.len() < count) {
            starts.push(mark.place);
            at = self.marks.partition_point(|other| other.place.position.segment <= mark.place.position.segment);
        }
        starts
    }

    /// A growth, to be added by [`Index::put`], so that readers of the index wait for neither input nor rendering. Only
    /// one may exist at a time.
    pub(super) fn growth(&self) -> Growth {
        let last = self.marks.last().copied().unwrap_or(Mark { place: self.end, has_gap: false, is_whole: false });
        Growth {
            marks: vec![last],
            skips: Vec::new(),
            end: self.end,
            modified_ns: self.modified_ns,
            end_is_taken: self.end_is_taken,
            closed: self.closed,
        }
    }

    /// Replaces the marks of segments that now have an index of their own by one mark each.
    pub(super) fn fold(&mut self, find: impl Fn(SegmentId) -> Option<Whole>) {
        let marks = std::mem::take(&mut self.marks);
        let mut groups = marks.chunk_by(|a, b| a.place.position.segment == b.place.position.segment).peekable();
        while let Some(group) = groups.next() {
            let (Some(first), next) = (group.first(), groups.peek().and_then(|next| next.first())) else { continue };
            let starts = !first.is_whole && first.place.position.can_be_first();
            let is_plain = starts && group.iter().all(|mark| !mark.has_gap);
            let whole = next.filter(|_| is_plain).and_then(|next| {
                let whole = find(first.place.position.segment)?;
                let expected = (first.place.seq, next.place.seq, next.place.offset - first.place.offset);
                (expected == (whole.first_seq, whole.next.1, whole.len)).then_some(Mark { is_whole: true, ..*first })
            });
            match whole {
                Some(mark) => self.marks.push(mark),
                None => self.marks.extend_from_slice(group),
            }
        }
    }

    /// Adds what has grown since [`Index::growth`].
    pub(super) fn put(&mut self, growth: Growth) {
        self.marks.pop();
        self.marks.extend(growth.marks);
        self.skips.extend(growth.skips);
        self.end = growth.end;
        self.modified_ns = growth.modified_ns;
        self.end_is_taken = growth.end_is_taken;
        self.closed = growth.closed;
    }
}

/// A new end of an [`Index`], under construction.
#[derive(Debug)]
pub(super) struct Growth {
    /// Starts with the index's last mark.
    marks: Vec<Mark>,
    skips: Vec<Skip>,
    pub(super) end: Place,
    modified_ns: u64,
    end_is_taken: bool,
    /// Nothing may follow.
    pub(super) closed: bool,
}

impl Growth {
    /// Adds a message's unit of `len` bytes; `position` and `seq` are its record's, `next` what follows it.
    pub(super) fn add_message(&mut self, position: Position, len: u64, timestamp_ns: u64, next: (Position, u64)) {
        self.add(position, len, next);
        self.modified_ns = timestamp_ns;
    }

    /// Adds a gap's unit of `len` bytes, met when reading at `position`; `next` is what follows it.
    pub(super) fn add_gap(&mut self, position: Position, len: u64, next: (Position, u64)) {
        self.add(position, len, next).has_gap = true;
    }

    /// Adds the unit of `len` bytes of a gap that retention has left.
    pub(super) fn add_skip(&mut self, skip: Skip, len: u64) {
        // The segment where an empty file started is gone: what follows is found, and held, by its own.
        self.marks.pop_if(|last| last.place.seq == skip.gap.from && !self.end_is_taken);
        self.add_gap(skip.next.0, len, skip.next);
        self.skips.push(skip);
    }

    /// Adds a segment that has an index of its own. The end must be where it starts. False: its units must be
    /// added one by one instead.
    pub(super) fn add_whole(&mut self, whole: &Whole) -> bool {
        let position = Position { segment: whole.segment, offset: RECORDS_START };
        let Some(end) = self.end.offset.checked_add(whole.len).filter(|_| !self.end_is_taken) else { return false };
        if whole.len > 0 {
            let place = Place { offset: self.end.offset, position, seq: whole.first_seq };
            // Nothing lies between an empty file's start and here.
            self.marks.pop_if(|last| last.place.offset == place.offset);
            self.marks.push(Mark { place, has_gap: false, is_whole: true });
        }
        self.end = Place { offset: end, position: whole.next.0, seq: whole.next.1 };
        self.end_is_taken = whole.ends_empty;
        if whole.next.1 > whole.first_seq {
            self.modified_ns = whole.last_timestamp_ns;
        }
        true
    }

    /// The marks, the length, and whether the last unit is empty, of an index that began with a segment.
    pub(super) fn into_part(self) -> (Vec<Place>, u64, bool) {
        (self.marks.into_iter().map(|mark| mark.place).collect(), self.end.offset, self.end_is_taken)
    }

    /// Returns the mark that covers the unit.
    fn add(&mut self, position: Position, len: u64, next: (Position, u64)) -> &mut Mark {
        let start = Place { position, ..self.end };
        let is_due = self.marks.last().is_none_or(|mark| {
            let len = start.offset - mark.place.offset;
            mark.is_whole || len >= SPAN || len > 0 && mark.place.position.segment != position.segment
        });
        if is_due && !self.end_is_taken {
            self.marks.push(Mark { place: start, has_gap: false, is_whole: false });
        }
        self.end = Place { offset: start.offset + len, position: next.0, seq: next.1 };
        self.end_is_taken = len == 0;
        let last = self.marks.len() - 1;
        &mut self.marks[last]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::SegmentId;

    fn position(seq: u64) -> Position {
        Position { segment: SegmentId(0), offset: u32::try_from(4096 + 8 * seq).unwrap() }
    }

    /// An index of units of the given lengths; those divisible by 1000 are gaps. Added in batches of `batch`.
    fn index(lens: &[u64], batch: usize) -> Index {
        let mut index = Index::new(position(1), 1);
        let mut seq = 1;
        for lens in lens.chunks(batch) {
            let mut growth = index.growth();
            for &len in lens {
                let next = (position(seq + 1), seq + 1);
                match len % 1000 {
                    0 if len > 0 => growth.add_gap(position(seq), len, next),
                    _ => growth.add_message(position(seq), len, seq, next),
                }
                seq += 1;
            }
            index.put(growth);
        }
        index
    }

    #[test]
    fn an_empty_file_has_a_start() {
        let index = index(&[], 1);
        assert_eq!(index.end(), Place { offset: 0, position: position(1), seq: 1 });
        assert_eq!(index.span(0, 0).len(), 1);
        assert_eq!(index.span(7, 9).len(), 1);
    }

    #[test]
    fn batches_make_no_difference() {
        let lens: Vec<u64> = (0..5_000).map(|i| i * 7919 % 1009).collect();
        let whole = index(&lens, lens.len());
        for batch in [1, 2, 64, 999] {
            let pieces = index(&lens, batch);
            assert_eq!(pieces.marks, whole.marks);
            assert_eq!((pieces.end, pieces.modified_ns), (whole.end, whole.modified_ns));
        }
        assert_eq!(whole.end.offset, lens.iter().sum::<u64>());
        let offsets = whole.marks.iter().map(|mark| mark.place.offset);
        assert!(offsets.clone().zip(offsets.skip(1)).all(|(a, b)| b - a >= SPAN && b - a < SPAN + 1009));
        for mark in &whole.marks {
            let before = usize::try_from(mark.place.seq - 1).unwrap();
            assert_eq!(mark.place.offset, lens[..before].iter().sum::<u64>());
            assert_eq!(mark.place.position, position(mark.place.seq));
        }
    }

    #[test]
    fn spans_begin_at_or_before_and_end_before() {
        let index = index(&[SPAN, 0, 0, 5, SPAN - 5, 3 * SPAN, 1], 2);
        let offsets = |from, to| index.span(from, to).iter().map(|m| (m.place.offset, m.place.seq)).collect::<Vec<_>>();
        assert_eq!(offsets(0, 1), [(0, 1)]);
        assert_eq!(offsets(0, SPAN), [(0, 1)]);
        assert_eq!(offsets(0, SPAN + 1), [(0, 1), (SPAN, 2)]);
        assert_eq!(offsets(SPAN, SPAN + 1), [(SPAN, 2)]);
        assert_eq!(offsets(4 * SPAN, 6 * SPAN), [(2 * SPAN, 6), (5 * SPAN, 7)]);
        assert_eq!(offsets(u64::MAX, u64::MAX), [(5 * SPAN, 7)]);
    }

    #[test]
    fn segments_have_marks_but_no_two_at_one_offset() {
        let mut index = Index::new(position(1), 1);
        let mut growth = index.growth();
        let in_segment = |id| Position { segment: SegmentId(id), offset: 4096 };
        let units = [(0, 7), (0, 0), (1, 0), (1, 7), (1, 7), (2, 0), (2, 0), (2, 7), (3, 7)];
        for (seq, (segment, len)) in (1..).zip(units) {
            growth.add_message(in_segment(segment), len, seq, (in_segment(segment), seq + 1));
        }
        index.put(growth);
        let marks: Vec<_> =
            index.marks.iter().map(|m| (m.place.offset, m.place.seq, m.place.position.segment.0)).collect();
        assert_eq!(marks, [(0, 1, 0), (14, 5, 1), (21, 6, 2), (28, 9, 3)]);
        assert_eq!(index.segment_starts(3).iter().map(|place| place.seq).collect::<Vec<_>>(), [1, 5, 6]);
        assert_eq!(index.segment_starts(9).len(), 4);
    }

    #[test]
    fn gaps_are_noted_at_the_mark_before_them() {
        let index = index(&[10, 1000, SPAN, 10, SPAN, 1000], 1);
        let gaps: Vec<_> = index.marks.iter().map(|mark| (mark.place.seq, mark.has_gap)).collect();
        assert_eq!(gaps, [(1, true), (4, false), (6, true)]);
    }
}
