//! Options and help of `append`, `send`, `set`, `retain`, `bench` and the subcommands that work on whole directories; see `main.rs`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::listen::parse_address;
use crate::pacer::{Speed, parse_speed};
use crate::root::{queue_path, root};
use crate::settings_args::SettingsArgs;
use crate::units::{parse_number, parse_payload_size, parse_span_ns, parse_type};
use crate::{FormatName, InputName, parse_time};

/// Append messages from files or standard input
#[derive(Debug, Args)]
#[command(after_help = "\
Formats:
  txt     each line, without its newline, is one message
  jsonl   each line is an object with payload or payload_b64, and optionally type and timestamp_ns: the output
          of `tail --format jsonl` can be appended
  bin     each FILE, or all of standard input, is one message

The command stops at the first bad line and reports its file and line number; messages before it remain appended. A
missing queue is created; it keeps a tenth of its file system, at most 4 GiB, of what its readers have consumed
(`chron-cli set` changes that). Only one process at a time can append to a queue.

Examples:
  make 2>&1 | chron-cli append -q /srv/bus/build
  chron-cli append /srv/bus/ticks --type 7 --sync monday.log tuesday.log
  chron-cli append /srv/bus/pictures --format bin *.png
  chron-cli tail -n +1 --format jsonl a | chron-cli append b --format jsonl")]
pub(crate) struct AppendArgs {
    /// The queue's directory
    #[arg(value_parser = queue_path())]
    pub(crate) queue: PathBuf,
    /// Type of the messages, 0 to 65534; in jsonl it overrides the line's own
    #[arg(long = "type", value_name = "N", value_parser = parse_type)]
    pub(crate) msg_type: Option<u16>,
    /// Format of the input
    #[arg(long, default_value = "txt")]
    pub(crate) format: InputName,
    /// Sync before returning, so that everything appended survives a power cut
    #[arg(long)]
    pub(crate) sync: bool,
    /// Say nothing about what was appended
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// How far ahead of the clock a timestamp_ns may be; later messages get no earlier timestamp
    #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = parse_span_ns)]
    pub(crate) max_ahead: u64,
    /// Files to read; none, or -, means standard input
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
}

/// Append messages given as arguments
#[derive(Debug, Args)]
#[command(after_help = "\
Each TEXT is one message, as it is, without a newline. A missing queue is created, as by `chron-cli append`. Only one
process at a time can append to a queue: for many messages use that command.

Examples:
  chron-cli send /srv/bus/ticks hello
  chron-cli send --type 7 --sync /srv/bus/orders 'buy 100' 'sell 50'
  chron-cli send /srv/bus/ticks -- -5             a text that starts with a dash")]
pub(crate) struct SendArgs {
    /// The queue's directory
    #[arg(value_parser = queue_path())]
    pub(crate) queue: PathBuf,
    /// The messages
    #[arg(required = true, value_name = "TEXT")]
    pub(crate) texts: Vec<OsString>,
    /// Type of the messages, 0 to 65534
    #[arg(long = "type", value_name = "N", default_value = "1", value_parser = parse_type)]
    pub(crate) msg_type: u16,
    /// Sync before returning, so that the messages survive a power cut
    #[arg(long)]
    pub(crate) sync: bool,
    /// Print the sequence number of each message
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// Change a queue's settings, or show them
#[derive(Debug, Args)]
#[command(after_help = "\
Without options, prints the settings. none removes a limit. Every process has the new settings at once; a running writer
takes them over at its next segment. A kill or a power cut leaves the old settings or the new ones. Nothing is removed
at once: 'chron-cli retain' does that, or the writer after its next segment.

Examples:
  chron-cli set /srv/bus/ticks
  chron-cli set /srv/bus/ticks --retain-bytes 10GiB --retain-age 7d
  chron-cli set /srv/bus/ticks --max-bytes none
  chron-cli set /srv/bus/orders --roll-every day --reader-ttl 30d")]
pub(crate) struct SetArgs {
    /// The queue's directory
    #[arg(value_parser = queue_path())]
    pub(crate) queue: PathBuf,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
}

/// Apply a queue's retention now, and report what keeps the rest
#[derive(Debug, Args)]
#[command(after_help = "\
Removes segments that exceed the queue's limits (see `chron-cli set --help`) and that no live reader needs. The writer
does the same after each segment; use this for queues without a writer, or with --dry-run to look ahead. If the time of
the segment that takes messages is over (--roll-every, or an eighth of --retain-age), and the queue has no writer, that
segment is ended first.

Examples:
  chron-cli retain --dry-run /srv/bus/ticks       what would be removed, and which readers keep the rest
  chron-cli retain /srv/bus/ticks
  chron-cli retain --dry-run --json /srv/bus/ticks | jq '.pins[].reader'")]
pub(crate) struct RetainArgs {
    /// The queue's directory
    #[arg(value_parser = queue_path())]
    pub(crate) queue: PathBuf,
    /// Change nothing, only report what would be removed
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// Print one JSON object: path, dry_run, removed, removed_bytes, pins, ignored
    #[arg(long)]
    pub(crate) json: bool,
}

/// Remove queues
#[derive(Debug, Args)]
#[command(after_help = "\
Removes a queue's own files and then its directory. Other files in it stay, and are named. A queue that a process writes
to, or uses a reader of, is not removed: stop that process first.

A queue that holds messages or readers is removed after a question; where nobody can be asked, with --force. What a
killed removal has left is removed by the next one of the same name.

Examples:
  chron-cli rm /srv/bus/ticks
  chron-cli rm --dry-run /srv/bus/ticks           what would be removed
  chron-cli rm --force /srv/bus/*-test")]
pub(crate) struct RmArgs {
    /// The queues' directories
    #[arg(required = true, value_name = "QUEUE", value_parser = queue_path())]
    pub(crate) queues: Vec<PathBuf>,
    /// Don't ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Change nothing, only say what would be removed
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
}

/// Print figures of all queues below a directory as OpenMetrics text
#[derive(Debug, Args)]
#[command(after_help = "\
The text is that of .chronfs/metrics in a mount: gauges of each queue and reader, for Prometheus and others. With
--listen it is served at /metrics to whoever can connect, without a password or encryption: keep it on this host, or in
a network that you trust. contrib/ has alert rules and a dashboard.

Examples:
  chron-cli metrics /srv/bus | grep lag
  chron-cli metrics --listen 9464 /srv/bus        http://127.0.0.1:9464/metrics, until it is interrupted
  chron-cli metrics /srv/bus > /var/lib/node_exporter/chronfs.prom.new
  mv /var/lib/node_exporter/chronfs.prom.new /var/lib/node_exporter/chronfs.prom")]
pub(crate) struct MetricsArgs {
    /// Directory to search [default: $CHRONFS_ROOT, else the current directory]
    #[arg(default_value_os_t = root(), hide_default_value = true)]
    pub(crate) root: PathBuf,
    /// Serve it over HTTP, on a port of this host or on another address; 0: any free port
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = parse_address)]
    pub(crate) listen: Option<SocketAddr>,
}

/// Print the messages of all READY queues below a directory, ordered by timestamp
#[derive(Debug, Args)]
#[command(after_help = "\
Messages with equal timestamps are ordered by the paths of their queues. jsonl names the queue of each message.
Without -f, prints all retained messages; with -f, new ones (with --all, the retained ones too), also from queues that
become ready later. Nothing is registered or changed.

Examples:
  chron-cli merge /srv/bus
  chron-cli merge -f --format txt /srv/bus
  chron-cli merge --since 15m --all-queues /srv/bus | jq -c '[.time, .queue]'")]
pub(crate) struct MergeArgs {
    /// Directory to search [default: $CHRONFS_ROOT, else the current directory]
    #[arg(default_value_os_t = root(), hide_default_value = true)]
    pub(crate) root: PathBuf,
    /// Keep printing new messages
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// With -f: the retained messages, too
    #[arg(long, requires = "follow")]
    pub(crate) all: bool,
    /// Start at this time, as for `tail --since`: '2024-08-08 09:30', 09:30, '1 hour ago', 15m
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "all")]
    pub(crate) since: Option<u64>,
    /// Include queues that are not marked as ready
    #[arg(long)]
    pub(crate) all_queues: bool,
    /// jsonl: one object per line; txt: the payload as a line; auto, hex: a header line, and text or a hex dump; bin:
    /// raw payloads
    #[arg(long, default_value = "jsonl")]
    pub(crate) format: FormatName,
}

/// Append what a queue has recorded to another queue, with the original spacing
#[derive(Debug, Args)]
#[command(after_help = "\
Each message is appended as long after the first one as it was recorded after it, divided by --speed; how late messages
were is reported on stderr. What was in FROM at the start is replayed. TO is created if it does not exist; its settings are
those of a queue that `append` creates.

Messages have the time of their replay, or with --keep-times that of their recording.

Examples:
  chron-cli replay /srv/bus/ticks /srv/test/ticks --since 09:30 --until 10:00
  chron-cli replay /srv/bus/ticks /srv/test/ticks --speed 10
  chron-cli replay /srv/bus/ticks /srv/copy/ticks --speed max --keep-times")]
pub(crate) struct ReplayArgs {
    /// The queue that has the messages
    #[arg(value_parser = queue_path())]
    pub(crate) from: PathBuf,
    /// The queue that they are appended to
    #[arg(value_parser = queue_path())]
    pub(crate) to: PathBuf,
    /// How many times as fast as they were recorded: 1, 10, 0.5, or max for no pauses
    #[arg(long, default_value = "1", value_parser = parse_speed)]
    pub(crate) speed: Speed,
    /// Start at this time, as for `tail --since`
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) since: Option<u64>,
    /// Up to this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) until: Option<u64>,
    /// Keep the timestamps of the recording; the newest message in TO must not be later
    #[arg(long)]
    pub(crate) keep_times: bool,
    /// Say nothing about what was replayed
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Report queues that are added or removed, become ready or lose their lease
#[derive(Debug, Args)]
#[command(after_help = "\
Prints the current state, then each change, one per line, until it is interrupted or its output is closed.

Events: added, removed, ready, unready, lease live, lease expired, lease unknown, lease removed.

Examples:
  chron-cli watch /srv/bus
  chron-cli watch --json /srv/bus | jq -r 'select(.event == \"lease expired\") | .path'
  chron-cli watch --once /srv/bus                 the current state only")]
pub(crate) struct WatchArgs {
    /// Directory to search [default: $CHRONFS_ROOT, else the current directory]
    #[arg(default_value_os_t = root(), hide_default_value = true)]
    pub(crate) root: PathBuf,
    /// Print one JSON object per line, with time, timestamp_ns, event and path
    #[arg(long)]
    pub(crate) json: bool,
    /// Exit after printing the current state
    #[arg(long)]
    pub(crate) once: bool,
}

/// Show live rates, lag and state of the queues below a directory
#[derive(Debug, Args)]
#[command(after_help = "\
Keys: up and down (or k and j) choose a queue, enter shows its readers, s changes the sort order, p pauses, + and -
change the interval, ? shows the keys, Ctrl-Z suspends, q (or Esc, Ctrl-C) quits.

In a narrow terminal the columns that say least give way to names; the last line has the chosen name in full.
BYTES/S is an estimate from the mean size of the retained messages, NEWEST the age of the newest one. The bars are the
rates of the last refreshes, on one logarithmic scale for all queues.

Examples:
  chron-cli top /srv/bus
  chron-cli top --interval 250ms /srv/bus
  chron-cli top --once /srv/bus                   one snapshot as plain text, for scripts and logs")]
pub(crate) struct TopArgs {
    /// Directory to search [default: $CHRONFS_ROOT, else the current directory]
    #[arg(default_value_os_t = root(), hide_default_value = true)]
    pub(crate) root: PathBuf,
    /// Refresh interval: 100ms to 60s
    #[arg(long, value_name = "SPAN", default_value = "1s", value_parser = parse_span_ns)]
    pub(crate) interval: u64,
    /// Print one snapshot, after one interval, and exit
    #[arg(long)]
    pub(crate) once: bool,
}

/// Find problems in the queues below a directory, and say what to do about them
#[derive(Debug, Args)]
#[command(after_help = "\
Finds damaged, truncated, missing and foreign files, dead and stuck writers, readers that are damaged or keep
segments from being retired, expired leases, leftovers of crashes, full file systems. --deep reads every message and
verifies its checksum. Nothing is changed without --fix; --fix does what the next writer would do, and deletes nothing.

A directory without queues has no problems: that there are none is in the last line, and in `checked` of --json.

Exit codes: 0 no problems, 1 problems found, 4 something could not be checked.

Examples:
  chron-cli doctor /srv/bus
  chron-cli doctor --deep /srv/bus/ticks
  chron-cli doctor --fix /srv/bus
  chron-cli doctor --json /srv/bus | jq -r '.findings[] | select(.severity == \"error\") | .path'")]
pub(crate) struct DoctorArgs {
    /// A queue, or a directory with queues below it [default: $CHRONFS_ROOT, else the current directory]
    #[arg(default_value_os_t = root(), hide_default_value = true, value_parser = queue_path())]
    pub(crate) root: PathBuf,
    /// Print one JSON object: root, checked, findings, fixed, unchecked
    #[arg(long)]
    pub(crate) json: bool,
    /// Verify every message's checksum
    #[arg(long)]
    pub(crate) deep: bool,
    /// Repair what is safe to repair
    #[arg(long)]
    pub(crate) fix: bool,
}

/// Measure append, read, latency and wake against the best this machine can do
#[derive(Debug, Args)]
#[command(after_help = "\
Each figure comes with its floor, measured in the same run: for append, a copy into mapped memory; for read, a checksum
of the same number of bytes; for one-way and round trip, two processes that pass a number back and forth through shared
memory; for wake, a bare futex. Compare the ratios; nanoseconds depend on the machine and vary from minute to minute.

Without QUEUE, a temporary directory is used (TMPDIR). A QUEUE must not exist yet; it is kept afterwards.

Examples:
  chron-cli bench
  chron-cli bench --payload-bytes 256 --messages 1000000
  chron-cli bench --rate 100000                   one-way latency at 100,000 messages per second
  chron-cli bench --json /srv/bus/bench | jq .append.ratio")]
pub(crate) struct BenchArgs {
    /// Where to create the queue
    #[arg(value_parser = queue_path())]
    pub(crate) queue: Option<PathBuf>,
    /// Bytes of each message: 8 to 1MiB
    #[arg(long, value_name = "N", default_value = "64", value_parser = parse_payload_size)]
    pub(crate) payload_bytes: u32,
    /// Messages for append and read; latencies take up to 20000 of them
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = parse_number(1..=1_000_000_000))]
    pub(crate) messages: u64,
    /// Messages per second for one-way latency
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = parse_number(1..=10_000_000))]
    pub(crate) rate: u64,
    /// Also show how the latencies are distributed
    #[arg(long)]
    pub(crate) histogram: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// The part that the second process plays
    #[arg(long, hide = true, value_name = "PART")]
    pub(crate) part: Option<String>,
}
