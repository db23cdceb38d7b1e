//! Users who do not trust one another on one mount of root's: through it no user reads what they could not read without
//! it, or makes root change what they could not change themselves. Needs root.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use chronfs::Queue;
use chronfs::queue::Settings;
use common::need::{Need, is_root, require};
use common::{Disk, TestMount, detach, text, until};

const ANN: u32 = 64_001;
const BOB: u32 = 64_002;
const TEAM: u32 = 64_010;

fn small() -> Settings {
    Settings { segment_size: 64 << 10, ..Settings::default() }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn directory(path: &Path, owner: u32, bits: u32) -> PathBuf {
    fs::create_dir(path).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
    mode(path, bits);
    path.to_path_buf()
}

fn file(path: &Path, owner: u32, bits: u32, content: &str) -> PathBuf {
    fs::write(path, content).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
    mode(path, bits);
    path.to_path_buf()
}

/// A queue with one message that belongs to a user, its directory 0777 and its files 0666.
fn open_queue(path: &Path, owner: u32, message: &[u8]) {
    let queue = Queue::create(path, &small()).unwrap();
    queue.writer().unwrap().append(1, message).unwrap();
    drop(queue);
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        chown(&path, Some(owner), Some(owner)).unwrap();
        mode(&path, 0o666);
    }
    chown(path, Some(owner), Some(owner)).unwrap();
    mode(path, 0o777);
}

/// A mount for all users. None where the tests do not run as root.
fn mount(prepare: impl FnOnce(&Path)) -> Option<TestMount> {
    mount_with("allow_other,segment_size=64KiB", prepare)
}

fn mount_with(options: &str, prepare: impl FnOnce(&Path)) -> Option<TestMount> {
    if !require(Need::Root) {
        return None;
    }
    TestMount::over(
        |root| {
            mode(root.parent().unwrap(), 0o755);
            mode(root, 0o777);
            prepare(root);
        },
        options,
    )
}

/// Runs a script in the mountpoint as a user without further groups. `$ROOT` is the backing directory.
fn run(mount: &TestMount, uid: u32, script: &str) -> Output {
    run_with(mount, uid, "--clear-groups", script)
}

fn run_with(mount: &TestMount, uid: u32, groups: &str, script: &str) -> Output {
    let root = mount.root();
    assert!(!script.contains('\''), "{script}");
    let script = format!("ROOT={} setpriv --reuid {uid} --regid {uid} {groups} bash -c '{script}'", root.display());
    mount.sh(&script)
}

fn ok(mount: &TestMount, uid: u32, script: &str) -> String {
    let output = run(mount, uid, script);
    assert!(output.status.success(), "{script}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn denied(mount: &TestMount, uid: u32, script: &str) {
    let output = run(mount, uid, script);
    let (printed, complained) = (text(&output.stdout), text(&output.stderr));
    assert!(!output.status.success(), "{script}: {printed}");
    assert!(complained.contains("denied") || complained.contains("not permitted"), "{script}: {complained}");
}

/// Repeats `work` beside `run`.
fn beside(again: impl Fn() + Sync, run: impl FnOnce()) {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                again();
            }
        });
        // In a panic, too.
        let _end = End(&ended);
        run();
    });
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_link_instead_of_readers_changes_no_other_files_permissions() {
    let prepare = |root: &Path| {
        open_queue(&root.join("q"), ANN, b"hello");
        mode(&root.join("q"), 0o6777);
    };
    let Some(mount) = mount(prepare) else { return };
    let secret = file(&mount.root().parent().unwrap().join("secret"), 0, 0o600, "secret");
    let (readers, elsewhere) = (mount.root().join("q/readers"), mount.root().join("q/elsewhere"));
    let swap = || {
        if fs::symlink_metadata(&readers).is_ok_and(|found| found.is_dir()) {
            let _ = fs::rename(&readers, &elsewhere);
            let _ = symlink(&secret, &readers);
        }
    };
    for round in 0..20 {
        beside(swap, || drop(run(&mount, ANN, "mkdir q/readers/x")));
        let metadata = fs::metadata(&secret).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o600, 0), "round {round}");
        let _ = fs::remove_file(&readers);
        let _ = fs::remove_dir_all(&readers);
        let _ = fs::remove_dir_all(&elsewhere);
    }
}

#[test]
fn files_that_are_not_new_keep_their_owner() {
    let Some(mount) = mount(|root| {
        open_queue(&root.join("q"), ANN, b"hello");
        let secret = file(&root.parent().unwrap().join("secret"), 0, 0o660, "secret");
        fs::hard_link(secret, root.join("q/000000099.q")).unwrap();
        file(&root.join("q/control.meta.old"), 0, 0o600, "secret");
    }) else {
        return;
    };
    let _ = run(&mount, ANN, "echo one > q/append.txt; mkdir q/readers/x; touch q/READY; echo x > q/LEASE");
    for name in ["000000099.q", "control.meta.old"] {
        assert_eq!(fs::metadata(mount.root().join("q").join(name)).unwrap().uid(), 0, "{name}");
    }
}

#[test]
fn a_directory_that_replaces_a_new_one_keeps_its_owner() {
    let Some(mount) = mount(|root| {
        directory(&root.join("private"), 0, 0o700);
        file(&root.join("private/secret"), 0, 0o600, "secret");
    }) else {
        return;
    };
    let [private, new, aside] = ["private", "new", "aside"].map(|name| mount.root().join(name));
    let swap = || {
        if new.is_dir() && private.is_dir() {
            let _ = fs::rename(&new, &aside);
            let _ = fs::rename(&private, &new);
            let _ = fs::rename(&new, &private);
            let _ = fs::remove_dir(&aside);
        }
    };
    beside(swap, || drop(run(&mount, ANN, "for i in {1..150}; do mkdir new; rmdir new; done 2> /dev/null")));
    let found = [&private, &new].into_iter().find(|path| path.join("secret").exists()).unwrap();
    let metadata = fs::metadata(found).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (0, 0o700));
}

#[test]
fn what_is_read_is_what_was_opened() {
    let Some(mount) = mount(|root| {
        let team = directory(&root.join("team"), ANN, 0o777);
        file(&team.join("notes"), BOB, 0o600, "secret");
        file(&team.join("pub"), ANN, 0o644, "public");
    }) else {
        return;
    };
    let swap = "touch team/READY; exec 3< team/READY; cd $ROOT/team; mv READY aside; mv notes READY; cat <&3";
    let read = ok(&mount, ANN, swap);
    assert!(read.contains("\"pid\"") && !read.contains("secret"), "{read}");
    ok(&mount, ANN, "cd $ROOT/team; mv READY notes");
    let team = mount.root().join("team");
    let exchange = || {
        let (public, notes) = (team.join("pub"), team.join("notes"));
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(rustix::fs::CWD, &public, rustix::fs::CWD, &notes, flags).unwrap();
    };
    beside(exchange, || {
        let read = ok(&mount, ANN, "for i in {1..400}; do read line < team/pub && echo $line; done 2> /dev/null; true");
        assert!(!read.contains("secret"), "{read}");
    });
}

#[test]
fn messages_are_taken_only_by_users_who_may_read_them() {
    let Some(mount) = mount(|root| open_queue(&root.join("q"), ANN, b"secret")) else { return };
    ok(&mount, BOB, "mkdir q/readers/mine && cat q/readers/mine/messages.txt");
    ok(&mount, ANN, "chmod 600 $ROOT/q/*.q $ROOT/q/control.meta");
    // Attributes are cached for a moment.
    until("the messages are private", || !run(&mount, BOB, "cat q/messages.txt").status.success());
    denied(&mount, BOB, "timeout 5 cat q/readers/mine/take.txt");
    assert_eq!(ok(&mount, BOB, "cat q/readers/mine/position"), "1\n");
}

#[test]
fn access_control_lists_count() {
    if !require(Need::Acl) {
        return;
    }
    let Some(mount) = mount(|root| {
        for name in ["files", "directory", "writers"] {
            open_queue(&root.join(name), ANN, b"secret");
        }
        directory(&root.join("plain"), ANN, 0o755);
        file(&root.join("plain/notes"), ANN, 0o644, "secret");
        file(&root.join("plain/below"), ANN, 0o644, "secret");
    }) else {
        return;
    };
    ok(&mount, BOB, "mkdir files/readers/b && cat files/messages.txt directory/messages.txt plain/notes plain/below");
    let root = mount.root();
    let acl = |acl: &str, paths: &str| {
        mount.ok(&format!("cd {} && setfacl -m {acl} {paths}", root.display()));
    };
    acl(&format!("u:{BOB}:---"), "files/*.q files/control.meta directory plain/notes");
    acl(&format!("u:{BOB}:r-x"), "writers");
    let shown = ok(
        &mount,
        ANN,
        "find files -type f ! -name \"append.*\" ! -path \"*/readers/*\"; ls -d files/since/1/m* files/messages/1",
    );
    assert!(shown.lines().count() > 10, "{shown}");
    for path in shown.lines().chain(["files/readers/b/messages.txt", "files/readers/b/take.txt"]) {
        denied(&mount, BOB, &format!("timeout 5 cat {path}"));
    }
    for script in [
        "cat directory/messages.txt",
        "ls directory",
        "cat directory/segments/000000000.q",
        "echo x > directory/append.txt",
        "touch directory/READY",
        "cat plain/notes",
        "echo x > writers/append.txt",
        "touch writers/READY",
        "mkdir writers/readers/b",
    ] {
        denied(&mount, BOB, script);
    }
    let seen = ok(&mount, BOB, "cat .merged/messages.jsonl; cat .chronfs/metrics");
    assert!(seen.contains("writers") && !seen.contains("\"files\"") && !seen.contains("\"directory\""), "{seen}");
    assert_eq!(ok(&mount, BOB, "cat plain/below"), "secret");
    assert_eq!(ok(&mount, ANN, "cat files/messages.txt"), "secret\n");
}

#[test]
fn followers_end_when_they_may_no_longer_read() {
    let Some(mount) = mount(|root| {
        open_queue(&root.join("q"), ANN, b"hello");
        open_queue(&root.join("other"), ANN, b"hello");
    }) else {
        return;
    };
    let uid = BOB.to_string();
    let start = |file| mount.start("setpriv", &["--reuid", &uid, "--regid", &uid, "--clear-groups", "cat", file]);
    let followers = ["q/follow.txt", ".merged/follow.txt"].map(start);
    followers.iter().for_each(|follower| mount.wait_until_blocked(follower));
    ok(&mount, ANN, "chmod 700 $ROOT/q; echo later > q/append.txt");
    for follower in followers {
        let output = follower.output();
        assert!(text(&output.stderr).contains("Permission denied"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_user_who_may_no_longer_write_can_not_append() {
    let Some(mount) = mount(|root| open_queue(&root.join("q"), ANN, b"hello")) else { return };
    let append = |uid: u32| {
        let uid = uid.to_string();
        let script = "exec 3> q/append.txt; for n in {1..200}; do echo $UID >&3 || exit 7; sleep 0.1; done";
        mount.start("setpriv", &["--reuid", &uid, "--regid", &uid, "--clear-groups", "bash", "-c", script])
    };
    let appended = |who: u32| {
        let queue = Queue::open(mount.root().join("q")).unwrap();
        let mut scanner = queue.scan().unwrap();
        let mut count = 0;
        while let Some(entry) = scanner.next().unwrap() {
            if let chronfs::queue::Entry::Message(message) = entry {
                count += u32::from(message.payload == who.to_string().as_bytes());
            }
        }
        count
    };
    // Once the writer is the owner's, once it belongs to the user who loses the right: then the owner gets another one.
    for writers in [[ANN, BOB], [BOB, ANN]] {
        let running = writers.map(|uid| {
            let before = appended(uid);
            let running = append(uid);
            until("it has appended", || appended(uid) > before);
            (uid, running)
        });
        mode(&mount.root().join("q"), 0o755);
        for (uid, running) in running {
            if uid == BOB {
                assert_eq!(running.output().status.code(), Some(7));
            } else {
                let before = appended(ANN);
                until("the owner still appends", || appended(ANN) > before);
            }
        }
        until("the queue is free", || Queue::open(mount.root().join("q")).unwrap().writer().is_ok());
        mode(&mount.root().join("q"), 0o777);
    }
}

#[test]
fn root_has_no_more_power_than_its_process() {
    let Some(mount) = mount(|root| {
        open_queue(&root.join("q"), ANN, b"hello");
        mode(&root.join("q"), 0o700);
        open_queue(&root.join("open"), ANN, b"to all");
    }) else {
        return;
    };
    let weak = "setpriv --bounding-set -all --inh-caps -all --no-new-privs";
    let as_weak = |script: &str| mount.sh(&format!("{weak} bash -c '{script}'"));
    assert_eq!(text(&as_weak("cat .merged/messages.txt").stdout), "to all\n");
    assert!(!text(&as_weak("cat .chronfs/metrics").stdout).contains("\"q\""));
    for script in ["cat q/messages.txt", "echo x > q/append.txt", "mkdir q/readers/r", "ls q", "touch q/READY"] {
        assert!(text(&as_weak(script).stderr).contains("denied"), "{script}");
    }
    assert!(as_weak("echo x > open/append.txt && cat open/messages.txt").status.success());
    // As root of its own namespace, where that is allowed, it has all capabilities, but nothing to use them on.
    let output = as_weak("unshare -Ur cat .merged/messages.txt q/messages.txt");
    assert!(!text(&output.stdout).contains("hello"), "{output:?}");
    assert_eq!(mount.ok("cat q/messages.txt .merged/messages.txt | sort -u"), "hello\nto all\nx\n");
}

#[test]
fn groups_are_those_of_the_opener() {
    let Some(mount) = mount(|root| {
        open_queue(&root.join("q"), ANN, b"hello");
        for name in ["q", "q/control.meta", "q/000000000.q"] {
            chown(root.join(name), None, Some(TEAM)).unwrap();
            mode(&root.join(name), 0o770);
        }
    }) else {
        return;
    };
    denied(&mount, BOB, "cat q/messages.txt");
    assert_eq!(ok(&mount, BOB, "cat .merged/messages.txt"), "");
    let member = format!("--groups {TEAM}");
    let read = |script: &str| text(&run_with(&mount, BOB, &member, script).stdout);
    assert_eq!(read("cat q/messages.txt .merged/messages.txt"), "hello\nhello\n");
    // The process has the same number, and other groups.
    let later = "exec 3< .chronfs/status.json; exec setpriv --clear-groups cat <&3";
    if is_root() {
        let script = format!("setpriv --clear-groups bash -c '{later}'");
        assert!(mount.ok(&script).contains("\"queues\""));
    }
    assert_eq!(read("exec 3< q/messages.txt; cat <&3"), "hello\n");
}

#[test]
fn private_queues_stay_private() {
    let Some(mount) = mount(|root| {
        open_queue(&root.join("q"), ANN, b"hello");
        mode(&root.join("q"), 0o755);
        for name in ["q/control.meta", "q/000000000.q", "q/writer.lock"] {
            mode(&root.join(name), 0o600);
        }
        directory(&root.join("fresh"), ANN, 0o755);
    }) else {
        return;
    };
    let fill = "umask 022; for i in {1..100}; do printf \"%01000d\\n\" $i; done > q/append.txt";
    ok(
        &mount,
        ANN,
        &format!("{fill}; umask 077; echo x > fresh/append.txt; touch fresh/READY; echo -n x > fresh/LEASE"),
    );
    ok(&mount, ANN, "umask 000; mkdir q/readers/x; echo -n again > fresh/LEASE; touch fresh/READY");
    let modes = mount.ok(&format!("cd {} && find q fresh -type f -printf \"%m %u %p\\n\"", mount.root().display()));
    assert!(modes.lines().count() > 7, "{modes}");
    for line in modes.lines().filter(|line| !line.contains(".index/")) {
        assert!(line.starts_with(&format!("600 {ANN} ")), "{line}");
    }
}

#[test]
fn groups_and_modes_of_new_directories_are_the_kernels_business() {
    let Some(mount) = mount(|root| {
        let team = directory(&root.join("team"), ANN, 0o755);
        chown(&team, None, Some(TEAM)).unwrap();
        mode(&team, 0o2775);
    }) else {
        return;
    };
    ok(&mount, ANN, "umask 002; mkdir team/q; echo x > team/q/append.txt; umask 077; mkdir -m 710 team/other");
    for (name, bits) in [("team/q", 0o2775), ("team/other", 0o2710), ("team/q/control.meta", 0o664)] {
        let metadata = fs::metadata(mount.root().join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (ANN, TEAM, bits), "{name}");
    }
}

#[test]
fn what_root_creates_in_somebodys_queue_is_that_users() {
    let Some(mount) = mount(|root| {
        let scratch = directory(&root.join("q"), ANN, 0o755);
        let queue = Queue::create(&scratch, &small()).unwrap();
        queue.add_reader("x").unwrap();
        let mut writer = queue.writer().unwrap();
        for _ in 0..100 {
            writer.append(1, &[b'x'; 1000]).unwrap();
        }
    }) else {
        return;
    };
    mount.ok("for i in {1..100}; do printf \"%01000d\\n\" $i; done > q/append.txt; mkdir q/readers/y; cat q/messages.txt | wc -l");
    let owners = mount.ok(&format!("find {}/q -printf \"%U %p\\n\"", mount.root().display()));
    assert!(owners.lines().count() > 8, "{owners}");
    for line in owners.lines() {
        assert!(line.starts_with(&format!("{ANN} ")), "{line}");
    }
    ok(&mount, ANN, "echo mine > q/append.txt; rmdir q/readers/y");
}

/// What a file system keeps for root.
#[test]
fn reserved_blocks_are_not_for_users() {
    let Some(disk) = Disk::new("ext4", 32) else { return };
    let Some(mount) = mount_with("allow_other,segment_size=64KiB,retain_bytes=none", |root| {
        let bound = Command::new("mount").arg("--bind").args([&disk.mountpoint(), root]).status().unwrap();
        assert!(bound.success());
        mode(root, 0o777);
        directory(&root.join("q"), ANN, 0o755);
    }) else {
        return;
    };
    let room = || rustix::fs::statvfs(mount.root().as_path()).unwrap();
    let reserved = room().f_bfree - room().f_bavail;
    let filled = run(&mount, ANN, "yes $(printf %05000d 0) > q/append.txt");
    let (left, complaint) = (room().f_bfree, text(&filled.stderr));
    detach(&mount.root());
    assert!(complaint.contains("No space left"), "{complaint}");
    assert!(reserved > 0 && left >= reserved, "{left} of {reserved} blocks are left");
}

#[test]
fn symlinks_lead_nowhere_but_inside() {
    let Some(mount) = mount(|root| {
        directory(&root.join("a"), ANN, 0o755);
        file(&root.join("a/inside"), ANN, 0o644, "inside");
        symlink(".", root.join("a/here")).unwrap();
        symlink("here/here/here/../../../../outside", root.join("a/out")).unwrap();
        symlink("../a/here/inside", root.join("a/good")).unwrap();
        file(&root.parent().unwrap().join("outside"), 0, 0o644, "outside");
    }) else {
        return;
    };
    assert_eq!(mount.ok("cat a/good"), "inside");
    mount.fails("cat a/out");
    mount.fails("readlink a/out");
    assert!(!mount.ok("ls a").contains("out"));
}

#[test]
fn other_file_systems_are_entered_only_on_request() {
    if !require(Need::Admin) {
        return;
    }
    let below = |root: &Path| {
        fs::create_dir(root.join("below")).unwrap();
        rustix::mount::mount("tmpfs", root.join("below"), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        fs::create_dir(root.join("below/there")).unwrap();
    };
    for (options, is_crossed) in [("rw", false), ("cross_mounts", true)] {
        let Some(mount) = mount_with(options, below) else { return };
        let output = mount.sh("ls below/there");
        common::detach(&mount.root().join("below"));
        assert_eq!(output.status.success(), is_crossed, "{options}: {}", text(&output.stderr));
    }
}
