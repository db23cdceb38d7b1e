//! The daemon's log: why requests and background work have failed. Lines go to the `log` crate, whose logger the
//! program chooses, and the last ones are kept for `.chronfs/log`.
//!
//! Names are escaped; payloads are never logged. Lines are rate-limited (`log_limit`); suppressed lines are counted and
//! the count is logged. The lock covers the kept lines and the counters, never a logger.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use log::{Level, LevelFilter};

use crate::clock;
use crate::fs::errno::{Errno, Reason};
use crate::fs::lock;
use crate::fs::log_limit::{Counted, LeftOut, Limit};
use crate::fs::tree::inodes::{Ino, stable_hash};
use crate::printable::printable;
use crate::time::format_time;

/// Number of lines kept.
const KEPT_LINES: usize = 100;
/// Maximum length of a line, in bytes.
const MAX_LINE: usize = 1024;

/// A requested operation, and who asked for it.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) op: &'static str,
    pub(crate) ino: Ino,
    /// In the directory `ino`; empty where the operation is about `ino` itself.
    pub(crate) name: Box<[u8]>,
    pub(crate) uid: u32,
    pub(crate) pid: u32,
}

/// A failed operation.
#[derive(Debug)]
pub(crate) struct Failure<'a> {
    pub(crate) op: &'static str,
    /// Below the root.
    pub(crate) path: &'a Path,
    /// The path of the queue concerned.
    pub(crate) queue: &'a Path,
    pub(crate) errno: Errno,
    /// User and calling thread; None where nobody has asked.
    pub(crate) caller: Option<(u32, u32)>,
}

/// The severity of an error. `is_explained`: whether its reason is known.
fn level(op: &str, errno: Errno, is_explained: bool) -> Level {
    match errno {
        // A handler that panics drops its reply.
        _ if std::thread::panicking() => Level::Error,
        Errno::EIO
        | Errno::EDQUOT
        | Errno::EMFILE
        | Errno::ENFILE
        | Errno::ENOMEM
        | Errno::ENOSPC
        | Errno::EPROTONOSUPPORT
        | Errno::ETIMEDOUT => Level::Warn,
        // With a reason it is a limit; without one it means that there is nothing to read.
        Errno::EAGAIN if is_explained => Level::Warn,
        Errno::EAGAIN | Errno::EINTR | Errno::ENOSYS => Level::Trace,
        Errno::ENOENT if op == "lookup" => Level::Trace,
        _ => Level::Debug,
    }
}

/// The log of one mount.
pub(crate) struct DaemonLog {
    mountpoint: PathBuf,
    level: LevelFilter,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    limit: Limit,
    /// A thread is waiting to log what was suppressed.
    is_awaited: bool,
    is_over: bool,
}

impl DaemonLog {
    pub(crate) fn new(mountpoint: &Path, level: LevelFilter) -> Arc<Self> {
        let mountpoint = mountpoint.to_path_buf();
        Arc::new(Self { mountpoint, level, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Logs this thread's last error, if its level is enabled and there were not too many like it. `place`: the path
    /// concerned, and that of the queue.
    pub(crate) fn refused(self: &Arc<Self>, asked: &Asked, errno: Errno, place: impl FnOnce() -> (PathBuf, PathBuf)) {
        let reason = errno.take_reason();
        if level(asked.op, errno, reason.is_some()) <= self.level {
            let ((mut path, queue), caller) = (place(), Some((asked.uid, asked.pid)));
            if !asked.name.is_empty() {
                path.push(OsStr::from_bytes(&asked.name));
            }
            self.log(&Failure { op: asked.op, path: &path, queue: &queue, errno, caller }, reason);
        }
    }

    /// As [`Self::refused`], for an operation that answers no request.
    pub(crate) fn failed(self: &Arc<Self>, failure: &Failure<'_>) {
        self.log(failure, failure.errno.take_reason());
    }

    fn log(self: &Arc<Self>, failure: &Failure<'_>, reason: Option<Reason>) {
        let Failure { op, path, queue, errno, caller } = *failure;
        let level = level(op, errno, reason.is_some());
        if level > self.level {
            return;
        }
        let shown = || shorten(&printable(&self.mountpoint.join(path).to_string_lossy()), MAX_LINE / 2);
        let uid = caller.map(|(uid, _)| uid);
        let queue = stable_hash(&[queue.as_os_str().as_bytes()]);
        let counted = Counted { level, op, errno: errno.code(), queue, uid };
        let like = || format!("{op} {}: {errno:?}", shown());
        {
            let mut state = lock(&self.state);
            let over = state.limit.end(Instant::now());
            let is_said = state.limit.admit(counted, &like, Instant::now());
            if !is_said {
                self.await_end(&mut state);
            }
            drop(state);
            over.iter().for_each(|left_out| self.tell_left_out(left_out));
            if !is_said {
                return;
            }
        }
        let mut text = like();
        if let Some(reason) = reason {
            text = format!("{text}: {}", shorten(&printable(&reason.to_string()), MAX_LINE / 2));
        }
        if let Some((uid, pid)) = caller {
            text = format!("{text} (uid {uid}, pid {pid})");
        }
        self.tell(level, op, &shown(), &text);
    }

    /// Logs an event that concerns the whole mount.
    pub(crate) fn note(&self, level: Level, op: &'static str, text: &str) {
        if level <= self.level {
            let mountpoint = self.mountpoint.to_string_lossy();
            self.tell(level, op, &printable(&mountpoint), &format!("{}: {}", printable(&mountpoint), printable(text)));
        }
    }

    /// The last lines, and what was suppressed since.
    pub(crate) fn text(&self) -> String {
        let state = lock(&self.state);
        let left_out = state.limit.left_out();
        let rest = left_out.iter().map(|left_out| line(left_out.level, &summary(left_out)));
        state.lines.iter().cloned().chain(rest).collect()
    }

    /// At the end of the mount: logs what was suppressed.
    pub(crate) fn finish(&self) {
        let left_out = {
            let mut state = lock(&self.state);
            state.is_over = true;
            std::mem::take(&mut state.limit).left_out()
        };
        self.changed.notify_all();
        left_out.iter().for_each(|left_out| self.tell_left_out(left_out));
    }

    /// Starts a thread that logs what was suppressed when its window ends.
    fn await_end(self: &Arc<Self>, state: &mut State) {
        if !state.is_awaited && !state.is_over {
            let this = Arc::clone(self);
            // Without a thread it is logged with the next error, or at the end.
            state.is_awaited = crate::fs::spawn("chronfs-log", 256 << 10, move || this.tell_ends()).is_ok();
        }
    }

    fn tell_ends(&self) {
        let mut state = lock(&self.state);
        while let Some(end) = state.limit.next_end().filter(|_| !state.is_over) {
            let rest = end.saturating_duration_since(Instant::now());
            state = self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
            let over = state.limit.end(Instant::now());
            drop(state);
            over.iter().for_each(|left_out| self.tell_left_out(left_out));
            state = lock(&self.state);
        }
        state.is_awaited = false;
    }

    fn tell_left_out(&self, left_out: &LeftOut) {
        let mountpoint = self.mountpoint.to_string_lossy();
        self.tell(left_out.level, "log", &printable(&mountpoint), &summary(left_out));
    }

    /// `op` and `path` are passed as separate fields to loggers that support them.
    fn tell(&self, level: Level, op: &str, path: &str, text: &str) {
        {
            let mut state = lock(&self.state);
            if state.lines.len() >= KEPT_LINES {
                state.lines.pop_front();
            }
            state.lines.push_back(line(level, text));
        }
        log::log!(target: "chronfs", level, op, path; "{text}");
    }
}

fn summary(LeftOut { like, count, .. }: &LeftOut) -> String {
    format!("{count} more like this within a minute: {like}")
}

fn line(level: Level, text: &str) -> String {
    let mut line = Vec::with_capacity(text.len() + 40);
    format_time(clock::now_ns(), &mut line);
    line.extend_from_slice(format!(" {:<5} {text}\n", level.as_str().to_lowercase()).as_bytes());
    String::from_utf8(line).unwrap_or_default()
}

/// At most this many bytes of a text.
fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().find(|(at, c)| at + c.len_utf8() > most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(path: &Path) -> Failure<'_> {
        Failure { op: "read", path, queue: path, errno: Errno::EIO, caller: Some((1000, 77)) }
    }

    fn texts(log: &DaemonLog) -> Vec<String> {
        log.text().lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn a_line_says_what_where_why_and_for_whom() {
        let log = DaemonLog::new(Path::new("/mnt"), LevelFilter::Warn);
        let _ = Errno::EIO.because("damaged\nat offset 64");
        log.failed(&failure(Path::new("q/\u{1b}[31m")));
        log.failed(&Failure { errno: Errno::EACCES, ..failure(Path::new("q")) });
        log.note(Level::Info, "mount", "mounted");
        let expected = "warn  read /mnt/q/\\u{1b}[31m: EIO: damaged\\nat offset 64 (uid 1000, pid 77)";
        assert_eq!(texts(&log), [expected]);
    }

    #[test]
    fn what_is_left_out_is_counted_at_once_and_said_at_the_end() {
        let log = DaemonLog::new(Path::new("/mnt"), LevelFilter::Warn);
        (0..10_000).for_each(|_| log.failed(&failure(Path::new("q"))));
        let expected = "warn  9995 more like this within a minute: read /mnt/q: EIO";
        assert_eq!(texts(&log)[5..], [expected]);
        log.finish();
        assert_eq!(texts(&log)[5..], [expected]);
    }

    #[test]
    fn the_last_lines_are_kept_and_none_is_long() {
        let log = DaemonLog::new(Path::new("/mnt"), LevelFilter::Warn);
        let long = "é".repeat(5000);
        for n in 0..500 {
            let path = PathBuf::from(format!("{n}{long}"));
            let _ = Errno::EIO.because(long.clone());
            log.failed(&Failure { caller: Some((n, 77)), ..failure(&path) });
        }
        let lines = texts(&log);
        assert_eq!(lines.len(), KEPT_LINES);
        assert!(lines[99].starts_with("warn  read /mnt/499é"), "{}", lines[99]);
        assert!(lines.iter().all(|line| line.len() < MAX_LINE + 100));
    }

    #[test]
    fn an_ordinary_error_is_not_a_warning() {
        assert_eq!(level("read", Errno::EIO, false), Level::Warn);
        assert_eq!(level("open", Errno::EAGAIN, true), Level::Warn);
        assert_eq!(level("read", Errno::EAGAIN, false), Level::Trace);
        assert_eq!(level("open", Errno::EACCES, true), Level::Debug);
        assert_eq!(level("open", Errno::ENOENT, true), Level::Debug);
        assert_eq!(level("lookup", Errno::ENOENT, true), Level::Trace);
    }
}
