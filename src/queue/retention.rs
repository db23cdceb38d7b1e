//! Retention: which sealed segments may go, what keeps the others, and taking them away.
//!
//! A segment goes when a limit of the queue's settings says that it is too much (bytes, segments, age) and no live reader
//! needs it any more. Segments go in order, oldest first, by unlink or rename only: whoever has one open can finish. A reader that
//! no longer counts (silent for longer than its time to live, or too far behind) learns of the gap on its next read.
//! Runs on the writer's helper thread after a roll, and by `chron-cli retain`; never on the append path. Two at a time
//! do no harm.

use std::sync::Arc;

use super::Shared;
use super::cursor::{self, CursorFile};
use super::dir::Access;
use super::error::Result;
use super::inspect::SegmentInfo;
use super::position::SegmentId;
use super::types::Bounds;
use super::{segment, spare};
use crate::clock;

/// What retention has done, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// The segments that were (or would be) removed, oldest first.
    pub removed: Vec<SegmentInfo>,
    /// Readers that keep segments which the limits would let go, by name.
    pub pins: Vec<Pin>,
    /// Readers that no longer keep anything, by name, and why.
    pub ignored: Vec<Ignored>,
}

/// A reader that keeps segments from being removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// The reader's name.
    pub reader: String,
    /// The next sequence number that it will consume; None if its cursor file is damaged.
    pub seq: Option<u64>,
    /// How many segments it keeps beyond the limits.
    pub segments: u64,
    /// Bytes of those segments' files.
    pub bytes: u64,
}

/// A reader that does not count any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// The reader's name.
    pub reader: String,
    /// Why.
    pub reason: IgnoredReason,
}

/// Why a reader no longer keeps segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IgnoredReason {
    /// No process uses it, and it has given no sign of life for longer than the queue's `reader_ttl_ns`.
    Dead,
    /// It is further behind than the queue's `max_lag_bytes`.
    TooFarBehind,
}

/// What becomes of the segments that may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retire {
    /// They stay.
    Not,
    /// Their files are removed.
    ForGood,
    /// One file is kept for the next segment. For the holder of the writer lock.
    ForReuse,
}

/// A reader that counts: it needs everything from this sequence number on.
struct Needs {
    reader: String,
    seq: Option<u64>,
}

impl Shared {
    /// Whether the queue's settings let anything go at all.
    pub(crate) fn has_retention(&self) -> bool {
        let settings = &self.geometry.settings;
        settings.retain_bytes.is_some() || settings.retain_segments.is_some() || settings.retain_age_ns.is_some()
    }

    /// Applies the queue's limits, or only says what that would do.
    pub(crate) fn retain(self: &Arc<Self>, how: Retire) -> Result<Retention> {
        if !self.has_retention() {
            return Ok(Retention::default());
        }
        let bounds = self.bounds()?;
        let sealed = self.sealed_segments(&bounds)?;
        let excess = &sealed[..self.count_excess(&sealed)];
        let (needs, ignored) = self.needs(&bounds)?;
        let mut retention = Retention { ignored, ..Retention::default() };
        let free = excess.iter().take_while(|(info, next_seq)| {
            info.first_seq == 0 || needs.iter().all(|needs| needs.seq.is_some_and(|seq| seq >= *next_seq))
        });
        let free = free.count();
        for needs in &needs {
            let kept = excess[free..].iter().filter(|(_, next_seq)| needs.seq.is_none_or(|seq| seq < *next_seq));
            let (segments, bytes) = kept.fold((0, 0), |(count, bytes), (info, _)| (count + 1, bytes + info.bytes));
            if segments > 0 {
                retention.pins.push(Pin { reader: needs.reader.clone(), seq: needs.seq, segments, bytes });
            }
        }
        for (info, _) in &excess[..free] {
            let name = segment::file_name(info.id);
            match how {
                Retire::Not => {}
                // The spare would count, too.
                Retire::ForReuse if self.geometry.settings.max_bytes.is_none() => spare::keep(&self.dir, &name)?,
                Retire::ForReuse | Retire::ForGood => self.dir.remove(&name)?,
            }
            retention.removed.push(*info);
        }
        if how != Retire::Not && free > 0 {
            self.dir.sync()?;
        }
        Ok(retention)
    }

    /// The segments before the active one that can be used, with the sequence number behind each. Stops at a damaged
    /// one: that is evidence, and what lies behind it must not go before it.
    fn sealed_segments(&self, bounds: &Bounds) -> Result<Vec<(SegmentInfo, u64)>> {
        let ids = self.segment_ids()?;
        let mut sealed = Vec::new();
        for pair in ids.windows(2) {
            let &[id, next] = pair else { break };
            if id >= bounds.head.segment {
                break;
            }
            let Ok(Some(file)) = self.open_segment(id, Access::Read) else { break };
            let next_seq = file.seal().map(|seal| seal.next_seq.get()).or_else(|| self.first_seq_of(next));
            let Some(next_seq) = next_seq else { break };
            let first_seq = super::scan::first_seq(&file).unwrap_or(0);
            let bytes = file.file.metadata().map_or(0, |metadata| metadata.len());
            let info = SegmentInfo { id, first_seq, last_seq: next_seq.saturating_sub(1), bytes, sealed: true };
            sealed.push((info, next_seq));
        }
        Ok(sealed)
    }

    fn first_seq_of(&self, id: SegmentId) -> Option<u64> {
        self.open_segment(id, Access::Read).ok()?.as_ref().and_then(super::scan::first_seq)
    }

    /// How many of the oldest sealed segments are more than the limits allow.
    fn count_excess(&self, sealed: &[(SegmentInfo, u64)]) -> usize {
        let settings = &self.geometry.settings;
        let by_count = settings.retain_segments.map_or(0, |most| sealed.len().saturating_sub(most as usize));
        let mut total: u64 = sealed.iter().map(|(info, _)| info.bytes).sum();
        let too_many_bytes = |(info, _): &&(SegmentInfo, u64)| {
            let excess = settings.retain_bytes.is_some_and(|most| total > most);
            total = total.saturating_sub(info.bytes);
            excess
        };
        let by_bytes = sealed.iter().take_while(too_many_bytes).count();
        let oldest = settings.retain_age_ns.map(|age| clock::now_ns().saturating_sub(age));
        let too_old = |(info, _): &&(SegmentInfo, u64)| {
            oldest.is_some_and(|oldest| self.newest_timestamp(info.id).is_some_and(|newest| newest < oldest))
        };
        let by_age = sealed.iter().take_while(too_old).count();
        by_count.max(by_bytes).max(by_age)
    }

    /// Timestamp of a sealed segment's newest message: its seal has it, and the start of the next segment.
    fn newest_timestamp(&self, id: SegmentId) -> Option<u64> {
        let segment = self.open_segment(id, Access::Read).ok()??;
        let next = || self.open_segment(id.next(), Access::Read).ok()?.and_then(|next| Some(next.start()?.1));
        segment.seal().map(|seal| seal.last_timestamp_ns.get()).or_else(next)
    }

    /// The readers that count, and those that don't.
    fn needs(self: &Arc<Self>, bounds: &Bounds) -> Result<(Vec<Needs>, Vec<Ignored>)> {
        let (mut needs, mut ignored) = (Vec::new(), Vec::new());
        for reader in cursor::names(&self.dir)? {
            // Removed just now: it needs nothing.
            let Ok(file) = CursorFile::open(&self.dir, &reader, Access::Read) else { continue };
            let seq = file.read(&self.geometry).ok().map(|(place, _)| place.seq);
            match self.why_ignored(&file, seq, bounds) {
                Some(reason) => ignored.push(Ignored { reader, reason }),
                None => needs.push(Needs { reader, seq }),
            }
        }
        Ok((needs, ignored))
    }

    fn why_ignored(self: &Arc<Self>, file: &CursorFile, seq: Option<u64>, bounds: &Bounds) -> Option<IgnoredReason> {
        let settings = &self.geometry.settings;
        // A damaged cursor pins: nobody knows what it needs, until it is set anew.
        let seq = seq?;
        if let Some(most) = settings.max_lag_bytes
            && self.lag_bytes(seq, bounds) > most
        {
            return Some(IgnoredReason::TooFarBehind);
        }
        let ttl_ns = settings.reader_ttl_ns?;
        // Whoever holds its lock lives, however long it has been busy. Without a stamp of this boot it has been silent
        // at least since the machine was started. A registration is a sign of life, too: see `cursor::create`.
        let silent_ns = file.heartbeat_age_ms().map_or_else(clock::boot_ns, |age_ms| age_ms.saturating_mul(1_000_000));
        (!file.is_in_use() && silent_ns > ttl_ns).then_some(IgnoredReason::Dead)
    }

    fn lag_bytes(self: &Arc<Self>, seq: u64, bounds: &Bounds) -> u64 {
        let (position, _) = self.next_for(seq, bounds);
        self.bytes_between(position, bounds)
    }
}
