//! The main use case: one process appends recorded market data with its own timestamps and is killed in the
//! middle of it, a second one follows through the mount, a third reads natively. All see every message, once, in
//! order, byte for byte.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chronfs::Queue;
use chronfs::queue::Settings;
use common::{Running, TestMount, market, until};

/// In the child that appends: the queue, and the recording.
const WRITER: [&str; 2] = ["CHRONFS_TEST_QUEUE", "CHRONFS_TEST_RECORDING"];

/// Appends what the queue does not have yet, at a pace that leaves time to be killed.
fn append_the_rest(queue: &Path, recording: &Path) {
    let mut writer = Queue::open(queue).unwrap().writer().unwrap();
    let have = usize::try_from(writer.next_seq() - 1).unwrap();
    let lines = market::load(recording);
    let (start, step) = (Instant::now(), Duration::from_secs(2) / u32::try_from(lines.len()).unwrap());
    for ((timestamp_ns, message), number) in lines[have..].iter().zip(0..) {
        while start.elapsed() < step * number {
            std::hint::spin_loop();
        }
        writer.append_at(*timestamp_ns, 1, message).unwrap();
    }
}

fn start_writer(test: &str, queue: &Path, recording: &Path) -> Running {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(WRITER[0], queue).env(WRITER[1], recording);
    Running::new(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
}

fn three_ways(test: &str, recording: &Path, kills: usize) {
    if let [Some(queue), Some(recording)] = WRITER.map(std::env::var_os) {
        return append_the_rest(queue.as_ref(), recording.as_ref());
    }
    let Some(mount) = TestMount::new() else { return };
    let lines = market::load(recording);
    let links = market::check_links(lines.iter().map(|(_, message)| &message[..]));
    let path = mount.root().join("market");
    let queue = Queue::create(&path, &Settings { segment_size: 1 << 20, ..Settings::default() }).unwrap();
    let followed = mount.root().with_file_name("followed.jsonl");
    let follower = mount.start("bash", &["-c", &format!("exec cat market/follow.jsonl > {}", followed.display())]);
    mount.wait_until_blocked(&follower);

    let mut reader = queue.reader("native").unwrap();
    let mut read = Vec::new();
    let mut writer = start_writer(test, &path, recording);
    let mut kill_at: Vec<usize> = (1..=kills).rev().map(|kill| lines.len() * kill / (kills + 1)).collect();
    while read.len() < lines.len() {
        assert!(reader.wait(Some(Duration::from_secs(60))).unwrap(), "nothing came after message {}", read.len());
        while let Some(entry) = reader.next().unwrap() {
            let message = entry.message().unwrap();
            assert_eq!((message.seq, message.timestamp_ns), (read.len() as u64 + 1, lines[read.len()].0));
            assert!(message.payload == lines[read.len()].1, "message {} differs", message.seq);
            read.push(message.payload.to_vec());
        }
        reader.commit();
        if kill_at.last().is_some_and(|&at| read.len() >= at) {
            kill_at.pop();
            writer.signal("KILL");
            assert!(!writer.output().status.success());
            writer = start_writer(test, &path, recording);
        }
    }
    assert!(writer.output().status.success());
    assert_eq!(market::check_links(read.iter().map(|message| &message[..])), links);

    let everything = std::fs::read(mount.mountpoint().join("market/messages.jsonl")).unwrap();
    until("the follower has everything", || std::fs::metadata(&followed).unwrap().len() >= everything.len() as u64);
    assert!(std::fs::read(&followed).unwrap() == everything, "what was followed is what is retained");
    through_programs(&mount, &lines);
}

/// What ordinary programs find in the mounted queue.
fn through_programs(mount: &TestMount, lines: &[(u64, Vec<u8>)]) {
    let number = |script: &str| mount.ok(script).trim().parse::<usize>().unwrap();
    assert_eq!(number("wc -l < market/messages.jsonl"), lines.len());
    let trades = lines.iter().filter(|(_, message)| memchr::memmem::find(message, b"trade").is_some()).count();
    assert_eq!(number("grep -c trade market/messages.jsonl"), trades);
    let last: Vec<u8> = lines[lines.len() - 3..].iter().flat_map(|(_, m)| [m.as_slice(), b"\n"].concat()).collect();
    assert_eq!(mount.ok("tail -n 3 market/messages.txt").into_bytes(), last);
    let all: Vec<u8> = lines.iter().flat_map(|(_, m)| [m.as_slice(), b"\n"].concat()).collect();
    let by_jq = mount.sh("jq -r .payload market/messages.jsonl");
    assert!(by_jq.stdout == all, "jq: {}", common::text(&by_jq.stderr));
}

#[test]
fn the_sample_is_seen_by_all() {
    three_ways("the_sample_is_seen_by_all", &market::sample_file(), 1);
}

#[test]
fn the_recording_is_seen_by_all() {
    match market::recording() {
        Some(recording) => three_ways("the_recording_is_seen_by_all", &recording, 3),
        None => market::say_there_is_no_recording(),
    }
}
