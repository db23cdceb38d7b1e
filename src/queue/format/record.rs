//! Records: header words, their checksum, and what is checked before a header is trusted. Pure.

use std::num::NonZeroU64;

use crate::queue::error::Result;
use crate::queue::format::crc::{RecordCrc, RunningSum, Sum};
use crate::queue::format::layout::{self, FLAG_GAP, FLAG_SEAL, HEADER_LEN, MessageHeader, PADDING_TYPE, RECORDS_START};

/// What a record's checksum depends on besides the record: the segment that it is in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordContext {
    pub(crate) summer: RecordCrc,
    pub(crate) salt: u32,
    pub(crate) segment_size: u32,
    /// The alignment of payloads, less 1.
    align_mask: u32,
    /// The file has held another segment before.
    pub(crate) is_reused: bool,
}

impl RecordContext {
    /// `align`: one of [`layout::PAYLOAD_ALIGNS`].
    pub(crate) fn new(salt: u32, segment_size: u32, align: u32, is_reused: bool) -> Self {
        Self { summer: RecordCrc::new(), salt, segment_size, align_mask: align.saturating_sub(1), is_reused }
    }

    /// Bytes from the start of a record to the place of the next one. The payload must fit into a segment.
    #[inline]
    pub(crate) fn record_len(&self, payload_len: u32) -> u32 {
        (HEADER_LEN + payload_len + self.align_mask) & !self.align_mask
    }

    /// The first place at or after `offset` where a record can start.
    pub(crate) fn next_place(&self, offset: u32) -> u32 {
        (offset.saturating_add(HEADER_LEN + self.align_mask) & !self.align_mask) - HEADER_LEN
    }

    /// The place of the segment's first record.
    pub(crate) fn records_start(&self) -> u32 {
        self.next_place(RECORDS_START)
    }

    /// How far apart the places are where records can start.
    pub(crate) fn align(&self) -> u32 {
        self.align_mask + 1
    }

    /// Whether a record can start at this offset.
    #[inline]
    pub(crate) fn is_place(&self, offset: u32) -> bool {
        offset >= RECORDS_START
            && offset.wrapping_add(HEADER_LEN) & self.align_mask == 0
            && offset.checked_add(HEADER_LEN).is_some_and(|end| end <= layout::records_end(self.segment_size))
    }
}

/// A record's header in memory. `format.md` defines its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) payload_len: u32,
    pub(crate) msg_type: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u64,
    pub(crate) timestamp_ns: u64,
}

/// What the header of a sound record says besides its sequence number, in two words: functions return it in registers,
/// whereas a whole header goes through memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sound {
    first_word: NonZeroU64,
    pub(crate) timestamp_ns: u64,
}

/// A header that claims to be committed, not verified yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UncheckedHeader {
    header: Header,
    checksum: u32,
    spare: u32,
}

impl Header {
    /// Whether this record ends its segment.
    pub(crate) fn is_seal(&self) -> bool {
        self.msg_type == PADDING_TYPE && self.flags & FLAG_SEAL != 0
    }

    /// Whether this record says which messages are missing upstream.
    pub(crate) fn is_gap(&self) -> bool {
        self.msg_type == PADDING_TYPE && self.flags == FLAG_GAP && self.payload_len == layout::GAP_LEN
    }

    /// Whether this is a record without a message.
    pub(crate) fn is_padding(&self) -> bool {
        self.msg_type == PADDING_TYPE
    }

    /// The four words of the header in memory order, with the checksum of the record at `offset`.
    #[inline]
    pub(crate) fn words(&self, context: &RecordContext, offset: u32, payload: &[u8]) -> [u64; 4] {
        let first = self.first_word();
        let sum = |words: [u64; 3], payload: &[u8], last| context.summer.sum(words, payload, last);
        let checksum = self.checksum(sum, context, offset, 0, payload);
        [first, self.seq, self.timestamp_ns, u64::from(checksum)]
    }

    /// Copies the payload to `to`, padded, and returns the header as [`words`](Self::words) does.
    #[inline]
    pub(crate) fn words_and_copy(
        &self,
        context: &RecordContext,
        offset: u32,
        payload: &[u8],
        to: &mut [u8],
    ) -> [u64; 4] {
        let first = self.first_word();
        let summed = [place(context, offset, 0), first, self.seq];
        let checksum = context.summer.sum_and_copy(summed, payload, to, self.timestamp_ns);
        [first, self.seq, self.timestamp_ns, u64::from(checksum)]
    }

    /// Commit word, type and flags.
    #[inline]
    fn first_word(&self) -> u64 {
        u64::from(self.payload_len + 1) | u64::from(self.msg_type) << 32 | u64::from(self.flags) << 48
    }

    #[inline(always)]
    fn checksum(&self, sum: impl Sum, context: &RecordContext, offset: u32, spare: u32, payload: &[u8]) -> u32 {
        sum([place(context, offset, spare), self.first_word(), self.seq], payload, self.timestamp_ns)
    }
}

impl Sound {
    /// Of a verified header.
    #[inline(always)]
    pub(crate) fn of(header: Header) -> Option<Self> {
        NonZeroU64::new(header.first_word()).map(|first_word| Self { first_word, timestamp_ns: header.timestamp_ns })
    }

    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // the commit word is the low half
    pub(crate) fn payload_len(self) -> u32 {
        (self.first_word.get() as u32).wrapping_sub(1)
    }

    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // the flags are above it
    pub(crate) fn msg_type(self) -> u16 {
        (self.first_word.get() >> 32) as u16
    }
}

impl UncheckedHeader {
    /// Parses a header; None if the commit word says that nothing is committed.
    #[inline]
    pub(crate) fn parse(header: &MessageHeader) -> Option<Self> {
        let payload_len = header.commit.get().checked_sub(1)?;
        let (msg_type, flags) = (header.msg_type.get(), header.flags.get());
        let (seq, timestamp_ns) = (header.seq.get(), header.timestamp_ns.get());
        let (checksum, spare) = (header.checksum.get(), header.spare.get());
        Some(Self { header: Header { payload_len, msg_type, flags, seq, timestamp_ns }, checksum, spare })
    }

    /// The payload's length, if the record at `offset` can fit into its segment.
    #[inline]
    pub(crate) fn payload_len(&self, context: &RecordContext, offset: u32) -> Option<usize> {
        let end = offset.checked_add(layout::record_len(self.header.payload_len)?)?;
        (end <= layout::records_end(context.segment_size)).then_some(self.header.payload_len as usize)
    }

    /// The payload's length as the header has it.
    #[inline]
    pub(crate) fn claimed_len(&self) -> u32 {
        self.header.payload_len
    }

    /// Whether this can be the record with sequence number `expected` or a later one. A quick test before the checksum,
    /// for places where a record may or may not start.
    pub(crate) fn is_plausible(&self, context: &RecordContext, offset: u32, expected: u64) -> bool {
        let header = &self.header;
        self.payload_len(context, offset).is_some()
            && self.spare == 0
            && [0, FLAG_SEAL, FLAG_GAP].contains(&header.flags)
            && (header.flags == 0 || header.is_padding())
            && header.seq >= expected
    }

    /// Whether this is left over from an earlier use of the file, where message `expected` would be and there is no
    /// sound record. What was written here later and then damaged has the expected sequence number, or one with a
    /// single bit wrong.
    pub(crate) fn is_left_over(&self, context: &RecordContext, expected: u64) -> bool {
        context.is_reused && (self.header.seq ^ expected).count_ones() > 1
    }

    /// Accepts the header if the checksum of the record at `offset` is right.
    #[inline]
    pub(crate) fn verify(&self, context: &RecordContext, offset: u32, payload: &[u8]) -> Option<Header> {
        self.verify_by(|words, payload, last| context.summer.sum(words, payload, last), context, offset, payload)
    }

    /// [`verify`](Self::verify) as a part of [`SumWork`](crate::queue::format::crc::SumWork).
    #[inline(always)]
    pub(crate) fn verify_by(
        &self,
        sum: impl Sum,
        context: &RecordContext,
        offset: u32,
        payload: &[u8],
    ) -> Option<Header> {
        (self.header.checksum(sum, context, offset, self.spare, payload) == self.checksum).then_some(self.header)
    }

    /// Like [`verify`](Self::verify), for a payload that `add_payload` adds piece by piece; it returns false if it
    /// can't.
    pub(crate) fn verify_pieces(
        &self,
        context: &RecordContext,
        offset: u32,
        add_payload: impl FnOnce(&mut RunningSum) -> Result<bool>,
    ) -> Result<Option<Header>> {
        let Header { payload_len, seq, timestamp_ns, .. } = self.header;
        let mut sum = RunningSum::new([place(context, offset, self.spare), self.header.first_word(), seq]);
        let is_whole = add_payload(&mut sum)?;
        Ok((is_whole && sum.finish(payload_len as usize, timestamp_ns) == self.checksum).then_some(self.header))
    }

    /// Accepts the header without verifying the checksum: for readers opened that way.
    #[inline]
    pub(crate) fn trust(&self) -> Header {
        self.header
    }
}

/// The part of a record's checksum that says where the record is.
#[inline]
fn place(context: &RecordContext, offset: u32, spare: u32) -> u64 {
    u64::from(offset) | u64::from(context.salt ^ spare) << 32
}

/// The length of a payload that may be appended: one of at most `max` bytes, what fits into a segment.
#[inline]
pub(crate) fn checked_len(payload: usize, max: usize, msg_type: u16) -> Option<u32> {
    u32::try_from(payload).ok().filter(|_| payload <= max && msg_type != PADDING_TYPE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::{FromBytes, IntoBytes};

    fn context() -> RecordContext {
        RecordContext::new(0xABCD_1234, 1 << 16, 8, false)
    }

    fn record(offset: u32) -> Vec<u8> {
        let header = Header { payload_len: 5, msg_type: 7, flags: 0, seq: 42, timestamp_ns: 1_000 };
        let words = header.words(&context(), offset, b"hello").map(u64::to_le);
        [words.as_bytes(), b"hello\0\0\0"].concat()
    }

    fn check(bytes: &[u8], context: &RecordContext, offset: u32) -> Option<Header> {
        let (header, payload) = MessageHeader::read_from_prefix(bytes).ok()?;
        let unchecked = UncheckedHeader::parse(&header)?;
        let len = unchecked.payload_len(context, offset)?;
        unchecked.verify(context, offset, payload.get(..len)?)
    }

    #[test]
    fn a_record_is_believed_only_unchanged_and_in_its_place() {
        let good = record(4096);
        assert_eq!(check(&good, &context(), 4096).map(|h| h.seq), Some(42));
        assert_eq!(check(&good, &context(), 4104), None, "another offset");
        assert_eq!(check(&good, &RecordContext { salt: 1, ..context() }, 4096), None, "another segment");
        for bit in 0..37 * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(check(&bad, &context(), 4096), None, "bit {bit}");
        }
    }

    #[test]
    fn lengths_that_leave_the_segment_are_refused() {
        for commit in [60_000_u32, 1 << 16, 1 << 31, u32::MAX] {
            let mut bytes = record(4096);
            bytes[..4].copy_from_slice(&commit.to_le_bytes());
            let (header, _) = MessageHeader::read_from_prefix(&bytes).unwrap();
            let unchecked = UncheckedHeader::parse(&header).unwrap();
            let fits = commit == 60_000;
            assert_eq!(unchecked.payload_len(&context(), 4096).is_some(), fits, "{commit}");
        }
    }

    #[test]
    fn payloads_are_aligned_and_the_largest_one_and_the_seal_fit() {
        for align in layout::PAYLOAD_ALIGNS {
            let context = RecordContext::new(0, 1 << 16, align, false);
            let max = layout::max_payload_len(1 << 16);
            for len in (0..200).chain([max - 1, max]) {
                let mut offset = context.records_start();
                assert!(context.is_place(offset), "{align}");
                assert!((RECORDS_START..offset).all(|before| !context.is_place(before)), "{align}");
                offset += context.record_len(len);
                assert!(context.is_place(offset) && (offset + HEADER_LEN).is_multiple_of(align), "{len} at {align}");
                assert_eq!(context.next_place(offset), offset);
                assert_eq!(context.next_place(offset - 1), offset);
                assert_eq!(context.next_place(offset + 1), offset + align);
            }
        }
    }

    #[test]
    fn a_seal_is_padding_with_its_flag() {
        for (msg_type, flags, is_seal) in
            [(PADDING_TYPE, FLAG_SEAL, true), (PADDING_TYPE, 0, false), (7, FLAG_SEAL, false), (7, 0, false)]
        {
            let header = Header { payload_len: 0, msg_type, flags, seq: 42, timestamp_ns: 0 };
            assert_eq!(header.is_seal(), is_seal, "type {msg_type} flags {flags}");
        }
    }

    #[test]
    fn what_no_writer_can_have_written_here_is_not_plausible() {
        let message = Header { payload_len: 5, msg_type: 7, flags: 0, seq: 42, timestamp_ns: 1_000 };
        let padding = Header { msg_type: PADDING_TYPE, ..message };
        let is_plausible =
            |header, spare| UncheckedHeader { header, checksum: 0, spare }.is_plausible(&context(), 4096, 42);
        for good in [
            message,
            Header { seq: 43, ..message },
            padding,
            Header { flags: FLAG_SEAL, ..padding },
            Header { flags: FLAG_GAP, ..padding },
        ] {
            assert!(is_plausible(good, 0), "{good:?}");
            assert!(!is_plausible(good, 1), "something in the spare bytes of {good:?}");
        }
        for bad in [
            Header { payload_len: 1 << 16, ..message },
            Header { flags: FLAG_SEAL, ..message },
            Header { flags: FLAG_GAP, ..message },
            Header { flags: 3, ..padding },
            Header { flags: 4, ..padding },
            Header { seq: 41, ..message },
        ] {
            assert!(!is_plausible(bad, 0), "{bad:?}");
        }
    }
}
