//! Append, read and commit, each beside this machine's floor: the same record copied into a populated mapping without a
//! checksum, a timestamp or a wake, and read back. Compare ratios within one run, not nanoseconds. Then seeks,
//! fan-in, rolls, and taking over from a killed writer.
//!
//! `cargo bench --bench queue`; `CHRONFS_BENCH_DIR` is where the queues are created (default: the temporary directory).
#![allow(missing_docs, unsafe_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::{Duration, Instant};

use chronfs::queue::{FanInReader, Queue, QueueWriter, ReaderOptions, Settings, Start};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};

const PAYLOADS: [usize; 4] = [16, 64, 256, 1024];
const HEADER: usize = 32;
/// Messages between two checks of the disk.
const CHUNK: u64 = 200_000;
/// Messages of 1 KiB after which a queue's segments have their full size.
const GROWN: u64 = 70_000;
/// Bytes appended without a pause in the burst benches.
const BURST_BYTES: u64 = 2 << 20;
/// Pause between bursts.
const PAUSE: Duration = Duration::from_millis(3);

fn directory() -> tempfile::TempDir {
    let base = std::env::var_os("CHRONFS_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(base).unwrap()
}

/// A populated mapping, written round and round.
struct Floor {
    map: memmap2::MmapMut,
    at: usize,
}

impl Floor {
    fn new(dir: &Path) -> Self {
        let path = dir.join("floor");
        let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        file.set_len(64 << 20).unwrap();
        // SAFETY: no other process knows the file.
        let mut map = unsafe { memmap2::MmapMut::map_mut(&file).unwrap() };
        map.fill(1);
        Self { map, at: 0 }
    }

    #[inline]
    fn append(&mut self, payload: &[u8]) {
        let len = HEADER + payload.len().next_multiple_of(8);
        if self.at + len > self.map.len() {
            self.at = 0;
        }
        let record = &mut self.map[self.at..self.at + len];
        record[HEADER..HEADER + payload.len()].copy_from_slice(payload);
        record[8..16].copy_from_slice(&(self.at as u64).to_le_bytes());
        compiler_fence(Ordering::Release);
        record[..4].copy_from_slice(&(len as u32).to_le_bytes());
        self.at += len;
    }
}

/// Keeps the last segments only, so that the disk does not fill.
fn trim(writer: &QueueWriter) {
    let path = writer.path();
    let mut segments: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|ending| ending == "q"));
    segments.sort();
    for old in segments.iter().rev().skip(3) {
        std::fs::remove_file(old).unwrap();
    }
}

fn append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append");
    for len in PAYLOADS {
        let payload = vec![b'x'; len];
        group.throughput(Throughput::Elements(1));
        let dir = directory();
        let mut floor = Floor::new(dir.path());
        group.bench_function(BenchmarkId::new("floor", len), |bencher| {
            bencher.iter(|| floor.append(black_box(&payload)));
        });
        let queue = Queue::create(dir.path().join("q"), &Settings::default()).unwrap();
        let mut writer = queue.writer().unwrap();
        // Bursts find their pages prefaulted: the helper prefaults the next ones in the pauses between them.
        let burst = BURST_BYTES / (HEADER + len.next_multiple_of(8)) as u64;
        for (name, chunk, pause) in [("burst", burst, PAUSE), ("sustained", CHUNK, Duration::ZERO)] {
            group.bench_function(BenchmarkId::new(name, len), |bencher| {
                bencher.iter_custom(|iterations| {
                    in_chunks(iterations, chunk, |count| {
                        std::thread::sleep(pause);
                        let start = Instant::now();
                        for _ in 0..count {
                            writer.append(1, black_box(&payload)).unwrap();
                        }
                        let elapsed = start.elapsed();
                        trim(&writer);
                        elapsed
                    })
                });
            });
        }
    }
    group.finish();
}

fn in_chunks(iterations: u64, chunk: u64, mut run: impl FnMut(u64) -> Duration) -> Duration {
    let whole = (0..iterations / chunk).map(|_| chunk);
    whole.chain([iterations % chunk]).map(&mut run).sum()
}

fn read(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read");
    for len in PAYLOADS {
        let payload = vec![b'x'; len];
        let dir = directory();
        let queue = Queue::create(dir.path().join("q"), &Settings::default()).unwrap();
        let mut writer = queue.writer().unwrap();
        // Each round starts over: in young, small segments it would measure how they are mapped.
        while writer.append(1, &[b'x'; 1024]).unwrap() < GROWN {}
        for _ in 0..CHUNK {
            writer.append(1, &payload).unwrap();
        }
        group.throughput(Throughput::Elements(1));
        // The floor: walk the same number of records in plain memory and checksum each.
        let record = HEADER + len.next_multiple_of(8);
        let memory = vec![1_u8; record * usize::try_from(CHUNK).unwrap()];
        let mut at = 0;
        group.bench_function(BenchmarkId::new("floor", len), |bencher| {
            bencher.iter(|| {
                let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, black_box(&memory[at..at + record]));
                at = (at + record) % memory.len();
                sum
            });
        });
        for verify in [true, false] {
            let name = if verify { "next, verified" } else { "next, not verified" };
            let options = ReaderOptions { verify, start: Start::First, ..ReaderOptions::default() };
            let mut reader = queue.reader_with(if verify { "a" } else { "b" }, &options).unwrap();
            group.bench_function(BenchmarkId::new(name, len), |bencher| {
                bencher.iter_custom(|iterations| {
                    in_chunks(iterations, CHUNK, |count| {
                        reader.seek_seq(GROWN + 1).unwrap();
                        let start = Instant::now();
                        for _ in 0..count {
                            let entry = reader.next().unwrap();
                            black_box(entry.and_then(|entry| entry.message()).map(|message| message.payload));
                        }
                        start.elapsed()
                    })
                });
            });
        }
    }
    group.finish();
}

fn commit(criterion: &mut Criterion) {
    let dir = directory();
    let queue = Queue::create(dir.path().join("q"), &Settings::default()).unwrap();
    queue.writer().unwrap().append(1, b"hello").unwrap();
    let mut reader = queue.reader("alice").unwrap();
    reader.next().unwrap();
    criterion.bench_function("commit", |bencher| bencher.iter(|| reader.commit()));
}

/// Seeks over 64 segments, each with the message that it leads to.
fn seek(criterion: &mut Criterion) {
    let dir = directory();
    let settings = Settings { segment_size: 1 << 20, ..Settings::default() };
    let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
    let mut writer = queue.writer().unwrap();
    let messages = (64 << 20) / 96;
    for seq in 0..messages {
        writer.append_at(seq * 1000, 1, &[b'x'; 64]).unwrap();
    }
    drop(writer);
    let mut reader = queue.reader("alice").unwrap();
    let mut random = 1_u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % messages
    };
    let mut group = criterion.benchmark_group("seek");
    group.bench_function("by number", |bencher| {
        bencher.iter(|| {
            reader.seek_seq(next() + 1).unwrap();
            assert!(reader.next().unwrap().is_some());
        });
    });
    group.bench_function("by time", |bencher| {
        bencher.iter(|| {
            reader.seek_time(next() * 1000).unwrap();
            assert!(reader.next().unwrap().is_some());
        });
    });
    group.finish();
}

/// One message from many interleaved queues.
fn fan_in(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fan-in");
    group.throughput(Throughput::Elements(1));
    for queues in [1_u64, 10, 100] {
        let dir = directory();
        let settings = Settings { segment_size: 1 << 20, ..Settings::default() };
        let each = 100_000 / queues;
        let queues: Vec<Queue> = (0..queues)
            .map(|number| {
                let queue = Queue::create(dir.path().join(number.to_string()), &settings).unwrap();
                let mut writer = queue.writer().unwrap();
                for message in 0..each {
                    writer.append_at(1 + message * queues + number, 1, &[b'x'; 64]).unwrap();
                }
                drop(writer);
                queue
            })
            .collect();
        let total = each * queues.len() as u64;
        group.bench_function(BenchmarkId::from_parameter(queues.len()), |bencher| {
            bencher.iter_custom(|iterations| {
                let mut fan_in = FanInReader::new();
                let options = ReaderOptions { start: Start::First, ..ReaderOptions::default() };
                for (number, queue) in queues.iter().enumerate() {
                    fan_in.add(number.to_string(), queue.reader_with("merge", &options).unwrap()).unwrap();
                }
                // All of them, however few are asked for: the first ones map their segments.
                let start = Instant::now();
                for _ in 0..total {
                    assert!(black_box(fan_in.next().unwrap()).is_some());
                }
                start.elapsed().mul_f64(iterations as f64 / total as f64)
            });
        });
    }
    group.finish();
}

/// An append that rolls: only one payload fits into each segment; beside the same payload in a segment that holds many.
fn roll(criterion: &mut Criterion) {
    const LEN: usize = 33 << 10;
    let mut group = criterion.benchmark_group("roll");
    for (name, segment_size) in [("append without", 64 << 20), ("append with a roll", 64 << 10)] {
        let dir = directory();
        let settings = Settings { segment_size, retain_segments: Some(4), ..Settings::default() };
        let mut writer = Queue::create(dir.path().join("q"), &settings).unwrap().writer().unwrap();
        let payload = vec![b'x'; LEN];
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                in_chunks(iterations, 1, |count| {
                    // The helper creates the next segment.
                    std::thread::sleep(10 * PAUSE);
                    let start = Instant::now();
                    for _ in 0..count {
                        writer.append(1, black_box(&payload)).unwrap();
                    }
                    start.elapsed()
                })
            });
        });
    }
    group.finish();
}

/// The queue that a process started by `recovery` appends to before it is killed.
const KILLED: &str = "CHRONFS_BENCH_KILLED";

/// Takes over a queue whose writer was killed.
fn recovery(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("recovery");
    group.sample_size(10);
    for megabytes in [64_u32, 1024] {
        let dir = directory();
        let path = dir.path().join("q");
        let queue = Queue::create(&path, &Settings::default()).unwrap();
        let mut writer = queue.writer().unwrap();
        for _ in 0..megabytes {
            writer.append(1, &vec![b'x'; (1 << 20) - 64]).unwrap();
        }
        drop(writer);
        group.bench_function(BenchmarkId::new("open a writer, MiB", megabytes), |bencher| {
            bencher.iter_custom(|iterations| {
                in_chunks(iterations, 1, |count| {
                    let program = std::env::current_exe().unwrap();
                    let status = std::process::Command::new(program).env(KILLED, &path).status().unwrap();
                    assert!(!status.success());
                    let start = Instant::now();
                    for _ in 0..count {
                        drop(black_box(queue.writer().unwrap()));
                    }
                    start.elapsed()
                })
            });
        });
    }
    group.finish();
}

/// Appends past the last published head, and dies.
fn append_and_die(path: &Path) -> ! {
    let mut writer = Queue::open(path).unwrap().writer().unwrap();
    for _ in 0..600 {
        writer.append(1, &[b'x'; 64]).unwrap();
    }
    std::process::abort();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = append, read, commit, seek, fan_in, roll, recovery
}

fn main() {
    if let Some(path) = std::env::var_os(KILLED) {
        append_and_die(Path::new(&path));
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
