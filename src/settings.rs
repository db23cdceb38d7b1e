//! Settings of queues as text: the options of `chron-cli create` and `set`, and of the mount. And the settings of
//! queues that come into being by the way, with the first message from the shell or through the mount: nobody has
//! decided that their disk may be filled.

use std::path::Path;

use crate::queue::{Settings, layout};
use crate::report::parse_size;
use crate::view::parse_span;

/// The names of all settings, in the order of [`list`].
pub const NAMES: [&str; 9] = [
    "segment-size",
    "max-bytes",
    "retain-bytes",
    "retain-age",
    "retain-segments",
    "reader-ttl",
    "max-lag",
    "roll-every",
    "payload-align",
];

/// Sets one setting by its name. Sizes and spans of time as everywhere: `64MiB`, `7d`; `none` removes a limit.
///
/// ```
/// let mut settings = chronfs::queue::Settings::default();
/// chronfs::settings::change(&mut settings, "retain-bytes", "1GiB")?;
/// chronfs::settings::change(&mut settings, "roll-every", "day")?;
/// assert_eq!((settings.retain_bytes, settings.roll_every_ns), (Some(1 << 30), Some(86_400_000_000_000)));
/// # Ok::<(), String>(())
/// ```
///
/// # Errors
/// What is wrong with the name or the value. Whether the settings make sense together is not checked.
pub fn change(settings: &mut Settings, name: &str, text: &str) -> Result<(), String> {
    match name {
        "segment-size" => {
            settings.segment_size = u32::try_from(parse_size(text)?)
                .map_err(|_| format!("{text:?} is too large; segments take 64KiB to 1GiB"))?;
        }
        "max-bytes" => settings.max_bytes = limit(text, parse_size)?,
        "retain-bytes" => settings.retain_bytes = limit(text, parse_size)?,
        "retain-age" => settings.retain_age_ns = limit(text, span)?,
        "retain-segments" => settings.retain_segments = limit(text, count)?,
        "reader-ttl" => settings.reader_ttl_ns = limit(text, span)?,
        "max-lag" => settings.max_lag_bytes = limit(text, parse_size)?,
        "roll-every" => settings.roll_every_ns = limit(text, period)?,
        "payload-align" => settings.payload_align = count(text)?,
        _ => return Err(format!("there is no setting {name:?}; there are {}", NAMES.join(", "))),
    }
    Ok(())
}

fn limit<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if text == "none" { Ok(None) } else { parse(text).map(Some) }
}

fn span(text: &str) -> Result<u64, String> {
    parse_span(text).ok_or_else(|| format!("{text:?} is not a time span; write it as 90s, 15m, 1h30m, 7d or 4w"))
}

fn period(text: &str) -> Result<u64, String> {
    let one = |unit| parse_span(&format!("1{unit}"));
    let named = ["minute", "hour", "day"].contains(&text).then(|| one(text)).flatten();
    named.map_or_else(|| span(text), Ok)
}

fn count(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text:?} is not a whole number, or is too large"))
}

/// The settings as [`change`] takes them, in the order of [`NAMES`].
///
/// ```
/// use chronfs::{queue::Settings, settings};
///
/// let mut copy = Settings { segment_size: 1 << 20, ..Settings::default() };
/// for (name, value) in settings::NAMES.iter().zip(settings::list(&Settings::default())) {
///     settings::change(&mut copy, name, &value)?;
/// }
/// assert_eq!(copy, Settings::default());
/// # Ok::<(), String>(())
/// ```
pub fn list(settings: &Settings) -> [String; 9] {
    let none = || "none".to_owned();
    let bytes = |limit: Option<u64>| limit.map_or_else(none, exact_bytes);
    let span = |limit: Option<u64>| limit.map_or_else(none, exact_span);
    [
        exact_bytes(settings.segment_size.into()),
        bytes(settings.max_bytes),
        bytes(settings.retain_bytes),
        span(settings.retain_age_ns),
        settings.retain_segments.map_or_else(none, |count| count.to_string()),
        span(settings.reader_ttl_ns),
        bytes(settings.max_lag_bytes),
        span(settings.roll_every_ns),
        settings.payload_align.to_string(),
    ]
}

/// In the largest unit in which it is a whole number.
fn exact_bytes(bytes: u64) -> String {
    let (unit, shift) = match bytes.trailing_zeros() {
        64.. => ("", 0),
        40.. => ("TiB", 40),
        30.. => ("GiB", 30),
        20.. => ("MiB", 20),
        10.. => ("KiB", 10),
        _ => ("", 0),
    };
    format!("{}{unit}", bytes >> shift)
}

/// In the largest unit in which it is a whole number.
fn exact_span(ns: u64) -> String {
    let units =
        ["d", "h", "m", "s", "ms", "us"].into_iter().filter_map(|unit| Some((unit, parse_span(&format!("1{unit}"))?)));
    let (unit, unit_ns) = units.into_iter().find(|(_, unit_ns)| ns.is_multiple_of(*unit_ns)).unwrap_or(("ns", 1));
    format!("{}{unit}", ns / unit_ns)
}

/// The settings of a queue that comes into being by the way at this path: as journald does, retention keeps a tenth of
/// the file system, at most 4 GiB, of what every registered reader has consumed; on a small file system 8 MiB or a
/// quarter, and segments are smaller, too.
pub fn by_the_way(path: &Path) -> Settings {
    let stat = path.ancestors().find_map(|above| {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        rustix::fs::statvfs(above).ok()
    });
    limited(stat.map_or(u64::MAX, |stat| stat.f_blocks.saturating_mul(stat.f_frsize)))
}

fn limited(file_system: u64) -> Settings {
    let at_least = (file_system / 4).clamp(512 << 10, 8 << 20);
    let retain_bytes = (file_system / 10).clamp(at_least, 4 << 30);
    let segment_size = 1 << (retain_bytes / 8).ilog2().min(layout::DEFAULT_SEGMENT_SIZE.ilog2());
    Settings { segment_size, retain_bytes: Some(retain_bytes), ..Settings::DEFAULT }
}

/// Whether appends will be refused for ever once the queue has reached its size limit, whatever readers consume.
pub fn fills_for_good(settings: &Settings) -> bool {
    let Some(max_bytes) = settings.max_bytes else { return false };
    let size = u64::from(settings.segment_size);
    let by_count = settings.retain_segments.map(|count| size.saturating_mul(count.into()));
    let kept = [settings.retain_bytes, by_count].into_iter().flatten().min();
    // One more segment takes messages while the next one begins.
    kept.map_or(settings.retain_age_ns.is_none(), |kept| kept / size * size + 2 * size > max_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_can_be_given_and_is_listed() {
        let mut settings = Settings::default();
        let values = ["1MiB", "2GiB", "1GiB", "7d", "4", "12h", "3MiB", "day", "64"];
        for (name, value) in NAMES.iter().zip(values) {
            let before = settings;
            change(&mut settings, name, value).unwrap();
            let changed = list(&settings).iter().zip(list(&before)).position(|(now, before)| *now != before);
            assert_eq!(changed.map(|index| NAMES[index]), Some(*name));
        }
        assert_eq!(list(&settings), ["1MiB", "2GiB", "1GiB", "7d", "4", "12h", "3MiB", "1d", "64"]);
        for name in &NAMES[1..8] {
            change(&mut settings, name, "none").unwrap();
        }
        assert_eq!(settings, Settings { segment_size: 1 << 20, payload_align: 64, ..Settings::DEFAULT });
    }

    #[test]
    fn what_is_listed_is_exact_and_can_be_given() {
        let odd = [0, 1, 1023, 1536, 1501 << 20, 3 << 40, 90_000_000_000, 1_500_000_000, 1_234_567, u64::MAX];
        for value in odd {
            let settings = Settings { retain_bytes: Some(value), retain_age_ns: Some(value), ..Settings::DEFAULT };
            let mut again = Settings::DEFAULT;
            for (name, text) in NAMES.iter().zip(list(&settings)) {
                change(&mut again, name, &text).unwrap();
            }
            assert_eq!(again, settings);
        }
    }

    #[test]
    fn what_is_not_a_setting_is_refused() {
        let mut settings = Settings::default();
        let wrong = [
            ("size", "1"),
            ("segment-size", "none"),
            ("segment-size", "8GiB"),
            ("max-bytes", "1GB"),
            ("retain-age", "7"),
            ("retain-segments", "-1"),
            ("roll-every", "fortnight"),
            ("payload-align", "x"),
        ];
        for (name, value) in wrong {
            assert!(change(&mut settings, name, value).is_err(), "{name} {value}");
        }
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn a_queue_that_nobody_has_thought_about_takes_a_tenth_of_the_disk() {
        for (disk, retained, segment_size) in [
            (u64::MAX, 4 << 30, 64 << 20),
            (10 << 30, 1 << 30, 64 << 20),
            (1000 << 20, 100 << 20, 8 << 20),
            (40 << 20, 8 << 20, 1 << 20),
            (16 << 20, 4 << 20, 512 << 10),
            (4 << 20, 1 << 20, 128 << 10),
            (0, 512 << 10, 64 << 10),
        ] {
            let settings = limited(disk);
            assert!(settings.validate().is_ok());
            assert_eq!((settings.retain_bytes, settings.segment_size), (Some(retained), segment_size), "{disk}");
        }
        assert!(by_the_way("/no/such/directory".as_ref()).has_retention());
        assert!(by_the_way("relative".as_ref()).has_retention());
    }

    #[test]
    fn a_limit_without_enough_retention_fills_for_good() {
        let size: u64 = 64 << 10;
        let full = |max: u64, retain: Option<u64>| {
            let max_bytes = Some(max * size);
            let retain_bytes = retain.map(|retain| retain * size);
            fills_for_good(&Settings { segment_size: 64 << 10, max_bytes, retain_bytes, ..Settings::DEFAULT })
        };
        assert!(!fills_for_good(&Settings::DEFAULT));
        assert!(full(4, None) && full(4, Some(4)) && full(4, Some(3)));
        assert!(!full(4, Some(2)) && !full(4, Some(0)));
    }
}
