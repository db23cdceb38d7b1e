//! The settings of a queue, and options for opening readers and writers. The settings are stored in the queue, where
//! every process finds them.

use std::time::Duration;

use crate::queue::error::{Error, Result};
use crate::queue::format::layout;

/// The shortest time between two rolls by time.
const MIN_ROLL_EVERY_NS: u64 = 1_000_000_000;

/// The settings of a queue.
///
/// ```
/// use chronfs::queue::Settings;
///
/// let settings = Settings { segment_size: 1 << 20, ..Settings::default() };
/// assert!(settings.validate().is_ok());
/// assert!(settings.max_payload_len() > 1_000_000);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Size in bytes up to which segment files grow: 64 KiB to 1 GiB, a multiple of 4096. The first one has 64 KiB, and
    /// one that gets full is followed by one of twice its size, or four times if it was filled quickly (half a gigabyte a
    /// second); a large message gets one that fits. Default 64 MiB.
    pub segment_size: u32,
    /// Appends fail with [`Error::QueueFull`] when the segments would take more bytes than this. Default None: no
    /// limit.
    pub max_bytes: Option<u64>,
    /// Retention keeps at most about this many bytes of sealed segments that every live reader has passed.
    /// Default None: no such limit. Without any of the three limits everything is kept.
    pub retain_bytes: Option<u64>,
    /// Retention keeps messages at least this long, in nanoseconds, and an eighth longer at most unless
    /// [`roll_every_ns`](Self::roll_every_ns) is set: it removes whole segments, so a segment ends after that time.
    /// Default None: no such limit.
    pub retain_age_ns: Option<u64>,
    /// Retention keeps at most this many sealed segments that every live reader has passed. Default None: no such
    /// limit.
    pub retain_segments: Option<u32>,
    /// A reader whose last heartbeat is older than this (boot-time clock, nanoseconds) no longer pins segments. Default
    /// None: a registered reader pins for ever.
    pub reader_ttl_ns: Option<u64>,
    /// A reader that lags by more than this many bytes no longer pins segments; it will get a gap. Default None: no
    /// limit.
    pub max_lag_bytes: Option<u64>,
    /// A segment ends when a multiple of this many nanoseconds since the epoch is reached: at each full minute, hour or
    /// day (UTC) with the usual values. The messages' timestamps decide. A time without messages makes no segment.
    /// Default None: by time only as `retain_age_ns` needs it.
    pub roll_every_ns: Option<u64>,
    /// Payloads start at multiples of this many bytes in memory: 8, 16 or 64. Default 8.
    pub payload_align: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Settings {
    /// The default settings: segments of up to 64 MiB, no limits, no retention.
    pub const DEFAULT: Self = Self {
        segment_size: layout::DEFAULT_SEGMENT_SIZE,
        max_bytes: None,
        retain_bytes: None,
        retain_age_ns: None,
        retain_segments: None,
        reader_ttl_ns: None,
        max_lag_bytes: None,
        roll_every_ns: None,
        payload_align: layout::PAYLOAD_ALIGNS[0],
    };

    /// Whether retention may remove anything at all.
    pub fn has_retention(&self) -> bool {
        self.retain_bytes.is_some() || self.retain_segments.is_some() || self.retain_age_ns.is_some()
    }

    /// Checks that the format allows these settings.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`], with what is allowed.
    pub fn validate(&self) -> Result<()> {
        let size = self.segment_size;
        if !(layout::MIN_SEGMENT_SIZE..=layout::MAX_SEGMENT_SIZE).contains(&size) {
            return Err(Error::InvalidSetting(format!("segment size {size} bytes; allowed are 64KiB to 1GiB")));
        }
        if !size.is_multiple_of(layout::PAGE) {
            return Err(Error::InvalidSetting(format!("segment size {size} bytes; it must be a multiple of 4096")));
        }
        if let Some(max) = self.max_bytes
            && max < u64::from(size)
        {
            return Err(Error::InvalidSetting(format!(
                "max bytes {max} is less than one segment of {size} bytes; raise it or choose smaller segments"
            )));
        }
        if self.roll_every_ns.is_some_and(|every| every < MIN_ROLL_EVERY_NS) {
            return Err(Error::InvalidSetting("roll every less than a second; allowed are 1 s and more".to_owned()));
        }
        if !layout::PAYLOAD_ALIGNS.contains(&self.payload_align) {
            return Err(Error::InvalidSetting(format!(
                "payload alignment {}; allowed are 8, 16 and 64 bytes",
                self.payload_align
            )));
        }
        Ok(())
    }

    /// The names of the settings in which these two differ.
    ///
    /// ```
    /// use chronfs::queue::Settings;
    ///
    /// let wanted = Settings { retain_bytes: Some(1 << 30), ..Settings::default() };
    /// assert_eq!(wanted.differences(&Settings::default()), ["retain_bytes"]);
    /// ```
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let same = [
            ("segment_size", self.segment_size == other.segment_size),
            ("max_bytes", self.max_bytes == other.max_bytes),
            ("retain_bytes", self.retain_bytes == other.retain_bytes),
            ("retain_age_ns", self.retain_age_ns == other.retain_age_ns),
            ("retain_segments", self.retain_segments == other.retain_segments),
            ("reader_ttl_ns", self.reader_ttl_ns == other.reader_ttl_ns),
            ("max_lag_bytes", self.max_lag_bytes == other.max_lag_bytes),
            ("roll_every_ns", self.roll_every_ns == other.roll_every_ns),
            ("payload_align", self.payload_align == other.payload_align),
        ];
        same.into_iter().filter(|(_, is_same)| !is_same).map(|(name, _)| name).collect()
    }

    /// How long a segment takes messages, in nanoseconds, from one multiple since the epoch to the next: `roll_every_ns`,
    /// or else an eighth of `retain_age_ns`. None: until it is full.
    pub fn roll_period_ns(&self) -> Option<u64> {
        self.roll_every_ns.or_else(|| self.retain_age_ns.map(|age_ns| (age_ns / 8).max(MIN_ROLL_EVERY_NS)))
    }

    /// The largest payload in bytes that fits into a segment.
    pub fn max_payload_len(&self) -> usize {
        layout::max_payload_len(self.segment_size) as usize
    }
}

/// How a reader waits for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitStrategy {
    /// Polls without pause: the lowest latency, at the cost of a processor.
    BusySpin,
    /// Polls without pause for a while, then sleeps until the writer wakes it.
    Hybrid {
        /// For how long it polls.
        spin: Duration,
    },
    /// Sleeps at once.
    Sleep,
}

/// Where a reader starts. A registered reader's position is stored there at once: it no longer needs what is before, and
/// a crash does not bring it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Start {
    /// At its committed position; a new reader or a tailer at the first retained message.
    #[default]
    Resume,
    /// At the first retained message.
    First,
    /// After the newest message.
    End,
    /// At this message, or the first one after it; after the newest message if that is before it. If retention has
    /// removed it, the reader first gets a gap that starts with it.
    Seq(u64),
    /// At the first message with this timestamp (ns since the epoch) or a later one. There is no gap if retention has
    /// removed such messages: how many is unknown.
    Time(u64),
}

/// How a reader is opened.
///
/// ```
/// use chronfs::queue::{Queue, ReaderOptions, Settings, Start, WaitStrategy};
///
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
/// let options = ReaderOptions { start: Start::End, wait: WaitStrategy::Sleep, ..ReaderOptions::default() };
/// let mut reader = queue.reader_with("newest-only", &options)?;
/// assert!(reader.next()?.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderOptions {
    /// Where it starts. Default [`Start::Resume`].
    pub start: Start,
    /// Whether every payload's checksum is verified. Default true.
    pub verify: bool,
    /// How it waits. Default [`WaitStrategy::Hybrid`] with 50 µs.
    pub wait: WaitStrategy,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        let wait = WaitStrategy::Hybrid { spin: Duration::from_micros(50) };
        Self { start: Start::Resume, verify: true, wait }
    }
}

/// How a writer is opened.
///
/// ```
/// use chronfs::queue::{Queue, Settings, SyncPolicy, WhenFull, WriterOptions};
/// use std::time::Duration;
///
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
/// let sync = SyncPolicy::Every { messages: 10_000, interval: Duration::from_millis(100) };
/// let options = WriterOptions { sync, when_full: WhenFull::Wait(Duration::from_secs(1)), ..WriterOptions::default() };
/// queue.writer_with(&options)?.append(1, b"synced within a tenth of a second")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriterOptions {
    /// When appended messages are synced to disk without being asked. Default [`SyncPolicy::Manual`].
    pub sync: SyncPolicy,
    /// What an append does when the queue's `max_bytes` is reached. Default [`WhenFull::Fail`].
    pub when_full: WhenFull,
    /// How far ahead of the wall clock a timestamp passed to [`append_at`](super::QueueWriter::append_at) may be: no
    /// later message gets an earlier one. Default 1 hour; `Duration::MAX` allows any.
    pub max_ahead: Duration,
    /// Opens a queue that is a standby ([`Role`](super::Role)), and no other one: for the program that copies another
    /// queue into it. Default false.
    pub as_standby: bool,
    /// After a power cut: continues after the last message that is still there, although readers have consumed later
    /// ones, or the writer had published them. Only for a program that appends the lost messages again, with their
    /// numbers ([`append_exact`](super::QueueWriter::append_exact)), and knows that it has all of them: other messages
    /// in their place would be taken for them. Default false: lost numbers are skipped, and readers get a gap.
    pub refill: bool,
    /// The processors on which the writer's helper threads run. Default None: they run where the thread that opens the
    /// writer runs. So a program that pins its appending thread to a processor of its own must open the writer before
    /// that, or set this.
    pub helper_cpus: Option<Cpus>,
}

/// A set of processors, by their numbers from 0 to 1023; higher ones are left out.
///
/// ```
/// use chronfs::queue::{Cpus, WriterOptions};
///
/// let options = WriterOptions { helper_cpus: Some([2, 3].into_iter().collect()), ..WriterOptions::default() };
/// assert!(options.helper_cpus.is_some_and(|cpus| cpus.contains(2) && !cpus.contains(0)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cpus([u64; 16]);

impl Cpus {
    /// Whether a processor is in the set.
    pub fn contains(&self, cpu: usize) -> bool {
        self.0.get(cpu / 64).is_some_and(|word| word & 1 << (cpu % 64) != 0)
    }

    /// The numbers of the processors, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + use<> {
        let cpus = *self;
        (0..64 * cpus.0.len()).filter(move |&cpu| cpus.contains(cpu))
    }
}

impl FromIterator<usize> for Cpus {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> Self {
        let mut set = Self::default();
        for cpu in cpus {
            if let Some(word) = set.0.get_mut(cpu / 64) {
                *word |= 1 << (cpu % 64);
            }
        }
        set
    }
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            sync: SyncPolicy::default(),
            when_full: WhenFull::default(),
            max_ahead: Duration::from_hours(1),
            as_standby: false,
            refill: false,
            helper_cpus: None,
        }
    }
}

/// When a writer syncs to disk by itself. It does so on a thread of its own: no append waits until data is on disk, and the
/// latest messages may not be there yet. A new segment's directory entry goes through the file system's journal, as the sync
/// does: a roll may take some ms longer beside one. [`flush_sync`](super::QueueWriter::flush_sync) waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SyncPolicy {
    /// Never, beyond what the operating system does.
    #[default]
    Manual,
    /// After this many messages, or this long after the first unsynced one.
    Every {
        /// Messages.
        messages: u64,
        /// Time; less than 1 ms counts as 1 ms.
        interval: Duration,
    },
}

impl SyncPolicy {
    /// The sequence number at which it asks for the next sync.
    pub(in crate::queue) fn next_sync(self, next_seq: u64) -> u64 {
        match self {
            Self::Manual => u64::MAX,
            Self::Every { messages, .. } => next_seq.saturating_add(messages.max(1)),
        }
    }
}

/// What an append does when the queue's `max_bytes` is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WhenFull {
    /// It fails with [`Error::QueueFull`] at once.
    #[default]
    Fail,
    /// It waits for readers to advance and retention to make room, and fails after this long.
    Wait(Duration),
}
