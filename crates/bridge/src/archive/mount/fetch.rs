//! Waiting for the store, for a bounded time; files of the cache.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use super::cache::Cached;
use super::problem::Problem;

/// A read fails when the store has sent nothing for this long.
const SILENCE: Duration = Duration::from_secs(20);

/// The result of something that takes only moments if all is well.
pub(super) async fn timely<T>(work: impl Future<Output = crate::Result<T>>) -> Result<T, Problem> {
    Ok(tokio::time::timeout(SILENCE, work).await.map_err(|_| silent())??)
}

/// The result of something that may take long, as long as more and more is written.
pub(super) async fn while_it_moves<T>(
    work: impl Future<Output = crate::Result<T>>,
    written: &Cell<u64>,
) -> Result<T, Problem> {
    let mut work = std::pin::pin!(work);
    let mut before = 0;
    loop {
        match tokio::time::timeout(SILENCE, &mut work).await {
            Ok(done) => return Ok(done?),
            Err(_) if written.get() == before => return Err(silent()),
            Err(_) => before = written.get(),
        }
    }
}

fn silent() -> Problem {
    Problem::new(Errno::TIMEDOUT, format!("the store has sent nothing for {} s", SILENCE.as_secs()))
}

pub(super) fn new_file(path: &Path) -> Result<File, Problem> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
    file.map_err(|error| Problem::local(path, &error))
}

pub(super) fn part(bytes: &[u8], offset: u64, size: usize) -> &[u8] {
    let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
    &rest[..size.min(rest.len())]
}

/// A part of a file of the cache.
pub(super) fn read_part(cached: &Cached, offset: u64, size: usize) -> Result<Vec<u8>, Problem> {
    let failed = |error: std::io::Error| Problem::local(Path::new("the cache"), &error);
    let left = cached.size.saturating_sub(offset);
    let mut bytes = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(size)];
    cached.file.read_exact_at(&mut bytes, offset).map_err(failed)?;
    Ok(bytes)
}
