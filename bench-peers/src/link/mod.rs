//! The ways to send messages, all driven by the same code.

#[cfg(feature = "aeron")]
mod aeron;
mod chron;
mod descriptors;
mod floor;
mod iceoryx;
mod shell;

#[cfg(feature = "aeron")]
pub(crate) use aeron::Aeron;
pub(crate) use chron::{Chron, Packets};
pub(crate) use descriptors::{Pipe, Socket};
pub(crate) use floor::{Checks, Copied, Word};
pub(crate) use iceoryx::Iceoryx;
pub(crate) use shell::{Follow, TailF};

use crate::Result;
use crate::pair::Job;

/// The leader sends `THERE` and receives `BACK`, the other one the reverse.
pub(crate) const THERE: &str = "there";
pub(crate) const BACK: &str = "back";

/// One way to send messages from one process to another.
pub(crate) trait Link: Sized {
    type Tx: Tx;
    type Rx: Rx;
    /// In the leader, before the other is started.
    fn make(job: &Job) -> Result<Self>;
    /// In the other one.
    fn join(job: &Job) -> Result<Self>;
    fn tx(&mut self, name: &str) -> Result<Self::Tx>;
    fn rx(&mut self, name: &str) -> Result<Self::Rx>;
}

pub(crate) trait Tx {
    fn send(&mut self, payload: &[u8]) -> Result<()>;
}

pub(crate) trait Rx {
    /// Passes the available messages to `f`, at most `max`; returns how many.
    fn poll(&mut self, max: usize, f: impl FnMut(&[u8])) -> Result<usize>;
    /// Sleeps until there may be one.
    fn wait(&mut self) -> Result<()>;
}
