//! Readers in async programs, of any runtime: the thread that watches queues for the process wakes the task itself.
//!
//! A task that finds messages makes no system call and tells nobody. Only one that finds none arms its alarm
//! (`wait/watch.rs`), which is to announce a sleeper, and checks once more.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use futures_core::Stream;

use crate::queue::entry::{Entry, Gap};
use crate::queue::error::{Error, Result};
use crate::queue::position::Position;
use crate::queue::read::reader::{Reader, Registration};
use crate::queue::read::registered::Registered;
use crate::queue::read::waiting::CHECK_EVERY;
use crate::queue::wait::watch::{Alarm, Watch};

/// A task that finds this many entries without a pause lets others run.
const LONGEST_RUN: u32 = 128;
const GONE: &str = "it has been damaged since it was found; reading again leads past it";

/// A reader for async programs, under tokio or any other runtime.
///
/// Made from a [`QueueReader`](crate::queue::QueueReader) or a [`Tailer`](crate::queue::Tailer). It neither blocks the thread nor
/// polls. All of them share a thread with the process's [`Notifier`](crate::queue::Notifier)s;
/// it needs no descriptor of its own. Futures can be dropped at any time, as by `select!`: nothing is lost.
///
/// ```
/// # use chronfs::queue::{AsyncReader, Entry, Queue, Settings};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("orders"), &Settings::default())?;
/// let mut reader = AsyncReader::new(queue.reader("billing")?)?;
/// queue.writer()?.append(1, b"hello")?;
/// match reader.next().await? {
///     Entry::Message(message) => assert_eq!(message.payload, b"hello"),
///     Entry::Gap(gap) => eprintln!("messages {} to {} are lost", gap.from, gap.to),
/// }
/// reader.commit();
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AsyncReader<R: Registration = Registered> {
    reader: Reader<R>,
    task: Arc<Task>,
    watch: Watch,
    /// When it last showed that it is alive, and looked at its files.
    checked: Option<Instant>,
    run: u32,
}

/// The task that waits.
#[derive(Debug, Default)]
struct Task {
    waker: Mutex<Option<Waker>>,
}

impl<R: Registration> AsyncReader<R> {
    /// Makes a reader asynchronous; its [`WaitStrategy`](crate::queue::WaitStrategy) and its stopper no longer matter: a future ends
    /// when it is dropped.
    ///
    /// # Errors
    /// [`Error::Io`] if there are too many threads.
    pub fn new(reader: Reader<R>) -> Result<Self> {
        let task = Arc::<Task>::default();
        let alarm = Arc::clone(&task) as Arc<dyn Alarm>;
        let watch = Watch::start(&reader.store, Arc::clone(&reader.waiter), alarm)?;
        Ok(Self { reader, task, watch, checked: None, run: 0 })
    }

    /// Waits for the next message or gap and returns it. Consumes nothing: see [`commit`](Self::commit).
    ///
    /// # Errors
    /// As [`Reader::wait`], and [`Error::Io`] if the message has been damaged since it was found.
    pub async fn next(&mut self) -> Result<Entry<'_>> {
        self.ready().await?;
        self.take()
    }

    /// Waits until there is something to read: for batches with [`Reader::available`].
    ///
    /// # Errors
    /// As [`Reader::wait`].
    pub async fn ready(&mut self) -> Result<()> {
        poll_fn(|context| self.poll_ready(context)).await
    }

    /// The messages and gaps from here on as a stream, which never ends. It copies payloads; [`next`](Self::next) lends
    /// them.
    pub fn stream(&mut self) -> EntryStream<'_, R> {
        EntryStream { reader: self }
    }

    /// The reader itself, for everything that does not wait.
    pub fn get_mut(&mut self) -> &mut Reader<R> {
        &mut self.reader
    }

    /// The reader, at the same place.
    pub fn into_inner(self) -> Reader<R> {
        self.reader
    }

    fn take(&mut self) -> Result<Entry<'_>> {
        let gone = || Error::io(self.watch.path(), "read the next message")(std::io::Error::other(GONE));
        self.reader.next()?.ok_or_else(gone)
    }

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        if self.run >= LONGEST_RUN {
            self.run = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        match self.find(context) {
            Ok(false) => {
                self.run = 0;
                Poll::Pending
            }
            found => {
                self.run += 1;
                Poll::Ready(found.map(drop))
            }
        }
    }

    /// Whether there is something to read. If not, the task will be woken.
    fn find(&mut self, context: &Context<'_>) -> Result<bool> {
        self.watch.check_origin()?;
        if self.reader.has_next()? {
            return Ok(true);
        }
        if self.checked.is_none_or(|checked| checked.elapsed() >= CHECK_EVERY) {
            self.reader.look_after_files()?;
            self.checked = Some(Instant::now());
        }
        self.task.is_waited_for_by(context.waker());
        // If it was armed already, whatever has come since wakes the task.
        Ok(self.watch.arm() && self.reader.has_next()?)
    }
}

impl AsyncReader {
    /// Consumes everything that has been returned; see [`QueueReader::commit`](crate::queue::QueueReader::commit).
    pub fn commit(&mut self) {
        self.reader.commit();
    }
}

impl Task {
    fn is_waited_for_by(&self, waker: &Waker) {
        let mut known = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            let old = known.replace(waker.clone());
            drop(known);
            drop(old);
        }
    }
}

impl Alarm for Task {
    fn raise(&self) {
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        waker.into_iter().for_each(Waker::wake);
    }

    /// It checks by itself, and shows that it is alive.
    fn has_news(&self) -> bool {
        true
    }
}

/// A queue's messages and gaps as a [`Stream`]; made by [`AsyncReader::stream`]. Dropping it loses nothing.
#[derive(Debug)]
pub struct EntryStream<'a, R: Registration = Registered> {
    reader: &'a mut AsyncReader<R>,
}

impl EntryStream<'_> {
    /// Consumes everything that has been returned; see [`QueueReader::commit`](crate::queue::QueueReader::commit).
    pub fn commit(&mut self) {
        self.reader.commit();
    }
}

impl<R: Registration> Stream for EntryStream<'_, R> {
    type Item = Result<OwnedEntry>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.reader.poll_ready(context).map(|ready| Some(ready.and_then(|()| self.reader.take().map(OwnedEntry::from))))
    }
}

/// An [`Entry`] with a copy of the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnedEntry {
    /// A message.
    Message(OwnedMessage),
    /// Messages that are missing.
    Gap(Gap),
}

/// A [`Message`](crate::queue::Message) with a copy of the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnedMessage {
    /// Its sequence number.
    pub seq: u64,
    /// When it was appended, in nanoseconds since the epoch.
    pub timestamp_ns: u64,
    /// Its type.
    pub msg_type: u16,
    /// Its bytes.
    pub payload: Vec<u8>,
    /// Where its record starts.
    pub position: Position,
}

impl From<Entry<'_>> for OwnedEntry {
    fn from(entry: Entry<'_>) -> Self {
        match entry {
            Entry::Message(message) => Self::Message(OwnedMessage {
                seq: message.seq,
                timestamp_ns: message.timestamp_ns,
                msg_type: message.msg_type,
                payload: message.payload.to_vec(),
                position: message.position,
            }),
            Entry::Gap(gap) => Self::Gap(gap),
        }
    }
}
