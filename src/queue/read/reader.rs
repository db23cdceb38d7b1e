//! Readers: registered, mapped, zero-copy and without a system call while there are messages.
//!
//! A reader maps segments read-only; it stores only into its own cursor. The common case (a sound record that follows
//! its predecessor) is handled in `next`; everything else (damage, missing segments, jumps) is left to a scanner that
//! reads the same place by `pread`. Invariants:
//! - `position` and `seq` say what comes next. They advance only past what has been returned, or past a seal.
//! - A segment is left only by its seal, which is in line with the records: nothing committed before it can be missed.
//! - "Not committed" means the head, unless the writer has published a later head.

use std::sync::Arc;
use std::time::{Duration, Instant};

use zerocopy::FromBytes;

use crate::queue::entry::{Bounds, Due, Entry, Gap, GapReason};
use crate::queue::error::Result;
use crate::queue::files::cursor::{Cursor, ReaderPosition};
use crate::queue::files::{control, dir::Access, store::Store};
use crate::queue::format::layout::{self, CONTROL_FILE, CONTROL_HEAD, CONTROL_LEN, HEADER_LEN};
use crate::queue::format::layout::{MessageHeader, RECORDS_START};
use crate::queue::format::record::{Header, RecordContext, UncheckedHeader, is_record_offset};
use crate::queue::inspect::WriterInfo;
use crate::queue::options::{ReaderOptions, Start, WaitStrategy};
use crate::queue::os::mapping::Mapping;
use crate::queue::position::Position;
use crate::queue::read::mapped::{Available, Look, look, message};
use crate::queue::read::scan::Scanner;
use crate::queue::wait::wake::Waiter;
use crate::sync::Ordering;

/// A registered reader, in use by this process alone.
///
/// Messages are borrowed from the mapping: they stay valid until the next call. [`commit`](Self::commit) consumes what
/// has been read; it is persistent: a reader of the same name continues there, even after a crash.
///
/// ```
/// # use chronfs::queue::{Entry, Queue, Settings};
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("orders"), &Settings::default())?;
/// queue.writer()?.append(1, b"hello")?;
///
/// let mut reader = queue.reader("alice")?;
/// while let Some(entry) = reader.next()? {
///     match entry {
///         Entry::Message(message) => println!("{} {:?}", message.seq, message.payload),
///         Entry::Gap(gap) => eprintln!("messages {} to {} are lost", gap.from, gap.to),
///     }
///     reader.commit();
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct QueueReader {
    map: Option<Mapping>,
    context: RecordContext,
    position: Position,
    seq: u64,
    /// The header at `position`, if it has been verified already.
    peeked: Option<Header>,
    verify: bool,
    /// Up to where pages of this segment have been prefaulted.
    populated: u32,
    control: Mapping,
    // The fields from here on are not touched while sound records follow each other.
    cursor: Cursor,
    store: Arc<Store>,
    strategy: WaitStrategy,
    waiter: Waiter,
    /// Holds the last returned payload, if it could not come from a mapping.
    lent: Option<Box<Scanner>>,
    /// A gap to be returned before anything else.
    pending: Option<Gap>,
    /// The published head at the last search past `position` that found nothing: no new search until it changes.
    stalled: Option<u64>,
}

/// What is at `position`.
enum Peek {
    Message(Header),
    /// Nothing committed, and no later head published.
    Head,
    /// Not a case for the fast path.
    Trouble,
}

impl QueueReader {
    pub(crate) fn open(
        store: &Arc<Store>,
        cursor: Cursor,
        place: ReaderPosition,
        options: &ReaderOptions,
    ) -> Result<Self> {
        let path = store.control_path();
        let control = store.dir.open_existing_file(CONTROL_FILE, Access::Read)?;
        let control = Mapping::read_only(&control, &path, CONTROL_LEN)?;
        let bounds = store.bounds()?;
        let (position, seq, pending) = locate(store, &bounds, place)?;
        let context = RecordContext {
            summer: crate::queue::format::crc::RecordCrc::new(),
            salt: 0,
            segment_size: store.settings().segment_size,
            is_reused: false,
        };
        let mut reader = Self {
            map: None,
            context,
            position,
            seq,
            peeked: None,
            verify: options.verify,
            populated: 0,
            control,
            cursor,
            strategy: options.wait,
            waiter: store.waiter()?,
            store: Arc::clone(store),
            lent: None,
            pending,
            stalled: None,
        };
        match options.start {
            Start::Resume => {}
            Start::First => reader.jump(bounds.first, bounds.first_seq),
            Start::End => reader.jump(bounds.head, bounds.end_seq),
            Start::Seq(seq) => reader.jump_with(|scanner| scanner.seek_seq(seq))?,
            Start::Time(timestamp_ns) => reader.jump_with(|scanner| scanner.seek_time(timestamp_ns))?,
        }
        Ok(reader)
    }

    /// The next message or gap; None at the head. Consumes nothing: see [`commit`](Self::commit). Not an `Iterator`,
    /// because the message borrows from the reader.
    ///
    /// # Errors
    /// [`Error::Io`](crate::queue::Error::Io) if a file can't be opened or read. Damage is returned as [`Entry::Gap`].
    #[allow(clippy::should_implement_trait)]
    #[inline]
    pub fn next(&mut self) -> Result<Option<Entry<'_>>> {
        self.cursor.check_origin()?;
        let header = loop {
            if let Some(header) = self.peeked.take() {
                break header;
            }
            match self.peek() {
                Peek::Message(header) => break header,
                Peek::Head => return Ok(None),
                Peek::Trouble => match self.trouble()? {
                    Some(Found::Gap(gap)) => return Ok(Some(Entry::Gap(gap))),
                    Some(Found::Again) => {}
                    Some(Found::Unmapped(scanner)) => return self.next_unmapped(scanner),
                    None => return Ok(None),
                },
            }
        };
        let position = self.position;
        self.position.offset += header.record_len();
        if self.position.offset >= self.populated {
            self.populate();
        }
        self.seq = self.seq.saturating_add(1);
        // A peeked header implies a mapping.
        Ok(self.map.as_ref().map(|map| Entry::Message(message(map, &header, position))))
    }

    #[inline]
    fn peek(&self) -> Peek {
        if self.pending.is_some() {
            return Peek::Trouble;
        }
        let offset = self.position.offset;
        let Some(map) = self.map.as_ref().filter(|_| is_record_offset(offset, self.context.segment_size)) else {
            return if self.stalled == Some(self.published()) { Peek::Head } else { Peek::Trouble };
        };
        match look(map, &self.context, offset, self.seq, self.verify) {
            Look::Message(header) => Peek::Message(header),
            Look::Uncommitted if !self.is_ahead_published() => Peek::Head,
            Look::Uncommitted | Look::Other => Peek::Trouble,
        }
    }

    /// The available messages, as an iterator: those that follow the one returned by [`next`](Self::next) and need no
    /// work but verifying. It ends at the head, at a gap, at the end of a segment and sometimes in between, where
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
        let map = self.map.as_ref().filter(|_| self.pending.is_none() && self.cursor.check_origin().is_ok());
        Available {
            map,
            context: &self.context,
            position: &mut self.position,
            seq: &mut self.seq,
            peeked: &mut self.peeked,
            end: self.populated,
            verify: self.verify,
        }
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
        published > as_number(self.position) && self.stalled != Some(published)
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
        if self.map.as_ref().is_some_and(Mapping::is_lost) {
            self.map = None;
        }
        if self.map.is_none() && self.map_segment()? {
            return Ok(Some(Found::Again));
        }
        if self.is_at_seal()
            && let Some(segment) = self.position.segment.next()
        {
            self.jump(Position { segment, offset: RECORDS_START }, self.seq);
            return Ok(Some(Found::Again));
        }
        let published = self.published();
        let mut scanner = Scanner::at(Arc::clone(&self.store), self.position, self.seq);
        match scanner.next()? {
            Some(Entry::Message(message)) => {
                let (position, seq) = (message.position, message.seq);
                if position == self.position && seq == self.seq && self.map.is_some() {
                    // The mapping lagged by an instant.
                    return Ok(Some(Found::Again));
                }
                self.jump(position, seq);
                if self.map_segment()? {
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
                self.stalled = Some(published);
                if scanner.position() != self.position {
                    self.jump(scanner.position(), scanner.seq());
                }
                Ok(None)
            }
        }
    }

    /// Fails if a file that the reader depends on has been truncated under it.
    fn check(&self) -> Result<()> {
        if self.control.is_lost() {
            let remedy = "the next writer repairs it; then open the reader again";
            return Err(control::loss(&self.store.dir, &self.control, remedy));
        }
        self.cursor.check()
    }

    /// The message at the scanner's position.
    #[cold]
    fn next_unmapped(&mut self, scanner: Box<Scanner>) -> Result<Option<Entry<'_>>> {
        let Some(Entry::Message(message)) = self.lent.insert(scanner).next()? else {
            return Ok(None);
        };
        let len = u32::try_from(message.payload.len()).ok().and_then(layout::record_len).unwrap_or(HEADER_LEN);
        (self.position, self.seq) = (message.position, message.seq.saturating_add(1));
        self.position.offset += len;
        Ok(Some(Entry::Message(message)))
    }

    /// Prefaults the next pages, to avoid a fault on each: not past the published head, where there may be nothing.
    #[cold]
    fn populate(&mut self) {
        let offset = self.position.offset;
        let published = self.published().saturating_sub(u64::from(self.position.segment.0) << 32);
        let head = u32::try_from(published).unwrap_or(u32::MAX).max(offset).saturating_add(POPULATE_PAST_HEAD);
        let end = offset.saturating_add(POPULATE).min(head).min(self.context.segment_size);
        if let Some(map) = &self.map {
            // Affects speed only: a page that is not in memory now is read when it is needed.
            let _ = map.populate(offset / layout::PAGE * layout::PAGE, (end - offset) as usize);
        }
        self.populated = end;
    }

    /// Maps the segment at `position`; false if that is impossible (the scanner will say why).
    fn map_segment(&mut self) -> Result<bool> {
        let segment = match self.store.open_segment(self.position.segment, Access::Read) {
            Ok(Some(segment)) => segment,
            Ok(None) => return Ok(false),
            Err(error) if error.is_unusable_file() => return Ok(false),
            Err(error) => return Err(error),
        };
        match Mapping::read_only(&segment.file, &segment.path, segment.context.segment_size) {
            Ok(map) => {
                (self.map, self.context, self.populated) = (Some(map), segment.context, 0);
                Ok(true)
            }
            Err(error) if error.is_unusable_file() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the record at `position` is a sound seal with the expected sequence number.
    fn is_at_seal(&self) -> bool {
        let offset = self.position.offset;
        let Some(map) = self.map.as_ref().filter(|_| is_record_offset(offset, self.context.segment_size)) else {
            return false;
        };
        if map.word64(offset).load(Ordering::Acquire) & u64::from(u32::MAX) == 0 {
            return false;
        }
        let header = MessageHeader::ref_from_bytes(map.bytes(offset, HEADER_LEN as usize)).ok();
        let header = header.and_then(UncheckedHeader::parse).and_then(|u| u.verify(&self.context, offset, &[]));
        header.is_some_and(|header| header.is_seal() && header.seq == self.seq)
    }

    fn jump(&mut self, position: Position, seq: u64) {
        if position.segment != self.position.segment {
            self.map = None;
        }
        (self.position, self.seq, self.peeked) = (position, seq, None);
    }

    fn jump_with(&mut self, seek: impl FnOnce(&mut Scanner) -> Result<()>) -> Result<()> {
        self.cursor.check_origin()?;
        let mut scanner = Scanner::at(Arc::clone(&self.store), self.position, self.seq);
        seek(&mut scanner)?;
        self.pending = None;
        self.jump(scanner.position(), scanner.seq());
        Ok(())
    }

    /// Moves to a message, or to the first one after it; to the first retained message or to the head if it is before
    /// or after all of them. Consumes nothing until [`commit`](Self::commit).
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn seek_seq(&mut self, seq: u64) -> Result<()> {
        self.jump_with(|scanner| scanner.seek_seq(seq))
    }

    /// Moves to the first message with this timestamp (nanoseconds since the epoch) or a later one. Consumes nothing
    /// until [`commit`](Self::commit).
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn seek_time(&mut self, timestamp_ns: u64) -> Result<()> {
        self.jump_with(|scanner| scanner.seek_time(timestamp_ns))
    }

    /// Consumes everything that [`next`](Self::next) has returned. A few stores, no system call: it survives the
    /// process at once, and a power cut after [`commit_sync`](Self::commit_sync).
    #[inline]
    pub fn commit(&mut self) {
        self.cursor.commit(ReaderPosition { seq: self.seq, position: Some(self.position) });
    }

    /// Like [`commit`](Self::commit); survives a power cut once it has returned.
    ///
    /// # Errors
    /// [`Error::Io`](crate::queue::Error::Io) if the system can't write it.
    pub fn commit_sync(&mut self) -> Result<()> {
        self.cursor.check_origin()?;
        self.commit();
        self.cursor.sync()
    }

    /// Waits until there is something to read, or for `timeout` (None: for ever). False if there is nothing.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        if self.has_next()? {
            return Ok(true);
        }
        let start = Instant::now();
        let left = |limit: Option<Duration>| limit.map(|limit| limit.saturating_sub(start.elapsed()));
        let spin = match self.strategy {
            WaitStrategy::BusySpin => timeout,
            WaitStrategy::Hybrid { spin } => Some(timeout.map_or(spin, |timeout| spin.min(timeout))),
            WaitStrategy::Sleep => Some(Duration::ZERO),
        };
        while left(spin).is_none_or(|left| !left.is_zero()) {
            for _ in 0..64 {
                if self.has_next()? {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
        }
        self.cursor.heartbeat();
        loop {
            let ticket = self.waiter.prepare();
            if self.has_next()? {
                return Ok(true);
            }
            let left = left(timeout).unwrap_or(Duration::MAX);
            if left.is_zero() {
                return Ok(false);
            }
            if !self.waiter.wait(ticket, left) {
                self.cursor.heartbeat();
                self.cursor.touch();
                self.check()?;
                self.store.check_present()?;
                // Once a second, in case files have changed without anything being published.
                self.stalled = None;
            }
            // Before the system calls of the next announcement.
            if self.has_next()? {
                return Ok(true);
            }
        }
    }

    /// Whether [`next`](Self::next) will return an entry.
    #[inline]
    fn has_next(&mut self) -> Result<bool> {
        Ok(self.peek_next()?.is_some())
    }

    /// What [`next`](Self::next) will return.
    #[inline]
    pub(crate) fn peek_next(&mut self) -> Result<Option<Due>> {
        self.cursor.check_origin()?;
        loop {
            if let Some(header) = self.peeked {
                return Ok(Some(Due { timestamp_ns: header.timestamp_ns, seq: header.seq }));
            }
            match self.peek() {
                Peek::Message(header) => self.peeked = Some(header),
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

    pub(crate) fn waiter(&self) -> &Waiter {
        &self.waiter
    }

    /// The sequence number that [`next`](Self::next) expects.
    pub fn seq(&self) -> u64 {
        self.seq
    }
}

/// How many bytes are prefaulted at a time.
const POPULATE: u32 = 1 << 20;
/// How far past the published head to prefault: the writer publishes it each time it has written this many bytes.
const POPULATE_PAST_HEAD: u32 = 64 << 10;

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

/// Where a cursor's reader continues, and the gap to report first.
fn locate(store: &Arc<Store>, bounds: &Bounds, place: ReaderPosition) -> Result<(Position, u64, Option<Gap>)> {
    let gap = |from, to, reason, position| Some(Gap { from, to, reason, position });
    if place.seq < bounds.first_seq {
        let pending = gap(place.seq, bounds.first_seq - 1, GapReason::Retired, bounds.first);
        return Ok((bounds.first, bounds.first_seq, pending));
    }
    if place.seq > bounds.end_seq {
        let pending = gap(bounds.end_seq, place.seq - 1, GapReason::Lost, bounds.head);
        return Ok((bounds.head, bounds.end_seq, pending));
    }
    if place.seq >= bounds.next_seq {
        return Ok((bounds.head, place.seq, None));
    }
    let mut scanner = Scanner::at(Arc::clone(store), bounds.first, bounds.first_seq);
    let hint = place.position.filter(|p| is_record_offset(p.offset, store.settings().segment_size));
    if let Some(position) = hint {
        scanner.go_to(position, place.seq);
        let found = scanner.next()?.and_then(Entry::message);
        if found.is_some_and(|message| message.seq == place.seq && message.position == position) {
            return Ok((position, place.seq, None));
        }
    }
    scanner.seek_seq_within(place.seq, bounds)?;
    Ok((scanner.position(), scanner.seq(), None))
}
