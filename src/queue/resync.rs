//! Finding a record where it is not known where one starts: behind damage, and for searches by sequence and time.
//!
//! A record's checksum is salted with its segment and offset, so that a match is a record and nothing else. The work is
//! bounded ([`Waste`]), so that a file made to look like records everywhere costs no more than a multiple of its size.

use std::fs::File;
use std::os::unix::fs::FileExt;

use zerocopy::FromBytes;

use super::error::{Error, Result};
use super::layout::{HEADER_LEN, MessageHeader, RECORD_ALIGN};
use super::record::{Header, UncheckedHeader};
use super::segment::Segment;
use super::sys;

/// How much is read at a time: grows from the first to the second, for near and for far finds.
const BLOCKS: [usize; 2] = [8 << 10, 1 << 20];
/// What turned out to be no record may cover so many times the segment's size, and again what lies behind.
const WASTE_FACTOR: u64 = 32;

/// How many bytes were summed, on the way through a segment, for what turned out to be no record. What is damaged by
/// chance wastes little; beyond a bound nothing is tried that would waste more.
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
    let mut at = from.next_multiple_of(RECORD_ALIGN);
    while at.saturating_add(HEADER_LEN) <= end {
        // Skip what has never been written.
        match sys::seek_data(&segment.file, u64::from(at)).map(|data| data.and_then(|data| u32::try_from(data).ok())) {
            Ok(Some(data)) => at = at.max(data & !(RECORD_ALIGN - 1)),
            Ok(None) => return Ok(None),
            Err(_) => {} // a file system that can't say
        }
        let count = read_some(&segment.file, &mut block, at).map_err(Error::io(&segment.path, "read it"))?;
        if count < HEADER_LEN as usize {
            return Ok(None);
        }
        let last_start = count - HEADER_LEN as usize;
        for index in (0..=last_start).step_by(RECORD_ALIGN as usize) {
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
        let step = (last_start / RECORD_ALIGN as usize + 1) * RECORD_ALIGN as usize;
        at = at.saturating_add(u32::try_from(step).unwrap_or(u32::MAX));
        block.resize((block.len() * 2).min(BLOCKS[1]), 0);
    }
    Ok(None)
}

/// The record that starts with `bytes`, which may hold less than all of it, if it is one.
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
    let mut payload = vec![0; len];
    let count = read_some(&segment.file, &mut payload, offset + HEADER_LEN);
    let count = count.map_err(Error::io(&segment.path, "read it"))?;
    Ok(if count == len { unchecked.verify(&segment.context, offset, &payload) } else { None })
}

/// Reads up to the whole buffer; less only at the end of the file.
pub(crate) fn read_some(file: &File, buffer: &mut [u8], offset: u32) -> std::io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match file.read_at(&mut buffer[count..], u64::from(offset) + count as u64) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}
