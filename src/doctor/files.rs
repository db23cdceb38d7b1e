//! What lies in directories: leftovers of killed processes, evidence, links, and whatever else does not belong there.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use super::{ASIDE, Finding, LEFTOVER, Severity};
use crate::bus;
use crate::clock;
use crate::queue::{check_name, layout, parse_segment_name};

/// A file in the making that no lock protects, and that is older than this, has been left behind: making one takes
/// microseconds.
const LEFTOVER_AFTER_S: u64 = 60;

fn finding(severity: Severity, kind: &'static str, path: &Path, detail: &str, remedy: String) -> Finding {
    Finding { severity, kind, path: path.to_path_buf(), detail: detail.to_owned(), remedy, fixable: false }
}

/// What lies in a directory: path, name (as far as it is UTF-8), what it is.
fn entries(dir: &Path) -> impl Iterator<Item = (PathBuf, String, Metadata)> {
    fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| {
        let path = entry.path();
        let metadata = fs::symlink_metadata(&path).ok()?;
        Some((path, entry.file_name().to_string_lossy().into_owned(), metadata))
    })
}

/// A directory that holds no queue.
pub(super) fn plain_directory(dir: &Path, findings: &mut Vec<Finding>) {
    for (path, name, metadata) in entries(dir) {
        if bus::is_temporary(&name) {
            left_behind(&path, &metadata, MARKER, findings);
        } else if name == layout::LOCK_FILE {
            let detail = "a writer's lock, but no queue: making one was interrupted, or its files are gone";
            let remedy = format!("'chron-cli create {}' makes a queue here; or remove the directory", dir.display());
            findings.push(finding(Severity::Warning, "unfinished-queue", &path, detail, remedy));
        }
    }
}

const MARKER: &str = "whoever was writing a READY or LEASE was killed meanwhile; nobody reads this file";
const REGISTRATION: &str = "left by a process that was killed while registering a reader; nobody reads it";

/// A file in the making, if it is old enough that nobody is making it any more.
fn left_behind(path: &Path, metadata: &Metadata, detail: &str, findings: &mut Vec<Finding>) {
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let age = modified.map(|time| Duration::from_nanos(clock::now_ns()).saturating_sub(time));
    if metadata.is_file() && age.is_some_and(|age| age.as_secs() > LEFTOVER_AFTER_S) {
        let remedy = format!("'chron-cli doctor --fix' moves it into {ASIDE}; or remove it: rm {}", path.display());
        findings.push(Finding { fixable: true, ..finding(Severity::Info, LEFTOVER, path, detail, remedy) });
    }
}

/// A queue's own directory. `has_writer`: somebody holds the lock, so that temporary files are in use.
pub(super) fn queue_directory(dir: &Path, has_writer: bool, findings: &mut Vec<Finding>) {
    for (path, name, metadata) in entries(dir) {
        let kind = metadata.file_type();
        let is_own = name == layout::CONTROL_FILE || name == layout::LOCK_FILE || parse_segment_name(&name).is_some();
        if kind.is_dir() && name == layout::READERS_DIR {
            readers_directory(&path, findings);
        } else if kind.is_dir() && name == ASIDE {
            let detail = "what 'doctor --fix' has moved out of the way, as it was found";
            let remedy = "keep it for as long as somebody may want to know why; then remove it".to_owned();
            findings.push(finding(Severity::Info, "evidence", &path, detail, remedy));
        } else if kind.is_dir() {
            if !name.starts_with('.') {
                let detail =
                    "a directory in a queue's directory: whatever it holds is not shown, and no queue in it is found";
                findings.push(finding(Severity::Info, "foreign", &path, detail, "move it elsewhere".to_owned()));
            }
        } else if name == layout::READERS_DIR {
            let detail = "no directory: readers can't be registered or looked at";
            let remedy = "move it elsewhere; the next reader makes a directory".to_owned();
            findings.push(finding(Severity::Error, "refused", &path, detail, remedy));
        } else if !kind.is_file() {
            refused(&path, &metadata, is_own, findings);
        } else if is_own {
            hard_links(&path, &metadata, findings);
        } else if bus::is_temporary(&name) {
            left_behind(&path, &metadata, MARKER, findings);
        } else if name.ends_with(layout::TEMPORARY_SUFFIX) {
            if !has_writer {
                let remedy = "the next writer clears it away; 'chron-cli doctor --fix' does it now".to_owned();
                let detail = "left by a writer that was killed while making the file";
                let fixable = !name.starts_with('.');
                findings.push(Finding { fixable, ..finding(Severity::Info, LEFTOVER, &path, detail, remedy) });
            }
        } else if name.ends_with(".damaged") {
            let detail = "a damaged file, kept as it was found when its place was taken by a repaired one";
            let remedy = "keep it for as long as somebody may want to know why; then remove it".to_owned();
            findings.push(finding(Severity::Info, "evidence", &path, detail, remedy));
        } else if name.ends_with(layout::SEGMENT_SUFFIX) {
            let detail = "it ends like a segment, but no segment has such a name: nobody reads it";
            let remedy = "if it was renamed, give it its name back: nine digits or more and .q; else move it elsewhere"
                .to_owned();
            findings.push(finding(Severity::Warning, "foreign", &path, detail, remedy));
        }
    }
}

fn refused(path: &Path, metadata: &Metadata, is_own: bool, findings: &mut Vec<Finding>) {
    let severity = if is_own { Severity::Error } else { Severity::Warning };
    let what = if metadata.is_symlink() { "a symbolic link" } else { "no regular file" };
    let detail = format!("{what}; chronfs does not follow or open it");
    let remedy = if is_own {
        "move it elsewhere, and put the real one in its place if there is one"
    } else {
        "move it elsewhere"
    };
    findings.push(finding(severity, "refused", path, &detail, remedy.to_owned()));
}

fn hard_links(path: &Path, metadata: &Metadata, findings: &mut Vec<Finding>) {
    if metadata.nlink() > 1 {
        let detail = format!(
            "the file has {} names; it is not written to, as it would change under all of them",
            metadata.nlink()
        );
        let remedy = format!("find the others with 'find DIR -samefile {}', and remove or copy them", path.display());
        findings.push(finding(Severity::Warning, "hard-link", path, &detail, remedy));
    }
}

fn readers_directory(dir: &Path, findings: &mut Vec<Finding>) {
    for (path, name, metadata) in entries(dir) {
        if !metadata.is_file() {
            refused(&path, &metadata, false, findings);
        } else if name.ends_with(layout::TEMPORARY_SUFFIX) {
            left_behind(&path, &metadata, REGISTRATION, findings);
        } else if name.strip_suffix(layout::CURSOR_SUFFIX).is_none_or(|name| check_name(name).is_err()) {
            let detail = "no reader can have such a name: nobody reads it";
            findings.push(finding(Severity::Info, "foreign", &path, detail, "move it elsewhere".to_owned()));
        } else {
            hard_links(&path, &metadata, findings);
        }
    }
}

/// Moves a leftover out of the way, into a directory beside it. Nothing is deleted, and nothing there is replaced.
pub(super) fn move_aside(path: &Path) -> std::io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    // A queue has one place for it.
    let of_queue = dir.file_name().is_some_and(|name| name == layout::READERS_DIR).then(|| dir.parent()).flatten();
    let aside = of_queue.unwrap_or(dir).join(ASIDE);
    match fs::create_dir(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, path, CWD, aside.join(name), RenameFlags::NOREPLACE)?)
}
