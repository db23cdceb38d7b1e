//! Objects that are not what they must be.
use std::fs;
use std::io::Write as _;
use std::path::Path;

use crate::shelf::{Archive, path, segment_objects, segments, several};

/// Changes the second segment's object, and restores: it must be refused with these words, and name the object.
fn refused(change: impl FnOnce(&Path), words: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (one, two, store) = (dir.path().join("q"), dir.path().join("copy"), dir.path().join("store"));
    let archive = Archive::dir(&store);
    several(&one);
    archive.archive(&one);
    let object = segment_objects(&store)[1].clone();
    change(&object);
    archive.fails(&["restore", &archive.url, path(&two)], &[], 77, words);
    assert!(!two.exists(), "{words}");
    let verified = archive.call(&["verify", &archive.url, path(&one)], &[]);
    assert_eq!(verified.status.code(), Some(77), "{words}");
    let verdict = String::from_utf8(verified.stdout).unwrap();
    assert!(verdict.contains(words), "{verdict}");
}

fn change(object: &Path, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let bytes = change(fs::read(object).unwrap());
    fs::write(object, bytes).unwrap();
}

fn pack(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_pledged_src_size(Some(bytes.len() as u64)).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn cut_short() {
    refused(|object| change(object, |bytes| bytes[..bytes.len() / 2].to_vec()), "cut short");
}

#[test]
fn empty() {
    refused(|object| change(object, |_| Vec::new()), "cut short");
}

#[test]
fn a_flipped_bit() {
    let flip = |mut bytes: Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bytes
    };
    refused(|object| change(object, flip), ".q.zst: after");
}

#[test]
fn not_a_segment() {
    refused(|object| change(object, |_| pack(&vec![7; 64 << 10])), "does not hold a segment");
}

#[test]
fn a_bomb() {
    // It states the size of a segment, and holds a thousand times that.
    let bomb = |_| {
        let mut frame = pack(&vec![0; 128 << 20]);
        let at = if frame[4] & 0x20 == 0 { 6 } else { 5 };
        frame[at..at + 4].copy_from_slice(&(64_u32 << 10).to_le_bytes());
        frame
    };
    refused(|object| change(object, bomb), ".q.zst: ");
}

#[test]
fn another_segment_of_the_same_queue() {
    let replace = |object: &Path| {
        let first = segment_objects(object.parent().unwrap())[0].clone();
        fs::copy(first, object).unwrap();
    };
    refused(replace, "it holds the segment");
}

#[test]
fn two_of_the_same_numbers() {
    let again = |object: &Path| {
        let name = object.file_name().unwrap().to_str().unwrap();
        let (numbers, rest) = name.split_once(".1.").unwrap();
        fs::copy(object, object.with_file_name(format!("{numbers}.77.{rest}"))).unwrap();
    };
    refused(again, "can't ");
}

#[test]
fn records_that_are_damaged() {
    let damage = |bytes: Vec<u8>| {
        let mut segment = zstd::decode_all(&bytes[..]).unwrap();
        segment[20_000] ^= 1;
        pack(&segment)
    };
    refused(|object| change(object, damage), "damaged: messages");
}

#[test]
fn a_missing_one() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two, store) = (dir.path().join("q"), dir.path().join("copy"), dir.path().join("store"));
    let archive = Archive::dir(&store);
    let queue = several(&one);
    archive.archive(&one);
    fs::remove_file(&segment_objects(&store)[1]).unwrap();
    let finished = queue.finished_segments(0).unwrap();
    let (from, to) = (finished[1].first_seq, finished[1].next_seq - 1);
    archive.fails(
        &["restore", &archive.url, path(&two)],
        &[],
        77,
        &format!("messages {from} to {to} are not archived"),
    );
    let restored = archive.restore(&two, &["--incomplete"]);
    assert_eq!(restored["missing"], serde_json::json!([[from, to]]));
    assert_eq!(segments(&two).len(), finished.len() - 1);
    let verified = archive.call(&["verify", &archive.url, path(&one)], &[]);
    let verdict: serde_json::Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!((verified.status.code(), &verdict["not_archived"]), (Some(77), &serde_json::json!([[from, to]])));
}

#[test]
fn strange_names_and_damaged_indexes_are_named_and_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two, store) = (dir.path().join("q"), dir.path().join("copy"), dir.path().join("store"));
    let archive = Archive::dir(&store);
    several(&one);
    archive.archive(&one);
    let object = segment_objects(&store)[1].clone();
    for strange in ["notes.txt", "..q.zst", "1-2.3.4.q.zst", "18446744073709551616-1.0.00000000.q.zst"] {
        fs::write(object.with_file_name(strange), "strange").unwrap();
    }
    fs::create_dir(store.join("v1/not-a-queue")).unwrap();
    fs::write(store.join("v1/not-a-queue/x"), "").unwrap();
    let index = object.with_file_name(object.file_name().unwrap().to_str().unwrap().replace(".q.zst", ".index"));
    change(&index, |mut bytes| {
        bytes[100] ^= 1;
        bytes
    });
    archive.restore(&two, &[]);
    crate::shelf::check_same(&one, &two);
    assert!(two.join(".index/000000002.index").exists() && !two.join(".index/000000001.index").exists());
    let verified = archive.call(&["verify", &archive.url], &[]);
    let verdict: serde_json::Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(verdict["strange"].as_array().unwrap().len(), 4, "{verdict:#}");
    let damaged = verdict["damaged"].as_array().unwrap();
    assert!(damaged.len() == 1 && damaged[0].as_str().unwrap().contains(".index: it is damaged"), "{verdict:#}");
}
