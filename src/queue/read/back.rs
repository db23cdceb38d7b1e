//! Reading backwards. Records have no link to their predecessors, so the ones before a position are found by a search
//! for any record not far before it (`resync.rs`), from which a scan goes forward again. What that scan passes is
//! remembered and returned in reverse, so that each record is read about three times, whatever lies between.

use std::sync::Arc;

use crate::queue::entry::Entry;
use crate::queue::error::Result;
use crate::queue::files::dir::Access;
use crate::queue::files::segment::Segment;
use crate::queue::format::layout::{self, RECORDS_START};
use crate::queue::position::{Position, SegmentId};
use crate::queue::read::reader::{Reader, Registration};
use crate::queue::read::resync::{Waste, find_record};
use crate::queue::read::scan::{Back, Before, Passed, Scanner};

/// How far before a position the search starts; farther each time that it finds nothing.
const STEP: u32 = 32 << 10;
/// At most this many entries are remembered.
const MOST: usize = 2048;

impl Scanner {
    /// The message or gap before the position, and moves there, so that [`next`](Self::next) returns it again; None at
    /// the first retained message. The reverse of `next`, across segments, gaps and damage.
    ///
    /// Each entry costs about as much as three calls of `next`, amortised; the first one after a move is found by a
    /// search through at least 32 KiB.
    ///
    /// ```
    /// # use chronfs::queue::{Queue, Settings};
    /// # let dir = tempfile::tempdir()?;
    /// # let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
    /// # let mut writer = queue.writer()?;
    /// # for number in 0..100_u8 { writer.append(1, &[number])?; }
    /// let mut newest_first = queue.scan()?;
    /// newest_first.seek_end()?;
    /// for seq in (1..=100).rev() {
    ///     assert_eq!(newest_first.prev()?.and_then(|entry| entry.message()).map(|message| message.seq), Some(seq));
    /// }
    /// assert!(newest_first.prev()?.is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn prev(&mut self) -> Result<Option<Entry<'_>>> {
        Ok(self.step_back()?.map(|passed| match passed {
            Passed::Message(header, position) => Entry::Message(self.held(&header, position)),
            Passed::Gap(gap) => Entry::Gap(gap),
        }))
    }

    /// Moves to the entry before the position; a message is held in the window.
    fn step_back(&mut self) -> Result<Option<Passed>> {
        loop {
            let here = (self.position(), self.seq());
            if self.back.end != Some(here) || self.back.entries.is_empty() {
                self.look_back(here)?;
            }
            let Some(Before { position, seq, gap }) = self.back.entries.pop_back() else { return Ok(None) };
            self.back.end = Some((position, seq));
            self.step_to(position, seq);
            if let Some(gap) = gap {
                return Ok(Some(Passed::Gap(gap)));
            }
            self.load_around()?;
            // Again what has been there; if its file has changed since, what there is instead.
            let passed = self.pass()?;
            let is_held = match &passed {
                Some(Passed::Message(header, position)) => self.hold(header, *position)?,
                Some(Passed::Gap(_)) => true,
                None => false,
            };
            self.step_to(position, seq);
            if is_held {
                return Ok(passed);
            }
        }
    }

    /// Remembers the entries before `here`.
    fn look_back(&mut self, here: (Position, u64)) -> Result<()> {
        self.back = Back::default();
        let (mut id, mut end) = (here.0.segment, here.0.offset);
        loop {
            if let Some(segment) = self.usable(id)?
                && self.look_back_in(&segment, end, here)?
            {
                break;
            }
            // Nothing before it in this segment.
            let Some(before) = self.store().segment_ids()?.into_iter().rfind(|&before| before < id) else { break };
            (id, end) = (before, u32::MAX);
        }
        self.back.end = Some(here);
        self.step_to(here.0, here.1);
        Ok(())
    }

    /// Looks in one segment, before the offset `end`; false if there is nothing.
    fn look_back_in(&mut self, segment: &Segment, end: u32, here: (Position, u64)) -> Result<bool> {
        let sealed = segment.seal().map(|seal| seal.end_offset.get());
        let end = end.min(sealed.unwrap_or(u32::MAX)).min(layout::records_end(segment.context.segment_size));
        // Where damage hides it, only a scan from an earlier segment knows what is missing here.
        let start_seq =
            segment.first_seq().or_else(|| (segment.id == SegmentId(0)).then(|| self.store().geometry().first_seq));
        let (mut distance, mut waste) = (STEP, Waste::default());
        loop {
            let from = end.saturating_sub(distance).max(RECORDS_START);
            let found = if from == RECORDS_START {
                start_seq.map(|seq| (RECORDS_START, seq))
            } else {
                find_record(segment, from, end, 0, &mut waste)?.map(|(offset, header)| (offset, header.seq))
            };
            if let Some((offset, seq)) = found.filter(|&(offset, _)| offset < end) {
                self.scan_up_to(Position { segment: segment.id, offset }, seq, here)?;
                if !self.back.entries.is_empty() {
                    return Ok(true);
                }
            }
            if from == RECORDS_START {
                return Ok(false);
            }
            distance = distance.saturating_mul(2);
        }
    }

    /// Remembers the entries from a position on and before `here`.
    fn scan_up_to(&mut self, from: Position, seq: u64, here: (Position, u64)) -> Result<()> {
        self.back.entries.clear();
        self.go_to(from, seq);
        loop {
            let (position, seq) = (self.position(), self.seq());
            let before = match self.pass()? {
                Some(Passed::Message(header, position)) if position < here.0 => {
                    Before { position, seq: header.seq, gap: None }
                }
                Some(Passed::Gap(gap)) if position <= here.0 && gap.from < here.1 => {
                    Before { position, seq, gap: Some(gap) }
                }
                _ => return Ok(()),
            };
            if self.back.entries.len() == MOST {
                self.back.entries.pop_front();
            }
            self.back.entries.push_back(before);
        }
    }

    /// A segment that belongs to the queue and can be read.
    fn usable(&self, id: SegmentId) -> Result<Option<Segment>> {
        match self.store().open_segment(id, Access::Read) {
            Err(error) if error.is_unusable_file() => Ok(None),
            segment => segment,
        }
    }
}

impl<R: Registration> Reader<R> {
    /// The message or gap before the position, and moves there, so that [`next`](Self::next) returns it again; None at
    /// the first retained message. A message is a copy here, and verified in any case; the costs are those of
    /// [`Scanner::prev`]. A registered reader's position is not stored until it commits.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn prev(&mut self) -> Result<Option<Entry<'_>>> {
        self.registration.check_origin()?;
        self.pending = None;
        let scanner = self
            .lent
            .get_or_insert_with(|| Box::new(Scanner::at(Arc::clone(&self.store), self.walk.position, self.walk.seq)));
        if (scanner.position(), scanner.seq()) != (self.walk.position, self.walk.seq) {
            scanner.go_to(self.walk.position, self.walk.seq);
        }
        let Some(passed) = scanner.step_back()? else { return Ok(None) };
        let (position, seq) = (scanner.position(), scanner.seq());
        self.jump(position, seq);
        self.registration.moved_to(seq);
        Ok(match passed {
            Passed::Message(header, at) => self.lent.as_ref().map(|scanner| Entry::Message(scanner.held(&header, at))),
            Passed::Gap(gap) => Some(Entry::Gap(gap)),
        })
    }
}
