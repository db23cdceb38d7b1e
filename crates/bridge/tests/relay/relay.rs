//! The relay as a process, a writer beside it, and what must hold.
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chronfs::Queue;
use chronfs::queue::{Entry, GapReason};

use crate::broker::Broker;
use crate::common::payload;
use crate::service::{PATIENCE, Service, report, until_report};

pub fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_chron-relay"))
}

/// `chron-relay run FROM TO …`
pub struct Relay;

impl Relay {
    pub fn start(from: &str, to: &str, more: &[&str], log: &Path) -> Service {
        let mut command = command();
        command.args(["run", from, to]).args(more);
        Service::start(command, log)
    }
}

/// A relay of a feed: the queue whose state file it writes, and its name.
pub type Follower<'a> = (&'a Path, &'a str);

/// Appends to a queue until it is dropped.
pub struct Feed {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Feed {
    /// This many bursts may be ahead of the followers: more than come between two writes of a state file.
    const MAX_AHEAD: u64 = 2500;

    /// Some messages, then a pause of a millisecond, again and again. As long as one of the followers is far behind,
    /// nothing is appended: what they can't keep up with on a busy machine would only make a test longer.
    pub fn start(queue: &Queue, burst: u64, followers: &[Follower<'_>]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (queue, stopped) = (queue.clone(), Arc::clone(&stop));
        let followers: Vec<_> = followers.iter().map(|&(path, name)| (path.to_owned(), name.to_owned())).collect();
        let thread = std::thread::spawn(move || {
            let mut writer = crate::common::writer(&queue);
            let mut slowest = 0;
            while !stopped.load(Ordering::Relaxed) {
                let is_far = |slowest: u64| writer.next_seq() > slowest + burst * Self::MAX_AHEAD;
                if is_far(slowest) {
                    let at = |(path, name): &(PathBuf, String)| report(path, name)["pair"]["seq"].as_u64().unwrap_or(0);
                    slowest = followers.iter().map(at).min().unwrap();
                }
                if !is_far(slowest) {
                    crate::common::append(&mut writer, burst, |seq| payload(seq, 300));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { stop, thread: Some(thread) }
    }

    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.end();
    }
}

/// How long random faults are injected: as long as `CHRONFS_RELAY_SOAK` says, or this many seconds.
pub fn fault_time(seconds: u64) -> Duration {
    let soak = std::env::var("CHRONFS_RELAY_SOAK").ok().map(|seconds| seconds.parse().unwrap());
    Duration::from_secs(soak.unwrap_or(seconds))
}

/// The ends of the parts of this time, the last of which may end after it. Each part has a queue and servers of its own,
/// so that what is compared at its end fits into memory.
pub fn parts(whole: Duration) -> impl Iterator<Item = Instant> {
    const PART: Duration = Duration::from_secs(120);
    let end = Instant::now() + whole;
    std::iter::from_fn(move || (Instant::now() < end).then(|| Instant::now() + whole.min(PART)))
}

/// Waits until a server's answer is as wanted.
pub async fn until_so<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(Instant::now() < deadline, "timed out: until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the stream is complete up to the queue's present head.
#[track_caller]
pub fn until_caught_up(queue: &Queue, name: &str) {
    let last = queue.bounds().unwrap().next_seq - 1;
    until_report(queue.path(), name, "the relay has caught up", |report| {
        report["pair"]["seq"].as_u64().is_some_and(|seq| seq >= last)
    });
}

/// The stream must be the queue, message by message, each once; returns how many. Reads the headers by itself.
pub fn check_exact(servers: &impl Broker, stream: &str, queue: &Queue) -> u64 {
    let in_stream = servers.messages(stream);
    let mut reader = queue.tailer().unwrap();
    let mut next = 1;
    let mut number_before = in_stream.first().map_or(0, |message| message.number - 1);
    for stored in &in_stream {
        let header = |name: &str| stored.header(name).map(str::to_owned);
        let number = stored.number;
        assert_eq!(number, number_before + 1, "a number of the stream is missing");
        number_before = number;
        assert_eq!(header("Chron-Seq"), Some(next.to_string()), "message {number} of the stream");
        match reader.next().unwrap() {
            Some(Entry::Message(message)) => {
                assert_eq!((message.seq, message.payload), (next, &stored.payload[..]));
                assert_eq!(header("Chron-Time"), Some(message.timestamp_ns.to_string()));
                assert_eq!(header("Chron-Type"), Some(message.msg_type.to_string()));
                next += 1;
            }
            other => panic!("message {next} is in the stream, and the queue has {other:?}"),
        }
    }
    assert!(reader.next().unwrap().is_none(), "the stream ends before message {next}");
    next - 1
}

/// Both queues must have the same messages, or gaps where the first one has some; returns how many messages.
pub fn check_same(one: &Queue, other: &Queue) -> u64 {
    let (mut a, mut b) = (one.tailer().unwrap(), other.tailer().unwrap());
    let mut count = 0;
    loop {
        match (a.next().unwrap(), b.next().unwrap()) {
            (None, None) => return count,
            (Some(Entry::Message(a)), Some(Entry::Message(b))) => {
                let (a, b) =
                    ((a.seq, a.timestamp_ns, a.msg_type, a.payload), (b.seq, b.timestamp_ns, b.msg_type, b.payload));
                assert_eq!(a, b);
                count += 1;
            }
            (Some(Entry::Gap(a)), Some(Entry::Gap(b))) => {
                assert_eq!((a.from, a.to), (b.from, b.to));
                assert!(matches!(b.reason, GapReason::Upstream(_)));
            }
            (a, b) => panic!("{a:?} in one, {b:?} in the other"),
        }
    }
}
