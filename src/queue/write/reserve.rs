//! Two more ways to append: filling a record in place, and many messages with one wake.

use std::io::IoSlice;
use std::ops::{Deref, DerefMut};

use zerocopy::{Immutable, IntoBytes};

use crate::queue::error::{Error, Result};
use crate::queue::format::layout::HEADER_LEN;
use crate::queue::format::record::Header;
use crate::queue::write::writer::QueueWriter;

/// A record that is being filled in place: dereferences to its payload, which is aligned as
/// [`Message::payload`](crate::queue::Message::payload) says. [`commit`](Self::commit) appends it; if it is dropped
/// instead, nothing is appended.
///
/// What the payload's bytes are before they are written is unspecified: where the segment's file has been used before,
/// they are bytes of retired messages, and what is not overwritten is appended as it is.
/// [`reserve_zeroed`](QueueWriter::reserve_zeroed) clears them.
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
///
/// // Reserve for the longest, then append as much as there is.
/// let mut record = writer.reserve(1, 1000)?;
/// record[..5].copy_from_slice(b"world");
/// assert_eq!(record.commit_len(5)?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Reservation<'a> {
    writer: Claimed<'a>,
    msg_type: u16,
    payload_len: u32,
    /// Whether it wakes readers.
    wakes: bool,
    /// What is known to be zero if all of the payload is committed.
    cleared: u32,
}

/// A writer whose next record is being filled: until this is dropped, the helper thread does not end the segment.
#[derive(Debug)]
struct Claimed<'a>(&'a mut QueueWriter);

impl Deref for Claimed<'_> {
    type Target = QueueWriter;

    fn deref(&self) -> &QueueWriter {
        self.0
    }
}

impl DerefMut for Claimed<'_> {
    fn deref_mut(&mut self) -> &mut QueueWriter {
        self.0
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Reservation<'_> {
    /// Appends the message with the current time; visible to every reader when this returns. Returns its sequence
    /// number.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk had no room for what was filled in, although room had been reserved. Then nothing has
    /// changed, and a later append may succeed. [`Error::Forked`] in a child that was forked meanwhile.
    pub fn commit(self) -> Result<u64> {
        let len = self.len();
        self.commit_len(len)
    }

    /// Like [`commit`](Self::commit), with an explicit timestamp (nanoseconds since the epoch).
    ///
    /// # Errors
    /// As [`commit`](Self::commit) and [`QueueWriter::append_at`]; nothing is appended then.
    pub fn commit_at(self, timestamp_ns: u64) -> Result<u64> {
        let len = self.len();
        self.commit_len_at(len, timestamp_ns)
    }

    /// Like [`commit`](Self::commit), with the first `len` bytes of the payload only.
    ///
    /// # Errors
    /// As [`commit`](Self::commit); [`Error::TooLarge`] if fewer bytes were reserved; nothing is appended then.
    pub fn commit_len(mut self, len: usize) -> Result<u64> {
        let timestamp_ns = self.writer.now_ns();
        self.finish(len, timestamp_ns)
    }

    /// Like [`commit_len`](Self::commit_len), with an explicit timestamp as for [`commit_at`](Self::commit_at).
    ///
    /// # Errors
    /// As those two.
    pub fn commit_len_at(mut self, len: usize, timestamp_ns: u64) -> Result<u64> {
        self.writer.check_timestamp(timestamp_ns)?;
        self.finish(len, timestamp_ns)
    }

    fn finish(self, len: usize, timestamp_ns: u64) -> Result<u64> {
        // The process may have forked since it was reserved.
        self.writer.check_origin()?;
        if timestamp_ns >= self.writer.roll_at_ns {
            return self.finish_in_next(len, timestamp_ns);
        }
        let Self { mut writer, msg_type, payload_len: max, wakes, cleared } = self;
        let checked = u32::try_from(len).ok().filter(|&len| len <= max);
        let Some(payload_len) = checked else {
            return Err(Error::TooLarge { path: writer.path(), len, max: max as usize });
        };
        if payload_len == max {
            writer.ahead.remember(cleared);
        }
        let record_len = writer.context.record_len(payload_len);
        let (offset, seq) = (writer.offset, writer.next_seq);
        let header = Header { payload_len, msg_type, flags: 0, seq, timestamp_ns };
        let is_filled = writer.map.has_stores();
        if is_filled {
            let mut place = writer.map.place(offset, record_len);
            let (payload, padding) = place.body().split_at_mut(len);
            padding.fill(0);
            let words = header.words(&writer.context, offset, payload);
            writer.ahead.commit(place, offset + record_len, words);
        }
        if !is_filled || !writer.map.has_stores() {
            let loss = writer.loss();
            if !writer.map_again(record_len, timestamp_ns)? {
                // Part of what was filled in is gone, whether or not there is room by now.
                return Err(loss);
            }
        }
        let seq = writer.advance(record_len, timestamp_ns);
        if wakes {
            writer.waker.published(&writer.control);
        }
        Ok(seq)
    }

    /// Like [`finish`](Self::finish), after the end of this segment's time: a copy goes into the next one.
    #[cold]
    fn finish_in_next(self, len: usize, timestamp_ns: u64) -> Result<u64> {
        let Self { mut writer, msg_type, payload_len: max, wakes, .. } = self;
        let filled = writer.map.bytes(writer.offset + HEADER_LEN, max as usize);
        let Some(payload) = filled.get(..len).map(<[u8]>::to_vec) else {
            return Err(Error::TooLarge { path: writer.path(), len, max: max as usize });
        };
        let seq = writer.publish(timestamp_ns, msg_type, &payload)?;
        if wakes {
            writer.waker.published(&writer.control);
        }
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
/// While a batch is held, and if it is forgotten ([`std::mem::forget`]), a sleeping reader learns of its messages up to
/// 1 s late: keep batches short.
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

    /// Appends a message with an explicit timestamp.
    ///
    /// # Errors
    /// As [`QueueWriter::append_at`].
    #[inline]
    pub fn append_at(&mut self, timestamp_ns: u64, msg_type: u16, payload: &[u8]) -> Result<u64> {
        self.writer.check_timestamp(timestamp_ns)?;
        self.writer.publish(timestamp_ns, msg_type, payload)
    }

    /// Appends a message whose payload lies in several places: [`QueueWriter::append_parts`].
    ///
    /// # Errors
    /// As [`QueueWriter::append`].
    pub fn append_parts(&mut self, msg_type: u16, parts: &[IoSlice<'_>]) -> Result<u64> {
        self.writer.publish_parts(msg_type, parts)
    }

    /// Appends the bytes of a value: [`QueueWriter::append_as`].
    ///
    /// # Errors
    /// As [`QueueWriter::append`].
    #[inline]
    pub fn append_as<T: IntoBytes + Immutable + ?Sized>(&mut self, msg_type: u16, value: &T) -> Result<u64> {
        self.append(msg_type, value.as_bytes())
    }

    /// Reserves a record, to be filled in place. Its commit wakes nobody; the batch does.
    ///
    /// # Errors
    /// As [`QueueWriter::append`].
    pub fn reserve(&mut self, msg_type: u16, payload_len: usize) -> Result<Reservation<'_>> {
        Ok(Reservation { wakes: false, ..self.writer.reserve(msg_type, payload_len)? })
    }

    /// Like [`reserve`](Self::reserve), filled with zeros.
    ///
    /// # Errors
    /// As [`QueueWriter::append`].
    pub fn reserve_zeroed(&mut self, msg_type: u16, payload_len: usize) -> Result<Reservation<'_>> {
        Ok(Reservation { wakes: false, ..self.writer.reserve_zeroed(msg_type, payload_len)? })
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.writer.waker.published(&self.writer.control);
    }
}

impl QueueWriter {
    /// Reserves a record with a payload of `payload_len` bytes, to be filled in place. The bytes are unspecified at
    /// first: see [`Reservation`].
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn reserve(&mut self, msg_type: u16, payload_len: usize) -> Result<Reservation<'_>> {
        // Which period it belongs to is decided by the commit.
        let (payload_len, _) = self.claim(0, msg_type, payload_len)?;
        let cleared = self.ahead.forget();
        Ok(Reservation { writer: Claimed(self), msg_type, payload_len, wakes: true, cleared })
    }

    /// Like [`reserve`](Self::reserve), filled with zeros: what is not written is zero, and nothing of retired messages
    /// can be seen.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn reserve_zeroed(&mut self, msg_type: u16, payload_len: usize) -> Result<Reservation<'_>> {
        let mut reservation = self.reserve(msg_type, payload_len)?;
        reservation.fill(0);
        Ok(reservation)
    }

    /// Starts a batch: many messages, one wake.
    pub fn batch(&mut self) -> Batch<'_> {
        Batch { writer: self }
    }
}
