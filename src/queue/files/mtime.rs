//! The time of modification of files that are stored into by mappings: the system moves it when it likes, and in memory
//! never, but programs that copy what has changed go by it.

use std::fs::File;
use std::time::{Duration, Instant};

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};

use crate::queue::files::control;
use crate::queue::files::dir::Access;
use crate::queue::files::room;
use crate::queue::files::store::Store;
use crate::queue::format::layout::{self, CONTROL_FILE, CONTROL_HEAD, CONTROL_LEN, RECORDS_START};
use crate::queue::format::record::is_record_offset;
use crate::queue::os::mapping::Mapping;
use crate::queue::position::{Position, SegmentId};
use crate::sync::Ordering;

/// How long after a message its segment's time of modification moves, at most.
const EVERY: Duration = Duration::from_secs(1);

/// Says that the file has changed now. Best effort: where it can't be said, the contents are right all the same.
pub(crate) fn touch(file: &File) {
    // Both of them: whoever may write to the file may set them to now, but each by itself only its owner.
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let _ = futimens(file, &Timestamps { last_access: now, last_modification: now });
}

/// Says so of the control block.
pub(crate) fn touch_control(store: &Store) {
    if let Ok(Some(file)) = store.dir.open_file(CONTROL_FILE, Access::Write) {
        touch(&file);
    }
}

/// Looks now and then whether something was appended, without help of the writer's.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    seen: Option<Position>,
    looked: Option<Instant>,
}

impl Progress {
    /// Moves the active segment's time of modification if the writer has appended since the last look. And takes its room
    /// again, which a copy of the file may have taken away.
    pub(crate) fn look(&mut self, store: &Store, control: &Mapping, (id, map): (SegmentId, &Mapping)) {
        if self.looked.is_some_and(|looked| looked.elapsed() < EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        let head =
            control::newest_head(CONTROL_HEAD.map(|offset| Some(control.read(offset)))).map(|head| head.position);
        let known = [self.seen, head].into_iter().flatten().filter(|known| known.segment == id).max();
        let offset = end_of_records(map, known.map_or(RECORDS_START, |known| known.offset));
        let end = Position { segment: id, offset };
        if self.seen == Some(end) {
            return;
        }
        self.seen = Some(end);
        if let Ok(Some(segment)) = store.open_segment(id, Access::Write) {
            // Without room an append fails, as it does without this.
            let _ = room::renew(&segment.file, end.offset.into(), segment.context.segment_size.into());
            touch(&segment.file);
        }
        if let Ok(Some(file)) = store.dir.open_file(CONTROL_FILE, Access::Write) {
            let _ = room::renew(&file, 0, CONTROL_LEN.into());
            touch(&file);
        }
    }
}

/// Where the records end that follow one another from `offset` on.
fn end_of_records(map: &Mapping, mut offset: u32) -> u32 {
    let size = u32::try_from(map.len()).unwrap_or(u32::MAX);
    while is_record_offset(offset, size) {
        let commit = u32::from_le(map.word(offset).load(Ordering::Relaxed));
        let len = commit.checked_sub(1).and_then(layout::record_len);
        match len.and_then(|len| offset.checked_add(len)) {
            Some(next) => offset = next,
            None => break,
        }
    }
    offset
}
