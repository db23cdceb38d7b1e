//! Structures by which C says how a queue is created, written and read. In each, zeros are the defaults.

use std::ffi::c_int;
use std::time::Duration;

use engine::queue::{self, SyncPolicy, WaitStrategy, WhenFull};

use crate::failure::{Failure, Result};

/// The settings of a queue. Zeros are the defaults, so begin with `chronfs_settings settings = {0};`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings {
    /// Size in bytes up to which segment files grow: 64 KiB to 1 GiB, a multiple of 4096. 0: 64 MiB.
    pub segment_size: u32,
    /// Payloads start at multiples of this many bytes in memory: 8, 16 or 64. 0: 8.
    pub payload_align: u32,
    /// Appends fail when the segments would take more bytes than this. 0: no limit.
    pub max_bytes: u64,
    /// Retention keeps at most about this many bytes of segments that every reader has passed. 0: no such limit.
    pub retain_bytes: u64,
    /// Retention keeps messages this long, in ns. 0: no such limit.
    pub retain_age_ns: u64,
    /// Retention keeps at most this many segments that every reader has passed. 0: no such limit.
    pub retain_segments: u64,
    /// A reader whose last heartbeat is older than this many ns no longer keeps segments. 0: it does for ever.
    pub reader_ttl_ns: u64,
    /// A reader that lags by more than this many bytes no longer keeps segments; it gets a gap. 0: no limit.
    pub max_lag_bytes: u64,
    /// A segment ends at each multiple of this many ns since the epoch. 0: by time only as retain_age_ns needs it.
    pub roll_every_ns: u64,
    /// For later versions: zeros.
    pub reserved: [u64; 4],
}

/// How a writer is opened. Zeros are the defaults.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct WriterOptions {
    /// How long an append waits for room in a full queue before it fails, in ns. 0: not at all.
    pub wait_when_full_ns: u64,
    /// Syncs to disk in the background after this many messages ... 0: never.
    pub sync_messages: u64,
    /// ... or this many ns after the first unsynced one. Given together with sync_messages.
    pub sync_interval_ns: u64,
    /// How far ahead of the clock an explicit timestamp may be, in ns. 0: 1 hour.
    pub max_ahead_ns: u64,
    /// Not 0: opens a queue that is a standby, and no other one: for the program that copies another queue into it.
    pub as_standby: c_int,
    /// Not 0: after a power cut, continues after the last message that is still there: only for a program that appends the
    /// lost messages again (chronfs_writer_append_exact) and has all of them.
    pub refill: c_int,
    /// For later versions: zeros.
    pub reserved: [u64; 4],
}

/// Where a reader starts.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At its committed position; a new reader, a tailer or a scan at the first message that is still there.
    Resume = 0,
    /// At the first message that is still there.
    First = 1,
    /// After the newest message.
    End = 2,
    /// At the message with this sequence number, or the first one after it. If retention has removed it, a gap comes first.
    Seq = 3,
    /// At the first message with this timestamp (ns since the epoch) or a later one.
    Time = 4,
}

/// How a reader, tailer or scan is opened. Zeros are the defaults.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct ReaderOptions {
    /// Where it starts: one of CHRONFS_START_RESUME, ...
    pub start: c_int,
    /// Not 0: checksums are not verified.
    pub unverified: c_int,
    /// The sequence number for CHRONFS_START_SEQ, the time for CHRONFS_START_TIME.
    pub start_at: u64,
    /// For how many ns a wait polls before it sleeps; UINT64_MAX: it never sleeps. 0: 50 us.
    pub spin_ns: u64,
    /// For later versions: zeros.
    pub reserved: [u64; 4],
}

fn none_if_zero(number: u64) -> Option<u64> {
    (number != 0).then_some(number)
}

fn check_reserved(reserved: [u64; 4]) -> Result<()> {
    let text = "the reserved fields of a structure are not 0; initialize it with {0}";
    if reserved == [0; 4] { Ok(()) } else { Err(Failure::invalid(text)) }
}

impl Settings {
    pub(crate) fn to_engine(self) -> Result<queue::Settings> {
        check_reserved(self.reserved)?;
        let mut settings = queue::Settings::DEFAULT;
        if self.segment_size != 0 {
            settings.segment_size = self.segment_size;
        }
        if self.payload_align != 0 {
            settings.payload_align = self.payload_align;
        }
        settings.max_bytes = none_if_zero(self.max_bytes);
        settings.retain_bytes = none_if_zero(self.retain_bytes);
        settings.retain_age_ns = none_if_zero(self.retain_age_ns);
        // No queue has more segments.
        settings.retain_segments =
            none_if_zero(self.retain_segments).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        settings.reader_ttl_ns = none_if_zero(self.reader_ttl_ns);
        settings.max_lag_bytes = none_if_zero(self.max_lag_bytes);
        settings.roll_every_ns = none_if_zero(self.roll_every_ns);
        Ok(settings)
    }
}

impl WriterOptions {
    pub(crate) fn to_engine(self) -> Result<queue::WriterOptions> {
        check_reserved(self.reserved)?;
        let mut options = queue::WriterOptions {
            as_standby: self.as_standby != 0,
            refill: self.refill != 0,
            ..queue::WriterOptions::default()
        };
        if self.wait_when_full_ns != 0 {
            options.when_full = WhenFull::Wait(Duration::from_nanos(self.wait_when_full_ns));
        }
        match (self.sync_messages, self.sync_interval_ns) {
            (0, 0) => {}
            (0, _) | (_, 0) => return Err(Failure::invalid("sync_messages and sync_interval_ns are given together")),
            (messages, interval_ns) => {
                options.sync = SyncPolicy::Every { messages, interval: Duration::from_nanos(interval_ns) };
            }
        }
        if self.max_ahead_ns != 0 {
            options.max_ahead = Duration::from_nanos(self.max_ahead_ns);
        }
        Ok(options)
    }
}

impl ReaderOptions {
    pub(crate) fn to_engine(self) -> Result<queue::ReaderOptions> {
        check_reserved(self.reserved)?;
        let wait = match self.spin_ns {
            0 => queue::ReaderOptions::default().wait,
            u64::MAX => WaitStrategy::BusySpin,
            ns => WaitStrategy::Hybrid { spin: Duration::from_nanos(ns) },
        };
        Ok(queue::ReaderOptions { start: start(self.start, self.start_at)?, verify: self.unverified == 0, wait })
    }
}

/// Where to start, or to go to.
pub(crate) fn start(start: c_int, at: u64) -> Result<queue::Start> {
    Ok(match start {
        _ if start == Start::Resume as c_int => queue::Start::Resume,
        _ if start == Start::First as c_int => queue::Start::First,
        _ if start == Start::End as c_int => queue::Start::End,
        _ if start == Start::Seq as c_int => queue::Start::Seq(at),
        _ if start == Start::Time as c_int => queue::Start::Time(at),
        _ => return Err(Failure::invalid(&format!("start {start} is none of CHRONFS_START_RESUME to _TIME"))),
    })
}
