//! `chron-cli retain`: applies a queue's retention now, and reports what keeps the rest.

use chronfs::Queue;
use chronfs::clock;
use chronfs::printable::printable;
use chronfs::queue::{ActiveSegment, Retention};
use chronfs::report::{counted, human_bytes, human_span_ms, table, to_json};
use serde::Serialize;

use crate::RetainArgs;
use crate::failure::{Done, Outcome, note};
use crate::output::print;

#[derive(Serialize)]
struct Line<'a> {
    path: String,
    dry_run: bool,
    removed: Vec<Segment>,
    removed_bytes: u64,
    pins: Vec<Pin<'a>>,
    ignored: Vec<Ignored<'a>>,
}

#[derive(Serialize)]
struct Segment {
    id: u32,
    first_seq: u64,
    last_seq: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Pin<'a> {
    reader: &'a str,
    position: Option<u64>,
    segments: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Ignored<'a> {
    reader: &'a str,
    reason: &'static str,
}

pub(crate) fn run(args: &RetainArgs) -> Outcome {
    let queue = Queue::open(&args.queue)?;
    let retention = if args.dry_run { queue.plan_retention()? } else { queue.apply_retention()? };
    let path = queue.path().display();
    if args.json {
        print(&format!("{}\n", to_json(&line(path.to_string(), args.dry_run, &retention))))?;
        return Ok(Done::Well);
    }
    print(&for_people(args.dry_run, &retention))?;
    if !queue.settings().has_retention() {
        note(&format!(
            "{path}: it has no retention limits, so everything is kept; to set some: chron-cli set {path} --retain-bytes \
             SIZE (or --retain-age SPAN)"
        ));
    } else if let Some(active) = retention.active.filter(|_| retention.removed.is_empty() && retention.pins.is_empty())
    {
        note(&format!("{path}: {}", of_active(&active)));
    }
    Ok(Done::Well)
}

/// Why the messages of the active segment stay.
fn of_active(active: &ActiveSegment) -> String {
    let now_ns = clock::now_ns();
    let span = |ns: u64| human_span_ms(ns / 1_000_000);
    let ends = match active.ends_ns {
        Some(ends_ns) if ends_ns > now_ns => format!("it ends in {}", span(ends_ns - now_ns)),
        Some(_) => {
            "its time is over, and it ends with its writer's next message, or with 'chron-cli retain' when there is no writer".to_owned()
        }
        None => "it ends when it is full".to_owned(),
    };
    let age = span(now_ns.saturating_sub(active.oldest_ns));
    format!("segment {} takes messages, and holds some that are {age} old; {ends}", active.id)
}

fn line(path: String, dry_run: bool, retention: &Retention) -> Line<'_> {
    let removed = &retention.removed;
    Line {
        path,
        dry_run,
        removed_bytes: removed.iter().map(|s| s.bytes).sum(),
        removed: removed
            .iter()
            .map(|s| Segment { id: s.id.0, first_seq: s.first_seq, last_seq: s.last_seq, bytes: s.bytes })
            .collect(),
        pins: retention
            .pins
            .iter()
            .map(|p| Pin { reader: &p.reader, position: p.seq, segments: p.segments, bytes: p.bytes })
            .collect(),
        ignored: retention.ignored.iter().map(|i| Ignored { reader: &i.reader, reason: i.reason.as_str() }).collect(),
    }
}

fn for_people(dry_run: bool, retention: &Retention) -> String {
    let removed = &retention.removed;
    let would = if dry_run { "would be removed" } else { "removed" };
    let bytes: u64 = removed.iter().map(|segment| segment.bytes).sum();
    let mut text = match (removed.first(), removed.last()) {
        (Some(first), Some(last)) => format!(
            "{would}: {}, {}, messages {} to {}\n",
            counted(removed.len() as u64, "segment"),
            human_bytes(bytes),
            first.first_seq,
            last.last_seq
        ),
        _ => format!("{would}: nothing\n"),
    };
    if !retention.pins.is_empty() {
        let mut rows = vec![["kept by", "position", "segments", "size"].map(str::to_owned)];
        for pin in &retention.pins {
            let position = pin.seq.map_or_else(|| "? (damaged)".to_owned(), |seq| seq.to_string());
            rows.push([pin.reader.clone(), position, pin.segments.to_string(), human_bytes(pin.bytes)]);
        }
        text.push_str(&table(&rows));
    }
    for ignored in &retention.ignored {
        text.push_str(&format!(
            "{} no longer keeps anything: it is {}\n",
            printable(&ignored.reader),
            ignored.reason.as_str()
        ));
    }
    text
}
