//! `chron-cli metrics`: what `.chronfs/metrics` of a mount shows, without a mount. Printed once, or served to whoever
//! scrapes it.

use std::path::Path;

use chronfs::bus::LeaseState;
use chronfs::metrics::{BusQueue, Metrics};
use chronfs::{Queue, bus};

use crate::bus_args::MetricsArgs;
use crate::failure::{Done, Failure, Outcome, refuse_mount};
use crate::listen;
use crate::ls::queues_below;
use crate::names::name_below;
use crate::output::print;

pub(crate) fn run(args: &MetricsArgs) -> Outcome {
    refuse_mount(&args.root)?;
    if let Some(address) = args.listen {
        return listen::serve(address, &|| text(&args.root).map(|(text, _)| text));
    }
    let (text, done) = text(&args.root)?;
    print(&text)?;
    Ok(done)
}

/// The figures of the queues below a directory, and whether all could be read.
fn text(root: &Path) -> Result<(String, Done), Failure> {
    let mut done = Done::Well;
    let mut queues = Vec::new();
    for path in queues_below(root, &mut done)? {
        let inspection = Queue::open(&path).and_then(|queue| queue.inspect());
        let inspection = inspection.inspect_err(|_| done = Done::Problems).map_err(|e| Failure::from(e).tell()).ok();
        let lease = bus::lease(&path).unwrap_or_default();
        queues.push(BusQueue {
            name: name_below(root, &path),
            inspection,
            is_ready: bus::ready(&path).is_ok_and(|ready| ready.is_some()),
            lease_is_live: lease.map(|lease| lease.state == LeaseState::Live),
            relays: bus::relays(&path),
            answers: true,
        });
    }
    Ok((Metrics::of_bus(&queues).text(), done))
}
