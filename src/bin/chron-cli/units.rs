//! Sizes and spans of time as people type them.

/// `65536`, `64KiB`, `64K`, `1GiB` in bytes. Decimal units (kB, MB) are refused rather than guessed at.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| size_help(text))?;
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(size_help(text)),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is larger than any file"))
}

fn size_help(text: &str) -> String {
    format!("{text:?} is no size; write bytes, or KiB, MiB, GiB, TiB as in 64MiB")
}

/// [`parse_size`] for a segment's size, which is a 32-bit number.
pub(crate) fn parse_segment_size(text: &str) -> Result<u32, String> {
    u32::try_from(parse_size(text)?).map_err(|_| format!("{text:?} is too large; segments take 64KiB to 1GiB"))
}

/// [`parse_size`] for the messages of `bench`.
pub(crate) fn parse_payload_size(text: &str) -> Result<u32, String> {
    let size = parse_size(text)?;
    match u32::try_from(size) {
        Ok(size) if (8..=1 << 20).contains(&size) => Ok(size),
        _ => Err(format!("{text:?} is not between 8 and 1MiB")),
    }
}

/// `250ms`, `90s`, `15m`, `12h`, `7d`, `4w` in nanoseconds.
pub(crate) fn parse_span_ns(text: &str) -> Result<u64, String> {
    let help = || format!("{text:?} is no span of time; write it as 90s, 15m, 12h, 7d or 4w");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| help())?;
    let unit_ms: u64 = match unit.trim_start() {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 604_800_000,
        _ => return Err(help()),
    };
    number.checked_mul(unit_ms * 1_000_000).ok_or_else(|| format!("{text:?} is longer than 584 years"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_decimal_units_are_refused() {
        assert_eq!(parse_size("65536"), Ok(65536));
        assert_eq!(parse_size("64KiB"), Ok(65536));
        assert_eq!(parse_size("64K"), Ok(65536));
        assert_eq!(parse_size("3 GiB"), Ok(3 << 30));
        for wrong in ["", "MiB", "64kB", "64MB", "-1", "1.5GiB", "99999999TiB", "18446744073709551616"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn spans_have_a_unit() {
        assert_eq!(parse_span_ns("90s"), Ok(90_000_000_000));
        assert_eq!(parse_span_ns("7d"), Ok(604_800_000_000_000));
        for wrong in ["", "90", "s", "-1s", "1y", "99999999999w"] {
            assert!(parse_span_ns(wrong).is_err(), "{wrong}");
        }
    }
}
