//! Where the daemon's log goes: to stderr in the foreground; otherwise, and where stderr is the journal, to the journal
//! with its fields, or to syslog. Best effort: what can't be written at once is dropped, so no mount waits for a log.

use std::env;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use chronfs::clock::now_ns;
use chronfs::fs::daemon;
use chronfs::printable::printable;
use chronfs::view::format_time;
use log::kv::Key;
use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Where the journal and syslog listen.
const JOURNAL: &str = "/run/systemd/journal/socket";
const SYSLOG: &str = "/dev/log";
/// The name that lines have in both.
const NAME: &str = "chronfs";
/// Syslog's facility of daemons.
const FACILITY: u8 = 3;

/// Installs the logger, for lines of at least this level.
pub(crate) fn install(level: LevelFilter) {
    let logger = if daemon::is_detached() || is_stderr_the_journal() {
        Logger::System(System::new(Path::new(JOURNAL), Path::new(SYSLOG)))
    } else {
        Logger::Stderr
    };
    // Fails if there is a logger already.
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
}

/// As systemd tells the processes that it starts.
fn is_stderr_the_journal() -> bool {
    let named = env::var("JOURNAL_STREAM").unwrap_or_default();
    rustix::fs::fstat(std::io::stderr()).is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

enum Logger {
    Stderr,
    System(System),
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // From libraries that log too, only warnings and errors.
        metadata.target() == NAME || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        // Ours is escaped already.
        let text = printable(&text);
        let field = |name| record.key_values().get(Key::from_str(name)).map(|value| value.to_string());
        match self {
            Self::Stderr => to_stderr(record.level(), &text),
            Self::System(system) => system.tell(record.level(), &text, field("op"), field("path")),
        }
    }

    fn flush(&self) {}
}

fn to_stderr(level: Level, text: &str) {
    let mut line = Vec::with_capacity(text.len() + 40);
    format_time(now_ns(), &mut line);
    line.extend_from_slice(format!(" {:<5} {text}\n", level.as_str().to_lowercase()).as_bytes());
    let stderr = std::io::stderr();
    // A stopped terminal or a full pipe would block the request that is being served.
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&now)).is_ok_and(|ready| ready > 0) {
        let _ = stderr.lock().write_all(&line);
    }
}

/// The journal, or syslog where there is none.
struct System {
    journal: PathBuf,
    syslog: PathBuf,
    socket: Option<UnixDatagram>,
}

impl System {
    fn new(journal: &Path, syslog: &Path) -> Self {
        let socket = UnixDatagram::unbound().ok().filter(|socket| socket.set_nonblocking(true).is_ok());
        Self { journal: journal.to_owned(), syslog: syslog.to_owned(), socket }
    }

    fn tell(&self, level: Level, text: &str, op: Option<String>, path: Option<String>) {
        let Some(socket) = &self.socket else { return };
        let (severity, pid) = (severity(level), std::process::id());
        let mut entry = format!("PRIORITY={severity}\nSYSLOG_IDENTIFIER={NAME}\nMESSAGE={text}\n");
        for (name, value) in [("CHRONFS_OP", op), ("CHRONFS_PATH", path)] {
            if let Some(value) = value {
                entry += &format!("{name}={}\n", printable(&value));
            }
        }
        // By its path each time: the journal may be restarted.
        if socket.send_to(entry.as_bytes(), &self.journal).is_err() {
            let line = format!("<{}>{NAME}[{pid}]: {text}", FACILITY * 8 + severity);
            let _ = socket.send_to(line.as_bytes(), &self.syslog);
        }
    }
}

/// Syslog's severities.
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_one(logger: &Logger) {
        let (op, path) = ("read", "/mnt/q\nPRIORITY=0");
        let fields = [("op", op), ("path", path)];
        let text = format_args!("read /mnt/q: EIO\nPRIORITY=0");
        let record = Record::builder().target(NAME).level(Level::Warn).args(text).key_values(&fields).build();
        logger.log(&record);
    }

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 1000];
        let len = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }

    #[test]
    fn the_journal_gets_fields_and_syslog_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let [journal, syslog] = ["journal", "log"].map(|name| dir.path().join(name));
        let logger = Logger::System(System::new(&journal, &syslog));
        log_one(&logger);
        let syslogd = UnixDatagram::bind(&syslog).unwrap();
        log_one(&logger);
        let expected = format!("<28>chronfs[{}]: read /mnt/q: EIO\\nPRIORITY=0", std::process::id());
        assert_eq!(received(&syslogd), expected);
        let journald = UnixDatagram::bind(&journal).unwrap();
        log_one(&logger);
        let expected = "PRIORITY=4\nSYSLOG_IDENTIFIER=chronfs\nMESSAGE=read /mnt/q: EIO\\nPRIORITY=0\n\
                        CHRONFS_OP=read\nCHRONFS_PATH=/mnt/q\\nPRIORITY=0\n";
        assert_eq!(received(&journald), expected);
    }

    #[test]
    fn a_log_that_accepts_nothing_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let [journal, syslog] = ["journal", "log"].map(|name| dir.path().join(name));
        let _sleeping = UnixDatagram::bind(&syslog).unwrap();
        let logger = Logger::System(System::new(&journal, &syslog));
        (0..100_000).for_each(|_| log_one(&logger));
    }
}
