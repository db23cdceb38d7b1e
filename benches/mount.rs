//! What the mount costs, beside the same work without it, measured in turns in the same run.
//!
//! `cargo bench --bench mount -- [--messages N] [--rounds N] [--json] [--quick]`. Needs the right to mount. 100 million
//! messages (`--messages 100000000`) take about 20 GB below the temporary directory.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_precision_loss)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use chronfs::Queue;
use chronfs::queue::Settings;

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
    plain: Option<f64>,
    /// Ours divided by the plain one's, where larger is better; the inverse where smaller is.
    goal: Option<(f64, bool)>,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.plain.map(|plain| self.ours / plain)
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

fn sequential(mount: &Mount, rounds: usize, rows: &mut Vec<Row>) {
    const LIMIT: u64 = 512 << 20;
    for format in ["bin", "jsonl"] {
        let view = mount.at(&format!("q/messages.{format}"));
        let plain = mount.scratch.path().join("plain");
        let mut bytes = Vec::new();
        File::open(&view).unwrap().take(LIMIT).read_to_end(&mut bytes).unwrap();
        std::fs::write(&plain, &bytes).unwrap();
        drop(bytes);
        for (name, chunk) in [("128 KiB", 128 << 10), ("1 MiB", 1 << 20)] {
            for repeated in [false, true] {
                let ours = || {
                    if !repeated {
                        mount.again();
                        std::fs::metadata(&view).unwrap();
                    }
                    read_speed(&view, chunk, LIMIT)
                };
                let (ours, plain) = in_turns(rounds, ours, || read_speed(&plain, chunk, LIMIT));
                let what = format!("messages.{format}, {name} reads, {}", if repeated { "again" } else { "first" });
                rows.push(Row { what, unit: "GB/s", ours, plain: Some(plain), goal: None });
            }
        }
    }
    // The last plain file is the jsonl. Both are read once before.
    let whole = std::fs::metadata(mount.at("q/messages.jsonl")).unwrap().len() <= LIMIT;
    if whole {
        let (view, plain) = (mount.at("q/messages.jsonl"), mount.scratch.path().join("plain"));
        let grep = |path: &Path| 1.0 / run_time("grep", &["-c", "7,..price"], path);
        let (ours, plain) = in_turns(rounds.max(5), || grep(&view), || grep(&plain));
        let what = "grep -c over messages.jsonl".to_owned();
        rows.push(Row { what, unit: "1/s", ours, plain: Some(plain), goal: Some((0.9, true)) });
    }
}

fn segments(mount: &Mount, rounds: usize, rows: &mut Vec<Row>) {
    let (view, plain) = (mount.at("q/segments/000000000.q"), mount.root().join("q/000000000.q"));
    for (name, chunk) in [("128 KiB", 128 << 10), ("1 MiB", 1 << 20)] {
        let speed = |path: &Path| median((0..5).map(|_| read_speed(path, chunk, u64::MAX)).collect());
        let (ours, plain) = in_turns(rounds.max(5), || speed(&view), || speed(&plain));
        let what = format!("segments/, {name} reads");
        rows.push(Row { what, unit: "GB/s", ours, plain: Some(plain), goal: Some((0.95, true)) });
    }
}

fn tails(mount: &Mount, rounds: usize, rows: &mut Vec<Row>) {
    let mut add = |what: &str, ours: f64, goal: Option<(f64, bool)>| {
        rows.push(Row { what: what.to_owned(), unit: "ms", ours: ours * 1e3, plain: None, goal });
    };
    let view = mount.at("q/messages.jsonl");
    let _ = std::fs::remove_dir_all(mount.root().join("q/.index"));
    mount.again();
    add("stat, no index (waits until it is built)", run_time("stat", &[], &view), None);
    // Stored for sealed segments, and read by the next mount.
    let first = || {
        mount.again();
        run_time("tail", &["-n", "5"], &view)
    };
    add("tail -n 5, first after mounting", median((0..rounds).map(|_| first()).collect()), None);
    let warm = (0..rounds.max(9)).map(|_| run_time("tail", &["-n", "5"], &view)).collect();
    add("tail -n 5, index warm (goal: 20 ms)", median(warm), None);
}

fn appends(mount: &Mount, rounds: usize, count: usize, rows: &mut Vec<Row>) {
    let line = b"a line of sixty-four bytes, as messages of market data often are";
    let lines: Vec<u8> = std::iter::repeat_n([&line[..63], b"\n"].concat(), count).flatten().collect();
    std::fs::create_dir(mount.at("lines")).unwrap();
    std::fs::create_dir(mount.at("writes")).unwrap();
    let by_lines = (0..rounds).map(|_| {
        let mut file = File::options().write(true).open(mount.at("lines/append.txt")).unwrap();
        let started = Instant::now();
        lines.chunks(128 << 10).for_each(|chunk| file.write_all(chunk).unwrap());
        count as f64 / started.elapsed().as_secs_f64()
    });
    let by_lines = median(by_lines.collect());
    let what = "append.txt, lines of 64 bytes, 128 KiB per write".to_owned();
    rows.push(Row { what, unit: "lines/s", ours: by_lines, plain: None, goal: None });
    let writes = count / 20;
    let by_writes = (0..rounds).map(|_| {
        let mut file = File::options().write(true).open(mount.at("writes/append.packets")).unwrap();
        let started = Instant::now();
        (0..writes).for_each(|_| file.write_all(line).unwrap());
        writes as f64 / started.elapsed().as_secs_f64()
    });
    let by_writes = median(by_writes.collect());
    let what = "append.packets, 64 bytes a write".to_owned();
    rows.push(Row { what, unit: "writes/s", ours: by_writes, plain: None, goal: None });
}

/// From an append to a reader's return, us: a blocked read of follow.bin, and a native reader asleep.
fn wakes(mount: &Mount, count: usize, rows: &mut Vec<Row>) {
    let queue = Queue::create(mount.root().join("wake"), &Settings::default()).unwrap();
    let mut writer = queue.writer().unwrap();
    let follow = File::open(mount.at("wake/follow.bin")).unwrap();
    let (sender, receiver) = mpsc::channel();
    let origin = Instant::now();
    let (follower, native) = (sender.clone(), sender);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while follow.read_at(&mut buffer, 0).is_ok_and(|count| count > 0) {
            if follower.send((true, origin.elapsed())).is_err() {
                break;
            }
        }
    });
    let other = queue.clone();
    std::thread::spawn(move || {
        let waiter = other.waiter().unwrap();
        let mut scanner = other.scan().unwrap();
        loop {
            let ticket = waiter.prepare();
            if scanner.next().unwrap().is_some() {
                if native.send((false, origin.elapsed())).is_err() {
                    break;
                }
            } else {
                waiter.wait(ticket, Duration::from_secs(10));
            }
        }
    });
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..count {
        // Long enough for both to be asleep again.
        std::thread::sleep(Duration::from_micros(700));
        let sent = origin.elapsed();
        writer.append(1, b"wake up").unwrap();
        for _ in 0..2 {
            let (is_follow, at) = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
            times[usize::from(is_follow)].push((at - sent).as_secs_f64() * 1e6);
        }
    }
    let [native, follow] = times.map(median);
    let what = "append to return of a blocked follow.bin, p50".to_owned();
    rows.push(Row { what, unit: "us", ours: follow, plain: Some(native), goal: Some((1.5, false)) });
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help") {
        println!("cargo bench --bench mount -- [--quick] [--json] [--messages N] [--rounds N]");
        return;
    }
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let value = |name: &str, otherwise: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(otherwise, |at| arguments[at + 1].parse().expect("a number"))
    };
    let quick = has("--quick");
    let messages = value("--messages", if quick { 200_000 } else { 2_000_000 });
    let rounds = usize::try_from(value("--rounds", if quick { 1 } else { 5 })).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let queue = Queue::create(scratch.path().join("root/q"), &Settings::default()).unwrap();
    fill(&queue, messages);
    let mount = Mount::new(scratch);
    let mut rows = Vec::new();
    tails(&mount, rounds, &mut rows);
    sequential(&mount, rounds, &mut rows);
    segments(&mount, rounds, &mut rows);
    appends(&mount, rounds, if quick { 100_000 } else { 1_000_000 }, &mut rows);
    wakes(&mount, if quick { 200 } else { 2_000 }, &mut rows);
    if messages <= 5_000_000 {
        let ours = run_time("ls", &["-lU"], &mount.at("q/messages"));
        let what = format!("ls -l messages/ of {messages}");
        rows.push(Row { what, unit: "s", ours, plain: None, goal: None });
    }
    if has("--json") {
        let values = rows.iter().map(|row| {
            let goal = row.goal.map(|(goal, _)| goal);
            serde_json::json!({"what": row.what, "unit": row.unit, "mount": row.ours, "plain": row.plain, "ratio": row.ratio(), "goal": goal})
        });
        println!("{}", serde_json::json!({"messages": messages, "rounds": rounds, "rows": values.collect::<Vec<_>>()}));
        return;
    }
    println!("{messages} messages, medians of {rounds}\n");
    println!("| | mount | without | ratio | goal |\n|---|--:|--:|--:|---|");
    for row in rows {
        let number = |value: f64| if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") };
        let plain = row.plain.map_or(String::new(), &number);
        let ratio = row.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let goal = row.goal.map_or(String::new(), |(goal, more)| format!("{} {goal}", if more { ">=" } else { "<=" }));
        println!("| {} | {} {} | {plain} | {ratio} | {goal} |", row.what, number(row.ours), row.unit);
    }
}
