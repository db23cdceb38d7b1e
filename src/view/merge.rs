//! Several queues as one stream, by time: what `.merged/` shows.
//!
//! Entries come in the order of (timestamp, place of the queue in the list, sequence number), as far as they exist: of
//! two queues that both have entries, the older message comes first; a live stream does not wait for a queue that has
//! none. A gap has the time of the message before it.
//!
//! Memory: a scanner and a small unit per queue. A large unit is rendered when its turn comes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::stream::{KEEP, KEEP_AHEAD};
use super::{Format, render};
use crate::queue::{Entry, Gap, GapReason, Position, Result, Scanner};

/// Bytes read ahead of all queues together.
const AHEAD: usize = 64 << 20;
/// Bytes for each queue in addition.
const FOR_EACH: usize = 512;

/// A queue in the merge.
#[derive(Debug)]
struct Source {
    name: String,
    scanner: Scanner,
    /// It ends before this message.
    end_seq: Option<u64>,
    /// Its next entry: rendered, or a gap that the format does not show.
    unit: Vec<u8>,
    gap: Option<Gap>,
    timestamp_ns: u64,
    /// Where that one starts.
    from: (Position, u64),
    /// Whether it is too large to be kept until its turn.
    is_left: bool,
}

/// Queues merged by timestamp, in one format, as a stream of whole units.
///
/// ```
/// use chronfs::queue::{Queue, Settings};
/// use chronfs::view::{Format, Merge};
///
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
/// queue.writer()?.append(1, b"hello")?;
/// let mut text = Vec::new();
/// let mut merge = Merge::new(Format::Txt);
/// merge.add("q", queue.scan()?, None);
/// merge.read(1 << 20, &mut text)?;
/// assert!(text.ends_with(b"hello\n"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Merge {
    format: Format,
    sources: Vec<Source>,
    /// Sources with an entry, the oldest on top: (timestamp, source).
    ready: BinaryHeap<Reverse<(u64, usize)>>,
    /// Sources without one, to be polled again.
    waiting: Vec<usize>,
    /// What did not fit, or the rest of it.
    rest: Vec<u8>,
    given: usize,
    /// The queue that it belongs to.
    rest_of: usize,
}

impl Merge {
    /// A merge without queues.
    pub fn new(format: Format) -> Merge {
        let (sources, ready, waiting) = (Vec::new(), BinaryHeap::new(), Vec::new());
        Merge { format, sources, ready, waiting, rest: Vec::new(), given: 0, rest_of: 0 }
    }

    /// Adds a queue under a name (its path, for jsonl), from the scanner's position to before message `end_seq`, or
    /// without end. At equal times, queues added earlier come first.
    pub fn add(&mut self, name: &str, scanner: Scanner, end_seq: Option<u64>) {
        self.waiting.push(self.sources.len());
        let (name, from) = (name.to_owned(), (scanner.position(), scanner.seq()));
        let (unit, gap, timestamp_ns, is_left) = (Vec::new(), None, 0, false);
        self.sources.push(Source { name, scanner, end_seq, unit, gap, timestamp_ns, from, is_left });
    }

    /// Appends as many whole units as fit into `max` bytes to `out` (one larger than `max` comes in several reads);
    /// nothing if there is nothing now. A gap that the format does not show is returned instead, as by
    /// [`Stream::read`](super::Stream::read).
    ///
    /// # Errors
    /// I/O errors.
    pub fn read(&mut self, max: usize, out: &mut Vec<u8>) -> Result<Option<Gap>> {
        let mut room = max;
        loop {
            let rest = &self.rest[self.given..];
            if !rest.is_empty() {
                if room == 0 || rest.len() > room && room < max {
                    return Ok(None);
                }
                let taken = rest.len().min(room);
                out.extend_from_slice(&rest[..taken]);
                self.given += taken;
                room -= taken;
                continue;
            }
            self.forget_rest();
            if !self.ready()? {
                return Ok(None);
            }
            let Some(Reverse((_, index))) = self.ready.peek().copied() else { return Ok(None) };
            let source = &mut self.sources[index];
            if source.gap.is_some() && room < max {
                return Ok(None);
            }
            self.ready.pop();
            self.waiting.push(index);
            if let Some(gap) = source.gap.take() {
                return Ok(Some(gap));
            }
            self.rest_of = index;
            std::mem::swap(&mut self.rest, &mut source.unit);
        }
    }

    fn forget_rest(&mut self) {
        self.given = 0;
        self.rest.clear();
        self.rest.shrink_to(KEEP);
    }

    /// Bytes of memory that it holds.
    pub(crate) fn kept(&self) -> usize {
        let of_each = |source: &Source| FOR_EACH + source.unit.capacity() + source.scanner.kept();
        self.rest.capacity() + self.sources.iter().map(of_each).sum::<usize>()
    }

    /// Frees what it can: a large unit that has not been started is rendered again later.
    pub(crate) fn put_back(&mut self) {
        if self.given == 0
            && !self.rest.is_empty()
            && let Some(source) = self.sources.get_mut(self.rest_of)
        {
            source.scanner.go_to(source.from.0, source.from.1);
            self.rest = Vec::new();
        }
        for source in &mut self.sources {
            if source.unit.len() > KEEP {
                source.leave();
            }
            source.scanner.trim(0);
        }
    }

    /// Whether the next read will return something.
    ///
    /// # Errors
    /// I/O errors.
    pub fn ready(&mut self) -> Result<bool> {
        if self.given < self.rest.len() {
            return Ok(true);
        }
        let ahead = AHEAD / self.sources.len().max(1);
        let mut waiting = std::mem::take(&mut self.waiting);
        let mut failure = None;
        waiting.retain(|&index| {
            let source = &mut self.sources[index];
            source.scanner.read_ahead_at_most(ahead);
            match source.load(self.format, KEEP) {
                Ok(Loaded::Entry) => {
                    self.ready.push(Reverse((source.timestamp_ns, index)));
                    false
                }
                Ok(Loaded::Nothing) => true,
                Ok(Loaded::Ended) => false,
                Err(error) => {
                    failure = Some(error);
                    true
                }
            }
        });
        self.waiting = waiting;
        match (self.ready.peek(), failure) {
            (Some(Reverse((_, first))), _) => {
                let source = &mut self.sources[*first];
                if source.is_left {
                    source.load(self.format, usize::MAX)?;
                }
                Ok(true)
            }
            (None, Some(error)) => Err(error),
            (None, None) => Ok(false),
        }
    }
}

enum Loaded {
    Entry,
    Nothing,
    Ended,
}

impl Source {
    /// Leaves a message where it is until its turn.
    fn leave(&mut self) {
        self.unit = Vec::new();
        self.is_left = true;
        self.scanner.go_to(self.from.0, self.from.1);
        self.scanner.trim(0);
    }

    /// Loads the next entry; a message of more than `most` bytes is left where it is.
    fn load(&mut self, format: Format, most: usize) -> Result<Loaded> {
        self.unit.clear();
        self.is_left = false;
        loop {
            self.from = (self.scanner.position(), self.scanner.seq());
            if self.end_seq.is_some_and(|end_seq| self.scanner.seq() >= end_seq) {
                return Ok(Loaded::Ended);
            }
            let Some(entry) = self.scanner.next()? else { return Ok(Loaded::Nothing) };
            match entry {
                Entry::Gap(gap) if format == Format::Bin || gap.reason == GapReason::Retired => {
                    self.gap = Some(gap);
                    return Ok(Loaded::Entry);
                }
                Entry::Gap(_) => {}
                Entry::Message(message) => {
                    self.timestamp_ns = message.timestamp_ns;
                    self.is_left = message.payload.len() > most;
                }
            }
            if self.is_left {
                self.leave();
                return Ok(Loaded::Entry);
            }
            render(format, &entry, Some(&self.name), &mut self.unit);
            self.scanner.trim(KEEP_AHEAD);
            // An empty payload in bin is nothing.
            if !self.unit.is_empty() {
                return Ok(Loaded::Entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Queue, Settings};

    fn all(merge: &mut Merge, max: usize) -> String {
        let mut out = Vec::new();
        loop {
            let before = out.len();
            assert_eq!(merge.read(max, &mut out).unwrap(), None);
            assert!(out.len() - before <= max);
            if out.len() == before {
                return String::from_utf8(out).unwrap();
            }
        }
    }

    #[test]
    fn entries_come_by_time_then_queue_then_number() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { segment_size: 65536, ..Settings::default() };
        let queues: Vec<_> =
            ["a", "b"].map(|name| Queue::create(dir.path().join(name), &settings).unwrap()).into_iter().collect();
        let mut writers: Vec<_> = queues.iter().map(|queue| queue.writer().unwrap()).collect();
        for (queue, time, text) in [(0, 10, "a1"), (1, 5, "b1"), (1, 10, "b2"), (0, 10, "a2"), (1, 30, "b3")] {
            writers[queue].append_at(time, 1, text.as_bytes()).unwrap();
        }
        for max in [1, 2, 4, 100] {
            let mut merge = Merge::new(Format::Txt);
            for (queue, name) in queues.iter().zip(["a", "b"]) {
                merge.add(name, queue.scan().unwrap(), None);
            }
            assert_eq!(all(&mut merge, max), "b1\na1\na2\nb2\nb3\n", "{max}");
        }
        let mut merge = Merge::new(Format::Jsonl);
        merge.add("x/b", queues[1].scan().unwrap(), Some(2));
        let line = all(&mut merge, 1000);
        assert!(line.starts_with("{\"seq\":1,\"queue\":\"x/b\",\"timestamp_ns\":5,"), "{line}");
        assert_eq!(line.lines().count(), 1, "it ends before message 2");
        let mut live = Merge::new(Format::Txt);
        live.add("a", queues[0].scan().unwrap(), None);
        assert_eq!(all(&mut live, 100), "a1\na2\n");
        assert!(!live.ready().unwrap());
        writers[0].append_at(40, 1, b"a3").unwrap();
        assert_eq!(all(&mut live, 100), "a3\n");
    }
}
