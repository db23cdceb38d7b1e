//! Messages that outlive the call that returned them, without a copy.

use std::fmt;
use std::ops::Deref;

use crate::queue::entry::{Gap, Message};
use crate::queue::error::Result;
use crate::queue::format::layout::HEADER_LEN;
use crate::queue::os::mapping::Mapping;
use crate::queue::position::Position;
use crate::queue::read::reader::{Reader, Registration, Step};

/// A message that keeps the mapping that its payload lies in: for other threads, asynchronous code and bindings.
/// Dereferences to the payload.
///
/// It stays readable when the reader goes on or is dropped, and when retention removes its segment, whose file is not
/// reused meanwhile: then it keeps all of that segment's disk space, so don't hold it for long. If the file is truncated
/// under it, what is missing reads as zeros (with
/// [`disable_sigbus_handler`](crate::queue::disable_sigbus_handler) the process dies); otherwise what
/// [`Message::payload`] says about trust and alignment holds here, too.
#[derive(Clone)]
pub struct KeptMessage {
    seq: u64,
    timestamp_ns: u64,
    msg_type: u16,
    position: Position,
    payload: Payload,
}

#[derive(Clone)]
enum Payload {
    Mapped(Mapping, usize),
    /// Of a truncated segment, which can't be mapped.
    Copied(Box<[u8]>),
}

impl KeptMessage {
    fn copied(message: Message<'_>) -> Self {
        let Message { seq, timestamp_ns, msg_type, payload, position } = message;
        Self { seq, timestamp_ns, msg_type, position, payload: Payload::Copied(payload.into()) }
    }

    /// How many bytes of a file it keeps from being reused: its whole segment; 0 if it is a copy.
    pub fn kept_bytes(&self) -> usize {
        match &self.payload {
            Payload::Mapped(map, _) => map.len(),
            Payload::Copied(_) => 0,
        }
    }

    /// The message, borrowed from here.
    pub fn message(&self) -> Message<'_> {
        let Self { seq, timestamp_ns, msg_type, position, .. } = *self;
        Message { seq, timestamp_ns, msg_type, payload: self, position }
    }
}

impl Deref for KeptMessage {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.payload {
            // A reader has verified that it is within the mapping.
            Payload::Mapped(map, len) => map.bytes(self.position.offset + HEADER_LEN, *len),
            Payload::Copied(bytes) => bytes,
        }
    }
}

/// What comes next in a queue, like [`Entry`](crate::queue::Entry), to keep.
#[derive(Debug, Clone)]
pub enum KeptEntry {
    /// A message.
    Message(KeptMessage),
    /// Messages that are missing.
    Gap(Gap),
}

impl fmt::Debug for KeptMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message().fmt(f)
    }
}

impl<R: Registration> Reader<R> {
    /// Like [`next_message`](Self::next_message); the message keeps its mapping and can be moved anywhere. Costs one
    /// atomic addition more, and nothing where it is not used.
    ///
    /// ```
    /// # use chronfs::queue::{Queue, Settings};
    /// # let dir = tempfile::tempdir()?;
    /// let queue = Queue::create(dir.path().join("q"), &Settings::default())?;
    /// queue.writer()?.append(1, b"hello")?;
    /// let mut reader = queue.reader("alice")?;
    /// let kept = reader.next_kept(|gap| eprintln!("{gap:?}"))?.ok_or("nothing there")?;
    /// drop(reader);
    /// let length = std::thread::spawn(move || kept.len()).join().map_err(|_| "it panicked")?;
    /// assert_eq!(length, 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn next_kept(&mut self, mut on_gap: impl FnMut(Gap)) -> Result<Option<KeptMessage>> {
        loop {
            match self.next_kept_entry()? {
                Some(KeptEntry::Message(message)) => return Ok(Some(message)),
                Some(KeptEntry::Gap(gap)) => on_gap(gap),
                None => return Ok(None),
            }
        }
    }

    /// Like [`next`](Self::next), with messages that keep their mapping: [`next_kept`](Self::next_kept) for callers that
    /// must stop at a gap.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn next_kept_entry(&mut self) -> Result<Option<KeptEntry>> {
        let message = match self.step()? {
            // It was found in a mapping.
            Step::Message(record) => self.map.clone().map(|map| {
                let Message { seq, timestamp_ns, msg_type, payload, position } = record.message(&map);
                let len = payload.len();
                KeptMessage { seq, timestamp_ns, msg_type, position, payload: Payload::Mapped(map, len) }
            }),
            Step::Gap(gap) => return Ok(Some(KeptEntry::Gap(gap))),
            Step::Unmapped(scanner) => self.lend_unmapped(scanner)?.map(KeptMessage::copied),
            Step::Head => None,
        };
        Ok(message.map(KeptEntry::Message))
    }
}
