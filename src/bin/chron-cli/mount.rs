//! `chron-cli mount`: serves the queues below a directory as files.
//!
//! The command returns once the files can be used; a background process then serves them. With --foreground the command
//! serves them itself, until the directory is unmounted.

use std::path::Path;

use chronfs::fs::daemon;
use chronfs::fs::mount::{MountError, MountOptions};

use crate::MountArgs;
use crate::failure::{Done, Failure, Outcome};
use crate::logger;

pub(crate) fn run(args: &MountArgs) -> Outcome {
    let level = args.log_level.as_ref().map(|level| format!("log={level}"));
    mount(&args.root, &args.dir, args.options.iter().chain(&level), args.foreground)?;
    Ok(Done::Well)
}

/// Mounts, with the values of `-o`, which may be repeated.
fn mount<'a>(
    root: &Path,
    dir: &Path,
    mut words: impl Iterator<Item = &'a String>,
    foreground: bool,
) -> Result<(), MountError> {
    let mut options = MountOptions::default();
    words.try_for_each(|words| options.add(words))?;
    logger::install(options.log);
    daemon::run(root, dir, &options, foreground)
}

impl From<MountError> for Failure {
    fn from(e: MountError) -> Self {
        match e {
            MountError::Usage(text) => Self::Usage(text),
            other => Self::Message(other.to_string()),
        }
    }
}
