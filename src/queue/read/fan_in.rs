//! Fan-in: many queues read as one, in the order of their timestamps.
//!
//! Entries are ordered by (timestamp, order of adding, sequence number); each source keeps its own order. The order is
//! the same in every run over the same messages. A source that has nothing now may still get a message that belongs
//! before the ones that are ready, so a message is held back until every idle source has been checked after the
//! message's timestamp plus a bound; a message with a timestamp in the future waits no longer than the bound either.
//! Cost per message: O(log n).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::clock;
use crate::queue::entry::{Due, Entry, Gap, Message};
use crate::queue::error::Result;
use crate::queue::read::registered::QueueReader;
use crate::queue::read::stats::ReaderStats;
use crate::queue::wait::stop::{self, Stopper};
use crate::queue::wait::wake::{WaitTicket, Waiter, wait_any_or_stop};

/// A source of a [`FanInReader`]. Sources are ordered by when they were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(u64);

/// What a [`FanInReader`] returns.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct FanInEntry<'a> {
    /// The source that it comes from.
    pub source: SourceId,
    /// The name under which the source was added.
    pub name: &'a str,
    /// The message or gap. A gap has no timestamp and is returned as soon as it is found.
    pub entry: Entry<'a>,
}

/// Merges any number of queues by timestamp.
///
/// ```
/// # use chronfs::queue::{FanInReader, Queue, Settings};
/// # let dir = tempfile::tempdir()?;
/// # let (a, b) = (dir.path().join("a"), dir.path().join("b"));
/// let mut merged = FanInReader::new();
/// for (path, stamps) in [(a, [10, 30]), (b, [20, 40])] {
///     let queue = Queue::create(&path, &Settings::default())?;
///     let mut writer = queue.writer()?;
///     for stamp in stamps {
///         writer.append_at(stamp, 1, b"hello")?;
///     }
///     merged.add(path.display().to_string(), queue.reader("merge")?)?;
/// }
/// let mut stamps = Vec::new();
/// while let Some(next) = merged.next()? {
///     stamps.extend(next.entry.message().map(|message| message.timestamp_ns));
/// }
/// assert_eq!(stamps, [10, 20, 30, 40]);
/// merged.commit_all();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FanInReader {
    sources: BTreeMap<SourceId, Source>,
    next_id: u64,
    /// The next entry of each source that has one.
    ready: BinaryHeap<Reverse<Key>>,
    /// The sources that had none when last checked.
    idle: Vec<SourceId>,
    /// The source whose entry was returned last: it has not been checked since.
    current: Option<SourceId>,
    hold_back: Duration,
    /// When all idle sources were last checked, ns since the epoch.
    looked_ns: u64,
    /// Since when the first entry has been held back.
    held: Option<(Key, Instant)>,
    stopper: Option<Stopper>,
}

#[derive(Debug)]
struct Source {
    name: String,
    reader: QueueReader,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    timestamp_ns: u64,
    source: SourceId,
    seq: u64,
}

/// The default time that a message is held back for idle sources.
const HOLD_BACK: Duration = Duration::from_millis(1);

impl Default for FanInReader {
    fn default() -> Self {
        Self::new()
    }
}

impl FanInReader {
    /// A merge without sources; idle sources hold back the others for at most a millisecond.
    pub fn new() -> Self {
        Self::with_hold_back(HOLD_BACK)
    }

    /// A merge without sources. `hold_back`: how long a message waits for sources that have nothing. Zero returns
    /// messages at once; messages that a slow writer stamps before others and commits after them then come late.
    pub fn with_hold_back(hold_back: Duration) -> Self {
        let (sources, ready, idle) = (BTreeMap::new(), BinaryHeap::new(), Vec::new());
        Self { sources, next_id: 0, ready, idle, current: None, hold_back, looked_ns: 0, held: None, stopper: None }
    }

    /// Adds a source, which is read from the reader's position.
    ///
    /// # Errors
    /// As [`QueueReader::next`].
    pub fn add(&mut self, name: impl Into<String>, reader: QueueReader) -> Result<SourceId> {
        let id = SourceId(self.next_id);
        self.next_id += 1;
        self.sources.insert(id, Source { name: name.into(), reader });
        self.look_at(id)?;
        Ok(id)
    }

    /// Removes a source and returns its reader.
    pub fn remove(&mut self, source: SourceId) -> Option<QueueReader> {
        self.ready.retain(|Reverse(key)| key.source != source);
        self.idle.retain(|&id| id != source);
        self.current = self.current.filter(|&id| id != source);
        self.sources.remove(&source).map(|source| source.reader)
    }

    /// The sources, with the names under which they were added.
    pub fn sources(&self) -> impl Iterator<Item = (SourceId, &str)> {
        self.sources.iter().map(|(&id, source)| (id, source.name.as_str()))
    }

    /// The next message or gap of all sources; None if there is none that may be returned yet.
    ///
    /// # Errors
    /// As [`QueueReader::next`], from whichever source.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<FanInEntry<'_>>> {
        if !self.is_ready()? {
            return Ok(None);
        }
        let Some(Reverse(key)) = self.ready.pop() else { return Ok(None) };
        (self.current, self.held) = (Some(key.source), None);
        let Some(source) = self.sources.get_mut(&key.source) else { return Ok(None) };
        let entry = source.reader.next()?;
        Ok(entry.map(|entry| FanInEntry { source: key.source, name: &source.name, entry }))
    }

    /// The next message of all sources and the source that it comes from; None if there is none that may be returned
    /// yet. Calls `on_gap` for each gap before it.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn next_message(&mut self, mut on_gap: impl FnMut(SourceId, Gap)) -> Result<Option<(SourceId, Message<'_>)>> {
        while self.is_ready()? {
            let Some(&Reverse(Key { source: id, .. })) = self.ready.peek() else { break };
            // A gap is passed here: a borrowed message can't be returned from within a loop yet.
            match self.sources.get_mut(&id).and_then(|source| source.reader.take_gap()) {
                Some(gap) => {
                    self.ready.pop();
                    (self.current, self.held) = (Some(id), None);
                    on_gap(id, gap);
                }
                None => break,
            }
        }
        match self.next()? {
            Some(FanInEntry { source, entry: Entry::Message(message), .. }) => Ok(Some((source, message))),
            Some(FanInEntry { source, entry: Entry::Gap(gap), .. }) => {
                on_gap(source, gap);
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// Calls `on_entry` for the next messages and gaps: at most `limit` of them, until there is none that may be
    /// returned yet, or until it returns [`ControlFlow::Break`]. Returns for how many it was called; all of these count
    /// as returned.
    ///
    /// # Errors
    /// As [`next`](Self::next). The entries before it have been passed to `on_entry`.
    pub fn poll(&mut self, limit: usize, mut on_entry: impl FnMut(FanInEntry<'_>) -> ControlFlow<()>) -> Result<usize> {
        for count in 0..limit {
            match self.next()? {
                None => return Ok(count),
                Some(entry) if on_entry(entry).is_break() => return Ok(count + 1),
                Some(_) => {}
            }
        }
        Ok(limit)
    }

    /// What one source's reader has counted since it was opened.
    pub fn stats(&self, source: SourceId) -> Option<ReaderStats> {
        self.sources.get(&source).map(|source| source.reader.stats())
    }

    /// A handle that ends its waits, as that of a [`Reader`](crate::queue::Reader) does.
    pub fn stopper(&mut self) -> Stopper {
        self.stopper.get_or_insert_default().clone()
    }

    /// From now on, this stopper ends its waits, instead of the one before.
    pub fn set_stopper(&mut self, stopper: &Stopper) {
        self.stopper = Some(stopper.clone());
    }

    /// Consumes what has been returned of one source.
    pub fn commit(&mut self, source: SourceId) {
        if let Some(source) = self.sources.get_mut(&source) {
            source.reader.commit();
        }
    }

    /// Consumes everything that has been returned.
    pub fn commit_all(&mut self) {
        self.sources.values_mut().for_each(|source| source.reader.commit());
    }

    /// Waits until [`next`](Self::next) has something, or for `timeout` (None: for ever). False if it has nothing.
    ///
    /// # Errors
    /// [`Error::Stopped`](crate::queue::Error::Stopped) once its [`stopper`](Self::stopper) has been used; otherwise as
    /// [`next`](Self::next).
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        let start = Instant::now();
        loop {
            stop::check(self.stopper.as_ref(), Path::new("the merged queues"))?;
            if self.is_ready()? {
                return Ok(true);
            }
            let tickets = self.prepare();
            if self.is_ready()? {
                return Ok(true);
            }
            let left = timeout.map_or(Duration::MAX, |timeout| timeout.saturating_sub(start.elapsed()));
            if left.is_zero() {
                return Ok(false);
            }
            // What is held back becomes due without a wake.
            let left = if self.ready.is_empty() { left } else { left.min(self.hold_back) };
            let waits = self.still_idle(&tickets);
            if waits.is_empty() {
                stop::sleep(self.stopper.as_ref(), left.min(Duration::from_millis(10)));
            } else {
                wait_any_or_stop(&waits, left, self.stopper.as_ref());
            }
        }
    }

    /// Announces a sleeper to each idle source.
    fn prepare(&self) -> BTreeMap<SourceId, WaitTicket> {
        let idle = self.idle.iter().filter_map(|id| Some((*id, self.sources.get(id)?.reader.waiter().prepare())));
        idle.collect()
    }

    /// What to sleep on: some sources may have got something since their tickets.
    fn still_idle(&self, tickets: &BTreeMap<SourceId, WaitTicket>) -> Vec<(&Waiter, WaitTicket)> {
        let wait = |id| Some((self.sources.get(id)?.reader.waiter(), *tickets.get(id)?));
        self.idle.iter().filter_map(wait).collect()
    }

    /// Whether the first ready entry may be returned.
    fn is_ready(&mut self) -> Result<bool> {
        if let Some(id) = self.current.take() {
            self.look_at(id)?;
        }
        if self.is_settled() {
            return Ok(true);
        }
        self.look_at_idle()?;
        Ok(self.is_settled())
    }

    /// Whether nothing can come before the first ready entry any more, or it has been held back long enough.
    fn is_settled(&mut self) -> bool {
        let Some(&Reverse(first)) = self.ready.peek() else { return false };
        let bound_ns = u64::try_from(self.hold_back.as_nanos()).unwrap_or(u64::MAX);
        if self.idle.is_empty() || first.timestamp_ns.saturating_add(bound_ns) <= self.looked_ns {
            return true;
        }
        match self.held {
            Some((held, since)) if held == first => since.elapsed() >= self.hold_back,
            _ => {
                self.held = Some((first, Instant::now()));
                self.hold_back.is_zero()
            }
        }
    }

    fn look_at_idle(&mut self) -> Result<()> {
        let now_ns = clock::now_ns();
        let idle = std::mem::take(&mut self.idle);
        // Each, even if one fails: that stays among the idle ones.
        let results: Vec<_> = idle.into_iter().map(|id| self.look_at(id)).filter(Result::is_err).collect();
        results.into_iter().collect::<Result<()>>()?;
        self.looked_ns = now_ns;
        Ok(())
    }

    /// Moves a source to the ready or to the idle ones.
    fn look_at(&mut self, id: SourceId) -> Result<()> {
        let Some(source) = self.sources.get_mut(&id) else { return Ok(()) };
        match source.reader.peek_next() {
            Ok(Some(Due { timestamp_ns, seq })) => self.ready.push(Reverse(Key { timestamp_ns, source: id, seq })),
            Ok(None) => self.idle.push(id),
            Err(error) => {
                self.idle.push(id);
                return Err(error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::wait::wake::wait_any;
    use crate::queue::{Queue, Settings};

    #[test]
    fn a_source_that_gets_something_before_the_sleep_changes_nobody_elses_ticket() {
        let dir = tempfile::tempdir().unwrap();
        let mut merged = FanInReader::new();
        let mut writers = ["a", "b"].map(|name| {
            let queue = Queue::create(dir.path().join(name), &Settings::default()).unwrap();
            merged.add(name, queue.reader("merge").unwrap()).unwrap();
            queue.writer().unwrap()
        });
        // The first one's wakes differ in number from the second one's.
        for _ in 0..3 {
            merged.prepare();
            writers[0].append(1, b"a").unwrap();
            while merged.wait(Some(Duration::ZERO)).unwrap() {
                merged.next().unwrap();
            }
        }
        let tickets = merged.prepare();
        writers[0].append(1, b"a").unwrap();
        merged.is_ready().unwrap();
        let waits = merged.still_idle(&tickets);
        assert_eq!(waits.len(), 1);
        assert!(!wait_any(&waits, Duration::from_millis(1)), "nothing has come to it");
        writers[1].append(1, b"b").unwrap();
        assert!(wait_any(&waits, Duration::from_secs(20)));
    }
}
