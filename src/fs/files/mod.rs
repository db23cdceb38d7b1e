//! The files of the mount, one module per family. Each has the constructors for its rows of `nodes::NODES`.

pub(crate) mod append;
pub(crate) mod at_since;
pub(crate) mod backing_file;
pub(crate) mod dot_chronfs;
pub(crate) mod follow;
pub(crate) mod lease;
pub(crate) mod log;
pub(crate) mod merged;
pub(crate) mod message;
pub(crate) mod messages;
mod metrics;
pub(crate) mod readers;
pub(crate) mod ready;
mod seen;
pub(crate) mod segments;
pub(crate) mod snapshot;
pub(crate) mod status;
pub(crate) mod take;
