//! The state of a queue for people and for scripts: what `chron-cli inspect` prints, and what the mount shows as
//! `status` and `status.json`. Both call the same two functions, so the bytes are the same.
//!
//! The JSON keys are stable: keys may be added, but not renamed or removed. An unknown number is `null`;
//! an empty queue has `first_seq` 1 and `last_seq` 0.
//!
//! Also here: how chronfs formats sizes, time spans and tables for people.

mod amounts;

use std::fmt::Write as _;

use serde::Serialize;

use crate::printable::{printable, printable_json};
use crate::queue::{self, Inspection, ReaderInfo, WriterInfo, WriterState};
use crate::{bus, clock, view};

pub use amounts::{counted, human_bytes, human_span_ms, parse_size};

const NS_PER_MS: u64 = 1_000_000;

/// What is known of a queue's LEASE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lease {
    /// `live`, `expired` or `unknown`.
    pub state: String,
    /// Milliseconds since it was renewed; `None` if unknown.
    pub age_ms: Option<u64>,
}

impl From<&bus::Lease> for Lease {
    fn from(lease: &bus::Lease) -> Self {
        Self { state: lease.state.as_str().to_owned(), age_ms: lease.age_ms }
    }
}

/// The keys of `ls --json`, and the first ones of `inspect --json`.
#[derive(Serialize)]
struct Summary<'a> {
    path: String,
    first_seq: u64,
    last_seq: u64,
    messages: u64,
    bytes: u64,
    head: Head,
    last_timestamp_ns: u64,
    writer: Writer,
    ready: bool,
    lease: Option<&'a Lease>,
}

#[derive(Serialize)]
struct Head {
    segment: u32,
    offset: u32,
}

#[derive(Serialize)]
struct Writer {
    state: &'static str,
    pid: Option<u32>,
    epoch: u64,
    heartbeat_age_ms: Option<u64>,
}

#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    summary: Summary<'a>,
    role: &'static str,
    term: u64,
    settings: Settings,
    active_settings: Option<Settings>,
    segments: Vec<Segment>,
    readers: Vec<Reader<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    relays: Vec<Relay<'a>>,
}

#[derive(Serialize)]
struct Settings {
    segment_size: u32,
    max_bytes: Option<u64>,
    retain_bytes: Option<u64>,
    retain_age_ms: Option<u64>,
    retain_segments: Option<u32>,
    reader_ttl_ms: Option<u64>,
    max_lag_bytes: Option<u64>,
    roll_every_ms: Option<u64>,
    payload_align: u32,
}

#[derive(Serialize)]
struct Segment {
    id: u32,
    first_seq: u64,
    last_seq: u64,
    bytes: u64,
    sealed: bool,
}

#[derive(Serialize)]
struct Reader<'a> {
    name: &'a str,
    position: Option<u64>,
    lag_messages: u64,
    lag_bytes: u64,
    lag_seconds: f64,
    heartbeat_age_ms: Option<u64>,
    state: &'a str,
    alive: bool,
    pins_segments: u64,
    pins_bytes: u64,
}

#[derive(Serialize)]
struct Relay<'a> {
    #[serde(flatten)]
    relay: &'a bus::Relay,
    /// What is wrong now; the fields above are as of its last words.
    trouble: Option<String>,
}

/// One JSON object on one line, without a newline: `inspect --json` and `status.json`.
pub fn inspection_json(inspection: &Inspection, ready: bool, lease: Option<&Lease>, relays: &[bus::Relay]) -> String {
    to_json(&Whole {
        summary: summary(inspection, ready, lease),
        role: inspection.role.as_str(),
        term: inspection.role.term(),
        settings: settings(&inspection.settings),
        active_settings: inspection.active_settings.as_ref().map(settings),
        segments: inspection
            .segments
            .iter()
            .map(|s| {
                // As for an empty queue: the next message is the first.
                let is_empty = s.first_seq == 0 && s.id >= inspection.bounds.head.segment;
                let first_seq = if is_empty { inspection.bounds.next_seq } else { s.first_seq };
                let last_seq = if is_empty { first_seq.saturating_sub(1) } else { s.last_seq };
                Segment { id: s.id.0, first_seq, last_seq, bytes: s.bytes, sealed: s.sealed }
            })
            .collect(),
        readers: inspection.readers.iter().map(reader).collect(),
        relays: relays.iter().map(|relay| Relay { relay, trouble: relay.trouble() }).collect(),
    })
}

/// One JSON object on one line, without a newline: `ls --json`. The keys are those of [`inspection_json`].
pub fn summary_json(inspection: &Inspection, ready: bool, lease: Option<&Lease>) -> String {
    to_json(&summary(inspection, ready, lease))
}

/// One JSON object on one line, without a newline: `readers list --json`, and a reader's own `status.json`.
pub fn reader_json(info: &ReaderInfo) -> String {
    to_json(&reader(info))
}

fn summary<'a>(inspection: &Inspection, ready: bool, lease: Option<&'a Lease>) -> Summary<'a> {
    let bounds = &inspection.bounds;
    Summary {
        path: inspection.path.display().to_string(),
        first_seq: bounds.first_seq,
        last_seq: bounds.next_seq.saturating_sub(1),
        messages: inspection.messages,
        bytes: inspection.bytes,
        head: Head { segment: bounds.head.segment.0, offset: bounds.head.offset },
        last_timestamp_ns: bounds.last_timestamp_ns,
        writer: Writer {
            state: inspection.writer.state.as_str(),
            pid: inspection.writer.pid,
            epoch: inspection.writer.epoch,
            heartbeat_age_ms: inspection.writer.heartbeat_age_ms,
        },
        ready,
        lease,
    }
}

fn settings(settings: &queue::Settings) -> Settings {
    let queue::Settings {
        segment_size,
        max_bytes,
        retain_bytes,
        retain_age_ns,
        retain_segments,
        reader_ttl_ns,
        max_lag_bytes,
        roll_every_ns,
        payload_align,
    } = *settings;
    Settings {
        segment_size,
        max_bytes,
        retain_bytes,
        retain_age_ms: retain_age_ns.map(|ns| ns / NS_PER_MS),
        retain_segments,
        reader_ttl_ms: reader_ttl_ns.map(|ns| ns / NS_PER_MS),
        max_lag_bytes,
        roll_every_ms: roll_every_ns.map(|ns| ns / NS_PER_MS),
        payload_align,
    }
}

fn reader(info: &ReaderInfo) -> Reader<'_> {
    Reader {
        name: &info.name,
        position: info.position,
        lag_messages: info.lag_messages,
        lag_bytes: info.lag_bytes,
        lag_seconds: info.lag_seconds,
        heartbeat_age_ms: info.heartbeat_age_ms,
        state: info.state(),
        alive: info.in_use,
        pins_segments: info.pins_segments,
        pins_bytes: info.pins_bytes,
    }
}

/// One JSON object on one line, without a newline, that a terminal can show ([`printable_json`]).
///
/// Structures with string keys can't fail; for others the object holds the error.
pub fn to_json<T: Serialize>(value: &T) -> String {
    let json = serde_json::to_string(value);
    let json = json.unwrap_or_else(|e| serde_json::json!({ "error": e.to_string() }).to_string());
    printable_json(&json).into_owned()
}

/// Several lines for people, each ended by a newline: `chron-cli inspect` and the mount's `status`.
pub fn inspection_text(inspection: &Inspection, ready: bool, lease: Option<&Lease>, relays: &[bus::Relay]) -> String {
    let mut out = format!("{}\n", printable(&inspection.path.to_string_lossy()));
    let bounds = &inspection.bounds;
    let extent = if bounds.next_seq > bounds.first_seq {
        format!(
            "{}, seq {} to {}, {}",
            inspection.messages,
            bounds.first_seq,
            bounds.next_seq - 1,
            human_bytes(inspection.bytes)
        )
    } else {
        format!("none; the next is seq {}", bounds.next_seq)
    };
    let newest = if bounds.last_timestamp_ns == 0 { "-".to_owned() } else { human_time(bounds.last_timestamp_ns) };
    let facts = [
        ("messages", extent),
        ("newest", newest),
        ("head", bounds.head.to_string()),
        ("writer", writer_text(&inspection.writer)),
        ("ready", if ready { "yes".to_owned() } else { "no".to_owned() }),
        ("lease", lease.map_or_else(|| "none".to_owned(), lease_text)),
        ("settings", settings_text(&inspection.settings)),
    ];
    let role = (inspection.role != queue::Role::default()).then(|| ("role", inspection.role.to_string()));
    let in_use = inspection.active_settings.as_ref().map(settings_text);
    let in_use = in_use.map(|text| ("in use", format!("until the next segment: {text}")));
    for (name, fact) in facts.into_iter().chain(in_use).chain(role) {
        // Writing to a String can't fail.
        let _ = writeln!(out, "  {name:<9} {}", printable(&fact));
    }
    let mut segments = vec![["segment", "first seq", "last seq", "size", "state"].map(str::to_owned)];
    for s in &inspection.segments {
        let (first, last) = if s.first_seq > 0 && s.last_seq >= s.first_seq {
            (s.first_seq.to_string(), s.last_seq.to_string())
        } else {
            ("-".to_owned(), "-".to_owned())
        };
        let state = match s {
            s if s.bytes == 0 => "damaged",
            s if s.sealed => "sealed",
            s if s.id == bounds.head.segment => "active",
            // Prepared for later, or its start is damaged.
            _ => "unused",
        };
        segments.push([s.id.to_string(), first, last, human_bytes(s.bytes), state.to_owned()]);
    }
    out.push('\n');
    out.push_str(&table(&segments));
    if !inspection.readers.is_empty() {
        out.push('\n');
        out.push_str(&readers_text(&inspection.readers));
    }
    if !relays.is_empty() {
        out.push('\n');
        out.push_str(&relays_text(relays));
    }
    out
}

fn relays_text(relays: &[bus::Relay]) -> String {
    let mut rows = vec![["relay", "", "target", "lag", "bytes", "seconds", "progress", "state"].map(str::to_owned)];
    for relay in relays {
        rows.push([
            relay.name.clone(),
            relay.direction.clone(),
            relay.target.clone(),
            relay.lag_messages.to_string(),
            human_bytes(relay.lag_bytes),
            format!("{:.1}", relay.lag_seconds),
            format!("{:.0} s ago", relay.seconds_since_progress()),
            relay.trouble().unwrap_or_else(|| relay.condition.clone()),
        ]);
    }
    table(&rows)
}

/// The table of readers for people: `chron-cli readers QUEUE`, and the end of [`inspection_text`].
pub fn readers_text(readers: &[ReaderInfo]) -> String {
    let mut rows =
        vec![["reader", "position", "lag", "bytes", "seconds", "state", "heartbeat", "pins"].map(str::to_owned)];
    for r in readers {
        rows.push([
            r.name.clone(),
            r.position.map_or_else(|| "?".to_owned(), |p| p.to_string()),
            r.lag_messages.to_string(),
            human_bytes(r.lag_bytes),
            format!("{:.1}", r.lag_seconds),
            r.state().to_owned(),
            r.heartbeat_age_ms.map_or_else(|| "-".to_owned(), |ms| format!("{} ago", human_span_ms(ms))),
            if r.pins_segments == 0 {
                "-".to_owned()
            } else {
                format!("{} in {}", human_bytes(r.pins_bytes), counted(r.pins_segments, "segment"))
            },
        ]);
    }
    let mut text = table(&rows);
    for (name, damage) in readers.iter().filter_map(|r| Some((&r.name, r.damage.as_ref()?))) {
        let _ = writeln!(text, "{}", printable(&format!("{name}: {damage}")));
    }
    text
}

fn writer_text(writer: &WriterInfo) -> String {
    if writer.state == WriterState::None {
        let ago = writer.heartbeat_age_ms.map(|ms| format!(" {} ago", human_span_ms(ms))).unwrap_or_default();
        return if writer.epoch > 0 {
            format!("none; epoch {} ended{ago}", writer.epoch)
        } else {
            "none yet".to_owned()
        };
    }
    let mut text = writer.state.as_str().to_owned();
    if let Some(holder) = &writer.holder {
        let _ = write!(text, ", {holder}");
    }
    if writer.epoch > 0 {
        let _ = write!(text, ", epoch {}", writer.epoch);
    }
    if let Some(ms) = writer.heartbeat_age_ms {
        let _ = write!(text, ", last heartbeat {} ago", human_span_ms(ms));
    }
    text
}

fn lease_text(lease: &Lease) -> String {
    match lease.age_ms {
        Some(ms) => format!("{}, renewed {} ago", lease.state, human_span_ms(ms)),
        None => lease.state.clone(),
    }
}

fn settings_text(settings: &queue::Settings) -> String {
    let queue::Settings { segment_size, max_bytes, reader_ttl_ns, max_lag_bytes, roll_every_ns, payload_align, .. } =
        *settings;
    let mut facts = vec![
        format!("segments of up to {}", human_bytes(u64::from(segment_size))),
        max_bytes.map_or_else(|| "no size limit".to_owned(), |max| format!("at most {}", human_bytes(max))),
        retention_text(settings),
    ];
    facts.extend(
        reader_ttl_ns.map(|ns| format!("readers expire {} after their heartbeat", human_span_ms(ns / NS_PER_MS))),
    );
    facts.extend(max_lag_bytes.map(|bytes| format!("readers expire at a lag of {}", human_bytes(bytes))));
    facts.extend(roll_every_ns.map(|ns| format!("a new segment every {}", human_span_ms(ns / NS_PER_MS))));
    facts.extend((payload_align > 8).then(|| format!("payloads aligned to {payload_align} bytes")));
    facts.join(", ")
}

fn retention_text(settings: &queue::Settings) -> String {
    if !settings.has_retention() {
        return "everything is retained".to_owned();
    }
    let limits = [
        settings.retain_bytes.map(human_bytes),
        settings.retain_segments.map(|count| counted(count.into(), "sealed segment")),
        settings.retain_age_ns.map(|ns| human_span_ms(ns / NS_PER_MS)),
    ];
    format!("retained: {}", limits.into_iter().flatten().collect::<Vec<_>>().join(" or "))
}

/// `2024-08-08T09:15:00.123456789Z, 3.2 s ago`; `…, 48.0 h in the future`.
fn human_time(timestamp_ns: u64) -> String {
    let mut bytes = Vec::new();
    view::format_time(timestamp_ns, &mut bytes);
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    let now_ns = clock::now_ns();
    let span = human_span_ms(now_ns.abs_diff(timestamp_ns) / 1_000_000);
    let _ = write!(text, ", {span} {}", if timestamp_ns > now_ns { "in the future" } else { "ago" });
    text
}

/// Columns two spaces apart, as wide as their widest cell; numbers and sizes align right, words left. The first row is
/// the heading.
///
/// ```
/// let rows = [["queue", "messages"], ["ticks", "168609"]].map(|row| row.map(str::to_owned));
/// assert_eq!(chronfs::report::table(&rows), "queue  messages\nticks    168609\n");
/// ```
pub fn table(rows: &[impl AsRef<[String]>]) -> String {
    let rows: Vec<Vec<_>> = rows.iter().map(|row| row.as_ref().iter().map(|cell| printable(cell)).collect()).collect();
    let columns = 0..rows.iter().map(Vec::len).min().unwrap_or(0);
    let wide = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let width: Vec<usize> = columns.clone().map(wide).collect();
    let is_number = |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '?');
    let right: Vec<bool> = columns.map(|column| rows.iter().skip(1).all(|row| is_number(&row[column]))).collect();
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate().take(width.len()) {
            let gap = if column == 0 { "" } else { "  " };
            let _ = if right[column] && column > 0 {
                write!(line, "{gap}{cell:>width$}", width = width[column])
            } else {
                write!(line, "{gap}{cell:<width$}", width = width[column])
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: queue::Settings = queue::Settings {
        segment_size: 65536,
        max_bytes: Some(1 << 20),
        retain_bytes: Some(2 << 20),
        retain_age_ns: Some(3_000_000_000),
        retain_segments: Some(4),
        reader_ttl_ns: Some(5_000_000_000),
        max_lag_bytes: Some(6 << 20),
        roll_every_ns: Some(7_000_000_000),
        payload_align: 64,
    };

    #[test]
    fn every_setting_is_shown() {
        let text = settings_text(&ALL);
        for fact in ["64.0 KiB", "1.0 MiB", "2.0 MiB", "3.0 s", "4 sealed", "5.0 s", "6.0 MiB", "7.0 s", "64 bytes"] {
            assert!(text.contains(fact), "{fact}: {text}");
        }
        let json = to_json(&settings(&ALL));
        let expected = r#"{"segment_size":65536,"max_bytes":1048576,"retain_bytes":2097152,"#.to_owned()
            + r#""retain_age_ms":3000,"retain_segments":4,"reader_ttl_ms":5000,"max_lag_bytes":6291456,"roll_every_ms":7000,"payload_align":64}"#;
        assert_eq!(json, expected);
    }

    #[test]
    fn everything_is_retained_only_without_limits() {
        let everything = |settings: &queue::Settings| settings_text(settings).contains("everything is retained");
        let none = queue::Settings::default();
        assert!(everything(&none));
        assert!(!everything(&queue::Settings { retain_bytes: Some(1), ..none }));
        assert!(!everything(&queue::Settings { retain_age_ns: Some(1), ..none }));
        assert!(!everything(&queue::Settings { retain_segments: Some(1), ..none }));
    }
}
