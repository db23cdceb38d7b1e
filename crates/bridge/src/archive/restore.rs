//! From an archive to a queue: the same segments, byte for byte.
//!
//! They are put together in a directory beside the queue's, `.NAME.restoring`, which gets the queue's name when
//! everything in it is verified. A restore that is killed leaves that directory, and the next one goes on in it.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chronfs::queue::layout::{CONTROL_FILE, INDEX_DIR, SEGMENT_SUFFIX};
use chronfs::queue::{Queue, Removal, Role, SegmentBlocks, WriterOptions};
use serde::Serialize;

use super::marker::Marker;
use super::name::{Kind, queue_dir};
use super::pack::pack;
use super::segment::{blocks_of, damage, put_control_block};
use super::shelf::{Held, Listing, Shelf};
use super::store::{Access, Address, Store};
use crate::{Failure, Result};

/// What of an archive is restored: the segments that have any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreOptions {
    /// The queue, if there are several at the address.
    pub id: Option<u64>,
    /// The lowest and the highest sequence number.
    pub seqs: (u64, u64),
    /// The earliest and the latest timestamp, ns since the epoch.
    pub times_ns: (u64, u64),
    /// Do with what there is if messages are missing or damaged.
    pub incomplete: bool,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self { id: None, seqs: (0, u64::MAX), times_ns: (0, u64::MAX), incomplete: false }
    }
}

/// What was restored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The queue's id.
    pub queue: String,
    /// The first sequence number.
    pub first_seq: u64,
    /// The last one.
    pub last_seq: u64,
    /// Segments.
    pub segments: u64,
    /// Those of them that a restore before this one had left.
    pub kept: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Numbers that are not there: from, to.
    pub missing: Vec<(u64, u64)>,
    /// What is damaged.
    pub damaged: Vec<String>,
}

/// Restores a queue, which must not exist.
///
/// # Errors
/// [`Failure::Refused`] if the archive, or the queue's directory, is not what it must be.
pub async fn restore(address: &Address, access: &Access, queue: &Path, options: &RestoreOptions) -> Result<Restored> {
    let store = Store::open(address, access)?;
    let shelf = Shelf::find(&store, options.id).await?;
    let place = Place::take(queue)?;
    let (mut marker, listing) = Marker::set(&shelf, Kind::Restoring).await?;
    let restored = all(&shelf, &mut marker, listing, &place, options).await;
    if let Some(marker) = marker {
        marker.clear().await?;
    }
    match restored {
        Ok(restored) => place.finish().map(|()| restored),
        Err(failure) => {
            // Only if there is nothing in it that the next one can use.
            let _ = fs::remove_dir(&place.dir);
            Err(failure)
        }
    }
}

async fn all(
    shelf: &Shelf<'_>,
    marker: &mut Option<Marker<'_, '_>>,
    listing: Listing,
    place: &Place,
    options: &RestoreOptions,
) -> Result<Restored> {
    if let Some((one, other)) = listing.contradiction() {
        return Err(shelf.bad(&one.object(), &format!("it can't be of the same queue as {}", other.object())));
    }
    let listing = Listing { held: chosen(shelf, listing.held, options).await?, ..Listing::default() };
    let missing = listing.missing();
    let (Some(first), Some(last)) = (listing.held.first(), listing.held.last()) else {
        return Err(Failure::Refused(format!("{}: nothing of what is asked for is archived", shelf.shown(""))));
    };
    if let Some((from, to)) = missing.first().filter(|_| !options.incomplete) {
        return Err(Failure::Refused(format!(
            "{}: messages {from} to {to} are not archived: restore what is before or after them, or take what there is \
             with --incomplete",
            shelf.shown("")
        )));
    }
    let mut restored = Restored {
        queue: queue_dir(shelf.id),
        first_seq: first.name.first_seq,
        last_seq: last.name.next_seq.saturating_sub(1),
        missing,
        ..Restored::default()
    };
    place.keep_only(&listing.held)?;
    for held in &listing.held {
        if let Some(marker) = marker {
            marker.keep().await?;
        }
        let is_kept = place.fetch(shelf, held).await?;
        restored.segments += 1;
        restored.kept += u64::from(is_kept);
        restored.bytes += place.segment(held).metadata().map_or(0, |metadata| metadata.len());
    }
    restored.damaged = place.make_queue(&listing.held)?;
    if let Some(damage) = restored.damaged.first().filter(|_| !options.incomplete) {
        return Err(Failure::Refused(format!("{damage}; --incomplete restores what there is")));
    }
    Ok(restored)
}

/// The segments that have any of what is asked for.
async fn chosen(shelf: &Shelf<'_>, mut held: Vec<Held>, options: &RestoreOptions) -> Result<Vec<Held>> {
    let (from_ns, to_ns) = options.times_ns;
    if from_ns > 0 {
        // All messages of a segment are from before the time that the next one starts with.
        let count = count_while(shelf, &held, |blocks| blocks.previous_timestamp_ns < from_ns).await?;
        held.drain(..count.saturating_sub(1));
    }
    if to_ns < u64::MAX {
        let count = count_while(shelf, &held, |blocks| blocks.previous_timestamp_ns <= to_ns).await?;
        held.truncate(count);
    }
    let (from, to) = options.seqs;
    held.retain(|held| held.name.next_seq > from && held.name.first_seq <= to);
    Ok(held)
}

/// For how many of the first segments something holds that holds for none after them: reads a few of them.
async fn count_while(shelf: &Shelf<'_>, held: &[Held], holds: impl Fn(&SegmentBlocks) -> bool) -> Result<usize> {
    let (mut low, mut high) = (0, held.len());
    while low < high {
        let middle = low.midpoint(high);
        if holds(&shelf.blocks(&held[middle]).await?) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// Where a queue is put together.
struct Place {
    target: PathBuf,
    dir: PathBuf,
    /// Locked: two restores of one queue would disturb each other.
    _lock: File,
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let shown = path.display().to_string();
    move |error| Failure::Refused(format!("{shown}: {error}"))
}

impl Place {
    fn take(target: &Path) -> Result<Self> {
        let target = std::path::absolute(target).map_err(failed(target))?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(Failure::Config(format!("{}: not a queue's path", target.display())));
        };
        match fs::read_dir(&target).map(|mut entries| entries.next().is_none()) {
            Ok(false) => return Err(Failure::Refused(format!("{} exists already", target.display()))),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&target)(error)),
            _ => {}
        }
        let dir = parent.join(format!(".{}.restoring", name.to_string_lossy()));
        fs::create_dir_all(&dir).map_err(failed(&dir))?;
        let lock = File::open(&dir).map_err(failed(&dir))?;
        if lock.try_lock().is_err() {
            return Err(Failure::Refused(format!("{}: another restore is at work there", dir.display())));
        }
        Ok(Self { target, dir, _lock: lock })
    }

    fn segment(&self, held: &Held) -> PathBuf {
        self.dir.join(format!("{:09}{SEGMENT_SUFFIX}", held.name.segment.0))
    }

    /// Removes everything that a restore before this one has left, but for these segments.
    fn keep_only(&self, held: &[Held]) -> Result<()> {
        let wanted: std::collections::HashSet<_> = held.iter().map(|held| self.segment(held)).collect();
        for entry in fs::read_dir(&self.dir).map_err(failed(&self.dir))? {
            let entry = entry.map_err(failed(&self.dir))?;
            let (path, is_dir) = (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir()));
            if !wanted.contains(&path) {
                let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(failed(&path))?;
            }
        }
        Ok(())
    }

    /// Fetches a segment and its index; whether the segment was there already.
    async fn fetch(&self, shelf: &Shelf<'_>, held: &Held) -> Result<bool> {
        let path = self.segment(held);
        let is_kept = match File::open(&path).and_then(|file| pack(&file, 1)) {
            Ok(packed) => packed.contents() == Ok(shelf.contents(held).await?),
            Err(_) => false,
        };
        if !is_kept {
            let temporary = path.with_extension("q.tmp");
            let file = File::create(&temporary).map_err(failed(&temporary))?;
            let file = shelf.unpack(held, file, &temporary).await?;
            file.sync_all().map_err(failed(&temporary))?;
            fs::rename(&temporary, &path).map_err(failed(&path))?;
        }
        let blocks = blocks_of(&path).map_err(failed(&path))?;
        let blocks = blocks.ok_or_else(|| shelf.bad(&held.name.object(), "it does not hold a segment"))?;
        shelf.check(held, &blocks)?;
        match shelf.index(held, &blocks).await {
            Ok(Some(index)) => self.put_index(held, &index)?,
            Ok(None) => {}
            // It can be built again.
            Err(failure) => eprintln!("chron-archive: {failure}: it is left out"),
        }
        Ok(is_kept)
    }

    fn put_index(&self, held: &Held, index: &[u8]) -> Result<()> {
        let dir = self.dir.join(INDEX_DIR);
        let path = dir.join(format!("{:09}.index", held.name.segment.0));
        let put = || {
            fs::create_dir_all(&dir)?;
            File::create(&path)?.write_all(index)
        };
        put().map_err(failed(&path))
    }

    /// Verifies every record and makes the segments a queue that can be appended to. Returns what is damaged.
    fn make_queue(&self, held: &[Held]) -> Result<Vec<String>> {
        // For the time of verifying; the writer makes one with the queue's head in it.
        let control = self.dir.join(CONTROL_FILE);
        if let Some(newest) = held.last() {
            put_control_block(&self.dir, &self.segment(newest)).map_err(failed(&control))?;
        }
        let queue = Queue::open(&self.dir)?;
        let segments = queue.finished_segments(0)?;
        let mut damaged = Vec::new();
        for segment in &segments {
            damaged.extend(damage(&queue, segment)?);
        }
        for held in held.iter().filter(|held| segments.iter().all(|segment| segment.id != held.name.segment)) {
            damaged.push(format!("{}: it is not sealed", self.segment(held).display()));
        }
        fs::remove_file(&control).map_err(failed(&control))?;
        let queue = Queue::open(&self.dir)?;
        // The limits that the queue had would remove at once what has just been restored.
        queue.before_removal(|_, _| Removal::NotYet);
        let as_standby = matches!(queue.role(), Role::Standby { .. });
        let writer =
            queue.writer_with(&WriterOptions { as_standby, max_ahead: Duration::MAX, ..WriterOptions::default() })?;
        queue.update(|settings| {
            (settings.retain_bytes, settings.retain_segments, settings.retain_age_ns) = (None, None, None);
            settings.max_bytes = None;
        })?;
        drop(writer);
        Ok(damaged)
    }

    /// Gives it the queue's name.
    fn finish(self) -> Result<()> {
        let renamed = self.sync().and_then(|()| fs::rename(&self.dir, &self.target));
        renamed.map_err(failed(&self.target))
    }

    fn sync(&self) -> std::io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}
