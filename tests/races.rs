//! Races: creating and opening one queue, writing to it, registering one reader, removing it while it is opened.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;

use chronfs::queue::{Entry, Error, Queue};

mod common;

use common::{Running, SMALL};

const QUEUE: &str = "CHRONFS_RACE_QUEUE";

fn together<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(count);
    let run = |index| {
        barrier.wait();
        work(index)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|index| scope.spawn(move || run(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn a_reader_registered_by_many_at_once_is_registered_once_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::create(dir.path().join("q"), &SMALL).unwrap();
    for round in 0..60 {
        let name = format!("reader-{round}");
        let made = together(6, |_| {
            let made = queue.add_reader(&name).unwrap_or_else(|error| panic!("round {round}: {error}"));
            // The second one finds a cursor that can be used at once.
            assert_eq!(queue.reader_position(&name).unwrap(), 1);
            made
        });
        assert_eq!(made.into_iter().filter(|&made| made).count(), 1, "round {round}");
    }
}

#[test]
fn a_reader_that_is_removed_while_it_is_opened_is_never_used_without_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::create(dir.path().join("q"), &SMALL).unwrap();
    queue.writer().unwrap().append(1, b"hello").unwrap();
    for round in 0..300 {
        queue.add_reader("alice").unwrap();
        let opened = together(2, |index| {
            if index == 0 {
                let _ = queue.remove_reader("alice");
                return None;
            }
            let mut reader = queue.reader("alice").ok()?;
            reader.next().unwrap();
            reader.commit();
            Some(reader)
        });
        if opened.into_iter().flatten().next().is_some() {
            let position = queue.reader_position("alice");
            assert_eq!(position.ok(), Some(2), "round {round}: the commit went into a removed file");
        }
        let _ = queue.remove_reader("alice");
    }
}

#[test]
fn a_queue_created_by_many_at_once_is_one_queue() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..30 {
        let path = dir.path().join(format!("q{round}"));
        let appended = together(4, |_| {
            loop {
                // One that is too late to create it may find it incomplete.
                let queue = match Queue::open_or_create(&path, &SMALL) {
                    Ok(queue) => queue,
                    Err(Error::Locked { .. }) => continue,
                    Err(error) => panic!("round {round}: {error}"),
                };
                match queue.writer() {
                    Ok(mut writer) => return writer.append(1, b"hello").unwrap(),
                    Err(Error::Locked { .. }) => {}
                    Err(error) => panic!("round {round}: {error}"),
                }
            }
        });
        let mut appended = appended;
        appended.sort_unstable();
        assert_eq!(appended, [1, 2, 3, 4], "round {round}");
    }
}

fn append_with_rivals(path: &Path) {
    let mut done = 0;
    while done < 40 {
        match Queue::open_or_create(path, &SMALL).and_then(|queue| queue.writer()) {
            Ok(mut writer) => {
                let seq = writer.append(1, &std::process::id().to_le_bytes()).unwrap();
                assert_eq!(writer.next_seq(), seq + 1);
                done += 1;
            }
            Err(Error::Locked { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn processes_that_race_for_a_queue_write_one_after_the_other() {
    if let Some(path) = std::env::var_os(QUEUE) {
        append_with_rivals(Path::new(&path));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    let start = || {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "processes_that_race_for_a_queue_write_one_after_the_other", "--nocapture"])
            .env(QUEUE, &path)
            .stdout(Stdio::null())
            .spawn();
        Running::new(child.unwrap())
    };
    let mut children: Vec<_> = (0..4).map(|_| start()).collect();
    for child in &mut children {
        assert!(child.child().wait().unwrap().success());
    }
    let mut scanner = Queue::open(&path).unwrap().scan().unwrap();
    let mut count = 0;
    while let Some(entry) = scanner.next().unwrap() {
        let Entry::Message(message) = entry else { panic!("{entry:?}") };
        count += 1;
        assert_eq!(message.seq, count);
    }
    assert_eq!(count, 160);
}

#[test]
fn a_released_lock_is_free_at_once_while_programs_are_being_started() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::create(dir.path().join("q"), &SMALL).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Between fork and exec a child holds copies of all descriptors.
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                std::process::Command::new("true").status().unwrap();
            }
        });
        for round in 0..200 {
            let taken = queue.writer().map(drop).and_then(|()| queue.reader("alice").map(drop));
            if taken.is_err() {
                done.store(true, std::sync::atomic::Ordering::Relaxed);
                panic!("round {round}: {taken:?}");
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
