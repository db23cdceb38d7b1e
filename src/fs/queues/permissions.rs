//! Who may read a queue's messages, and who may append.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use rustix::fs::{Access, Stat};

use crate::fs::attr::narrowed;
use crate::fs::credentials::{Caller, READ};
use crate::fs::errno::{Errno, Result};
use crate::fs::lock;
use crate::fs::queues::open_queue::OpenQueue;
use crate::queue::{SegmentId, layout, segment_name};

/// Callers that are remembered for a queue.
const MAX_CALLERS: usize = 64;
/// How long the result of a check of read permission stays valid: long enough for a listing of many messages, short
/// enough to go unnoticed in a shell; longer where there are many segments to stat.
const DATA_STAT_HOLDS: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(250)];
const MANY_SEGMENTS: usize = 16;

impl OpenQueue {
    /// Attributes whose mode decides who may read the messages. A native reader needs the control block and the
    /// segments, so access is limited to what all of them allow; where the control block or the segments are missing,
    /// the others decide.
    pub(crate) fn data_stat(&self) -> Result<Stat> {
        let mut known = lock(&self.permissions.data_stat);
        if let Some((until, stat)) = *known
            && Instant::now() < until
        {
            return Ok(stat);
        }
        let control = self.directory.stat_of(OsStr::new(layout::CONTROL_FILE));
        let first = self
            .first_segment()
            .and_then(|first| Ok((first, self.directory.stat_of(segment_name(first.segment).as_ref())?)));
        let (first, mut stat) = match (control, first) {
            (Ok(control), Ok((first, mut stat))) => {
                stat.st_mode = narrowed(&stat, &control);
                (first.segment, stat)
            }
            (Err(_), Ok((first, stat))) => (first.segment, stat),
            (Ok(stat), Err(_)) => return Ok(stat),
            (Err(_), Err(error)) => return Err(error),
        };
        let retained = self.retained_segments()?;
        for &segment in retained.iter().filter(|&&id| id != first) {
            if let Ok(other) = self.directory.stat_of(segment_name(segment).as_ref()) {
                stat.st_mode = narrowed(&stat, &other);
            }
        }
        let holds = DATA_STAT_HOLDS[usize::from(retained.len() > MANY_SEGMENTS)];
        *known = Some((Instant::now() + holds, stat));
        Ok(stat)
    }

    /// EACCES unless the caller could read every message without the mount: reach the directory, and read the control
    /// block and all segments.
    pub(crate) fn check_readable(&self, caller: &Caller) -> Result<()> {
        if !caller.is_other() {
            let is_allowed = !caller.is_stranger() || caller.may(&self.data_stat()?, READ);
            return if is_allowed { Ok(()) } else { Err(Errno::EACCES) };
        }
        if lock(&self.permissions.readable_by).get(caller).is_some_and(|until| Instant::now() < *until) {
            return Ok(());
        }
        let retained = self.retained_segments()?;
        caller.act(|| {
            self.directory.check_access(OsStr::new("."), Access::EXEC_OK)?;
            self.directory.check_access(OsStr::new(layout::CONTROL_FILE), Access::READ_OK)?;
            let check = |&id: &SegmentId| self.directory.check_access(segment_name(id).as_ref(), Access::READ_OK);
            retained.iter().try_for_each(check)
        })??;
        let mut known = lock(&self.permissions.readable_by);
        if known.len() >= MAX_CALLERS {
            known.clear();
        }
        let holds = DATA_STAT_HOLDS[usize::from(retained.len() > MANY_SEGMENTS)];
        known.insert(caller.clone(), Instant::now() + holds);
        Ok(())
    }

    /// EACCES once the caller may no longer read the queue, ESTALE once it has been removed.
    pub(crate) fn check_goes_on(&self, caller: &Caller) -> Result<()> {
        self.check_readable(caller)?;
        self.queue.check_present().map_err(|_| Errno::ESTALE)
    }

    /// EACCES unless the caller could write without the mount, where it would open the same files.
    pub(crate) fn check_writable(&self, caller: &Caller) -> Result<()> {
        if !caller.is_other() {
            return Ok(());
        }
        let retained = self.retained_segments()?;
        let (directory, file) = (Access::WRITE_OK | Access::EXEC_OK, Access::READ_OK | Access::WRITE_OK);
        caller.act(|| {
            self.directory.check_access(OsStr::new("."), directory)?;
            self.directory.check_access(OsStr::new(layout::CONTROL_FILE), file)?;
            self.directory.check_access(OsStr::new(layout::LOCK_FILE), file)?;
            let head = retained.last().map(|&id| segment_name(id));
            head.map_or(Ok(()), |head| self.directory.check_access(head.as_ref(), file))
        })?
    }
}
