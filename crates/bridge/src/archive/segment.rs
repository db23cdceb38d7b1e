//! A segment of the local queue: verified, then packed.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;

use chronfs::queue::layout::{CONTROL_FILE, CONTROL_LEN, CONTROL_SETTINGS, RECORDS_START, SEGMENT_SETTINGS};
use chronfs::queue::{Entry, FinishedSegment, GapReason, Position, Queue, ReaderOptions, SegmentBlocks, Start};

use super::name::SegmentName;
use super::pack::{Packed, pack};
use crate::{Failure, Result};

/// A segment that can be archived.
pub(super) struct Prepared {
    pub(super) name: SegmentName,
    pub(super) packed: Packed,
    /// Its index, if it has one.
    pub(super) index: Option<Vec<u8>>,
    /// What is wrong with its records, if anything.
    pub(super) damage: Option<String>,
}

/// Verifies every record of a segment, makes certain that it survives a power cut, and packs its file: what the archive
/// has, the queue must not lose, or it would use the segment's number again. `level`: how hard to compress it.
///
/// # Errors
/// [`Failure::Refused`] if the segment can't be archived at all.
pub(super) fn prepare(queue: &Queue, segment: &FinishedSegment, level: i32) -> Result<Prepared> {
    let path = &segment.path;
    // To build an index is to verify every record.
    let index = chronfs::view::segment_index(queue, segment.id)?;
    let damage = if index.is_some() { None } else { damage(queue, segment)? };
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => Failure::Again(format!("{} has just been removed", path.display())),
        _ => Failure::Again(format!("{}: {error}", path.display())),
    };
    let file = File::open(path).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    let packed = pack(&file, level).map_err(failed)?;
    let blocks = packed.blocks.filter(|blocks| {
        let is_whole = packed.contents().is_ok_and(|contents| contents.bytes == u64::from(blocks.bytes));
        is_whole && blocks.queue_id == queue.id() && blocks.id == segment.id && blocks.first_seq == segment.first_seq
    });
    let Some(blocks) = blocks else {
        return Err(Failure::Refused(format!(
            "{}: damaged: the blocks at its start, or it is cut short",
            path.display()
        )));
    };
    Ok(Prepared { name: SegmentName::of(&blocks, segment.next_seq), packed, index, damage })
}

/// What is wrong with the records of a segment; None if each of them is sound.
pub(super) fn damage(queue: &Queue, segment: &FinishedSegment) -> Result<Option<String>> {
    let path = segment.path.display();
    let mut scanner = queue.scan()?;
    let start = (Position { segment: segment.id, offset: RECORDS_START }, segment.first_seq);
    let (position, seq) = last_of_sound(queue, segment)?.unwrap_or(start);
    scanner.seek(position, seq)?;
    loop {
        let at = scanner.position();
        let entry = if at.segment == segment.id { scanner.next()? } else { None };
        match entry {
            Some(Entry::Message(message)) if message.position.segment == segment.id => {}
            Some(Entry::Gap(gap)) if gap.position.segment == segment.id => match gap.reason {
                // The records around it are sound.
                GapReason::Lost | GapReason::Upstream(_) => {}
                GapReason::Retired => return Err(Failure::Again(format!("{path} has just been removed"))),
                reason => {
                    let (from, to, reason, offset) = (gap.from, gap.to, reason.as_str(), at.offset);
                    return Ok(Some(format!(
                        "{path}: damaged: messages {from} to {to}, at offset {offset} ({reason})"
                    )));
                }
            },
            _ if !segment.is_sealed => {
                return Ok(Some(format!("{path}: damaged: its end, after offset {}", at.offset)));
            }
            _ => break,
        }
    }
    let (found, next) = (scanner.seq(), segment.next_seq);
    let is_short = found < next;
    Ok(is_short.then(|| format!("{path}: damaged: it ends before message {found}, and should before {next}")))
}

/// The last of the messages at the start of a segment that are sound, one like the other: read by a mapping, which takes a
/// fraction of the scanner's time.
fn last_of_sound(queue: &Queue, segment: &FinishedSegment) -> Result<Option<(Position, u64)>> {
    let options = ReaderOptions { start: Start::Seq(segment.first_seq), ..ReaderOptions::default() };
    // A control block that is damaged leaves it to the scanner.
    let Ok(mut reader) = queue.tailer_with(&options) else { return Ok(None) };
    let mut last = None;
    loop {
        for message in reader.available().take_while(|message| message.position.segment == segment.id) {
            last = Some((message.position, message.seq));
        }
        match reader.next()? {
            Some(Entry::Message(message)) if message.position.segment == segment.id => {
                last = Some((message.position, message.seq));
            }
            _ => return Ok(last),
        }
    }
}

/// So many bytes at the start of a segment's file are what a control block is made of.
pub(super) const CONTROL_SOURCE: usize = (SEGMENT_SETTINGS + CONTROL_SETTINGS[1] - CONTROL_SETTINGS[0]) as usize;

/// A control block with the settings of a segment, from the start of its file. There is no head in it: that is found in
/// the segments. None if the start is too short.
pub(super) fn control_block(start: &[u8]) -> Option<Vec<u8>> {
    let settings = start.get(SEGMENT_SETTINGS as usize..CONTROL_SOURCE)?;
    let mut block = vec![0; CONTROL_LEN as usize];
    for at in CONTROL_SETTINGS {
        block[at as usize..][..settings.len()].copy_from_slice(settings);
    }
    Some(block)
}

/// Gives a directory of segments a control block, of the settings of this one: readers by a mapping need it.
pub(super) fn put_control_block(dir: &Path, segment: &Path) -> io::Result<()> {
    let mut start = vec![0; CONTROL_SOURCE];
    File::open(segment)?.read_exact(&mut start)?;
    std::fs::write(dir.join(CONTROL_FILE), control_block(&start).unwrap_or_default())
}

/// The blocks at the start of a segment's file.
pub(super) fn blocks_of(path: &Path) -> io::Result<Option<SegmentBlocks>> {
    let mut start = [0; SegmentBlocks::LEN];
    File::open(path)?.read_exact(&mut start)?;
    Ok(SegmentBlocks::parse(&start))
}

#[cfg(test)]
mod tests {
    use chronfs::queue::Settings;

    use super::*;

    #[test]
    fn segments_alone_are_read_by_a_mapping_with_a_control_block() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, bare) = (dir.path().join("q"), dir.path().join("bare"));
        let queue = Queue::create(&whole, &Settings { segment_size: 64 << 10, ..Settings::DEFAULT }).unwrap();
        let mut writer = queue.writer().unwrap();
        for _ in 0..1000 {
            writer.append(1, &[7; 200]).unwrap();
        }
        let segment = queue.finished_segments(0).unwrap().remove(0);
        std::fs::create_dir(&bare).unwrap();
        let path = bare.join(segment.path.file_name().unwrap());
        std::fs::copy(&segment.path, &path).unwrap();
        assert!(last_of_sound(&Queue::open(&bare).unwrap(), &segment).unwrap().is_none());
        put_control_block(&bare, &path).unwrap();
        let last = last_of_sound(&Queue::open(&bare).unwrap(), &segment).unwrap();
        assert_eq!(last.map(|(_, seq)| seq), Some(segment.next_seq - 1));
    }
}
