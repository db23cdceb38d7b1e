//! File systems of a given kind, each in its own image file.
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::need::{Need, require};
use super::process::until;

/// A file system in a file, unmounted and removed at the end whatever happens.
pub struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    #[track_caller]
    pub fn new(kind: &'static str, megabytes: u64) -> Option<Self> {
        if !require(Need::Mkfs(kind)) || !require(Need::FileSystem(kind)) {
            return None;
        }
        let disk = Self { dir: tempfile::tempdir().unwrap() };
        File::create(disk.image()).unwrap().set_len(megabytes << 20).unwrap();
        std::fs::create_dir(disk.mountpoint()).unwrap();
        assert!(Command::new(format!("mkfs.{kind}")).arg("-q").arg(disk.image()).status().unwrap().success());
        assert!(disk.mount(), "cannot mount a {kind} image");
        Some(disk)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn mount(&self) -> bool {
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(self.mountpoint()).output();
        mounted.is_ok_and(|output| output.status.success())
    }

    /// Cuts the power: nothing more reaches the disk. `with_log`: except the journal.
    pub fn cut(&self, with_log: bool) {
        shut_down(&File::open(self.mountpoint()).unwrap(), if with_log { 1 } else { 2 });
    }

    pub fn mount_again(&self) {
        // A killed child's last system calls may still be running.
        until("it can be unmounted", || self.unmount());
        assert!(self.mount(), "it can't be mounted again");
    }

    /// What a file system does after a disk error with `errors=remount-ro`.
    pub fn give_up(&self) {
        let given_up = Command::new("mount").args(["-o", "remount,abort"]).arg(self.mountpoint()).status();
        assert!(given_up.unwrap().success());
    }

    fn unmount(&self) -> bool {
        Command::new("umount").arg(self.mountpoint()).output().is_ok_and(|output| output.status.success())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !self.unmount() {
            let _ = Command::new("umount").arg("-l").arg(self.mountpoint()).output();
        }
    }
}

#[allow(unsafe_code)]
fn shut_down(file: &File, flag: u32) {
    const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
    // SAFETY: the call reads one number through the pointer.
    let done = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(file), FS_IOC_SHUTDOWN, &raw const flag) };
    assert_eq!(done, 0, "shut down: {}", std::io::Error::last_os_error());
}

/// A small file system in memory.
pub struct SmallDisk {
    /// Mounted on its own directory.
    dir: Option<tempfile::TempDir>,
    root: PathBuf,
}

impl SmallDisk {
    #[track_caller]
    pub fn new(size: &str) -> Option<Self> {
        Self::with(&format!("size={size}"))
    }

    /// With these mount options.
    #[track_caller]
    pub fn with(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = Self::over(dir.path(), options)?;
        disk.dir = Some(dir);
        Some(disk)
    }

    /// Mounted over an existing directory.
    #[track_caller]
    pub fn over(root: &Path, options: &str) -> Option<Self> {
        if !require(Need::Admin) {
            return None;
        }
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "chronfs-test"]).arg(root);
        assert!(command.status().unwrap().success());
        Some(Self { dir: None, root: root.to_owned() })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.root).status().unwrap().success());
    }

    /// Uses up the free space; see [`free`].
    pub fn fill(&self) -> PathBuf {
        let path = self.path("fill");
        let mut file = File::create(&path).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.root).status();
    }
}

/// Frees the space that a file takes; at once, though another test's child may just be inheriting it.
pub fn free(ballast: &Path) {
    File::options().write(true).open(ballast).unwrap().set_len(0).unwrap();
}
