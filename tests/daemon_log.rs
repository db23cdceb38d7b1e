//! The daemon's log: it says why something failed, only to those who may know, and no user can flood it.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use common::need::{Need, require};
use common::{TestMount, detach, until};

/// A queue that can't be opened.
fn damaged(root: &Path) {
    std::fs::create_dir(root.join("b")).unwrap();
    std::fs::write(root.join("b/control.meta"), "x").unwrap();
    std::fs::write(root.join("b/000000000.q"), "x").unwrap();
}

/// Opens a file this many times; it fails each time.
fn loop_of_errors(path: &str, count: usize) -> String {
    format!(
        "python3 - <<'E'
for _ in range({count}):
    try: open('{path}')
    except OSError as e: assert e.errno == 5, e
    else: assert False
E"
    )
}

fn lines<'a>(log: &'a str, needle: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(needle)).collect()
}

#[test]
fn an_input_output_error_is_explained() {
    let Some(mount) = TestMount::over(damaged, "rw") else { return };
    assert_eq!(mount.ok("cat .chronfs/log"), "");
    assert!(mount.fails("cat b/messages.txt").contains("Input/output error"));
    let log = mount.ok("cat .chronfs/log");
    let said = lines(&log, &format!(" warn  lookup {}/b/messages.txt: EIO: ", mount.mountpoint().display()));
    assert!(!said.is_empty(), "{log}");
    let reason = format!("{}/b", mount.root().display());
    assert!(said[0].contains(&reason) && said[0].contains("damaged"), "{log}");
    let uid = rustix::process::geteuid().as_raw();
    assert!(said[0].contains(&format!("(uid {uid}, pid ")), "{log}");
}

#[test]
fn a_message_that_is_damaged_is_named_and_not_shown() {
    let Some(mount) = TestMount::new() else { return };
    mount.ok("mkdir q; for n in 1 2 3; do echo secret$n >> q/append.txt; done; cat q/messages.bin");
    let segment = mount.root().join("q/000000000.q");
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(7).position(|window| window == b"secret2").unwrap();
    bytes[at] = b'S';
    std::fs::write(&segment, bytes).unwrap();
    mount.fails("cat q/messages.bin");
    let log = mount.ok("cat .chronfs/log");
    assert!(log.contains("/q/messages.bin: EIO: messages 2 to 2 are missing (checksum, "), "{log}");
    assert!(!log.contains("ecret"), "{log}");
}

#[test]
fn ordinary_errors_are_logged_where_that_is_asked_for() {
    let fails = "cat nothing; cat q/nothing; mkdir q; touch q/x";
    let Some(mount) = TestMount::with_options("log=debug") else { return };
    mount.ok("mkdir q; echo x > q/append.txt");
    mount.fails(fails);
    let log = mount.ok("cat .chronfs/log");
    assert!(lines(&log, " warn ").is_empty() && lines(&log, "nothing").is_empty(), "{log}");
    assert!(log.contains(" debug create ") && log.contains("/q/x: EPERM"), "{log}");
    let Some(mount) = TestMount::with_options("log=trace") else { return };
    mount.fails(fails);
    let log = mount.ok("cat .chronfs/log");
    assert!(log.contains(" trace lookup ") && log.contains("/nothing: ENOENT"), "{log}");
    assert!(log.contains(" info  ") && log.contains("mounted, of "), "{log}");
    assert!(lines(&log, "FUSE").is_empty(), "{log}");
}

#[test]
fn a_message_that_is_too_long_is_explained() {
    let Some(mount) = TestMount::with_options("log=debug,segment_size=64KiB") else { return };
    mount.ok("mkdir q; echo x > q/append.txt");
    for file in ["append.bin", "append.txt"] {
        mount.fails(&format!("head -c 100000 /dev/zero > q/{file}"));
        let said =
            format!("/q/{file}: EMSGSIZE: longer than this queue takes; to let it take more: chron-cli set QUEUE ");
        let log = mount.ok("cat .chronfs/log");
        assert!(log.contains(&said), "{log}");
    }
}

#[test]
fn a_loop_of_errors_is_counted() {
    let Some(mount) = TestMount::over(damaged, "rw") else { return };
    mount.ok(&loop_of_errors("b/messages.txt", 10_000));
    let log = mount.ok("cat .chronfs/log");
    assert!(log.lines().count() <= 20, "{log}");
    let summary = lines(&log, "more like this within a minute: lookup ");
    let count = |line: &str| line.split("  ").nth(1).unwrap().split(' ').next().unwrap().parse::<usize>().unwrap();
    let left_out: usize = summary.iter().map(|line| count(line)).sum();
    assert!(left_out >= 9_000, "{log}");
}

#[test]
fn in_the_foreground_it_is_on_stderr_and_at_the_end_what_was_left_out() {
    let Some(mut mount) = TestMount::over(damaged, "rw") else { return };
    let scratch = tempfile::tempdir().unwrap();
    let said = scratch.path().join("stderr");
    detach(&mount.mountpoint());
    let _ = mount.daemon().wait();
    mount.mount_limited("log=info", &["bash", "-c", "exec 2> \"$0\"; exec \"$@\"", said.to_str().unwrap()]);
    mount.ok(&loop_of_errors("b/messages.txt", 100));
    detach(&mount.mountpoint());
    until("the daemon ends", || mount.daemon().try_wait().unwrap().is_some());
    let said = std::fs::read_to_string(said).unwrap();
    let warnings = lines(&said, "/b/messages.txt: EIO: ");
    assert!((1..=20).contains(&warnings.len()) && warnings[0].contains(" warn  lookup "), "{said}");
    let order = ["mounted, of ", "/b/messages.txt: EIO: ", "more like this within a minute: ", ": unmounted"];
    let places = order.map(|words| said.find(words).unwrap_or_else(|| panic!("{words}: {said}")));
    assert!(places[0] < places[1] && places[1] < places[2], "{said}");
}

#[test]
fn names_are_escaped() {
    let Some(mount) = TestMount::over(damaged, "rw") else { return };
    let queue = mount.root().join("x\n\u{1b}[31m");
    std::fs::create_dir(&queue).unwrap();
    std::fs::copy(mount.root().join("b/control.meta"), queue.join("control.meta")).unwrap();
    mount.fails("cat $'x\\n\\e[31m'/messages.txt");
    let log = mount.ok("cat .chronfs/log");
    assert!(log.contains("/x\\n\\u{1b}[31m/messages.txt: "), "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
}

#[test]
fn it_is_for_the_owner_of_the_root() {
    const OWNER: u32 = 4_210;
    let as_user = |uid: u32, file: &str| format!("setpriv --reuid={uid} --regid={uid} --clear-groups cat {file}");
    if !require(Need::Root) {
        return;
    }
    let prepare = |root: &Path| {
        damaged(root);
        chown(root, Some(OWNER), Some(OWNER)).unwrap();
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(root.parent().unwrap(), std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let Some(mount) = TestMount::over(prepare, "allow_other") else { return };
    mount.fails("cat b/messages.txt");
    let log = std::fs::metadata(mount.mountpoint().join(".chronfs/log")).unwrap();
    assert_eq!((log.mode() & 0o7777, log.uid()), (0o400, OWNER));
    mount.ok(&as_user(OWNER + 1, ".chronfs/version"));
    let refused = mount.fails(&as_user(OWNER + 1, ".chronfs/log"));
    assert!(refused.contains("Permission denied"), "{refused}");
    for reader in [as_user(OWNER, ".chronfs/log"), "cat .chronfs/log".to_owned()] {
        assert!(mount.ok(&reader).contains("/b/messages.txt: EIO: "), "{reader}");
    }
    // A process that inherits an open descriptor can read it.
    let given = format!("exec 3< .chronfs/log; {} <&3", as_user(OWNER + 1, ""));
    assert!(mount.ok(&given).contains("/b/messages.txt: EIO: "));
}

#[test]
fn a_user_who_holds_too_much_is_named() {
    if !require(Need::Root) {
        return;
    }
    let Some(mut mount) = TestMount::with_options("allow_other") else { return };
    detach(&mount.mountpoint());
    let _ = mount.daemon().wait();
    mount.mount_limited("allow_other", &["prlimit", "--nofile=200"]);
    std::fs::set_permissions(mount.root().parent().unwrap(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let open = "setpriv --reuid=4210 --regid=4210 --clear-groups bash -c 'ulimit -n 1024
        for n in {10..200}; do eval \"exec $n< .chronfs/version\" || exit 0; done 2> /dev/null; exit 1'";
    mount.sh(open);
    let log = mount.ok("cat .chronfs/log");
    assert!(log.contains("/.chronfs/version: ENFILE: user 4210 has "), "{log}");
}

#[test]
fn a_plain_user_can_do_all_of_this() {
    common::plain_user::run_tests_again("a_plain_user_can_do_all_of_this");
}
