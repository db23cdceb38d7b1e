//! chronfs itself: checksums written and verified, timestamps, persisted cursors.

use std::time::Duration;

use chronfs::queue::{Entry, Queue, ReaderOptions, Settings, WaitStrategy, WhenFull, WriterOptions};
use chronfs::{QueueReader, QueueWriter};

use super::{BACK, Link, Rx, THERE, Tx};
use crate::Result;
use crate::pair::{Job, Test};

/// Readers commit after this many messages.
const COMMIT_EVERY: u64 = 64;

pub(crate) struct Chron {
    job: Job,
}

impl Link for Chron {
    type Tx = QueueWriter;
    type Rx = ChronRx;

    fn make(job: &Job) -> Result<Self> {
        // A bounded log, as its peers keep one: what all readers have read is removed, its files are reused, and the
        // writer waits for the readers. Six files: four to be kept, the one in use and the next.
        let settings = Settings { retain_segments: Some(4), max_bytes: Some(384 << 20), ..Settings::default() };
        for name in [THERE, BACK] {
            Queue::create(job.dir.join(name), &settings)?;
        }
        Self::join(job)
    }

    fn join(job: &Job) -> Result<Self> {
        Ok(Self { job: job.clone() })
    }

    fn tx(&mut self, name: &str) -> Result<QueueWriter> {
        let options = WriterOptions { when_full: WhenFull::Wait(Duration::from_secs(10)), ..WriterOptions::default() };
        Ok(Queue::open(self.job.dir.join(name))?.writer_with(&options)?)
    }

    fn rx(&mut self, name: &str) -> Result<ChronRx> {
        let wait = if self.job.test == Test::Wake { WaitStrategy::Sleep } else { WaitStrategy::BusySpin };
        let options = ReaderOptions { wait, ..ReaderOptions::default() };
        let reader = Queue::open(self.job.dir.join(name))?.reader_with("bench", &options)?;
        Ok(ChronRx { reader, number: 0 })
    }
}

impl Tx for QueueWriter {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        self.append(1, payload)?;
        Ok(())
    }
}

/// Messages that share one reading of the clock, as those of one packet do.
const PACKET: u32 = 16;

/// [`Chron`], with messages that share timestamps.
pub(crate) struct Packets(Chron);

impl Link for Packets {
    type Tx = PacketsTx;
    type Rx = ChronRx;

    fn make(job: &Job) -> Result<Self> {
        Chron::make(job).map(Self)
    }

    fn join(job: &Job) -> Result<Self> {
        Chron::join(job).map(Self)
    }

    fn tx(&mut self, name: &str) -> Result<PacketsTx> {
        Ok(PacketsTx { writer: self.0.tx(name)?, received_ns: 0, left: 0 })
    }

    fn rx(&mut self, name: &str) -> Result<ChronRx> {
        self.0.rx(name)
    }
}

pub(crate) struct PacketsTx {
    writer: QueueWriter,
    received_ns: u64,
    left: u32,
}

impl Tx for PacketsTx {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        if self.left == 0 {
            (self.received_ns, self.left) = (self.writer.now_ns(), PACKET);
        }
        self.left -= 1;
        self.writer.append_at(self.received_ns, 1, payload)?;
        Ok(())
    }
}

pub(crate) struct ChronRx {
    reader: QueueReader,
    number: u64,
}

impl Rx for ChronRx {
    #[inline]
    fn poll(&mut self, max: usize, mut f: impl FnMut(&[u8])) -> Result<usize> {
        for count in 0..max {
            match self.reader.next()? {
                None => return Ok(count),
                Some(Entry::Message(message)) => f(message.payload),
                Some(Entry::Gap(gap)) => return Err(format!("messages {} to {} are lost", gap.from, gap.to).into()),
            }
            self.number += 1;
            if self.number.is_multiple_of(COMMIT_EVERY) {
                self.reader.commit();
            }
        }
        Ok(max)
    }

    fn wait(&mut self) -> Result<()> {
        self.reader.wait(None)?;
        Ok(())
    }
}
