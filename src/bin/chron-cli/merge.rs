//! `chron-cli merge`: the READY queues below a directory as one stream, in the order of their timestamps.
//!
//! The order is by (timestamp, path, sequence number), the same on every run over the same messages. Like
//! everything that only reads, it registers no reader: it reads each queue through a [`Scanner`]. With --follow, a
//! message is held back until every queue that has none was checked a little after its timestamp, so that one that is
//! just being committed elsewhere is not overtaken.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use chronfs::bus::{Change, RouterDiscovery};
use chronfs::queue::{Entry, Gap, Message, Position, Scanner, Waiter, wait_any};
use chronfs::{Queue, clock};
use rustix::event::{PollFd, PollFlags, poll};

use crate::MergeArgs;
use crate::failure::{Done, Failure, Outcome, note, one_line};
use crate::names::name_below;
use crate::output::{Output, exit_when_pipe_closes};
use crate::watch::{Complaints, discover};

/// How long a message is held back for queues that have none.
const HOLD_BACK: Duration = Duration::from_millis(1);
/// The longest wait: a message, or a queue that becomes ready, ends it at once.
const STEP: Duration = Duration::from_secs(1);
/// How often the bell is rung until it is heard.
const RING_EVERY: Duration = Duration::from_millis(1);

/// A message or gap that has been read and not printed yet.
enum Held {
    Message { seq: u64, timestamp_ns: u64, msg_type: u16, payload: Vec<u8>, position: Position },
    Gap(Gap),
}

struct Source {
    name: String,
    scanner: Scanner,
    waiter: Option<Arc<Waiter>>,
    /// Messages from here on are not printed: where the queue ended when we started.
    end: u64,
    next: Option<Held>,
    /// Timestamp of the message before: a gap has none of its own.
    last_ns: u64,
}

impl Source {
    fn open(root: &Path, path: &Path, args: &MergeArgs) -> Result<Self, Failure> {
        let queue = Queue::open(path)?;
        let bounds = queue.bounds()?;
        let mut scanner = queue.scan()?;
        if let Some(since) = args.since {
            scanner.seek_time(since)?;
        } else if args.follow && !args.all {
            scanner.seek_end()?;
        }
        Ok(Self {
            name: name_below(root, path),
            scanner,
            waiter: if args.follow { Some(Arc::new(queue.waiter()?)) } else { None },
            end: if args.follow { u64::MAX } else { bounds.end_seq },
            next: None,
            last_ns: 0,
        })
    }

    /// Reads the next entry, if there is one; its timestamp and number.
    fn look(&mut self) -> Result<Option<(u64, u64)>, Failure> {
        if self.scanner.seq() >= self.end {
            return Ok(None);
        }
        let (held, key) = match self.scanner.next()? {
            None => return Ok(None),
            Some(Entry::Gap(gap)) => (Held::Gap(gap), (self.last_ns, gap.from)),
            Some(Entry::Message(Message { seq, timestamp_ns, msg_type, payload, position })) => {
                let payload = payload.to_vec();
                (Held::Message { seq, timestamp_ns, msg_type, payload, position }, (timestamp_ns, seq))
            }
        };
        self.last_ns = key.0;
        self.next = Some(held);
        Ok(Some(key))
    }
}

struct Merge<'a> {
    args: &'a MergeArgs,
    /// By path: this is the order of messages with the same timestamp.
    sources: BTreeMap<PathBuf, Source>,
    /// Timestamp, path and number of what each source has next.
    ready: BinaryHeap<Reverse<(u64, PathBuf, u64)>>,
    out: Output,
    gaps: u64,
    /// The timestamp of the first one, and since when it has been held back.
    held: Option<(u64, Instant)>,
}

/// Ends waits for messages when discovery has news: one can't sleep on a descriptor and on queues at once. The queue
/// that the merge is sleeping on, among others.
type Bell = Arc<Mutex<Weak<Waiter>>>;

/// Starts a thread that rings until the news is taken. It ends with the process.
fn start_bell(discovery: &RouterDiscovery) -> Result<Bell, Failure> {
    let failed = |e| Failure::new(format!("cannot watch for new queues: {e}"));
    let news = discovery.as_fd().try_clone_to_owned().map_err(failed)?;
    let bell = Bell::default();
    let for_thread = Arc::clone(&bell);
    let ring = move || {
        while matches!(poll(&mut [PollFd::new(&news, PollFlags::IN)], None), Ok(_) | Err(rustix::io::Errno::INTR)) {
            let waiter = for_thread.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
            if let Some(waiter) = waiter {
                waiter.wake_all();
            }
            // The merge may be about to fall asleep.
            std::thread::sleep(RING_EVERY);
        }
    };
    std::thread::Builder::new().name("discovery".to_owned()).spawn(ring).map_err(failed)?;
    Ok(bell)
}

pub(crate) fn run(args: &MergeArgs) -> Outcome {
    let mut discovery = discover(&args.root)?;
    let mut complained = Complaints::default();
    let mut bell = None;
    if args.follow {
        exit_when_pipe_closes()?;
        bell = Some(start_bell(&discovery)?);
    }
    let mut merge = Merge {
        args,
        sources: BTreeMap::new(),
        ready: BinaryHeap::new(),
        out: Output::messages(args.format)?,
        gaps: 0,
        held: None,
    };
    loop {
        merge.attach(&mut discovery)?;
        complained.about(&discovery, &args.root);
        let tickets: Vec<_> = merge.waiters().map(|waiter| waiter.prepare()).collect();
        let looked_ns = clock::now_ns();
        let printed = merge.print_ready(looked_ns)?;
        merge.out.flush()?;
        if !args.follow {
            break;
        }
        if printed {
            continue;
        }
        // What is held back comes due by itself.
        let step = if merge.ready.is_empty() { STEP.min(discovery.due_in()) } else { HOLD_BACK };
        if let (Some(waiter), Some(bell)) = (merge.waiters().next(), &bell) {
            *bell.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(waiter);
            let waits: Vec<_> = merge.waiters().map(Arc::as_ref).zip(tickets).collect();
            wait_any(&waits, step);
        } else {
            discovery.wait(STEP)?;
        }
    }
    if merge.sources.is_empty() && !args.all_queues {
        let remedy = match discovery.endpoints().count() {
            0 => "there are no queues here".to_owned(),
            1 => "the only queue here is not marked as ready; --all-queues includes it, touch QUEUE/READY marks it"
                .to_owned(),
            count => format!(
                "none of the {count} queues here is marked as ready; --all-queues includes them, touch QUEUE/READY marks one"
            ),
        };
        note(&format!("{}: {remedy}", args.root.display()));
    }
    Ok(if merge.gaps == 0 && complained.denied.is_empty() { Done::Well } else { Done::Problems })
}

impl Merge<'_> {
    fn waiters(&self) -> impl Iterator<Item = &Arc<Waiter>> {
        self.sources.values().filter_map(|source| source.waiter.as_ref())
    }

    /// Adds queues that have become ready, and drops those that no longer are.
    fn attach(&mut self, discovery: &mut RouterDiscovery) -> Result<(), Failure> {
        for event in discovery.poll()? {
            let wanted = match event.change {
                Change::Added => self.args.all_queues,
                Change::Ready => true,
                Change::Removed | Change::Unready => {
                    let is_gone = event.change == Change::Removed || !self.args.all_queues;
                    if is_gone && self.sources.remove(&event.path).is_some() {
                        self.ready.retain(|Reverse((_, path, _))| *path != event.path);
                    }
                    false
                }
                _ => false,
            };
            if !wanted || self.sources.contains_key(&event.path) {
                continue;
            }
            match Source::open(&self.args.root, &event.path, self.args) {
                Ok(source) => drop(self.sources.insert(event.path, source)),
                Err(failure) => {
                    failure.tell();
                    self.gaps += 1;
                }
            }
        }
        Ok(())
    }

    /// Prints what may be printed; returns whether there was anything.
    fn print_ready(&mut self, looked_ns: u64) -> Result<bool, Failure> {
        let idle: Vec<PathBuf> =
            self.sources.iter().filter(|(_, source)| source.next.is_none()).map(|(path, _)| path.clone()).collect();
        let mut waiting = 0_usize;
        for path in idle {
            waiting += usize::from(!self.look_at(path));
        }
        let mut printed = false;
        while let Some(Reverse((timestamp_ns, _, _))) = self.ready.peek() {
            if waiting > 0 && self.args.follow && !self.is_settled(*timestamp_ns, looked_ns) {
                break;
            }
            let Some(Reverse((_, path, _))) = self.ready.pop() else { break };
            self.put(&path)?;
            (printed, self.held) = (true, None);
            waiting += usize::from(!self.look_at(path));
        }
        Ok(printed)
    }

    /// Whether nothing can come before this timestamp any more, or it has been held back long enough.
    fn is_settled(&mut self, timestamp_ns: u64, looked_ns: u64) -> bool {
        let bound_ns = u64::try_from(HOLD_BACK.as_nanos()).unwrap_or(0);
        if timestamp_ns.saturating_add(bound_ns) <= looked_ns {
            return true;
        }
        match self.held {
            Some((held_ns, since)) if held_ns == timestamp_ns => since.elapsed() >= HOLD_BACK,
            _ => {
                self.held = Some((timestamp_ns, Instant::now()));
                false
            }
        }
    }

    /// Reads a queue's next entry; false if it has none now.
    fn look_at(&mut self, path: PathBuf) -> bool {
        let Some(source) = self.sources.get_mut(&path) else { return true };
        match source.look() {
            Ok(Some((timestamp_ns, seq))) => {
                self.ready.push(Reverse((timestamp_ns, path, seq)));
                true
            }
            Ok(None) => false,
            Err(failure) => {
                // Discovery says it when the queue was removed; the others go on.
                failure.tell();
                self.gaps += 1;
                self.sources.remove(&path);
                true
            }
        }
    }

    fn put(&mut self, path: &Path) -> Result<(), Failure> {
        let Some(source) = self.sources.get_mut(path) else { return Ok(()) };
        let name = source.name.as_str();
        match source.next.take() {
            None => return Ok(()),
            Some(Held::Message { seq, timestamp_ns, msg_type, payload, position }) => {
                let entry = Entry::Message(Message { seq, timestamp_ns, msg_type, payload: &payload, position });
                self.out.put(|out| self.args.format.render(&entry, Some(name), out));
            }
            Some(Held::Gap(gap)) => {
                self.gaps += 1;
                self.out.put(|out| self.args.format.render(&Entry::Gap(gap), Some(name), out));
                let (name, reason) = (one_line(name), gap.reason.as_str());
                note(&format!("{name}: messages {} to {} are missing: {reason} ({})", gap.from, gap.to, gap.position));
            }
        }
        if self.out.is_full() {
            self.out.flush()?;
        }
        Ok(())
    }
}
