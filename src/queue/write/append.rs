//! More ways to append a message: in parts, by its type, with timestamps that are shared or given.

use std::io::IoSlice;

use zerocopy::{Immutable, IntoBytes};

use crate::clock;
use crate::queue::error::{Error, Result};
use crate::queue::format::record::Header;
use crate::queue::write::writer::QueueWriter;

impl QueueWriter {
    /// Appends a message whose payload lies in several places, one after the other: a header and a body, for example.
    /// Each part is copied once, straight into the queue; nothing is allocated.
    ///
    /// ```
    /// # use chronfs::queue::{Queue, Settings};
    /// # let dir = tempfile::tempdir()?;
    /// # let mut writer = Queue::create(dir.path().join("q"), &Settings::default())?.writer()?;
    /// use std::io::IoSlice;
    ///
    /// writer.append_parts(1, &[IoSlice::new(b"EURUSD "), IoSlice::new(b"1.0842")])?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_parts(&mut self, msg_type: u16, parts: &[IoSlice<'_>]) -> Result<u64> {
        let seq = self.publish_parts(msg_type, parts)?;
        self.waker.published(&self.control);
        Ok(seq)
    }

    /// Appends a message whose payload is the bytes of a value. [`Message::read`](crate::queue::Message::read) and
    /// [`Message::payload_as`](crate::queue::Message::payload_as) return it.
    ///
    /// ```
    /// # use chronfs::queue::{Queue, Settings};
    /// # let dir = tempfile::tempdir()?;
    /// # let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
    /// use chronfs::zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
    ///
    /// #[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
    /// #[zerocopy(crate = "chronfs::zerocopy")]
    /// #[repr(C)]
    /// struct Quote {
    ///     bid: i64,
    ///     ask: i64,
    /// }
    ///
    /// queue.writer()?.append_as(1, &Quote { bid: 10_841, ask: 10_843 })?;
    /// let mut reader = queue.reader("spread")?;
    /// let message = reader.next()?.and_then(|entry| entry.message()).ok_or("nothing there")?;
    /// let quote: &Quote = message.payload_as().ok_or("not a quote")?; // in place
    /// assert_eq!(quote.ask - quote.bid, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`append`](Self::append).
    #[inline]
    pub fn append_as<T: IntoBytes + Immutable + ?Sized>(&mut self, msg_type: u16, value: &T) -> Result<u64> {
        self.append(msg_type, value.as_bytes())
    }

    /// The time that a message would have if it were appended now, in nanoseconds since the epoch: the wall clock's, or
    /// the newest message's if the clock has gone back.
    ///
    /// Reading the clock is a third of what an append of a short message costs. Messages that arrive together, in one
    /// packet for example, can share one reading, as long as nothing else is appended between them:
    ///
    /// ```
    /// # use chronfs::queue::{Queue, Settings};
    /// # let dir = tempfile::tempdir()?;
    /// # let mut writer = Queue::create(dir.path().join("q"), &Settings::default())?.writer()?;
    /// # let packet = ["EURUSD 1.0842", "USDJPY 151.20"];
    /// let received_ns = writer.now_ns();
    /// for quote in packet {
    ///     writer.append_at(received_ns, 1, quote.as_bytes())?;
    /// }
    /// assert_eq!(writer.last_timestamp_ns(), received_ns);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn now_ns(&mut self) -> u64 {
        self.clock.now_ns().max(self.last_timestamp_ns)
    }

    /// Checks a timestamp that a caller has chosen.
    #[inline]
    pub(in crate::queue) fn check_timestamp(&mut self, timestamp_ns: u64) -> Result<()> {
        if timestamp_ns < self.last_timestamp_ns {
            return Err(Error::TimestampInPast { timestamp_ns, last_ns: self.last_timestamp_ns });
        }
        // Like the newest message's, it delays no later one.
        if timestamp_ns > self.latest_ns && timestamp_ns > self.last_timestamp_ns {
            return self.check_ahead(timestamp_ns);
        }
        Ok(())
    }

    /// Whether an explicit timestamp is not too far ahead of the current wall clock.
    #[cold]
    fn check_ahead(&mut self, timestamp_ns: u64) -> Result<()> {
        let (now_ns, max_ahead) = (clock::now_ns(), self.options.max_ahead);
        self.latest_ns = now_ns.saturating_add(u64::try_from(max_ahead.as_nanos()).unwrap_or(u64::MAX));
        if timestamp_ns > self.latest_ns {
            return Err(Error::TimestampInFuture { timestamp_ns, now_ns, max_ahead });
        }
        Ok(())
    }

    /// Like [`append_parts`](Self::append_parts), without waking readers.
    pub(in crate::queue) fn publish_parts(&mut self, msg_type: u16, parts: &[IoSlice<'_>]) -> Result<u64> {
        let timestamp_ns = self.now_ns();
        let len = parts.iter().fold(0, |len: usize, part| len.saturating_add(part.len()));
        self.publish_filled(timestamp_ns, (msg_type, 0), len, |payload| {
            let mut rest = payload;
            for part in parts {
                let (to, after) = rest.split_at_mut(part.len());
                to.copy_from_slice(part);
                rest = after;
            }
        })
    }

    /// Appends a record of a type with flags, whose payload of `len` bytes is written by `fill`, without waking
    /// readers.
    pub(in crate::queue) fn publish_filled(
        &mut self,
        timestamp_ns: u64,
        (msg_type, flags): (u16, u16),
        len: usize,
        fill: impl Fn(&mut [u8]),
    ) -> Result<u64> {
        // Messages have no flags, and may not have the reserved type.
        let claimed_type = if flags == 0 { msg_type } else { 0 };
        loop {
            let (payload_len, record_len) = self.claim(timestamp_ns, claimed_type, len)?;
            let header = Header { payload_len, msg_type, flags, seq: self.next_seq, timestamp_ns };
            let mut place = self.map.place(self.offset, record_len);
            let (payload, padding) = place.body().split_at_mut(len);
            fill(payload);
            padding.fill(0);
            // From the cache: what has just been copied.
            let words = header.words(&self.context, self.offset, payload);
            self.ahead.commit(place, self.offset + record_len, words);
            if self.map.has_stores() || self.map_again(record_len, timestamp_ns)? {
                return Ok(self.advance(record_len, timestamp_ns));
            }
        }
    }
}
