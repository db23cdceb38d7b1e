//! Finding a record without knowing where one starts: past damage, and for searches by sequence number and time.
//!
//! A record's checksum is salted with its segment and offset, so that a match is a record and nothing else. The work is
//! bounded ([`Waste`]), so that a file forged to look like records everywhere costs no more than a multiple of its
//! size.

use zerocopy::FromBytes;

use crate::queue::error::{Error, Result};
use crate::queue::files::segment::Segment;
use crate::queue::format::layout::{HEADER_LEN, MessageHeader};
use crate::queue::format::record::{Header, UncheckedHeader};
use crate::queue::os::sys;

/// How much is read at a time: grows from the first to the second, for near and far records.
const BLOCKS: [usize; 2] = [8 << 10, 1 << 20];
/// How much of a payload is checksummed at a time.
const PIECE: usize = 256 << 10;
/// Bytes checksummed in vain are limited to this multiple of the segment size plus the offset: enough for one length
/// that is wrong by chance, followed by a record as long as the segment.
const WASTE_FACTOR: u64 = 2;

/// How many bytes were checksummed in vain, on the way through a segment. Accidental damage wastes little; beyond a
/// bound nothing is tried that would waste more.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Waste(u64);

impl Waste {
    /// Whether a record of this length may be tried here.
    pub(crate) fn allows(self, segment_size: u32, offset: u32, len: usize) -> bool {
        self.0 + len as u64 <= WASTE_FACTOR * (u64::from(segment_size) + u64::from(offset))
    }

    pub(crate) fn add(&mut self, len: usize) {
        self.0 += len as u64;
    }
}

/// The first record at or after `from`, before `end`, whose sequence number is at least `min_seq`.
pub(crate) fn find_record(
    segment: &Segment,
    from: u32,
    end: u32,
    min_seq: u64,
    waste: &mut Waste,
) -> Result<Option<(u32, Header)>> {
    let mut block = vec![0; BLOCKS[0]];
    let align = segment.context.align();
    let mut at = segment.context.next_place(from);
    while at.saturating_add(HEADER_LEN) <= end {
        // Skip what has never been written.
        match sys::seek_data(&segment.file, u64::from(at)).map(|data| data.and_then(|data| u32::try_from(data).ok())) {
            // A record may start just before its first byte that is not zero.
            Ok(Some(data)) => at = at.max(segment.context.next_place(data.saturating_sub(align - 1))),
            Ok(None) => return Ok(None),
            Err(_) => {} // a file system that can't say
        }
        let count = sys::read_some(&segment.file, &mut block, at).map_err(Error::io(&segment.path, "read it"))?;
        if count < HEADER_LEN as usize {
            return Ok(None);
        }
        let last_start = count - HEADER_LEN as usize;
        for index in (0..=last_start).step_by(align as usize) {
            // In bounds of u32: the segment is.
            let Some(offset) = u32::try_from(index).ok().and_then(|index| at.checked_add(index)) else {
                return Ok(None);
            };
            if offset.saturating_add(HEADER_LEN) > end {
                return Ok(None);
            }
            if let Some(header) = candidate(segment, &block[index..count], offset, min_seq, waste)? {
                return Ok(Some((offset, header)));
            }
        }
        let step = (last_start / align as usize + 1) * align as usize;
        at = at.saturating_add(u32::try_from(step).unwrap_or(u32::MAX));
        block.resize((block.len() * 2).min(BLOCKS[1]), 0);
    }
    Ok(None)
}

/// The record that starts with `bytes`, which may hold only part of it; None if there is no record.
fn candidate(segment: &Segment, bytes: &[u8], offset: u32, min_seq: u64, waste: &mut Waste) -> Result<Option<Header>> {
    let Ok((header, rest)) = MessageHeader::ref_from_prefix(bytes) else {
        return Ok(None);
    };
    let Some(unchecked) = UncheckedHeader::parse(header) else {
        return Ok(None);
    };
    if !unchecked.is_plausible(&segment.context, offset, min_seq) {
        return Ok(None);
    }
    let size = segment.context.segment_size;
    let len = unchecked.payload_len(&segment.context, offset).filter(|&len| waste.allows(size, offset, len));
    let Some(len) = len else {
        return Ok(None);
    };
    waste.add(len);
    if let Some(payload) = rest.get(..len) {
        return Ok(unchecked.verify(&segment.context, offset, payload));
    }
    verify_in_pieces(segment, unchecked, offset, len)
}

/// Accepts the header of the record at `offset`, whose payload has `len` bytes, if its checksum is right: with little
/// memory, and without reading holes of the file.
pub(crate) fn verify_in_pieces(
    segment: &Segment,
    unchecked: UncheckedHeader,
    offset: u32,
    len: usize,
) -> Result<Option<Header>> {
    let mut piece = vec![0; PIECE.min(len)];
    let (start, end) = (u64::from(offset + HEADER_LEN), u64::from(offset + HEADER_LEN) + len as u64);
    unchecked.verify_pieces(&segment.context, offset, |sum| {
        let in_file = segment.file.metadata().map_err(Error::io(&segment.path, "stat it"))?.len();
        if in_file < end {
            return Ok(false);
        }
        let mut at = start;
        while at < end {
            // A file system that can't say has data everywhere.
            let data = sys::seek_data(&segment.file, at).map_or(at, |data| data.unwrap_or(end)).min(end);
            let hole = usize::try_from(data - at).unwrap_or(0);
            piece.fill(0);
            for len in (0..hole).step_by(PIECE).map(|done| (hole - done).min(PIECE)) {
                sum.add(piece.get(..len).unwrap_or_default());
            }
            at = data;
            let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(piece.len());
            let Some(piece) = piece.get_mut(..wanted).filter(|piece| !piece.is_empty()) else { break };
            let count = sys::read_some(&segment.file, piece, u32::try_from(at).unwrap_or(u32::MAX));
            if count.map_err(Error::io(&segment.path, "read it"))? < wanted {
                return Ok(false);
            }
            sum.add(piece);
            at += wanted as u64;
        }
        Ok(true)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::queue::files::dir::Access;
    use crate::queue::format::layout::{RECORD_ALIGN, RECORDS_START};
    use crate::queue::{Entry, Queue, SegmentId, Settings};

    #[test]
    fn the_next_record_is_found_from_any_distance_and_not_past_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { segment_size: 4 << 20, ..Settings::default() };
        let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
        let mut writer = queue.writer().unwrap();
        // After this one there is room for the others in one segment.
        writer.append(1, &vec![0xEE; 2_200_000]).unwrap();
        let mut before = writer.offset;
        // Shorter and longer than what is read at a time, and none at all.
        for len in [5, 8_000, 20_000, 1_500_000, 8_160, 300, 0] {
            writer.append(1, &vec![0xEE; len]).unwrap();
        }
        drop(writer);
        let mut starts = Vec::new();
        let mut scanner = queue.scan().unwrap();
        scanner.seek_seq(2).unwrap();
        while let Some(message) = scanner.next().unwrap().and_then(Entry::message) {
            starts.push(message.position.offset);
        }
        let head = scanner.position().offset;
        let segment = queue.store.open_segment(SegmentId(1), Access::Read).unwrap().unwrap();
        let find = |from, end, min_seq| {
            let found = find_record(&segment, from, end, min_seq, &mut Waste::default()).unwrap();
            found.map(|(offset, header)| (offset, header.seq))
        };
        for (seq, start) in (2..).zip(starts) {
            for from in [before, before + (start - before) / 2, start.saturating_sub(RECORD_ALIGN).max(before), start] {
                assert_eq!(find(from, head, 0), Some((start, seq)), "message {seq} from {from}");
                let its_header = start + HEADER_LEN;
                assert_eq!(find(from, its_header, 0), Some((start, seq)), "message {seq} from {from}");
                assert_eq!(find(from, its_header - 1, 0), None, "message {seq} from {from}");
            }
            assert_eq!(find(RECORDS_START, head, seq), Some((start, seq)), "message {seq} or a later one");
            before = start + 1;
        }
        // The file may end with a header.
        File::options().write(true).open(&segment.path).unwrap().set_len(u64::from(head)).unwrap();
        assert_eq!(find(before - 1, head, 0), Some((before - 1, 8)));
    }
}
