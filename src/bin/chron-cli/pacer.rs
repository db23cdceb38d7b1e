//! The original spacing of recorded messages: for `replay`, and for `tail --replay`.
//!
//! A message is due as long after the first one as it was when it was recorded, divided by the speed. Most of the wait
//! is slept; the rest is spun, because a sleep ends tens of microseconds late. What is late does not delay what follows:
//! the schedule is fixed by the first message. Longer waits show on a terminal.

use std::time::{Duration, Instant};

use chronfs::report::human_span_ms;
use hdrhistogram::Histogram;

use crate::failure::Failure;
use crate::progress;
use crate::stop::Stop;

/// How long before a message is due the sleep ends.
const SPIN: Duration = Duration::from_micros(200);
/// Longest sleep between two checks for a signal.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);
/// A longer wait says when it ends.
const LONG_WAIT: Duration = Duration::from_secs(3);
/// Messages between two checks for a signal.
const CHECK_EVERY: u64 = 4096;

/// How fast recorded messages come again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Speed {
    /// This many times as fast as they were recorded.
    Times(f64),
    /// Without a pause.
    Max,
}

/// "1", "10x", "0.5" or "max".
pub(crate) fn parse_speed(text: &str) -> Result<Speed, String> {
    if text == "max" {
        return Ok(Speed::Max);
    }
    match text.strip_suffix('x').unwrap_or(text).parse() {
        Ok(times) if (1e-6..=1e9).contains(&times) => Ok(Speed::Times(times)),
        _ => Err(format!("{text:?} is not a speed; use 1, 10, 0.5 or max")),
    }
}

pub(crate) struct Pacer {
    speed: Speed,
    /// When the first message came, and its timestamp.
    origin: Option<(Instant, u64)>,
    /// How late messages were, in nanoseconds.
    drift: Histogram<u64>,
    messages: u64,
    is_quiet: bool,
    stop: Stop,
}

impl Pacer {
    /// From now on signals end the pauses. A quiet one doesn't show them.
    pub(crate) fn new(speed: Speed, is_quiet: bool) -> Result<Self, Failure> {
        let drift = Histogram::new_with_max(3_600_000_000_000, 3);
        let drift = drift.map_err(|error| Failure::new(error.to_string()))?;
        Ok(Self { speed, origin: None, drift, messages: 0, is_quiet, stop: Stop::watch()? })
    }

    /// Waits until the message of this timestamp is due. Returns when that was, for [`Pacer::done`].
    pub(crate) fn wait(&mut self, timestamp_ns: u64) -> Result<Option<Instant>, Failure> {
        self.messages += 1;
        if self.messages.is_multiple_of(CHECK_EVERY) {
            self.stop.check()?;
        }
        let Speed::Times(times) = self.speed else { return Ok(None) };
        let (start, first_ns) = *self.origin.get_or_insert_with(|| (Instant::now(), timestamp_ns));
        #[allow(clippy::cast_precision_loss)]
        let seconds = timestamp_ns.saturating_sub(first_ns) as f64 / 1e9 / times;
        let due = Duration::try_from_secs_f64(seconds).ok().and_then(|after| start.checked_add(after));
        let due = due.ok_or_else(|| Failure::new("the next message is due in more than a lifetime; raise --speed"))?;
        let mut line = None;
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Some(due));
            }
            if left > SPIN {
                self.stop.check()?;
                if (left > LONG_WAIT || line.is_some()) && !self.is_quiet {
                    line.get_or_insert_with(progress::line).set_message(until(left));
                }
                std::thread::sleep((left - SPIN).min(LONGEST_SLEEP));
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// Whether there are pauses, before which what is buffered must be written.
    pub(crate) fn is_waiting(&self) -> bool {
        self.speed != Speed::Max
    }

    /// Notes how late the message was that was due then.
    pub(crate) fn done(&mut self, due: Option<Instant>) {
        if let Some(due) = due {
            let late = Instant::now().saturating_duration_since(due);
            self.drift.saturating_record(u64::try_from(late.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// How late the messages were; empty if there was no schedule.
    pub(crate) fn report(&self) -> String {
        if self.drift.is_empty() {
            return String::new();
        }
        let micros = |ns: u64| {
            #[allow(clippy::cast_precision_loss)]
            let micros = ns as f64 / 1e3;
            format!("{micros:.1} us")
        };
        let [median, most, nearly_all] = [0.5, 0.99, 0.999].map(|part| micros(self.drift.value_at_quantile(part)));
        let latest = micros(self.drift.max());
        format!("; late by: median {median}, 99 % {most}, 99.9 % {nearly_all}, max {latest}")
    }
}

fn until(left: Duration) -> String {
    let left = human_span_ms(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    format!("the next message is due in {left}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_factors_or_max() {
        assert_eq!(parse_speed("max"), Ok(Speed::Max));
        assert_eq!(parse_speed("10x"), Ok(Speed::Times(10.0)));
        assert_eq!(parse_speed("0.5"), Ok(Speed::Times(0.5)));
        for wrong in ["", "x", "0", "-1", "nan", "inf", "10xx", "1e99"] {
            assert!(parse_speed(wrong).is_err(), "{wrong}");
        }
    }
}
