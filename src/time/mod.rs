//! Timestamps as RFC 3339 text: always UTC, always nine decimals. Pure; parsing what people type is `view/time.rs`.
#![cfg_attr(not(feature = "view"), allow(dead_code, unreachable_pub))]

pub(crate) mod decimal;

use std::cell::Cell;

use decimal::{Decimal, nine_digits, two_digits};

/// Length of a formatted time: `2024-08-08T09:15:00.123456789Z`.
pub(crate) const TIME_LEN: usize = 30;

pub(crate) const SECOND_NS: u64 = 1_000_000_000;
pub(crate) const DAY_S: u64 = 86_400;

/// Appends ns since the epoch to `out` as `2024-08-08T09:15:00.123456789Z`: always UTC, always nine decimals, so that
/// times sort as text.
pub fn format_time(timestamp_ns: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&Stamp::new(timestamp_ns).time);
}

/// A timestamp as text, in both forms.
pub(crate) struct Stamp {
    /// Its time.
    pub(crate) time: [u8; TIME_LEN],
    /// Its nanoseconds since the epoch.
    pub(crate) ns: Decimal,
}

/// The part that timestamps of one second share.
#[derive(Clone, Copy)]
struct Second {
    seconds: u64,
    time: [u8; TIME_LEN],
    digits: Decimal,
}

thread_local! {
    /// The last one: many messages usually share a second.
    static SECOND: Cell<Second> = const {
        let time = *b"1970-01-01T00:00:00.000000000Z";
        Cell::new(Second { seconds: 0, time, digits: Decimal { bytes: [b'0'; 20], len: 1 } })
    };
}

impl Stamp {
    #[inline]
    pub(crate) fn new(timestamp_ns: u64) -> Self {
        let (seconds, nanos) = (timestamp_ns / SECOND_NS, timestamp_ns % SECOND_NS);
        let mut second = SECOND.get();
        if second.seconds != seconds {
            second = Second::new(seconds);
            SECOND.set(second);
        }
        let decimals = nine_digits(nanos);
        let Second { mut time, digits: Decimal { mut bytes, len }, .. } = second;
        time[20..29].copy_from_slice(&decimals);
        // Seconds have eleven digits at most.
        let len = len.min(11);
        bytes[len..len + 9].copy_from_slice(&decimals);
        let ns = if seconds == 0 { Decimal::new(nanos) } else { Decimal { bytes, len: len + 9 } };
        Self { time, ns }
    }
}

impl Second {
    fn new(seconds: u64) -> Self {
        let (year, month, day) = civil(seconds / DAY_S);
        let second = seconds % DAY_S;
        let mut time = *b"0000-00-00T00:00:00.000000000Z";
        time[..2].copy_from_slice(&two_digits(year / 100));
        time[2..4].copy_from_slice(&two_digits(year));
        time[5..7].copy_from_slice(&two_digits(month));
        time[8..10].copy_from_slice(&two_digits(day));
        time[11..13].copy_from_slice(&two_digits(second / 3600));
        time[14..16].copy_from_slice(&two_digits(second / 60 % 60));
        time[17..19].copy_from_slice(&two_digits(second % 60));
        Self { seconds, time, digits: Decimal::new(seconds) }
    }
}

/// Year, month and day of a day counted from the epoch (Gregorian). Years start in March, so that leap days come last:
/// hence the odd numbers.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formatted(timestamp_ns: u64) -> String {
        let mut out = Vec::new();
        format_time(timestamp_ns, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn known_times() {
        assert_eq!(formatted(1_723_108_500_123_456_789), "2024-08-08T09:15:00.123456789Z");
        assert_eq!(formatted(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(formatted(951_782_400 * SECOND_NS), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(formatted(u64::MAX), "2554-07-21T23:34:33.709551615Z");
    }

    #[cfg(feature = "view")]
    #[test]
    fn every_day_as_jiff_has_it() {
        for day in 0..u64::MAX / SECOND_NS / DAY_S {
            let ns = (day * DAY_S + day % DAY_S) * SECOND_NS + day;
            let expected = jiff::Timestamp::from_nanosecond(i128::from(ns)).unwrap();
            assert_eq!(formatted(ns), format!("{expected:.9}"));
        }
    }
}
