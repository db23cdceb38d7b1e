//! Names of objects: which segment of which queue one is.
//!
//! ```text
//! v1/<queue id>/<first seq, 20 digits>-<last>.<segment>.<salt>.q.zst     the segment
//! v1/<queue id>/<first seq, 20 digits>-<last>.<segment>.<salt>.index     its index, if it has one
//! v1/<queue id>/restoring.<random>, pruning.<random>                     what is at work; see `marker`
//! ```
//!
//! Names are untrusted: only the one name that a segment can have is accepted.

use chronfs::queue::{SegmentBlocks, SegmentId};

const SEGMENT_SUFFIX: &str = ".q.zst";
const INDEX_SUFFIX: &str = ".index";

/// Of the layout; the directory of all queues.
pub(super) const VERSION: &str = "v1";

/// The name of a segment's object, without its end. In the order of their messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentName {
    pub(super) first_seq: u64,
    /// The first number after it.
    pub(super) next_seq: u64,
    pub(super) segment: SegmentId,
    pub(super) salt: u32,
}

/// What an object is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Segment(SegmentName),
    Index(SegmentName),
    Restoring,
    Pruning,
}

impl SegmentName {
    /// What must be the name of a segment with these blocks; `next_seq`: the first number after it, if it is not sealed.
    pub(super) fn of(blocks: &SegmentBlocks, next_seq: u64) -> Self {
        let SegmentBlocks { first_seq, id: segment, salt, end, .. } = *blocks;
        Self { first_seq, next_seq: end.map_or(next_seq, |(next_seq, _)| next_seq), segment, salt }
    }

    /// The object of the segment.
    pub(super) fn object(&self) -> String {
        format!("{self}{SEGMENT_SUFFIX}")
    }

    /// The object of its index.
    pub(super) fn index(&self) -> String {
        format!("{self}{INDEX_SUFFIX}")
    }

    /// Whether they can't both be segments of one queue.
    pub(super) fn contradicts(&self, other: &Self) -> bool {
        let overlap = self.first_seq.max(other.first_seq) < self.next_seq.min(other.next_seq);
        self != other && (overlap || self.segment == other.segment)
    }

    fn parse(text: &str) -> Option<Self> {
        let (numbers, rest) = text.split_once('.')?;
        let (first, last) = numbers.split_once('-')?;
        let (segment, salt) = rest.split_once('.')?;
        let name = Self {
            first_seq: first.parse().ok()?,
            next_seq: last.parse::<u64>().ok()?.checked_add(1)?,
            segment: SegmentId(segment.parse().ok()?),
            salt: u32::from_str_radix(salt, 16).ok()?,
        };
        (name.to_string() == text && name.first_seq > 0 && name.next_seq >= name.first_seq).then_some(name)
    }
}

impl std::fmt::Display for SegmentName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { first_seq, next_seq, segment, salt } = self;
        write!(f, "{first_seq:020}-{}.{}.{salt:08x}", next_seq.saturating_sub(1), segment.0)
    }
}

impl Kind {
    /// What an object of this name is; None: nothing of ours.
    pub(super) fn parse(name: &str) -> Option<Self> {
        if let Some(segment) = name.strip_suffix(SEGMENT_SUFFIX) {
            return SegmentName::parse(segment).map(Self::Segment);
        }
        if let Some(segment) = name.strip_suffix(INDEX_SUFFIX) {
            return SegmentName::parse(segment).map(Self::Index);
        }
        match name.split_once('.')? {
            ("restoring", _) => Some(Self::Restoring),
            ("pruning", _) => Some(Self::Pruning),
            _ => None,
        }
    }
}

/// A queue's directory.
pub(super) fn queue_dir(id: u64) -> String {
    format!("{id:016x}")
}

/// The queue of a directory.
pub(super) fn parse_queue_dir(name: &str) -> Option<u64> {
    u64::from_str_radix(name, 16).ok().filter(|&id| queue_dir(id) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(first_seq: u64, next_seq: u64, segment: u32, salt: u32) -> SegmentName {
        SegmentName { first_seq, next_seq, segment: SegmentId(segment), salt }
    }

    #[test]
    fn a_segment_has_one_name() {
        for name in [name(1, 1, 0, 0), name(17, 301, 4, 0xabc), name(u64::MAX - 1, u64::MAX, u32::MAX, u32::MAX)] {
            assert_eq!(Kind::parse(&name.object()), Some(Kind::Segment(name)));
            assert_eq!(Kind::parse(&name.index()), Some(Kind::Index(name)));
        }
        assert_eq!(name(17, 301, 4, 0xabc).object(), "00000000000000000017-300.4.00000abc.q.zst");
        for wrong in [
            "17-300.4.00000abc.q.zst",
            "00000000000000000017-0300.4.00000abc.q.zst",
            "00000000000000000017-300.4.00000ABC.q.zst",
            "00000000000000000017-300.4.abc.q.zst",
            "00000000000000000017-300.+4.00000abc.q.zst",
            "00000000000000000017-15.4.00000abc.q.zst",
            "00000000000000000000-300.4.00000abc.q.zst",
            "00000000000000000017-18446744073709551615.4.00000abc.q.zst",
            "00000000000000000017-300.4294967296.00000abc.q.zst",
            "00000000000000000017-300.4.00000abc.q",
            ".q.zst",
            "notes.txt",
            "",
        ] {
            assert_eq!(Kind::parse(wrong), None, "{wrong}");
        }
        assert_eq!(parse_queue_dir("00000000000000ff"), Some(255));
        assert_eq!(parse_queue_dir("ff").or(parse_queue_dir("00000000000000FF")).or(parse_queue_dir("..")), None);
    }

    #[test]
    fn segments_of_one_queue_share_neither_numbers_nor_messages() {
        let one = name(10, 20, 3, 1);
        assert!(
            !one.contradicts(&one) && !one.contradicts(&name(20, 30, 4, 2)) && !one.contradicts(&name(10, 10, 2, 2))
        );
        assert!(one.contradicts(&name(10, 20, 3, 2)) && one.contradicts(&name(19, 30, 4, 2)));
        assert!(one.contradicts(&name(20, 30, 3, 2)));
    }
}
