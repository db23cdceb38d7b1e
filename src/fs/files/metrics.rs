//! The bus as OpenMetrics text.

use crate::bus::LeaseState;
use crate::fs::files::seen::Seen;
use crate::metrics::{BusQueue, Metrics};

/// The whole text, ending with `# EOF`.
pub(in crate::fs) fn render(seen: Vec<Seen>) -> String {
    let queue = |seen: Seen| BusQueue {
        name: seen.name,
        inspection: seen.inspection,
        is_ready: seen.marks.ready,
        lease_is_live: seen.marks.lease.map(|lease| lease.state == LeaseState::Live),
        relays: seen.marks.relays,
        answers: seen.answers,
    };
    Metrics::of_bus(&seen.into_iter().map(queue).collect::<Vec<_>>()).text()
}
