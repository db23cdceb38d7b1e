//! The kernel's side of the mount: the only place that names `fuser`. `adapter` translates requests and replies,
//! `session` mounts, serves and unmounts.

mod adapter;
mod session;

pub(crate) use session::{Session, detach};
