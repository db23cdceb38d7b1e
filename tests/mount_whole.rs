//! Sizes are true: a program that trusts them, or has the kernel send the file, gets all of it.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use chronfs::Queue;
use chronfs::queue::Settings;
use common::{TestMount, writer};

/// Sends files by sendfile(2) to a file: what it got, or the error of the first call.
const SEND: &str = r#"
import errno, os, sys
def send(name):
    source, target = os.open(name, os.O_RDONLY), os.open("../sent", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    size, sent = os.fstat(source).st_size, 0
    try:
        while True:
            count = os.sendfile(target, source, sent, 1 << 20)
            if count == 0: return size, os.pread(target, sent + 1, 0)
            sent += count
    except OSError as e: return size, errno.errorcode[e.errno]
    finally: os.close(source); os.close(target)
"#;

fn python(mount: &TestMount, script: &str) -> String {
    std::fs::write(mount.root().with_file_name("script.py"), [SEND, script].concat()).unwrap();
    mount.ok("python3 -S ../script.py")
}

#[test]
fn small_files_have_true_sizes_and_can_be_sent() {
    let Some(mount) = TestMount::new() else { return };
    mount.ok("mkdir q; seq 100 > q/append.txt; mkdir q/readers/r; touch q/READY; echo alive > q/LEASE");
    let names = "q/status q/status.json q/READY q/LEASE q/readers/r/position q/readers/r/lag q/readers/r/status.json \
        q/readers/r/messages.txt q/readers/r/messages.jsonl \
        .merged/messages.jsonl .merged/messages.txt .chronfs/metrics .chronfs/status.json .chronfs/doctor .chronfs/version .chronfs/README";
    let script = format!(
        r#"
import shutil
for name in "{names}".split():
    size, sent = send(name)
    shutil.copyfile(name, "../copied")
    copied, read = open("../copied", "rb").read(), open(name, "rb").read()
    near = lambda a, b: abs(a - b) <= 20
    if not (size == len(sent) > 0 and near(len(copied), size) and near(len(read), size) and near(os.stat(name).st_size, size)):
        print(name, size, sent[:100], len(copied), len(read), os.stat(name).st_size)
"#
    );
    assert_eq!(python(&mount, &script), "");
    mount.ok("for f in q/status q/readers/r/position .chronfs/metrics; do cp $f ../a; tar -cf - $f | tar -xOf - | wc -c; done");
    // Each open shows one state, the next open the next state; the inode number stays.
    let script = r#"
before = os.stat("q/readers/r/position")
with open("q/readers/r/position") as f:
    open("q/readers/r/position", "w").write("42")
    print(f.read().strip(), open("q/readers/r/position").read().strip())
after = os.stat("q/readers/r/position")
print(before.st_ino == after.st_ino, before.st_size, after.st_size)
"#;
    assert_eq!(python(&mount, script), "1 42\nTrue 2 3\n");
    mount.ok("test $(stat -c %i q/status) = $(ls -i q | awk '$2 == \"status\" {print $1}')");
}

#[test]
fn growing_files_are_sent_whole_or_refused_so_that_the_sender_reads() {
    let Some(mount) = TestMount::new() else { return };
    let queue = Queue::create(mount.root().join("q"), &Settings::default()).unwrap();
    let mut writer = writer(&queue);
    writer.append(1, b"first").unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0_u32;
            while !over.load(Ordering::Relaxed) {
                number += 1;
                writer.append(1, format!("{number}").repeat(1 + number as usize % 50).as_bytes()).unwrap();
                // So slowly that copying comes to an end.
                if number.is_multiple_of(8) {
                    std::thread::sleep(std::time::Duration::from_micros(500));
                }
            }
        });
        let script = r#"
import shutil, time
bad, until = 0, time.time() + 3
while time.time() < until:
    for name in ["q/messages.bin", "q/messages.txt", "q/since/1/messages.jsonl", "q/log/000000000.bin"]:
        size, sent = send(name)
        if sent != "EINVAL" and (b"\0" in sent or len(sent) < size): bad += 1
        size = os.stat(name).st_size
        shutil.copyfile(name, "../copied")
        copied = open("../copied", "rb").read()
        if b"\0" in copied or len(copied) < size: bad += 1
print(bad)
"#;
        let printed = python(&mount, script);
        over.store(true, Ordering::Relaxed);
        assert_eq!(printed, "0\n");
    });
}

#[test]
fn a_gap_in_bin_is_an_error_to_sendfile_and_mmap() {
    let damage = |root: &std::path::Path| {
        let queue = Queue::create(root.join("q"), &Settings::default()).unwrap();
        let mut writer = writer(&queue);
        for payload in ["first message", "second message", "third message"] {
            writer.append(1, payload.as_bytes()).unwrap();
        }
        drop(writer);
        let segment = std::fs::File::options().write(true).open(root.join("q/000000000.q")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&segment, b"\xff", 4096 + 48 + 32 + 3).unwrap();
    };
    let Some(mount) = TestMount::over(damage, "rw") else { return };
    let read = "import os; f = os.open('q/messages.bin', os.O_RDONLY); print(os.read(f, 99)); \
        print(os.read(f, 99))";
    let output = mount.sh(&format!("python3 -S -c \"{read}\""));
    assert!(!output.status.success() && output.stdout == b"b'first message'\n", "{output:?}");
    assert_eq!(python(&mount, "print(send('q/messages.bin')[1])"), "EINVAL\n");
    let map = "import mmap; f = open('q/messages.bin', 'rb'); \
        m = mmap.mmap(f.fileno(), 26, mmap.MAP_PRIVATE, mmap.PROT_READ); print(m[:])";
    let output = mount.sh(&format!("python3 -S -c \"{map}\""));
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    let sound = "import mmap; f = open('p/messages.bin', 'rb'); \
        m = mmap.mmap(f.fileno(), 6, mmap.MAP_PRIVATE, mmap.PROT_READ); print(m[:])";
    mount.ok("mkdir p; printf 'abc\\ndef\\n' > p/append.txt");
    assert_eq!(mount.ok(&format!("python3 -S -c \"{sound}\"")), "b'abcdef'\n");
}

#[test]
fn a_plain_user_can_do_all_of_this() {
    common::plain_user::run_tests_again("a_plain_user_can_do_all_of_this");
}
