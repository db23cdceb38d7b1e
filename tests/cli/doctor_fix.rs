//! `doctor --fix` in directories that others may write to: it follows no link, enters no other file system, and moves
//! only what it has examined.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::common::need::{Need, require};
use super::{Bus, code, stderr};

/// A leftover file, two minutes old.
fn leave(bus: &Bus, file: &str) {
    fs::write(bus.path(file), file).unwrap();
    let output = Command::new("touch").args(["-d", "2 minutes ago"]).arg(bus.path(file)).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

/// A bus in `bus/`, and `elsewhere/` with a file that must not be moved.
fn site() -> Bus {
    let bus = Bus::new();
    bus.numbered("bus/q", 1);
    fs::create_dir(bus.path("bus/q/readers")).unwrap();
    fs::create_dir(bus.path("bus/plain")).unwrap();
    fs::create_dir(bus.path("elsewhere")).unwrap();
    leave(&bus, "elsewhere/private.tmp");
    bus
}

fn names(bus: &Bus, dir: &str) -> Vec<String> {
    let entries = fs::read_dir(bus.path(dir)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn links_instead_of_directories_are_not_followed() {
    let bus = site();
    leave(&bus, "bus/q/readers/evil.tmp");
    leave(&bus, "bus/q/.READY.x.tmp");
    leave(&bus, "bus/plain/.LEASE.x.tmp");
    symlink(bus.path("elsewhere"), bus.path("bus/q/.aside")).unwrap();
    symlink(bus.path("elsewhere"), bus.path("bus/plain/.aside")).unwrap();
    let output = bus.run(&["doctor", "--fix", "bus"]);
    let said = stderr(&output);
    assert_eq!(said.matches("cannot move it aside").count(), 3, "{said}");
    assert_eq!(names(&bus, "elsewhere"), ["private.tmp"]);
    assert_eq!(names(&bus, "bus/q/readers"), ["evil.tmp"]);

    for dir in ["bus/q", "bus/plain"] {
        fs::remove_file(bus.path(dir).join(".aside")).unwrap();
    }
    fs::remove_dir_all(bus.path("bus/q/readers")).unwrap();
    symlink(bus.path("elsewhere"), bus.path("bus/q/readers")).unwrap();
    symlink(bus.path("elsewhere"), bus.path("bus/more")).unwrap();
    bus.run(&["doctor", "--fix", "bus"]);
    assert_eq!(names(&bus, "elsewhere"), ["private.tmp"]);
    assert_eq!(names(&bus, "bus/q/.aside"), [".READY.x.tmp"]);
}

/// The readers' directory is alternately a directory and a link to somewhere else, in quick succession.
#[test]
fn exchanging_directories_gains_nothing() {
    let bus = site();
    leave(&bus, "bus/q/readers/private.tmp");
    symlink(bus.path("elsewhere"), bus.path("bus/q/link")).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let [readers, link] = ["bus/q/readers", "bus/q/link"].map(|name| bus.path(name));
            while !over.load(Ordering::Relaxed) {
                let _ = renameat_with(CWD, &readers, CWD, &link, RenameFlags::EXCHANGE);
            }
        });
        for _ in 0..60 {
            bus.run(&["doctor", "--fix", "bus"]);
            if !bus.path("elsewhere/private.tmp").exists() {
                break;
            }
            // Moved aside, it would not be found again.
            let aside = bus.path("bus/q/.aside/private.tmp");
            if fs::read_to_string(&aside).is_ok_and(|text| text.starts_with("bus")) {
                let _ = renameat_with(CWD, &aside, CWD, bus.path("bus/q/readers/private.tmp"), RenameFlags::NOREPLACE);
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(names(&bus, "elsewhere"), ["private.tmp"]);
}

#[test]
fn files_that_root_moves_keep_their_owner() {
    if !require(Need::Root) {
        return;
    }
    let bus = site();
    leave(&bus, "bus/q/readers/left.tmp");
    for path in ["bus/q", "bus/q/readers", "bus/q/readers/left.tmp"] {
        chown(bus.path(path), Some(4242), Some(4343)).unwrap();
    }
    let output = bus.run(&["doctor", "--fix", "bus"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    for path in ["bus/q/.aside", "bus/q/.aside/left.tmp"] {
        let metadata = fs::metadata(bus.path(path)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (4242, 4343), "{path}");
    }

    // Another user's directory in that place is left alone: a file put there might mean something there.
    leave(&bus, "bus/q/readers/left.tmp");
    fs::remove_dir_all(bus.path("bus/q/.aside")).unwrap();
    fs::create_dir(bus.path("bus/q/.aside")).unwrap();
    let output = bus.run(&["doctor", "--fix", "bus"]);
    assert!(stderr(&output).contains(".aside and its parent directory have different owners"), "{}", stderr(&output));
    assert_eq!(fs::read_dir(bus.path("bus/q/.aside")).unwrap().count(), 0);
}

#[test]
fn another_file_system_below_is_reported_and_not_entered() {
    if !require(Need::Admin) {
        return;
    }
    let bus = site();
    // In its own mount namespace, with which the mount goes away.
    let script = format!("mount -t tmpfs none bus/plain && exec {} doctor bus", super::PROGRAM);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]).current_dir(bus.0.path());
    let output = command.output().unwrap();
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert!(stderr(&output).contains("bus/plain: another file system is mounted there"), "{}", stderr(&output));
}
