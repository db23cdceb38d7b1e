//! How a subcommand ends: done, done with problems found, or failed.
//!
//! A failure is one line on stderr, `chron-cli: <path>: <cause>; <remedy>`, and exit code 1 (`doctor`: 4). A closed
//! pipe on stdout is not a failure: the reader has seen enough, so the program exits at once, silently, with 0.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use chronfs::Queue;
use chronfs::fs::mount;
use chronfs::printable::printable;
use chronfs::queue::{Error, LockHolder, Settings};
use chronfs::settings;

/// Exit code of a `doctor` that could not check something, as of fsck.
const UNCHECKED: u8 = 4;

/// What a subcommand returns. `Ok(Done::Problems)` has been explained on stderr already.
pub(crate) type Outcome = Result<Done, Failure>;

/// How a subcommand that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// Exit code 0.
    Well,
    /// Exit code 1: it ran to the end, and found problems.
    Problems,
    /// Exit code 4, of `doctor`: no problems in what could be checked, but something could not.
    Unchecked,
}

impl From<Done> for ExitCode {
    fn from(done: Done) -> Self {
        match done {
            Done::Well => Self::SUCCESS,
            Done::Problems => Self::FAILURE,
            Done::Unchecked => Self::from(UNCHECKED),
        }
    }
}

/// Why a subcommand could not go on.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody reads the output any more.
    ClosedPipe,
    /// For people: path, cause, remedy.
    Message(String),
    /// The same, where the command line is wrong.
    Usage(String),
    /// The help has been printed, because it was wanted or because nothing was asked for.
    Help { wanted: bool },
    /// `doctor` can't check what it was asked to.
    Unchecked(String),
    /// This signal asked it to stop.
    Stopped(i32),
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::Message(message.into())
    }

    /// `<path>: cannot <doing>: <system error>`.
    pub(crate) fn io(path: &Path, doing: &str) -> impl FnOnce(io::Error) -> Self {
        let start = format!("{}: cannot {doing}", path.display());
        move |e| Self::Message(format!("{start}: {e}{}", remedy(&e)))
    }

    /// For people; empty where there is nothing left to say.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::ClosedPipe | Self::Help { .. } | Self::Stopped(_) => "",
            Self::Message(text) | Self::Usage(text) | Self::Unchecked(text) => text,
        }
    }

    /// Prints it on stderr.
    pub(crate) fn tell(&self) {
        if !self.text().is_empty() {
            note(self.text());
        }
    }

    /// The exit code; does not return where a signal asked it to stop.
    pub(crate) fn end(self) -> ExitCode {
        match self {
            Self::ClosedPipe | Self::Help { wanted: true } => ExitCode::SUCCESS,
            Self::Help { wanted: false } | Self::Usage(_) => ExitCode::from(2),
            Self::Message(_) => ExitCode::FAILURE,
            Self::Unchecked(_) => ExitCode::from(UNCHECKED),
            Self::Stopped(signal) => {
                // Does not return for a signal that ends a process.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
                ExitCode::FAILURE
            }
        }
    }

    /// An error while writing to stdout.
    pub(crate) fn stdout(e: io::Error) -> Self {
        if e.kind() == io::ErrorKind::BrokenPipe {
            Self::ClosedPipe
        } else {
            Self::Message(format!("standard output: cannot write: {e}"))
        }
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        match e {
            Error::InvalidSetting(_) => Self::Usage(e.to_string()),
            _ => Self::Message(explained(&e)),
        }
    }
}

/// The error, and what to do about it with this command.
pub(crate) fn explained(e: &Error) -> String {
    let remedy = match e {
        Error::Io { source, .. } => remedy(source).to_owned(),
        Error::NotAQueue { path, .. } => of_mount(path).unwrap_or_else(|| of_other_directory(path)),
        Error::Locked { path, holder: LockHolder::Process { pid, .. } }
            if let Some(mountpoint) = mount_of(*pid, path) =>
        {
            return format!(
                "{}: the mount at {} is the queue's writer, for a program that has an append file open; close \
                 that file, or append through the mount",
                path.display(),
                mountpoint.display()
            );
        }
        Error::NoSuchReader { .. } => "; 'chron-cli readers QUEUE' lists the registered readers".to_owned(),
        Error::TooLarge { path, len, .. } => of_too_large(path, Some(*len)),
        Error::QueueFull { path, .. } => of_full(path),
        Error::TimestampInPast { .. } => "; append it without its timestamp, or to a new queue".to_owned(),
        Error::TimestampInFuture { .. } => "; correct it, or allow more with --max-ahead".to_owned(),
        Error::Damaged { path, .. } if is_cursor(path) => REPAIR_READER.to_owned(),
        _ => String::new(),
    };
    format!("{e}{remedy}")
}

/// What lets a queue take a message of this many bytes, or of more than it takes now.
pub(crate) fn of_too_large(queue: &Path, len: Option<usize>) -> String {
    let takes_it = |segment_size, len| Settings { segment_size, ..Settings::default() }.max_payload_len() >= len;
    let size = match len {
        Some(len) => (0..=10).find(|shift| takes_it(1 << 20 << shift, len)).map(|shift| format!("{}MiB", 1 << shift)),
        None => Some("SIZE (up to 1GiB)".to_owned()),
    };
    match size {
        Some(size) => format!("; to let it take more: chron-cli set {} --segment-size {size}", queue.display()),
        None => "; no queue takes more than 1GiB; split it".to_owned(),
    }
}

/// What makes room in a full queue.
fn of_full(queue: &Path) -> String {
    let more = format!("raise the limit: chron-cli set {} --max-bytes SIZE", queue.display());
    match Queue::open(queue).map(|queue| queue.settings()) {
        Ok(settings) if !settings::fills_for_good(&settings) => {
            format!("; let readers catch up ('chron-cli retain --dry-run' names those that keep most), or {more}")
        }
        _ => format!("; retention removes nothing from it: set a smaller --retain-bytes, or {more}"),
    }
}

/// What to do about a damaged cursor file.
pub(crate) const REPAIR_READER: &str = ": 'chron-cli readers QUEUE seek NAME POS'";

fn is_cursor(path: &Path) -> bool {
    path.parent().and_then(Path::file_name).is_some_and(|name| name == chronfs::queue::layout::READERS_DIR)
}

/// What to do about a path that does not hold a queue.
fn of_other_directory(path: &Path) -> String {
    if path.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        return "; create one with 'chron-cli create'".to_owned();
    }
    let queues = some_queues_below(path);
    if queues.is_empty() { String::new() } else { format!("; queues lie below it: {}", queues.join(", ")) }
}

/// The paths of a few queues below a directory, whatever it holds; the last one is an ellipsis if there are more.
fn some_queues_below(path: &Path) -> Vec<String> {
    const MOST_DIRECTORIES: usize = 100;
    const MOST_QUEUES: usize = 3;
    let mut queues = Vec::new();
    let mut waiting = VecDeque::from([path.to_path_buf()]);
    for _ in 0..MOST_DIRECTORIES {
        let Some(dir) = waiting.pop_front() else { break };
        if queues.len() == MOST_QUEUES {
            queues.push("...".to_owned());
            break;
        }
        if Queue::exists(&dir).unwrap_or(false) {
            queues.push(dir.display().to_string());
            continue;
        }
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        let mut below: Vec<_> = entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        below.sort();
        waiting.extend(below);
    }
    queues
}

/// The mount by which a process writes to a queue, if it does.
fn mount_of(pid: u32, queue: &Path) -> Option<PathBuf> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let is_mount = words.next()?.contains("mount.") || words.any(|word| word == "mount");
    is_mount.then(|| mount::mount_of(queue)).flatten()
}

/// The command-line parser's error: help is printed as it is, anything else becomes one line.
pub(crate) fn of_usage(error: clap::Error) -> Failure {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match error.print() {
            Ok(()) => Failure::Help { wanted: true },
            Err(e) => Failure::stdout(e),
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Nothing can be done when stderr is gone.
            let _ = error.print();
            Failure::Help { wanted: false }
        }
        _ => Failure::Usage(usage_line(&error.render().to_string())),
    }
}

/// The parser's paragraphs (what is wrong, tips, the usage) on one line.
fn usage_line(text: &str) -> String {
    let paragraphs = text.trim_end().split("\n\n").filter(|paragraph| !paragraph.starts_with("For more information"));
    let join = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = paragraphs.map(join).collect::<Vec<_>>().join("; ");
    line.trim_start_matches("error: ").replace("; Usage: ", "; usage: ")
}

/// What to do where a path lies in a mount, which shows queues but is not one.
fn of_mount(path: &Path) -> Option<String> {
    let mountpoint = mount::mounted_above(path)?;
    let instead = match mount::backing_of(path) {
        Some(path) => format!("name {} instead", path.display()),
        None => "use the directory that is mounted there".to_owned(),
    };
    Some(format!("; it lies in the mount {}: read its files, or {instead}", mountpoint.display()))
}

/// Refuses a path in a mount to a command that searches for queues.
pub(crate) fn refuse_mount(root: &Path) -> Result<(), Failure> {
    let refuse = |remedy| Err(Failure::new(format!("{}: no queues here{remedy}", root.display())));
    of_mount(root).map_or(Ok(()), refuse)
}

/// What to do about a root that can't be listed.
pub(crate) fn root_remedy(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::NotFound => "; name a queue, or a directory with queues below it",
        io::ErrorKind::NotADirectory => "; name a queue's directory, or one with queues below it",
        io::ErrorKind::NotConnected => "; it is a dead mount: remove it with 'chron-cli umount', or mount it again",
        _ => remedy(e),
    }
}

/// What to do about a system error, where that does not depend on the operation.
fn remedy(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::PermissionDenied => "; run it as a user with permission, or change the permissions",
        io::ErrorKind::ReadOnlyFilesystem => "; choose a writable place",
        io::ErrorKind::StorageFull => "; free some space and try again",
        _ => "",
    }
}

/// A note on stderr. Nothing can be done when stderr is gone.
pub(crate) fn note(text: &str) {
    use io::Write as _;
    let _ = writeln!(io::stderr(), "chron-cli: {}", one_line(text));
}

/// [`printable`], with system errors worded as the C library does, without the standard library's "(os error 2)".
pub(crate) fn one_line(text: &str) -> String {
    printable(&without_error_number(text)).into_owned()
}

fn without_error_number(text: &str) -> String {
    let Some((before, after)) = text.split_once(" (os error ") else { return text.to_owned() };
    match after.split_once(')') {
        Some((number, rest)) if number.bytes().all(|b| b.is_ascii_digit()) => format!("{before}{rest}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_and_free_of_escape_sequences() {
        assert_eq!(one_line("/tmp/a\nb\u{1b}[31m: not a queue"), "/tmp/a\\nb\\u{1b}[31m: not a queue");
    }

    #[test]
    fn wrong_usage_is_reported_on_one_line() {
        let text = "error: the following required arguments were not provided:\n  <ROOT>\n  <DIR>\n\n\
                    Usage: chron-cli mount <ROOT> <DIR>\n\nFor more information, try '--help'.\n";
        let line =
            "the following required arguments were not provided: <ROOT> <DIR>; usage: chron-cli mount <ROOT> <DIR>";
        assert_eq!(usage_line(text), line);
    }

    #[test]
    fn system_errors_have_no_numbers() {
        assert_eq!(
            one_line("q: cannot open it: No such file (os error 2); make it"),
            "q: cannot open it: No such file; make it"
        );
        assert_eq!(one_line("a (os error x): not a queue"), "a (os error x): not a queue");
    }
}
