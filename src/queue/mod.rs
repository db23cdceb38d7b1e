//! The engine: one writer, many independent readers, append-only mapped segment files.
//!
//! Files and memory only; no FUSE, no bus, no text. [`layout`] defines the bytes (its page is `format.md`). The path of
//! a message: [`QueueWriter::append`] (`writer.rs`) fills a record of the active segment (`record.rs`, `mapping.rs`),
//! stores its commit word and wakes sleepers (`wake.rs`); [`QueueReader::next`] (`reader.rs`) loads the commit word,
//! verifies, and lends the payload; [`QueueReader::commit`] stores the cursor (`cursor.rs`).
//!
//! Everything that only inspects ([`Scanner`], [`Queue::inspect`]) reads by `pread` and changes no byte.

mod entry;
mod error;
mod files;
mod format;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod handle;
mod inspect;
mod options;
mod os;
mod position;
mod read;
mod registry;
mod role;
mod wait;
mod write;

pub use entry::{Bounds, Entry, Gap, GapReason, Message, UpstreamGap};
pub use error::{Error, ErrorKind, LockHolder, Result};
pub use files::hook::Removal;
pub use format::layout;
pub use format::names::{MAX_NAME_LEN, check_name};
pub(crate) use format::names::{is_internal_name, parse_segment_name, segment_name};
pub use handle::Queue;
pub(crate) use handle::is_queue;
pub use inspect::{Inspection, ReaderInfo, SegmentInfo, WriterInfo, WriterState};
pub use options::{Cpus, ReaderOptions, Settings, Start, SyncPolicy, WaitStrategy, WhenFull, WriterOptions};
pub use os::sigbus::disable_sigbus_handler;
pub use position::{Position, SegmentId};
#[cfg(feature = "async")]
pub use read::async_reader::{AsyncReader, EntryStream, OwnedEntry, OwnedMessage};
pub use read::fan_in::{FanInEntry, FanInReader, SourceId};
pub use read::kept::{KeptEntry, KeptMessage};
pub use read::mapped::Available;
pub use read::notifier::Notifier;
pub use read::reader::{Reader, Registration};
pub use read::registered::{QueueReader, Registered, Tailer, Unregistered};
pub use read::scan::Scanner;
pub(crate) use read::sealed::{FINGERPRINT_LEN, Sealed};
pub use read::sealed::{FinishedSegment, SegmentBlocks};
pub use read::stats::ReaderStats;
pub use role::Role;
pub use wait::stop::Stopper;
#[cfg(feature = "mount")]
pub(crate) use wait::wake::{Bell, Woken};
pub use wait::wake::{WaitTicket, Waiter, wait_any};
pub use write::exact::Exact;
pub use write::reserve::{Batch, Reservation};
pub use write::retention::{ActiveSegment, Ignored, IgnoredReason, Pin, Retention};
pub use write::stats::WriterStats;
pub use write::writer::QueueWriter;

pub(crate) use files::cursor::{CursorFile, hold as lock_reader, names as reader_names};
pub(crate) use files::dir::{Access as FileAccess, Dir};
pub(crate) use files::lock::{WriterLock, is_named};
pub(crate) use files::process::start_of;
pub(crate) use os::sys::{
    close_backing, give_memory_back, leave_descriptor_table, leave_shared_umask, random_u64, set_file_ids,
};
