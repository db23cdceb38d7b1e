//! Our own directories, and everything that must not outlive us: files, mounts, the peers' shared memory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::Result;

const PREFIX: &str = "chronfs-bench.";
/// Prefix of what peers create outside the directories; they allow no other characters.
const SHARED_PREFIX: &str = "chronfs_bench_";
/// Memory as files, where there is such a thing.
const MEMORY: &str = "/dev/shm";

/// Removed when dropped, after unmounting everything below it.
pub(crate) struct Scratch {
    /// On the file system that was asked for.
    pub(crate) dir: PathBuf,
    /// In memory, for floors and for peers that persist nothing.
    pub(crate) memory: PathBuf,
}

impl Scratch {
    pub(crate) fn new(parent: &Path) -> Result<Self> {
        let memory = if Path::new(MEMORY).is_dir() { Path::new(MEMORY) } else { parent };
        remove_of_the_dead(parent)?;
        remove_of_the_dead(memory)?;
        let name = format!("{PREFIX}{}", std::process::id());
        let scratch = Self { dir: parent.join(&name), memory: memory.join(format!("{name}.memory")) };
        std::fs::create_dir_all(&scratch.dir).map_err(|e| format!("{}: cannot make it: {e}", scratch.dir.display()))?;
        std::fs::create_dir_all(&scratch.memory)?;
        let (dir, memory) = (scratch.dir.clone(), scratch.memory.clone());
        let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                remove(&dir);
                remove(&memory);
                remove_shared(std::process::id());
                std::process::exit(128 + signal);
            }
        });
        Ok(scratch)
    }

    /// An empty directory for one measurement on each side.
    pub(crate) fn fresh(&self) -> Result<(PathBuf, PathBuf)> {
        let (dir, memory) = (self.dir.join("run"), self.memory.join("run"));
        for dir in [&dir, &memory] {
            remove(dir);
            std::fs::create_dir_all(dir)?;
        }
        Ok((dir, memory))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.dir);
        remove(&self.memory);
        remove_shared(std::process::id());
    }
}

/// What the names of peers' shared memory begin with.
pub(crate) fn shared_prefix(pid: u32) -> String {
    format!("{SHARED_PREFIX}{pid}_")
}

/// Removes shared memory that a peer has left.
pub(crate) fn remove_shared(pid: u32) {
    for entry in std::fs::read_dir(MEMORY).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&shared_prefix(pid)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Removes what killed runs have left.
fn remove_of_the_dead(parent: &Path) -> Result<()> {
    for entry in std::fs::read_dir(parent).map_err(|e| format!("{}: {e}", parent.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let rest = name.strip_prefix(PREFIX).or_else(|| name.strip_prefix(SHARED_PREFIX));
        let pid = rest.and_then(|rest| rest.split(['.', '_']).next()?.parse::<u32>().ok());
        if let Some(pid) = pid.filter(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            remove(&parent.join(name));
            remove_shared(pid);
        }
    }
    Ok(())
}

/// Removes a directory, mounts below it first.
pub(crate) fn remove(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut below: Vec<&str> =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| Path::new(at).starts_with(dir)).collect();
    below.sort_unstable_by_key(|at| std::cmp::Reverse(at.len()));
    for at in below {
        for command in [&["umount", "-l"], &["fusermount3", "-uz"]] {
            let mut command = Command::new(command[0]).args(&command[1..]).arg(at).stderr(Stdio::null()).spawn();
            if command.as_mut().is_ok_and(|child| child.wait().is_ok_and(|status| status.success())) {
                break;
            }
        }
    }
    let still = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    // Never reach through a mount into what it shows.
    if !still.lines().filter_map(|line| line.split(' ').nth(1)).any(|at| Path::new(at).starts_with(dir)) {
        let _ = std::fs::remove_dir_all(dir);
    }
}
