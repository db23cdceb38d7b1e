//! The LEASE: a small JSON file by which a process says, repeatedly, that it is alive and holds an endpoint.
//!
//! It stores when it was renewed and for how long. Whether it is live is never stored: that is derived from the
//! boot-time clock on each read, so that no step of the wall clock expires or prolongs it, and a lease from before a
//! reboot is `unknown` rather than wrong. Written to a temporary file and renamed, so it is never seen half written.

use std::fs::File;
use std::io::Seek as _;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::file;
use crate::clock;
use crate::queue::{Dir, Error, Result, start_of};

/// The lease's file name.
pub const LEASE_FILE: &str = "LEASE";
/// The longest payload of a lease, in bytes.
pub const MAX_LEASE_PAYLOAD: usize = 64 << 10;
/// No lease file is longer (a payload escaped in JSON, and its keys); the rest is not read.
const MAX_LEN: u64 = 6 * MAX_LEASE_PAYLOAD as u64 + 4096;

/// Whether a lease is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LeaseState {
    /// Renewed less than its `ttl` ago.
    Live,
    /// Not renewed in time.
    Expired,
    /// From another boot of the machine, or not written by chronfs: its age is unknown.
    Unknown,
}

impl LeaseState {
    /// `live`, `expired` or `unknown`: the word in JSON and in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Expired => "expired",
            Self::Unknown => "unknown",
        }
    }
}

/// A lease as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// The process that holds it; None if unknown.
    pub pid: Option<u32>,
    /// Incremented whenever another process takes the lease; 0 if unknown.
    pub epoch: u64,
    /// When it was renewed, in nanoseconds since the epoch by the wall clock, for people; 0 if unknown.
    pub timestamp_ns: u64,
    /// Milliseconds since it was renewed, by the boot-time clock; None if unknown.
    pub age_ms: Option<u64>,
    /// Milliseconds from a renewal until it expires; 0 if unknown.
    pub ttl_ms: u64,
    /// Whether it was in force when it was read.
    pub state: LeaseState,
    /// What its holder stored in it.
    pub payload: Vec<u8>,
}

/// The contents of the file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Stored {
    pid: Option<u32>,
    epoch: u64,
    timestamp_ns: u64,
    ttl_ms: u64,
    /// Boot-time clock when it was renewed, in nanoseconds.
    boot_ns: u64,
    boot_id: String,
    /// Start time of the process as the kernel counts it: tells it from a later one with the same id.
    started: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_b64: Option<String>,
}

/// What is shown: [`Lease::to_json`].
#[derive(Serialize)]
struct Shown<'a> {
    pid: Option<u32>,
    epoch: u64,
    timestamp_ns: u64,
    age_ms: Option<u64>,
    ttl_ms: u64,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_b64: Option<String>,
}

impl Lease {
    /// One JSON object on one line, without a newline: what the mount shows as `LEASE`. A payload that is not UTF-8
    /// comes as `payload_b64`.
    pub fn to_json(&self) -> String {
        let (payload, payload_b64) = match std::str::from_utf8(&self.payload) {
            Ok(text) => (Some(text), None),
            Err(_) => (None, Some(STANDARD.encode(&self.payload))),
        };
        let shown = Shown {
            pid: self.pid,
            epoch: self.epoch,
            timestamp_ns: self.timestamp_ns,
            age_ms: self.age_ms,
            ttl_ms: self.ttl_ms,
            state: self.state.as_str(),
            payload,
            payload_b64,
        };
        // The keys are strings: nothing else could fail.
        serde_json::to_string(&shown).unwrap_or_default()
    }

    /// How long it remains in force; None if it is not, or if that is unknown.
    pub fn remaining(&self) -> Option<Duration> {
        let left_ms = self.ttl_ms.checked_sub(self.age_ms?)?;
        (self.state == LeaseState::Live).then(|| Duration::from_millis(left_ms))
    }

    fn of(stored: Stored) -> Self {
        let comparable = stored.ttl_ms > 0 && !stored.boot_id.is_empty() && stored.boot_id == clock::boot_id();
        // A stamp from the future is from another boot.
        let age_ns = comparable.then(|| clock::boot_ns().checked_sub(stored.boot_ns)).flatten();
        let age_ms = age_ns.map(|ns| ns / 1_000_000);
        let state = match age_ms {
            None => LeaseState::Unknown,
            Some(age_ms) if age_ms >= stored.ttl_ms => LeaseState::Expired,
            Some(_) => LeaseState::Live,
        };
        let decoded = stored.payload_b64.and_then(|text| STANDARD.decode(text).ok());
        let payload = decoded.or(stored.payload.map(String::into_bytes)).unwrap_or_default();
        let Stored { pid, epoch, timestamp_ns, ttl_ms, .. } = stored;
        Self { pid, epoch, timestamp_ns, age_ms, ttl_ms, state, payload }
    }
}

/// Takes or renews the lease of the endpoint in `dir` for `ttl` from now, for the calling process.
///
/// Returns the lease as written. Its epoch has risen if another process held it before: a lease says which process is
/// alive, it excludes none (the writer's lock does).
///
/// ```
/// use std::time::Duration;
/// use chronfs::bus::{self, LeaseState};
///
/// # let scratch = tempfile::tempdir()?;
/// # let dir = scratch.path();
/// bus::write_lease(dir, Duration::from_secs(5), "momentum, 2 symbols")?;
/// let lease = bus::lease(dir)?.ok_or("no lease")?;
/// assert_eq!((lease.state, lease.pid), (LeaseState::Live, Some(std::process::id())));
/// bus::remove_lease(dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::InvalidSetting`] for a `ttl` of less than a millisecond or a payload longer than [`MAX_LEASE_PAYLOAD`];
/// [`Error::Io`] if the directory does not exist or can't be written.
pub fn write_lease(dir: impl AsRef<Path>, ttl: Duration, payload: impl AsRef<[u8]>) -> Result<Lease> {
    write_lease_in(&file::open_dir(dir.as_ref())?, ttl, payload.as_ref(), std::process::id())
}

/// Like [`write_lease`], for another process of this pid namespace, in a directory that is open already.
pub(crate) fn write_lease_in(dir: &Dir, ttl: Duration, payload: &[u8], pid: u32) -> Result<Lease> {
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    if ttl_ms == 0 {
        return Err(Error::InvalidSetting("a lease of less than a millisecond".to_owned()));
    }
    if payload.len() > MAX_LEASE_PAYLOAD {
        let what = format!("a lease's payload of {} bytes; at most {MAX_LEASE_PAYLOAD} are allowed", payload.len());
        return Err(Error::InvalidSetting(what));
    }
    // One that may be replaced but not read belonged to another process.
    let previous = match stored(dir) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Some(Stored::default())
        }
        previous => previous?,
    };
    let (boot_id, started) = (clock::boot_id(), start_of(pid));
    let epoch = match &previous {
        Some(p) if p.pid == Some(pid) && p.boot_id == boot_id && p.started == started => p.epoch,
        Some(p) => p.epoch.wrapping_add(1),
        None => 1,
    };
    let (text, encoded) = match std::str::from_utf8(payload) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(payload))),
    };
    let stored = Stored {
        pid: Some(pid),
        epoch,
        timestamp_ns: clock::now_ns(),
        ttl_ms,
        boot_ns: clock::boot_ns(),
        boot_id,
        started,
        payload: text,
        payload_b64: encoded,
    };
    let mut json = serde_json::to_vec(&stored)
        .map_err(|e| Error::io(&dir.path_of(LEASE_FILE), "write")(std::io::Error::other(e)))?;
    json.push(b'\n');
    file::replace(dir, LEASE_FILE, &json)?;
    Ok(Lease::of(stored))
}

/// The lease of the endpoint in `dir`, with its current state and age; None if there is none. One that chronfs did not
/// write (an empty file, say) has the state unknown.
///
/// # Errors
/// [`Error::Io`] or [`Error::Damaged`] if it can't be read.
pub fn lease(dir: impl AsRef<Path>) -> Result<Option<Lease>> {
    file::find_dir(dir.as_ref())?.map_or(Ok(None), |dir| lease_in(&dir))
}

/// As [`lease`], in a directory that is open already.
pub(crate) fn lease_in(dir: &Dir) -> Result<Option<Lease>> {
    Ok(stored(dir)?.map(Lease::of))
}

/// The lease in an open LEASE file, with its current state and age.
pub(crate) fn read_lease(mut file: &File) -> std::io::Result<Lease> {
    file.rewind()?;
    Ok(Lease::of(parse(&file::read_some(file, MAX_LEN)?)))
}

/// Removes the lease. An endpoint without one is left as it is.
///
/// # Errors
/// [`Error::Io`] if it can't be removed.
pub fn remove_lease(dir: impl AsRef<Path>) -> Result<()> {
    file::find_dir(dir.as_ref())?.map_or(Ok(()), |dir| remove_lease_in(&dir))
}

/// As [`remove_lease`], in a directory that is open already.
pub(crate) fn remove_lease_in(dir: &Dir) -> Result<()> {
    dir.remove(LEASE_FILE)
}

fn stored(dir: &Dir) -> Result<Option<Stored>> {
    Ok(file::read(dir, LEASE_FILE, MAX_LEN)?.map(|(text, _)| parse(&text)))
}

fn parse(text: &[u8]) -> Stored {
    serde_json::from_slice(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn edit(dir: &Path, edit: impl FnOnce(&mut Stored)) {
        let mut stored = stored(&file::open_dir(dir).unwrap()).unwrap().unwrap();
        edit(&mut stored);
        fs::write(dir.join(LEASE_FILE), serde_json::to_vec(&stored).unwrap()).unwrap();
    }

    #[test]
    fn a_lease_lives_expires_and_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(lease(dir).unwrap(), None);
        let written = write_lease(dir, Duration::from_secs(3600), "hello").unwrap();
        let found = lease(dir).unwrap().unwrap();
        assert_eq!((found.state, found.epoch, found.ttl_ms), (LeaseState::Live, 1, 3_600_000));
        assert_eq!((found.pid, &found.payload), (written.pid, &b"hello".to_vec()));
        assert!(found.remaining().unwrap() > Duration::from_secs(3000));
        edit(dir, |stored| stored.boot_ns -= 3_600_000_000_000.min(stored.boot_ns));
        edit(dir, |stored| stored.ttl_ms = stored.ttl_ms.min(1));
        let found = lease(dir).unwrap().unwrap();
        assert_eq!((found.state, found.remaining()), (LeaseState::Expired, None));
        remove_lease(dir).unwrap();
        remove_lease(dir).unwrap();
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0, "no temporary file is left over");
    }

    #[test]
    fn a_lease_of_another_boot_or_made_by_hand_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write_lease(dir, Duration::from_secs(5), "x").unwrap();
        edit(dir, |stored| stored.boot_id = "another".to_owned());
        assert_eq!(lease(dir).unwrap().unwrap().state, LeaseState::Unknown);
        for text in ["", "{", "[]", "{\"pid\":-1}", "{\"ttl_ms\":5}"] {
            fs::write(dir.join(LEASE_FILE), text).unwrap();
            let found = lease(dir).unwrap().unwrap();
            assert_eq!((found.state, found.age_ms), (LeaseState::Unknown, None), "{text}");
        }
    }

    #[test]
    fn the_epoch_rises_when_another_process_takes_over() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let second = Duration::from_secs(1);
        assert_eq!(write_lease(dir, second, "").unwrap().epoch, 1);
        assert_eq!(write_lease(dir, second, "").unwrap().epoch, 1, "renewed");
        assert_eq!(write_lease_in(&file::open_dir(dir).unwrap(), second, b"", 1).unwrap().epoch, 2);
        assert_eq!(write_lease(dir, second, "").unwrap().epoch, 3);
        edit(dir, |stored| stored.started = "0".to_owned());
        assert_eq!(write_lease(dir, second, "").unwrap().epoch, 4, "a reused process id is another process");
    }

    #[test]
    fn the_json_has_the_promised_keys_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write_lease(dir, Duration::from_secs(5), "say \"hi\"").unwrap();
        let mut found = lease(dir).unwrap().unwrap();
        (found.pid, found.timestamp_ns, found.age_ms) = (Some(7), 42, Some(3));
        let json =
            r#"{"pid":7,"epoch":1,"timestamp_ns":42,"age_ms":3,"ttl_ms":5000,"state":"live","payload":"say \"hi\""}"#;
        assert_eq!(found.to_json(), json);
        write_lease(dir, Duration::from_secs(5), b"\xff\x00").unwrap();
        let found = lease(dir).unwrap().unwrap();
        assert_eq!(found.payload, b"\xff\x00");
        assert!(found.to_json().ends_with(r#""payload_b64":"/wA="}"#));
    }

    #[test]
    fn invalid_leases_are_refused_and_a_fifo_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(matches!(write_lease(dir, Duration::ZERO, ""), Err(Error::InvalidSetting(_))));
        let long = vec![1; MAX_LEASE_PAYLOAD + 1];
        assert!(matches!(write_lease(dir, Duration::from_secs(1), &long), Err(Error::InvalidSetting(_))));
        write_lease(dir, Duration::from_secs(1), &long[1..]).unwrap();
        assert_eq!(lease(dir).unwrap().unwrap().payload, &long[1..]);
        assert!(write_lease(dir.join("missing"), Duration::from_secs(1), "").is_err());
        remove_lease(dir).unwrap();
        file::make_fifo(&dir.join(LEASE_FILE));
        assert!(lease(dir).is_err());
    }
}
