//! The indexes of a queue's sealed segments, shared by all views of the queue: kept in files if that is allowed,
//! else in memory, coarser.
//!
//! A segment's index depends on that segment alone, so it can be built in any order, in the background, and
//! stays valid when retention removes earlier segments. Segments with gaps have none: views scan those themselves.
//!
//! Memory: a few words per segment, and the marks of the [`LOADED`] most recently used ones.
//!
//! Lock order: `building` before `state`; neither is held while the other kind of locks of a view are taken.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use super::index::{Index, Place};
use super::segment_index_file::{self, Part, SegmentIndex, slot};
use super::{Format, len_u64, lock, rendered_len};
use crate::queue::layout::RECORDS_START;
use crate::queue::{Entry, Position, Queue, Result, Sealed, SegmentBlocks, SegmentId};
use crate::sync::{AtomicBool, Ordering};

/// Marks of this many segments and formats stay in memory.
const LOADED: usize = 8;
/// Marks that can't be stored are kept in memory, at most one per this many bytes.
const COARSE: u64 = 1 << 20;

type Marks = Arc<[Place]>;

/// The indexes of a queue's sealed segments.
#[derive(Debug)]
pub(crate) struct SegmentIndexes {
    queue: Queue,
    may_store: bool,
    state: Mutex<State>,
    /// One build at a time; a waiting thread finds the result of the other one.
    building: Mutex<()>,
    wanted: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// None: there is no index of that segment, and there won't be one.
    known: HashMap<SegmentId, Option<Known>>,
    /// The most recently used one last.
    loaded: VecDeque<(SegmentId, Format, Marks)>,
}

/// What is known of a segment's index.
#[derive(Debug)]
pub(super) enum Indexed {
    /// It exists.
    Ready(Arc<SegmentIndex>),
    /// It can be built by reading this many messages.
    Missing { messages: u64 },
    /// The segment can't have one now: it is not sealed, or damaged.
    Unindexable,
}

#[derive(Debug, Clone)]
struct Known {
    index: Arc<SegmentIndex>,
    /// The marks, where they could not be stored.
    kept: Option<Arc<[Marks; 4]>>,
}

impl SegmentIndexes {
    /// Of a queue. `may_store`: whether files may be created for it.
    pub(crate) fn new(queue: &Queue, may_store: bool) -> Self {
        let (state, building) = (Mutex::default(), Mutex::default());
        Self { queue: queue.clone(), may_store, state, building, wanted: AtomicBool::new(false) }
    }

    /// Builds missing indexes of the segments that are sealed now, until `is_enough` says so; removes those of segments
    /// that no longer exist. False: stopped before all were built.
    ///
    /// # Errors
    /// If the queue can't be read.
    pub(crate) fn make_all(&self, is_enough: impl Fn() -> bool) -> Result<bool> {
        let bounds = self.queue.bounds()?;
        let (first, head) = (bounds.first.segment, bounds.head.segment);
        if self.may_store {
            segment_index_file::remove_before(self.queue.dir(), first);
        }
        lock(&self.state).known.retain(|id, _| *id >= first);
        for id in self.queue.segment_ids()?.into_iter().filter(|id| (first..head).contains(id)) {
            if is_enough() {
                return Ok(false);
            }
            self.make(id)?;
        }
        Ok(true)
    }

    /// Other segments have taken the numbers of the known ones.
    pub(crate) fn forget(&self) {
        let mut state = lock(&self.state);
        state.known.clear();
        state.loaded.clear();
    }

    /// Whether a view has missed one since this was asked last.
    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.swap(false, Ordering::Relaxed)
    }

    pub(super) fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// What is known of a segment's index.
    pub(super) fn find(&self, id: SegmentId) -> Result<Indexed> {
        if let Some(known) = lock(&self.state).known.get(&id) {
            return Ok(known.as_ref().map_or(Indexed::Unindexable, |known| Indexed::Ready(Arc::clone(&known.index))));
        }
        let Some(sealed) = self.queue.sealed(id)? else { return Ok(Indexed::Unindexable) };
        Ok(match segment_index_file::load(self.queue.dir(), id, &sealed) {
            Some(index) => Indexed::Ready(self.enter(id, index, None)),
            None => Indexed::Missing { messages: sealed.next_seq.saturating_sub(sealed.first_seq) },
        })
    }

    /// Finds a segment's index, or builds it.
    pub(super) fn make(&self, id: SegmentId) -> Result<Option<Arc<SegmentIndex>>> {
        let _alone = lock(&self.building);
        match self.find(id)? {
            Indexed::Unindexable => return Ok(None),
            Indexed::Ready(index) => return Ok(Some(index)),
            Indexed::Missing { .. } => {}
        }
        let Some(sealed) = self.queue.sealed(id)? else { return Ok(None) };
        let Some(parts) = read_segment(&self.queue, id, &sealed)? else {
            lock(&self.state).known.insert(id, None);
            return Ok(None);
        };
        let index = SegmentIndex::new(&sealed, &parts);
        let is_stored =
            self.may_store && segment_index_file::save(self.queue.dir(), id, &sealed, &index, &parts).is_ok();
        let kept = (!is_stored).then(|| Arc::new(parts.map(|(marks, ..)| coarse(&marks))));
        Ok(Some(self.enter(id, index, kept)))
    }

    /// The marks of a segment, with offsets from its start.
    pub(super) fn marks(&self, id: SegmentId, format: Format) -> Option<Marks> {
        if let Some(marks) = lock(&self.state).loaded(id, format) {
            return Some(marks);
        }
        let known = lock(&self.state).known.get(&id).cloned().flatten();
        let marks = match known {
            Some(Known { kept: Some(kept), .. }) => return Some(Arc::clone(&kept[slot(format)])),
            Some(Known { index, .. }) => segment_index_file::load_marks(self.queue.dir(), id, &index, format),
            None => None,
        };
        let marks = marks.or_else(|| {
            // Deleted or damaged in the meantime: built again.
            lock(&self.state).known.remove(&id);
            segment_index_file::remove(self.queue.dir(), id);
            let index = self.make(id).ok().flatten()?;
            let known = lock(&self.state).known.get(&id).cloned().flatten();
            match known {
                Some(Known { kept: Some(kept), .. }) => Some(kept[slot(format)].to_vec()),
                _ => segment_index_file::load_marks(self.queue.dir(), id, &index, format),
            }
        })?;
        let marks = Marks::from(marks);
        lock(&self.state).keep(id, format, &marks);
        Some(marks)
    }

    /// A segment does not match its index: it has been damaged since.
    pub(super) fn refuse(&self, id: SegmentId) {
        if self.may_store {
            segment_index_file::remove(self.queue.dir(), id);
        }
        let mut state = lock(&self.state);
        state.known.insert(id, None);
        state.loaded.retain(|(other, ..)| *other != id);
    }

    fn enter(&self, id: SegmentId, index: SegmentIndex, kept: Option<Arc<[Marks; 4]>>) -> Arc<SegmentIndex> {
        let index = Arc::new(index);
        lock(&self.state).known.insert(id, Some(Known { index: Arc::clone(&index), kept }));
        index
    }
}

impl State {
    fn loaded(&mut self, id: SegmentId, format: Format) -> Option<Marks> {
        let at = self.loaded.iter().position(|(segment, of, _)| (*segment, *of) == (id, format))?;
        let found = self.loaded.remove(at)?;
        let marks = Arc::clone(&found.2);
        self.loaded.push_back(found);
        Some(marks)
    }

    fn keep(&mut self, id: SegmentId, format: Format, marks: &Marks) {
        if self.loaded.len() >= LOADED {
            self.loaded.pop_front();
        }
        self.loaded.push_back((id, format, Arc::clone(marks)));
    }
}

/// The index of a sealed segment, as the bytes of the file that the mount keeps for it, built by reading and verifying
/// every record. None if there is anything but messages in the segment, or it is not sealed: it has no index then.
///
/// # Errors
/// If a file can't be read.
pub fn segment_index(queue: &Queue, id: SegmentId) -> Result<Option<Vec<u8>>> {
    let Some(sealed) = queue.sealed(id)? else { return Ok(None) };
    let parts = read_segment(queue, id, &sealed)?;
    Ok(parts.map(|parts| segment_index_file::bytes(&sealed, &SegmentIndex::new(&sealed, &parts), &parts)))
}

/// The segment that an index says it belongs to; None if these bytes are not the index of a segment.
pub fn segment_of_index(index: &[u8]) -> Option<SegmentBlocks> {
    SegmentBlocks::parse(&fingerprint_of_index(index)?)
}

/// What an index says about its segment: the bytes of the blocks at its start, then the header of the record that seals
/// it. None if these bytes are not the index of a segment.
pub fn fingerprint_of_index(index: &[u8]) -> Option<[u8; SegmentBlocks::LEN + SegmentBlocks::SEAL_LEN]> {
    segment_index_file::fingerprint_of(index)
}

/// Reads a segment once for all formats. None if there is anything but messages in it.
fn read_segment(queue: &Queue, id: SegmentId, sealed: &Sealed) -> Result<Option<[Part; 4]>> {
    let start = Position { segment: id, offset: RECORDS_START };
    let mut scanner = queue.scan()?;
    scanner.seek(start, sealed.first_seq)?;
    let indexes = Format::ALL.map(|_| Index::new(start, sealed.first_seq));
    let mut growths = indexes.each_ref().map(Index::growth);
    while scanner.position() < (Position { offset: sealed.end_offset, ..start }) {
        let Some(Entry::Message(message)) = scanner.next()? else { return Ok(None) };
        if message.position.segment != id {
            return Ok(None);
        }
        let entry = Entry::Message(message);
        let lens = Format::ALL.map(|format| len_u64(rendered_len(format, &entry, None)));
        let (position, timestamp_ns) = (message.position, message.timestamp_ns);
        let next = (scanner.position(), scanner.seq());
        for (growth, len) in growths.iter_mut().zip(lens) {
            growth.add_message(position, len, timestamp_ns, next);
        }
    }
    let end = (scanner.position(), scanner.seq());
    if end != (Position { segment: id, offset: sealed.end_offset }, sealed.next_seq) {
        return Ok(None);
    }
    Ok(Some(growths.map(super::index::Growth::into_part)))
}

/// Fewer marks, at least [`COARSE`] bytes apart.
fn coarse(marks: &[Place]) -> Marks {
    let mut kept: Vec<Place> = Vec::new();
    for mark in marks {
        if kept.last().is_none_or(|last| mark.offset - last.offset >= COARSE) {
            kept.push(*mark);
        }
    }
    kept.into()
}

#[cfg(test)]
#[path = "segments_tests.rs"]
mod tests;
