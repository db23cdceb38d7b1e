//! The control block: the queue's settings, a hint of the head, information on the writer, the wake words.
//!
//! It has two copies of the settings, and every segment has another one; the head is only a hint. So nothing is lost
//! with it: the next writer rebuilds it from the segments.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use zerocopy::{FromZeros, IntoBytes};

use crate::queue::error::{Error, Result};
use crate::queue::files::dir::{Access, Dir};
use crate::queue::format::block::{check_checksum_kind, check_version, is_sound, read_block};
use crate::queue::format::crc::block_checksum;
use crate::queue::format::layout::{
    self, CONTROL_FILE, CONTROL_HEAD, CONTROL_LEN, CONTROL_MAGIC, CONTROL_SETTINGS, HeadSlot, NO_LIMIT, NO_LIMIT_32,
    SettingsBlock,
};
use crate::queue::options::Settings;
use crate::queue::os::mapping::Mapping;
use crate::queue::position::{MAX_SEQ, Position, SegmentId};

/// A queue's settings and its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) queue_id: u64,
    pub(crate) created_ns: u64,
    pub(crate) generation: u32,
    /// The sequence number of the queue's first message.
    pub(crate) first_seq: u64,
    pub(crate) settings: Settings,
    /// Only a writer that says so may open the queue.
    pub(crate) is_standby: bool,
    /// The term in which the queue got that role.
    pub(crate) term: u64,
}

/// The head as last published, before it is verified against the segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeadHint {
    pub(crate) position: Position,
    pub(crate) next_seq: u64,
    pub(crate) last_timestamp_ns: u64,
}

impl Geometry {
    /// Whether these are later settings of the same queue.
    pub(crate) fn is_newer_than(&self, other: &Self) -> bool {
        self.queue_id == other.queue_id && self.generation > other.generation
    }

    pub(crate) fn to_block(self) -> SettingsBlock {
        let settings = self.settings;
        let limit = |value: Option<u64>| value.unwrap_or(NO_LIMIT).into();
        let mut block = SettingsBlock::new_zeroed();
        block.magic = CONTROL_MAGIC;
        block.version = layout::VERSION.into();
        block.checksum_kind = layout::CHECKSUM_KIND;
        block.segment_size = settings.segment_size.into();
        block.queue_id = self.queue_id.into();
        block.created_ns = self.created_ns.into();
        block.max_bytes = limit(settings.max_bytes);
        block.retain_bytes = limit(settings.retain_bytes);
        block.retain_age_ns = limit(settings.retain_age_ns);
        block.reader_ttl_ns = limit(settings.reader_ttl_ns);
        block.max_lag_bytes = limit(settings.max_lag_bytes);
        block.retain_segments = settings.retain_segments.unwrap_or(NO_LIMIT_32).into();
        block.generation = self.generation.into();
        block.roll_every_ns = limit(settings.roll_every_ns);
        block.first_seq = self.first_seq.into();
        block.payload_align = settings.payload_align.into();
        block.is_standby = u32::from(self.is_standby).into();
        block.term = self.term.into();
        block.crc = block_checksum(block.as_bytes()).into();
        block
    }

    /// Checks a block that was read from a file; the error says where and why it can't be used.
    pub(crate) fn from_block(block: &SettingsBlock, path: &Path, offset: u32) -> Result<Self> {
        let damaged = |what: &str| Error::damaged(path, u64::from(offset), what);
        if block.magic != CONTROL_MAGIC {
            return Err(damaged("the settings' magic is missing"));
        }
        if block.crc.get() != block_checksum(block.as_bytes()) {
            return Err(damaged("the settings' checksum does not match"));
        }
        check_version(block.version.get(), path)?;
        check_checksum_kind(block.checksum_kind, path, offset)?;
        let limit = |value: layout::U64| Some(value.get()).filter(|&value| value != NO_LIMIT);
        let settings = Settings {
            segment_size: block.segment_size.get(),
            max_bytes: limit(block.max_bytes),
            retain_bytes: limit(block.retain_bytes),
            retain_age_ns: limit(block.retain_age_ns),
            reader_ttl_ns: limit(block.reader_ttl_ns),
            max_lag_bytes: limit(block.max_lag_bytes),
            retain_segments: Some(block.retain_segments.get()).filter(|&value| value != NO_LIMIT_32),
            roll_every_ns: limit(block.roll_every_ns),
            payload_align: block.payload_align.get(),
        };
        settings.validate().map_err(|error| damaged(&error.to_string()))?;
        let first_seq = block.first_seq.get();
        if !(1..MAX_SEQ).contains(&first_seq) || block.is_standby.get() > 1 {
            return Err(damaged("the settings' first sequence number or role is invalid"));
        }
        Ok(Self {
            queue_id: block.queue_id.get(),
            created_ns: block.created_ns.get(),
            generation: block.generation.get(),
            first_seq,
            settings,
            is_standby: block.is_standby.get() != 0,
            term: block.term.get(),
        })
    }
}

/// The settings in the control block; the error says what is wrong if neither copy can be used.
pub(crate) fn read_geometry(file: &File, path: &Path) -> Result<Geometry> {
    let len = file.metadata().map_err(Error::io(path, "stat it"))?.len();
    if len < u64::from(CONTROL_LEN) {
        return Err(Error::damaged(path, len, format!("the file has {len} bytes instead of {CONTROL_LEN}")));
    }
    let copy = |offset| {
        let block = read_block(file, offset).ok_or_else(|| Error::damaged(path, u64::from(offset), "it can't be read"));
        block.and_then(|block| Geometry::from_block(&block, path, offset))
    };
    match CONTROL_SETTINGS.map(copy) {
        [Ok(first), Ok(second)] => Ok(if second.generation > first.generation { second } else { first }),
        // A newer version is not damage, even if the other copy can be read.
        [Err(error @ Error::UnsupportedVersion { .. }), _] | [_, Err(error @ Error::UnsupportedVersion { .. })] => {
            Err(error)
        }
        [Ok(good), Err(_)] | [Err(_), Ok(good)] => Ok(good),
        [Err(error), Err(_)] => Err(error),
    }
}

/// The head as last published; None if neither slot can be used.
pub(crate) fn read_head(file: &File) -> Option<HeadHint> {
    let slots = CONTROL_HEAD.map(|offset| read_block::<HeadSlot>(file, offset));
    newest_head(slots)
}

pub(in crate::queue) fn newest_head(slots: [Option<HeadSlot>; 2]) -> Option<HeadHint> {
    let sound = slots.into_iter().flatten().filter(|slot| is_sound(slot, slot.crc) && slot.next_seq.get() > 0);
    let newest = sound.max_by_key(|slot| slot.generation.get())?;
    Some(HeadHint {
        position: Position { segment: SegmentId(newest.segment.get()), offset: newest.offset.get() },
        next_seq: newest.next_seq.get(),
        last_timestamp_ns: newest.last_timestamp_ns.get(),
    })
}

/// Offsets of the blocks that are damaged while their other copy is sound. `is_written`: a writer may be storing into
/// the head's slots; those are left out.
pub(crate) fn damaged_copies(file: &File, is_written: bool) -> Vec<u32> {
    let settings = CONTROL_SETTINGS.map(|offset| {
        let block = read_block::<SettingsBlock>(file, offset);
        (offset, block.is_some_and(|block| !is_sound(&block, block.crc)))
    });
    let head = CONTROL_HEAD.map(|offset| {
        let slot = read_block::<HeadSlot>(file, offset).filter(|slot| *slot != HeadSlot::new_zeroed());
        (offset, !is_written && slot.is_some_and(|slot| !is_sound(&slot, slot.crc)))
    });
    settings.into_iter().chain(head).filter_map(|(offset, is_damaged)| is_damaged.then_some(offset)).collect()
}

/// Writes a complete control block under its final name.
pub(crate) fn create(dir: &Dir, geometry: Geometry, replace: bool) -> Result<()> {
    let temporary = format!("{CONTROL_FILE}{}", layout::TEMPORARY_SUFFIX);
    dir.remove(&temporary)?;
    let path = dir.path_of(&temporary);
    let mut bytes = vec![0; CONTROL_LEN as usize];
    for offset in CONTROL_SETTINGS {
        let at = offset as usize;
        bytes[at..at + size_of::<SettingsBlock>()].copy_from_slice(geometry.to_block().as_bytes());
    }
    let file = dir.create_file(&temporary)?;
    let written = crate::queue::os::sys::allocate(&file, u64::from(CONTROL_LEN))
        .and_then(|()| file.write_all_at(&bytes, 0))
        .and_then(|()| file.sync_all())
        .map_err(Error::io(&path, "write it"))
        .and_then(|()| dir.rename(&temporary, CONTROL_FILE, replace));
    if written.is_err() {
        let _ = dir.remove(&temporary);
    }
    written
}

/// Why a mapping of the control block is lost.
pub(crate) fn loss(dir: &Dir, map: &Mapping, remedy: &str) -> Error {
    let path = dir.path_of(CONTROL_FILE);
    match dir.open_file(CONTROL_FILE, Access::Read) {
        Ok(Some(file)) => map.loss(&file, &path, remedy),
        Ok(None) => Error::damaged(&path, 0, format!("the file is missing; {remedy}")),
        Err(error) => error,
    }
}

/// Publishes the head as a hint, in the older slot. For the writer, and its helper for a writer that is idle.
#[derive(Debug)]
pub(crate) struct HeadPublisher {
    generation: u64,
}

impl HeadPublisher {
    pub(crate) fn new(control: &Mapping) -> Self {
        let newest = CONTROL_HEAD.into_iter().map(|offset| control.read::<HeadSlot>(offset));
        let newest = newest.filter(|slot| is_sound(slot, slot.crc)).map(|slot| slot.generation.get()).max();
        Self { generation: newest.unwrap_or(0) }
    }

    pub(crate) fn publish(&mut self, control: &Mapping, head: HeadHint) {
        self.generation = self.generation.wrapping_add(1);
        let mut slot = HeadSlot::new_zeroed();
        slot.generation = self.generation.into();
        slot.next_seq = head.next_seq.into();
        slot.last_timestamp_ns = head.last_timestamp_ns.into();
        slot.segment = head.position.segment.0.into();
        slot.offset = head.position.offset.into();
        slot.crc = block_checksum(slot.as_bytes()).into();
        control.write(CONTROL_HEAD[usize::from(self.generation % 2 == 1)], &slot);
    }
}
