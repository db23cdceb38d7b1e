//! Two more ways to append: filling a record in place, and many messages with one wake.

use std::ops::{Deref, DerefMut};

use crate::queue::error::Result;
use crate::queue::format::layout::HEADER_LEN;
use crate::queue::format::record::Header;
use crate::queue::write::writer::QueueWriter;

/// A record that is being filled in place: dereferences to its payload. [`commit`](Self::commit) appends it; if it is
/// dropped instead, nothing is appended. The payload's bytes are unspecified until they are written.
///
/// ```
/// # use chronfs::queue::{Queue, Settings};
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
/// let mut writer = queue.writer()?;
/// let mut record = writer.reserve(1, 5)?;
/// record.copy_from_slice(b"hello");
/// assert_eq!(record.commit()?, 1);
/// drop(writer.reserve(1, 100)?); // thought better of it
/// assert_eq!(writer.append(1, b"world")?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Reservation<'a> {
    writer: &'a mut QueueWriter,
    msg_type: u16,
    payload_len: u32,
    record_len: u32,
}

impl Reservation<'_> {
    /// Appends the message with the current time; visible to every reader when this returns. Returns its sequence
    /// number.
    ///
    /// # Errors
    /// [`Error::Io`](crate::queue::Error::Io) if the disk had no room for what was filled in, although room had been
    /// reserved. Then nothing has changed, and a later append may succeed.
    pub fn commit(self) -> Result<u64> {
        let timestamp_ns = self.writer.now_ns();
        let Self { writer, msg_type, payload_len, record_len } = self;
        let (offset, seq) = (writer.offset, writer.next_seq);
        let header = Header { payload_len, msg_type, flags: 0, seq, timestamp_ns };
        let body = writer.map.unpublished(offset + HEADER_LEN, (record_len - HEADER_LEN) as usize);
        let (payload, padding) = body.split_at_mut(payload_len as usize);
        padding.fill(0);
        let words = header.words(&writer.context, offset, payload);
        if !writer.map.has_stores() || !writer.commit(words, record_len) {
            // Part of what was filled in is gone, whether or not there is room by now.
            let loss = writer.loss();
            return writer.map_again(record_len).and(Err(loss));
        }
        let seq = writer.advance(record_len, timestamp_ns);
        writer.waker.published(&writer.control);
        Ok(seq)
    }
}

impl Deref for Reservation<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.writer.map.bytes(self.writer.offset + HEADER_LEN, self.payload_len as usize)
    }
}

impl DerefMut for Reservation<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.writer.map.unpublished(self.writer.offset + HEADER_LEN, self.payload_len as usize)
    }
}

/// Appends many messages and wakes sleeping readers once, when it is dropped. Readers that are awake see each message
/// as it is appended.
///
/// ```
/// # use chronfs::queue::{Queue, Settings};
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
/// let mut writer = queue.writer()?;
/// let mut batch = writer.batch();
/// for line in ["one", "two", "three"] {
///     batch.append(1, line.as_bytes())?;
/// }
/// drop(batch);
/// assert_eq!(writer.next_seq(), 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Batch<'a> {
    writer: &'a mut QueueWriter,
}

impl Batch<'_> {
    /// Appends a message with the current time. Returns its sequence number.
    ///
    /// # Errors
    /// As [`QueueWriter::append`].
    #[inline]
    pub fn append(&mut self, msg_type: u16, payload: &[u8]) -> Result<u64> {
        let timestamp_ns = self.writer.now_ns();
        self.writer.publish(timestamp_ns, msg_type, payload)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.writer.waker.published(&self.writer.control);
    }
}

impl QueueWriter {
    /// Reserves a record with a payload of `payload_len` bytes, to be filled in place.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn reserve(&mut self, msg_type: u16, payload_len: usize) -> Result<Reservation<'_>> {
        let (payload_len, record_len) = self.claim(msg_type, payload_len)?;
        Ok(Reservation { writer: self, msg_type, payload_len, record_len })
    }

    /// Starts a batch: many messages, one wake.
    pub fn batch(&mut self) -> Batch<'_> {
        Batch { writer: self }
    }
}
