//! Mounting and unmounting, for programs.
//!
//! ```no_run
//! use chronfs::fs::mount::{Mount, MountOptions};
//! # fn main() -> Result<(), chronfs::fs::mount::MountError> {
//! let mount = Mount::start("/srv/bus".as_ref(), "/mnt/bus".as_ref(), &MountOptions::default())?;
//! // /mnt/bus is usable now.
//! mount.run_until_unmounted()?;
//! # Ok(())
//! # }
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::Level;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::fs::backing::Backing;
use crate::fs::credentials::can_act;
use crate::fs::daemon_log::DaemonLog;
pub use crate::fs::error::MountError;
use crate::fs::kernel::{Ended, Session};
use crate::fs::kind::{CHRONFS, absolute, no_mount_table, remedy, unmount};
use crate::fs::mountinfo::{self, Mounted};
use crate::fs::page_cache::PageCache;
use crate::fs::tree::Tree;

pub use crate::fs::options::{LOG_LEVELS, MountOptions};

/// A mount in this process. Unmounts when dropped.
pub struct Mount {
    session: Session,
    mountpoint: PathBuf,
    log: Arc<DaemonLog>,
}

/// Unmounts a [`Mount`] from another thread.
#[derive(Clone)]
pub struct Unmounter {
    session: Session,
}

impl Mount {
    /// Mounts the bus directory `root` at `mountpoint`. The mount is usable when this returns. A dead mount that a
    /// killed daemon left there is unmounted first.
    ///
    /// # Errors
    /// [`MountError`], with the path and the reason.
    pub fn start(root: &Path, mountpoint: &Path, options: &MountOptions) -> Result<Self, MountError> {
        if let Some(label) = options.labels.first().filter(|_| !Path::new("/sys/fs/selinux").exists()) {
            return Err(MountError::System(format!("mount option {label}: SELinux is not enabled here")));
        }
        refuse_request_timeouts(|path| fs::read_to_string(path))?;
        let root = directory(root)?;
        let turn = CHRONFS.turn(mountpoint)?;
        let mountpoint = turn.mountpoint.clone();
        refuse_overlap(&root, &mountpoint)?;
        raise_descriptor_limit();
        if options.allow_other && !can_act() {
            return Err(MountError::System(format!(
                "{}: with allow_other, root's mount acts with its callers' rights, which needs CAP_SETUID and CAP_SETGID",
                mountpoint.display()
            )));
        }
        let failed = |error: io::Error| MountError::System(format!("{}: cannot open: {error}", root.display()));
        let backing = Backing::open(&root, options.cross_mounts).map_err(failed)?;
        // Only for root; without it each read is a request.
        let log = DaemonLog::new(&mountpoint, options.log);
        let pages = PageCache::start(&log).ok().map(Arc::new);
        let chunk = Session::max_chunk();
        let settings = options.settings_below(&root)?;
        let tree = Tree::new(backing, options.read_only, settings, chunk, pages, Arc::clone(&log))
            .map_err(|errno| failed(io::Error::from_raw_os_error(errno.code())))?;
        let source = options.fs_name.clone().unwrap_or_else(|| root.to_string_lossy().into_owned());
        let session =
            Session::start(tree, &mountpoint, &source, options).map_err(|error| explain(&mountpoint, &error))?;
        let mount = Self { session, mountpoint, log };
        if options.nosymfollow {
            follow_no_links(&mount.mountpoint, options)?;
        }
        mount.log.note(Level::Info, "mount", &format!("mounted, of {}", root.display()));
        Ok(mount)
    }

    /// Where it is mounted, absolute.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// For unmounting from another thread, such as one that receives signals.
    pub fn unmounter(&self) -> Unmounter {
        Unmounter { session: self.session.clone() }
    }

    /// Serves until it is unmounted: by this program, `umount` or `fusermount3 -u`.
    ///
    /// # Errors
    /// [`MountError::Failed`] when the kernel has aborted the connection without an unmount. The dead mount is left
    /// there.
    pub fn run_until_unmounted(self) -> Result<(), MountError> {
        match self.session.wait() {
            Ended::Unmounted => {
                self.log.note(Level::Info, "unmount", "unmounted");
                Ok(())
            }
            Ended::Aborted => Err(MountError::Failed(format!(
                "{}: the kernel has aborted the connection, and a dead mount is left; mount it again, or unmount it \
                 with 'chron-cli umount'",
                self.mountpoint.display()
            ))),
        }
    }

    /// Unmounts: blocked readers get ENOTCONN, and the mountpoint is free when this returns. Files that are still open
    /// are served for a short grace period.
    ///
    /// # Errors
    /// [`MountError::System`] when the kernel or fusermount3 refuses.
    pub fn unmount(&self) -> Result<(), MountError> {
        unmounted(&self.mountpoint, self.session.unmount())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.session.has_ended() {
            let _ = self.session.unmount();
            self.session.wait();
        }
    }
}

impl Unmounter {
    /// As [`Mount::unmount`]; [`Mount::run_until_unmounted`] then returns.
    ///
    /// # Errors
    /// As [`Mount::unmount`].
    pub fn unmount(&self) -> Result<(), MountError> {
        unmounted(self.session.mountpoint(), self.session.unmount())
    }
}

/// Unmounts the chronfs mount at a path, dead or alive, as `chron-cli umount --lazy` does. Its daemon notices,
/// and ends once no file of the mount is open.
///
/// # Errors
/// [`MountError::Failed`] when there is no chronfs mount, [`MountError::System`] when it can't be unmounted.
pub fn unmount_at(mountpoint: &Path) -> Result<(), MountError> {
    let path = absolute(mountpoint)?;
    match mountinfo::at(&path) {
        Ok(Some(mounted)) if mounted.is_of(CHRONFS.subtype) => {
            let result = unmount(&path);
            let owner = mounted.user.filter(|user| result.is_err() && is_another(*user));
            owner.map_or_else(|| unmounted(&path, result), |owner| Err(of_another(&path, owner)))
        }
        Ok(Some(mounted)) => Err(CHRONFS.foreign(&path, &mounted)),
        Ok(None) => Err(MountError::Failed(format!("{}: not mounted", path.display()))),
        Err(error) => Err(no_mount_table(&error)),
    }
}

fn is_another(user: u32) -> bool {
    let own = rustix::process::geteuid();
    !own.is_root() && own.as_raw() != user
}

/// The mount of another user.
fn of_another(path: &Path, owner: u32) -> MountError {
    let path = path.display();
    let (owner, who) =
        if owner == 0 { ("root".to_owned(), "root") } else { (format!("user number {owner}"), "that user or root") };
    MountError::System(format!(
        "{path}: cannot unmount: mounted by another user ({owner}); only {who} can unmount it: sudo umount {path}"
    ))
}

fn unmounted(mountpoint: &Path, result: io::Result<()>) -> Result<(), MountError> {
    result.map_err(|error| MountError::System(format!("{}: cannot unmount: {error}", mountpoint.display())))
}

fn directory(root: &Path) -> Result<PathBuf, MountError> {
    let cannot =
        |error: io::Error| MountError::Failed(format!("{}: cannot open: {error}{}", root.display(), remedy(&error)));
    let path = fs::canonicalize(root).map_err(cannot)?;
    if fs::metadata(&path).map_err(cannot)?.is_dir() {
        Ok(path)
    } else {
        Err(MountError::Failed(format!("{}: not a directory", root.display())))
    }
}

/// Sets nosymfollow once the mount exists: FUSE does not pass it to mount(2).
fn follow_no_links(mountpoint: &Path, options: &MountOptions) -> Result<(), MountError> {
    let mut flags = MountFlags::BIND | MountFlags::NOSYMFOLLOW | MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::RDONLY, options.read_only);
    flags.set(MountFlags::NOEXEC, options.noexec);
    rustix::mount::mount_remount(mountpoint, flags, "").map_err(|error| {
        let remedy = if error == Errno::PERM { "; only root can set it" } else { "" };
        MountError::System(format!("{}: mount option nosymfollow: {error}{remedy}", mountpoint.display()))
    })
}

/// The daemon must never access its own mount, so neither directory may contain the other.
fn refuse_overlap(root: &Path, mountpoint: &Path) -> Result<(), MountError> {
    let id = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    // By identity, not by name: the same directory has other names in bind mounts.
    let contains = |outer: &Path, inner: &Path| inner.ancestors().any(|path| id(path) == id(outer));
    if contains(root, mountpoint) || contains(mountpoint, root) {
        return Err(MountError::Usage(format!(
            "one of {} and {} contains the other; choose a mountpoint outside the bus directory",
            root.display(),
            mountpoint.display()
        )));
    }
    Ok(())
}

/// Readers of `follow.*` wait until a message arrives, and such a read can't be ended early without the program
/// noticing. A kernel with request timeouts would take the wait for a dead daemon, and end the mount for everybody.
fn refuse_request_timeouts(read: impl Fn(&str) -> io::Result<String>) -> Result<(), MountError> {
    for name in ["max_request_timeout", "default_request_timeout"] {
        let value = read(&format!("/proc/sys/fs/fuse/{name}")).unwrap_or_default();
        let value = value.trim();
        if !matches!(value, "" | "0") {
            return Err(MountError::System(format!(
                "fs.fuse.{name} is {value}: the kernel would end the mount once a reader of follow.* has waited for \
                 {value} s; run 'sysctl fs.fuse.{name}=0' first (a mount keeps the value from when it was mounted)"
            )));
        }
    }
    Ok(())
}

/// A queue needs a few descriptors; the usual soft limit of 1024 exists for programs that use select(2).
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    // If it fails there are fewer descriptors, and clean errors when they run out.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn is_ours(mounted: &Mounted) -> bool {
    mounted.is_of(CHRONFS.subtype)
}

/// The mountpoint of the chronfs mount that contains a path; None where there is none, or it can't be determined. The
/// mount itself is not accessed.
pub fn mounted_above(path: &Path) -> Option<PathBuf> {
    let mounted = mountinfo::holding(path).ok().flatten().filter(is_ours)?;
    Some(mounted.mountpoint)
}

/// The path of what is shown at a path in a mount, as far as the mount says what it shows. Whoever mounts can say
/// anything: for messages to people.
pub fn backing_of(path: &Path) -> Option<PathBuf> {
    let mounted = mountinfo::holding(path).ok().flatten().filter(is_ours)?;
    let inside = std::path::absolute(path).ok()?.strip_prefix(&mounted.mountpoint).ok()?.to_path_buf();
    mounted.source.is_absolute().then(|| mounted.source.components().chain(inside.components()).collect())
}

/// Where a directory is shown by a mount of chronfs, as far as the mounts say what they show: for messages to people.
pub fn mount_of(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    let mounts = mountinfo::of(CHRONFS.subtype).ok()?;
    mounts.into_iter().find(|mounted| path.starts_with(&mounted.source)).map(|mounted| mounted.mountpoint)
}

fn explain(mountpoint: &Path, error: &io::Error) -> MountError {
    let remedy = missing(error, Path::new("/dev/fuse").exists(), rustix::process::geteuid().is_root());
    MountError::System(format!("{}: cannot mount: {}{remedy}", mountpoint.display(), error.to_string().trim()))
}

fn missing(error: &io::Error, has_device: bool, is_root: bool) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV) if !has_device => {
            "; there is no /dev/fuse (modprobe fuse; in a container, pass the device in)"
        }
        Some(libc::ENOENT) if !is_root => {
            "; a plain user mounts through fusermount3 (package fuse3), which is not in PATH"
        }
        Some(libc::EACCES | libc::EPERM) => "; /dev/fuse must be readable and writable by this user",
        _ if error.to_string().contains("fusermount3") && error.to_string().contains("not permitted") => {
            "; mounting requires root with CAP_SYS_ADMIN (in a container: --cap-add SYS_ADMIN --device /dev/fuse), or \
             fusermount3 with its setuid bit"
        }
        _ if error.to_string().contains("user_allow_other") => "; or mount without -o allow_other",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_fails_says_what_is_missing() {
        let not_found = io::Error::from_raw_os_error(libc::ENOENT);
        assert!(missing(&not_found, false, false).contains("no /dev/fuse"));
        assert!(missing(&not_found, true, false).contains("package fuse3"), "to a plain user");
        assert_eq!(missing(&not_found, true, true), "", "root does not need it");
        assert!(missing(&io::Error::from_raw_os_error(libc::EACCES), true, false).contains("by this user"));
    }

    #[test]
    fn a_kernel_that_limits_requests_is_refused_with_the_setting_that_does_it() {
        let kernel = |settings: &'static [(&str, &str)]| {
            refuse_request_timeouts(|path| {
                let set = settings.iter().find(|(name, _)| path == format!("/proc/sys/fs/fuse/{name}"));
                set.map(|(_, value)| format!("{value}\n")).ok_or_else(|| io::ErrorKind::NotFound.into())
            })
        };
        // Older kernels have neither.
        kernel(&[]).unwrap();
        kernel(&[("max_request_timeout", "0"), ("default_request_timeout", "0")]).unwrap();
        for settings in [&[("max_request_timeout", "600")], &[("default_request_timeout", "15")]] {
            let (name, value) = settings[0];
            let said = kernel(settings).unwrap_err().to_string();
            assert!(said.contains(&format!("fs.fuse.{name} is {value}:")), "{said}");
            assert!(said.contains(&format!("'sysctl fs.fuse.{name}=0'")), "{said}");
        }
    }
}
