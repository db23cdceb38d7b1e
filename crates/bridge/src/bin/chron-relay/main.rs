//! chron-relay: a queue to a stream of NATS JetStream or Redis, and back.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 77 an operator must decide (the queue and the stream contradict each
//! other, or another host has taken over), 78 the configuration can't work.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use chronfs_bridge::args::{self, StatusArgs, print_json};
use chronfs_bridge::relay::{self, Access, AccessConfig, Config, StreamConfig, Target, TooLarge, promote, verify};
use chronfs_bridge::{Failure, run_program, run_service};
use clap::{Args, Parser, Subcommand};

/// Relay a queue to a stream of NATS JetStream or Redis, and a stream to a queue
#[derive(Debug, Parser)]
#[command(name = "chron-relay", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Relay until told to stop: QUEUE ADDRESS, or ADDRESS QUEUE for a standby; an address is nats://HOST/STREAM or redis://HOST/STREAM
    Run(RunArgs),
    /// Make a standby active, in a higher term; its relay must not be running
    Promote {
        /// The address of the stream
        target: Target,
        /// The standby
        queue: PathBuf,
        /// Give up after this many seconds
        #[arg(long, default_value = "60")]
        timeout: u64,
        #[command(flatten)]
        access: AccessArgs,
    },
    /// Compare a queue with its stream, message by message
    Verify {
        /// The queue
        queue: PathBuf,
        /// The address of its stream
        target: Target,
        /// Give up after this many seconds
        #[arg(long, default_value = "60")]
        timeout: u64,
        #[command(flatten)]
        access: AccessArgs,
    },
    /// What the relays of a queue have last said, as JSON
    Status(StatusArgs),
}

#[derive(Debug, Args)]
struct AccessArgs {
    /// A NATS credentials file; read again at each connect, as are the others
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// A file with a NATS token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A file with user:password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Certificates of authorities to trust instead of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The client's certificate
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// The key of the client's certificate
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
}

impl From<AccessArgs> for Access {
    fn from(args: AccessArgs) -> Self {
        let AccessArgs { credentials, token_file, password_file, ca, certificate, key } = args;
        Self { credentials, token_file, password_file, ca, certificate: certificate.zip(key) }
    }
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    common: args::ServiceArgs,
    /// The relay's name, by which the queue knows it
    #[arg(long, default_value = "relay")]
    name: String,
    /// Several messages in one of the stream's: many times faster, for standbys
    #[arg(long)]
    frames: bool,
    /// Keep what is acknowledged in the queue for so many seconds: the servers may lose it again
    #[arg(long, value_name = "SECONDS", default_value = "180")]
    hold_back: f64,
    /// What to do with a message larger than the server takes
    #[arg(long, value_name = "WHAT", default_value = "split")]
    too_large: TooLarge,
    /// After a power cut: take back what the stream has and the queue has lost
    #[arg(long)]
    refill: bool,
    /// Make a queue that was active a standby; what it has more than the stream is moved aside
    #[arg(long)]
    rejoin: bool,
    /// Do not create the stream
    #[arg(long)]
    no_create: bool,
    /// On how many servers a new stream is (NATS)
    #[arg(long, default_value = "1")]
    replicas: usize,
    /// The limit of a new stream in bytes (NATS)
    #[arg(long, value_name = "BYTES")]
    max_bytes: Option<u64>,
    #[command(flatten)]
    access: AccessArgs,
}

impl RunArgs {
    fn config(self) -> Result<Config, Failure> {
        let args::ServiceArgs { from, to, config, metrics } = self.common;
        if let Some(path) = config {
            return Ok(Config { refill: self.refill, rejoin: self.rejoin, ..Config::read(&path)? });
        }
        let AccessArgs { credentials, token_file, password_file, ca, certificate, key } = self.access;
        Ok(Config {
            from: from
                .unwrap_or_default()
                .into_string()
                .map_err(|from| Failure::Config(format!("{}: neither UTF-8 nor an address", from.display())))?,
            to: to.unwrap_or_default(),
            name: self.name,
            frames: self.frames,
            hold_back_seconds: self.hold_back,
            too_large: self.too_large,
            metrics,
            stream: StreamConfig {
                create: !self.no_create,
                replicas: self.replicas,
                max_bytes: self.max_bytes,
                ..StreamConfig::default()
            },
            access: AccessConfig { credentials, token_file, password_file, ca, certificate, key },
            refill: self.refill,
            rejoin: self.rejoin,
        })
    }
}

fn main() -> ExitCode {
    run_program("chron-relay", run(Cli::parse().command))
}

async fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(args) => {
            let config = args.config()?;
            run_service(config.metrics, |stop, monitors| relay::run(&config, stop, monitors)).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Promote { target, queue, timeout, access } => {
            let promotion = promote(&queue, &target, &access.into(), Duration::from_secs(timeout)).await?;
            println!("{}: active in term {}, after message {}", queue.display(), promotion.term, promotion.seq);
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify { queue, target, timeout, access } => {
            let verdict = verify(&queue, &target, &access.into(), Duration::from_secs(timeout)).await?;
            print_json(&verdict);
            Ok(if verdict.is_sound() { ExitCode::SUCCESS } else { ExitCode::from(77) })
        }
        Command::Status(args) => {
            args.print();
            Ok(ExitCode::SUCCESS)
        }
    }
}
