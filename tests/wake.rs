//! Waiting through rolls and writer restarts, the writer's epoch, reading in batches. Also run without futexes:
//! `RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/rustc-no-futex.sh cargo test --test wake --test queue --test fan_in`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use chronfs::queue::{Entry, Queue, ReaderOptions, Settings, Start, WaitStrategy};

mod common;

use common::{SMALL, new_queue};

const LONG: Option<Duration> = Some(Duration::from_secs(60));

#[test]
fn a_wait_lasts_through_rolls_and_through_writers_that_come_and_go() {
    const MESSAGES: u64 = 400;
    for wait in [WaitStrategy::Sleep, WaitStrategy::Hybrid { spin: Duration::from_micros(20) }] {
        let (_dir, queue) = new_queue(&SMALL);
        let mut reader = queue.reader_with("sleeper", &ReaderOptions { wait, ..ReaderOptions::default() }).unwrap();
        let (ask, asked) = std::sync::mpsc::channel();
        let writing = std::thread::spawn(move || {
            // One message for each request: the reader is waiting, or about to. Every third one fills the segment, and
            // every fifth one comes from a new writer.
            let mut writer = queue.writer().unwrap();
            for number in 1..=MESSAGES {
                asked.recv().unwrap();
                if number % 5 == 0 {
                    drop(writer);
                    writer = queue.writer().unwrap();
                }
                let len = if number % 3 == 0 { 60_000 } else { 10 };
                assert_eq!(writer.append(1, &vec![b'x'; len]).unwrap(), number);
            }
        });
        for number in 1..=MESSAGES {
            ask.send(()).unwrap();
            assert!(reader.wait(LONG).unwrap(), "message {number} woke nobody");
            assert_eq!(reader.next().unwrap().unwrap().message().unwrap().seq, number);
        }
        writing.join().unwrap();
    }
}

#[test]
fn a_reader_sees_that_the_writer_was_restarted() {
    let (_dir, queue) = new_queue(&SMALL);
    drop(queue.writer().unwrap());
    let reader = queue.reader("alice").unwrap();
    let epoch = reader.writer_epoch();
    assert_eq!(epoch, reader.writer_info().epoch);
    let writer = queue.writer().unwrap();
    assert_eq!(reader.writer_epoch(), epoch + 1);
    assert_eq!(reader.writer_info().pid, Some(std::process::id()));
    drop(writer);
    assert_eq!(reader.writer_epoch(), epoch + 1, "an exit is not a restart");
}

#[test]
fn batches_hold_what_single_steps_return() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    for number in 0..5000_u32 {
        writer.append(1, format!("message {number}").repeat(1 + number as usize % 20).as_bytes()).unwrap();
    }
    let owned = |message: chronfs::queue::Message| (message.seq, message.timestamp_ns, message.payload.to_vec());
    let mut single = Vec::new();
    let mut reader = queue.reader("single").unwrap();
    while let Some(entry) = reader.next().unwrap() {
        single.push(owned(entry.message().unwrap()));
    }
    assert_eq!(single.len(), 5000);
    for most in [1, 7, usize::MAX] {
        let options = ReaderOptions { start: Start::First, ..ReaderOptions::default() };
        let mut reader = queue.reader_with("batches", &options).unwrap();
        let (mut all, mut in_batches) = (Vec::new(), 0);
        // `wait` looks ahead: what it has found must come out of a batch, too.
        while reader.wait(Some(Duration::ZERO)).unwrap() {
            let batch: Vec<_> = reader.available().take(most).collect();
            in_batches += batch.len();
            all.extend(batch.into_iter().map(owned));
            match reader.next().unwrap() {
                Some(Entry::Message(message)) => all.push(owned(message)),
                Some(Entry::Gap(gap)) => panic!("{gap:?}"),
                None => {}
            }
        }
        assert_eq!(all, single);
        assert!(in_batches > 1000, "only {in_batches} messages came in batches");
    }
}

#[test]
fn a_batch_ends_at_damage_and_the_next_step_reports_it() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    let mut places = Vec::new();
    for number in 0..10_u8 {
        writer.append(1, &[number; 100]).unwrap();
    }
    let mut scanner = queue.scan().unwrap();
    while let Some(entry) = scanner.next().unwrap() {
        places.push(entry.message().unwrap().position.offset);
    }
    let file = std::fs::File::options().write(true).open(queue.path().join("000000000.q")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xFF], u64::from(places[5]) + 40).unwrap();
    let mut reader = queue.reader("alice").unwrap();
    assert_eq!(reader.next().unwrap().unwrap().message().unwrap().seq, 1);
    assert_eq!(reader.available().map(|message| message.seq).collect::<Vec<_>>(), [2, 3, 4, 5]);
    assert_eq!(reader.available().count(), 0);
    let Some(Entry::Gap(gap)) = reader.next().unwrap() else { panic!("no gap") };
    assert_eq!((gap.from, gap.to), (6, 6));
    assert_eq!(reader.next().unwrap().unwrap().message().unwrap().seq, 7);
    assert_eq!(reader.available().map(|message| message.seq).collect::<Vec<_>>(), [8, 9, 10]);
}

#[test]
fn no_queue_is_made_under_the_name_of_a_file_of_one() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["000000007.q", "control.meta", "writer.lock", "000000007.q/q", "a/writer.lock/b"] {
        let refused = Queue::create(dir.path().join(name), &Settings::default());
        assert!(matches!(refused, Err(chronfs::queue::Error::InvalidName { .. })), "{name}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{name}");
    }
}
