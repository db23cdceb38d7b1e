//! The floors: what shared memory itself costs.

use std::path::PathBuf;
use std::sync::atomic::Ordering::{Acquire, Release};

use super::{Link, Rx, Tx};
use crate::Result;
use crate::pair::{Job, Test};
use crate::shared::Shared;

/// A bare word: each message is one store into a cache line of its own, whatever its payload; there and back again,
/// into the same line; for a wake, a futex.
pub(crate) struct Word {
    job: Job,
}

/// A record copied into memory that is mapped and populated, then a store: no checksum, no time, no wake. With `CHECKED`
/// the minimum that checksum and time cost.
pub(crate) struct Copied<const CHECKED: bool> {
    job: Job,
}

/// A time and a checksum by crates made for each.
pub(crate) struct Checks {
    clock: quanta::Clock,
}

impl Checks {
    pub(crate) fn new() -> Self {
        Self { clock: quanta::Clock::new() }
    }

    /// What goes into a record beside a payload whose length is a multiple of 8.
    #[inline]
    pub(crate) fn of(&self, payload: &[u8]) -> [u64; 2] {
        [self.clock.raw(), Self::sum(payload)]
    }

    #[inline]
    pub(crate) fn sum(payload: &[u8]) -> u64 {
        u64::from(crc_fast::crc32_iscsi(payload))
    }
}

fn path(job: &Job, name: &str) -> PathBuf {
    job.memory.join(name)
}

const FUTEX: usize = 1;
const FIRST: usize = 2;

pub(crate) struct WordEnd {
    shared: Shared,
    test: Test,
    number: u64,
    awake: bool,
}

impl WordEnd {
    fn slot(&self) -> usize {
        match self.test {
            Test::RoundTrip | Test::Wake => 0,
            Test::OneWay | Test::Stream => FIRST + usize::try_from(self.number).unwrap_or(usize::MAX - FIRST),
        }
    }
}

impl Link for Word {
    type Tx = WordEnd;
    type Rx = WordEnd;

    fn make(job: &Job) -> Result<Self> {
        let slots = FIRST + usize::try_from(job.messages())?;
        for name in [super::THERE, super::BACK] {
            Shared::create(&path(job, name), slots)?;
        }
        Ok(Self { job: job.clone() })
    }

    fn join(job: &Job) -> Result<Self> {
        Ok(Self { job: job.clone() })
    }

    fn tx(&mut self, name: &str) -> Result<WordEnd> {
        let shared = Shared::open(&path(&self.job, name))?;
        Ok(WordEnd { shared, test: self.job.test, number: 0, awake: false })
    }

    fn rx(&mut self, name: &str) -> Result<WordEnd> {
        self.tx(name)
    }
}

impl Tx for WordEnd {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        let stamp = payload.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let slot = self.slot();
        self.number += 1;
        match self.test {
            Test::RoundTrip => self.shared.slot(slot).store(self.number, Release),
            Test::OneWay | Test::Stream => self.shared.slot(slot).store(stamp, Release),
            Test::Wake => {
                self.shared.slot(slot).store(stamp, Release);
                self.shared.wake(FUTEX, u32::try_from(self.number)?)?;
            }
        }
        Ok(())
    }
}

impl Rx for WordEnd {
    #[inline]
    fn poll(&mut self, _max: usize, mut f: impl FnMut(&[u8])) -> Result<usize> {
        let value = self.shared.slot(self.slot()).load(Acquire);
        let is_new = match self.test {
            Test::RoundTrip => value > self.number,
            Test::OneWay | Test::Stream => value != 0,
            Test::Wake => std::mem::take(&mut self.awake),
        };
        if !is_new {
            return Ok(0);
        }
        self.number += 1;
        f(&value.to_le_bytes());
        Ok(1)
    }

    fn wait(&mut self) -> Result<()> {
        self.shared.sleep_until(FUTEX, u32::try_from(self.number + 1)?);
        self.awake = true;
        Ok(())
    }
}

pub(crate) struct CopiedEnd<const CHECKED: bool> {
    shared: Shared,
    at: usize,
    checks: Checks,
}

impl<const CHECKED: bool> Link for Copied<CHECKED> {
    type Tx = CopiedEnd<CHECKED>;
    type Rx = CopiedEnd<CHECKED>;

    fn make(job: &Job) -> Result<Self> {
        let bytes = usize::try_from(job.messages() + 1)? * (32 + job.payload.next_multiple_of(8));
        for name in [super::THERE, super::BACK] {
            Shared::create(&path(job, name), bytes.div_ceil(64))?;
            if job.test != Test::RoundTrip {
                break;
            }
        }
        Ok(Self { job: job.clone() })
    }

    fn join(job: &Job) -> Result<Self> {
        Ok(Self { job: job.clone() })
    }

    fn tx(&mut self, name: &str) -> Result<CopiedEnd<CHECKED>> {
        Ok(CopiedEnd { shared: Shared::open(&path(&self.job, name))?, at: 0, checks: Checks::new() })
    }

    fn rx(&mut self, name: &str) -> Result<CopiedEnd<CHECKED>> {
        self.tx(name)
    }
}

impl<const CHECKED: bool> Tx for CopiedEnd<CHECKED> {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        let meta = CHECKED.then(|| self.checks.of(payload));
        self.shared.copy_in(&mut self.at, payload, meta);
        Ok(())
    }
}

impl<const CHECKED: bool> Rx for CopiedEnd<CHECKED> {
    #[inline]
    fn poll(&mut self, max: usize, mut f: impl FnMut(&[u8])) -> Result<usize> {
        let mut count = 0;
        while count < max
            && let Some((sum, payload)) = self.shared.copied_in(&mut self.at)
        {
            if CHECKED && sum != Checks::sum(payload) {
                return Err("the checksum does not fit".into());
            }
            f(payload);
            count += 1;
        }
        Ok(count)
    }

    fn wait(&mut self) -> Result<()> {
        Err("nobody would wake us".into())
    }
}
