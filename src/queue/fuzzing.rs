//! The decoders of untrusted bytes, each as a function on memory: for `fuzz/`, and for a short run in the ordinary
//! tests.
//!
//! Each takes any bytes and panics if an invariant is violated. The first byte says whether the checksum is corrected
//! first: bytes with a valid checksum are hostile too, but random ones are never valid.

use std::path::Path;

use zerocopy::{FromBytes, IntoBytes};

use crate::queue::files::control::{Geometry, newest_head};
use crate::queue::files::cursor::{ReaderPosition, newest, slot, slot_checksum};
use crate::queue::format::crc::block_checksum;
use crate::queue::format::layout::{self, CursorSlot, HeadSlot, MessageHeader, SettingsBlock};
use crate::queue::format::names;
use crate::queue::format::names::check_name;
use crate::queue::format::record::{Header, RecordContext, UncheckedHeader};
use crate::queue::options::Settings;
use crate::queue::position::{Position, SegmentId};

/// The queue of the cursors, and the salt of the segment of the records.
const QUEUE_ID: u64 = 0x1234_5678_9ABC_DEF0;
const CONTEXT_SIZE: u32 = 64 << 10;

/// One decoder.
pub type Target = fn(&[u8]);

/// All decoders, by name, with seed bytes.
pub fn targets() -> Vec<(&'static str, Target, Vec<u8>)> {
    let settings = Settings { max_bytes: Some(1 << 40), ..Settings::default() };
    let geometry = Geometry {
        queue_id: QUEUE_ID,
        created_ns: 1,
        generation: 2,
        first_seq: 1,
        settings,
        is_standby: false,
        term: 0,
    };
    let place = ReaderPosition { seq: 7, position: Some(Position { segment: SegmentId(3), offset: 4096 }) };
    let slots = [slot(4, place, QUEUE_ID), slot(5, place, QUEUE_ID)];
    let header = Header { payload_len: 21, msg_type: 1, flags: 0, seq: 9, timestamp_ns: 1_723_108_500_000_000_000 };
    let payload = b"one message, 21 bytes";
    let words = header.words(&context(), layout::RECORDS_START, payload).map(u64::to_le);
    let with_mode = |bytes: &[u8]| [&[1], bytes].concat();
    vec![
        ("settings", settings_block as Target, with_mode(geometry.to_block().as_bytes())),
        ("head", head, vec![1; 1 + 2 * size_of::<HeadSlot>()]),
        ("cursor", cursor, with_mode(slots.as_bytes())),
        ("record", record, [&[1, 0], words.as_bytes(), payload, &[0; 3]].concat()),
        ("name", name, b"\0eu.west-1".to_vec()),
        ("segment_name", segment_name, b"\x00000000017.q".to_vec()),
    ]
}

fn context() -> RecordContext {
    RecordContext::new(0xC0FF_EE00, CONTEXT_SIZE, 8, false)
}

/// The mode and the remaining bytes.
fn split(bytes: &[u8]) -> Option<(bool, &[u8])> {
    bytes.split_first().map(|(mode, rest)| (mode & 1 == 1, rest))
}

fn settings_block(bytes: &[u8]) {
    let Some((repair, bytes)) = split(bytes) else { return };
    let Ok((mut block, _)) = SettingsBlock::read_from_prefix(bytes) else { return };
    if repair {
        block.crc = block_checksum(block.as_bytes()).into();
    }
    let path = Path::new("control.meta");
    if let Ok(geometry) = Geometry::from_block(&block, path, 0) {
        assert!(geometry.settings.validate().is_ok());
        assert!(Geometry::from_block(&geometry.to_block(), path, 0).is_ok_and(|again| again == geometry));
        assert!(geometry.settings.max_payload_len() < geometry.settings.segment_size as usize);
    }
}

fn head(bytes: &[u8]) {
    let Some((repair, bytes)) = split(bytes) else { return };
    let Ok((mut slots, _)) = <[HeadSlot; 2]>::read_from_prefix(bytes) else { return };
    for slot in &mut slots {
        if repair {
            slot.crc = block_checksum(slot.as_bytes()).into();
        }
    }
    if let Some(hint) = newest_head(slots.map(Some)) {
        assert!(hint.next_seq > 0);
        let other = newest_head([slots.get(1).copied(), slots.first().copied()]);
        assert!(other.is_some_and(|other| other == hint || slots[0].generation == slots[1].generation));
    }
}

fn cursor(bytes: &[u8]) {
    let Some((repair, bytes)) = split(bytes) else { return };
    let Ok((mut slots, _)) = <[CursorSlot; 2]>::read_from_prefix(bytes) else { return };
    for slot in &mut slots {
        if repair {
            slot.crc = slot_checksum(slot, QUEUE_ID).into();
        }
    }
    if let Some((place, generation)) = newest(slots.map(Some), QUEUE_ID) {
        assert!(place.seq > 0 && slots.iter().any(|slot| slot.generation.get() == generation));
        assert!(newest([Some(slot(generation, place, QUEUE_ID)), None], QUEUE_ID) == Some((place, generation)));
        assert!(newest(slots.map(Some), QUEUE_ID ^ 1) != Some((place, generation)) || !repair);
    }
}

fn record(bytes: &[u8]) {
    let Some((repair, bytes)) = split(bytes) else { return };
    let Some((place, bytes)) = bytes.split_first() else { return };
    let (context, offset) = (context(), layout::RECORDS_START + u32::from(*place) * 256);
    let Ok((mut header, payload)) = MessageHeader::read_from_prefix(bytes) else { return };
    let Some(unchecked) = UncheckedHeader::parse(&header) else { return };
    let Some(len) = unchecked.payload_len(&context, offset) else { return };
    assert!(context.is_place(offset) && offset as usize + len < CONTEXT_SIZE as usize);
    let Some(payload) = payload.get(..len) else { return };
    let trusted = unchecked.trust();
    let words = trusted.words(&context, offset, payload);
    if repair {
        // The checksum of a header with `spare` at 0.
        (header.checksum, header.spare) = (u32::try_from(words[3]).unwrap_or(0).into(), 0.into());
    }
    let Some(unchecked) = UncheckedHeader::parse(&header) else { return };
    let verified = unchecked.verify(&context, offset, payload);
    assert!(verified.is_none_or(|verified| verified == trusted));
    assert!(!repair || (verified.is_some() && header.as_bytes() == words.map(u64::to_le).as_bytes()));
    if repair {
        assert!(unchecked.verify(&context, offset + 8, payload).is_none(), "not a record in another place");
    }
}

fn name(bytes: &[u8]) {
    let Some((_, bytes)) = split(bytes) else { return };
    let text = String::from_utf8_lossy(bytes);
    if check_name(&text).is_ok() {
        assert!(!text.contains(['/', '\0', '\n', ' ']) && !text.starts_with('.') && (1..=128).contains(&text.len()));
    }
}

fn segment_name(bytes: &[u8]) {
    let Some((_, bytes)) = split(bytes) else { return };
    let text = String::from_utf8_lossy(bytes);
    if let Some(id) = names::parse_segment_name(&text) {
        assert!(names::segment_name(id) == *text);
    }
}

/// A small pseudo-random generator (xorshift).
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number less than `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap_or(0)
    }

    /// A number at the edge of a range, or any.
    fn hostile(&mut self) -> u64 {
        let special = [0, 1, 2, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 62, u64::MAX >> 1, u64::MAX - 1, u64::MAX];
        let index = self.below(special.len() + 3);
        special.get(index).copied().unwrap_or_else(|| self.next())
    }
}

/// Writes a mutated copy of `seed` into `bytes`.
pub fn mutate(random: &mut Random, seed: &[u8], bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.extend_from_slice(seed);
    for _ in 0..=random.below(6) {
        if bytes.is_empty() {
            bytes.push(0);
        }
        let at = random.below(bytes.len());
        match random.below(8) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = random.next().to_le_bytes()[0],
            3 | 4 => {
                let width = [2, 4, 8][random.below(3)].min(bytes.len() - at);
                let value = random.hostile().to_le_bytes();
                bytes[at..at + width].copy_from_slice(&value[..width]);
            }
            5 => bytes.truncate(at),
            6 => bytes.insert(at, random.next().to_le_bytes()[0]),
            _ => {
                let from = random.below(bytes.len());
                let len = random.below(16).min(bytes.len() - from.max(at));
                bytes.copy_within(from..from + len, at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_make_a_decoder_panic() {
        let mut random = Random(0x5EED_0001);
        for (_, target, seed) in targets() {
            target(&seed);
            for len in 0..seed.len() {
                target(&seed[..len]);
            }
            let mut bytes = Vec::new();
            for _ in 0..20_000 {
                mutate(&mut random, &seed, &mut bytes);
                target(&bytes);
            }
        }
    }

    /// CRC-32C detects every change of up to three bits in records of this size: a record of 56 bytes, every pair of
    /// bits.
    #[test]
    fn no_two_flipped_bits_make_another_record() {
        let (_, _, seed) = targets().swap_remove(3);
        let (good, mut verified) = (seed[2..].to_vec(), 0);
        let is_record = |bytes: &[u8]| {
            let (header, payload) = MessageHeader::read_from_prefix(bytes).unwrap();
            let Some(unchecked) = UncheckedHeader::parse(&header) else { return false };
            let len = unchecked.payload_len(&context(), layout::RECORDS_START);
            let payload = len.and_then(|len| payload.get(..len));
            payload.is_some_and(|p| unchecked.verify(&context(), layout::RECORDS_START, p).is_some())
        };
        assert!(is_record(&good));
        let bits = (layout::HEADER_LEN as usize + 21) * 8;
        for first in 0..bits {
            for second in first..bits {
                let mut bad = good.clone();
                bad[first / 8] ^= 1 << (first % 8);
                if second > first {
                    bad[second / 8] ^= 1 << (second % 8);
                }
                verified += u32::from(is_record(&bad));
            }
        }
        assert_eq!(verified, 0);
    }
}
