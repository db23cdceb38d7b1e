//! What the tests share.
#![allow(dead_code, unused_imports, unreachable_pub, clippy::unwrap_used, clippy::panic)]

mod disk;
#[cfg(feature = "cli")]
pub mod market;
#[cfg(feature = "cli")]
mod mount;
pub mod need;
pub mod plain_user;
mod process;
mod queue;
mod random;
mod unmount;

pub use disk::{Disk, SmallDisk, free};
#[cfg(feature = "cli")]
pub use mount::*;
pub use process::*;
pub use queue::*;
pub use random::Random;
pub use unmount::{detach, is_mounted};
