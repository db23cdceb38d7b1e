//! chronfs: a persisted, memory-mapped message queue for one Linux host that can be mounted.
//!
//! - [`queue`]: the engine. [`Queue`], [`QueueWriter`], [`QueueReader`]; what the bytes on disk mean stands in
//!   [`queue::layout`].
//! - [`bus`]: conventions about queues that belong together.
//! - [`view`]: messages as text, as the mount and `chron-cli tail` print them.
//! - [`doctor`]: what is wrong with them.
//! - [`fs`]: the mount.
//!
//! ```
//! use chronfs::queue::Settings;
//! use chronfs::Queue;
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("ticks");
//! let queue = Queue::create(path, &Settings::default())?;
//! let mut reader = queue.reader("billing")?;
//! queue.writer()?.append(1, b"hello")?;
//! let message = reader.next()?.and_then(|entry| entry.message());
//! assert_eq!(message.map(|message| message.payload), Some(&b"hello"[..]));
//! reader.commit();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Parts of the engine and of the views serve the mount only.
#![cfg_attr(not(feature = "mount"), allow(dead_code, unused_imports))]

#[cfg(feature = "bus")]
pub mod bus;
pub mod clock;
#[cfg(feature = "mount")]
pub mod doctor;
#[cfg(feature = "mount")]
pub mod fs;
pub mod printable;
pub mod queue;
#[cfg(feature = "mount")]
pub mod report;
mod sync;
#[cfg(any(feature = "bus", feature = "view"))]
mod time;
#[cfg(feature = "view")]
pub mod view;

pub use queue::{Error, ErrorKind, Message, Queue, QueueReader, QueueWriter, Result};

#[cfg(all(doctest, feature = "cli"))]
#[doc = include_str!("../README.md")]
mod readme {}
