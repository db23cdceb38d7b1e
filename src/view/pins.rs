//! The segments that a view holds open, so that it can go on reading them after retention has removed them.
//!
//! A pin is a scanner positioned in a segment: it keeps that file open and does not read the directory as long as it
//! stays there. Bounded in number, per view and in the process; the oldest segments are pinned first, as they are
//! removed first.

use std::collections::BTreeMap;

use super::index::{Index, Place};
use crate::queue::{Entry, Error, Gap, GapReason, Queue, Result, Scanner, SegmentId};
use crate::sync::{AtomicU32, Ordering};

/// Segments that one view holds open.
pub(super) const MAX_PINS: usize = 64;
/// Segments that all views of the process hold open.
const MAX_ALL: u32 = 1024;

/// The number of pins in the process.
static ALL: AtomicU32 = AtomicU32::new(0);

#[derive(Debug, Default)]
pub(super) struct Pins {
    scanners: BTreeMap<SegmentId, Scanner>,
    /// Where the index ended when segments were last looked for, how many were wanted, and whether all of them were
    /// there.
    looked: Option<(SegmentId, usize, bool)>,
}

impl Pins {
    /// Pins the first `count` segments of the index, as far as limits allow. False if one of them has been removed.
    pub(super) fn extend(&mut self, queue: &Queue, index: &Index, count: usize) -> bool {
        let end = index.end().position.segment;
        if let Some((looked, wanted, all)) = self.looked
            && looked == end
            && wanted >= count
        {
            return all;
        }
        let mut all = true;
        for place in index.segment_starts(count) {
            if self.scanners.contains_key(&place.position.segment) {
                continue;
            }
            if self.scanners.len() >= MAX_PINS {
                break;
            }
            if ALL.fetch_add(1, Ordering::Relaxed) >= MAX_ALL {
                ALL.fetch_sub(1, Ordering::Relaxed);
                break;
            }
            match hold(queue, place) {
                Ok(scanner) => drop(self.scanners.insert(place.position.segment, scanner)),
                Err(_) => {
                    ALL.fetch_sub(1, Ordering::Relaxed);
                    all = false;
                }
            }
        }
        self.looked = Some((end, count, all));
        all
    }

    /// Pins a segment that the index does not have yet, if those before it are pinned. False if it has been removed.
    pub(super) fn hold_next(&mut self, queue: &Queue, place: Place) -> Result<bool> {
        let segment = place.position.segment;
        if self.looked.is_none() || self.scanners.len() >= MAX_PINS || self.has(segment) {
            return Ok(true);
        }
        match hold(queue, place) {
            Ok(scanner) if ALL.load(Ordering::Relaxed) < MAX_ALL => {
                drop(self.take(segment));
                self.put(segment, scanner);
            }
            Ok(_) => {}
            Err(Error::NoSuchPosition { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Whether it holds a segment. One without messages can't be held.
    fn has(&self, segment: SegmentId) -> bool {
        self.scanners.get(&segment).is_some_and(Scanner::is_open)
    }

    /// Lends out a pin, which must be returned by [`Pins::put`] or is lost.
    pub(super) fn take(&mut self, segment: SegmentId) -> Option<Scanner> {
        let scanner = self.scanners.remove(&segment)?;
        ALL.fetch_sub(1, Ordering::Relaxed);
        Some(scanner)
    }

    pub(super) fn put(&mut self, segment: SegmentId, scanner: Scanner) {
        ALL.fetch_add(1, Ordering::Relaxed);
        self.scanners.insert(segment, scanner);
    }

    /// Releases all pins.
    pub(super) fn clear(&mut self) {
        let count = u32::try_from(self.scanners.len()).unwrap_or(0);
        ALL.fetch_sub(count, Ordering::Relaxed);
        self.scanners.clear();
        self.looked = None;
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.clear();
    }
}

fn hold(queue: &Queue, place: Place) -> Result<Scanner> {
    let mut scanner = queue.scan()?;
    scanner.seek(place.position, place.seq)?;
    // Opens the file; the exact position does not matter.
    match scanner.next()? {
        Some(Entry::Gap(Gap { from, reason: GapReason::Retired, .. })) => {
            let what = format!("message {from} is gone");
            Err(Error::NoSuchPosition { path: queue.path().to_path_buf(), what })
        }
        _ => Ok(scanner),
    }
}
