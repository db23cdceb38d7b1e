//! Who publishes to a stream: promoting a standby, and making one of the queue that was promoted over.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chronfs::queue::{Queue, Role};

use super::copier::{Copier, Taken, standby_writer};
use super::link::{Access, Answer, Extent, Link, Target, next_up_to};
use super::place::{MAX_VOID, search};
use super::state::{State, unix_seconds};
use super::wire::{Body, Stored};
use super::{Failure, Result, persist, term_of};

/// How long the answer to a fence may take.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// What a promotion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promotion {
    /// The new term.
    pub term: u64,
    /// The last message before it.
    pub seq: u64,
}

/// Makes a standby active: copies the rest of the stream, publishes the fence, and changes the queue's role when the
/// stream has it. May be called again after a failure at any point. The standby's relay must not be running.
///
/// # Errors
/// [`Failure::Again`] if the stream does not answer before the deadline; nothing has been promoted then, or calling it
/// again completes it.
pub async fn promote(path: &Path, target: &Target, access: &Access, timeout: Duration) -> Result<Promotion> {
    let queue = Queue::open(path)?;
    if let Role::Active { term } = queue.role() {
        return Err(Failure::Refused(format!("{}: the queue is active since term {term} already", path.display())));
    }
    persist(timeout, async || attempt(&queue, target, access).await).await
}

/// One look at the stream, and the next step: a claim, which no publish of the former owner can get in the way of; then,
/// with all that comes before the claim at hand, the beginning of the new term.
async fn attempt(queue: &Queue, target: &Target, access: &Access) -> Result<Promotion> {
    let (link, extent) = Link::connect(target, access).await?;
    let extent = extent.ok_or_else(|| Failure::Config(format!("there is no stream {}", target.stream)))?;
    let mut copier = Copier::new(standby_writer(queue)?, term_of(queue));
    let mut read = search(&link, extent, copier.next_seq()).await?.saturating_sub(1);
    let (mut claimed, mut has_begun) = (None, false);
    if read < extent.last {
        let mut messages = link.read_from(read + 1).await?;
        while let Some((number, stored)) = next_up_to(&link, messages.as_mut(), read, extent.last).await? {
            read = number;
            has_begun |= claimed == Some(stored.term) && matches!(stored.body, Body::Fence { begins: true, .. });
            match copier.take(stored)? {
                Taken::Fence { term, origin } if origin == queue.id() => {
                    claimed = Some(term);
                    copier.term = term;
                }
                Taken::Fence { term, .. } => {
                    drop(copier);
                    queue.set_role(Role::Standby { term })?;
                    return Err(Failure::Again("another queue was promoted meanwhile".to_owned()));
                }
                _ => {}
            }
        }
    }
    let seq = copier.next_seq() - 1;
    let fence = |term, begins| Stored { origin: queue.id(), term, body: Body::Fence { seq, begins } };
    let Some(term) = claimed else {
        publish(&link, &fence(term_of(queue) + 1, false)).await?;
        return Err(Failure::Again("the claim has been published".to_owned()));
    };
    if !has_begun {
        publish(&link, &fence(term, true)).await?;
    }
    copier.writer.flush_sync()?;
    drop(copier);
    queue.set_role(Role::Active { term })?;
    Ok(Promotion { term, seq })
}

/// Publishes a fence and waits until the stream has it.
pub(super) async fn publish(link: &Link, fence: &Stored) -> Result<()> {
    let mut publisher = link.publisher().await?;
    publisher.publish(fence, None).await?;
    let answer = tokio::time::timeout(ACK_TIMEOUT, publisher.answer()).await;
    match answer.map_err(|_| Failure::Again("the fence was not acknowledged in time".to_owned()))?? {
        Answer::Stored(_) => Ok(()),
        Answer::Not(reason) | Answer::Full(reason) => Err(Failure::Again(reason)),
    }
}

/// Makes a queue that was active a standby of the queue that was promoted over it. What it has more than the stream
/// stays: its directory is renamed, and a new queue takes its place.
pub(super) async fn rejoin(link: &Link, extent: Extent, queue: Queue, state: &State) -> Result<Option<Queue>> {
    let path = queue.path().to_path_buf();
    let Some((fence_seq, term)) = first_of_higher_term(link, extent, term_of(&queue)).await? else {
        return Err(Failure::Refused(format!(
            "{}: no other queue was promoted: the stream has nothing of a term after {}",
            path.display(),
            term_of(&queue)
        )));
    };
    // Fails while somebody appends.
    let next = queue.writer()?.next_seq();
    if fence_seq == Some(next - 1) {
        queue.set_role(Role::Standby { term })?;
        state.say(&format!("{}: a standby now, in term {term}", path.display()));
        return Ok(Some(queue));
    }
    let aside = aside(&path);
    std::fs::rename(&path, &aside)
        .map_err(|error| Failure::Config(format!("{}: cannot rename it: {error}", path.display())))?;
    let surplus = match fence_seq {
        Some(seq) if seq < next - 1 => format!("messages {} to {} are not in the stream", seq + 1, next - 1),
        _ => "it is unknown what it has that the stream does not have".to_owned(),
    };
    state.say(&format!("the queue was moved to {}: {surplus}", aside.display()));
    Ok(None)
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".surplus-{:.0}", unix_seconds()));
    path.with_file_name(name)
}

/// The beginning of the first higher term: the last number before it, if the stream still says so, and the term.
async fn first_of_higher_term(link: &Link, extent: Extent, term: u64) -> Result<Option<(Option<u64>, u64)>> {
    let (mut low, mut high) = (extent.first.max(1), extent.last + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        match link.get(middle).await? {
            Some(stored) if stored.term > term => high = middle,
            _ => low = middle + 1,
        }
    }
    // Void records after the claim can have misled the search.
    let mut is_claimed = false;
    for number in low.saturating_sub(MAX_VOID).max(extent.first).max(1)..=extent.last {
        if let Some(stored) = link.get(number).await?.filter(|stored| stored.term > term) {
            match stored.body {
                Body::Fence { begins: false, .. } => is_claimed = true,
                Body::Fence { seq, .. } => return Ok(Some((Some(seq), stored.term))),
                _ => return Ok(Some((None, stored.term))),
            }
        }
    }
    if is_claimed {
        return Err(Failure::Again("another queue is being promoted".to_owned()));
    }
    Ok(None)
}
