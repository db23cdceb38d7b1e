//! `.chronfs/` of the root: the state of the mount and of the whole bus, for monitoring and for users new to the mount.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::doctor::{self, Report};
use crate::fs::attr::{Attr, READ};
use crate::fs::errno::{Errno, Result};
use crate::fs::files::metrics;
use crate::fs::files::seen::{Seen, inspect};
use crate::fs::files::snapshot::{SMALL, TextHandle};
use crate::fs::site::{Access, Caller, File, Site};
use crate::fs::survey::{self, Found};
use crate::fs::tree::handles::Handle;
use crate::printable::printable;
use crate::report::counted;

type Render = fn(&Site, &Caller) -> Result<String>;

struct Generated {
    site: Site,
    render: Render,
    /// Mask of its permission bits.
    mask: u16,
}

fn make(site: &Site, render: Render) -> Result<Arc<dyn File>> {
    Ok(Arc::new(Generated { site: site.clone(), render, mask: READ }))
}

/// Row constructor of `metrics`.
pub(crate) fn metrics(site: &Site) -> Result<Arc<dyn File>> {
    make(site, |site, caller| Ok(metrics::render(inspect(site, caller)?)))
}

/// Row constructor of `status.json`.
pub(crate) fn status(site: &Site) -> Result<Arc<dyn File>> {
    make(site, |site, caller| {
        let queues: Vec<String> = inspect(site, caller)?.iter().map(Seen::json).collect();
        let root = serde_json::to_string(&site.shown_path().to_string_lossy()).map_err(|_| Errno::EIO)?;
        let (version, read_only) = (env!("CARGO_PKG_VERSION"), site.shared.read_only);
        let queues = queues.join(",");
        Ok(format!("{{\"version\":\"{version}\",\"root\":{root},\"read_only\":{read_only},\"queues\":[{queues}]}}\n"))
    })
}

/// Row constructor of `doctor`. It reports on every queue, so it is for the root's owner.
pub(crate) fn doctor(site: &Site) -> Result<Arc<dyn File>> {
    Ok(Arc::new(Generated { site: site.clone(), render: diagnose, mask: 0o400 }))
}

fn diagnose(site: &Site, caller: &Caller) -> Result<String> {
    let (shared, who) = (Arc::clone(&site.shared), caller.clone());
    let examine = move |name: &str, found| {
        let opened = match found {
            // Quarantined files have been reported before.
            _ if Path::new(name).iter().any(|part| part == doctor::ASIDE) => return Ok(None),
            Found::Queue(queue) => Ok((Arc::clone(&queue.directory), true)),
            Found::Unreadable(directory, _) => Ok((directory, true)),
            Found::Plain(directory) => Ok((directory, false)),
            Found::Closed(errno) => Err(io::Error::from_raw_os_error(errno.code())),
        };
        let examined = opened.and_then(|(directory, holds_queue)| {
            let examine = || directory.dir().reopen().map(|dir| doctor::examine_one(dir, holds_queue));
            who.act(examine).unwrap_or_else(|errno| Err(io::Error::from_raw_os_error(errno.code())))
        });
        Ok(Some(examined.unwrap_or_else(|error| {
            let path = shared.backing.shown_path(name.as_ref());
            Report { unchecked: vec![doctor::unopened(&path, &error)], ..Report::default() }
        })))
    };
    let survey = survey::survey(&site.shared, &site.relative, caller, examine)?;
    let mut report = Report::default();
    survey.seen.into_iter().for_each(|(_, found)| report.add(found));
    report.sort();
    let path = |name: &String| site.shared.backing.shown_path(name.as_ref());
    report.unchecked.extend(survey.unanswered.iter().map(|name| format!("{}: does not answer", path(name).display())));
    let mut text = String::new();
    for finding in &report.findings {
        let (severity, kind, path) = (finding.severity.as_str(), finding.kind, finding.path.to_string_lossy());
        let line = format!("{severity:<7}  {path}: {kind}: {}", finding.detail);
        text += &format!("{}\n         -> {}\n", printable(&line), printable(&finding.remedy));
    }
    for unchecked in &report.unchecked {
        text += &format!("unchecked  {}\n", printable(unchecked));
    }
    let verdict = match (report.has_problems(), report.unchecked.is_empty()) {
        (true, _) => "there are problems",
        (false, true) if report.checked == 0 => "no queues here",
        (false, true) => "all well",
        (false, false) => "not everything could be checked",
    };
    text += &format!("{} checked: {verdict}\n", counted(report.checked, "queue"));
    Ok(text)
}

/// Row constructor of `log`: the daemon's last log lines, for the root's owner.
pub(crate) fn log(site: &Site) -> Result<Arc<dyn File>> {
    Ok(Arc::new(Generated { site: site.clone(), render: |site, _| Ok(site.shared.log.text()), mask: 0o400 }))
}

/// Row constructor of `version`.
pub(crate) fn version(site: &Site) -> Result<Arc<dyn File>> {
    make(site, |_, _| Ok(concat!("chronfs ", env!("CARGO_PKG_VERSION"), "\n").to_owned()))
}

/// Row constructor of `README`.
pub(crate) fn readme(site: &Site) -> Result<Arc<dyn File>> {
    make(site, |_, _| Ok(include_str!("readme.txt").to_owned()))
}

impl File for Generated {
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::file(&self.site.directory.stat_now()?, self.mask))
    }

    fn snapshot_max(&self) -> usize {
        SMALL
    }

    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        let kept = self.site.shared.queues.kept_by(caller);
        let (site, caller, render) = (self.site.clone(), caller.clone(), self.render);
        Ok(Box::new(TextHandle::new(kept, move || render(&site, &caller).map(String::into_bytes))))
    }
}
