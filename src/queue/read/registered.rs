//! Readers with a cursor, which persist their position and pin segments, and readers without one.

use std::fmt;

use crate::queue::error::{Error, Result};
use crate::queue::files::cursor::{Cursor, ReaderPosition};
use crate::queue::read::reader::{Reader, Registration};

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
pub type QueueReader = Reader<Registered>;

/// A reader without a name, from [`Queue::tailer`](crate::Queue::tailer): it needs no permission to write, persists
/// nothing and never keeps retention from removing what it has not read. It then gets a gap
/// ([`GapReason::Retired`](crate::queue::GapReason::Retired)), and what it has borrowed stays as it is.
///
/// ```
/// # use chronfs::queue::{Queue, Settings};
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("ticks"), &Settings::default())?;
/// queue.writer()?.append(1, b"hello")?;
///
/// let mut tailer = queue.tailer()?;
/// let message = tailer.next_message(|gap| eprintln!("{} messages are missing", gap.count()))?;
/// assert_eq!(message.map(|message| message.payload), Some(&b"hello"[..]));
/// assert!(queue.reader_names()?.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Tailer = Reader<Unregistered>;

/// The registration of a [`QueueReader`].
pub struct Registered {
    cursor: Cursor,
    /// The least sequence number that it may commit: the last commit's, or where it has been moved to since.
    floor: u64,
}

/// That of a [`Tailer`]: none.
#[derive(Debug)]
pub struct Unregistered;

impl Registered {
    pub(crate) fn new(cursor: Cursor, place: ReaderPosition) -> Self {
        Self { cursor, floor: place.seq }
    }

    #[inline]
    fn commit(&mut self, place: ReaderPosition) {
        self.floor = place.seq;
        self.cursor.commit(place);
    }
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registered").field(&self.cursor.name()).finish()
    }
}

impl Registration for Registered {
    #[inline]
    fn check_origin(&self) -> Result<()> {
        self.cursor.check_origin()
    }

    fn check(&self) -> Result<()> {
        self.cursor.check()
    }

    fn heartbeat(&self) {
        self.cursor.heartbeat();
    }

    fn touch(&self) {
        self.cursor.touch();
    }

    fn moved_to(&mut self, seq: u64) {
        self.floor = self.floor.min(seq);
    }
}

impl Registration for Unregistered {
    #[inline]
    fn check_origin(&self) -> Result<()> {
        Ok(())
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn heartbeat(&self) {}

    fn touch(&self) {}

    fn moved_to(&mut self, _: u64) {}
}

impl Reader<Registered> {
    /// Consumes everything that has been read. A few stores, no system call: it survives the process at once, and a
    /// power cut after [`commit_sync`](Self::commit_sync).
    #[inline]
    pub fn commit(&mut self) {
        let position = self.pending.is_none().then_some(self.walk.position);
        self.registration.commit(ReaderPosition { seq: self.seq(), position });
    }

    /// Like [`commit`](Self::commit); survives a power cut once it has returned.
    ///
    /// # Errors
    /// [`Error::Io`] if the system can't write it.
    pub fn commit_sync(&mut self) -> Result<()> {
        self.check_origin()?;
        self.commit();
        self.registration.cursor.sync()
    }

    /// Consumes the messages up to this one, and not those read after it: for readers that work on several at a time.
    /// Like [`commit`](Self::commit), it makes no system call.
    ///
    /// ```
    /// # use chronfs::queue::{Queue, Settings};
    /// # let dir = tempfile::tempdir()?;
    /// # let queue = Queue::create(dir.path().join("orders"), &Settings::default())?;
    /// # let mut writer = queue.writer()?;
    /// # for _ in 0..3 { writer.append(1, b"order")?; }
    /// let mut reader = queue.reader("alice")?;
    /// while reader.next()?.is_some() {} // reads 1, 2 and 3
    /// reader.commit_to(2)?; // 3 is still in flight
    /// drop(reader);
    /// assert_eq!(queue.reader("alice")?.seq(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoSuchPosition`] if the message has not been read yet, or if a later one has been committed: to go
    /// back, seek.
    pub fn commit_to(&mut self, seq: u64) -> Result<()> {
        self.check_origin()?;
        let (floor, end) = (self.registration.floor, self.seq());
        let next = seq.saturating_add(1);
        if next == end {
            self.commit();
        } else if (floor..end).contains(&next) {
            // Where the next message is would take a search.
            self.registration.commit(ReaderPosition { seq: next, position: None });
        } else {
            let what = format!("can't commit message {seq}; messages {floor} to {} can be", end.saturating_sub(1));
            return Err(Error::NoSuchPosition { path: self.store.dir.path().to_path_buf(), what });
        }
        Ok(())
    }

    fn check_origin(&self) -> Result<()> {
        self.registration.check_origin()
    }
}
