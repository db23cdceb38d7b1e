//! Retention: which sealed segments may be removed, what keeps the others, and removing them.
//!
//! A segment is removed when a limit of the queue's settings says that it is too much (bytes, segments, age) and no
//! live reader needs it. Segments are removed in order, oldest first, by unlink or rename only: a process that has one
//! open can finish. A reader that no longer counts (silent for longer than its time to live, or lagging too much)
//! learns of the gap on its next read. Before the first one goes, the published head, which is after all of them, is synced.
//! Runs on a thread of the writer's after a roll, by `chron-cli retain`, and in an
//! append only if the queue is full (`max_bytes`). Two concurrent runs do no harm.

use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use crate::clock;
use crate::queue::Queue;
use crate::queue::entry::Bounds;
use crate::queue::error::Result;
use crate::queue::files::cursor::{self, CursorFile};
use crate::queue::files::dir::Access;
use crate::queue::files::hook::Removal;
use crate::queue::files::recycle;
use crate::queue::files::segment::Segment;
use crate::queue::files::store::Store;
use crate::queue::format::names::segment_name;
use crate::queue::inspect::{Filled, SegmentInfo};
use crate::queue::position::SegmentId;

/// What retention has done, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// The segments that were (or would be) removed, oldest first.
    pub removed: Vec<SegmentInfo>,
    /// Readers that keep segments which exceed the limits, by name.
    pub pins: Vec<Pin>,
    /// Readers that no longer keep any segments, by name, and why.
    pub ignored: Vec<Ignored>,
    /// The segment that takes messages, if it has some: it is never removed.
    pub active: Option<ActiveSegment>,
    /// More could be removed once a writer has published a head after it.
    pub(in crate::queue) lacks_head: bool,
}

/// The segment that takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ActiveSegment {
    /// Its number.
    pub id: SegmentId,
    /// Its oldest message's timestamp, in nanoseconds since the epoch.
    pub oldest_ns: u64,
    /// When it ends at the latest, in nanoseconds since the epoch; None: when it is full. See
    /// [`Settings::roll_period_ns`](crate::queue::Settings::roll_period_ns).
    pub ends_ns: Option<u64>,
}

/// A reader that keeps segments from being removed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
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

/// A reader that no longer counts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ignored {
    /// The reader's name.
    pub reader: String,
    /// Why.
    pub reason: IgnoredReason,
}

/// Why a reader no longer keeps segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IgnoredReason {
    /// No process uses it, and its last heartbeat is older than the queue's `reader_ttl_ns`.
    Dead,
    /// It lags by more than the queue's `max_lag_bytes`.
    TooFarBehind,
}

impl IgnoredReason {
    /// The words for it in JSON and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::TooFarBehind => "lagging too far",
        }
    }
}

/// What happens to the segments that may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retire {
    /// They stay.
    Not,
    /// Their files are removed.
    ForGood,
    /// Some files are kept for new segments. For the holder of the writer lock.
    ForReuse,
}

/// A reader that counts: it needs everything from this sequence number on.
struct Needs {
    reader: String,
    seq: Option<u64>,
}

/// Which readers keep which of these segments.
fn pins(needs: &[Needs], kept: impl Iterator<Item = (SegmentInfo, u64)>) -> Vec<Pin> {
    let pin = |needs: &Needs| Pin { reader: needs.reader.clone(), seq: needs.seq, segments: 0, bytes: 0 };
    let mut pins: Vec<_> = needs.iter().map(pin).collect();
    for (info, next_seq) in kept {
        for pin in pins.iter_mut().filter(|pin| pin.seq.is_none_or(|seq| seq < next_seq)) {
            (pin.segments, pin.bytes) = (pin.segments + 1, pin.bytes + info.bytes);
        }
    }
    pins.retain(|pin| pin.segments > 0);
    pins
}

impl Queue {
    /// Has a function called before retention removes a segment, with the file's path and the segment's numbers: to copy
    /// it away, for example. The file is whole and sealed then, and goes once the function allows it.
    ///
    /// It is asked by the retention of this handle, its clones and the writers opened from them, whether its file would
    /// be removed or reused; another program's (`chron-cli retain`) does not know it: what must not be removed by others
    /// either needs a registered reader. A writer asks on a thread of its own, so that a slow function delays the next
    /// removals, a closing writer, and on a full disk or with [`max_bytes`](crate::queue::Settings::max_bytes) reached the
    /// appends that wait for the room, and no other append. If it panics, the segment stays. It may be asked about a
    /// segment more than once. It replaces the one before; one that holds a handle of this queue keeps it open for ever.
    ///
    /// ```
    /// use chronfs::queue::{Queue, Removal, Settings};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
    /// let archive = dir.path().to_path_buf();
    /// queue.before_removal(move |path, segment| {
    ///     let copied = std::fs::copy(path, archive.join(format!("{}.q", segment.first_seq)));
    ///     if copied.is_ok() { Removal::Allow } else { Removal::NotYet }
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn before_removal(&self, ask: impl Fn(&Path, &SegmentInfo) -> Removal + Send + Sync + 'static) {
        self.store.hook.set(Arc::new(ask));
    }
}

impl Store {
    /// Applies the queue's limits, or only reports what that would do.
    pub(crate) fn retain(self: &Arc<Self>, how: Retire) -> Result<Retention> {
        if !self.refresh().settings.has_retention() {
            return Ok(Retention::default());
        }
        let bounds = self.bounds()?;
        let ids = self.segment_ids()?;
        let sealed = &ids[..ids.partition_point(|&id| id < bounds.head.segment)];
        let (needs, ignored) = self.needs(&bounds)?;
        let mut retention = Retention { ignored, active: self.active_segment(&bounds), ..Retention::default() };
        let mut excess = self.excess(sealed, &ids);
        let published = self.published_seq().unwrap_or(0);
        while let Some((info, next_seq)) = excess.next() {
            let is_free = info.first_seq == 0 || needs.iter().all(|needs| needs.seq.is_some_and(|seq| seq >= next_seq));
            if !is_free {
                // The readers that keep them are of interest to people only; finding them opens each segment.
                if how != Retire::ForReuse {
                    retention.pins = pins(&needs, std::iter::once((info, next_seq)).chain(excess));
                }
                break;
            }
            // Where even the next segment's start is lost in a power cut, the published head tells which numbers are used.
            if next_seq > published {
                retention.lacks_head = true;
                break;
            }
            let name = segment_name(info.id);
            if how != Retire::Not && !self.hook.allows(&self.dir.path_of(&name), &info) {
                break;
            }
            if how != Retire::Not && retention.removed.is_empty() {
                self.sync_control()?;
            }
            match how {
                Retire::Not => {}
                // Only what has its full size may be wanted again.
                Retire::ForReuse if info.bytes == u64::from(self.settings().segment_size) => {
                    recycle::keep(&self.dir, &name)?;
                }
                Retire::ForReuse | Retire::ForGood => self.dir.remove(&name)?,
            }
            retention.removed.push(info);
        }
        let free = retention.removed.len();
        if how != Retire::Not && free > 0 {
            self.dir.sync()?;
        }
        Ok(retention)
    }

    /// The oldest sealed segments, as many as exceed the limits, each with the sequence number after it. Opens only
    /// those that the caller asks for. Stops at a damaged one: it is evidence, and later ones must not be removed
    /// before it.
    fn excess<'a>(
        &'a self,
        sealed: &'a [SegmentId],
        ids: &'a [SegmentId],
    ) -> impl Iterator<Item = (SegmentInfo, u64)> + 'a {
        let too_many = self.count_excess(sealed);
        let (now, age) = (clock::now_ns(), self.settings().retain_age_ns);
        let oldest = age.map(|age| now.saturating_sub(age));
        let is_too_old = move |index| oldest.is_some_and(|oldest| self.ended_before(&sealed[index..], oldest, now));
        let excess = sealed.iter().enumerate().take_while(move |&(index, _)| index < too_many || is_too_old(index));
        excess.map_while(|(index, &id)| self.sealed_segment(id, *ids.get(index + 1)?))
    }

    /// A usable sealed segment, with the sequence number after it.
    fn sealed_segment(&self, id: SegmentId, next: SegmentId) -> Option<(SegmentInfo, u64)> {
        let file = self.open_segment(id, Access::Read).ok()??;
        let next_seq = file.seal().map(|seal| seal.next_seq.get()).or_else(|| self.first_seq_of(next))?;
        let first_seq = file.first_seq().unwrap_or(0);
        let bytes = file.file.metadata().map_or(0, |metadata| metadata.len());
        let (last_seq, created_bytes) = (next_seq.saturating_sub(1), file.context.segment_size.into());
        let info = SegmentInfo { id, first_seq, last_seq, bytes, created_bytes, sealed: true };
        Some((info, next_seq))
    }

    fn first_seq_of(&self, id: SegmentId) -> Option<u64> {
        self.open_segment(id, Access::Read).ok()?.as_ref().and_then(Segment::first_seq)
    }

    /// How many of these sealed segments exceed the limits of number and bytes.
    fn count_excess(&self, sealed: &[SegmentId]) -> usize {
        let settings = self.settings();
        let most = settings.retain_segments.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
        let (mut count, mut left) = (0, settings.retain_bytes);
        for &id in sealed.iter().rev().take(most) {
            if let Some(bytes) = left {
                left = bytes.checked_sub(self.len_of(id));
                if left.is_none() {
                    break;
                }
            }
            count += 1;
        }
        sealed.len() - count
    }

    /// How many sealed segments of the full size the limits of number and bytes allow.
    pub(crate) fn most_sealed(&self) -> Option<usize> {
        let settings = &self.settings();
        let most = settings.retain_segments.map(u64::from);
        let by_bytes = settings.retain_bytes.map(|most| most / u64::from(settings.segment_size));
        most.into_iter().chain(by_bytes).min().and_then(|most| usize::try_from(most).ok())
    }

    /// Whether the first of these segments has no message later than `oldest`. A timestamp in the future, which any
    /// writer may have passed and which later messages inherit, says nothing; nor does a clock that was wrong when the
    /// segment was sealed. Then a later segment decides: this one is older.
    fn ended_before(&self, sealed: &[SegmentId], oldest: u64, now: u64) -> bool {
        let ends = sealed.iter().map_while(|&id| self.ends(id));
        ends.flatten().find(|&end| end <= now).is_some_and(|end| end < oldest)
    }

    /// When a sealed segment ended: by its newest message's timestamp, from its seal and from the start of the next
    /// segment; and by the file's mtime.
    fn ends(&self, id: SegmentId) -> Option<[u64; 2]> {
        let segment = self.open_segment(id, Access::Read).ok()??;
        let next = || {
            self.open_segment(id.next()?, Access::Read).ok()?.and_then(|next| Some(next.start()?.previous_timestamp_ns))
        };
        let stamp = segment.seal().map(|seal| seal.last_timestamp_ns.get()).or_else(next)?;
        let modified = segment.file.metadata().and_then(|metadata| metadata.modified()).ok();
        let modified = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified = modified.and_then(|since| u64::try_from(since.as_nanos()).ok());
        Some([stamp, modified.unwrap_or(u64::MAX)])
    }

    /// The readers that count, and those that don't.
    fn needs(self: &Arc<Self>, bounds: &Bounds) -> Result<(Vec<Needs>, Vec<Ignored>)> {
        // Opening every segment is necessary only if the lag is limited.
        let ids = self.settings().max_lag_bytes.map_or(Ok(Vec::new()), |_| self.segment_ids())?;
        let filled = Filled::new(self, bounds, ids.into_iter());
        let (mut needs, mut ignored) = (Vec::new(), Vec::new());
        for reader in cursor::names(&self.dir)? {
            // Just removed: it needs nothing.
            let Ok(file) = CursorFile::open(&self.dir, &reader, Access::Read) else { continue };
            let seq = file.read(&self.geometry()).ok().map(|(place, _)| place.seq);
            match self.why_ignored(&file, seq, bounds, &filled) {
                Some(reason) => ignored.push(Ignored { reader, reason }),
                None => needs.push(Needs { reader, seq }),
            }
        }
        Ok((needs, ignored))
    }

    fn why_ignored(
        self: &Arc<Self>,
        file: &CursorFile,
        seq: Option<u64>,
        bounds: &Bounds,
        filled: &Filled,
    ) -> Option<IgnoredReason> {
        let settings = &self.settings();
        // A damaged cursor pins everything: its needs are unknown until it is reset.
        let seq = seq?;
        if let Some(most) = settings.max_lag_bytes
            && filled.from(self.next_for(seq, bounds).0) > most
        {
            return Some(IgnoredReason::TooFarBehind);
        }
        let ttl_ns = settings.reader_ttl_ns?;
        // A process that holds its lock is alive, however long it has been busy. A registration is a heartbeat, too:
        // see `cursor::create`.
        let silent_ns = file.silent_ns();
        (file.is_in_use() == Some(false) && silent_ns > ttl_ns).then_some(IgnoredReason::Dead)
    }
}
