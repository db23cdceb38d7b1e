//! Relays chronfs queues to other engines, and archives them.

#[cfg(feature = "archive")]
pub mod archive;
pub mod args;
mod config_file;
mod failure;
mod fleet;
mod metrics;
#[cfg(feature = "relay")]
pub mod relay;
mod service;
mod state;

pub use failure::{Failure, Result};
pub use fleet::Monitors;
pub use service::{run as run_service, run_program};
pub use state::{Condition, Monitor, Stop, status};
