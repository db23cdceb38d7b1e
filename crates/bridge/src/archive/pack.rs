//! A segment's file as a zstd frame, and back.
//!
//! A frame says how many bytes it holds, at its start, and ends with a checksum of them (the lower half of their XXH64).
//! Both depend on the contents alone, not on the compressor, so that two frames of one segment can be compared without
//! reading them. A frame is untrusted: memory and disk that it takes are bounded by what a segment can be.

use std::fs::File;
use std::io::{self, Read, Write};

use chronfs::queue::SegmentBlocks;
use chronfs::queue::layout::{MAX_SEGMENT_SIZE, MIN_SEGMENT_SIZE};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};
use zstd::zstd_safe::get_frame_content_size;

/// Read and unpacked at once.
const PIECE: usize = 128 << 10;
/// The window that a frame may ask for, as a power of two: that of any level up to 19.
const WINDOW_LOG: u32 = 23;
/// At most this long is the start of a frame that says how much it holds.
pub(super) const FRAME_START: u64 = 18;
/// Its checksum, at its end.
pub(super) const FRAME_END: u64 = 4;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) bytes: u64,
    pub(super) checksum: [u8; 4],
}

impl Contents {
    /// From the first bytes of a frame and its last four.
    pub(super) fn of(start: &[u8], end: &[u8]) -> Result<Self, String> {
        Ok(Self { bytes: stated_size(start)?, checksum: end.try_into().map_err(|_| "it is cut short".to_owned())? })
    }
}

/// How many bytes a frame says that it holds: as many as a segment can have.
fn stated_size(start: &[u8]) -> Result<u64, String> {
    match get_frame_content_size(start) {
        Ok(Some(bytes)) if (u64::from(MIN_SEGMENT_SIZE)..=u64::from(MAX_SEGMENT_SIZE)).contains(&bytes) => Ok(bytes),
        Ok(Some(bytes)) => Err(format!("it says that it holds {bytes} bytes: no segment has that size")),
        Ok(None) => Err("it does not say how much it holds".to_owned()),
        Err(_) => Err("it is not zstd".to_owned()),
    }
}

/// A packed segment.
pub(super) struct Packed {
    pub(super) frame: Vec<u8>,
    /// What the start of its file says; None if that is damaged.
    pub(super) blocks: Option<SegmentBlocks>,
}

impl Packed {
    pub(super) fn contents(&self) -> Result<Contents, String> {
        let end = self.frame.len().saturating_sub(4);
        Contents::of(&self.frame, &self.frame[end..])
    }
}

/// Compresses a segment's file.
pub(super) fn pack(file: &File, level: i32) -> io::Result<Packed> {
    let mut file = file;
    let mut encoder = zstd::Encoder::new(Vec::new(), level)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(file.metadata()?.len()))?;
    let mut piece = vec![0; PIECE];
    let mut start = [0; SegmentBlocks::LEN];
    file.read_exact(&mut start)?;
    encoder.write_all(&start)?;
    loop {
        let len = file.read(&mut piece)?;
        if len == 0 {
            break;
        }
        encoder.write_all(&piece[..len])?;
    }
    Ok(Packed { frame: encoder.finish()?, blocks: SegmentBlocks::parse(&start) })
}

/// Unpacks one frame, piece by piece as it comes.
pub(super) struct Unpacker<W> {
    out: W,
    decoder: Decoder<'static>,
    /// What it says that it holds, once its start is there.
    stated: Option<u64>,
    start: Vec<u8>,
    written: u64,
    is_complete: bool,
    buffer: Vec<u8>,
}

/// Why a frame can't be unpacked.
#[derive(Debug)]
pub(super) enum Unpacking {
    /// There is something wrong with it.
    Damaged(String),
    /// It can't be written.
    Io(io::Error),
}

impl From<io::Error> for Unpacking {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl<W: Write> Unpacker<W> {
    pub(super) fn new(out: W) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
        let (start, buffer) = (Vec::new(), vec![0; PIECE]);
        Ok(Self { out, decoder, stated: None, start, written: 0, is_complete: false, buffer })
    }

    /// Takes the next bytes of the frame.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), Unpacking> {
        let damaged = |text: String| Err(Unpacking::Damaged(text));
        let Some(stated) = self.stated else {
            self.start.extend_from_slice(bytes);
            if self.start.len() < usize::try_from(FRAME_START).unwrap_or(usize::MAX) {
                return Ok(());
            }
            self.stated = Some(stated_size(&self.start).map_err(Unpacking::Damaged)?);
            let start = std::mem::take(&mut self.start);
            return self.take(&start);
        };
        let mut input = InBuffer::around(bytes);
        loop {
            if self.is_complete {
                return if input.pos() < bytes.len() {
                    damaged("there is more after its end".to_owned())
                } else {
                    Ok(())
                };
            }
            let mut output = OutBuffer::around(&mut self.buffer[..]);
            let hint = self.decoder.run(&mut input, &mut output);
            let unpacked = output.as_slice();
            let hint = hint.map_err(|error| Unpacking::Damaged(format!("after {} bytes: {error}", self.written)))?;
            self.written += unpacked.len() as u64;
            if self.written > stated {
                return damaged(format!("it holds more than the {stated} bytes that it says"));
            }
            let is_full = unpacked.len() == PIECE;
            self.out.write_all(unpacked)?;
            self.is_complete = hint == 0;
            if input.pos() == bytes.len() && !is_full && !self.is_complete {
                return Ok(());
            }
        }
    }

    /// The end of the frame: returns the file, which has all that the frame holds.
    pub(super) fn finish(self) -> Result<W, Unpacking> {
        if self.is_complete && self.stated == Some(self.written) {
            return Ok(self.out);
        }
        let stated = self.stated.map_or_else(|| "an unknown number".to_owned(), |stated| stated.to_string());
        Err(Unpacking::Damaged(format!("it is cut short: {} of {stated} bytes are there", self.written)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(frame: &[u8], piece: usize) -> Result<Vec<u8>, String> {
        let mut unpacker = Unpacker::new(Vec::new()).unwrap();
        let text = |error| match error {
            Unpacking::Damaged(text) => text,
            Unpacking::Io(error) => panic!("{error}"),
        };
        for piece in frame.chunks(piece) {
            unpacker.take(piece).map_err(text)?;
        }
        unpacker.finish().map_err(text)
    }

    fn frame(bytes: &[u8], stated: Option<u64>) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.set_pledged_src_size(stated).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_file_comes_back_whatever_the_pieces() {
        let bytes: Vec<u8> = (0..300_000_u32).flat_map(|n| n.wrapping_mul(n).to_le_bytes()).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let packed = pack(&file, 3).unwrap();
        assert_eq!(packed.contents().unwrap().bytes, bytes.len() as u64);
        // Of another level: another frame, the same contents.
        let other = frame(&bytes, Some(bytes.len() as u64));
        assert_eq!(packed.contents().unwrap(), Contents::of(&other, &other[other.len() - 4..]).unwrap());
        for piece in [1, 17, 4096, packed.frame.len()] {
            assert_eq!(unpack(&packed.frame, piece).unwrap(), bytes);
        }
    }

    #[test]
    fn frames_that_lie_are_refused() {
        let bytes = vec![7; 70_000];
        let good = frame(&bytes, Some(70_000));
        let fails = |frame: &[u8], text: &str| {
            for piece in [1, 64 << 10] {
                let error = unpack(frame, piece).unwrap_err();
                assert!(error.contains(text), "{error}");
            }
        };
        fails(b"not zstd, but long enough to tell", "not zstd");
        fails(&frame(&bytes, None), "does not say");
        fails(&frame(&[7; 100], Some(100)), "no segment has that size");
        for cut in [3, good.len() / 2, good.len() - 1] {
            fails(&good[..cut], "cut short");
        }
        fails(&[&good[..], &good[..]].concat(), "more after its end");
        let mut wrong = good.clone();
        *wrong.last_mut().unwrap() ^= 1;
        fails(&wrong, "after");
        // A bomb: it states 64 KiB, in the single-segment form of the header, and holds 100 MB.
        let mut bomb = frame(&vec![0; 100 << 20], Some(100 << 20));
        assert_eq!(bomb[4] >> 6, 2, "the size takes four bytes");
        let at = if bomb[4] & 0x20 == 0 { 6 } else { 5 };
        bomb[at..at + 4].copy_from_slice(&(64_u32 << 10).to_le_bytes());
        let error = unpack(&bomb, 64 << 10).unwrap_err();
        assert!(error.contains("more than") || error.contains("after"), "{error}");
        // One that asks for a window of gigabytes.
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.set_pledged_src_size(Some(200 << 20)).unwrap();
        encoder.write_all(&vec![0; 200 << 20]).unwrap();
        fails(&encoder.finish().unwrap(), "after 0 bytes");
    }
}
