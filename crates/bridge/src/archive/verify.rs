//! Reads an archive back: every object, and compares it with the queue if that is there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use chronfs::queue::layout::SEGMENT_SUFFIX;
use chronfs::queue::{FinishedSegment, Queue};
use serde::Serialize;

use super::name::queue_dir;
use super::segment::{blocks_of, damage, put_control_block};
use super::shelf::{Held, Shelf};
use super::store::{Access, Address, Store};
use crate::{Failure, Result};

/// How an archive is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The queue's id.
    pub queue: String,
    /// The first sequence number that is archived.
    pub first_seq: u64,
    /// The last one.
    pub last_seq: u64,
    /// Segments that were read back.
    pub segments: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Bytes of their objects.
    pub stored_bytes: u64,
    /// Numbers that are in no object, nor in the queue if that was given: from, to.
    pub missing: Vec<(u64, u64)>,
    /// Numbers that are in no object, and in the queue: from, to.
    pub not_archived: Vec<(u64, u64)>,
    /// Objects that are not what their names say, and damaged records.
    pub damaged: Vec<String>,
    /// Segments of which the queue has another one.
    pub different: Vec<String>,
    /// Segments that the queue has as well, byte for byte.
    pub equal: u64,
    /// Objects that are nothing of ours.
    pub strange: Vec<String>,
}

impl Verdict {
    /// Whether everything can be restored.
    pub fn is_sound(&self) -> bool {
        self.missing.is_empty() && self.not_archived.is_empty() && self.damaged.is_empty() && self.different.is_empty()
    }
}

/// Reads everything back.
///
/// # Errors
/// If the archive or the queue can't be read.
pub async fn verify(address: &Address, access: &Access, queue: Option<&Path>, id: Option<u64>) -> Result<Verdict> {
    let queue = queue.map(Queue::open).transpose()?;
    let store = Store::open(address, access)?;
    let shelf = Shelf::find(&store, id.or(queue.as_ref().map(Queue::id))).await?;
    let listing = shelf.list().await?;
    let mut verdict = Verdict {
        queue: queue_dir(shelf.id),
        first_seq: listing.held.first().map_or(0, |held| held.name.first_seq),
        last_seq: listing.held.last().map_or(0, |held| held.name.next_seq.saturating_sub(1)),
        strange: listing.strange.clone(),
        ..Verdict::default()
    };
    if let Some((one, other)) = listing.contradiction() {
        verdict.damaged.push(format!("{} and {} can't both be of one queue", one.object(), other.object()));
    }
    let local: BTreeMap<_, _> = match &queue {
        Some(queue) => queue.finished_segments(0)?.into_iter().map(|segment| (segment.id, segment)).collect(),
        None => BTreeMap::new(),
    };
    for held in &listing.held {
        match read_back(&shelf, held, local.get(&held.name.segment), &mut verdict).await {
            Err(Failure::Refused(what)) => verdict.damaged.push(what),
            other => other?,
        }
    }
    for (from, to) in listing.missing() {
        let is_here = |segment: &FinishedSegment| segment.first_seq <= to && segment.next_seq > from;
        let list = if local.values().any(is_here) { &mut verdict.not_archived } else { &mut verdict.missing };
        list.push((from, to));
    }
    Ok(verdict)
}

/// Reads one segment back, into a file that goes with this.
async fn read_back(
    shelf: &Shelf<'_>,
    held: &Held,
    local: Option<&FinishedSegment>,
    verdict: &mut Verdict,
) -> Result<()> {
    let failed = |error: std::io::Error| Failure::Again(format!("a temporary file: {error}"));
    let dir = tempfile::tempdir().map_err(failed)?;
    let path = dir.path().join(format!("{:09}{SEGMENT_SUFFIX}", held.name.segment.0));
    let file = File::create(&path).map_err(failed)?;
    shelf.unpack(held, file, &path).await?;
    verdict.segments += 1;
    verdict.stored_bytes += held.size;
    verdict.bytes += path.metadata().map_err(failed)?.len();
    let object = held.name.object();
    let blocks = blocks_of(&path).map_err(failed)?;
    let blocks = blocks.ok_or_else(|| shelf.bad(&object, "it does not hold a segment"))?;
    shelf.check(held, &blocks)?;
    shelf.index(held, &blocks).await?;
    put_control_block(dir.path(), &path).map_err(failed)?;
    let queue = Queue::open(dir.path()).map_err(|error| shelf.bad(&object, &error.to_string()))?;
    let damage = match queue.finished_segments(0)?.first() {
        Some(segment) => damage(&queue, segment)?,
        None => Some("it is not sealed".to_owned()),
    };
    if let Some(damage) = damage {
        let text = damage.replace(&format!("{}: ", path.display()), "");
        verdict.damaged.push(format!("{}: {text}", shelf.shown(&object)));
    }
    if let Some(local) = local {
        if is_same(&path, &local.path).map_err(failed)? {
            verdict.equal += 1;
        } else {
            verdict.different.push(shelf.shown(&object));
        }
    }
    Ok(())
}

/// Whether two files have the same bytes.
fn is_same(one: &Path, other: &Path) -> std::io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let mut left = one.metadata()?.len();
    if other.metadata()?.len() != left {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    while left > 0 {
        let len = usize::try_from(left.min(a.len() as u64)).unwrap_or(0);
        one.read_exact(&mut a[..len])?;
        other.read_exact(&mut b[..len])?;
        if a[..len] != b[..len] {
            return Ok(false);
        }
        left -= len as u64;
    }
    Ok(true)
}

/// A queue in an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Archived {
    /// Its id.
    pub queue: String,
    /// The first sequence number that is archived.
    pub first_seq: u64,
    /// The last one.
    pub last_seq: u64,
    /// Bytes of the objects.
    pub stored_bytes: u64,
    /// Numbers that are in no object: from, to.
    pub missing: Vec<(u64, u64)>,
    /// The segments, in the order of their messages.
    pub segments: Vec<ArchivedSegment>,
}

/// A segment in an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArchivedSegment {
    /// Its number.
    pub segment: u32,
    /// Its first sequence number.
    pub first_seq: u64,
    /// Its last one.
    pub last_seq: u64,
    /// Bytes of its object.
    pub stored_bytes: u64,
    /// When it was archived, in ms since the epoch, by the store's clock.
    pub archived_ms: i64,
    /// Whether its index is there.
    pub has_index: bool,
}

/// What is archived at an address, by listing it.
///
/// # Errors
/// If it can't be listed, or there is nothing.
pub async fn list(address: &Address, access: &Access) -> Result<Vec<Archived>> {
    let store = Store::open(address, access)?;
    let mut found = Vec::new();
    let ids = super::shelf::queues(&store).await?;
    if ids.is_empty() {
        return Err(store.nothing());
    }
    for id in ids {
        let listing = Shelf::new(&store, id).list().await?;
        let segment = |held: &Held| ArchivedSegment {
            segment: held.name.segment.0,
            first_seq: held.name.first_seq,
            last_seq: held.name.next_seq.saturating_sub(1),
            stored_bytes: held.size,
            archived_ms: held.modified_ms,
            has_index: held.index.is_some(),
        };
        found.push(Archived {
            queue: queue_dir(id),
            first_seq: listing.held.first().map_or(0, |held| held.name.first_seq),
            last_seq: listing.held.last().map_or(0, |held| held.name.next_seq.saturating_sub(1)),
            stored_bytes: listing.held.iter().map(|held| held.size + held.index.unwrap_or(0)).sum(),
            missing: listing.missing(),
            segments: listing.held.iter().map(segment).collect(),
        });
    }
    Ok(found)
}
