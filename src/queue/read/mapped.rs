//! Messages in a mapping: checking one record, and walking from one to the next.

use crate::queue::entry::Message;
use crate::queue::format::crc::{Sum, SumWork};
use crate::queue::format::layout::{self, HEADER_LEN};
use crate::queue::format::record::{RecordContext, Sound, UncheckedHeader};
use crate::queue::os::mapping::{CACHE_LINE, Mapping};
use crate::queue::position::Position;

/// An iterator over the available messages, from [`QueueReader::available`](crate::queue::QueueReader::available).
#[derive(Debug)]
pub struct Available<'a> {
    pub(super) map: Option<&'a Mapping>,
    pub(super) walk: &'a mut Walk,
}

impl<'a> Iterator for Available<'a> {
    type Item = Message<'a>;

    #[inline]
    fn next(&mut self) -> Option<Message<'a>> {
        let map = self.map?;
        self.walk.pass(map).map(|record| record.message(map))
    }
}

/// A walk from record to record in mapped segments.
#[derive(Debug)]
pub(super) struct Walk {
    /// Of the segment that is mapped.
    pub(super) context: RecordContext,
    /// Where the next record starts.
    pub(super) position: Position,
    /// The sequence number expected there.
    pub(super) seq: u64,
    /// The record there, if it has been verified already.
    pub(super) peeked: Option<Sound>,
    pub(super) verify: bool,
    /// Up to where in the segment there are records, by the published head when the reader last looked for it: a hint.
    pub(super) known_to: u32,
    /// Where it looks again.
    pub(super) learn_at: u32,
}

/// A sound record of a message, and where it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Located {
    position: Position,
    seq: u64,
    sound: Sound,
}

/// What is at a place where a record starts.
pub(super) enum Look {
    /// A sound record with the expected message.
    Message(Sound),
    /// Nothing that has been committed.
    Uncommitted,
    /// Anything else.
    Other,
}

impl Walk {
    /// Passes the next message, if it is a sound record in sequence.
    #[inline(always)]
    pub(super) fn pass(&mut self, map: &Mapping) -> Option<Located> {
        let (position, seq) = (self.position, self.seq);
        let sound = match self.peeked {
            None => self.context.summer.run(Pass(map, self))?,
            Some(sound) => {
                self.advance(map, sound);
                sound
            }
        };
        Some(Located { position, seq, sound })
    }

    /// The head has been published here in the segment, or after it.
    pub(super) fn learn(&mut self, known_to: u32) {
        self.known_to = known_to;
        self.learn_at = self.position.offset.saturating_add(layout::HEAD_EVERY);
    }

    /// The next record is in another segment, or somewhere else in this one.
    pub(super) fn forget(&mut self) {
        (self.peeked, self.known_to, self.learn_at) = (None, 0, 0);
    }

    /// Looks at what comes next.
    pub(super) fn look(&self, map: &Mapping) -> Look {
        self.context.summer.run(JustLook(map, self))
    }

    #[inline(always)]
    fn advance(&mut self, map: &Mapping, sound: Sound) {
        let len = self.context.record_len(sound.payload_len());
        self.position.offset += len;
        self.seq = self.seq.saturating_add(1);
        self.peeked = None;
        let ahead = self.position.offset.saturating_add(PREFETCH_AHEAD);
        if ahead < self.known_to {
            map.prefetch_for_read(ahead, len);
        }
    }
}

impl Located {
    /// The message, in the mapping where the record was found.
    #[inline(always)]
    pub(super) fn message<'a>(&self, map: &'a Mapping) -> Message<'a> {
        let &Self { position, seq, sound } = self;
        let payload = map.bytes(position.offset + HEADER_LEN, sound.payload_len() as usize);
        Message { seq, timestamp_ns: sound.timestamp_ns, msg_type: sound.msg_type(), payload, position }
    }
}

/// [`Walk::pass`].
struct Pass<'a>(&'a Mapping, &'a mut Walk);

impl SumWork for Pass<'_> {
    type Output = Option<Sound>;

    #[inline(always)]
    fn run(self, sum: impl Sum) -> Option<Sound> {
        let Self(map, walk) = self;
        let Look::Message(sound) = look(map, walk, sum) else { return None };
        walk.advance(map, sound);
        Some(sound)
    }
}

/// [`Walk::look`].
struct JustLook<'a>(&'a Mapping, &'a Walk);

impl SumWork for JustLook<'_> {
    type Output = Look;

    #[inline(always)]
    fn run(self, sum: impl Sum) -> Look {
        look(self.0, self.1, sum)
    }
}

/// How many bytes ahead of a reader records are prefetched that are known to be there: the processor detects that one line
/// after the other is read, but not across pages. Never near the head, where that would take lines from the writer.
const PREFETCH_AHEAD: u32 = 1024;
/// The lines of longer payloads are prefetched at once, before the checksum asks for one after the other.
const SHORT: usize = 192;

#[inline(always)]
fn look(map: &Mapping, walk: &Walk, sum: impl Sum) -> Look {
    let (context, offset) = (&walk.context, walk.position.offset);
    let Some(record) = map.record(offset) else { return Look::Other };
    if !record.is_committed() {
        // Who polls has the rest of the message soon after its first line.
        map.prefetch_for_read(offset + CACHE_LINE, CACHE_LINE);
        return Look::Uncommitted;
    }
    let Some(unchecked) = UncheckedHeader::parse(&record.header()) else { return Look::Other };
    let Some(payload) = record.payload(unchecked.claimed_len()) else { return Look::Other };
    if payload.len() > SHORT {
        map.prefetch_for_read(offset + CACHE_LINE, unchecked.claimed_len());
    }
    let header = if walk.verify { unchecked.verify_by(sum, context, offset, payload) } else { Some(unchecked.trust()) };
    let sound = header.filter(|header| header.seq == walk.seq && !header.is_padding()).and_then(Sound::of);
    sound.map_or(Look::Other, Look::Message)
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
        let (position, seq) = (Position { segment: SegmentId(1), offset: writer.offset }, writer.next_seq);
        let mut walk = Walk { context, position, seq, peeked: None, verify: true, known_to: 0, learn_at: 0 };
        let looking = std::thread::spawn(move || {
            while walk.seq <= LAST {
                walk.verify = walk.seq.is_multiple_of(2);
                match walk.look(&map) {
                    Look::Uncommitted => std::thread::yield_now(),
                    Look::Other => panic!("something other than a message: {walk:?}"),
                    Look::Message(sound) => {
                        walk.peeked = walk.seq.is_multiple_of(3).then_some(sound);
                        let message = walk.pass(&map).unwrap().message(&map);
                        assert_eq!(message.payload, payload(message.seq));
                    }
                }
            }
        });
        for seq in writer.next_seq..=LAST {
            writer.append(1, &payload(seq)).unwrap();
        }
        looking.join().unwrap();
    }

    #[test]
    fn a_mapped_segment_is_entered_at_a_place() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { payload_align: 64, ..Settings::default() };
        let queue = Queue::create(dir.path().join("q"), &settings).unwrap();
        queue.writer().unwrap().append(1, b"hello").unwrap();
        let mut reader = queue.reader("r").unwrap();
        reader.next().unwrap().unwrap();
        let place = reader.position();
        reader.jump(place, 2);
        assert!(reader.map.is_some());
        reader.jump(Position { offset: place.offset + 8, ..place }, 2);
        assert!(reader.map.is_none(), "no record starts there");
        assert_eq!(reader.next().unwrap(), None);
        assert_eq!(reader.position(), Position { offset: place.offset + 64, ..place });
    }
}
