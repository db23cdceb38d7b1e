//! The writer, its helper threads, and their work besides appending.

mod after_roll;
pub(in crate::queue) mod ahead;
mod append;
mod burst;
pub(in crate::queue) mod exact;
pub(in crate::queue) mod gate;
pub(in crate::queue) mod growth;
pub(in crate::queue) mod handover;
pub(in crate::queue) mod housekeeper;
#[cfg(test)]
mod idle_tests;
pub(in crate::queue) mod prefault;
pub(in crate::queue) mod progress;
mod promote;
pub(in crate::queue) mod recover;
pub(in crate::queue) mod reserve;
pub(in crate::queue) mod retention;
mod roll;
pub(in crate::queue) mod stats;
mod sync;
pub(in crate::queue) mod writer;
