//! Which bytes a name of a queue stands for now: retention and damage replace them, under another inode number.

use std::sync::Arc;

use crate::fs::attr::Attr;
use crate::fs::errno::{Errno, Result};
use crate::fs::lock;
use crate::fs::page_cache::shared_view::SharedView;
use crate::fs::queues::generation::{Generation, SegmentFile};
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::tree::inodes::stable_hash;
use crate::queue::SegmentId;
use crate::view::{Format, View};

impl OpenQueue {
    /// Distinguishes the file of one segment from any other. ENOENT where there is none.
    pub(crate) fn segment_identity(&self, format: Format, segment: SegmentId) -> Result<u64> {
        let SegmentFile { born, .. } = self.identify(segment).ok_or(Errno::ENOENT)?;
        let (queue, segment, born) = (self.identity.to_le_bytes(), segment.0.to_le_bytes(), born.to_le_bytes());
        Ok(stable_hash(&[&queue, &segment, &born, format.name().as_bytes()]))
    }

    /// As a node's generation, of a file with this identity: a new one each time that damage has changed its content.
    pub(crate) fn turned(&self, identity: u64) -> u64 {
        match lock(&self.turns).get(&identity) {
            Some(turns) => stable_hash(&[&identity.to_le_bytes(), &turns.to_le_bytes()]),
            None => identity,
        }
    }

    /// Records that damage has changed the content of a file of this generation.
    pub(crate) fn turn(&self, identity: u64, generation: u64) {
        if self.turned(identity) == generation {
            *lock(&self.turns).entry(identity).or_default() += 1_u32;
        }
    }

    /// What a name of everything retained stands for to a process; see `holders.rs`.
    pub(crate) fn generation_for(&self, format: Format, thread: u32) -> Result<(Generation, Option<Arc<SharedView>>)> {
        let now = self.generation(format)?;
        let held = self.holders.find((format, now), thread);
        Ok(held.map_or((now, None), |(generation, view)| (generation, Some(view))))
    }

    /// Records that a process has opened the view of everything retained, for as long as the token lives.
    pub(crate) fn opened_by(&self, thread: u32, what: (Format, Generation), view: &Arc<SharedView>) -> Option<Arc<()>> {
        // Without retention there is only one generation.
        if self.queue.settings().has_retention() { self.holders.enter(thread, what, view) } else { None }
    }

    /// The current generation of the view of everything retained.
    pub(crate) fn generation(&self, format: Format) -> Result<Generation> {
        let first = self.first_segment()?;
        let turn = match lock(&self.views).get(&format) {
            Some((generation, view)) if generation.first == first => generation.turn + u32::from(view.is_damaged()),
            _ => 0,
        };
        Ok(Generation { first, turn })
    }

    /// The view of everything retained. ESTALE when its generation is another one by now.
    pub(crate) fn view(&self, format: Format, generation: Generation) -> Result<Arc<SharedView>> {
        if let Some((known, view)) = lock(&self.views).get(&format)
            && *known == generation
        {
            return Ok(Arc::clone(view));
        }
        let view = Arc::new(self.share(View::new(&self.queue, format)?));
        if self.generation(format)? != generation {
            return Err(Errno::ESTALE);
        }
        let mut views = lock(&self.views);
        match views.get(&format) {
            Some((known, other)) if *known == generation => Ok(Arc::clone(other)),
            _ => {
                views.insert(format, (generation, Arc::clone(&view)));
                Ok(view)
            }
        }
    }

    /// True size of a view, and the time of its newest message. Queues the creation of indexes that it missed.
    pub(crate) fn attr_of(self: &Arc<Self>, view: &SharedView) -> Result<Attr> {
        let attr = view.attr(|| self.data_stat())?;
        self.index_in_background();
        Ok(attr)
    }

    /// As [`Self::attr_of`], without delay: as far as it is indexed.
    pub(crate) fn known_attr_of(&self, view: &SharedView) -> Result<Attr> {
        Ok(view.known_attr(&self.data_stat()?))
    }
}
