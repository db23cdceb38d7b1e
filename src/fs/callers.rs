//! What can be seen of the processes that call: by `/proc`, as far as it shows them.

use std::path::Path;

/// The process of a thread; None where it can't be seen from here.
pub(super) fn process_of(thread: u32) -> Option<u32> {
    if thread == 0 {
        return None;
    }
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// Whether a process has a file open whose path ends like this. Asks for names only, so that it never waits for a file
/// system, such as the one that this process serves.
pub(super) fn has_open(process: u32, path: &Path) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    descriptors.flatten().any(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target.ends_with(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let own = std::process::id();
        let thread = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        assert_eq!((process_of(thread), process_of(0)), (Some(own), None));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some file");
        assert!(!has_open(own, &path));
        let file = std::fs::File::create(&path).unwrap();
        assert!(has_open(own, &path) && has_open(own, Path::new("some file")));
        drop(file);
    }
}
