//! `chron-cli bench`: what the queue costs, each figure beside the least possible on this machine, measured in the same
//! run: nanoseconds say more about the machine and its neighbours than about us, ratios do not.

mod latency;
mod shared;

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use chronfs::queue::{Queue, ReaderOptions, Settings};
use chronfs::report::{counted, to_json};
use hdrhistogram::Histogram;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::BenchArgs;
use crate::create::check_place;
use crate::failure::{Done, Failure, Outcome, note};
use crate::output::print;
use crate::progress;
use latency::{Latency, Part, Plan};
use shared::Shared;

/// Latencies take no more messages than this; percentiles do not get better with more.
const MAX_LATENCIES: u64 = 20_000;
/// Wakes take a nap each.
const MAX_WAKES: u64 = 2_000;
/// Rounds in which a latency's messages are sent, as `latency.rs` has it.
const ROUNDS: u64 = 4;
/// Bytes that append's floor is written into, round and round: as large as a segment.
const FLOOR_BYTES: usize = 64 << 20;
/// A load of more than this for each processor makes figures worse.
const BUSY_SHARE: f64 = 0.25;
/// Append and read take turns with their floors in this many parts.
const PARTS: u64 = 4;

/// The stable keys of `--json`.
#[derive(Serialize)]
struct Figures {
    payload_bytes: u32,
    messages: u64,
    append: Cost,
    read: Cost,
    one_way: Tail,
    round_trip: Tail,
    wake: Tail,
}

/// Nanoseconds per message.
#[derive(Serialize, Clone, Copy)]
struct Cost {
    ns: f64,
    floor_ns: f64,
    ratio: f64,
}

/// Nanoseconds; the ratio is that of the medians.
#[derive(Serialize)]
struct Tail {
    p50_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
    floor_p50_ns: u64,
    floor_p99_ns: u64,
    ratio: f64,
    /// Upper end of each bucket in nanoseconds, and how many values it holds.
    histogram: Vec<(u64, u64)>,
}

/// A directory of our own, removed at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Scratch {
    /// Beside the queue, so that both lie on the same file system.
    fn new(beside: Option<&Path>) -> Result<Self, Failure> {
        let parent = match beside {
            None => std::env::temp_dir(),
            // An empty parent is the working directory.
            Some(queue) => Path::new(".").join(queue.parent().unwrap_or(queue)),
        };
        let dir = parent.join(format!("chronfs-bench.{}", std::process::id()));
        std::fs::create_dir_all(&parent).map_err(Failure::io(&parent, "create it"))?;
        std::fs::create_dir(&dir).map_err(Failure::io(&dir, "create it for the measurement"))?;
        let scratch = Self(dir);
        scratch.remove_when_ended()?;
        Ok(scratch)
    }

    /// Removes it when a signal ends the process.
    fn remove_when_ended(&self) -> Result<(), Failure> {
        let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])
            .map_err(|e| Failure::new(format!("cannot wait for signals: {e}")))?;
        let dir = self.0.clone();
        let wait = move || {
            if let Some(signal) = signals.forever().next() {
                let _ = std::fs::remove_dir_all(dir);
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        };
        let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(wait);
        thread.map(drop).map_err(|e| Failure::new(format!("cannot start a thread: {e}")))
    }
}

pub(crate) fn run(args: &BenchArgs) -> Outcome {
    if let (Some(part), Some(dir)) = (&args.part, &args.queue) {
        let part = Part::parse(part)?;
        print(&latency::play(&Plan {
            dir,
            part,
            payload_bytes: args.payload_bytes,
            count: args.messages,
            rate: args.rate,
        })?)?;
        return Ok(Done::Well);
    }
    if let Some(queue) = &args.queue {
        check_place(queue)?;
        if queue.exists() {
            let what = "it exists already; a benchmark creates its own queue: choose another path";
            return Err(Failure::new(format!("{}: {what}", queue.display())));
        }
    }
    let busy = busy().filter(|_| !args.json);
    if let Some(busy) = &busy {
        note(busy);
    }
    let scratch = Scratch::new(args.queue.as_deref())?;
    let path = args.queue.clone().unwrap_or_else(|| scratch.0.join("queue"));
    let queue = Queue::create(path, &Settings::default())?;
    let bar = progress::steps(5);
    bar.set_message("measuring append");
    let append = append(&queue, args)?;
    bar.set_message("measuring read");
    bar.inc(1);
    let read = read(&queue, args)?;
    let latency = |part: Part, most: u64, words: &'static str| {
        bar.set_message(words);
        bar.inc(1);
        let count = (args.messages.min(most) / ROUNDS).max(1);
        latency::measure(&Plan { dir: &scratch.0, part, payload_bytes: args.payload_bytes, count, rate: args.rate })
    };
    let one_way = latency(Part::OneWay, MAX_LATENCIES, "measuring one way")?;
    let round_trip = latency(Part::RoundTrip, MAX_LATENCIES, "measuring round trips")?;
    let wake = latency(Part::Wake, MAX_WAKES, "measuring wakes")?;
    bar.finish_and_clear();
    let figures = Figures {
        payload_bytes: args.payload_bytes,
        messages: args.messages,
        append,
        read,
        one_way: Tail::of(&one_way),
        round_trip: Tail::of(&round_trip),
        wake: Tail::of(&wake),
    };
    if args.json {
        print(&format!("{}\n", to_json(&figures)))?;
    } else {
        print(&figures.for_people(args))?;
        if busy.is_some() {
            note("these figures are from a busy machine: run it again when the machine is idle");
        }
    }
    Ok(Done::Well)
}

/// What to say if others are using the processors that are to be measured.
fn busy() -> Option<String> {
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let load: f64 = load.split(' ').next()?.parse().ok()?;
    let processors = std::thread::available_parallelism().ok()?.get();
    #[allow(clippy::cast_precision_loss)]
    let share = load / processors as f64;
    let text = format!("this machine is busy: its load is {load:.1} on {processors} processors");
    (share > BUSY_SHARE).then_some(text)
}

fn append(queue: &Queue, args: &BenchArgs) -> Result<Cost, Failure> {
    let payload = vec![b'x'; args.payload_bytes as usize];
    let mut floor = Shared::private(FLOOR_BYTES / 64).map_err(|error| Failure::new(format!("memory: {error}")))?;
    let mut writer = queue.writer()?;
    let (mut at, mut floor_ns, mut ns) = (0, 0, 0);
    let per_part = args.messages.div_ceil(PARTS);
    for _ in 0..PARTS {
        let start = Instant::now();
        for _ in 0..per_part {
            floor.copy_in(&mut at, black_box(&payload), None);
        }
        floor_ns += start.elapsed().as_nanos();
        let start = Instant::now();
        for _ in 0..per_part {
            writer.append(1, black_box(&payload))?;
        }
        ns += start.elapsed().as_nanos();
    }
    Ok(Cost::of(ns, floor_ns, per_part * PARTS))
}

fn read(queue: &Queue, args: &BenchArgs) -> Result<Cost, Failure> {
    let record = 32 + args.payload_bytes.next_multiple_of(8) as usize;
    // The bytes that are read, in memory of the same size, where that is not unreasonable.
    let count = usize::try_from(args.messages).unwrap_or(usize::MAX).min(FLOOR_BYTES / record).max(1);
    let memory = vec![1_u8; record * count];
    let mut reader = queue.reader_with("bench", &ReaderOptions::default())?;
    let (mut floor_ns, mut ns, mut messages) = (0, 0, 0);
    let per_part = args.messages.div_ceil(PARTS);
    for _ in 0..PARTS {
        let start = Instant::now();
        for record in memory.chunks_exact(record).cycle().take(usize::try_from(per_part).unwrap_or(usize::MAX)) {
            black_box(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, black_box(record)));
        }
        floor_ns += start.elapsed().as_nanos();
        let start = Instant::now();
        for _ in 0..per_part {
            if black_box(reader.next()?).is_some() {
                messages += 1;
            }
        }
        reader.commit();
        ns += start.elapsed().as_nanos();
    }
    drop(reader);
    queue.remove_reader("bench")?;
    if messages != per_part * PARTS {
        return Err(Failure::new(format!("{}: only {messages} messages could be read", queue.path().display())));
    }
    Ok(Cost::of(ns, floor_ns, messages))
}

// Ratios and nanoseconds for people: the last digits don't matter.
#[allow(clippy::cast_precision_loss)]
impl Cost {
    fn of(total_ns: u128, total_floor_ns: u128, messages: u64) -> Self {
        let [ns, floor_ns] = [total_ns, total_floor_ns].map(|total| total as f64 / messages.max(1) as f64);
        Self { ns: rounded(ns), floor_ns: rounded(floor_ns), ratio: rounded(ns / floor_ns.max(1e-3)) }
    }
}

#[allow(clippy::cast_precision_loss)]
impl Tail {
    fn of(latency: &Latency) -> Self {
        let at = |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile);
        let (p50_ns, floor_p50_ns) = (at(&latency.queue, 0.5), at(&latency.floor, 0.5));
        Self {
            p50_ns,
            p99_ns: at(&latency.queue, 0.99),
            p999_ns: at(&latency.queue, 0.999),
            floor_p50_ns,
            floor_p99_ns: at(&latency.floor, 0.99),
            ratio: rounded(p50_ns as f64 / floor_p50_ns.max(1) as f64),
            histogram: buckets(&latency.queue),
        }
    }
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Four buckets for each doubling, from the first to the last that holds anything.
fn buckets(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    let upper_end = |value: u64| {
        let step = (value.next_power_of_two() / 8).max(1);
        (value / step + 1) * step
    };
    let mut buckets: Vec<(u64, u64)> = Vec::new();
    for value in histogram.iter_recorded() {
        let end = upper_end(value.value_iterated_to());
        match buckets.last_mut() {
            Some((last, count)) if *last == end => *count += value.count_at_value(),
            _ => buckets.push((end, value.count_at_value())),
        }
    }
    buckets
}

impl Figures {
    fn for_people(&self, args: &BenchArgs) -> String {
        let mut out = format!("{} of {} bytes\n\n", counted(self.messages, "message"), self.payload_bytes);
        let mut rows = vec![["", "chronfs ns", "floor ns", "ratio", "the floor is"].map(str::to_owned)];
        for (name, cost, floor) in [
            ("append", self.append, "a copy into memory that is mapped already"),
            ("read", self.read, "the checksum of as many bytes, by crc-fast"),
        ] {
            let [ns, floor_ns] = [cost.ns, cost.floor_ns].map(|ns| format!("{ns:.1}"));
            rows.push([name.to_owned(), ns, floor_ns, format!("{:.2}", cost.ratio), floor.to_owned()]);
        }
        for (name, tail, floor) in [
            ("one way", &self.one_way, "a store that another process sees"),
            ("round trip", &self.round_trip, "the same, there and back"),
            ("wake", &self.wake, "a bare futex"),
        ] {
            let [p50, floor_p50] = [tail.p50_ns, tail.floor_p50_ns].map(|ns| ns.to_string());
            rows.push([format!("{name} p50"), p50, floor_p50, format!("{:.2}", tail.ratio), floor.to_owned()]);
            let [p99, floor_p99] = [tail.p99_ns, tail.floor_p99_ns].map(|ns| ns.to_string());
            let p99_ratio = ratio(tail.p99_ns, tail.floor_p99_ns);
            rows.push([format!("{name} p99"), p99, floor_p99, p99_ratio, String::new()]);
        }
        out.push_str(&chronfs::report::table(&rows));
        if args.histogram {
            for (name, tail) in [
                (format!("one way, {} messages a second", args.rate), &self.one_way),
                ("round trip".to_owned(), &self.round_trip),
                ("wake".to_owned(), &self.wake),
            ] {
                let _ = write!(out, "\n{name}\n{}", chart(&tail.histogram));
            }
        }
        let _ = write!(
            out,
            "\nOn this machine an append takes {:.1} times as long as copying the bytes, a read {:.1} times as long as their \
             checksum.\nA message reaches another process after {:.1}, and a sleeping one after {:.1} times the shortest \
             possible time.\n",
            self.append.ratio, self.read.ratio, self.one_way.ratio, self.wake.ratio
        );
        out
    }
}

#[allow(clippy::cast_precision_loss)]
fn ratio(value: u64, floor: u64) -> String {
    format!("{:.2}", value as f64 / floor.max(1) as f64)
}

/// `120 ns`, `28.4 us`, `1.3 ms`.
#[allow(clippy::cast_precision_loss)]
fn human_ns(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        _ => format!("{:.1} ms", ns as f64 / 1e6),
    }
}

/// A line for each bucket that holds at least one in a thousand; the others are counted in the last line.
fn chart(buckets: &[(u64, u64)]) -> String {
    const WIDTH: u64 = 50;
    let total: u64 = buckets.iter().map(|(_, count)| count).sum();
    let tallest = buckets.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let is_shown = |count: u64| count.saturating_mul(1000) >= total;
    let mut out = String::new();
    for (end, count) in buckets.iter().filter(|(_, count)| is_shown(*count)) {
        let bar = "#".repeat(usize::try_from((count * WIDTH).div_ceil(tallest)).unwrap_or(0));
        let _ = writeln!(out, "  < {:>9} {count:>7} {bar}", human_ns(*end));
    }
    let others: u64 = buckets.iter().map(|(_, count)| *count).filter(|count| !is_shown(*count)).sum();
    if let Some((last, _)) = buckets.last().filter(|_| others > 0) {
        let _ = writeln!(out, "  {others} elsewhere; the longest is less than {}", human_ns(*last));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_everything_and_rise() {
        let mut histogram = Histogram::new(3).unwrap();
        for value in (0..100_000_u64).step_by(37) {
            histogram.record(value).unwrap();
        }
        let buckets = buckets(&histogram);
        assert_eq!(buckets.iter().map(|(_, count)| count).sum::<u64>(), histogram.len());
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0), "{buckets:?}");
        assert!(chart(&buckets).lines().all(|line| line.len() < 80));
        assert_eq!(chart(&[]), "");
    }

    #[test]
    fn nanoseconds_for_people() {
        assert_eq!([9_999, 28_400, 12_000_000].map(human_ns), ["9999 ns", "28.4 us", "12.0 ms"]);
    }
}
