//! The wake of a reader that sleeps in the same process: one that blocks its thread beside a task of a tokio runtime.
//! Compare the two within one run.
//!
//! `cargo bench --features async --bench wake`
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use chronfs::Queue;
use chronfs::queue::{AsyncReader, QueueReader, ReaderOptions, Settings, WaitStrategy};

const WAKES: usize = 2_000;
/// In which the reader falls asleep.
const PAUSE: Duration = Duration::from_millis(1);

fn block(mut reader: QueueReader, woken: &Sender<Instant>) {
    for _ in 0..WAKES {
        reader.wait(None).unwrap();
        woken.send(Instant::now()).unwrap();
        reader.next().unwrap();
    }
}

fn run(reader: QueueReader, woken: &Sender<Instant>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut reader = AsyncReader::new(reader).unwrap();
        for _ in 0..WAKES {
            reader.ready().await.unwrap();
            woken.send(Instant::now()).unwrap();
            reader.next().await.unwrap();
        }
    });
}

fn measure(name: &str, read: fn(QueueReader, &Sender<Instant>)) {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::create(dir.path().join("q"), &Settings::default()).unwrap();
    let options = ReaderOptions { wait: WaitStrategy::Sleep, ..ReaderOptions::default() };
    let (reader, mut writer) = (queue.reader_with("r", &options).unwrap(), queue.writer().unwrap());
    let (send, woken): (_, Receiver<Instant>) = channel();
    let reading = std::thread::spawn(move || read(reader, &send));
    let mut times: Vec<Duration> = (0..WAKES)
        .map(|_| {
            std::thread::sleep(PAUSE);
            let start = Instant::now();
            writer.append(1, &[b'x'; 64]).unwrap();
            woken.recv().unwrap().duration_since(start)
        })
        .collect();
    reading.join().unwrap();
    times.sort_unstable();
    println!("{name}: p50 {:?}, p99 {:?}", times[WAKES / 2], times[WAKES * 99 / 100]);
}

fn main() {
    measure("blocking", block);
    measure("async", run);
}
