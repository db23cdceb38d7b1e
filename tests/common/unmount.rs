//! What is mounted, and an end to it.
use std::path::Path;
use std::process::Command;

use super::need;

pub fn is_mounted(mountpoint: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == mountpoint.to_str())
}

/// Detaches whatever is mounted there, without looking into it.
pub fn detach(mountpoint: &Path) {
    for _ in 0..4 {
        if is_mounted(mountpoint) {
            let unmount: &[&str] = if need::is_root() { &["umount", "-l"] } else { &["fusermount3", "-u", "-z"] };
            let _ = Command::new("timeout").arg("10").args(unmount).arg(mountpoint).status();
        }
    }
}
