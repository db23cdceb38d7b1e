//! Peculiarities of certain file systems. Needs root and loop devices.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::io::Write as _;
use std::process::Command;

use chronfs::queue::{Error, Queue, Settings};

mod common;

use common::need::{Need, require};
use common::{Disk, SMALL, SmallDisk, until};

/// Stores to a mapping of a file there stay in memory and never reach the disk, without an error.
#[test]
fn a_writer_on_a_file_system_that_has_given_up_refuses_work() {
    let Some(disk) = Disk::new("ext4", 64) else { return };
    let queue = Queue::create(disk.mountpoint().join("q"), &SMALL).unwrap();
    let mut writer = queue.writer().unwrap();
    writer.append(1, b"before").unwrap();
    disk.give_up();
    let mut refused = None;
    until("an append is refused", || {
        refused = writer.append(1, b"after").err();
        refused.is_some()
    });
    let error = refused.unwrap();
    let is_said = error.to_string().contains("Read-only file system");
    assert!(matches!(&error, Error::Poisoned { .. }) && is_said, "{error}");
    assert!(writer.append(1, b"after").is_err() && writer.check().is_err(), "and so it stays");
}

/// `cp` shares blocks there by default; then none of them belongs to the queue alone.
#[test]
fn room_that_a_copy_has_taken_is_taken_back_from_it() {
    let Some(disk) = Disk::new("xfs", 320) else { return };
    let settings = Settings { segment_size: 8 << 20, ..SMALL };
    let queue = common::grown(&disk.mountpoint().join("q"), &settings);
    let mut writer = queue.writer().unwrap();
    let files = ["000000000.q", "control.meta"];
    let times = || files.map(|name| queue.path().join(name).metadata().unwrap().modified().unwrap());
    let has_looked =
        |before: [std::time::SystemTime; 2]| times().iter().zip(before).all(|(now, before)| *now != before);
    let mut append_and_wait = || {
        let before = times();
        writer.append(1, &[7; 500]).unwrap();
        until("the writer has looked after its files", || has_looked(before));
    };
    append_and_wait();
    let copied =
        Command::new("cp").args(["-r", "--reflink=always", "q", "copy"]).current_dir(disk.mountpoint()).status();
    assert!(copied.unwrap().success());
    append_and_wait();
    let mut ballast = File::create(disk.mountpoint().join("fill")).unwrap();
    while ballast.write_all(&[1; 64 << 10]).is_ok() {}
    while ballast.write_all(&[1; 512]).is_ok() {}
    ballast.sync_all().ok();
    // To the end of the segment.
    common::append(&mut writer, 14_000, |_| vec![7; 500]);
    writer.flush_sync().unwrap();
    drop(writer);
    assert_eq!(common::count(&queue), 14_002);
}

/// The same file is another one there, and so are its locks.
#[test]
fn a_writer_above_an_overlay_keeps_one_below_it_out() {
    let Some(disk) = SmallDisk::new("8m") else { return };
    if !require(Need::FileSystem("overlay")) {
        return;
    }
    let script = "mkdir lower upper work merged &&
        mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work chronfs-test merged";
    assert!(Command::new("bash").args(["-c", script]).current_dir(disk.root()).status().unwrap().success());
    let above = Queue::create(disk.path("merged/q"), &SMALL).unwrap();
    let mut writer = above.writer().unwrap();
    assert_eq!(writer.append(1, b"above").unwrap(), 1);
    let below = Queue::open(disk.path("upper/q")).unwrap();
    assert!(matches!(below.writer(), Err(Error::Locked { .. })));
    assert_eq!(writer.append(1, b"above").unwrap(), 2);
    drop(writer);
    assert_eq!(below.writer().unwrap().append(1, b"below").unwrap(), 3);
}
