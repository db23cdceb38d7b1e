//! Finding a message by sequence number or time in O(log n), without an index: binary search over the segments, then
//! within a segment by searching for the next record after a guess (`resync.rs`).

use std::sync::Arc;

use crate::queue::entry::Bounds;
use crate::queue::error::Result;
use crate::queue::files::dir::Access;
use crate::queue::files::segment::{Segment, SegmentStart};
use crate::queue::files::store::Store;
use crate::queue::format::block::read_block;
use crate::queue::format::layout::{self, MessageHeader, RECORD_ALIGN};
use crate::queue::format::record::{Header, UncheckedHeader};
use crate::queue::position::{Position, SegmentId};
use crate::queue::read::resync::{Waste, find_record};
use crate::queue::read::scan::{Passed, Scanner};

/// Below this many bytes a search walks record by record.
pub(in crate::queue) const WALK_BYTES: u32 = 8 << 10;
/// The target of a search: the first message that is not before it.
#[derive(Debug, Clone, Copy)]
pub(in crate::queue) enum Target {
    Seq(u64),
    Time(u64),
}

impl Target {
    /// Whether a segment with this start can begin at or before the target.
    fn is_after_start(self, start: SegmentStart) -> bool {
        match self {
            Self::Seq(seq) => start.first_seq <= seq,
            Self::Time(timestamp_ns) => start.previous_timestamp_ns < timestamp_ns,
        }
    }

    fn is_after(self, seq: u64, timestamp_ns: u64) -> bool {
        match self {
            Self::Seq(target) => seq < target,
            Self::Time(target) => timestamp_ns < target,
        }
    }
}

impl Scanner {
    /// Whether it has the segment at its position open.
    pub(crate) fn is_open(&self) -> bool {
        self.segment.is_some()
    }

    /// Moves to a message, or to the first one after it; to the first retained message or to the head if it is before
    /// or after all of them.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn seek_seq(&mut self, seq: u64) -> Result<()> {
        self.seek_target(Target::Seq(seq))
    }

    /// Moves to the first message with this timestamp (nanoseconds since the epoch) or a later one.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn seek_time(&mut self, timestamp_ns: u64) -> Result<()> {
        self.seek_target(Target::Time(timestamp_ns))
    }

    /// Moves past the newest message.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn seek_end(&mut self) -> Result<()> {
        let bounds = self.store().bounds()?;
        self.go_to(bounds.head, bounds.end_seq);
        Ok(())
    }

    /// Whether anything has come since the last check; moves past it.
    pub(crate) fn seek_end_if_lagging(&mut self) -> Result<bool> {
        if self.next()?.is_none() {
            return Ok(false);
        }
        self.seek_end()?;
        Ok(true)
    }

    fn seek_target(&mut self, target: Target) -> Result<()> {
        let bounds = self.store().bounds()?;
        self.seek_within(target, &bounds)
    }

    /// Like [`seek_seq`](Self::seek_seq), in a queue with these bounds.
    pub(crate) fn seek_seq_within(&mut self, seq: u64, bounds: &Bounds) -> Result<()> {
        self.seek_within(Target::Seq(seq), bounds)
    }

    fn seek_within(&mut self, target: Target, bounds: &Bounds) -> Result<()> {
        let store = Arc::clone(self.store());
        if let Target::Seq(seq) = target
            && seq >= bounds.next_seq
        {
            self.go_to(bounds.head, seq.min(bounds.end_seq));
            return Ok(());
        }
        let id = store.last_segment_before(target, bounds.first.segment, bounds.head.segment)?;
        let (position, seq) = match store.open_segment(id, Access::Read) {
            Ok(Some(segment)) => {
                let is_head = segment.id == bounds.head.segment;
                search(&segment, target, is_head.then_some(bounds.head.offset), &mut Waste::default())?
            }
            _ => (bounds.first, bounds.first_seq),
        };
        self.go_to(position, seq);
        self.walk(target)
    }

    /// Advances until the next entry is the target.
    fn walk(&mut self, target: Target) -> Result<()> {
        loop {
            let before = (self.position(), self.seq());
            let is_before = match self.pass()? {
                None => return Ok(()),
                Some(Passed::Message(header, _)) => target.is_after(header.seq, header.timestamp_ns),
                // A gap has no timestamp; it is what a search for its sequence numbers finds.
                Some(Passed::Gap(gap)) => target.is_after(gap.to, 0),
            };
            if !is_before {
                self.go_to(before.0, before.1);
                return Ok(());
            }
        }
    }
}

/// A record at or before the target, close to it: where to walk from. `end`: where the records end, if known.
pub(in crate::queue) fn search(
    segment: &Segment,
    target: Target,
    end: Option<u32>,
    waste: &mut Waste,
) -> Result<(Position, u64)> {
    let at = |offset| Position { segment: segment.id, offset };
    let start_seq = segment.first_seq().unwrap_or(segment.lowest_seq);
    let mut low = (segment.context.records_start(), start_seq);
    let sealed = segment.seal().map(|seal| seal.end_offset.get());
    let mut high = sealed.or(end).unwrap_or(layout::records_end(segment.context.segment_size));
    while high.saturating_sub(low.0) > WALK_BYTES {
        let middle = low.0 + (high - low.0) / 2 / RECORD_ALIGN * RECORD_ALIGN;
        match find_record(segment, middle, high, start_seq, waste)? {
            Some((offset, header)) if is_before(target, &header) => low = (offset, header.seq),
            _ => high = middle,
        }
    }
    Ok((at(low.0), low.1))
}

fn is_before(target: Target, header: &Header) -> bool {
    !header.is_seal() && target.is_after(header.seq, header.timestamp_ns)
}

impl Store {
    /// The last segment, from `first` to `head`, that does not start after the target.
    fn last_segment_before(&self, target: Target, first: SegmentId, head: SegmentId) -> Result<SegmentId> {
        let mut ids = self.segment_ids()?;
        ids.retain(|&id| id >= first && id <= head);
        if ids.is_empty() {
            return Ok(first);
        }
        let indexes: Vec<usize> = (0..ids.len()).collect();
        let mut starts = vec![None; ids.len()];
        // If a damaged segment can't tell, its predecessor stands in for it. Each is read once.
        let mut known_start = |index: usize| {
            (0..=index).rev().find_map(|i| Some((i, (*starts[i].get_or_insert_with(|| self.start_of(ids[i])))?)))
        };
        let count = indexes.partition_point(|&i| known_start(i).is_none_or(|(_, start)| target.is_after_start(start)));
        let found = known_start(count.saturating_sub(1)).and_then(|(index, _)| ids.get(index).copied());
        Ok(found.unwrap_or(first))
    }

    /// The start of a segment, from its first record if the start block is damaged.
    fn start_of(&self, id: SegmentId) -> Option<SegmentStart> {
        let segment = self.open_segment(id, Access::Read).ok()??;
        segment.start().or_else(|| {
            let header: MessageHeader = read_block(&segment.file, segment.context.records_start())?;
            let header = UncheckedHeader::parse(&header)?.trust();
            let previous_timestamp_ns = header.timestamp_ns.saturating_sub(1);
            Some(SegmentStart { first_seq: header.seq, previous_timestamp_ns })
        })
    }
}
