//! Times as people type them. Pure but for the local time zone; how timestamps are printed is in `crate::time`.

use jiff::civil::{Date, DateTime, Time};
use jiff::fmt::temporal::Pieces;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

use crate::time::{DAY_S, SECOND_NS};

/// What [`parse_time`] accepts, for its error texts.
const TIMES: &str = "use '2024-08-08 09:30', 09:30, yesterday, '1 hour ago', 15m, @1723108500 or 2024-08-08T09:30:00Z";

/// A time as people write it, in ns since the epoch; `now_ns` is what relative ones count from. The words are those of
/// journalctl.
///
/// - `2024-08-08 09:30:00`, `2024-08-08`, `09:30`: a date, a time of that day or of today, or both; also
///   `now`, `today`, `yesterday` and `tomorrow`. In the local time zone, unless `UTC` or the name of a zone follows
/// - RFC 3339: `2024-08-08T09:30:00Z`, `2024-08-08T11:30:00.5+02:00`
/// - `15m`, `-15m`, `15m ago`, `1 hour 30 min ago`: this long before `now_ns`; the units are those of [`parse_span`]
/// - `@1723108500` or `@1723108500.123456789`: seconds since the epoch; before any other time an `@` changes nothing
/// - 16 digits or more: ns since the epoch
///
/// ```
/// let now_ns = 1_723_108_500_000_000_000;
/// let hour_ns = 3_600_000_000_000;
/// assert_eq!(chronfs::view::parse_time("1 hour ago", now_ns), Ok(now_ns - hour_ns));
/// assert_eq!(chronfs::view::parse_time("2024-08-08 08:15 UTC", now_ns), Ok(now_ns - hour_ns));
/// ```
///
/// # Errors
/// A text for people that says what is wrong.
pub fn parse_time(text: &str, now_ns: u64) -> Result<u64, String> {
    parse_in(text, now_ns, TimeZone::system)
}

fn parse_in(text: &str, now_ns: u64, local: impl FnOnce() -> TimeZone) -> Result<u64, String> {
    let typed = text.trim();
    let text = typed.strip_prefix('@').map_or(typed, str::trim_start);
    if text.len() < typed.len()
        && let Some(time_ns) = parse_unix(text)
    {
        return Ok(time_ns);
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return parse_digits(text);
    }
    if let Some(ago) = parse_ago(text) {
        return Ok(now_ns.saturating_sub(ago));
    }
    if text == "now" {
        return Ok(now_ns);
    }
    let timestamp = match text.parse::<Timestamp>() {
        Ok(timestamp) => Some(timestamp).filter(|_| has_sound_offset(text)),
        Err(_) => parse_civil(text, now_ns, local),
    };
    let timestamp = timestamp.ok_or_else(|| format!("{typed:?} is not a time; {TIMES}"))?;
    u64::try_from(timestamp.as_nanosecond()).map_err(|_| format!("time {typed:?} is outside 1970 to 2554"))
}

/// Whether it is less than a day: jiff takes up to `+25:59`.
fn has_sound_offset(text: &str) -> bool {
    let offset = Pieces::parse(text).ok().and_then(|pieces| pieces.to_numeric_offset());
    offset.is_none_or(|offset| u64::from(offset.seconds().unsigned_abs()) < DAY_S)
}

/// `[DAY] [TIME] [ZONE]`.
fn parse_civil(text: &str, now_ns: u64, local: impl FnOnce() -> TimeZone) -> Option<Timestamp> {
    if let Ok(civil) = text.parse::<DateTime>()
        && text.contains(['T', 't'])
    {
        return at(civil, local());
    }
    let mut words: Vec<&str> = text.split_whitespace().collect();
    let named = words.last().and_then(|word| parse_zone(word));
    let zone = match named {
        Some(zone) => words.pop().map(|_| zone)?,
        None => local(),
    };
    let today = Timestamp::from_nanosecond(now_ns.into()).ok()?.to_zoned(zone.clone()).date();
    let (day, time) = match words[..] {
        [day, time] => (parse_day(day, today)?, parse_clock(time)?),
        [word] => match parse_clock(word) {
            Some(time) => (today, time),
            None => (parse_day(word, today)?, Time::midnight()),
        },
        _ => return None,
    };
    at(day.to_datetime(time), zone)
}

fn at(civil: DateTime, zone: TimeZone) -> Option<Timestamp> {
    Some(civil.to_zoned(zone).ok()?.timestamp())
}

/// `UTC`, `Europe/Berlin`.
fn parse_zone(word: &str) -> Option<TimeZone> {
    match word {
        "UTC" => Some(TimeZone::UTC),
        _ if word.contains('/') => TimeZone::get(word).ok(),
        _ => None,
    }
}

fn parse_day(word: &str, today: Date) -> Option<Date> {
    match word {
        "today" => Some(today),
        "yesterday" => today.checked_sub(1.day()).ok(),
        "tomorrow" => today.checked_add(1.day()).ok(),
        _ if word.len() == "2024-08-08".len() => word.parse().ok(),
        _ => None,
    }
}

/// `09:30`, `09:30:00`, `09:30:00.5`.
fn parse_clock(word: &str) -> Option<Time> {
    let is_clock =
        word.as_bytes().get(2) == Some(&b':') && word.bytes().all(|b| b.is_ascii_digit() || b":.".contains(&b));
    word.parse().ok().filter(|_| is_clock)
}

fn parse_digits(text: &str) -> Result<u64, String> {
    if text.len() < 16 {
        return Err(format!("time {text:?} has no unit; {TIMES}"));
    }
    text.parse().map_err(|_| format!("time {text:?} is outside 1970 to 2554"))
}

/// Seconds since the epoch with up to nine decimals, as ns.
fn parse_unix(text: &str) -> Option<u64> {
    let (seconds, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(seconds) || !digits(decimals) || decimals.len() > 9 {
        return None;
    }
    let nanos: u64 = format!("{decimals:0<9}").parse().ok()?;
    seconds.parse::<u64>().ok()?.checked_mul(SECOND_NS)?.checked_add(nanos)
}

/// `-15m`, `15m ago`, `15m`: how long ago, in ns.
fn parse_ago(text: &str) -> Option<u64> {
    let text = match (text.strip_prefix('-'), text.strip_suffix("ago")) {
        (Some(_), Some(_)) => return None,
        (Some(rest), None) => rest,
        (None, Some(rest)) => rest.trim_end(),
        (None, None) => text,
    };
    parse_span(text)
}

/// A span of time, in ns: `90s`, `15m`, `1h30m`, `2 hours 30 min`. The units are ns, us, ms, s, m, h, d, w, month and
/// y, and their usual longer forms (sec, min, hours …); a month is 30.44 days, a year 365.25 days. None for anything else, and for more than 584 years.
pub fn parse_span(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        let unit_ns = match unit.trim() {
            "ns" | "nsec" => 1,
            "us" | "usec" => 1_000,
            "ms" | "msec" => 1_000_000,
            "s" | "sec" | "second" | "seconds" => SECOND_NS,
            "m" | "min" | "minute" | "minutes" => 60 * SECOND_NS,
            "h" | "hr" | "hour" | "hours" => 3_600 * SECOND_NS,
            "d" | "day" | "days" => DAY_S * SECOND_NS,
            "w" | "week" | "weeks" => 7 * DAY_S * SECOND_NS,
            // As systemd has it: 30.44 and 365.25 days.
            "month" | "months" => 3_044 * DAY_S / 100 * SECOND_NS,
            "y" | "year" | "years" => 36_525 * DAY_S / 100 * SECOND_NS,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit_ns)?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::format_time;
    use proptest::prelude::*;

    const NOW: u64 = 1_723_108_500_123_456_789;
    const MINUTE: u64 = 60 * SECOND_NS;

    fn formatted(timestamp_ns: u64) -> String {
        let mut out = Vec::new();
        format_time(timestamp_ns, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn absolute_times() {
        let parse = |text| parse_in(text, NOW, || TimeZone::UTC);
        assert_eq!(parse("2024-08-08T09:15:00.123456789Z"), Ok(NOW));
        assert_eq!(parse("2024-08-08T11:15:00.123456789+02:00"), Ok(NOW));
        assert_eq!(parse("2024-08-09T09:14:00.123456789+23:59"), Ok(NOW));
        assert_eq!(parse(" 2024-08-08t09:15:00z "), Ok(1_723_108_500 * SECOND_NS));
        assert_eq!(parse("2024-08-08"), Ok(1_723_075_200 * SECOND_NS));
        assert_eq!(parse("1723108500123456789"), Ok(NOW));
        assert_eq!(parse("0000000000000000"), Ok(0));
        assert_eq!(parse("@1723108500"), Ok(1_723_108_500 * SECOND_NS));
        assert_eq!(parse("@1723108500.123456789"), Ok(NOW));
        assert_eq!(parse("@0.5"), Ok(SECOND_NS / 2));
        assert_eq!(parse("now"), Ok(NOW));
    }

    #[test]
    fn times_without_a_zone_are_local() {
        let second = 1_723_108_500;
        let parse = |text| parse_in(text, NOW, || TimeZone::fixed(jiff::tz::offset(2)));
        for (text, seconds) in [
            ("2024-08-08 11:15:00", second),
            ("2024-08-08 11:15", second),
            ("2024-08-08T11:15:00", second),
            ("2024-08-08 09:15 UTC", second),
            ("2024-08-08T09:15:00Z", second),
            ("11:15", second),
            ("11:15:00", second),
            ("11:14:59.000", second - 1),
            ("09:15 UTC", second),
            ("@11:15", second),
            ("@2024-08-08 11:15", second),
            ("today 11:15", second),
            ("tomorrow 11:15", second + 86_400),
            ("2024-08-08", second - 11 * 3600 - 900),
            ("today", second - 11 * 3600 - 900),
            ("yesterday", second - 35 * 3600 - 900),
            ("today UTC", second - 9 * 3600 - 900),
        ] {
            assert_eq!(parse(text), Ok(seconds * SECOND_NS), "{text}");
        }
        let near_midnight = (second - 11 * 3600) * SECOND_NS;
        let today = parse_in("today", near_midnight, || TimeZone::fixed(jiff::tz::offset(2)));
        assert_eq!(today, parse("2024-08-08"), "it is still yesterday in UTC");
    }

    #[test]
    fn relative_times() {
        let parse = |text| parse_time(text, NOW);
        let long = ["15 min", "15minutes", "15 min ago", "14 min 60 sec", "-15 minutes", "@15m", "@ -15m"];
        for text in ["15m", "-15m", "15m ago", "15mago", "900s", "14m60s", "-900000ms"].into_iter().chain(long) {
            assert_eq!(parse(text), Ok(NOW - 15 * MINUTE), "{text}");
        }
        let (month, year) = (2_630_016 * SECOND_NS, 31_557_600 * SECOND_NS);
        for (text, span) in
            [("1 month ago", month), ("2months", 2 * month), ("1y", year), ("1 year 2 months", year + 2 * month)]
        {
            assert_eq!(parse(text), Ok(NOW - span), "{text}");
        }
        assert_eq!(parse("1h30m"), Ok(NOW - 90 * MINUTE));
        assert_eq!(parse("1 hour ago"), Ok(NOW - 60 * MINUTE));
        assert_eq!(parse("1w1d"), Ok(NOW - 8 * 24 * 60 * MINUTE));
        assert_eq!(parse("5us3ns"), Ok(NOW - 5_003));
        assert_eq!(parse("0s"), Ok(NOW));
        assert_eq!(parse("30000w"), Ok(0), "before the epoch is the epoch");
    }

    #[test]
    fn what_is_not_a_time() {
        for text in [
            "",
            "-",
            "ago",
            "m",
            "15",
            "15x",
            "15m 3",
            "-15m ago",
            "--15m",
            "1.5h",
            "@",
            "@-1",
            "@1.",
            "@.5",
            "@+1",
            "@1.0123456789",
            "@99999999999999",
            "1969-12-31",
            "1969-12-31T23:59:59Z",
            "2600-01-01",
            "99999999999999999999",
            "2024-02-30",
            "2024-08-08 9:15",
            "2024-08-08 UTC 09:15",
            "2024-08-08 09:15 CEST",
            "2024-08-08 09:15 Mars/Olympus",
            "2024-08-08 25:00",
            "09:15 2024-08-08",
            "today today",
            "UTC",
            "24-08-08",
            "in 15m",
            "15 minutesm",
            "@@1",
            "18446744073709551616ns",
            "٣m",
            "2024-08-08T25:00:00Z",
            "2024-08-08T09:15:00+24:00",
            "2024-08-08T09:15:00-25:00",
            "2024-08-08T09:15:00+99:00",
            "2024-08-08 09:15:00+25:00",
        ] {
            let error = parse_time(text, NOW).unwrap_err();
            assert!(error.len() < 160, "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_formatted_parses_back(ns: u64) {
            prop_assert_eq!(parse_time(&formatted(ns), 0), Ok(ns));
            prop_assert_eq!(parse_time(&format!("@{}.{:09}", ns / SECOND_NS, ns % SECOND_NS), 0), Ok(ns));
        }

        #[test]
        fn nothing_panics(text in ".{0,40}", now: u64) {
            let _ = parse_time(&text, now);
        }
    }
}
