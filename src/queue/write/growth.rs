//! How large the next segment is: as small as possible for a queue that holds little, as large as the settings allow for
//! one that is busy.

use crate::queue::format::layout::{
    HEADER_LEN, MAX_PAYLOAD_ALIGN, MAX_SEGMENT_SIZE, MIN_SEGMENT_SIZE, PAGE, TRAILER_LEN, records_start,
};

/// The sizes of a segment file that will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WantedSize {
    /// The size of a new file.
    pub(crate) best: u32,
    /// Bounds for a file that exists already.
    least: u32,
    most: u32,
}

impl WantedSize {
    /// Whatever exists, else the smallest.
    pub(crate) const ANY: Self = Self { best: MIN_SEGMENT_SIZE, least: MIN_SEGMENT_SIZE, most: MAX_SEGMENT_SIZE };

    /// After a segment of which `used` bytes are used: twice as many, or four times if they were used quickly, but enough
    /// for a record of `record_len` bytes. At most `largest`, whatever the alignment of payloads.
    pub(crate) fn after((used, is_fast): (u32, bool), record_len: u32, largest: u32) -> Self {
        let room = record_len.next_multiple_of(MAX_PAYLOAD_ALIGN) + HEADER_LEN + TRAILER_LEN;
        let least = (records_start(MAX_PAYLOAD_ALIGN) + room).next_multiple_of(PAGE).max(MIN_SEGMENT_SIZE);
        let times = if is_fast { 4 } else { 2 };
        let best = used.saturating_mul(times).max(least).min(MAX_SEGMENT_SIZE).next_power_of_two();
        let best = best.min(largest).max(least);
        // One that was prepared for a busier writer may be larger, but not much.
        Self { best, least, most: best.saturating_mul(4).min(MAX_SEGMENT_SIZE) }
    }

    /// The same, with a limit: None if nothing that will do is that small.
    pub(crate) fn within(self, limit: u64) -> Option<Self> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let largest = 1 << limit.checked_ilog2()?;
        let best = if self.best <= limit { self.best } else { self.least.max(largest) };
        (self.least <= limit).then_some(Self { best, least: self.least, most: self.most.min(limit) })
    }

    /// The same with half the size, or what is left to halve; None if nothing smaller will do.
    pub(crate) fn smaller(self) -> Option<Self> {
        let best = (self.best / 2 / PAGE * PAGE).max(self.least);
        (best < self.best).then_some(Self { best, ..self })
    }

    /// Whether an existing file of this size will do.
    pub(crate) fn allows(self, size: u32) -> bool {
        (self.least..=self.most).contains(&size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::format::layout::{PAYLOAD_ALIGNS, max_payload_len};
    use crate::queue::format::record::RecordContext;

    const KIB: u32 = 1 << 10;

    fn best(used: u32, record_len: u32, largest: u32) -> u32 {
        WantedSize::after((used, false), record_len, largest).best
    }

    #[test]
    fn segments_grow_while_they_get_full_and_shrink_when_they_are_left_early() {
        for (is_fast, shift) in [(false, 1), (true, 2)] {
            let mut sizes = vec![64 * KIB];
            while sizes.len() < 12 {
                let used = sizes.last().unwrap() - 200;
                sizes.push(WantedSize::after((used, is_fast), 100, 64 << 20).best);
            }
            let growing: Vec<u32> = (0..12).map(|n| 1 << (16 + n * shift).min(26)).collect();
            assert_eq!(sizes, growing);
        }
        assert_eq!(best(4096, 100, 64 << 20), 64 * KIB);
        assert_eq!(best(5 << 20, 100, 64 << 20), 16 << 20);
        // The largest need not be a power of 2.
        assert_eq!(best(64 * KIB, 100, 100 * KIB), 100 * KIB);
        assert_eq!(best(1 << 30, 100, 1 << 30), 1 << 30);
    }

    #[test]
    fn the_largest_message_fits_and_needs_no_more_than_the_largest_segment() {
        for align in PAYLOAD_ALIGNS {
            for largest in [64 * KIB, 68 * KIB, 1 << 20, (1 << 20) + 4096, 1 << 30] {
                let max = max_payload_len(largest);
                for payload in [0, 1, 60_000, 500_000, max].into_iter().filter(|&payload| payload <= max) {
                    let record_len = RecordContext::new(0, largest, align, false).record_len(payload);
                    let wanted = WantedSize::after((4096, false), record_len, largest);
                    assert!(max_payload_len(wanted.least) >= payload, "{payload} in {wanted:?}");
                    assert!(wanted.best <= largest && wanted.allows(wanted.best), "{wanted:?} for {payload}");
                }
            }
        }
    }

    #[test]
    fn smaller_segments_end_at_the_least_that_will_do() {
        for (used, record_len, largest, least) in
            [(32 << 20, 100, 64 << 20, 64 * KIB), (MIN_SEGMENT_SIZE, 70_000, 132 * KIB, 76 * KIB)]
        {
            let wanted = WantedSize::after((used, true), record_len, largest);
            let sizes: Vec<u32> =
                std::iter::successors(Some(wanted), |wanted| wanted.smaller()).map(|it| it.best).collect();
            assert!(
                sizes.is_sorted_by(|larger, smaller| larger > smaller && smaller.is_multiple_of(PAGE)),
                "{sizes:?}"
            );
            assert_eq!(sizes.last(), Some(&least));
            assert!(sizes.iter().all(|&size| wanted.allows(size)));
        }
    }

    #[test]
    fn where_little_room_is_left_a_smaller_segment_will_do() {
        let wanted = WantedSize::after((1 << 20, false), 200_000, 64 << 20);
        assert_eq!(wanted.best, 2 << 20);
        assert_eq!(wanted.within(u64::MAX), Some(wanted));
        assert_eq!(wanted.within(2 << 20).map(|wanted| wanted.best), Some(2 << 20));
        assert_eq!(wanted.within(2_000_000).map(|wanted| wanted.best), Some(1 << 20));
        assert!(wanted.within(2_000_000).is_some_and(|wanted| !wanted.allows(2 << 20)));
        assert_eq!(wanted.within(250_000).map(|wanted| wanted.best), Some(wanted.least));
        assert_eq!(wanted.within(200_000), None);
        assert_eq!(wanted.within(0), None);
    }
}
