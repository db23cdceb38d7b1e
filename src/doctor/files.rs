//! What lies in directories: leftovers of killed processes, evidence, links, and whatever else does not belong there.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use super::{Finding, Severity};
use crate::bus;
use crate::clock;
use crate::queue::layout;

/// A marker in the making that is older than this has been left behind: making one takes microseconds.
const LEFTOVER_AFTER_S: u64 = 60;

fn finding(severity: Severity, kind: &'static str, path: &Path, detail: &str, remedy: String) -> Finding {
    Finding { severity, kind, path: path.to_path_buf(), detail: detail.to_owned(), remedy, fixable: false }
}

/// A directory that holds no queue.
pub(super) fn plain_directory(dir: &Path, findings: &mut Vec<Finding>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if bus::is_temporary(name) {
            marker_in_the_making(&path, findings);
        } else if name == layout::LOCK_FILE {
            let detail = "a writer's lock, but no queue: making one was interrupted, or its files are gone";
            let remedy = format!("'chron-cli create {}' makes a queue here; or remove the directory", dir.display());
            findings.push(finding(Severity::Warning, "unfinished-queue", &path, detail, remedy));
        }
    }
}

fn marker_in_the_making(path: &Path, findings: &mut Vec<Finding>) {
    if is_older_than(path, LEFTOVER_AFTER_S) {
        let remedy = format!("remove it: rm {}", path.display());
        let detail = "whoever was writing a READY or LEASE was killed meanwhile; nobody reads this file";
        findings.push(finding(Severity::Info, "leftover", path, detail, remedy));
    }
}

fn is_older_than(path: &Path, seconds: u64) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    let modified = modified.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    modified.is_some_and(|time| Duration::from_nanos(clock::now_ns()).saturating_sub(time).as_secs() > seconds)
}

/// A queue's own directory. `has_writer`: somebody holds the lock, so that temporary files are in use.
pub(super) fn queue_directory(dir: &Path, has_writer: bool, findings: &mut Vec<Finding>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kind = metadata.file_type();
        let is_own = name == layout::CONTROL_FILE || name == layout::LOCK_FILE || is_segment(&name);
        if kind.is_dir() {
            if name == layout::READERS_DIR {
                readers_directory(&path, findings);
            } else if !name.starts_with('.') {
                let detail =
                    "a directory in a queue's directory: whatever it holds is not shown, and no queue in it is found";
                findings.push(finding(Severity::Info, "foreign", &path, detail, "move it elsewhere".to_owned()));
            }
        } else if !kind.is_file() {
            let severity = if is_own { Severity::Error } else { Severity::Warning };
            let what = if kind.is_symlink() { "a symbolic link" } else { "no regular file" };
            let detail = format!("{what}; chronfs does not follow or open it");
            let remedy = if is_own { "put the file itself in its place" } else { "move it elsewhere" };
            findings.push(finding(severity, "refused", &path, &detail, remedy.to_owned()));
        } else if is_own && metadata.nlink() > 1 {
            let detail = format!(
                "the file has {} names; writers refuse it, as it would change under all of them",
                metadata.nlink()
            );
            let remedy =
                format!("find the others with 'find DIR -samefile {}', and remove or copy them", path.display());
            findings.push(finding(Severity::Warning, "hard-link", &path, &detail, remedy));
        } else if bus::is_temporary(&name) {
            marker_in_the_making(&path, findings);
        } else if name.ends_with(layout::TEMPORARY_SUFFIX) {
            if !has_writer {
                let remedy = "the next writer clears it away; 'chron-cli doctor --fix' does it now".to_owned();
                let detail = "left by a writer that was killed while making the file";
                let fixable = !name.starts_with('.');
                findings.push(Finding { fixable, ..finding(Severity::Info, "leftover", &path, detail, remedy) });
            }
        } else if name.ends_with(".damaged") {
            let detail = "a damaged file, kept as it was found when its place was taken by a repaired one";
            let remedy = "keep it for as long as somebody may want to know why; then remove it".to_owned();
            findings.push(finding(Severity::Info, "evidence", &path, detail, remedy));
        } else if name.ends_with(layout::SEGMENT_SUFFIX) && !is_segment(&name) {
            let detail = "it ends like a segment, but no segment has such a name: nobody reads it";
            let remedy =
                "if it was renamed, give it its name back: nine digits and .q; else move it elsewhere".to_owned();
            findings.push(finding(Severity::Warning, "foreign", &path, detail, remedy));
        }
    }
}

fn readers_directory(dir: &Path, findings: &mut Vec<Finding>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !metadata.is_file() {
            let detail = "no regular file; chronfs does not follow or open it";
            let (severity, remedy) = (Severity::Warning, "move it elsewhere".to_owned());
            findings.push(finding(severity, "refused", &path, detail, remedy));
        } else if name.ends_with(layout::TEMPORARY_SUFFIX) && is_older_than(&path, LEFTOVER_AFTER_S) {
            let detail = "left by a process that was killed while registering a reader; nobody reads it";
            let remedy = format!("remove it: rm {}", path.display());
            findings.push(finding(Severity::Info, "leftover", &path, detail, remedy));
        }
    }
}

fn is_segment(name: &str) -> bool {
    name.strip_suffix(layout::SEGMENT_SUFFIX)
        .is_some_and(|digits| digits.len() == 9 && digits.bytes().all(|b| b.is_ascii_digit()))
}
