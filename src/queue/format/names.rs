//! The allowed names of readers and queues, and the names of segment files.

use crate::queue::error::{Error, Result};
use crate::queue::format::layout::{CONTROL_FILE, LOCK_FILE, SEGMENT_SUFFIX};
use crate::queue::position::SegmentId;

/// The longest name of a reader or a queue, in bytes.
pub const MAX_NAME_LEN: usize = 128;

/// Checks the name of a reader or of a queue's directory: 1 to 128 bytes of ASCII letters, digits and `._-+=@:,#%~`,
/// not starting with a dot or a dash.
///
/// # Errors
/// [`Error::InvalidName`] or [`Error::NameTooLong`].
pub fn check_name(name: &str) -> Result<()> {
    let invalid = |reason| Err(Error::InvalidName { name: name.to_owned(), reason });
    if name.is_empty() {
        return invalid("it is empty");
    }
    if name.len() > MAX_NAME_LEN {
        return Err(Error::NameTooLong { len: name.len(), max: MAX_NAME_LEN });
    }
    if name.starts_with(['.', '-']) {
        return invalid("it must not start with '.' or '-'");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+=@:,#%~".contains(&b)) {
        return invalid("allowed are letters, digits and ._-+=@:,#%~");
    }
    Ok(())
}

/// The file name of a segment.
pub(crate) fn segment_name(id: SegmentId) -> String {
    format!("{:09}{SEGMENT_SUFFIX}", id.0)
}

/// The segment that a file name stands for. Other names are not a segment's, whatever their suffix.
pub(crate) fn parse_segment_name(name: &str) -> Option<SegmentId> {
    let id = SegmentId(name.strip_suffix(SEGMENT_SUFFIX)?.parse().ok()?);
    (segment_name(id) == name).then_some(id)
}

/// Whether a file of this name makes its directory a queue, or is one of a queue's own files.
pub(crate) fn is_internal_name(name: &str) -> bool {
    [CONTROL_FILE, LOCK_FILE].contains(&name) || name.ends_with(SEGMENT_SUFFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_has_one_name() {
        for (id, name) in [(0, "000000000.q"), (17, "000000017.q"), (u32::MAX, "4294967295.q")] {
            assert_eq!(segment_name(SegmentId(id)), name);
            assert_eq!(parse_segment_name(name), Some(SegmentId(id)));
        }
        for name in
            ["17.q", "0000000017.q", "+00000017.q", "4294967296.q", "000000017", "000000017.q.tmp", ".q", "notes.q"]
        {
            assert_eq!(parse_segment_name(name), None, "{name}");
        }
    }

    #[test]
    fn names_that_could_leave_the_directory_or_confuse_a_shell_are_refused() {
        for name in ["", ".", "..", "../x", "a/b", "a\0b", "a\nb", ".hidden", "-rf", "a b", "ä", "a*", "a;b"] {
            assert!(matches!(check_name(name), Err(Error::InvalidName { .. })), "{name:?}");
        }
        assert!(matches!(check_name(&"x".repeat(129)), Err(Error::NameTooLong { len: 129, .. })));
        for name in ["a", "alice", "strategy-7", "eu.west_1", "a@b:c", &"x".repeat(128)] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }
}
