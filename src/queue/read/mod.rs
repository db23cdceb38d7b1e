//! Readers, scanners, and how they find their position.

#[cfg(feature = "async")]
pub(in crate::queue) mod async_reader;
pub(in crate::queue) mod back;
pub(in crate::queue) mod bounds;
pub(in crate::queue) mod fan_in;
pub(in crate::queue) mod kept;
pub(in crate::queue) mod mapped;
pub(in crate::queue) mod notifier;
pub(in crate::queue) mod place;
pub(in crate::queue) mod reader;
pub(in crate::queue) mod registered;
pub(in crate::queue) mod resync;
pub(in crate::queue) mod scan;
pub(in crate::queue) mod sealed;
pub(in crate::queue) mod seek;
pub(in crate::queue) mod stats;
pub(in crate::queue) mod waiting;
