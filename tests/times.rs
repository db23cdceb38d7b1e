//! Times that others rely on: given timestamps, ages for retention, modification times for backups.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chronfs::queue::{Entry, Error, Queue, Scanner, Settings, WriterOptions};

const SEGMENT: u32 = 64 << 10;
const HOUR: u64 = 3_600_000_000_000;
/// The year 2100.
const FAR: u64 = 4_102_444_800_000_000_000;

fn now_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

fn queue(dir: &Path, settings: Settings) -> Queue {
    Queue::create(dir.join("q"), &Settings { segment_size: SEGMENT, ..settings }).unwrap()
}

fn any_time() -> WriterOptions {
    WriterOptions { max_ahead: Duration::MAX, ..WriterOptions::default() }
}

fn segments(queue: &Queue) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(queue.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|ending| ending == "q")).collect();
    paths.sort();
    paths
}

fn set_modified(path: &Path, time: SystemTime) {
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

fn ago(hours: u64) -> SystemTime {
    SystemTime::now() - Duration::from_nanos(hours * HOUR)
}

#[test]
fn a_given_timestamp_too_far_in_the_future_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let queue = queue(dir.path(), Settings::default());
    let mut writer = queue.writer().unwrap();
    for timestamp_ns in [now_ns() + 2 * HOUR, FAR, u64::MAX] {
        let error = writer.append_at(timestamp_ns, 1, b"x").unwrap_err();
        assert!(matches!(error, Error::TimestampInFuture { .. }), "{error}");
        assert!(
            error.to_string().contains(&timestamp_ns.to_string()) && error.to_string().contains("3600 s"),
            "{error}"
        );
    }
    assert_eq!(writer.append_at(now_ns() + HOUR / 2, 1, b"x").unwrap(), 1);
    drop(writer);
    let mut writer = queue.writer_with(&any_time()).unwrap();
    assert_eq!(writer.append_at(FAR, 1, b"x").unwrap(), 2);
    drop(writer);
    let none = WriterOptions { max_ahead: Duration::ZERO, ..WriterOptions::default() };
    assert!(queue.writer_with(&none).unwrap().append_at(FAR + 1, 1, b"x").is_err());
    assert_eq!(queue.writer_with(&any_time()).unwrap().append_at(u64::MAX, 1, b"x").unwrap(), 3);
}

#[test]
fn messages_can_share_a_reading_of_the_clock_which_is_never_before_the_newest_message() {
    let dir = tempfile::tempdir().unwrap();
    let queue = queue(dir.path(), Settings::default());
    let mut writer = queue.writer_with(&any_time()).unwrap();
    let start_ns = now_ns();
    let shared_ns = writer.now_ns();
    assert!((start_ns - HOUR..start_ns + HOUR).contains(&shared_ns));
    for payload in ["one", "two"] {
        writer.append_at(shared_ns, 1, payload.as_bytes()).unwrap();
        assert_eq!(writer.last_timestamp_ns(), shared_ns);
    }
    writer.append_at(FAR, 1, b"three").unwrap();
    drop(writer);
    // As if the clock had been set back: what `append` does, this may do, too.
    let mut writer = queue.writer().unwrap();
    assert_eq!((writer.now_ns(), writer.append(1, b"four").unwrap()), (FAR, 4));
    assert_eq!(writer.append_at(FAR, 1, b"five").unwrap(), 5);
    assert!(matches!(writer.append_at(FAR + 1, 1, b"six"), Err(Error::TimestampInFuture { .. })));
}

/// Fills some segments with messages that all have the timestamp of the first one.
fn with_stamps_from_the_future(dir: &Path) -> Queue {
    let queue = queue(dir, Settings { retain_age_ns: Some(HOUR), ..Settings::default() });
    let mut writer = queue.writer_with(&any_time()).unwrap();
    writer.append_at(FAR, 1, b"x").unwrap();
    while segments(&queue).len() < 4 {
        writer.append(1, &[7; 1000]).unwrap();
    }
    drop(writer);
    queue
}

#[test]
fn retention_by_age_uses_the_files_times_where_timestamps_are_in_the_future() {
    let dir = tempfile::tempdir().unwrap();
    let queue = with_stamps_from_the_future(dir.path());
    assert_eq!(queue.plan_retention().unwrap().removed, [], "they are new");
    let paths = segments(&queue);
    paths[..2].iter().for_each(|path| set_modified(path, ago(2)));
    let removed = queue.apply_retention().unwrap().removed;
    assert_eq!(removed.iter().map(|segment| segment.id.0).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_segment_from_before_the_clock_was_right_is_as_old_as_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let queue = with_stamps_from_the_future(dir.path());
    let paths = segments(&queue);
    set_modified(&paths[0], SystemTime::now() + Duration::from_nanos(HOUR));
    set_modified(&paths[1], ago(2));
    assert_eq!(queue.plan_retention().unwrap().removed.len(), 2);
    set_modified(&paths[1], ago(0));
    assert_eq!(queue.plan_retention().unwrap().removed, []);
}

#[test]
fn retention_by_age_uses_timestamps_where_they_can_be_right() {
    let dir = tempfile::tempdir().unwrap();
    let queue = queue(dir.path(), Settings { retain_age_ns: Some(HOUR), ..Settings::default() });
    let mut writer = queue.writer().unwrap();
    while segments(&queue).len() < 3 {
        writer.append(1, &[7; 1000]).unwrap();
    }
    // Restored from a copy with the old time, or copied with a new one.
    segments(&queue).iter().for_each(|path| set_modified(path, ago(9)));
    assert_eq!(queue.plan_retention().unwrap().removed, []);
}

/// What a program that copies changed files checks.
fn look(path: &Path) -> (u64, SystemTime) {
    let metadata = std::fs::metadata(path).unwrap();
    (metadata.len(), metadata.modified().unwrap())
}

fn wait_for_change(path: &Path, seen: (u64, SystemTime)) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while look(path) == seen {
        assert!(Instant::now() < deadline, "{} has changed and does not look so", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn files_that_were_appended_to_look_changed() {
    for parent in [Path::new("/dev/shm"), &std::env::temp_dir()] {
        let dir = tempfile::tempdir_in(parent).unwrap();
        let queue = queue(dir.path(), Settings::default());
        let (segment, control) = (queue.path().join("000000000.q"), queue.path().join("control.meta"));
        let old = ago(1);
        let reset = || [&segment, &control].map(|path| set_modified(path, old));
        let mut writer = queue.writer().unwrap();
        for _ in 0..2 {
            reset();
            let seen = [&segment, &control].map(|path| look(path));
            writer.append(1, b"x").unwrap();
            wait_for_change(&segment, seen[0]);
            wait_for_change(&control, seen[1]);
        }
        reset();
        let seen = look(&segment);
        writer.append(1, b"the last one").unwrap();
        drop(writer);
        assert_ne!(look(&segment), seen, "closed");
        // Left for the next one.
        let mut writer = queue.writer().unwrap();
        reset();
        let seen = look(&segment);
        while segments(&queue).len() < 2 || queue.bounds().unwrap().head.segment.0 == 0 {
            writer.append(1, &[7; 1000]).unwrap();
        }
        wait_for_change(&segment, seen);
    }
}

#[test]
fn files_that_nobody_appends_to_look_unchanged() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let queue = queue(dir.path(), Settings::default());
    let mut writer = queue.writer().unwrap();
    writer.append(1, b"x").unwrap();
    let segment = queue.path().join("000000000.q");
    let heartbeat = || queue.writer_info().heartbeat_age_ms.unwrap();
    // The helper checks what was appended, and then once more, which its heartbeats show.
    let mut seen = look(&segment);
    for _ in 0..3 {
        let mut before = heartbeat();
        let deadline = Instant::now() + Duration::from_secs(20);
        while heartbeat() >= before {
            before = before.max(heartbeat());
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(20));
        }
        if look(&segment) == seen {
            return;
        }
        seen = look(&segment);
    }
    panic!("it keeps changing");
}

#[test]
fn a_cursor_that_was_moved_looks_changed() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let queue = queue(dir.path(), Settings::default());
    queue.writer().unwrap().append(1, b"x").unwrap();
    let mut reader = queue.reader("alice").unwrap();
    let cursor = queue.path().join("readers/alice.meta");
    set_modified(&cursor, ago(1));
    let seen = look(&cursor);
    assert!(reader.next().unwrap().is_some());
    reader.commit();
    drop(reader);
    assert_ne!(look(&cursor), seen);
}

/// The timestamp and payload of the next message, and whether there was one before it was `over`.
fn next_stamp(scanner: &mut Scanner, over: &AtomicBool) -> Option<(u64, u64)> {
    let mut looks = 0_u32;
    while !over.load(Ordering::Relaxed) {
        if let Some(Entry::Message(message)) = scanner.next().unwrap() {
            return Some((message.timestamp_ns, u64::from_le_bytes(message.payload[..8].try_into().unwrap())));
        }
        looks += 1;
        if looks.is_multiple_of(1000) { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
    None
}

/// The bound that src/clock.rs states: one thread asks in a queue, another answers in another one, with the question's
/// timestamp.
#[test]
fn what_follows_from_a_message_is_stamped_at_most_a_microsecond_before_it() {
    const BOUND_NS: u64 = 1_000;
    let rounds = if std::env::var_os("CHRONFS_SOAK").is_some() { 5_000_000 } else { 20_000 };
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { segment_size: 16 << 20, retain_segments: Some(2), ..Settings::default() };
    let [asked, answered] = ["asked", "answered"].map(|name| Queue::create(dir.path().join(name), &settings).unwrap());
    let over = AtomicBool::new(false);
    let (mut early, mut worst) = (0_u64, 0);
    std::thread::scope(|scope| {
        let (mut questions, mut answers) = (asked.scan().unwrap(), answered.scan().unwrap());
        let (over, answered) = (&over, &answered);
        scope.spawn(move || {
            let mut writer = answered.writer().unwrap();
            while let Some((stamp, _)) = next_stamp(&mut questions, over) {
                writer.append(1, &stamp.to_le_bytes()).unwrap();
            }
        });
        let mut writer = asked.writer().unwrap();
        for _ in 0..rounds {
            writer.append(1, &[0; 8]).unwrap();
            let (answer, question) = next_stamp(&mut answers, over).unwrap();
            let before = question.saturating_sub(answer);
            early += u64::from(before > 0);
            worst = before.max(worst);
        }
        over.store(true, Ordering::Relaxed);
    });
    eprintln!("of {rounds} answers {early} were stamped before their question, the worst by {worst} ns");
    assert!(worst <= BOUND_NS, "{early} of {rounds}, the worst by {worst} ns");
}
