#![allow(missing_docs, clippy::all, clippy::pedantic)]
use chronfs::queue::{Queue, Settings};
use std::hint::black_box;
use std::time::{Duration, Instant};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let len: usize = args[1].parse().unwrap();
    let rounds: usize = args[2].parse().unwrap();
    let payload = vec![b'x'; len];
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::create(dir.path().join("q"), &Settings { retain_segments: Some(3), ..Settings::default() }).unwrap();
    let mut writer = queue.writer().unwrap();
    for _ in 0..70_000 { writer.append(1, &[b'x'; 1024]).unwrap(); }
    let burst = (2 << 20) / (32 + len) as u64;
    let mut times = vec![];
    for _ in 0..rounds {
        std::thread::sleep(Duration::from_millis(3));
        let start = Instant::now();
        for _ in 0..burst { writer.append(1, black_box(&payload)).unwrap(); }
        times.push(start.elapsed().as_nanos() as f64 / burst as f64);
    }
    times.sort_by(f64::total_cmp);
    println!("{len} B: p10 {:.1} p25 {:.1} p50 {:.1} ns, {} appends", times[rounds / 10], times[rounds / 4], times[rounds / 2], burst * rounds as u64);
}
