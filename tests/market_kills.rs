//! Recorded market data through a queue whose writer, readers and mount daemon are killed at random: each reader sees
//! every message, once, in order, by the data's own proof.
//!
//! The program is its own children; `PART` says which. A reader keeps a state on disk, as a careful consumer does: what
//! it has seen, and the newest numbers of each symbol, so that the proof goes on over its deaths.
//! `CHRONFS_MARKET_KILLS` makes a soak of it, over as many rounds through the whole recording as that takes:
//!
//! ```text
//! CHRONFS_MARKET_KILLS=10000 cargo test --release --test market_kills -- --nocapture
//! ```
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chronfs::Queue;
use chronfs::queue::Settings;
use common::market::{self, Links};
use common::{Random, Running, TestMount};
use serde::{Deserialize, Serialize};

/// In a child: its part, and the directory that holds everything.
const PART: [&str; 2] = ["CHRONFS_MARKET_PART", "CHRONFS_MARKET_DIR"];
const READERS: [&str; 3] = ["native", "follow", "messages"];
/// Time limit without progress.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a reader knows about what it has read.
#[derive(Default, Serialize, Deserialize)]
struct State {
    /// The last message.
    seq: u64,
    /// Where the line after it begins in `messages.jsonl`.
    offset: u64,
    links: Links,
}

/// A state and the file that keeps it.
struct Consumer {
    file: PathBuf,
    state: State,
    total: u64,
}

impl Consumer {
    fn new(dir: &Path, name: &str, total: u64) -> Self {
        let file = dir.join(name).with_extension("json");
        let state = fs::read(&file).map_or_else(|_| State::default(), |bytes| serde_json::from_slice(&bytes).unwrap());
        Self { file, state, total }
    }

    fn has_all(&self) -> bool {
        self.state.seq == self.total
    }

    /// A message that was kept before the last death, and is not yet committed, is read again; none is left out.
    fn see(&mut self, seq: u64, message: &[u8]) {
        if seq > self.state.seq {
            assert_eq!(seq, self.state.seq + 1, "{}: messages are missing", self.file.display());
            self.state.links.see(message);
            self.state.seq = seq;
        }
    }

    /// Whole lines of `*.jsonl`; returns how many bytes they have.
    fn see_lines(&mut self, bytes: &[u8]) -> usize {
        let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        for line in bytes[..end].split_inclusive(|&byte| byte == b'\n') {
            let json: serde_json::Value = serde_json::from_slice(line).unwrap();
            let seq = json["seq"].as_u64().unwrap_or_else(|| panic!("{json}"));
            self.see(seq, json["payload"].as_str().unwrap().as_bytes());
        }
        end
    }

    fn keep(&self) {
        let new = self.file.with_extension("new");
        fs::write(&new, serde_json::to_vec(&self.state).unwrap()).unwrap();
        fs::rename(new, &self.file).unwrap();
    }
}

/// Reads natively, and commits what it has kept.
fn read_natively(queue: &Queue, consumer: &mut Consumer) {
    let mut reader = queue.reader("native").unwrap();
    while !consumer.has_all() {
        assert!(reader.wait(Some(DEADLINE)).unwrap(), "nothing after message {}", consumer.state.seq);
        while let Some(entry) = reader.next().unwrap() {
            let message = entry.message().unwrap();
            consumer.see(message.seq, message.payload);
        }
        consumer.keep();
        reader.commit();
    }
}

/// Opens a file of the mount, at once or when there is a daemon again.
fn open(path: &Path) -> File {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match File::open(path) {
            Ok(file) => return file,
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a file of the mount failed because its daemon is dead.
fn is_daemon_dead(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotConnected | ErrorKind::ConnectionAborted)
        || error.raw_os_error() == Some(libc::EIO)
}

/// Reads a stream that waits for messages, from where it was.
fn follow(queue: &Path, consumer: &mut Consumer) {
    while !consumer.has_all() {
        let mut stream = open(&queue.join(format!("since/{}/follow.jsonl", consumer.state.seq + 1)));
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; 128 << 10]);
        while !consumer.has_all() {
            match stream.read(&mut buffer) {
                Ok(len) => bytes.extend_from_slice(&buffer[..len]),
                Err(error) if is_daemon_dead(&error) => break,
                Err(error) => panic!("follow.jsonl: {error}"),
            }
            let used = consumer.see_lines(&bytes);
            bytes.drain(..used);
            consumer.keep();
        }
    }
}

/// Reads a file that grows, from where it was; as `tail -f` does.
fn read_messages(queue: &Path, consumer: &mut Consumer) {
    while !consumer.has_all() {
        let mut file = open(&queue.join("messages.jsonl"));
        file.seek(SeekFrom::Start(consumer.state.offset)).unwrap();
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; 128 << 10]);
        while !consumer.has_all() {
            match file.read(&mut buffer) {
                Ok(0) => std::thread::sleep(Duration::from_millis(1)),
                Ok(len) => bytes.extend_from_slice(&buffer[..len]),
                Err(error) if is_daemon_dead(&error) => break,
                Err(error) => panic!("messages.jsonl: {error}"),
            }
            let used = consumer.see_lines(&bytes);
            bytes.drain(..used);
            consumer.state.offset += used as u64;
            consumer.keep();
        }
    }
}

/// Appends what the queue does not have yet, at a pace that leaves time to be killed.
fn append_the_rest(queue: &Queue, lines: &[(u64, Vec<u8>)]) {
    let mut writer = queue.writer().unwrap();
    let have = usize::try_from(writer.next_seq() - 1).unwrap();
    for some in lines[have..].chunks(16) {
        for (timestamp_ns, message) in some {
            writer.append_at(*timestamp_ns, 1, message).unwrap();
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// What a child does.
fn play(part: &str, dir: &Path) {
    let queue = Queue::open(dir.join("root/market")).unwrap();
    let lines = market::parse(File::open(dir.join("feed")).unwrap());
    let mut consumer = Consumer::new(dir, part, lines.len() as u64);
    let mounted = dir.join("mnt/market");
    match part {
        "writer" => append_the_rest(&queue, &lines),
        "native" => read_natively(&queue, &mut consumer),
        "follow" => follow(&mounted, &mut consumer),
        _ => read_messages(&mounted, &mut consumer),
    }
}

fn start(part: &str, dir: &Path) -> Running {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", TEST, "--nocapture"]).env(PART[0], part).env(PART[1], dir);
    Running::new(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
}

/// The whole recording through its own queue, with this many kills; returns how many there were of each part.
fn round(lines: &[(u64, Vec<u8>)], links: u64, kills: u64, random: &mut Random) -> Option<[u64; 5]> {
    let mut mount = TestMount::new()?;
    let dir = mount.root().parent().unwrap().to_path_buf();
    let mut feed = std::io::BufWriter::new(File::create(dir.join("feed")).unwrap());
    for (timestamp_ns, message) in lines {
        feed.write_all(&[format!("{timestamp_ns} ").as_bytes(), message, b"\n"].concat()).unwrap();
    }
    feed.into_inner().unwrap();
    let settings = Settings { segment_size: 1 << 20, ..Settings::default() };
    let queue = Queue::create(mount.root().join("market"), &settings).unwrap();
    queue.add_reader("native").unwrap();
    let waiter = queue.waiter().unwrap();
    let parts = ["writer", READERS[0], READERS[1], READERS[2]];
    let mut running = parts.map(|part| Some(start(part, &dir)));
    let mut killed = [0; 5];
    let (total, mut head) = (lines.len() as u64, 0);
    for _ in 0..kills {
        let target = (head + random.below(2 * total / kills)).min(total - 1);
        let deadline = Instant::now() + DEADLINE;
        while head < target {
            let ticket = waiter.prepare();
            head = queue.bounds().unwrap().next_seq - 1;
            assert!(Instant::now() < deadline, "the writer makes no progress");
            if head < target {
                waiter.wait(ticket, Duration::from_millis(100));
            }
        }
        let victim = random.index(5);
        killed[victim] += 1;
        if let Some(part) = parts.get(victim) {
            let victim = &mut running[victim];
            victim.as_ref().unwrap().signal("KILL");
            let status = victim.take().unwrap().output().status;
            assert!(status.signal() == Some(libc::SIGKILL) || status.success(), "{part}: {status}");
            *victim = Some(start(part, &dir));
        } else {
            mount.daemon().kill().unwrap();
            mount.daemon().wait().unwrap();
            mount.mount_again("rw");
        }
    }
    for (part, running) in parts.iter().zip(running) {
        assert!(running.unwrap().output().status.success(), "{part}");
    }
    for name in READERS {
        let consumer = Consumer::new(&dir, name, total);
        assert!(consumer.has_all() && consumer.state.links.checked == links, "{name}");
    }
    let mut scanner = queue.scan().unwrap();
    for (timestamp_ns, message) in lines {
        let found = scanner.next().unwrap().and_then(|entry| entry.message()).unwrap();
        assert!((found.timestamp_ns, found.payload) == (*timestamp_ns, &message[..]), "message {} differs", found.seq);
    }
    assert!(scanner.next().unwrap().is_none());
    Some(killed)
}

const TEST: &str = "nothing_is_lost_whichever_process_dies";

#[test]
fn nothing_is_lost_whichever_process_dies() {
    if let [Some(part), Some(dir)] = PART.map(std::env::var_os) {
        return play(part.to_str().unwrap(), dir.as_ref());
    }
    let kills: Option<u64> = std::env::var("CHRONFS_MARKET_KILLS").ok().map(|kills| kills.parse().unwrap());
    let file = market::recording().unwrap_or_else(market::sample_file);
    let mut lines = market::load(&file);
    if kills.is_none() {
        lines.truncate(20_000);
    }
    let links = market::check_links(lines.iter().map(|(_, message)| &message[..]));
    let wanted = kills.unwrap_or(25);
    let mut random = Random(0x5EED ^ u64::from(std::process::id()));
    let (mut killed, mut rounds, started) = ([0; 5], 0, Instant::now());
    while killed.iter().sum::<u64>() < wanted {
        let Some(some) = round(&lines, links, wanted.min(250), &mut random) else { return };
        (0..5).for_each(|part| killed[part] += some[part]);
        rounds += 1;
        let [writer, native, follow, messages, daemon] = killed;
        eprintln!(
            "{:.0?}: {rounds} times {} messages with {links} links; killed: {writer} writers, {native} native readers, {follow} \
             followers, {messages} readers of messages.jsonl, {daemon} daemons",
            started.elapsed(),
            lines.len()
        );
    }
}
