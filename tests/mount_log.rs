//! Rotation: a follower sees nothing twice and misses nothing, and no open fails because retention is fast.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Instant;

use chronfs::Queue;
use chronfs::queue::{QueueWriter, Settings};
use common::{DEADLINE, TestMount, until, writer};

/// A mount of the queue `q`, which keeps this many segments of 64 KiB.
fn mount(segments: u64) -> Option<(TestMount, Queue)> {
    let settings = Settings { segment_size: 64 << 10, retain_bytes: Some(segments << 16), ..Settings::default() };
    let mount = TestMount::over(|root| drop(Queue::create(root.join("q"), &settings).unwrap()), "rw")?;
    let queue = Queue::open(mount.root().join("q")).unwrap();
    Some((mount, queue))
}

/// Appends numbered lines, about 600 to a segment.
fn append(writer: &mut QueueWriter, numbers: std::ops::Range<u32>) {
    for number in numbers {
        writer.append(1, format!("{number:08} {}", "-".repeat(50)).as_bytes()).unwrap();
    }
}

fn number(line: &str) -> u32 {
    line[..8].parse().unwrap()
}

#[test]
fn each_segment_is_a_file_that_stays_what_it_is_until_it_goes() {
    let Some((mut mount, queue)) = mount(100) else { return };
    assert_eq!(mount.ok("ls q/log"), "");
    let mut writer = writer(&queue);
    append(&mut writer, 0..2000);
    for format in ["jsonl", "txt", "bin", "hex"] {
        let names = mount.ok(&format!("cd q/log; echo *.{format}"));
        let expected: Vec<_> = (0..4).map(|n| format!("{n:09}.{format}")).collect();
        assert_eq!(names.trim(), expected.join(" "));
        mount.ok(&format!("cat q/log/*.{format} | cmp - q/messages.{format}"));
        mount.ok(&format!("test $(cat q/log/*.{format} | wc -c) = $(stat -c %s q/messages.{format})"));
    }
    let list = "cd q/log; stat -c '%n %i %s' *; cksum *";
    let newest = mount.ok("ls q/log/*.txt | tail -n 1 | xargs basename -s .txt");
    let sealed =
        |listed: &str| listed.lines().filter(|line| !line.contains(newest.trim())).collect::<Vec<_>>().join("\n");
    let before = mount.ok(list);
    append(&mut writer, 2000..2100);
    let after = mount.ok(list);
    assert_eq!(sealed(&before), sealed(&after));
    assert_ne!(before, after, "the newest one grows");
    mount.ok("umount .. 2> /dev/null; true");
    common::detach(&mount.mountpoint());
    common::wait(mount.daemon());
    mount.mount_again("rw");
    assert_eq!(mount.ok(list), after);
    let numbers: Vec<_> = mount.ok("stat -c %i q/log/* q/messages.* q/status").lines().map(String::from).collect();
    assert!(numbers.iter().all(|number| number.parse::<u64>().unwrap() < 1 << 53), "{numbers:?}");
    assert_eq!(numbers.iter().collect::<std::collections::HashSet<_>>().len(), numbers.len());
    for name in ["00000000.txt", "0000000000.txt", "000000000.q", "000000000", "000000099.txt", "-00000001.txt"] {
        assert!(mount.fails(&format!("cat q/log/{name}")).contains("No such file"), "{name}");
    }
}

#[test]
fn files_of_segments_go_with_retention_and_open_ones_can_be_read() {
    let Some((mount, queue)) = mount(3) else { return };
    let mut writer = writer(&queue);
    append(&mut writer, 0..1500);
    let path = mount.mountpoint().join("q/log/000000000.txt");
    let before = std::fs::read(&path).unwrap();
    let file = File::open(&path).unwrap();
    let mut sent = 1500;
    until("retention takes it", || {
        append(&mut writer, sent..sent + 500);
        sent += 500;
        File::open(&path).is_err()
    });
    let mut bytes = vec![0; before.len()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == before);
    assert_eq!(file.metadata().unwrap().len(), before.len() as u64);
    let (first, last) = (mount.ok("ls q/log | head -n 1"), mount.ok("tail -qn 1 $(ls q/log/*.txt | tail -n 1)"));
    assert!(first.as_str() > "000000001" && number(&last) == sent - 1, "{first} {last}");
}

/// What a log shipper keeps over restarts: how far it has read each file, by inode number.
#[derive(Default)]
struct Shipper {
    offsets: HashMap<u64, u64>,
    lines: BTreeMap<u32, u32>,
}

impl Shipper {
    /// One scan of a directory: of files that are not open, as after a start.
    fn scan(&mut self, dir: &Path) {
        let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "txt"));
        paths.sort();
        for path in paths {
            let Ok(file) = File::open(&path) else { continue };
            let Ok(metadata) = file.metadata() else { continue };
            let offset = self.offsets.entry(metadata.ino()).or_default();
            if metadata.len() < *offset {
                // As filebeat, fluent-bit and others do with a truncated file.
                *offset = 0;
            }
            let mut reader = BufReader::new(file);
            reader.seek(SeekFrom::Start(*offset)).unwrap();
            let mut line = String::new();
            while matches!(reader.read_line(&mut line), Ok(1..)) && line.ends_with('\n') {
                *self.lines.entry(number(&line)).or_default() += 1;
                *offset += line.len() as u64;
                line.clear();
            }
        }
    }
}

#[test]
fn shippers_get_each_line_once_over_retention_and_remounts() {
    const COUNT: u32 = 12_000;
    let Some((mut mount, queue)) = mount(6) else { return };
    let mut shipper = Shipper::default();
    let mut sent = 0;
    while sent < COUNT {
        append(&mut writer(&queue), sent..sent + 400);
        sent += 400;
        shipper.scan(&mount.mountpoint().join("q/log"));
        if sent == COUNT / 2 {
            common::detach(&mount.mountpoint());
            common::wait(mount.daemon());
            mount.mount_again("rw");
        }
    }
    assert!(queue.bounds().unwrap().first_seq > 4000, "retention was at work");
    assert_eq!(shipper.lines.len(), COUNT as usize, "none is missing");
    assert!(shipper.lines.values().all(|times| *times == 1), "none came twice");
}

#[test]
fn tail_by_name_prints_each_line_once_over_retention() {
    const COUNT: u32 = 16_000;
    let Some((mount, queue)) = mount(6) else { return };
    let mut sent = 5000;
    append(&mut writer(&queue), 0..sent);
    let printed = mount.root().with_file_name("tail.out");
    // It checks the name again each time that nothing new has been read.
    let script = format!("exec tail -n 1 -s 0.02 --max-unchanged-stats=1 -F q/messages.txt > {}", printed.display());
    let tail = mount.start("bash", &["-c", &script]);
    let lines = || {
        let text = std::fs::read_to_string(&printed).unwrap_or_default();
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(number).collect::<Vec<_>>()
    };
    let path = mount.mountpoint().join("q/messages.txt");
    let inode = || std::fs::metadata(&path).unwrap().ino();
    until("it has begun", || lines().len() == 1);
    let mut generations = std::collections::HashSet::from([inode()]);
    while sent < COUNT {
        append(&mut writer(&queue), sent..sent + 300);
        sent += 300;
        until("it has printed them", || lines().last() == Some(&(sent - 1)));
        generations.insert(inode());
    }
    assert!(generations.len() > 5, "to others the name stands for a new file each time");
    assert_eq!(lines(), (4999..sent).collect::<Vec<_>>());
    let fresh = mount.ok("head -n 1 q/messages.txt");
    assert!(number(&fresh) > 5000, "{fresh}");
    drop(tail);
}

#[test]
fn an_open_file_shows_what_retention_removed_unseen_as_a_gap_and_grows_on() {
    let Some((mount, queue)) = mount(2) else { return };
    let path = mount.mountpoint().join("q/messages.txt");
    let mut file = File::open(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    let (mut writer, mut sent, mut gaps) = (writer(&queue), 0, 0);
    let mut next = 0;
    for count in [6000, 1, 20_000, 1] {
        append(&mut writer, sent..sent + count);
        sent += count;
        queue.apply_retention().unwrap();
        let size = file.metadata().unwrap().len();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut file, &mut text).unwrap();
        assert_eq!(file.stream_position().unwrap(), size);
        for line in text.lines() {
            if let Some(gap) = line.strip_prefix(&format!("# gap from={} to=", next + 1)) {
                next = gap.split(' ').next().unwrap().parse().unwrap();
                gaps += 1;
            } else {
                assert_eq!(number(line), next, "each once and in order");
                next += 1;
            }
        }
        assert_eq!(next, sent);
    }
    assert!(gaps > 0, "retention was at work");
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), file.metadata().unwrap().ino());
}

#[test]
fn a_process_that_holds_an_older_file_finds_it_by_its_name_until_it_closes_it() {
    let Some((mount, queue)) = mount(3) else { return };
    append(&mut writer(&queue), 0..2000);
    let script = r#"
import os, sys, time
def name(): return os.stat("q/messages.txt").st_ino
fd = os.open("q/messages.txt", os.O_RDONLY)
before = os.fstat(fd)
print("open", flush=True)
sys.stdin.readline()
again = os.open("q/messages.txt", os.O_RDONLY)
print(name() == before.st_ino, os.fstat(again).st_ino == before.st_ino, os.fstat(fd).st_size > before.st_size)
print(os.pread(again, 8, 0).decode())
os.close(fd); os.close(again)
until = time.time() + 20
while name() == before.st_ino and time.time() < until: time.sleep(0.01)
print(name() == before.st_ino)
"#;
    std::fs::write(mount.root().with_file_name("holder.py"), script).unwrap();
    let ino = || mount.ok("stat -c %i q/messages.txt");
    let mut holder = std::process::Command::new("timeout")
        .args(["20", "python3", "-S", "../holder.py"])
        .current_dir(mount.mountpoint())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(holder.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let before = ino();
    let first = mount.ok("head -c 8 q/messages.txt");
    let mut sent = 2000;
    until("it is rotated", || {
        append(&mut writer(&queue), sent..sent + 500);
        sent += 500;
        ino() != before
    });
    use std::io::Write as _;
    holder.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut output, &mut rest).unwrap();
    holder.wait().unwrap();
    assert_eq!(rest, format!("True True True\n{first}\nFalse\n"));
}

#[test]
fn whatever_is_opened_can_be_read_however_fast_retention_is() {
    let Some((mount, queue)) = mount(2) else { return };
    let mut writer = writer(&queue);
    append(&mut writer, 0..2000);
    mount.ok("mkdir q/readers/r");
    let over = std::sync::atomic::AtomicBool::new(false);
    let opened = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sent = 2000;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                append(&mut writer, sent..sent + 100);
                sent += 100;
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        });
        let readers = ["messages.jsonl", "messages.txt", "messages.bin"].map(|name| {
            let path = mount.mountpoint().join("q").join(name);
            scope.spawn(move || {
                let started = Instant::now();
                let mut opened = 0;
                while started.elapsed() < DEADLINE / 5 {
                    let file = File::open(&path).unwrap();
                    let len = file.metadata().unwrap().len();
                    let mut bytes = vec![0; usize::try_from(len).unwrap()];
                    file.read_exact_at(&mut bytes, 0).unwrap();
                    assert!(!bytes.contains(&0));
                    opened += 1;
                }
                opened
            })
        });
        let opened: Vec<i32> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        opened
    });
    assert!(opened.iter().all(|count| *count > 20), "{opened:?}");
}

#[test]
fn a_plain_user_can_do_all_of_this() {
    common::plain_user::run_tests_again("a_plain_user_can_do_all_of_this");
}
