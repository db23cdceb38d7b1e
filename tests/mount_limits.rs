//! The mount under load and at its limits.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use chronfs::Queue;
use chronfs::queue::{Entry, Message, Position, SegmentId, Settings};
use chronfs::view::{Format, render};
use common::need::{Need, require};
use common::{TestMount, is_mounted, text, until, wait, writer};

fn prepare(root: &Path) {
    let settings = Settings { segment_size: 65536, ..Settings::default() };
    writer(&Queue::create(root.join("q"), &settings).unwrap()).append(1, b"hello").unwrap();
}

/// A program with this many threads that all block in reads of a follower; it reports when they do.
fn blocked(mount: &TestMount, count: usize) -> common::Running {
    let program = format!(
        "import os, threading\n\
         threading.stack_size(65536)\n\
         fds = [os.open('q/follow.txt', os.O_RDONLY) for _ in range({count})]\n\
         ended = []\n\
         def run(fd):\n\
         \x20 try: ended.append(os.read(fd, 100))\n\
         \x20 except OSError as e: ended.append(e.errno)\n\
         threads = [threading.Thread(target=run, args=(fd,)) for fd in fds]\n\
         [t.start() for t in threads]\n\
         [t.join() for t in threads]\n\
         print(len(ended), sorted(set(map(str, ended))))\n"
    );
    let script = mount.root().with_file_name("blocked.py");
    std::fs::write(&script, program).unwrap();
    let running = mount.start("prlimit", &["--nofile=4096", "python3", "-S", "../blocked.py"]);
    until("all threads block in their reads", || {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", running.id())) else { return false };
        threads.flatten().filter(|thread| common::is_blocked(&thread.path().to_string_lossy())).count() == count
    });
    running
}

#[test]
fn a_thousand_blocked_readers_leave_it_responsive_and_end_with_the_mount() {
    let Some(mut mount) = TestMount::over(prepare, "rw") else { return };
    let readers = blocked(&mount, 1000);
    let pid = mount.daemon().id();
    mount.ok("cat q/messages.txt q/status > /dev/null");
    common::signal_to(pid, "TERM");
    wait(mount.daemon());
    assert_eq!(text(&readers.output().stdout), "1000 ['107']\n", "ENOTCONN");
    assert!(!is_mounted(&mount.mountpoint()));
    // All of them get the next message.
    mount.mount_again("rw");
    let readers = blocked(&mount, 300);
    mount.ok("echo next > q/append.txt");
    assert_eq!(text(&readers.output().stdout), "300 [\"b'next\\\\n'\"]\n");
}

#[test]
fn killed_daemons_are_replaced_whoever_waits() {
    let Some(mut mount) = TestMount::over(prepare, "rw") else { return };
    for cycle in 0..5 {
        let readers: Vec<_> = (0..10).map(|_| mount.start("cat", &["q/follow.txt"])).collect();
        readers.iter().for_each(|reader| mount.wait_until_blocked(reader));
        let writer = mount.start("bash", &["-c", "exec 5> q/append.txt; echo held >&5; exec sleep 60"]);
        until("it is in", || mount.sh("tail -n 1 q/messages.txt").stdout == b"held\n");
        mount.daemon().kill().unwrap();
        mount.daemon().wait().unwrap();
        mount.mount_again("rw");
        for reader in readers {
            let output = reader.output();
            assert!(!output.status.success() && text(&output.stderr).contains("onnect"), "{output:?}");
        }
        // The lock died with the daemon, although a descriptor is still held.
        mount.ok(&format!("echo {cycle} > q/append.txt; tail -n 1 q/messages.txt | grep -x {cycle}"));
        drop(writer);
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let place = mount.mountpoint();
    assert_eq!(
        table.lines().filter(|line| line.contains(place.to_str().unwrap())).count(),
        1,
        "no dead mounts pile up"
    );
}

#[test]
fn ten_thousand_files_are_open_at_once() {
    let Some(mut mount) = TestMount::over(prepare, "rw") else { return };
    let program = r#"
import os
names = ["messages.txt", "follow.txt", "status", "messages/1", "segments/000000000.q"]
fds = [os.open("q/" + names[i % 5], os.O_RDONLY) for i in range(10000)]
assert all(os.read(fd, 10) == b"hello\n" for fd in fds[0::500])
assert all(os.pread(fds[i], 5, 0) == b"hello" for i in range(3, 10000, 500))
print("open", flush=True)
for fd in fds: os.close(fd)
"#;
    std::fs::write(mount.root().with_file_name("open.py"), program).unwrap();
    if !require(Need::Descriptors(11_000)) {
        return;
    }
    assert_eq!(mount.ok("prlimit --nofile=11000 python3 -S ../open.py"), "open\n");
    let daemon = format!("/proc/{}/fd", mount.daemon().id());
    until("the daemon has let go of them", || std::fs::read_dir(&daemon).unwrap().count() < 200);
    assert_eq!(mount.ok("cat q/messages.txt"), "hello\n");
}

#[test]
fn without_descriptors_calls_fail_and_the_daemon_lives_on() {
    let Some(mut mount) = TestMount::over(prepare, "rw") else { return };
    mount.ok("for n in {1..40}; do mkdir q$n; echo $n > q$n/append.txt; done");
    common::signal_to(mount.daemon().id(), "TERM");
    wait(mount.daemon());
    mount.mount_limited("rw", &["prlimit", "--nofile=48"]);
    let program = r#"
import os
fds, errors = [], set()
for n in range(1, 41):
    for name in ["follow.txt", "messages.txt", "segments/000000000.q", "append.txt"]:
        try: fds.append(os.open(f"q{n}/{name}", os.O_WRONLY if name == "append.txt" else os.O_RDONLY))
        except OSError as e: errors.add("too many" if e.errno in (23, 24) else f"{name} {e.strerror}")
print(len(fds) < 160, sorted(errors))
for fd in fds: os.close(fd)
"#;
    std::fs::write(mount.root().with_file_name("exhaust.py"), program).unwrap();
    for _ in 0..3 {
        assert_eq!(mount.ok("python3 -S ../exhaust.py"), "True ['too many']\n");
        until("it works again", || mount.sh("cat q1/messages.txt").stdout == b"1\n");
        assert_eq!(mount.ok("echo more > q2/append.txt; tail -n 1 q2/messages.txt"), "more\n");
    }
    assert!(mount.daemon().try_wait().unwrap().is_none());
}

#[test]
fn hostile_names_are_refused_everywhere() {
    let Some(mut mount) = TestMount::over(prepare, "rw") else { return };
    let program = r#"
import os, errno
long = [b"x" * n for n in (129, 256, 1000, 4000)]
odd = [b"\xff\xfe", b"a\nb", b"a b", b"\x01", b"'", b"$(id)", b"-rf", b"*", b"..."]
places = [b"", b"q/", b"q/messages/", b"q/at/", b"q/since/", b"q/readers/", b"q/segments/", b".merged/", b".chronfs/"]
for place in places:
    for name in long + odd:
        for call in (os.stat, lambda path: os.open(path, os.O_RDONLY), os.mkdir, os.rmdir, os.unlink, os.readlink,
                     lambda path: os.open(path, os.O_CREAT | os.O_WRONLY), lambda path: os.rename(path, b"x"),
                     lambda path: os.symlink(b"x", path)):
            try:
                call(place + name)
                print("accepted", place, name)
            except OSError as e:
                allowed = {"ENOENT", "EINVAL", "ENAMETOOLONG", "EPERM", "EACCES"}
                if errno.errorcode[e.errno] not in allowed: print(place, name, e)
"#;
    std::fs::write(mount.root().with_file_name("names.py"), program).unwrap();
    assert_eq!(mount.ok("python3 -S ../names.py"), "");
    assert_eq!(std::fs::read_dir(mount.root()).unwrap().count(), 1, "nothing was created");
    assert!(mount.daemon().try_wait().unwrap().is_none());
}

/// The rendered form of each message, so that any range can be checked.
struct Reference {
    /// Rendered bytes of all messages, and where each one starts.
    bytes: [Vec<u8>; 4],
    starts: [Vec<usize>; 4],
}

impl Reference {
    fn new(payloads: &[Vec<u8>], time: impl Fn(u64) -> u64) -> Self {
        let mut reference = Self { bytes: Default::default(), starts: Default::default() };
        for (seq, payload) in (1..).zip(payloads) {
            let position = Position { segment: SegmentId(0), offset: 4096 };
            let entry = Entry::Message(Message { seq, timestamp_ns: time(seq), msg_type: 3, payload, position });
            for (slot, format) in Format::ALL.into_iter().enumerate() {
                reference.starts[slot].push(reference.bytes[slot].len());
                render(format, &entry, None, &mut reference.bytes[slot]);
            }
        }
        reference
    }
}

#[test]
fn any_range_is_right_while_a_writer_appends_rolls_and_retires() {
    const COUNT: u64 = 20_000;
    let time = |seq: u64| 1_700_000_000_000_000_000 + seq * 1_000_003;
    let Some(mount) = TestMount::new() else { return };
    let settings = Settings { segment_size: 65536, retain_segments: Some(6), ..Settings::default() };
    let queue = Queue::create(mount.root().join("q"), &settings).unwrap();
    let mut state = 99_u64;
    let mut chance = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    // Each holds its number.
    let payloads: Vec<Vec<u8>> = (1..=COUNT)
        .map(|seq| [format!("{seq}:").into_bytes(), vec![b'a'; chance(150)], vec![7, 0xff]].concat())
        .collect();
    let reference = Reference::new(&payloads, time);
    let mut writer = writer(&queue);
    writer.append_at(time(1), 3, &payloads[0]).unwrap();
    let mut open: Vec<(usize, std::fs::File, usize)> = Vec::new();
    let (mut compared, mut stale) = (0_u64, 0);
    for (seq, payload) in (2..).zip(&payloads[1..]) {
        writer.append_at(time(seq), 3, payload).unwrap();
        if seq % 13 != 0 {
            continue;
        }
        if open.len() < 12 || seq % 500 == 0 {
            let slot = chance(4);
            let name = format!("q/messages.{}", Format::ALL[slot]);
            let file = std::fs::File::open(mount.mountpoint().join(name)).unwrap();
            // Where it starts: at the first of the messages that its first bytes can be.
            let first = queue.bounds().unwrap().first_seq;
            let mut head = vec![0; 40];
            let Ok(len) = file.read_at(&mut head, 0) else { continue };
            let starts = |seq: &u64| {
                let start = reference.starts[slot][usize::try_from(seq - 1).unwrap()];
                reference.bytes[slot][start..].starts_with(&head[..len])
            };
            let start = (1..=first).rev().find(starts).unwrap();
            if open.len() >= 12 {
                open.remove(chance(12));
            }
            open.push((slot, file, reference.starts[slot][usize::try_from(start - 1).unwrap()]));
        }
        let (slot, file, base) = &open[chance(open.len())];
        let whole = &reference.bytes[*slot][*base..];
        let committed =
            reference.starts[*slot].get(usize::try_from(seq).unwrap()).map_or(whole.len(), |end| end - base);
        let most = [10, 5_000, 200_000][chance(3)];
        let (offset, len) = (chance(committed + 100), 1 + chance(most));
        let mut bytes = vec![0; len];
        match file.read_at(&mut bytes, u64::try_from(offset).unwrap()) {
            Ok(count) => {
                let expected = &whole[offset.min(committed)..committed.min(offset + len)];
                if count < expected.len() {
                    // What comes next is gone.
                    let next = file.read_at(&mut [0], u64::try_from(offset + count).unwrap());
                    assert_eq!(next.unwrap_err().raw_os_error(), Some(libc::ESTALE), "{offset} {len}: {count}");
                    stale += 1;
                }
                assert!(bytes[..count] == expected[..count], "message {seq}, {slot}, {offset} {len}: {count}");
                assert!(file.metadata().unwrap().size() == u64::try_from(committed).unwrap());
                compared += u64::try_from(count).unwrap();
            }
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => stale += 1,
            Err(error) => assert!(error.raw_os_error().is_none(), "{error}"),
        }
    }
    assert!(compared > 10_000_000 && stale < 300, "{compared} bytes, {stale} stale");
    assert!(queue.bounds().unwrap().first_seq > COUNT / 2, "retention was at work");
}
