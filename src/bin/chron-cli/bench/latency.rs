//! Latencies between two processes, in turn through shared memory (the floor) and through a queue.
//!
//! The *leader* is the command as it was started, the *other* a second process of the same program. Both know how many
//! rounds of how many messages there are, so nothing has to be negotiated: before each half of a round the other says
//! that it is ready. Times are read from the boot-time clock, which both share.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

use chronfs::queue::{Queue, ReaderOptions, Settings, WaitStrategy};
use chronfs::{QueueReader, QueueWriter, clock};
use hdrhistogram::Histogram;

use super::shared::Shared;
use crate::failure::Failure;

/// How often floor and queue take turns, so that both see the same machine.
const ROUNDS: u64 = 4;
/// Pause before a wake, in which the other falls asleep.
const NAP: Duration = Duration::from_micros(300);
/// Longer latencies are counted as this, in nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;
/// Files in the scratch directory.
const SHARED: &str = "shared";
const PING: &str = "ping";
const PONG: &str = "pong";
/// Slots: which half of which round the other is ready for; there and back; the word to sleep on; then one a message.
const READY: usize = 0;
const THERE: usize = 2;
const BACK: usize = 4;
const FUTEX: usize = 6;
const STAMPS: usize = 8;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    OneWay,
    RoundTrip,
    Wake,
}

impl Part {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::OneWay => "one-way",
            Self::RoundTrip => "round-trip",
            Self::Wake => "wake",
        }
    }

    pub(super) fn parse(name: &str) -> Result<Self, Failure> {
        [Self::OneWay, Self::RoundTrip, Self::Wake]
            .into_iter()
            .find(|part| part.name() == name)
            .ok_or_else(|| Failure::Usage(format!("{name}: no such part")))
    }
}

/// Nanoseconds, in a histogram each.
pub(super) struct Latency {
    pub(super) floor: Histogram<u64>,
    pub(super) queue: Histogram<u64>,
}

impl Latency {
    fn new() -> Result<Self, Failure> {
        let make = || {
            Histogram::new_with_bounds(1, LONGEST_NS, 3)
                .map_err(|e| Failure::new(format!("cannot create a histogram: {e}")))
        };
        Ok(Self { floor: make()?, queue: make()? })
    }

    fn of(&mut self, half: Half) -> &mut Histogram<u64> {
        match half {
            Half::Floor => &mut self.floor,
            Half::Queue => &mut self.queue,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Floor,
    Queue,
}

/// The halves of all rounds, with the number by which the other says that it is ready, and whether it only warms up.
fn halves() -> impl Iterator<Item = (u64, Half)> {
    (0..ROUNDS).flat_map(|round| [(2 * round + 1, Half::Floor), (2 * round + 2, Half::Queue)])
}

/// The parameters of a run; both processes get the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'a> {
    pub(super) dir: &'a Path,
    pub(super) part: Part,
    pub(super) payload_bytes: u32,
    /// Messages of each half of each round.
    pub(super) count: u64,
    /// Messages per second, of one-way.
    pub(super) rate: u64,
}

/// Ends the other process whatever happens.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Other {
    fn start(plan: &Plan<'_>) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(Failure::io(Path::new("/proc/self/exe"), "find this program"))?;
        let child = Command::new(&program)
            .args(["bench", "--part", plan.part.name()])
            .args(["--payload-bytes", &plan.payload_bytes.to_string()])
            .args(["--messages", &plan.count.to_string()])
            .arg(plan.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Failure::io(&program, "start it a second time"))?;
        Ok(Self(child))
    }

    /// Spins until `is_so`; fails if the other process has exited meanwhile.
    fn spin(&mut self, mut is_so: impl FnMut() -> Result<bool, Failure>) -> Result<(), Failure> {
        for turn in 1_u64.. {
            if is_so()? {
                break;
            }
            if turn.is_multiple_of(1 << 22) && !matches!(self.0.try_wait(), Ok(None)) {
                return Err(Failure::new("bench: the second process exited early"));
            }
        }
        Ok(())
    }

    /// What the other one has measured.
    fn result(mut self, latency: &mut Latency) -> Result<(), Failure> {
        let broken = |e: String| Failure::new(format!("bench: the second process: {e}"));
        let mut text = String::new();
        if let Some(mut stdout) = self.0.stdout.take() {
            io::Read::read_to_string(&mut stdout, &mut text).map_err(|e| broken(e.to_string()))?;
        }
        let [floor, queue]: [Vec<(u64, u64)>; 2] = serde_json::from_str(&text).map_err(|e| broken(e.to_string()))?;
        for (half, values) in [(Half::Floor, floor), (Half::Queue, queue)] {
            for (value, count) in values {
                latency.of(half).record_n(value, count).map_err(|e| broken(e.to_string()))?;
            }
        }
        Ok(())
    }
}

fn io_failure(plan: &Plan<'_>) -> impl FnOnce(io::Error) -> Failure {
    Failure::io(plan.dir, "create files for the measurement in it")
}

/// Runs a measurement: this process is the leader.
pub(super) fn measure(plan: &Plan<'_>) -> Result<Latency, Failure> {
    let slots = STAMPS + usize::try_from(plan.count * ROUNDS).map_err(|e| Failure::new(e.to_string()))?;
    let path = plan.dir.join(SHARED);
    let shared = Shared::create(&path, slots).map_err(io_failure(plan))?;
    let ping = Queue::create(plan.dir.join(PING), &Settings::default())?;
    let pong = Queue::create(plan.dir.join(PONG), &Settings::default())?;
    let mut leader = Leader {
        plan: *plan,
        shared,
        writer: ping.writer()?,
        reader: pong.reader_with("leader", &options(plan.part))?,
        other: Other::start(plan)?,
        payload: vec![0; plan.payload_bytes as usize],
        latency: Latency::new()?,
        number: 0,
    };
    for (number, half) in halves() {
        let shared = &leader.shared;
        leader.other.spin(|| {
            std::thread::yield_now();
            Ok(shared.slot(READY).load(Acquire) >= number)
        })?;
        match plan.part {
            Part::OneWay => leader.one_way(half)?,
            Part::RoundTrip => leader.round_trip(half)?,
            Part::Wake => leader.wake(half)?,
        }
    }
    let Leader { other, mut latency, writer, .. } = leader;
    other.result(&mut latency)?;
    drop(writer);
    for name in [PING, PONG] {
        std::fs::remove_dir_all(plan.dir.join(name)).map_err(io_failure(plan))?;
    }
    std::fs::remove_file(path).map_err(io_failure(plan))?;
    Ok(latency)
}

fn options(part: Part) -> ReaderOptions {
    let wait = if part == Part::Wake { WaitStrategy::Sleep } else { WaitStrategy::BusySpin };
    ReaderOptions { wait, ..ReaderOptions::default() }
}

struct Leader<'a> {
    plan: Plan<'a>,
    shared: Shared,
    writer: QueueWriter,
    reader: QueueReader,
    other: Other,
    payload: Vec<u8>,
    latency: Latency,
    /// Messages sent in floor halves.
    number: u64,
}

impl Leader<'_> {
    /// Appends a message that says when.
    fn append(&mut self, stamp: u64) -> Result<(), Failure> {
        self.payload[..8].copy_from_slice(&stamp.to_le_bytes());
        self.writer.append(1, &self.payload)?;
        Ok(())
    }

    fn one_way(&mut self, half: Half) -> Result<(), Failure> {
        let every_ns = 1_000_000_000 / self.plan.rate;
        let start = clock::boot_ns();
        for n in 0..self.plan.count {
            let due = start + n * every_ns;
            let mut now = clock::boot_ns();
            while now < due {
                now = clock::boot_ns();
            }
            match half {
                Half::Floor => {
                    self.shared.slot(slot_of(self.number)).store(now, Release);
                    self.number += 1;
                }
                Half::Queue => self.append(now)?,
            }
        }
        Ok(())
    }

    fn round_trip(&mut self, half: Half) -> Result<(), Failure> {
        for _ in 0..self.plan.count {
            let start = clock::boot_ns();
            match half {
                Half::Floor => {
                    self.number += 1;
                    let (shared, number) = (&self.shared, self.number);
                    shared.slot(THERE).store(number, Release);
                    self.other.spin(|| Ok(shared.slot(BACK).load(Acquire) == number))?;
                }
                Half::Queue => {
                    self.append(start)?;
                    let reader = &mut self.reader;
                    self.other.spin(|| Ok(reader.next()?.is_some()))?;
                }
            }
            self.latency.of(half).saturating_record(clock::boot_ns() - start);
        }
        Ok(())
    }

    fn wake(&mut self, half: Half) -> Result<(), Failure> {
        for _ in 0..self.plan.count {
            std::thread::sleep(NAP);
            self.number += 1;
            let stamp = clock::boot_ns();
            match half {
                Half::Floor => {
                    self.shared.slot(THERE).store(stamp, Release);
                    let value = u32::try_from(self.number).map_err(|e| Failure::new(e.to_string()))?;
                    self.shared.wake(FUTEX, value).map_err(io_failure(&self.plan))?;
                }
                Half::Queue => self.append(stamp)?,
            }
            let (shared, number) = (&self.shared, self.number);
            self.other.spin(|| Ok(shared.slot(BACK).load(Acquire) == number))?;
        }
        Ok(())
    }
}

/// Of a floor half's message.
fn slot_of(number: u64) -> usize {
    STAMPS + usize::try_from(number).unwrap_or(usize::MAX - STAMPS)
}

/// The other process: plays its part and prints what it has measured.
pub(super) fn play(plan: &Plan<'_>) -> Result<String, Failure> {
    // Without the leader nothing would ever end this process.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let shared = Shared::open(&plan.dir.join(SHARED)).map_err(io_failure(plan))?;
    let mut reader = Queue::open(plan.dir.join(PING))?.reader_with("other", &options(plan.part))?;
    let mut writer = Queue::open(plan.dir.join(PONG))?.writer()?;
    let payload = vec![0; plan.payload_bytes as usize];
    let mut latency = Latency::new()?;
    let mut number = 0;
    for (ready, half) in halves() {
        shared.slot(READY).store(ready, Release);
        for _ in 0..plan.count {
            match (plan.part, half) {
                (Part::OneWay, Half::Floor) => {
                    let slot = shared.slot(slot_of(number));
                    let mut stamp = slot.load(Acquire);
                    while stamp == 0 {
                        stamp = slot.load(Acquire);
                    }
                    latency.floor.saturating_record(clock::boot_ns().saturating_sub(stamp));
                    number += 1;
                }
                (Part::OneWay | Part::Wake, Half::Queue) => {
                    let stamp = next_stamp(&mut reader, plan.part)?;
                    latency.queue.saturating_record(clock::boot_ns().saturating_sub(stamp));
                    number += u64::from(plan.part == Part::Wake);
                    shared.slot(BACK).store(number, Release);
                    reader.commit();
                }
                (Part::RoundTrip, Half::Floor) => {
                    number += 1;
                    while shared.slot(THERE).load(Acquire) != number {}
                    shared.slot(BACK).store(number, Release);
                }
                (Part::RoundTrip, Half::Queue) => {
                    next_stamp(&mut reader, plan.part)?;
                    writer.append(1, &payload)?;
                    reader.commit();
                }
                (Part::Wake, Half::Floor) => {
                    number += 1;
                    shared.sleep_until(FUTEX, u32::try_from(number).map_err(|e| Failure::new(e.to_string()))?);
                    let stamp = shared.slot(THERE).load(Acquire);
                    latency.floor.saturating_record(clock::boot_ns().saturating_sub(stamp));
                    shared.slot(BACK).store(number, Release);
                }
            }
        }
    }
    let values = |histogram: &Histogram<u64>| {
        histogram.iter_recorded().map(|v| (v.value_iterated_to(), v.count_at_value())).collect::<Vec<_>>()
    };
    serde_json::to_string(&[values(&latency.floor), values(&latency.queue)]).map_err(|e| Failure::new(e.to_string()))
}

/// Reads one message, spinning or sleeping. It is to be committed once its time has been taken.
fn next_stamp(reader: &mut QueueReader, part: Part) -> Result<u64, Failure> {
    loop {
        if let Some(entry) = reader.next()? {
            let payload = entry.message().map_or(&[][..], |message| message.payload);
            let stamp = payload.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            return Ok(stamp);
        }
        if part == Part::Wake {
            reader.wait(None)?;
        }
    }
}
