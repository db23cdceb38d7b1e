//! Archives in directories.
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use chronfs::Queue;
use chronfs::queue::{Entry, Settings, WriterOptions};

use crate::common::{SMALL, append, count, filled, payload, until, writer};
use crate::service::{report, until_report};
use crate::shelf::{Archive, SEVERAL, check_same, objects, path, segment_objects, segments, several};

fn scratch() -> (tempfile::TempDir, Archive) {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::dir(&dir.path().join("store"));
    (dir, archive)
}

#[test]
fn a_queue_comes_back_byte_for_byte_and_goes_on() {
    let (dir, archive) = scratch();
    let (one, two) = (dir.path().join("q"), dir.path().join("copy"));
    let queue = several(&one);
    archive.archive(&one);
    let sealed = segments(&one).len();
    assert!(sealed >= 3, "{sealed}");
    let report = report(&one, "archive");
    assert_eq!((&report["condition"], report["lag_messages"].as_u64()), (&"stopped".into(), Some(0)), "{report:#}");
    let [listed] = archive.json(&["list", &archive.url], &[]).as_array().unwrap().clone().try_into().unwrap();
    assert_eq!(listed["queue"], format!("{:016x}", queue.id()));
    assert_eq!((&listed["first_seq"], listed["missing"].as_array().unwrap().len()), (&1.into(), 0));
    let list = listed["segments"].as_array().unwrap();
    assert!(list.len() == sealed && list.iter().all(|segment| segment["has_index"] == true), "{listed:#}");
    let verdict = archive.json(&["verify", &archive.url, path(&one)], &[]);
    assert_eq!(verdict["equal"], sealed);

    let restored = archive.restore(&two, &[]);
    assert_eq!(restored["segments"], sealed);
    assert_eq!(check_same(&one, &two), sealed);
    let last = restored["last_seq"].as_u64().unwrap();
    let copy = Queue::open(&two).unwrap();
    assert!(copy.control_damage().is_none());
    assert_eq!(count(&copy), last);
    assert_eq!(copy.bounds().unwrap().next_seq, last + 1);
    // The mount needs no index of its own.
    let index = two.join(".index/000000001.index");
    assert_eq!(chronfs::view::segment_index(&copy, chronfs::queue::SegmentId(1)).unwrap(), fs::read(index).ok());
    append(&mut writer(&copy), SEVERAL, |seq| payload(seq, 200));
    assert_eq!(count(&copy), last + SEVERAL);

    let before = objects(&dir.path().join("store"));
    archive.archive(&two);
    let after = objects(&dir.path().join("store"));
    assert!(before.iter().all(|(path, written)| after.get(path) == Some(written)), "nothing is written twice");
    assert!(after.len() > before.len());
    archive.json(&["verify", &archive.url, path(&two)], &[]);
    // The queue itself has gone on with other messages of the same numbers.
    append(&mut writer(&queue), SEVERAL, |seq| payload(seq, 300));
    archive.fails(&["run", "--once", path(&one), &archive.url], &[], 77, "another copy of this queue");
    assert_eq!(objects(&dir.path().join("store")), after, "nothing is written");
}

#[test]
fn parts_are_restored_by_numbers_and_by_times() {
    let (dir, archive) = scratch();
    let (one, to) = (dir.path().join("q"), dir.path().join("part"));
    let queue = Queue::create(&one, &SMALL).unwrap();
    let mut appending =
        queue.writer_with(&WriterOptions { max_ahead: Duration::MAX, ..WriterOptions::default() }).unwrap();
    for seq in 1..=SEVERAL {
        appending.append_exact(seq, seq * 1_000_000_000, 1, &payload(seq, 300)).unwrap();
    }
    drop(appending);
    archive.archive(&one);
    let finished = queue.finished_segments(0).unwrap();
    let middle = &finished[1];
    let expect = |arguments: &[&str], from: usize, to_segment: usize| {
        let restored = archive.restore(&to, arguments);
        let numbers = (finished[from].first_seq, finished[to_segment].next_seq - 1);
        let found = (restored["first_seq"].as_u64().unwrap(), restored["last_seq"].as_u64().unwrap());
        assert_eq!(found, numbers, "{arguments:?}");
        check_same(&one, &to);
        let bounds = Queue::open(&to).unwrap().bounds().unwrap();
        assert_eq!((bounds.first_seq, bounds.next_seq), (numbers.0, numbers.1 + 1));
        fs::remove_dir_all(&to).unwrap();
    };
    let last = finished.len() - 1;
    // Message N is from second N. The next one might have the same time: half a second before its own tells them apart.
    for (word, at, until) in [("seq", "", ""), ("time", "@", ".5")] {
        let (from, to) = (format!("--from-{word}"), format!("--to-{word}"));
        let start = |seq: u64| format!("{at}{seq}");
        let end = |seq: u64| format!("{at}{}{until}", if until.is_empty() { seq } else { seq - 1 });
        expect(&[&from, &start(middle.first_seq), &to, &end(middle.next_seq - 1)], 1, 1);
        expect(&[&from, &start(middle.next_seq - 1)], 1, last);
        expect(&[&from, &start(middle.next_seq)], 2, last);
        expect(&[&to, &end(middle.first_seq - 1)], 0, 0);
        expect(&[&to, &end(middle.first_seq)], 0, 1);
    }
    archive.fails(&["restore", &archive.url, path(&to), "--from-seq", "1000000"], &[], 77, "nothing of what is asked");
    assert!(!to.exists() && !dir.path().join(".part.restoring").exists());
}

#[test]
fn it_follows_and_the_queue_keeps_what_is_not_archived() {
    let (dir, archive) = scratch();
    let (one, two, log) = (dir.path().join("q"), dir.path().join("copy"), dir.path().join("log"));
    let settings = Settings { retain_segments: Some(1), ..SMALL };
    // The archive can't be written: a file is in its place.
    let store = dir.path().join("store");
    fs::write(&store, "").unwrap();
    let queue = filled(&one, &settings, 10, |seq| payload(seq, 300));
    let service = archive.start(&one, &log);
    until("its reader is there", || queue.inspect().unwrap().readers.iter().any(|reader| reader.name == "archive"));
    append(&mut writer(&queue), SEVERAL, |seq| payload(seq, 300));
    until_report(&one, "archive", "it waits", |report| {
        report["condition"] == "waiting" && report["lag_messages"].as_u64() > Some(1000)
    });
    queue.apply_retention().unwrap();
    assert_eq!(queue.bounds().unwrap().first_seq, 1, "removed before it was archived");
    fs::remove_file(&store).unwrap();
    let last = queue.finished_segments(0).unwrap().last().unwrap().next_seq - 1;
    until_report(&one, "archive", "all is archived", |report| {
        report["pair"]["seq"].as_u64() == Some(last) && report["lag_messages"] == 0
    });
    append(&mut writer(&queue), SEVERAL, |seq| payload(seq, 300));
    let last = queue.finished_segments(0).unwrap().last().unwrap().next_seq - 1;
    until_report(&one, "archive", "the new ones are", |report| report["pair"]["seq"].as_u64() == Some(last));
    service.stop();
    queue.apply_retention().unwrap();
    assert!(queue.bounds().unwrap().first_seq > SEVERAL, "kept although it is archived");

    // The limits don't remove what is restored, nor keep a writer out.
    let restored = archive.restore(&two, &[]);
    assert_eq!((restored["first_seq"].as_u64(), restored["last_seq"].as_u64()), (Some(1), Some(last)));
    let copy = Queue::open(&two).unwrap();
    append(&mut writer(&copy), SEVERAL, |seq| payload(seq, 300));
    copy.apply_retention().unwrap();
    assert_eq!(count(&copy), last + SEVERAL);
}

#[test]
fn a_restored_queue_may_be_larger_than_it_was_allowed_to_be() {
    let (dir, archive) = scratch();
    let (one, two) = (dir.path().join("q"), dir.path().join("copy"));
    let settings = Settings { retain_segments: Some(1), max_bytes: Some(256 << 10), ..SMALL };
    let queue = Queue::create(&one, &settings).unwrap();
    for _ in 0..6 {
        append(&mut writer(&queue), 300, |seq| payload(seq, 300));
        archive.archive(&one);
    }
    let restored = archive.restore(&two, &[]);
    assert!(restored["bytes"].as_u64() > settings.max_bytes, "{restored:#}");
    let copy = Queue::open(&two).unwrap();
    assert_eq!(copy.settings(), Settings { retain_segments: None, max_bytes: None, ..settings });
    append(&mut writer(&copy), 300, |seq| payload(seq, 300));
}

#[test]
fn all_ready_queues_of_a_bus_are_archived_each_below_the_address() {
    let (dir, archive) = scratch();
    let bus = dir.path().join("bus");
    for name in ["a", "feeds/b", "c"] {
        several(&bus.join(name));
        if name != "c" {
            chronfs::bus::mark_ready(bus.join(name)).unwrap();
        }
    }
    archive.archive(&bus);
    for name in ["a", "feeds/b"] {
        let part = Archive { url: format!("{}/{name}", archive.url), ..archive.clone() };
        let copy = dir.path().join("copy").join(name);
        part.restore(&copy, &[]);
        check_same(&bus.join(name), &copy);
    }
    assert!(!dir.path().join("store/c").exists());
    archive.fails(&["restore", &archive.url, "none"], &[], 78, "no archive of a queue");
}

#[test]
fn damage_is_named_and_archived_only_when_told_to() {
    let (dir, archive) = scratch();
    let (one, two) = (dir.path().join("q"), dir.path().join("copy"));
    let queue = several(&one);
    let segment = queue.finished_segments(0).unwrap()[1].clone();
    let mut bytes = fs::read(&segment.path).unwrap();
    bytes[20_000] ^= 1;
    fs::write(&segment.path, bytes).unwrap();
    let run = ["run", "--once", path(&one), &archive.url];
    archive.fails(&run, &[], 77, "000000001.q: damaged: messages");
    assert_eq!(segment_objects(&dir.path().join("store")).len(), 1, "those before it are archived");
    let reader = queue.inspect().unwrap().readers.iter().find_map(|reader| reader.position);
    assert_eq!(reader, Some(segment.first_seq), "the queue keeps it");
    let told = archive.call(&run, &["--damaged"]);
    assert!(told.status.success());
    archive.fails(&["verify", &archive.url], &[], 77, "");
    archive.fails(&["restore", &archive.url, path(&two)], &[], 77, "damaged: messages");
    assert!(!two.exists());
    let restored = archive.restore(&two, &["--incomplete"]);
    assert_eq!(restored["damaged"].as_array().unwrap().len(), 1);
    assert_eq!(check_same(&one, &two), segments(&one).len());
    let mut scanner = Queue::open(&two).unwrap().scan().unwrap();
    let gaps = std::iter::from_fn(|| scanner.next().unwrap().map(|entry| matches!(entry, Entry::Gap(_))));
    assert_eq!(gaps.filter(|is_gap| *is_gap).count(), 1);
}

#[test]
fn a_segment_that_cannot_be_read_stops_it_until_told_to_go_on() {
    let (dir, archive) = scratch();
    let (one, two) = (dir.path().join("q"), dir.path().join("copy"));
    let queue = several(&one);
    let finished = queue.finished_segments(0).unwrap();
    let (from, to) = (finished[1].first_seq, finished[1].next_seq - 1);
    fs::write(&finished[1].path, vec![0; 64 << 10]).unwrap();
    let run = ["run", "--once", path(&one), &archive.url];
    for _ in 0..2 {
        let words = format!("messages {from} to {to} are in no segment that can be read");
        archive.fails(&run, &[], 77, &words);
    }
    assert!(archive.call(&run, &["--damaged"]).status.success());
    assert_eq!(segment_objects(&dir.path().join("store")).len(), finished.len() - 1);
    archive.fails(&["verify", &archive.url, path(&one)], &[], 77, "");
    archive.restore(&two, &["--incomplete"]);
    assert_eq!(check_same(&one, &two), finished.len() - 1);
}

#[test]
fn a_directory_that_is_not_mounted_is_not_an_empty_archive() {
    let (dir, archive) = scratch();
    let (one, store, away) = (dir.path().join("q"), dir.path().join("store"), dir.path().join("away"));
    let queue = several(&one);
    archive.archive(&one);
    append(&mut writer(&queue), SEVERAL, |seq| payload(seq, 300));
    fs::rename(&store, &away).unwrap();
    fs::create_dir(&store).unwrap();
    archive.fails(&["list", &archive.url], &[], 78, "is that directory mounted?");
    archive.fails(&["verify", &archive.url], &[], 78, "is that directory mounted?");
    archive.fails(&["run", "--once", path(&one), &archive.url], &[], 1, "is it mounted?");
    assert_eq!(objects(&store).len(), 0, "written to the disk under the mountpoint");
    fs::remove_dir(&store).unwrap();
    fs::rename(&away, &store).unwrap();
    archive.archive(&one);
    archive.json(&["verify", &archive.url, path(&one)], &[]);
    // Another address is another archive.
    let other = Archive::dir(&dir.path().join("other"));
    append(&mut writer(&queue), SEVERAL, |seq| payload(seq, 300));
    other.archive(&one);
}

fn age(object: &Path, hours: u64) {
    let time = SystemTime::now() - Duration::from_secs(hours * 3600);
    File::options().write(true).open(object).unwrap().set_modified(time).unwrap();
}

#[test]
fn only_what_is_old_is_deleted_and_nothing_under_a_restore() {
    let (dir, archive) = scratch();
    let (one, two, store) = (dir.path().join("q"), dir.path().join("copy"), dir.path().join("store"));
    several(&one);
    archive.archive(&one);
    let all = segment_objects(&store);
    // The third one is old, too, and stays: there is one before it that is not.
    for index in [0, 1, 3] {
        age(&all[index], 48);
    }
    let prune = ["prune", &archive.url, "--older-than", "1d"];
    let marker = all[0].parent().unwrap().join("restoring.0123456789abcdef");
    fs::write(&marker, "").unwrap();
    archive.fails(&prune, &[], 1, "a restore is at work");
    assert_eq!(segment_objects(&store), all);
    age(&marker, 2);
    let pruned = archive.json(&prune, &[]);
    assert_eq!(pruned["segments"], 2);
    assert_eq!(segment_objects(&store), all[2..]);
    assert!(!objects(&store).keys().any(|path| path.to_str().unwrap().contains("pruning")), "no marker is left");
    fs::write(marker.with_file_name("pruning.0123456789abcdef"), "").unwrap();
    archive.fails(&["restore", &archive.url, path(&two)], &[], 1, "a prune is at work");
    fs::remove_file(marker.with_file_name("pruning.0123456789abcdef")).unwrap();
    let restored = archive.restore(&two, &[]);
    assert_eq!(restored["first_seq"], pruned["first_seq"]);
    check_same(&one, &two);
}
