//! The engine: one writer, many independent readers, append-only mapped segment files.
//!
//! Files and memory only; no FUSE, no bus, no text. What the bytes mean stands in [`layout`] (its page is `format.md`).
//! The way of a message: [`QueueWriter::append`] (`writer.rs`) fills a record of the active segment (`record.rs`,
//! `mapping.rs`), stores its commit word and wakes who sleeps (`wake.rs`); [`QueueReader::next`] (`reader.rs`) loads the
//! commit word, verifies, and lends the payload; [`QueueReader::commit`] stores the cursor (`cursor.rs`).
//!
//! Everything that only looks ([`Scanner`], [`Queue::inspect`]) reads by `pread` and changes no byte.

mod block;
mod bounds;
mod control;
mod crc;
mod cursor;
mod dir;
mod entry;
mod error;
mod fan_in;
#[cfg_attr(any(not(target_os = "linux"), chronfs_no_futex), path = "no_futex.rs")]
mod futex;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod handshake;
mod housekeeper;
mod inspect;
pub mod layout;
mod lock;
mod mapped;
mod mapping;
mod mtime;
mod names;
mod notifier;
mod options;
mod origin;
mod position;
mod prefault;
mod process;
mod queue;
mod reader;
mod record;
mod recover;
mod recycle;
mod reserve;
mod resync;
mod retained;
mod retention;
mod room;
mod scan;
mod sealed;
mod seek;
mod segment;
mod sigbus;
mod store;
mod sys;
mod thread;
mod wake;
mod writer;

pub use entry::{Bounds, Entry, Gap, GapReason, Message};
pub use error::{Error, ErrorKind, LockHolder, Result};
pub use fan_in::{FanInEntry, FanInReader, SourceId};
pub use inspect::{Inspection, ReaderInfo, SegmentInfo, WriterInfo, WriterState};
pub use mapped::Available;
pub use names::{MAX_NAME_LEN, check_name};
pub(crate) use names::{is_internal_name, parse_segment_name, segment_name};
pub use notifier::Notifier;
pub use options::{Checksum, ReaderOptions, Settings, Start, SyncPolicy, WaitStrategy, WhenFull, WriterOptions};
pub use position::{Position, SegmentId};
pub use queue::Queue;
pub(crate) use queue::is_queue;
pub use reader::QueueReader;
pub use reserve::{Batch, Reservation};
pub use retention::{Ignored, IgnoredReason, Pin, Retention};
pub use scan::Scanner;
pub(crate) use sealed::{FINGERPRINT_LEN, Sealed};
pub use sigbus::leave_sigbus_alone;
#[cfg(feature = "mount")]
pub(crate) use wake::{Bell, Woken};
pub use wake::{WaitTicket, Waiter, wait_any};
pub use writer::QueueWriter;

pub(crate) use cursor::CursorFile;
pub(crate) use dir::{Access as FileAccess, Dir};
pub(crate) use process::start_of;
pub(crate) use sys::{close_backing, leave_descriptor_table, leave_shared_umask, set_file_ids};
