//! Times as people type them. Pure; how timestamps are printed is in `crate::time`.

use crate::time::{DAY_S, SECOND_NS};

/// What [`parse_time`] accepts, for its error texts.
const TIMES: &str = "use 2024-08-08T09:30:00Z, 2024-08-08, @unix seconds, 15m or -15m";

/// A time as people write it, in ns since the epoch; `now_ns` is what relative ones count from.
///
/// - RFC 3339: `2024-08-08T09:30:00Z`, `2024-08-08T11:30:00.5+02:00`; or a date alone: its midnight, UTC
/// - `@1723108500` or `@1723108500.123456789`: seconds since the epoch
/// - `15m`, `-15m`, `15m ago`: this long before `now_ns`. Units ns, us, ms, s, m, h, d, w; they add up as in `1h30m`
/// - 16 digits or more: ns since the epoch
///
/// # Errors
/// A text for people that says what is wrong.
pub fn parse_time(text: &str, now_ns: u64) -> Result<u64, String> {
    let text = text.trim();
    if let Some(unix) = text.strip_prefix('@') {
        return parse_unix(unix).ok_or_else(|| format!("time {text:?}: seconds since the epoch must follow the @"));
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return parse_digits(text);
    }
    if let Some(ago) = parse_ago(text) {
        return Ok(now_ns.saturating_sub(ago));
    }
    let timestamp = match text.parse::<jiff::civil::Date>() {
        Ok(date) if text.len() == "2024-08-08".len() => {
            date.to_zoned(jiff::tz::TimeZone::UTC).map(|midnight| midnight.timestamp())
        }
        _ => text.parse::<jiff::Timestamp>(),
    };
    let timestamp = timestamp.map_err(|_| {
        if text.parse::<jiff::civil::DateTime>().is_ok() {
            return format!("time {text:?} has no time zone; add Z or an offset like +02:00");
        }
        format!("{text:?} is not a time; {TIMES}")
    })?;
    u64::try_from(timestamp.as_nanosecond()).map_err(|_| format!("time {text:?} is outside 1970 to 2554"))
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

/// A span of time, in ns: `90s`, `15m`, `1h30m`, with the units ns, us, ms, s, m, h, d and w. None for anything else,
/// and for more than 584 years.
pub fn parse_span(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        let unit_ns = match unit {
            "ns" => 1,
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => SECOND_NS,
            "m" => 60 * SECOND_NS,
            "h" => 3_600 * SECOND_NS,
            "d" => DAY_S * SECOND_NS,
            "w" => 7 * DAY_S * SECOND_NS,
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
        let parse = |text| parse_time(text, NOW);
        assert_eq!(parse("2024-08-08T09:15:00.123456789Z"), Ok(NOW));
        assert_eq!(parse("2024-08-08T11:15:00.123456789+02:00"), Ok(NOW));
        assert_eq!(parse(" 2024-08-08t09:15:00z "), Ok(1_723_108_500 * SECOND_NS));
        assert_eq!(parse("2024-08-08"), Ok(1_723_075_200 * SECOND_NS));
        assert_eq!(parse("1723108500123456789"), Ok(NOW));
        assert_eq!(parse("0000000000000000"), Ok(0));
        assert_eq!(parse("@1723108500"), Ok(1_723_108_500 * SECOND_NS));
        assert_eq!(parse("@1723108500.123456789"), Ok(NOW));
        assert_eq!(parse("@0.5"), Ok(SECOND_NS / 2));
    }

    #[test]
    fn relative_times() {
        let parse = |text| parse_time(text, NOW);
        for text in ["15m", "-15m", "15m ago", "15mago", "900s", "14m60s", "-900000ms"] {
            assert_eq!(parse(text), Ok(NOW - 15 * MINUTE), "{text}");
        }
        assert_eq!(parse("1h30m"), Ok(NOW - 90 * MINUTE));
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
            "2024-08-08T09:15:00",
            "yesterday",
            "18446744073709551616ns",
            "٣m",
            "2024-08-08T25:00:00Z",
        ] {
            let error = parse_time(text, NOW).unwrap_err();
            assert!(error.len() < 120, "{error}");
        }
        assert!(parse_time("2024-08-08 09:15", NOW).unwrap_err().contains("zone"));
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
