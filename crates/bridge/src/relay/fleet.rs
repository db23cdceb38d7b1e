//! Everything that one process relays: a queue, or all queues of a bus that are ready, as they come.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use chronfs::Queue;
use chronfs::bus::RouterDiscovery;

use super::config::Config;
use super::state::{Condition, Monitor, Stop};
use super::{Failure, Inbound, Outbound, Result};

/// How often it is looked for new queues.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The relays of a process, for those who watch them.
#[derive(Debug, Clone, Default)]
pub struct Monitors(Rc<RefCell<BTreeMap<PathBuf, Monitor>>>);

impl Monitors {
    /// The relays at present.
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

    fn add(&self, path: &Path, monitor: Monitor) {
        self.0.borrow_mut().insert(path.to_path_buf(), monitor);
    }
}

/// Relays as the configuration says, until it is told to stop. In a [`tokio::task::LocalSet`].
///
/// # Errors
/// What an operator must decide. Of a bus: the first failure, once it is told to stop; the other queues are relayed
/// until then.
pub async fn run(config: &Config, stop: Stop, monitors: Monitors) -> Result<()> {
    if config.is_inbound() {
        let mut relay = Inbound::new(config.to.as_ref(), config.inbound()?, stop);
        monitors.add(config.to.as_ref(), relay.monitor());
        return relay.run().await;
    }
    let root: &Path = config.from.as_ref();
    if Queue::exists(root)? {
        let mut relay = Outbound::open(root, config.outbound(None)?, stop)?;
        monitors.add(root, relay.monitor());
        return relay.run().await;
    }
    if !root.is_dir() {
        return Err(Failure::Config(format!("{}: neither a queue nor a directory of queues", root.display())));
    }
    let mut discovery = RouterDiscovery::new(root)?;
    let mut relays = BTreeMap::new();
    let mut failed = None;
    while !stop.is_set() {
        discovery.poll()?;
        let ready = discovery.endpoints().filter(|(_, endpoint)| endpoint.ready);
        for path in ready.map(|(path, _)| path.to_path_buf()).collect::<Vec<_>>() {
            if relays.contains_key(&path) || !Queue::exists(&path).unwrap_or(false) {
                continue;
            }
            let options = config.outbound(Some(path.strip_prefix(root).unwrap_or(&path)))?;
            let (stop, monitors, shown) = (stop.clone(), monitors.clone(), path.clone());
            let relay = tokio::task::spawn_local(async move {
                let mut relay = Outbound::open(&shown, options, stop)?;
                monitors.add(&shown, relay.monitor());
                relay.run().await
            });
            relays.insert(path, Some(relay));
        }
        for (path, relay) in &mut relays {
            if let Some(ended) = relay.take_if(|relay| relay.is_finished()) {
                failed = finish(path, ended).await.or(failed);
            }
        }
        stop.sleep(LOOK_EVERY).await;
    }
    for (path, relay) in &mut relays {
        if let Some(relay) = relay.take() {
            failed = finish(path, relay).await.or(failed);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// The failure of a relay that has ended, which is logged.
async fn finish(path: &Path, relay: tokio::task::JoinHandle<Result<()>>) -> Option<Failure> {
    let failure = match relay.await {
        Ok(Ok(())) => return None,
        Ok(Err(failure)) => failure,
        Err(error) => Failure::Config(error.to_string()),
    };
    eprintln!("chron-relay: {}: {failure}", path.display());
    Some(failure)
}
