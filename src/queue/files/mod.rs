//! The files of a queue and their locks.

pub(in crate::queue) mod control;
pub(in crate::queue) mod cursor;
pub(in crate::queue) mod dir;
pub(in crate::queue) mod hook;
pub(in crate::queue) mod lock;
pub(in crate::queue) mod mtime;
pub(in crate::queue) mod process;
pub(in crate::queue) mod recycle;
pub(in crate::queue) mod retained;
pub(in crate::queue) mod room;
pub(in crate::queue) mod segment;
pub(in crate::queue) mod settings;
pub(in crate::queue) mod store;
