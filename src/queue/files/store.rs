//! What an opened queue consists of: its directory, its settings, its segments.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use crate::queue::error::{Error, Result};
use crate::queue::files::control::{self, Geometry, HeadHint};
use crate::queue::files::dir::{Access, Dir};
use crate::queue::files::hook::RemovalHook;
use crate::queue::files::process;
use crate::queue::files::segment::{self, Link, Segment};
use crate::queue::files::settings;
use crate::queue::format::block::read_block;
use crate::queue::format::layout::{self, CONTROL_FILE, WriterBlock};
use crate::queue::format::names::segment_name;
use crate::queue::options::Settings;
use crate::queue::position::{MAX_SEQ, SegmentId};
use crate::queue::wait::wake::Waiter;

/// What everything that belongs to one opened queue shares.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) dir: Dir,
    geometry: RwLock<Geometry>,
    pub(in crate::queue) control_damage: Option<Error>,
    /// The control block's file, once it has been needed.
    control: OnceLock<File>,
    /// A sync of it has failed.
    control_failure: OnceLock<()>,
    /// Asked before a segment goes.
    pub(in crate::queue) hook: RemovalHook,
}

impl Store {
    pub(in crate::queue) fn new(dir: Dir, geometry: Geometry, control_damage: Option<Error>) -> Arc<Self> {
        Arc::new(Self {
            dir,
            geometry: RwLock::new(geometry),
            control_damage,
            control: OnceLock::new(),
            control_failure: OnceLock::new(),
            hook: RemovalHook::default(),
        })
    }

    /// The queue's settings and identity, as of the last [`refresh`](Self::refresh).
    pub(crate) fn geometry(&self) -> Geometry {
        *self.geometry.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue's settings, as of the last [`refresh`](Self::refresh).
    pub(crate) fn settings(&self) -> Settings {
        self.geometry().settings
    }

    /// Reads the settings again: another process may have changed them. Keeps what is known if they can't be read.
    pub(crate) fn refresh(&self) -> Geometry {
        let read = self.control_file().and_then(|file| control::read_geometry(file, &self.control_path()).ok());
        let mut known = self.geometry.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = read.filter(|read| read.is_newer_than(&known)) {
            *known = read;
        }
        *known
    }

    /// Changes the settings of the queue; returns them as they were and as they are now.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Geometry)) -> Result<(Geometry, Geometry)> {
        self.check_present()?;
        let changed = settings::change(&self.dir, change)?;
        self.refresh();
        Ok(changed)
    }

    /// The control block's file, opened once: repairs keep it.
    fn control_file(&self) -> Option<&File> {
        if self.control.get().is_none()
            && let Ok(Some(file)) = self.dir.open_file(CONTROL_FILE, Access::Read)
        {
            let _ = self.control.set(file);
        }
        self.control.get()
    }

    /// The settings that a segment was started with.
    pub(crate) fn settings_in(&self, id: SegmentId) -> Option<Settings> {
        let segment = self.open_segment(id, Access::Read).ok()??;
        let block = read_block(&segment.file, layout::SEGMENT_SETTINGS)?;
        Geometry::from_block(&block, &segment.path, layout::SEGMENT_SETTINGS).ok().map(|geometry| geometry.settings)
    }

    /// Fails if the queue has been removed from its directory, or the directory itself.
    pub(crate) fn check_present(&self) -> Result<()> {
        let path = self.control_path();
        let id = |file| control::read_geometry(&file, &path).map(|geometry| geometry.queue_id);
        let is_present = match self.dir.open_file(CONTROL_FILE, Access::Read) {
            Ok(Some(file)) => id(file).map_or(true, |id| id == self.geometry().queue_id),
            // Segments without a control block are a damaged queue.
            Ok(None) => !self.segment_ids()?.is_empty(),
            // Unknown for now.
            Err(_) => true,
        };
        let removed = || std::io::Error::other("it has been removed; another queue may have taken its place");
        if is_present { Ok(()) } else { Err(Error::io(self.dir.path(), "go on with the queue")(removed())) }
    }

    pub(crate) fn waiter(&self) -> Result<Waiter> {
        self.dir.show_use();
        let path = self.control_path();
        match self.dir.open_existing_file(CONTROL_FILE, Access::Write) {
            Ok(file) => Waiter::new(file, true, &path),
            // Read-only access: the writer can't know that we sleep.
            Err(Error::Io { .. } | Error::Refused { .. }) => {
                let file = self.dir.open_existing_file(CONTROL_FILE, Access::Read)?;
                Waiter::new(file, false, &path)
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a segment, if it belongs to this queue.
    pub(crate) fn open_segment(&self, id: SegmentId, access: Access) -> Result<Option<Segment>> {
        let segment = Segment::open(&self.dir, &self.geometry(), id, access)?;
        if let Some(segment) = &segment
            && let Some(previous) = self.unlike_previous(segment)
            // If that segment does not belong here either, this one need not follow it.
            && self.unlike_previous(&previous).is_none()
        {
            let what = format!(
                "it does not follow segment {} as that is here: one of the two comes from a copy of the queue that went \
                 on by itself",
                previous.id
            );
            return Err(Error::damaged(&segment.path, u64::from(layout::SEGMENT_START), what));
        }
        Ok(segment)
    }

    /// The segment that this one claims to follow, if its end differs from what this one says.
    fn unlike_previous(&self, segment: &Segment) -> Option<Segment> {
        let (id, sum) = segment.previous()?;
        let previous = Segment::open(&self.dir, &self.geometry(), id, Access::Read).ok()??;
        previous.seal_checksum().is_some_and(|found| found != sum).then_some(previous)
    }

    /// What a segment of this number must say of its predecessor.
    pub(in crate::queue) fn link_before(&self, id: SegmentId) -> Result<Option<Link>> {
        let before = self.segment_ids()?.into_iter().rfind(|&before| before < id);
        let segment = before.and_then(|before| self.open_segment(before, Access::Read).ok().flatten());
        Ok(segment.and_then(|segment| Some((segment.id, segment.seal_checksum()?))))
    }

    /// The existing segments, ascending.
    pub(crate) fn segment_ids(&self) -> Result<Vec<SegmentId>> {
        segment::list(&self.dir)
    }

    /// Bytes of the segments' files up to this one.
    pub(in crate::queue) fn bytes_until(&self, last: SegmentId) -> Result<u64> {
        let ids = self.segment_ids()?.into_iter().filter(|&id| id <= last);
        Ok(ids.fold(0, |sum: u64, id| sum.saturating_add(self.len_of(id))))
    }

    /// The length of a segment's file; 0 if it is missing.
    pub(in crate::queue) fn len_of(&self, id: SegmentId) -> u64 {
        self.dir.len_of(&segment_name(id)).unwrap_or(0)
    }

    /// The number after this one.
    ///
    /// # Errors
    /// [`Error::Damaged`] if this is the largest: the writer can't continue.
    pub(crate) fn id_after(&self, id: SegmentId) -> Result<SegmentId> {
        id.next().ok_or_else(|| {
            let what =
                "no larger segment number exists; move the file away if it was put here, else create another queue";
            Error::damaged(&self.dir.path_of(&segment_name(id)), 0, what)
        })
    }

    /// The first number after this one that no file has.
    ///
    /// # Errors
    /// As [`id_after`](Self::id_after), and if the directory can't be read.
    pub(crate) fn free_id_after(&self, id: SegmentId) -> Result<SegmentId> {
        let mut free = self.id_after(id)?;
        for taken in self.segment_ids()? {
            if taken == free {
                free = self.id_after(taken)?;
            }
        }
        Ok(free)
    }

    /// Syncs the segments from the first to the last, and the directory that names them.
    pub(in crate::queue) fn sync_segments(&self, first: SegmentId, last: SegmentId) -> Result<()> {
        let ids = self.segment_ids()?;
        for id in ids.into_iter().filter(|&id| id >= first && id <= last) {
            // Retention may have removed it meanwhile: then there is nothing to keep. A damaged file is not ours.
            match self.open_segment(id, Access::Read) {
                Ok(Some(segment)) => segment.file.sync_data().map_err(Error::io(&segment.path, "sync it"))?,
                Ok(None) => {}
                Err(error) if error.is_unusable_file() => {}
                Err(error) => return Err(error),
            }
        }
        self.dir.sync()
    }

    /// The head in the control block.
    pub(crate) fn head_hint(&self) -> Option<HeadHint> {
        control::read_head(self.control_file()?)
    }

    /// Makes sure that the published head survives a power cut. A failure is permanent: what the disk refused once the
    /// system may take for written.
    pub(in crate::queue) fn sync_control(&self) -> Result<()> {
        let Some(control) = self.control_file() else { return Ok(()) };
        let synced = match self.control_failure.get() {
            Some(()) => Err(std::io::Error::other("an earlier sync of it has failed")),
            None => control.sync_data(),
        };
        synced.map_err(|error| {
            let _ = self.control_failure.set(());
            Error::io(&self.control_path(), "sync it")(error)
        })
    }

    /// The sequence number after the newest published message, if it is credible.
    pub(crate) fn published_seq(&self) -> Option<u64> {
        self.head_hint().map(|hint| hint.next_seq).filter(|&seq| seq < MAX_SEQ)
    }

    /// The published head, if the last writer closed the queue on this boot: then it is exact, provided that the
    /// segments are those that it was published for.
    pub(crate) fn closed_at(&self) -> Option<HeadHint> {
        let hint = self.head_hint()?;
        let writer: WriterBlock = read_block(self.control.get()?, layout::CONTROL_WRITER)?;
        let boot_id = process::boot_id();
        (writer.pid.get() == 0 && writer.epoch.get() > 0 && writer.boot_id == boot_id && boot_id != [0; 16])
            .then_some(hint)
    }

    pub(crate) fn control_path(&self) -> PathBuf {
        self.dir.path_of(CONTROL_FILE)
    }
}
