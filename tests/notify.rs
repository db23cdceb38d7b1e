//! Notifiers: descriptors that one thread raises for many queues.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use chronfs::Queue;
use chronfs::queue::{Notifier, Settings, layout};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

mod common;

use common::{SMALL, new_queue, scratch, until};

/// The threads are those of the process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that has just started does not have its name yet.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.trim() == "chronfs-notify").count()
}

/// Whether it becomes readable, if that takes less than a minute.
fn becomes_readable(notifier: &Notifier) -> bool {
    let mut events = [PollFd::new(notifier, PollFlags::IN)];
    poll(&mut events, Some(&Timespec { tv_sec: 60, tv_nsec: 0 })).unwrap() == 1
}

fn queues(dir: &TempDir, count: usize) -> Vec<Queue> {
    let settings = Settings { segment_size: layout::MIN_SEGMENT_SIZE, ..SMALL };
    (0..count).map(|i| Queue::create(dir.path().join(i.to_string()), &settings).unwrap()).collect()
}

#[test]
fn a_thousand_notifiers_share_a_thread_that_ends_with_the_last() {
    let _alone = alone();
    let dir = scratch();
    let queues = queues(&dir, 100);
    let notifiers: Vec<Vec<Notifier>> =
        queues.iter().map(|queue| (0..10).map(|_| queue.notifier().unwrap()).collect()).collect();
    until("the threads are there", || threads() == 1);
    for (queue, own) in queues.iter().zip(&notifiers) {
        for _ in 0..3 {
            queue.writer().unwrap().append(1, b"hello").unwrap();
            for notifier in own {
                assert!(becomes_readable(notifier));
                notifier.clear();
            }
        }
    }
    let mut notifiers: Vec<Notifier> = notifiers.into_iter().flatten().collect();
    let last = notifiers.pop().unwrap();
    drop(notifiers);
    until("the threads are there", || threads() == 1);
    queues[99].writer().unwrap().append(1, b"hello").unwrap();
    assert!(becomes_readable(&last));
    drop(last);
    assert_eq!(threads(), 0, "the drop of the last one waits for the thread");
}

#[test]
fn more_queues_than_one_call_can_wait_for_get_another_thread_and_no_polling() {
    let _alone = alone();
    let dir = scratch();
    let queues = queues(&dir, 200);
    let notifiers: Vec<Notifier> = queues.iter().map(|queue| queue.notifier().unwrap()).collect();
    until("the threads are there", || threads() == 2);
    for (queue, notifier) in queues.iter().zip(&notifiers).rev() {
        queue.writer().unwrap().append(1, b"hello").unwrap();
        assert!(becomes_readable(notifier));
    }
    drop(notifiers);
    assert_eq!(threads(), 0);
}

#[test]
fn notifiers_that_come_and_go_at_once_miss_nothing() {
    let _alone = alone();
    let dir = scratch();
    let queues = queues(&dir, 6);
    let shared = queues[0].notifier().unwrap();
    thread::scope(|scope| {
        for queue in &queues[1..] {
            scope.spawn(|| {
                let mut writer = queue.writer().unwrap();
                let mut reader = queue.reader("r").unwrap();
                for _ in 0..100 {
                    let notifier = queue.notifier().unwrap();
                    let other = queue.notifier().unwrap();
                    for _ in 0..5 {
                        writer.append(1, b"hello").unwrap();
                        assert!(becomes_readable(&notifier) && becomes_readable(&other));
                        notifier.clear();
                        other.clear();
                        while reader.next().unwrap().is_some() {}
                    }
                }
            });
        }
    });
    drop(shared);
    assert_eq!(threads(), 0);
}

#[test]
fn a_descriptor_stays_the_same_and_closes_with_its_notifier() {
    let _alone = alone();
    let (_dir, queue) = new_queue(&SMALL);
    let notifier = queue.notifier().unwrap();
    let descriptor = notifier.as_raw_fd();
    let mut writer = queue.writer().unwrap();
    for _ in 0..3 {
        writer.append(1, b"hello").unwrap();
        assert!(becomes_readable(&notifier));
        notifier.clear();
        assert_eq!(notifier.as_raw_fd(), descriptor);
    }
}

#[test]
fn a_truncated_queue_neither_hides_nor_delays_its_neighbours() {
    let _alone = alone();
    let dir = scratch();
    let queues = queues(&dir, 2);
    let notifiers: Vec<Notifier> = queues.iter().map(|queue| queue.notifier().unwrap()).collect();
    std::fs::File::options().write(true).open(dir.path().join("0/control.meta")).unwrap().set_len(0).unwrap();
    let mut writer = queues[1].writer().unwrap();
    for _ in 0..3 {
        writer.append(1, b"hello").unwrap();
        assert!(becomes_readable(&notifiers[1]));
        notifiers[1].clear();
    }
    // Its own reader is to find out.
    assert!(becomes_readable(&notifiers[0]));
}
