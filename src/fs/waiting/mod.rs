//! Reads and polls that wait for messages.

pub(in crate::fs) mod parked;
pub(in crate::fs) mod poll;
pub(in crate::fs) mod signals;
pub(in crate::fs) mod watch;
