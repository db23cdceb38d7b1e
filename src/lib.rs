//! chronfs: a persistent, memory-mapped message queue for one Linux host that can be mounted.
//!
//! One process appends to a queue and any number of others read it; the queue is a directory of files that all of them
//! map. An append is a copy, a checksum and a store, without a system call; a read lends the payload from the mapping.
//!
//! ```
//! use chronfs::Queue;
//! use chronfs::queue::{Entry, Settings};
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("ticks");
//! let queue = Queue::create(path, &Settings::default())?;
//! let mut reader = queue.reader("billing")?;
//! queue.writer()?.append(1, b"hello")?;
//! while let Some(entry) = reader.next()? {
//!     match entry {
//!         Entry::Message(message) => assert_eq!((message.seq, message.payload), (1, &b"hello"[..])),
//!         Entry::Gap(gap) => eprintln!("messages {} to {} are missing: {}", gap.from, gap.to, gap.reason.as_str()),
//!     }
//!     reader.commit();
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Modules and features
//!
//! | module | feature | what |
//! |---|---|---|
//! | [`queue`] | | the engine: [`Queue`], [`QueueWriter`], [`QueueReader`]; the bytes on disk: [`queue::layout`] |
//! | [`metrics`] | | figures of queues, writers and readers as OpenMetrics text |
//! | [`queue`] | `async` | `AsyncReader`: futures and streams for tokio and any other runtime |
//! | `bus` | `bus` | conventions about queues that belong together: paths, READY, leases, discovery |
//! | `decode` | `decode` | payloads as `schema.toml` says: fixed layouts, SBE, protobuf, FIX, JSON |
//! | `view` | `view` | messages as text, as the mount and `chron-cli tail` print them |
//! | `report` | `bus`, `view` | the state of queues as text and JSON |
//! | `fs`, `doctor` | `mount` | the FUSE mount; what is wrong with queues |
//!
//! The default feature, `cli`, adds the command. Programs that only use queues should set `default-features = false`.
//!
//! # Durability
//!
//! A message for which [`append`](QueueWriter::append) has returned survives the death of the process, even by SIGKILL
//! at the next instruction: it is in the page cache. It survives a power cut once
//! [`flush_sync`](QueueWriter::flush_sync) has returned; [`SyncPolicy`](queue::SyncPolicy) syncs in the background. The
//! same holds for a reader's position with [`commit`](QueueReader::commit) and
//! [`commit_sync`](QueueReader::commit_sync). A reader that is killed between processing and committing gets the
//! messages since its last commit again: at least once, in order.
//!
//! # Ordering
//!
//! A queue has one writer at a time; the kernel's file lock decides. Sequence numbers start at 1 and rise by one;
//! timestamps (nanoseconds since the epoch) never decrease. Every reader sees all messages in this order. Messages of
//! different queues are ordered by timestamp only: [`FanInReader`](queue::FanInReader) merges by it.
//!
//! # Gaps
//!
//! Damage, messages lost in a power cut and messages that retention removed before they were read are not errors. They
//! are reported in their place as [`Entry::Gap`](queue::Entry::Gap), with the missing sequence numbers and the reason,
//! and reading continues after them. An [`Error`] means that the system refused something or that the call was wrong;
//! [`Error::kind`] says what can be done about it.
//!
//! # Threads and processes
//!
//! [`Queue`], [`Waiter`](queue::Waiter), [`Notifier`](queue::Notifier) and [`Stopper`](queue::Stopper) are `Send` and
//! `Sync`. [`QueueWriter`], [`QueueReader`], [`Tailer`](queue::Tailer), [`FanInReader`](queue::FanInReader) and
//! [`Scanner`](queue::Scanner) are `Send`: one thread uses them at a time. A writer has helper threads, which end when it is dropped.
//!
//! A writer, a reader and a notifier belong to the process that opened them. In a child forked while they were open,
//! each call returns an error ([`Error::Forked`]; [`QueueReader::commit`] does nothing), and dropping them there
//! affects neither the queue nor its locks: open them after the fork. An opened [`Queue`], its scanners and its
//! tailers may be used on both sides. The locks are held for as long as either process has the descriptors open.
//!
//! Removing a queue wakes nobody. [`QueueReader::wait`] checks once a second and returns an error; callers that wait
//! with a [`Waiter`](queue::Waiter) must call [`Queue::check_present`]. The writer of a removed queue refuses further
//! work within a second.
//!
//! # Signals
//!
//! Opening a reader or writer installs a SIGBUS handler for the addresses of this library's mappings only, so that
//! truncating a file under it is an error and does not kill the process. Other faults go to the handler that was
//! installed before. Call [`disable_sigbus_handler`](queue::disable_sigbus_handler) first to do without. No other
//! signal is touched.
//!
//! # Trust
//!
//! Files are treated as hostile: whatever is in them, there is no panic, no hang and no access outside a mapping. A
//! payload is verified before it is lent, but it lies in memory that other processes map too: a process that may write
//! to the queue's files can change it afterwards, and one that truncates them turns it to zeros. A program that reads
//! queues of a writer that it does not trust must copy the payload before checking it, or use a
//! [`Scanner`](queue::Scanner), which copies before it verifies; see [`Message::payload`]. A queue is not protected
//! from those who may write to its directory.
//!
//! How this is tested: `docs/reliability.md` in the repository.

// Parts of the engine and of the views serve the mount only.
#![cfg_attr(not(feature = "mount"), allow(dead_code, unused_imports))]

#[cfg(feature = "bus")]
pub mod bus;
pub mod clock;
#[cfg(feature = "decode")]
pub use chronfs_decode as decode;
#[cfg(feature = "mount")]
pub mod doctor;
#[cfg(feature = "mount")]
pub mod fs;
pub mod metrics;
pub mod printable;
pub mod queue;
#[cfg(all(feature = "bus", feature = "view"))]
pub mod report;
#[cfg(feature = "mount")]
pub mod settings;
mod sync;
#[cfg(any(feature = "bus", feature = "view"))]
mod time;
#[cfg(feature = "view")]
pub mod view;

/// The crate of the traits that [`QueueWriter::append_as`], [`Message::read`] and [`Message::payload_as`] ask for. It is
/// part of this crate's interface: its next incompatible version makes one of this crate.
pub use zerocopy;

pub use queue::{Error, ErrorKind, Message, Queue, QueueReader, QueueWriter, Result};

#[cfg(all(doctest, feature = "cli"))]
#[doc = include_str!("../README.md")]
mod readme {}

#[cfg(all(doctest, feature = "cli"))]
#[doc = include_str!("../docs/library.md")]
mod library_page {}
