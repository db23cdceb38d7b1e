//! The handle of a queue: it opens the writer and the readers, and everything that only inspects the queue.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock;
use crate::queue::entry::Bounds;
use crate::queue::error::{Error, Result};
use crate::queue::files::control::{self, Geometry};
use crate::queue::files::cursor::{self, CursorFile, ReaderPosition};
use crate::queue::files::dir::{Access, Dir};
use crate::queue::files::lock::WriterLock;
use crate::queue::files::retained::RetainedMappings;
use crate::queue::files::segment::{self, Segment};
use crate::queue::files::settings;
use crate::queue::files::store::Store;
use crate::queue::format::layout::{self, CONTROL_FILE};
use crate::queue::format::names::{self, check_name, is_internal_name, parse_segment_name};
use crate::queue::inspect::{Inspection, WriterInfo};
use crate::queue::options::{ReaderOptions, Settings, Start, WriterOptions};
use crate::queue::os::sys;
use crate::queue::position::{MAX_SEQ, SegmentId};
use crate::queue::read::fan_in::FanInReader;
use crate::queue::read::notifier::Notifier;
use crate::queue::read::reader::Reader;
use crate::queue::read::registered::{QueueReader, Registered, Tailer, Unregistered};
use crate::queue::read::scan::Scanner;
use crate::queue::wait::stop::Stopper;
use crate::queue::wait::wake::Waiter;
use crate::queue::write::retention::{Retention, Retire};
use crate::queue::write::writer::QueueWriter;

/// An opened queue: it opens the writer and the readers, and everything that only inspects the queue.
///
/// Opening takes no lock and changes nothing. Cheap to clone; clones are handles of the same queue.
///
/// ```
/// use chronfs::queue::{Queue, Settings};
///
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("orders"), &Settings::default())?;
/// queue.writer()?.append(1, b"hello")?;
/// let mut reader = queue.reader("alice")?;
/// let message = reader.next()?.and_then(|entry| entry.message()).ok_or("nothing there")?;
/// assert_eq!((message.seq, message.payload), (1, &b"hello"[..]));
/// reader.commit();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Queue {
    pub(super) store: Arc<Store>,
}

impl Queue {
    /// Creates a queue, and missing parent directories.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::InvalidSetting`], [`Error::InvalidName`] for a name that a queue's own files
    /// have, [`Error::Locked`] if another process is creating it, [`Error::Io`].
    pub fn create(path: impl AsRef<Path>, settings: &Settings) -> Result<Self> {
        Self::create_at(path, settings, 1)
    }

    /// Like [`create`](Self::create), for a queue whose first message gets the number `first_seq`: a copy of a queue
    /// that starts there.
    ///
    /// # Errors
    /// As [`create`](Self::create); [`Error::NoSuchPosition`] for 0, and for a number that no queue reaches.
    pub fn create_at(path: impl AsRef<Path>, settings: &Settings, first_seq: u64) -> Result<Self> {
        let path = path.as_ref();
        if !(1..MAX_SEQ).contains(&first_seq) {
            let what = format!("a first message {first_seq}; the lowest number is 1, the highest {}", MAX_SEQ - 1);
            return Err(Error::NoSuchPosition { path: path.to_path_buf(), what });
        }
        settings.validate()?;
        let is_missing = |path: &&Path| !path.as_os_str().is_empty() && path.symlink_metadata().is_err();
        let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
        for new in missing.iter().copied().chain([path]) {
            let name = new.file_name().unwrap_or_default().to_string_lossy();
            if is_internal_name(&name) {
                // Its parent directory would look like a queue.
                let reason = "it is the name of a queue's own file";
                return Err(Error::InvalidName { name: name.into_owned(), reason });
            }
        }
        let made = std::fs::create_dir_all(path).map_err(Error::io(path, "create the queue's directory"));
        let dir = made.and_then(|()| Dir::open(path).map_err(Error::io(path, "open it")));
        dir.and_then(|dir| Self::create_in_at(dir, settings, first_seq)).inspect_err(|_| {
            // Only empty ones: what others have put there meanwhile stays.
            for dir in missing {
                let _ = std::fs::remove_dir(dir);
            }
        })
    }

    /// Like [`create`](Self::create), in a directory that is open already.
    pub(crate) fn create_in(dir: Dir, settings: &Settings) -> Result<Self> {
        Self::create_in_at(dir, settings, 1)
    }

    fn create_in_at(dir: Dir, settings: &Settings, first_seq: u64) -> Result<Self> {
        settings.validate()?;
        let exists = || Error::AlreadyExists { path: dir.path().to_path_buf() };
        if is_queue(&dir)? {
            return Err(exists());
        }
        let _lock = WriterLock::take(&dir)?;
        if is_queue(&dir)? {
            return Err(exists());
        }
        // Under the lock: a process that waits for it sees that its file is gone, and creates another one.
        let geometry = Self::fill(&dir, settings, first_seq).inspect_err(|_| drop(dir.remove(layout::LOCK_FILE)))?;
        Ok(Self { store: Store::new(dir, geometry, None) })
    }

    /// Creates the files of a queue in a directory without any. Its first message will have the number `first_seq`.
    fn fill(dir: &Dir, settings: &Settings, first_seq: u64) -> Result<Geometry> {
        let queue_id = sys::random_u64().map_err(Error::io(dir.path(), "read random bytes"))?;
        let geometry = Geometry {
            queue_id,
            created_ns: clock::now_ns(),
            generation: 0,
            first_seq,
            settings: *settings,
            is_standby: false,
            term: 0,
        };
        let first = (SegmentId(0), layout::MIN_SEGMENT_SIZE, false);
        Segment::create(dir, &geometry, first, geometry.created_ns, &mut RetainedMappings::default())?;
        // Last: this makes the directory a queue.
        if let Err(error) = control::create(dir, geometry, false) {
            // There was room for one of them only: leave neither.
            let _ = dir.remove(&names::segment_name(SegmentId(0)));
            return Err(error);
        }
        dir.sync()?;
        Ok(geometry)
    }

    /// Opens a queue. If its control block is damaged, the settings come from the segments, and
    /// [`control_damage`](Self::control_damage) reports it; the next writer repairs it.
    ///
    /// # Errors
    /// [`Error::NotAQueue`], [`Error::Damaged`] if neither control block nor segments can be used,
    /// [`Error::UnsupportedVersion`], [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        match Dir::open(path) {
            Ok(dir) => Self::open_in(dir),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(not_a_queue(path, "there is no such directory"))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                Err(not_a_queue(path, "it is not a directory"))
            }
            Err(error) => Err(Error::io(path, "open it")(error)),
        }
    }

    /// Like [`open`](Self::open), for a directory that is open already.
    pub(crate) fn open_in(dir: Dir) -> Result<Self> {
        let damage = match dir.open_file(CONTROL_FILE, Access::Read) {
            Ok(Some(file)) => match settings::newest(&dir, &file) {
                Ok(geometry) => return Ok(Self { store: Store::new(dir, geometry, None) }),
                Err(error @ (Error::Damaged { .. } | Error::Refused { .. })) => error,
                Err(error) => return Err(error),
            },
            Ok(None) => Error::damaged(&dir.path_of(CONTROL_FILE), 0, "the file is missing"),
            Err(error @ (Error::Damaged { .. } | Error::Refused { .. })) => error,
            Err(error) => return Err(error),
        };
        match segment::recover_geometry(&dir)? {
            Some(geometry) => Ok(Self { store: Store::new(dir, geometry, Some(damage)) }),
            None if is_queue(&dir)? => match Self::open_made_meanwhile(&dir) {
                Some(geometry) => Ok(Self { store: Store::new(dir, geometry, None) }),
                None => Err(damage),
            },
            None => Err(not_a_queue(dir.path(), "the directory holds no control.meta and no segments")),
        }
    }

    /// A random number that the queue got when it was created. Copies of its files share it; queues that copy its
    /// messages have their own.
    pub fn id(&self) -> u64 {
        self.store.geometry().queue_id
    }

    /// The settings of a queue whose creation was not finished when its files were first read.
    fn open_made_meanwhile(dir: &Dir) -> Option<Geometry> {
        let control = dir.open_file(CONTROL_FILE, Access::Read).ok().flatten();
        let geometry = control.and_then(|file| control::read_geometry(&file, &dir.path_of(CONTROL_FILE)).ok());
        geometry.or_else(|| segment::recover_geometry(dir).ok().flatten())
    }

    /// Opens a queue, or creates it with these settings if it does not exist.
    ///
    /// An existing queue keeps its settings, so that two programs do not undo each other's, and none an operator's.
    /// A program that wants its own must compare, and change them:
    ///
    /// ```
    /// # use chronfs::queue::{Queue, Settings};
    /// # let dir = tempfile::tempdir()?;
    /// # Queue::create(dir.path().join("q"), &Settings::default())?;
    /// let wanted = Settings { retain_bytes: Some(1 << 30), ..Settings::default() };
    /// let queue = Queue::open_or_create(dir.path().join("q"), &wanted)?;
    /// let differences = queue.settings().differences(&wanted);
    /// assert_eq!(differences, ["retain_bytes"]);
    /// queue.set(&wanted)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`create`](Self::create).
    pub fn open_or_create(path: impl AsRef<Path>, settings: &Settings) -> Result<Self> {
        match Self::open(&path) {
            Err(Error::NotAQueue { .. }) => match Self::create(&path, settings) {
                Err(Error::AlreadyExists { .. }) => Self::open(path),
                created => created,
            },
            opened => opened,
        }
    }

    /// Like [`open_or_create`](Self::open_or_create), in a directory that is open already.
    pub(crate) fn open_or_create_in(dir: &Dir, settings: &Settings) -> Result<Self> {
        let reopen = || dir.reopen().map_err(Error::io(dir.path(), "open it"));
        match Self::open_in(reopen()?) {
            Err(Error::NotAQueue { .. }) => match Self::create_in(reopen()?, settings) {
                Err(Error::AlreadyExists { .. }) => Self::open_in(reopen()?),
                created => created,
            },
            opened => opened,
        }
    }

    /// Whether a directory holds a queue, sound or damaged. False if there is no such directory. Cheap.
    ///
    /// # Errors
    /// [`Error::Io`] if that can't be determined: it may hold one.
    pub fn exists(path: impl AsRef<Path>) -> Result<bool> {
        use std::io::ErrorKind::{NotADirectory, NotFound};
        match Dir::open(path.as_ref()) {
            Ok(dir) => is_queue(&dir),
            Err(error) if matches!(error.kind(), NotFound | NotADirectory) => Ok(false),
            Err(error) => Err(Error::io(path.as_ref(), "open it")(error)),
        }
    }

    /// Checks that the queue is still in its directory, which may have been moved. For callers that wait for messages:
    /// nobody is woken when a queue is removed. [`QueueReader::wait`] checks once a second.
    ///
    /// # Errors
    /// [`Error::Io`] if it has been removed, even if there is another one in its place.
    pub fn check_present(&self) -> Result<()> {
        self.store.check_present()
    }

    /// The queue's directory, for other files in it.
    pub(crate) fn dir(&self) -> &Dir {
        &self.store.dir
    }

    /// The queue's directory, as it was given.
    pub fn path(&self) -> &Path {
        self.store.dir.path()
    }

    /// The queue's settings, as they are now: another process may change them.
    pub fn settings(&self) -> Settings {
        self.store.refresh().settings
    }

    /// Replaces the queue's settings; returns the previous ones. Every process has the new ones at once, a running
    /// writer from its next segment on. Nothing else is changed: what exceeds new limits goes with the next retention.
    ///
    /// Needs permission to write to `control.meta`. A kill or a power cut leaves the old settings or the new ones.
    ///
    /// ```
    /// use chronfs::queue::{Queue, Settings};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
    /// let settings = Settings { retain_bytes: Some(1 << 30), ..queue.settings() };
    /// assert_eq!(queue.set(&settings)?, Settings::default());
    /// assert_eq!(queue.settings(), settings);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidSetting`], [`Error::SettingsLocked`], [`Error::Damaged`] if the control block is (the next writer
    /// repairs it), [`Error::Io`].
    pub fn set(&self, settings: &Settings) -> Result<Settings> {
        self.update(|now| *now = *settings).map(|(before, _)| before)
    }

    /// Like [`set`](Self::set), for changing some of the settings: no other process changes them meanwhile. Returns the
    /// settings before and after.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn update(&self, change: impl FnOnce(&mut Settings)) -> Result<(Settings, Settings)> {
        let (before, after) = self.store.change(|geometry| change(&mut geometry.settings))?;
        Ok((before.settings, after.settings))
    }

    /// What is wrong with the control block, if anything. The queue can be read nevertheless.
    pub fn control_damage(&self) -> Option<&Error> {
        self.store.control_damage.as_ref()
    }

    /// Files in which one of two copies is damaged, with its offset: the other copy is used, and the damaged one is
    /// rewritten at its owner's next write.
    pub(crate) fn damaged_copies(&self) -> Vec<(PathBuf, u32)> {
        let (dir, geometry) = (&self.store.dir, &self.store.geometry());
        let control = dir.open_file(CONTROL_FILE, Access::Read).ok().flatten();
        let has_writer = self.writer_info().holder.is_some();
        let in_control = control.map_or_else(Vec::new, |file| control::damaged_copies(&file, has_writer));
        let in_control = in_control.into_iter().map(|offset| (dir.path_of(CONTROL_FILE), offset));
        let cursors = cursor::names(dir).unwrap_or_default();
        let in_cursors = cursors.iter().filter_map(|name| {
            let file = CursorFile::open(dir, name, Access::Read).ok()?;
            let path = dir.path_of(layout::READERS_DIR).join(cursor::file_name(name));
            Some((path, file.damaged_slot(geometry)?))
        });
        in_control.chain(in_cursors).collect()
    }

    /// The segment of the last published head, and the sequence number after the newest message at that time.
    pub(crate) fn published_head(&self) -> Option<(SegmentId, u64)> {
        self.store.head_hint().map(|head| (head.position.segment, head.next_seq))
    }

    /// As [`published_head`](Self::published_head), if the last writer closed the queue there, since the system started.
    pub(crate) fn closed_head(&self) -> Option<(SegmentId, u64)> {
        self.store.closed_at().map(|head| (head.position.segment, head.next_seq))
    }

    /// Where one of the two copies of a segment's identity is damaged; None also if it can't be used at all.
    pub(crate) fn damaged_identity(&self, id: SegmentId) -> Option<u32> {
        self.store.open_segment(id, Access::Read).ok()??.damaged_identity()
    }

    /// The numbers of the existing segment files, ascending. They may be far apart: iterate over these, never over the
    /// numbers in between.
    pub(crate) fn segment_ids(&self) -> Result<Vec<SegmentId>> {
        self.store.segment_ids()
    }

    /// Becomes the queue's writer: takes the lock and repairs what a killed writer left.
    ///
    /// # Errors
    /// [`Error::Locked`], with its holder; [`Error::Standby`]; [`Error::Io`] if there is no room or no permission.
    pub fn writer(&self) -> Result<QueueWriter> {
        self.writer_with(&WriterOptions::default())
    }

    /// Like [`writer`](Self::writer), with options.
    ///
    /// # Errors
    /// As [`writer`](Self::writer).
    pub fn writer_with(&self, options: &WriterOptions) -> Result<QueueWriter> {
        QueueWriter::open(&self.store, options)
    }

    /// Opens a registered reader; registers a new one at the first retained message.
    ///
    /// # Errors
    /// [`Error::ReaderInUse`], [`Error::InvalidName`], [`Error::Damaged`] if its cursor file is; [`Error::Io`].
    pub fn reader(&self, name: &str) -> Result<QueueReader> {
        self.reader_with(name, &ReaderOptions::default())
    }

    /// Like [`reader`](Self::reader), with options. Where it starts is stored before this returns, in one step with the
    /// registration of a new reader: a crash right afterwards does not change it.
    ///
    /// # Errors
    /// As [`reader`](Self::reader).
    pub fn reader_with(&self, name: &str, options: &ReaderOptions) -> Result<QueueReader> {
        check_name(name)?;
        let start = match options.start {
            Start::Resume => None,
            start => self.store.place_of(start, &self.bounds()?)?,
        };
        loop {
            let file = CursorFile::open(&self.store.dir, name, Access::Write);
            match file.and_then(|file| file.acquire(&self.store.geometry())) {
                Ok((mut cursor, mut place)) => {
                    let bounds = self.bounds()?;
                    if let Some(start) = start.filter(|&start| start != place) {
                        cursor.commit(start);
                        place = start;
                    }
                    return Reader::open(&self.store, Registered::new(cursor, place), place, &bounds, options);
                }
                // It is new, or has just been removed.
                Err(Error::NoSuchReader { .. }) => {
                    let place = start.map_or_else(|| Ok(ReaderPosition::first(&self.bounds()?)), Ok::<_, Error>)?;
                    cursor::create(&self.store.dir, &self.store.geometry(), name, place)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads the mapped files without registering, from the first retained message on.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn tailer(&self) -> Result<Tailer> {
        self.tailer_with(&ReaderOptions::default())
    }

    /// Like [`tailer`](Self::tailer), with options. [`Start::Resume`](super::Start::Resume) means the first retained
    /// message.
    ///
    /// # Errors
    /// As [`tailer`](Self::tailer).
    pub fn tailer_with(&self, options: &ReaderOptions) -> Result<Tailer> {
        let bounds = self.bounds()?;
        let place = self.store.place_of(options.start, &bounds)?.unwrap_or(ReaderPosition::first(&bounds));
        Reader::open(&self.store, Unregistered, place, &bounds, options)
    }

    /// Reads from the first retained message on without registering: nothing is pinned, nothing changes.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory can't be read.
    pub fn scan(&self) -> Result<Scanner> {
        let bounds = self.bounds()?;
        Ok(Scanner::at(Arc::clone(&self.store), bounds.first, bounds.first_seq))
    }

    /// A waiter, for sleeping until a message may have come.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the control block is too short, [`Error::Io`].
    pub fn waiter(&self) -> Result<Waiter> {
        self.store.waiter()
    }

    /// A descriptor for event loops that becomes readable when messages come.
    ///
    /// # Errors
    /// [`Error::Io`] if there are too many descriptors or threads.
    pub fn notifier(&self) -> Result<Notifier> {
        Notifier::start(&self.store)
    }

    /// Where the queue starts and ends now.
    ///
    /// # Errors
    /// [`Error::Io`] if a file can't be read.
    pub fn bounds(&self) -> Result<Bounds> {
        self.store.bounds()
    }

    /// All that is known of the queue. Takes no lock, changes nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if a file can't be read.
    pub fn inspect(&self) -> Result<Inspection> {
        self.store.inspect()
    }

    /// What is known of the queue's writer.
    pub fn writer_info(&self) -> WriterInfo {
        self.store.writer_info()
    }

    /// Removes the segments that the queue's limits (`retain_bytes`, `retain_segments`, `retain_age_ns`) no longer keep
    /// and no live reader needs. A running writer does this by itself. If there is none, and the active segment's time
    /// is over ([`Settings::roll_period_ns`]), it is ended first, so that retention by age can remove it.
    ///
    /// # Errors
    /// [`Error::Io`] if a file can't be read, removed or created.
    pub fn apply_retention(&self) -> Result<Retention> {
        self.store.apply_retention()
    }

    /// What [`apply_retention`](Self::apply_retention) would remove, and what keeps the rest. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if a file can't be read.
    pub fn plan_retention(&self) -> Result<Retention> {
        self.store.retain(Retire::Not)
    }
}

/// What users move to other threads.
#[allow(dead_code)]
fn assert_threads() {
    fn send<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    shared::<Queue>();
    shared::<Waiter>();
    shared::<Notifier>();
    shared::<crate::queue::KeptMessage>();
    send::<QueueWriter>();
    send::<QueueReader>();
    send::<Tailer>();
    shared::<Stopper>();
    send::<FanInReader>();
    send::<Scanner>();
    #[cfg(feature = "async")]
    send::<crate::queue::AsyncReader>();
}

fn not_a_queue(path: &Path, reason: &str) -> Error {
    Error::NotAQueue { path: path.to_path_buf(), reason: reason.to_owned() }
}

/// Whether a directory holds a queue.
pub(crate) fn is_queue(dir: &Dir) -> Result<bool> {
    let names = dir.names()?;
    Ok(names.iter().any(|name| name == CONTROL_FILE || parse_segment_name(name).is_some()))
}
