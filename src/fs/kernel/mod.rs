//! The kernel's side of the mount: the only place that names `fuser`, which mounts and answers the kernel's INIT
//! request. Requests and replies are ours: `protocol` has their structures, `device` reads and writes them, `serve` has
//! the threads, `reply` the answers. `adapter` translates requests to calls of the tree, `session` mounts and unmounts,
//! `passthrough` lets the kernel read files itself.

pub(in crate::fs) mod adapter;
pub(in crate::fs) mod device;
#[cfg(test)]
#[path = "../../../tests/common/need.rs"]
#[allow(dead_code, unreachable_pub)]
pub(in crate::fs) mod need;
#[cfg(test)]
pub(in crate::fs) mod panic_tests;
mod passthrough;
pub(in crate::fs) mod protocol;
pub(in crate::fs) mod reply;
pub(in crate::fs) mod serve;
mod session;

pub(crate) use serve::is_interrupted;
pub(crate) use session::{Ended, Session};
