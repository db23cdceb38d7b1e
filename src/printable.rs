//! Untrusted text on its way to a terminal. Names, messages and what other programs wrote may hold escape sequences,
//! newlines and bidirectional controls, which a terminal would obey. Pure.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a terminal may obey this character instead of showing it: control characters (C0, DEL, C1), line and
/// paragraph separators, bidirectional controls.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text as one line that a terminal shows and does not obey: `\n`, `\u{1b}`, `\u{202e}`.
///
/// ```
/// use chronfs::printable::printable;
/// assert_eq!(printable("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
/// assert_eq!(printable("Zürich 東京"), "Zürich 東京");
/// ```
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, is_obeyed, |c, out| out.extend(c.escape_default()))
}

/// [`printable`] for lines: newlines and tabs stay.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_obeyed(c) && !matches!(c, '\n' | '\t'), |c, out| out.extend(c.escape_default()))
}

/// The same for JSON, whose value does not change: such characters occur only in its strings, where they become
/// `\u009b`. Newlines stay, as between the objects of JSON Lines.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    escaped(
        json,
        |c| is_obeyed(c) && !matches!(c, '\n' | '\t'),
        |c, out| {
            // All of them take one unit of UTF-16. Writing to a String can't fail.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        },
    )
}

fn escaped(text: &str, is_bad: impl Fn(char) -> bool, escape: impl Fn(char, &mut String)) -> Cow<'_, str> {
    let Some(first) = text.find(&is_bad) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(&text[..first]);
    for c in text[first..].chars() {
        if is_bad(c) { escape(c, &mut out) } else { out.push(c) }
    }
    Cow::Owned(out)
}

#[cfg(all(test, feature = "view"))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OBEYED: &str = "\0\n\r\t\u{1b}\u{7f}\u{80}\u{85}\u{9b}\u{9f}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\
                          \u{202e}\u{2066}\u{2069}";

    #[test]
    fn everything_that_a_terminal_obeys_is_escaped() {
        assert!(printable(OBEYED).is_ascii());
        assert_eq!(printable_lines(OBEYED).replace(['\n', '\t'], "").chars().filter(|c| is_obeyed(*c)).count(), 0);
        assert_eq!(printable_lines("a\tb\u{9b}\n"), "a\tb\\u{9b}\n");
    }

    #[test]
    fn what_people_write_is_kept() {
        for text in ["", "a b", "é\u{301}", "日本語", "العربية", "👩\u{200d}👩", "\u{a0}\u{feff}\\"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text));
            assert!(matches!(printable_json(text), Cow::Borrowed(same) if same == text));
        }
    }

    proptest! {
        #[test]
        fn json_keeps_its_value(text in "(.|[\\x00-\\x9f]|[\u{2028}-\u{202e}]){0,60}") {
            let json = serde_json::to_string(&text).unwrap();
            let shown = printable_json(&json);
            prop_assert!(!shown.contains(is_obeyed));
            prop_assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        }
    }
}
