//! Where it is mounted, and the process that serves it.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use chronfs::fs::daemon::leave_terminal;
use chronfs::fs::kind::Kind;

use super::failed;
use crate::{Failure, Result};

/// What is mounted: `fuse.chron-archive`.
pub(super) const KIND: Kind = Kind { subtype: "chron-archive", detached: "CHRON_ARCHIVE_DETACHED" };

/// The directory for what a mount fetches, unless one is named: `$CACHE_DIRECTORY`, which systemd sets; else, of this
/// mountpoint alone, in `$XDG_CACHE_HOME` or `~/.cache`.
///
/// # Errors
/// [`Failure::Config`] if none of them is set.
pub fn default_cache(mountpoint: &Path) -> Result<PathBuf> {
    if let Some(dir) = env::var_os("CACHE_DIRECTORY") {
        return Ok(dir.into());
    }
    let path = std::path::absolute(mountpoint).map_err(failed(mountpoint))?;
    let name: Vec<u8> =
        path.as_os_str().as_bytes().iter().map(|&byte| if byte == b'/' { b'-' } else { byte }).collect();
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home);
    let base = base.ok_or_else(|| Failure::Config("neither XDG_CACHE_HOME nor HOME is set: see --cache".to_owned()))?;
    Ok(base.join("chron-archive").join(OsString::from_vec(name)))
}

/// Whether this process is the one that serves a mount in the background.
pub fn is_detached() -> bool {
    KIND.is_detached()
}

/// Runs this program again, in the background, and returns when the mount is usable; else what the other process says
/// goes to stderr, and its exit code is returned.
///
/// # Errors
/// [`Failure::Config`] if it can't be started.
pub fn run_detached() -> Result<ExitCode> {
    let ended = KIND.start_detached();
    let ended = ended.map_err(|error| Failure::Config(format!("cannot start the process that serves: {error}")))?;
    // It has said why.
    let code = |ended: chronfs::fs::daemon::Ended| u8::try_from(ended.status.code()?).ok().filter(|&code| code > 0);
    Ok(ended.map_or(ExitCode::SUCCESS, |ended| code(ended).unwrap_or(1).into()))
}

/// Says that the mount is usable, and leaves the terminal: what is said from now on goes to `log`.
///
/// # Errors
/// [`Failure::Config`] if the file can't be written.
pub fn detach(log: &Path) -> Result<()> {
    let leave = || {
        let file = File::options().create(true).append(true).open(log)?;
        env::set_current_dir("/")?;
        leave_terminal(Some(&file))
    };
    leave().map_err(failed(log))
}
