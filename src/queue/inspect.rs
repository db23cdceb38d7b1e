//! Inspecting a queue without a lock and without changing a byte.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::queue::entry::Bounds;
use crate::queue::error::{LockHolder, Result};
use crate::queue::files::cursor::{self, CursorFile};
use crate::queue::files::dir::Access;
use crate::queue::files::lock;
use crate::queue::files::process::{self, Life};
use crate::queue::files::segment::Segment;
use crate::queue::files::store::Store;
use crate::queue::format::block;
use crate::queue::format::layout::{CONTROL_FILE, CONTROL_WRITER, LOCK_FILE, RECORDS_START, WriterBlock};
use crate::queue::options::Settings;
use crate::queue::position::{Position, SegmentId};
use crate::queue::read::scan::{Passed, Scanner};
use crate::queue::role::Role;

/// A writer without a heartbeat for this long that still holds the lock is stuck.
const STUCK_AFTER_MS: u64 = 5_000;

/// For this long an inspection finds the exact position of each reader; for the rest, the start of the segment must do.
const EXACT_FOR: Duration = Duration::from_millis(500);

/// Everything that `chron-cli inspect` shows.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Inspection {
    /// The queue's directory.
    pub path: PathBuf,
    /// Its first and last position.
    pub bounds: Bounds,
    /// Number of retained messages, including those in gaps.
    pub messages: u64,
    /// Bytes of the retained records: headers, payloads, alignment.
    pub bytes: u64,
    /// The writer.
    pub writer: WriterInfo,
    /// The queue's settings.
    pub settings: Settings,
    /// The queue's role.
    pub role: Role,
    /// The settings that the segment which takes messages was started with, if they differ: a running writer takes over
    /// the current ones at its next segment.
    pub active_settings: Option<Settings>,
    /// The segments, in order.
    pub segments: Vec<SegmentInfo>,
    /// The registered readers, by name.
    pub readers: Vec<ReaderInfo>,
}

/// What is known of a queue's writer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriterInfo {
    /// Its state.
    pub state: WriterState,
    /// Its process id, if it can be determined from here.
    pub pid: Option<u32>,
    /// The holder of the lock, if it is held.
    pub holder: Option<LockHolder>,
    /// Whether the lock is certainly held on the current file `writer.lock`. If not, that file has been deleted or
    /// replaced under the writer (others are kept out nevertheless), or this process may not examine it.
    pub holds_file: bool,
    /// How many writers there have been.
    pub epoch: u64,
    /// Milliseconds since its last heartbeat; None if unknown: it was on another boot, or by another clock (a
    /// container's).
    pub heartbeat_age_ms: Option<u64>,
}

/// The state of a queue's writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriterState {
    /// It holds the lock and its heartbeat is recent.
    Alive,
    /// It ended without closing the queue.
    Dead,
    /// It holds the lock but has no recent heartbeat: stopped, or hanging.
    Stuck,
    /// There is none.
    None,
    /// The lock can't be examined.
    Unknown,
}

impl WriterState {
    /// The word for it in JSON and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Dead => "dead",
            Self::Stuck => "stuck",
            Self::None => "none",
            Self::Unknown => "unknown",
        }
    }
}

/// One segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentInfo {
    /// Its number.
    pub id: SegmentId,
    /// Its first sequence number; 0 if it is not in use yet, or can't be read.
    pub first_seq: u64,
    /// The sequence number of its last message; less than `first_seq` if it holds none.
    pub last_seq: u64,
    /// Size of the file in bytes; 0 if the segment can't be used.
    pub bytes: u64,
    /// Size that the file was created with; 0 if the segment can't be used.
    pub created_bytes: u64,
    /// Whether it is complete.
    pub sealed: bool,
}

/// One registered reader.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ReaderInfo {
    /// Its name.
    pub name: String,
    /// The next sequence number that it will consume; None if its cursor file is damaged.
    pub position: Option<u64>,
    /// What is wrong with its cursor file, if anything.
    pub damage: Option<String>,
    /// Whether a process is using it now, as far as is known.
    pub in_use: bool,
    /// Messages that it has not consumed.
    pub lag_messages: u64,
    /// Bytes of their records.
    pub lag_bytes: u64,
    /// Age in seconds of the newest message minus that of the next one that it will consume.
    pub lag_seconds: f64,
    /// Milliseconds since its last heartbeat; None if unknown: it was on another boot, or by another clock (a
    /// container's).
    pub heartbeat_age_ms: Option<u64>,
    /// Segments that retention keeps for it.
    pub pins_segments: u64,
    /// Bytes of those segments' files.
    pub pins_bytes: u64,
}

impl ReaderInfo {
    /// One word: `alive` (in use), `idle`, or `damaged`.
    pub fn state(&self) -> &'static str {
        match (&self.damage, self.in_use) {
            (Some(_), _) => "damaged",
            (None, true) => "alive",
            (None, false) => "idle",
        }
    }
}

impl Store {
    pub(crate) fn inspect(self: &Arc<Self>) -> Result<Inspection> {
        let look = self.look()?;
        let names = cursor::names(&self.dir)?;
        let start = Instant::now();
        let reader = |name| self.reader_info(name, &look, start.elapsed() < EXACT_FOR);
        let readers = names.into_iter().map(reader).collect();
        let Look { bounds, segments, filled } = look;
        let geometry = self.refresh();
        let settings = geometry.settings;
        Ok(Inspection {
            path: self.dir.path().to_path_buf(),
            messages: bounds.next_seq.saturating_sub(bounds.first_seq),
            bytes: filled.total(),
            writer: self.writer_info(),
            settings,
            role: Role::of(&geometry),
            active_settings: self.settings_in(bounds.head.segment).filter(|in_use| *in_use != settings),
            bounds,
            segments,
            readers,
        })
    }

    /// Whether there is certainly no writer; false if that is unknown.
    pub(crate) fn is_certainly_without_writer(&self) -> bool {
        matches!(self.writer_info().state, WriterState::None | WriterState::Dead)
    }

    pub(crate) fn writer_info(&self) -> WriterInfo {
        let control = self.dir.open_file(CONTROL_FILE, Access::Read).ok().flatten();
        let block = control.and_then(|file| block::read_block::<WriterBlock>(&file, CONTROL_WRITER));
        let epoch = block.map_or(0, |block| block.epoch.get());
        let heartbeat_age_ms = block.and_then(|b| process::heartbeat_age_ms(b.heartbeat_boot_ns.get(), b.boot_id));
        let lock_file = self.dir.open_file(LOCK_FILE, Access::Read);
        let held = lock_file.as_ref().map_err(drop).and_then(|file| match file {
            Some(file) => lock::lock_holder(file).map_err(drop),
            None => Ok(None),
        });
        let holds_file = matches!(held, Ok(Some(_)));
        // A writer that has not closed the queue: killed, or holding another lock file than the current one, or not
        // visible to us.
        let announced = block.as_ref().and_then(|block| Some((block, lock::announced(block)?)));
        let is_fresh = heartbeat_age_ms.is_some_and(|age_ms| age_ms <= STUCK_AFTER_MS);
        let stuck = if is_fresh || heartbeat_age_ms.is_none() { WriterState::Alive } else { WriterState::Stuck };
        let (state, holder) = match (held, announced) {
            (Ok(Some(holder)), _) => (stuck, Some(holder)),
            (Ok(None), None) => (WriterState::None, None),
            // The lock that it took is on another file, or it has none.
            (Ok(None), Some((block, (life, holder)))) => {
                let is_its = matches!(&lock_file, Ok(Some(file)) if lock::is_of(block, file));
                let lives = !is_its && life != Life::Gone && is_fresh;
                if lives { (WriterState::Alive, Some(holder)) } else { (WriterState::Dead, None) }
            }
            (Err(()), None) if block.is_some() => (WriterState::None, None),
            (Err(()), Some((_, (Life::Alive, holder)))) => (stuck, Some(holder)),
            (Err(()), Some((_, (Life::Gone, _)))) => (WriterState::Dead, None),
            (Err(()), Some((_, (Life::Unknown, holder)))) if is_fresh => (WriterState::Alive, Some(holder)),
            (Err(()), _) => (WriterState::Unknown, None),
        };
        let pid = match &holder {
            Some(LockHolder::Process { pid, .. }) => Some(*pid),
            _ => None,
        };
        WriterInfo { state, pid, holder, holds_file, epoch, heartbeat_age_ms }
    }

    pub(super) fn segment_infos(&self, bounds: &Bounds) -> Result<Vec<SegmentInfo>> {
        let mut infos: Vec<SegmentInfo> = Vec::new();
        for id in self.segment_ids()? {
            let segment = self.open_segment(id, Access::Read).ok().flatten();
            let seal = segment.as_ref().and_then(|segment| segment.seal());
            let first = segment
                .as_ref()
                .filter(|segment| segment.is_started().unwrap_or(false))
                .and_then(Segment::first_seq)
                .unwrap_or(0);
            let created_bytes = segment.as_ref().map_or(0, |segment| segment.context.segment_size.into());
            let bytes = segment.and_then(|segment| segment.file.metadata().ok()).map_or(0, |metadata| metadata.len());
            let next_seq = match seal {
                Some(seal) => seal.next_seq.get(),
                None if id == bounds.head.segment => bounds.next_seq,
                None => first,
            };
            let last_seq = next_seq.saturating_sub(1);
            infos.push(SegmentInfo { id, first_seq: first, last_seq, bytes, created_bytes, sealed: seal.is_some() });
        }
        Ok(infos)
    }

    /// Inspects the reader of an open cursor.
    pub(crate) fn inspect_cursor(self: &Arc<Self>, cursor: &CursorFile) -> Result<ReaderInfo> {
        let look = self.look()?;
        Ok(self.cursor_info(cursor.reader_name().to_owned(), Ok(cursor), &look, true))
    }

    /// What the figures of all readers are computed from.
    fn look(self: &Arc<Self>) -> Result<Look> {
        let bounds = self.bounds()?;
        let segments = self.segment_infos(&bounds)?;
        let filled = Filled::new(self, &bounds, segments.iter().map(|info| info.id));
        Ok(Look { bounds, segments, filled })
    }

    fn reader_info(self: &Arc<Self>, name: String, look: &Look, is_exact: bool) -> ReaderInfo {
        let file = CursorFile::open(&self.dir, &name, Access::Read);
        self.cursor_info(name, file.as_ref(), look, is_exact)
    }

    /// `is_exact`: whether there is time to find the exact message that comes next; else its segment must do.
    fn cursor_info(
        self: &Arc<Self>,
        name: String,
        file: std::result::Result<&CursorFile, &crate::queue::error::Error>,
        look: &Look,
        is_exact: bool,
    ) -> ReaderInfo {
        let Look { bounds, segments, filled } = look;
        let place = file
            .map_err(ToString::to_string)
            .and_then(|file| file.read(&self.geometry()).map(|(place, _)| place).map_err(|error| error.to_string()));
        let file = file.ok();
        let seq = place.as_ref().map_or(bounds.first_seq, |place| place.seq);
        let (position, lag_ns) = if is_exact {
            self.next_for(seq, bounds)
        } else {
            let in_use = segments.iter().rev().find(|info| info.first_seq > 0 && info.first_seq <= seq);
            let start = |info: &SegmentInfo| Position { segment: info.id, offset: RECORDS_START };
            (if seq >= bounds.next_seq { bounds.head } else { in_use.map_or(bounds.first, start) }, 0)
        };
        // What it needs starts in this segment; a damaged cursor may need everything.
        let pinned = |info: &&SegmentInfo| info.id >= position.segment && info.sealed;
        ReaderInfo {
            name,
            lag_messages: bounds.next_seq.saturating_sub(seq.max(bounds.first_seq)),
            lag_bytes: filled.from(position),
            // Seconds for people: the fraction's last digits don't matter.
            #[allow(clippy::cast_precision_loss)]
            lag_seconds: lag_ns as f64 / 1e9,
            heartbeat_age_ms: file.and_then(CursorFile::heartbeat_age_ms),
            in_use: file.is_some_and(|file| file.is_in_use() == Some(true)),
            pins_segments: segments.iter().filter(pinned).count() as u64,
            pins_bytes: segments.iter().filter(pinned).map(|info| info.bytes).sum(),
            damage: place.as_ref().err().cloned(),
            position: place.ok().map(|place| place.seq),
        }
    }

    /// The position of the reader's next message, and how much older it is than the newest one, in nanoseconds.
    pub(super) fn next_for(self: &Arc<Self>, seq: u64, bounds: &Bounds) -> (Position, u64) {
        let mut scanner = Scanner::at(Arc::clone(self), bounds.first, bounds.first_seq);
        if seq >= bounds.next_seq || scanner.seek_seq_within(seq, bounds).is_err() {
            return (bounds.head, 0);
        }
        let position = scanner.position();
        let timestamp_ns = match scanner.pass() {
            Ok(Some(Passed::Message(header, _))) => header.timestamp_ns,
            _ => bounds.last_timestamp_ns,
        };
        (position, bounds.last_timestamp_ns.saturating_sub(timestamp_ns))
    }
}

/// What is determined once for all readers.
struct Look {
    bounds: Bounds,
    segments: Vec<SegmentInfo>,
    filled: Filled,
}

/// The bytes of records in each segment of a queue; for a damaged end, as far as can be determined.
pub(super) struct Filled {
    segments: Vec<(SegmentId, u64)>,
}

impl Filled {
    pub(super) fn new(store: &Store, bounds: &Bounds, ids: impl Iterator<Item = SegmentId>) -> Self {
        let end = |id| match store.open_segment(id, Access::Read) {
            _ if id == bounds.head.segment => bounds.head.offset,
            Ok(Some(segment)) => segment.seal().map_or(RECORDS_START, |seal| seal.end_offset.get()),
            _ => RECORDS_START,
        };
        let bytes = |id| u64::from(end(id).saturating_sub(RECORDS_START));
        Self { segments: ids.filter(|id| *id <= bounds.head.segment).map(|id| (id, bytes(id))).collect() }
    }

    fn total(&self) -> u64 {
        self.segments.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The bytes of the records from a position on.
    pub(super) fn from(&self, position: Position) -> u64 {
        let later = self.segments.iter().filter(|(id, _)| *id >= position.segment);
        let all: u64 = later.map(|(_, bytes)| bytes).sum();
        all.saturating_sub(u64::from(position.offset.saturating_sub(RECORDS_START)))
    }
}
