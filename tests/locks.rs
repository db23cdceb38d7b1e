//! Locks of users who may read a queue but not write to it.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use chronfs::queue::{Entry, IgnoredReason, Queue, Settings, WriterState};

mod common;

use common::need::{Need, require};

/// Unused on any machine.
const READER: u32 = 64_001;
const OWNER: u32 = 64_002;

/// Ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Takes every lock that it can get on a directory and every file below it, as a user who may only read; returns when
/// it has them.
fn lock_all(path: &Path) -> Killed {
    const SCRIPT: &str = r#"
import fcntl, os, struct, sys, time
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
held = []
for top, _, files in os.walk(sys.argv[1]):
    for name in ["."] + files:
        for mode in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            try: fd = os.open(os.path.join(top, name), mode | os.O_NOFOLLOW)
            except OSError: continue
            held.append(fd)
            for kind in (fcntl.F_WRLCK, fcntl.F_RDLCK):
                try: fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", kind, 0, 0, 0, 0))
                except OSError: pass
            for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
                try: fcntl.flock(fd, kind | fcntl.LOCK_NB); break
                except OSError: pass
print("held", len(held), flush=True)
time.sleep(600)
"#;
    let mut child = Command::new("python3")
        .args(["-c", SCRIPT])
        .arg(path)
        .arg(READER.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    assert!(line.starts_with("held ") && line.trim() != "held 0", "{line}");
    Killed(child)
}

/// Everything below belongs to the owner, readable by all.
fn give(path: &Path) {
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            give(&path);
        }
        chown(&path, Some(OWNER), Some(OWNER)).unwrap();
    }
    chown(path, Some(OWNER), Some(OWNER)).unwrap();
}

#[test]
fn a_user_who_may_only_read_locks_nobody_out() {
    if !require(Need::Root) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let settings =
        Settings { segment_size: 64 << 10, retain_segments: Some(0), reader_ttl_ns: Some(1), ..Settings::default() };
    let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
    queue.writer().unwrap().append(1, b"one").unwrap();
    for name in ["used", "dead"] {
        let mut reader = queue.reader(name).unwrap();
        reader.next().unwrap();
        reader.commit();
    }
    give(queue.path());
    let holder = lock_all(queue.path());
    let mut writer = queue.writer().unwrap();
    writer.append(1, b"two").unwrap();
    let mut reader = queue.reader("used").unwrap();
    assert!(reader.next().unwrap().and_then(Entry::message).is_some_and(|message| message.seq == 2));
    reader.commit();
    for _ in 0..2_000 {
        writer.append(1, &[b'x'; 100]).unwrap();
    }
    // Files have been created since the locks were taken: again.
    drop(holder);
    let _holder = lock_all(queue.path());
    let ignored = queue.plan_retention().unwrap().ignored;
    assert_eq!(ignored.len(), 1, "{ignored:?}");
    assert_eq!((ignored[0].reader.as_str(), ignored[0].reason), ("dead", IgnoredReason::Dead));
    queue.seek_reader("dead", queue.bounds().unwrap().next_seq).unwrap();
    queue.remove_reader("dead").unwrap();
    drop(writer);
    drop(reader);
    assert_eq!(queue.writer_info().state, WriterState::None);
    queue.writer().unwrap();
    queue.reader("used").unwrap();
}

#[test]
fn a_user_who_may_only_read_learns_whether_there_is_a_writer() {
    if !require(Need::Root) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let queue = Queue::create(dir.path().join("q"), &Settings::default()).unwrap();
    // Others may not have access to where it was built.
    let program = dir.path().join("chron-cli");
    std::fs::copy(env!("CARGO_BIN_EXE_chron-cli"), &program).unwrap();
    let inspect = || {
        let id = READER.to_string();
        let output = Command::new("setpriv")
            .args([&format!("--reuid={id}"), &format!("--regid={id}"), "--clear-groups"])
            .arg(&program)
            .args(["inspect", "--json"])
            .arg(queue.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        (value["writer"]["state"].as_str().unwrap().to_owned(), value["readers"].clone())
    };
    let writer = queue.writer().unwrap();
    let reader = queue.reader("r").unwrap();
    let (state, readers) = inspect();
    assert_eq!(state, "alive");
    assert_eq!(readers[0]["alive"], true, "{readers}");
    drop((writer, reader));
    let (state, readers) = inspect();
    assert_eq!(state, "none");
    assert_eq!(readers[0]["alive"], false, "{readers}");
}
