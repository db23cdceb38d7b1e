//! From a stream to a queue: a standby.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use chronfs::queue::{Queue, Role, Settings};

use super::copier::{Copier, Taken, standby_writer};
use super::link::{Access, Extent, Link, Target};
use super::place::search;
use super::state::{Condition, Lag, Monitor, Pair, State, Stop};
use super::takeover::rejoin;
use super::wire::{Body, Stored};
use super::{Failure, Result, back_off, term_of};

/// For how long the stream may have more without any of it arriving, before it is asked for again.
const STALLED_AFTER: Duration = Duration::from_secs(10);
/// How often a standby without news looks how long the stream is.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How a stream is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundOptions {
    /// The relay's name.
    pub name: String,
    /// The stream.
    pub target: Target,
    /// How to get in there.
    pub access: Access,
    /// The settings of a queue that is created.
    pub settings: Settings,
    /// Make a queue that was active a standby; what it has more than the stream is moved aside.
    pub rejoin: bool,
}

/// The relay that keeps a standby.
pub struct Inbound {
    path: PathBuf,
    options: InboundOptions,
    stop: Stop,
    state: Rc<State>,
}

impl Inbound {
    /// A relay that copies a stream into the queue at this path, which is created if it does not exist.
    pub fn new(path: &Path, options: InboundOptions, stop: Stop) -> Self {
        let state = State::shared(path, &options.name, "in", &options.target.to_string());
        Self { path: path.to_path_buf(), options, stop, state }
    }

    /// What it says of itself, while it runs.
    pub fn monitor(&self) -> Monitor {
        Monitor(Rc::clone(&self.state))
    }

    /// Copies until it is told to stop.
    ///
    /// # Errors
    /// What an operator must decide; everything else is tried again for ever.
    pub async fn run(&mut self) -> Result<()> {
        let mut failures = 0_u32;
        loop {
            let before = self.state.pair();
            let Err(failure) = self.session().await else {
                self.state.set(Condition::Stopped, None);
                return Ok(());
            };
            if !failure.is_temporary() {
                self.state.set(Condition::Refused, Some(failure.to_string()));
                return Err(failure);
            }
            failures = if self.state.pair() == before { failures.saturating_add(1) } else { 0 };
            self.state.count(|counts| counts.retries += 1);
            self.state.set(Condition::Waiting, Some(failure.to_string()));
            if self.state.is_due() {
                self.state.write();
            }
            if self.stop.is_set() {
                self.state.set(Condition::Stopped, None);
                return Ok(());
            }
            self.stop.sleep(back_off(failures)).await;
        }
    }

    async fn session(&mut self) -> Result<()> {
        let (mut link, extent) = Link::connect(&self.options.target, &self.options.access).await?;
        let extent = extent.filter(|extent| !extent.is_new);
        let extent = extent.ok_or_else(|| Failure::Again("the stream does not exist yet, or is empty".to_owned()))?;
        let queue = self.open_queue(&link, extent).await?;
        let mut copier = Copier::new(standby_writer(&queue)?, term_of(&queue));
        let mut last = extent.last;
        let from = search(&link, extent, copier.next_seq()).await?;
        let mut messages = link.read_from(from).await?;
        self.state.change(|report| (report.origin, report.term) = (format!("{:016x}", queue.id()), copier.term));
        self.state.set(Condition::Running, None);
        let (mut looked, mut taken_at) = (Instant::now(), Instant::now());
        // Up to which number all has been taken, and the message of that number.
        let (mut read, mut newest) = (from - 1, None);
        loop {
            if self.stop.is_set() {
                return Ok(());
            }
            let wait = tokio::time::timeout(Duration::from_millis(200), messages.next());
            match wait.await {
                Ok(taken) => {
                    let (number, stored) = taken?;
                    (read, newest) = (number, Some(stored.clone()));
                    copier = self.take(&queue, copier, number, stored)?;
                    last = last.max(number);
                    taken_at = Instant::now();
                }
                Err(_) if looked.elapsed() > LOOK_EVERY => {
                    looked = Instant::now();
                    let extent = link.look().await?.ok_or_else(|| Failure::Again("the stream is gone".to_owned()))?;
                    last = extent.last;
                    if last < read {
                        return Err(Failure::Again(format!("the stream went back from message {read} to {last}")));
                    } else if extent.first > last {
                        // All has been removed, by age or by hand.
                        self.state.change(|report| report.pair.stream_seq = last);
                    } else if read == last {
                        taken_at = looked;
                        // It can be another one in a stream that was made again, or in the one of a server that was cut
                        // off: what has been taken is compared from the top then.
                        if let Some(stored) = &newest
                            && !link.confirms(read, stored).await?
                        {
                            return Err(Failure::Again(format!("message {read} of the stream is another one now")));
                        }
                    } else if taken_at.elapsed() > STALLED_AFTER {
                        return Err(Failure::Again(format!("the stream has messages up to {last}, and none arrives")));
                    }
                }
                Err(_) => {}
            }
            if self.state.is_due() {
                self.note_lag(&queue, last)?;
            }
        }
    }

    /// Takes a record; a fence changes the queue's term.
    fn take(&self, queue: &Queue, mut copier: Copier, number: u64, stored: Stored) -> Result<Copier> {
        match copier.take(stored.clone())? {
            Taken::Appended(messages, bytes) => self.state.count(|counts| {
                (counts.messages, counts.bytes) = (counts.messages + messages, counts.bytes + bytes);
            }),
            Taken::Gap => self.state.count(|counts| counts.gaps += 1),
            Taken::Skipped => self.state.count(|counts| counts.skipped += 1),
            Taken::Fence { term, origin } => {
                self.state.say(&format!("queue {origin:016x} took over in term {term}"));
                drop(copier);
                queue.set_role(Role::Standby { term })?;
                copier = Copier::new(standby_writer(queue)?, term);
                copier.is_claimed = matches!(stored.body, Body::Fence { begins: false, .. });
                if !matches!(stored.body, Body::Fence { .. }) {
                    copier.take(stored)?;
                }
            }
        }
        let pair = Pair { seq: copier.next_seq() - 1, stream_seq: number };
        self.state.change(|report| report.pair = pair);
        self.state.progressed();
        Ok(copier)
    }

    /// The queue, as a standby.
    async fn open_queue(&self, link: &Link, extent: Extent) -> Result<Queue> {
        if !Queue::exists(&self.path)? {
            return self.create_queue(link, extent).await;
        }
        let queue = Queue::open(&self.path)?;
        match queue.role() {
            Role::Standby { .. } => Ok(queue),
            // Created, and killed before it was marked.
            Role::Active { term: 0 } if queue.bounds()?.next_seq == queue.bounds()?.first_seq => {
                queue.set_role(Role::Standby { term: 1 })?;
                Ok(queue)
            }
            _ if self.options.rejoin => match rejoin(link, extent, queue, &self.state).await? {
                Some(queue) => Ok(queue),
                None => self.create_queue(link, extent).await,
            },
            role => Err(Failure::Refused(format!(
                "{}: the queue is {role}: stop its writer and run with --rejoin to make it a standby; what it has more \
                 than the stream is moved aside",
                self.path.display()
            ))),
        }
    }

    async fn create_queue(&self, link: &Link, extent: Extent) -> Result<Queue> {
        let first = self.first_seq(link, extent).await?;
        let queue = Queue::create_at(&self.path, &self.options.settings, first)?;
        queue.set_role(Role::Standby { term: 1 })?;
        Ok(queue)
    }

    /// The number of the first message in the stream.
    async fn first_seq(&self, link: &Link, extent: Extent) -> Result<u64> {
        for number in extent.first.max(1)..=extent.last {
            let Some(stored) = link.get(number).await? else { continue };
            return Ok(match stored.body {
                Body::Message(record) | Body::Part { record, part: 1, .. } => record.seq,
                Body::Part { record, .. } => record.seq + 1,
                Body::Frame(records) => records.first().map_or(1, |record| record.seq),
                Body::Gap { from, .. } => from,
                Body::Stub { seq, .. } => seq,
                Body::Fence { seq, .. } => seq + 1,
            });
        }
        Err(Failure::Again("all messages of the stream have been removed".to_owned()))
    }

    fn note_lag(&self, queue: &Queue, last: u64) -> Result<()> {
        let report = self.state.report();
        let messages = last.saturating_sub(report.pair.stream_seq);
        // What is missing is not here, so its age is not known: that of the newest message here is an upper bound.
        let seconds = if messages == 0 {
            0.0
        } else {
            #[allow(clippy::cast_precision_loss)]
            let newest = queue.bounds()?.last_timestamp_ns as f64 / 1e9;
            (super::state::unix_seconds() - newest).max(0.0)
        };
        self.state.lags(Lag { messages, bytes: 0, seconds });
        Ok(())
    }
}
