//! `log/`: one file per segment with its messages, for log shippers. The newest grows until its segment is full; the
//! others never change, and disappear when retention removes their segments. So no message is ever shipped twice.

use std::ffi::OsString;
use std::sync::{Arc, OnceLock};

use crate::fs::attr::Attr;
use crate::fs::errno::{Errno, Result};
use crate::fs::files::messages::MessagesHandle;
use crate::fs::page_cache::shared_view::{SharedView, ViewHandle};
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::site::{Access, Caller, File};
use crate::fs::tree::handles::Handle;
use crate::queue::SegmentId;
use crate::view::{Format, View};

/// The names of the files.
pub(crate) fn names(queue: &OpenQueue) -> Result<Vec<OsString>> {
    let segments = queue.retained_segments()?.into_iter();
    Ok(segments.flat_map(|segment| Format::ALL.map(|format| name(segment, format).into())).collect())
}

fn name(segment: SegmentId, format: Format) -> String {
    format!("{:09}.{format}", segment.0)
}

/// What a name in `log/` is.
pub(crate) fn find(queue: &Arc<OpenQueue>, text: &str) -> Result<Arc<dyn File>> {
    let parse = || {
        let (number, format) = text.split_once('.')?;
        let (segment, format) = (SegmentId(number.parse().ok()?), format.parse().ok()?);
        (name(segment, format) == text).then_some((segment, format))
    };
    let (segment, format) = parse().ok_or(Errno::ENOENT)?;
    if segment > queue.queue.bounds()?.head.segment {
        // Preallocated, not in use yet.
        return Err(Errno::ENOENT);
    }
    let identity = queue.segment_identity(format, segment)?;
    let (queue, generation) = (Arc::clone(queue), queue.turned(identity));
    let first_seq = queue.queue.first_seq_of(segment)?.ok_or(Errno::ENOENT)?;
    Ok(Arc::new(Log { queue, segment, format, first_seq, identity, generation, view: OnceLock::new() }))
}

struct Log {
    queue: Arc<OpenQueue>,
    segment: SegmentId,
    format: Format,
    first_seq: u64,
    identity: u64,
    generation: u64,
    view: OnceLock<Arc<SharedView>>,
}

impl Log {
    fn view(&self) -> &Arc<SharedView> {
        self.view.get_or_init(|| make_view(&self.queue, self.format, self.segment, self.first_seq))
    }

    /// When damage has changed its content, the name must stand for another file.
    fn turn_if_spoilt(&self) {
        if self.view.get().is_some_and(|view| view.is_damaged()) {
            self.queue.turn(self.identity, self.generation);
        }
    }
}

fn make_view(queue: &OpenQueue, format: Format, segment: SegmentId, first_seq: u64) -> Arc<SharedView> {
    Arc::new(queue.share(View::segment(&queue.queue, format, segment, first_seq)))
}

impl File for Log {
    fn attr(&self) -> Result<Attr> {
        self.queue.attr_of(self.view())
    }

    fn quick_attr(&self) -> Result<Attr> {
        self.queue.known_attr_of(self.view())
    }

    fn messages_of(&self) -> Option<&OpenQueue> {
        Some(&self.queue)
    }

    fn open(&self, access: Access, _caller: &Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        let held =
            ViewHandle::through_pages(self.view(), || Ok(self.queue.written_at(self.segment).into_iter().collect()));
        self.turn_if_spoilt();
        let held = held?;
        if held.is_late() {
            return Err(Errno::ENOENT);
        }
        let (queue, format, segment, first_seq) = (Arc::clone(&self.queue), self.format, self.segment, self.first_seq);
        Ok(Box::new(MessagesHandle::new(held, move || Ok(make_view(&queue, format, segment, first_seq)))))
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn is_current(&self) -> bool {
        self.turn_if_spoilt();
        let is_there = self.queue.segment_identity(self.format, self.segment) == Ok(self.identity);
        is_there && self.queue.is_current() && self.queue.turned(self.identity) == self.generation
    }
}
