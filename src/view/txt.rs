//! A payload as one line of text: for eyes and grep, not reversible. Pure.
//!
//! Text stays as it is. Newline and carriage return become `\n` and `\r`; other control characters (C0 but the tab,
//! DEL, and C1, which terminals obey too), the line and paragraph separators of Unicode and bytes that are not UTF-8
//! become `\xNN`. One walk over the payload feeds both rendering and counting, so that the two agree.

use super::json::HEX;

/// Receives the pieces of the line.
trait Sink {
    /// Bytes as they are.
    fn plain(&mut self, bytes: &[u8]);
    /// A byte to be escaped.
    fn escaped(&mut self, byte: u8);
}

impl Sink for Vec<u8> {
    fn plain(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn escaped(&mut self, byte: u8) {
        match byte {
            b'\n' => self.extend_from_slice(b"\\n"),
            b'\r' => self.extend_from_slice(b"\\r"),
            _ => self.extend_from_slice(&[b'\\', b'x', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
    }
}

/// Counts bytes.
struct Count(usize);

impl Sink for Count {
    fn plain(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }

    fn escaped(&mut self, byte: u8) {
        self.0 += if matches!(byte, b'\n' | b'\r') { 2 } else { 4 };
    }
}

/// Appends the line, with its newline, to `out`.
pub(super) fn line(payload: &[u8], out: &mut Vec<u8>) {
    walk(payload, out);
    out.push(b'\n');
}

/// The length in bytes of what [`line`] appends.
pub(super) fn line_len(payload: &[u8]) -> usize {
    let mut count = Count(1);
    walk(payload, &mut count);
    count.0
}

fn walk(payload: &[u8], sink: &mut impl Sink) {
    if is_plain(payload) {
        return sink.plain(payload);
    }
    for chunk in payload.utf8_chunks() {
        walk_text(chunk.valid().as_bytes(), sink);
        chunk.invalid().iter().for_each(|&byte| sink.escaped(byte));
    }
}

/// Whether it is ASCII without control characters but tabs. Written for the vectoriser.
fn is_plain(payload: &[u8]) -> bool {
    payload.chunks(64).all(|block| {
        block.iter().fold(0, |odd, &byte| odd | u8::from(byte.wrapping_sub(0x20) >= 0x5F) & u8::from(byte != b'\t'))
            == 0
    })
}

/// Walks over valid UTF-8.
fn walk_text(text: &[u8], sink: &mut impl Sink) {
    let mut start = 0;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let width = match byte {
            b'\t' => 0,
            0..0x20 | 0x7F => 1,
            // C1: U+0080 to U+009F.
            0xC2 if text.get(at + 1).is_some_and(|&next| next < 0xA0) => 2,
            // U+2028 and U+2029.
            0xE2 if matches!(text.get(at + 1..at + 3), Some([0x80, 0xA8 | 0xA9])) => 3,
            _ => 0,
        };
        if width == 0 {
            at += 1;
            continue;
        }
        sink.plain(&text[start..at]);
        text[at..at + width].iter().for_each(|&byte| sink.escaped(byte));
        at += width;
        start = at;
    }
    sink.plain(&text[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lined(payload: &[u8]) -> String {
        let mut out = Vec::new();
        line(payload, &mut out);
        assert_eq!(out.len(), line_len(payload));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_stays_and_the_rest_is_escaped() {
        assert_eq!(lined(b""), "\n");
        assert_eq!(lined("a\tb \\ \u{e9} \u{1F600}".as_bytes()), "a\tb \\ \u{e9} \u{1F600}\n");
        assert_eq!(lined(b"a\r\nb\0\x1b[31m\x7f"), "a\\r\\nb\\x00\\x1b[31m\\x7f\n");
        assert_eq!(lined(b"\xff\xc3(\xe2\x82"), "\\xff\\xc3(\\xe2\\x82\n");
        assert_eq!(lined("\u{85}\u{9b}31m\u{a0}".as_bytes()), "\\xc2\\x85\\xc2\\x9b31m\u{a0}\n");
        assert_eq!(lined("\u{2027}\u{2028}\u{2029}".as_bytes()), "\u{2027}\\xe2\\x80\\xa8\\xe2\\x80\\xa9\n");
    }

    /// The definition, character by character.
    fn reference(payload: &[u8]) -> String {
        let mut line = String::new();
        for chunk in payload.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\n' => line.push_str("\\n"),
                    '\r' => line.push_str("\\r"),
                    '\t' => line.push('\t'),
                    c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                        let mut bytes = [0; 4];
                        c.encode_utf8(&mut bytes).bytes().for_each(|b| line.push_str(&format!("\\x{b:02x}")));
                    }
                    c => line.push(c),
                }
            }
            chunk.invalid().iter().for_each(|b| line.push_str(&format!("\\x{b:02x}")));
        }
        line.push('\n');
        line
    }

    proptest! {
        #[test]
        fn one_line_as_defined(payload: Vec<u8>) {
            prop_assert_eq!(lined(&payload), reference(&payload));
        }

        #[test]
        fn one_line_as_defined_for_text(text in "(.|[\\x00-\\x9f\\u{2028}\\u{2029}]){0,100}") {
            let line = lined(text.as_bytes());
            prop_assert!(!line[..line.len() - 1].contains(|c: char| c.is_control() && c != '\t'));
            prop_assert_eq!(line, reference(text.as_bytes()));
        }
    }
}
