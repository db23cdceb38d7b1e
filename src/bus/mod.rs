//! Conventions about queues that belong together: where they lie below a bus directory, and the READY marker by
//! which an endpoint says that it may be used. Returns paths; opens no queue.
//!
//! Invariants: READY appears and changes by rename, so whoever sees it sees all of it; nothing here follows a
//! symlink in the last component or blocks on a FIFO that somebody put there.

mod layout;
mod ready;

pub use layout::{BusLayout, StrategyEndpoints};
pub use ready::{Marker, READY_FILE, Ready, is_temporary, mark_ready, mark_ready_as, ready, unmark_ready};
