//! Where it is mounted, and the process that serves it.
//!
//! Detaching starts this program again with the same arguments; the child reports through its standard output, a pipe,
//! that the mount is usable, or why not, and then leaves the terminal. So no process forks while it has threads.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::kernel::FS_TYPE;
use crate::{Failure, Result};

/// Set in the process that serves.
const DETACHED: &str = "CHRON_ARCHIVE_DETACHED";
/// What it says when the mount is usable.
const READY: &str = "ready";
/// Dead mounts may be stacked.
const MOST_STACKED: usize = 16;

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let shown = path.display().to_string();
    move |error| Failure::Config(format!("{shown}: {error}"))
}

/// The absolute path of a mountpoint, where a dead mount of ours is taken away first.
///
/// # Errors
/// [`Failure::Config`] if it is no directory, or one that a mount of ours shows already.
pub(super) fn free(mountpoint: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(mountpoint).map_err(failed(mountpoint))?;
    let mut left = MOST_STACKED;
    loop {
        let is_dead = matches!(rustix::fs::statfs(&path), Err(Errno::NOTCONN | Errno::CONNABORTED));
        match is_ours(&path).map_err(failed(Path::new("/proc/self/mountinfo")))? {
            true if is_dead && left > 0 => unmount(&path)?,
            true => {
                return Err(Failure::Config(format!("{}: already mounted; unmount it first", path.display())));
            }
            false => break,
        }
        left -= 1;
    }
    if !fs::metadata(&path).map_err(failed(&path))?.is_dir() {
        return Err(Failure::Config(format!("{}: not a directory", path.display())));
    }
    Ok(path)
}

/// Whether what is mounted at a path, last, is a mount of an archive.
fn is_ours(path: &Path) -> io::Result<bool> {
    let table = fs::read("/proc/self/mountinfo")?;
    let mut at = table.split(|&byte| byte == b'\n').filter_map(|line| {
        let (before, after) = std::str::from_utf8(line).ok()?.split_once(" - ")?;
        let place = unescaped(before.split(' ').nth(4)?);
        (place == path).then(|| after.split(' ').next() == Some(FS_TYPE))
    });
    Ok(at.next_back().unwrap_or(false))
}

/// A path in the mount table, which has some characters in octal.
fn unescaped(text: &str) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes).into()
}

/// Unmounts, whether it is in use or not.
pub(super) fn unmount(path: &Path) -> Result<()> {
    let cannot = |error: io::Error| Failure::Again(format!("{}: cannot unmount: {error}", path.display()));
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // It is unmounted already.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(Errno::PERM) => {
            let mut command = Command::new("fusermount3");
            command.args(["-u", "-z", "--"]).arg(path).stdin(Stdio::null());
            let output = command.output().map_err(cannot)?;
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if output.status.success() { Ok(()) } else { Err(cannot(io::Error::other(said))) }
        }
        Err(error) => Err(cannot(error.into())),
    }
}

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
    env::var_os(DETACHED).is_some()
}

/// Runs this program again, in the background, and returns when the mount is usable; else what the other process says
/// goes to stderr, and its exit code is returned.
///
/// # Errors
/// [`Failure::Config`] if it can't be started.
pub fn run_detached() -> Result<ExitCode> {
    let system = |error: io::Error| Failure::Config(format!("cannot start the process that serves: {error}"));
    let program = env::current_exe().ok().filter(|path| path.exists()).unwrap_or_else(|| "/proc/self/exe".into());
    let mut command = Command::new(program);
    command.args(env::args_os().skip(1)).env(DETACHED, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(system)?;
    let mut said = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut said).map_err(system)?;
    }
    if said == READY {
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait().map_err(system)?;
    // It has said why.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).filter(|&code| code > 0).unwrap_or(1).into())
}

/// Says that the mount is usable, and leaves the terminal: what is said from now on goes to `log`.
///
/// # Errors
/// [`Failure::Config`] if the file can't be written.
pub fn detach(log: &Path) -> Result<()> {
    let leave = || {
        env::set_current_dir("/")?;
        // Fails only for the leader of a process group, which a child is not.
        let _ = rustix::process::setsid();
        let log = File::options().create(true).append(true).open(log)?;
        let mut stdout = io::stdout();
        stdout.write_all(READY.as_bytes())?;
        stdout.flush()?;
        rustix::stdio::dup2_stderr(&log)?;
        // Last: the other process goes on when the pipe is closed.
        rustix::stdio::dup2_stdout(&File::options().read(true).write(true).open("/dev/null")?)?;
        Ok(())
    };
    leave().map_err(failed(log))
}
