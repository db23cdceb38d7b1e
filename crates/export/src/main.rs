//! chron-export: queues as files that other programs analyse. `chron-cli export` executes it.
//!
//! `chronfs_decode::Rows` turns messages into record batches, `format` writes these to a file, `store` gives files their
//! names and leaves no half one, `queue` reads a queue and brings them together.
//!
//! Exit codes: 0 done, 1 failed or messages are missing, 2 wrong usage.

mod csv;
mod failure;
mod format;
mod queue;
mod store;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use chronfs_decode::Schema;
use clap::Parser;

use failure::{Failure, Result, note};
use format::Format;
use store::partition_value;

/// Export queues to files: Parquet, Arrow, CSV or JSON lines
#[derive(Debug, Parser)]
#[command(name = "chron-export", version)]
#[command(after_help = "\
The sealed segments of a queue become files below DIR/queue=NAME/date=YYYY-MM-DD/, one for each kind of message and each
date (UTC); small segments share one. Their names say which messages they hold; what a file holds already is not written
again, so the command can be run again and again, and be killed at any time. The path of each new file is printed.

With a schema.toml in the queue, or --schema, payloads become columns (docs/decode.md).

Missing messages are reported on stderr, and the exit code is 1.

Examples:
  chron-cli export /srv/bus/ticks /data
  chron-cli export /srv/bus /data --format csv --since yesterday --until today
  duckdb -c \"SELECT type, count(*) FROM '/data/**/*.parquet' GROUP BY type\"")]
pub(crate) struct Args {
    /// A queue, or a directory with queues below it
    #[arg(value_name = "QUEUE|ROOT")]
    from: PathBuf,
    /// Where the files go; it is created
    dir: PathBuf,
    /// Of the files
    #[arg(long, default_value = "parquet")]
    format: Format,
    /// Messages from this time on: '2024-08-08 09:30', 09:30, yesterday, '1 hour ago', 15m, @1723108500
    #[arg(long, value_name = "TIME", value_parser = parse_time, allow_hyphen_values = true)]
    since: Option<u64>,
    /// Messages up to this time
    #[arg(long, value_name = "TIME", value_parser = parse_time, allow_hyphen_values = true)]
    until: Option<u64>,
    /// Decode payloads as this file says, instead of the queue's own schema.toml
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Also what is in the segment that still takes messages, up to now
    #[arg(long)]
    unsealed: bool,
    /// Do not print the paths of the files
    #[arg(short, long)]
    quiet: bool,
}

fn parse_time(text: &str) -> std::result::Result<u64, String> {
    chronfs::view::parse_time(text, chronfs::clock::now_ns())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            note(&failure.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Whether all is well: nothing failed, no message is missing.
fn run(args: &Args) -> Result<bool> {
    let load = |path: &PathBuf| {
        let beside = path.with_file_name("");
        Schema::load_file(path).map(Arc::new).map_err(|error| Failure(format!("{}{error}", beside.display())))
    };
    let given = args.schema.as_ref().map(load).transpose()?;
    let mut is_well = true;
    let queues = chronfs::bus::queues_below(&args.from, &mut |error| {
        note(&error.to_string());
        is_well = false;
    })?;
    if queues.is_empty() && is_well {
        return Err(Failure(format!("{}: no queues here", args.from.display())));
    }
    for path in &queues {
        let below = path.strip_prefix(&args.from).unwrap_or(path);
        // The queue itself was named, perhaps as a dot.
        let is_it = below.as_os_str().is_empty();
        let own =
            if is_it { std::fs::canonicalize(path).map_err(Failure::io(path, "find it"))? } else { below.to_owned() };
        let name = own.file_name().filter(|_| is_it).unwrap_or(own.as_os_str());
        match queue::export(path, &partition_value(name), args, given.as_ref()) {
            Ok(report) => {
                is_well &= report.gaps == 0;
                let plural = |count: u64| if count == 1 { "" } else { "s" };
                let (messages, files) = (report.messages, report.files);
                let (some, each) = (plural(messages), plural(files));
                let left = match report.unsealed {
                    0 => String::new(),
                    left => format!("; {left} in the segment that is being written are left to --unsealed"),
                };
                note(&format!("{}: {messages} message{some} in {files} new file{each}{left}", path.display()));
            }
            Err(failure) => {
                note(&failure.to_string());
                is_well = false;
            }
        }
    }
    Ok(is_well)
}

/// Prints the path of a new file.
fn tell(args: &Args, path: &std::path::Path) -> Result<()> {
    if args.quiet {
        return Ok(());
    }
    let mut line = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec();
    line.push(b'\n');
    std::io::stdout().write_all(&line).map_err(|error| Failure(format!("stdout: cannot write: {error}")))
}
