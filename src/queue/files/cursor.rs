//! Cursors: the position of each registered reader, in a file of its own under `readers/`.
//!
//! A cursor has two slots. A commit overwrites the older one and ends with its checksum, so that one slot is whole at
//! any time: a reader that is killed in the middle of a commit keeps its previous position. The lock on the file means
//! that a process is using the reader; only the process that holds it stores into the slots.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use zerocopy::{FromZeros, IntoBytes};

use crate::clock;
use crate::queue::entry::Bounds;
use crate::queue::error::{Error, LockHolder, Result};
use crate::queue::files::control::Geometry;
use crate::queue::files::dir::{Access, Dir, is_already_there};
use crate::queue::files::lock;
use crate::queue::files::mtime;
use crate::queue::files::process::{self, Life};
use crate::queue::files::room;
use crate::queue::format::block::{check_version, is_sound, read_block};
use crate::queue::format::crc::{RecordCrc, block_checksum};
use crate::queue::format::layout::{
    self, CONTROL_FILE, CURSOR_LEN, CURSOR_LIVENESS, CURSOR_MAGIC, CURSOR_SLOTS, CURSOR_SUFFIX, CursorIdentity,
    CursorSlot, LivenessBlock, READERS_DIR, TEMPORARY_SUFFIX,
};
use crate::queue::format::names::check_name;
use crate::queue::os::mapping::Mapping;
use crate::queue::os::origin::Origin;
use crate::queue::position::{Position, SegmentId};

/// The position of a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReaderPosition {
    /// The next sequence number to be consumed.
    pub(crate) seq: u64,
    /// Where that message is, or was expected when this was written: a hint, to be checked.
    pub(crate) position: Option<Position>,
}

impl ReaderPosition {
    /// At the first retained message.
    pub(crate) fn first(bounds: &Bounds) -> Self {
        Self { seq: bounds.first_seq, position: Some(bounds.first) }
    }
}

/// A cursor file that is not held open for use.
#[derive(Debug)]
pub(crate) struct CursorFile {
    file: File,
    path: PathBuf,
    dir: Dir,
    name: String,
}

/// A cursor in use by this process: locked and mapped.
#[derive(Debug)]
pub(crate) struct Cursor {
    map: Mapping,
    generation: u64,
    queue_id: u64,
    boot_id: [u8; 16],
    file: File,
    lock: File,
    /// See [`process::own_numbers`].
    numbers: (u64, u32),
    path: PathBuf,
    origin: Origin,
}

/// What to do about a damaged cursor.
const RESET: &str = "seek the reader to a message to repair it";

pub(crate) fn file_name(name: &str) -> String {
    format!("{name}{CURSOR_SUFFIX}")
}

/// The names of the registered readers, sorted; empty if the queue has no directory of readers.
pub(crate) fn names(queue: &Dir) -> Result<Vec<String>> {
    let dir = match queue.open_dir(READERS_DIR) {
        Ok(dir) => dir,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(&queue.path_of(READERS_DIR), "open it")(error)),
    };
    let mut names: Vec<_> =
        dir.names()?.iter().filter_map(|name| Some(name.strip_suffix(CURSOR_SUFFIX)?.to_owned())).collect();
    names.retain(|name| check_name(name).is_ok());
    names.sort_unstable();
    Ok(names)
}

/// Registers a reader; false if it is registered already.
pub(crate) fn create(queue: &Dir, geometry: &Geometry, name: &str, place: ReaderPosition) -> Result<bool> {
    check_name(name)?;
    let dir = queue.open_or_create_dir(READERS_DIR)?;
    let final_name = file_name(name);
    let path = dir.path_of(&final_name);
    // Random, so that two threads, or processes of two pid namespaces, don't use the same temporary file.
    let random = crate::queue::os::sys::random_u64().map_err(Error::io(&path, "read random bytes"))?;
    let temporary = format!("{final_name}.{random:016x}{TEMPORARY_SUFFIX}");
    let mut bytes = vec![0; CURSOR_LEN as usize];
    let identity = identity(geometry);
    bytes[..size_of::<CursorIdentity>()].copy_from_slice(identity.as_bytes());
    let at = CURSOR_SLOTS[0] as usize;
    bytes[at..at + size_of::<CursorSlot>()].copy_from_slice(slot(0, place, geometry.queue_id).as_bytes());
    let liveness = liveness(process::boot_id(), 0, (0, 0));
    let at = CURSOR_LIVENESS as usize;
    bytes[at..at + size_of::<LivenessBlock>()].copy_from_slice(liveness.as_bytes());
    crate::queue::os::sys::check_size_limit(u64::from(CURSOR_LEN)).map_err(Error::io(&path, "create it"))?;
    let file = dir.create_file_with(&temporary, queue.mode_of(CONTROL_FILE)).map_err(Error::io(&path, "create it"))?;
    let made = file.write_all_at(&bytes, 0).and_then(|()| file.sync_all()).map_err(Error::io(&path, "write it"));
    match made.and_then(|()| dir.rename(&temporary, &final_name, false)) {
        Ok(()) => {
            // Retention keeps segments for registered readers: the registration must survive a power cut.
            dir.sync()?;
            queue.sync()?;
            Ok(true)
        }
        Err(error) => {
            let _ = dir.remove(&temporary);
            if is_already_there(&error) { Ok(false) } else { Err(error) }
        }
    }
}

/// Keeps a reader from being used for as long as the file is open.
pub(crate) fn hold(queue: &Dir, name: &str) -> Result<File> {
    CursorFile::open(queue, name, Access::Write)?.lock()
}

/// Removes a reader that no process is using.
pub(crate) fn remove(queue: &Dir, name: &str) -> Result<()> {
    let cursor = CursorFile::open(queue, name, Access::Write)?;
    let _lock = cursor.lock()?;
    cursor.dir.remove(&cursor.name)?;
    // Last: a process that gets the lock then finds no cursor.
    cursor.dir.remove(&lock::reader_lock_name(cursor.reader_name()))
}

fn identity(geometry: &Geometry) -> CursorIdentity {
    let mut identity = CursorIdentity::new_zeroed();
    identity.magic = CURSOR_MAGIC;
    identity.version = layout::VERSION.into();
    identity.queue_id = geometry.queue_id.into();
    identity.created_ns = clock::now_ns().into();
    identity.crc = block_checksum(identity.as_bytes()).into();
    identity
}

fn liveness(boot_id: [u8; 16], pid: u32, (started, pid_namespace): (u64, u32)) -> LivenessBlock {
    let mut block = LivenessBlock::new_zeroed();
    block.heartbeat_boot_ns = clock::boot_ns().into();
    block.boot_id = boot_id;
    block.pid = pid.into();
    (block.started, block.pid_namespace) = (started.into(), pid_namespace.into());
    block
}

/// The checksum of a slot: computed by the processor's instruction, because a commit should cost next to nothing.
pub(in crate::queue) fn slot_checksum(slot: &CursorSlot, queue_id: u64) -> u32 {
    let place = u64::from(slot.segment.get()) | u64::from(slot.offset.get()) << 32;
    let owner = queue_id ^ u64::from(slot.reserved.get());
    RecordCrc::new().sum([slot.generation.get(), slot.seq.get(), place], &[], owner)
}

pub(in crate::queue) fn slot(generation: u64, place: ReaderPosition, queue_id: u64) -> CursorSlot {
    let mut slot = CursorSlot::new_zeroed();
    slot.generation = generation.into();
    slot.seq = place.seq.into();
    slot.segment = place.position.map_or(0, |position| position.segment.0).into();
    slot.offset = place.position.map_or(0, |position| position.offset).into();
    slot.crc = slot_checksum(&slot, queue_id).into();
    slot
}

/// The content of the newest sound slot, and its generation.
pub(in crate::queue) fn newest(slots: [Option<CursorSlot>; 2], queue_id: u64) -> Option<(ReaderPosition, u64)> {
    let is_sound = |slot: &CursorSlot| slot.crc.get() == slot_checksum(slot, queue_id) && slot.seq.get() > 0;
    let slot = slots.into_iter().flatten().filter(is_sound).max_by_key(|slot| slot.generation.get())?;
    let position = Position { segment: SegmentId(slot.segment.get()), offset: slot.offset.get() };
    let position = (position.offset != 0).then_some(position);
    Some((ReaderPosition { seq: slot.seq.get(), position }, slot.generation.get()))
}

/// Where the slot of this generation is.
fn slot_offset(generation: u64) -> u32 {
    CURSOR_SLOTS[usize::from(generation % 2 == 1)]
}

impl CursorFile {
    pub(crate) fn open(queue: &Dir, name: &str, access: Access) -> Result<Self> {
        check_name(name)?;
        let name = file_name(name);
        let path = queue.path_of(READERS_DIR).join(&name);
        let dir = match queue.open_dir(READERS_DIR) {
            Ok(dir) => dir,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Error::NoSuchReader { path }),
            Err(error) => return Err(Error::io(&queue.path_of(READERS_DIR), "open it")(error)),
        };
        match dir.open_file(&name, access)? {
            Some(file) => Ok(Self { file, path, dir, name }),
            None => Err(Error::NoSuchReader { path }),
        }
    }

    pub(crate) fn reader_name(&self) -> &str {
        self.name.strip_suffix(CURSOR_SUFFIX).unwrap_or(&self.name)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The reader's position, and the generation of the slot that it was read from.
    pub(crate) fn read(&self, geometry: &Geometry) -> Result<(ReaderPosition, u64)> {
        let damaged =
            |offset: u32, what: &str| Error::damaged(&self.path, u64::from(offset), format!("{what}; {RESET}"));
        let identity: CursorIdentity =
            read_block(&self.file, 0).ok_or_else(|| damaged(0, "the cursor file is too short"))?;
        if identity.magic != CURSOR_MAGIC || !is_sound(&identity, identity.crc) {
            return Err(damaged(0, "the cursor's identity does not match its checksum"));
        }
        check_version(identity.version.get(), &self.path)?;
        if identity.queue_id.get() != geometry.queue_id {
            return Err(damaged(0, "the cursor belongs to another queue"));
        }
        // The owner may be storing into the older slot while we read, or into one after the other: read again.
        for _ in 0..8 {
            let slots = CURSOR_SLOTS.map(|offset| read_block::<CursorSlot>(&self.file, offset));
            if let Some(newest) = newest(slots, geometry.queue_id) {
                return Ok(newest);
            }
        }
        Err(damaged(CURSOR_SLOTS[0], "neither of the cursor's slots matches its checksum"))
    }

    /// The slot that is damaged while the other one is sound; None while a process may be storing into it.
    pub(crate) fn damaged_slot(&self, geometry: &Geometry) -> Option<u32> {
        self.read(geometry).ok()?;
        let is_damaged = |offset: &u32| {
            let slot = read_block::<CursorSlot>(&self.file, *offset).filter(|slot| *slot != CursorSlot::new_zeroed());
            slot.is_some_and(|slot| slot.crc.get() != slot_checksum(&slot, geometry.queue_id))
        };
        CURSOR_SLOTS.into_iter().find(is_damaged).filter(|_| self.is_in_use() == Some(false))
    }

    /// Whether a process uses the reader; None if that is unknown: its lock may not be examined, and what the cursor
    /// says of the process can't be checked from here.
    pub(crate) fn is_in_use(&self) -> Option<bool> {
        lock::is_reader_locked(&self.dir, self.reader_name()).or_else(|| {
            let block: LivenessBlock = read_block(&self.file, CURSOR_LIVENESS)?;
            match block.pid.get() {
                0 => Some(false),
                pid => match process::life_of(pid, block.started.get(), block.boot_id, block.pid_namespace.get()) {
                    Life::Alive => Some(true),
                    Life::Gone => Some(false),
                    Life::Unknown => None,
                },
            }
        })
    }

    /// The process that uses the reader, as far as the cursor says.
    pub(crate) fn holder(&self) -> LockHolder {
        lock::holder_of(read_block(&self.file, CURSOR_LIVENESS).as_ref())
    }

    /// Milliseconds since the reader's last heartbeat; None if that is unknown: the heartbeat is of another boot, or of
    /// a container with a boot id or a clock of its own.
    pub(crate) fn heartbeat_age_ms(&self) -> Option<u64> {
        let block: LivenessBlock = read_block(&self.file, CURSOR_LIVENESS)?;
        process::heartbeat_age_ms(block.heartbeat_boot_ns.get(), block.boot_id)
    }

    /// For how long the reader has certainly been silent, in nanoseconds: by its heartbeat or, if that says nothing, by
    /// the time when its file last changed, and no longer than the machine has been running.
    pub(crate) fn silent_ns(&self) -> u64 {
        if let Some(age_ms) = self.heartbeat_age_ms() {
            return age_ms.saturating_mul(1_000_000);
        }
        let modified = self.file.metadata().and_then(|metadata| metadata.modified()).ok();
        let modified = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        let modified_ns = modified.map_or(u64::MAX, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        clock::now_ns().saturating_sub(modified_ns).min(clock::boot_ns())
    }

    /// Takes the lock, on the file that has the name now: it may have been removed since it was opened.
    fn lock(&self) -> Result<File> {
        let held = lock::take_reader(&self.dir, self.reader_name(), &self.file, || self.holder())?;
        if lock::is_named(&self.dir, &self.name, &self.file) {
            return Ok(held);
        }
        Err(Error::NoSuchReader { path: self.path.clone() })
    }

    /// Moves a reader that no process is using. Repairs a damaged cursor.
    pub(crate) fn set(&self, geometry: &Geometry, place: ReaderPosition) -> Result<()> {
        let _lock = self.lock()?;
        match self.read(geometry) {
            Ok((_, generation)) => {
                let generation = generation.wrapping_add(1);
                let at = u64::from(slot_offset(generation));
                self.file.write_all_at(slot(generation, place, geometry.queue_id).as_bytes(), at)
            }
            Err(error @ Error::UnsupportedVersion { .. }) => return Err(error),
            Err(_) => self.rebuild(geometry, place),
        }
        .and_then(|()| self.file.sync_data())
        .map_err(Error::io(&self.path, "write it"))
    }

    fn rebuild(&self, geometry: &Geometry, place: ReaderPosition) -> std::io::Result<()> {
        self.file.set_len(u64::from(CURSOR_LEN))?;
        self.file.write_all_at(CursorSlot::new_zeroed().as_bytes(), u64::from(slot_offset(1)))?;
        self.file.write_all_at(slot(0, place, geometry.queue_id).as_bytes(), u64::from(slot_offset(0)))?;
        self.file.write_all_at(identity(geometry).as_bytes(), 0)
    }

    /// Locks and maps the cursor.
    pub(crate) fn acquire(self, geometry: &Geometry) -> Result<(Cursor, ReaderPosition)> {
        let lock = self.lock()?;
        let (place, generation) = self.read(geometry)?;
        room::reserve(&self.file, 0, u64::from(CURSOR_LEN)).map_err(Error::io(&self.path, "reserve space for it"))?;
        let map = Mapping::read_write(&self.file, &self.path, CURSOR_LEN)?;
        let (queue_id, boot_id) = (geometry.queue_id, process::boot_id());
        let origin = Origin::here();
        let (numbers, file, path) = (process::own_numbers(), self.file, self.path);
        let cursor = Cursor { map, generation, queue_id, boot_id, file, lock, numbers, path, origin };
        cursor.heartbeat();
        cursor.touch();
        Ok((cursor, place))
    }
}

impl Cursor {
    /// Stores the reader's position. Stores into memory only: survives the process, and a power cut once synced.
    #[inline]
    pub(crate) fn commit(&mut self, place: ReaderPosition) {
        if !self.origin.is_here() {
            return;
        }
        self.generation = self.generation.wrapping_add(1);
        self.map.write(slot_offset(self.generation), &slot(self.generation, place, self.queue_id));
    }

    /// Whether the process that acquired it still runs.
    #[inline]
    pub(crate) fn check_origin(&self) -> Result<()> {
        self.origin.check(&self.path)
    }

    /// The reader's name.
    pub(crate) fn name(&self) -> &str {
        let name = self.path.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
        name.strip_suffix(CURSOR_SUFFIX).unwrap_or(name)
    }

    /// Syncs the cursor to disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.touch();
        self.map.sync(0, CURSOR_LEN as usize).map_err(Error::io(&self.path, "sync it"))?;
        self.check()
    }

    /// Fails if a commit may not have reached the file.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_origin()?;
        if self.map.is_lost() { Err(self.map.loss(&self.file, &self.path, RESET)) } else { Ok(()) }
    }

    /// Stores a heartbeat.
    pub(crate) fn heartbeat(&self) {
        self.write_liveness(std::process::id());
    }

    /// Updates the file's mtime, which stores into a mapping need not do: it shows those with a different boot-time
    /// clock (in a container) that the reader is alive.
    pub(crate) fn touch(&self) {
        let _ = mtime::touch(&self.file);
    }

    fn write_liveness(&self, pid: u32) {
        self.map.write(CURSOR_LIVENESS, &liveness(self.boot_id, pid, self.numbers));
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        if !self.origin.is_here() {
            return;
        }
        self.touch();
        self.write_liveness(0);
        crate::queue::os::sys::unlock(&self.lock);
    }
}
