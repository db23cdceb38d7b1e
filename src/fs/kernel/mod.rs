//! The kernel's side of the mount: the only place that names `fuser`. `adapter` translates requests and replies,
//! `session` mounts, serves and unmounts, `passthrough` hands files over to the kernel, `pages` are those whose text it
//! keeps in its page cache, `hand` is who writes to them.

mod adapter;
mod hand;
mod pages;
#[cfg(test)]
pub(in crate::fs) mod panics;
mod passthrough;
mod session;

pub(crate) use pages::{PageCache, PageFile, Text};
pub(crate) use session::{Ended, Session, detach};
