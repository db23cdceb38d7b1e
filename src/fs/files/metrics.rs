//! The bus as OpenMetrics text. Gauges only, so that it is valid in the older Prometheus text format as well.

use std::fmt::{Display, Write as _};

use crate::bus::LeaseState;
use crate::fs::files::seen::Seen;
use crate::printable::printable_lines;
use crate::queue::{Inspection, ReaderInfo, WriterState};

/// The value of a gauge for one queue or reader; None where it has none.
type Value<T> = fn(&T) -> Option<f64>;

const QUEUE: &[(&str, &str, Value<Inspection>)] = &[
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

const SEEN: &[(&str, &str, Value<Seen>)] = &[
    ("readable", "Whether the queue can be read at all.", |seen| Some(flag(seen.inspection.is_some()))),
    ("answers", "Whether the queue's file system has answered in time.", |seen| Some(flag(seen.answers))),
    ("ready", "Whether the endpoint is marked as ready.", |seen| Some(flag(seen.ready))),
    ("lease_live", "Whether the endpoint's lease is live.", |seen| {
        seen.lease.as_ref().map(|lease| flag(lease.state == LeaseState::Live))
    }),
];

const READER: &[(&str, &str, Value<ReaderInfo>)] = &[
    ("position", "The next sequence number that the reader will consume.", |r| r.position.map(number)),
    ("lag_messages", "Messages that the reader has not consumed.", |r| Some(number(r.lag_messages))),
    ("lag_bytes", "Bytes of the records that the reader has not consumed.", |r| Some(number(r.lag_bytes))),
    ("lag_seconds", "Time from the reader's next message to the newest one.", |r| Some(r.lag_seconds)),
    ("in_use", "Whether a process is using the reader.", |r| Some(flag(r.in_use))),
    ("damaged", "Whether the reader's cursor file is damaged.", |r| Some(flag(r.damage.is_some()))),
    ("pinned_segments", "Segments that retention keeps for the reader.", |r| Some(number(r.pins_segments))),
    ("pinned_bytes", "Bytes of those segments.", |r| Some(number(r.pins_bytes))),
];

/// The whole text, ending with `# EOF`.
pub(in crate::fs) fn render(seen: &[Seen]) -> String {
    let mut out = String::new();
    head(&mut out, "chronfs_build_info", "The version that serves the mount.");
    let _ = writeln!(out, "chronfs_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    for (name, help, value) in SEEN {
        let name = format!("chronfs_queue_{name}");
        head(&mut out, &name, help);
        for seen in seen {
            sample(&mut out, &name, &[("queue", &seen.name)], value(seen));
        }
    }
    let queues: Vec<_> = seen.iter().filter_map(|seen| Some((&seen.name, seen.inspection.as_ref()?))).collect();
    for (name, help, value) in QUEUE {
        let name = format!("chronfs_queue_{name}");
        head(&mut out, &name, help);
        for (queue, inspection) in &queues {
            sample(&mut out, &name, &[("queue", queue)], value(inspection));
        }
    }
    for (name, help, value) in READER {
        let name = format!("chronfs_reader_{name}");
        head(&mut out, &name, help);
        for (queue, inspection) in &queues {
            for reader in &inspection.readers {
                sample(&mut out, &name, &[("queue", queue), ("reader", &reader.name)], value(reader));
            }
        }
    }
    out.push_str("# EOF\n");
    out
}

fn head(out: &mut String, name: &str, help: &str) {
    let _ = write!(out, "# TYPE {name} gauge\n# HELP {name} {help}\n");
}

fn sample(out: &mut String, name: &str, labels: &[(&str, &dyn Display)], value: Option<f64>) {
    let Some(value) = value else { return };
    out.push_str(name);
    for (index, (label, text)) in labels.iter().enumerate() {
        let start = if index == 0 { '{' } else { ',' };
        // Whoever looks at it on a terminal sees escape sequences, and is not subject to them.
        let text = printable_lines(&text.to_string()).replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(out, "{start}{label}=\"{text}\"");
    }
    let _ = writeln!(out, "}} {value}");
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

    #[test]
    fn a_terminal_obeys_no_name() {
        let name = "a\u{1b}]0;x\u{7}\u{9b}31m\u{202e}".to_owned();
        let text = render(&[Seen { name, ready: true, lease: None, inspection: None, answers: true }]);
        assert!(text.is_ascii() && !text.contains(|c: char| c.is_control() && c != '\n'), "{text}");
        assert!(text.contains("chronfs_queue_ready{queue=\"a\\\\u{1b}]0;x"), "{text}");
    }

    #[test]
    fn names_with_quotes_and_newlines_are_escaped() {
        let seen = Seen { name: "a\"b\\c\nd".to_owned(), ready: true, lease: None, inspection: None, answers: true };
        let text = render(&[seen]);
        assert!(text.contains("chronfs_queue_ready{queue=\"a\\\"b\\\\c\\nd\"} 1\n"), "{text}");
        assert!(text.contains("chronfs_queue_readable{queue=\"a\\\"b\\\\c\\nd\"} 0\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
        // Each family is announced once, before its samples.
        let mut names: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
