//! A payload exactly as `hexdump -C` prints it: lines of 16 bytes, `*` for repeated ones, the length at the end; an
//! empty one prints nothing. Pure.

use super::json::HEX;

/// Bytes per line.
const WIDTH: usize = 16;
/// Length of a full line: offset, two spaces, the bytes with a gap in the middle, two spaces, the characters.
const LINE: usize = 79;
/// Column of the first `|`.
const BAR: usize = 60;
/// Length of the last line: the offset and a newline.
const LAST: usize = 9;

/// Column of a byte's two digits.
const fn column(index: usize) -> usize {
    10 + 3 * index + index / 8
}

/// A part of the dump.
enum Shown<'a> {
    Line(usize, &'a [u8]),
    /// The first of a run of lines equal to the one before.
    Star,
    Nothing,
}

/// Decides how each line of the payload is shown.
fn lines(payload: &[u8]) -> impl Iterator<Item = Shown<'_>> {
    let mut previous: &[u8] = &[];
    let mut squeezing = false;
    payload.chunks(WIDTH).enumerate().map(move |(index, bytes)| {
        // The lengths differ for a shorter last line: it is always shown.
        let repeated = bytes == previous;
        let shown = match (repeated, squeezing) {
            (true, true) => Shown::Nothing,
            (true, false) => Shown::Star,
            (false, _) => Shown::Line(index * WIDTH, bytes),
        };
        previous = bytes;
        squeezing = repeated;
        shown
    })
}

/// Appends the dump to `out`.
pub(super) fn dump(payload: &[u8], out: &mut Vec<u8>) {
    if payload.is_empty() {
        return;
    }
    for shown in lines(payload) {
        match shown {
            Shown::Line(offset, bytes) => dump_line(offset, bytes, out),
            Shown::Star => out.extend_from_slice(b"*\n"),
            Shown::Nothing => {}
        }
    }
    out.extend_from_slice(&offset_digits(payload.len()));
    out.push(b'\n');
}

/// The length in bytes of what [`dump`] appends.
pub(super) fn dump_len(payload: &[u8]) -> usize {
    if payload.is_empty() {
        return 0;
    }
    let lines = lines(payload).map(|shown| match shown {
        Shown::Line(_, bytes) => LINE - WIDTH + bytes.len(),
        Shown::Star => 2,
        Shown::Nothing => 0,
    });
    lines.sum::<usize>() + LAST
}

/// Eight digits: payloads are shorter than 4 GiB.
fn offset_digits(offset: usize) -> [u8; 8] {
    std::array::from_fn(|i| HEX[offset >> (28 - 4 * i) & 15])
}

fn dump_line(offset: usize, bytes: &[u8], out: &mut Vec<u8>) {
    let mut line = [b' '; LINE];
    line[..8].copy_from_slice(&offset_digits(offset));
    line[BAR] = b'|';
    if let Ok(bytes) = <&[u8; WIDTH]>::try_from(bytes) {
        // A known width lets the compiler unroll.
        bytes.iter().enumerate().for_each(|(i, &byte)| put(&mut line, i, byte));
    } else {
        bytes.iter().enumerate().for_each(|(i, &byte)| put(&mut line, i, byte));
    }
    let end = BAR + 1 + bytes.len();
    line[end] = b'|';
    line[end + 1] = b'\n';
    out.extend_from_slice(&line[..end + 2]);
}

#[inline(always)]
fn put(line: &mut [u8; LINE], index: usize, byte: u8) {
    line[column(index)] = HEX[usize::from(byte >> 4)];
    line[column(index) + 1] = HEX[usize::from(byte & 15)];
    line[BAR + 1 + index] = if matches!(byte, b' '..=b'~') { byte } else { b'.' };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn dumped(payload: &[u8]) -> String {
        let mut out = Vec::new();
        dump(payload, &mut out);
        assert_eq!(out.len(), dump_len(payload));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_as_hexdump_prints_them() {
        assert_eq!(dumped(b""), "");
        assert_eq!(
            dumped(b"hello, world\n\0\xff~!"),
            "00000000  68 65 6c 6c 6f 2c 20 77  6f 72 6c 64 0a 00 ff 7e  |hello, world...~|\n\
             00000010  21                                                |!|\n\
             00000011\n"
        );
        assert_eq!(
            dumped(&[0; 56]),
            "00000000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|\n\
             *\n\
             00000030  00 00 00 00 00 00 00 00                           |........|\n\
             00000038\n"
        );
    }

    /// What the real one prints; None where it is not installed.
    fn hexdump(payload: &[u8]) -> Option<String> {
        let mut child = Command::new("hexdump")
            .arg("-C")
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        child.stdin.take()?.write_all(payload).ok()?;
        String::from_utf8(child.wait_with_output().ok()?.stdout).ok()
    }

    #[test]
    fn agrees_with_hexdump() {
        if hexdump(b"x").is_none() {
            return eprintln!("skipped: no hexdump here");
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(Some(dumped(&all)), hexdump(&all));
        for zeros in 0..70 {
            let payload = [&[0; 70][..zeros], &all[..zeros / 3]].concat();
            assert_eq!(Some(dumped(&payload)), hexdump(&payload), "{payload:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_hexdump_on_repetitions(
            runs in proptest::collection::vec((0_u8..4, 0_usize..80), 0..8)
        ) {
            let payload: Vec<u8> = runs.iter().flat_map(|&(byte, count)| vec![byte; count]).collect();
            if let Some(expected) = hexdump(&payload) {
                prop_assert_eq!(dumped(&payload), expected);
            }
        }
    }
}
