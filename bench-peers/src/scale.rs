//! What grows with the queue, with its readers, with the number of queues, and what should not.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chronfs::queue::{FanInReader, Queue, ReaderOptions, Settings, Start, WaitStrategy};
use chronfs::{QueueReader, QueueWriter};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{sched_getaffinity, sched_setaffinity};

use crate::Result;
use crate::mount::Mount;
use crate::pair::pin;
use crate::plan::Plan;
use crate::report::{Report, human, median, quantile};
use crate::scratch::remove;

pub(crate) type Part = fn(&Plan<'_>, &mut Report) -> Result<()>;

const GB: u64 = 1_000_000_000;
/// Space left free on the disk.
const SPARE: u64 = 8 * GB;
/// What fills a queue: a large message, then a small one.
const LARGE: usize = 64 << 10;
const SMALL: usize = 64;
/// Small messages of a burst.
const BURST: u64 = 20_000;
const BURSTS: usize = 7;
const SEEKS: u64 = 200;
const READER: &str = "bench";

fn texts(row: &[&str]) -> Vec<String> {
    row.iter().map(|text| (*text).to_owned()).collect()
}

fn since(start: Instant) -> f64 {
    start.elapsed().as_nanos() as f64
}

/// What appending, reading, seeking, opening, `doctor` and `tail` cost as a queue grows.
pub(crate) fn grow(plan: &Plan<'_>, report: &mut Report) -> Result<()> {
    let (dir, _) = plan.scratch.fresh()?;
    let disk = rustix::fs::statvfs(&dir)?;
    let room = (disk.f_bavail * disk.f_frsize).saturating_sub(SPARE) / GB;
    let sizes = if plan.quick { &[1, 2][..] } else { &[1, 5, 10, 25, 50] };
    let path = dir.join("bus/queue");
    let queue = Queue::create(&path, &Settings::default())?;
    queue.add_reader(READER)?;
    let mut rows = vec![texts(&[
        "GB",
        "append",
        "next",
        "seek by number",
        "p99",
        "seek by time",
        "p99",
        "open to read",
        "open to write",
        "doctor",
        "first tail -n 5 in a new mount",
        "second",
    ])];
    for &size in sizes.iter().filter(|&&size| size <= plan.max_gb.min(room)) {
        eprintln!("== a queue of {size} GB");
        let start = Instant::now();
        let mut writer = queue.writer()?;
        let opened_ns = since(start);
        fill(&mut writer, &path, size * GB)?;
        let append = burst(&mut writer)?;
        let newest = writer.last_timestamp_ns();
        drop(writer);
        let mut row = vec![size.to_string(), human(append)];
        row.extend(looks(&queue, newest)?.map(human));
        row.push(if rows.len() == 1 { "-".to_owned() } else { human(opened_ns) });
        let doctor = timed(Command::new(&plan.cli).arg("doctor").arg(&path))?;
        row.push(doctor);
        let at = dir.join("mnt");
        let mount = Mount::new(&plan.cli, &dir.join("bus"), &at)?;
        for _ in 0..2 {
            row.push(timed(
                Command::new("timeout").args(["300", "tail", "-n", "5"]).arg(at.join("queue/messages.jsonl")),
            )?);
        }
        drop(mount);
        eprintln!("{}", row.join(" | "));
        rows.push(row);
    }
    let text = "Messages of 64 KiB and of 64 bytes in turns; appended, read and sought are the small ones. Seeks are warm. \
                Open to write is measured before the queue grows to that size, so at the size above.";
    report.tables.push(("A growing queue".to_owned(), text.to_owned(), rows));
    plan.scratch.fresh().map(drop)
}

/// Appends until the segments take this many bytes.
fn fill(writer: &mut QueueWriter, path: &Path, bytes: u64) -> Result<()> {
    let (large, small) = (vec![b'x'; LARGE], [b'y'; SMALL]);
    let segments = || -> Result<u64> {
        let mut total = 0;
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            total += if entry.path().extension().is_some_and(|e| e == "q") { entry.metadata()?.len() } else { 0 };
        }
        Ok(total)
    };
    // The segment created ahead does not count.
    while segments()? < bytes + u64::from(Settings::default().segment_size) {
        for _ in 0..500 {
            writer.append(1, &large)?;
            writer.append(2, &small)?;
        }
    }
    Ok(())
}

/// Nanoseconds per append, in bursts.
fn burst(writer: &mut QueueWriter) -> Result<f64> {
    let payload = [b'z'; SMALL];
    let mut bursts = Vec::new();
    for _ in 0..BURSTS {
        std::thread::sleep(Duration::from_millis(5));
        let start = Instant::now();
        for _ in 0..BURST {
            writer.append(3, &payload)?;
        }
        bursts.push(since(start) / BURST as f64);
    }
    median(bursts).ok_or_else(|| "no bursts".into())
}

/// next, seeks with their p99, and opening for reading: nanoseconds.
fn looks(queue: &Queue, newest: u64) -> Result<[f64; 6]> {
    let bounds = queue.bounds()?;
    let oldest = first_timestamp(queue)?;
    let (first, next) = (bounds.first_seq, bounds.next_seq);
    let start = Instant::now();
    let options = ReaderOptions { wait: WaitStrategy::BusySpin, ..ReaderOptions::default() };
    let mut reader = Queue::open(queue.path())?.reader_with(READER, &options)?;
    let opened_ns = since(start);
    let mut seeks = |to: &mut dyn FnMut(&mut QueueReader, f64) -> Result<()>| -> Result<[f64; 2]> {
        let mut values = Vec::new();
        // The first pass brings in what it needs.
        for pass in 0..2 {
            let mut random = 0x9E37_79B9_7F4A_7C15_u64;
            for _ in 0..SEEKS {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let part = (random >> 40) as f64 / (1_u64 << 24) as f64;
                let start = Instant::now();
                to(&mut reader, part)?;
                if reader.next()?.is_none() {
                    return Err("nothing where a seek went to".into());
                }
                if pass == 1 {
                    values.push((start.elapsed().as_nanos() as u64, 1));
                }
            }
        }
        values.sort_unstable();
        Ok([0.5, 0.99].map(|at| quantile(values.iter().copied(), at) as f64))
    };
    let within = |from: u64, to: u64, part: f64| from + ((to - from) as f64 * part) as u64;
    let by_seq = seeks(&mut |reader, part| Ok(reader.seek_seq(within(first, next - 1, part))?))?;
    let by_time = seeks(&mut |reader, part| Ok(reader.seek_time(within(oldest, newest, part))?))?;
    let mut passes = Vec::new();
    for _ in 0..BURSTS {
        reader.seek_seq(next - BURST)?;
        let start = Instant::now();
        for _ in 0..BURST {
            std::hint::black_box(reader.next()?);
        }
        passes.push(since(start) / BURST as f64);
    }
    let next = median(passes).unwrap_or(f64::NAN);
    Ok([next, by_seq[0], by_seq[1], by_time[0], by_time[1], opened_ns])
}

fn first_timestamp(queue: &Queue) -> Result<u64> {
    let mut scanner = queue.scan()?;
    let first = scanner.next()?.and_then(chronfs::queue::Entry::message).map(|message| message.timestamp_ns);
    first.ok_or_else(|| "the queue is empty".into())
}

/// Runs a command; returns how long it took, or how it failed.
fn timed(command: &mut Command) -> Result<String> {
    let start = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    let elapsed = since(start);
    match status.code() {
        Some(0) => Ok(human(elapsed)),
        Some(124) => Ok("more than 300 s".to_owned()),
        _ => Ok(format!("{} ({status})", human(elapsed))),
    }
}

/// What readers cost the writer.
pub(crate) fn readers(plan: &Plan<'_>, report: &mut Report) -> Result<()> {
    let mut rows = vec![texts(&["readers", "append", "messages read"])];
    let allowed = sched_getaffinity(None)?;
    for count in [0_usize, 1, 2, 4, 8, 16, 32, 64] {
        let (dir, _) = plan.scratch.fresh()?;
        let queue = Queue::create(dir.join("queue"), &Settings::default())?;
        let mut writer = queue.writer()?;
        let (stop, ready, read) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        let follow = |number: usize| -> Result<()> {
            let options = ReaderOptions { wait: WaitStrategy::BusySpin, start: Start::End, ..ReaderOptions::default() };
            let mut reader = queue.reader_with(&format!("reader{number}"), &options)?;
            pin(1)?;
            ready.fetch_add(1, Ordering::SeqCst);
            while !stop.load(Ordering::Relaxed) {
                // Many share one processor.
                if reader.next()?.is_some() {
                    read.fetch_add(1, Ordering::Relaxed);
                } else {
                    std::thread::yield_now();
                }
            }
            Ok(())
        };
        let append = std::thread::scope(|scope| -> Result<f64> {
            let started: Vec<_> = (0..count).map(|number| scope.spawn(move || follow(number))).collect();
            while ready.load(Ordering::SeqCst) < count
                && !started.iter().any(std::thread::ScopedJoinHandle::is_finished)
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            pin(0)?;
            let append = burst(&mut writer);
            let _ = sched_setaffinity(None, &allowed);
            stop.store(true, Ordering::SeqCst);
            for thread in started {
                thread.join().map_err(|_| "a reader has failed")??;
            }
            append
        })?;
        eprintln!("{count} readers: {}", human(append));
        rows.push(vec![count.to_string(), human(append), read.load(Ordering::SeqCst).to_string()]);
    }
    let text = "Bursts of 20,000 messages of 64 bytes, appended on one processor while all readers share another one.";
    report.tables.push(("Readers".to_owned(), text.to_owned(), rows));
    plan.scratch.fresh().map(drop)
}

/// What merging many queues costs per message.
pub(crate) fn fan_in(plan: &Plan<'_>, report: &mut Report) -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let mut rows = vec![texts(&["queues", "messages", "a message", "adding a queue"])];
    let counts = if plan.quick { &[1_u64, 10, 100, 1_000][..] } else { &[1, 10, 100, 1_000, 10_000] };
    for &count in counts {
        eprintln!("== fan-in of {count} queues");
        // In memory: the disk is not measured here, and thousands of new files would take it long.
        let (_, memory) = plan.scratch.fresh()?;
        let row = merge(&memory, count);
        remove(&memory);
        match row {
            Ok(row) => rows.push(row),
            Err(error) => rows.push(vec![count.to_string(), String::new(), error.to_string(), String::new()]),
        }
    }
    let text = "`FanInReader` over queues whose messages of 64 bytes interleave one by one; files in memory.";
    report.tables.push(("Fan-in".to_owned(), text.to_owned(), rows));
    Ok(())
}

fn merge(dir: &Path, count: u64) -> Result<Vec<String>> {
    let each = (200_000 / count).max(20);
    let settings = Settings { segment_size: if count < 1_000 { 4 << 20 } else { 64 << 10 }, ..Settings::default() };
    let base = chronfs::clock::now_ns() - 3_600_000_000_000;
    let mut fan_in = FanInReader::new();
    let mut added_ns = 0.0;
    for number in 0..count {
        let queue = Queue::create(dir.join(number.to_string()), &settings)?;
        let mut writer = queue.writer()?;
        for message in 0..each {
            writer.append_at(base + message * count + number, 1, &[b'x'; SMALL])?;
        }
        drop(writer);
        let start = Instant::now();
        fan_in.add(number.to_string(), queue.reader(READER)?)?;
        added_ns += since(start);
    }
    let (mut seen, total, start) = (0, each * count, Instant::now());
    while seen < total {
        if fan_in.next()?.is_some() {
            seen += 1;
        } else if start.elapsed() > Duration::from_secs(60) {
            return Err(format!("only {seen} of {total} messages").into());
        }
    }
    let ns = since(start) / total as f64;
    eprintln!("{count} queues: {}", human(ns));
    Ok(vec![count.to_string(), total.to_string(), human(ns), human(added_ns / count as f64)])
}
