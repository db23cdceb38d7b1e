//! Archivers and restores that are killed at each of their system calls that others see.
use std::path::Path;
use std::process::{Command, Stdio};

use chronfs::Queue;

use crate::common::need::{Need, require};
use crate::common::{Disk, append, payload, text, writer};
use crate::s3::{self, Server};
use crate::shelf::{Archive, SEVERAL, check_same, objects, path, segments, several};

/// Runs a command that is killed at its call number `at` of these. False: it has ended by itself, well.
fn killed(command: &Command, calls: &str, at: usize) -> bool {
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    traced.args(["-e", &format!("inject={calls}:signal=KILL:when={at}")]);
    traced.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    let output = traced.output().unwrap();
    let is_well = output.status.success();
    assert!(is_well || output.status.code().is_none_or(|code| code == 137), "{}", text(&output.stderr));
    !is_well
}

/// Each by itself: strace counts them by thread, and the store's are made on others.
const CALLS: [&str; 11] = [
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "msync",
    "mkdir",
    "linkat",
    "rename",
    "renameat2",
    "unlink",
    "ftruncate",
];

/// Has a command killed at each of its calls, in turn; returns how often it was.
fn kill_everywhere(mut run: impl FnMut(&str, usize) -> bool) -> usize {
    let count = |call: &str, run: &mut dyn FnMut(&str, usize) -> bool| (1..).take_while(|&at| run(call, at)).count();
    CALLS.iter().map(|call| count(call, &mut run)).sum()
}

#[test]
fn an_archiver_killed_at_any_system_call_loses_nothing_and_doubles_nothing() {
    if !require(Need::Strace) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (one, two, store) = (dir.path().join("q"), dir.path().join("copy"), dir.path().join("store"));
    let archive = Archive::dir(&store);
    let queue = several(&one);
    let mut before = objects(&store);
    let kills = kill_everywhere(|call, at| {
        // Always something to do.
        append(&mut writer(&queue), 300, |seq| payload(seq, 300));
        let is_killed = killed(&archive.command(&["run", "--once", path(&one), &archive.url], &[]), call, at);
        let after = objects(&store);
        assert!(before.iter().all(|(path, written)| after.get(path) == Some(written)), "twice, at {call} {at}");
        before = after;
        is_killed
    });
    assert!(kills > 30, "{kills} kills");
    archive.archive(&one);
    let after = objects(&store);
    assert!(before.iter().all(|(path, written)| after.get(path) == Some(written)), "written twice");
    assert_eq!(after.len(), 2 * segments(&one).len());
    let verdict = archive.json(&["verify", &archive.url, path(&one)], &[]);
    assert_eq!(verdict["equal"], segments(&one).len());
    archive.restore(&two, &[]);
    assert_eq!(check_same(&one, &two), segments(&one).len());
    println!("{kills} kills, {} objects", after.len());
}

#[test]
fn a_restore_killed_at_any_system_call_leaves_a_whole_queue_or_none() {
    if !require(Need::Strace) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("q"), dir.path().join("copy"));
    let archive = Archive::dir(&dir.path().join("store"));
    several(&one);
    archive.archive(&one);
    let whole = |restored: &Path| assert_eq!(check_same(&one, restored), segments(&one).len());
    let kills = kill_everywhere(|call, at| {
        let is_killed = killed(&archive.command(&["restore", &archive.url, path(&two)], &[]), call, at);
        if two.exists() {
            whole(&two);
            std::fs::remove_dir_all(&two).unwrap();
        }
        is_killed
    });
    assert!(kills > 30, "{kills} kills");
    archive.restore(&two, &[]);
    whole(&two);
    println!("{kills} kills");
}

#[test]
fn an_archiver_killed_beside_an_s3_server_writes_nothing_twice() {
    if !s3::is_there() || !require(Need::Strace) {
        return;
    }
    const CALLS: &str = "write,writev,sendto,sendmsg,recvfrom,fsync,msync,rename";
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("server.log"));
    let archive = server.archive(&dir.path().join("s3.env"));
    let (one, two) = (dir.path().join("q"), dir.path().join("copy"));
    let queue = several(&one);
    let mut kills = 0;
    for at in (1..).step_by(2) {
        append(&mut writer(&queue), 300, |seq| payload(seq, 300));
        if !killed(&archive.command(&["run", "--once", path(&one), &archive.url], &[]), CALLS, at) {
            break;
        }
        kills += 1;
    }
    assert!(kills > 5, "{kills} kills");
    archive.archive(&one);
    assert_eq!(server.check_once(), 2 * segments(&one).len());
    archive.restore(&two, &[]);
    assert_eq!(check_same(&one, &two), segments(&one).len());
    println!("{kills} kills, {} objects", server.puts().len());
}

/// Else the queue would use a segment's number again that the archive has.
#[test]
fn what_is_archived_survives_a_power_cut_of_the_queue() {
    let Some(disk) = Disk::new("ext4", 64) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (disk.mountpoint().join("q"), dir.path().join("copy"));
    let archive = Archive::dir(&dir.path().join("store"));
    let queue = several(&one);
    archive.archive(&one);
    let archived = segments(&one);
    drop(queue);
    disk.cut(false);
    disk.mount_again();
    let left = segments(&one);
    assert!(archived.iter().all(|(name, bytes)| left.get(name) == Some(bytes)), "{:?}", left.keys());
    let queue = Queue::open(&one).unwrap();
    append(&mut writer(&queue), SEVERAL, |seq| payload(seq, 300));
    archive.archive(&one);
    archive.restore(&two, &[]);
    assert_eq!(check_same(&one, &two), segments(&one).len());
    assert!(segments(&one).len() > archived.len());
}
