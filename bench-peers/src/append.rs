//! Tests with one process: appending in bursts, sustained over many segments, and the latency of single appends.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use chronfs::QueueWriter;
use chronfs::clock::boot_ns;
use chronfs::queue::{Queue, Settings};
use commitlog::message::MessageBuf;
use commitlog::{CommitLog, LogOptions};
use hdrhistogram::Histogram;

use crate::Result;
use crate::link::Checks;
use crate::pair::ROUND;
use crate::plan::Plan;
use crate::report::{Report, Sample, human, median};
use crate::shared::Shared;

const LINKS: [&str; 6] = ["copied", "copied, checked", "chronfs", "commitlog", "commitlog, 100 at once", "write(2)"];
/// Sustained, also a queue at its defaults.
const KEEPS_ALL: &str = "chronfs, all kept";
/// Bytes appended without a pause in a burst, and the pause after it.
const BURST: u64 = 2 << 20;
const PAUSE: Duration = Duration::from_millis(3);
/// Sustained runs of slow candidates end after this long, and of those that can't remove old files after this much.
const LONGEST: Duration = Duration::from_secs(8);
const MOST_KEPT: u64 = 1 << 30;
/// Bytes of the ring that the floor is written into.
const FLOOR_BYTES: usize = 64 << 20;
/// Appends between two readings of the clock.
const CHUNK: u64 = 10_000;
const BATCH: u64 = 100;
const HEADER: u64 = 32;

/// Appends a number of messages.
trait Append {
    fn append(&mut self, payload: &[u8], count: u64) -> Result<()>;
    /// Whether old files are removed, so that the disk does not fill.
    fn keeps_little(&self) -> bool {
        true
    }
}

struct Floor<const CHECKED: bool> {
    shared: Shared,
    at: usize,
    checks: Checks,
}

impl<const CHECKED: bool> Append for Floor<CHECKED> {
    #[inline]
    fn append(&mut self, payload: &[u8], count: u64) -> Result<()> {
        for _ in 0..count {
            let payload = black_box(payload);
            let meta = CHECKED.then(|| self.checks.of(payload));
            self.shared.copy_in(&mut self.at, payload, meta);
        }
        Ok(())
    }
}

struct Chron<const KEEPS_ALL: bool> {
    writer: QueueWriter,
}

impl<const KEEPS_ALL: bool> Append for Chron<KEEPS_ALL> {
    #[inline]
    fn append(&mut self, payload: &[u8], count: u64) -> Result<()> {
        for _ in 0..count {
            self.writer.append(1, black_box(payload))?;
        }
        Ok(())
    }

    fn keeps_little(&self) -> bool {
        !KEEPS_ALL
    }
}

struct Log {
    log: CommitLog,
    batch: u64,
}

impl Append for Log {
    fn append(&mut self, payload: &[u8], count: u64) -> Result<()> {
        if self.batch == 1 {
            for _ in 0..count {
                self.log.append_msg(black_box(payload))?;
            }
            return Ok(());
        }
        for _ in 0..count.div_ceil(self.batch) {
            let mut messages = MessageBuf::default();
            for _ in 0..self.batch {
                messages.push(black_box(payload)).map_err(|e| format!("{e:?}"))?;
            }
            self.log.append(&mut messages)?;
        }
        Ok(())
    }

    fn keeps_little(&self) -> bool {
        false
    }
}

impl Append for File {
    fn append(&mut self, payload: &[u8], count: u64) -> Result<()> {
        for _ in 0..count {
            self.write_all(black_box(payload))?;
        }
        Ok(())
    }

    fn keeps_little(&self) -> bool {
        false
    }
}

fn floor<const CHECKED: bool>(memory: &Path) -> Result<Floor<CHECKED>> {
    let shared = Shared::create(&memory.join("floor"), FLOOR_BYTES / 64)?;
    Ok(Floor { shared, at: 0, checks: Checks::new() })
}

fn chron<const KEEPS_ALL: bool>(dir: &Path) -> Result<Chron<KEEPS_ALL>> {
    // Old segments are removed, or ten gigabytes would stay.
    let settings = Settings { retain_segments: (!KEEPS_ALL).then_some(4), ..Settings::default() };
    Ok(Chron { writer: Queue::create(dir.join("queue"), &settings)?.writer()? })
}

fn log(dir: &Path, batch: u64) -> Result<Log> {
    let mut options = LogOptions::new(dir.join("log"));
    options.segment_max_bytes(64 << 20).index_max_items(10_000_000).message_max_bytes(16 << 20);
    Ok(Log { log: CommitLog::new(options)?, batch })
}

/// Measures all of it, in turns.
pub(crate) fn run(plan: &Plan<'_>, report: &mut Report) {
    parts(report);
    for &payload in &plan.payloads {
        for round in (0..plan.rounds).take_while(|&round| plan.has_time(round, "append")) {
            eprintln!("== append of {payload} bytes, round {} of {}", round + 1, plan.rounds);
            for link in LINKS {
                report.attempt(&format!("append {link}"), |report| burst(plan, payload, link, report));
            }
        }
    }
    for &payload in &plan.latency_payloads {
        // Ten gigabytes take long enough to be their own median; the second size is a check.
        for link in LINKS.into_iter().chain([KEEPS_ALL]) {
            eprintln!("== sustained append of {payload} bytes: {link}");
            report.attempt(&format!("sustained {link}"), |report| sustained(plan, payload, link, report));
        }
        for round in (0..plan.rounds.min(3)).take_while(|&round| plan.has_time(round, "single")) {
            eprintln!("== single appends of {payload} bytes, round {}", round + 1);
            for link in ["copied", "copied, checked", "chronfs", "write(2)"] {
                report.attempt(&format!("single {link}"), |report| single(plan, payload, link, report));
            }
        }
    }
    let _ = plan.scratch.fresh();
}

/// What no record with a time and a checksum can do without.
fn parts(report: &mut Report) {
    const COUNT: u32 = 100_000;
    const ROUNDS: usize = 9;
    let time = |mut run: Box<dyn FnMut()>| {
        let each = (0..ROUNDS).map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_nanos() as f64 / f64::from(COUNT)
        });
        median(each.collect()).map_or("-".to_owned(), human)
    };
    let clock = quanta::Clock::new();
    let clock = time(Box::new(move || {
        for _ in 0..COUNT {
            black_box(clock.raw());
        }
    }));
    let mut rows =
        vec![["", "ns"].map(str::to_owned).to_vec(), vec!["a reading of the clock (quanta)".to_owned(), clock]];
    for len in [64, 1024] {
        let mut payload = vec![1; len];
        let sum = time(Box::new(move || {
            for _ in 0..COUNT {
                // Each waits for the one before, as a reader waits for it before it has the message.
                let sum = Checks::sum(&payload);
                payload[..8].copy_from_slice(&sum.to_le_bytes());
            }
        }));
        rows.push(vec![format!("a checksum of {len} bytes (crc-fast), until it is there"), sum]);
    }
    let text =
        "Nanoseconds. The writer of a message reads the clock and computes the checksum, its reader computes it again.";
    report.tables.push(("What a record costs at least".to_owned(), text.to_owned(), rows));
}

macro_rules! with_link {
    ($plan:expr, $link:expr, $function:ident, $($argument:expr),*) => {{
        let (dir, memory) = $plan.scratch.fresh()?;
        match $link {
            "copied" => $function(&mut floor::<false>(&memory)?, $($argument),*),
            "copied, checked" => $function(&mut floor::<true>(&memory)?, $($argument),*),
            "chronfs" => $function(&mut chron::<false>(&dir)?, $($argument),*),
            KEEPS_ALL => $function(&mut chron::<true>(&dir)?, $($argument),*),
            "commitlog" => $function(&mut log(&dir, 1)?, $($argument),*),
            "commitlog, 100 at once" => $function(&mut log(&dir, BATCH)?, $($argument),*),
            _ => $function(&mut File::create(dir.join("file"))?, $($argument),*),
        }
    }};
}

fn burst(plan: &Plan<'_>, payload: usize, link: &'static str, report: &mut Report) -> Result<()> {
    let bytes = vec![b'x'; payload];
    let per_burst = (BURST / (HEADER + payload as u64)).max(1).next_multiple_of(BATCH.min(8));
    let bursts = if plan.quick { 8 } else { 24 };
    let elapsed = with_link!(plan, link, bursts_of, &bytes, per_burst, bursts)?;
    let (count, elapsed_ns) = (per_burst * bursts, nanos(elapsed));
    report.add(Sample { test: "append", link, payload, count, elapsed_ns, values: Vec::new(), word_ns: None });
    Ok(())
}

fn bursts_of(to: &mut impl Append, payload: &[u8], count: u64, bursts: u64) -> Result<Duration> {
    let mut elapsed = Duration::ZERO;
    // Warms up, over all the files of a bounded log.
    let warm_up = if to.keeps_little() { ROUND / (HEADER + payload.len() as u64) } else { count };
    to.append(payload, warm_up.max(count))?;
    for _ in 0..bursts {
        std::thread::sleep(PAUSE);
        let start = Instant::now();
        to.append(payload, count)?;
        elapsed += start.elapsed();
    }
    Ok(elapsed)
}

fn sustained(plan: &Plan<'_>, payload: usize, link: &'static str, report: &mut Report) -> Result<()> {
    let bytes = vec![b'x'; payload];
    let (count, elapsed) = with_link!(plan, link, sustain, &bytes, plan.sustained)?;
    let elapsed_ns = nanos(elapsed);
    report.add(Sample { test: "sustained", link, payload, count, elapsed_ns, values: Vec::new(), word_ns: None });
    Ok(())
}

fn sustain(to: &mut impl Append, payload: &[u8], bytes: u64) -> Result<(u64, Duration)> {
    let record = HEADER + payload.len() as u64;
    let bytes = if to.keeps_little() { bytes } else { bytes.min(MOST_KEPT) };
    let chunk = CHUNK.min((64 << 20) / record).next_multiple_of(BATCH);
    let (mut count, start) = (0, Instant::now());
    while count * record < bytes && start.elapsed() < LONGEST * if to.keeps_little() { 4 } else { 1 } {
        to.append(payload, chunk)?;
        count += chunk;
    }
    Ok((count, start.elapsed()))
}

fn single(plan: &Plan<'_>, payload: usize, link: &'static str, report: &mut Report) -> Result<()> {
    let bytes = vec![b'x'; payload];
    // About ten segments.
    let count = (if plan.quick { 256 << 20 } else { 768 << 20 }) / (HEADER + payload as u64);
    let histogram = with_link!(plan, link, singles, &bytes, count)?;
    let values = histogram.iter_recorded().map(|v| (v.value_iterated_to(), v.count_at_value())).collect();
    report.add(Sample { test: "single", link, payload, count, elapsed_ns: 0, values, word_ns: None });
    Ok(())
}

/// From the end of one append to the end of the next, a reading of the clock included.
fn singles(to: &mut impl Append, payload: &[u8], count: u64) -> Result<Histogram<u64>> {
    let mut histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
    if to.keeps_little() {
        to.append(payload, ROUND / (HEADER + payload.len() as u64))?;
    }
    let mut before = boot_ns();
    for _ in 0..count {
        to.append(payload, 1)?;
        let now = boot_ns();
        histogram.saturating_record(now - before);
        before = now;
    }
    Ok(histogram)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
