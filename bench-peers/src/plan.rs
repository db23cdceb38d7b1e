//! How much is measured, and where.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::Args;
use crate::scratch::Scratch;

/// How much is measured, and where.
pub(crate) struct Plan<'a> {
    pub(crate) quick: bool,
    /// Rounds; the median counts.
    pub(crate) rounds: usize,
    /// Of each message, in bytes.
    pub(crate) payloads: Vec<usize>,
    /// Of latencies.
    pub(crate) latency_payloads: Vec<usize>,
    /// Bytes of a sustained run.
    pub(crate) sustained: u64,
    /// Bytes of a streamed run.
    pub(crate) streamed: u64,
    pub(crate) max_gb: u64,
    pub(crate) cli: PathBuf,
    /// The only links that take part.
    pub(crate) links: Option<&'a [String]>,
    pub(crate) scratch: &'a Scratch,
    started: Instant,
}

/// When each part starts its last round, in seconds of the whole run: each gets at least one, and the run ends in time
/// on a slow machine.
const ENDS: [(&str, u64); 7] = [
    ("append", 120),
    ("single", 240),
    ("stream", 420),
    ("one-way", 660),
    ("round-trip", 900),
    ("wake", 960),
    ("mount", 1080),
];

impl<'a> Plan<'a> {
    pub(crate) fn new(args: &'a Args, scratch: &'a Scratch) -> Self {
        let quick = args.quick;
        let of = |all: &[usize]| args.bytes.clone().unwrap_or_else(|| all.to_vec());
        Self {
            quick,
            rounds: if quick { 3 } else { 9 },
            payloads: of(if quick { &[64, 1024] } else { &[16, 64, 256, 1024, 4096, 65536] }),
            latency_payloads: of(if quick { &[64] } else { &[64, 1024] }),
            sustained: if quick { 256 << 20 } else { 10 << 30 },
            streamed: 384 << 20,
            max_gb: args.max_gb,
            cli: args.cli.clone(),
            links: args.links.as_deref(),
            scratch,
            started: Instant::now(),
        }
    }

    /// Whether this link takes part.
    pub(crate) fn wants(&self, link: &str) -> bool {
        self.links.is_none_or(|links| links.iter().any(|wanted| wanted == link))
    }

    /// Whether this round of this part may begin.
    pub(crate) fn has_time(&self, round: usize, part: &str) -> bool {
        let end = ENDS.iter().find(|(name, _)| *name == part).map_or(u64::MAX, |(_, end)| *end);
        round == 0 || self.started.elapsed() < Duration::from_secs(if self.quick { end / 6 } else { end })
    }
}
