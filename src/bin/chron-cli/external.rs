//! Subcommands that are programs of their own, with dependencies that not everybody wants: `chron-cli relay` executes
//! `chron-relay`, `chron-cli archive` `chron-archive`, from chron-cli's directory or PATH.

use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use clap::{Args, CommandFactory as _};

use crate::Cli;
use crate::failure::{Failure, Outcome};

/// For a program of its own
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct ExternalArgs {
    /// What that program understands; --help lists it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<std::ffi::OsString>,
}

/// Executes a program, which this package has, and the crate in this directory.
pub(crate) fn run(program: &str, package: &str, source: &str, args: &ExternalArgs) -> Outcome {
    let here = std::env::current_exe().ok();
    let beside = here.as_ref().and_then(|exe| Some(exe.parent()?.join(program)));
    let path = beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(program));
    let error = Command::new(&path).args(&args.args).exec();
    Err(Failure::Message(if error.kind() == ErrorKind::NotFound {
        format!(
            "{}: a program of its own, neither beside chron-cli nor in PATH; install the package {package}, or from \
             source: cargo install --locked --path {source}",
            purpose(program)
        )
    } else {
        format!("{}: cannot execute it: {error}", path.display())
    }))
}

/// What it is for, as the list of commands has it.
fn purpose(program: &str) -> String {
    let cli = Cli::command();
    let command = program.strip_prefix("chron-").and_then(|name| cli.find_subcommand(name));
    command.and_then(|command| command.get_about()).map(ToString::to_string).unwrap_or_default()
}
