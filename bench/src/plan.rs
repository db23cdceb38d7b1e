//! How much is measured, and where.

use std::path::{Path, PathBuf};

use crate::scratch::Scratch;

/// How much is measured, and where.
pub(crate) struct Plan<'a> {
    pub(crate) quick: bool,
    /// Everything takes turns so many times; the median counts.
    pub(crate) rounds: usize,
    /// Of each message, in bytes.
    pub(crate) payloads: &'static [usize],
    /// Of latencies.
    pub(crate) latency_payloads: &'static [usize],
    /// Bytes of a sustained run.
    pub(crate) sustained: u64,
    /// Bytes of a streamed run.
    pub(crate) streamed: u64,
    pub(crate) max_gb: u64,
    pub(crate) cli: PathBuf,
    pub(crate) scratch: &'a Scratch,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(quick: bool, max_gb: u64, cli: &Path, scratch: &'a Scratch) -> Self {
        Self {
            quick,
            rounds: if quick { 3 } else { 5 },
            payloads: if quick { &[64, 1024] } else { &[16, 64, 256, 1024, 4096, 65536] },
            latency_payloads: if quick { &[64] } else { &[64, 1024] },
            sustained: if quick { 256 << 20 } else { 10 << 30 },
            streamed: if quick { 64 << 20 } else { 192 << 20 },
            max_gb,
            cli: cli.to_path_buf(),
            scratch,
        }
    }
}
