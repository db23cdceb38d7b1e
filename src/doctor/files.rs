//! What directories hold: leftovers of killed processes, evidence, links, and whatever else does not belong there.

use std::io;
use std::path::Path;

use rustix::fs::FileType;

use super::place::{Directory, Entry};
use super::{ASIDE, Finding, LEFTOVER, Report, Severity};
use crate::bus;
use crate::clock;
use crate::queue::{check_name, layout, parse_segment_name};

/// A temporary file that no lock protects and that is older than this is a leftover: writing one takes microseconds.
const LEFTOVER_AFTER_NS: u64 = 60_000_000_000;

fn finding(severity: Severity, kind: &'static str, path: &Path, detail: &str, remedy: String) -> Finding {
    Finding { severity, kind, path: path.to_path_buf(), detail: detail.to_owned(), remedy, fixable: false }
}

/// The entries of a directory. If it can't be listed, that is reported: an error is never taken for "empty".
fn entries(dir: &Directory, report: &mut Report) -> Vec<Entry> {
    dir.entries().unwrap_or_else(|error| {
        report.unchecked.push(format!("{}: cannot list: {error}", dir.path().display()));
        Vec::new()
    })
}

/// A directory without a queue.
pub(super) fn plain_directory(dir: &Directory, report: &mut Report) {
    for entry in entries(dir, report) {
        let name = entry.text();
        if bus::is_temporary(&name) {
            leftover(&entry, MARKER, &mut report.findings);
        } else if let Some(queue) = bus::removed_name(&entry.name).filter(|_| entry.is_dir()) {
            let detail =
                format!("the removal of {queue} was interrupted: the queue is gone, its files still take space");
            let remedy = format!("finish it: chron-cli rm {}", dir.path().join(queue).display());
            report.findings.push(finding(Severity::Warning, "unfinished-removal", &entry.path, &detail, remedy));
        } else if name == layout::LOCK_FILE {
            let detail = "a writer's lock, but no queue: creating one was interrupted, or its files are gone";
            let remedy =
                format!("'chron-cli create {}' creates a queue here; or remove the directory", dir.path().display());
            report.findings.push(finding(Severity::Warning, "unfinished-queue", &entry.path, detail, remedy));
        }
    }
}

const MARKER: &str = "left by a process that was killed while writing a READY or LEASE; nothing reads it";
const REGISTRATION: &str = "left by a process that was killed while registering a reader; nothing reads it";

/// A temporary file, if it is old enough that no process is writing it any more.
fn leftover(entry: &Entry, detail: &str, findings: &mut Vec<Finding>) {
    let age_ns = clock::now_ns().saturating_sub(entry.modified_ns());
    if entry.is_file() && age_ns > LEFTOVER_AFTER_NS {
        let path = &entry.path;
        let remedy = format!("'chron-cli doctor --fix' moves it into {ASIDE}; or remove it: rm {}", path.display());
        findings.push(Finding { fixable: true, ..finding(Severity::Info, LEFTOVER, path, detail, remedy) });
    }
}

/// A queue's own directory. `has_writer`: a process holds the lock, so temporary files are in use.
pub(super) fn queue_directory(dir: &Directory, has_writer: bool, report: &mut Report) {
    for entry in entries(dir, report) {
        let (path, name) = (&entry.path, entry.text());
        let is_own = name == layout::CONTROL_FILE || name == layout::LOCK_FILE || parse_segment_name(&name).is_some();
        if entry.is_dir() && name == layout::READERS_DIR {
            match dir.below(Path::new(layout::READERS_DIR)) {
                Ok(readers) => readers_directory(&readers, report),
                Err(error) => report.unchecked.push(format!("{}: cannot open: {error}", path.display())),
            }
            continue;
        }
        let findings = &mut report.findings;
        if entry.is_dir() && name == bus::RELAY_DIR {
            // What they say is looked at with the readers.
        } else if entry.is_dir() && name == ASIDE {
            let detail = "files that 'doctor --fix' has moved aside, as they were found";
            let remedy = "keep it until the cause is known; then remove it".to_owned();
            findings.push(finding(Severity::Info, "evidence", path, detail, remedy));
        } else if entry.is_dir() {
            if !name.starts_with('.') {
                let detail =
                    "a directory in a queue's directory: its contents are not shown, and queues in it are not found";
                findings.push(finding(Severity::Info, "foreign", path, detail, "move it elsewhere".to_owned()));
            }
        } else if name == layout::READERS_DIR {
            let detail = "not a directory: readers can't be registered or read";
            let remedy = "move it elsewhere; the next reader creates the directory".to_owned();
            findings.push(finding(Severity::Error, "refused", path, detail, remedy));
        } else if !entry.is_file() {
            refused(&entry, is_own, findings);
        } else if is_own {
            hard_links(&entry, findings);
        } else if bus::is_temporary(&name) {
            leftover(&entry, MARKER, findings);
        } else if name.ends_with(layout::TEMPORARY_SUFFIX) {
            if !has_writer {
                let remedy = "the next writer removes it; 'chron-cli doctor --fix' does so now".to_owned();
                let detail = "left by a writer that was killed while creating the file";
                let fixable = !name.starts_with('.');
                findings.push(Finding { fixable, ..finding(Severity::Info, LEFTOVER, path, detail, remedy) });
            }
        } else if name.ends_with(".damaged") {
            let detail = "a damaged file, kept as it was found when a repaired one replaced it";
            let remedy = "keep it until the cause is known; then remove it".to_owned();
            findings.push(finding(Severity::Info, "evidence", path, detail, remedy));
        } else if name.ends_with(layout::SEGMENT_SUFFIX) {
            let detail = "it ends like a segment, but no segment has such a name: nothing reads it";
            let remedy =
                "if it was renamed, restore its name: nine digits or more and .q; else move it elsewhere".to_owned();
            findings.push(finding(Severity::Warning, "foreign", path, detail, remedy));
        }
    }
}

fn refused(entry: &Entry, is_own: bool, findings: &mut Vec<Finding>) {
    let severity = if is_own { Severity::Error } else { Severity::Warning };
    let what = if entry.kind() == FileType::Symlink { "a symbolic link" } else { "not a regular file" };
    let detail = format!("{what}; chronfs does not follow or open it");
    let remedy =
        if is_own { "move it elsewhere, and replace it by the real one if there is one" } else { "move it elsewhere" };
    findings.push(finding(severity, "refused", &entry.path, &detail, remedy.to_owned()));
}

fn hard_links(entry: &Entry, findings: &mut Vec<Finding>) {
    if let Some(links) = entry.other_links() {
        let path = &entry.path;
        let detail = format!("the file has {links} hard links; it is not written to: it would change under all names");
        let remedy = format!("find the others with 'find DIR -samefile {}', and remove or copy them", path.display());
        findings.push(finding(Severity::Warning, "hard-link", path, &detail, remedy));
    }
}

fn readers_directory(dir: &Directory, report: &mut Report) {
    for entry in entries(dir, report) {
        let (name, findings) = (entry.text(), &mut report.findings);
        if !entry.is_file() {
            refused(&entry, false, findings);
        } else if name.ends_with(layout::TEMPORARY_SUFFIX) {
            leftover(&entry, REGISTRATION, findings);
        } else if [layout::CURSOR_SUFFIX, layout::LOCK_SUFFIX]
            .iter()
            .all(|suffix| name.strip_suffix(suffix).is_none_or(|name| check_name(name).is_err()))
        {
            let detail = "no reader can have such a name: nothing reads it";
            findings.push(finding(Severity::Info, "foreign", &entry.path, detail, "move it elsewhere".to_owned()));
        } else {
            hard_links(&entry, findings);
        }
    }
}

/// Moves a leftover into a directory beside it. Nothing is deleted or replaced.
pub(super) fn move_aside(root: &Directory, path: &Path) -> io::Result<()> {
    let relative = path.strip_prefix(root.path()).map_err(io::Error::other)?;
    let (Some(parent), Some(name)) = (relative.parent(), relative.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = root.below(parent)?;
    let entry = dir.look_at(name)?;
    if !entry.is_file() {
        return Err(io::Error::other("it has been replaced meanwhile"));
    }
    // A queue has one directory for it.
    match parent.parent().filter(|_| parent.ends_with(layout::READERS_DIR)) {
        Some(queue) => dir.move_aside(&entry, &root.below(queue)?),
        None => dir.move_aside(&entry, &dir),
    }
}
