//! Before a segment goes: the hook that is asked, and messages that are kept while their segment is retired and its file
//! could be reused. What a writer counts.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chronfs::metrics::Metrics;
use chronfs::queue::{Error, KeptMessage, Queue, Removal, Settings, Waiter, WhenFull, WriterOptions};

mod common;

use common::{SMALL, new_queue, payload, scratch};

/// Removes what it can after each roll.
const NOTHING_KEPT: Settings = Settings { retain_segments: Some(0), ..SMALL };

/// Appends until there are this many more segments.
fn fill(writer: &mut chronfs::QueueWriter, segments: u64) {
    let end = writer.stats().rolls + segments;
    while writer.stats().rolls < end {
        let seq = writer.next_seq();
        assert_eq!(writer.append(1, &payload(seq, 3_000)).unwrap(), seq);
    }
}

#[test]
fn the_hook_is_asked_about_each_segment_while_it_is_whole_and_may_keep_it() {
    let (_dir, queue) = new_queue(&NOTHING_KEPT);
    let mut writer = queue.writer().unwrap();
    fill(&mut writer, 1);
    drop(writer);
    // That writer had no hook.
    let first_seq = queue.bounds().unwrap().first_seq;
    let (asked, is_allowed) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
    let (ask, allowed) = (Arc::clone(&asked), Arc::clone(&is_allowed));
    queue.before_removal(move |path, segment| {
        assert!(path.ends_with(format!("{:09}.q", segment.id.0)) && segment.sealed);
        assert_eq!(std::fs::metadata(path).unwrap().len(), segment.bytes);
        ask.lock().unwrap().push((segment.id.0, segment.first_seq, segment.last_seq));
        match allowed.load(Ordering::Relaxed) {
            0 => Removal::NotYet,
            1 => panic!("a hook that fails"),
            _ => Removal::Allow,
        }
    });
    let mut writer = queue.writer().unwrap();
    fill(&mut writer, 3);
    drop(writer);
    assert_eq!(queue.bounds().unwrap().first_seq, first_seq, "nothing may go");
    let sealed = queue.inspect().unwrap().segments.iter().filter(|segment| segment.sealed).count();
    assert!(sealed >= 3);
    assert_eq!(queue.plan_retention().unwrap().removed.len(), sealed, "a plan asks nobody");
    is_allowed.store(1, Ordering::Relaxed);
    assert!(queue.apply_retention().unwrap().removed.is_empty(), "what a panic says nothing about stays");
    is_allowed.store(2, Ordering::Relaxed);
    asked.lock().unwrap().clear();
    let removed = queue.apply_retention().unwrap().removed;
    let removed: Vec<_> = removed.iter().map(|info| (info.id.0, info.first_seq, info.last_seq)).collect();
    assert_eq!(removed.len(), sealed);
    assert_eq!(*asked.lock().unwrap(), removed, "once each, in order");
    assert!(removed.is_sorted() && removed[0].1 == first_seq);
}

#[test]
fn a_hook_that_hangs_stops_no_append() {
    let (_dir, queue) = new_queue(&NOTHING_KEPT);
    let (go_on, hangs) = std::sync::mpsc::channel::<()>();
    let hangs = Mutex::new(hangs);
    queue.before_removal(move |_, _| {
        let _ = hangs.lock().unwrap().recv();
        Removal::NotYet
    });
    let mut writer = queue.writer().unwrap();
    // Each roll needs a new file, since none is retired.
    fill(&mut writer, 20);
    assert_eq!(queue.bounds().unwrap().first_seq, 1);
    drop(go_on);
    drop(writer);
}

#[test]
fn a_writer_that_waits_for_room_goes_on_when_the_hook_allows_it() {
    let settings = Settings { max_bytes: Some(256 << 10), ..NOTHING_KEPT };
    let (_dir, queue) = new_queue(&settings);
    let asked = Arc::new(AtomicU64::new(0));
    let ask = Arc::clone(&asked);
    queue.before_removal(
        move |_, _| {
            if ask.fetch_add(1, Ordering::Relaxed) < 3 { Removal::NotYet } else { Removal::Allow }
        },
    );
    let wait = WhenFull::Wait(Duration::from_secs(60));
    let mut writer = queue.writer_with(&WriterOptions { when_full: wait, ..WriterOptions::default() }).unwrap();
    fill(&mut writer, 12);
    assert!(queue.bounds().unwrap().first_seq > 1);
    assert!(asked.load(Ordering::Relaxed) > 3);
    assert!(writer.stats().waited > Duration::ZERO);
}

#[test]
fn kept_messages_outlive_their_reader_their_segment_and_the_reuse_of_files() {
    // In memory every file can be reused.
    let dir = scratch();
    let queue = Queue::create(dir.path().join("q"), &NOTHING_KEPT).unwrap();
    let mut writer = queue.writer().unwrap();
    let mut reader = queue.reader("r").unwrap();
    let mut kept: Vec<KeptMessage> = Vec::new();
    for _ in 0..10 {
        fill(&mut writer, 1);
        while let Some(message) = reader.next_kept(|gap| panic!("{gap:?}")).unwrap() {
            kept.push(message);
        }
        reader.commit();
    }
    drop(reader);
    queue.remove_reader("r").unwrap();
    fill(&mut writer, 10);
    drop(writer);
    queue.apply_retention().unwrap();
    let first = queue.bounds().unwrap().first_seq;
    assert!(first > kept.last().unwrap().message().seq, "all of them are retired");
    // On another thread.
    let check = move || {
        for (seq, kept) in (1..).zip(&kept) {
            assert_eq!((kept.message().seq, &kept[..]), (seq, &payload(seq, 3_000)[..]));
            assert_eq!(kept.as_ptr().addr() % 8, 0);
        }
    };
    std::thread::spawn(check).join().unwrap();
}

#[test]
fn kept_messages_of_a_file_that_is_cut_short_read_as_zeros() {
    let (dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    writer.append(1, &[7; 10_000]).unwrap();
    drop(writer);
    let kept = queue.reader("r").unwrap().next_kept(|_| {}).unwrap().unwrap();
    let copy = kept.clone();
    std::fs::File::options().write(true).open(dir.path().join("q/000000000.q")).unwrap().set_len(8192).unwrap();
    assert!(copy[..4_000].iter().all(|&byte| byte == 7) && copy[9_000..].iter().all(|&byte| byte == 0));
    assert_eq!(kept.len(), 10_000);
}

#[test]
fn a_writer_counts_what_it_does() {
    let (_dir, queue) = new_queue(&SMALL);
    queue.writer().unwrap().append(1, b"of another writer").unwrap();
    let mut writer = queue.writer().unwrap();
    assert_eq!(writer.stats(), Default::default());
    fill(&mut writer, 3);
    let batch = writer.next_seq();
    writer.batch().append_parts(1, &[]).unwrap();
    writer.append_gap(batch + 1_000, chronfs::queue::GapReason::Lost).unwrap();
    writer.append(1, b"after the gap").unwrap();
    writer.flush_sync().unwrap();
    let stats = writer.stats();
    let appended = batch - 2 + 2;
    assert_eq!((stats.appended, stats.rolls, stats.syncs, stats.failed_syncs), (appended, 3, 1, 0));
    assert_eq!(stats.waited, Duration::ZERO);
    // All records but the first message's, without the seals.
    let inspection = queue.inspect().unwrap();
    assert_eq!(stats.bytes, inspection.bytes - 56);

    let mut reader = queue.reader("r").unwrap();
    while reader.next().unwrap().is_some() {}
    let mut metrics = Metrics::new();
    metrics.writer(&[("queue", "q")], &stats);
    metrics.reader(&[("queue", "q"), ("reader", "r")], &reader.stats());
    let text = metrics.text();
    for line in [
        format!("chronfs_writer_appended_messages_total{{queue=\"q\"}} {appended}"),
        "chronfs_writer_rolls_total{queue=\"q\"} 3".to_owned(),
        format!("chronfs_reader_received_messages_total{{queue=\"q\",reader=\"r\"}} {}", appended + 1),
        "chronfs_reader_lost_messages_total{queue=\"q\",reader=\"r\"} 1000".to_owned(),
    ] {
        assert!(text.lines().any(|other| other == line), "{line}\n{text}");
    }

    // A wake is a system call, made only for one that sleeps.
    let waiter: Waiter = queue.waiter().unwrap();
    let before = writer.stats().wakes;
    writer.append(1, b"x").unwrap();
    waiter.prepare();
    writer.append(1, b"x").unwrap();
    assert_eq!(writer.stats().wakes, before + 1);
    assert!(matches!(writer.append(65_535, b"").unwrap_err(), Error::ReservedType));
    assert_eq!(writer.stats().appended, appended + 2);
}
