//! Restores and prunes keep out of each other's way, on whatever hosts they run.
//!
//! Each writes an empty object first, then lists: of two that overlap at least one sees the other and gives way. Stores
//! show what was written to every later listing. Whether a marker still counts is decided by the store's clock alone:
//! what it says of our own marker is now. A process that is killed leaves its marker, which counts for an hour.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::{Duration, Instant};

use object_store::path::Path;

use super::name::Kind;
use super::shelf::{Listing, Shelf};
use crate::{Failure, Result};

/// How long a marker counts after it was written.
const COUNTS_FOR: Duration = Duration::from_secs(3600);
/// It is written again this often, where there is an opportunity.
const AGAIN_AFTER: Duration = Duration::from_secs(300);

/// A marker that this process has written.
pub(super) struct Marker<'a, 'b> {
    shelf: &'b Shelf<'a>,
    path: Path,
    name: String,
    kind: Kind,
    written: Instant,
}

impl<'a, 'b> Marker<'a, 'b> {
    /// Writes a marker; then lists. None in place of the marker: a restore that can't write goes on without one.
    ///
    /// # Errors
    /// If a process that must not be disturbed is at work.
    pub(super) async fn set(shelf: &'b Shelf<'a>, kind: Kind) -> Result<(Option<Self>, Listing)> {
        let word = if kind == Kind::Pruning { "pruning" } else { "restoring" };
        // Random keys: no two processes have the same.
        let name = format!("{word}.{:016x}", RandomState::new().build_hasher().finish());
        let marker = Self { shelf, path: shelf.path(&name), name, kind, written: Instant::now() };
        match shelf.store.replace(&marker.path).await {
            Ok(()) => {}
            // It may be that it may only read.
            Err(error) if kind == Kind::Restoring => {
                let marker = shelf.shown(&marker.name);
                eprintln!("chron-archive: {marker}: {error}: a prune at the same time would not be noticed");
                return Ok((None, shelf.list().await?));
            }
            Err(error) => return Err(Failure::Again(format!("{}: {error}", shelf.shown(&marker.name)))),
        }
        let listing = match shelf.list().await {
            Ok(listing) => listing,
            Err(failure) => return marker.clear().await.and(Err(failure)),
        };
        match marker.other(&listing) {
            None => Ok((Some(marker), listing)),
            Some(other) => {
                marker.clear().await?;
                let (what, other) = (if kind == Kind::Pruning { "restore" } else { "prune" }, shelf.shown(&other));
                Err(Failure::Again(format!(
                    "a {what} is at work: try again when it has ended. If it was killed, delete {other}, or wait an hour"
                )))
            }
        }
    }

    /// The time by the store's clock when it was listed, in ms since the epoch.
    pub(super) fn now_ms(&self, listing: &Listing) -> i64 {
        let own = listing.markers.iter().find(|(_, object)| object.name == self.name);
        own.map_or(0, |(_, own)| own.modified_ms)
    }

    /// A marker of the other kind that counts.
    fn other(&self, listing: &Listing) -> Option<String> {
        let counts_for = i64::try_from(COUNTS_FOR.as_millis()).unwrap_or(i64::MAX);
        let oldest = self.now_ms(listing).saturating_sub(counts_for);
        let other = listing.markers.iter().find(|(kind, object)| *kind != self.kind && object.modified_ms >= oldest);
        other.map(|(_, object)| object.name.clone())
    }

    /// Keeps it counting.
    ///
    /// # Errors
    /// If it can't be written again in time.
    pub(super) async fn keep(&mut self) -> Result<()> {
        if self.written.elapsed() < AGAIN_AFTER {
            return Ok(());
        }
        let written = self.shelf.store.replace(&self.path).await;
        if written.is_ok() {
            self.written = Instant::now();
        } else if self.written.elapsed() > COUNTS_FOR / 2 {
            return Err(Failure::Again(format!("{}: cannot write it any more", self.shelf.shown(&self.name))));
        }
        Ok(())
    }

    pub(super) async fn clear(self) -> Result<()> {
        self.shelf.store.delete(&self.path).await
    }
}
