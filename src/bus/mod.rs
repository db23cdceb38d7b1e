//! Conventions about queues that belong together: where they lie below a bus directory, the READY marker by which an
//! endpoint says that it may be used, the LEASE by which a process says that it lives, and how a router finds both.
//! Returns paths; opens no queue to read from it.
//!
//! Invariants: READY and LEASE appear and change by rename, so whoever sees them sees all of them; nothing here
//! follows a symlink in the last component or blocks on a FIFO that somebody put there.

mod discovery;
mod file;
mod layout;
mod lease;
mod ready;
mod registration;

pub use discovery::{Change, DiscoveryEvent, Endpoint, RouterDiscovery};
pub use file::is_temporary;
pub use layout::{BusLayout, StrategyEndpoints, check_queue_name};
pub use lease::{LEASE_FILE, Lease, LeaseState, MAX_LEASE_PAYLOAD, lease, remove_lease, write_lease};
pub(crate) use ready::Marker;
pub use ready::{READY_FILE, Ready, mark_ready, ready, unmark_ready};
pub use registration::ReaderRegistration;

pub(crate) use lease::{lease_in, read_lease, remove_lease_in, write_lease_in};
pub(crate) use ready::{mark_ready_in, ready_in, unmark_ready_in};
