//! The bytes of a queue as types and constants. No I/O, no unsafe code.
//!
//! `format.md`, below, is the only statement of what the bytes mean; the golden tests in `tests/format.rs` hold
//! code and page together.
#![doc = include_str!("../format.md")]

use std::mem::offset_of;

use zerocopy::little_endian::U16;
pub(crate) use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The version of the format that this program writes and reads.
pub const VERSION: u16 = 1;
/// The kind of the records' checksum, CRC-32C: the only one there is.
pub const CHECKSUM_KIND: u8 = 1;

/// Granularity of segment sizes, and the size of a segment's header page.
pub const PAGE: u32 = 4096;
/// Smallest segment.
pub const MIN_SEGMENT_SIZE: u32 = 64 << 10;
/// Largest segment.
pub const MAX_SEGMENT_SIZE: u32 = 1 << 30;
/// The alignments of payloads that a queue can have.
pub const PAYLOAD_ALIGNS: [u32; 3] = [8, 16, MAX_PAYLOAD_ALIGN];
/// The largest of them.
pub const MAX_PAYLOAD_ALIGN: u32 = 64;

/// Default size of the largest segments.
pub const DEFAULT_SEGMENT_SIZE: u32 = 64 << 20;

/// Name of the control block's file.
pub const CONTROL_FILE: &str = "control.meta";
/// Name of the lock file.
pub const LOCK_FILE: &str = "writer.lock";
/// Suffix of a reader's lock file.
pub const LOCK_SUFFIX: &str = ".lock";
/// Name of the directory of cursor files.
pub const READERS_DIR: &str = "readers";
/// Suffix of a cursor file.
pub const CURSOR_SUFFIX: &str = ".meta";
/// Name of the directory of data derived from the segments. Not part of the queue.
pub const INDEX_DIR: &str = ".index";
/// Suffix of a segment file.
pub const SEGMENT_SUFFIX: &str = ".q";
/// Suffix of an unfinished file; removed under the writer lock.
pub const TEMPORARY_SUFFIX: &str = ".tmp";

/// Size of a record header.
pub const HEADER_LEN: u32 = 32;
/// Records start at multiples of this, at least.
pub const RECORD_ALIGN: u32 = 8;
/// Where the records of a segment start; the first one does at the next place that its payload's alignment allows.
pub const RECORDS_START: u32 = PAGE;
/// Size of the copy of the segment's identity at the end of its file.
pub const TRAILER_LEN: u32 = 64;
/// The type of padding records.
pub const PADDING_TYPE: u16 = 0xFFFF;
/// Flag of the padding record that ends a segment: continue in the next one.
pub const FLAG_SEAL: u16 = 1;
/// Flag of the padding that says which messages are missing where the queue is copied from.
pub const FLAG_GAP: u16 = 2;
/// Bytes of its payload: the sequence number after the gap (8), the reason (1), zero (7).
pub const GAP_LEN: u32 = 16;

/// First bytes of the control block.
pub const CONTROL_MAGIC: [u8; 8] = *b"CHRONCTL";
/// First bytes of a segment.
pub const SEGMENT_MAGIC: [u8; 8] = *b"CHRONSEG";
/// First bytes of a cursor file.
pub const CURSOR_MAGIC: [u8; 8] = *b"CHRONCUR";

/// Size of the control block's file.
pub const CONTROL_LEN: u32 = PAGE;
/// Offsets of the two copies of the settings in the control block.
pub const CONTROL_SETTINGS: [u32; 2] = [0, 128];
/// Offsets of the two head slots in the control block.
pub const CONTROL_HEAD: [u32; 2] = [256, 320];
/// A writer publishes its head at least once in this many bytes.
pub(crate) const HEAD_EVERY: u32 = 64 << 10;
/// Offset of segment and offset within a head slot, read as one word: segment in the low half, offset in the high one.
pub(crate) const HEAD_POSITION: u32 = narrow(offset_of!(HeadSlot, segment));
/// Offset of the writer block in the control block.
pub const CONTROL_WRITER: u32 = 384;
/// Offset of the number of writers so far in the control block.
pub const CONTROL_WRITER_EPOCH: u32 = CONTROL_WRITER + narrow(offset_of!(WriterBlock, epoch));
/// Offset of the writer's heartbeat in the control block.
pub const CONTROL_WRITER_HEARTBEAT: u32 = CONTROL_WRITER + narrow(offset_of!(WriterBlock, heartbeat_boot_ns));
/// Offset of the writer's process id in the control block.
pub const CONTROL_WRITER_PID: u32 = CONTROL_WRITER + narrow(offset_of!(WriterBlock, pid));
/// Offset of the flag that says whether the writer relies on membarrier.
pub const CONTROL_WRITER_ASYMMETRIC: u32 = CONTROL_WRITER + narrow(offset_of!(WriterBlock, asymmetric));
/// Offset of `notify_seq`, the word that readers sleep on.
pub const CONTROL_NOTIFY_SEQ: u32 = 512;
/// Offset of the flag that says that a reader may be asleep.
pub const CONTROL_SLEEPING: u32 = 640;

/// Offset of the start block in a segment.
pub const SEGMENT_START: u32 = 64;
/// Offset of the seal block in a segment.
pub const SEGMENT_SEAL: u32 = 128;
/// Offset of the copy of the settings in a segment.
pub const SEGMENT_SETTINGS: u32 = 192;

/// Size of a cursor file.
pub const CURSOR_LEN: u32 = PAGE;
/// Offsets of the two slots in a cursor file.
pub const CURSOR_SLOTS: [u32; 2] = [64, 128];
/// Offset of the liveness block in a cursor file.
pub const CURSOR_LIVENESS: u32 = 192;

/// Means "no limit" in a 64-bit setting.
pub const NO_LIMIT: u64 = u64::MAX;
/// Means "no limit" in a 32-bit setting.
pub const NO_LIMIT_32: u32 = u32::MAX;

/// The settings in the control block and in every segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct SettingsBlock {
    /// [`CONTROL_MAGIC`].
    pub(crate) magic: [u8; 8],
    /// [`VERSION`].
    pub(crate) version: U16,
    /// [`CHECKSUM_KIND`].
    pub(crate) checksum_kind: u8,
    /// Zero.
    pub(crate) reserved_a: u8,
    /// Bytes of the largest segment files.
    pub(crate) segment_size: U32,
    /// Random; the same in every file of the queue.
    pub(crate) queue_id: U64,
    /// When the queue was created, ns since the epoch.
    pub(crate) created_ns: U64,
    /// Limit of the queue's bytes, or [`NO_LIMIT`].
    pub(crate) max_bytes: U64,
    /// Bytes to retain, or [`NO_LIMIT`].
    pub(crate) retain_bytes: U64,
    /// Age to retain in ns, or [`NO_LIMIT`].
    pub(crate) retain_age_ns: U64,
    /// Silence in ns after which a reader is dead, or [`NO_LIMIT`].
    pub(crate) reader_ttl_ns: U64,
    /// Lag in bytes beyond which a reader no longer pins, or [`NO_LIMIT`].
    pub(crate) max_lag_bytes: U64,
    /// Segments to retain, or [`NO_LIMIT_32`].
    pub(crate) retain_segments: U32,
    /// Incremented by every change of the settings.
    pub(crate) generation: U32,
    /// A new segment at every multiple of this many ns since the epoch, or [`NO_LIMIT`].
    pub(crate) roll_every_ns: U64,
    /// The sequence number of the queue's first message.
    pub(crate) first_seq: U64,
    /// Payloads start at multiples of this many bytes.
    pub(crate) payload_align: U32,
    /// 1 if the queue is a standby: only a writer that says so may open it. Else 0.
    pub(crate) is_standby: U32,
    /// The term in which the queue got the role that `is_standby` says.
    pub(crate) term: U64,
    /// Zero.
    pub(crate) reserved_b: [u8; 12],
    /// CRC-32 of the bytes before it.
    pub(crate) crc: U32,
}

/// One of the two head slots of the control block: a hint, published lazily.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct HeadSlot {
    /// The slot with the higher generation is the newer one.
    pub(crate) generation: U64,
    /// The sequence number that the next message gets.
    pub(crate) next_seq: U64,
    /// Timestamp of the newest message, ns since the epoch.
    pub(crate) last_timestamp_ns: U64,
    /// The segment of the head.
    pub(crate) segment: U32,
    /// Its offset.
    pub(crate) offset: U32,
    /// Zero.
    pub(crate) reserved: [u8; 28],
    /// CRC-32 of the bytes before it.
    pub(crate) crc: U32,
}

/// What the control block says of the writer; for information.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct WriterBlock {
    /// Incremented each time a writer opens the queue.
    pub(crate) epoch: U64,
    /// The writer's last heartbeat on the boot-time clock, ns.
    pub(crate) heartbeat_boot_ns: U64,
    /// Its process id, in its own namespace; 0 once it has closed the queue.
    pub(crate) pid: U32,
    /// 1: the writer relies on the sleepers' membarrier; 0: it fences by itself.
    pub(crate) asymmetric: U32,
    /// The boot that `heartbeat_boot_ns` belongs to.
    pub(crate) boot_id: [u8; 16],
    /// When the process started, in clock ticks since boot as in `/proc/PID/stat`; 0 if unknown.
    pub(crate) started: U64,
    /// The inode of the lock file that it holds.
    pub(crate) lock_inode: U64,
    /// The device of that file: major number times 2^20, plus minor number.
    pub(crate) lock_device: U32,
    /// The number of its pid namespace; 0 if unknown.
    pub(crate) pid_namespace: U32,
}

/// The identity of a segment, at its start and again at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct SegmentIdentity {
    /// [`SEGMENT_MAGIC`].
    pub(crate) magic: [u8; 8],
    /// [`VERSION`].
    pub(crate) version: U16,
    /// As in [`SettingsBlock`].
    pub(crate) checksum_kind: u8,
    /// 1 if the file has held another segment before: anything may follow the newest record. Else 0.
    pub(crate) is_reused: u8,
    /// Bytes of this file.
    pub(crate) segment_size: U32,
    /// The queue that it belongs to.
    pub(crate) queue_id: U64,
    /// Its number, as in its name.
    pub(crate) segment_id: U32,
    /// Random, new with every use of the file: part of every record's checksum.
    pub(crate) salt: U32,
    /// When it was created, ns since the epoch.
    pub(crate) created_ns: U64,
    /// Payloads start at multiples of this many bytes.
    pub(crate) payload_align: U32,
    /// Zero.
    pub(crate) reserved_b: [u8; 16],
    /// CRC-32 of the bytes before it.
    pub(crate) crc: U32,
}

/// The start of a segment; written when it becomes the active one. A hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct StartBlock {
    /// The sequence number that its first message has or will have.
    pub(crate) first_seq: U64,
    /// Timestamp of the newest message before it, ns since the epoch.
    pub(crate) previous_timestamp_ns: U64,
    /// The segment that it follows.
    pub(crate) previous_segment: U32,
    /// The checksum of the record that seals that segment; 0 if it was not sealed, or does not exist.
    pub(crate) previous_seal: U32,
    /// Zero.
    pub(crate) reserved: [u8; 36],
    /// CRC-32 of the bytes before it.
    pub(crate) crc: U32,
}

/// The end of a sealed segment. A hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct SealBlock {
    /// The sequence number that the next segment starts with.
    pub(crate) next_seq: U64,
    /// Timestamp of the newest message, ns since the epoch.
    pub(crate) last_timestamp_ns: U64,
    /// Where the record that seals the segment starts.
    pub(crate) end_offset: U32,
    /// Zero.
    pub(crate) reserved: [u8; 40],
    /// CRC-32 of the bytes before it.
    pub(crate) crc: U32,
}

/// The identity of a cursor file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct CursorIdentity {
    /// [`CURSOR_MAGIC`].
    pub(crate) magic: [u8; 8],
    /// [`VERSION`].
    pub(crate) version: U16,
    /// Zero.
    pub(crate) reserved_a: [u8; 6],
    /// The queue that it belongs to.
    pub(crate) queue_id: U64,
    /// When the reader was registered, ns since the epoch.
    pub(crate) created_ns: U64,
    /// Zero.
    pub(crate) reserved_b: [u8; 28],
    /// CRC-32 of the bytes before it.
    pub(crate) crc: U32,
}

/// One of the two slots of a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct CursorSlot {
    /// The slot with the higher generation is the newer one.
    pub(crate) generation: U64,
    /// The next sequence number to be consumed.
    pub(crate) seq: U64,
    /// The segment where that message is, or is expected: a hint.
    pub(crate) segment: U32,
    /// Its offset: a hint; 0 if unknown.
    pub(crate) offset: U32,
    /// Zero.
    pub(crate) reserved: U32,
    /// CRC-32C of the bytes before it and of the queue's id.
    pub(crate) crc: U32,
}

/// A reader's heartbeat; for information and for the reader's time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct LivenessBlock {
    /// Last heartbeat on the boot-time clock, ns.
    pub(crate) heartbeat_boot_ns: U64,
    /// The boot that it belongs to.
    pub(crate) boot_id: [u8; 16],
    /// The process id, in its own namespace; 0 once it has closed the reader.
    pub(crate) pid: U32,
    /// The number of its pid namespace; 0 if unknown.
    pub(crate) pid_namespace: U32,
    /// When the process started, in clock ticks since boot as in `/proc/PID/stat`; 0 if unknown.
    pub(crate) started: U64,
    /// Zero.
    pub(crate) reserved: [u8; 24],
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct MessageHeader {
    /// 0: not committed; else the payload's length in bytes + 1.
    pub(crate) commit: U32,
    /// The message's type; [`PADDING_TYPE`] is not a message.
    pub(crate) msg_type: U16,
    /// [`FLAG_SEAL`], [`FLAG_GAP`] or zero.
    pub(crate) flags: U16,
    /// The sequence number; in padding, the next message's.
    pub(crate) seq: U64,
    /// ns since the epoch.
    pub(crate) timestamp_ns: U64,
    /// The record's checksum.
    pub(crate) checksum: U32,
    /// Zero; covered by the checksum.
    pub(crate) spare: U32,
}

const _: () = {
    assert!(usize::BITS == 64, "chronfs maps many files of up to 1 GiB at a time: 64-bit systems only");
    assert!(cfg!(target_endian = "little"), "words of shared memory are loaded and stored as they are");
    assert!(size_of::<SettingsBlock>() == 128);
    assert!(size_of::<HeadSlot>() == 64);
    assert!(size_of::<WriterBlock>() == 64);
    assert!(size_of::<SegmentIdentity>() == TRAILER_LEN as usize);
    assert!(size_of::<StartBlock>() == 64);
    assert!(size_of::<SealBlock>() == 64);
    assert!(size_of::<CursorIdentity>() == 64);
    assert!(size_of::<CursorSlot>() == 32);
    assert!(size_of::<LivenessBlock>() == 64);
    assert!(size_of::<MessageHeader>() == HEADER_LEN as usize);
    assert!(CONTROL_SETTINGS[1] == 128 && CONTROL_HEAD[0] == CONTROL_SETTINGS[1] + 128);
    assert!(offset_of!(HeadSlot, offset) == HEAD_POSITION as usize + 4 && HEAD_POSITION.is_multiple_of(8));
    assert!(CONTROL_WRITER_EPOCH.is_multiple_of(8) && CONTROL_WRITER_HEARTBEAT.is_multiple_of(8));
    assert!(SEGMENT_SETTINGS + 128 <= RECORDS_START);
    assert!(HEADER_LEN.is_multiple_of(RECORD_ALIGN) && RECORDS_START.is_multiple_of(RECORD_ALIGN));
};

/// An offset within a block, in the type of offsets in files.
const fn narrow(offset: usize) -> u32 {
    assert!(offset < PAGE as usize);
    #[allow(clippy::cast_possible_truncation)] // just checked
    let offset = offset as u32;
    offset
}

/// Bytes of a record with a payload of `payload_len` bytes and the zeros after it; None if that overflows.
pub const fn record_len(payload_len: u32) -> Option<u32> {
    match payload_len.checked_add(HEADER_LEN + RECORD_ALIGN - 1) {
        Some(len) => Some(len & !(RECORD_ALIGN - 1)),
        None => None,
    }
}

/// Where the records of a segment must end: the record that seals it fits before this.
pub const fn records_end(segment_size: u32) -> u32 {
    segment_size - TRAILER_LEN
}

/// Where the first record starts in a segment whose payloads are aligned to this many bytes.
pub const fn records_start(payload_align: u32) -> u32 {
    (RECORDS_START + HEADER_LEN).next_multiple_of(payload_align) - HEADER_LEN
}

/// The largest payload that fits into a segment of this size, whatever its payloads' alignment.
pub const fn max_payload_len(segment_size: u32) -> u32 {
    records_end(segment_size) - records_start(MAX_PAYLOAD_ALIGN) - 2 * HEADER_LEN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_lies_in_the_file_as_the_page_says() {
        let header = MessageHeader {
            commit: 6.into(),
            msg_type: 7.into(),
            flags: 0.into(),
            seq: 1.into(),
            timestamp_ns: 2.into(),
            checksum: 3.into(),
            spare: 0.into(),
        };
        let bytes = [6, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(header.as_bytes(), bytes);
    }
}
