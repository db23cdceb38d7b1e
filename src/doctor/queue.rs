//! One queue: its control block, writer, readers, segments; and every record, when asked to look deep.

use std::path::{Path, PathBuf};

use super::{Finding, Report, Severity, endpoint, files};
use crate::queue::{
    Entry, Error, Gap, GapReason, Inspection, LockHolder, Position, Queue, ReaderInfo, SegmentId, SegmentInfo,
    WriterState, layout,
};
use crate::report::{human_bytes, human_span_ms};

/// A reader that pins segments and has shown no sign of life for this long is named.
const IDLE_AFTER_MS: u64 = 3_600_000;
/// Of its limit, in percent: a queue that takes more is nearly full.
const NEARLY_FULL: u64 = 90;
/// Entries read between two reports of progress.
const STEP: u32 = 4096;
/// So many gaps of one queue are named; the others are counted.
const MAX_GAPS: u64 = 1000;

/// Everything about one queue. `step` takes the bytes that have been read.
pub(super) fn examine(path: &Path, deep: bool, step: &mut dyn FnMut(u64), report: &mut Report) {
    let inspected = Queue::open(path).and_then(|queue| {
        let inspection = queue.inspect()?;
        Ok((queue, inspection))
    });
    let (queue, inspection) = match inspected {
        Ok(found) => found,
        Err(error @ (Error::Damaged { .. } | Error::UnsupportedVersion { .. } | Error::NotAQueue { .. })) => {
            let remedy = "restore it from a copy; nothing here can be read without it".to_owned();
            let detail = without_path(&error);
            let path = path_of(&error).unwrap_or_else(|| path.to_path_buf());
            report.findings.push(Finding {
                severity: Severity::Error,
                kind: "unreadable-queue",
                path,
                detail,
                remedy,
                fixable: false,
            });
            return;
        }
        Err(error) => {
            report.unchecked.push(error.to_string());
            return;
        }
    };
    let mut exam = Exam { queue: &queue, inspection: &inspection, findings: &mut report.findings };
    exam.control();
    exam.writer();
    exam.readers();
    exam.segments();
    exam.limits();
    exam.retention();
    let read = if deep { exam.every_record(step) } else { exam.first_records() };
    if let Err(error) = read {
        report.unchecked.push(error.to_string());
    }
    let has_writer = inspection.writer.holder.is_some();
    files::queue_directory(path, has_writer, &mut report.findings);
    endpoint(path, &mut report.findings);
}

struct Exam<'a> {
    queue: &'a Queue,
    inspection: &'a Inspection,
    findings: &'a mut Vec<Finding>,
}

impl Exam<'_> {
    fn path(&self) -> &Path {
        self.queue.path()
    }

    fn segment_path(&self, id: SegmentId) -> PathBuf {
        self.path().join(format!("{:09}{}", id.0, layout::SEGMENT_SUFFIX))
    }

    fn found(&mut self, severity: Severity, kind: &'static str, path: PathBuf, detail: String, remedy: String) {
        self.findings.push(Finding { severity, kind, path, detail, remedy, fixable: false });
    }

    /// As [`found`](Self::found), of what a writer repairs that comes and goes.
    fn repairable(&mut self, severity: Severity, kind: &'static str, path: PathBuf, detail: String) {
        let fixable = self.inspection.writer.holder.is_none();
        let remedy = if fixable {
            "the next writer repairs it; 'chron-cli doctor --fix' does it now".to_owned()
        } else {
            "start the writer again: it repairs this when it starts".to_owned()
        };
        self.findings.push(Finding { severity, kind, path, detail, remedy, fixable });
    }

    fn control(&mut self) {
        if let Some(damage) = self.queue.control_damage() {
            let path = path_of(damage).unwrap_or_else(|| self.path().join(layout::CONTROL_FILE));
            let detail = format!("{}; nothing is lost, the settings stand in the segments too", without_path(damage));
            self.repairable(Severity::Error, "control-block", path, detail);
        }
    }

    fn writer(&mut self) {
        let writer = &self.inspection.writer;
        let age =
            writer.heartbeat_age_ms.map_or_else(String::new, |ms| format!(", last seen {} ago", human_span_ms(ms)));
        match writer.state {
            WriterState::Alive | WriterState::None => {}
            WriterState::Dead => {
                let detail = format!("the writer ended without closing the queue{age}; what it appended is there");
                self.repairable(Severity::Warning, "dead-writer", self.path().to_path_buf(), detail);
                let lock = self.path().join(layout::LOCK_FILE);
                let detail = "it still names the writer that ended; nobody holds the lock, the text is for people only";
                let remedy = "none needed: the next writer writes its own".to_owned();
                self.found(Severity::Info, "stale-lock", lock, detail.to_owned(), remedy);
            }
            WriterState::Stuck => {
                let (who, remedy) = match &writer.holder {
                    Some(LockHolder::Process { pid, command }) => (
                        format!("process {pid} ({command})"),
                        format!("if it was stopped, let it go on: kill -CONT {pid}; if it hangs, end it: kill {pid}"),
                    ),
                    _ => {
                        ("a process that can't be seen from here".to_owned(), "look in the other containers".to_owned())
                    }
                };
                let detail = format!("{who} holds the lock and gives no sign of life{age}");
                self.found(Severity::Warning, "stuck-writer", self.path().to_path_buf(), detail, remedy);
            }
            WriterState::Unknown => {
                let lock = self.path().join(layout::LOCK_FILE);
                let detail = "the lock can't be looked at, so that nobody knows whether there is a writer";
                let remedy = "look at its permissions and at what kind of file it is".to_owned();
                self.found(Severity::Warning, "lock", lock, detail.to_owned(), remedy);
            }
        }
    }

    fn readers(&mut self) {
        let inspection = self.inspection;
        for reader in &inspection.readers {
            let cursor =
                self.path().join(layout::READERS_DIR).join(format!("{}{}", reader.name, layout::CURSOR_SUFFIX));
            let (queue, name) = (self.path().display().to_string(), &reader.name);
            if let Some(damage) = &reader.damage {
                let detail =
                    format!("{}; until then it keeps everything from being retired", strip_path(damage, &cursor));
                let remedy = format!(
                    "say where it shall go on: chron-cli readers {queue} seek {name} first (or end, or a number)"
                );
                self.found(Severity::Error, "damaged-reader", cursor, detail, remedy);
            } else if is_idle(reader, inspection.settings.reader_ttl_ns) {
                let seen = reader.heartbeat_age_ms.map_or_else(
                    || "has not been used since this machine was started".to_owned(),
                    |ms| format!("has not been used for {}", human_span_ms(ms)),
                );
                let detail = format!(
                    "it {seen}, is {} messages behind and keeps {} in {} segments from being retired",
                    reader.lag_messages,
                    human_bytes(reader.pins_bytes),
                    reader.pins_segments
                );
                let remedy = format!("start it again, or, if nobody needs it: chron-cli readers {queue} rm {name}");
                self.found(Severity::Warning, "dead-reader", cursor, detail, remedy);
            }
        }
    }

    fn segments(&mut self) {
        let inspection = self.inspection;
        let head = inspection.bounds.head.segment;
        let restore = || "restore the file from a copy; its messages are reported as missing until then".to_owned();
        let mut previous: Option<&SegmentInfo> = None;
        for segment in &inspection.segments {
            let path = self.segment_path(segment.id);
            let len = std::fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
            let expected = u64::from(inspection.settings.segment_size);
            if len < expected {
                let detail = format!("it is cut short: {len} bytes instead of {expected}");
                self.found(Severity::Error, "truncated-segment", path.clone(), detail, restore());
            } else if segment.bytes == 0 {
                let detail =
                    "its beginning is damaged, or it belongs elsewhere: its name, its queue or its size is another";
                let remedy = "if it was renamed or copied here, put it back; else restore it from a copy".to_owned();
                self.found(Severity::Error, "damaged-segment", path.clone(), detail.to_owned(), remedy);
            }
            if let Some(before) = previous.filter(|before| before.id.next() != segment.id && segment.id <= head) {
                let path = self.segment_path(before.id.next());
                let detail = format!("missing: the queue has segments {} and {}", before.id, segment.id);
                self.found(Severity::Error, "missing-segment", path, detail, restore());
            }
            previous = Some(segment);
        }
    }

    fn limits(&mut self) {
        let Some(max_bytes) = self.inspection.settings.max_bytes else { return };
        let used: u64 = self.inspection.segments.iter().map(|segment| segment.bytes).sum();
        if used.saturating_mul(100) >= max_bytes.saturating_mul(NEARLY_FULL) {
            let detail = format!("its segments take {} of at most {}", human_bytes(used), human_bytes(max_bytes));
            let remedy = format!(
                "let readers catch up and run: chron-cli retain {}; appends are refused when it is full",
                self.path().display()
            );
            self.found(Severity::Warning, "nearly-full", self.path().to_path_buf(), detail, remedy);
        }
    }

    /// What retention would remove now, and who keeps it from more.
    fn retention(&mut self) {
        let Ok(retention) = self.queue.retain(true) else { return };
        let queue = self.path().display().to_string();
        if !retention.removed.is_empty() {
            let bytes = retention.removed.iter().map(|segment| segment.bytes).sum();
            let detail = format!("{} in {} segments can go", human_bytes(bytes), retention.removed.len());
            let remedy = format!("the writer removes it at its next segment; now: chron-cli retain {queue}");
            self.found(Severity::Info, "retention", self.path().to_path_buf(), detail, remedy);
        }
        for pin in retention.pins.iter().filter(|pin| pin.segments > 0) {
            let what = human_bytes(pin.bytes);
            let detail = format!("it keeps {what} in {} segments that the queue's limits would let go", pin.segments);
            let remedy =
                format!("let it catch up; or, if nobody needs it: chron-cli readers {queue} rm {}", pin.reader);
            let cursor = format!("{}{}", pin.reader, layout::CURSOR_SUFFIX);
            let path = self.path().join(layout::READERS_DIR).join(cursor);
            self.found(Severity::Info, "pinned", path, detail, remedy);
        }
    }

    /// Quick: whether each segment starts with a sound record.
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
        let first = self.inspection.bounds.first.segment.0;
        let segment_size = u64::from(self.inspection.settings.segment_size);
        let mut scanner = self.queue.scan()?;
        // A queue that is being written to has an end all the same.
        let end = self.inspection.bounds.next_seq;
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
                step(u64::from(at.segment.0.saturating_sub(first)) * segment_size + u64::from(at.offset));
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
        let path = self.segment_path(position.segment);
        let what = match reason {
            GapReason::Checksum => "a record does not match its checksum",
            GapReason::Segment => "the segment is missing, cut short or another one",
            GapReason::Lost => "a power cut took what had not been synced",
            GapReason::Retired => "retention removed them",
        };
        let messages = if from == to { format!("message {from} is") } else { format!("messages {from} to {to} are") };
        let detail = format!("{messages} missing: {what}, at offset {}", position.offset);
        let remedy = "restore the segment from a copy if they matter; readers go on behind the gap".to_owned();
        let severity = match reason {
            GapReason::Checksum | GapReason::Segment => Severity::Error,
            GapReason::Lost | GapReason::Retired => Severity::Warning,
        };
        self.found(severity, "gap", path, detail, remedy);
    }
}

fn is_idle(reader: &ReaderInfo, ttl_ns: Option<u64>) -> bool {
    let after_ms = ttl_ns.map_or(IDLE_AFTER_MS, |ns| ns / 1_000_000);
    !reader.in_use && reader.pins_segments > 0 && reader.heartbeat_age_ms.is_none_or(|age_ms| age_ms > after_ms)
}

/// The file that an error is about.
fn path_of(error: &Error) -> Option<PathBuf> {
    match error {
        Error::Damaged { path, .. } | Error::UnsupportedVersion { path, .. } | Error::NotAQueue { path, .. } => {
            Some(path.clone())
        }
        _ => None,
    }
}

/// An error's text without the file's name, which stands beside it.
fn without_path(error: &Error) -> String {
    let text = error.to_string();
    path_of(error).map_or_else(|| text.clone(), |path| strip_path(&text, &path))
}

fn strip_path(text: &str, path: &Path) -> String {
    text.strip_prefix(&format!("{}: ", path.display())).unwrap_or(text).to_owned()
}
