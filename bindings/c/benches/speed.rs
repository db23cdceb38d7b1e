//! What C pays for a message, beside Rust, by turns in one run: `cargo bench -p chronfs-c`, or with a number of messages
//! after `--`. With `CASE QUEUE COUNT` it runs one of its own loops and prints how many ns that took: the measure for
//! other languages' bindings.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use engine::queue::{Entry, Queue, Settings};

const PAYLOAD: [u8; 64] = [1; 64];
const ROUNDS: usize = 5;
const CASES: [(&str, &str); 3] =
    [("append", "append"), ("reserve", "reserve, copy, commit"), ("scan", "scan, with a look at each payload")];

fn append(queue: &Queue, count: u64) -> u128 {
    let mut writer = queue.writer().unwrap();
    let start = Instant::now();
    for _ in 0..count {
        writer.append(1, black_box(&PAYLOAD)).unwrap();
    }
    start.elapsed().as_nanos()
}

fn reserve(queue: &Queue, count: u64) -> u128 {
    let mut writer = queue.writer().unwrap();
    let start = Instant::now();
    for _ in 0..count {
        let mut record = writer.reserve(1, PAYLOAD.len()).unwrap();
        record.copy_from_slice(black_box(&PAYLOAD));
        record.commit().unwrap();
    }
    start.elapsed().as_nanos()
}

fn scan(queue: &Queue, count: u64) -> u128 {
    let mut tailer = queue.tailer().unwrap();
    let (mut found, mut sum) = (0, 0);
    let start = Instant::now();
    while let Some(entry) = tailer.next().unwrap() {
        let Entry::Message(message) = entry else { panic!("{entry:?}") };
        sum += u64::from(message.payload[0]);
        found += 1;
    }
    let elapsed = start.elapsed();
    black_box(sum);
    assert_eq!(found, count);
    elapsed.as_nanos()
}

fn run(case: &str, queue: &Path, count: u64) -> u128 {
    let queue = Queue::open(queue).unwrap();
    match case {
        "append" => append(&queue, count),
        "reserve" => reserve(&queue, count),
        "scan" => scan(&queue, count),
        _ => panic!("{case}: not one of append, reserve, scan"),
    }
}

fn output(command: &mut Command) -> String {
    let output = command.stderr(std::process::Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Installs the library and compiles the C program below this directory.
fn build_c(dir: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    output(Command::new("bash").arg(root.join("install.sh")).arg(dir));
    let library = dir.join("lib");
    let flags = ["-O2".to_owned(), format!("-L{}", library.display()), format!("-Wl,-rpath,{}", library.display())];
    let mut cc = Command::new("cc");
    cc.args(flags).arg("-I").arg(dir.join("include")).arg("-o").arg(dir.join("speed"));
    output(cc.arg(root.join("benches/speed.c")).arg("-lchronfs"));
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [case, queue, count] = arguments.as_slice() {
        println!("{}", run(case, Path::new(queue), count.parse().unwrap()));
        return;
    }
    let count: u64 = arguments.first().map_or(2_000_000, |count| count.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    build_c(dir.path());
    // Like a queue that has been in use: retention lets files be used again.
    let used = dir.path().join("used");
    let queue = Queue::create(&used, &Settings { retain_segments: Some(4), ..Settings::default() }).unwrap();
    append(&queue, 5_000_000);
    let scanned = dir.path().join("scanned");
    append(&Queue::create(&scanned, &Settings::default()).unwrap(), count);

    let own = std::env::current_exe().unwrap();
    let programs = [own, dir.path().join("speed")];
    let mut found = vec![vec![Vec::new(); programs.len()]; CASES.len()];
    for _ in 0..ROUNDS {
        for ((case, _), found) in CASES.iter().zip(&mut found) {
            let queue = if *case == "scan" { &scanned } else { &used };
            for (program, times) in programs.iter().zip(found) {
                let mut command = Command::new(program);
                let text = output(command.arg(case).arg(queue).arg(count.to_string()));
                times.push(text.trim().parse::<u64>().unwrap());
            }
        }
    }
    println!("{count} messages of {} bytes, medians of {ROUNDS} rounds, all by turns\n", PAYLOAD.len());
    println!("| ns per message | Rust | C | ratio |\n|---|--:|--:|--:|");
    for ((_, name), mut found) in CASES.iter().zip(found) {
        let [rust, c] = [0, 1].map(|program: usize| {
            found[program].sort_unstable();
            #[allow(clippy::cast_precision_loss)]
            let each = found[program][ROUNDS / 2] as f64 / count as f64;
            each
        });
        println!("| {name} | {rust:.1} | {c:.1} | {:.2} |", c / rust);
    }
}
