//! The kernel's side of the mount: the only place that names `fuser`, which mounts and answers the kernel's first
//! question. Requests and replies are ours: `protocol` has their structures, `device` reads and writes them, `serve` has
//! the threads, `reply` the answers. `adapter` translates requests to calls of the tree, `session` mounts and unmounts,
//! `passthrough` hands files over to the kernel, `pages` are those whose text it
//! keeps in its page cache, `hand` is who writes to them.

mod adapter;
mod device;
mod hand;
#[cfg(test)]
#[path = "../../../tests/common/need.rs"]
#[allow(dead_code, unreachable_pub)]
mod need;
mod pages;
#[cfg(test)]
pub(in crate::fs) mod panics;
mod passthrough;
mod protocol;
mod reply;
mod serve;
mod session;

pub(crate) use pages::{PageCache, PageFile, Text};
pub(crate) use serve::is_interrupted;
pub(crate) use session::{Ended, Session, detach};
