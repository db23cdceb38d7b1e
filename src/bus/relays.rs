//! What the programs that relay or archive a queue say of themselves, in a file each: `relay/NAME.json` in its directory.

use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::queue::{Dir, FileAccess};

/// The directory of these files in that of a queue.
pub const RELAY_DIR: &str = "relay";
/// The end of their names.
pub(crate) const RELAY_SUFFIX: &str = ".json";
/// A relay that runs writes its file every second.
const SILENT_AFTER_SECONDS: f64 = 30.0;
/// Larger files are not a relay's.
const MAX_LEN: u64 = 64 << 10;
/// A queue has a few relays; of more files than this the rest are not read.
const MAX_RELAYS: usize = 100;

/// A relay, as of the last time it wrote its file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Relay {
    /// Its name.
    pub name: String,
    /// `out`: from the queue; `in`: into it; `archive`: to an archive; `mount`: it is one that is mounted.
    pub direction: String,
    /// The other side's address.
    pub target: String,
    /// What it does: `running`, `waiting`, `target-full`, `stopped`, `failed`, `refused`.
    pub condition: String,
    /// Why it waits or has ended.
    pub reason: Option<String>,
    /// Whether it is at work, and makes progress if it lags.
    pub healthy: bool,
    /// Messages that the other side lacks.
    pub lag_messages: u64,
    /// Bytes of their records.
    pub lag_bytes: u64,
    /// Age of the oldest of them.
    pub lag_seconds: f64,
    /// Time from its last progress to `written`.
    pub last_progress_seconds: f64,
    /// Unix time at which this was written.
    pub written: f64,
}

impl Relay {
    /// What is wrong with it; None if it is well, or was stopped by somebody.
    pub fn trouble(&self) -> Option<String> {
        if self.condition == "stopped" {
            return None;
        }
        let silent = self.silent_seconds();
        let has_ended = matches!(self.condition.as_str(), "failed" | "refused");
        if silent > SILENT_AFTER_SECONDS && !has_ended {
            return Some(format!("it has said nothing for {silent:.0} s: it is dead or stopped"));
        }
        (!self.healthy).then(|| {
            let reason = self.reason.as_deref().unwrap_or("it makes no progress");
            format!("{}, lag {} messages: {reason}", self.condition, self.lag_messages)
        })
    }

    /// Time since its last progress: since the other side got something, or lacked nothing.
    pub fn seconds_since_progress(&self) -> f64 {
        let silent = if self.condition == "stopped" { 0.0 } else { self.silent_seconds() };
        self.last_progress_seconds + silent
    }

    /// Time since it wrote its file.
    fn silent_seconds(&self) -> f64 {
        (unix_seconds() - self.written).max(0.0)
    }
}

// A time of day with a resolution of 256 ns.
#[allow(clippy::cast_precision_loss)]
fn unix_seconds() -> f64 {
    clock::now_ns() as f64 / 1e9
}

/// The relays of a queue, by name; files that can't be read are left out.
pub fn relays(queue: impl AsRef<Path>) -> Vec<Relay> {
    Dir::open(queue.as_ref()).map(|queue| relays_in(&queue)).unwrap_or_default()
}

/// [`relays`] of the queue in this directory.
pub(crate) fn relays_in(queue: &Dir) -> Vec<Relay> {
    let Ok(dir) = queue.open_dir(RELAY_DIR) else { return Vec::new() };
    let mut names: Vec<String> = dir.names().unwrap_or_default();
    names.retain(|name| name.ends_with(RELAY_SUFFIX));
    names.sort();
    names.iter().take(MAX_RELAYS).filter_map(|name| read(&dir, name)).collect()
}

fn read(dir: &Dir, file: &str) -> Option<Relay> {
    let mut bytes = Vec::new();
    dir.open_file(file, FileAccess::Read).ok()??.take(MAX_LEN).read_to_end(&mut bytes).ok()?;
    let relay: Relay = serde_json::from_slice(&bytes).ok()?;
    // Its file is found by its name.
    Some(Relay { name: file.strip_suffix(RELAY_SUFFIX)?.to_owned(), ..relay })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_well_stuck_or_dead() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(RELAY_DIR)).unwrap();
        let now = unix_seconds();
        let trouble = |condition: &str, healthy: bool, written: f64| {
            let json = format!(
                r#"{{"name":"r","direction":"out","target":"nats://a/Q","condition":"{condition}","reason":"no answer",
                "healthy":{healthy},"lag_messages":7,"lag_bytes":1,"lag_seconds":1,"last_progress_seconds":2,
                "written":{written},"more":1}}"#
            );
            std::fs::write(dir.path().join("relay/r.json"), json).unwrap();
            let [relay] = relays(dir.path()).try_into().unwrap();
            relay.trouble()
        };
        assert_eq!(trouble("running", true, now), None);
        assert_eq!(trouble("stopped", true, now - 1000.0), None);
        assert!(trouble("waiting", false, now).unwrap().contains("7 messages: no answer"));
        assert!(trouble("running", true, now - 1000.0).unwrap().contains("said nothing"));
        assert!(trouble("refused", false, now - 1000.0).unwrap().contains("no answer"));
        assert!(trouble("failed", false, now - 1000.0).unwrap().contains("no answer"));
        assert_eq!(relays(dir.path().join("none")), []);
        let [relay] = relays(dir.path()).try_into().unwrap();
        assert!((1002.0..1100.0).contains(&relay.seconds_since_progress()), "{relay:?}");
    }

    #[test]
    fn what_is_not_a_relays_file_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let relay = dir.path().join(RELAY_DIR);
        let json = r#"{"name":"../x","direction":"out","target":"t","condition":"running","reason":null,"healthy":true,
            "lag_messages":0,"lag_bytes":0,"lag_seconds":0,"last_progress_seconds":0,"written":0}"#;
        std::fs::create_dir(&relay).unwrap();
        std::fs::write(dir.path().join("elsewhere"), json).unwrap();
        std::os::unix::fs::symlink("../elsewhere", relay.join("link.json")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            relay.join("fifo.json"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        std::fs::create_dir(relay.join("dir.json")).unwrap();
        std::fs::write(relay.join("broken.json"), "{").unwrap();
        std::fs::write(relay.join("long.json"), format!("{json}{}", " ".repeat(100_000))).unwrap();
        std::fs::write(relay.join("a.json.tmp"), json).unwrap();
        std::fs::write(relay.join("good.json"), json).unwrap();
        let names: Vec<_> = relays(dir.path()).into_iter().map(|relay| relay.name).collect();
        // Of the long one, the beginning is whole.
        assert_eq!(names, ["good", "long"]);
        std::fs::rename(&relay, dir.path().join("moved")).unwrap();
        std::os::unix::fs::symlink("moved", &relay).unwrap();
        assert_eq!(relays(dir.path()), []);
    }
}
