//! The tree without a kernel: lookups, listings, handles, and waiting on real queues.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::fs::daemon_log::DaemonLog;
use crate::fs::tree::*;
use crate::fs::waiting::parked::{Parked, ParkedRead};
use crate::queue::Queue;

const CHUNK: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(10);

struct Fixture {
    tree: Arc<Tree>,
    root: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::with_access(false)
    }

    fn with_access(read_only: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings { segment_size: 65536, ..Settings::default() };
        let queue = Queue::create(root.path().join("q"), &settings).unwrap();
        queue.writer().unwrap().append(1, b"first").unwrap();
        let backing = Backing::open(root.path(), false).unwrap();
        let log = DaemonLog::new(Path::new("/mnt"), log::LevelFilter::Off);
        let tree = Arc::new(Tree::new(backing, read_only, settings, CHUNK, None, log).unwrap());
        Self { tree, root }
    }

    fn queue(&self) -> Queue {
        Queue::open(self.root.path().join("q")).unwrap()
    }

    fn append(&self, payload: &[u8]) {
        // A process that another test is starting briefly holds a copy of the last writer's lock.
        let deadline = Instant::now() + DEADLINE;
        let mut writer = self.queue().writer();
        while writer.is_err() && Instant::now() < deadline {
            std::thread::yield_now();
            writer = self.queue().writer();
        }
        writer.unwrap().append(1, payload).unwrap();
    }

    fn look(&self, path: &str) -> Result<Entry> {
        let mut entry = self.tree.getattr(Ino::ROOT)?;
        for name in path.split('/') {
            entry = self.tree.lookup(entry.ino, OsStr::new(name), &Caller::root())?;
        }
        Ok(entry)
    }

    fn open(&self, path: &str, access: Access) -> Result<u64> {
        self.tree.open(self.look(path)?.ino, access, &Caller::root())
    }

    fn read(&self, fh: u64, offset: u64, size: usize) -> Result<String> {
        let mut out = Vec::new();
        match self.tree.read(&*self.tree.files.get(fh)?, offset, size, &mut out)? {
            Progress::Done => Ok(String::from_utf8(out).unwrap()),
            Progress::Wait(_) => Ok("(waits)".to_owned()),
        }
    }

    fn cat(&self, path: &str) -> Result<String> {
        let fh = self.open(path, Access::Read)?;
        let text = self.read(fh, 0, CHUNK);
        self.tree.release(fh);
        text
    }

    fn list(&self, path: &str) -> Vec<String> {
        let ino = if path.is_empty() { Ino::ROOT } else { self.look(path).unwrap().ino };
        let fh = self.tree.opendir(ino, &Caller::root()).unwrap();
        let mut names = Vec::new();
        self.tree
            .readdir(fh, 2, |item, _, _| {
                names.push(item.name.to_str().unwrap().to_owned());
                true
            })
            .unwrap();
        self.tree.releasedir(fh);
        names
    }
}

#[test]
fn names_lead_to_what_they_say() {
    let f = Fixture::new();
    std::fs::write(f.root.path().join("notes"), "text").unwrap();
    let mut names = f.list("");
    names.sort();
    assert_eq!(names, [".chronfs", ".merged", "notes", "q"]);
    assert_eq!(f.cat("notes").unwrap(), "text");
    assert_eq!(f.cat("q/messages.txt").unwrap(), "first\n");
    assert_eq!(f.look("q/control.meta").unwrap_err(), Errno::ENOENT);
    assert_eq!(f.look("q/messages.pdf").unwrap_err(), Errno::ENOENT);
    assert_eq!(f.look("notes/x").unwrap_err(), Errno::ENOTDIR);
    assert_eq!(f.look(&"x".repeat(256)).unwrap_err(), Errno::ENAMETOOLONG);
    assert_eq!(f.open("q", Access::Read).unwrap_err(), Errno::EISDIR);
    assert_eq!(f.open("q/messages.txt", Access::ReadWrite).unwrap_err(), Errno::EACCES);
    assert_eq!(f.open("q/append.txt", Access::ReadWrite).unwrap_err(), Errno::EACCES);
    let status: serde_json::Value = serde_json::from_str(&f.cat("q/status.json").unwrap()).unwrap();
    assert_eq!(status["path"].as_str().unwrap(), f.root.path().join("q").to_str().unwrap());
}

#[test]
fn a_listing_read_again_from_its_start_is_new() {
    let f = Fixture::new();
    let fh = f.tree.opendir(Ino::ROOT, &Caller::root()).unwrap();
    let count = || {
        let mut count = 0;
        f.tree
            .readdir(fh, 0, |_, _, _| {
                count += 1;
                true
            })
            .unwrap();
        count
    };
    let at_first = count();
    std::fs::create_dir(f.root.path().join("more")).unwrap();
    let mut rest = 0;
    f.tree
        .readdir(fh, 1, |_, _, _| {
            rest += 1;
            true
        })
        .unwrap();
    assert_eq!((rest, count()), (at_first - 1, at_first + 1));
}

#[test]
fn messages_keep_their_number_until_retention() {
    let f = Fixture::new();
    let before = f.look("q/messages.txt").unwrap();
    let held = f.tree.open(before.ino, Access::Read, &Caller::root()).unwrap();
    let big = vec![b'x'; 40_000];
    f.append(&big);
    f.append(&big);
    let grown = f.look("q/messages.txt").unwrap();
    assert_eq!((grown.ino, grown.attr.size), (before.ino, 6 + 2 * 40_001));
    std::fs::remove_file(f.root.path().join("q/000000000.q")).unwrap();
    let rotated = f.look("q/messages.txt").unwrap();
    assert_ne!(rotated.ino, before.ino);
    assert_eq!(rotated.attr.size, 40_001);
    assert_eq!(f.read(held, 0, 10).unwrap(), "first\nxxxx", "an open handle can still read it");
    assert_eq!(f.read(held, 2, 1 << 20).unwrap().len(), 2 * 40_001 + 4, "and what follows");
    assert_eq!(f.tree.getattr(before.ino).unwrap().attr.size, grown.attr.size, "the old file does not shrink");
    let again = f.tree.open(before.ino, Access::Read, &Caller::root()).unwrap();
    assert_eq!(f.read(again, 0, 5).unwrap(), "first", "while a handle is open it can be opened");
    f.tree.forget(rotated.ino, 1);
    assert_eq!(f.look("q/messages.txt").unwrap().ino, rotated.ino, "forgotten and found again");
}

#[test]
fn follow_returns_whole_units_and_never_fills_a_chunk() {
    let f = Fixture::new();
    let fh = f.open("q/follow.txt", Access::Read).unwrap();
    assert_eq!(f.read(fh, 0, 100).unwrap(), "(waits)");
    f.append(b"one");
    f.append(b"two");
    assert_eq!(f.read(fh, 77, 6).unwrap(), "one\n", "the offset is ignored; two does not fit");
    assert_eq!(f.read(fh, 0, 2).unwrap(), "tw");
    assert_eq!(f.read(fh, 0, 2).unwrap(), "o\n");
    assert_eq!(f.read(fh, 0, 2).unwrap(), "(waits)");
    for _ in 0..30 {
        f.append(&[b'x'; 49_999]);
    }
    assert_eq!(f.read(fh, 0, CHUNK).unwrap().len(), 20 * 50_000);
    let fh = f.open("q/follow.bin", Access::Read).unwrap();
    for _ in 0..CHUNK / 32_768 {
        f.append(&[b'x'; 32_768]);
    }
    assert!(f.read(fh, 0, CHUNK).unwrap().len() < CHUNK, "the kernel would ask for more, and block");
}

#[test]
fn an_overtaken_follower_hears_of_it_once() {
    let f = Fixture::new();
    let fh = f.open("q/follow.txt", Access::Read).unwrap();
    for payload in [b"a", b"b", b"c"] {
        f.append(&payload.repeat(40_000));
    }
    std::fs::remove_file(f.root.path().join("q/000000000.q")).unwrap();
    std::fs::remove_file(f.root.path().join("q/000000001.q")).unwrap();
    assert_eq!(f.read(fh, 0, CHUNK).unwrap_err(), Errno::EPIPE);
    assert_eq!(f.read(fh, 0, CHUNK).unwrap(), "c".repeat(40_000) + "\n");
    assert_eq!(f.read(fh, 0, CHUNK).unwrap(), "(waits)");
}

#[test]
fn append_handles_share_the_writer() {
    let f = Fixture::new();
    let text = f.open("q/append.txt", Access::Write).unwrap();
    let json = f.open("q/append.jsonl", Access::Write).unwrap();
    assert_eq!(f.tree.write(text, b"un", WriteBy::default()), Ok(2));
    assert_eq!(f.tree.write(json, b"{\"payload\":\"a\"}\nbad\n", WriteBy::default()), Ok(16));
    assert_eq!(f.tree.write(json, b"{\"payload\":\"b\"}\n", WriteBy::default()), Err(Errno::EINVAL));
    assert_eq!(f.tree.write(text, b"finished\nrest", WriteBy::default()), Ok(13));
    assert_eq!(f.tree.fsync(text), Ok(()));
    assert!(matches!(f.queue().writer(), Err(crate::Error::Locked { .. })));
    f.tree.release(text);
    assert!(matches!(f.queue().writer(), Err(crate::Error::Locked { .. })));
    f.tree.release(json);
    assert!(f.queue().writer().is_ok());
    assert_eq!(f.cat("q/messages.txt").unwrap(), "first\na\nunfinished\nrest\n");
}

#[test]
fn the_end_of_the_mount_takes_in_unfinished_lines() {
    let f = Fixture::new();
    let fh = f.open("q/append.txt", Access::Write).unwrap();
    f.tree.write(fh, b"unfinished", WriteBy::default()).unwrap();
    f.tree.finish();
    assert!(f.queue().writer().is_ok());
    assert_eq!(f.cat("q/messages.txt").unwrap(), "first\nunfinished\n");
    assert_eq!(f.tree.write(fh, b"late\n", WriteBy::default()), Err(Errno::EBADF));
    let follower = f.open("q/follow.txt", Access::Read).unwrap();
    assert_eq!(f.read(follower, 0, 10).unwrap_err(), Errno::ENOTCONN, "not at its end");
}

#[test]
fn a_read_only_tree_refuses_every_change() {
    let f = Fixture::with_access(true);
    assert_eq!(f.open("q/append.txt", Access::Write).unwrap_err(), Errno::EROFS);
    assert_eq!(f.tree.mkdir(Ino::ROOT, OsStr::new("x"), 0o755, &Caller::root()).unwrap_err(), Errno::EROFS);
    assert_eq!(
        f.tree.create(Ino::ROOT, OsStr::new("READY"), Access::Write, &Caller::root()).unwrap_err(),
        Errno::EROFS
    );
    assert_eq!(f.tree.unlink(Ino::ROOT, OsStr::new("READY"), &Caller::root()), Err(Errno::EROFS));
    assert_eq!(f.tree.setattr(Ino::ROOT, None, true, false, &Caller::root()).unwrap_err(), Errno::EROFS);
}

/// Parks a read of a follower; its answer comes through the channel.
fn park(f: &Fixture, fh: u64, caller: u32) -> (Arc<ParkedRead>, mpsc::Receiver<Result<Vec<u8>>>) {
    let (sender, receiver) = mpsc::channel();
    let answer = Box::new(move |result: Result<&[u8]>| sender.send(result.map(<[u8]>::to_vec)).unwrap());
    let open = f.tree.files.get(fh).unwrap();
    let Progress::Wait(queues) = f.tree.read(&open, 0, 100, &mut Vec::new()).unwrap() else { panic!("does not wait") };
    let share = f.tree.charge_waiting(&open, &queues).unwrap();
    let read = Arc::new(ParkedRead::new(answer, open, (0, 100), caller, share));
    f.tree.park(&queues, &read);
    (read, receiver)
}

#[test]
fn parked_reads_are_answered_by_native_appends() {
    let f = Fixture::new();
    let handles: Vec<_> = (0..20).map(|_| f.open("q/follow.txt", Access::Read).unwrap()).collect();
    for round in 0..3 {
        let parked: Vec<_> = handles.iter().map(|fh| park(&f, *fh, std::process::id())).collect();
        f.append(format!("round {round}").as_bytes());
        for (_, answer) in parked {
            let answer = answer.recv_timeout(DEADLINE).unwrap();
            assert_eq!(answer.unwrap(), format!("round {round}\n").as_bytes());
        }
    }
    let (_, answer) = park(&f, handles[0], std::process::id());
    f.tree.close();
    assert_eq!(answer.recv_timeout(DEADLINE).unwrap(), Err(Errno::ENOTCONN), "this is not the end of the file");
}

#[test]
fn polls_are_told_once() {
    let f = Fixture::new();
    let fh = f.open("q/follow.txt", Access::Read).unwrap();
    let (sender, receiver) = mpsc::channel();
    let notify = || -> Option<Notify> {
        let sender = sender.clone();
        Some(Box::new(move || sender.send(()).unwrap()))
    };
    assert_eq!(f.tree.poll(fh, None), Ok(false));
    assert_eq!(f.tree.poll(fh, notify()), Ok(false));
    assert_eq!(f.tree.poll(fh, notify()), Ok(false), "takes the place of the one before");
    f.append(b"x");
    receiver.recv_timeout(DEADLINE).unwrap();
    assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err());
    assert_eq!(f.tree.poll(fh, notify()), Ok(true));
    assert_eq!(f.read(fh, 0, 10).unwrap(), "x\n");
    assert_eq!(f.tree.poll(fh, notify()), Ok(false));
    f.tree.release(fh);
    let always = f.open("q/messages.txt", Access::Read).unwrap();
    assert_eq!(f.tree.poll(always, None), Ok(true));
}

#[test]
fn interruptions_reach_a_read_wherever_it_is() {
    let f = Fixture::new();
    let fh = f.open("q/follow.txt", Access::Read).unwrap();
    let parked = Arc::new(Parked::default());
    let (read, answer) = park(&f, fh, 0);
    assert_eq!(parked.enter(7, &read, || true), Err(Errno::EINTR), "while it was being done");
    parked.enter(7, &read, || false).unwrap();
    assert!(!parked.interrupt(8, &|| false), "unknown: the kernel is to ask again");
    assert!(parked.interrupt(8, &|| true), "still being done");
    assert!(answer.try_recv().is_err());
    assert!(parked.interrupt(7, &|| false));
    assert_eq!(answer.recv_timeout(DEADLINE).unwrap(), Err(Errno::EINTR));
    let (read, answer) = park(&f, fh, 0);
    parked.enter(9, &read, || false).unwrap();
    parked.close();
    assert_eq!(answer.recv_timeout(DEADLINE).unwrap(), Err(Errno::ENOTCONN));
    assert_eq!(parked.enter(10, &read, || false), Err(Errno::ENOTCONN));
}

#[test]
fn a_directory_that_becomes_another_is_stale() {
    let f = Fixture::new();
    let entry = f.look("q").unwrap();
    std::fs::rename(f.root.path().join("q"), f.root.path().join("old")).unwrap();
    std::fs::create_dir(f.root.path().join("q")).unwrap();
    assert_eq!(f.tree.lookup(entry.ino, OsStr::new("messages.txt"), &Caller::root()).unwrap_err(), Errno::ESTALE);
    assert_ne!(f.look("q").unwrap().ino, entry.ino);
    assert_eq!(f.cat("old/messages.txt").unwrap(), "first\n");
}

/// Takes nearly all memory that users may hold.
fn take_all_memory(f: &Fixture) -> Vec<Share> {
    let take = |uid| {
        let mut share = f.tree.shared.queues.budget().take(uid, Budgeted::Bytes, 0).unwrap();
        let (mut amount, steps) = (0, (0..50).rev().map(|bit| 1_u64 << bit));
        for step in steps {
            if share.resize(amount + step).is_ok() {
                amount += step;
            }
        }
        share
    };
    (1000..1040).map(take).collect()
}

#[test]
fn what_is_kept_between_calls_is_charged_and_where_there_is_no_room_nothing_is_lost() {
    let f = Fixture::new();
    let queue = Queue::create(f.root.path().join("big"), &Settings { segment_size: 1 << 20, ..Settings::default() });
    let (queue, large) = (queue.unwrap(), "x".repeat(200_000));
    let readers = f.look("big/readers").unwrap().ino;
    f.tree.mkdir(readers, OsStr::new("r"), 0o755, &Caller::root()).unwrap();
    std::fs::create_dir(f.root.path().join("many")).unwrap();
    (0..400).for_each(|n| std::fs::write(f.root.path().join(format!("many/{n}")), "").unwrap());
    let streams = ["big/follow.txt", ".merged/follow.txt", "big/readers/r/take.txt"];
    let mut handles: Vec<_> = streams.iter().map(|path| f.open(path, Access::Read).unwrap()).collect();
    queue.writer().unwrap().append(1, large.as_bytes()).unwrap();
    let many = f.look("many").unwrap().ino;

    let taken = take_all_memory(&f);
    handles.extend(["big/messages/1", "big/messages/1.json"].map(|path| f.open(path, Access::Read).unwrap()));
    for fh in &handles {
        for _ in 0..2 {
            assert_eq!(f.read(*fh, 0, 1000), Err(Errno::ENOMEM), "{fh}");
        }
        assert_eq!(f.tree.poll(*fh, None), Ok(true), "the read reports it");
    }
    let merged = f.open(".merged/messages.txt", Access::Read).unwrap();
    assert_eq!(f.read(merged, 0, 1000).unwrap(), "first\n");
    assert_eq!(f.read(merged, 6, 1000), Err(Errno::ENOMEM));
    assert_eq!(f.tree.opendir(many, &Caller::root()), Err(Errno::ENOMEM));
    assert_eq!(f.cat("q/messages/1").unwrap(), "first", "a small file costs nothing");
    let waits = f.tree.files.get(f.open("q/follow.txt", Access::Read).unwrap()).unwrap();
    assert_eq!(f.tree.charge_waiting(&waits, &[]).unwrap_err(), Errno::ENOMEM);
    let line = f.open("big/append.txt", Access::Write).unwrap();
    assert_eq!(f.tree.write(line, large.as_bytes(), WriteBy::default()), Err(Errno::ENOMEM), "a line without its end");

    drop(taken);
    f.tree.releasedir(f.tree.opendir(many, &Caller::root()).unwrap());
    let whole = |fh, from: usize| {
        let mut text = String::new();
        while text.len() < large.len() {
            text += &f.read(fh, (from + text.len()) as u64, 70_000).unwrap();
        }
        text
    };
    handles.push(merged);
    for (fh, from) in handles.iter().zip([0, 0, 0, 0, 0, 6]) {
        let text = whole(*fh, from);
        assert!(text.contains(&large), "{fh}: {} bytes", text.len());
    }
    handles.iter().for_each(|fh| f.tree.release(*fh));
    let left = take_all_memory(&f).len();
    assert_eq!(left, 40, "all has been given back");
}
