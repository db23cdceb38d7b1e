//! Recorded market data through a queue and back: what comes out is what went in.
//!
//! Always with the project's own sample; also with the large recording where `CHRONFS_DATA` names a directory that
//! has one (or `../shared/data` does). The data carries its own proof: within a symbol each depth update names the
//! one before it (`pu`), and trade numbers (`t`) rise by one, so that anything lost, doubled or out of order shows.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use chronfs::Queue;
use chronfs::queue::Settings;
use flate2::read::MultiGzDecoder;

mod common;
#[path = "../examples/feed/sample.rs"]
mod sample;

use common::market::{check_links, load, recording, sample_file};

const PROGRAM: &str = env!("CARGO_BIN_EXE_chron-cli");

fn tail(queue: &Path, format: &str) -> Vec<u8> {
    let args = ["tail", "-n", "+1", "--format", format];
    let output = Command::new(PROGRAM).args(args).arg(queue).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn there_and_back(file: &Path, segment_size: u32) {
    let dir = tempfile::tempdir().unwrap();
    let lines = load(file);
    assert!(check_links(lines.iter().map(|(_, message)| &message[..])) > 100);
    assert!(lines.is_sorted_by_key(|(timestamp_ns, _)| *timestamp_ns));

    // Natively, with the recorded times.
    let native = dir.path().join("native");
    let queue = Queue::create(&native, &Settings { segment_size, ..Settings::default() }).unwrap();
    let mut writer = queue.writer().unwrap();
    for (timestamp_ns, message) in &lines {
        writer.append_at(*timestamp_ns, 1, message).unwrap();
    }
    drop(writer);
    let texts: Vec<u8> = lines.iter().flat_map(|(_, message)| [&message[..], b"\n"].concat()).collect();
    assert!(tail(&native, "txt") == texts);

    let jsonl = tail(&native, "jsonl");
    let mut count = 0;
    for (line, (timestamp_ns, message)) in jsonl.split(|&b| b == b'\n').zip(&lines) {
        let json: serde_json::Value = serde_json::from_slice(line).unwrap();
        count += 1;
        assert_eq!((json["seq"].as_u64(), json["timestamp_ns"].as_u64()), (Some(count), Some(*timestamp_ns)));
        assert_eq!(json["payload"].as_str().unwrap().as_bytes(), message);
    }
    assert_eq!(count, lines.len() as u64);

    // Through the shell into another queue: the same bytes again.
    let copy = dir.path().join("copy");
    let mut append = Command::new(PROGRAM)
        .args(["append", "--format", "jsonl"])
        .arg(&copy)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    append.stdin.take().unwrap().write_all(&jsonl).unwrap();
    let mut words = String::new();
    append.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert!(append.wait().unwrap().success(), "{words}");
    assert!(tail(&copy, "jsonl") == jsonl);
}

#[test]
fn the_sample_is_what_its_generator_makes() {
    let mut made = Vec::new();
    sample::generate(2000, &mut made).unwrap();
    let mut kept = Vec::new();
    MultiGzDecoder::new(File::open(sample_file()).unwrap()).read_to_end(&mut kept).unwrap();
    assert!(
        made == kept,
        "generate it again: cargo run --example feed -- --generate 2000 > testdata/market-sample.log.gz"
    );
}

#[test]
fn the_sample_comes_back_as_it_went_in() {
    there_and_back(&sample_file(), 64 << 10);
}

#[test]
fn the_recording_comes_back_as_it_went_in() {
    match recording() {
        Some(file) => there_and_back(&file, 4 << 20),
        None => common::market::say_there_is_no_recording(),
    }
}
