//! `chron-cli metrics`: what `.chronfs/metrics` of a mount shows, without a mount.

use chronfs::bus::LeaseState;
use chronfs::metrics::{BusQueue, Metrics};
use chronfs::{Queue, bus};

use crate::bus_args::MetricsArgs;
use crate::failure::{Done, Failure, Outcome, refuse_mount};
use crate::ls::{name_below, queues_below};
use crate::output::print;

pub(crate) fn run(args: &MetricsArgs) -> Outcome {
    refuse_mount(&args.root)?;
    let mut done = Done::Well;
    let mut queues = Vec::new();
    for path in queues_below(&args.root, &mut done)? {
        let inspection = Queue::open(&path).and_then(|queue| queue.inspect());
        let inspection = inspection.inspect_err(|_| done = Done::Problems).map_err(|e| Failure::from(e).tell()).ok();
        let lease = bus::lease(&path).unwrap_or_default();
        queues.push(BusQueue {
            name: name_below(&args.root, &path),
            inspection,
            is_ready: bus::ready(&path).is_ok_and(|ready| ready.is_some()),
            lease_is_live: lease.map(|lease| lease.state == LeaseState::Live),
            answers: true,
        });
    }
    print(&Metrics::of_bus(&queues).text())?;
    Ok(done)
}
