//! chronfs: a persisted, memory-mapped message queue for one Linux host that can be mounted.

pub mod clock;
pub mod queue;
mod sync;

pub use queue::{Error, Message, Queue, QueueReader, QueueWriter, Result};
