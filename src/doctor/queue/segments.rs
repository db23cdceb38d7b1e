//! The segments' files.

use super::{Exam, place};
use crate::doctor::Severity;
use crate::queue::{Gap, GapReason, SegmentId, SegmentInfo, layout};

impl Exam<'_> {
    pub(super) fn segments(&mut self) {
        let inspection = self.inspection;
        let restore = || "restore the file from a copy; its messages are reported as missing until then".to_owned();
        let mut previous: Option<&SegmentInfo> = None;
        for segment in &inspection.segments {
            let path = self.segment_path(segment.id);
            let seen = self.look_at(&path);
            let len = seen.as_ref().map_or(0, place::Entry::len);
            if self.is_retired(segment.id) {
                continue;
            }
            // What is too short for any segment need not say how long it was.
            let expected = segment.created_bytes.max(layout::MIN_SEGMENT_SIZE.into());
            if seen.is_some_and(|entry| !entry.is_file()) {
                // Reported with the directory's entries.
            } else if len < expected && self.holds_nothing(segment.id) {
                let detail = format!("it is truncated: {len} bytes instead of {expected}; it never held a message");
                let remedy = "none needed: the writer goes on in another one".to_owned();
                self.found(Severity::Info, "truncated-segment", path.clone(), detail, remedy);
            } else if len < expected {
                let detail = format!("it is truncated: {len} bytes instead of {expected}");
                self.found(Severity::Error, "truncated-segment", path.clone(), detail, restore());
            } else if segment.bytes == 0 {
                let detail = "its beginning is damaged, or it belongs elsewhere: its name, queue or size differs, or it \
                     does not follow the one before it (one of them comes from a copy of the queue)";
                let remedy = "if it was renamed or copied here, put it back; else restore it from a copy".to_owned();
                self.found(Severity::Error, "damaged-segment", path.clone(), detail.to_owned(), remedy);
            } else if let Some(offset) = self.queue.damaged_identity(segment.id) {
                let detail = format!("the copy of its identity at offset {offset} is damaged; the other one is used");
                let remedy = "nothing is missing; check the disk, and restore the file from a copy, if there is one";
                self.found(Severity::Warning, "damaged-copy", path.clone(), detail, remedy.to_owned());
            }
            let is_missing = |id: &SegmentId| *id < segment.id && !self.is_retired(*id) && !self.holds_nothing(*id);
            if let Some((before, missing)) = previous.and_then(|b| Some((b, b.id.next().filter(is_missing)?))) {
                let path = self.segment_path(missing);
                let detail = format!("the queue has segments {} and {}", before.id, segment.id);
                self.found(Severity::Error, "missing-segment", path, detail, restore());
            }
            previous = Some(segment);
        }
        self.newest_segment();
    }

    /// A queue whose newest segments are missing ends early, without a gap until the next writer.
    fn newest_segment(&mut self) {
        let Some((segment, next_seq)) = self.queue.published_head() else { return };
        let path = self.segment_path(segment);
        let is_there = self.inspection.segments.iter().any(|there| there.id >= segment);
        if is_there || self.look_at(&path).is_some() || self.is_retired(segment) {
            return self.lost_end();
        }
        let last_seq = self.inspection.segments.iter().map(|segment| segment.last_seq).max().unwrap_or(0);
        let what = match next_seq.saturating_sub(last_seq) {
            0 | 1 => "the queue ends in it".to_owned(),
            2 => format!("it held message {}", last_seq + 1),
            _ => format!("it held messages {} to {}", last_seq + 1, next_seq - 1),
        };
        let remedy =
            "restore the file from a copy before the next append; the next writer goes on after these messages";
        self.found(Severity::Error, "missing-segment", path, what, remedy.to_owned());
    }

    /// Messages missing at the end although the file exists: readers are told so, too, unless there is a writer.
    fn lost_end(&mut self) {
        let bounds = &self.inspection.bounds;
        if self.is_deep || bounds.end_seq <= bounds.next_seq || self.inspection.writer.holder.is_some() {
            return;
        }
        let (from, to) = (bounds.next_seq, bounds.end_seq - 1);
        self.gap(&Gap { from, to, reason: GapReason::Lost, position: bounds.head });
    }

    /// Whether retention has removed a segment since the queue was examined, or the one before it.
    pub(super) fn is_retired(&self, id: SegmentId) -> bool {
        let is_gone = || self.look_at(&self.segment_path(id)).is_none();
        is_gone() && self.queue.bounds().is_ok_and(|bounds| id < bounds.first.segment)
    }

    /// Whether no message can have been in this segment: those before it and after it leave none out, or the last writer
    /// closed the queue before it.
    fn holds_nothing(&self, id: SegmentId) -> bool {
        let in_use = |segment: &&SegmentInfo| segment.first_seq > 0;
        let segments = &self.inspection.segments;
        if segments.iter().any(|segment| segment.id == id && segment.first_seq > 0) {
            return false;
        }
        let Some(before) = segments.iter().filter(in_use).rfind(|before| before.id < id) else { return false };
        let next_seq = before.last_seq + 1;
        match segments.iter().filter(in_use).find(|after| after.id > id) {
            Some(after) => after.first_seq == next_seq,
            None => self.queue.closed_head() == Some((before.id, next_seq)),
        }
    }
}
