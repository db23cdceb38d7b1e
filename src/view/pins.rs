//! The segments that a view holds open, so that it can go on reading them when retention has taken their names away.
//!
//! A pin is a scanner that stands in a segment: it keeps that file open and never looks at the directory as long as it
//! stays there. Bounded in number, per view and in the whole process; the oldest segments come first, as they go first.

use std::collections::BTreeMap;

use super::index::{Index, Place};
use crate::queue::{Queue, Result, Scanner, SegmentId};
use crate::sync::{AtomicU32, Ordering};

/// Segments that one view holds open.
const MAX_PINS: usize = 64;
/// Segments that all views of the process hold open.
const MAX_ALL: u32 = 1024;

/// How many there are in the process.
static ALL: AtomicU32 = AtomicU32::new(0);

#[derive(Debug, Default)]
pub(super) struct Pins {
    scanners: BTreeMap<SegmentId, Scanner>,
    /// Where the index ended when segments were last looked for.
    looked: Option<SegmentId>,
}

impl Pins {
    /// Takes hold of the segments that the index has come to know. What can't be had is left out.
    pub(super) fn extend(&mut self, queue: &Queue, index: &Index) {
        let end = Some(index.end().position.segment);
        if self.looked == end || self.scanners.len() >= MAX_PINS {
            return;
        }
        self.looked = end;
        for place in index.segment_starts(MAX_PINS) {
            if self.scanners.contains_key(&place.position.segment) {
                continue;
            }
            if ALL.fetch_add(1, Ordering::Relaxed) >= MAX_ALL {
                ALL.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            match hold(queue, place) {
                Ok(scanner) => drop(self.scanners.insert(place.position.segment, scanner)),
                Err(_) => drop(ALL.fetch_sub(1, Ordering::Relaxed)),
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
    scanner.next()?;
    Ok(scanner)
}
