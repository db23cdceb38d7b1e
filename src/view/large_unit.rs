//! The large unit (a long message) that a view was last read from, so that the many reads within it render it once.
//!
//! The process keeps the last few, whichever views they are of. Threads that need the same one at the same time wait
//! for the one that renders it. Lock order: `turn`, `last`, `KEPT`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::render_cursor::Cursor;
use super::{len_u64, len_usize, lock};

/// This many are kept whatever their size, and more as long as all of them have at most this many bytes.
const FEW: usize = 2;
const MOST: usize = 64 << 20;

static KEPT: Mutex<VecDeque<Arc<Vec<u8>>>> = Mutex::new(VecDeque::new());

/// A range of the rendered file, and its bytes while they are kept.
#[derive(Debug, Default)]
struct Last {
    start: u64,
    end: u64,
    bytes: Weak<Vec<u8>>,
}

impl Last {
    fn copy(&self, from: u64, to: u64, out: &mut Vec<u8>) -> Option<u64> {
        // Where it starts, empty units may lie before it.
        let bytes = self.bytes.upgrade().filter(|_| self.start < from && from < self.end)?;
        out.extend_from_slice(&bytes[len_usize(from - self.start)..len_usize(to.min(self.end) - self.start)]);
        Some(self.end)
    }
}

/// That of a view.
#[derive(Debug, Default)]
pub(super) struct LargeUnit {
    last: Mutex<Last>,
    turn: Mutex<()>,
}

impl LargeUnit {
    /// Appends the bytes from `from` to `to`, or to the unit's end, which is returned, if it has the first of them. If
    /// it must be rendered again, others wait as long as the returned guard lives.
    pub(super) fn copy(&self, from: u64, to: u64, out: &mut Vec<u8>) -> (Option<u64>, Option<MutexGuard<'_, ()>>) {
        let last = lock(&self.last);
        let end = last.copy(from, to, out);
        if end.is_some() || from >= last.end || to <= last.start {
            return (end, None);
        }
        drop(last);
        let turn = lock(&self.turn);
        (lock(&self.last).copy(from, to, out), Some(turn))
    }

    /// Replaces it by the one that a cursor has read last, if that is large.
    pub(super) fn keep(&self, cursor: &mut Cursor) {
        let Some((start, bytes)) = cursor.take_large() else { return };
        let bytes = Arc::new(bytes);
        let new = Last { start, end: start + len_u64(bytes.len()), bytes: Arc::downgrade(&bytes) };
        let mut last = lock(&self.last);
        let old = std::mem::replace(&mut *last, new).bytes;
        let mut kept = lock(&KEPT);
        kept.retain(|kept| !std::ptr::eq(Arc::as_ptr(kept), old.as_ptr()));
        kept.push_back(bytes);
        while kept.len() > FEW && kept.iter().map(|bytes| bytes.len()).sum::<usize>() > MOST {
            kept.pop_front();
        }
    }

    /// Frees its bytes.
    pub(super) fn forget(&self) {
        let bytes = std::mem::take(&mut lock(&self.last).bytes);
        lock(&KEPT).retain(|kept| !std::ptr::eq(Arc::as_ptr(kept), bytes.as_ptr()));
    }
}

impl Drop for LargeUnit {
    fn drop(&mut self) {
        self.forget();
    }
}
