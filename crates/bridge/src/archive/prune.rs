//! Deletes what is old enough from an archive, oldest first, so that what is left is without holes.

use std::time::Duration;

use serde::Serialize;

use super::marker::Marker;
use super::name::{Kind, queue_dir};
use super::shelf::{Listing, Shelf};
use super::store::{Access, Address, Store};
use crate::Result;

/// What was deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// The queue's id.
    pub queue: String,
    /// Segments.
    pub segments: u64,
    /// Bytes of their objects.
    pub stored_bytes: u64,
    /// The first sequence number that is left; None: nothing is.
    pub first_seq: Option<u64>,
}

/// Deletes the segments that were archived longer ago than this, by the store's clock, up to the first that was not.
///
/// # Errors
/// [`Failure::Again`](crate::Failure::Again) if a restore is at work, which may need them.
pub async fn prune(address: &Address, access: &Access, id: Option<u64>, older_than: Duration) -> Result<Pruned> {
    let store = Store::open(address, access)?;
    let shelf = Shelf::find(&store, id).await?;
    let (marker, listing) = Marker::set(&shelf, Kind::Pruning).await?;
    let Some(mut marker) = marker else { return Ok(Pruned::default()) };
    let pruned = oldest(&shelf, &mut marker, &listing, older_than).await;
    marker.clear().await?;
    pruned
}

async fn oldest(
    shelf: &Shelf<'_>,
    marker: &mut Marker<'_, '_>,
    listing: &Listing,
    older_than: Duration,
) -> Result<Pruned> {
    let age_ms = i64::try_from(older_than.as_millis()).unwrap_or(i64::MAX);
    let is_old = |modified_ms: i64| modified_ms < marker.now_ms(listing).saturating_sub(age_ms);
    let old: Vec<_> = listing.held.iter().take_while(|held| is_old(held.modified_ms)).collect();
    let orphans: Vec<_> = listing.orphans.iter().filter(|object| is_old(object.modified_ms)).collect();
    let first_seq = listing.held.get(old.len()).map(|held| held.name.first_seq);
    let mut pruned = Pruned { queue: queue_dir(shelf.id), first_seq, ..Pruned::default() };
    for held in old {
        marker.keep().await?;
        shelf.store.delete(&shelf.path(&held.name.object())).await?;
        shelf.store.delete(&shelf.path(&held.name.index())).await?;
        pruned.segments += 1;
        pruned.stored_bytes += held.size;
    }
    for orphan in orphans {
        shelf.store.delete(&orphan.path).await?;
    }
    Ok(pruned)
}
