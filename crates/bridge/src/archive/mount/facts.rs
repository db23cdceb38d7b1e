//! What is known of a segment without fetching it.

use chronfs::queue::SegmentBlocks;

/// What is known of a segment without fetching it.
pub(super) struct Facts {
    /// The bytes of its file.
    pub(super) size: u64,
    /// Its first bytes.
    pub(super) start: Vec<u8>,
    /// Where the header of the sealing record is, and its bytes.
    pub(super) seal: Option<(u64, Vec<u8>)>,
}

impl Facts {
    pub(super) fn of_index(index: &[u8]) -> Option<Self> {
        let bytes = chronfs::view::fingerprint_of_index(index)?;
        let blocks = SegmentBlocks::parse(&bytes)?;
        let (start, seal) = bytes.split_at(SegmentBlocks::LEN);
        let seal = (blocks.end_offset > 0).then(|| (blocks.end_offset.into(), seal.to_vec()));
        Some(Self { size: blocks.bytes.into(), start: start.to_vec(), seal })
    }

    /// A part of the file, if it is known.
    pub(super) fn known(&self, offset: u64, size: usize) -> Option<Vec<u8>> {
        if offset >= self.size {
            return Some(Vec::new());
        }
        let parts = [(0, &self.start)].into_iter().chain(self.seal.iter().map(|(at, bytes)| (*at, bytes)));
        parts.into_iter().find_map(|(at, bytes)| {
            let start = usize::try_from(offset.checked_sub(at)?).ok()?;
            bytes.get(start..start.checked_add(size)?).map(<[u8]>::to_vec)
        })
    }
}
