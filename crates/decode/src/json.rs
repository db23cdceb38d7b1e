//! Values as JSON, on one line.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::sink::{Name, Sink};

/// Appends values as JSON. Decimals are written with all their digits; bytes as base64; floats that are not numbers as
/// text ("NaN", "Infinity", "-Infinity").
pub(crate) struct Json<'a> {
    pub(crate) out: &'a mut Vec<u8>,
    /// Nothing stands before the next field or value of this list or struct.
    is_first: bool,
    is_in_list: bool,
    /// Of the structs and lists around this one: whether it is a list, a bit each. No format nests as deep as that.
    outer: u128,
}

impl<'a> Json<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, is_first: true, is_in_list: false, outer: 0 }
    }

    #[inline(always)]
    fn comma(&mut self) {
        if self.is_in_list && !std::mem::take(&mut self.is_first) {
            self.out.push(b',');
        }
    }

    fn begin(&mut self, is_list: bool) {
        self.comma();
        self.outer = self.outer << 1 | u128::from(self.is_in_list);
        self.is_in_list = is_list;
        self.is_first = true;
    }

    fn end(&mut self) {
        self.is_in_list = self.outer & 1 == 1;
        self.outer >>= 1;
        self.is_first = false;
    }

    fn float(&mut self, text: &str, is_finite: bool) {
        self.comma();
        if is_finite {
            self.out.extend_from_slice(text.as_bytes());
        } else {
            let name = match text {
                "inf" => "\"Infinity\"",
                "-inf" => "\"-Infinity\"",
                _ => "\"NaN\"",
            };
            self.out.extend_from_slice(name.as_bytes());
        }
    }
}

impl Sink for Json<'_> {
    fn begin_struct(&mut self) {
        self.begin(false);
        self.out.push(b'{');
    }

    #[inline(always)]
    fn key(&mut self, name: &Name) {
        let start = usize::from(std::mem::take(&mut self.is_first));
        self.out.extend_from_slice(&name.json()[start..]);
    }

    fn end_struct(&mut self) {
        self.end();
        self.out.push(b'}');
    }

    fn begin_list(&mut self) {
        self.begin(true);
        self.out.push(b'[');
    }

    fn end_list(&mut self) {
        self.end();
        self.out.push(b']');
    }

    fn null(&mut self) {
        self.comma();
        self.out.extend_from_slice(b"null");
    }

    fn bool(&mut self, value: bool) {
        self.comma();
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    #[inline(always)]
    fn unsigned(&mut self, value: u64) {
        self.comma();
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    #[inline(always)]
    fn signed(&mut self, value: i64) {
        self.comma();
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    fn single(&mut self, value: f32) {
        let mut buffer = ryu::Buffer::new();
        let text = if value.is_finite() { buffer.format_finite(value) } else { nonfinite(f64::from(value)) };
        self.float(text, value.is_finite());
    }

    fn double(&mut self, value: f64) {
        let mut buffer = ryu::Buffer::new();
        let text = if value.is_finite() { buffer.format_finite(value) } else { nonfinite(value) };
        self.float(text, value.is_finite());
    }

    #[inline(always)]
    fn decimal(&mut self, value: i128, scale: u8) {
        self.comma();
        decimal(value, scale, self.out);
    }

    fn text(&mut self, value: &str) {
        self.comma();
        text(value, self.out);
    }

    fn bytes(&mut self, value: &[u8]) {
        self.comma();
        self.out.push(b'"');
        let start = self.out.len();
        self.out.resize(start + value.len().div_ceil(3) * 4, b'=');
        // The space is exact, so this can't fail.
        let _ = STANDARD.encode_slice(value, &mut self.out[start..]);
        self.out.push(b'"');
    }

    fn json(&mut self, value: &str) {
        self.comma();
        self.out.extend_from_slice(value.as_bytes());
    }
}

fn nonfinite(value: f64) -> &'static str {
    match value {
        f64::INFINITY => "inf",
        f64::NEG_INFINITY => "-inf",
        _ => "nan",
    }
}

/// Appends `value` divided by ten to the power of `scale`, with all digits after the point.
#[inline]
fn decimal(value: i128, scale: u8, out: &mut Vec<u8>) {
    let mut buffer = itoa::Buffer::new();
    let magnitude = value.unsigned_abs();
    // Most fit into 64 bits, for which formatting is much cheaper.
    let digits = match u64::try_from(magnitude) {
        Ok(magnitude) => buffer.format(magnitude),
        Err(_) => buffer.format(magnitude),
    }
    .as_bytes();
    if value < 0 {
        out.push(b'-');
    }
    let scale = usize::from(scale);
    if scale == 0 {
        out.extend_from_slice(digits);
    } else if let Some(whole) = digits.len().checked_sub(scale).filter(|whole| *whole > 0) {
        out.extend_from_slice(&digits[..whole]);
        out.push(b'.');
        out.extend_from_slice(&digits[whole..]);
    } else {
        out.extend_from_slice(b"0.");
        out.resize(out.len() + scale - digits.len(), b'0');
        out.extend_from_slice(digits);
    }
}

/// Appends a quoted string.
pub(crate) fn text(text: &str, out: &mut Vec<u8>) {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    if text.bytes().all(is_plain) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    let start = out.len();
    // Writing to a vector can't fail.
    let _ = serde_json::to_writer(&mut *out, text);
    one_line(start, out);
}

/// Turns valid JSON from `start` on into one line: line breaks between values become spaces; those that some readers of
/// text see in a string are escaped.
pub(crate) fn one_line(start: usize, out: &mut Vec<u8>) {
    let is_line_break = |byte: u8| byte == b'\n' || byte == b'\r';
    out[start..].iter_mut().filter(|byte| is_line_break(**byte)).for_each(|byte| *byte = b' ');
    if out[start..].iter().all(|byte| *byte != 0xC2 && *byte != 0xE2) {
        return;
    }
    let text = String::from_utf8_lossy(&out[start..]).into_owned();
    out.truncate(start);
    for c in text.chars() {
        match c {
            '\u{85}' | '\u{2028}' | '\u{2029}' => out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes()),
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(value: i128, scale: u8) -> String {
        let mut out = Vec::new();
        decimal(value, scale, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn decimals_keep_their_digits() {
        for (value, scale, text) in [
            (0, 0, "0"),
            (0, 2, "0.00"),
            (5, 2, "0.05"),
            (-5, 2, "-0.05"),
            (12345, 2, "123.45"),
            (-12345, 5, "-0.12345"),
            (i128::from(u64::MAX), 4, "1844674407370955.1615"),
            (i128::from(i64::MIN), 0, "-9223372036854775808"),
        ] {
            assert_eq!(written(value, scale), text);
        }
    }

    proptest! {
        #[test]
        fn strings_are_read_back_and_stay_on_one_line(string in "(.|[\\x00-\\x7f\\u{85}\\u{2028}\\u{2029}]){0,60}") {
            let mut out = Vec::new();
            text(&string, &mut out);
            let written = String::from_utf8(out).unwrap();
            prop_assert_eq!(&serde_json::from_str::<String>(&written).unwrap(), &string);
            let has_breaks = written.contains(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']);
            prop_assert!(!has_breaks);
        }

        #[test]
        fn decimals_are_exact(value: i64, scale in 0_u8..19) {
            let text = written(i128::from(value), scale);
            let digits: String = text.chars().filter(|c| *c != '.').collect();
            prop_assert_eq!(digits.parse::<i64>().unwrap(), value);
            let after = text.split_once('.').map_or(0, |(_, after)| after.len());
            prop_assert_eq!(after, usize::from(scale));
            prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
        }
    }
}
