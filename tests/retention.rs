//! Retention: what is removed, what is kept for which readers, and who is told.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use chronfs::queue::{Entry, Gap, GapReason, IgnoredReason, Queue, Retention, Settings, layout};

mod common;

use common::{SMALL, new_queue};

fn payload(seq: u64) -> Vec<u8> {
    common::payload(seq, 400)
}

/// A queue with five sealed segments and a reader at each of the given positions.
fn retained(settings: Settings, readers: &[(&str, u64)]) -> (tempfile::TempDir, Queue) {
    let (dir, queue) = new_queue(&settings);
    let mut writer = queue.writer().unwrap();
    while queue.inspect().unwrap().segments.iter().filter(|segment| segment.sealed).count() < 5 {
        let number = writer.next_seq();
        writer.append_at(number * 1_000, 1, &payload(number)).unwrap();
    }
    drop(writer);
    for (name, seq) in readers {
        queue.add_reader(name).unwrap();
        queue.seek_reader(name, *seq).unwrap();
    }
    (dir, queue)
}

fn sealed(queue: &Queue) -> Vec<chronfs::queue::SegmentInfo> {
    queue.inspect().unwrap().segments.into_iter().filter(|segment| segment.sealed).collect()
}

/// A copy of the queue with other settings.
fn with_limits(queue: &Queue, change: impl FnOnce(&mut Vec<u8>)) -> Queue {
    let path = queue.path().join("control.meta");
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    let crc = crc32fast::hash(&bytes[..124]).to_le_bytes();
    bytes[124..128].copy_from_slice(&crc);
    bytes.copy_within(..128, 128);
    std::fs::write(&path, bytes).unwrap();
    Queue::open(queue.path()).unwrap()
}

fn set_u64(at: usize, value: u64) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes())
}

/// Makes a block of 64 bytes look as if never written.
fn clear_block(queue: &Queue, file: &str, at: u64) {
    let file = File::options().write(true).open(queue.path().join(file)).unwrap();
    file.write_all_at(&[0; 64], at).unwrap();
}

#[test]
fn retention_keeps_what_a_reader_needs_and_says_who_keeps_it() {
    let (_dir, queue) = retained(SMALL, &[]);
    let infos = sealed(&queue);
    queue.add_reader("slow").unwrap();
    queue.seek_reader("slow", infos[2].first_seq + 3).unwrap();
    assert_eq!(queue.apply_retention().unwrap().removed, [], "no limit: everything stays");
    let queue = with_limits(&queue, set_u64(40, 64 << 10));
    let dry = queue.plan_retention().unwrap();
    assert_eq!(dry.removed, infos[..2]);
    assert_eq!(sealed(&queue), infos, "a dry run removes nothing");
    assert_eq!((dry.pins.len(), dry.pins[0].reader.as_str(), dry.pins[0].segments), (1, "slow", 2));
    assert_eq!(queue.apply_retention().unwrap(), dry);
    assert_eq!(sealed(&queue), infos[2..]);
    let bounds = queue.bounds().unwrap();
    assert_eq!(
        (bounds.first_seq, queue.reader_position("slow").unwrap()),
        (infos[2].first_seq, infos[2].first_seq + 3)
    );
    queue.seek_reader("slow", bounds.next_seq).unwrap();
    assert_eq!(queue.apply_retention().unwrap().removed, infos[2..4]);
    assert_eq!(sealed(&queue), infos[4..], "64 KiB may stay");
}

#[test]
fn retention_by_age_and_by_count() {
    let (_dir, queue) = retained(SMALL, &[]);
    let infos = sealed(&queue);
    // Stamped in 1970: everything is older than an hour.
    let queue = with_limits(&queue, set_u64(48, 3_600_000_000_000));
    assert_eq!(queue.plan_retention().unwrap().removed, infos);
    let queue = with_limits(&queue, |bytes| {
        bytes[48..56].copy_from_slice(&u64::MAX.to_le_bytes());
        bytes[72..76].copy_from_slice(&3_u32.to_le_bytes());
    });
    assert_eq!(queue.apply_retention().unwrap().removed, infos[..2]);
    let first = queue.scan().unwrap().next().unwrap().unwrap().message().unwrap().seq;
    assert_eq!(first, infos[2].first_seq);
}

#[test]
fn retention_by_age_asks_for_the_newest_message_of_a_segment() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    // Two segments of 1970, one that ends today, two of today.
    while sealed(&queue).len() < 2 {
        writer.append_at(1_000, 1, &[0; 1000]).unwrap();
    }
    while sealed(&queue).len() < 5 {
        writer.append(1, &[0; 1000]).unwrap();
    }
    drop(writer);
    let infos = sealed(&queue);
    // Without a seal block, the next segment tells when this one ended.
    clear_block(&queue, "000000001.q", 128);
    let queue = with_limits(&queue, set_u64(48, 3_600_000_000_000));
    assert_eq!(queue.plan_retention().unwrap().removed, infos[..2]);
}

#[test]
fn a_segment_without_its_seal_block_goes_when_its_last_message_has_been_consumed() {
    let (_dir, queue) = retained(SMALL, &[("alice", 1)]);
    let infos = sealed(&queue);
    clear_block(&queue, "000000000.q", 128);
    let queue = with_limits(&queue, set_u64(40, 0));
    for (seq, removed) in [(infos[0].last_seq, &infos[..0]), (infos[1].first_seq, &infos[..1])] {
        queue.seek_reader("alice", seq).unwrap();
        assert_eq!(queue.plan_retention().unwrap().removed, removed, "alice is at {seq}");
    }
}

#[test]
fn a_pin_counts_what_its_reader_keeps_and_nothing_else() {
    let (_dir, queue) = retained(SMALL, &[]);
    let infos = sealed(&queue);
    let next_seq = queue.bounds().unwrap().next_seq;
    for (name, seq) in [("middle", infos[1].first_seq + 3), ("start", infos[3].first_seq), ("up-to-date", next_seq)] {
        queue.add_reader(name).unwrap();
        queue.seek_reader(name, seq).unwrap();
    }
    let queue = with_limits(&queue, set_u64(40, 0));
    let pins = queue.plan_retention().unwrap().pins;
    let pins: Vec<_> = pins.iter().map(|pin| (pin.reader.as_str(), pin.segments, pin.bytes)).collect();
    let bytes_from = |index: usize| infos[index..].iter().map(|info| info.bytes).sum();
    assert_eq!(pins, [("middle", 4, bytes_from(1)), ("start", 2, bytes_from(3))]);
}

#[test]
fn a_reader_expires_when_it_lags_one_byte_more_than_the_limit() {
    let (_dir, queue) = retained(SMALL, &[("alice", 1)]);
    let lag_bytes = queue.inspect().unwrap().readers[0].lag_bytes;
    for (most, reasons) in [(lag_bytes, &[][..]), (lag_bytes - 1, &[IgnoredReason::TooFarBehind])] {
        let queue = with_limits(&queue, |bytes| {
            bytes[40..48].copy_from_slice(&0_u64.to_le_bytes());
            bytes[64..72].copy_from_slice(&most.to_le_bytes());
        });
        let retention = queue.plan_retention().unwrap();
        let found: Vec<_> = retention.ignored.iter().map(|ignored| ignored.reason).collect();
        assert_eq!(found, reasons);
        assert_eq!(retention.removed.is_empty(), reasons.is_empty());
    }
}

#[test]
fn a_reader_is_dead_after_a_longer_silence_than_the_limit_unless_it_is_in_use() {
    let (_dir, queue) = retained(SMALL, &[("alice", 1)]);
    // Without a heartbeat since boot, which is more than a nanosecond ago.
    let silence = || clear_block(&queue, "readers/alice.meta", 192);
    silence();
    let shortest = with_limits(&queue, set_u64(56, 1));
    assert_eq!(shortest.plan_retention().unwrap(), Retention::default(), "without retention no reader expires");
    let longest = with_limits(&queue, |bytes| {
        bytes[40..48].copy_from_slice(&0_u64.to_le_bytes());
        bytes[56..64].copy_from_slice(&(u64::MAX - 1).to_le_bytes());
    });
    assert_eq!(longest.plan_retention().unwrap().ignored, []);
    let shortest = with_limits(&queue, set_u64(56, 1));
    let ignored = shortest.plan_retention().unwrap().ignored;
    assert_eq!(ignored.iter().map(|ignored| ignored.reason).collect::<Vec<_>>(), [IgnoredReason::Dead]);
    let _used = shortest.reader("alice").unwrap();
    silence();
    assert_eq!(shortest.plan_retention().unwrap().ignored, []);
}

#[test]
fn a_heartbeat_that_cannot_be_compared_does_not_mean_death() {
    const HOUR_NS: u64 = 3_600_000_000_000;
    let (_dir, queue) = retained(SMALL, &[("alice", 1)]);
    let path = queue.path().join("readers/alice.meta");
    let file = File::options().write(true).open(&path).unwrap();
    let queue = with_limits(&queue, |bytes| {
        bytes[40..48].copy_from_slice(&0_u64.to_le_bytes());
        // Shorter than any machine's uptime.
        bytes[56..64].copy_from_slice(&10_000_000_000_u64.to_le_bytes());
    });
    let ignored =
        || queue.plan_retention().unwrap().ignored.into_iter().map(|ignored| ignored.reason).collect::<Vec<_>>();
    let stamp = |ns: u64| file.write_all_at(&ns.to_le_bytes(), 192).unwrap();
    assert_eq!(ignored(), []);
    // Another boot's, or a container's with its own boot id; and one ahead of this machine's clock.
    let mut boot_id = [0; 16];
    std::os::unix::fs::FileExt::read_exact_at(&File::open(&path).unwrap(), &mut boot_id, 200).unwrap();
    for (ns, of_boot) in [(1, [7; 16]), (u64::MAX / 2, boot_id), (chronfs::clock::boot_ns() + HOUR_NS, boot_id)] {
        stamp(ns);
        file.write_all_at(&of_boot, 200).unwrap();
        file.set_modified(std::time::SystemTime::now()).unwrap();
        assert_eq!(ignored(), [], "{ns}");
        assert_eq!(queue.inspect().unwrap().readers[0].heartbeat_age_ms, None);
        // Nor has its file been modified for long.
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(ignored(), [IgnoredReason::Dead], "{ns}");
    }
}

#[test]
fn a_dead_reader_and_one_that_lags_too_far_keep_nothing_and_get_the_gap() {
    let (_dir, queue) = retained(SMALL, &[("alice", 1)]);
    let infos = sealed(&queue);
    // A lag of more than 100 KiB is too much; no sealed segment need stay.
    let queue = with_limits(&queue, |bytes| {
        bytes[40..48].copy_from_slice(&0_u64.to_le_bytes());
        bytes[64..72].copy_from_slice(&(100_u64 << 10).to_le_bytes());
    });
    let retention = queue.apply_retention().unwrap();
    assert_eq!(retention.removed, infos);
    assert_eq!(retention.ignored.len(), 1);
    let mut reader = queue.reader("alice").unwrap();
    let gap = reader.next().unwrap().unwrap();
    assert!(matches!(gap, Entry::Gap(Gap { from: 1, to, reason: GapReason::Retired, .. }) if to == infos[4].last_seq));
    assert_eq!(reader.next().unwrap().unwrap().message().unwrap().seq, infos[4].last_seq + 1);
}

#[test]
fn a_reader_in_use_is_never_taken_for_dead() {
    let (_dir, queue) = retained(SMALL, &[("used", 1)]);
    let used = queue.reader("used").unwrap();
    let queue = with_limits(&queue, |bytes| {
        bytes[40..48].copy_from_slice(&0_u64.to_le_bytes());
        bytes[56..64].copy_from_slice(&0_u64.to_le_bytes());
    });
    assert_eq!(queue.plan_retention().unwrap().removed, []);
    drop(used);
    // It has closed the queue, more than 0 ns ago; its stamp counts milliseconds.
    let waiting = std::time::Instant::now();
    while queue.plan_retention().unwrap().removed.is_empty() {
        assert!(waiting.elapsed() < Duration::from_secs(10), "a reader that is gone is never taken for dead");
    }
}

#[test]
fn the_writer_applies_retention_by_itself_after_a_roll() {
    let (_dir, queue) = new_queue(&Settings { retain_segments: Some(2), ..SMALL });
    let mut writer = queue.writer().unwrap();
    while queue.bounds().unwrap().first_seq == 1 {
        let number = writer.next_seq();
        assert!(number < 100_000, "nothing is ever retired");
        writer.append(1, &payload(number)).unwrap();
    }
}

#[test]
fn a_damaged_cursor_keeps_everything_until_it_is_reset() {
    let settings = Settings { segment_size: 64 << 10, retain_segments: Some(1), ..Settings::default() };
    let (_dir, queue) = new_queue(&settings);
    queue.add_reader("alice").unwrap();
    let mut writer = queue.writer().unwrap();
    (1..=6).for_each(|seq| assert_eq!(writer.append(1, &[7; 60_000]).unwrap(), seq));
    drop(writer);
    std::fs::write(queue.path().join("readers/alice.meta"), [0xFF; 4096]).unwrap();
    let retention = queue.apply_retention().unwrap();
    assert!(retention.removed.is_empty(), "{retention:?}");
    assert_eq!(retention.pins.iter().map(|pin| (pin.reader.as_str(), pin.seq)).collect::<Vec<_>>(), [("alice", None)]);
    queue.seek_reader("alice", 7).unwrap();
    assert!(!queue.apply_retention().unwrap().removed.is_empty());
}

#[test]
fn nothing_is_removed_that_no_published_head_covers() {
    let (dir, queue) = retained(SMALL, &[]);
    queue.set(&Settings { retain_segments: Some(1), ..SMALL }).unwrap();
    let control = File::options().write(true).open(dir.path().join("q/control.meta")).unwrap();
    for head in layout::CONTROL_HEAD {
        control.write_all_at(&[0; 64], head.into()).unwrap();
    }
    assert_eq!(queue.plan_retention().unwrap().removed, []);
    assert_eq!(queue.apply_retention().unwrap().removed.len(), 4, "without a writer, it publishes one");
}
