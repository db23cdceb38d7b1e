//! A queue in an async program: readers of a tokio runtime, which one thread serves without polling.
//!
//! `cargo run --features async --example async`: a thread appends a thousand messages, a task reads them.

use chronfs::bus::ReaderRegistration;
use chronfs::queue::{AsyncReader, Entry, Queue, Settings};

const MESSAGES: u64 = 1000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let queue = Queue::create(dir.path().join("orders"), &Settings::default())?;
    // Registered for as long as the program reads.
    let registration = ReaderRegistration::new(queue.path(), "example")?;
    let mut orders = AsyncReader::new(registration.queue().reader("example")?)?;

    let mut writer = queue.writer()?;
    let writing =
        std::thread::spawn(move || (1..=MESSAGES).try_for_each(|i| writer.append(1, &i.to_le_bytes()).map(drop)));

    let mut count = 0;
    while count < MESSAGES {
        match orders.next().await? {
            Entry::Message(message) => count = message.seq,
            Entry::Gap(gap) => return Err(format!("messages {} to {} are lost", gap.from, gap.to).into()),
        }
        orders.commit();
    }
    // A reader in use is not removed.
    drop(orders);
    drop(registration);
    assert!(queue.reader_names()?.is_empty());
    writing.join().map_err(|_| "the writer panicked")??;
    println!("{count} messages read");
    Ok(())
}
