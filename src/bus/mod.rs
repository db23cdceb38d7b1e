//! Conventions for queues that belong together: where they are below a bus directory, the READY marker that says an
//! endpoint may be used, the LEASE by which a process says that it is alive, and how a router finds both.
//! Returns paths, and at most a handle of a queue; reads no messages.
//!
//! Invariants: READY and LEASE appear and change by rename, so nobody sees a part of them; nothing here
//! follows a symlink in the last component or blocks on a FIFO in its place.

mod appear;
mod below;
mod discovery;
mod file;
mod layout;
mod lease;
mod ready;
mod registration;
mod relays;
mod remove;

pub use appear::wait_for_queue;
pub use below::queues_below;
pub use discovery::{Change, DiscoveryEvent, Endpoint, RouterDiscovery};
pub use file::is_temporary;
pub use layout::{BusLayout, StrategyEndpoints, check_queue_name};
pub use lease::{LEASE_FILE, Lease, LeaseState, MAX_LEASE_PAYLOAD, lease, remove_lease, write_lease};
pub(crate) use ready::Marker;
pub use ready::{READY_FILE, Ready, mark_ready, ready, unmark_ready};
pub use registration::ReaderRegistration;
pub use relays::{RELAY_DIR, Relay, relays};
pub use remove::{Removal, plan_removal, remove_queue, removed_name};

pub(crate) use lease::{lease_in, read_lease, remove_lease_in, write_lease_in};
pub(crate) use ready::{mark_ready_in, ready_in, unmark_ready_in};
pub(crate) use relays::relays_in;
