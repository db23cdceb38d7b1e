//! What the helper sees of the writer's progress, without help from it: for the mtime of the active segment, and for
//! syncs.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::queue::error::{Error, Result};
use crate::queue::files::control;
use crate::queue::files::dir::Access;
use crate::queue::files::mtime;
use crate::queue::files::room;
use crate::queue::files::segment::Segment;
use crate::queue::files::store::Store;
use crate::queue::format::block::read_block;
use crate::queue::format::layout::{self, CONTROL_FILE, CONTROL_HEAD, CONTROL_LEN, MessageHeader, RECORDS_START};
use crate::queue::format::record::RecordContext;
use crate::queue::os::mapping::Mapping;
use crate::queue::os::sys;
use crate::queue::position::{Position, SegmentId};
use crate::queue::write::gate::Entered;
use crate::sync::Ordering;

/// The mtime of a segment is updated at most this long after a message.
const EVERY: Duration = Duration::from_secs(1);

/// Bytes of records that are passed in one look; several times what the writer appends before it publishes a head.
const MANY: u32 = 256 << 10;
/// Bytes that are read at once.
const WINDOW: usize = 16 << 10;

/// Whether an error means that the file system has given up after a disk error (`errors=remount-ro`), or is gone.
/// Stores into a mapping then go no further than memory, and no other error reports it.
fn has_given_up(error: &io::Error) -> bool {
    [libc::EROFS, libc::EIO, libc::ENOTCONN].map(Some).contains(&error.raw_os_error())
}

/// The segment that the writer appends to.
#[derive(Debug, Clone)]
pub(crate) struct Active {
    pub(crate) id: SegmentId,
    pub(crate) context: RecordContext,
    pub(crate) map: Arc<Mapping>,
}

impl Active {
    pub(crate) fn has_records(&self) -> bool {
        self.map.word(self.context.records_start()).load(Ordering::Relaxed) != 0
    }

    /// Whether something may have been appended since this was asked last.
    pub(crate) fn is_new(&self, store: &Store, entered: Entered, last: &mut Over) -> bool {
        let is_new = *last != Some((self.id, entered));
        if is_new {
            *last = self.is_over(store, entered).then_some((self.id, entered));
        }
        is_new
    }

    /// Whether the append that has `entered` last is over; if not, what it stores may come later.
    fn is_over(&self, store: &Store, entered: Entered) -> bool {
        let Some(offset) = entered.storing_at() else { return true };
        let Ok(Some(segment)) = store.open_segment(self.id, Access::Read) else { return false };
        read_block::<MessageHeader>(&segment.file, offset).is_some_and(|header| header.commit.get() != 0)
    }
}

/// What the last append had entered, if it was over: nothing has been appended while it is the same.
pub(crate) type Over = Option<(SegmentId, Entered)>;

/// Checks from time to time whether something was appended, without help from the writer.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Where the records ended.
    seen: Option<Position>,
    over: Over,
    looked: Option<Instant>,
}

impl Progress {
    /// Updates the active segment's mtime if the writer has appended since the last check. Reserves its room again as
    /// well, because a copy of the file may share its blocks.
    ///
    /// # Errors
    /// If what is appended no longer reaches a disk, or a queue.
    pub(crate) fn look(&mut self, store: &Store, control: &Mapping, active: &Active, entered: Entered) -> Result<()> {
        let id = active.id;
        if self.looked.is_some_and(|looked| looked.elapsed() < EVERY) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        store.check_present()?;
        if self.over == Some((id, entered)) {
            return Ok(());
        }
        let head =
            control::newest_head(CONTROL_HEAD.map(|offset| Some(control.read(offset)))).map(|head| head.position);
        let in_this = |known: Option<Position>| known.filter(|known| known.segment == id).map(|known| known.offset);
        let known = in_this(head).or_else(|| in_this(self.seen)).unwrap_or(RECORDS_START);
        let touched = store.open_segment(id, Access::Write).and_then(|segment| {
            let Some(segment) = segment else { return Ok(true) };
            let offset = end_of_records(&segment, known)?;
            let end = Position { segment: id, offset };
            // An append that is under way stores there.
            self.over = (entered.storing_at() != Some(offset)).then_some((id, entered));
            if self.seen.replace(end) == Some(end) {
                return Ok(false);
            }
            // Without room an append fails, with or without this.
            let _ = room::renew(&segment.file, end.offset.into(), segment.context.segment_size.into());
            mtime::touch(&segment.file).map_err(Error::io(&segment.path, "store into it"))?;
            Ok(true)
        });
        match touched {
            Err(Error::Io { ref source, .. }) if has_given_up(source) => return touched.map(drop),
            Ok(false) => return Ok(()),
            Ok(true) => {}
            // Not again before the next append.
            Err(_) => self.over = Some((id, entered)),
        }
        if let Ok(Some(file)) = store.dir.open_file(CONTROL_FILE, Access::Write) {
            let _ = room::renew(&file, 0, CONTROL_LEN.into());
            let _ = mtime::touch(&file);
        }
        Ok(())
    }
}

/// The end of the consecutive records from `offset` on, or of the first ones, if there are many: the writer publishes a
/// head more often than that. Not by the mapping: where the disk is full, a load from the page after the last record
/// would make the writer lose it.
fn end_of_records(segment: &Segment, offset: u32) -> Result<u32> {
    let context = &segment.context;
    let first = context.next_place(offset);
    let (mut offset, mut window, mut window_start) = (first, Vec::new(), first);
    while context.is_place(offset) && offset - first < MANY {
        if (offset - window_start) as usize + size_of::<u32>() > window.len() {
            window.resize(WINDOW, 0);
            let len =
                sys::read_some(&segment.file, &mut window, offset).map_err(Error::io(&segment.path, "read it"))?;
            window.truncate(len);
            window_start = offset;
        }
        let commit = window.get((offset - window_start) as usize..).and_then(<[u8]>::first_chunk);
        let len = commit.and_then(|&commit| u32::from_le_bytes(commit).checked_sub(1)).and_then(layout::record_len);
        match len.and_then(|len| offset.checked_add(len)) {
            Some(end) => offset = context.next_place(end),
            None => break,
        }
    }
    Ok(offset)
}
