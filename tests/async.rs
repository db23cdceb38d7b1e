//! Readers in async programs.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use chronfs::Queue;
use chronfs::queue::{AsyncReader, Entry, OwnedEntry, layout};
use futures_core::Stream;

mod common;

use common::{SMALL, new_queue, until};

/// Wakes nobody, and counts.
#[derive(Default)]
struct Wakes(AtomicU64);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn reader(queue: &Queue, name: &str) -> AsyncReader {
    AsyncReader::new(queue.reader(name).unwrap()).unwrap()
}

fn seq(entry: Entry<'_>) -> u64 {
    entry.message().unwrap().seq
}

async fn read(mut reader: AsyncReader, count: u64) {
    for expected in 1..=count {
        assert_eq!(seq(reader.next().await.unwrap()), expected);
        reader.commit();
    }
}

/// Ten readers of five queues that other threads append to, in bursts that end often enough for everyone to sleep.
async fn read_side_by_side() {
    const COUNT: u64 = 3_000;
    let queues: Vec<_> = (0..5).map(|_| new_queue(&SMALL)).collect();
    let readers: Vec<_> = queues.iter().flat_map(|(_, queue)| ["a", "b"].map(|name| reader(queue, name))).collect();
    let start = Arc::new(Barrier::new(queues.len()));
    let writing: Vec<_> = queues
        .iter()
        .map(|(_, queue)| {
            let (mut writer, start) = (queue.writer().unwrap(), Arc::clone(&start));
            thread::spawn(move || {
                start.wait();
                for seq in 1..=COUNT {
                    writer.append(1, &seq.to_le_bytes()).unwrap();
                    if seq % 7 == 0 {
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let reading: Vec<_> = readers.into_iter().map(|reader| tokio::spawn(read(reader, COUNT))).collect();
    for task in reading {
        task.await.unwrap();
    }
    writing.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(queues[0].1.reader_position("a").unwrap(), COUNT + 1);
}

#[tokio::test]
async fn tasks_of_one_thread_read_side_by_side() {
    read_side_by_side().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn tasks_of_many_threads_read_side_by_side() {
    read_side_by_side().await;
}

#[tokio::test]
async fn a_future_that_is_dropped_loses_nothing() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut reader = reader(&queue, "r");
    let mut writer = queue.writer().unwrap();
    for expected in 1..=200 {
        for _ in 0..3 {
            // Polled once, announced, and dropped.
            tokio::select! {
                biased;
                _ = reader.next() => panic!("there is nothing yet"),
                () = std::future::ready(()) => {}
            }
        }
        writer.append(1, b"hello").unwrap();
        if expected % 2 == 0 {
            // Found, but not taken.
            reader.ready().await.unwrap();
        }
        assert_eq!(seq(reader.next().await.unwrap()), expected);
    }
}

#[tokio::test]
async fn a_full_queue_leaves_time_for_other_tasks() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    (0..2_000).for_each(|_| assert!(writer.append(1, b"hello").unwrap() > 0));
    let reading = tokio::spawn(read(reader(&queue, "r"), 2_000));
    let other = tokio::spawn(async move {
        assert!(!reading.is_finished(), "this task had to wait for the whole queue");
        reading.await.unwrap();
    });
    other.await.unwrap();
}

fn poll_once<F: Future>(future: Pin<&mut F>, wakes: &Arc<Wakes>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(&Waker::from(Arc::clone(wakes))))
}

#[test]
fn the_writer_is_told_only_when_there_is_nothing_to_read() {
    let (dir, queue) = new_queue(&SMALL);
    let flag = || {
        let control = std::fs::read(dir.path().join("q").join(layout::CONTROL_FILE)).unwrap();
        control[layout::CONTROL_SLEEPING as usize]
    };
    let mut writer = queue.writer().unwrap();
    let mut reader = reader(&queue, "r");
    let wakes = Arc::<Wakes>::default();
    (0..100).for_each(|_| assert!(writer.append(1, b"hello").unwrap() > 0));
    for _ in 0..100 {
        assert!(poll_once(pin!(reader.next()), &wakes).is_ready());
        assert_eq!(flag(), 0);
    }
    assert!(poll_once(pin!(reader.next()), &wakes).is_pending());
    assert_eq!(flag(), 1);
    writer.append(1, b"hello").unwrap();
    until("the task is woken", || wakes.0.load(Ordering::SeqCst) > 0);
    assert!(poll_once(pin!(reader.next()), &wakes).is_ready());
}

#[test]
fn the_task_that_polled_last_is_woken() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    let mut reader = reader(&queue, "r");
    let [first, second] = [Arc::<Wakes>::default(), Arc::<Wakes>::default()];
    assert!(poll_once(pin!(reader.next()), &first).is_pending());
    assert!(poll_once(pin!(reader.next()), &second).is_pending());
    writer.append(1, b"hello").unwrap();
    until("the task is woken", || second.0.load(Ordering::SeqCst) > 0);
}

#[test]
fn a_reader_may_be_dropped_by_the_wake_itself() {
    struct Dropper(std::sync::Mutex<Option<AsyncReader>>, AtomicU64);
    impl Wake for Dropper {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().unwrap().take());
            self.1.store(1, Ordering::SeqCst);
        }
    }
    let (_dir, queue) = new_queue(&SMALL);
    let mut reader = reader(&queue, "r");
    let dropper = Arc::new(Dropper(std::sync::Mutex::default(), AtomicU64::new(0)));
    {
        let mut slot = dropper.0.lock().unwrap();
        let waker = Waker::from(Arc::clone(&dropper));
        assert!(pin!(reader.next()).poll(&mut Context::from_waker(&waker)).is_pending());
        *slot = Some(reader);
    }
    queue.writer().unwrap().append(1, b"hello").unwrap();
    until("the reader is dropped", || dropper.1.load(Ordering::SeqCst) == 1);
    queue.remove_reader("r").unwrap();
}

#[tokio::test]
async fn a_stream_has_the_messages_with_payloads_of_its_own() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut reader = reader(&queue, "r");
    let mut writer = queue.writer().unwrap();
    let mut stream = reader.stream();
    let mut owned = Vec::new();
    for text in ["one", "two", "three"] {
        writer.append(7, text.as_bytes()).unwrap();
        let next = std::future::poll_fn(|context| Pin::new(&mut stream).poll_next(context)).await;
        let OwnedEntry::Message(message) = next.unwrap().unwrap() else { panic!("a gap") };
        owned.push((message.seq, message.msg_type, message.payload));
    }
    stream.commit();
    drop(reader);
    assert_eq!(owned, [(1, 7, b"one".to_vec()), (2, 7, b"two".to_vec()), (3, 7, b"three".to_vec())]);
    assert_eq!(queue.reader_position("r").unwrap(), 4);
}

#[tokio::test]
async fn whoever_waits_for_a_removed_queue_gets_an_error() {
    let (dir, queue) = new_queue(&SMALL);
    let mut reader = reader(&queue, "r");
    let task = tokio::spawn(async move { reader.next().await.map(|entry| entry.message().is_some()) });
    tokio::task::yield_now().await;
    std::fs::remove_dir_all(dir.path().join("q")).unwrap();
    let error = task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("has been removed"), "{error}");
}

#[tokio::test]
async fn batches_need_no_wait_in_between() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut writer = queue.writer().unwrap();
    let mut reader = reader(&queue, "r");
    (0..1_000).for_each(|_| assert!(writer.append(1, b"hello").unwrap() > 0));
    let mut count = 0;
    while count < 1_000 {
        assert!(seq(reader.next().await.unwrap()) > count);
        count += 1 + u64::try_from(reader.get_mut().available().count()).unwrap();
        reader.commit();
    }
    let mut reader = reader.into_inner();
    assert_eq!(reader.next().unwrap(), None);
}

#[tokio::test]
async fn a_tailer_is_woken_too() {
    let (_dir, queue) = new_queue(&SMALL);
    let mut reader = AsyncReader::new(queue.tailer().unwrap()).unwrap();
    let mut writer = queue.writer().unwrap();
    let appending = thread::spawn(move || (0..500).for_each(|_| assert!(writer.append(1, b"hello").unwrap() > 0)));
    for expected in 1..=500 {
        assert_eq!(seq(reader.next().await.unwrap()), expected);
    }
    appending.join().unwrap();
    assert!(queue.reader_names().unwrap().is_empty());
}
