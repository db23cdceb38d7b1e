//! What the mount's own files show of all queues.

use std::sync::Arc;

use crate::fs::errno::{Errno, Result};
use crate::fs::files::status::Marks;
use crate::fs::site::{Caller, Site};
use crate::fs::survey::{self, Found, is_scarcity};
use crate::queue::Inspection;
use crate::report;

/// A queue as it was found.
pub(in crate::fs) struct Seen {
    /// Its path below the root.
    pub(in crate::fs) name: String,
    pub(in crate::fs) marks: Marks,
    /// None where it can't be read.
    pub(in crate::fs) inspection: Option<Inspection>,
    /// Whether its file system has answered in time.
    pub(in crate::fs) answers: bool,
}

impl Seen {
    pub(in crate::fs) fn json(&self) -> String {
        match &self.inspection {
            Some(inspection) => {
                let Marks { ready, lease, relays } = &self.marks;
                let lease = lease.as_ref().map(report::Lease::from);
                report::inspection_json(inspection, *ready, lease.as_ref(), relays)
            }
            None => format!(
                "{{\"path\":{},\"{}\":true}}",
                serde_json::to_string(&self.name).unwrap_or_else(|_| "null".to_owned()),
                if self.answers { "damaged" } else { "unanswered" }
            ),
        }
    }
}

/// All queues that the caller may see.
pub(in crate::fs) fn inspect(site: &Site, caller: &Caller) -> Result<Vec<Seen>> {
    let (shared, who) = (Arc::clone(&site.shared), caller.clone());
    let see = move |name: &str, found| {
        let (directory, inspected) = match found {
            Found::Queue(queue) => (Arc::clone(&queue.directory), queue.queue.inspect().map_err(Errno::from)),
            Found::Unreadable(directory, errno) => (directory, Err(errno)),
            Found::Plain(_) | Found::Closed(_) => return Ok(None),
        };
        let mut inspection = match inspected {
            Err(errno) if is_scarcity(errno) => return Err(errno),
            inspected => inspected.ok(),
        };
        if let Some(inspection) = &mut inspection {
            inspection.path = shared.backing.shown_path(name.as_ref());
        }
        let marks = who.act(|| Marks::read(&directory)).unwrap_or_default();
        Ok(Some(Seen { marks, inspection, name: name.to_owned(), answers: true }))
    };
    let survey = survey::survey(&site.shared, &site.relative, caller, see)?;
    let mut seen: Vec<Seen> = survey.seen.into_iter().map(|(_, seen)| seen).collect();
    let silent = |name| Seen { name, marks: Marks::default(), inspection: None, answers: false };
    seen.extend(survey.unanswered.into_iter().map(silent));
    Ok(seen)
}
