//! What `/proc` shows of calling processes.

use std::path::Path;
use std::time::Duration;

/// What `/proc/<thread>/status` says, without the name.
pub(super) struct Status(String);

impl Status {
    /// Of a thread; None where it is not visible from here: it is gone, or in a foreign pid namespace (0), or hidden by
    /// /proc.
    pub(super) fn of(thread: u32) -> Option<Self> {
        if thread == 0 {
            return None;
        }
        Self::parse(&std::fs::read(format!("/proc/{thread}/status")).ok()?)
    }

    pub(super) fn parse(status: &[u8]) -> Option<Self> {
        // A name may be any bytes, not only text; it is on the first line.
        let start = memchr::memchr(b'\n', status)?;
        std::str::from_utf8(&status[start..]).ok().map(|text| Self(text.to_owned()))
    }

    /// The value of a field, such as `Tgid`.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }
}

/// The process of a thread; None where it is not visible from here.
pub(super) fn process_of(thread: u32) -> Option<u32> {
    Status::of(thread)?.field("Tgid")?.parse().ok()
}

/// Whether a process has a file open whose path ends with `path`. Reads link names only, so that it never waits for a
/// file system, such as the one that this process serves.
pub(super) fn has_open(process: u32, path: &Path) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    descriptors.flatten().any(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target.ends_with(path)))
}

/// Whether a thread that is closing its files does so because it executes another program. Most of what /proc shows of
/// it waits until that is done, and so would we, for whom it waits.
pub(super) fn is_executing(thread: u32) -> bool {
    Status::of(thread).is_some_and(|status| status.field("VmExe") == Some("0 kB"))
}

/// Whether a thread that is closing its files does so because a signal has killed its process; false where that is not
/// visible.
pub(super) fn was_killed(thread: u32) -> bool {
    // One that exits has no memory left.
    let is_exiting = Status::of(thread).is_some_and(|status| status.field("VmExe").is_none());
    let stat = || std::fs::read(format!("/proc/{thread}/stat")).unwrap_or_default();
    is_exiting && exit_code(&stat()).is_some_and(|code| code & 0x7f != 0)
}

/// The exit status as of wait(2) from `/proc/<thread>/stat`: 0 until it exits, and where it may not be seen.
fn exit_code(stat: &[u8]) -> Option<u32> {
    // The name, in parentheses, may be any bytes; what follows is text. The status is the 52nd field of all.
    let after_name = stat.rsplit(|byte| *byte == b')').next()?;
    std::str::from_utf8(after_name).ok()?.split_ascii_whitespace().nth(49)?.parse().ok()
}

/// How often, and at what intervals, a thread is checked for sleeping.
const SLEEP_TRIES: u32 = 100;
const SLEEP_PAUSE: Duration = Duration::from_micros(100);

/// Whether a thread that waits for pages of a file is sending or prefetching them (sendfile, splice, readahead …)
/// rather than touching a mapping; true where it is not visible.
pub(super) fn is_sending(thread: u32) -> bool {
    const SENDING: [libc::c_long; 6] = [
        libc::SYS_sendfile,
        libc::SYS_splice,
        libc::SYS_copy_file_range,
        libc::SYS_readahead,
        libc::SYS_fadvise64,
        libc::SYS_madvise,
    ];
    // A thread that has not gone to sleep yet shows "running". One that touches a mapping goes to sleep.
    for _ in 0..SLEEP_TRIES {
        let call = std::fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap_or_default();
        if !call.starts_with("running") {
            let number = call.split_whitespace().next().and_then(|number| number.parse().ok());
            return number.is_none_or(|number: libc::c_long| SENDING.contains(&number));
        }
        std::thread::sleep(SLEEP_PAUSE);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_seen_whatever_its_name_is() {
        let seen = std::thread::spawn(|| {
            rustix::thread::set_name(c"\xff\n\\Tgid:\t1").unwrap();
            process_of(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs())
        });
        assert_eq!(seen.join().unwrap(), Some(std::process::id()));
    }

    #[test]
    fn an_exit_code_is_found_after_any_name() {
        let fields = |code| format!("7 (a) b (\u{e9}) Z {} {code}\n", ["1"; 48].join(" "));
        assert_eq!(exit_code(fields(9).as_bytes()), Some(9));
        assert_eq!(exit_code(b"7 (short) Z 1 2"), None);
        assert!(!was_killed(std::process::id()));
    }

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
