//! Messages in a mapping: checking one record, and iterating over those that are available.

use zerocopy::FromBytes;

use crate::queue::entry::Message;
use crate::queue::format::layout::{HEADER_LEN, MessageHeader};
use crate::queue::format::record::{Header, RecordContext, UncheckedHeader};
use crate::queue::os::mapping::{CACHE_LINE, Mapping};
use crate::queue::position::Position;
use crate::sync::Ordering;

/// An iterator over the available messages, from [`QueueReader::available`](crate::queue::QueueReader::available).
#[derive(Debug)]
pub struct Available<'a> {
    pub(in crate::queue) map: Option<&'a Mapping>,
    pub(in crate::queue) context: &'a RecordContext,
    pub(in crate::queue) position: &'a mut Position,
    pub(in crate::queue) seq: &'a mut u64,
    pub(in crate::queue) peeked: &'a mut Option<Header>,
    pub(in crate::queue) verify: bool,
}

impl<'a> Iterator for Available<'a> {
    type Item = Message<'a>;

    #[inline]
    fn next(&mut self) -> Option<Message<'a>> {
        let position = *self.position;
        let map = self.map.filter(|_| self.context.is_place(position.offset))?;
        let header = match self.peeked.take() {
            Some(header) => header,
            None => match look(map, self.context, position.offset, *self.seq, self.verify) {
                Look::Message(header) => header,
                Look::Uncommitted | Look::Other => return None,
            },
        };
        self.position.offset += self.context.record_len(header.payload_len);
        *self.seq = self.seq.saturating_add(1);
        Some(message(map, &header, position))
    }
}

/// The lines of longer payloads are prefetched at once, before the checksum asks for one after the other.
const SHORT: usize = 192;

/// What is at an offset of a mapped segment.
pub(in crate::queue) enum Look {
    /// A sound record with the expected message.
    Message(Header),
    /// Nothing that has been committed.
    Uncommitted,
    /// Anything else.
    Other,
}

/// Checks the place where the record of message `seq` starts, which is within the mapping.
#[inline]
pub(in crate::queue) fn look(map: &Mapping, context: &RecordContext, offset: u32, seq: u64, verify: bool) -> Look {
    // SYNC POINT with `Mapping::publish`.
    if map.word64(offset).load(Ordering::Acquire) & u64::from(u32::MAX) == 0 {
        // Who polls has the rest of the message soon after its first line.
        map.prefetch_for_read(offset + CACHE_LINE, CACHE_LINE);
        return Look::Uncommitted;
    }
    let header = MessageHeader::ref_from_bytes(map.bytes(offset, HEADER_LEN as usize)).ok();
    let Some(unchecked) = header.and_then(UncheckedHeader::parse) else {
        return Look::Other;
    };
    let Some(len) = unchecked.payload_len(context, offset) else {
        return Look::Other;
    };
    if len > SHORT {
        map.prefetch_for_read(offset + CACHE_LINE, unchecked.claimed_len());
    }
    let header = if verify {
        unchecked.verify(context, offset, map.bytes(offset + HEADER_LEN, len))
    } else {
        Some(unchecked.trust())
    };
    match header {
        Some(header) if header.seq == seq && !header.is_padding() => Look::Message(header),
        _ => Look::Other,
    }
}

/// The message whose record, with this header, is at `position`.
#[inline]
pub(in crate::queue) fn message<'a>(map: &'a Mapping, header: &Header, position: Position) -> Message<'a> {
    let &Header { msg_type, seq, timestamp_ns, payload_len, .. } = header;
    let payload = map.bytes(position.offset + HEADER_LEN, payload_len as usize);
    Message { seq, timestamp_ns, msg_type, payload, position }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::queue::files::dir::Access;
    use crate::queue::{Queue, SegmentId, Settings};

    const LAST: u64 = 20_000;

    /// On one mapping, so that ThreadSanitizer, which knows addresses and not files, sees both sides.
    #[test]
    fn what_is_seen_at_all_is_seen_whole() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::create(dir.path().join("q"), &Settings::default()).unwrap();
        let payload = |seq: u64| vec![u8::try_from(seq % 251).unwrap(); usize::try_from(seq % 100).unwrap()];
        let mut writer = queue.writer().unwrap();
        // The segment after a large message has room for all the others.
        writer.append(1, &[0; 8 << 20]).unwrap();
        let map = Arc::clone(&writer.map);
        let context = queue.store.open_segment(SegmentId(1), Access::Read).unwrap().unwrap().context;
        let (mut offset, mut seq) = (writer.offset, writer.next_seq);
        let looking = std::thread::spawn(move || {
            while seq <= LAST {
                match look(&map, &context, offset, seq, seq.is_multiple_of(2)) {
                    Look::Uncommitted => std::thread::yield_now(),
                    Look::Other => panic!("something other than message {seq} at offset {offset}"),
                    Look::Message(header) => {
                        let position = Position { segment: SegmentId(1), offset };
                        assert_eq!(message(&map, &header, position).payload, payload(seq));
                        offset += context.record_len(header.payload_len);
                        seq += 1;
                    }
                }
            }
        });
        for seq in writer.next_seq..=LAST {
            writer.append(1, &payload(seq)).unwrap();
        }
        looking.join().unwrap();
    }
}
