//! The settings as they are now: finding, changing and repairing them.
//!
//! Invariants:
//! - One process at a time changes or repairs them, under a lock that is not the writer's.
//! - Of the two copies in the control block, the one without the current settings is written and synced first: a kill
//!   or a power cut leaves the old settings or the new ones.
//! - The highest generation counts. Where a damaged copy may have had it, the copies in the segments count too.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use zerocopy::IntoBytes;

use crate::queue::error::{Error, Result};
use crate::queue::files::control::{self, Geometry};
use crate::queue::files::dir::{Access, Dir, is_already_there};
use crate::queue::files::lock::SettingsLock;
use crate::queue::files::room;
use crate::queue::files::segment;
use crate::queue::format::block::read_block;
use crate::queue::format::layout::{CONTROL_FILE, CONTROL_LEN, CONTROL_SETTINGS, SettingsBlock};
use crate::queue::os::mapping::Mapping;
use crate::queue::os::sys;

/// The newest settings of the queue with this control block.
pub(crate) fn newest(dir: &Dir, file: &File) -> Result<Geometry> {
    let read = control::read_geometry(file, &dir.path_of(CONTROL_FILE))?;
    if !CONTROL_SETTINGS.iter().any(|&offset| copy_at(file, offset).is_none()) {
        return Ok(read);
    }
    let kept = segment::recover_geometry(dir)?;
    Ok(kept.filter(|kept| kept.is_newer_than(&read)).unwrap_or(read))
}

/// One of the two copies, if it is sound.
fn copy_at(file: &File, offset: u32) -> Option<Geometry> {
    let block: SettingsBlock = read_block(file, offset)?;
    Geometry::from_block(&block, Path::new(""), offset).ok()
}

/// Changes the settings; returns them as they were and as they are now.
pub(crate) fn change(dir: &Dir, change: impl FnOnce(&mut Geometry)) -> Result<(Geometry, Geometry)> {
    let path = dir.path_of(CONTROL_FILE);
    let file = dir.open_existing_file(CONTROL_FILE, Access::Write)?;
    let _lock = SettingsLock::take(dir)?;
    let before = newest(dir, &file)?;
    let mut after = before;
    change(&mut after);
    after.settings.validate()?;
    if after != before {
        let last = || Error::damaged(&path, 0, "no later generation of the settings exists; create another queue");
        after.generation = before.generation.checked_add(1).ok_or_else(last)?;
        store(&file, &path, &after)?;
    }
    Ok((before, after))
}

/// Writes both copies. Once one is on disk, the settings are in effect.
fn store(file: &File, path: &Path, geometry: &Geometry) -> Result<()> {
    let write = |offset: u32| {
        let written = file.write_all_at(geometry.to_block().as_bytes(), offset.into());
        written.and_then(|()| file.sync_data())
    };
    let [first, second] = CONTROL_SETTINGS;
    let current = control::read_geometry(file, path).ok();
    let is_first_current = current.is_some() && copy_at(file, first) == current;
    let [older, newer] = if is_first_current { [second, first] } else { [first, second] };
    write(older).map_err(Error::io(path, "write it"))?;
    // Without the second copy they are in effect nevertheless; the next writer writes it.
    let _ = write(newer);
    Ok(())
}

/// Repairs the control block under the writer lock: one copy of the settings from the other, or both from the caller,
/// which has the settings from the segments. The file stays the same one, because readers may be asleep on it; a copy
/// of a damaged one is kept beside it.
pub(crate) fn repair(dir: &Dir, known: &Geometry) -> Result<()> {
    let path = dir.path_of(CONTROL_FILE);
    let Some(file) = dir.open_file(CONTROL_FILE, Access::Write)? else {
        return control::create(dir, *known, false);
    };
    let is_whole = || {
        let copies = CONTROL_SETTINGS.map(|offset| copy_at(&file, offset));
        let is_long = file.metadata().is_ok_and(|metadata| metadata.len() >= u64::from(CONTROL_LEN));
        is_long && copies[0].is_some() && copies[0] == copies[1]
    };
    if is_whole() {
        return Ok(());
    }
    let _lock = match SettingsLock::take(dir) {
        // Another process is changing them, and may be hanging.
        Err(Error::SettingsLocked { .. }) if control::read_geometry(&file, &path).is_ok() => return Ok(()),
        lock => lock?,
    };
    if is_whole() {
        return Ok(());
    }
    let geometry = match newest(dir, &file) {
        Ok(found) if found.queue_id != known.queue_id || found.generation < known.generation => *known,
        Err(Error::Damaged { .. }) => {
            keep_evidence(dir, &file, &path)?;
            *known
        }
        found => found?,
    };
    sys::allocate(&file, u64::from(CONTROL_LEN)).map_err(Error::io(&path, "allocate it"))?;
    store(&file, &path, &geometry)?;
    file.sync_all().map_err(Error::io(&path, "sync it"))
}

/// Maps the control block for the writer; rebuilds it first if it is damaged or missing.
pub(in crate::queue) fn map_for_writing(dir: &Dir, known: &Geometry) -> Result<Mapping> {
    repair(dir, known)?;
    let path = dir.path_of(CONTROL_FILE);
    let file = dir.open_existing_file(CONTROL_FILE, Access::Write)?;
    room::reserve(&file, 0, CONTROL_LEN.into()).map_err(Error::io(&path, "reserve space for it"))?;
    let map = Mapping::read_write(&file, &path, CONTROL_LEN)?;
    map.populate(0, CONTROL_LEN as usize).map_err(Error::io(&path, "prefault it"))?;
    Ok(map)
}

/// Copies a damaged control block to `control.meta.damaged`, unless that file exists.
fn keep_evidence(dir: &Dir, file: &File, path: &Path) -> Result<()> {
    let name = format!("{CONTROL_FILE}.damaged");
    let mut bytes = vec![0; CONTROL_LEN as usize];
    let count = sys::read_some(file, &mut bytes, 0).map_err(Error::io(path, "read it"))?;
    match dir.create_file(&name) {
        Ok(copy) => copy.write_all_at(&bytes[..count], 0).map_err(Error::io(&dir.path_of(&name), "write it")),
        Err(error) if is_already_there(&error) => Ok(()),
        Err(error) => Err(error),
    }
}
