//! Messages as bytes: queues rendered as files, and files parsed as messages.
//!
//! [`render`] turns one message or gap into one *unit* of bytes in one of four formats; [`View`] is everything
//! retained of a queue as a file with a true size and random access; [`Stream`] returns whole units one after
//! the other, [`Merge`] those of several queues by time; [`parse_line`] goes the other way. The mount and `chron-cli
//! tail` both print through this module, and so print the same bytes.
//!
//! Invariants: the same entry always renders to the same bytes; [`rendered_len`] is the length of what [`render`]
//! appends; jsonl is always valid JSON; a unit of jsonl or txt is always one line.

#[cfg(feature = "decode")]
mod decoded;
mod hex;
mod index;
mod input;
mod json;
mod large_unit;
mod merge;
mod pins;
mod render;
mod render_cursor;
mod rendered;
mod rendering;
mod seek_target;
mod segment_index_file;
mod segments;
mod stream;
mod time;
mod txt;

pub use crate::time::format_time;
#[cfg(feature = "decode")]
pub use decoded::{render_decoded, render_decoded_readable, render_decoded_txt};
pub use input::{DEFAULT_TYPE, Input, InputFormat, longest_line, parse_line};
pub use merge::Merge;
pub use render::{render, render_readable, rendered_len};
pub use rendered::{Crossed, View};
pub use rendering::Rendering;
pub use seek_target::{SeekTarget, parse_seek_target};
pub(crate) use segments::SegmentIndexes;
pub use segments::{fingerprint_of_index, segment_index, segment_of_index};
pub use stream::Stream;
pub use time::{parse_span, parse_time};

/// How messages are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// One JSON object per line; nothing is lost.
    Jsonl,
    /// The payload as one line of text, for eyes and grep; not reversible.
    Txt,
    /// The payloads back to back, nothing added.
    Bin,
    /// A header line, then the payload as `hexdump -C` prints it.
    Hex,
}

impl Format {
    /// All formats, in the order in which they are listed to people.
    pub const ALL: [Format; 4] = [Format::Jsonl, Format::Txt, Format::Bin, Format::Hex];

    /// "jsonl", "txt", "bin" or "hex": the ending of file names and the word of `--format`.
    pub fn name(self) -> &'static str {
        match self {
            Format::Jsonl => "jsonl",
            Format::Txt => "txt",
            Format::Bin => "bin",
            Format::Hex => "hex",
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Format::ALL
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| format!("unknown format {text:?}; choose jsonl, txt, bin or hex"))
    }
}

/// Locks, even if poisoned: a panic leaves nothing half changed that a view's lock guards.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A length as the 64-bit number that offsets are.
fn len_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// A part of a file as a length in memory: `usize::MAX` where it would not fit.
fn len_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_names_go_both_ways() {
        for format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
            assert_eq!(format!("{format:>6}"), format!("{:>6}", format.name()));
        }
        assert!("JSONL".parse::<Format>().is_err());
    }
}
