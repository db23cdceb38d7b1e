//! chron-archive: sealed segments of queues to an object store, and back.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 77 an operator must decide (the queue and the archive contradict each
//! other, or something is missing or damaged), 78 the configuration can't work.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use chronfs_bridge::archive::{
    self, Access, AccessConfig, Address, Config, DEFAULT_LEVEL, RestoreOptions, list, prune, restore, verify,
};
use chronfs_bridge::args::{self, StatusArgs, print_json};
use chronfs_bridge::{Failure, Result, run_program, run_service};
use clap::{Args, Parser, Subcommand};

/// Archive a queue's sealed segments in an object store, and restore them
#[derive(Debug, Parser)]
#[command(name = "chron-archive", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Archive segments as they are sealed: QUEUE s3://BUCKET/PREFIX, gs://…, az://… or file:///DIRECTORY
    Run(RunArgs),
    /// What is archived, as JSON
    List {
        /// The address of the archive
        archive: Address,
        #[command(flatten)]
        access: AccessArgs,
    },
    /// Read every object back, and compare it with the queue if that is given
    Verify {
        /// The address of the archive
        archive: Address,
        /// The queue
        queue: Option<PathBuf>,
        /// The id of the queue, if there are several
        #[arg(long, value_parser = hex)]
        id: Option<u64>,
        #[command(flatten)]
        access: AccessArgs,
    },
    /// Make a queue of what is archived: the same segments, byte for byte
    Restore(RestoreArgs),
    /// Show an archive as directories of queues, read-only, for chron-cli and its mount
    #[cfg(feature = "mount")]
    Mount(MountArgs),
    /// Delete the segments that were archived long ago
    Prune {
        /// The address of the archive
        archive: Address,
        /// How long ago: 90d, 12h, 30min
        #[arg(long, value_name = "AGE", value_parser = age)]
        older_than: Duration,
        /// The id of the queue, if there are several
        #[arg(long, value_parser = hex)]
        id: Option<u64>,
        #[command(flatten)]
        access: AccessArgs,
    },
    /// What the archivers and relays of a queue have last said, as JSON
    Status(StatusArgs),
}

#[derive(Debug, Args)]
struct AccessArgs {
    /// A file of lines NAME=VALUE, such as AWS_SECRET_ACCESS_KEY=…; the environment is asked as well
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// Certificates of authorities to trust besides the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// What else the store's client is to know: endpoint=http://HOST:PORT, allow_http=true, region=…
    #[arg(long = "option", short, value_name = "NAME=VALUE", value_parser = pair)]
    options: Vec<(String, String)>,
}

impl From<AccessArgs> for Access {
    fn from(args: AccessArgs) -> Self {
        Self { credentials: args.credentials, ca: args.ca, options: args.options.into_iter().collect() }
    }
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    common: args::ServiceArgs,
    /// Archive what is sealed, then end
    #[arg(long)]
    once: bool,
    /// The archiver's name, by which the queue knows it
    #[arg(long, default_value = "archive")]
    name: String,
    /// How hard to compress, 1 to 19
    #[arg(long, default_value_t = DEFAULT_LEVEL)]
    level: i32,
    /// Archive damaged segments, too, as they are
    #[arg(long)]
    damaged: bool,
    #[command(flatten)]
    access: AccessArgs,
}

impl RunArgs {
    fn config(self) -> Result<Config> {
        let args::ServiceArgs { from, to, config, metrics } = self.common;
        if let Some(path) = config {
            return Ok(Config { once: self.once, ..Config::read(&path)? });
        }
        let AccessArgs { credentials, ca, options } = self.access;
        Ok(Config {
            from: from.unwrap_or_default().into(),
            to: to.unwrap_or_default(),
            name: self.name,
            level: self.level,
            damaged: self.damaged,
            metrics,
            access: AccessConfig { credentials, ca, options: options.into_iter().collect() },
            once: self.once,
        })
    }
}

#[derive(Debug, Args)]
struct RestoreArgs {
    /// The address of the archive
    archive: Address,
    /// The queue, which must not exist
    queue: PathBuf,
    /// From the segment that has this number on
    #[arg(long, value_name = "SEQ", default_value = "0")]
    from_seq: u64,
    /// Up to the segment that has this number
    #[arg(long, value_name = "SEQ", default_value_t = u64::MAX, hide_default_value = true)]
    to_seq: u64,
    /// From the segment that has this time on: as chron-cli tail --since takes it
    #[arg(long, value_name = "TIME", value_parser = time)]
    from_time: Option<u64>,
    /// Up to the segment that has this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    to_time: Option<u64>,
    /// Do with what there is if messages are missing or damaged
    #[arg(long)]
    incomplete: bool,
    /// The id of the queue, if there are several
    #[arg(long, value_parser = hex)]
    id: Option<u64>,
    #[command(flatten)]
    access: AccessArgs,
}

#[cfg(feature = "mount")]
#[derive(Debug, Args)]
struct MountArgs {
    /// The address of the archive, or of several below it
    archive: Address,
    /// Where to mount it: a directory
    mountpoint: PathBuf,
    /// Where to keep what is fetched; default: a directory in $CACHE_DIRECTORY, $XDG_CACHE_HOME or ~/.cache
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// How much of it: 500M, 20G; at least the size of the largest segment
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = bytes)]
    cache_size: u64,
    /// Let other users read it, too
    #[arg(long)]
    allow_other: bool,
    /// Serve in the foreground until it is unmounted
    #[arg(long, short)]
    foreground: bool,
    /// The id of the queue, if there are several
    #[arg(long, value_parser = hex)]
    id: Option<u64>,
    #[command(flatten)]
    access: AccessArgs,
}

#[cfg(feature = "mount")]
async fn mount(args: MountArgs) -> Result<ExitCode> {
    use chronfs_bridge::archive::mount::{MountOptions, default_cache, detach, is_detached, mount, run_detached};

    if !args.foreground && !is_detached() {
        return run_detached();
    }
    let cache = match args.cache {
        Some(cache) => cache,
        None => default_cache(&args.mountpoint)?,
    };
    let log = cache.join("log");
    let options = MountOptions {
        address: args.archive,
        access: args.access.into(),
        id: args.id,
        cache,
        cache_bytes: args.cache_size,
        allow_other: args.allow_other,
    };
    let ready = || if args.foreground { Ok(()) } else { detach(&log) };
    tokio::task::LocalSet::new().run_until(mount(&options, &args.mountpoint, ready)).await?;
    Ok(ExitCode::SUCCESS)
}

/// A number of bytes, with K, M, G or T for powers of 1024.
#[cfg(feature = "mount")]
fn bytes(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.char_indices().next_back() {
        Some((at, unit)) if "KMGT".contains(unit) => (&text[..at], 10 * (1 + "KMGT".find(unit).unwrap_or(0))),
        _ => (text, 0),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| "it is a number of bytes, such as 500M or 20G".to_owned())
}

fn hex(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|error| error.to_string())
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn age(text: &str) -> Result<Duration, String> {
    let span = chronfs::view::parse_span(text).map(Duration::from_nanos);
    span.ok_or_else(|| "it is a span of time, such as 90d, 12h or 30min".to_owned())
}

fn time(text: &str) -> Result<u64, String> {
    chronfs::view::parse_time(text, chronfs::clock::now_ns())
}

fn main() -> ExitCode {
    run_program("chron-archive", run(Cli::parse().command))
}

async fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(args) => {
            let config = args.config()?;
            run_service(config.metrics, |stop, monitors| async { archive::run(&config, stop, monitors).await }).await?;
        }
        Command::List { archive, access } => print_json(&list(&archive, &access.into()).await?),
        Command::Verify { archive, queue, id, access } => {
            let verdict = verify(&archive, &access.into(), queue.as_deref(), id).await?;
            print_json(&verdict);
            if !verdict.is_sound() {
                return Ok(ExitCode::from(77));
            }
        }
        Command::Restore(args) => {
            let options = RestoreOptions {
                id: args.id,
                seqs: (args.from_seq, args.to_seq),
                times_ns: (args.from_time.unwrap_or(0), args.to_time.unwrap_or(u64::MAX)),
                incomplete: args.incomplete,
            };
            print_json(&restore(&args.archive, &args.access.into(), &args.queue, &options).await?);
            eprintln!(
                "chron-archive: {} keeps everything: its limits are off, see chron-cli set",
                args.queue.display()
            );
        }
        #[cfg(feature = "mount")]
        Command::Mount(args) => return mount(args).await,
        Command::Prune { archive, older_than, id, access } => {
            print_json(&prune(&archive, &access.into(), id, older_than).await?);
        }
        Command::Status(args) => args.print(),
    }
    Ok(ExitCode::SUCCESS)
}
