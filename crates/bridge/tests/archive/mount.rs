//! Archives that are mounted, and read by the engine as it is.
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use chronfs::Queue;
use chronfs::fs::kind::unmount;
use chronfs::queue::{Entry, GapReason, SegmentId};
use chronfs::view::{Format, View};

use crate::common::need::{Need, built, require};
use crate::common::{Running, append, count, payload, signal_to, text, until, writer};
use crate::s3::{self, Server};
use crate::service::{start, until_report};
use crate::shelf::{Archive, BUILT, SEVERAL, path, segment_objects, segments, several};

/// Longer than a read waits for a store that is silent.
const BOUNDED: Duration = Duration::from_secs(50);

/// A file in the cache.
#[derive(Debug, PartialEq)]
struct Cached {
    size: u64,
    inode: u64,
    written: SystemTime,
}

/// An archive that is mounted; unmounted when dropped.
struct Mounted {
    dir: PathBuf,
    cache: PathBuf,
    log: PathBuf,
    process: Option<Running>,
}

impl Mounted {
    /// At `at/mnt`, with `at/cache` and `at/log`.
    #[track_caller]
    fn new(archive: &Archive, at: &Path, more: &[&str]) -> Self {
        let [dir, cache, log] = ["mnt", "cache", "log"].map(|name| at.join(name));
        fs::create_dir_all(&dir).unwrap();
        let mut mounted = Self { dir, cache, log, process: None };
        mounted.start(archive, more);
        mounted
    }

    #[track_caller]
    fn start(&mut self, archive: &Archive, more: &[&str]) {
        let what = ["mount", "--foreground", "--cache", path(&self.cache), &archive.url, path(&self.dir)];
        let mut process = start(archive.command(&what, more), &self.log);
        until("it is mounted", || {
            let ended = process.child().try_wait().unwrap();
            assert!(ended.is_none(), "{}", self.said());
            // A dead mount is still in the table.
            is_mounted(&self.dir) && self.dir.metadata().is_ok()
        });
        self.process = Some(process);
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Segments in the cache.
    fn fetched(&self) -> usize {
        self.cached().keys().filter(|path| path.extension().is_some_and(|extension| extension == "q")).count()
    }

    /// What the files in the cache take together. Two listings that are equal: all of them were there at once.
    fn used(&self) -> u64 {
        loop {
            let (before, after) = (self.cached(), self.cached());
            if before == after {
                return after.values().map(|file| file.size).sum();
            }
        }
    }

    /// Everything in the cache.
    fn cached(&self) -> BTreeMap<PathBuf, Cached> {
        let mut found = BTreeMap::new();
        let mut dirs = vec![self.cache.join("objects")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                match entry.metadata() {
                    Ok(metadata) if metadata.is_dir() => dirs.push(entry.path()),
                    Ok(metadata) => {
                        let written = metadata.modified().unwrap();
                        let file = Cached { size: metadata.len(), inode: metadata.ino(), written };
                        found.insert(entry.path(), file);
                    }
                    Err(_) => {}
                }
            }
        }
        found
    }

    fn queue(&self) -> Queue {
        Queue::open(&self.dir).unwrap()
    }

    /// Told to end as systemd does.
    fn stop(mut self) {
        let mut process = self.process.take().unwrap();
        process.signal("TERM");
        let began = Instant::now();
        let code = loop {
            if let Some(status) = process.child().try_wait().unwrap() {
                break status.code();
            }
            assert!(began.elapsed() < BOUNDED, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(code, Some(0), "{}", self.said());
        assert!(!is_mounted(&self.dir));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(self.process.take());
        let _ = unmount(&self.dir);
    }
}

fn is_mounted(dir: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == Some(path(dir)) && line.contains("fuse.chron-archive"))
}

fn can_mount() -> bool {
    require(Need::Mount)
}

/// A queue that is archived in a directory, and its parent.
fn archived() -> (tempfile::TempDir, PathBuf, Archive) {
    let dir = tempfile::tempdir().unwrap();
    let one = dir.path().join("q");
    let archive = Archive::dir(&dir.path().join("store"));
    several(&one);
    archive.archive(&one);
    (dir, one, archive)
}

/// The messages of a queue up to this number.
fn messages(queue: &Queue, last: u64) -> Vec<(u64, u64, Vec<u8>)> {
    let mut scanner = queue.scan().unwrap();
    let mut found = Vec::new();
    while let Some(entry) = scanner.next().unwrap() {
        let Entry::Message(message) = entry else { panic!("{entry:?}") };
        if message.seq > last {
            break;
        }
        found.push((message.seq, message.timestamp_ns, message.payload.to_vec()));
    }
    found
}

fn last_archived(queue: &Queue) -> u64 {
    queue.finished_segments(0).unwrap().last().unwrap().next_seq - 1
}

#[test]
fn a_mounted_archive_is_the_queue() {
    if !can_mount() {
        return;
    }
    let (dir, one, archive) = archived();
    let original = Queue::open(&one).unwrap();
    let last = last_archived(&original);
    let mounted = Mounted::new(&archive, dir.path(), &[]);
    let queue = mounted.queue();
    assert!(queue.control_damage().is_none());
    assert_eq!((queue.id(), queue.settings()), (original.id(), original.settings()));
    // To open it and look at all of it, no more is fetched than where it ends.
    let inspected = queue.inspect().unwrap();
    let (bounds, sealed) = (inspected.bounds, segments(&one).len());
    assert_eq!((bounds.first_seq, bounds.next_seq, inspected.segments.len()), (1, last + 1, sealed));
    assert!(sealed > 3 && mounted.fetched() <= 1, "{} of {sealed}", mounted.fetched());
    for segment in original.finished_segments(0).unwrap() {
        let shown = mounted.dir.join(segment.path.file_name().unwrap());
        assert_eq!(shown.metadata().unwrap().len(), segment.path.metadata().unwrap().len());
        assert!(chronfs::view::segment_index(&queue, segment.id).unwrap().is_some());
        assert_eq!(fs::read(&shown).unwrap(), fs::read(&segment.path).unwrap(), "{}", shown.display());
    }
    assert_eq!(messages(&queue, last), messages(&original, last));
    let mut reader = queue.tailer().unwrap();
    let mut seen = 0;
    while let Some(entry) = reader.next().unwrap() {
        assert_eq!(entry.message().unwrap().seq, seen + 1);
        seen += 1;
    }
    assert_eq!(seen, last);
    let refused = fs::write(mounted.dir.join("x"), "").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
    assert!(queue.writer().is_err());
    mounted.stop();
}

#[test]
fn the_texts_of_a_mounted_archive_are_those_of_the_queue() {
    if !can_mount() {
        return;
    }
    let (dir, one, archive) = archived();
    let original = Queue::open(&one).unwrap();
    let (last, middle) = (last_archived(&original), original.finished_segments(0).unwrap()[2].first_seq + 5);
    let mounted = Mounted::new(&archive, dir.path(), &[]);
    let rendered = |queue: &Queue, format, from| {
        let mut scanner = queue.scan().unwrap();
        scanner.seek_seq(from).unwrap();
        let view = View::since(queue, format, scanner.position(), scanner.seq()).until(last + 1);
        let mut text = Vec::new();
        view.read_at(0, usize::try_from(view.size().unwrap()).unwrap(), &mut text).unwrap();
        text
    };
    for (format, from) in Format::ALL.into_iter().flat_map(|format| [(format, 1), (format, middle)]) {
        let wanted = rendered(&original, format, from);
        assert!(!wanted.is_empty() && rendered(&mounted.queue(), format, from) == wanted, "{format:?} from {from}");
    }
}

/// A queue as chron-cli shows it; unmounted when dropped.
struct Shown(PathBuf);

impl Shown {
    fn new(queue: &Path, at: &Path) -> Self {
        fs::create_dir(at).unwrap();
        let shown = Self(at.to_path_buf());
        let mut command = Command::new("timeout");
        command.arg("60").arg(built("chron-cli")).args(["mount", "-o", "ro"]).args([queue, at]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        shown
    }

    /// What a shell script prints there.
    fn prints(&self, script: &str) -> String {
        let mut command = Command::new("timeout");
        command.args(["60", "bash", "-ec", script]).current_dir(&self.0).stdin(Stdio::null());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{script}: {}", text(&output.stderr));
        text(&output.stdout)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = unmount(&self.0);
    }
}

#[test]
fn chron_cli_shows_a_mounted_archive_as_the_queue() {
    if !can_mount() || !require(Need::Built("chron-cli")) {
        return;
    }
    let (dir, one, archive) = archived();
    let original = Queue::open(&one).unwrap();
    let (last, middle) = (last_archived(&original), original.finished_segments(0).unwrap()[2].first_seq + 5);
    let (_, time, _) = messages(&original, middle).pop().unwrap();
    let time = format!("@{}.{:09}", time / 1_000_000_000, time % 1_000_000_000);
    let mounted = Mounted::new(&archive, dir.path(), &[]);
    let (shown, wanted) =
        (Shown::new(&mounted.dir, &dir.path().join("shown")), Shown::new(&one, &dir.path().join("wanted")));
    // The queue itself goes on after what is archived.
    for (from, what) in [(1, "."), (middle, &*format!("since/{middle}")), (middle, &format!("since/{time}"))] {
        let count = last + 1 - from;
        assert_eq!(shown.prints(&format!("wc -l < {what}/messages.jsonl")).trim(), count.to_string(), "{what}");
        let script = format!("head -n {count} {what}/messages.jsonl");
        let text = shown.prints(&script);
        assert!(text == wanted.prints(&script) && text.lines().count() as u64 == count, "{what}");
    }
    for script in [format!("cat at/{time}"), format!("readlink at/{time}"), format!("cat messages/{middle}")] {
        let text = shown.prints(&script);
        assert!(!text.is_empty() && text == wanted.prints(&script), "{script}: {text}");
    }
    let refused = shown.prints("touch x 2>&1 || true");
    assert!(refused.contains("Read-only file system"), "{refused}");
    drop(shown);
    mounted.stop();
}

/// As an archiver does, in a file that chron-cli and the library read, too.
#[test]
fn a_mounted_archive_says_how_it_is() {
    if !can_mount() {
        return;
    }
    let (dir, _, archive) = archived();
    let (store, away) = (dir.path().join("store"), dir.path().join("away"));
    let mounted = Mounted::new(&archive, dir.path(), &[]);
    let status = || archive.json(&["status", path(&mounted.dir)], &[])[0].clone();
    let before = status();
    assert_eq!((&before["condition"], &before["target"]), (&"running".into(), &archive.url.clone().into()), "{before}");
    let bytes = fs::read(mounted.dir.join("000000001.q")).unwrap();
    let after = status()["mount"].clone();
    let grown = |key: &str| after[key].as_u64().unwrap() - before["mount"][key].as_u64().unwrap();
    assert_eq!((grown("fetched_segments"), grown("fetched_bytes")), (1, bytes.len() as u64), "{after}");
    assert_eq!(after["cache_bytes"].as_u64(), Some(mounted.used()), "{after}");
    assert_eq!((&after["failures"], &after["max_cache_bytes"]), (&0.into(), &(1 << 30).into()), "{after}");
    fs::write(&segment_objects(&store)[2], "").unwrap();
    fs::read(mounted.dir.join("000000002.q")).unwrap_err();
    let after = status();
    assert!(after["mount"]["failures"].as_u64() > Some(0) && after["condition"] == "running", "{after}");
    assert!(after["mount"]["last_failure"].as_str().unwrap().contains("cut short"), "{after}");
    // A network directory that is not mounted any more is not an empty archive.
    fs::rename(&store, &away).unwrap();
    fs::create_dir(&store).unwrap();
    until_report(&mounted.dir, "mount", "it waits", |report| report["condition"] == "waiting");
    let waiting = status();
    assert!(waiting["reason"].as_str().unwrap().contains("is that directory mounted?"), "{waiting}");
    let is_shown = |name| fs::read_dir(&mounted.dir).unwrap().flatten().any(|entry| entry.file_name() == name);
    assert!(is_shown("000000000.q"));
    let [told] = chronfs::bus::relays(&mounted.dir).try_into().unwrap();
    assert_eq!((told.name.as_str(), told.direction.as_str(), told.condition.as_str()), ("mount", "mount", "waiting"));
    fs::remove_dir(&store).unwrap();
    fs::rename(&away, &store).unwrap();
    until_report(&mounted.dir, "mount", "it is well", |report| report["condition"] == "running");
    assert_eq!(status()["reason"], serde_json::Value::Null);
}

/// But for what only root can do: those beside an S3 server do not differ.
#[test]
fn a_plain_user_can_do_all_of_this() {
    if !require(Need::Built("chron-cli")) {
        return;
    }
    let arguments = ["mount::", "--skip", "a_plain_user_can_do_all_of_this", "--skip", "an_archive_in_s3"];
    crate::common::plain_user::run_again(&arguments, &[BUILT.into(), built("chron-cli")]);
}

#[test]
fn a_message_is_found_by_number_or_time_with_one_segment_fetched() {
    if !can_mount() {
        return;
    }
    let (dir, one, archive) = archived();
    let original = Queue::open(&one).unwrap();
    let sealed = original.finished_segments(0).unwrap();
    let mut scanner = original.scan().unwrap();
    let seq = sealed[2].first_seq + 5;
    scanner.seek_seq(seq).unwrap();
    let timestamp_ns = scanner.next().unwrap().unwrap().message().unwrap().timestamp_ns;
    for by_time in [false, true] {
        let at = dir.path().join(by_time.to_string());
        let mounted = Mounted::new(&archive, &at, &[]);
        let queue = mounted.queue();
        queue.bounds().unwrap();
        let before = mounted.fetched();
        let mut scanner = queue.scan().unwrap();
        if by_time { scanner.seek_time(timestamp_ns) } else { scanner.seek_seq(seq) }.unwrap();
        assert_eq!(scanner.next().unwrap().unwrap().message().unwrap().seq, seq);
        assert!(before <= 1 && mounted.fetched() == before + 1, "{before}, {}", mounted.fetched());
    }
}

#[test]
fn a_cache_that_is_smaller_than_the_queue_is_enough() {
    if !can_mount() {
        return;
    }
    let (dir, one, archive) = archived();
    let original = Queue::open(&one).unwrap();
    let last = last_archived(&original);
    let largest = segments(&one).values().map(|bytes| bytes.len() as u64).max().unwrap();
    let limit = largest + (16 << 10);
    let mounted = Mounted::new(&archive, dir.path(), &["--cache-size", &limit.to_string()]);
    let queue = mounted.queue();
    std::thread::scope(|scope| {
        // They take each other's segments away.
        let readers = [(); 3].map(|()| scope.spawn(|| messages(&queue, last)));
        while readers.iter().any(|reader| !reader.is_finished()) {
            let used = mounted.used();
            assert!(used <= limit, "{used} of {limit}");
        }
        for reader in readers {
            assert_eq!(reader.join().unwrap(), messages(&original, last));
        }
    });
    assert!(mounted.used() <= limit);
    mounted.stop();
    // Smaller than a segment: an error that names the option.
    let at = dir.path().join("small");
    let mounted = Mounted::new(&archive, &at, &["--cache-size", "40K"]);
    let error = fs::read(mounted.dir.join("000000001.q")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert!(mounted.said().contains("--cache-size"), "{}", mounted.said());
}

#[test]
fn what_cannot_be_fetched_is_an_error_for_every_reader_until_it_can() {
    if !can_mount() {
        return;
    }
    let (dir, one, archive) = archived();
    let original = Queue::open(&one).unwrap();
    let last = last_archived(&original);
    let objects = segment_objects(&dir.path().join("store"));
    let whole: Vec<_> = objects.iter().map(|object| fs::read(object).unwrap()).collect();
    // All but the first one and the last one, where the queue is opened.
    for (object, bytes) in objects.iter().zip(&whole).skip(1).take(objects.len() - 2) {
        fs::write(object, &bytes[..bytes.len() / 2]).unwrap();
    }
    let mounted = Mounted::new(&archive, dir.path(), &[]);
    let queue = mounted.queue();
    let first = fs::read(mounted.dir.join("000000000.q")).unwrap();
    // By pread, and by a mapping: neither SIGBUS, nor a gap, nor an end that is none.
    let mut scanner = queue.scan().unwrap();
    let failed = loop {
        match scanner.next() {
            Ok(Some(Entry::Message(_))) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error.to_string(),
        }
    };
    assert!(failed.contains("000000001.q") && failed.contains("Input/output error"), "{failed}");
    let mut reader = queue.tailer();
    let failed = loop {
        match reader.as_mut().map(|reader| reader.next()) {
            Ok(Ok(Some(Entry::Message(_)))) => {}
            Ok(Ok(other)) => panic!("{other:?}"),
            Ok(Err(error)) => break error.to_string(),
            Err(error) => break error.to_string(),
        }
    };
    assert!(failed.contains(".q: "), "{failed}");
    assert!(mounted.said().contains("cut short"), "{}", mounted.said());
    assert_eq!(fs::read(mounted.dir.join("000000000.q")).unwrap(), first);
    for (object, bytes) in objects.iter().zip(&whole) {
        fs::write(object, bytes).unwrap();
    }
    assert_eq!(messages(&queue, last), messages(&original, last));
    // What was mapped before it could be fetched can be read, too.
    let mut reader = queue.tailer().unwrap();
    while let Some(entry) = reader.next().unwrap() {
        assert!(entry.message().is_some());
    }
    assert_eq!(reader.seq(), last + 1);
}

#[test]
fn segments_come_and_go_while_it_is_mounted() {
    if !can_mount() {
        return;
    }
    let (dir, one, archive) = archived();
    let original = Queue::open(&one).unwrap();
    let mounted = Mounted::new(&archive, dir.path(), &[]);
    let queue = mounted.queue();
    let mut scanner = queue.scan().unwrap();
    let mut seen = 0;
    let mut read_on = |seen: &mut u64| {
        while let Some(entry) = scanner.next().unwrap() {
            let Entry::Message(message) = entry else { panic!("after {seen}: {entry:?}") };
            assert_eq!(message.seq, *seen + 1);
            *seen += 1;
        }
    };
    read_on(&mut seen);
    assert_eq!(seen, last_archived(&original));
    append(&mut writer(&original), SEVERAL, |seq| payload(seq, 300));
    archive.archive(&one);
    let last = last_archived(&original);
    assert!(last > seen);
    until("what is new is shown", || {
        read_on(&mut seen);
        seen == last
    });
    let kept = archive.json(&["list", &archive.url], &[])[0]["segments"].as_array().unwrap().len();
    archive.json(&["prune", &archive.url, "--older-than", "0s"], &[]);
    assert!(kept > 3);
    until("what is pruned is gone", || {
        let names = fs::read_dir(&mounted.dir).unwrap().flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().ends_with(".q")).count() == 0
    });
}

#[test]
fn messages_whose_object_is_deleted_are_retired() {
    if !can_mount() {
        return;
    }
    let (dir, one, archive) = archived();
    let original = Queue::open(&one).unwrap();
    let first = original.finished_segments(0).unwrap()[1].first_seq;
    let mounted = Mounted::new(&archive, dir.path(), &[]);
    let queue = mounted.queue();
    let mut reader = queue.scan().unwrap();
    // Behind its back: the listing that it has still names it.
    fs::remove_file(&segment_objects(&dir.path().join("store"))[0]).unwrap();
    let mut stale = 0;
    until("the gap is seen", || match reader.next() {
        Ok(Some(Entry::Gap(gap))) => {
            assert_eq!((gap.from, gap.to, gap.reason), (1, first - 1, GapReason::Retired));
            true
        }
        Ok(other) => panic!("{other:?}"),
        Err(error) => {
            assert!(error.to_string().contains("Stale file handle"), "{error}");
            stale += 1;
            false
        }
    });
    assert!(stale > 0);
}

#[test]
fn a_mount_that_was_killed_is_replaced_and_keeps_what_it_had() {
    if !can_mount() {
        return;
    }
    let (dir, one, archive) = archived();
    let mut mounted = Mounted::new(&archive, dir.path(), &[]);
    let name = mounted.dir.join("000000001.q");
    let bytes = fs::read(&name).unwrap();
    let open = fs::File::open(mounted.dir.join("000000002.q")).unwrap();
    // Two mounts would take each other's files away.
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let call = ["mount", "--foreground", "--cache", path(&mounted.cache), &archive.url, path(&other)];
    archive.fails(&call, &[], 78, "another mount uses this cache");
    signal_to(mounted.process.as_ref().unwrap().id(), "KILL");
    drop(mounted.process.take());
    until("it is dead", || fs::metadata(&name).is_err());
    fs::write(mounted.cache.join("objects/fetching.7"), "half").unwrap();
    // The object of what is in the cache is not needed any more.
    fs::write(&segment_objects(&dir.path().join("store"))[1], "").unwrap();
    mounted.start(&archive, &[]);
    assert!(!mounted.cache.join("objects/fetching.7").exists());
    assert_eq!(fs::read(&name).unwrap(), bytes);
    drop(open);
    assert_eq!(segments(&one)["000000001.q"], bytes);
    let again = ["mount", "--foreground", "--cache", path(&other), &archive.url, path(&mounted.dir)];
    archive.fails(&again, &[], 78, "already mounted");
}

#[test]
fn objects_that_lie_are_errors_and_take_no_room() {
    if !can_mount() {
        return;
    }
    let (dir, one, archive) = archived();
    append(&mut writer(&Queue::open(&one).unwrap()), SEVERAL, |seq| payload(seq, 300));
    archive.archive(&one);
    let objects = segment_objects(&dir.path().join("store"));
    let index = |object: &Path| PathBuf::from(object.to_str().unwrap().replace(".q.zst", ".index"));
    // Cut short; that of another segment, with its index and without; a bomb.
    let cut = fs::read(&objects[0]).unwrap();
    fs::write(&objects[0], &cut[..cut.len() / 2]).unwrap();
    fs::copy(&objects[3], &objects[1]).unwrap();
    fs::copy(&objects[3], &objects[2]).unwrap();
    fs::copy(index(&objects[3]), index(&objects[2])).unwrap();
    let bomb = {
        let mut bytes = segments(&one)["000000004.q"].clone();
        bytes.resize(512 << 20, 0);
        zstd::bulk::compress(&bytes, 1).unwrap()
    };
    fs::write(&objects[4], bomb).unwrap();
    // Names that lead elsewhere, or would make something else of a directory.
    let store = dir.path().join("store");
    for name in ["..%2Fx", ".hidden", "control.meta", "a b", "000000009.q", "-rf"] {
        fs::create_dir_all(store.join(name).join("v1")).unwrap();
    }
    fs::create_dir_all(store.join("fine/deeper")).unwrap();
    let mounted = Mounted::new(&archive, dir.path(), &[]);
    let names: Vec<_> = fs::read_dir(&mounted.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let dirs: Vec<_> = names.iter().filter(|name| mounted.dir.join(name).is_dir()).collect();
    assert_eq!(dirs, [".index", "fine", "relay"], "{names:?}");
    for number in [0, 1, 2, 4] {
        let error = fs::read(mounted.dir.join(format!("{number:09}.q"))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{number}: {}", mounted.said());
    }
    let ours = segments(&one);
    assert_eq!(fs::read(mounted.dir.join("000000003.q")).unwrap(), ours["000000003.q"]);
    let used = mounted.used();
    assert!(used < 1 << 20, "{used}: {:?}", mounted.cached());
    let said = mounted.said();
    for words in ["cut short", "it holds the segment", "larger than it says", "that its start, or its index, says"] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn a_bus_is_mounted_as_a_tree() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::dir(&dir.path().join("store"));
    for name in ["feeds/ticks", "orders", "twice"] {
        let queue = dir.path().join(name.replace('/', "-"));
        several(&queue);
        Archive { url: format!("{}/{name}", archive.url), ..archive.clone() }.archive(&queue);
    }
    let other = dir.path().join("other");
    let twice = Archive { url: format!("{}/twice", archive.url), ..archive.clone() };
    let id = several(&other).id();
    twice.archive(&other);
    let mounted = Mounted::new(&archive, dir.path(), &[]);
    for (shown, queue) in [("feeds/ticks", "feeds-ticks"), ("orders", "orders"), (&format!("twice/{id:016x}"), "other")]
    {
        let (shown, queue) =
            (Queue::open(mounted.dir.join(shown)).unwrap(), Queue::open(dir.path().join(queue)).unwrap());
        assert_eq!((shown.id(), count(&shown)), (queue.id(), last_archived(&queue)));
    }
    assert_eq!(fs::read_dir(mounted.dir.join("twice")).unwrap().count(), 2);
    let metadata = fs::metadata(mounted.dir.join("orders/000000000.q")).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o444);
    archive.fails(
        &["mount", "-f", &format!("{}/none", archive.url), path(&other)],
        &[],
        78,
        "has no archive of a queue",
    );
}

#[test]
fn it_is_mounted_when_the_command_returns() {
    if !can_mount() {
        return;
    }
    let (dir, _, archive) = archived();
    let mounted = Mounted {
        dir: dir.path().join("mnt"),
        cache: dir.path().join("cache"),
        log: dir.path().join("cache/log"),
        process: None,
    };
    fs::create_dir(&mounted.dir).unwrap();
    let output = archive.call(&["mount", "--cache", path(&mounted.cache), &archive.url, path(&mounted.dir)], &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(mounted.dir.join("control.meta").exists());
    unmount(&mounted.dir).unwrap();
    // The process ends with it, and lets go of the cache.
    until("it has ended", || fs::File::open(mounted.cache.join("lock")).unwrap().try_lock().is_ok());
}

#[test]
fn an_archive_in_s3_is_mounted_and_waits_a_bounded_time_for_it() {
    if !can_mount() || !s3::is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir.path().join("server.log"));
    let archive = server.archive(&dir.path().join("s3.env"));
    let one = dir.path().join("q");
    let original = several(&one);
    archive.archive(&one);
    let mounted = Mounted::new(&archive, dir.path(), &[]);
    let queue = mounted.queue();
    let mut scanner = queue.scan().unwrap();
    scanner.next().unwrap().unwrap();
    server.stop();
    let began = Instant::now();
    let error = fs::read(mounted.dir.join("000000002.q")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(began.elapsed() < BOUNDED, "{:?}", began.elapsed());
    // What is in the cache can be read, and listed.
    assert!(fs::read(mounted.dir.join("000000000.q")).is_ok());
    assert!(mounted.said().contains("Connection refused"), "{}", mounted.said());
    server.begin();
    archive_again(&archive, &dir.path().join("again"), &one);
    assert_eq!(messages(&queue, last_archived(&original)), messages(&original, last_archived(&original)));
    let blocks = queue.finished_segments(0).unwrap();
    assert!(blocks.iter().any(|segment| segment.id == SegmentId(2)));
}

/// Archives a queue that the archiver has committed already: a copy of it, without its readers.
fn archive_again(archive: &Archive, copy: &Path, queue: &Path) {
    fs::create_dir(copy).unwrap();
    for entry in fs::read_dir(queue).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    archive.archive(copy);
}
