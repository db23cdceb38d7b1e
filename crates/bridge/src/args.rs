//! Arguments that both programs have.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

/// What every `run` takes.
#[derive(Debug, Args)]
pub struct ServiceArgs {
    /// From where: a queue, a directory of queues (all that are ready), or what the program copies to queues
    #[arg(required_unless_present = "config", requires = "to")]
    pub from: Option<OsString>,
    /// The address of the other side
    pub to: Option<String>,
    /// Read everything else from a TOML file
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    pub config: Option<PathBuf>,
    /// Serve /metrics and /health there, for example 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
}

/// What `status` takes.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The queue
    queue: PathBuf,
}

impl StatusArgs {
    /// Prints what the archivers and relays of the queue have last said.
    pub fn print(&self) {
        print_json(&crate::status(&self.queue));
    }
}

/// Prints the result of a command. That nobody reads it to its end is no failure.
pub fn print_json(what: &impl serde::Serialize) {
    let _ = writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(what).unwrap_or_default());
}
