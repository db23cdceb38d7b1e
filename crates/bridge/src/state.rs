//! What a relay says of itself: the file `relay/NAME.json` of its queue, log lines, figures.
//!
//! The file is for people and other programs, and holds the one thing that the stream may no longer be able to tell:
//! which number of the queue belongs to the last number of the stream.

use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Without progress for this long, a relay that lags is unhealthy.
const UNHEALTHY_AFTER: Duration = Duration::from_secs(30);
/// How often the file is written at most, unless the state changes.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// How often a relay that is stuck says so.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// The direction of an archiver.
pub(super) const ARCHIVE: &str = "archive";
/// The direction, and the name, of an archive that is mounted.
#[cfg(feature = "mount")]
pub(super) const MOUNT: &str = "mount";

/// Where a relay is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Looking for its place.
    Starting,
    /// At work.
    Running,
    /// Trying again: the reason is beside it.
    Waiting,
    /// The target takes no more for now.
    TargetFull,
    /// Ended by an operator.
    Stopped,
    /// Ended by a failure that another attempt may not meet: the reason is beside it.
    Failed,
    /// Ended because an operator must decide: the reason is beside it.
    Refused,
}

impl Condition {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::TargetFull => "target-full",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// A number of the queue, and the number of the stream's message with which the stream is complete up to it. Of an
/// archiver: up to which all is archived or missing, and the last one that it has archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Pair {
    pub(super) seq: u64,
    pub(super) stream_seq: u64,
}

/// What has happened since the relay was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    /// Messages that the other side has.
    pub(super) messages: u64,
    /// Bytes of their payloads.
    pub(super) bytes: u64,
    /// Gap records.
    pub(super) gaps: u64,
    /// Attempts that came to nothing: each is followed by a fresh look at the stream.
    pub(super) retries: u64,
    /// How often the stream had less than it had acknowledged.
    pub(super) rewinds: u64,
    /// Messages that had to be sent again for that.
    pub(super) resent: u64,
    /// Records passed over: void, or known already.
    pub(super) skipped: u64,
}

/// The file's contents.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) name: String,
    pub(super) direction: String,
    pub(super) target: String,
    pub(super) pid: u32,
    pub(super) origin: String,
    pub(super) term: u64,
    pub(super) condition: Condition,
    pub(super) reason: Option<String>,
    pub(super) healthy: bool,
    pub(super) pair: Pair,
    pub(super) lag_messages: u64,
    pub(super) lag_bytes: u64,
    pub(super) lag_seconds: f64,
    pub(super) last_progress_seconds: f64,
    /// Unix time of writing.
    pub(super) written: f64,
    pub(super) counts: Counts,
    /// Of an archive that is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mount: Option<MountFigures>,
}

/// What only an archive that is mounted has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MountFigures {
    pub(super) fetched_segments: u64,
    pub(super) fetched_bytes: u64,
    pub(super) cache_bytes: u64,
    pub(super) max_cache_bytes: u64,
    /// Requests that failed.
    pub(super) failures: u64,
    pub(super) last_failure: Option<String>,
}

impl Report {
    /// As others read it from the file.
    pub(super) fn to_public(&self) -> chronfs::bus::Relay {
        chronfs::bus::Relay {
            name: self.name.clone(),
            direction: self.direction.clone(),
            target: self.target.clone(),
            condition: self.condition.as_str().to_owned(),
            reason: self.reason.clone(),
            healthy: self.healthy,
            lag_messages: self.lag_messages,
            lag_bytes: self.lag_bytes,
            lag_seconds: self.lag_seconds,
            last_progress_seconds: self.last_progress_seconds,
            written: self.written,
        }
    }
}

/// How far the other side is behind the head.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Lag {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// Age of the oldest message that the other side has not acknowledged.
    pub(super) seconds: f64,
}

/// Tells relays to end. Cheap to clone; all clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    is_set: Rc<Cell<bool>>,
    changed: Rc<tokio::sync::Notify>,
}

impl Stop {
    /// Ends all relays that have it: what is on its way is awaited first.
    pub fn set(&self) {
        self.is_set.set(true);
        self.changed.notify_waiters();
    }

    /// Whether they are to end.
    pub fn is_set(&self) -> bool {
        self.is_set.get()
    }

    /// Returns when it is set.
    pub(super) async fn wait(&self) {
        while !self.is_set() {
            self.changed.notified().await;
        }
    }

    /// Sleeps; wakes early when it is set.
    pub(super) async fn sleep(&self, time: Duration) {
        let _ = tokio::time::timeout(time, self.wait()).await;
    }
}

/// Watches a relay of this thread.
#[derive(Clone)]
pub struct Monitor(pub(super) Rc<State>);

impl Monitor {
    /// Whether it is at work, and not stuck.
    pub fn is_healthy(&self) -> bool {
        self.0.is_healthy()
    }

    pub(super) fn report(&self) -> Report {
        self.0.report()
    }
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.report().fmt(f)
    }
}

/// A relay's state, kept in memory and in the file.
pub(super) struct State {
    path: PathBuf,
    report: RefCell<Report>,
    progress: Cell<Instant>,
    written: Cell<Option<Instant>>,
    said: Cell<Option<Instant>>,
    alarmed: Cell<Option<Instant>>,
}

pub(super) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The file of a relay in its queue's directory.
pub(super) fn path_of(queue: &Path, name: &str) -> PathBuf {
    queue.join("relay").join(format!("{name}.json"))
}

/// What the relays of a queue have last said of themselves, as JSON.
pub fn status(queue: &Path) -> serde_json::Value {
    serde_json::to_value(reports(queue)).unwrap_or_default()
}

/// The reports of a queue's relays.
fn reports(queue: &Path) -> Vec<Report> {
    let files = std::fs::read_dir(queue.join("relay")).into_iter().flatten().flatten();
    let mut reports: Vec<Report> = files
        .filter(|file| file.path().extension().is_some_and(|extension| extension == "json"))
        .filter_map(|file| serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok())
        .collect();
    reports.sort_by(|a, b| a.name.cmp(&b.name));
    reports
}

impl State {
    pub(super) fn shared(queue: &Path, name: &str, direction: &str, target: &str) -> Rc<Self> {
        let path = path_of(queue, name);
        let before: Option<Report> = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let report = Report {
            name: name.to_owned(),
            direction: direction.to_owned(),
            target: target.to_owned(),
            pid: std::process::id(),
            origin: String::new(),
            term: 0,
            condition: Condition::Starting,
            reason: None,
            healthy: true,
            // Of another stream it says nothing.
            pair: before.filter(|before| before.target == target).map(|before| before.pair).unwrap_or_default(),
            lag_messages: 0,
            lag_bytes: 0,
            lag_seconds: 0.0,
            last_progress_seconds: 0.0,
            written: 0.0,
            counts: Counts::default(),
            mount: None,
        };
        let progress = Cell::new(Instant::now());
        let [written, said, alarmed] = [const { Cell::new(None) }; 3];
        Rc::new(Self { path, report: RefCell::new(report), progress, written, said, alarmed })
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.borrow_mut());
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.report.borrow_mut().counts);
    }

    pub(super) fn pair(&self) -> Pair {
        self.report.borrow().pair
    }

    pub(super) fn report(&self) -> Report {
        let mut report = self.report.borrow().clone();
        (report.healthy, report.written) = (self.is_healthy(), unix_seconds());
        report.last_progress_seconds = self.progress.get().elapsed().as_secs_f64();
        report
    }

    /// The other side has got further, or there is nothing that it lacks.
    pub(super) fn progressed(&self) {
        self.progress.set(Instant::now());
        self.said.set(None);
    }

    /// Changes the condition. A new one is logged; one that lasts, once a minute.
    pub(super) fn set(&self, condition: Condition, reason: Option<String>) {
        let is_new = {
            let mut report = self.report.borrow_mut();
            let is_new = report.condition != condition;
            (report.condition, report.reason) = (condition, reason);
            is_new
        };
        let is_trouble = !matches!(condition, Condition::Running | Condition::Starting);
        let is_due = self.said.get().is_none_or(|said| said.elapsed() >= SAY_EVERY);
        if is_trouble && is_due {
            self.said.set(Some(Instant::now()));
            let report = self.report.borrow();
            self.say(&format!(
                "{}: {}; lag {} messages, last progress {:.0} s ago",
                condition.as_str(),
                report.reason.as_deref().unwrap_or("as told to"),
                report.lag_messages,
                self.progress.get().elapsed().as_secs_f64(),
            ));
        }
        if is_new {
            self.write();
        }
    }

    /// A line in the log that something is about to go wrong, once a minute.
    fn alarm(&self, text: &str) {
        if self.alarmed.get().is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            self.alarmed.set(Some(Instant::now()));
            self.say(text);
        }
    }

    /// Updates the lag behind a queue. One that is half of what the queue allows is logged, once a minute.
    pub(super) fn lags_behind(&self, queue: &chronfs::Queue, lag: Lag) {
        if let Some(max) = queue.settings().max_lag_bytes
            && lag.bytes > max / 2
        {
            self.alarm(&format!("lags by {} bytes of the {max} after which messages are lost to it", lag.bytes));
        }
        self.lags(lag);
    }

    /// A line in the log.
    pub(super) fn say(&self, text: &str) {
        let report = self.report.borrow();
        let program = if report.direction == ARCHIVE { "chron-archive" } else { "chron-relay" };
        eprintln!("{program}: {}: {text}", report.name);
    }

    /// Updates the lag; writes the file if it is time to.
    pub(super) fn lags(&self, lag: Lag) {
        if lag.messages == 0 {
            self.progress.set(Instant::now());
        }
        {
            let mut report = self.report.borrow_mut();
            (report.lag_messages, report.lag_bytes, report.lag_seconds) = (lag.messages, lag.bytes, lag.seconds);
        }
        if self.written.get().is_none_or(|written| written.elapsed() >= WRITE_EVERY) {
            self.write();
        }
    }

    pub(super) fn is_due(&self) -> bool {
        self.written.get().is_none_or(|written| written.elapsed() >= WRITE_EVERY)
    }

    pub(super) fn is_healthy(&self) -> bool {
        let report = self.report.borrow();
        // Without the other side, only those who send to it know how far it is behind.
        let is_blind = matches!(report.direction.as_str(), "in" | "mount") && report.condition == Condition::Waiting;
        let may_lag = report.lag_messages > 0 || is_blind;
        let is_stuck = may_lag && self.progress.get().elapsed() >= UNHEALTHY_AFTER;
        !is_stuck && !matches!(report.condition, Condition::Failed | Condition::Refused)
    }

    /// Replaces the file. That it can't be written is said and changes nothing else.
    pub(super) fn write(&self) {
        self.written.set(Some(Instant::now()));
        let bytes = serde_json::to_vec_pretty(&self.report()).unwrap_or_default();
        let replace = || {
            if let Some(dir) = self.path.parent() {
                // A standby's queue is still to come. One that has been removed must not come back as an empty directory.
                let may_create_queue = self.report.borrow().direction == "in";
                match if may_create_queue { std::fs::create_dir_all(dir) } else { std::fs::create_dir(dir) } {
                    Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
            }
            let temporary = self.path.with_extension("json.tmp");
            let mut file = std::fs::File::create(&temporary)?;
            file.write_all(&bytes)?;
            std::fs::rename(&temporary, &self.path)
        };
        if let Err(error) = replace() {
            let error: std::io::Error = error;
            self.say(&format!("{}: cannot write it: {error}", self.path.display()));
        }
    }
}
