//! The relay beside real servers: nothing lost, nothing twice, in order, whatever fails.
//!
//! The tests start the servers themselves, on loopback. `CHRONFS_RELAY_SOAK=3600` makes the test with random faults
//! run for so many seconds:
//!
//! ```text
//! CHRONFS_RELAY_SOAK=3600 cargo test -p chronfs-bridge --test relay faults -- --nocapture
//! ```
#![allow(clippy::unwrap_used, clippy::panic, unexpected_cfgs, unreachable_pub)]

mod access;
mod bus;
mod cluster;
#[path = "../../../../tests/common/mod.rs"]
mod common;
mod faults;
mod net;
mod partition;
mod power;
mod relay;
mod takeover;
mod targets;
