//! Readers: registered, mapped, zero-copy and without a system call while there are messages.
//!
//! A reader maps segments read-only; it stores only into its own cursor. The common case (a sound record that follows
//! its predecessor) is handled in `next`; everything else (damage, missing segments, jumps) is left to a scanner that
//! reads the same place by `pread`. Invariants:
//! - `position` and `seq` say what comes next. They advance only past what has been returned, or past a seal.
//! - A segment is left only by its seal, which is in line with the records: nothing committed before it can be missed.
//! - "Not committed" means the head, unless the writer has published a later head.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::queue::entry::{Due, Entry, Gap, Message};
use crate::queue::error::Result;
use crate::queue::files::{control, dir::Access, store::Store};
use crate::queue::format::layout::{self, CONTROL_HEAD, HEADER_LEN, RECORDS_START};
use crate::queue::format::record::{Sound, UncheckedHeader};
use crate::queue::inspect::WriterInfo;
use crate::queue::options::WaitStrategy;
use crate::queue::os::mapping::Mapping;
use crate::queue::position::Position;
use crate::queue::read::mapped::{Available, Located, Look, Walk};
use crate::queue::read::scan::Scanner;
use crate::queue::read::stats::ReaderStats;
use crate::queue::wait::stop::Stopper;
use crate::queue::wait::wake::Waiter;
use crate::sync::Ordering;

/// How a reader is known to its queue: [`Registered`](crate::queue::Registered) or [`Unregistered`](crate::queue::Unregistered).
pub trait Registration: fmt::Debug {
    /// Fails in a process that was forked from the reader's.
    #[doc(hidden)]
    fn check_origin(&self) -> Result<()>;

    /// Fails if what is committed may not have reached the file.
    #[doc(hidden)]
    fn check(&self) -> Result<()>;

    /// Shows that the reader is alive; a few stores.
    #[doc(hidden)]
    fn heartbeat(&self);

    /// Shows it to those with another boot-time clock, too: a system call.
    #[doc(hidden)]
    fn touch(&self);

    /// The reader has been moved to this sequence number.
    #[doc(hidden)]
    fn moved_to(&mut self, seq: u64);
}

/// Reads a queue from its mapped files: a [`QueueReader`](crate::queue::QueueReader) or a [`Tailer`](crate::queue::Tailer).
///
/// Messages are borrowed from the mapping: they stay valid until the next call.
pub struct Reader<R: Registration> {
    /// The segment that the reader is in.
    pub(super) map: Option<Mapping>,
    pub(super) walk: Walk,
    pub(super) control: Mapping,
    pub(super) registration: R,
    // The fields from here on are not touched while sound records follow each other.
    pub(super) store: Arc<Store>,
    pub(super) strategy: WaitStrategy,
    pub(super) waiter: Arc<Waiter>,
    pub(super) stopper: Option<Stopper>,
    /// When a wait last looked after the files.
    pub(super) checked: std::time::Instant,
    /// Holds the last returned payload, if it could not come from a mapping.
    pub(super) lent: Option<Box<Scanner>>,
    /// A gap to be returned before anything else.
    pub(super) pending: Option<Gap>,
    /// The published head at the last search past `position` that found nothing: no new search until it changes.
    pub(super) stalled: Option<u64>,
    /// Without what was received since the reader was at `counted_from`.
    pub(super) stats: ReaderStats,
    pub(super) counted_from: u64,
}

/// What is at `position`.
enum Peek {
    Message(Sound),
    /// Nothing committed, and no later head published.
    Head,
    /// Not a case for the fast path.
    Trouble,
}

/// What [`Reader::step`] has passed.
pub(super) enum Step {
    /// A message in the mapping.
    Message(Located),
    Gap(Gap),
    /// A message in a truncated segment, which can't be mapped; not passed yet.
    Unmapped(Box<Scanner>),
    Head,
}

impl<R: Registration> Reader<R> {
    /// The next message or gap; None at the head. Not an `Iterator`, because the message borrows from the reader.
    ///
    /// # Errors
    /// [`Error::Io`](crate::queue::Error::Io) if a file can't be opened or read. Damage is returned as [`Entry::Gap`].
    #[allow(clippy::should_implement_trait)]
    #[inline(always)]
    pub fn next(&mut self) -> Result<Option<Entry<'_>>> {
        match self.pass_message() {
            Some(record) => Ok(self.lend(record).map(Entry::Message)),
            None => self.next_entry(),
        }
    }

    /// [`next`](Self::next), if it is not simply a message.
    #[inline(never)]
    fn next_entry(&mut self) -> Result<Option<Entry<'_>>> {
        match self.step()? {
            Step::Message(record) => Ok(self.lend(record).map(Entry::Message)),
            Step::Gap(gap) => Ok(Some(Entry::Gap(gap))),
            Step::Unmapped(scanner) => Ok(self.lend_unmapped(scanner)?.map(Entry::Message)),
            Step::Head => Ok(None),
        }
    }

    /// The next message; None at the head. Calls `on_gap` for each gap before it.
    ///
    /// ```
    /// use chronfs::queue::{Message, QueueReader, Result};
    ///
    /// struct Feed {
    ///     reader: QueueReader,
    ///     lost: u64,
    /// }
    ///
    /// impl Feed {
    ///     fn poll(&mut self) -> Result<Option<Message<'_>>> {
    ///         self.reader.next_message(|gap| self.lost += gap.count())
    ///     }
    /// }
    /// # let dir = tempfile::tempdir()?;
    /// # let queue = chronfs::Queue::create(dir.path().join("q"), &Default::default())?;
    /// # queue.writer()?.append(1, b"hello")?;
    /// # let mut feed = Feed { reader: queue.reader("alice")?, lost: 0 };
    /// # assert_eq!(feed.poll()?.map(|message| message.seq), Some(1));
    /// # assert!(feed.poll()?.is_none() && feed.lost == 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`next`](Self::next).
    #[inline(always)]
    pub fn next_message(&mut self, on_gap: impl FnMut(Gap)) -> Result<Option<Message<'_>>> {
        match self.pass_message() {
            Some(record) => Ok(self.lend(record)),
            None => self.message_after_gaps(on_gap),
        }
    }

    /// [`next_message`](Self::next_message), if it is not simply there.
    #[inline(never)]
    fn message_after_gaps(&mut self, mut on_gap: impl FnMut(Gap)) -> Result<Option<Message<'_>>> {
        loop {
            match self.step()? {
                Step::Message(record) => return Ok(self.lend(record)),
                Step::Gap(gap) => on_gap(gap),
                Step::Unmapped(scanner) => return self.lend_unmapped(scanner),
                Step::Head => return Ok(None),
            }
        }
    }

    /// Calls `on_entry` for the next messages and gaps: at most `limit` of them, until the head, or until it returns
    /// [`ControlFlow::Break`]. Returns for how many it was called; all of these count as read.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    ///
    /// # use chronfs::queue::{Entry, Queue, Settings};
    /// # let dir = tempfile::tempdir()?;
    /// # let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
    /// # let mut writer = queue.writer()?;
    /// # for payload in [&b"buy"[..], b"stop", b"sell"] { writer.append(1, payload)?; }
    /// let mut reader = queue.reader("alice")?;
    /// let mut orders = Vec::new();
    /// let count = reader.poll(100, |entry| match entry {
    ///     Entry::Message(message) if message.payload == b"stop" => ControlFlow::Break(()),
    ///     Entry::Message(message) => {
    ///         orders.push(message.payload.to_vec());
    ///         ControlFlow::Continue(())
    ///     }
    ///     Entry::Gap(_) => ControlFlow::Continue(()),
    /// })?;
    /// assert_eq!((count, orders), (2, vec![b"buy".to_vec()]));
    /// reader.commit();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`next`](Self::next). The entries before it have been passed to `on_entry`.
    #[inline]
    pub fn poll(&mut self, limit: usize, mut on_entry: impl FnMut(Entry<'_>) -> ControlFlow<()>) -> Result<usize> {
        for count in 0..limit {
            match self.next()? {
                None => return Ok(count),
                Some(entry) if on_entry(entry).is_break() => return Ok(count + 1),
                Some(_) => {}
            }
        }
        Ok(limit)
    }

    /// Passes the gap that [`peek_next`](Self::peek_next) has found.
    pub(super) fn take_gap(&mut self) -> Option<Gap> {
        self.pending.take().map(|gap| self.stats.count(gap))
    }

    /// Passes the next message, if it is a sound record in sequence.
    #[inline(always)]
    fn pass_message(&mut self) -> Option<Located> {
        self.registration.check_origin().ok()?;
        if self.walk.position.offset >= self.walk.learn_at {
            self.learn_head();
        }
        let map = self.map.as_ref().filter(|_| self.pending.is_none())?;
        self.walk.pass(map)
    }

    /// How far records can be prefetched.
    #[cold]
    #[inline(never)]
    fn learn_head(&mut self) {
        let start = as_number(Position { offset: 0, ..self.walk.position });
        self.walk.learn(u32::try_from(self.published().saturating_sub(start)).unwrap_or(u32::MAX));
    }

    /// Passes what comes next.
    pub(super) fn step(&mut self) -> Result<Step> {
        self.registration.check_origin()?;
        loop {
            match self.walk.peeked.map_or_else(|| self.peek(), Peek::Message) {
                Peek::Message(sound) => {
                    self.walk.peeked = Some(sound);
                    if let Some(record) = self.pass_message() {
                        return Ok(Step::Message(record));
                    }
                }
                Peek::Head => return Ok(Step::Head),
                Peek::Trouble => match self.trouble()? {
                    Some(Found::Gap(gap)) => return Ok(Step::Gap(self.stats.count(gap))),
                    Some(Found::Again) => {}
                    Some(Found::Unmapped(scanner)) => return Ok(Step::Unmapped(scanner)),
                    None => return Ok(Step::Head),
                },
            }
        }
    }

    /// This message; None only without a mapping, in which it was found.
    #[inline(always)]
    fn lend(&self, record: Located) -> Option<Message<'_>> {
        self.map.as_ref().map(|map| record.message(map))
    }

    fn peek(&self) -> Peek {
        if self.pending.is_some() {
            return Peek::Trouble;
        }
        let walk = &self.walk;
        let Some(map) = self.map.as_ref().filter(|_| walk.context.is_place(walk.position.offset)) else {
            return if self.stalled == Some(self.published()) { Peek::Head } else { Peek::Trouble };
        };
        match walk.look(map) {
            Look::Message(sound) => Peek::Message(sound),
            // Pages that are out of reach read as if nothing were committed.
            Look::Uncommitted if !self.is_ahead_published() && !map.is_lost() => Peek::Head,
            Look::Uncommitted | Look::Other => Peek::Trouble,
        }
    }

    /// The available messages, as an iterator: those that follow the one returned by [`next`](Self::next) and need no
    /// work but verifying. It ends at the head, at a gap and at the end of a segment, where
    /// `next` has to be called again. Any number of payloads can be held at once, until the reader is used again.
    /// Messages not taken from it come with the next call.
    ///
    /// ```
    /// # use chronfs::queue::{Entry, Queue, Settings};
    /// # let dir = tempfile::tempdir()?;
    /// # let queue = Queue::create(dir.path().join("orders"), &Settings::default())?;
    /// # let mut writer = queue.writer()?;
    /// # for i in 0..1000_u32 { writer.append(1, &i.to_le_bytes())?; }
    /// let mut reader = queue.reader("alice")?;
    /// let mut count = 0;
    /// while let Some(entry) = reader.next()? {
    ///     count += usize::from(matches!(entry, Entry::Message(_)));
    ///     let batch: Vec<_> = reader.available().take(64).collect();
    ///     count += batch.len();
    ///     reader.commit(); // once a batch
    /// }
    /// assert_eq!(count, 1000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn available(&mut self) -> Available<'_> {
        if self.walk.position.offset >= self.walk.learn_at {
            self.learn_head();
        }
        let map = self.map.as_ref().filter(|_| self.pending.is_none() && self.registration.check_origin().is_ok());
        Available { map, walk: &mut self.walk }
    }

    /// What is known of the queue's writer: whether it is alive, stuck or gone. Makes system calls: not for the hot
    /// path.
    pub fn writer_info(&self) -> WriterInfo {
        self.store.writer_info()
    }

    /// How many writers the queue has had. One load, for the hot path: a change means that the writer was
    /// restarted. Damage to the control block may make it wrong; it is information only, nothing depends on it.
    #[inline]
    pub fn writer_epoch(&self) -> u64 {
        self.control.word64(layout::CONTROL_WRITER_EPOCH).load(Ordering::Relaxed)
    }

    /// Whether the writer has published a head past `position`. Two loads from cache lines that it rarely stores into.
    #[inline]
    fn is_ahead_published(&self) -> bool {
        let published = self.published();
        published > as_number(self.walk.position) && self.stalled != Some(published)
    }

    /// The position of the newest published head, as a number of the same order.
    #[inline]
    fn published(&self) -> u64 {
        let [first, second] = CONTROL_HEAD.map(|slot| {
            let word = self.control.word64(slot + layout::HEAD_POSITION).load(Ordering::Acquire);
            // Segment in the low half, offset in the high one.
            word.rotate_left(32)
        });
        first.max(second)
    }

    /// Everything but a sound record in sequence: opens segments, crosses seals, searches past damage.
    #[cold]
    fn trouble(&mut self) -> Result<Option<Found>> {
        self.check()?;
        if let Some(gap) = self.pending.take() {
            return Ok(Some(Found::Gap(gap)));
        }
        // To map it again at once could go on for ever: the scanner says whether it can be read.
        let was_lost = self.map.take_if(|map| map.is_lost()).is_some();
        if self.map.is_none() && !was_lost && self.map_segment()? {
            return Ok(Some(Found::Again));
        }
        if self.is_at_seal()
            && let Some(segment) = self.walk.position.segment.next()
        {
            self.jump(Position { segment, offset: RECORDS_START }, self.walk.seq);
            return Ok(Some(Found::Again));
        }
        let published = self.published();
        let mut scanner = Scanner::at(Arc::clone(&self.store), self.walk.position, self.walk.seq);
        match scanner.next()? {
            Some(Entry::Message(message)) => {
                let (position, seq) = (message.position, message.seq);
                if position == self.walk.position && seq == self.walk.seq && matches!(self.peek(), Peek::Message(_)) {
                    // The mapping lagged by an instant.
                    return Ok(Some(Found::Again));
                }
                self.jump(position, seq);
                // Another file may have the segment's name by now.
                self.map = None;
                if !was_lost && self.map_segment()? {
                    return Ok(Some(Found::Again));
                }
                scanner.go_to(position, seq);
                Ok(Some(Found::Unmapped(Box::new(scanner))))
            }
            Some(Entry::Gap(gap)) => {
                self.jump(scanner.position(), scanner.seq());
                Ok(Some(Found::Gap(gap)))
            }
            None => {
                if scanner.position() != self.walk.position {
                    self.jump(scanner.position(), scanner.seq());
                }
                self.stalled = Some(published);
                Ok(None)
            }
        }
    }

    /// Fails if a file that the reader depends on has been truncated under it.
    pub(super) fn check(&self) -> Result<()> {
        if self.control.is_lost() {
            let remedy = "the next writer repairs it; then open the reader again";
            return Err(control::loss(&self.store.dir, &self.control, remedy));
        }
        self.registration.check()
    }

    /// The message at the scanner's position.
    #[cold]
    pub(super) fn lend_unmapped(&mut self, scanner: Box<Scanner>) -> Result<Option<Message<'_>>> {
        let Some(Entry::Message(message)) = self.lent.insert(scanner).next()? else {
            return Ok(None);
        };
        let len = u32::try_from(message.payload.len()).ok().and_then(layout::record_len).unwrap_or(HEADER_LEN);
        (self.walk.position, self.walk.seq) = (message.position, message.seq.saturating_add(1));
        self.walk.position.offset += len;
        Ok(Some(message))
    }

    /// Maps the segment at `position`; false if that is impossible (the scanner will say why).
    fn map_segment(&mut self) -> Result<bool> {
        let segment = match self.store.open_segment(self.walk.position.segment, Access::Read) {
            // The writer may replace one that is only prepared.
            Ok(Some(segment)) if segment.is_started()? => segment,
            Ok(_) => return Ok(false),
            Err(error) if error.is_unusable_file() => return Ok(false),
            Err(error) => return Err(error),
        };
        match Mapping::read_only(&segment.file, &segment.path, segment.context.segment_size) {
            Ok(map) => {
                (self.map, self.walk.context) = (Some(map), segment.context);
                self.walk.position.offset = self.walk.context.next_place(self.walk.position.offset);
                Ok(true)
            }
            Err(error) if error.is_unusable_file() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the record at `position` is a sound seal with the expected sequence number.
    fn is_at_seal(&self) -> bool {
        let offset = self.walk.position.offset;
        let record = self.map.as_ref().and_then(|map| map.record(offset)).filter(|record| record.is_committed());
        let header = record.and_then(|record| UncheckedHeader::parse(&record.header()));
        let header = header.and_then(|header| header.verify(&self.walk.context, offset, &[]));
        header.is_some_and(|header| header.is_seal() && header.seq == self.walk.seq)
    }

    pub(super) fn jump(&mut self, position: Position, seq: u64) {
        self.stats = self.stats();
        self.counted_from = seq;
        // A forged head can lead to where no record starts. A segment that is mapped is entered at a place.
        if position.segment != self.walk.position.segment || !self.walk.context.is_place(position.offset) {
            self.map = None;
        }
        (self.walk.position, self.walk.seq, self.stalled) = (position, seq, None);
        self.walk.forget();
    }

    /// Whether [`next`](Self::next) will return an entry.
    #[inline]
    pub(super) fn has_next(&mut self) -> Result<bool> {
        Ok(self.peek_next()?.is_some())
    }

    /// What [`next`](Self::next) will return.
    #[inline]
    pub(crate) fn peek_next(&mut self) -> Result<Option<Due>> {
        self.registration.check_origin()?;
        loop {
            if let Some(sound) = self.walk.peeked {
                return Ok(Some(Due { timestamp_ns: sound.timestamp_ns, seq: self.walk.seq }));
            }
            match self.peek() {
                Peek::Message(sound) => self.walk.peeked = Some(sound),
                Peek::Head => return Ok(None),
                Peek::Trouble => {
                    if let Some(gap) = self.pending {
                        return Ok(Some(Due { timestamp_ns: 0, seq: gap.from }));
                    }
                    match self.trouble()? {
                        Some(Found::Gap(gap)) => self.pending = Some(gap),
                        Some(Found::Again) => {}
                        Some(Found::Unmapped(mut scanner)) => {
                            let message = scanner.next()?.and_then(Entry::message);
                            return Ok(message.map(|m| Due { timestamp_ns: m.timestamp_ns, seq: m.seq }));
                        }
                        None => return Ok(None),
                    }
                }
            }
        }
    }

    /// The sequence number that [`next`](Self::next) expects.
    #[inline]
    pub fn seq(&self) -> u64 {
        self.pending.map_or(self.walk.seq, |gap| gap.from)
    }

    /// Where [`next`](Self::next) continues.
    pub fn position(&self) -> Position {
        self.walk.position
    }

    /// What it has read and waited for since it was opened. Costs nothing while reading.
    pub fn stats(&self) -> ReaderStats {
        let since = self.walk.seq.saturating_sub(self.counted_from);
        ReaderStats { received: self.stats.received.saturating_add(since), ..self.stats }
    }
}

impl<R: Registration> fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Reader");
        fields.field("queue", &self.store.dir.path()).field("registration", &self.registration);
        fields.field("seq", &self.seq()).field("position", &self.walk.position).finish_non_exhaustive()
    }
}

/// The result of the slow path.
enum Found {
    Gap(Gap),
    Again,
    /// There is a message, in a truncated segment, which can't be mapped.
    Unmapped(Box<Scanner>),
}

/// A number of the same order as the position.
fn as_number(position: Position) -> u64 {
    u64::from(position.segment.0) << 32 | u64::from(position.offset)
}
