//! What is open when a process forks belongs to the parent: the child gets errors, and dropping its copies does no
//! harm.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use chronfs::queue::{Entry, Error, Queue, QueueReader, QueueWriter, Settings};

/// Runs `work` in a forked child and returns its result. The child is killed if it hangs.
#[allow(unsafe_code)]
fn in_child(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child allocates, which POSIX does not allow in a forked child of a program with threads, but the C
    // libraries here do; it ends by `_exit`, so that no exit handler of the test program runs in it.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            libc::alarm(20);
            let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(false);
            libc::_exit(i32::from(!worked));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }
}

fn new_queue(dir: &Path) -> Queue {
    let settings = Settings { segment_size: 64 << 10, ..Settings::default() };
    Queue::create(dir.join("q"), &settings).unwrap()
}

fn is_forked<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Forked { .. }))
}

fn refuses_everything(writer: &mut QueueWriter) -> bool {
    is_forked(writer.append(1, b"child"))
        && is_forked(writer.append_at(writer.last_timestamp_ns(), 1, b"child"))
        && is_forked(writer.reserve(1, 5).map(drop))
        && is_forked(writer.batch().append(1, b"child"))
        && is_forked(writer.check())
        && is_forked(writer.flush_async())
        && is_forked(writer.flush_sync())
}

#[test]
fn a_forked_child_can_neither_append_nor_let_go_of_the_writers_lock() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(dir.path());
    let mut writer = queue.writer().unwrap();
    writer.append(1, b"parent").unwrap();
    let mut slot = Some(writer);
    assert!(in_child(|| {
        let mut writer = slot.take().unwrap();
        let refused = refuses_everything(&mut writer);
        drop(writer);
        refused
    }));
    let mut writer = slot.take().unwrap();
    assert!(matches!(queue.writer(), Err(Error::Locked { .. })), "the child's drop has released the lock");
    assert_eq!(queue.writer_info().pid, Some(std::process::id()));
    for seq in 2..2_000 {
        assert_eq!(writer.append(1, &[b'x'; 100]).unwrap(), seq);
    }
    drop(writer);
    queue.writer().unwrap();
}

#[test]
fn a_record_that_was_reserved_before_a_fork_is_the_parents_to_commit() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(dir.path());
    let mut writer = queue.writer().unwrap();
    let mut slot = Some(writer.reserve_zeroed(1, 5).unwrap());
    assert!(in_child(|| is_forked(slot.take().unwrap().commit())));
    assert_eq!(queue.bounds().unwrap().next_seq, 1, "the child has appended");
    let mut record = slot.take().unwrap();
    record.copy_from_slice(b"hello");
    assert_eq!(record.commit().unwrap(), 1);
}

#[test]
fn a_daemon_that_forks_after_it_has_opened_a_writer_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(dir.path());
    let mut writer = queue.writer().unwrap();
    assert!(in_child(|| in_child(|| refuses_everything(&mut writer))));
    drop(writer);
    // And one that opens it afterwards works, with threads of its own.
    assert!(in_child(|| {
        let mut writer = queue.writer().unwrap();
        (0..2_000).all(|_| writer.append(1, &[b'x'; 100]).is_ok())
    }));
    assert_eq!(queue.bounds().unwrap().next_seq, 2_001);
}

fn next(reader: &mut QueueReader) -> Option<u64> {
    reader.next().unwrap().and_then(Entry::message).map(|message| message.seq)
}

#[test]
fn a_forked_child_neither_reads_nor_commits_nor_frees_the_reader() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(dir.path());
    let mut writer = queue.writer().unwrap();
    for _ in 0..5 {
        writer.append(1, b"hello").unwrap();
    }
    let mut reader = queue.reader("r").unwrap();
    assert_eq!(next(&mut reader), Some(1));
    reader.commit();
    assert_eq!(next(&mut reader), Some(2));
    let mut slot = Some(reader);
    assert!(in_child(|| {
        let mut reader = slot.take().unwrap();
        let refused = is_forked(reader.next().map(drop))
            && reader.available().next().is_none()
            && is_forked(reader.seek_seq(1))
            && is_forked(reader.wait(Some(Duration::ZERO)))
            && is_forked(reader.commit_sync());
        reader.commit();
        drop(reader);
        refused
    }));
    let mut reader = slot.take().unwrap();
    assert_eq!(queue.reader_position("r").unwrap(), 2, "the child has committed");
    assert!(matches!(queue.reader("r"), Err(Error::ReaderInUse { .. })), "the child's drop has released the lock");
    assert_eq!(next(&mut reader), Some(3));
    reader.commit();
    assert_eq!(queue.reader_position("r").unwrap(), 4);
}

#[test]
fn a_forked_child_has_notifiers_of_its_own_whatever_its_parent_is_doing() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(dir.path());
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Holds whatever lock there is at some of the forks.
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    let notifier = queue.notifier().unwrap();
                    notifier.clear();
                }
            });
        }
        for round in 0..20 {
            let parents = queue.notifier().unwrap();
            assert!(in_child(|| {
                let settings = Settings { segment_size: 64 << 10, ..Settings::default() };
                let queue = Queue::create(dir.path().join(round.to_string()), &settings).unwrap();
                let notifier = queue.notifier().unwrap();
                parents.clear();
                queue.writer().unwrap().append(1, b"hello").unwrap();
                let mut events = [rustix::event::PollFd::new(&notifier, rustix::event::PollFlags::IN)];
                let count = rustix::event::poll(&mut events, None).unwrap();
                drop((notifier, parents));
                count == 1
            }));
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_forked_child_may_drop_a_notifier_and_look_at_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let queue = new_queue(dir.path());
    let mut writer = queue.writer().unwrap();
    writer.append(1, b"hello").unwrap();
    let mut slot = Some(queue.notifier().unwrap());
    let mut scanner = queue.scan().unwrap();
    assert!(in_child(|| {
        let notifier = slot.take().unwrap();
        notifier.clear();
        drop(notifier);
        let seen = scanner.next().unwrap().and_then(Entry::message).map(|message| message.seq);
        seen == Some(1) && queue.inspect().unwrap().messages == 1 && queue.reader("child").is_ok()
    }));
    assert_eq!(scanner.next().unwrap().and_then(Entry::message).map(|message| message.seq), Some(1));
}
