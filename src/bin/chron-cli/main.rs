//! chron-cli: queues from the shell.
//!
//! This file and `bus_args.rs` are the whole command line: every subcommand and option is defined here, with its help,
//! and the one `match` in [`run`] calls the file named after the subcommand. Completions and manual pages are
//! generated from these definitions.
//!
//! Data goes to stdout; notes and errors to stderr. Exit codes: 0 done, 1 failed or problems found, 2 wrong usage, 4
//! `doctor` could not check something.

mod append;
mod bench;
mod bus_args;
mod completions;
mod create;
mod decoding;
mod doctor;
mod external;
mod failure;
mod inspect;
mod listen;
mod logger;
mod ls;
mod man;
mod merge;
mod metrics;
mod mount;
mod mount_helper;
mod names;
mod output;
mod pacer;
mod progress;
mod readers;
mod replay;
mod retain;
mod rm;
mod root;
mod send;
mod set;
mod settings_args;
mod stop;
mod tail;
mod top;
mod umount;
mod units;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use chronfs::fs::mount::LOG_LEVELS;
use chronfs::queue::Entry;
use chronfs::view::{Format, InputFormat, SeekTarget, render, render_readable};
use clap::{Arg, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use bus_args::{
    AppendArgs, BenchArgs, DoctorArgs, MergeArgs, MetricsArgs, ReplayArgs, RetainArgs, RmArgs, SendArgs, SetArgs,
    TopArgs, WatchArgs,
};
use failure::Outcome;
use output::ColorChoice;
use root::queue_path;
use units::{parse_seq, parse_type};

/// A persisted message queue that can be mounted
#[derive(Debug, Parser)]
#[command(name = "chron-cli", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  chron-cli send /srv/bus/ticks hello             one message
  chron-cli append /srv/bus/ticks < lines.txt     one message per line
  chron-cli tail -f /srv/bus/ticks                the last ten, then new ones
  chron-cli mount /srv/bus /mnt/bus               every queue below /srv/bus as files
  chron-cli inspect /srv/bus/ticks                the writer, the readers, their lag
  chron-cli doctor /srv/bus                       what is wrong, and what to do about it
  chron-cli top /srv/bus                          all of it, live

Exit codes: 0 done, 1 failed or problems found, 2 wrong usage, 4 `doctor` could not check something.

CHRONFS_ROOT: the bus directory that commands use if none is named. A QUEUE that is a relative path and does not exist
here is looked up in it, and created in it; ./QUEUE always means here.")]
struct Cli {
    /// When to use colours; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(MountArgs),
    Umount(UmountArgs),
    Create(CreateArgs),
    Set(SetArgs),
    Append(AppendArgs),
    Send(SendArgs),
    Replay(ReplayArgs),
    Tail(TailArgs),
    Inspect(InspectArgs),
    Ls(LsArgs),
    Readers(ReadersArgs),
    Retain(RetainArgs),
    Rm(RmArgs),
    Merge(MergeArgs),
    Metrics(MetricsArgs),
    Watch(WatchArgs),
    Top(TopArgs),
    Doctor(DoctorArgs),
    Bench(BenchArgs),
    /// Relay a queue to another host (runs chron-relay)
    #[command(after_help = "Example: chron-cli relay run /srv/bus/ticks nats://a:4222/TICKS")]
    Relay(external::ExternalArgs),
    /// Archive a queue in an object store, and restore it (runs chron-archive)
    #[command(after_help = "Example: chron-cli archive run /srv/bus/ticks s3://bucket/ticks")]
    Archive(external::ExternalArgs),
    /// Export queues to Parquet, Arrow, CSV or JSON lines (runs chron-export)
    #[command(after_help = "Example: chron-cli export /srv/bus /data --since yesterday")]
    Export(external::ExternalArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

fn run(cli: Cli) -> Outcome {
    let color = cli.color.enabled();
    match cli.command {
        Command::Mount(args) => mount::run(&args),
        Command::Umount(args) => umount::run(&args),
        Command::Create(args) => create::run(&args),
        Command::Set(args) => set::run(&args),
        Command::Append(args) => append::run(&args),
        Command::Send(args) => send::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Tail(args) => tail::run(&args, color),
        Command::Inspect(args) => inspect::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Readers(args) => readers::run(&args),
        Command::Retain(args) => retain::run(&args),
        Command::Rm(args) => rm::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Metrics(args) => metrics::run(&args),
        Command::Watch(args) => watch::run(&args, color),
        Command::Top(args) => top::run(&args, color),
        Command::Doctor(args) => doctor::run(&args, color),
        Command::Bench(args) => bench::run(&args),
        Command::Relay(args) => external::run("chron-relay", "chronfs-relay", "crates/bridge", &args),
        Command::Archive(args) => external::run("chron-archive", "chronfs-relay", "crates/bridge", &args),
        Command::Export(args) => external::run("chron-export", "chronfs-export", "crates/export", &args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

/// Show the queues below a directory as files
#[derive(Debug, Args)]
#[command(after_help = "\
Returns once the files are available; a background process serves them until the directory is unmounted.

Options: ro refuses every change; allow_other admits other users, as far as the modes of the queues' files allow;
cross_mounts also shows what is mounted below the bus directory; threads=N sets how many threads serve it, 1 to 16;
fsname=NAME is the source shown by findmnt. noexec, nosymfollow and SELinux's context=LABEL are passed to the kernel.
Other options of fstab and mount(8) are accepted and ignored, except those that ask for what a mount does not do (sync).

Queues that are created through the mount keep a tenth of the file system, at most 4 GiB, of what their readers have
consumed; retain_bytes=1GiB and all other settings of `chron-cli create` (segment_size, retain_age, ...) change that,
none removes a limit, and `chron-cli set` changes a queue's settings later.

The log says why an operation failed. It goes to stderr with -f, otherwise to the journal or syslog; the owner of the
bus directory can read its last lines in .chronfs/log. error and warn concern the queues and the machine, info the
mount, debug refused operations, trace every error. -o log=LEVEL is the same as --log-level.

Examples:
  chron-cli mount /srv/bus /mnt/bus
  chron-cli mount -f -o ro /srv/bus /mnt/bus      in the foreground, read-only
  cat /mnt/bus/ticks/messages.jsonl               all retained messages
  cat /mnt/bus/ticks/follow.txt                   new messages
  echo hello > /mnt/bus/ticks/append.txt          a message per line
  cp picture.png /mnt/bus/pictures/append.bin     one message from open to close; append.packets takes one a write
  chron-cli umount /mnt/bus")]
struct MountArgs {
    /// The directory that holds the queues
    root: PathBuf,
    /// Where to mount it: an existing directory
    dir: PathBuf,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Log lines of this level and above [default: warn]
    #[arg(long, value_name = "LEVEL", value_parser = LOG_LEVELS)]
    log_level: Option<String>,
    /// Comma-separated mount options, as for mount(8)
    #[arg(short, long = "options", value_name = "OPTIONS", action = clap::ArgAction::Append)]
    options: Vec<String>,
}

/// Unmount, even if the daemon has died
#[derive(Debug, Args)]
#[command(after_help = "\
Waiting readers are ended. While a process has a file of the mount open for writing, nothing is unmounted, unless --lazy
is given.

Example:
  chron-cli umount /mnt/bus")]
struct UmountArgs {
    /// Unmount even if files are open for writing; they can be used until they are closed
    #[arg(short, long)]
    lazy: bool,
    /// The mount point
    dir: PathBuf,
}

/// Create a queue with custom settings
#[derive(Debug, Args)]
#[command(after_help = "\
Settings are stored in the queue; `chron-cli set` changes them. Sizes take KiB, MiB, GiB and TiB; time spans take ms, s,
m, h, d, w, month and y. Without --retain-bytes, --retain-age and --retain-segments everything is kept, until the disk
is full.
A queue that a first `append` or `send` creates, or one in a mount, keeps a tenth of its file system, at most 4 GiB.

Examples:
  chron-cli create /srv/bus/ticks
  chron-cli create /srv/bus/ticks --segment-size 256MiB --max-bytes 20GiB
  chron-cli create /srv/bus/orders --retain-bytes 1GiB --retain-age 7d --roll-every day")]
struct CreateArgs {
    /// The queue's directory; it is created, with its parents
    #[arg(value_parser = queue_path())]
    queue: PathBuf,
    #[command(flatten)]
    settings: settings_args::SettingsArgs,
}

/// Print messages, the last ten by default
#[derive(Debug, Args)]
#[command(after_help = "\
Without -n, --from and --since, prints the last ten messages that the other options select; with --from or --since, all
of them. -f then prints new messages, until it is interrupted or its output is closed.

Several queues are printed one after the other, then new messages as they come, with a line ==> QUEUE <== wherever the
queue changes; jsonl has a key \"queue\" instead. `chron-cli merge` orders queues by time.

Nothing is registered, locked or changed, unless --reader names a reader: then printing starts at that reader's
position, and --commit moves it past what was printed.

Times are those of journalctl. Without a zone they are local: '2024-08-08 09:30 UTC' and 2024-08-08T09:30:00Z are not.

Missing messages (damaged, or retired before they were read) are reported on stderr, and the exit code is 1.

Examples:
  chron-cli tail /srv/bus/ticks                       the last ten
  chron-cli tail -F /srv/bus/ticks /srv/bus/orders     even if they do not exist yet, or are replaced
  chron-cli tail -f -n 0 --format jsonl /srv/bus/ticks | jq .payload
  chron-cli tail -n +1 --format bin /srv/bus/ticks    all payloads, back to back
  chron-cli tail --from 1000 --type 7 /srv/bus/ticks
  chron-cli tail --since '1 hour ago' --grep 'BTC|ETH' /srv/bus/ticks
  chron-cli tail --since 09:30 --until 09:31 /srv/bus/ticks
  chron-cli tail --since 09:30 --replay 10x --format txt /srv/bus/ticks
  chron-cli tail -f --reader billing --commit --format txt /srv/bus/ticks")]
struct TailArgs {
    /// The queues' directories
    #[arg(required = true, value_name = "QUEUE", value_parser = queue_path())]
    queues: Vec<PathBuf>,
    /// Keep printing new messages
    #[arg(short, long)]
    follow: bool,
    /// First wait for queues that do not exist yet
    #[arg(long)]
    wait: bool,
    /// As -f --wait; and where a queue is removed, wait for the next one at its path
    #[arg(short = 'F', long = "retry", conflicts_with = "reader")]
    retry: bool,
    /// The last N messages; +N: all from the Nth retained one
    #[arg(short = 'n', long, value_name = "N", value_parser = tail::parse_lines)]
    lines: Option<tail::Lines>,
    /// Start at this sequence number
    #[arg(long, value_name = "SEQ", value_parser = parse_seq)]
    from: Option<u64>,
    /// Start at this time: '2024-08-08 09:30', 09:30, yesterday, '1 hour ago', 15m, @1723108500, 2024-08-08T09:30:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<u64>,
    /// Up to this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<u64>,
    /// Only messages of this type; may be repeated
    #[arg(long = "type", value_name = "N", value_parser = parse_type)]
    types: Vec<u16>,
    /// Only messages whose payload matches this regular expression
    #[arg(long, value_name = "RE")]
    grep: Option<regex::bytes::Regex>,
    /// auto: a header line, then the payload as text, or as a hex dump if it is not text; hex: always a dump; jsonl: one
    /// object per line; txt: the payload as a line; bin: raw payloads
    #[arg(long, default_value = "auto")]
    format: FormatName,
    /// Decode payloads as the queue's schema.toml says
    #[arg(long, hide = !cfg!(feature = "decode"))]
    decode: bool,
    /// Decode payloads by this command, which the shell runs
    #[arg(long, value_name = "COMMAND", conflicts_with = "decode", hide = !cfg!(feature = "decode"))]
    decode_with: Option<String>,
    /// Print messages with the time between them that was between them when they were appended, this many times as
    /// fast: 1, 10x, 0.5
    #[arg(long, value_name = "SPEED", value_parser = pacer::parse_speed, conflicts_with_all = ["follow", "reader"])]
    replay: Option<pacer::Speed>,
    /// Start at the position of this reader, which is registered if it is new
    #[arg(long, value_name = "NAME", conflicts_with_all = ["lines", "from", "since", "until"])]
    reader: Option<String>,
    /// Move the reader past what was printed
    #[arg(long, requires = "reader")]
    commit: bool,
}

/// Show a queue's state: head, writer, readers, segments, settings
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  chron-cli inspect /srv/bus/ticks
  chron-cli inspect --json /srv/bus/ticks | jq '.readers[] | {name, lag_messages}'")]
struct InspectArgs {
    /// The queue's directory
    #[arg(value_parser = queue_path())]
    queue: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// List the queues below a directory
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  chron-cli ls /srv/bus\n  chron-cli ls --json /srv/bus | jq -r .path")]
struct LsArgs {
    /// Directory to search [default: $CHRONFS_ROOT, else the current directory]
    #[arg(default_value_os_t = root::root(), hide_default_value = true)]
    root: PathBuf,
    /// Print one JSON object per line, with keys of `inspect --json`
    #[arg(long)]
    json: bool,
}

/// List, add, move and remove a queue's readers
#[derive(Debug, Args)]
#[command(after_help = "\
A reader is a persisted position: the sequence number of the message that it consumes next. The action may also come
first: `chron-cli readers list QUEUE`.

Examples:
  chron-cli readers /srv/bus/ticks
  chron-cli readers /srv/bus/ticks add billing
  chron-cli readers /srv/bus/ticks seek billing -10
  chron-cli readers /srv/bus/ticks seek billing yesterday
  chron-cli readers /srv/bus/ticks rm billing")]
struct ReadersArgs {
    /// The queue's directory
    #[arg(value_parser = queue_path())]
    queue: PathBuf,
    /// List them as one JSON object per line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Option<ReadersAction>,
}

#[derive(Debug, Subcommand)]
enum ReadersAction {
    /// List the readers (the default)
    List,
    /// Register a reader at the first retained message
    Add {
        /// Its name
        name: String,
    },
    /// Move a reader that no process is using
    Seek {
        /// Its name
        name: String,
        /// A sequence number, first, end, +10, -10 or a time as for `tail --since`
        #[arg(value_parser = parse_target, allow_hyphen_values = true)]
        position: SeekTarget,
    },
    /// Remove a reader
    Rm {
        /// Its name
        name: String,
    },
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Example: chron-cli completions bash > ~/.local/share/bash-completion/completions/chron-cli")]
struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// Print a manual page
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  chron-cli man tail | man -l -
  chron-cli man --all /usr/local/share/man/man1")]
struct ManArgs {
    /// The subcommand; chron-cli itself if omitted
    subcommand: Option<String>,
    /// Write the pages of all commands into this directory
    #[arg(long, value_name = "DIR", conflicts_with = "subcommand")]
    all: Option<PathBuf>,
}

/// [`Format`] as an option's value, and what is for people only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatName {
    Auto,
    Hex,
    Jsonl,
    Txt,
    Bin,
}

impl TailArgs {
    fn follows(&self) -> bool {
        self.follow || self.retry
    }

    fn waits(&self) -> bool {
        self.wait || self.retry
    }
}

impl FormatName {
    /// Appends one entry; see [`render`].
    fn render(self, entry: &Entry<'_>, queue: Option<&str>, out: &mut Vec<u8>) {
        match self {
            Self::Auto => render_readable(entry, out),
            Self::Hex => render(Format::Hex, entry, queue, out),
            Self::Jsonl => render(Format::Jsonl, entry, queue, out),
            Self::Txt => render(Format::Txt, entry, queue, out),
            Self::Bin => render(Format::Bin, entry, queue, out),
        }
    }
}

/// [`InputFormat`] as an option's value.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum InputName {
    Txt,
    Jsonl,
    Bin,
}

impl From<InputName> for InputFormat {
    fn from(name: InputName) -> Self {
        match name {
            InputName::Txt => Self::Txt,
            InputName::Jsonl => Self::Jsonl,
            InputName::Bin => Self::Bin,
        }
    }
}

fn parse_time(text: &str) -> Result<u64, String> {
    chronfs::view::parse_time(text, chronfs::clock::now_ns())
}

fn parse_target(text: &str) -> Result<SeekTarget, String> {
    chronfs::view::parse_seek_target(text, chronfs::clock::now_ns())
}

/// The command line. Where an option takes a number, a span or a time, its parser says what is wrong with a negative one.
fn command_line() -> clap::Command {
    const NUMBERS: [&str; 7] = ["N", "SEQ", "SIZE", "SPAN", "SPEED", "TIME", "BYTES"];
    let is_number = |argument: &Arg| {
        let names = argument.get_value_names().unwrap_or_default();
        !argument.is_positional() && names.iter().any(|name| NUMBERS.contains(&name.as_str()))
    };
    Cli::command().mut_subcommands(|command| {
        command.mut_args(|argument| if is_number(&argument) { argument.allow_hyphen_values(true) } else { argument })
    })
}

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    if words.next().is_some_and(|name| mount_helper::is_helper_name(&name)) {
        return mount_helper::run(words);
    }
    let matches = command_line().try_get_matches_from(readers::in_order(std::env::args_os()));
    match matches.and_then(|matches| Cli::from_arg_matches(&matches)).map_err(failure::of_usage).and_then(run) {
        Ok(done) => done.into(),
        Err(failure) => {
            failure.tell();
            failure.end()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        command_line().debug_assert();
    }

    /// A subcommand without an example, or an option without help, is not finished.
    #[test]
    fn everything_is_explained() {
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name} has no summary");
            assert!(command.get_after_help().is_some_and(|help| help.to_string().contains("chron-cli")), "{name}");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{name}: {} has no help", argument.get_id());
            }
        }
    }
}
