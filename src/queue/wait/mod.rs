//! Sleeping and waking.

pub(in crate::queue) mod handshake;
pub(in crate::queue) mod stop;
pub(in crate::queue) mod wake;
pub(in crate::queue) mod watch;
