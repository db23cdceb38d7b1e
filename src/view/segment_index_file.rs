//! The index of one sealed segment as a file. `queue/format.md` specifies its bytes.
//!
//! It is derived: it may be missing, and a user who may write to the directory may have put anything there. So it
//! is used only if its checksum and the segment's fingerprint match and its contents are plausible; and reads check
//! what they find in the segment against it. A file appears whole or not at all.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

use super::index::{Place, SPAN};
use super::{Format, len_u64};
use crate::queue::layout::{INDEX_DIR, RECORD_ALIGN, RECORDS_START, TEMPORARY_SUFFIX};
use crate::queue::{Dir, FINGERPRINT_LEN, FileAccess, Position, Sealed, SegmentId};

const MAGIC: [u8; 8] = *b"CHRONIDX";
/// Of the file and of the rendering that it was made from.
const VERSION: u16 = 2;
const SUFFIX: &str = ".index";
/// More bytes than one byte of any segment renders to.
const MAX_RENDERED: u64 = 16;
/// Marks are read this many at a time: memory grows with what has been read and verified, not with what a count claims.
const MARKS_AT_ONCE: usize = 1024;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U16,
    reserved_a: [u8; 6],
    fingerprint: [u8; FINGERPRINT_LEN],
    sections: [SectionBlock; 4],
    reserved_b: [u8; 4],
    crc: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct SectionBlock {
    len: U64,
    count: U32,
    ends_empty: U32,
    crc: U32,
    reserved: [u8; 4],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct MarkBlock {
    rendered: U64,
    seq: U64,
    offset: U32,
    reserved: [u8; 4],
}

/// One format's marks, the length, and whether the last unit is empty.
pub(super) type Part = (Vec<Place>, u64, bool);

/// Summary of one format's [`Part`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Section {
    /// Bytes that the segment renders to.
    pub(super) len: u64,
    /// Whether the last of its units is empty.
    pub(super) ends_empty: bool,
    /// Number of its marks, and the checksum of their bytes.
    count: u32,
    crc: u32,
}

/// What a sealed segment renders to. Its marks are loaded when needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentIndex {
    pub(super) first_seq: u64,
    pub(super) next_seq: u64,
    pub(super) last_timestamp_ns: u64,
    pub(super) end_offset: u32,
    sections: [Section; 4],
}

impl SegmentIndex {
    /// Of a segment's parts in the order of [`Format::ALL`].
    pub(super) fn new(sealed: &Sealed, parts: &[Part; 4]) -> Self {
        let sections = parts.each_ref().map(|(marks, len, ends_empty)| Section {
            len: *len,
            ends_empty: *ends_empty,
            count: u32::try_from(marks.len()).unwrap_or(u32::MAX),
            crc: crc32fast::hash(&mark_bytes(marks)),
        });
        Self::of(sealed, sections)
    }

    fn of(sealed: &Sealed, sections: [Section; 4]) -> Self {
        let Sealed { first_seq, next_seq, last_timestamp_ns, end_offset, .. } = *sealed;
        Self { first_seq, next_seq, last_timestamp_ns, end_offset, sections }
    }

    pub(super) fn section(&self, format: Format) -> Section {
        self.sections[slot(format)]
    }

    fn is_possible(&self) -> bool {
        let mut sections = self.sections.iter();
        let most = u64::from(self.end_offset) * MAX_RENDERED;
        let is_possible = |section: &Section| section.len <= most && u64::from(section.count) <= section.len / SPAN + 1;
        self.next_seq >= self.first_seq && sections.all(is_possible)
    }
}

/// A format's place in the file.
pub(super) fn slot(format: Format) -> usize {
    Format::ALL.iter().position(|other| *other == format).unwrap_or(0)
}

fn mark_bytes(marks: &[Place]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(marks.len() * size_of::<MarkBlock>());
    for mark in marks {
        let (rendered, seq, offset) = (mark.offset.into(), mark.seq.into(), mark.position.offset.into());
        bytes.extend_from_slice(MarkBlock { rendered, seq, offset, reserved: [0; 4] }.as_bytes());
    }
    bytes
}

fn header(sealed: &Sealed, index: &SegmentIndex) -> Header {
    let mut header = Header::new_zeroed();
    header.magic = MAGIC;
    header.version = VERSION.into();
    header.fingerprint = sealed.fingerprint;
    header.sections = index.sections.map(|section| SectionBlock {
        len: section.len.into(),
        count: section.count.into(),
        ends_empty: u32::from(section.ends_empty).into(),
        crc: section.crc.into(),
        reserved: [0; 4],
    });
    header.crc = header_sum(&header).into();
    header
}

fn header_sum(header: &Header) -> u32 {
    crc32fast::hash(&header.as_bytes()[..size_of::<Header>() - 4])
}

fn file_name(id: SegmentId) -> String {
    format!("{:09}{SUFFIX}", id.0)
}

fn open_directory(queue: &Dir) -> io::Result<Dir> {
    queue.open_dir(INDEX_DIR)
}

fn open(queue: &Dir, id: SegmentId) -> Option<File> {
    open_directory(queue).ok()?.open_file(&file_name(id), FileAccess::Read).ok()?
}

/// The stored index of a segment, if it matches the segment as it is now.
pub(super) fn load(queue: &Dir, id: SegmentId, sealed: &Sealed) -> Option<SegmentIndex> {
    let mut file = open(queue, id)?;
    let mut header = Header::new_zeroed();
    file.read_exact(header.as_mut_bytes()).ok()?;
    let is_ours = header.magic == MAGIC && header.version.get() == VERSION && header.fingerprint == sealed.fingerprint;
    if !is_ours || header.crc.get() != header_sum(&header) {
        return None;
    }
    let sections = header.sections.map(|block| Section {
        len: block.len.get(),
        ends_empty: block.ends_empty.get() != 0,
        count: block.count.get(),
        crc: block.crc.get(),
    });
    let index = SegmentIndex::of(sealed, sections);
    let marks: u64 = sections.iter().map(|section| u64::from(section.count)).sum();
    let len = len_u64(size_of::<Header>()) + marks * len_u64(size_of::<MarkBlock>());
    (index.is_possible() && file.metadata().ok()?.len() == len).then_some(index)
}

/// The marks of one format, with offsets from the segment's start; None if the file has changed.
pub(super) fn load_marks(queue: &Dir, id: SegmentId, index: &SegmentIndex, format: Format) -> Option<Vec<Place>> {
    let file = open(queue, id)?;
    let section = index.section(format);
    let before: u64 = index.sections[..slot(format)].iter().map(|section| u64::from(section.count)).sum();
    let start = len_u64(size_of::<Header>()) + before * len_u64(size_of::<MarkBlock>());
    let (mut marks, mut hasher) = (Vec::new(), crc32fast::Hasher::new());
    let mut bytes = vec![0; MARKS_AT_ONCE.min(section.count as usize) * size_of::<MarkBlock>()];
    let mut left = section.count as usize;
    while left > 0 {
        let count = left.min(MARKS_AT_ONCE);
        let bytes = bytes.get_mut(..count * size_of::<MarkBlock>())?;
        file.read_exact_at(bytes, start + len_u64(marks.len() * size_of::<MarkBlock>())).ok()?;
        hasher.update(bytes);
        marks.try_reserve(count).ok()?;
        for block in bytes.chunks_exact(size_of::<MarkBlock>()) {
            let block = MarkBlock::ref_from_bytes(block).ok()?;
            let position = Position { segment: id, offset: block.offset.get() };
            let mark = Place { offset: block.rendered.get(), position, seq: block.seq.get() };
            if !can_follow(marks.last(), &mark, index) {
                return None;
            }
            marks.push(mark);
        }
        left -= count;
    }
    let last = marks.last()?;
    let is_whole = hasher.finalize() == section.crc && (last.offset < section.len || last.offset == 0);
    is_whole.then_some(marks)
}

/// Whether a mark is possible in this segment after the one before it.
fn can_follow(before: Option<&Place>, mark: &Place, index: &SegmentIndex) -> bool {
    let offset = mark.position.offset;
    let follows = match before {
        None => (mark.offset, offset, mark.seq) == (0, RECORDS_START, index.first_seq),
        Some(before) => mark.offset > before.offset && mark.seq > before.seq && offset > before.position.offset,
    };
    follows
        && offset <= index.end_offset
        && offset.is_multiple_of(RECORD_ALIGN)
        && (mark.seq < index.next_seq || mark.seq == index.first_seq)
}

/// The bytes of the file.
pub(super) fn bytes(sealed: &Sealed, index: &SegmentIndex, parts: &[Part; 4]) -> Vec<u8> {
    let mut bytes = header(sealed, index).as_bytes().to_vec();
    parts.iter().for_each(|(marks, ..)| bytes.extend_from_slice(&mark_bytes(marks)));
    bytes
}

/// What a sound file is the index of: a [`Sealed::fingerprint`].
pub(super) fn fingerprint_of(file: &[u8]) -> Option<[u8; FINGERPRINT_LEN]> {
    let (header, marks) = Header::read_from_prefix(file).ok()?;
    let is_sound = header.magic == MAGIC && header.version.get() == VERSION && header.crc.get() == header_sum(&header);
    let mut left = marks;
    for section in header.sections {
        let (marks, rest) =
            left.split_at_checked((section.count.get() as usize).checked_mul(size_of::<MarkBlock>())?)?;
        if crc32fast::hash(marks) != section.crc.get() {
            return None;
        }
        left = rest;
    }
    (is_sound && left.is_empty()).then_some(header.fingerprint)
}

/// Stores the index of a segment, readable by those who may read the segment.
pub(super) fn save(
    queue: &Dir,
    id: SegmentId,
    sealed: &Sealed,
    index: &SegmentIndex,
    parts: &[Part; 4],
) -> io::Result<()> {
    let directory = queue.open_or_create_dir(INDEX_DIR).map_err(io::Error::other)?;
    let temporary = format!("{}{TEMPORARY_SUFFIX}", file_name(id));
    // Not readable by others who may not read the segment.
    let mode = Some(if sealed.mode & 0o004 == 0 { 0o600 } else { 0o644 });
    let mut file = match directory.create_file_with(&temporary, mode) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Left by a daemon that was killed.
            directory.remove(&temporary).map_err(io::Error::other)?;
            directory.create_file_with(&temporary, mode)?
        }
        other => other?,
    };
    let written = file
        .write_all(&bytes(sealed, index, parts))
        .and_then(|()| directory.rename(&temporary, &file_name(id), true).map_err(io::Error::other));
    if written.is_err() {
        // The error to report is the first one.
        let _ = directory.remove(&temporary);
    }
    written
}

/// Removes the stored index of a segment. Best effort: a file that stays is checked before it is used.
pub(super) fn remove(queue: &Dir, id: SegmentId) {
    if let Ok(directory) = open_directory(queue) {
        let _ = directory.remove(&file_name(id));
    }
}

/// Removes the stored indexes of segments before `first`, which retention has removed. Best effort.
pub(super) fn remove_before(queue: &Dir, first: SegmentId) {
    let Ok(directory) = open_directory(queue) else { return };
    for name in directory.names().unwrap_or_default() {
        let whole = name.strip_suffix(TEMPORARY_SUFFIX).unwrap_or(&name);
        let id = whole.strip_suffix(SUFFIX).and_then(|digits| digits.parse().ok());
        if id.is_some_and(|id| SegmentId(id) < first) {
            let _ = directory.remove(&name);
        }
    }
}
