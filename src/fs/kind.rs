//! What the file system of queues has in common with others that a program mounts and serves, such as the one of
//! chron-archive: its name, places to mount, unmounting. The process that serves it: [`daemon`](crate::fs::daemon).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::fs::error::MountError;
use crate::fs::mountinfo::{self, Mounted};

/// How long to wait for another mount in the same directory; it takes a fraction of a second.
const TURN_PATIENCE: Duration = Duration::from_secs(5);
const TURN_STEP: Duration = Duration::from_millis(5);

/// A kind of FUSE file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Its type in the mount table, after `fuse.`.
    pub subtype: &'static str,
    /// The environment variable that is set in the process that serves it in the background.
    pub detached: &'static str,
}

/// The file system of queues.
pub(crate) const CHRONFS: Kind = Kind { subtype: "chronfs", detached: "CHRONFS_DETACHED" };

impl Kind {
    /// A place for a mount of this kind, which must exist. Dead mounts of the same kind, whose processes were killed, are
    /// unmounted first.
    ///
    /// # Errors
    /// [`MountError`] if it is not a directory, or something is mounted there.
    pub fn turn(self, mountpoint: &Path) -> Result<Turn, MountError> {
        let turn = Turn::take(existing(mountpoint)?);
        self.free(&turn.mountpoint)?;
        Ok(turn)
    }

    /// Unmounts dead mounts of this kind. A live one is an error.
    fn free(self, path: &Path) -> Result<(), MountError> {
        // Dead mounts may be stacked.
        for _ in 0..16 {
            // The kernel caches a directory's attributes for a second even if the daemon is dead; statfs is not cached.
            let asked = |metadata| rustix::fs::statfs(path).map(|_| metadata).map_err(io::Error::from);
            match fs::metadata(path).and_then(asked) {
                Ok(metadata) if metadata.is_dir() => break,
                Ok(_) => return Err(MountError::Failed(format!("{}: not a directory", path.display()))),
                Err(error) if is_dead(&error) => {
                    if let Ok(Some(mounted)) = mountinfo::at(path)
                        && !mounted.is_of(self.subtype)
                    {
                        return Err(self.foreign(path, &mounted));
                    }
                    unmount(path).map_err(|error| {
                        MountError::System(format!("{}: cannot unmount the dead mount there: {error}", path.display()))
                    })?;
                }
                Err(error) => return Err(MountError::Failed(format!("{}: {error}", path.display()))),
            }
        }
        match mountinfo::at(path) {
            Ok(Some(mounted)) if mounted.is_of(self.subtype) => {
                Err(MountError::Failed(format!("{}: already mounted; unmount it first", path.display())))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(no_mount_table(&error)),
        }
    }

    pub(super) fn foreign(self, mountpoint: &Path, Mounted { fs_type, .. }: &Mounted) -> MountError {
        let path = mountpoint.display();
        let ours = self.subtype;
        MountError::Failed(format!(
            "{path}: what is mounted there is {fs_type}, not {ours}; 'umount {path}' unmounts it"
        ))
    }
}

/// A place that is free for a mount. Serializes mounts in the same directory until it is dropped: when several processes
/// mount at one place, one succeeds and the others find its mount. Any process that can read the directory could hold
/// the lock, so after a timeout the mount proceeds without it.
#[derive(Debug)]
pub struct Turn {
    /// The absolute path of the mountpoint.
    pub mountpoint: PathBuf,
    _locked: Option<File>,
}

impl Turn {
    fn take(mountpoint: PathBuf) -> Self {
        let parent = mountpoint.parent().and_then(|parent| File::open(parent).ok());
        let until = Instant::now() + TURN_PATIENCE;
        let locked = parent.filter(|parent| {
            loop {
                match flock(parent, FlockOperation::NonBlockingLockExclusive) {
                    Ok(()) => return true,
                    Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < until => std::thread::sleep(TURN_STEP),
                    Err(_) => return false,
                }
            }
        });
        Self { mountpoint, _locked: locked }
    }
}

/// The absolute path of the mountpoint, which must exist.
fn existing(mountpoint: &Path) -> Result<PathBuf, MountError> {
    if let Err(error) = fs::symlink_metadata(mountpoint)
        && error.kind() == io::ErrorKind::NotFound
    {
        return Err(MountError::Failed(format!("{}: {error}{}", mountpoint.display(), remedy(&error))));
    }
    absolute(mountpoint)
}

/// The absolute path of a mountpoint, which may itself be a dead mount, so that stat would fail.
pub(super) fn absolute(mountpoint: &Path) -> Result<PathBuf, MountError> {
    let cannot = |error: io::Error| MountError::Failed(format!("{}: {error}", mountpoint.display()));
    match fs::canonicalize(mountpoint) {
        Err(error) if is_dead(&error) => {
            let path = std::path::absolute(mountpoint).map_err(cannot)?;
            match (path.parent(), path.file_name()) {
                (Some(parent), Some(name)) => Ok(fs::canonicalize(parent).map_err(cannot)?.join(name)),
                _ => Err(cannot(error)),
            }
        }
        other => other.map_err(cannot),
    }
}

fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

pub(super) fn remedy(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::NotFound { "; create that directory first" } else { "" }
}

/// The mount table must be readable: never mount twice at one place, never unmount a foreign mount.
pub(super) fn no_mount_table(error: &io::Error) -> MountError {
    MountError::System(format!("/proc/self/mountinfo: cannot read: {error}; mounting and unmounting require /proc"))
}

/// Unmounts what is mounted there, whether it is in use or not, as root or through fusermount3.
///
/// # Errors
/// If the kernel or fusermount3 refuses. That nothing is mounted there is not an error.
pub fn unmount(mountpoint: &Path) -> io::Result<()> {
    // The kernel says the same of a mount that a container has from outside.
    let is_mounted = || !matches!(mountinfo::at(mountpoint), Ok(None));
    match rustix::mount::unmount(mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL) if !is_mounted() => Ok(()),
        Err(Errno::PERM) => {
            let mut command = Command::new("fusermount3");
            command.args(["-u", "-z", "--"]).arg(mountpoint).stdin(Stdio::null());
            let output = command.output()?;
            if output.status.success() || !is_mounted() {
                return Ok(());
            }
            Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}
