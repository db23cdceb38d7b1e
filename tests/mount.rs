//! The life of a mount: how it starts, how it ends, and what happens when one side dies.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use common::need::{Need, require};
use common::{TestMount, chron_cli, detach, is_mounted, text, until, wait};

#[test]
fn a_mount_says_what_it_is() {
    let Some(mount) = TestMount::new() else { return };
    let shown = mount.ok("findmnt -n -o FSTYPE,SOURCE -M .");
    assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), ["fuse.chronfs", mount.root().to_str().unwrap()]);
    assert!(mount.ok("findmnt -n -o OPTIONS -M .").contains("default_permissions"));
    let [ours, backing] = [mount.mountpoint(), mount.root()].map(|path| {
        let output = std::process::Command::new("stat").args(["-f", "-c", "%b"]).arg(path).output().unwrap();
        text(&output.stdout)
    });
    assert_eq!(ours, backing, "statfs shows the file system underneath");
}

#[test]
fn the_command_returns_when_the_mount_is_usable_and_otherwise_says_why() {
    let Some(mut mount) = TestMount::new() else { return };
    let (root, mountpoint) = (mount.root(), mount.mountpoint());
    let again = chron_cli().arg("mount").args([&root, &mountpoint]).output().unwrap();
    assert!(!again.status.success() && text(&again.stderr).contains("already mounted"), "{again:?}");

    let status = chron_cli().arg("umount").arg(&mountpoint).status().unwrap();
    assert!(status.success());
    wait(mount.daemon());
    std::fs::write(root.join("proof"), "here").unwrap();
    let detached = chron_cli().arg("mount").args([&root, &mountpoint]).output().unwrap();
    assert!(detached.status.success(), "{detached:?}");
    assert_eq!(mount.ok("cat proof"), "here");
    assert!(chron_cli().arg("umount").arg(&mountpoint).status().unwrap().success());
    assert!(!is_mounted(&mountpoint));

    for (root, mountpoint, complaint) in [
        (root.join("proof"), mountpoint.clone(), "not a directory"),
        (root.join("nothing"), mountpoint.clone(), "No such file"),
        (root.clone(), root.join("proof"), "not a directory"),
        (root.clone(), root.clone(), "contains the other"),
        (root.clone(), root.parent().unwrap().to_path_buf(), "contains the other"),
    ] {
        let output = chron_cli().arg("mount").args([&root, &mountpoint]).output().unwrap();
        let complained = text(&output.stderr);
        assert!(!output.status.success() && complained.contains(complaint), "{root:?} {mountpoint:?}: {complained}");
        assert_eq!(complained.lines().count(), 1, "{complained}");
        assert!(!is_mounted(&mountpoint));
    }
    let output = chron_cli().arg("mount").args([&root, &mountpoint]).args(["-o", "nonsense"]).output().unwrap();
    assert!(!output.status.success() && text(&output.stderr).contains("nonsense"));
    std::fs::create_dir(root.join("inside")).unwrap();
    let output = chron_cli().arg("mount").arg(&root).arg(root.join("inside")).output().unwrap();
    assert!(!output.status.success() && text(&output.stderr).contains("contains the other"));
}

#[test]
fn a_dead_mount_is_replaced() {
    let Some(mut mount) = TestMount::new() else { return };
    for _ in 0..3 {
        mount.daemon().kill().unwrap();
        mount.daemon().wait().unwrap();
        let error = std::fs::metadata(mount.mountpoint()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
        mount.mount_again("rw");
        mount.ok("ls");
    }
    mount.daemon().kill().unwrap();
    mount.daemon().wait().unwrap();
    let status = chron_cli().arg("umount").arg(mount.mountpoint()).status().unwrap();
    assert!(status.success(), "a dead mount can be unmounted");
    assert!(!is_mounted(&mount.mountpoint()));
}

#[test]
fn a_dead_mount_of_something_else_is_left_alone() {
    if !require(Need::Admin) || !require(Need::Mount) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let [root, mountpoint] = ["root", "mnt"].map(|name| scratch.path().join(name));
    std::fs::create_dir(&root).unwrap();
    std::fs::create_dir(&mountpoint).unwrap();
    // Dead from the start: nothing has the device open once the shell has exited.
    let script = "mount -i -t fuse.other -o fd=9,rootmode=40000,user_id=0,group_id=0 other \"$0\" 9<> /dev/fuse";
    assert!(std::process::Command::new("bash").args(["-c", script]).arg(&mountpoint).status().unwrap().success());
    let output = chron_cli().arg("mount").args([&root, &mountpoint]).output().unwrap();
    let stays = is_mounted(&mountpoint);
    common::detach(&mountpoint);
    let complained = text(&output.stderr);
    assert!(stays && !output.status.success() && complained.contains("fuse.other, not chronfs"), "{complained}");
}

#[test]
fn only_mounts_of_chronfs_are_unmounted() {
    if !require(Need::Admin) || !require(Need::Mount) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = |on: bool| {
        let mut command = std::process::Command::new(if on { "mount" } else { "umount" });
        if on {
            command.args(["-t", "tmpfs", "tmpfs"])
        } else {
            command.arg("-l")
        };
        command.arg(dir.path()).status().unwrap().success()
    };
    assert!(mount(true));
    let output = chron_cli().arg("umount").arg(dir.path()).output().unwrap();
    let stays = is_mounted(dir.path());
    assert!(mount(false));
    let complained = text(&output.stderr);
    assert!(stays && !output.status.success() && complained.contains("tmpfs, not chronfs"), "{complained}");
    let output = chron_cli().arg("umount").arg(dir.path()).output().unwrap();
    assert!(text(&output.stderr).contains("not mounted"), "{output:?}");
}

#[test]
fn signals_unmount_cleanly() {
    for signal in ["INT", "TERM", "HUP"] {
        let Some(mut mount) = TestMount::new() else { return };
        common::signal_to(mount.daemon().id(), signal);
        wait(mount.daemon());
        assert!(mount.daemon().wait().unwrap().success(), "{signal}");
        assert!(!is_mounted(&mount.mountpoint()));
    }
}

#[test]
fn unmounting_ends_blocked_readers() {
    type Unmount = fn(&mut TestMount);
    let ways: [(&str, Unmount); 3] = [
        ("chron-cli umount", |mount| {
            assert!(chron_cli().arg("umount").arg(mount.mountpoint()).status().unwrap().success());
        }),
        ("SIGTERM", |mount| common::signal_to(mount.daemon().id(), "TERM")),
        ("umount -l", |mount| detach(&mount.mountpoint())),
    ];
    for (way, unmount) in ways {
        let Some(mut mount) = TestMount::new() else { return };
        mount.ok("mkdir q && echo first > q/append.txt");
        let readers: Vec<_> = (0..50).map(|_| mount.start("cat", &["q/follow.txt"])).collect();
        readers.iter().for_each(|reader| mount.wait_until_blocked(reader));
        unmount(&mut mount);
        for reader in readers {
            let output = reader.output();
            // Not an end of file.
            let complained = text(&output.stderr);
            assert!(complained.contains("endpoint is not connected"), "{way}: {output:?}");
        }
        wait(mount.daemon());
        assert!(mount.daemon().wait().unwrap().success(), "{way}");
        assert!(!is_mounted(&mount.mountpoint()));
    }
}

#[test]
fn fusermount3_unmounts_what_is_not_busy() {
    let Some(mut mount) = TestMount::new() else { return };
    mount.ok("mkdir q && echo first > q/append.txt");
    let reader = mount.start("cat", &["q/follow.txt"]);
    mount.wait_until_blocked(&reader);
    let unmount = || std::process::Command::new("fusermount3").arg("-u").arg(mount.mountpoint()).output().unwrap();
    let complained = text(&unmount().stderr);
    assert!(complained.contains("busy"), "{complained}");
    drop(reader);
    until("it is no longer busy", || unmount().status.success());
    wait(mount.daemon());
}

#[test]
fn a_copy_in_another_namespace_goes_on() {
    if !require(Need::Admin) {
        return;
    }
    let Some(mut mount) = TestMount::new() else { return };
    mount.ok("mkdir q && echo first > q/append.txt");
    let script = "echo copied; read; exec head -n 1 q/follow.txt";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash", "-c", script]).current_dir(mount.mountpoint());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 7];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    detach(&mount.mountpoint());
    // The mountpoint is free, but the copy is in use.
    child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    let reader = common::Running::new(child);
    mount.wait_until_blocked(&reader);
    let queue = chronfs::Queue::open(mount.root().join("q")).unwrap();
    common::writer(&queue).append(1, b"second").unwrap();
    let output = reader.output();
    assert_eq!(text(&output.stdout), "second\n", "{output:?}");
    // That was the last.
    wait(mount.daemon());
}

#[test]
fn a_busy_mount_goes_away_all_the_same() {
    let Some(mut mount) = TestMount::over(|root| std::fs::write(root.join("file"), "x").unwrap(), "rw") else { return };
    // Holds a file and the directory itself.
    let holder = mount.start("bash", &["-c", "exec 5< file; echo held; exec sleep 60"]);
    until("the file is held", || {
        std::fs::read_link(format!("/proc/{}/fd/5", holder.id())).is_ok_and(|path| path.ends_with("file"))
    });
    common::signal_to(mount.daemon().id(), "TERM");
    wait(mount.daemon());
    assert!(!is_mounted(&mount.mountpoint()));
}

#[test]
fn a_root_that_is_replaced_is_stale_and_not_followed() {
    let Some(mount) = TestMount::over(|root| std::fs::create_dir(root.join("a")).unwrap(), "rw") else { return };
    let errno = |path: &str| std::fs::read_dir(mount.mountpoint().join(path)).err().and_then(|e| e.raw_os_error());
    assert_eq!(errno("a"), None);
    let moved = mount.root().with_file_name("moved");
    std::fs::rename(mount.root(), &moved).unwrap();
    assert_eq!(errno("a"), Some(libc::ESTALE));
    std::fs::create_dir_all(mount.root().join("secret")).unwrap();
    assert_eq!([errno(""), errno("a"), errno("secret")], [Some(libc::ESTALE); 3]);
    std::fs::remove_dir_all(mount.root()).unwrap();
    assert_eq!(errno(""), Some(libc::ESTALE));
    std::fs::rename(&moved, mount.root()).unwrap();
    assert_eq!(errno("a"), None);
}

#[test]
fn plain_directories_are_mirrored() {
    let prepare = |root: &std::path::Path| {
        std::fs::create_dir_all(root.join("notes/deep")).unwrap();
        std::fs::write(root.join("notes/today.md"), "text\n").unwrap();
        std::os::unix::fs::symlink("today.md", root.join("notes/link")).unwrap();
        std::os::unix::fs::symlink("../../outside", root.join("notes/up")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("notes/absolute")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(root.join("notes/fifo")).status().unwrap().success());
    };
    let Some(mount) = TestMount::over(prepare, "rw") else { return };
    assert_eq!(mount.ok("ls notes"), "deep\nlink\ntoday.md\n");
    assert_eq!(mount.ok("cat notes/today.md notes/link"), "text\ntext\n");
    for script in ["cat notes/absolute", "cat notes/up", "cat notes/fifo", "ls notes/nothing"] {
        assert!(mount.fails(script).contains("No such file"), "{script}");
    }
    for (script, complaint) in [
        ("echo x >> notes/today.md", "Permission denied"),
        ("echo x > notes/new", "Operation not permitted"),
        ("rm -f notes/today.md", "Operation not permitted"),
        ("mv notes/today.md notes/other", "Operation not permitted"),
        ("ln -s x notes/new", "Operation not permitted"),
        ("ln notes/today.md notes/new", "Operation not permitted"),
        ("mkfifo notes/new", "Operation not permitted"),
        ("chmod 777 notes/today.md", "Operation not permitted"),
        ("chown 7 notes/today.md", "Operation not permitted"),
        ("mkdir notes", "File exists"),
        ("mkdir $(printf 'x%.0s' {1..256})", "File name too long"),
        ("mkdir $(printf 'x%.0s' {1..129})", "File name too long"),
        ("mkdir 000000000.q", "Invalid argument"),
        ("mkdir control.meta", "Invalid argument"),
        ("mkdir append.txt", "File exists"),
        ("mkdir $'new\\nline'", "Invalid argument"),
        ("mkdir $'\\xff'", "Invalid argument"),
        ("mkdir .hidden", "Invalid argument"),
        ("ls $(printf 'x%.0s' {1..256})", "File name too long"),
        ("rmdir notes", "Directory not empty"),
        ("rmdir notes/today.md", "Not a directory"),
    ] {
        let complained = mount.fails(script);
        assert!(complained.contains(complaint), "{script}: {complained}");
    }
    mount.ok("mkdir -p made/here && mkdir -m 751 made/there");
    assert_eq!(std::fs::metadata(mount.root().join("made/there")).unwrap().mode() & 0o7777, 0o751);
    mount.ok("rmdir made/here");
    assert!(!mount.root().join("made/here").exists());
    // What happens natively shows.
    std::fs::create_dir(mount.root().join("native")).unwrap();
    mount.ok("test -d native");
}

#[test]
fn ready_works_in_any_directory() {
    let Some(mount) = TestMount::new() else { return };
    mount.ok("mkdir endpoint");
    assert!(mount.fails("cat endpoint/READY").contains("No such file"));
    assert!(mount.fails("rm endpoint/READY").contains("No such file"));
    mount.ok("touch endpoint/READY");
    assert_eq!(mount.ok("ls endpoint"), "READY\n");
    assert_eq!(mount.ok("jq -r .comm endpoint/READY"), "touch\n");
    let ready = chronfs::bus::ready(mount.root().join("endpoint")).unwrap().unwrap();
    assert!(ready.pid.is_some());
    let size = mount.ok("stat -c %s endpoint/READY");
    assert_eq!(size, mount.ok("wc -c < endpoint/READY"));
    // Marking again renews.
    mount.ok("touch endpoint/READY");
    assert!(chronfs::bus::ready(mount.root().join("endpoint")).unwrap().unwrap().timestamp_ns > ready.timestamp_ns);
    mount.ok("rm endpoint/READY");
    assert_eq!(chronfs::bus::ready(mount.root().join("endpoint")).unwrap(), None);
    chronfs::bus::mark_ready(mount.root().join("endpoint")).unwrap();
    mount.ok("test -e endpoint/READY");
    chronfs::bus::unmark_ready(mount.root().join("endpoint")).unwrap();
    mount.ok("test ! -e endpoint/READY");
    mount.ok(": > endpoint/READY; test -e endpoint/READY");
    // A marked directory can still become a queue.
    mount.ok("echo hello > endpoint/append.txt");
    assert_eq!(mount.ok("cat endpoint/messages.txt"), "hello\n");
    assert_eq!(mount.ok("jq .ready endpoint/status.json"), "true\n");
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let prepare = |root: &std::path::Path| {
        let queue = chronfs::Queue::create(root.join("q"), &chronfs::queue::Settings::default()).unwrap();
        queue.writer().unwrap().append(1, b"hello").unwrap();
        queue.add_reader("alice").unwrap();
    };
    let Some(mount) = TestMount::over(prepare, "ro") else { return };
    assert_eq!(mount.ok("cat q/messages.txt"), "hello\n");
    for script in [
        "echo x > q/append.txt",
        "mkdir new",
        "touch q/READY",
        "mkdir q/readers/bob",
        "rmdir q/readers/alice",
        "echo 1 > q/readers/alice/position",
        "cat q/readers/alice/take.txt",
    ] {
        assert!(mount.fails(script).contains("Read-only file system"), "{script}");
    }
    assert_eq!(mount.ok("cat q/readers/alice/position"), "1\n");
}

#[test]
fn a_second_user_sees_what_the_backing_modes_allow() {
    use std::os::unix::fs::{PermissionsExt, chown};

    if !require(Need::Root) {
        return;
    }
    let prepare = |root: &std::path::Path| {
        for (name, mode) in
            [("open", 0o755), ("closed", 0o700), ("shared", 0o777), ("common", 0o777), ("sealed", 0o755)]
        {
            let dir = root.join(name);
            let queue = chronfs::Queue::create(&dir, &chronfs::queue::Settings::default()).unwrap();
            queue.writer().unwrap().append(1, b"hello").unwrap();
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        for name in ["shared/control.meta", "sealed/000000000.q"] {
            std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        for name in ["control.meta", "000000000.q", "writer.lock"] {
            let path = root.join("common").join(name);
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).unwrap();
        }
        // The files differ in group and owner.
        for (name, mode, control, segments) in
            [("group", 0o640, 65534, 0), ("wide", 0o640, 0, 65534), ("later", 0o644, 0, 0)]
        {
            let settings = chronfs::queue::Settings { segment_size: 64 << 10, ..Default::default() };
            let mut writer = chronfs::Queue::create(root.join(name), &settings).unwrap().writer().unwrap();
            for _ in 0..100 {
                writer.append(1, &[b'x'; 1000]).unwrap();
            }
            drop(writer);
            chown(root.join(name).join("control.meta"), None, Some(control)).unwrap();
            for segment in ["000000000.q", "000000001.q"].map(|segment| root.join(name).join(segment)) {
                chown(&segment, None, Some(segments)).unwrap();
                std::fs::set_permissions(&segment, std::fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        std::fs::set_permissions(root.join("later/000000001.q"), std::fs::Permissions::from_mode(0o600)).unwrap();
        for name in ["theirs", "rolling"] {
            std::fs::create_dir(root.join(name)).unwrap();
            chown(root.join(name), Some(65534), Some(65534)).unwrap();
        }
        let above = root.parent().unwrap();
        std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let Some(mount) = TestMount::over(prepare, "allow_other,segment_size=64KiB") else { return };
    let other = |script: &str| format!("setpriv --reuid 65534 --regid 65534 --clear-groups bash -c '{script}'");
    assert_eq!(mount.ok(&other("cat open/messages.txt")), "hello\n");
    mount.ok(&other("grep -q x wide/messages.txt && cat wide/messages/1"));
    for script in [
        "cat group/messages.txt",
        "cat group/since/1/follow.txt",
        "cat later/messages.txt",
        "cat closed/messages.txt",
        "echo x > open/append.txt",
        "echo x > shared/append.txt",
        "cat shared/messages.txt",
        "cat shared/follow.txt",
        "cat sealed/messages.txt",
        "cat sealed/messages/1",
        "cat sealed/segments/*",
        "touch open/READY",
        "mkdir open/readers/me",
        "mkdir new",
    ] {
        let complained = mount.fails(&other(script));
        assert!(complained.contains("Permission denied"), "{script}: {complained}");
    }
    assert_eq!(mount.ok(&other("cut -c 1-9 .merged/messages.txt | sort -u")), "hello\nxxxxxxxxx\n");
    assert_eq!(mount.ok(&other("wc -l < .merged/messages.txt")), "102\n");
    mount.ok(&other("echo x > common/append.txt"));
    mount.ok(&other("touch theirs/READY && echo mine > theirs/append.txt && mkdir theirs/readers/me"));
    for name in ["READY", "control.meta", "000000000.q", "readers", "readers/me.meta"] {
        let metadata = std::fs::metadata(mount.root().join("theirs").join(name)).unwrap();
        assert_eq!(metadata.uid(), 65534, "{name} belongs to its creator");
    }
    assert_eq!(mount.ok(&other("cat theirs/messages.txt")), "mine\n");
    // A user who may write to a queue's directory may register readers, renew another user's marker, and remove it.
    let shared = "mkdir shared/readers/one shared/readers/two && echo +0 > shared/readers/two/position && \
                  rmdir shared/readers/one && touch shared/READY && echo mine > shared/LEASE && \
                  rm shared/READY shared/LEASE";
    mount.ok("touch shared/READY; echo theirs > shared/LEASE");
    mount.ok(&other(shared));
    // Segments that are created while they write are theirs at once, not only at the end.
    let rolls = "exec 5> rolling/append.txt; for i in {1..300}; do printf %01000d 0 >&5; echo >&5; done; \
                 echo last >&5; stat -c \"%u %n\" $ROOT/rolling/*.q";
    let shown = mount.ok(&format!("export ROOT={}; {}", mount.root().display(), other(rolls)));
    let segments: Vec<_> = shown.lines().collect();
    assert!(
        segments.len() > 4 && segments[..segments.len() - 1].iter().all(|line| line.starts_with("65534 ")),
        "{shown}"
    );
    // Without allow_other no other user has access.
    let Some(mount) = TestMount::new() else { return };
    assert!(mount.fails(&other("cd / && ls $OLDPWD")).contains("Permission denied"));
}

#[test]
fn a_plain_user_can_do_all_of_this() {
    common::plain_user::run_tests_again("a_plain_user_can_do_all_of_this");
}
