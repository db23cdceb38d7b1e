//! The bus as OpenMetrics text.

use crate::bus::LeaseState;
use crate::fs::files::seen::Seen;
use crate::metrics::Metrics;

/// What the mount knows of a queue, besides its inspection: name, help, value; None where it has none.
type Row = (&'static str, &'static str, fn(&Seen) -> Option<bool>);

const SEEN: [Row; 4] = [
    ("chronfs_queue_readable", "Whether the queue can be read at all.", |seen| Some(seen.inspection.is_some())),
    ("chronfs_queue_answers", "Whether the queue's file system has answered in time.", |seen| Some(seen.answers)),
    ("chronfs_queue_ready", "Whether the endpoint is marked as ready.", |seen| Some(seen.ready)),
    ("chronfs_queue_lease_live", "Whether the endpoint's lease is live.", |seen| {
        seen.lease.as_ref().map(|lease| lease.state == LeaseState::Live)
    }),
];

/// The whole text, ending with `# EOF`.
pub(in crate::fs) fn render(seen: &[Seen]) -> String {
    let mut metrics = Metrics::new();
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    metrics.gauge("chronfs_build_info", "The version that serves the mount.", &version, 1.0);
    for queue in seen {
        let labels = [("queue", queue.name.as_str())];
        for (name, help, value) in SEEN {
            if let Some(value) = value(queue) {
                metrics.gauge(name, help, &labels, f64::from(u8::from(value)));
            }
        }
        if let Some(inspection) = &queue.inspection {
            metrics.queue(&labels, inspection);
        }
    }
    metrics.text()
}
