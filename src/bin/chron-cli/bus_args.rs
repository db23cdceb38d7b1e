//! Options and help of the subcommands that look at more than one queue's messages; see `main.rs`.

use std::path::PathBuf;

use clap::Args;

use crate::units::{parse_payload_size, parse_span_ns};
use crate::{FormatName, parse_time};

/// Apply a queue's retention now, and say what keeps the rest
#[derive(Debug, Args)]
#[command(after_help = "\
Removes segments that the queue's limits let go (see `chron-cli create --help`) and no live reader needs. The writer
does the same after each segment; this is for queues that nobody writes to, and for looking ahead.

Examples:
  chron-cli retain --dry-run /srv/bus/ticks       what would go, and which readers keep the rest
  chron-cli retain /srv/bus/ticks
  chron-cli retain --dry-run --json /srv/bus/ticks | jq '.pins[].reader'")]
pub(crate) struct RetainArgs {
    /// The queue's directory
    pub(crate) queue: PathBuf,
    /// Change nothing, only say what would be removed
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// One JSON object: path, dry_run, removed, removed_bytes, pins, ignored
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print the messages of all READY queues below a directory in the order of their timestamps
#[derive(Debug, Args)]
#[command(after_help = "\
Messages with the same timestamp come in the order of their queues' paths. jsonl names the queue of each message.
Without -f everything that is there; with -f what comes from now on (--all: and what is there), also from queues that
become ready later. Nothing is registered or changed.

Examples:
  chron-cli merge /srv/bus
  chron-cli merge -f --format txt /srv/bus
  chron-cli merge --since 15m --all-queues /srv/bus | jq -c '[.time, .queue]'")]
pub(crate) struct MergeArgs {
    /// Where to look
    pub(crate) root: PathBuf,
    /// Go on with the messages that come
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// With -f: what is there already, too
    #[arg(long, requires = "follow")]
    pub(crate) all: bool,
    /// From this time on: 2024-08-08T09:30:00Z, @1723108500, 15m, '15m ago'
    #[arg(long, value_name = "TIME", value_parser = parse_time, allow_hyphen_values = true, conflicts_with = "all")]
    pub(crate) since: Option<u64>,
    /// Queues that are not marked as ready, too
    #[arg(long)]
    pub(crate) all_queues: bool,
    /// jsonl: one object a line; txt: the payload as a line; hex: a header line and a hex dump; bin: payloads as they are
    #[arg(long, default_value = "jsonl")]
    pub(crate) format: FormatName,
}

/// Report queues that come, go, become ready or lose their lease
#[derive(Debug, Args)]
#[command(after_help = "\
First what is there already, then what happens, a line each, until it is interrupted or nobody reads its output.

Events: added, removed, ready, unready, lease live, lease expired, lease unknown, lease removed.

Examples:
  chron-cli watch /srv/bus
  chron-cli watch --json /srv/bus | jq -r 'select(.event == \"lease expired\") | .path'
  chron-cli watch --once /srv/bus                 what is there, and end")]
pub(crate) struct WatchArgs {
    /// Where to look
    pub(crate) root: PathBuf,
    /// One JSON object a line, with time, timestamp_ns, event and path
    #[arg(long)]
    pub(crate) json: bool,
    /// End after what is there already
    #[arg(long)]
    pub(crate) once: bool,
}

/// Show the queues below a directory live: rates, lag, who is alive
#[derive(Debug, Args)]
#[command(after_help = "\
Keys: up and down (or k and j) choose a queue, enter shows its readers, s changes what it is sorted by, p pauses,
+ and - change the interval, ? shows the keys, q (or Esc, Ctrl-C) ends.

Examples:
  chron-cli top /srv/bus
  chron-cli top --interval 250ms /srv/bus
  chron-cli top --once /srv/bus                   one picture as plain text, for scripts and logs")]
pub(crate) struct TopArgs {
    /// Where to look
    pub(crate) root: PathBuf,
    /// Between two looks: 100ms to 60s
    #[arg(long, value_name = "SPAN", default_value = "1s", value_parser = parse_span_ns)]
    pub(crate) interval: u64,
    /// Print one picture, of one interval, and end
    #[arg(long)]
    pub(crate) once: bool,
}

/// Find what is wrong with the queues below a directory, and say what to do
#[derive(Debug, Args)]
#[command(after_help = "\
Finds damaged, truncated, missing and foreign files, dead and stuck writers, readers that are damaged or keep
segments from being retired, expired leases, leftovers of crashes. --deep reads every message and verifies its
checksum. Nothing is changed without --fix; --fix does what the next writer would do, and deletes nothing.

Exit codes: 0 nothing is wrong, 1 problems found, 4 something could not be looked at.

Examples:
  chron-cli doctor /srv/bus
  chron-cli doctor --deep /srv/bus/ticks
  chron-cli doctor --fix /srv/bus
  chron-cli doctor --json /srv/bus | jq -r '.findings[] | select(.severity == \"error\") | .path'")]
pub(crate) struct DoctorArgs {
    /// A queue, or a directory with queues below it
    pub(crate) root: PathBuf,
    /// One JSON object: root, checked, findings, fixed, unchecked
    #[arg(long)]
    pub(crate) json: bool,
    /// Verify every message's checksum
    #[arg(long)]
    pub(crate) deep: bool,
    /// Repair what is safe to repair
    #[arg(long)]
    pub(crate) fix: bool,
}

/// Measure append, read, latency and wake, beside what this machine can do at best
#[derive(Debug, Args)]
#[command(after_help = "\
Each figure stands beside its floor, measured in the same run: for append a copy into memory that is mapped already,
for read the checksum of as many bytes, for one-way and round trip two processes that pass a number back and forth
through shared memory, for wake a bare futex. Look at the ratios; nanoseconds depend on the machine and on the minute.

Without QUEUE everything happens in a temporary directory (TMPDIR). A QUEUE must not exist; it stays afterwards.

Examples:
  chron-cli bench
  chron-cli bench --payload-bytes 256 --messages 1000000
  chron-cli bench --rate 100000                   one-way latency at a hundred thousand messages a second
  chron-cli bench --json /srv/bus/bench | jq .append.ratio")]
pub(crate) struct BenchArgs {
    /// Where to make the queue
    pub(crate) queue: Option<PathBuf>,
    /// Bytes of each message: 8 to 1MiB
    #[arg(long, value_name = "N", default_value = "64", value_parser = parse_payload_size)]
    pub(crate) payload_bytes: u32,
    /// Messages for append and read; latencies take up to 20000 of them
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) messages: u64,
    /// Messages a second for one-way latency
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) rate: u64,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// The other one of the two processes: which part it plays
    #[arg(long, hide = true, value_name = "PART")]
    pub(crate) part: Option<String>,
}
