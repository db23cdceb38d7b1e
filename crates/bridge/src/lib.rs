//! Relays chronfs queues to other engines, and archives them.

#[cfg(feature = "relay")]
pub mod relay;
