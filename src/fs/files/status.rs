//! `status` and `status.json` of a queue: the words of `chron-cli inspect`, from the same functions.

use std::sync::Arc;

use crate::bus;
use crate::fs::attr::{Attr, READ};
use crate::fs::backing::Directory;
use crate::fs::errno::Result;
use crate::fs::files::snapshot::{SMALL, TextHandle};
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::site::{Access, Caller, File, Site};
use crate::fs::tree::handles::Handle;
use crate::queue::Inspection;
use crate::report;

type Render = fn(&Inspection, bool, Option<&report::Lease>, &[bus::Relay]) -> String;

struct Status {
    site: Site,
    render: Render,
}

/// Row constructor of `status`.
pub(crate) fn for_people(site: &Site) -> Result<Arc<dyn File>> {
    Ok(Arc::new(Status { site: site.clone(), render: report::inspection_text }))
}

/// Row constructor of `status.json`.
pub(crate) fn for_scripts(site: &Site) -> Result<Arc<dyn File>> {
    Ok(Arc::new(Status { site: site.clone(), render: report::inspection_json }))
}

/// What lies in a queue's directory besides the queue, as far as that can be read.
#[derive(Default)]
pub(in crate::fs) struct Marks {
    /// Whether the endpoint is marked as ready.
    pub(in crate::fs) ready: bool,
    pub(in crate::fs) lease: Option<bus::Lease>,
    pub(in crate::fs) relays: Vec<bus::Relay>,
}

impl Marks {
    pub(in crate::fs) fn read(directory: &Directory) -> Self {
        let dir = directory.dir();
        Self {
            ready: bus::ready_in(dir).is_ok_and(|ready| ready.is_some()),
            lease: bus::lease_in(dir).ok().flatten(),
            relays: bus::relays_in(dir),
        }
    }
}

impl File for Status {
    fn messages_of(&self) -> Option<&OpenQueue> {
        self.site.queue().ok().map(|queue| &**queue)
    }

    fn attr(&self) -> Result<Attr> {
        Ok(Attr::file(&self.site.queue()?.data_stat()?, READ))
    }

    fn is_current(&self) -> bool {
        self.site.queue().is_ok_and(|queue| queue.is_current())
    }

    fn snapshot_max(&self) -> usize {
        SMALL
    }

    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        let kept = self.site.shared.queues.kept_by(caller);
        let (site, caller, render) = (self.site.clone(), caller.clone(), self.render);
        Ok(Box::new(TextHandle::new(kept, move || {
            let mut inspection = site.queue()?.queue.inspect()?;
            // It may have been renamed since it was opened.
            inspection.path = site.shown_path();
            let Marks { ready, lease, relays } = caller.act(|| Marks::read(&site.directory))?;
            let lease = lease.map(|lease| report::Lease::from(&lease));
            let mut text = render(&inspection, ready, lease.as_ref(), &relays);
            if !text.ends_with('\n') {
                text.push('\n');
            }
            Ok(text.into_bytes())
        })))
    }
}
