//! `chron-cli inspect`: a queue's state. The texts come from [`chronfs::report`], as the mount's `status` files do.
//! Damage that shows without reading the messages is reported on stderr and makes the exit code 1.

use std::path::Path;

use chronfs::Queue;
use chronfs::bus;
use chronfs::report::{self, Lease};

use crate::InspectArgs;
use crate::failure::{Done, Outcome, REPAIR_READER, note};
use crate::output::print;

pub(crate) fn run(args: &InspectArgs) -> Outcome {
    let queue = Queue::open(&args.queue)?;
    let inspection = queue.inspect()?;
    let (ready, lease) = endpoint(&args.queue);
    let relays = bus::relays(&args.queue);
    if args.json {
        let mut json = report::inspection_json(&inspection, ready, lease.as_ref(), &relays);
        json.push('\n');
        print(&json)?;
    } else {
        print(&report::inspection_text(&inspection, ready, lease.as_ref(), &relays))?;
    }
    let control_damage = queue.control_damage().map(ToString::to_string);
    let reader_damage =
        inspection.readers.into_iter().filter_map(|reader| Some(format!("{}{REPAIR_READER}", reader.damage?)));
    let mut done = Done::Well;
    for damage in control_damage.into_iter().chain(reader_damage) {
        note(&damage);
        done = Done::Problems;
    }
    Ok(done)
}

/// What the bus says of the endpoint in this directory. A marker that can't be read is reported, and does not count.
pub(crate) fn endpoint(path: &Path) -> (bool, Option<Lease>) {
    let ready = bus::ready(path).unwrap_or_else(|e| {
        note(&e.to_string());
        None
    });
    let lease = bus::lease(path).unwrap_or_else(|e| {
        note(&e.to_string());
        None
    });
    (ready.is_some(), lease.as_ref().map(Lease::from))
}
