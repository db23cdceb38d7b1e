//! The helper thread ends the segment of an idle writer, at any moment that it may find.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::thread;

use crate::queue::entry::{Entry, GapReason};
use crate::queue::format::names::segment_name;
use crate::queue::{Queue, QueueWriter, Settings};

const DAY: u64 = 24 * 3_600_000_000_000;
/// Long ago.
const THEN: u64 = 20_030 * DAY;
const SETTINGS: Settings = Settings { segment_size: 64 << 10, roll_every_ns: Some(DAY), ..Settings::DEFAULT };

fn new_queue(settings: &Settings) -> (tempfile::TempDir, Queue) {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::create(dir.path().join("q"), settings).unwrap();
    (dir, queue)
}

/// First and last message of each segment that has messages, and whether it is sealed.
fn segments(queue: &Queue) -> Vec<(u64, u64, bool)> {
    let segments = queue.inspect().unwrap().segments.into_iter();
    segments
        .filter(|it| it.first_seq > 0 && it.last_seq >= it.first_seq)
        .map(|it| (it.first_seq, it.last_seq, it.sealed))
        .collect()
}

fn append(writer: &mut QueueWriter, count: u64) {
    for _ in 0..count {
        writer.append_at(THEN, 1, b"x").unwrap();
    }
}

#[test]
fn the_segment_of_an_idle_writer_ends_and_the_next_append_goes_on() {
    let (_dir, queue) = new_queue(&SETTINGS);
    let mut reader = queue.reader("r").unwrap();
    let mut writer = queue.writer().unwrap();
    let pause = writer.supply.pause();
    assert!(!pause(), "it has no messages");
    append(&mut writer, 3);
    assert!(pause());
    assert!(!pause(), "once");
    assert_eq!(segments(&queue), [(1, 3, true)]);
    assert_eq!((writer.next_seq(), writer.last_timestamp_ns(), writer.stats().appended), (4, THEN, 3));
    append(&mut writer, 2);
    assert_eq!(segments(&queue), [(1, 3, true), (4, 5, false)]);
    assert!(pause());
    writer.append(1, b"now").unwrap();
    assert!(!pause(), "the time of this one is not over");
    assert_eq!(writer.stats().rolls, 2);
    drop(writer);
    assert_eq!(segments(&queue), [(1, 3, true), (4, 5, true), (6, 6, false)]);
    for seq in 1..=6 {
        assert_eq!(reader.next().unwrap().and_then(Entry::message).map(|message| message.seq), Some(seq));
    }
}

#[test]
fn nothing_is_synced_again_while_nothing_is_appended() {
    let (_dir, queue) = new_queue(&SETTINGS);
    let mut writer = queue.writer().unwrap();
    let mut last = None;
    let mut is_due = |writer: &QueueWriter| [0; 2].map(|_| writer.supply.is_sync_due(&mut last));
    assert_eq!(is_due(&writer), [true, false], "earlier writers may not have synced");
    append(&mut writer, 1);
    assert_eq!(is_due(&writer), [true, false]);
    assert!(writer.supply.pause()());
    append(&mut writer, 1);
    assert_eq!(is_due(&writer), [true, false], "in the next segment");
    drop(writer.reserve(1, 8).unwrap());
    append(&mut writer, 1);
    assert_eq!(is_due(&writer), [true, false]);
    writer.turn.gate.enter(writer.offset);
    assert_eq!(is_due(&writer), [true, true], "it may be stored while the sync is under way");
}

#[test]
fn retention_by_age_removes_the_last_messages_of_an_idle_writer() {
    let (_dir, queue) = new_queue(&Settings { roll_every_ns: None, retain_age_ns: Some(8 * DAY), ..SETTINGS });
    let mut writer = queue.writer().unwrap();
    append(&mut writer, 3);
    assert!(writer.supply.pause()());
    // The helper may have been faster.
    queue.apply_retention().unwrap();
    assert_eq!((queue.bounds().unwrap().first_seq, segments(&queue)), (4, vec![]));
    append(&mut writer, 1);
    assert_eq!(segments(&queue), [(4, 4, false)]);
}

#[test]
fn what_a_reservation_holds_stays_where_it_is() {
    let (_dir, queue) = new_queue(&SETTINGS);
    let mut writer = queue.writer().unwrap();
    let pause = writer.supply.pause();
    append(&mut writer, 1);
    let mut record = writer.reserve(1, 300).unwrap();
    record.fill(7);
    assert!(!pause(), "it is being filled");
    assert_eq!(record.commit_at(THEN).unwrap(), 2);
    assert!(pause());
    drop(writer.reserve(1, 300).unwrap());
    assert!(!pause(), "it is empty");
    append(&mut writer, 1);
    drop(writer.reserve(1, 300).unwrap());
    assert!(pause(), "it was dropped");
    assert!(writer.append(0xffff, b"refused").is_err());
    append(&mut writer, 1);
    assert!(writer.append(0xffff, b"refused").is_err());
    assert!(pause());
    assert_eq!(segments(&queue), [(1, 2, true), (3, 3, true), (4, 4, true)]);
}

#[test]
fn whatever_the_writer_does_next_it_goes_on_after_the_seal() {
    let work: [fn(&mut QueueWriter); 9] = [
        |writer| writer.flush_sync().unwrap(),
        |writer| writer.flush_async().unwrap(),
        |writer| writer.check().unwrap(),
        |writer| assert!(writer.roll_if_due().unwrap() && !writer.roll_if_due().unwrap()),
        |writer| assert_eq!(writer.batch().append_at(THEN, 1, b"x").unwrap(), 3),
        |writer| assert_eq!(writer.append_parts(1, &[IoSlice::new(b"x")]).unwrap(), 3),
        |writer| assert_eq!(writer.append_gap(7, GapReason::Lost).unwrap(), Some(3)),
        |writer| assert_eq!(writer.append_at(THEN, 1, &vec![1; 60_000]).unwrap(), 3),
        |writer| assert_eq!(writer.reserve(1, 5).unwrap().commit_at(THEN).unwrap(), 3),
    ];
    for work in work {
        let (_dir, queue) = new_queue(&SETTINGS);
        let mut writer = queue.writer().unwrap();
        append(&mut writer, 2);
        assert!(writer.supply.pause()());
        work(&mut writer);
        let next = writer.next_seq();
        drop(writer);
        let mut writer = queue.writer().unwrap();
        assert_eq!(writer.append(1, b"after").unwrap(), next);
        let found = segments(&queue);
        assert_eq!((found.first(), found.last().map(|last| last.1)), (Some(&(1, 2, true)), Some(next)));
        let mut scanner = queue.scan().unwrap();
        while let Some(entry) = scanner.next().unwrap() {
            assert!(!matches!(entry, Entry::Gap(gap) if gap.from != 3), "{entry:?}");
        }
    }
}

#[test]
fn without_room_for_another_segment_this_one_goes_on() {
    let (_dir, queue) = new_queue(&Settings { max_bytes: Some(128 << 10), ..SETTINGS });
    let mut writer = queue.writer().unwrap();
    append(&mut writer, 1);
    assert!(writer.supply.pause()());
    append(&mut writer, 1);
    assert!(!writer.supply.pause()());
    append(&mut writer, 1);
    assert_eq!(segments(&queue), [(1, 1, true), (2, 3, false)]);
}

/// The end of the messages is what the writer knows, not what the file says.
#[test]
fn a_segment_that_somebody_has_stored_into_is_not_sealed() {
    let (_dir, queue) = new_queue(&SETTINGS);
    let mut writer = queue.writer().unwrap();
    append(&mut writer, 2);
    let file = std::fs::File::options().write(true).open(queue.path().join(segment_name(writer.segment.id))).unwrap();
    let last = u64::from(writer.offset - writer.context.record_len(1));
    file.write_all_at(&[0; 8], last).unwrap();
    assert!(!writer.supply.pause()());
    append(&mut writer, 1);
    assert!(!queue.inspect().unwrap().segments.iter().any(|segment| segment.sealed));
}

/// Bursts of messages in every way there is, while the helper tries to end the segment all the time.
#[test]
fn no_message_is_lost_or_doubled_whenever_the_helper_rolls() {
    const MESSAGES: u64 = 20_000;
    let (_dir, queue) = new_queue(&SETTINGS);
    let mut writer = queue.writer().unwrap();
    // How often the helper is to have tried it. It ends when the sender does.
    let (pause, (ask, asked), (tried, tries)) = (writer.supply.pause(), mpsc::channel::<()>(), mpsc::channel());
    let helper = thread::spawn(move || {
        let mut rolls = 0;
        loop {
            rolls += u64::from(pause());
            match asked.try_recv() {
                Ok(()) => tried.send(()).unwrap(),
                Err(mpsc::TryRecvError::Empty) => {}
                Err(mpsc::TryRecvError::Disconnected) => return rolls,
            }
        }
    });
    let payload = |seq: u64| {
        let len = if seq.is_multiple_of(1000) { 50_000 } else { seq * 31 % 200 };
        let mut payload = seq.to_le_bytes().to_vec();
        payload.resize(8 + usize::try_from(len).unwrap(), u8::try_from(seq % 251).unwrap());
        payload
    };
    while writer.next_seq() <= MESSAGES {
        let seq = writer.next_seq();
        let payload = payload(seq);
        let appended = match seq % 7 {
            0 => writer.reserve(1, payload.len() + 9).and_then(|mut record| {
                record[..payload.len()].copy_from_slice(&payload);
                record.commit_len_at(payload.len(), THEN)
            }),
            1 => writer.reserve(1, 50).map(drop).and_then(|()| writer.append_at(THEN, 1, &payload)),
            2 => writer.batch().append_at(THEN, 1, &payload),
            3 => writer.append_exact(seq, THEN, 1, &payload).map(|_| seq),
            _ => writer.append_at(THEN, 1, &payload),
        };
        assert_eq!(appended.unwrap(), seq);
        if seq.is_multiple_of(50) {
            // A writer without any pause is ended hardly ever.
            ask.send(()).unwrap();
            tries.recv().unwrap();
        }
    }
    drop(ask);
    let rolls = helper.join().unwrap();
    assert!(rolls > 0 && writer.stats().rolls + 1 >= rolls, "{rolls}");
    assert_eq!(writer.stats().appended, MESSAGES);
    drop(writer);
    let mut scanner = queue.scan().unwrap();
    for seq in 1..=MESSAGES {
        let message = scanner.next().unwrap().and_then(Entry::message).unwrap();
        assert!(message.seq == seq && message.payload == payload(seq), "message {seq}: {message:?}");
    }
    assert_eq!(scanner.next().unwrap(), None);
    let segments = queue.inspect().unwrap().segments;
    let is_open = segments.iter().filter(|segment| segment.first_seq > 0 && !segment.sealed).count();
    assert_eq!(is_open, 1, "one active segment");
    #[cfg(feature = "mount")]
    {
        let options = crate::doctor::Options { deep: true, fix: false };
        let report = crate::doctor::examine(queue.path(), options, &mut |_| {}).unwrap();
        assert!(!report.has_problems(), "{:?}", report.findings);
    }
}

#[test]
fn what_earlier_writers_have_stored_does_not_make_a_writer_fast() {
    let (_dir, queue) = new_queue(&Settings::DEFAULT);
    queue.writer().unwrap().append(1, &vec![7; 32 << 20]).unwrap();
    let writer = queue.writer().unwrap();
    assert!(writer.offset > 32 << 20 && !writer.is_fast());
}
