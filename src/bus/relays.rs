//! What the programs that relay or archive a queue say of themselves, in a file each: `relay/NAME.json` in its directory.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::clock;

/// The directory of these files in that of a queue.
pub const RELAY_DIR: &str = "relay";
/// The end of their names.
pub(crate) const RELAY_SUFFIX: &str = ".json";
/// A relay that runs writes its file every second.
const SILENT_AFTER_SECONDS: f64 = 30.0;
/// Larger files are nobody's.
const MAX_LEN: u64 = 64 << 10;

/// A relay, as of the last time it wrote its file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Relay {
    /// Its name.
    pub name: String,
    /// `out`: from the queue; `in`: into it.
    pub direction: String,
    /// The other side's address.
    pub target: String,
    /// What it does: `running`, `waiting`, `target-full`, `stopped`, `refused`.
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
        let silent = unix_seconds() - self.written;
        if silent > SILENT_AFTER_SECONDS && self.condition != "refused" {
            return Some(format!("it has said nothing for {silent:.0} s: it is dead or stopped"));
        }
        (!self.healthy).then(|| {
            let reason = self.reason.as_deref().unwrap_or("it makes no progress");
            format!("{}, lag {} messages: {reason}", self.condition, self.lag_messages)
        })
    }
}

fn unix_seconds() -> f64 {
    clock::now_ns() as f64 / 1e9
}

/// The relays of a queue, by name; files that can't be read are left out.
pub fn relays(queue: impl AsRef<Path>) -> Vec<Relay> {
    let files = std::fs::read_dir(queue.as_ref().join(RELAY_DIR)).into_iter().flatten().flatten();
    let is_sound = |file: &std::fs::DirEntry| file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_LEN);
    let mut relays: Vec<Relay> = files
        .filter(|file| file.path().to_string_lossy().ends_with(RELAY_SUFFIX) && is_sound(file))
        .filter_map(|file| serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok())
        .collect();
    relays.sort_by(|a, b| a.name.cmp(&b.name));
    relays
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
            std::fs::write(dir.path().join("relay/broken.json"), "{").unwrap();
            let [relay] = relays(dir.path()).try_into().unwrap();
            relay.trouble()
        };
        assert_eq!(trouble("running", true, now), None);
        assert_eq!(trouble("stopped", true, now - 1000.0), None);
        assert!(trouble("waiting", false, now).unwrap().contains("7 messages: no answer"));
        assert!(trouble("running", true, now - 1000.0).unwrap().contains("said nothing"));
        assert!(trouble("refused", false, now - 1000.0).unwrap().contains("no answer"));
        assert_eq!(relays(dir.path().join("none")), []);
    }
}
