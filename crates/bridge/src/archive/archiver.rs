//! From a queue to its archive.
//!
//! ```text
//! a segment is sealed -> verify, sync, pack -> is it there? -> put -> is anybody else here? -> put its index -> commit
//! ```
//!
//! Each step may be the last one: whoever comes next finds in the listing what is there, compares it and goes on. The
//! reader is committed last, so that the queue keeps the segment until then.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use chronfs::queue::{Entry, FinishedSegment, GapReason, Queue, QueueReader, SegmentId};

use super::name::SegmentName;
use super::segment::{Prepared, prepare};
use super::shelf::{Held, Shelf};
use super::store::{Access, Address, Store};
use crate::failure::back_off;
use crate::fleet::Job;
use crate::state::{ARCHIVE, Condition, Lag, Monitor, State, Stop};
use crate::{Failure, Result};

/// How often the queue is looked at for sealed segments.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How a queue is archived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveOptions {
    /// The archiver's name, by which the queue knows it: that of its reader.
    pub name: String,
    /// Where to.
    pub target: Address,
    /// How to get in there.
    pub access: Access,
    /// How hard to compress: 1 to 19.
    pub level: i32,
    /// Archive what is sealed, then end.
    pub once: bool,
    /// Archive damaged segments, too, as they are.
    pub damaged: bool,
}

/// The archiver of one queue.
pub struct Archiver {
    queue: Queue,
    options: ArchiveOptions,
    stop: Stop,
    state: Rc<State>,
    /// Committed after what is archived; pins.
    reader: QueueReader,
    /// The last segment that is archived.
    done: Option<SegmentId>,
}

impl Archiver {
    /// Opens the queue and takes the archiver's reader.
    ///
    /// # Errors
    /// If the queue can't be opened, or another archiver of that name is at work.
    pub fn open(path: &Path, options: ArchiveOptions, stop: Stop) -> Result<Self> {
        let queue = Queue::open(path)?;
        let reader = queue.reader(&options.name)?;
        let state = State::shared(path, &options.name, ARCHIVE, &options.target.to_string());
        let (origin, seq) = (format!("{:016x}", queue.id()), reader.seq().saturating_sub(1));
        state.change(|report| (report.origin, report.pair.seq) = (origin, seq));
        Ok(Self { queue, options, stop, state, reader, done: None })
    }

    /// Works from one look at the store until something unexpected happens. Ok: it was told to stop, or all is done.
    async fn session(&mut self) -> Result<()> {
        let store = Store::open(&self.options.target, &self.options.access)?;
        let shelf = Shelf::new(&store, self.queue.id());
        loop {
            let due = self.due()?;
            for (index, segment) in due.iter().enumerate() {
                if self.state.is_due() {
                    self.note_lag(&due[index..])?;
                }
                self.pass_what_is_missing(segment.first_seq)?;
                if self.state.pair().stream_seq > 0 && store.lacks(&shelf.dir).await {
                    return Err(Failure::Again(format!(
                        "{}: that directory has been archived to, and is gone: is it mounted? If it was deleted, create it",
                        shelf.shown("")
                    )));
                }
                self.archive(&shelf, segment).await?;
                self.done = Some(segment.id);
            }
            if !due.is_empty() || self.state.is_due() {
                self.note_lag(&[])?;
            }
            if due.is_empty() && self.options.once {
                return Ok(());
            }
            self.state.set(Condition::Running, None);
            if due.is_empty() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }

    /// What can be archived now.
    fn due(&self) -> Result<Vec<FinishedSegment>> {
        let mut due = self.queue.finished_segments(self.reader.seq())?;
        due.retain(|segment| self.done.is_none_or(|done| segment.id > done));
        Ok(due)
    }

    /// Goes on to the start of the next segment, if messages before it are in none.
    fn pass_what_is_missing(&mut self, first_seq: u64) -> Result<()> {
        let from = self.reader.seq();
        if from >= first_seq {
            return Ok(());
        }
        let to = first_seq - 1;
        let reason = match self.reader.next()? {
            Some(Entry::Gap(gap)) => gap.reason,
            _ => GapReason::Segment,
        };
        let reason_text = reason.as_str();
        if matches!(reason, GapReason::Segment | GapReason::Checksum) && !self.options.damaged {
            return Err(Failure::Refused(format!(
                "messages {from} to {to} are in no segment that can be read ({reason_text}): see chron-cli doctor; \
                 --damaged goes on without them"
            )));
        }
        self.state
            .say(&format!("messages {from} to {to} are not archived: the queue does not have them ({reason_text})"));
        self.state.count(|counts| counts.gaps += 1);
        self.commit(first_seq)
    }

    /// Archives one segment, whatever of it is there already.
    async fn archive(&mut self, shelf: &Shelf<'_>, segment: &FinishedSegment) -> Result<()> {
        let Prepared { name, packed, index, damage } = match self.prepare(segment).await {
            Err(Failure::Refused(what)) if self.options.damaged => {
                self.state.say(&format!("{what}: it is left out"));
                return self.commit(segment.next_seq);
            }
            prepared => prepared?,
        };
        if let Some(damage) = damage {
            if !self.options.damaged {
                return Err(Failure::Refused(format!("{damage}: it is not archived; --damaged archives it as it is")));
            }
            self.state.say(&format!("{damage}: it is archived as it is"));
        }
        self.state.progressed();
        let contents = packed.contents().map_err(Failure::Refused)?;
        let object = name.object();
        let is_new = held(shelf, &name).await?.is_none()
            && shelf.store.create(&shelf.path(&object), Bytes::from(packed.frame)).await?;
        self.state.progressed();
        // After the put: of two copies of a queue that archive at the same moment, at least one sees the other.
        let held = held(shelf, &name).await?;
        let held = held.ok_or_else(|| Failure::Again(format!("{} is not listed", shelf.shown(&object))))?;
        if !is_new && shelf.contents(&held).await? != contents {
            return Err(shelf.bad(&object, "it differs from the queue's segment; chron-archive verify tells more"));
        }
        if let Some(index) = index.filter(|_| held.index.is_none()) {
            shelf.store.create(&shelf.path(&name.index()), Bytes::from(index)).await?;
        }
        self.commit(segment.next_seq)?;
        self.state.change(|report| report.pair.stream_seq = report.pair.seq);
        self.state.count(|counts| {
            counts.messages += name.next_seq - name.first_seq;
            counts.bytes += contents.bytes;
            counts.skipped += u64::from(!is_new);
        });
        Ok(())
    }

    /// On a thread of its own: it takes its time, and others want to be served.
    async fn prepare(&self, segment: &FinishedSegment) -> Result<Prepared> {
        let (queue, segment, level) = (self.queue.clone(), segment.clone(), self.options.level);
        let prepared = tokio::task::spawn_blocking(move || prepare(&queue, &segment, level));
        prepared.await.map_err(|error| Failure::Again(error.to_string()))?
    }

    /// The queue may remove what is before this number. On disk before this returns.
    fn commit(&mut self, next_seq: u64) -> Result<()> {
        // After the last message that is archived: to go to the one that follows would pass over damage there.
        self.reader.seek_seq(next_seq.saturating_sub(1))?;
        if self.reader.seq() < next_seq {
            self.reader.next()?;
        }
        if self.reader.seq() != next_seq {
            self.reader.seek_seq(next_seq)?;
        }
        self.reader.commit_sync()?;
        self.state.change(|report| report.pair.seq = next_seq.saturating_sub(1));
        self.state.progressed();
        Ok(())
    }

    /// What could be archived is the lag: the messages of the segment that takes messages are none of it.
    fn note_lag(&mut self, due: &[FinishedSegment]) -> Result<()> {
        self.reader.keep_alive()?;
        let len = |segment: &FinishedSegment| std::fs::metadata(&segment.path).map_or(0, |metadata| metadata.len());
        let oldest = due.first().and_then(last_timestamp_ns);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let age = oldest.map_or(Duration::ZERO, |ns| now.saturating_sub(Duration::from_nanos(ns)));
        let lag = Lag {
            messages: due.iter().map(|segment| segment.next_seq - segment.first_seq).sum(),
            bytes: due.iter().map(len).sum(),
            seconds: age.as_secs_f64(),
        };
        self.state.lags_behind(&self.queue, lag);
        Ok(())
    }
}

impl Job for Archiver {
    const PROGRAM: &'static str = "chron-archive";

    fn monitor(&self) -> Monitor {
        Monitor(Rc::clone(&self.state))
    }

    async fn run(mut self) -> Result<()> {
        let mut failures = 0_u32;
        loop {
            let before = self.reader.seq();
            let stop = self.stop.clone();
            // A segment on its way is let go: its object appears whole or not at all, and the next archiver looks.
            let ended = tokio::select! {
                ended = self.session() => ended,
                () = stop.wait() => Ok(()),
            };
            let Err(failure) = ended else {
                self.state.set(Condition::Stopped, None);
                return Ok(());
            };
            if !failure.is_temporary() || self.options.once {
                let condition = if failure.is_temporary() { Condition::Failed } else { Condition::Refused };
                self.state.set(condition, Some(failure.to_string()));
                return Err(failure);
            }
            failures = if self.reader.seq() == before { failures.saturating_add(1) } else { 0 };
            self.state.count(|counts| counts.retries += 1);
            if self.state.is_due() {
                self.note_lag(&self.due()?)?;
            }
            self.state.set(Condition::Waiting, Some(failure.to_string()));
            self.stop.sleep(back_off(failures)).await;
        }
    }
}

/// A segment as it is listed, if it is there.
///
/// # Errors
/// If something is there that can't be of the same queue.
async fn held(shelf: &Shelf<'_>, name: &SegmentName) -> Result<Option<Held>> {
    let listing = shelf.list_from(name.first_seq).await?;
    if let Some(other) = listing.held.iter().find(|held| held.name.contradicts(name)) {
        return Err(shelf.bad(
            &other.name.object(),
            &format!(
                "it is from another copy of this queue, which has gone on separately: this one has {}. Decide which one \
                 is right; the other one can be archived to another address",
                name.object()
            ),
        ));
    }
    Ok(listing.held.into_iter().find(|held| held.name == *name))
}

/// The timestamp of a segment's newest message.
fn last_timestamp_ns(segment: &FinishedSegment) -> Option<u64> {
    super::segment::blocks_of(&segment.path).ok()??.end.map(|(_, timestamp_ns)| timestamp_ns)
}
