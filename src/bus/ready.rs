//! The READY marker: a small JSON file in an endpoint's directory that exists exactly while the endpoint may be
//! used. Written to a temporary file and renamed, so it is never seen half written.

use std::fs;
use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::file;
use crate::clock;
use crate::queue::{Dir, Error, Result};

/// The marker's file name.
pub const READY_FILE: &str = "READY";
/// No marker is longer; the rest is not read.
const MAX_LEN: u64 = 4096;

/// The process that marks an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marker {
    /// Process id.
    pub(crate) pid: u32,
    /// Command name as in `/proc/<pid>/comm`; empty where it can't be read.
    pub(crate) comm: String,
}

impl Marker {
    /// The calling process.
    pub(crate) fn this_process() -> Self {
        Self::process(std::process::id())
    }

    /// Another process of this pid namespace.
    pub(crate) fn process(pid: u32) -> Self {
        let comm = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        Self { pid, comm: String::from_utf8_lossy(&comm).trim_end().to_owned() }
    }
}

/// What a READY marker says. Everything but the fact itself may be missing: `touch READY` by hand marks too.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Ready {
    /// The process that marked the endpoint.
    pub pid: Option<u32>,
    /// Its command name.
    pub comm: Option<String>,
    /// When, as RFC 3339 in UTC.
    pub time: Option<String>,
    /// When, in nanoseconds since the epoch.
    pub timestamp_ns: Option<u64>,
}

/// Marks the endpoint in `dir` as ready, for the calling process. Marking again renews the marker.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let scratch = std::env::temp_dir().join(format!("chronfs-doc-ready-{}", std::process::id()));
/// # std::fs::create_dir_all(&scratch)?;
/// use chronfs::bus;
///
/// bus::mark_ready(&scratch)?;
/// assert_eq!(bus::ready(&scratch)?.and_then(|ready| ready.pid), Some(std::process::id()));
/// bus::unmark_ready(&scratch)?;
/// assert!(bus::ready(&scratch)?.is_none());
/// # std::fs::remove_dir_all(&scratch)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Io`] if the directory does not exist or can't be written.
pub fn mark_ready(dir: impl AsRef<Path>) -> Result<()> {
    mark_ready_in(&file::open_dir(dir.as_ref())?, &Marker::this_process())
}

/// Like [`mark_ready`], for another process, in a directory that is open already.
pub(crate) fn mark_ready_in(dir: &Dir, marker: &Marker) -> Result<()> {
    let timestamp_ns = clock::now_ns();
    let ready = Ready {
        pid: Some(marker.pid),
        comm: Some(marker.comm.clone()),
        time: Some(rfc3339(timestamp_ns)),
        timestamp_ns: Some(timestamp_ns),
    };
    let mut json =
        serde_json::to_vec(&ready).map_err(|e| Error::io(&dir.path_of(READY_FILE), "write")(io::Error::other(e)))?;
    json.push(b'\n');
    file::replace(dir, READY_FILE, &json)
}

/// Removes the marker. An endpoint that is not marked is left as it is.
///
/// # Errors
/// [`Error::Io`] if the marker can't be removed.
pub fn unmark_ready(dir: impl AsRef<Path>) -> Result<()> {
    file::find_dir(dir.as_ref())?.map_or(Ok(()), |dir| unmark_ready_in(&dir))
}

/// As [`unmark_ready`], in a directory that is open already.
pub(crate) fn unmark_ready_in(dir: &Dir) -> Result<()> {
    dir.remove(READY_FILE)
}

/// Whether the endpoint in `dir` is marked as ready, and by whom.
///
/// # Errors
/// [`Error::Io`] or [`Error::Damaged`] if it can't be read; an empty marker is not an error.
pub fn ready(dir: impl AsRef<Path>) -> Result<Option<Ready>> {
    file::find_dir(dir.as_ref())?.map_or(Ok(None), |dir| ready_in(&dir))
}

/// As [`ready`], in a directory that is open already.
pub(crate) fn ready_in(dir: &Dir) -> Result<Option<Ready>> {
    let Some((text, file)) = file::read(dir, READY_FILE, MAX_LEN)? else {
        return Ok(None);
    };
    let mut ready: Ready = serde_json::from_slice(&text).unwrap_or_default();
    if ready.timestamp_ns.is_none() {
        let marked = file.metadata().and_then(|m| m.modified()).map_err(Error::io(&dir.path_of(READY_FILE), "stat"))?;
        ready.timestamp_ns = marked.duration_since(UNIX_EPOCH).ok().and_then(|d| u64::try_from(d.as_nanos()).ok());
        ready.time = ready.timestamp_ns.map(rfc3339);
    }
    Ok(Some(ready))
}

fn rfc3339(timestamp_ns: u64) -> String {
    let mut text = Vec::new();
    crate::time::format_time(timestamp_ns, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_appears_disappears_and_names_its_process() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ready(dir.path()).unwrap(), None);
        mark_ready(dir.path()).unwrap();
        let first = ready(dir.path()).unwrap().unwrap();
        assert_eq!(first.pid, Some(std::process::id()));
        assert!(first.time.as_deref().unwrap().ends_with('Z'));
        mark_ready_in(&file::open_dir(dir.path()).unwrap(), &Marker { pid: 7, comm: "x".into() }).unwrap();
        assert_eq!(ready(dir.path()).unwrap().unwrap().pid, Some(7));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left over");
        unmark_ready(dir.path()).unwrap();
        unmark_ready(dir.path()).unwrap();
        assert_eq!(ready(dir.path()).unwrap(), None);
    }

    #[test]
    fn a_marker_made_by_hand_counts_and_a_fifo_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(READY_FILE), "").unwrap();
        let by_hand = ready(dir.path()).unwrap().unwrap();
        assert!(by_hand.pid.is_none() && by_hand.timestamp_ns.is_some());
        unmark_ready(dir.path()).unwrap();
        file::make_fifo(&dir.path().join(READY_FILE));
        assert!(ready(dir.path()).is_err());
        unmark_ready(dir.path()).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join(READY_FILE)).unwrap();
        assert!(ready(dir.path()).is_err());
    }
}
