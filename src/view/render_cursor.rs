//! A scanner that knows its offset in the rendered file, and so can render the bytes from there on.
//!
//! Invariants: `end` is the offset of the unit that the scanner returns next; `unit` holds the last bytes before it,
//! so that a read may end within a unit and the next one goes on there. Several units can start at one offset (empty
//! payloads, and gaps in bin): a cursor stands before the first of them when a read has ended at that offset. After
//! an error a cursor must be dropped.

use std::path::Path;

use super::index::{Mark, Place, Skip};
use super::{Crossed, Format, Rendering, len_u64, len_usize};
use crate::queue::{Entry, Error, Gap, GapReason, Result, Scanner};
use crate::sync::{AtomicUsize, Ordering};

/// Units longer than this, in bytes, are large.
const LARGE: usize = 1 << 20;

/// What idle cursors keep of queues for the next read, in bytes: each, and all of the process together. A cursor past
/// that reads again.
pub(super) const SMALL: usize = 64 << 10;
const MOST: usize = 64 << 20;

static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Bytes of [`KEPT`].
#[derive(Debug)]
struct Kept(usize);

impl Kept {
    fn of(bytes: usize) -> Option<Self> {
        let charged = if bytes <= SMALL { 0 } else { bytes };
        let add = |kept: usize| kept.checked_add(charged).filter(|sum| charged == 0 || *sum <= MOST);
        KEPT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok().map(|_| Self(charged))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.0, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(super) struct Cursor {
    scanner: Scanner,
    end: u64,
    unit: Vec<u8>,
    /// While it is idle.
    kept: Option<Kept>,
}

/// What a read is checked against: the marks from the one at or before it to its end.
pub(super) struct Span<'a> {
    pub(super) rendering: &'a Rendering,
    pub(super) marks: &'a [Mark],
    pub(super) skips: Vec<Skip>,
    /// Of the queue, for errors.
    pub(super) path: &'a Path,
}

impl Cursor {
    /// Moves a scanner to a place.
    pub(super) fn new(mut scanner: Scanner, place: Place) -> Result<Self> {
        scanner.seek(place.position, place.seq)?;
        Ok(Self { scanner, end: place.offset, unit: Vec::new(), kept: None })
    }

    pub(super) fn into_scanner(mut self) -> Scanner {
        self.scanner.trim(SMALL);
        self.scanner
    }

    /// Prepares it to be kept for the next read, within what all may keep together.
    pub(super) fn rested(mut self) -> Self {
        if self.unit.len() > SMALL {
            self.scanner.trim(SMALL);
        }
        self.kept = Kept::of(self.unit.capacity() + self.scanner.kept());
        if self.kept.is_none() {
            self.unit = Vec::new();
            self.scanner.trim(0);
        }
        self
    }

    /// Its scanner's position.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Whether it can render the bytes at `offset` at less cost than one moved to the mark at `mark_offset`.
    pub(super) fn serves(&self, offset: u64, mark_offset: u64) -> bool {
        let start = self.end - len_u64(self.unit.len());
        // Where the kept unit itself starts, empty ones may lie before it.
        let has_passed = start > offset || start == offset && !self.unit.is_empty();
        !has_passed && self.end >= mark_offset
    }

    /// Takes the unit that it keeps, with its start, if it is large.
    pub(super) fn take_large(&mut self) -> Option<(u64, Vec<u8>)> {
        let len = Some(self.unit.len()).filter(|len| *len > LARGE)?;
        self.scanner.trim(SMALL);
        Some((self.end - len_u64(len), std::mem::take(&mut self.unit)))
    }

    /// Appends the bytes from `from` to `to` to `out`. The index must reach to `to`, and [`Self::serves`] hold, or
    /// the cursor be new at the first of the marks. Returns the first gap in bin that starts in that range.
    pub(super) fn copy(&mut self, span: &Span<'_>, from: u64, to: u64, out: &mut Vec<u8>) -> Result<Option<Crossed>> {
        self.kept = None;
        let mut crossed = None;
        let mut at = from.max(self.copy_kept(from, to, out));
        while at < to {
            let start = self.end;
            let position = self.scanner.position();
            self.unit.clear();
            let entry = if let Some(skip) = span.skip(self.scanner.seq()) {
                self.scanner.seek(skip.next.0, skip.next.1)?;
                Entry::Gap(skip.gap)
            } else {
                let entry = self.scanner.next()?;
                let entry = entry.ok_or_else(|| span.changed(position.offset, "messages are gone"))?;
                span.check(&entry, start, position.offset)?;
                entry
            };
            if let Entry::Gap(gap) = entry
                && span.rendering.format() == Format::Bin
                && start >= from
                && crossed.is_none()
            {
                crossed = Some(Crossed { gap, offset: start });
            }
            let room = to - at;
            if start == at && len_u64(payload_len(&entry)) < room {
                let before = out.len();
                span.rendering.render(&entry, out);
                let len = len_u64(out.len() - before);
                self.end += len;
                if len > room {
                    self.unit.extend_from_slice(&out[before..]);
                    out.truncate(before + len_usize(room));
                }
                at = to.min(self.end);
                continue;
            }
            // A unit that starts before the range, or one so long that most of it lies past it.
            let len = span.rendering.len(&entry);
            self.end += len;
            if self.end > at {
                self.unit.reserve_exact(len_usize(len));
                span.rendering.render(&entry, &mut self.unit);
                at = self.copy_kept(at, to, out);
            }
        }
        Ok(crossed)
    }

    /// Appends what the kept unit has of the bytes from `from` to `to`. Returns up to where that is.
    fn copy_kept(&self, from: u64, to: u64, out: &mut Vec<u8>) -> u64 {
        let start = self.end - len_u64(self.unit.len());
        let upto = to.min(self.end);
        if start <= from && from < upto {
            out.extend_from_slice(&self.unit[len_usize(from - start)..len_usize(upto - start)]);
        }
        upto
    }
}

fn payload_len(entry: &Entry<'_>) -> usize {
    match entry {
        Entry::Message(message) => message.payload.len(),
        Entry::Gap(_) => 0,
    }
}

impl Span<'_> {
    /// What retention had removed from this message on.
    fn skip(&self, seq: u64) -> Option<&Skip> {
        let at = self.skips.partition_point(|skip| skip.gap.from < seq);
        self.skips.get(at).filter(|skip| skip.gap.from == seq)
    }

    /// Checks that the queue still has at `start` what it had when the index was built. Otherwise the bytes from here
    /// on would be at other offsets than before.
    fn check(&self, entry: &Entry<'_>, start: u64, queue_offset: u32) -> Result<()> {
        let seq = match entry {
            Entry::Message(message) => message.seq,
            Entry::Gap(gap) => gap.from,
        };
        let following = self.marks.partition_point(|mark| mark.place.offset <= start);
        let Some(mark) = self.marks.get(following.saturating_sub(1)) else { return Ok(()) };
        if seq < mark.place.seq {
            return Err(self.changed(queue_offset, "messages have become longer"));
        }
        if self.marks.get(following).is_some_and(|next| seq >= next.place.seq) {
            return Err(self.changed(queue_offset, "messages have become shorter"));
        }
        match entry {
            Entry::Gap(Gap { from, reason: GapReason::Retired, .. }) => Err(Error::NoSuchPosition {
                path: self.path.to_path_buf(),
                what: format!("message {from} is gone, retention has removed it; open the file again"),
            }),
            Entry::Gap(_) if !mark.has_gap => Err(self.changed(queue_offset, "a record has been damaged")),
            _ => Ok(()),
        }
    }

    fn changed(&self, queue_offset: u32, what: &str) -> Error {
        let what = format!("{what} since the file was opened; open it again");
        Error::damaged(self.path, u64::from(queue_offset), what)
    }
}
