//! Leaving the active segment: the writer does so in an append, or its helper thread for a writer that is idle.
//!
//! Invariants:
//! - The helper rolls only where the gate says that the writer is outside, and leaves the gate closed. So the writer
//!   comes by [`Turn::take`] before it stores again, and goes on where the helper has led.
//! - The gate's limit and the place beside it change only under the lock here, which no append within the limit takes.
//! - If the helper fails, the old segment is as it was, and the gate is open again.
//!
//! A kill leaves what it leaves in the writer's own roll: both are `segment::change_over`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::queue::entry::Entry;
use crate::queue::error::{Error, Result};
use crate::queue::files::control::{Geometry, HeadHint, HeadPublisher};
use crate::queue::files::segment::{self, Segment};
use crate::queue::files::store::Store;
use crate::queue::format::layout::{HEADER_LEN, SEGMENT_SEAL};
use crate::queue::options::Settings;
use crate::queue::os::futex;
use crate::queue::os::mapping::Mapping;
use crate::queue::position::{Position, SegmentId};
use crate::queue::read::scan::Scanner;
use crate::queue::write::gate::{Entered, Gate};
use crate::queue::write::progress::Active;
use crate::sync::{Ordering, fence};

/// A segment whose time is over ends after this long without a message, or after its time if that is shorter: an import
/// of old messages pauses, too.
const QUIET: Duration = Duration::from_secs(10);

/// A segment ready for use.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) segment: Segment,
    pub(crate) map: Arc<Mapping>,
}

/// What writer and helper share.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(in crate::queue) gate: Gate,
    state: Mutex<State>,
}

/// Since when nothing has been appended.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    since: Option<(Entered, Instant)>,
}

impl Quiet {
    pub(super) fn is_long_enough(&mut self, turn: &Turn, settings: &Settings) -> bool {
        let Some(period_ns) = settings.roll_period_ns() else { return false };
        let entered = turn.gate.entered();
        let (before, since) = *self.since.get_or_insert_with(|| (entered, Instant::now()));
        if before != entered {
            self.since = Some((entered, Instant::now()));
        }
        before == entered && since.elapsed() >= QUIET.min(Duration::from_nanos(period_ns))
    }
}

#[derive(Debug, Default)]
struct State {
    /// A head that the writer has reached, and the time at which its segment ends.
    place: Option<(HeadHint, u64)>,
    rolled: Option<(HeadHint, Prepared)>,
}

impl Turn {
    pub(crate) fn new() -> Self {
        Self { gate: Gate::new(), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The segment that the helper has started, with the head at which it sealed the one before. If there is none, it
    /// does not roll before the writer has left `offset`.
    pub(in crate::queue) fn take(&self, offset: u32) -> Option<(HeadHint, Prepared)> {
        let mut state = self.lock();
        self.gate.enter(offset);
        state.rolled.take()
    }

    /// The writer goes on at this head, whose segment ends at `roll_at_ns`.
    pub(in crate::queue) fn open(&self, soft_limit: u32, head: HeadHint, roll_at_ns: u64) {
        let mut state = self.lock();
        state.place = Some((head, roll_at_ns));
        self.gate.enter(head.position.offset);
        self.gate.open(soft_limit);
    }

    /// The writer goes on in another segment, at `offset`: the helper ends none before [`open`](Self::open).
    pub(in crate::queue) fn go_on_at(&self, offset: u32) {
        let mut state = self.lock();
        state.place = None;
        self.gate.enter(offset);
    }

    /// The next append takes the slow path.
    pub(in crate::queue) fn close(&self) {
        let _state = self.lock();
        self.gate.close();
    }

    /// Whether the time of this segment is over.
    pub(in crate::queue) fn is_over(&self, id: SegmentId, now_ns: u64) -> bool {
        let state = self.lock();
        let is_over = |&(head, roll_at_ns): &(HeadHint, u64)| head.position.segment == id && now_ns >= roll_at_ns;
        state.rolled.is_none() && state.place.as_ref().is_some_and(is_over)
    }

    /// Seals the active segment for a writer that is outside, and starts the next one, which is returned if it can't.
    pub(in crate::queue) fn roll(
        &self,
        store: &Arc<Store>,
        (control, geometry): (&Mapping, &Geometry),
        active: &Active,
        next: Prepared,
    ) -> Result<Option<Prepared>> {
        let mut state = self.lock();
        let Some((from, _)) = state.place.filter(|(head, _)| head.position.segment == active.id) else {
            return Ok(Some(next));
        };
        let Some(soft_limit) = self.gate.close() else { return Ok(Some(next)) };
        let sealed = self.head(store, from).and_then(|head| {
            let Some(head) = head.filter(|head| is_left_at(active, head)) else { return Ok(None) };
            change_over(geometry, active, &head, &next).map(|()| Some(head))
        });
        match sealed {
            Ok(Some(head)) => {
                // The writer, which publishes as well, has to take what is here first.
                let position = Position { segment: next.segment.id, offset: next.segment.context.records_start() };
                HeadPublisher::new(control).publish(control, HeadHint { position, ..head });
                state.rolled = Some((head, next));
                Ok(None)
            }
            // Nothing has changed.
            Ok(None) => {
                self.gate.open(soft_limit);
                Ok(Some(next))
            }
            Err(error) => {
                self.gate.open(soft_limit);
                Err(error)
            }
        }
    }

    /// The head of the closed gate's writer; None if it may be inside, or something is wrong with its segment.
    fn head(&self, store: &Arc<Store>, from: HeadHint) -> Result<Option<HeadHint>> {
        // Without membarrier the writer can't be reached. It reaches only those that have joined.
        if futex::join_barriers().and_then(|()| futex::barrier_everywhere()).is_err() {
            return Ok(None);
        }
        let mut scanner = Scanner::at(Arc::clone(store), from.position, from.next_seq);
        let (mut last, mut last_timestamp_ns) = (None, from.last_timestamp_ns);
        let mut start = from.position;
        while let Some(entry) = scanner.next()? {
            match entry {
                Entry::Message(message) => last_timestamp_ns = message.timestamp_ns,
                Entry::Gap(gap) if gap.reason.is_jump() => {}
                Entry::Gap(_) => return Ok(None),
            }
            last = Some(start.offset);
            start = scanner.position();
        }
        // What the writer stored before the commit words that have been read comes before what is stored from here on.
        fence(Ordering::Acquire);
        let Position { segment, offset } = scanner.position();
        let is_outside = segment == from.position.segment && self.gate.is_outside(last, offset);
        let head = HeadHint { position: scanner.position(), next_seq: scanner.seq(), last_timestamp_ns };
        Ok(is_outside.then_some(head))
    }
}

/// Whether the segment has messages, and has lost none of them.
fn is_left_at(active: &Active, head: &HeadHint) -> bool {
    head.position.offset > active.context.records_start() && !active.map.is_lost()
}

fn change_over(geometry: &Geometry, active: &Active, head: &HeadHint, next: &Prepared) -> Result<()> {
    let Prepared { segment, map } = next;
    for offset in [SEGMENT_SEAL, head.position.offset] {
        let populated = active.map.populate(offset, HEADER_LEN as usize);
        populated.map_err(Error::io(&segment.path, "reserve space for the end of the segment before it"))?;
    }
    if !segment::change_over(geometry, (&active.map, &active.context), head, (segment, map)) {
        return Err(map.loss(&segment.file, &segment.path, "what follows is appended to the segment before it"));
    }
    Ok(())
}
