//! The files of the mount, one module per family. Each gives constructors for the rows of `nodes::NODES`.

pub(crate) mod append;
pub(crate) mod chronfs;
pub(crate) mod follow;
pub(crate) mod lease;
pub(crate) mod log;
pub(crate) mod marker;
pub(crate) mod merged;
mod metrics;
pub(crate) mod numbered;
pub(crate) mod plain;
pub(crate) mod readers;
mod seen;
pub(crate) mod segments;
pub(crate) mod status;
pub(crate) mod take;
pub(crate) mod text;
pub(crate) mod times;
pub(crate) mod views;
