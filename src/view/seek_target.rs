//! Places in a queue, as people write them: in `readers/<name>/position`, and after `chron-cli readers QUEUE seek
//! NAME`.

use super::parse_time;
use crate::queue::{Error, Queue, Result};

/// Where a reader should seek to, as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SeekTarget {
    /// This message, by its sequence number.
    Seq(u64),
    /// The first retained message.
    First,
    /// After the newest message.
    End,
    /// This many messages after the reader's position.
    Forward(u64),
    /// This many messages before the reader's position.
    Back(u64),
    /// The first message at this time or later, ns since the epoch.
    Time(u64),
}

/// `42`, `first`, `end`, `+10`, `-10`, or a time as [`parse_time`] takes it, with or without an `@` before it.
/// `now_ns` is what relative times count from.
///
/// # Errors
/// A text for people that says what is allowed.
pub fn parse_seek_target(text: &str, now_ns: u64) -> std::result::Result<SeekTarget, String> {
    match text {
        "first" => return Ok(SeekTarget::First),
        "end" => return Ok(SeekTarget::End),
        _ => {}
    }
    let number = |prefix| {
        let digits: &str = text.strip_prefix(prefix)?;
        digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let place = number("").map(SeekTarget::Seq);
    let place = place.or_else(|| number("+").map(SeekTarget::Forward)).or_else(|| number("-").map(SeekTarget::Back));
    place.or_else(|| parse_time(text, now_ns).ok().map(SeekTarget::Time)).ok_or_else(|| {
        format!("{text:?} is not a position; use a sequence number, first, end, +10, -10 or a time such as yesterday or 2024-08-08T09:30:00Z")
    })
}

impl SeekTarget {
    /// The sequence number of this place in a queue, relative to this reader's position.
    ///
    /// # Errors
    /// [`Error::NoSuchPosition`] if there is no such place now; for `+` and `-`, as
    /// [`Queue::reader_position`]; if a file can't be read.
    pub fn find(self, queue: &Queue, reader: &str) -> Result<u64> {
        self.find_from(queue, || queue.reader_position(reader))
    }

    /// As [`SeekTarget::find`], of a reader at `position`.
    pub(crate) fn find_from(self, queue: &Queue, position: impl Fn() -> Result<u64>) -> Result<u64> {
        let bounds = queue.bounds()?;
        let seq = match self {
            Self::Seq(seq) => Some(seq),
            Self::First => Some(bounds.first_seq),
            Self::End => Some(bounds.next_seq),
            Self::Forward(count) => position()?.checked_add(count),
            Self::Back(count) => position()?.checked_sub(count),
            Self::Time(timestamp_ns) if timestamp_ns > bounds.last_timestamp_ns => None,
            Self::Time(timestamp_ns) => {
                let mut scanner = queue.scan()?;
                scanner.seek_time(timestamp_ns)?;
                Some(scanner.seq())
            }
        };
        seq.filter(|seq| (bounds.first_seq..=bounds.next_seq).contains(seq)).ok_or_else(|| Error::NoSuchPosition {
            path: queue.path().to_path_buf(),
            what: format!(
                "choose {} to {}, or a time that is not after the newest message",
                bounds.first_seq, bounds.next_seq
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_NS: u64 = 1_723_108_500_000_000_000;

    #[test]
    fn places_have_these_names() {
        for (text, expected) in [
            ("42", SeekTarget::Seq(42)),
            ("first", SeekTarget::First),
            ("end", SeekTarget::End),
            ("+10", SeekTarget::Forward(10)),
            ("-10", SeekTarget::Back(10)),
            ("@1723108499", SeekTarget::Time(NOW_NS - 1_000_000_000)),
            ("@2024-08-08T09:15:00Z", SeekTarget::Time(NOW_NS)),
            ("@15m", SeekTarget::Time(NOW_NS - 900_000_000_000)),
            ("15m", SeekTarget::Time(NOW_NS - 900_000_000_000)),
            ("-15m", SeekTarget::Time(NOW_NS - 900_000_000_000)),
            ("2024-08-08 09:15 UTC", SeekTarget::Time(NOW_NS)),
            ("1723108500000000000", SeekTarget::Seq(NOW_NS)),
        ] {
            assert_eq!(parse_seek_target(text, NOW_NS), Ok(expected), "{text}");
        }
        for wrong in ["", "+", "-", "--1", "+-1", "+ 1", "4x", "last", "18446744073709551616", "é", "@", "@x"] {
            assert!(parse_seek_target(wrong, NOW_NS).is_err(), "{wrong}");
        }
    }
}
