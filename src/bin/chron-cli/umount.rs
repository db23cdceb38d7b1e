//! `chron-cli umount`: unmounts, also a dead mount that a killed daemon left.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use chronfs::fs::mount::{mounted_above, unmount_at};
use rustix::fs::{Mode, OFlags, open, statfs};

use crate::UmountArgs;
use crate::failure::{Done, Failure, Outcome};

pub(crate) fn run(args: &UmountArgs) -> Outcome {
    if !args.lazy
        && let Some(writer) = writer_below(&args.dir)
    {
        return Err(Failure::new(format!(
            "{}: busy: {writer} open for writing; --lazy unmounts at once, and the mount's process goes on until that is \
             closed",
            args.dir.display()
        )));
    }
    unmount_at(&args.dir)?;
    Ok(Done::Well)
}

/// A process that has a file of the live mount at `dir` open for writing, as far as this user may see that. Readers are
/// not counted: unmounting ends their reads.
fn writer_below(dir: &Path) -> Option<String> {
    let dir = fs::canonicalize(dir).ok().filter(|dir| mounted_above(dir).as_ref() == Some(dir))?;
    let root = open(&dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mount = file_info(Path::new("/proc/self"), &root.as_raw_fd().to_string(), "mnt_id:", 10).ok()?;
    let own = std::process::id();
    let is_other = |process: &fs::DirEntry| {
        process.file_name().to_str().and_then(|name| name.parse().ok()).is_some_and(|pid: u32| pid != own)
    };
    let writer = fs::read_dir("/proc").ok()?.flatten().filter(is_other).find_map(|process| {
        let process = process.path();
        fs::read_dir(process.join("fd")).ok()?.flatten().find_map(|link| {
            let fd = link.file_name().into_string().ok()?;
            let is_of_mount = file_info(&process, &fd, "mnt_id:", 10).ok()? == mount;
            let is_written = file_info(&process, &fd, "flags:", 8).ok()? & u64::from(OFlags::ACCMODE.bits()) != 0;
            let name = fs::read_to_string(process.join("comm")).ok().filter(|_| is_of_mount && is_written)?;
            let (pid, file) = (process.file_name()?.display(), fs::read_link(link.path()).ok()?);
            Some(format!("process {pid} ({}) has {}", name.trim_end(), file.display()))
        })
    })?;
    // A dead mount has nothing to lose. Asked last: a daemon that hangs does not answer.
    statfs(&dir).ok().map(|_| writer)
}

/// A number in `/proc/PID/fdinfo/FD`.
fn file_info(process: &Path, fd: &str, key: &str, radix: u32) -> io::Result<u64> {
    let info = fs::read_to_string(process.join("fdinfo").join(fd))?;
    let value = info.lines().find_map(|line| u64::from_str_radix(line.strip_prefix(key)?.trim(), radix).ok());
    value.ok_or_else(|| io::ErrorKind::InvalidData.into())
}
