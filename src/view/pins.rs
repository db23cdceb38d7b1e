//! The segments that a view holds open, so that it can go on reading them when retention has taken their names away.
//!
//! A pin is a scanner that stands in a segment: it keeps that file open and never looks at the directory as long as it
//! stays there. Bounded in number, per view and in the whole process; the oldest segments come first, as they go first.

use std::collections::BTreeMap;

use super::index::{Index, Place};
use crate::queue::{Entry, Error, Gap, GapReason, Queue, Result, Scanner, SegmentId};
use crate::sync::{AtomicU32, Ordering};

/// Segments that one view holds open.
pub(super) const MAX_PINS: usize = 64;
/// Segments that all views of the process hold open.
const MAX_ALL: u32 = 1024;

/// How many there are in the process.
static ALL: AtomicU32 = AtomicU32::new(0);

#[derive(Debug, Default)]
pub(super) struct Pins {
    scanners: BTreeMap<SegmentId, Scanner>,
    /// Where the index ended when segments were last looked for, how many were wanted, and whether all of them were there.
    looked: Option<(SegmentId, usize, bool)>,
}

impl Pins {
    /// Takes hold of the first `count` segments that the index has come to know. What can't be had is left out. False if
    /// one of them is gone.
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

    /// Takes hold of a segment before the index tells of it, if those before it are held. False if it is gone already.
    pub(super) fn hold_next(&mut self, queue: &Queue, place: Place) -> bool {
        let segment = place.position.segment;
        if self.looked.is_none() || self.scanners.len() >= MAX_PINS || self.scanners.contains_key(&segment) {
            return true;
        }
        if ALL.fetch_add(1, Ordering::Relaxed) >= MAX_ALL {
            ALL.fetch_sub(1, Ordering::Relaxed);
            return true;
        }
        match hold(queue, place) {
            Ok(scanner) => {
                self.scanners.insert(segment, scanner);
                true
            }
            Err(_) => {
                ALL.fetch_sub(1, Ordering::Relaxed);
                false
            }
        }
    }

    /// Lends out a segment, which must come back by [`Pins::put`] or is gone.
    pub(super) fn take(&mut self, segment: SegmentId) -> Option<Scanner> {
        let scanner = self.scanners.remove(&segment)?;
        ALL.fetch_sub(1, Ordering::Relaxed);
        Some(scanner)
    }

    pub(super) fn put(&mut self, segment: SegmentId, scanner: Scanner) {
        ALL.fetch_add(1, Ordering::Relaxed);
        self.scanners.insert(segment, scanner);
    }

    /// Lets go of all.
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
    // Opens the file; where exactly it stands then does not matter.
    match scanner.next()? {
        Some(Entry::Gap(Gap { from, reason: GapReason::Retired, .. })) => {
            let what = format!("message {from} is gone");
            Err(Error::NoSuchPosition { path: queue.path().to_path_buf(), what })
        }
        _ => Ok(scanner),
    }
}
