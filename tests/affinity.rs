//! Where a writer's helper threads run. Alone in its program: it reads the threads of the process.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::time::Duration;

use chronfs::queue::{Cpus, Error, Removal, Settings, SyncPolicy, WriterOptions};
use rustix::thread::{CpuSet, sched_setaffinity};

mod common;

use common::{DEADLINE, SMALL, new_queue, until};

/// The processors on which a thread may run, as the kernel writes them.
fn allowed(status: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    line.trim().to_owned()
}

/// Where this thread may run.
fn own() -> String {
    allowed(&std::fs::read_to_string("/proc/thread-self/status").unwrap())
}

/// The threads of this process by name, and where they may run.
fn threads() -> BTreeMap<String, String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let read =
        |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.ok()?.path().join("status")).ok();
    tasks
        .filter_map(read)
        .map(|status| (status.lines().next().unwrap()[5..].trim().to_owned(), allowed(&status)))
        .collect()
}

#[test]
fn helper_threads_run_where_they_are_told_and_otherwise_where_the_writer_does() {
    let mine = own();
    let last: usize = mine.rsplit([',', '-']).next().unwrap().parse().unwrap();
    let (_dir, queue) = new_queue(&Settings { segment_size: 256 << 10, retain_segments: Some(0), ..SMALL });
    // Asked on the thread that removes segments.
    let (tell, told) = std::sync::mpsc::channel();
    queue.before_removal(move |_, _| {
        tell.send(own()).unwrap();
        Removal::Allow
    });
    for (cpus, expected) in [(None, mine), (Some([last].into_iter().collect()), last.to_string())] {
        let sync = SyncPolicy::Every { messages: 1000, interval: Duration::from_secs(1) };
        let options = WriterOptions { helper_cpus: cpus, sync, ..WriterOptions::default() };
        let mut writer = queue.writer_with(&options).unwrap();
        // Segments for retention to remove, and no more: the test must not fill the disk if it fails.
        (0..1000).for_each(|_| assert!(writer.append(1, &[0; 1000]).is_ok()));
        let removing = told.recv_timeout(DEADLINE).unwrap();
        assert_eq!(removing, expected);
        for name in ["chronfs-helper", "chronfs-pages", "chronfs-sync"] {
            // A thread that has just started is not there yet.
            until(name, || threads().get(name) == Some(&expected));
        }
        drop(writer);
        while told.try_recv().is_ok() {}
    }
    // The thread that appends runs on one processor from here on; those that its appends start don't.
    let mut writer = queue.writer().unwrap();
    let mine = own();
    let mut one = CpuSet::new();
    one.set(last);
    sched_setaffinity(None, &one).unwrap();
    (0..1000).for_each(|_| assert!(writer.append(1, &[0; 1000]).is_ok()));
    writer.flush_async().unwrap();
    for name in ["chronfs-pages", "chronfs-sync"] {
        until(name, || threads().get(name) == Some(&mine));
    }
    drop(writer);
    let options = WriterOptions { helper_cpus: Some(Cpus::default()), ..WriterOptions::default() };
    let error = queue.writer_with(&options).unwrap_err();
    assert!(matches!(&error, Error::Io { doing, .. } if doing.contains("processors")), "{error}");
    queue.writer().unwrap();
}

#[test]
fn a_set_of_processors_has_what_was_put_in() {
    let cpus: Cpus = [0, 63, 64, 1023, 1024, usize::MAX].into_iter().collect();
    assert_eq!(cpus.iter().collect::<Vec<_>>(), [0, 63, 64, 1023]);
    assert!(cpus.contains(64) && !cpus.contains(1) && !cpus.contains(1024));
}
