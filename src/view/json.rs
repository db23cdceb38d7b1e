//! Strings in JSON: escaping, fast, and the exact length of the result. Pure.
//!
//! Text is taken 64 bytes at a time. One pass over a block sets a bit for every byte to be escaped. A block without any
//! becomes part of a run that is copied later. In the others (the JSON text of market data has a quote every four
//! bytes) what lies between two such bytes is copied in pieces of a fixed 16 bytes, which is much cheaper than copies
//! of just the right length; excess bytes are overwritten by what follows.

/// Bytes examined together: a bit of a u64 each.
const BLOCK: usize = 64;
/// Bytes copied at once.
const PIECE: usize = 16;
/// Space for a block in which every byte becomes six, and a piece.
const SCRATCH: usize = 6 * BLOCK + PIECE;

/// The high bit of every byte of a word.
const HIGH: u64 = 0x8080_8080_8080_8080;
/// The low bit of every byte of a word.
const LOW: u64 = 0x0101_0101_0101_0101;

/// The high bit of every byte of `word` that is at least `limit`, for bytes below 128 only (the others' are noise).
#[inline]
fn at_least(word: u64, limit: u64) -> u64 {
    (word & !HIGH).wrapping_add(LOW.wrapping_mul(0x80 - limit))
}

/// The high bit of every byte to be escaped.
#[inline]
fn marked(word: u64) -> u64 {
    // Flipping bit 1 swaps the quote (0x22) with the space (0x20) and keeps control characters among themselves.
    let neither_quote_nor_control = at_least(word ^ LOW.wrapping_mul(0x02), 0x21);
    let not_backslash = at_least(word ^ LOW.wrapping_mul(0x5C), 1);
    !(neither_quote_nor_control & not_backslash) & !word & HIGH
}

/// A bit for every byte of the block that is to be escaped.
#[inline]
fn mask(block: &[u8; BLOCK]) -> u64 {
    let (words, _) = block.as_chunks::<8>();
    let mut mask = 0;
    for word in words.iter().rev() {
        // The multiplication gathers the eight bits in the highest byte.
        let bits = (marked(u64::from_le_bytes(*word)) >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        mask = mask << 8 | bits;
    }
    mask
}

/// The line and paragraph separators of Unicode and the C1 newline, at which many readers of text end a line.
const SEPARATORS: [(&[u8], &[u8]); 3] =
    [("\u{2028}".as_bytes(), b"\\u2028"), ("\u{2029}".as_bytes(), b"\\u2029"), ("\u{85}".as_bytes(), b"\\u0085")];

/// The separators in `text`: where each is, its bytes and what stands for them.
fn separators(text: &str) -> impl Iterator<Item = (usize, &'static [u8], &'static [u8])> {
    let text = text.as_bytes();
    memchr::memchr2_iter(0xE2, 0xC2, text).filter_map(|at| {
        let (bytes, escape) = SEPARATORS.iter().find(|(bytes, _)| text[at..].starts_with(bytes))?;
        Some((at, *bytes, *escape))
    })
}

/// Appends `text`, escaped for a JSON string, to `out`: as serde_json does it, and the three separators too, so that a
/// line is one line to every reader.
pub(super) fn escape(text: &str, out: &mut Vec<u8>) {
    let mut from = 0;
    for (at, bytes, escape) in separators(text) {
        escape_ascii(&text[from..at], out);
        out.extend_from_slice(escape);
        from = at + bytes.len();
    }
    escape_ascii(&text[from..], out);
}

/// Appends `text` with its control characters, quotes and backslashes escaped.
fn escape_ascii(text: &str, out: &mut Vec<u8>) {
    let text = text.as_bytes();
    let mut scratch = [0; SCRATCH];
    let mut clean = 0;
    let mut at = 0;
    while let Some(block) = text[at..].first_chunk::<{ BLOCK + PIECE }>() {
        let mask = block.first_chunk().map_or(0, mask);
        if mask != 0 {
            out.extend_from_slice(&text[clean..at]);
            let len = escape_block(block, mask, &mut scratch);
            out.extend_from_slice(&scratch[..len]);
            clean = at + BLOCK;
        }
        at += BLOCK;
    }
    out.extend_from_slice(&text[clean..at]);
    // The rest, padded with bytes that need no escaping and are cut off again.
    for rest in text[at..].chunks(BLOCK) {
        let mut block = [b' '; BLOCK + PIECE];
        block[..rest.len()].copy_from_slice(rest);
        let mask = block.first_chunk().map_or(0, mask);
        let len = escape_block(&block, mask, &mut scratch);
        out.extend_from_slice(&scratch[..len - (BLOCK - rest.len())]);
    }
}

/// Escapes a block, whose bytes to be escaped are set in `mask`, into `scratch`. Returns the length of the result.
#[inline]
fn escape_block(block: &[u8; BLOCK + PIECE], mut mask: u64, scratch: &mut [u8; SCRATCH]) -> usize {
    let mut from = 0;
    let mut len = 0;
    while mask != 0 {
        let at = usize::try_from(mask.trailing_zeros()).unwrap_or(0);
        mask &= mask - 1;
        len = copy_run(block, from, at, scratch, len);
        let byte = block[at];
        scratch[len] = b'\\';
        if byte >= b' ' {
            // The byte itself comes with the next run.
            from = at;
            len += 1;
        } else {
            from = at + 1;
            len += escape_control(byte, scratch, len);
        }
    }
    copy_run(block, from, BLOCK, scratch, len)
}

/// Copies the block's bytes from `from` to `to` to `scratch` at `len`. Returns where they end.
#[inline(always)]
fn copy_run(block: &[u8; BLOCK + PIECE], mut from: usize, to: usize, scratch: &mut [u8; SCRATCH], len: usize) -> usize {
    let end = len + to - from;
    let mut len = len;
    loop {
        scratch[len..len + PIECE].copy_from_slice(&block[from..from + PIECE]);
        if to - from <= PIECE {
            return end;
        }
        from += PIECE;
        len += PIECE;
    }
}

/// The letter of a control character's short form.
fn short_form(byte: u8) -> Option<u8> {
    match byte {
        b'\n' => Some(b'n'),
        b'\r' => Some(b'r'),
        b'\t' => Some(b't'),
        0x08 => Some(b'b'),
        0x0C => Some(b'f'),
        _ => None,
    }
}

/// Lower-case hexadecimal digits.
pub(super) const HEX: [u8; 16] = *b"0123456789abcdef";

/// Writes what follows the backslash of a control character. Returns the length of the whole.
#[cold]
fn escape_control(byte: u8, scratch: &mut [u8; SCRATCH], at: usize) -> usize {
    if let Some(letter) = short_form(byte) {
        scratch[at + 1] = letter;
        return 2;
    }
    let code = [b'u', b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
    scratch[at + 1..at + 6].copy_from_slice(&code);
    6
}

/// The length in bytes of what [`escape`] appends. Written for the vectoriser.
pub(super) fn escaped_len(text: &str) -> usize {
    // Each byte adds at most 5, so the sum over 48 fits into a byte.
    let blocks = text.as_bytes().chunks(48);
    let separators: usize = separators(text).map(|(_, bytes, escape)| escape.len() - bytes.len()).sum();
    text.len()
        + separators
        + blocks.map(|block| usize::from(block.iter().map(|&byte| added_by(byte)).sum::<u8>())).sum::<usize>()
}

/// How many bytes escaping adds to this one.
#[inline]
fn added_by(byte: u8) -> u8 {
    let marked = u8::from(byte == b'"') | u8::from(byte == b'\\');
    let control = u8::from(byte < 0x20);
    let short = u8::from(byte.wrapping_sub(0x08) < 6) & u8::from(byte != 0x0B);
    marked + control * 5 - short * 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn escaped(text: &str) -> String {
        let mut out = Vec::new();
        escape(text, &mut out);
        assert_eq!(out.len(), escaped_len(text), "{text:?}");
        String::from_utf8(out).unwrap()
    }

    /// The result of serde_json, with the separators escaped.
    fn reference(text: &str) -> String {
        let json = serde_json::to_string(text).unwrap();
        json.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029").replace('\u{85}', "\\u0085")
    }

    #[test]
    fn what_ends_a_line_for_some_readers_is_escaped() {
        for (separator, expected) in [("\u{2028}", "\\u2028"), ("\u{2029}", "\\u2029"), ("\u{85}", "\\u0085")] {
            for place in 0..150 {
                let (before, after) = ("\u{e9}".repeat(place), "\"\u{2027}\u{84}");
                let line = escaped(&format!("{before}{separator}{separator}{after}"));
                assert_eq!(line, format!("{before}{expected}{expected}\\{after}"));
            }
        }
    }

    #[test]
    fn agrees_with_serde_json_on_every_character_in_every_place() {
        for code in (0..0x100).chain(0x2020..0x2030) {
            for place in 0..150 {
                let mut text = "x".repeat(place);
                text.push(char::from_u32(code).unwrap());
                text.push_str("\"yz\\");
                assert_eq!(format!("\"{}\"", escaped(&text)), reference(&text));
            }
        }
    }

    #[test]
    fn every_mask_of_quotes() {
        for mask in 0_u32..1 << 8 {
            let text: String = (0..40).map(|i| if mask >> (i % 8) & 1 == 1 { '"' } else { 'a' }).collect();
            assert_eq!(format!("\"{}\"", escaped(&text)), reference(&text));
        }
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(text in "(.|[\"\\\\\\x00-\\x7f\\u{85}\\u{2028}\\u{2029}]){0,200}") {
            prop_assert_eq!(format!("\"{}\"", escaped(&text)), reference(&text));
        }

        #[test]
        fn agrees_with_serde_json_on_json(text in "[\"\\\\ -~]{0,200}") {
            prop_assert_eq!(format!("\"{}\"", escaped(&text)), reference(&text));
        }
    }
}
