//! One queue: its control block, writer, readers, segments; and with `deep` every record.

mod segments;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::place::{self, Directory};
use super::{Finding, Report, Severity, endpoint, files};
use crate::bus;
use crate::clock;
use crate::queue::{
    Entry, Error, Gap, GapReason, IgnoredReason, Inspection, LockHolder, Position, Queue, ReaderInfo, Retention,
    SegmentId, SegmentInfo, WriterState, layout, segment_name,
};
use crate::report::{counted, human_bytes, human_span_ms};
use crate::settings;

/// A reader that pins segments and whose last heartbeat is older than this is reported.
const IDLE_AFTER_MS: u64 = 3_600_000;
/// Percentage of its size limit above which a queue is nearly full.
const NEARLY_FULL: u64 = 90;
/// A file system with less room than this is full.
const ROOM: u64 = 1 << 20;
/// A reader that keeps more than this multiple of what the limits allow is a problem.
const TIMES_THE_LIMIT: u64 = 4;
/// What counts as the limit where there is only one of age.
const RETAINED_BY_AGE: u64 = 256 << 20;
/// A reader in use that lags and whose last heartbeat is older than this is checked twice.
const STUCK_AFTER_MS: u64 = 60_000;
/// Time between the two checks.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// A newest message further in the future is reported.
const FUTURE_NS: u64 = 60_000_000_000;
/// Entries read between two reports of progress.
const STEP: u32 = 4096;
/// At most this many gaps of one queue are listed; the others are counted.
const MAX_GAPS: u64 = 1000;

/// Everything about one queue. `step` takes the bytes that have been read.
pub(super) fn examine(dir: &Directory, deep: bool, step: &mut dyn FnMut(u64), report: &mut Report) {
    let inspected = dir.queue().and_then(|queue| {
        let inspection = queue.inspect()?;
        Ok((queue, inspection))
    });
    let looked = Instant::now();
    let (queue, inspection) = match inspected {
        Ok(found) => found,
        Err(error) if error.is_unusable_file() || matches!(error, Error::NotAQueue { .. }) => {
            let remedy = "restore it from a copy; the queue can't be read without it".to_owned();
            let detail = without_path(&error);
            let path = path_of(&error).unwrap_or_else(|| dir.path().to_path_buf());
            let (severity, kind) = (Severity::Error, "unreadable-queue");
            report.findings.push(Finding { severity, kind, path, detail, remedy, fixable: false });
            return files::queue_directory(dir, true, report);
        }
        Err(error) => {
            report.unchecked.push(error.to_string());
            return files::queue_directory(dir, true, report);
        }
    };
    let retention = queue.plan_retention().unwrap_or_default();
    let mut exam = Exam {
        dir,
        queue: &queue,
        inspection: &inspection,
        retention: &retention,
        is_deep: deep,
        findings: &mut report.findings,
    };
    exam.control();
    exam.copies();
    exam.writer();
    exam.readers();
    exam.relays();
    exam.segments();
    exam.room();
    exam.limits();
    exam.retention();
    exam.clock();
    let read = if deep { exam.every_record(step) } else { exam.first_records() };
    exam.stuck_readers(looked);
    if let Err(error) = read {
        report.unchecked.push(error.to_string());
    }
    let has_writer = inspection.writer.holder.is_some();
    files::queue_directory(dir, has_writer, report);
    endpoint(dir, &mut report.findings);
}

struct Exam<'a> {
    dir: &'a Directory,
    queue: &'a Queue,
    inspection: &'a Inspection,
    /// What retention would do now.
    retention: &'a Retention,
    /// Whether every record is read, too.
    is_deep: bool,
    findings: &'a mut Vec<Finding>,
}

impl Exam<'_> {
    fn path(&self) -> &Path {
        self.queue.path()
    }

    /// What has this path's name in the queue's directory now.
    fn look_at(&self, path: &Path) -> Option<place::Entry> {
        self.dir.look_at(path.file_name()?).ok()
    }

    fn segment_path(&self, id: SegmentId) -> PathBuf {
        self.path().join(segment_name(id))
    }

    fn found(&mut self, severity: Severity, kind: &'static str, path: PathBuf, detail: String, remedy: String) {
        self.findings.push(Finding { severity, kind, path, detail, remedy, fixable: false });
    }

    /// As [`found`](Self::found), for what a writer repairs on opening.
    fn repairable(&mut self, severity: Severity, kind: &'static str, path: PathBuf, detail: String) {
        let fixable = self.inspection.writer.holder.is_none();
        let remedy = if fixable {
            "the next writer repairs it; 'chron-cli doctor --fix' does so now".to_owned()
        } else {
            "start the writer again: it repairs this when it starts".to_owned()
        };
        self.findings.push(Finding { severity, kind, path, detail, remedy, fixable });
    }

    fn control(&mut self) {
        if let Some(damage) = self.queue.control_damage() {
            let path = path_of(damage).unwrap_or_else(|| self.path().join(layout::CONTROL_FILE));
            if self.look_at(&path).is_some_and(|entry| !entry.is_file()) {
                // Reported with the directory's entries; the writer does not touch it.
                return;
            }
            let detail = format!("{}; nothing is lost, the segments hold the settings too", without_path(damage));
            self.repairable(Severity::Error, "control-block", path, detail);
        }
    }

    /// Damage that does no harm yet.
    fn copies(&mut self) {
        if self.queue.control_damage().is_some() {
            return;
        }
        for (path, offset) in self.queue.damaged_copies() {
            if path.ends_with(layout::CONTROL_FILE) {
                let detail = format!("one of two copies is damaged, at offset {offset}; the other one is used");
                self.repairable(Severity::Warning, "damaged-copy", path, detail);
            } else {
                let detail = format!(
                    "one of its two slots is damaged, at offset {offset}; the other one is used: if that is the older \
                     one, messages are read again"
                );
                let remedy = "none needed: the reader's next commits rewrite it".to_owned();
                self.found(Severity::Warning, "damaged-copy", path, detail, remedy);
            }
        }
    }

    fn writer(&mut self) {
        let writer = &self.inspection.writer;
        let age =
            writer.heartbeat_age_ms.map_or_else(String::new, |ms| format!(", last seen {} ago", human_span_ms(ms)));
        match writer.state {
            WriterState::Alive | WriterState::Stuck if !writer.holds_file && writer.holder.is_some() => {
                let lock = self.path().join(layout::LOCK_FILE);
                let who = match &writer.holder {
                    Some(holder @ LockHolder::Process { .. }) => holder.to_string(),
                    _ => "the writer".to_owned(),
                };
                let detail = format!(
                    "{who} writes, but this is not the lock file that it holds: that one was deleted or replaced. \
                     Other writers are kept out nevertheless"
                );
                let remedy = format!("end {who} and start it again, which creates the lock file again");
                self.found(Severity::Warning, "lock-replaced", lock, detail, remedy);
            }
            WriterState::Alive | WriterState::None => {}
            WriterState::Dead => {
                let detail = format!("the writer ended without closing the queue{age}; what it appended is not lost");
                self.repairable(Severity::Warning, "dead-writer", self.path().to_path_buf(), detail);
                let lock = self.path().join(layout::LOCK_FILE);
                let detail = "it still names a writer that has ended; the lock is free, the text is for people only";
                let remedy = "none needed: the next writer writes its own".to_owned();
                self.found(Severity::Info, "stale-lock", lock, detail.to_owned(), remedy);
            }
            WriterState::Stuck => {
                let (who, remedy) = match &writer.holder {
                    Some(LockHolder::Process { pid, command }) => (
                        format!("process {pid} ({command})"),
                        format!("if it was stopped, let it go on: kill -CONT {pid}; if it hangs, end it: kill {pid}"),
                    ),
                    _ => ("a process of another pid namespace".to_owned(), "look in the other containers".to_owned()),
                };
                let detail = format!("{who} holds the lock and has no heartbeat{age}");
                self.found(Severity::Warning, "stuck-writer", self.path().to_path_buf(), detail, remedy);
            }
            WriterState::Unknown => {
                let lock = self.path().join(layout::LOCK_FILE);
                let detail = "the lock can't be read, so it is unknown whether there is a writer";
                let remedy = "check its permissions and its file type".to_owned();
                self.found(Severity::Warning, "lock", lock, detail.to_owned(), remedy);
            }
        }
    }

    fn readers(&mut self) {
        let inspection = self.inspection;
        for reader in &inspection.readers {
            let cursor = self.cursor_path(&reader.name);
            let (queue, name) = (self.path().display().to_string(), &reader.name);
            if let Some(damage) = &reader.damage {
                let detail =
                    format!("{}; until repaired it keeps everything from being retired", strip_path(damage, &cursor));
                let remedy = format!(
                    "choose where it goes on: chron-cli readers {queue} seek {name} first (or end, or a number)"
                );
                self.found(Severity::Error, "damaged-reader", cursor, detail, remedy);
            } else if let Some(position) = reader.position.filter(|&position| position < inspection.bounds.first_seq) {
                let last = inspection.bounds.first_seq - 1;
                let detail = format!("messages {position} to {last} were retired before it read them");
                let remedy = "none: its next read reports the gap, and it goes on after them".to_owned();
                self.found(Severity::Warning, "missed", cursor, detail, remedy);
            } else if is_idle(reader) && !self.retention.ignored.iter().any(|ignored| ignored.reader == *name) {
                let seen = reader.heartbeat_age_ms.map_or_else(
                    || "was last used at an unknown time (before this boot, or by another clock)".to_owned(),
                    |ms| format!("has not been used for {}", human_span_ms(ms)),
                );
                let detail = format!(
                    "it {seen}, lags by {} and keeps {} in {} from being retired",
                    counted(reader.lag_messages, "message"),
                    human_bytes(reader.pins_bytes),
                    counted(reader.pins_segments, "segment")
                );
                let remedy = format!("start it again, or, if it is not needed: chron-cli readers {queue} rm {name}");
                self.found(Severity::Warning, "dead-reader", cursor, detail, remedy);
            }
        }
    }

    /// Readers in use that neither move nor wait: two checks, the first of them `first` ago.
    fn stuck_readers(&mut self, first: Instant) {
        let is_suspect = |r: &&ReaderInfo| {
            r.in_use && r.lag_messages > 0 && r.heartbeat_age_ms.is_some_and(|ms| ms > STUCK_AFTER_MS)
        };
        let inspection = self.inspection;
        let suspects: Vec<&ReaderInfo> = inspection.readers.iter().filter(is_suspect).collect();
        if suspects.is_empty() {
            return;
        }
        std::thread::sleep(SECOND_LOOK.saturating_sub(first.elapsed()));
        let Ok(again) = self.queue.inspect() else { return };
        for reader in suspects {
            let now = again.readers.iter().find(|now| now.name == reader.name);
            let Some(now) = now.filter(|now| is_suspect(now) && now.position == reader.position) else { continue };
            let age = human_span_ms(now.heartbeat_age_ms.unwrap_or(0));
            let detail = format!(
                "a process uses it, but it lags by {}, does not move, and had its last heartbeat {age} ago",
                counted(now.lag_messages, "message")
            );
            let cursor = self.cursor_path(&reader.name);
            let remedy = format!("find it with 'fuser {}'; let it go on, or end it", cursor.display());
            self.found(Severity::Warning, "stuck-reader", cursor, detail, remedy);
        }
    }

    fn relays(&mut self) {
        for relay in bus::relays(self.path()) {
            if let Some(trouble) = relay.trouble() {
                let path = self.path().join(bus::RELAY_DIR).join(format!("{}.json", relay.name));
                let detail = format!("the relay {} ({} {}): {trouble}", relay.name, relay.direction, relay.target);
                let remedy = "see its log; if it is no longer wanted, remove this file and its readers".to_owned();
                self.found(Severity::Warning, "relay", path, detail, remedy);
            }
        }
    }

    fn cursor_path(&self, reader: &str) -> PathBuf {
        self.path().join(layout::READERS_DIR).join(format!("{reader}{}", layout::CURSOR_SUFFIX))
    }

    /// Timestamps never decrease: a stamp from a clock that was ahead remains.
    fn clock(&mut self) {
        let ahead_ns = self.inspection.bounds.last_timestamp_ns.saturating_sub(clock::now_ns());
        if ahead_ns > FUTURE_NS {
            let ahead = human_span_ms(ahead_ns / 1_000_000);
            let detail = format!(
                "its newest message is stamped {ahead} in the future; messages until then get that stamp, and count as \
                 new for --since; retention by age uses the files' times meanwhile"
            );
            let remedy = format!(
                "check this machine's clock, and where the stamp came from; nothing is lost. To get rid of it, copy \
                 what is to be kept: chron-cli tail -n +1 --format jsonl {} | jq -c 'del(.timestamp_ns)' | chron-cli append --format \
                 jsonl NEW",
                self.path().display()
            );
            self.found(Severity::Warning, "future-timestamp", self.path().to_path_buf(), detail, remedy);
        }
    }

    /// Whether the file system has room for what comes next.
    fn room(&mut self) {
        let Ok(stat) = rustix::fs::statvfs(self.path()) else { return };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let needed = u64::from(self.inspection.settings.segment_size).min(ROOM);
        // A file system in memory may have no size.
        if stat.f_blocks > 0 && free < needed {
            let detail = format!("its file system is full: {} are free", human_bytes(free));
            let remedy = format!(
                "appends are refused once the last segment is full: free some room, or let the queue keep less: \
                 chron-cli set {} --retain-bytes SIZE",
                self.path().display()
            );
            self.found(Severity::Warning, "disk-full", self.path().to_path_buf(), detail, remedy);
        }
    }

    fn limits(&mut self) {
        let Some(max_bytes) = self.inspection.settings.max_bytes else { return };
        let head = self.inspection.bounds.head.segment;
        // Without one that is only prepared: it will be the next.
        let in_use = self.inspection.segments.iter().filter(|segment| segment.id <= head);
        let used: u64 = in_use.map(|segment| segment.bytes).sum();
        let settings = &self.inspection.settings;
        let is_full = used.saturating_add(settings.segment_size.into()) > max_bytes;
        if is_full || used.saturating_mul(100) >= max_bytes.saturating_mul(NEARLY_FULL) {
            let sizes = format!("its segments take {} of at most {}", human_bytes(used), human_bytes(max_bytes));
            let (kind, detail) =
                if is_full { ("full", format!("{sizes}: there is room for no other")) } else { ("nearly-full", sizes) };
            let queue = self.path().display();
            let remedy = if settings::fills_for_good(settings) {
                format!(
                    "appends are refused when the last one is full, and retention removes nothing: chron-cli set {queue} \
                     --retain-bytes SIZE, or a larger --max-bytes"
                )
            } else {
                format!(
                    "let readers catch up and run: chron-cli retain {queue}; or raise the limit: chron-cli set {queue} \
                     --max-bytes SIZE"
                )
            };
            self.found(Severity::Warning, kind, self.path().to_path_buf(), detail, remedy);
        }
    }

    /// What retention would remove now, and which readers keep more.
    fn retention(&mut self) {
        let retention = self.retention;
        let queue = self.path().display().to_string();
        if !retention.removed.is_empty() {
            let bytes = retention.removed.iter().map(|segment| segment.bytes).sum();
            let segments = counted(retention.removed.len() as u64, "segment");
            let detail = format!("{} in {segments} can be removed", human_bytes(bytes));
            let remedy = format!("the writer removes it at its next segment; now: chron-cli retain {queue}");
            self.found(Severity::Info, "retention", self.path().to_path_buf(), detail, remedy);
        }
        for pin in retention.pins.iter().filter(|pin| pin.segments > 0) {
            let what = human_bytes(pin.bytes);
            let segments = counted(pin.segments, "segment");
            let mut detail = format!("it keeps {what} in {segments}, beyond the queue's limits");
            let mut remedy =
                format!("let it catch up; or, if it is not needed: chron-cli readers {queue} rm {}", pin.reader);
            let mut severity = Severity::Info;
            if pin.bytes > self.retained_bytes().saturating_mul(TIMES_THE_LIMIT) {
                severity = Severity::Warning;
                detail += &format!(", more than {TIMES_THE_LIMIT} times as much as they allow");
                remedy += &format!(
                    "; to limit what any reader keeps: chron-cli set {queue} --max-lag SIZE --reader-ttl SPAN"
                );
            }
            self.found(severity, "pinned", self.cursor_path(&pin.reader), detail, remedy);
        }
        let lags = |name: &str| self.inspection.readers.iter().any(|r| r.name == name && r.lag_messages > 0);
        for ignored in retention.ignored.iter().filter(|ignored| lags(&ignored.reader)) {
            let (why, remedy) = match ignored.reason {
                IgnoredReason::TooFarBehind => ("lags by more than the queue's limit", "let it catch up soon"),
                IgnoredReason::Dead => ("has no heartbeat for longer than the queue's limit", "start it again soon"),
            };
            let detail = format!("it {why}: nothing is kept for it any more, and its next read reports what it missed");
            let remedy = format!("{remedy}; or, if it is not needed: chron-cli readers {queue} rm {}", ignored.reader);
            self.found(Severity::Warning, "ignored-reader", self.cursor_path(&ignored.reader), detail, remedy);
        }
    }

    /// How much the limits of bytes and number let retention keep.
    fn retained_bytes(&self) -> u64 {
        let settings = &self.inspection.settings;
        let size = u64::from(settings.segment_size);
        let by_count = settings.retain_segments.map(|count| size.saturating_mul(count.into()));
        let limits = [settings.retain_bytes, by_count].into_iter().flatten();
        limits.min().map_or(RETAINED_BY_AGE, |bytes| bytes.max(size))
    }

    /// Quick: whether each segment starts with a valid record.
    fn first_records(&mut self) -> crate::queue::Result<()> {
        let inspection = self.inspection;
        let mut scanner = self.queue.scan()?;
        let in_use = |s: &&SegmentInfo| s.first_seq > 0 && s.last_seq >= s.first_seq;
        for segment in inspection.segments.iter().filter(in_use) {
            let start = Position { segment: segment.id, offset: layout::RECORDS_START };
            scanner.seek(start, segment.first_seq)?;
            let gap = match scanner.next()? {
                Some(Entry::Gap(gap)) if gap.position.segment == segment.id => gap,
                _ => continue,
            };
            self.gap(&gap);
        }
        Ok(())
    }

    fn every_record(&mut self, step: &mut dyn FnMut(u64)) -> crate::queue::Result<()> {
        let mut scanner = self.queue.scan()?;
        // The end as it is now: a writer may move it.
        let end = self.inspection.bounds.end_seq;
        let (mut count, mut gaps) = (0_u32, 0_u64);
        while scanner.seq() < end {
            match scanner.next()? {
                None => break,
                Some(Entry::Message(_)) => {}
                Some(Entry::Gap(gap)) => {
                    gaps += 1;
                    if gaps <= MAX_GAPS {
                        self.gap(&gap);
                    }
                }
            }
            count += 1;
            if count.is_multiple_of(STEP) {
                let at = scanner.position();
                let before = self.inspection.segments.iter().filter(|segment| segment.id < at.segment);
                step(before.map(|segment| segment.bytes).sum::<u64>() + u64::from(at.offset));
            }
        }
        if gaps > MAX_GAPS {
            let detail = format!("{} more gaps", gaps - MAX_GAPS);
            let remedy =
                format!("see them all: chron-cli tail -n +1 --format txt {} > /dev/null", self.path().display());
            self.found(Severity::Error, "gap", self.path().to_path_buf(), detail, remedy);
        }
        Ok(())
    }

    fn gap(&mut self, gap: &Gap) {
        let Gap { from, to, reason, position } = gap;
        if self.is_retired(position.segment) {
            return;
        }
        let path = self.segment_path(position.segment);
        let what = match reason {
            GapReason::Checksum => "a record does not match its checksum",
            GapReason::Segment => "the segment is missing, truncated or not this queue's",
            GapReason::Lost => {
                "a power cut lost what had not been synced, the copy is incomplete, or the file was removed"
            }
            GapReason::Retired => "retention removed them",
            GapReason::Upstream(_) => "they were missing already where this queue is copied from",
        };
        let messages = if from == to { format!("message {from} is") } else { format!("messages {from} to {to} are") };
        let detail = format!("{messages} missing: {what}, at offset {}", position.offset);
        let remedy = match reason {
            GapReason::Upstream(_) => "none needed: nothing is damaged here",
            _ => "restore the segment from a copy, if there is one; readers go on after the gap",
        }
        .to_owned();
        let severity = match reason {
            GapReason::Checksum | GapReason::Segment => Severity::Error,
            GapReason::Lost | GapReason::Retired => Severity::Warning,
            GapReason::Upstream(_) => Severity::Info,
        };
        self.found(severity, "gap", path, detail, remedy);
    }
}

fn is_idle(reader: &ReaderInfo) -> bool {
    !reader.in_use && reader.pins_segments > 0 && reader.heartbeat_age_ms.is_none_or(|age_ms| age_ms > IDLE_AFTER_MS)
}

/// The file that an error is about.
fn path_of(error: &Error) -> Option<PathBuf> {
    match error {
        Error::Damaged { path, .. }
        | Error::Refused { path, .. }
        | Error::UnsupportedVersion { path, .. }
        | Error::NotAQueue { path, .. } => Some(path.clone()),
        _ => None,
    }
}

/// An error's text without the file's name, which is printed beside it.
fn without_path(error: &Error) -> String {
    let text = error.to_string();
    path_of(error).map_or_else(|| text.clone(), |path| strip_path(&text, &path))
}

fn strip_path(text: &str, path: &Path) -> String {
    text.strip_prefix(&format!("{}: ", path.display())).unwrap_or(text).to_owned()
}
