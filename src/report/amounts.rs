//! Numbers, sizes and time spans for people. Pure.

/// A number of things for people.
///
/// ```
/// use chronfs::report::counted;
///
/// assert_eq!([counted(1, "queue"), counted(2, "queue")], ["1 queue", "2 queues"]);
/// assert_eq!(counted(0, "directory"), "0 directories");
/// ```
pub fn counted(count: u64, word: &str) -> String {
    match word.strip_suffix('y') {
        _ if count == 1 => format!("1 {word}"),
        Some(stem) => format!("{count} {stem}ies"),
        None => format!("{count} {word}s"),
    }
}

/// A size for people, in binary units: `17 B`, `64.0 KiB`, `1.5 GiB`.
///
/// ```
/// assert_eq!(chronfs::report::human_bytes(1 << 20), "1.0 MiB");
/// ```
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[allow(clippy::cast_precision_loss)]
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A size as people type it, in bytes: `65536`, `64KiB`, `64K`, `1GiB`. Decimal units (kB, MB) are refused.
///
/// # Errors
/// What is wrong with it, with the text.
pub fn parse_size(text: &str) -> Result<u64, String> {
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
    // Some mean powers of 1000 by these, others powers of 1024.
    let is_ambiguous = |unit: &str| matches!(unit, "kB" | "KB" | "MB" | "GB" | "TB");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim_start();
    if !digits.is_empty() && is_ambiguous(unit) {
        let binary = format!("{digits}{}iB", unit[..1].to_uppercase());
        return format!("{text:?} may mean powers of 1000 or of 1024; sizes are powers of 1024: write {binary}");
    }
    format!("{text:?} is not a size; write bytes, or KiB, MiB, GiB, TiB as in 64MiB")
}

/// A time span for people: `250 ms`, `3.2 s`, `15 min`, `7.0 h`, `3.5 days`.
///
/// ```
/// assert_eq!(chronfs::report::human_span_ms(3_200), "3.2 s");
/// ```
pub fn human_span_ms(ms: u64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let seconds = ms as f64 / 1000.0;
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{seconds:.1} s"),
        120_000..7_200_000 => format!("{:.0} min", seconds / 60.0),
        7_200_000..172_800_000 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.1} days", seconds / 86_400.0),
    }
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
        let error = parse_size("1GB").unwrap_err();
        assert!(error.contains("powers of 1000 or of 1024") && error.ends_with("write 1GiB"), "{error}");
        assert!(parse_size("64 kB").unwrap_err().ends_with("write 64KiB"));
    }
}
