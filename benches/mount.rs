//! What the mount costs, beside a floor: the least that the same work can cost without it, measured in turns in the
//! same run. How busy the machine was otherwise is printed too: above a few percent the figures say little.
//!
//! `cargo bench --bench mount -- [--messages N] [--rounds N] [--only WORD] [--json] [--quick]`. Needs the right to
//! mount. 100 million messages (`--messages 100000000`) take about 20 GB below the temporary directory.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_precision_loss)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chronfs::Queue;
use chronfs::queue::{Scanner, Settings};
use chronfs::view::{Format, View};

struct Mount {
    scratch: tempfile::TempDir,
}

impl Mount {
    fn new(scratch: tempfile::TempDir) -> Self {
        std::fs::create_dir(scratch.path().join("mnt")).unwrap();
        let mount = Self { scratch };
        mount.start();
        mount
    }

    fn start(&self) {
        let status = chron_cli().arg("mount").args([self.root(), self.at("")]).status().unwrap();
        assert!(status.success(), "mount the bus");
    }

    fn root(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.scratch.path().join("mnt").join(path)
    }

    fn again(&self) {
        self.stop();
        self.start();
    }

    fn stop(&self) {
        let _ = chron_cli().arg("umount").arg(self.at("")).status();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.stop();
    }
}

fn chron_cli() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chron-cli"));
    command.stdin(Stdio::null());
    command
}

/// One line of the table.
struct Row {
    what: String,
    unit: &'static str,
    ours: f64,
    /// What it is compared with, and that one's figure.
    floor: Option<(&'static str, f64)>,
    /// Of the ratio, or of the figure itself.
    goal: &'static str,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.floor.map(|(_, floor)| self.ours / floor)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Medians of two measurements, taken in turns.
fn in_turns(rounds: usize, mut ours: impl FnMut() -> f64, mut plain: impl FnMut() -> f64) -> (f64, f64) {
    let pairs: Vec<_> = (0..rounds).map(|_| (ours(), plain())).collect();
    (median(pairs.iter().map(|pair| pair.0).collect()), median(pairs.iter().map(|pair| pair.1).collect()))
}

/// GB/s of reading a file from start to end, or `limit` bytes of it.
fn read_speed(path: &Path, chunk: usize, limit: u64) -> f64 {
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; chunk];
    let started = Instant::now();
    let mut total = 0;
    while total < limit {
        let count = file.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        total += count as u64;
    }
    total as f64 / started.elapsed().as_secs_f64() / 1e9
}

/// Seconds that a program takes.
fn run_time(program: &str, arguments: &[&str], path: &Path) -> f64 {
    let started = Instant::now();
    // Into a pipe: grep stops at the first match where its output goes to /dev/null.
    let output = Command::new(program).args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{program} {}", path.display());
    started.elapsed().as_secs_f64()
}

fn fill(queue: &Queue, count: u64) {
    let mut writer = queue.writer().unwrap();
    for n in 0..count {
        let payload = format!("{{\"symbol\":\"BTCUSDT\",\"id\":{n:012},\"price\":\"61803.20\"}}");
        writer.append(1, payload.as_bytes()).unwrap();
    }
}

/// GB/s of rendering without the mount.
fn render_speed(queue: &Queue, format: Format, chunk: usize, limit: u64) -> f64 {
    let view = View::new(queue, format).unwrap();
    let size = view.size().unwrap().min(limit);
    let mut buffer = Vec::new();
    let (started, mut total) = (Instant::now(), 0);
    while total < size {
        buffer.clear();
        view.read_at(total, chunk, &mut buffer).unwrap();
        total += buffer.len() as u64;
    }
    total as f64 / started.elapsed().as_secs_f64() / 1e9
}

fn sequential(mount: &Mount, queue: &Queue, rounds: usize, rows: &mut Vec<Row>) {
    const LIMIT: u64 = 512 << 20;
    for format in [Format::Bin, Format::Txt, Format::Jsonl] {
        let view = mount.at(&format!("q/messages.{format}"));
        let copy = mount.scratch.path().join("plain");
        let mut bytes = Vec::new();
        File::open(&view).unwrap().take(LIMIT).read_to_end(&mut bytes).unwrap();
        std::fs::write(&copy, &bytes).unwrap();
        drop(bytes);
        for (name, chunk) in [("128 KiB", 128 << 10), ("1 MiB", 1 << 20)] {
            let first = || {
                mount.again();
                std::fs::metadata(&view).unwrap();
                read_speed(&view, chunk, LIMIT)
            };
            let (ours, floor) = in_turns(rounds, first, || render_speed(queue, format, chunk, LIMIT));
            let what = format!("messages.{format}, {name} reads, first");
            rows.push(Row { what, unit: "GB/s", ours, floor: Some(("rendering", floor)), goal: "" });
            let again = || read_speed(&view, chunk, LIMIT);
            let (ours, floor) = in_turns(rounds, again, || read_speed(&copy, chunk, LIMIT));
            let what = format!("messages.{format}, {name} reads, again");
            rows.push(Row { what, unit: "GB/s", ours, floor: Some(("plain file", floor)), goal: ">= 0.9x" });
        }
        if format == Format::Jsonl && std::fs::metadata(&view).unwrap().len() <= LIMIT {
            let grep = |path: &Path| run_time("grep", &["-c", "7,..price"], path) * 1e3;
            let (ours, floor) = in_turns(rounds, || grep(&view), || grep(&copy));
            let what = "grep -c over messages.jsonl".to_owned();
            rows.push(Row { what, unit: "ms", ours, floor: Some(("plain file", floor)), goal: "<= 1.1x" });
        }
    }
}

fn segments(mount: &Mount, rounds: usize, rows: &mut Vec<Row>) {
    let (view, file) = (mount.at("q/segments/000000000.q"), mount.root().join("q/000000000.q"));
    for (name, chunk) in [("128 KiB", 128 << 10), ("1 MiB", 1 << 20)] {
        let speed = |path: &Path| median((0..5).map(|_| read_speed(path, chunk, u64::MAX)).collect());
        let (ours, floor) = in_turns(rounds, || speed(&view), || speed(&file));
        let what = format!("segments/, {name} reads");
        rows.push(Row { what, unit: "GB/s", ours, floor: Some(("the file itself", floor)), goal: ">= 0.95x" });
    }
}

fn tails(mount: &Mount, rounds: usize, rows: &mut Vec<Row>) {
    let view = mount.at("q/messages.jsonl");
    let tail = |path: &Path| run_time("tail", &["-n", "5"], path) * 1e3;
    let _ = std::fs::remove_dir_all(mount.root().join("q/.index"));
    mount.again();
    let (what, ours) = ("stat, no index (waits until it is built)".to_owned(), run_time("stat", &[], &view) * 1e3);
    rows.push(Row { what, unit: "ms", ours, floor: None, goal: "" });
    let copy = mount.scratch.path().join("end");
    let mut bytes = Vec::new();
    File::open(&view).unwrap().take(1 << 20).read_to_end(&mut bytes).unwrap();
    std::fs::write(&copy, bytes).unwrap();
    // Stored for sealed segments, and read by the next mount.
    let first = || {
        mount.again();
        tail(&view)
    };
    let (ours, floor) = in_turns(rounds, first, || tail(&copy));
    let what = "tail -n 5, first after mounting".to_owned();
    rows.push(Row { what, unit: "ms", ours, floor: Some(("plain file", floor)), goal: "" });
    let (ours, floor) = in_turns(rounds, || tail(&view), || tail(&copy));
    let what = "tail -n 5, index warm".to_owned();
    rows.push(Row { what, unit: "ms", ours, floor: Some(("plain file", floor)), goal: "20 ms" });
}

/// Median of a number of times, in us.
fn median_of(count: usize, mut run: impl FnMut()) -> f64 {
    let timed = (0..count).map(|_| {
        let started = Instant::now();
        run();
        started.elapsed().as_secs_f64() * 1e6
    });
    median(timed.collect())
}

fn appends(mount: &Mount, rounds: usize, count: usize, rows: &mut Vec<Row>) {
    let line = b"a line of sixty-four bytes, as messages of market data often are";
    let lines: Vec<u8> = std::iter::repeat_n([&line[..63], b"\n"].concat(), count).flatten().collect();
    std::fs::create_dir(mount.at("lines")).unwrap();
    std::fs::create_dir(mount.at("writes")).unwrap();
    let write = |path: &Path| {
        let mut file = File::options().write(true).create(true).truncate(true).open(path).unwrap();
        let started = Instant::now();
        lines.chunks(128 << 10).for_each(|chunk| file.write_all(chunk).unwrap());
        count as f64 / started.elapsed().as_secs_f64()
    };
    let (to, copy) = (mount.at("lines/append.txt"), mount.scratch.path().join("lines"));
    let (ours, floor) = in_turns(rounds, || write(&to), || write(&copy));
    let what = "append.txt, lines of 64 bytes, 128 KiB per write".to_owned();
    rows.push(Row { what, unit: "lines/s", ours, floor: Some(("plain file", floor)), goal: "" });
    // What any request to another thread costs.
    let ((mut there, mut rest), (mut other, mut back)) = pipes();
    std::thread::spawn(move || {
        let mut byte = [0];
        while other.read_exact(&mut byte).and_then(|()| back.write_all(&byte)).is_ok() {}
    });
    let writes = (count / 200).max(100);
    let packet = || {
        let mut file = File::options().write(true).open(mount.at("writes/append.packets")).unwrap();
        median_of(writes, || file.write_all(line).unwrap())
    };
    let message = || {
        let path = mount.at("writes/append.bin");
        median_of(writes / 5, || std::fs::write(&path, line).unwrap())
    };
    let mut there_and_back = || {
        let mut byte = [1];
        median_of(writes, || there.write_all(&byte).and_then(|()| rest.read_exact(&mut byte)).unwrap())
    };
    let floor = "a byte there and back by pipes";
    let (ours, pipe) = in_turns(rounds, packet, &mut there_and_back);
    let what = "append.packets, 64 bytes a write, p50".to_owned();
    rows.push(Row { what, unit: "us", ours, floor: Some((floor, pipe)), goal: "12 us" });
    let (ours, pipe) = in_turns(rounds, message, there_and_back);
    let what = "append.bin, 64 bytes from open to close, p50".to_owned();
    rows.push(Row { what, unit: "us", ours, floor: Some((floor, pipe)), goal: "" });
}

type Ends = (std::io::PipeWriter, std::io::PipeReader);

/// The ends of two pipes: of one who asks, and of one who answers.
fn pipes() -> (Ends, (std::io::PipeReader, std::io::PipeWriter)) {
    let ((asked, ask), (answered, answer)) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
    ((ask, answered), (asked, answer))
}

/// How a message is waited for.
#[derive(Clone, Copy)]
enum Waits {
    /// By a blocked read of follow.bin.
    Follow,
    /// By a native reader asleep.
    Native,
    /// By a native reader asleep that passes it on by a pipe: two wakes, as the mount needs.
    Relay,
}

/// Reads as many messages as a native reader that sleeps in between.
fn listen(queue: &Queue, mut scanner: Scanner, count: usize, mut told: impl FnMut()) {
    let waiter = queue.waiter().unwrap();
    for _ in 0..count {
        while scanner.next().unwrap().is_none() {
            let ticket = waiter.prepare();
            if scanner.next().unwrap().is_some() {
                break;
            }
            waiter.wait(ticket, Duration::from_secs(10));
        }
        told();
    }
}

/// Median time in us from an append to when a sleeping reader has the message.
fn wake(mount: &Mount, count: usize, way: Waits) -> f64 {
    let queue = Queue::open_or_create(mount.root().join("wake"), &Settings::default()).unwrap();
    let mut writer = queue.writer().unwrap();
    let (origin, woken) = (Instant::now(), AtomicU64::new(0));
    let now = || u64::try_from(origin.elapsed().as_nanos()).unwrap();
    let follow = File::open(mount.at("wake/follow.bin")).unwrap();
    let mut scanner = queue.scan().unwrap();
    scanner.seek_end().unwrap();
    let (mut passed, mut pass) = std::io::pipe().unwrap();
    let mut times = Vec::with_capacity(count);
    std::thread::scope(|scope| {
        let (queue, woken, now) = (&queue, &woken, &now);
        match way {
            Waits::Native => {
                drop(scope.spawn(move || listen(queue, scanner, count, || woken.store(now(), Ordering::Release))))
            }
            Waits::Relay => {
                scope.spawn(move || listen(queue, scanner, count, || pass.write_all(&[1]).unwrap()));
                scope.spawn(move || {
                    for _ in 0..count {
                        passed.read_exact(&mut [0]).unwrap();
                        woken.store(now(), Ordering::Release);
                    }
                });
            }
            Waits::Follow => drop(scope.spawn(move || {
                for _ in 0..count {
                    follow.read_at(&mut [0; 4096], 0).unwrap();
                    woken.store(now(), Ordering::Release);
                }
            })),
        }
        for _ in 0..count {
            // Long enough for the reader to be asleep.
            std::thread::sleep(Duration::from_micros(700));
            let sent = now();
            writer.append(1, b"wake up").unwrap();
            while woken.load(Ordering::Acquire) < sent {
                std::thread::sleep(Duration::from_micros(100));
            }
            times.push((woken.load(Ordering::Acquire) - sent) as f64 / 1e3);
        }
    });
    median(times)
}

fn wakes(mount: &Mount, rounds: usize, count: usize, rows: &mut Vec<Row>) {
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (way, times) in [Waits::Follow, Waits::Native, Waits::Relay].into_iter().zip(&mut times) {
            times.push(wake(mount, count, way));
        }
    }
    let [ours, native, relay] = times.map(median);
    for (name, floor, goal) in [("native reader", native, "<= 1.2x"), ("native reader and a pipe", relay, "")] {
        let what = "append to return of a blocked follow.bin, p50".to_owned();
        rows.push(Row { what, unit: "us", ours, floor: Some((name, floor)), goal });
    }
}

/// How much of the processors' time others use now, in percent.
fn busy() -> f64 {
    let times = || {
        let text = std::fs::read_to_string("/proc/stat").unwrap();
        let numbers: Vec<f64> =
            text.lines().next().unwrap().split_whitespace().skip(1).take(8).map(|word| word.parse().unwrap()).collect();
        // The fourth and fifth are idle time.
        (numbers.iter().sum::<f64>(), numbers[3] + numbers[4])
    };
    let before = times();
    std::thread::sleep(Duration::from_secs(1));
    let after = times();
    100.0 * (1.0 - (after.1 - before.1) / (after.0 - before.0).max(1.0))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help") {
        println!("cargo bench --bench mount -- [--quick] [--json] [--messages N] [--rounds N] [--only WORD]");
        println!("WORD: tails, sequential, segments, appends, wakes, list");
        return;
    }
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let word = |name: &str| arguments.iter().position(|argument| argument == name).map(|at| arguments[at + 1].as_str());
    let value = |name: &str, otherwise: u64| word(name).map_or(otherwise, |word| word.parse().expect("a number"));
    let wants = |name: &str| word("--only").is_none_or(|only| only == name);
    let quick = has("--quick");
    let messages = value("--messages", if quick { 200_000 } else { 2_000_000 });
    let rounds = usize::try_from(value("--rounds", if quick { 1 } else { 9 })).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let queue = Queue::create(scratch.path().join("root/q"), &Settings::default()).unwrap();
    fill(&queue, messages);
    let mount = Mount::new(scratch);
    let mut rows = Vec::new();
    let busy_before = busy();
    if wants("tails") {
        tails(&mount, rounds, &mut rows);
    }
    if wants("sequential") {
        sequential(&mount, &queue, rounds, &mut rows);
    }
    if wants("segments") {
        segments(&mount, rounds, &mut rows);
    }
    if wants("appends") {
        appends(&mount, rounds, if quick { 100_000 } else { 1_000_000 }, &mut rows);
    }
    if wants("wakes") {
        wakes(&mount, rounds, if quick { 100 } else { 300 }, &mut rows);
    }
    if wants("list") && messages <= 5_000_000 {
        let ours = run_time("ls", &["-lU"], &mount.at("q/messages"));
        let what = format!("ls -l messages/ of {messages}");
        rows.push(Row { what, unit: "s", ours, floor: None, goal: "" });
    }
    let busy = busy_before.max(busy());
    if has("--json") {
        let values = rows.iter().map(|row| {
            let (name, floor) = row.floor.unzip();
            serde_json::json!({"what": row.what, "unit": row.unit, "mount": row.ours, "floor": floor, "floor_is": name,
                "ratio": row.ratio(), "goal": row.goal})
        });
        let values: Vec<_> = values.collect();
        println!("{}", serde_json::json!({"messages": messages, "rounds": rounds, "busy": busy, "rows": values}));
        return;
    }
    println!("{messages} messages, medians of {rounds}; others used {busy:.0} % of the processors\n");
    println!("| | mount | floor | | ratio | goal |\n|---|--:|--:|---|--:|---|");
    for row in rows {
        let number = |value: f64| if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") };
        let (name, floor) = row.floor.map_or(("", String::new()), |(name, floor)| (name, number(floor)));
        let ratio = row.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"));
        println!("| {} | {} {} | {floor} | {name} | {ratio} | {} |", row.what, number(row.ours), row.unit, row.goal);
    }
    if busy > 10.0 {
        println!("\nThe machine is busy: these figures say little. Run it again when nothing else runs.");
    }
}
