//! What write, fsync and close acknowledge is in the queue, and an error is reported to a call that can return it.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use chronfs::Queue;
use chronfs::queue::Settings;
use common::{SmallDisk, TestMount, until};

/// A mount with the queue `q`, whose messages fit into 64 KiB.
fn mount() -> Option<TestMount> {
    let settings = Settings { segment_size: 64 << 10, ..Settings::default() };
    TestMount::over(|root| drop(Queue::create(root.join("q"), &settings).unwrap()), "rw")
}

fn python(mount: &TestMount, script: &str) -> String {
    let helpers = r#"
import os, errno, sys
def told(call):
    try: return call()
    except OSError as e: return errno.errorcode[e.errno]
def append(kind): return os.open("q/append." + kind, os.O_WRONLY)
def messages(): return open("q/messages.txt", "rb").read().split(b"\n")[:-1]
"#;
    std::fs::write(mount.root().with_file_name("script.py"), [helpers, script].concat()).unwrap();
    mount.ok("python3 -S ../script.py")
}

#[test]
fn an_unfinished_line_is_there_when_close_returns() {
    let Some(mount) = mount() else { return };
    let script = r#"
missing = 0
for i in range(200):
    fd = append("txt"); os.write(fd, b"m%d" % i); os.close(fd)
    missing += messages()[-1] != b"m%d" % i
print(missing)
"#;
    assert_eq!(python(&mount, script), "0\n");
    mount.ok("printf cat | cat > q/append.txt; tail -n 1 q/messages.txt | grep -qx cat");
    mount.ok("printf whole > ../in; cp ../in q/append.txt; tail -n 1 q/messages.txt | grep -qx whole");
}

#[test]
fn a_line_is_one_message_however_many_processes_write_it() {
    let Some(mount) = mount() else { return };
    mount.ok("(/usr/bin/printf a; /usr/bin/printf b; (/usr/bin/printf c); printf d) > q/append.txt");
    mount.ok("{ /usr/bin/printf e; /usr/bin/printf f; } > q/append.txt");
    mount.ok("exec 5> q/append.txt 6>&5; printf g >&5; exec 5>&-; printf h >&6; exec 6>&-");
    mount.ok("exec 5> q/append.txt; (sleep 0.2; printf j >&5) & exec 5>&-; wait");
    until("the last one is in", || mount.ok("cat q/messages.txt") == "abcd\nef\ngh\nj\n");
}

#[test]
fn the_unfinished_line_of_a_killed_process_is_dropped() {
    let Some(mount) = mount() else { return };
    for signal in ["KILL", "TERM"] {
        mount.ok(&format!("(printf 'whole\\nhalf'; kill -{signal} $BASHPID) > q/append.txt; true"));
        mount.ok(&format!("{{ bash -c 'printf \"whole\\nhalf\"; kill -{signal} $$'; }} > q/append.txt; true"));
        // What others go on to write is not made part of it; what they have begun stays.
        mount.ok(&format!("{{ (printf half; kill -{signal} $BASHPID); echo whole; }} > q/append.txt; true"));
        mount.ok(&format!("{{ printf wh; (kill -{signal} $BASHPID); echo ole; }} > q/append.txt; true"));
    }
    for _ in 0..20 {
        // A process that has ended itself; the kernel may take the next one, which is killed, for the same.
        mount.ok(
            "{ /usr/bin/printf wh; (kill -KILL $BASHPID); bash -c 'kill -KILL $$'; echo ole; } > q/append.txt; true",
        );
    }
    mount.ok("{ printf 'wh'; bash -c 'printf o; kill -KILL $$'; echo le; } > q/append.txt; true");
    mount.ok("(printf last; exit 3) > q/append.txt; true");
    until("the last close has been reported", || mount.ok("cat q/messages.txt").ends_with("last\n"));
    assert_eq!(mount.ok("cat q/messages.txt"), "whole\n".repeat(29) + "last\n");
}

#[test]
fn fsync_says_yes_to_what_is_in_the_queue() {
    let Some(mut mount) = mount() else { return };
    let script = r#"
fd = append("txt"); os.write(fd, b"synced"); os.fsync(fd); print(messages()[-1])
fd = append("jsonl"); os.write(fd, b'{"payload":"ha'); print(told(lambda: os.fsync(fd)), told(lambda: os.close(fd)))
"#;
    assert_eq!(python(&mount, script), "b'synced'\nEINVAL EINVAL\n");
    mount.daemon().kill().unwrap();
    let queue = Queue::open(mount.root().join("q")).unwrap();
    assert_eq!(queue.bounds().unwrap().next_seq, 2);
}

#[test]
fn close_tells_that_a_line_was_not_taken() {
    let settings = Settings { segment_size: 64 << 10, max_bytes: Some(128 << 10), ..Settings::default() };
    let make = |root: &std::path::Path| {
        for name in ["full", "q"] {
            drop(Queue::create(root.join(name), &settings).unwrap());
        }
    };
    let Some(mount) = TestMount::over(make, "rw") else { return };
    mount.sh("for i in {1..10}; do head -c 60000 /dev/zero | tr '\\0' x; echo; done > full/append.txt");
    mount.sh("for i in {1..100}; do head -c 3000 /dev/zero | tr '\\0' y; echo; done > full/append.txt");
    mount.sh("for i in {1..100}; do echo 50 bytes to fill it up, and the rest is for nothing; done > full/append.txt");
    mount.sh("for i in {1..100}; do echo; done > full/append.txt");
    let before = mount.ok("wc -c < full/messages.txt");
    std::fs::write(mount.root().with_file_name("in"), "no newline").unwrap();
    assert!(mount.fails("cp ../in full/append.txt").contains("Disk quota exceeded"));
    let close = "import os; fd = os.open('full/append.txt', os.O_WRONLY); os.write(fd, b'x' * 40); os.close(fd)";
    assert!(mount.fails(&format!("python3 -c \"{close}\"")).contains("Disk quota exceeded"));
    assert_eq!(mount.ok("wc -c < full/messages.txt"), before);
    std::fs::write(mount.root().with_file_name("cut"), "{\"payload\":\"whole\"}\n{\"payload\":\"ha").unwrap();
    assert!(mount.fails("cp ../cut q/append.jsonl").contains("Invalid argument"));
    assert_eq!(mount.ok("cat q/messages.txt"), "whole\n");
}

#[test]
fn of_a_line_too_long_nothing_comes_however_it_is_written() {
    let settings = Settings { segment_size: 2 << 20, ..Settings::default() };
    let Some(mount) = TestMount::over(|root| drop(Queue::create(root.join("q"), &settings).unwrap()), "rw") else {
        return;
    };
    let line = format!("before\n{}END\nafter\n", "x".repeat(2_500_000));
    std::fs::write(mount.root().with_file_name("in"), line).unwrap();
    for (n, size) in ["128K", "1M", "2M", "8M"].into_iter().enumerate() {
        let complaint = mount.fails(&format!("dd if=../in of=q/append.txt bs={size}"));
        assert!(complaint.contains("Message too long"), "{size}: {complaint}");
        assert_eq!(mount.ok("cat q/messages.txt"), "before\n".repeat(n + 1), "{size}");
    }
    let script = r#"
data = b"".join(b"line %06d\n" % i for i in range(90000))[:(1 << 20) - 30000]
lines = data[:data.rindex(b"\n") + 1]
fd = append("txt")
print(os.write(fd, b"y" * 2_200_000 + b"\nlast\n") < 1 << 21, told(lambda: os.close(fd)))
def whole():
    with open("q/append.txt", "wb") as f: f.write(lines + b"A" * 1_100_000 + b"B" * 1_100_000 + b"\nlast\n")
print(told(whole), messages()[-1] == lines.split(b"\n")[-2])
"#;
    assert_eq!(python(&mount, script), "True EMSGSIZE\nEMSGSIZE True\n");
}

/// Through one handle that stays open, and through others.
#[test]
fn a_full_disk_is_an_error_until_there_is_room() {
    let mut disk = None;
    let settings = Settings { segment_size: 64 << 10, ..Settings::default() };
    let prepare = |root: &std::path::Path| {
        disk = SmallDisk::over(root, "size=600k");
        if disk.is_some() {
            drop(Queue::create(root.join("q"), &settings).unwrap());
        }
    };
    let Some(mount) = TestMount::over(prepare, "rw,segment_size=64KiB") else { return };
    let Some(disk) = disk else { return };
    let script = r#"
fd, n = append("txt"), 0
def line(): return b"%d %s\n" % (n, b"x" * 400)
while told(lambda: os.write(fd, line())) == len(line()): n += 1
print(told(lambda: os.write(fd, line())), len(messages()) == n > 700)
print(told(lambda: os.write(append("txt"), b"z" * 500 + b"\n")), told(lambda: os.mkdir("new")) in (None, "ENOSPC"))
print(told(lambda: open("q/LEASE", "w").write("x")), os.path.exists("q/LEASE"))
os.truncate("../root/ballast", 0)
while n < 1000:
    assert os.write(fd, line()) == len(line())
    n += 1
os.close(fd)
os.write(append("txt"), b"z" * 500 + b"\n")
open("q/LEASE", "w").write("x")
print(len(messages()) == n + 1, [m.split()[0] for m in messages()[:-1]] == [b"%d" % i for i in range(n)])
"#;
    std::fs::write(disk.path("ballast"), vec![1; 200 << 10]).unwrap();
    assert_eq!(python(&mount, script), "ENOSPC True\nENOSPC True\nENOSPC False\nTrue True\n");
    // What is derived is not stored, and can still be read.
    let read = mount.ok("cksum < q/messages.txt; tail -n 1 q/messages.jsonl | jq -r .payload");
    disk.fill();
    assert_eq!(mount.ok("cksum < q/messages.txt; tail -n 1 q/messages.jsonl | jq -r .payload"), read);
    assert!(mount.ok("cat q/status q/messages/1 q/messages.hex | wc -l").trim().parse::<u64>().unwrap() > 1000);
}

#[test]
fn a_queue_that_is_created_here_does_not_fill_the_disk_unless_it_was_asked_to() {
    for (options, is_limited, roll_every_ns) in
        [("rw", true, None), ("rw,retain_bytes=none,roll_every=day", false, Some(86_400_000_000_000))]
    {
        let Some(mount) = TestMount::with_options(options) else { return };
        mount.ok("mkdir new; echo hello > new/append.txt");
        let settings = Queue::open(mount.root().join("new")).unwrap().settings();
        assert_eq!((settings.has_retention(), settings.roll_every_ns), (is_limited, roll_every_ns), "{options}");
        assert_eq!(
            mount.ok("grep -c 'retained: [0-9.]* [MG]iB' new/status || true"),
            if is_limited { "1\n" } else { "0\n" }
        );
    }
}

#[test]
fn a_plain_user_can_do_all_of_this() {
    common::plain_user::run_tests_again("a_plain_user_can_do_all_of_this");
}
