//! What a writer does before its first append: find the end of the queue, and complete or undo interrupted work.
//!
//! Runs under the writer lock. Trusts checksums, not lengths, and uses hints only where they can't do harm: the
//! published head counts as the end if the last writer closed the queue, on this boot, so that there was no power cut
//! in between, and a record ends there. Every step can be interrupted and is simply repeated by the next writer.
//! Invariants:
//! - Nothing that was committed is overwritten, nor is evidence of damage: if the last segment does not end cleanly (a
//!   record that fails its checksum, or records after a hole), it stays as it is and the queue continues in a new
//!   segment. Readers infer the gap from the jump in the sequence numbers.
//! - No sequence number that anybody may have seen is assigned again: the next one is after everything that was found,
//!   that the control block had published, and that any cursor had consumed. Nor is the number of a segment in which
//!   the head was published: if that segment is gone, the queue continues in the next one.

use std::sync::Arc;

use crate::queue::entry::{Entry, GapReason};
use crate::queue::error::{Error, Result};
use crate::queue::files::cursor::{self, CursorFile};
use crate::queue::files::dir::Access;
use crate::queue::files::segment::{self, Link, Segment, SegmentStart};
use crate::queue::files::store::Store;
use crate::queue::format::layout::{self, RECORDS_START};
use crate::queue::position::{MAX_SEQ, Position, SegmentId};
use crate::queue::read::resync::{Waste, find_record};
use crate::queue::read::scan::Scanner;

/// A published segment number from here on is not trusted either: it would leave no numbers for later segments.
const MAX_HINTED_SEGMENT: SegmentId = SegmentId(1 << 31);

/// Where the writer continues.
#[derive(Debug)]
pub(crate) struct Tail {
    /// The sequence number of the next message.
    pub(crate) next_seq: u64,
    /// Timestamp of the newest message, ns since the epoch.
    pub(crate) last_timestamp_ns: u64,
    pub(crate) place: TailPlace,
}

/// The segment where the writer continues.
#[derive(Debug)]
pub(crate) enum TailPlace {
    /// This one, at this offset.
    Segment(Segment, u32),
    /// One that is not in use yet; created if it does not exist.
    Fresh(SegmentId),
}

/// Finds the tail of the queue; repairs what an interrupted roll left. `refill`: the numbers of lost messages are to be
/// filled, not skipped.
pub(crate) fn recover(store: &Arc<Store>, refill: bool) -> Result<Tail> {
    remove_temporaries(store)?;
    let ids = store.segment_ids()?;
    // Readers may be in a segment that has been removed: its number is not assigned again.
    let hint = store.head_hint().filter(|hint| hint.next_seq < MAX_SEQ && hint.position.segment < MAX_HINTED_SEGMENT);
    let published_segment = hint.map(|hint| hint.position.segment);
    let mut unused = None;
    let mut tail = None;
    for (index, &id) in ids.iter().enumerate().rev() {
        match store.open_segment(id, Access::Write) {
            Ok(Some(segment)) if segment.is_started()? => {
                let before = index.checked_sub(1).and_then(|index| ids.get(index));
                tail = Some(end_of(store, segment, before.copied())?);
                break;
            }
            // Prepared by the last writer and not used.
            Ok(Some(_)) if unused == id.next() || ids.last() == Some(&id) => unused = Some(id),
            Ok(_) => {}
            Err(error) if error.is_unusable_file() => {}
            Err(error) => return Err(error),
        }
    }
    let End { next_seq, last_timestamp_ns, open } =
        tail.unwrap_or(End { next_seq: store.geometry().first_seq, last_timestamp_ns: 0, open: None });
    let open = open.filter(|(segment, _)| published_segment.is_none_or(|published| published <= segment.id));
    // A power cut may have lost all of the segment that was in use: the unused one still exists, and no segment follows
    // it.
    let fresh = || match unused.filter(|&id| published_segment.is_none_or(|published| published <= id)) {
        Some(unused) => Ok(unused),
        None => ids.last().copied().max(published_segment).map_or(Ok(SegmentId(0)), |last| store.id_after(last)),
    };
    let published = hint.map_or(0, |hint| hint.next_seq);
    let known =
        [published, newest_cursor(store)?].into_iter().filter(|&seq| seq < MAX_SEQ && !refill).max().unwrap_or(0);
    if next_seq >= MAX_SEQ {
        let what = format!("a record claims to be message {next_seq}, which nobody has reached: move the segment away");
        let last = ids.last().map_or_else(String::new, |&id| crate::queue::format::names::segment_name(id));
        return Err(Error::damaged(&store.dir.path_of(&last), 0, what));
    }
    let place = match open {
        Some((segment, offset)) => TailPlace::Segment(segment, offset),
        None => TailPlace::Fresh(fresh()?),
    };
    Ok(Tail { next_seq: next_seq.max(known), last_timestamp_ns, place })
}

/// The end of the messages of the last segment in use.
struct End {
    next_seq: u64,
    last_timestamp_ns: u64,
    /// Where to continue in it, if it ends cleanly.
    open: Option<(Segment, u32)>,
}

/// Finds the end of the messages of the last segment in use.
fn end_of(store: &Arc<Store>, segment: Segment, before: Option<SegmentId>) -> Result<End> {
    let start = segment.start();
    let seq = segment.first_seq().unwrap_or(segment.lowest_seq);
    let mut last_timestamp_ns = start.map_or(0, |start| start.previous_timestamp_ns);
    if let Some(previous) = before {
        finish_roll(store, previous, seq, segment.previous())?;
    }
    let mut scanner = Scanner::at(Arc::clone(store), Position { segment: segment.id, offset: RECORDS_START }, seq);
    let end = layout::records_end(segment.context.segment_size);
    let mut clean = !segment.is_cut_short()?;
    if clean && let Some(hint) = store.closed_at().filter(|hint| hint.position.segment == segment.id) {
        scanner.go_to(hint.position, hint.next_seq);
        if store.is_end(hint)? && scanner.is_free_here()? {
            let open = Some((segment, hint.position.offset));
            return Ok(End { next_seq: hint.next_seq, last_timestamp_ns: hint.last_timestamp_ns, open });
        }
        scanner.go_to(Position { segment: segment.id, offset: RECORDS_START }, seq);
    }
    let mut waste = Waste::default();
    loop {
        match scanner.next()? {
            Some(Entry::Message(message)) => last_timestamp_ns = last_timestamp_ns.max(message.timestamp_ns),
            Some(Entry::Gap(gap)) if gap.reason.is_jump() => {}
            Some(Entry::Gap(_)) => clean = false,
            None => {
                let position = scanner.position();
                if position.segment != segment.id {
                    // It is sealed; the next one has not been started.
                    return Ok(End { next_seq: scanner.seq(), last_timestamp_ns, open: None });
                }
                let search_from = position.offset.saturating_add(layout::RECORD_ALIGN);
                let Some((offset, header)) = find_record(&segment, search_from, end, scanner.seq(), &mut waste)? else {
                    clean &= segment.context.is_place(position.offset);
                    let open = clean.then_some((segment, position.offset));
                    return Ok(End { next_seq: scanner.seq(), last_timestamp_ns, open });
                };
                clean = false;
                scanner.go_to(Position { segment: segment.id, offset }, header.seq);
            }
        }
    }
}

/// Seals the segment before the last one if the writer was killed between starting the new segment and sealing the
/// old one.
fn finish_roll(store: &Arc<Store>, id: SegmentId, next_seq: u64, link: Option<Link>) -> Result<()> {
    let segment = match store.open_segment(id, Access::Write) {
        Ok(Some(segment)) if segment.seal().is_none() && !segment.is_cut_short()? => segment,
        Ok(_) => return Ok(()),
        Err(error) if error.is_unusable_file() => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some(SegmentStart { first_seq: seq, previous_timestamp_ns: mut last_timestamp_ns }) = segment.start() else {
        return Ok(());
    };
    let mut scanner = Scanner::at(Arc::clone(store), Position { segment: id, offset: RECORDS_START }, seq);
    let mut end = scanner.position();
    while let Some(entry) = scanner.next()? {
        match entry {
            Entry::Message(message) if message.position.segment == id => last_timestamp_ns = message.timestamp_ns,
            Entry::Message(_) => break,
            Entry::Gap(gap) if gap.position.segment == id && matches!(gap.reason, GapReason::Upstream(_)) => {}
            Entry::Gap(_) => return Ok(()),
        }
        end = scanner.position();
    }
    if end.segment != id || !segment.context.is_place(end.offset) {
        return Ok(());
    }
    let mut scanner = Scanner::at(Arc::clone(store), end, next_seq);
    if scanner.is_sealed_here()? {
        return Ok(());
    }
    // Its end must be what its successor says; otherwise it is left unchanged.
    let sum = segment::seal_checksum(&segment.context, end.offset, next_seq, last_timestamp_ns);
    if link.is_some_and(|link| link != (id, sum)) {
        return Ok(());
    }
    segment::seal(&segment, end.offset, next_seq, last_timestamp_ns)
}

/// The highest sequence number that a registered reader waits for; damaged cursors don't count.
fn newest_cursor(store: &Store) -> Result<u64> {
    let seqs = cursor::names(&store.dir)?.into_iter().filter_map(|name| {
        let cursor = CursorFile::open(&store.dir, &name, Access::Read).ok()?;
        cursor.read(&store.geometry()).ok().map(|(place, _)| place.seq)
    });
    Ok(seqs.max().unwrap_or(0))
}

/// Removes files that an interrupted writer was creating. Only complete files have names with a meaning.
fn remove_temporaries(store: &Store) -> Result<()> {
    for name in store.dir.names()? {
        if name.ends_with(layout::TEMPORARY_SUFFIX) && !name.starts_with('.') {
            store.dir.remove(&name)?;
        }
    }
    Ok(())
}
