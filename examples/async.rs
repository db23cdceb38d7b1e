//! A queue in an async program: the notifier's descriptor in tokio's reactor, so that one thread serves many queues and
//! sockets without polling.
//!
//! `cargo run --example async`: a thread appends a thousand messages, a task reads them.

use std::time::Duration;

use chronfs::bus::ReaderRegistration;
use chronfs::queue::{Entry, Notifier, Queue, QueueReader, Settings};
use tokio::io::unix::AsyncFd;

const MESSAGES: u64 = 1000;

/// Reads a queue from async code, registered for as long as it lives.
struct AsyncReader {
    reader: QueueReader,
    notifier: AsyncFd<Notifier>,
    /// Dropped last, because a reader in use is not removed. After that nothing is kept for it.
    _registration: ReaderRegistration,
}

impl AsyncReader {
    fn new(queue: &Queue, name: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let registration = ReaderRegistration::new(queue.path(), name)?;
        let reader = registration.queue().reader(name)?;
        // SAFETY: a notifier always returns the same descriptor, and owns it as long as it lives.
        #[allow(unsafe_code)]
        let notifier = unsafe { AsyncFd::register(queue.notifier()?)? };
        Ok(Self { reader, notifier, _registration: registration })
    }

    /// Waits for the next message or gap, without blocking the thread.
    async fn next(&mut self) -> Result<Entry<'_>, Box<dyn std::error::Error>> {
        // Nothing is missed: the descriptor is cleared before the queue is found empty.
        while !self.reader.wait(Some(Duration::ZERO))? {
            let mut ready = self.notifier.readable().await?;
            self.notifier.get_ref().clear();
            ready.clear_ready();
        }
        self.reader.next()?.ok_or_else(|| "the message is gone".into())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let queue = Queue::create(dir.path().join("orders"), &Settings::default())?;
    let mut orders = AsyncReader::new(&queue, "example")?;

    let mut writer = queue.writer()?;
    let writing =
        std::thread::spawn(move || (1..=MESSAGES).try_for_each(|i| writer.append(1, &i.to_le_bytes()).map(drop)));

    let mut count = 0;
    while count < MESSAGES {
        match orders.next().await? {
            Entry::Message(message) => count = message.seq,
            Entry::Gap(gap) => return Err(format!("messages {} to {} are lost", gap.from, gap.to).into()),
        }
        orders.reader.commit();
    }
    drop(orders);
    assert!(queue.reader_names()?.is_empty());
    writing.join().map_err(|_| "the writer panicked")??;
    println!("{count} messages read");
    Ok(())
}
