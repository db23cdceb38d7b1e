//! Sealed segments of queues in object stores, and back.
//!
//! `archiver` copies a queue's segments, `restore` makes a queue of them again; `name` is what an object is called, `pack`
//! what is in it. Invariants:
//! - The listing is the archive's whole state: names that follow each other without a hole are everything. An object is
//!   written whole, once, under a name that nobody else gives, and never changed.
//! - The queue keeps a segment until it is archived: the archiver's reader is committed last.
//! - Nothing is archived unverified, and nothing restored. What comes from a store is untrusted.

mod archiver;
mod config;
mod marker;
#[cfg(feature = "mount")]
pub mod mount;
mod name;
mod pack;
mod prune;
mod restore;
mod segment;
mod shelf;
mod store;
mod verify;

pub use archiver::{ArchiveOptions, Archiver};
pub use config::{AccessConfig, Config, DEFAULT_LEVEL};
pub use prune::{Pruned, prune};
pub use restore::{RestoreOptions, Restored, restore};
pub use store::{Access, Address};
pub use verify::{Archived, ArchivedSegment, Verdict, list, verify};

use crate::{Monitors, Result, Stop, fleet};

/// Archives as the configuration says, until it is told to stop. In a [`tokio::task::LocalSet`].
///
/// # Errors
/// What an operator must decide. Of a bus: the first failure, at the end; the other queues are archived until then.
pub async fn run(config: &Config, stop: Stop, monitors: Monitors) -> Result<()> {
    config.options(None)?;
    fleet::run(&config.from, config.once, (stop.clone(), monitors), |path, below| {
        Archiver::open(path, config.options(below)?, stop.clone())
    })
    .await
}
