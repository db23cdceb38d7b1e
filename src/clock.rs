//! The only caller of the clocks: the wall clock for message timestamps, the boot-time clock for heartbeats.
//!
//! Reading the wall clock costs about as much as the rest of an append. `FastClock` reads the processor's time stamp
//! counter instead and synchronises it with the wall clock once a millisecond, so that it follows every step of that
//! clock. The timestamps of two queues can therefore be off from the order of their appends by the error of two
//! synchronisations, less than a microsecond (`tests/times.rs`).
#![allow(unsafe_code)]

use std::sync::OnceLock;
use std::time::Duration;

/// The wall clock, in nanoseconds since the epoch. It may jump: callers that need order keep the newest value
/// themselves.
pub fn now_ns() -> u64 {
    read(libc::CLOCK_REALTIME)
}

/// Nanoseconds since this machine booted, suspensions included: the machine's own clock, even in a container with a
/// different one (a time namespace). Never jumps; meaningless after a reboot.
pub fn boot_ns() -> u64 {
    read(libc::CLOCK_BOOTTIME).saturating_add_signed(boot_ahead_ns().saturating_neg())
}

/// How far this process's boot-time clock is ahead of the machine's, in nanoseconds.
pub(crate) fn boot_ahead_ns() -> i64 {
    static AHEAD_NS: OnceLock<i64> = OnceLock::new();
    *AHEAD_NS.get_or_init(|| {
        let offsets = std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
        boot_clock_ahead_ns(&offsets).unwrap_or(0)
    })
}

/// Parses `timens_offsets`: clock, seconds, nanoseconds.
fn boot_clock_ahead_ns(offsets: &str) -> Option<i64> {
    let line = offsets.lines().find_map(|line| line.strip_prefix("boottime"))?;
    let mut numbers = line.split_whitespace().map(str::parse::<i64>);
    let (seconds, nanos) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

/// Nanoseconds of a clock that never jumps, for deadlines of system calls.
pub(crate) fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// The identity of this boot, without which a boot-time stamp is meaningless; empty where it is unavailable.
pub fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim_end().to_owned()
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing. The clocks named above exist on every Linux that runs Rust.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let (secs, nanos) = (u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0));
    u64::try_from(Duration::new(secs, nanos).as_nanos()).unwrap_or(u64::MAX)
}

/// The wall clock by way of the time stamp counter, where the processor has an invariant one; else the wall clock.
#[derive(Debug)]
pub(crate) struct FastClock {
    /// Counter and wall clock at the last synchronisation.
    anchor: (u64, u64),
    /// Counter and monotonic clock from which the rate is measured.
    base: Option<(u64, u64)>,
    /// Nanoseconds per tick, times 2^32; 0 while unknown.
    rate: u64,
    /// Ticks after `anchor` until the next synchronisation.
    valid_ticks: u64,
    /// Ticks of the fastest reading of all clocks so far.
    quickest: u64,
}

/// The clocks at one instant, as nearly as possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    ticks: u64,
    wall: u64,
    monotonic: u64,
}

/// The clock is synchronised again after about this many nanoseconds.
const SET_EVERY_NS: u64 = 1_000_000;
/// The rate is measured over at least this many nanoseconds.
const MEASURE_NS: u64 = 5_000_000;
/// Measurements restart after this many nanoseconds, so that they follow a counter that changes its rate.
const MEASURE_AGAIN_NS: u64 = 1_000_000_000;
/// The clocks are read at most this often until a reading is not interrupted.
const READINGS: u32 = 8;

impl FastClock {
    pub(crate) fn new() -> Self {
        let mut clock = Self { anchor: (0, 0), base: None, rate: 0, valid_ticks: 0, quickest: u64::MAX };
        if has_even_counter() {
            // The duration of a reading is unknown until there have been some.
            let first = [(); 4].map(|()| read_all().1);
            clock.quickest = first.into_iter().fold(u64::MAX, u64::min);
            let Reading { ticks, monotonic, .. } = clock.read_together(read_all);
            clock.base = Some((ticks, monotonic));
        }
        clock
    }

    /// Reads until a reading took hardly longer than the fastest one: an interruption in between (an interrupt, another
    /// thread, the host of a virtual machine) would shift all timestamps until the next synchronisation.
    fn read_together(&mut self, mut read: impl FnMut() -> (Reading, u64)) -> Reading {
        let mut best = read();
        for _ in 1..READINGS {
            self.quickest = self.quickest.min(best.1);
            if best.1 / 2 <= self.quickest {
                break;
            }
            let next = read();
            if next.1 < best.1 {
                best = next;
            }
        }
        best.0
    }

    /// Nanoseconds since the epoch.
    #[inline]
    pub(crate) fn now_ns(&mut self) -> u64 {
        let ticks = counter().wrapping_sub(self.anchor.0);
        if ticks < self.valid_ticks {
            // `valid_ticks` keeps this from overflowing.
            return self.anchor.1 + ((ticks * self.rate) >> 32);
        }
        self.set()
    }

    #[cold]
    fn set(&mut self) -> u64 {
        let Some(base) = self.base else {
            return now_ns();
        };
        let Reading { ticks, wall, monotonic } = self.read_together(read_all);
        let (elapsed_ns, elapsed) = (monotonic.saturating_sub(base.1), ticks.wrapping_sub(base.0));
        if elapsed_ns < MEASURE_NS {
            // No rate yet: return the wall clock, as the next call will.
            return wall;
        }
        let rate = (u128::from(elapsed_ns) << 32) / u128::from(elapsed.max(1));
        match u64::try_from(rate) {
            // Between 0.05 and 10 ns per tick; anything else is not a usable counter.
            Ok(rate) if (1 << 27..10 << 32).contains(&rate) => {
                self.rate = rate;
                self.anchor = (ticks, wall);
                self.valid_ticks = (SET_EVERY_NS << 32) / rate;
            }
            _ => self.valid_ticks = 0,
        }
        if elapsed_ns > MEASURE_AGAIN_NS {
            self.base = Some((ticks, monotonic));
        }
        wall
    }
}

/// Reads all clocks; returns how many ticks that took as well.
fn read_all() -> (Reading, u64) {
    let before = counter();
    let (wall, monotonic) = (now_ns(), monotonic_ns());
    let took = counter().wrapping_sub(before);
    (Reading { ticks: before.wrapping_add(took / 2), wall, monotonic }, took)
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    0
}

/// Whether the counter runs at one rate in all states of the processor (invariant TSC).
#[cfg(target_arch = "x86_64")]
fn has_even_counter() -> bool {
    use std::arch::x86_64::__cpuid;
    const EXTENDED: u32 = 0x8000_0000;
    const POWER: u32 = 0x8000_0007;
    __cpuid(EXTENDED).eax >= POWER && __cpuid(POWER).edx & (1 << 8) != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn has_even_counter() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_namespace_does_not_move_the_boot_time_clock() {
        let ahead = |offsets| boot_clock_ahead_ns(offsets);
        assert_eq!(
            ahead("monotonic           0         0\nboottime       100000         7\n"),
            Some(100_000_000_000_007)
        );
        assert_eq!(ahead("monotonic  5 0\nboottime  -2 5\n"), Some(-1_999_999_995));
        for offsets in ["", "boottime", "boottime 1", "boottime x 0", "boottime 99999999999999 0"] {
            assert_eq!(ahead(offsets), None, "{offsets}");
        }
    }

    #[test]
    fn the_fast_clock_stays_with_the_wall_clock() {
        let mut clock = FastClock::new();
        let (start, mut readings, mut off) = (now_ns(), 0, 0);
        while now_ns() - start < 60_000_000 {
            let (before, fast, after) = (now_ns(), clock.now_ns(), now_ns());
            readings += 1;
            off += u64::from(before.saturating_sub(fast).max(fast.saturating_sub(after)) > 1_000_000);
        }
        // The test may be interrupted between two readings, but not between most of them.
        assert!(off < readings / 2, "{off} of {readings} readings are off by a millisecond");
    }

    #[test]
    fn a_reading_that_something_came_between_is_taken_again() {
        let reading = |ticks| Reading { ticks, wall: ticks, monotonic: ticks };
        let mut clock = FastClock { anchor: (0, 0), base: None, rate: 0, valid_ticks: 0, quickest: u64::MAX };
        let mut read = |took: &[u64]| {
            let mut readings = took.iter().enumerate().map(|(index, &took)| (reading(index as u64), took));
            let taken = clock.read_together(|| readings.next().unwrap()).ticks;
            (taken, readings.count())
        };
        assert_eq!(read(&[100]), (0, 0));
        assert_eq!(read(&[150]), (0, 0), "hardly slower than the quickest");
        assert_eq!(read(&[40_000, 300, 120]), (2, 0));
        assert_eq!(read(&[40_000, 30_000, 20_000, 50_000, 400, 500, 600, 700, 800]), (4, 1), "the quickest of a few");
    }
}
