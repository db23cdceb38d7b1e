//! Everything that one process relays or archives: a queue, or all queues of a bus that are ready, as they come.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use chronfs::Queue;
use chronfs::bus::RouterDiscovery;

use crate::state::{Condition, Monitor, Stop};
use crate::{Failure, Result};

/// How often it is looked for new queues.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is at work in a process, for those who watch it.
#[derive(Debug, Clone, Default)]
pub struct Monitors(Rc<RefCell<BTreeMap<PathBuf, Monitor>>>);

impl Monitors {
    /// Of each queue at present.
    pub fn all(&self) -> Vec<(PathBuf, Monitor)> {
        self.0.borrow().iter().map(|(path, monitor)| (path.clone(), monitor.clone())).collect()
    }

    /// Whether each of them is at work, and none is stuck.
    pub fn are_healthy(&self) -> bool {
        self.0.borrow().values().all(Monitor::is_healthy)
    }

    /// One line of what they do.
    pub fn summary(&self) -> String {
        let reports: Vec<_> = self.0.borrow().values().map(Monitor::report).collect();
        match reports.as_slice() {
            [] => "no queues".to_owned(),
            [report] => {
                let reason = report.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
                format!("{}, lag {} messages{reason}", report.condition.as_str(), report.lag_messages)
            }
            reports => {
                let running = reports.iter().filter(|report| report.condition == Condition::Running).count();
                let lag: u64 = reports.iter().map(|report| report.lag_messages).sum();
                format!("{} queues, {running} running, lag {lag} messages", reports.len())
            }
        }
    }

    pub(crate) fn add(&self, path: &Path, monitor: Monitor) {
        self.0.borrow_mut().insert(path.to_path_buf(), monitor);
    }
}

/// What is done for one queue.
pub(crate) trait Job: Sized + 'static {
    /// The program that does it, for the log.
    const PROGRAM: &'static str;

    /// What it says of itself, while it runs.
    fn monitor(&self) -> Monitor;

    /// Works until it is told to stop, or has nothing more to do.
    async fn run(self) -> Result<()>;
}

/// Does the job of a queue, or that of each queue of a bus that is ready, in a [`tokio::task::LocalSet`]. `open` gets
/// the queue's path, and that below the bus. `once`: ends when the jobs of the queues that are there have ended.
///
/// # Errors
/// Of a bus: the first failure, at the end; the other queues' jobs go on until then.
pub(crate) async fn run<J: Job>(
    root: &Path,
    once: bool,
    (stop, monitors): (Stop, Monitors),
    open: impl Fn(&Path, Option<&Path>) -> Result<J>,
) -> Result<()> {
    if Queue::exists(root)? {
        let job = open(root, None)?;
        monitors.add(root, job.monitor());
        return job.run().await;
    }
    if !root.is_dir() {
        return Err(Failure::Config(format!("{}: neither a queue nor a directory of queues", root.display())));
    }
    let mut discovery = RouterDiscovery::new(root)?;
    let mut jobs = BTreeMap::new();
    let mut failed = None;
    while !stop.is_set() {
        discovery.poll()?;
        let ready = discovery.endpoints().filter(|(_, endpoint)| endpoint.ready);
        for path in ready.map(|(path, _)| path.to_path_buf()).collect::<Vec<_>>() {
            if jobs.contains_key(&path) || !Queue::exists(&path).unwrap_or(false) {
                continue;
            }
            let job = open(&path, Some(path.strip_prefix(root).unwrap_or(&path)));
            if let Ok(job) = &job {
                monitors.add(&path, job.monitor());
            }
            let task = tokio::task::spawn_local(async move { job?.run().await });
            jobs.insert(path, Some(task));
        }
        for (path, job) in &mut jobs {
            if let Some(ended) = job.take_if(|job| job.is_finished()) {
                failed = finish::<J>(path, ended).await.or(failed);
            }
        }
        if once {
            break;
        }
        stop.sleep(LOOK_EVERY).await;
    }
    for (path, job) in &mut jobs {
        if let Some(job) = job.take() {
            failed = finish::<J>(path, job).await.or(failed);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// The failure of a job that has ended, which is logged.
async fn finish<J: Job>(path: &Path, job: tokio::task::JoinHandle<Result<()>>) -> Option<Failure> {
    let failure = match job.await {
        Ok(Ok(())) => return None,
        Ok(Err(failure)) => failure,
        Err(error) => Failure::Config(error.to_string()),
    };
    eprintln!("{}: {}: {failure}", J::PROGRAM, path.display());
    Some(failure)
}
