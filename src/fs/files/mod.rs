//! The files of the mount, one module per family. Each gives constructors for the rows of `nodes::NODES`.

pub(crate) mod append;
pub(crate) mod follow;
pub(crate) mod marker;
pub(crate) mod plain;
pub(crate) mod readers;
pub(crate) mod status;
mod text;
pub(crate) mod views;
