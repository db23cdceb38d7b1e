//! Figures as OpenMetrics text, for Prometheus and others: what `.chronfs/metrics` of a mount shows, and what a service
//! can serve of its own queues, writers and readers. Pure: nothing is read here, and nothing is served.

use std::fmt::Write as _;

#[cfg(feature = "bus")]
use crate::bus::Relay;
use crate::printable::printable_lines;
use crate::queue::{Inspection, ReaderInfo, ReaderStats, WriterState, WriterStats};

/// Names and values of labels.
pub type Labels<'a> = [(&'a str, &'a str)];

/// What is shown of one kind of object: name, help, value; no value where there is none.
type Row<T> = (&'static str, &'static str, fn(&T) -> Option<f64>);

const QUEUE: &[Row<Inspection>] = &[
    ("messages", "Retained messages.", |i| Some(number(i.messages))),
    ("bytes", "Bytes of the retained records.", |i| Some(number(i.bytes))),
    ("first_seq", "Sequence number of the first retained message.", |i| Some(number(i.bounds.first_seq))),
    ("last_seq", "Sequence number of the newest message.", |i| Some(number(i.bounds.next_seq.saturating_sub(1)))),
    ("last_message_timestamp_seconds", "When the newest message was appended, Unix time.", |i| {
        (i.bounds.last_timestamp_ns > 0).then(|| number(i.bounds.last_timestamp_ns) / 1e9)
    }),
    ("segments", "Segment files.", |i| Some(number(i.segments.len().try_into().unwrap_or(u64::MAX)))),
    ("segment_bytes", "Bytes of the segment files.", |i| Some(number(i.segments.iter().map(|s| s.bytes).sum()))),
    ("writer_alive", "Whether a process holds the writer lock and its heartbeat is fresh.", |i| {
        Some(flag(i.writer.state == WriterState::Alive))
    }),
    ("writer_stuck", "Whether the writer holds the lock and its heartbeat has stopped.", |i| {
        Some(flag(i.writer.state == WriterState::Stuck))
    }),
    ("writer_epoch", "Number of writers so far.", |i| Some(number(i.writer.epoch))),
];

/// A queue of a bus, and what is known of it as an endpoint.
#[cfg(feature = "bus")]
#[derive(Debug, Clone)]
pub struct BusQueue {
    /// Its path below the bus directory.
    pub name: String,
    /// None if it can't be read.
    pub inspection: Option<Inspection>,
    /// Whether it is marked as ready.
    pub is_ready: bool,
    /// None without a lease.
    pub lease_is_live: Option<bool>,
    /// What relays it.
    pub relays: Vec<Relay>,
    /// Whether its file system has answered in time.
    pub answers: bool,
}

#[cfg(feature = "bus")]
const ENDPOINT: &[Row<BusQueue>] = &[
    ("readable", "Whether the queue can be read at all.", |q| Some(flag(q.inspection.is_some()))),
    ("answers", "Whether the queue's file system has answered in time.", |q| Some(flag(q.answers))),
    ("ready", "Whether the endpoint is marked as ready.", |q| Some(flag(q.is_ready))),
    ("lease_live", "Whether the endpoint's lease is live.", |q| q.lease_is_live.map(flag)),
];

#[cfg(feature = "bus")]
const RELAY: &[Row<Relay>] = &[
    ("healthy", "Whether the relay is at work, and makes progress if it lags; or was stopped by somebody.", |r| {
        Some(flag(r.trouble().is_none()))
    }),
    ("lag_messages", "Messages that the other side lacks.", |r| Some(number(r.lag_messages))),
    ("lag_bytes", "Bytes of their records.", |r| Some(number(r.lag_bytes))),
    ("lag_seconds", "Age of the oldest of them.", |r| Some(r.lag_seconds)),
    ("last_progress_seconds", "Time since the other side got something, or lacked nothing.", |r| {
        Some(r.seconds_since_progress())
    }),
];

const REGISTERED: &[Row<ReaderInfo>] = &[
    ("position", "The next sequence number that the reader will consume.", |r| r.position.map(number)),
    ("lag_messages", "Messages that the reader has not consumed.", |r| Some(number(r.lag_messages))),
    ("lag_bytes", "Bytes of the records that the reader has not consumed.", |r| Some(number(r.lag_bytes))),
    ("lag_seconds", "Time from the reader's next message to the newest one.", |r| Some(r.lag_seconds)),
    ("in_use", "Whether a process is using the reader.", |r| Some(flag(r.in_use))),
    ("damaged", "Whether the reader's cursor file is damaged.", |r| Some(flag(r.damage.is_some()))),
    ("pinned_segments", "Segments that retention keeps for the reader.", |r| Some(number(r.pins_segments))),
    ("pinned_bytes", "Bytes of those segments.", |r| Some(number(r.pins_bytes))),
];

const WRITER: &[Row<WriterStats>] = &[
    ("appended_messages", "Messages that this writer has appended.", |w| Some(number(w.appended))),
    ("appended_bytes", "Bytes of their records.", |w| Some(number(w.bytes))),
    ("rolls", "Segments that this writer has left for the next one.", |w| Some(number(w.rolls))),
    ("waited_seconds", "Time for which appends have waited for room.", |w| Some(w.waited.as_secs_f64())),
    ("wakes", "Wakes of sleeping readers.", |w| Some(number(w.wakes))),
    ("syncs", "Syncs to disk.", |w| Some(number(w.syncs))),
    ("failed_syncs", "Syncs to disk that have failed.", |w| Some(number(w.failed_syncs))),
];

const READER: &[Row<ReaderStats>] = &[
    ("received_messages", "Messages that this reader has returned.", |r| Some(number(r.received))),
    ("gaps", "Gaps that this reader has returned.", |r| Some(number(r.gaps))),
    ("lost_messages", "Messages missing in these gaps.", |r| Some(number(r.lost))),
    ("waits", "Waits that found nothing at first.", |r| Some(number(r.waits))),
    ("wakes", "Sleeps that the writer has ended.", |r| Some(number(r.wakes))),
];

/// OpenMetrics text of any number of objects, added in any order.
///
/// ```
/// # use chronfs::queue::{Queue, Settings};
/// use chronfs::metrics::Metrics;
///
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("eur"), &Settings::default())?;
/// let writer = queue.writer()?;
/// let mut metrics = Metrics::new();
/// metrics.writer(&[("queue", "prices/eur")], &writer.stats());
/// metrics.queue(&[("queue", "prices/eur")], &queue.inspect()?);
/// metrics.gauge("feed_connected", "Whether the feed is connected.", &[], 1.0);
/// let text = metrics.text();
/// assert!(text.contains("chronfs_queue_messages{queue=\"prices/eur\"} 0\n"));
/// assert!(text.ends_with("# EOF\n"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// In the order of their first samples.
    families: Vec<Family>,
}

#[derive(Debug, Clone)]
struct Family {
    name: String,
    kind: &'static str,
    help: String,
    samples: String,
}

impl Metrics {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// All queues of a bus, labelled `queue`, and the version of chronfs.
    #[cfg(feature = "bus")]
    pub fn of_bus(queues: &[BusQueue]) -> Self {
        let mut metrics = Self::new();
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        metrics.gauge("chronfs_build_info", "The version of chronfs.", &version, 1.0);
        for queue in queues {
            let labels = [("queue", queue.name.as_str())];
            metrics.gauges("queue", ENDPOINT, &labels, queue);
            if let Some(inspection) = &queue.inspection {
                metrics.queue(&labels, inspection);
            }
            for relay in &queue.relays {
                metrics.relay(&labels, relay);
            }
        }
        metrics
    }

    /// Adds a queue, and its registered readers with one more label, `reader`: `chronfs_queue_…`, `chronfs_reader_…`.
    pub fn queue(&mut self, labels: &Labels<'_>, inspection: &Inspection) {
        self.gauges("queue", QUEUE, labels, inspection);
        for reader in &inspection.readers {
            let labels: Vec<_> = labels.iter().copied().chain([("reader", reader.name.as_str())]).collect();
            self.gauges("reader", REGISTERED, &labels, reader);
        }
    }

    /// Adds a relay of a queue, with two more labels, `relay` and `direction`: `chronfs_relay_…`.
    #[cfg(feature = "bus")]
    pub fn relay(&mut self, labels: &Labels<'_>, relay: &Relay) {
        let more = [("relay", relay.name.as_str()), ("direction", relay.direction.as_str())];
        self.gauges("relay", RELAY, &[labels, &more].concat(), relay);
    }

    /// Adds what a writer of this process has done: `chronfs_writer_…_total`.
    pub fn writer(&mut self, labels: &Labels<'_>, stats: &WriterStats) {
        self.counters("writer", WRITER, labels, stats);
    }

    /// Adds what a reader of this process has done: `chronfs_reader_…_total`.
    pub fn reader(&mut self, labels: &Labels<'_>, stats: &ReaderStats) {
        self.counters("reader", READER, labels, stats);
    }

    /// Adds a figure that rises and falls.
    pub fn gauge(&mut self, name: &str, help: &str, labels: &Labels<'_>, value: f64) {
        self.family(name, "gauge", help).add("", labels, value);
    }

    /// Adds a figure that only rises; `_total` is added to its name where a sample needs it.
    pub fn counter(&mut self, name: &str, help: &str, labels: &Labels<'_>, value: f64) {
        self.family(name, "counter", help).add("_total", labels, value);
    }

    /// The whole text, ending with `# EOF`.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for Family { name, kind, help, samples } in &self.families {
            // Writing to a String can't fail.
            let _ = write!(out, "# TYPE {name} {kind}\n# HELP {name} {help}\n{samples}");
        }
        out.push_str("# EOF\n");
        out
    }

    fn gauges<T>(&mut self, what: &str, rows: &[Row<T>], labels: &Labels<'_>, of: &T) {
        for (name, help, value) in rows {
            if let Some(value) = value(of) {
                self.gauge(&format!("chronfs_{what}_{name}"), help, labels, value);
            }
        }
    }

    fn counters<T>(&mut self, what: &str, rows: &[Row<T>], labels: &Labels<'_>, of: &T) {
        for (name, help, value) in rows {
            self.counter(&format!("chronfs_{what}_{name}"), help, labels, value(of).unwrap_or(0.0));
        }
    }

    fn family(&mut self, name: &str, kind: &'static str, help: &str) -> &mut Family {
        let index = self.families.iter().position(|family| family.name == name).unwrap_or_else(|| {
            let (name, help) = (name.to_owned(), help.to_owned());
            self.families.push(Family { name, kind, help, samples: String::new() });
            self.families.len() - 1
        });
        &mut self.families[index]
    }
}

impl Family {
    fn add(&mut self, ending: &str, labels: &Labels<'_>, value: f64) {
        let out = &mut self.samples;
        let _ = write!(out, "{}{ending}", self.name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let start = if index == 0 { '{' } else { ',' };
            // Whoever prints it on a terminal sees escape sequences, and is not subject to them.
            let text = printable_lines(text).replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(out, "{start}{label}=\"{text}\"");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(out, "{end} {value}");
    }
}

/// Numbers are floating point in this format: above 2^53 the last digits don't matter.
#[allow(clippy::cast_precision_loss)]
fn number(value: u64) -> f64 {
    value as f64
}

fn flag(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(label: &str) -> String {
        let mut metrics = Metrics::new();
        metrics.gauge("a", "A.", &[("queue", label)], 1.0);
        metrics.text()
    }

    #[test]
    fn a_terminal_obeys_no_name() {
        let text = text("a\u{1b}]0;x\u{7}\u{9b}31m\u{202e}");
        assert!(text.is_ascii() && !text.contains(|c: char| c.is_control() && c != '\n'), "{text}");
        assert!(text.contains("a{queue=\"a\\\\u{1b}]0;x"), "{text}");
    }

    #[test]
    fn names_with_quotes_and_newlines_are_escaped() {
        assert_eq!(text("a\"b\\c\nd"), "# TYPE a gauge\n# HELP a A.\na{queue=\"a\\\"b\\\\c\\nd\"} 1\n# EOF\n");
    }

    #[test]
    fn each_family_is_announced_once_before_all_of_its_samples() {
        let mut metrics = Metrics::new();
        for queue in ["one", "two"] {
            metrics.gauge("level", "L.", &[("queue", queue)], 0.5);
            metrics.counter("rolls", "R.", &[], 2.0);
        }
        let expected = "# TYPE level gauge\n# HELP level L.\nlevel{queue=\"one\"} 0.5\nlevel{queue=\"two\"} 0.5\n\
                        # TYPE rolls counter\n# HELP rolls R.\nrolls_total 2\nrolls_total 2\n# EOF\n";
        assert_eq!(metrics.text(), expected);
    }
}
