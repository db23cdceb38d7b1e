//! Problems below a bus directory, and what to do about them: `chron-cli doctor`.
//!
//! Examining takes no lock and changes no byte. Repairing does what the next writer would do by itself (rebuild the
//! control block, remove the half-written end and the temporary files of a killed one), and only where there is no
//! writer; and it moves aside leftovers of killed processes that no writer removes. It never deletes or resets anything
//! that may still be needed; what can't be repaired safely is reported with the command that does it.
//!
//! Severities: an *error* is damage, messages may be lost; a *warning* needs attention; an *info* is good to know. Only
//! errors and warnings are problems.

mod files;
mod place;
mod queue;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::bus::{self, LeaseState};
use crate::queue::{Dir, Queue, Role, WriterOptions, is_queue, layout, parse_segment_name};
use crate::report::human_span_ms;
use place::{Directory, Entry};

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Needs attention.
    Warning,
    /// Damage.
    Error,
}

impl Severity {
    /// `info`, `warning` or `error`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Its kind: a stable word for scripts, such as `gap` or `dead-writer`.
    pub kind: &'static str,
    /// The file or directory.
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
    /// What is wrong, for people.
    pub detail: String,
    /// What to do about it, for people.
    pub remedy: String,
    /// Whether [`Options::fix`] repairs it.
    pub fixable: bool,
}

fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Verify every record's checksum, too; otherwise messages are not read.
    pub deep: bool,
    /// Repair what is safe to repair.
    pub fix: bool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The directory that was examined.
    #[serde(serialize_with = "as_text")]
    pub root: PathBuf,
    /// How many queues were examined.
    pub checked: u64,
    /// What was found; with [`Options::fix`], what remains. By path.
    pub findings: Vec<Finding>,
    /// What was repaired.
    pub fixed: Vec<Finding>,
    /// What could not be checked, and why.
    pub unchecked: Vec<String>,
}

impl Report {
    /// Adds another report.
    pub(crate) fn add(&mut self, other: Self) {
        self.checked += other.checked;
        self.findings.extend(other.findings);
        self.unchecked.extend(other.unchecked);
    }

    pub(crate) fn sort(&mut self) {
        self.findings.sort_by(|a, b| a.path.cmp(&b.path).then(b.severity.cmp(&a.severity)));
    }

    /// Whether there are findings that need attention.
    pub fn has_problems(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity > Severity::Info)
    }
}

/// Progress of a deep examination.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The queue that is being read.
    pub queue: &'a Path,
    /// Bytes of segment files that have been read, of all queues.
    pub done_bytes: u64,
    /// Bytes of all segment files, of all queues.
    pub total_bytes: u64,
}

/// Examines every queue at and below `root`. `progress` is called now and then during a deep examination.
///
/// ```
/// use chronfs::doctor::{self, Options};
/// # let dir = tempfile::tempdir()?;
/// # chronfs::Queue::create(dir.path().join("q"), &chronfs::queue::Settings::default())?;
/// let report = doctor::examine(dir.path(), Options::default(), &mut |_| {})?;
/// assert_eq!((report.checked, report.has_problems()), (1, false));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// If `root` itself can't be listed. What else can't be checked is in [`Report::unchecked`].
pub fn examine(root: &Path, options: Options, progress: &mut dyn FnMut(Progress<'_>)) -> std::io::Result<Report> {
    let mut report = Report { root: root.to_path_buf(), ..Report::default() };
    let root = Directory::root(root)?;
    let tree = Tree::walk(&root, &mut report)?;
    for relative in &tree.plain {
        let Some(dir) = open(&root, relative, &mut report) else { continue };
        let before = report.findings.len();
        files::plain_directory(&dir, &mut report);
        endpoint(&dir, &mut report.findings);
        if options.fix {
            for finding in report.findings.split_off(before) {
                let is_fixed = finding.fixable && move_aside(&root, &finding.path, &mut report.unchecked);
                let list = if is_fixed { &mut report.fixed } else { &mut report.findings };
                list.push(finding);
            }
        }
    }
    let total_bytes = tree.queues.values().sum();
    let mut done_bytes = 0;
    for (relative, bytes) in &tree.queues {
        let Some(dir) = open(&root, relative, &mut report) else { continue };
        let mut step = |done| progress(Progress { queue: dir.path(), done_bytes: done_bytes + done, total_bytes });
        let before = report.findings.len();
        queue::examine(&dir, options.deep, &mut step, &mut report);
        if options.fix && report.findings[before..].iter().any(|finding| finding.fixable) {
            fix(&root, &dir, options.deep, before, &mut report);
        }
        report.checked += 1;
        done_bytes += bytes;
    }
    report.sort();
    Ok(report)
}

/// Examines one directory, not those below it, without reading messages. `holds_queue`: whether it is a queue's.
pub(crate) fn examine_one(dir: Dir, holds_queue: bool) -> Report {
    let mut report = Report::default();
    let dir = Directory::opened(dir);
    if holds_queue {
        queue::examine(&dir, false, &mut |_| {}, &mut report);
        report.checked = 1;
    } else {
        files::plain_directory(&dir, &mut report);
        endpoint(&dir, &mut report.findings);
    }
    report
}

/// The kind of finding that is moved aside.
const LEFTOVER: &str = "leftover";
/// The directory that leftovers are moved into.
pub(crate) const ASIDE: &str = ".aside";

/// Moves leftovers aside, opens and closes a writer, which repairs what else it can, and examines again.
fn fix(root: &Directory, dir: &Directory, deep: bool, from: usize, report: &mut Report) {
    let before = report.findings.split_off(from);
    let is_aside = |finding: &Finding| finding.fixable && finding.kind == LEFTOVER && !is_writers(&finding.path);
    for leftover in before.iter().filter(|finding| is_aside(finding)) {
        move_aside(root, &leftover.path, &mut report.unchecked);
    }
    let is_for_writer = |finding: &Finding| finding.fixable && !is_aside(finding);
    // It holds the lock, so no other process is writing.
    if before.iter().any(is_for_writer)
        && let Err(error) = dir.queue().and_then(|queue| queue.writer_with(&for_role(&queue)).map(drop))
    {
        report.unchecked.push(format!("{error} (not repaired)"));
    }
    let unchecked = report.unchecked.len();
    queue::examine(dir, deep, &mut |_| {}, report);
    report.unchecked.truncate(unchecked);
    let is_left =
        |finding: &Finding| report.findings[from..].iter().any(|f| f.kind == finding.kind && f.path == finding.path);
    let fixed: Vec<Finding> = before.into_iter().filter(|finding| finding.fixable && !is_left(finding)).collect();
    report.fixed.extend(fixed);
}

/// Whether the next writer removes this leftover.
fn is_writers(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let in_readers = path.parent().and_then(Path::file_name).is_some_and(|name| name == layout::READERS_DIR);
    !in_readers && !bus::is_temporary(&name)
}

/// Whether it could be moved.
fn move_aside(root: &Directory, path: &Path, unchecked: &mut Vec<String>) -> bool {
    let moved = files::move_aside(root, path);
    if let Err(error) = &moved {
        unchecked.push(format!("{}: cannot move it aside: {error} (not repaired)", path.display()));
    }
    moved.is_ok()
}

/// Opens a directory below the root; None, with an entry in the report, if it can't.
fn open(root: &Directory, relative: &Path, report: &mut Report) -> Option<Directory> {
    let error = match root.below(relative) {
        Ok(dir) => return Some(dir),
        // Removed during the examination.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => error,
    };
    report.unchecked.push(unopened(&root.path().join(relative), &error));
    None
}

/// Why a directory was not checked.
pub(crate) fn unopened(path: &Path, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::CrossesDevices {
        format!("{0}: another file system is mounted there; if it holds queues: chron-cli doctor {0}", path.display())
    } else {
        format!("{}: cannot open: {error}", path.display())
    }
}

/// The directories below a root, by their paths from there.
#[derive(Default)]
struct Tree {
    /// Queues, with the bytes of their segment files.
    queues: BTreeMap<PathBuf, u64>,
    plain: Vec<PathBuf>,
}

impl Tree {
    fn walk(root: &Directory, report: &mut Report) -> io::Result<Self> {
        let mut tree = Self::default();
        let mut waiting = vec![PathBuf::new()];
        while let Some(relative) = waiting.pop() {
            let Some(dir) = open(root, &relative, report) else { continue };
            let entries = match dir.entries() {
                Ok(entries) => entries,
                Err(error) if relative.as_os_str().is_empty() => return Err(error),
                Err(error) => {
                    report.unchecked.push(format!("{}: cannot list: {error}", dir.path().display()));
                    continue;
                }
            };
            let exists = match is_queue(dir.dir()) {
                Ok(exists) => exists,
                Err(error) => {
                    report.unchecked.push(error.to_string());
                    continue;
                }
            };
            if exists {
                tree.queues.insert(relative, segment_bytes(&entries));
                continue;
            }
            let is_removed = |entry: &&Entry| bus::removed_name(&entry.name).is_some();
            let directories =
                entries.iter().filter(|entry| entry.is_dir() && entry.name != ASIDE && !is_removed(entry));
            waiting.extend(directories.map(|entry| relative.join(&entry.name)));
            tree.plain.push(relative);
        }
        Ok(tree)
    }
}

fn segment_bytes(entries: &[Entry]) -> u64 {
    let segments = entries.iter().filter(|entry| entry.name.to_str().and_then(parse_segment_name).is_some());
    segments.map(Entry::len).sum()
}

/// READY and LEASE of a directory, queue or not yet.
fn endpoint(dir: &Directory, findings: &mut Vec<Finding>) {
    let marker = |kind, name: &str, detail: String| Finding {
        severity: Severity::Warning,
        kind,
        path: dir.path().join(name),
        detail,
        remedy: "move it elsewhere".to_owned(),
        fixable: false,
    };
    let ready = match bus::ready_in(dir.dir()) {
        Ok(ready) => ready.is_some(),
        Err(error) => {
            findings.push(marker("bad-marker", bus::READY_FILE, error.to_string()));
            false
        }
    };
    let lease = match bus::lease_in(dir.dir()) {
        Ok(None) => return,
        Ok(Some(lease)) => lease,
        Err(error) => {
            findings.push(marker("bad-marker", bus::LEASE_FILE, error.to_string()));
            return;
        }
    };
    let holder = lease.pid.map_or_else(|| "its holder".to_owned(), |pid| format!("process {pid}"));
    let still_ready = if ready { ", and the endpoint is still marked as READY" } else { "" };
    let lease_path = dir.path().join(bus::LEASE_FILE);
    match lease.state {
        LeaseState::Live => {}
        LeaseState::Expired => {
            let age = human_span_ms(lease.age_ms.unwrap_or(0));
            let ttl = human_span_ms(lease.ttl_ms);
            let detail = format!("{holder} renewed it {age} ago, for {ttl}{still_ready}");
            let mut finding = marker("expired-lease", bus::LEASE_FILE, detail);
            finding.remedy = format!("start its holder again, or remove {}", lease_path.display());
            findings.push(finding);
        }
        LeaseState::Unknown => {
            let detail = format!("it was not written since this machine was booted, or not by chronfs{still_ready}");
            let mut finding = marker("unknown-lease", bus::LEASE_FILE, detail);
            finding.severity = if ready { Severity::Warning } else { Severity::Info };
            finding.remedy = format!("start the holder of the endpoint, or remove {}", lease_path.display());
            findings.push(finding);
        }
    }
}

/// Options for opening the writer whatever the queue's role is: it only repairs.
fn for_role(queue: &Queue) -> WriterOptions {
    WriterOptions { as_standby: matches!(queue.role(), Role::Standby { .. }), ..WriterOptions::default() }
}
