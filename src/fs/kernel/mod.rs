//! The kernel's side of the mount: the only place that names `fuser`. `adapter` translates requests and replies,
//! `session` mounts, serves and unmounts, `passthrough` hands files over to the kernel.

mod adapter;
#[cfg(test)]
pub(in crate::fs) mod panics;
mod passthrough;
mod session;

pub(crate) use session::{Session, detach};
