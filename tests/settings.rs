//! Settings that change: who sees them and when, two processes at once, kills, power cuts and damage in between.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use chronfs::queue::{Error, ErrorKind, Queue, QueueWriter, Settings};

mod common;

use common::{SMALL, new_queue};

const COPIES: [usize; 2] = [0, 128];
const LEN: usize = 128;

fn control(queue: &Queue) -> PathBuf {
    queue.path().join("control.meta")
}

/// The generation of the settings at this offset of a file.
fn generation(path: &Path, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    File::open(path).unwrap().read_exact_at(&mut bytes, offset + 76).unwrap();
    u32::from_le_bytes(bytes)
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[offset] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// Appends until the writer is in another segment.
fn roll(queue: &Queue, writer: &mut QueueWriter) -> chronfs::Result<()> {
    let segment = queue.bounds().unwrap().head.segment;
    while queue.bounds().unwrap().head.segment == segment {
        writer.append(1, &[7; 20_000])?;
    }
    Ok(())
}

#[test]
fn what_is_set_is_what_every_handle_has_from_then_on() {
    let (_dir, queue) = new_queue(&SMALL);
    let other = Queue::open(queue.path()).unwrap();
    let wanted = Settings { max_bytes: Some(1 << 20), retain_segments: Some(2), reader_ttl_ns: Some(5), ..SMALL };
    assert_eq!(queue.set(&wanted).unwrap(), SMALL);
    for handle in [&queue, &other, &Queue::open(queue.path()).unwrap()] {
        assert_eq!(handle.settings(), wanted);
        assert_eq!(handle.inspect().unwrap().settings, wanted);
    }
    let (before, after) = other.update(|settings| settings.max_bytes = None).unwrap();
    assert_eq!((before, after), (wanted, Settings { max_bytes: None, ..wanted }));
    assert_eq!(queue.settings(), after);
    for copy in COPIES {
        assert_eq!(generation(&control(&queue), copy as u64), 2);
    }
    // What changes nothing is not a change.
    queue.set(&after).unwrap();
    assert_eq!(generation(&control(&queue), 0), 2);
}

#[test]
fn a_running_writer_has_new_settings_from_its_next_segment_on() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    roll(&queue, &mut writer).unwrap();
    let other = Queue::open(queue.path()).unwrap();
    let limit = Some(3 * u64::from(SMALL.segment_size));
    other.set(&Settings { max_bytes: limit, ..SMALL }).unwrap();
    roll(&queue, &mut writer).unwrap();
    let full = roll(&queue, &mut writer).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Full);
    other.update(|settings| settings.max_bytes = None).unwrap();
    roll(&queue, &mut writer).unwrap();
    // Each segment says what it was created with, however early that was.
    let segments = [0, 1, 2, 3].map(|id| generation(&queue.path().join(format!("{id:09}.q")), 192));
    assert_eq!(segments, [0, 0, 1, 2]);
}

#[test]
fn a_running_writer_takes_larger_messages_and_another_alignment_at_once_or_from_its_next_segment_on() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    // The next segment is prepared by now.
    roll(&queue, &mut writer).unwrap();
    let large = vec![7; 200_000];
    assert_eq!(writer.append(1, &large).unwrap_err().kind(), ErrorKind::InvalidInput);
    let wanted = Settings { segment_size: 1 << 20, payload_align: 64, ..SMALL };
    queue.set(&wanted).unwrap();
    let seq = writer.append(1, &large).unwrap();
    let mut reader = queue.reader("r").unwrap();
    reader.seek_seq(seq).unwrap();
    let message = reader.next().unwrap().unwrap().message().unwrap();
    assert_eq!((message.payload.len(), message.payload.as_ptr().addr() % 64), (200_000, 0));
    queue.set(&SMALL).unwrap();
    roll(&queue, &mut writer).unwrap();
    assert_eq!(writer.append(1, &large).unwrap_err().kind(), ErrorKind::InvalidInput);
    drop(writer);
    assert_eq!(common::count(&queue), queue.bounds().unwrap().next_seq - 1);
    drop(queue.writer().unwrap());
}

#[test]
fn retention_uses_the_settings_as_they_are() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    (0..4).for_each(|_| roll(&queue, &mut writer).unwrap());
    drop(writer);
    let old = Queue::open(queue.path()).unwrap();
    queue.update(|settings| settings.retain_segments = Some(1)).unwrap();
    assert_eq!(old.plan_retention().unwrap().removed.len(), 3);
    assert_eq!(old.apply_retention().unwrap().removed.len(), 3);
}

#[test]
fn two_that_change_settings_at_once_lose_neither_change() {
    const EACH: u64 = 50;
    let (_dir, queue) = new_queue(&SMALL);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let queue = Queue::open(queue.path()).unwrap();
                for _ in 0..EACH {
                    let more = |settings: &mut Settings| {
                        settings.max_lag_bytes = Some(settings.max_lag_bytes.unwrap_or(0) + 1);
                    };
                    queue.update(more).unwrap();
                }
            });
        }
    });
    assert_eq!(queue.settings().max_lag_bytes, Some(3 * EACH));
}

#[test]
fn a_writer_that_starts_meanwhile_undoes_no_change() {
    let (_dir, queue) = new_queue(&SMALL);
    let old = Queue::open(queue.path()).unwrap();
    let wanted = Settings { retain_segments: Some(3), ..SMALL };
    queue.set(&wanted).unwrap();
    for copy in COPIES {
        flip(&control(&queue), copy + 40);
        drop(old.writer().unwrap());
        assert_eq!((old.settings(), Queue::open(queue.path()).unwrap().settings()), (wanted, wanted));
        assert_eq!(COPIES.map(|copy| generation(&control(&queue), copy as u64)), [1, 1], "both are whole again");
    }
}

#[test]
fn a_power_cut_at_any_byte_leaves_the_old_settings_or_the_new_ones() {
    let (_dir, queue) = new_queue(&SMALL);
    queue.update(|settings| settings.retain_segments = Some(1)).unwrap();
    let before = std::fs::read(control(&queue)).unwrap();
    let wanted = Settings { retain_segments: Some(2), max_bytes: Some(1 << 30), ..SMALL };
    let old = queue.set(&wanted).unwrap();
    let after = std::fs::read(control(&queue)).unwrap();
    let check = |bytes: &[u8], expected: Settings| {
        std::fs::write(control(&queue), bytes).unwrap();
        assert_eq!(Queue::open(queue.path()).unwrap().settings(), expected);
    };
    // Either order of the two copies: each is synced before the other is written.
    for [first, second] in [COPIES, [COPIES[1], COPIES[0]]] {
        let mut bytes = before.clone();
        for written in 0..LEN {
            bytes[first..first + written].copy_from_slice(&after[first..first + written]);
            check(&bytes, old);
        }
        bytes[first..first + LEN].copy_from_slice(&after[first..first + LEN]);
        for written in 0..=LEN {
            bytes[second..second + written].copy_from_slice(&after[second..second + written]);
            check(&bytes, wanted);
        }
    }
}

#[test]
fn damage_brings_no_old_settings_back_where_a_newer_copy_exists() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    let old = std::fs::read(control(&queue)).unwrap();
    let wanted = Settings { retain_segments: Some(9), ..SMALL };
    queue.set(&wanted).unwrap();
    roll(&queue, &mut writer).unwrap();
    drop(writer);
    // One copy was never written, the other one is damaged: a segment has the new settings.
    let mut bytes = std::fs::read(control(&queue)).unwrap();
    bytes[..LEN].copy_from_slice(&old[..LEN]);
    bytes[LEN + 40] ^= 1;
    std::fs::write(control(&queue), &bytes).unwrap();
    assert_eq!(Queue::open(queue.path()).unwrap().settings(), wanted);
    // Nothing is left of the control block: the newest segment counts, not the first one.
    std::fs::write(control(&queue), [0xFF; 4096]).unwrap();
    let queue = Queue::open(queue.path()).unwrap();
    assert!(queue.control_damage().is_some());
    assert_eq!(queue.settings(), wanted);
    assert!(matches!(queue.set(&SMALL), Err(Error::Damaged { .. })));
    drop(queue.writer().unwrap());
    assert_eq!(queue.set(&SMALL).unwrap(), wanted, "the writer has repaired it");
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let (_dir, queue) = new_queue(&SMALL);
    let before = std::fs::read(control(&queue)).unwrap();
    for wrong in [
        Settings { max_bytes: Some(1000), ..SMALL },
        Settings { roll_every_ns: Some(1), ..SMALL },
        Settings { payload_align: 12, ..SMALL },
    ] {
        assert!(matches!(queue.set(&wrong), Err(Error::InvalidSetting(_))));
    }
    assert_eq!(std::fs::read(control(&queue)).unwrap(), before);
}

#[test]
fn neither_a_writer_nor_a_reader_is_in_the_way_and_another_change_for_seconds_only() {
    let (_dir, queue) = new_queue(&SMALL);
    let _writer = queue.writer().unwrap();
    let hostile = File::open(control(&queue)).unwrap();
    hostile.try_lock().unwrap();
    queue.update(|settings| settings.retain_segments = Some(1)).unwrap();
    let hanging = File::open(queue.path().join("writer.lock")).unwrap();
    hanging.try_lock_shared().unwrap();
    let error = queue.update(|settings| settings.retain_segments = Some(2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("this process"), "{error}");
    drop(hanging);
    assert_eq!(queue.settings().retain_segments, Some(1));
    queue.update(|settings| settings.retain_segments = Some(2)).unwrap();
}

#[test]
fn a_queue_that_has_been_removed_has_no_settings_to_change() {
    let (dir, queue) = new_queue(&SMALL);
    std::fs::remove_dir_all(queue.path()).unwrap();
    Queue::create(dir.path().join("q"), &SMALL).unwrap();
    assert!(matches!(queue.set(&Settings { retain_segments: Some(1), ..SMALL }), Err(Error::Io { .. })));
}
