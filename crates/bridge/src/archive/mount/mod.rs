//! An archive as directories of queues, read-only, for the engine's own tools: `chron-archive mount`.
//!
//! `tree` is what is shown, `cache` the files that have been fetched, `kernel` the file system, `place` where it is
//! mounted. Everything but reads of fetched files is done by one thread.

mod cache;
mod facts;
mod fetch;
mod figures;
mod kernel;
mod place;
mod problem;
mod tree;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use chronfs::fs::kind::unmount;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::unbounded_channel;

use super::store::{Access, Address};
use crate::{Failure, Result};
use cache::Cache;
use figures::Figures;
use kernel::Adapter;
use place::KIND;
use tree::{ROOT, Tree};

pub use place::{default_cache, detach, is_detached, run_detached};

/// How long files may stay open after the mount was told to end.
const GRACE: Duration = Duration::from_secs(2);

/// What is mounted, and how.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// The address of an archive, or of several below it.
    pub address: Address,
    /// How to get in there.
    pub access: Access,
    /// The queue, if there are several at the address.
    pub id: Option<u64>,
    /// The directory for what is fetched. One mount at a time uses it.
    pub cache: PathBuf,
    /// What it may take, in bytes: at least the size of the largest segment.
    pub cache_bytes: u64,
    /// Let other users read it, too.
    pub allow_other: bool,
}

/// Mounts an archive and serves it until it is unmounted, or SIGTERM or SIGINT tells it to end. `ready` is called when
/// it can be used. In a [`tokio::task::LocalSet`].
///
/// # Errors
/// If the archive can't be listed or has no queue, the cache can't be used, or the kernel refuses.
pub async fn mount(options: &MountOptions, mountpoint: &Path, ready: impl FnOnce() -> Result<()>) -> Result<()> {
    // Before the store is asked: that may take long.
    let place = || KIND.turn(mountpoint).map_err(|error| Failure::Config(error.to_string()));
    let mountpoint = place()?.mountpoint.clone();
    let failed = failed(&mountpoint);
    let address = options.address.to_string();
    let cache = Cache::open(&options.cache, options.cache_bytes, &address)?;
    let files = std::sync::Arc::clone(&cache.ready);
    let figures = Figures::new(&options.cache, &address);
    let tree = Tree::new(options.address.clone(), options.access.clone(), options.id, cache, figures);
    first_look(&tree).await?;
    let mut term = signal(SignalKind::terminate()).map_err(&failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(&failed)?;
    let (sender, mut jobs) = unbounded_channel();
    let turn = place()?;
    let mut end = Adapter::new(sender, files).mount(&mountpoint, &address, options.allow_other).map_err(&failed)?;
    drop(turn);
    ready()?;
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::MainPid(std::process::id())]);
    let mut grace = None;
    loop {
        let out_of_time = async move {
            match grace {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(job) = jobs.recv() => drop(tokio::task::spawn_local(job(Rc::clone(&tree)))),
            ended = &mut end => return ended.unwrap_or(Ok(())).map_err(&failed),
            // Once: another one may have been mounted there since.
            _ = term.recv(), if grace.is_none() => grace = Some(leave(&mountpoint)?),
            _ = int.recv(), if grace.is_none() => grace = Some(leave(&mountpoint)?),
            () = out_of_time => return Ok(()),
        }
    }
}

/// Unmounts; what is open is served until the time that is returned.
fn leave(mountpoint: &Path) -> Result<tokio::time::Instant> {
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    let cannot = |error| Failure::Again(format!("{}: cannot unmount: {error}", mountpoint.display()));
    unmount(mountpoint).map_err(cannot)?;
    Ok(tokio::time::Instant::now() + GRACE)
}

/// A file or directory of this machine can't be used.
fn failed(path: &Path) -> impl Fn(std::io::Error) -> Failure {
    let shown = path.display().to_string();
    move |error| Failure::Config(format!("{shown}: {error}"))
}

/// The archive must be there when it is mounted.
async fn first_look(tree: &Rc<Tree>) -> Result<()> {
    let entries = tree.entries(ROOT).await.map_err(|problem| match problem.errno {
        rustix::io::Errno::TIMEDOUT | rustix::io::Errno::STALE => Failure::Again(problem.text.to_string()),
        _ => Failure::Refused(problem.text.to_string()),
    })?;
    if entries.is_empty() {
        return Err(tree.nothing());
    }
    Ok(())
}
