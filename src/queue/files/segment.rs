//! Segment files: their names and identity, creating and listing them.
//!
//! A segment appears under its final name only when it is complete: allocated, identity at both ends, synced. Its
//! identity is immutable; start and seal block are hints that the writer fills in when the segment becomes the active
//! one and when it is sealed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zerocopy::{FromZeros, IntoBytes};

use crate::queue::error::{Error, Result};
use crate::queue::files::control::{Geometry, HeadHint};
use crate::queue::files::dir::{Access, Dir};
use crate::queue::files::recycle::{self, Spare};
use crate::queue::files::retained::RetainedMappings;
use crate::queue::files::room;
use crate::queue::format::block::{check_checksum_kind, check_version, is_sound, read_block, read_block_strictly};
use crate::queue::format::crc::block_checksum;
use crate::queue::format::layout::{
    self, FLAG_SEAL, MessageHeader, PADDING_TYPE, SEGMENT_MAGIC, SEGMENT_SEAL, SEGMENT_SETTINGS, SEGMENT_START,
    SealBlock, SegmentIdentity, SettingsBlock, StartBlock, TEMPORARY_SUFFIX, TRAILER_LEN,
};
use crate::queue::format::names::{parse_segment_name, segment_name};
use crate::queue::format::record::{Header, RecordContext, UncheckedHeader};
use crate::queue::os::mapping::{HUGE_PAGE, Mapping};
use crate::queue::os::sys;
use crate::queue::position::{Position, SegmentId};

/// An opened segment file whose identity has been checked.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: SegmentId,
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) context: RecordContext,
    /// The sequence number of the queue's first message.
    pub(crate) lowest_seq: u64,
}

/// The numbers of the segment files in the directory, ascending.
pub(crate) fn list(dir: &Dir) -> Result<Vec<SegmentId>> {
    let mut ids: Vec<_> = dir.names()?.iter().filter_map(|name| parse_segment_name(name)).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// The content of a segment's start block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentStart {
    /// The sequence number of its first message.
    pub(crate) first_seq: u64,
    /// The newest timestamp before it, ns since the epoch.
    pub(crate) previous_timestamp_ns: u64,
}

impl Segment {
    /// Opens a segment and checks that it belongs to this queue. None if there is no such file.
    pub(crate) fn open(dir: &Dir, geometry: &Geometry, id: SegmentId, access: Access) -> Result<Option<Self>> {
        let name = segment_name(id);
        let Some(file) = dir.open_file(&name, access)? else {
            return Ok(None);
        };
        let path = dir.path_of(&name);
        let identity = read_identity(&file, &path, id)?;
        if identity.queue_id.get() != geometry.queue_id {
            return Err(Error::refused(&path, "the segment belongs to another queue; move it away"));
        }
        check_checksum_kind(identity.checksum_kind, &path, 0)?;
        let context = context_of(&identity).ok_or_else(|| {
            Error::damaged(&path, 0, "the segment's size or the alignment of its payloads is one that no segment has")
        })?;
        Ok(Some(Self { id, file, path, context, lowest_seq: geometry.first_seq }))
    }

    /// The segment's start block; None while it is not in use.
    pub(crate) fn start(&self) -> Option<SegmentStart> {
        read_start(&self.file)
    }

    /// The sequence number that it starts with, if it is known.
    pub(crate) fn first_seq(&self) -> Option<u64> {
        self.start().map(|start| start.first_seq).or_else(|| {
            let header: MessageHeader = read_block(&self.file, self.context.records_start())?;
            UncheckedHeader::parse(&header).map(|unchecked| unchecked.trust().seq).filter(|&seq| seq > 0)
        })
    }

    /// The timestamp of its first message, unverified; None if it has none.
    pub(in crate::queue) fn first_timestamp_ns(&self) -> Option<u64> {
        let header: MessageHeader = read_block(&self.file, self.context.records_start())?;
        (header.commit.get() != 0 && header.msg_type.get() != PADDING_TYPE).then(|| header.timestamp_ns.get())
    }

    /// The segment that this one follows, if it says so.
    pub(in crate::queue) fn previous(&self) -> Option<Link> {
        let block: StartBlock = read_block(&self.file, SEGMENT_START)?;
        start_in(&block)?;
        let (id, sum) = (SegmentId(block.previous_segment.get()), block.previous_seal.get());
        (sum != 0 && id < self.id).then_some((id, sum))
    }

    /// The checksum of the record that seals the segment, if it is sealed and that record is sound.
    pub(in crate::queue) fn seal_checksum(&self) -> Option<u32> {
        let offset = self.seal()?.end_offset.get();
        let header: MessageHeader = read_block(&self.file, offset)?;
        let sound = UncheckedHeader::parse(&header)?.verify(&self.context, offset, &[]);
        sound.filter(Header::is_seal).map(|_| header.checksum.get())
    }

    /// The segment's seal block, if it has one.
    pub(crate) fn seal(&self) -> Option<SealBlock> {
        let block: SealBlock = read_block(&self.file, SEGMENT_SEAL)?;
        let sound = is_sound(&block, block.crc) && block.next_seq.get() > 0;
        (sound && self.context.is_place(block.end_offset.get())).then_some(block)
    }

    /// Where one of the two copies of the identity is damaged.
    pub(crate) fn damaged_identity(&self) -> Option<u32> {
        let is_damaged = |&offset: &u32| !read_block(&self.file, offset).is_some_and(|copy| is_whole(&copy));
        [0, self.context.segment_size - TRAILER_LEN].into_iter().find(is_damaged)
    }

    /// Whether the file has been truncated to less than the segment's size.
    pub(crate) fn is_cut_short(&self) -> Result<bool> {
        let len = self.file.metadata().map_err(Error::io(&self.path, "stat it"))?.len();
        Ok(len < u64::from(self.context.segment_size))
    }

    /// Maps the segment for its writer, with room reserved for all of it, and prefaults `len` bytes from `offset` on.
    pub(crate) fn map_for_writing(&self, offset: u32, len: u32) -> Result<Mapping> {
        let size = self.context.segment_size;
        room::reserve(&self.file, 0, size.into()).map_err(Error::io(&self.path, "reserve space for messages in it"))?;
        let map = Mapping::read_write(&self.file, &self.path, size)?;
        map.populate(offset, len as usize).map_err(Error::io(&self.path, "prefault it"))?;
        Ok(map)
    }

    /// Whether the segment is in use: it has a start block, or something where its first record is.
    ///
    /// # Errors
    /// If the system can't read it: a segment in use must not be taken for a free one.
    pub(crate) fn is_started(&self) -> Result<bool> {
        let start = read_block_strictly::<StartBlock>(&self.file, &self.path, SEGMENT_START)?;
        if start.is_some_and(|block| start_in(&block).is_some()) {
            return Ok(true);
        }
        let first = self.context.records_start();
        let header = read_block_strictly::<MessageHeader>(&self.file, &self.path, first)?;
        Ok(header.is_some_and(|header| header.commit.get() != 0))
    }

    /// Whether it is only prepared, as it may be if this is the head: the writer may replace it by another one, which a
    /// reader that keeps it open would not see.
    pub(crate) fn may_be_replaced(&self, head: u32) -> Result<bool> {
        Ok(head <= self.context.records_start() && !self.is_started()?)
    }

    /// Creates a segment of this size, from a spare file if there is one: complete, synced, and only then under its
    /// final name. With its mapping if that is among those that the writer has `left`. `is_fast`: it will be filled soon.
    pub(crate) fn create(
        dir: &Dir,
        geometry: &Geometry,
        (id, size, is_fast): (SegmentId, u32, bool),
        now_ns: u64,
        left: &mut RetainedMappings,
    ) -> Result<(Self, Option<Arc<Mapping>>)> {
        let name = segment_name(id);
        let temporary = format!("{name}{TEMPORARY_SUFFIX}");
        dir.remove(&temporary)?;
        let path = dir.path_of(&name);
        let mut spare = recycle::take(dir, &temporary, size, left);
        // Its mode may be from before the queue was made private or shared.
        if spare.take_if(|spare| dir.match_mode(&spare.file).is_err()).is_some() {
            dir.remove(&temporary)?;
        }
        let is_reused = spare.is_some();
        let (file, map) = match spare {
            Some(Spare { file, map }) => (file, map),
            None => (dir.create_file(&temporary)?, None),
        };
        let made = SegmentIdentity::new(geometry, (id, size, is_reused), now_ns)
            .map_err(Error::io(&path, "read random bytes"))
            .and_then(|identity| {
                fill(&file, &path, geometry, &identity, is_fast)?;
                dir.rename(&temporary, &name, false)?;
                Ok(RecordContext::new(identity.salt.get(), size, geometry.settings.payload_align, is_reused))
            });
        match made {
            Ok(context) => Ok((Self { id, file, path, context, lowest_seq: geometry.first_seq }, map)),
            Err(error) => {
                // There was room for nothing or half a file: leave no trace, and report the first error.
                let _ = dir.remove(&temporary);
                Err(error)
            }
        }
    }
}

impl SegmentIdentity {
    fn new(geometry: &Geometry, (id, size, is_reused): (SegmentId, u32, bool), now_ns: u64) -> io::Result<Self> {
        let mut identity = Self::new_zeroed();
        identity.magic = SEGMENT_MAGIC;
        identity.version = layout::VERSION.into();
        identity.checksum_kind = layout::CHECKSUM_KIND;
        identity.is_reused = u8::from(is_reused);
        identity.segment_size = size.into();
        identity.queue_id = geometry.queue_id.into();
        identity.segment_id = id.0.into();
        // Any 32 of the random bits will do.
        #[allow(clippy::cast_possible_truncation)]
        let salt = sys::random_u64()? as u32;
        identity.salt = salt.into();
        identity.created_ns = now_ns.into();
        identity.payload_align = geometry.settings.payload_align.into();
        identity.crc = block_checksum(identity.as_bytes()).into();
        Ok(identity)
    }
}

/// What the records' checksums and places depend on; None if no segment can be like this.
fn context_of(identity: &SegmentIdentity) -> Option<RecordContext> {
    let (size, align) = (identity.segment_size.get(), identity.payload_align.get());
    let is_sound = (layout::MIN_SEGMENT_SIZE..=layout::MAX_SEGMENT_SIZE).contains(&size)
        && size.is_multiple_of(layout::PAGE)
        && layout::PAYLOAD_ALIGNS.contains(&align);
    is_sound.then(|| RecordContext::new(identity.salt.get(), size, align, identity.is_reused != 0))
}

fn read_start(file: &File) -> Option<SegmentStart> {
    start_in(&read_block(file, SEGMENT_START)?)
}

fn start_in(block: &StartBlock) -> Option<SegmentStart> {
    let (first_seq, previous_timestamp_ns) = (block.first_seq.get(), block.previous_timestamp_ns.get());
    (is_sound(block, block.crc) && first_seq > 0).then_some(SegmentStart { first_seq, previous_timestamp_ns })
}

/// The sequence number that a segment with a damaged identity started with.
pub(crate) fn start_of_damaged(dir: &Dir, id: SegmentId) -> Option<u64> {
    let file = dir.open_file(&segment_name(id), Access::Read).ok()??;
    read_start(&file).map(|start| start.first_seq)
}

/// Writes identity and settings into a segment file, new or reused, and syncs it.
fn fill(file: &File, path: &Path, geometry: &Geometry, identity: &SegmentIdentity, is_fast: bool) -> Result<()> {
    let (size, is_reused) = (identity.segment_size.get(), identity.is_reused != 0);
    sys::allocate(file, u64::from(size)).map_err(Error::io(path, "allocate the segment"))?;
    if is_fast && !is_reused {
        read_in_ends(file, path, size);
    }
    // Everything before the records, and the first commit word, which must be zero.
    let mut head = [0; layout::records_start(layout::MAX_PAYLOAD_ALIGN) as usize + 8];
    let settings = geometry.to_block();
    for (bytes, offset) in [(identity.as_bytes(), 0), (settings.as_bytes(), SEGMENT_SETTINGS as usize)] {
        head[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    for (bytes, offset) in [(&head[..], 0), (identity.as_bytes(), size - TRAILER_LEN)] {
        let written = if is_reused {
            // Only these bytes: the old contents of the rest of the file need not be written to disk.
            sys::write_synced(file, bytes, u64::from(offset))
        } else {
            file.write_all_at(bytes, u64::from(offset))
        };
        written.map_err(Error::io(path, "write the segment's header"))?;
    }
    if !is_reused {
        file.sync_all().map_err(Error::io(path, "sync the segment"))?;
    }
    Ok(())
}

/// Puts huge pages into memory at both ends of a new file, if the system has any: what is written there next would take
/// small ones. Affects speed only.
fn read_in_ends(file: &File, path: &Path, size: u32) {
    let Ok(map) = Mapping::read_write(file, path, size) else { return };
    map.expect_use_from(0);
    for offset in [0, size.saturating_sub(HUGE_PAGE)] {
        map.read_in(offset, HUGE_PAGE);
    }
}

/// The segment that another one follows, with the checksum of the record that seals it: a copy to which a writer has
/// appended separately has a different one.
pub(in crate::queue) type Link = (SegmentId, u32);

/// Makes a segment the active one.
pub(in crate::queue) fn start(
    map: &Mapping,
    geometry: &Geometry,
    context: &RecordContext,
    first_seq: u64,
    previous_timestamp_ns: u64,
    previous: Option<Link>,
) {
    // They may have changed since it was created.
    let settings = geometry.to_block();
    if map.read::<SettingsBlock>(SEGMENT_SETTINGS) != settings {
        map.write(SEGMENT_SETTINGS, &settings);
    }
    map.clear_record(context.records_start());
    let mut block = StartBlock::new_zeroed();
    block.first_seq = first_seq.into();
    block.previous_timestamp_ns = previous_timestamp_ns.into();
    if let Some((id, sum)) = previous {
        (block.previous_segment, block.previous_seal) = (id.0.into(), sum.into());
    }
    block.crc = block_checksum(block.as_bytes()).into();
    map.write(SEGMENT_START, &block);
}

/// The header of the record that seals a segment.
fn seal_header(next_seq: u64, last_timestamp_ns: u64) -> Header {
    Header { payload_len: 0, msg_type: PADDING_TYPE, flags: FLAG_SEAL, seq: next_seq, timestamp_ns: last_timestamp_ns }
}

/// The checksum of the record that [`seal_map`] writes there.
pub(in crate::queue) fn seal_checksum(
    context: &RecordContext,
    offset: u32,
    next_seq: u64,
    last_timestamp_ns: u64,
) -> u32 {
    let [.., checksum] = seal_header(next_seq, last_timestamp_ns).words(context, offset, &[]);
    u32::try_from(checksum).unwrap_or(0)
}

/// Seals a segment: first the record that sends readers on, then the block that says where it is.
pub(in crate::queue) fn seal_map(
    map: &Mapping,
    context: &RecordContext,
    offset: u32,
    next_seq: u64,
    last_timestamp_ns: u64,
) {
    map.publish(offset, seal_header(next_seq, last_timestamp_ns).words(context, offset, &[]));
    let mut block = SealBlock::new_zeroed();
    block.next_seq = next_seq.into();
    block.last_timestamp_ns = last_timestamp_ns.into();
    block.end_offset = offset.into();
    block.crc = block_checksum(block.as_bytes()).into();
    map.write(SEGMENT_SEAL, &block);
}

/// Starts the next segment, then seals this one at its head: at any time one of them takes messages. False, and nothing
/// is sealed, if the next one's file does not have what was stored into it.
pub(in crate::queue) fn change_over(
    geometry: &Geometry,
    (map, context): (&Mapping, &RecordContext),
    head: &HeadHint,
    (next, next_map): (&Segment, &Mapping),
) -> bool {
    let HeadHint { position: Position { segment: id, offset }, next_seq, last_timestamp_ns } = *head;
    let link = (id, seal_checksum(context, offset, next_seq, last_timestamp_ns));
    start(next_map, geometry, &next.context, next_seq, last_timestamp_ns, Some(link));
    let is_started = next_map.has_stores();
    if is_started {
        seal_map(map, context, offset, next_seq, last_timestamp_ns);
    }
    is_started
}

/// Seals a segment that an earlier writer has left unsealed. Under the writer lock only.
pub(crate) fn seal(segment: &Segment, offset: u32, next_seq: u64, last_timestamp_ns: u64) -> Result<()> {
    let map = Mapping::read_write(&segment.file, &segment.path, segment.context.segment_size)?;
    seal_map(&map, &segment.context, offset, next_seq, last_timestamp_ns);
    if map.has_stores() { Ok(()) } else { Err(map.loss(&segment.file, &segment.path, "restore the file from a copy")) }
}

fn is_whole(copy: &SegmentIdentity) -> bool {
    copy.magic == SEGMENT_MAGIC && is_sound(copy, copy.crc)
}

/// The identity of a segment file, from whichever of its two copies is sound.
fn read_identity(file: &File, path: &Path, id: SegmentId) -> Result<SegmentIdentity> {
    let len = file.metadata().map_err(Error::io(path, "stat it"))?.len();
    let trailer = u32::try_from(len).ok().and_then(|len| len.checked_sub(TRAILER_LEN));
    let (mut identity, mut failure) = (None, None);
    for offset in [Some(0), trailer].into_iter().flatten() {
        match read_block_strictly::<SegmentIdentity>(file, path, offset) {
            Ok(Some(copy)) if is_whole(&copy) => {
                identity = Some(copy);
                break;
            }
            Ok(_) => {}
            Err(error) => failure = Some(error),
        }
    }
    let Some(identity) = identity else {
        // A disk error is not damage to the file: a caller that took it for that would skip its messages.
        let damaged = || Error::damaged(path, 0, "neither copy of the segment's identity is sound");
        return Err(failure.unwrap_or_else(damaged));
    };
    check_version(identity.version.get(), path)?;
    if identity.segment_id.get() != id.0 {
        let what = format!(
            "the file holds segment {}: it has been renamed or copied; move it away",
            identity.segment_id.get()
        );
        return Err(Error::refused(path, what));
    }
    Ok(identity)
}

/// The newest settings in the segments, of the queue of the first usable one: for a damaged control block.
pub(crate) fn recover_geometry(dir: &Dir) -> Result<Option<Geometry>> {
    let mut newest: Option<Geometry> = None;
    for id in list(dir)? {
        let name = segment_name(id);
        let path = dir.path_of(&name);
        let Ok(Some(file)) = dir.open_file(&name, Access::Read) else {
            continue;
        };
        let Some(block) = read_block::<SettingsBlock>(&file, SEGMENT_SETTINGS) else {
            continue;
        };
        if let Ok(geometry) = Geometry::from_block(&block, &path, SEGMENT_SETTINGS)
            && newest.is_none_or(|newest| geometry.is_newer_than(&newest))
            && read_identity(&file, &path, id).is_ok_and(|i| i.queue_id.get() == geometry.queue_id)
        {
            newest = Some(geometry);
        }
    }
    Ok(newest)
}
