//! Tests with two processes. The *leader* sends, the *other*, a second process of this program, receives and measures
//! (for round trips the leader does). All times are of the boot-time clock, which both share. Before the first message
//! both ends are set up and pinned to a processor each; helper threads are not.

use std::hint::black_box;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

use chronfs::clock::boot_ns;
use hdrhistogram::Histogram;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use crate::Result;
#[cfg(feature = "aeron")]
use crate::link::Aeron;
use crate::link::{BACK, Chron, Copied, Follow, Iceoryx, Link, Packets, Pipe, Rx, Socket, THERE, TailF, Tx, Word};
use crate::plan::Plan;
use crate::report::{Report, Sample, quantile};
use crate::scratch::{remove_shared, shared_prefix};
use crate::shared::Shared;

/// Says that the program plays the other's part.
pub(crate) const OTHER: &str = "--other";
/// Messages per second, one way.
const RATE: u64 = 100_000;
/// Pause before a wake, in which the other falls asleep.
const NAP: Duration = Duration::from_micros(300);
/// Longest measurement.
const PATIENCE: Duration = Duration::from_secs(60);
/// Slots of the memory by which both agree.
const READY: usize = 0;
const HEARD: usize = 1;
/// Bytes after which bounded logs have wrapped around.
pub(crate) const ROUND: u64 = 768 << 20;
/// How often a link is measured until the word before and after it agree, and by how many hundredths at most they differ.
const TRIES: usize = 3;
const MOST_APART: u64 = 115;
/// Messages received at a time when streaming.
const BATCH: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Test {
    Stream,
    OneWay,
    RoundTrip,
    Wake,
}

impl Test {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::OneWay => "one-way",
            Self::RoundTrip => "round-trip",
            Self::Wake => "wake",
        }
    }

    /// Under this the word takes, the two processors share a cache: `near`; otherwise they are `far` apart.
    fn near_ns(self) -> Option<u64> {
        match self {
            Self::OneWay => Some(250),
            Self::RoundTrip => Some(350),
            Self::Stream | Self::Wake => None,
        }
    }

    /// The name under which a round is reported. Rounds of the two placements are never put together.
    fn name_at(self, word_ns: u64) -> &'static str {
        match (self, self.near_ns().map(|near_ns| word_ns < near_ns)) {
            (Self::OneWay, Some(true)) => "one-way, near",
            (Self::OneWay, Some(false)) => "one-way, far",
            (Self::RoundTrip, Some(true)) => "round-trip, near",
            (Self::RoundTrip, Some(false)) => "round-trip, far",
            _ => self.name(),
        }
    }

    /// Who takes part.
    fn links(self) -> Vec<&'static str> {
        let aeron = cfg!(feature = "aeron").then_some("aeron");
        let most = ["word", "copied", "copied, checked", "chronfs", "iceoryx2", "pipe", "socket"];
        match self {
            Self::Stream => [&most[1..], &["chronfs by packets"], aeron.as_slice()].concat(),
            Self::OneWay | Self::RoundTrip => [&most[..], aeron.as_slice()].concat(),
            Self::Wake => vec!["word", "chronfs", "iceoryx2", "pipe", "socket", "follow.bin", "tail -f"],
        }
    }
}

/// One measurement, as both processes are told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    link: String,
    pub(crate) test: Test,
    pub(crate) payload: usize,
    /// Messages that are measured, and before them some that are not.
    count: u64,
    warm: u64,
    /// On the file system that is measured, and in memory.
    pub(crate) dir: PathBuf,
    pub(crate) memory: PathBuf,
    pub(crate) cli: PathBuf,
    /// Prefix of names that peers create outside the directories.
    pub(crate) prefix: String,
}

impl Job {
    /// Of one direction.
    pub(crate) fn messages(&self) -> u64 {
        self.warm + self.count
    }
}

/// The other one's results.
#[derive(Serialize, Deserialize)]
struct Measured {
    values: Vec<(u64, u64)>,
    elapsed_ns: u64,
}

macro_rules! with_link {
    ($job:expr, $function:ident) => {
        match $job.link.as_str() {
            "word" => $function::<Word>($job),
            "copied" => $function::<Copied<false>>($job),
            "copied, checked" => $function::<Copied<true>>($job),
            "chronfs" => $function::<Chron>($job),
            "chronfs by packets" => $function::<Packets>($job),
            "iceoryx2" => $function::<Iceoryx>($job),
            "pipe" => $function::<Pipe>($job),
            "socket" => $function::<Socket>($job),
            "follow.bin" => $function::<Follow>($job),
            "tail -f" => $function::<TailF>($job),
            #[cfg(feature = "aeron")]
            "aeron" => $function::<Aeron>($job),
            other => Err(format!("{other}: no such link").into()),
        }
    };
}

/// All links in turns, round after round.
pub(crate) fn run(plan: &Plan<'_>, test: Test, report: &mut Report) {
    if !cfg!(feature = "aeron") {
        report.attempt("aeron", |_| Err("built without it; it needs cmake 3.30 or newer and clang".into()));
    }
    let payloads = match test {
        Test::Stream => plan.payloads.as_slice(),
        Test::OneWay | Test::RoundTrip => &plan.latency_payloads,
        Test::Wake => &[64],
    };
    for &payload in payloads {
        for round in (0..plan.rounds).take_while(|&round| plan.has_time(round, test.name())) {
            eprintln!("== {} of {payload} bytes, round {} of {}", test.name(), round + 1, plan.rounds);
            let mut word = None;
            for link in test.links().into_iter().filter(|link| plan.wants(link)) {
                report.attempt(&format!("{} {link}", test.name()), |report| {
                    if test.near_ns().is_some() {
                        return beside_the_word(plan, test, payload, link, &mut word, report);
                    }
                    let (job, Measured { values, elapsed_ns }) = measure(plan, test, payload, link)?;
                    let (test, count) = (test.name(), job.count);
                    report.add(Sample { test, link, payload, count, elapsed_ns, values, word_ns: None });
                    Ok(())
                });
            }
        }
    }
}

fn measure(plan: &Plan<'_>, test: Test, payload: usize, link: &str) -> Result<(Job, Measured)> {
    let job = job(plan, test, payload, link)?;
    let measured = with_link!(&job, lead);
    remove_shared(std::process::id());
    Ok((job, measured?))
}

/// Measures a link between two measurements of the word; the second one serves the next link, too. Drops what was
/// measured while the placement of the processors changed.
fn beside_the_word(
    plan: &Plan<'_>,
    test: Test,
    payload: usize,
    link: &'static str,
    before: &mut Option<u64>,
    report: &mut Report,
) -> Result<()> {
    let of_word =
        || measure(plan, test, payload, "word").map(|(_, word)| (quantile(word.values.iter().copied(), 0.5), word));
    for _ in 0..TRIES {
        let first = match before.take() {
            Some(first) => first,
            None => of_word()?.0,
        };
        let (job, measured) = measure(plan, test, payload, link)?;
        let (second, word) = of_word()?;
        *before = Some(second);
        if first.max(second) * 100 > first.min(second) * MOST_APART {
            report.dropped += 1;
            continue;
        }
        let word_ns = first.midpoint(second);
        let Measured { values, elapsed_ns } = if link == "word" { word } else { measured };
        let test = test.name_at(word_ns);
        report.add(Sample { test, link, payload, count: job.count, elapsed_ns, values, word_ns: Some(word_ns) });
        return Ok(());
    }
    Ok(())
}

fn job(plan: &Plan<'_>, test: Test, payload: usize, link: &str) -> Result<Job> {
    let (dir, memory) = plan.scratch.fresh()?;
    let record = 32 + payload as u64;
    let part = if plan.quick { 4 } else { 1 };
    // Wrapped around by then: ours has six files of 64 MiB.
    let round = matches!(link, "chronfs" | "chronfs by packets" | "aeron").then_some(ROUND / record);
    let is_slow = !matches!(
        link,
        "word" | "copied" | "copied, checked" | "chronfs" | "chronfs by packets" | "aeron" | "iceoryx2"
    );
    let (warm, count) = match test {
        Test::Stream if is_slow => (0, plan.streamed / record.max(1024) / 2),
        Test::Stream => (round.unwrap_or(plan.streamed / record / 8), plan.streamed / record),
        Test::OneWay => (round.unwrap_or(2_000), 60_000 / part),
        Test::RoundTrip if is_slow => (1_000, 20_000 / part),
        Test::RoundTrip => (round.unwrap_or(50_000), 100_000 / part),
        Test::Wake => (20, 1_000 / part),
    };
    let prefix = shared_prefix(std::process::id());
    Ok(Job { link: link.to_owned(), test, payload, count, warm, dir, memory, cli: plan.cli.clone(), prefix })
}

/// Ends the other process whatever happens.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Polls without pause, but not for ever.
struct Guard {
    end: Instant,
    turns: u32,
}

impl Guard {
    fn new() -> Self {
        Self { end: Instant::now() + PATIENCE, turns: 0 }
    }

    /// To be called on each turn that found nothing: all links poll alike, as busy-spin strategies do.
    #[inline]
    fn turn(&mut self, other: Option<&mut Other>) -> Result<()> {
        std::hint::spin_loop();
        self.turns = self.turns.wrapping_add(1);
        if self.turns.is_multiple_of(1 << 20) { self.look(other) } else { Ok(()) }
    }

    #[cold]
    fn look(&self, other: Option<&mut Other>) -> Result<()> {
        if other.is_some_and(|other| !matches!(other.0.try_wait(), Ok(None))) {
            return Err("the other process has ended early".into());
        }
        if Instant::now() > self.end { Err("it takes too long".into()) } else { Ok(()) }
    }
}

fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}

fn values(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    histogram.iter_recorded().map(|v| (v.value_iterated_to(), v.count_at_value())).collect()
}

/// Pins this thread to one of the processors that this program may use.
pub(crate) fn pin(number: usize) -> Result<()> {
    let allowed = sched_getaffinity(None)?;
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
    let mut set = CpuSet::new();
    set.set(cpus[number % cpus.len()]);
    Ok(sched_setaffinity(None, &set)?)
}

/// Lets this thread run anywhere again.
fn unpin(allowed: &CpuSet) {
    let _ = sched_setaffinity(None, allowed);
}

fn agreement(job: &Job) -> PathBuf {
    job.memory.join("agreement")
}

fn lead<L: Link>(job: &Job) -> Result<Measured> {
    let shared = Shared::create(&agreement(job), 2)?;
    let mut link = L::make(job)?;
    let child = Command::new(std::env::current_exe()?)
        .args([OTHER, &serde_json::to_string(job)?])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut other = Other(child);
    let mut tx = link.tx(THERE)?;
    let mut rx = if job.test == Test::RoundTrip { Some(link.rx(BACK)?) } else { None };
    let guard = Guard::new();
    while shared.slot(READY).load(Acquire) == 0 {
        std::thread::sleep(Duration::from_millis(1));
        guard.look(Some(&mut other))?;
    }
    let allowed = sched_getaffinity(None)?;
    pin(0)?;
    let mut payload = vec![0; job.payload];
    let mut histogram = histogram()?;
    let sent = send(job, &shared, &mut other, &mut tx, rx.as_mut(), &mut payload, &mut histogram);
    unpin(&allowed);
    sent?;
    let mut text = String::new();
    if let Some(mut stdout) = other.0.stdout.take() {
        std::io::Read::read_to_string(&mut stdout, &mut text)?;
    }
    drop((tx, rx, link));
    let mut measured: Measured = serde_json::from_str(&text).map_err(|_| "the other process has failed")?;
    if job.test == Test::RoundTrip {
        measured.values = values(&histogram);
    }
    Ok(measured)
}

fn send<T: Tx, R: Rx>(
    job: &Job,
    shared: &Shared,
    other: &mut Other,
    tx: &mut T,
    rx: Option<&mut R>,
    payload: &mut [u8],
    histogram: &mut Histogram<u64>,
) -> Result<()> {
    let mut guard = Guard::new();
    let stamp = |payload: &mut [u8], stamp: u64| payload[..8].copy_from_slice(&stamp.to_le_bytes());
    match (job.test, rx) {
        (Test::Stream, _) => {
            stamp(payload, boot_ns());
            for _ in 0..job.messages() {
                tx.send(black_box(payload))?;
            }
        }
        (Test::OneWay, _) => {
            stamp(payload, boot_ns());
            for _ in 0..job.warm {
                tx.send(black_box(payload))?;
            }
            while shared.slot(HEARD).load(Acquire) < job.warm {
                guard.turn(Some(other))?;
            }
            let start = boot_ns();
            for number in 0..job.count {
                let due = start + number * 1_000_000_000 / RATE;
                while boot_ns() < due {}
                // When it should have been sent: a late sender pays for it.
                stamp(payload, due);
                tx.send(payload)?;
            }
        }
        (Test::RoundTrip, Some(rx)) => {
            for number in 0..job.messages() {
                let start = boot_ns();
                stamp(payload, start);
                tx.send(payload)?;
                while rx.poll(1, |payload| {
                    black_box(fold(payload));
                })? == 0
                {
                    guard.turn(Some(other))?;
                }
                if number >= job.warm {
                    histogram.saturating_record(boot_ns() - start);
                }
            }
        }
        (Test::RoundTrip, None) => return Err("a round trip needs a way back".into()),
        (Test::Wake, _) => {
            for number in 1..=job.messages() {
                std::thread::sleep(NAP);
                stamp(payload, boot_ns());
                tx.send(payload)?;
                while shared.slot(HEARD).load(Acquire) < number {
                    guard.turn(Some(other))?;
                }
            }
        }
    }
    Ok(())
}

/// The other's part.
pub(crate) fn play(job: &str) -> Result<()> {
    // Nothing else would end us once the leader is gone.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let job: Job = serde_json::from_str(job)?;
    let measured = with_link!(&job, follow)?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

fn follow<L: Link>(job: &Job) -> Result<Measured> {
    let shared = Shared::open(&agreement(job))?;
    let mut link = L::join(job)?;
    let mut rx = link.rx(THERE)?;
    let mut tx = if job.test == Test::RoundTrip { Some(link.tx(BACK)?) } else { None };
    pin(1)?;
    let answer = vec![0; job.payload];
    let (mut histogram, mut guard) = (histogram()?, Guard::new());
    let (mut start_ns, mut seen, mut bytes) = (None, 0, 0_u64);
    shared.slot(READY).store(1, Release);
    while seen < job.messages() {
        let mut stamp = 0;
        if job.test == Test::Wake {
            rx.wait()?;
        }
        let max = if job.test == Test::Stream { BATCH } else { 1 };
        let count = rx.poll(max, |payload| {
            // Of a message that comes in fragments the first one has it.
            if stamp == 0 {
                stamp = payload.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            }
            bytes ^= fold(payload);
        })?;
        if count == 0 {
            guard.turn(None)?;
            continue;
        }
        if seen >= job.warm {
            start_ns.get_or_insert_with(boot_ns);
        }
        seen += count as u64;
        match (job.test, &mut tx) {
            (Test::RoundTrip, Some(tx)) => tx.send(&answer)?,
            (Test::OneWay | Test::Wake, _) if seen > job.warm => {
                histogram.saturating_record(boot_ns().saturating_sub(stamp));
            }
            _ => {}
        }
        if job.test == Test::Wake || seen == job.warm {
            shared.slot(HEARD).store(seen, Release);
        }
    }
    black_box(bytes);
    let elapsed_ns = start_ns.map_or(0, |start_ns| boot_ns().saturating_sub(start_ns));
    Ok(Measured { values: values(&histogram), elapsed_ns })
}

/// Reads every byte.
#[inline]
fn fold(payload: &[u8]) -> u64 {
    let (words, rest) = payload.as_chunks::<8>();
    let tail = rest.iter().fold(0, |sum, byte| sum ^ u64::from(*byte));
    words.iter().fold(tail, |sum, word| sum ^ u64::from_le_bytes(*word))
}
