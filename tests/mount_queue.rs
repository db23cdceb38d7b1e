//! Queues as files, used by programs that know nothing of queues.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use chronfs::Queue;
use chronfs::queue::Settings;
use common::{Running, TestMount, text, until, writer};

const SMALL: &str = "segment_size=64KiB";

fn mount() -> Option<TestMount> {
    let mount = TestMount::with_options(SMALL)?;
    mount.ok("mkdir q && printf '1 one\\n2 two\\n3 three\\n' > q/append.txt");
    Some(mount)
}

fn queue(mount: &TestMount) -> Queue {
    Queue::open(mount.root().join("q")).unwrap()
}

fn payloads(queue: &Queue) -> Vec<String> {
    let mut scanner = queue.scan().unwrap();
    let mut payloads = Vec::new();
    while let Some(entry) = scanner.next().unwrap() {
        payloads.push(text(entry.message().unwrap().payload));
    }
    payloads
}

/// Appends natively: waits for the mount to let go of the writer lock.
fn append(queue: &Queue, lines: &[&str]) {
    let mut writer = writer(queue);
    for line in lines {
        writer.append(1, line.as_bytes()).unwrap();
    }
}

/// `tail` on messages.txt that polls twenty times a second, and what it has printed so far.
fn tail(mount: &TestMount, how: &str) -> (Running, impl Fn() -> String) {
    let path = mount.root().with_file_name("tail.out");
    let script = format!("exec tail -s 0.05 -n 1 {how} q/messages.txt > {}", path.display());
    let running = mount.start("bash", &["-c", &script]);
    (running, move || std::fs::read_to_string(&path).unwrap_or_default())
}

#[test]
fn a_queue_directory_has_its_files() {
    let Some(mount) = mount() else { return };
    std::fs::write(mount.root().join("q/notes.md"), "kept").unwrap();
    let listed = mount.ok("ls q");
    let expected = "append.bin append.jsonl append.packets append.txt at follow.bin follow.hex follow.jsonl follow.txt log messages \
                    messages.bin messages.hex messages.jsonl messages.txt notes.md readers segments since status \
                    status.json";
    assert_eq!(listed.split_whitespace().collect::<Vec<_>>().join(" "), expected);
    for name in ["control.meta", "writer.lock", "000000000.q"] {
        assert!(mount.root().join("q").join(name).exists());
        assert!(mount.fails(&format!("cat q/{name}")).contains("No such file"));
    }
    for (pattern, mode) in [("q/messages.*", "444"), ("q/follow.*", "444"), ("q/append.*", "200"), ("q/status*", "444")]
    {
        let modes = mount.ok(&format!("stat -c %a {pattern} | sort -u"));
        assert_eq!(modes.trim(), mode, "{pattern}");
    }
    assert!(mount.fails("rmdir q").contains("not empty"));
    assert!(mount.fails("rm -f q/messages.txt").contains("Operation not permitted"));
    assert!(mount.fails("mkdir q/sub").contains("Operation not permitted"));
    assert_eq!(mount.ok("ls -i q | awk '{print $2, $1}' | sort"), mount.ok("stat -c '%n %i' q/* | cut -c3- | sort"));
}

#[test]
fn messages_are_regular_files_for_ordinary_programs() {
    let Some(mount) = mount() else { return };
    assert_eq!(mount.ok("cat q/messages.txt"), "1 one\n2 two\n3 three\n");
    assert_eq!(mount.ok("cat q/messages.bin"), "1 one2 two3 three");
    assert_eq!(mount.ok("wc -l < q/messages.jsonl"), "3\n");
    assert_eq!(mount.ok("jq -r .payload q/messages.jsonl | tail -n 1"), "3 three\n");
    assert_eq!(mount.ok("jq -c .seq q/messages.jsonl"), "1\n2\n3\n");
    assert_eq!(mount.ok("tail -n 2 q/messages.txt"), "2 two\n3 three\n");
    assert_eq!(mount.ok("tail -c 6 q/messages.txt"), "three\n");
    assert_eq!(mount.ok("tac q/messages.txt | head -n 1"), "3 three\n");
    assert_eq!(mount.ok("grep -c t q/messages.txt"), "2\n");
    assert_eq!(mount.ok("dd if=q/messages.txt bs=1 skip=6 count=5 2>/dev/null"), "2 two");
    assert!(mount.ok("head -n 1 q/messages.hex").starts_with("#1 20"));
    for bs in ["1", "7", "512", "4095", "1M"] {
        let script = format!("cmp <(dd if=q/messages.jsonl bs={bs} 2>/dev/null) <(cat q/messages.jsonl)");
        mount.ok(&script);
    }
    for name in ["messages.jsonl", "messages.txt", "messages.bin", "messages.hex"] {
        assert_eq!(mount.ok(&format!("stat -c %s q/{name}")), mount.ok(&format!("cat q/{name} | wc -c")), "{name}");
    }
    mount.ok("cp q/messages.jsonl ../copy && cmp ../copy q/messages.jsonl");
    let newest = queue(&mount).bounds().unwrap().last_timestamp_ns / 1_000_000_000;
    assert_eq!(mount.ok("stat -c %Y q/messages.txt").trim(), newest.to_string());
}

#[test]
fn messages_grow_under_tail_f() {
    let Some(mount) = mount() else { return };
    let (_tail, output) = tail(&mount, "-f");
    until("tail is at the end", || output() == "3 three\n");
    let inode = std::fs::metadata(mount.mountpoint().join("q/messages.txt")).unwrap().ino();
    let queue = queue(&mount);
    append(&queue, &["4 native"]);
    mount.ok("echo '5 mount' > q/append.txt");
    assert_eq!(std::fs::metadata(mount.mountpoint().join("q/messages.txt")).unwrap().ino(), inode);
    until("tail has read on", || output() == "3 three\n4 native\n5 mount\n");
}

#[test]
fn retention_changes_the_inode_of_the_name() {
    let Some(mount) = mount() else { return };
    let line = "x".repeat(1000);
    mount.ok(&format!("for i in {{1..200}}; do echo {line}; done > q/append.txt"));
    let path = mount.mountpoint().join("q/messages.txt");
    let before = std::fs::metadata(&path).unwrap();
    let (_tail, output) = tail(&mount, "-F");
    until("tail is at the end", || output() == format!("{line}\n"));
    std::fs::remove_file(mount.root().join("q/000000000.q")).unwrap();
    until("the name means another file", || std::fs::metadata(&path).unwrap().ino() != before.ino());
    let after = std::fs::metadata(&path).unwrap();
    assert!(after.size() < before.size() && after.size() > 0);
    assert_eq!(mount.ok("wc -l < q/messages.txt").trim().parse::<u64>().unwrap() * 1001, after.size());
    assert_eq!(mount.ok("cat q/messages.txt | tr -d 'x\\n'"), "");
    mount.ok("echo after > q/append.txt");
    assert_eq!(mount.ok("tail -n 1 q/messages.txt"), "after\n");
    until("tail follows", || output().ends_with("\nafter\n"));
}

#[test]
fn an_open_file_is_read_as_far_as_its_size_was_said_to_be() {
    let Some(mount) = mount() else { return };
    let script = "exec 5< q/messages.txt; yes $(printf x%.0s {1..999}) | head -n 300 > q/append.txt; \
                  stat -L -c %s /dev/fd/5; rm ../root/q/00000000[0-2].q; cat <&5 | wc -c";
    assert_eq!(mount.ok(script), "300020\n300020\n");
    let path = mount.mountpoint().join("q/messages.txt");
    until("the name stands for what is retained", || std::fs::metadata(&path).unwrap().size() < 200_000);
}

#[test]
fn another_queue_at_the_same_place_is_another_file() {
    let Some(mount) = mount() else { return };
    let path = mount.mountpoint().join("q/messages.txt");
    let before = std::fs::metadata(&path).unwrap().ino();
    let dir = mount.root().join("q");
    until("the mount lets go of the writer", || Queue::open(&dir).unwrap().writer().is_ok());
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }
    let queue = Queue::create(&dir, &Settings { segment_size: 65536, ..Settings::default() }).unwrap();
    append(&queue, &["new"]);
    until("the new one shows", || std::fs::metadata(&path).is_ok_and(|metadata| metadata.ino() != before));
    assert_eq!(mount.ok("cat q/messages.txt"), "new\n");
}

#[test]
fn the_first_append_makes_the_queue() {
    let Some(mount) = TestMount::with_options(SMALL) else { return };
    mount.ok("mkdir a b c d");
    assert_eq!(mount.ok("ls a"), "");
    mount.ok(
        "echo hello > a/append.txt; echo '{\"payload\":\"hi\",\"type\":7}' >> b/append.jsonl; printf x > c/append.bin",
    );
    assert_eq!(mount.ok("cat a/messages.txt b/messages.txt c/messages.txt"), "hello\nhi\nx\n");
    assert_eq!(Queue::open(mount.root().join("a")).unwrap().settings().segment_size, 65536);
    // Neither an open nor an invalid line is an append.
    mount.ok("mkdir e && : > e/append.txt && touch e/append.bin && printf '' > e/append.jsonl");
    assert!(mount.fails("echo bad > e/append.jsonl").contains("Invalid argument"));
    assert!(mount.fails("printf bad > e/append.jsonl; cat e/messages.txt").contains("No such file"));
    mount.ok("rmdir e && mkdir e && printf last > e/append.txt");
    until("the unfinished line is in", || mount.root().join("e/control.meta").exists());
    std::fs::write(mount.root().join("d/file"), "not empty").unwrap();
    assert!(mount.fails("echo hello > d/append.txt").contains("Operation not permitted"));
    mount.ok("cp c/messages.jsonl a/append.jsonl && cat a/messages.txt >> b/append.txt");
    assert_eq!(mount.ok("cat a/messages.txt b/messages.txt"), "hello\nx\nhi\nhello\nx\n");
    // Timestamps never decrease within a queue: what is older is refused, line by line.
    assert!(mount.fails("cp a/messages.jsonl c/append.jsonl").contains("Invalid argument"));
}

#[test]
fn many_first_appends_make_one_queue() {
    let Some(mount) = TestMount::with_options(SMALL) else { return };
    let script = "mkdir $n; for i in 1 2 3 4 5 6; do echo $i > $n/append.txt & done; wait; sort $n/messages.txt";
    for n in 0..20 {
        assert_eq!(mount.ok(&format!("n=q{n}; {script}")), "1\n2\n3\n4\n5\n6\n");
    }
}

#[test]
fn lines_are_messages() {
    let Some(mount) = mount() else { return };
    // One handle: pieces of lines, an empty line, bytes that are not text, an end without a newline.
    mount.ok("(printf 'a'; printf 'b\\n\\nc'; printf 'd\\n\\xff\\x00\\te'; printf 'nd') > q/append.txt");
    until("the last line is in", || payloads(&queue(&mount)).len() == 7);
    assert_eq!(payloads(&queue(&mount))[3..], ["ab", "", "cd", "\u{fffd}\0\tend"]);
    // Two handles keep their unfinished lines apart.
    mount.ok("exec 5> q/append.txt 6>> q/append.txt; printf left >&5; printf right >&6; echo ' 5' >&5; echo ' 6' >&6");
    assert_eq!(payloads(&queue(&mount))[7..], ["left 5", "right 6"]);
    assert_eq!(mount.ok("exec 5> q/append.txt; echo seen >&5; tail -n 1 q/messages.txt"), "seen\n");
}

#[test]
fn many_writers_interleave_whole_messages() {
    let Some(mount) = mount() else { return };
    mount.ok("for w in {1..8}; do (for i in {1..200}; do echo \"$w $i\"; done > q/append.txt) & done; wait");
    let lines = payloads(&queue(&mount)).split_off(3);
    assert_eq!(lines.len(), 1600);
    for writer in 1..=8 {
        let prefix = format!("{writer} ");
        let own: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix(&prefix)).collect();
        let expected: Vec<_> = (1..=200).map(|i| i.to_string()).collect();
        assert_eq!(own, expected, "each writer's messages are in its order");
    }
}

#[test]
fn a_bad_line_ends_the_write_before_it_and_the_next_one_fails() {
    let Some(mount) = mount() else { return };
    let python = r#"
import os, errno
def write(data):
    try: return os.write(fd, data)
    except OSError as e: return errno.errorcode[e.errno]
good = b'{"payload":"g"}\n'
fd = os.open("q/append.jsonl", os.O_WRONLY | os.O_TRUNC | os.O_APPEND | os.O_CREAT)
print(write(good + b"bad\n" + good), write(good), write(good), write(b"bad\n" + good), write(good))
print(write(b'{"payload":'), write(b'"split"}\n'))
print(write(b'{"payload":'), write(b'bad}\n' + good), write(good))
print(write(b'{"payload":"old","timestamp_ns":5}\n'), write(b'{"payload":"x","type":65535}\n'))
os.close(fd)
fd = os.open("q/append.packets", os.O_WRONLY)
print(write(b"binary\n"), write(b""), write(b"x" * (1 << 20)), write(b"x" * 3_000_001), write(b"x" * 70_000), write(b"y" * 60_000))
os.close(fd)
fd = os.open("q/append.txt", os.O_WRONLY)
print(write(b"x" * 70_000), write(b"tail\n"), write(b"fits\n"), write(b"z" * 100_000 + b"\n"), os.lseek(fd, 100, 0), write(b"anywhere\n"))
os.close(fd)
"#;
    std::fs::write(mount.root().with_file_name("bad.py"), python).unwrap();
    let printed = mount.ok("python3 ../bad.py");
    let expected = "16 EINVAL 16 EINVAL 16\n11 9\n11 EINVAL 16\nEINVAL EINVAL\n7 0 EMSGSIZE EMSGSIZE EMSGSIZE 60000\n\
                    EMSGSIZE EMSGSIZE 5 EMSGSIZE 100 9\n";
    assert_eq!(printed, expected);
    let got = payloads(&queue(&mount)).split_off(3);
    assert_eq!(got[..6], ["g", "g", "g", "split", "g", "binary\n"]);
    assert_eq!((got[6].len(), &got[7..]), (60_000, &["fits".to_owned(), "anywhere".to_owned()][..]));
    assert!(mount.fails("cat q/append.txt").contains("Permission denied"));
    assert!(mount.fails("exec 5<> q/append.txt").contains("Permission denied"));
}

#[test]
fn asking_for_room_appends_nothing() {
    let Some(mount) = mount() else { return };
    let before = payloads(&queue(&mount));
    let python = "import os; os.posix_fallocate(os.open('q/append.txt', os.O_WRONLY), 0, 9999)";
    assert!(mount.fails(&format!("python3 -c \"{python}\"")).contains("Operation not permitted"));
    append(&queue(&mount), &["next"]);
    assert_eq!(payloads(&queue(&mount)), [before, vec!["next".to_owned()]].concat());
}

#[test]
fn there_is_one_writer() {
    let Some(mount) = mount() else { return };
    let queue = queue(&mount);
    {
        let _writer = writer(&queue);
        assert!(mount.fails("echo x > q/append.txt").contains("Device or resource busy"));
        assert_eq!(
            mount.ok("jq -r '.writer.state, .writer.pid' q/status.json"),
            format!("alive\n{}\n", std::process::id())
        );
        assert!(mount.ok("cat q/status").contains(&std::process::id().to_string()));
    }
    mount.ok("echo x > q/append.txt");
    // While an append handle is open the mount holds the lock; afterwards it releases it.
    let holder = mount.start("bash", &["-c", "exec 5> q/append.txt; echo held >&5; exec sleep 60"]);
    until("it holds the lock", || payloads(&queue).last().is_some_and(|line| line == "held"));
    assert!(matches!(queue.writer(), Err(chronfs::Error::Locked { .. })));
    drop(holder);
    append(&queue, &["free"]);
}

#[test]
fn fsync_and_full_queues_reach_the_shell() {
    let Some(mount) = mount() else { return };
    mount.ok("dd if=<(echo synced) of=q/append.txt oflag=sync conv=fsync,notrunc status=none");
    assert_eq!(mount.ok("tail -n 1 q/messages.txt"), "synced\n");
    let limited = Settings { segment_size: 65536, max_bytes: Some(131_072), ..Settings::default() };
    drop(Queue::create(mount.root().join("limited"), &limited).unwrap());
    let complained = mount.fails("yes $(printf 'x%.0s' {1..500}) | head -n 1000 | cat > limited/append.txt");
    assert!(complained.contains("Disk quota exceeded"), "{complained}");
    let kept: u64 = mount.ok("wc -l < limited/messages.txt").trim().parse().unwrap();
    assert!(kept > 100 && kept < 300, "{kept}");
}

#[test]
fn followers_get_what_comes_after_them() {
    let Some(mount) = mount() else { return };
    let head = mount.start("head", &["-n", "2", "q/follow.txt"]);
    let jsonl = mount.start("jq", &["--unbuffered", "-r", "input.payload", "q/follow.jsonl"]);
    mount.wait_until_blocked(&head);
    mount.wait_until_blocked(&jsonl);
    append(&queue(&mount), &["native"]);
    mount.ok("echo mount > q/append.txt");
    assert_eq!(text(&head.output().stdout), "native\nmount\n");
    drop(jsonl);
    assert_eq!(mount.ok("stat -c %s q/follow.txt"), "0\n");
    assert_eq!(
        mount.ok("dd if=q/follow.txt iflag=nonblock 2>&1 | head -n 1 | grep -o 'temporarily unavailable'"),
        "temporarily unavailable\n"
    );
}

#[test]
fn a_blocked_reader_obeys_signals() {
    let Some(mount) = mount() else { return };
    for (signal, program, arguments) in [
        ("INT", "cat", &["q/follow.txt"][..]),
        ("TERM", "grep", &["x", "q/follow.jsonl"]),
        ("KILL", "cat", &["q/follow.hex"]),
        ("INT", "python3", &["-S", "-c", "open('q/follow.bin','rb',0).read(10)"]),
    ] {
        let reader = mount.start(program, arguments);
        let bystander = mount.start("cat", &["q/follow.txt"]);
        mount.wait_until_blocked(&reader);
        mount.wait_until_blocked(&bystander);
        reader.signal(signal);
        assert!(!reader.output().status.success());
        // Others are not disturbed.
        bystander.signal("0");
        mount.wait_until_blocked(&bystander);
    }
}

#[test]
fn programs_that_mistake_interruption_for_an_error_are_left_alone() {
    let Some(mount) = mount() else { return };
    let sed = mount.start("sed", &["-u", "2q", "q/follow.txt"]);
    mount.wait_until_blocked(&sed);
    // The absence of an effect can only be waited for: several rounds of checks for signals.
    std::thread::sleep(Duration::from_millis(400));
    append(&queue(&mount), &["a", "b"]);
    let output = sed.output();
    assert_eq!((output.status.success(), text(&output.stdout).as_str()), (true, "a\nb\n"));
}

#[test]
fn poll_select_and_epoll_wait_for_messages() {
    let Some(mount) = mount() else { return };
    let python = r#"
import os, select, subprocess
fd = os.open("q/follow.txt", os.O_RDONLY | os.O_NONBLOCK)
def write(text): subprocess.Popen(["sh", "-c", "sleep 0.2; echo %s > q/append.txt" % text]).wait
def eagain():
    try: os.read(fd, 100)
    except BlockingIOError: return True
p = select.poll(); p.register(fd, select.POLLIN)
assert eagain() and p.poll(50) == []
write("one"); assert p.poll(10000) == [(fd, select.POLLIN)]
assert p.poll(0) and os.read(fd, 3) == b"one" and p.poll(0) and os.read(fd, 100) == b"\n"
assert p.poll(50) == [] and eagain()
write("two"); assert select.select([fd], [], [], 10)[0] == [fd]
assert os.read(fd, 100) == b"two\n"
e = select.epoll(); e.register(fd, select.EPOLLIN)
assert e.poll(0.05) == []
write("three"); assert e.poll(10) == [(fd, select.EPOLLIN)]
assert os.read(fd, 100) == b"three\n" and e.poll(0.05) == []
e = select.epoll(); e.register(fd, select.EPOLLIN | select.EPOLLET)
assert e.poll(0.05) == []
for text in ["four", "five", "six"]:
    write(text); assert e.poll(10) == [(fd, select.EPOLLIN)], text
    assert os.read(fd, 2) == text[:2].encode() and os.read(fd, 100) == text[2:].encode() + b"\n" and eagain()
    assert e.poll(0.05) == []
m = os.open("q/messages.txt", os.O_RDONLY)
p = select.poll(); p.register(m, select.POLLIN); assert p.poll(0)
assert os.lseek(fd, 7, os.SEEK_SET) == 7
"#;
    std::fs::write(mount.root().with_file_name("poll.py"), python).unwrap();
    mount.ok("python3 ../poll.py");
}

#[test]
fn two_hundred_blocked_readers_leave_the_mount_responsive() {
    let Some(mount) = mount() else { return };
    let readers: Vec<_> = (0..200).map(|_| mount.start("head", &["-n", "1", "q/follow.txt"])).collect();
    readers.iter().for_each(|reader| mount.wait_until_blocked(reader));
    assert_eq!(mount.ok("cat q/messages.txt | wc -l"), "3\n");
    append(&queue(&mount), &["go"]);
    for reader in readers {
        assert_eq!(text(&reader.output().stdout), "go\n");
    }
}

#[test]
fn readers_are_directories() {
    let Some(mount) = mount() else { return };
    mount.ok("mkdir q/readers/alice");
    assert_eq!(mount.ok("ls q/readers; ls q/readers/alice | grep -v '[.].*[nltx]$'"), "alice\nlag\nposition\n");
    assert_eq!(mount.ok("cd q/readers/alice; cat position lag"), "1\n3\n");
    for (word, position) in [("3", 3), ("first", 1), ("end", 4), ("-2", 2), ("+1", 3), ("@2020-01-01T00:00:00Z", 1)] {
        mount.ok(&format!("echo {word} > q/readers/alice/position"));
        assert_eq!(mount.ok("cat q/readers/alice/position"), format!("{position}\n"), "{word}");
        assert_eq!(queue(&mount).reader_position("alice").unwrap(), position);
    }
    for word in
        ["0", "5", "-1", "+9", "x", "1x", "''", "@never", "@2300-01-01T00:00:00Z", "99999999999999999999", "+-1"]
    {
        assert!(mount.fails(&format!("echo {word} > q/readers/alice/position")).contains("Invalid argument"), "{word}");
        assert_eq!(mount.ok("cat q/readers/alice/position"), "1\n", "nothing moves");
    }
    assert_eq!(
        mount.ok("jq -c '[.name, .position, .lag_messages, .state, .alive]' q/readers/alice/status.json"),
        "[\"alice\",1,3,\"idle\",false]\n"
    );
    for (script, complaint) in [
        ("mkdir q/readers/alice", "File exists"),
        ("mkdir q/readers/.hidden", "Invalid argument"),
        ("mkdir 'q/readers/a b'", "Invalid argument"),
        ("mkdir q/readers/$(printf 'x%.0s' {1..129})", "File name too long"),
        ("rmdir q/readers/nobody", "No such file"),
        ("touch q/readers/file", "Operation not permitted"),
        ("echo x > q/readers/alice/lag", "Permission denied"),
    ] {
        let complained = mount.fails(script);
        assert!(complained.contains(complaint), "{script}: {complained}");
    }
    // A native process uses the reader: it shows as live, and no other process can use it.
    let queue = queue(&mount);
    let mut native = queue.reader("alice").unwrap();
    native.next().unwrap();
    native.commit();
    assert_eq!(mount.ok("cat q/readers/alice/position"), "2\n");
    assert!(mount.fails("echo 3 > q/readers/alice/position").contains("Device or resource busy"));
    assert!(mount.fails("rmdir q/readers/alice").contains("Device or resource busy"));
    drop(native);
    mount.ok("rmdir q/readers/alice");
    assert_eq!(mount.ok("ls q/readers"), "");
    assert!(queue.reader_names().unwrap().is_empty());
}

/// Flips a bit in the payload of the second message.
fn damage(mount: &TestMount) {
    until("the mount lets go of the writer", || queue(mount).writer().is_ok());
    let path = mount.root().join("q/000000000.q");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(4).position(|window| window == b" two").unwrap() - 1;
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
}

#[test]
fn damage_after_a_listing_is_a_gap_to_the_next_open() {
    let Some(mount) = mount() else { return };
    mount.ok("ls -l q; cat q/messages.*; ls -l q/since/2; cat q/since/2/messages.*");
    damage(&mount);
    for name in ["jsonl", "txt", "hex"].map(|format| format!("messages.{format}")) {
        assert_eq!(mount.ok(&format!("grep -c gap q/{name}; grep -c gap q/since/2/{name}")), "1\n1\n", "{name}");
    }
}

#[test]
fn small_files_have_their_true_size_after_a_listing() {
    let Some(mount) = mount() else { return };
    mount.ok("mkdir q/readers/r");
    for (directory, name) in [("q/readers/r", "position"), (".chronfs", "README"), (".chronfs", "version")] {
        let listed = mount.ok(&format!("ls -l {directory} | awk '$NF == \"{name}\" {{ print $5 }}'"));
        assert_eq!(listed, mount.ok(&format!("wc -c < {directory}/{name}")), "{name}");
    }
    let listed = mount.ok("ls -l q | awk '$NF ~ /^status/ { print $5 }'");
    assert!(listed.lines().count() == 2 && !listed.lines().any(|size| size == "0"), "{listed}");
}

#[test]
fn a_file_shortened_by_retention_is_another_file_at_once() {
    let Some(mount) = mount() else { return };
    let settings = Settings { segment_size: 64 << 10, retain_bytes: Some(64 << 10), ..Settings::default() };
    let queue = Queue::create(mount.root().join("short"), &settings).unwrap();
    let mut writer = queue.writer().unwrap();
    writer.append(1, b"first").unwrap();
    let look = "stat -c '%i %s' short/messages.txt; ls -i short/messages.txt";
    let before = mount.ok(look);
    until("something is retired", || {
        writer.append(1, &[b'x'; 1000]).unwrap();
        queue.bounds().unwrap().first_seq > 1
    });
    let after = mount.ok(look);
    for (before, after) in before.split_whitespace().zip(after.split_whitespace()).take(3) {
        assert_ne!(before, after);
    }
}

#[test]
fn damage_in_one_queue_leaves_the_others_alone() {
    let Some(mount) = mount() else { return };
    mount.ok("mkdir sound && echo sound > sound/append.txt");
    damage(&mount);
    let path = mount.root().join("q/000000000.q");
    assert_eq!(mount.ok("jq -c '.seq // .gap.reason' q/messages.jsonl"), "1\n\"checksum\"\n3\n");
    assert_eq!(mount.ok("grep -c '^# gap' q/messages.txt"), "1\n");
    // What is left of it can be put into another queue.
    assert_eq!(
        mount.ok("mkdir saved && cp q/messages.jsonl saved/append.jsonl && wc -l < saved/messages.jsonl"),
        "2\n"
    );
    // In bin there is no line for it: one error, then what is after it.
    let python = "import os; fd = os.open('q/messages.bin', os.O_RDONLY); print(os.read(fd, 100))\n\
                  try: os.read(fd, 100)\n\
                  except OSError as e: print(e.strerror)\n\
                  print(os.read(fd, 100) + os.read(fd, 100))\n";
    std::fs::write(mount.root().with_file_name("gap.py"), python).unwrap();
    assert_eq!(mount.ok("python3 ../gap.py"), "b'1 one'\nInput/output error\nb'3 three'\n");
    assert_eq!(mount.ok("cat sound/messages.txt"), "sound\n");
    // An unreadable queue is still listed, and its siblings work.
    std::fs::write(mount.root().join("q/control.meta"), "nonsense").unwrap();
    std::fs::write(&path, "nonsense").unwrap();
    mount.ok("ls q . sound");
    mount.fails("cat q/messages.txt");
    assert_eq!(mount.ok("cat sound/messages.txt"), "sound\n");
}

#[test]
fn a_plain_user_can_do_all_of_this() {
    common::plain_user::run_tests_again("a_plain_user_can_do_all_of_this");
}
