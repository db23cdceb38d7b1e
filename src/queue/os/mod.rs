//! What the operating system offers; nearly all that is unsafe.

#[cfg_attr(any(not(target_os = "linux"), chronfs_no_futex), path = "no_futex.rs")]
pub(in crate::queue) mod futex;
pub(in crate::queue) mod mapping;
pub(in crate::queue) mod origin;
pub(in crate::queue) mod sigbus;
pub(in crate::queue) mod sys;
pub(in crate::queue) mod thread;
