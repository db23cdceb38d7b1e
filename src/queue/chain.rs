//! The segments of a queue: which there are, which number comes next, and whether each follows the one before it.

use super::Shared;
use super::dir::Access;
use super::error::{Error, Result};
use super::layout;
use super::names::segment_name;
use super::position::SegmentId;
use super::segment::{self, Link, Segment};

impl Shared {
    /// Opens a segment, if it is one of this queue's.
    pub(crate) fn open_segment(&self, id: SegmentId, access: Access) -> Result<Option<Segment>> {
        let segment = Segment::open(&self.dir, &self.geometry, id, access)?;
        if let Some(segment) = &segment
            && let Some(previous) = self.unlike_previous(segment)
            // Where that one does not belong here either, this one need not follow it.
            && self.unlike_previous(&previous).is_none()
        {
            let what = format!(
                "it does not follow segment {} as that is here: one of the two comes from a copy of the queue that went \
                 on by itself",
                previous.id
            );
            return Err(Error::damaged(&segment.path, u64::from(layout::SEGMENT_START), what));
        }
        Ok(segment)
    }

    /// The segment that this one says it follows, if that did not end as this one says.
    fn unlike_previous(&self, segment: &Segment) -> Option<Segment> {
        let (id, sum) = segment.previous()?;
        let previous = Segment::open(&self.dir, &self.geometry, id, Access::Read).ok()??;
        previous.seal_sum().is_some_and(|found| found != sum).then_some(previous)
    }

    /// What a segment of this number is to say of the one before it.
    pub(super) fn link_before(&self, id: SegmentId) -> Result<Option<Link>> {
        let before = self.segment_ids()?.into_iter().rfind(|&before| before < id);
        let segment = before.and_then(|before| self.open_segment(before, Access::Read).ok().flatten());
        Ok(segment.and_then(|segment| Some((segment.id, segment.seal_sum()?))))
    }

    /// The segments that are there, ascending.
    pub(crate) fn segment_ids(&self) -> Result<Vec<SegmentId>> {
        segment::list(&self.dir)
    }

    /// The number after this one.
    ///
    /// # Errors
    /// [`Error::Damaged`] if this is the largest: the writer can't go on.
    pub(crate) fn id_after(&self, id: SegmentId) -> Result<SegmentId> {
        id.next().ok_or_else(|| {
            let what =
                "no larger segment number exists; move the file away if it has been put here, else make another queue";
            Error::damaged(&self.dir.path_of(&segment_name(id)), 0, what)
        })
    }

    /// The first number after this one that no file has.
    ///
    /// # Errors
    /// As [`id_after`](Self::id_after), and if the directory can't be read.
    pub(crate) fn free_id_after(&self, id: SegmentId) -> Result<SegmentId> {
        let mut free = self.id_after(id)?;
        for taken in self.segment_ids()? {
            if taken == free {
                free = self.id_after(taken)?;
            }
        }
        Ok(free)
    }
}
