//! Zeros ahead of the writer: where the next records will start, nothing may look committed.
//!
//! Clearing one word per append would have the writer store into the cache line that a polling reader takes next, just
//! before the commit. So whole lines are cleared after the commit, some records ahead; but not between messages of a burst
//! (`QueueWriter::advance`), where it costs more than it saves. Invariants:
//! - All bytes from the head to `to` are zero, unless `to` is less than the head: then nothing is known.
//! - Before a commit, the commit word after the new record is zero, by either way.
//! - Nothing is stored past `limit`, up to where the file has room.

use crate::queue::os::mapping::{CACHE_LINE, Mapping, Place};

/// How far ahead.
const AHEAD: u32 = 512;

/// Clears what comes after the head of a segment.
#[derive(Debug, Default)]
pub(in crate::queue) struct ClearAhead {
    /// A multiple of the length of a line, or 0.
    to: u32,
    limit: u32,
}

impl ClearAhead {
    /// Something may be stored after the head. Returns what was known.
    pub(in crate::queue) fn forget(&mut self) -> u32 {
        std::mem::take(&mut self.to)
    }

    /// Nothing was stored after the head but the next record, since this was returned by [`forget`](Self::forget).
    pub(in crate::queue) fn remember(&mut self, to: u32) {
        self.to = to;
    }

    /// Lines may be cleared up to this offset.
    pub(in crate::queue) fn set_limit(&mut self, limit: u32) {
        self.limit = limit / CACHE_LINE * CACHE_LINE;
    }

    /// Commits a record that is in place but for its header; `next` is where the one after it will start.
    #[inline]
    pub(in crate::queue) fn commit(&self, place: Place<'_>, next: u32, header: [u64; 4]) {
        if self.to <= next {
            place.clear_next();
        }
        place.publish(header);
    }

    /// The head is at `head` now.
    #[inline]
    pub(in crate::queue) fn advance(&mut self, map: &Mapping, head: u32) {
        let end = (head.saturating_add(AHEAD) / CACHE_LINE * CACHE_LINE).min(self.limit);
        if self.to < head {
            self.to = Self::clear_rest_of_line(map, head, end);
        }
        while self.to < end {
            map.clear_line(self.to);
            self.to += CACHE_LINE;
        }
    }

    /// Clears the rest of the head's line. Returns where it ends, or `end` if that is before.
    #[cold]
    fn clear_rest_of_line(map: &Mapping, head: u32, end: u32) -> u32 {
        let next = head.next_multiple_of(CACHE_LINE).min(end);
        (head..next).step_by(8).for_each(|word| map.clear_record(word));
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u32 = 16 << 10;

    #[test]
    fn what_is_known_is_zero_and_nothing_is_stored_past_the_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut random = 1_u32;
        let mut next = |below: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) % below
        };
        for _ in 0..200 {
            std::fs::write(file.path(), vec![0xFF; LEN as usize]).unwrap();
            let map = Mapping::read_write(&file.reopen().unwrap(), file.path(), LEN).unwrap();
            let (mut ahead, mut head, mut limit) = (ClearAhead::default(), 4096, 0);
            map.clear_record(head);
            loop {
                let longest = if next(4) == 0 { 200 } else { 12 };
                let record_len = 32 + 8 * next(longest);
                if head + record_len > limit {
                    limit = head + record_len + 8 * next(300);
                    if limit > LEN - 8 {
                        break;
                    }
                    ahead.set_limit(limit);
                }
                if next(10) == 0 {
                    // Filled, and not committed.
                    ahead.forget();
                    map.unpublished(head + 32, (record_len - 32) as usize).fill(0xEE);
                }
                let mut place = map.place(head, record_len);
                place.body().fill(0xDD);
                ahead.commit(place, head + record_len, [u64::MAX; 4]);
                assert!(map.bytes(head + record_len, 8).iter().all(|&byte| byte == 0), "at {head}");
                head += record_len;
                ahead.advance(&map, head);
                let known = ahead.to.saturating_sub(head) as usize;
                assert!(map.bytes(head, known).iter().all(|&byte| byte == 0), "{known} bytes after {head}");
                let records = map.bytes(4096, (head - 4096) as usize);
                assert!(records.iter().all(|&byte| byte >= 0xCC), "before {head}");
                let rest = limit.max(head + 8);
                assert!(map.bytes(rest, (LEN - rest) as usize).iter().all(|&byte| byte >= 0xEE), "after {limit}");
            }
        }
    }
}
