//! `append.bin`: what is written between open and close is one message, whole or not at all. `append.packets`: each
//! write is one.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::Write as _;

use chronfs::Queue;
use chronfs::queue::Settings;
use common::{TestMount, until};

/// A mount with the queue `q`, of messages of up to 2 MiB, and 1.5 MB of bytes in `../in`.
fn mount() -> Option<TestMount> {
    let settings = Settings { segment_size: 2 << 20, ..Settings::default() };
    let mount = TestMount::over(|root| drop(Queue::create(root.join("q"), &settings).unwrap()), "rw")?;
    let bytes: Vec<u8> = (0..1_500_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(mount.root().with_file_name("in"), bytes).unwrap();
    Some(mount)
}

fn lens(mount: &TestMount) -> Vec<u64> {
    mount.ok("stat -c %s q/messages/{1..10} 2> /dev/null || :").lines().map(|len| len.parse().unwrap()).collect()
}

fn python(mount: &TestMount, script: &str) -> String {
    let helpers = r#"
import os, errno, signal, shutil
def told(call):
    try: return call()
    except OSError as e: return errno.errorcode[e.errno]
def append(flags=0): return os.open("q/append.bin", os.O_WRONLY | flags)
def count(): return len([n for n in os.listdir("q/messages") if n.isdigit()])
def last():
    with open("q/messages/last", "rb") as f: return f.read()
"#;
    std::fs::write(mount.root().with_file_name("script.py"), [helpers, script].concat()).unwrap();
    mount.ok("python3 -S ../script.py")
}

#[test]
fn a_file_that_is_copied_is_one_message_when_the_copy_returns() {
    let Some(mount) = mount() else { return };
    let copies = [
        "cp ../in q/append.bin",
        "cat ../in > q/append.bin",
        "cat ../in >> q/append.bin",
        "dd if=../in of=q/append.bin bs=1M",
        "dd if=../in of=q/append.bin bs=4000 conv=fsync",
        "tee q/append.bin < ../in > /dev/null",
        "head -c 700000 ../in | { cat; tail -c 800000 ../in; } > q/append.bin",
        "exec 3> q/append.bin; head -c 100 ../in >&3; tail -c +101 ../in >&3; exec 3>&-",
        "python3 -c 'import shutil; shutil.copyfile(\"../in\", \"q/append.bin\")'",
        "python3 -c 'open(\"q/append.bin\", \"ab\").write(open(\"../in\", \"rb\").read())'",
    ];
    for (n, copy) in copies.into_iter().enumerate() {
        mount.ok(copy);
        mount.ok(&format!("cmp ../in q/messages/{}", n + 1));
        assert_eq!(lens(&mount).len(), n + 1, "{copy}");
    }
    mount.ok("! command -v busybox || { busybox cp ../in q/append.bin; cmp ../in q/messages/last; }");
    mount.ok("mkdir new; head -c 1000 ../in > new/append.bin; cmp -n 1000 ../in new/messages/1");
}

#[test]
fn a_sparse_file_keeps_its_holes() {
    let Some(mount) = mount() else { return };
    mount.ok("truncate -s 300000 ../sparse; echo middle | dd of=../sparse conv=notrunc bs=1 seek=100000");
    mount.ok("truncate -s 600000 ../sparse; cp ../sparse q/append.bin; cmp ../sparse q/messages/1");
    mount.ok("echo end | dd of=q/append.bin bs=1 seek=500; [ $(stat -c %s q/messages/2) = 504 ]");
}

#[test]
fn opening_and_closing_appends_nothing() {
    let Some(mount) = mount() else { return };
    mount.ok(": > q/append.bin; : >> q/append.bin; touch q/append.bin; cp /dev/null q/append.bin");
    mount.ok("truncate -s 0 q/append.bin; mkdir new; : > new/append.bin; [ ! -e new/messages ]");
    assert!(lens(&mount).is_empty());
}

#[test]
fn a_message_is_as_long_as_the_limit_and_no_longer() {
    let Some(mount) = mount() else { return };
    let limit = Settings { segment_size: 2 << 20, ..Settings::default() }.max_payload_len();
    for size in ["4K", "128K", "1M", "8M"] {
        mount.ok(&format!("head -c {limit} /dev/zero | dd of=q/append.bin iflag=fullblock bs={size}"));
        let too_long = format!("head -c {} /dev/zero | dd of=q/append.bin iflag=fullblock bs={size}", limit + 1);
        assert!(mount.fails(&too_long).contains("Message too long"), "{size}");
        assert!(
            mount.fails("truncate -s 0 ../big; truncate -s 3M ../big; cp ../big q/append.bin").contains("too long")
        );
    }
    assert_eq!(lens(&mount), [limit as u64; 4]);
    let script = r#"
fd = append()
print(told(lambda: [os.write(fd, b"x" * 1_000_000) for _ in range(3)]), told(lambda: os.write(fd, b"x")))
other = os.dup(fd)
print(told(lambda: os.fsync(fd)), told(lambda: os.close(fd)), told(lambda: os.close(other)))
fd = append(); os.write(fd, b"abcdef")
print(told(lambda: os.pwrite(fd, b"x", 3)), told(lambda: os.write(fd, b"y")), told(lambda: os.close(fd)))
fd = append(); os.write(fd, b"abcdef"); os.ftruncate(fd, 2); os.lseek(fd, 2, 0); os.write(fd, b"CD"); os.close(fd)
print(last(), count())
"#;
    assert_eq!(
        python(&mount, script),
        "EMSGSIZE EMSGSIZE\nEMSGSIZE EMSGSIZE EMSGSIZE\nESPIPE ESPIPE ESPIPE\nb'abCD' 5\n"
    );
}

#[test]
fn a_message_ends_with_the_last_of_its_writers() {
    let Some(mount) = mount() else { return };
    mount.ok("(printf a; /usr/bin/printf b; (/usr/bin/printf c)) > q/append.bin; grep -x abc q/messages.txt");
    // The parent closes first, and the child has written already.
    let script = r#"
from_child, to_parent = os.pipe()
from_parent, to_child = os.pipe()
fd = append()
if os.fork() == 0:
    os.close(to_child)
    os.write(fd, b"one, ")
    os.write(to_parent, b".")
    os.read(from_parent, 1)
    os.write(fd, b"two")
    os._exit(0)
os.read(from_child, 1)
os.close(fd)
print(count())
os.close(to_child)
"#;
    assert_eq!(python(&mount, script), "1\n");
    until("the child has ended", || mount.ok("cat q/messages.txt") == "abc\none, two\n");
    // What a child writes after the message has ended is not a part of another one.
    let script = r#"
from_parent, to_child = os.pipe()
fd = append()
if os.fork() == 0:
    os.close(to_child)
    os.read(from_parent, 1)
    os._exit(told(lambda: os.write(fd, b"late")) != "EBADF")
os.write(fd, b"early")
os.close(fd)
os.close(to_child)
print(os.wait()[1], last())
"#;
    assert_eq!(python(&mount, script), "0 b'early'\n");
}

#[test]
fn of_a_killed_writer_nothing_comes() {
    let Some(mount) = mount() else { return };
    let script = r#"
fd = append()
def write_and_die(how):
    child = os.fork()
    if child == 0:
        own = append()
        for f in {fd, own}: os.write(f, b"half")
        how()
        os._exit(3)
    os.waitpid(child, 0)
for s in (signal.SIGKILL, signal.SIGTERM): write_and_die(lambda: os.kill(os.getpid(), s))
print(told(lambda: os.write(fd, b"rest")), told(lambda: os.close(fd)), count())
fd = append()
write_and_die(lambda: None)
print(last(), count())
os.close(fd)
print(last(), count())
"#;
    assert_eq!(python(&mount, script), "EOWNERDEAD EOWNERDEAD 0\nb'half' 1\nb'half' 2\n");
    // Executing another program closes the file.
    for kind in ["bin", "txt"] {
        let script =
            format!("fd = os.open('q/append.{kind}', 1); os.write(fd, b'{kind}'); os.execvp('true', ['true'])");
        assert_eq!(python(&mount, &script), "");
        until("it is in", || mount.ok("cat q/messages/last") == kind);
    }
    // Those that only inherited it do not matter.
    mount.ok(
        "exec 3> q/append.bin; sleep 100 & printf x >&3; kill -9 $!; wait $!; exec 3>&-; grep -qx x q/messages/last",
    );
}

#[test]
fn the_end_of_the_mount_drops_an_unfinished_message() {
    let Some(mut mount) = mount() else { return };
    let open = || File::options().write(true).open(mount.mountpoint().join("q/append.bin")).unwrap();
    let (mut unfinished, mut whole) = (open(), open());
    unfinished.write_all(b"half").unwrap();
    whole.write_all(b"whole").unwrap();
    whole.sync_all().unwrap();
    drop(whole);
    common::detach(&mount.mountpoint());
    mount.daemon().kill().unwrap();
    assert!(unfinished.write_all(b"more").is_err());
    let queue = Queue::open(mount.root().join("q")).unwrap();
    assert_eq!(queue.bounds().unwrap().next_seq, 2);
}

#[test]
fn close_tells_that_a_message_was_not_taken_and_it_never_comes() {
    let settings = Settings { segment_size: 64 << 10, max_bytes: Some(128 << 10), ..Settings::default() };
    let Some(mount) = TestMount::over(|root| drop(Queue::create(root.join("q"), &settings).unwrap()), "rw") else {
        return;
    };
    std::fs::write(mount.root().with_file_name("in"), [1; 40_000]).unwrap();
    mount.ok("cp ../in q/append.bin; cp ../in q/append.bin");
    assert!(mount.fails("cp ../in q/append.bin").contains("Disk quota exceeded"));
    assert_eq!(lens(&mount), [40_000; 2]);
    mount.ok("echo small > q/append.bin");
}

#[test]
fn each_write_to_packets_is_a_message() {
    let Some(mount) = mount() else { return };
    mount.ok("(printf a; printf b) > q/append.packets; dd if=../in of=q/append.packets bs=1000 count=3");
    let script = r#"
fd = os.open("q/append.packets", os.O_WRONLY | os.O_APPEND)
print(os.writev(fd, [b"one ", b"packet"]), told(lambda: os.write(fd, b"x" * (1 << 20))), os.write(fd, b"y" * 1_044_480))
os.fsync(fd)
"#;
    assert_eq!(python(&mount, script), "10 EMSGSIZE 1044480\n");
    assert_eq!(lens(&mount), [1, 1, 1000, 1000, 1000, 10, 1_044_480]);
    mount.ok("mkdir new; printf x > new/append.packets; [ $(cat new/messages/1) = x ]");
}

#[test]
fn a_plain_user_can_do_all_of_this() {
    common::plain_user::run_tests_again("a_plain_user_can_do_all_of_this");
}
