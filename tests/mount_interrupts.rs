//! What interrupts a reader that waits in the mount: signals, stops, freezing, tracing; seen by the daemon or not.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::need::{self, Need, require};
use common::{Running, TestMount, text, until};

fn mount() -> Option<TestMount> {
    let mount = TestMount::new()?;
    mount.ok("mkdir q && echo first > q/append.txt");
    Some(mount)
}

/// The state of a process, as shown by ps.
fn state(process: &Running) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    stat.rsplit(") ").next().unwrap().chars().next().unwrap()
}

/// Waits until the daemon looks after a reader that is being stopped. What has the reader wait as `D` is that the kernel
/// tells the daemon, which may look at the reader's signals only when it has been continued.
fn wait_until_kept(mount: &mut TestMount) {
    let tasks = format!("/proc/{}/task", mount.daemon().id());
    let name = |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.ok()?.path().join("comm")).ok();
    until("the daemon keeps the reader waiting", || {
        std::fs::read_dir(&tasks).unwrap().filter_map(name).any(|name| name.trim_end() == "chronfs-stopped")
    });
}

#[test]
fn readers_sleep_as_others_do_whoever_was_interrupted() {
    let Some(mount) = mount() else { return };
    let interrupted = mount.start("cat", &["q/follow.txt"]);
    mount.wait_until_blocked(&interrupted);
    interrupted.signal("INT");
    assert!(!interrupted.output().status.success());
    let readers: Vec<_> = (0..10).map(|_| mount.start("cat", &["q/follow.txt"])).collect();
    readers.iter().for_each(|reader| mount.wait_until_blocked(reader));
    assert_eq!(
        readers.iter().map(state).collect::<String>(),
        "SSSSSSSSSS",
        "D would count as load, and can't be frozen"
    );
}

#[test]
fn a_reader_that_is_stopped_for_a_moment_never_knows() {
    let Some(mut mount) = mount() else { return };
    // It treats EINTR as an error.
    let sed = mount.start("sed", &["-u", "2q", "q/follow.txt"]);
    mount.wait_until_blocked(&sed);
    sed.signal("STOP");
    wait_until_kept(&mut mount);
    sed.signal("CONT");
    mount.ok("echo a > q/append.txt; echo b > q/append.txt");
    let output = sed.output();
    assert_eq!((output.status.success(), text(&output.stdout).as_str()), (true, "a\nb\n"), "{output:?}");
}

#[test]
fn a_stop_takes_hold_and_a_signal_after_it_is_heard() {
    let Some(mount) = mount() else { return };
    let cat = mount.start("cat", &["q/follow.txt"]);
    mount.wait_until_blocked(&cat);
    cat.signal("STOP");
    until("it is stopped", || state(&cat) == 'T');
    cat.signal("CONT");
    mount.wait_until_blocked(&cat);
    // First for a moment, then for good.
    cat.signal("STOP");
    until("the kernel has told the daemon", || state(&cat) == 'D');
    cat.signal("CONT");
    cat.signal("TERM");
    assert!(text(&cat.output().stdout).is_empty());
}

/// A control group that can be frozen; removed when dropped.
struct Freezer {
    dir: PathBuf,
    is_v1: bool,
}

impl Freezer {
    fn new() -> Option<Self> {
        let name = format!("chronfs-test-{}", std::process::id());
        let places = [("/sys/fs/cgroup/freezer", true), ("/sys/fs/cgroup/unified", false), ("/sys/fs/cgroup", false)];
        let (dir, is_v1) = places.into_iter().find_map(|(parent, is_v1)| {
            let dir = Path::new(parent).join(&name);
            std::fs::create_dir(&dir).ok()?;
            let file = if is_v1 { "freezer.state" } else { "cgroup.freeze" };
            if dir.join(file).exists() {
                return Some((dir, is_v1));
            }
            let _ = std::fs::remove_dir(&dir);
            None
        })?;
        Some(Self { dir, is_v1 })
    }

    fn write(&self, file: &str, value: &str) {
        std::fs::write(self.dir.join(file), value).unwrap();
    }

    fn set(&self, frozen: bool) {
        match (self.is_v1, frozen) {
            (true, true) => self.write("freezer.state", "FROZEN"),
            (true, false) => self.write("freezer.state", "THAWED"),
            (false, frozen) => self.write("cgroup.freeze", if frozen { "1" } else { "0" }),
        }
    }

    fn is_frozen(&self) -> bool {
        let read = |file: &str| std::fs::read_to_string(self.dir.join(file)).unwrap();
        if self.is_v1 { read("freezer.state") == "FROZEN\n" } else { read("cgroup.events").contains("frozen 1") }
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.set(false);
        for _ in 0..200 {
            if std::fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[test]
fn a_reader_can_be_frozen_and_misses_nothing() {
    let Some(mount) = mount() else { return };
    let Some(freezer) = Freezer::new() else {
        return need::skip("there are no control groups that this user may freeze");
    };
    let reader = mount.start("head", &["-n", "2", "q/follow.txt"]);
    mount.wait_until_blocked(&reader);
    freezer.write("cgroup.procs", &reader.id().to_string());
    freezer.set(true);
    until("it is frozen", || freezer.is_frozen());
    mount.ok("echo while > q/append.txt");
    freezer.set(false);
    mount.ok("echo after > q/append.txt");
    assert_eq!(text(&reader.output().stdout), "while\nafter\n");
}

#[test]
fn a_daemon_that_cannot_see_its_readers_leaves_them_alone() {
    if !require(Need::Admin) {
        return;
    }
    let Some(mut mount) = mount() else { return };
    common::signal_to(mount.daemon().id(), "TERM");
    common::wait(mount.daemon());
    mount.mount_limited("rw", &["unshare", "--pid", "--fork", "--kill-child"]);
    let readers: Vec<_> = (0..3).map(|_| mount.start("sed", &["-u", "1q", "q/follow.txt"])).collect();
    readers.iter().for_each(|reader| mount.wait_until_blocked(reader));
    let killed = mount.start("cat", &["q/follow.txt"]);
    mount.wait_until_blocked(&killed);
    killed.signal("TERM");
    assert!(!killed.output().status.success());
    mount.ok("echo a > q/append.txt");
    for reader in readers {
        let output = reader.output();
        assert_eq!((output.status.success(), text(&output.stdout).as_str()), (true, "a\n"), "{output:?}");
    }
}
