//! What one user does in a mount of root's, and what remains for others: threads, descriptors, requests.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use chronfs::Queue;
use chronfs::queue::Settings;
use common::need::{Need, require};
use common::{TestMount, detach, text, until, writer};

/// Users that need no name.
const FIRST: u32 = 64_001;
const SECOND: u32 = 64_002;

fn queue(path: &Path, owner: u32) {
    let settings = Settings { segment_size: 65536, ..Settings::default() };
    writer(&Queue::create(path, &settings).unwrap()).append(1, b"hello").unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
    for entry in std::fs::read_dir(path).unwrap() {
        chown(entry.unwrap().path(), Some(owner), Some(owner)).unwrap();
    }
}

/// A mount in which each of the users has a queue.
fn mount() -> Option<TestMount> {
    mount_with("allow_other")
}

fn mount_with(options: &str) -> Option<TestMount> {
    if !require(Need::Admin) {
        return None;
    }
    TestMount::over(
        |root| {
            std::fs::set_permissions(root.parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
            queue(&root.join("first"), FIRST);
            queue(&root.join("second"), SECOND);
        },
        options,
    )
}

/// A user's program in the mount.
fn start_as(mount: &TestMount, user: u32, program: &str, arguments: &[&str]) -> common::Running {
    let user = user.to_string();
    let words = ["--reuid", &user, "--regid", &user, "--clear-groups", program];
    mount.start("setpriv", &[&words, arguments].concat())
}

fn ok_as(mount: &TestMount, user: u32, script: &str) -> String {
    let output = start_as(mount, user, "timeout", &["15", "bash", "-c", script]).output();
    assert!(output.status.success(), "{script}: {output:?}");
    text(&output.stdout)
}

/// Serves again with limits.
fn limit(mount: &mut TestMount, limits: &[&str]) {
    common::signal_to(mount.daemon().id(), "TERM");
    common::wait(mount.daemon());
    mount.mount_limited("allow_other", &[&["prlimit"], limits].concat());
}

/// A program of the first user that opens files repeatedly (`n` so far) and keeps them open, until it gets an error,
/// which must be this one.
fn greedy(mount: &TestMount, open: &str, error: i32) -> common::Running {
    let greedy = format!(
        "import os, sys, itertools\n\
         fds = []\n\
         def keep(fd):\n\
         \x20 fds.append(fd)\n\
         \x20 return fd\n\
         try:\n\
         \x20 for n in range(2000): {open}\n\
         except OSError as e: print(e.errno, flush=True)\n\
         else: print(0, flush=True)\n\
         sys.stdin.read()\n"
    );
    let script = mount.root().with_file_name("greedy.py");
    std::fs::write(&script, greedy).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=64001", "--regid=64001", "--clear-groups", "/usr/bin/python3", "-S"]).arg(&script);
    command.current_dir(mount.mountpoint()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut said).unwrap();
    assert_eq!(said, format!("{error}\n"), "{open}");
    common::Running::new(child)
}

/// What must work whatever the first user does.
fn others_are_served(mount: &TestMount) {
    let script = "cat second/messages.txt && ls second > /dev/null && echo x > second/append.txt";
    assert!(ok_as(mount, SECOND, script).starts_with("hello\n"));
    mount.ok("cat first/status .chronfs/metrics > /dev/null");
}

#[test]
fn a_users_open_files_leave_room_for_others() {
    let Some(mut mount) = mount() else { return };
    for n in 0..240 {
        if n < 100 {
            queue(&mount.root().join(format!("q{n}")), FIRST);
        }
        drop(Queue::open(mount.root().join("first")).unwrap().reader(&format!("r{n}")).unwrap());
    }
    assert!(mount.ok("chown -R 64001 $(dirname $PWD)/root/first/readers").is_empty());
    limit(&mut mount, &["--nofile=600"]);
    for path in [
        "'first/follow.txt'",
        "f'first/readers/r{n}/take.txt'",
        "f'first/readers/r{n}/position'",
        "f'q{n}/follow.txt'",
        "f'q{n}/messages.txt'",
        "'.merged/follow.txt'",
        "'.merged/messages.txt'",
    ] {
        let greedy =
            greedy(&mount, &format!("os.read(keep(os.open({path}, os.O_RDONLY | os.O_NONBLOCK)), 0)"), libc::ENFILE);
        others_are_served(&mount);
        drop(greedy);
    }
}

#[test]
fn what_a_users_open_files_keep_in_memory_is_bounded() {
    const PAYLOAD: usize = 8 << 20;
    let Some(mut mount) = mount() else { return };
    let settings = Settings { segment_size: 32 << 20, ..Settings::default() };
    let large = Queue::create(mount.root().join("large"), &settings).unwrap();
    large.writer().unwrap().append(1, &vec![b'x'; PAYLOAD]).unwrap();
    (0..60).for_each(|n| drop(large.reader(&format!("r{n}")).unwrap()));
    let many = mount.root().join("many");
    std::fs::create_dir(&many).unwrap();
    (0..5000).for_each(|n| drop(std::fs::File::create(many.join(format!("{n:0200}"))).unwrap()));
    assert!(mount.ok("chown -R 64001 $(dirname $PWD)/root/large").is_empty());
    // A user may keep an eighth of that. Requests in flight need some more: a few times a message each.
    limit(&mut mount, &["--data=1073741824"]);
    let open = "fd = keep(os.open({path}, os.O_RDONLY)); os.read(fd, 1); os.read(fd, 1)";
    for path in ["f'large/readers/r{n}/take.txt'", "'large/since/1/follow.txt'"] {
        let greedy = greedy(&mount, &open.replace("{path}", path), libc::ENOMEM);
        others_are_served(&mount);
        drop(greedy);
    }
    drop(greedy(&mount, "keep(os.open('many', os.O_RDONLY))", libc::ENOMEM));
    // Views are shared, and keep what all may keep together.
    let many = "n < 20 and os.read(keep(os.open(f'large/since/{10**17 + n}/messages.txt', os.O_RDONLY)), 1)";
    drop(greedy(&mount, many, 0));
    others_are_served(&mount);
}

#[test]
fn many_followed_queues_take_few_threads() {
    let Some(mut mount) = mount() else { return };
    for n in 0..300 {
        queue(&mount.root().join(format!("q{n}")), FIRST);
    }
    let follower = "import os, select\n\
                    poll = select.poll()\n\
                    fds = {}\n\
                    for n in range(300):\n\
                    \x20 fd = os.open(f'q{n}/follow.txt', os.O_RDONLY)\n\
                    \x20 fds[fd] = n\n\
                    \x20 poll.register(fd, select.POLLIN)\n\
                    print('ready', flush=True)\n\
                    seen = set()\n\
                    while len(seen) < 300:\n\
                    \x20 for fd, _ in poll.poll():\n\
                    \x20\x20  assert os.read(fd, 100) == b'next\\n'\n\
                    \x20\x20  poll.unregister(fd)\n\
                    \x20\x20  seen.add(fds[fd])\n\
                    print(len(seen), flush=True)\n";
    let script = mount.root().with_file_name("follower.py");
    std::fs::write(&script, follower).unwrap();
    let mut command = Command::new("python3");
    command.arg("-S").arg(&script).current_dir(mount.mountpoint()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    let follower = common::Running::new(child);
    until("it sleeps in poll", || {
        std::fs::read_to_string(format!("/proc/{}/wchan", follower.id())).is_ok_and(|place| place.contains("poll"))
    });
    let threads = std::fs::read_dir(format!("/proc/{}/task", mount.daemon().id())).unwrap().count();
    assert!(threads < 30, "{threads} threads for 300 queues that are followed");
    for n in 0..300 {
        let queue = Queue::open(mount.root().join(format!("q{n}"))).unwrap();
        writer(&queue).append(1, b"next").unwrap();
    }
    assert_eq!(text(&follower.output().stdout), "300\n");
}

/// Another mount, at several places inside the bus directory, whose daemon is stopped: a backing file system that never
/// replies.
struct Stuck {
    daemon: Child,
    places: Vec<PathBuf>,
}

impl Stuck {
    fn new(mount: &TestMount, count: usize) -> Self {
        let [root, mountpoint] = ["stuck-root", "stuck-mount"].map(|name| mount.root().with_file_name(name));
        let mut places: Vec<_> = (0..count).map(|n| mount.root().join(format!("stuck{n}"))).collect();
        for dir in places.iter().chain([&root, &mountpoint]) {
            std::fs::create_dir(dir).unwrap();
        }
        let mut command = Command::new(common::program());
        command.arg("mount").arg(&root).arg(&mountpoint).args(["-f", "-o", "allow_other"]);
        let daemon = command.stdin(Stdio::null()).spawn().unwrap();
        until("it is mounted", || common::is_mounted(&mountpoint));
        for place in &places {
            let bound = Command::new("mount").arg("--bind").args([&mountpoint, place]).status().unwrap();
            assert!(bound.success());
        }
        places.push(mountpoint);
        common::signal_to(daemon.id(), "STOP");
        Self { daemon, places }
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        common::signal_to(self.daemon.id(), "CONT");
        self.places.iter().for_each(|place| detach(place));
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

#[test]
fn a_users_requests_that_hang_hold_up_nobody_else() {
    const COUNT: usize = 24;
    let Some(mount) = mount_with("allow_other,cross_mounts") else { return };
    // Dropped last: hanging processes can't be killed.
    let mut hanging = Vec::new();
    let stuck = Stuck::new(&mount, COUNT);
    hanging.extend((0..COUNT).map(|n| start_as(&mount, FIRST, "cat", &[&format!("stuck{n}/x")])));
    let waits = |reader: &common::Running| {
        let place = std::fs::read_to_string(format!("/proc/{}/wchan", reader.id())).unwrap_or_default();
        place.contains("request_wait")
    };
    until("they hang", || hanging.iter().all(waits));
    assert_eq!(ok_as(&mount, SECOND, "cat second/messages.txt && ls second > /dev/null"), "hello\n");
    mount.ok("cat first/messages.txt && echo x > first/append.txt && ls first");
    drop(stuck);
}

#[test]
fn a_queue_that_does_not_answer_is_named_and_left_out() {
    let Some(mount) = mount_with("allow_other,cross_mounts") else { return };
    let stuck = Stuck::new(&mount, 1);
    let status: serde_json::Value = serde_json::from_str(&mount.ok("cat .chronfs/status.json")).unwrap();
    let of = |name: &str| {
        let queues = status["queues"].as_array().unwrap();
        queues.iter().find(|queue| queue["path"].as_str().unwrap().ends_with(name)).cloned().unwrap()
    };
    assert_eq!(of("stuck0")["unanswered"], true, "{status}");
    assert_eq!(of("first")["messages"], 1);
    // From now on it is left out, and existing messages come first.
    let metrics = mount.ok("cat .chronfs/metrics");
    assert!(metrics.contains("chronfs_queue_answers{queue=\"stuck0\"} 0\n"), "{metrics}");
    assert!(metrics.contains("chronfs_queue_answers{queue=\"second\"} 1\n"));
    let output = mount.sh("cat .merged/messages.txt");
    assert_eq!((output.status.success(), text(&output.stdout).as_str()), (false, "hello\nhello\n"));
    assert!(text(&output.stderr).contains("timed out"), "{output:?}");
    let log = mount.ok("cat .chronfs/log");
    assert!(log.contains("/stuck0: ETIMEDOUT: does not answer (uid 0, "), "{log}");
    let doctor = mount.ok("cat .chronfs/doctor");
    assert!(doctor.contains("stuck0: does not answer\n"), "{doctor}");
    assert!(doctor.ends_with("2 queues checked: not everything could be checked\n"), "{doctor}");
    drop(stuck);
    // It answers again: an empty directory.
    until("it is looked at again", || !mount.ok("cat .chronfs/metrics").contains("stuck0"));
}

#[test]
fn what_is_mounted_below_and_does_not_belong_to_it_is_not_asked() {
    let Some(mount) = mount() else { return };
    let stuck = Stuck::new(&mount, 1);
    assert_eq!(mount.ok("ls"), "first\nsecond\n");
    assert_eq!(mount.ok("cat .merged/messages.txt"), "hello\nhello\n");
    let program = common::program().display().to_string();
    let natively = mount.sh(&format!("{program} doctor {}", mount.root().display()));
    for doctor in [mount.ok("cat .chronfs/doctor"), text(&[natively.stderr, natively.stdout].concat())] {
        assert!(doctor.contains("stuck0: another file system is mounted there"), "{doctor}");
        assert!(doctor.contains("2 queues checked"), "{doctor}");
    }
    drop(stuck);
}

/// Whose own requests don't answer loses them; who wants to leave others can, whatever is being looked at for him.
#[test]
fn readers_can_be_killed_whatever_another_users_readers_wait_for() {
    let Some(mut mount) = mount_with("allow_other,cross_mounts") else { return };
    let merged = start_as(&mount, FIRST, "cat", &[".merged/follow.txt"]);
    let readers: Vec<_> = (0..3).map(|_| start_as(&mount, SECOND, "cat", &["second/follow.txt"])).collect();
    readers.iter().chain([&merged]).for_each(|reader| mount.wait_until_blocked(reader));
    let daemon = mount.daemon().id();
    let stuck = Stuck::new(&mount, 1);
    until("a thread of the daemon hangs in what does not answer", || {
        let threads = std::fs::read_dir(format!("/proc/{daemon}/task")).unwrap().flatten();
        let mut places = threads.map(|thread| std::fs::read_to_string(thread.path().join("wchan")).unwrap_or_default());
        places.any(|place| place.contains("request_wait"))
    });
    for reader in readers {
        reader.signal("KILL");
        assert!(!reader.output().status.success());
    }
    drop(stuck);
}

#[test]
fn a_directory_of_any_width_is_searched_with_few_descriptors() {
    let Some(mut mount) = mount() else { return };
    for n in 0..1000 {
        std::fs::create_dir_all(mount.root().join(format!("wide/{n}"))).unwrap();
    }
    limit(&mut mount, &["--nofile=300"]);
    assert_eq!(mount.ok("cat .merged/messages.txt"), "hello\nhello\n");
    assert!(ok_as(&mount, FIRST, "cat .chronfs/metrics").contains("chronfs_queue_readable{queue=\"second\"} 1\n"));
}

#[test]
fn queues_that_nobody_uses_keep_no_descriptors() {
    let Some(mut mount) = mount() else { return };
    for n in 0..400 {
        queue(&mount.root().join(format!("q{n}")), FIRST);
    }
    common::signal_to(mount.daemon().id(), "TERM");
    common::wait(mount.daemon());
    mount.mount_limited("allow_other", &["prlimit", "--nofile=600"]);
    // The kernel remembers the names in all of them.
    for _ in 0..2 {
        let lines = mount
            .ok("for n in {0..399}; do cat q$n/messages.txt q$n/status.json q$n/messages/1 > /dev/null && echo; done");
        assert_eq!(lines.len(), 400);
    }
    let metrics = mount.ok("cat .chronfs/metrics");
    let readable = metrics.lines().filter(|line| line.starts_with("chronfs_queue_readable{") && line.ends_with(" 1"));
    assert_eq!(readable.count(), 402);
    // Where they are all used at once, there are too many.
    let refused = mount.fails("cat .merged/messages.txt");
    assert!(refused.contains("Too many open files"), "{refused}");
    assert_eq!(mount.ok("echo more > q0/append.txt; cat q0/messages.txt"), "hello\nmore\n");
}
