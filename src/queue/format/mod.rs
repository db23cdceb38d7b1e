//! The bytes: blocks, records, checksums, names. `format.md` describes them.

pub(in crate::queue) mod block;
pub(in crate::queue) mod crc;
pub mod layout;
pub(in crate::queue) mod names;
pub(in crate::queue) mod record;
