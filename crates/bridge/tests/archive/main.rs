//! The archive beside a directory and a real S3 server: nothing lost, nothing twice, byte for byte, whatever fails.
#![allow(clippy::unwrap_used, clippy::panic, unexpected_cfgs, unreachable_pub)]

#[path = "../../../../tests/common/mod.rs"]
mod common;
mod faults;
mod files;
mod hostile;
#[cfg(feature = "mount")]
mod mount;
mod page;
#[path = "../../../../tests/common/pages.rs"]
mod pages;
mod s3;
#[path = "../service/mod.rs"]
mod service;
mod shelf;
