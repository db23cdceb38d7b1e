//! Numbers, sizes and time spans as people type them.

use std::ops::RangeInclusive;

use chronfs::report::parse_size;

/// A number in this range.
pub(crate) fn parse_number(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<u64, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("{text:?} is not a number from {} to {}", range.start(), range.end()))
    }
}

/// [`parse_size`] for the messages of `bench`.
pub(crate) fn parse_payload_size(text: &str) -> Result<u32, String> {
    let size = parse_size(text)?;
    match u32::try_from(size) {
        Ok(size) if (8..=1 << 20).contains(&size) => Ok(size),
        _ => Err(format!("{text:?} is not between 8 and 1MiB")),
    }
}

/// A sequence number.
pub(crate) fn parse_seq(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is not a sequence number; use a whole number"))
}

/// A message's type.
pub(crate) fn parse_type(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|number| (0..u16::MAX).contains(number));
    number.ok_or_else(|| format!("{text:?} is not a message type; use a number from 0 to 65534"))
}

/// A time span in nanoseconds.
pub(crate) fn parse_span_ns(text: &str) -> Result<u64, String> {
    chronfs::view::parse_span(text)
        .ok_or_else(|| format!("{text:?} is not a time span; write it as 90s, 15m, 1h30m, 7d or 4w"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_unit() {
        assert_eq!(parse_span_ns("90s"), Ok(90_000_000_000));
        assert_eq!(parse_span_ns("7d"), Ok(604_800_000_000_000));
        assert_eq!(parse_span_ns("5m30s"), Ok(330_000_000_000));
        assert_eq!(parse_span_ns("1y"), Ok(31_557_600_000_000_000));
        for wrong in ["", "90", "s", "-1s", "1x", "5M", "99999999999w"] {
            assert!(parse_span_ns(wrong).is_err(), "{wrong}");
        }
    }
}
