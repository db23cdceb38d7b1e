//! The queues that the mount has open, and what it knows of each.

pub(in crate::fs) mod generation;
pub(in crate::fs) mod holders;
pub(in crate::fs) mod indexer;
pub(in crate::fs) mod open_queue;
pub(in crate::fs) mod open_views;
pub(in crate::fs) mod permission;
pub(in crate::fs) mod permissions;
#[cfg(feature = "decode")]
pub(in crate::fs) mod schema;
pub(in crate::fs) mod table;
