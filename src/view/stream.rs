//! A queue in one format as a stream of whole units, for follow.* and `chron-cli tail`.
//!
//! Invariant: what the reads append, put together, is what [`render`](super::render) makes of one entry after the other; a read
//! ends within a unit only if that unit alone is larger than the read.

use super::{Format, Rendering};
use crate::queue::{Entry, Gap, GapReason, Position, Result, Scanner};

/// Buffer kept for the next unit, in bytes; more is freed.
pub(super) const KEEP: usize = 64 << 10;
/// Buffer kept in a scanner while units are read.
pub(super) const KEEP_AHEAD: usize = 1 << 20;

/// A queue in one format, as a stream of whole units.
///
/// ```
/// use chronfs::queue::{Queue, Settings};
/// use chronfs::view::{Format, Stream};
///
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
/// queue.writer()?.append(1, b"hello")?;
/// let mut text = Vec::new();
/// Stream::new(queue.scan()?, Format::Txt).read(1 << 20, &mut text)?;
/// assert!(text.ends_with(b"hello\n"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Stream {
    scanner: Scanner,
    rendering: Rendering,
    /// A unit that did not fit, or the rest of one.
    waiting: Vec<u8>,
    /// How much of `waiting` has been returned.
    given: usize,
    /// A gap to be reported before anything else.
    gap: Option<Gap>,
    /// The position of the waiting unit.
    from: (Position, u64),
}

impl Stream {
    /// Streams what `scanner` returns from its position on.
    pub fn new(scanner: Scanner, rendering: impl Into<Rendering>) -> Stream {
        let from = (scanner.position(), scanner.seq());
        let rendering = rendering.into();
        Stream { scanner, rendering, waiting: Vec::new(), given: 0, gap: None, from }
    }

    /// With a gap to be reported before anything else.
    #[cfg(feature = "mount")]
    pub(crate) fn after(self, gap: Option<Gap>) -> Stream {
        Stream { gap, ..self }
    }

    /// Appends to `out` as many whole units as fit into `max` bytes (a unit larger than `max` comes in several
    /// reads). Appends nothing if there is nothing now.
    ///
    /// A gap that the format does not show is returned instead, before anything after it, and nothing is appended
    /// by that read; the next one goes on after the gap. In bin these are all gaps. In every format they are
    /// those that retention has left ([`GapReason::Retired`]): the stream has been overtaken, and goes on at the
    /// oldest retained message. To show it as a line, [`render`](super::render) it.
    ///
    /// # Errors
    /// I/O errors. What was read before stays in `out` and counts as returned.
    pub fn read(&mut self, max: usize, out: &mut Vec<u8>) -> Result<Option<Gap>> {
        let mut room = max;
        while self.load()? {
            if let Some(gap) = self.gap.take_if(|_| room == max) {
                return Ok(Some(gap));
            }
            let waiting = &self.waiting[self.given..];
            if room == 0 || waiting.is_empty() || waiting.len() > room && room < max {
                break;
            }
            let taken = waiting.len().min(room);
            out.extend_from_slice(&waiting[..taken]);
            self.given += taken;
            room -= taken;
        }
        Ok(None)
    }

    /// Whether the next read will return something: bytes or a gap.
    ///
    /// # Errors
    /// I/O errors.
    pub fn ready(&mut self) -> Result<bool> {
        self.load()
    }

    /// Bytes of memory that it holds.
    pub(crate) fn kept(&self) -> usize {
        self.waiting.capacity() + self.scanner.kept()
    }

    /// Frees what it can: a waiting unit that has not been started is rendered again later.
    pub(crate) fn put_back(&mut self) {
        if self.given == 0 && !self.waiting.is_empty() {
            self.waiting = Vec::new();
            self.scanner.go_to(self.from.0, self.from.1);
        }
        self.scanner.trim(0);
    }

    /// Makes sure that there is a unit or a gap to return; false if there is none now.
    fn load(&mut self) -> Result<bool> {
        while self.given == self.waiting.len() && self.gap.is_none() {
            self.given = 0;
            self.waiting.clear();
            self.waiting.shrink_to(KEEP);
            self.from = (self.scanner.position(), self.scanner.seq());
            match self.scanner.next()? {
                None => return Ok(false),
                Some(Entry::Gap(gap)) if self.rendering.format() == Format::Bin || gap.reason == GapReason::Retired => {
                    self.gap = Some(gap);
                }
                Some(entry) => self.rendering.render(&entry, &mut self.waiting),
            }
            self.scanner.trim(KEEP_AHEAD);
        }
        Ok(true)
    }
}
