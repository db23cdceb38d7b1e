//! What `top` draws: lines of text from what it knows. Pure; no line is wider or longer than the screen.

use std::ops::Range;
use std::time::Duration;

use chronfs::report::{human_bytes, human_span_ms};

use super::model::{Model, Row};

/// How it is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) color: bool,
    /// Blocks for the sparkline; else ASCII.
    pub(super) unicode: bool,
}

/// What else is shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mode {
    pub(super) interval: Duration,
    pub(super) paused: bool,
    pub(super) details: bool,
    pub(super) help: bool,
}

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const LETTERS: [char; 8] = ['_', '.', ':', '-', '=', '+', '*', '#'];
/// Lines above the queues.
const HEAD: usize = 3;
/// Columns between the name and the sparkline.
const COLUMNS: &str = "READY LEASE   WRITER   MESSAGES   RATE/s       LAG READERS";
/// Lines of the help.
const HELP: [&str; 7] = [
    "up, down, k, j   choose a queue; Home and End the first and the last",
    "Enter            show its readers, and again: hide them",
    "s                sort by name, rate, lag",
    "p, space         pause",
    "+, -             refresh less often, more often",
    "?                this help",
    "q, Esc, Ctrl-C   quit",
];

/// The whole screen, from top to bottom.
pub(super) fn draw(model: &Model, mode: Mode, look: Look) -> Vec<String> {
    let mut lines = vec![head(model, mode, look), String::new()];
    let name_width = name_width(model, look);
    lines.push(look.paint("1", &look.fit(&format!("  {:<name_width$}  {COLUMNS}  RATE", "QUEUE"))));
    let mut below = below(model, mode, look);
    let selected = model.selected();
    let shown = shown(model, mode, look);
    for (index, row) in model.rows.iter().enumerate().take(shown.end).skip(shown.start) {
        lines.push(self::row(row, index == selected, name_width, look));
    }
    if model.rows.is_empty() {
        lines.push(look.fit("  no queues here yet"));
    }
    if !below.is_empty() {
        lines.push(String::new());
        lines.append(&mut below);
    }
    while lines.len() + 1 < look.height {
        lines.push(String::new());
    }
    lines.truncate(look.height.saturating_sub(1));
    lines.push(look.paint("2", &look.fit("q quit  ? help  s sort  Enter readers  p pause")));
    lines
}

/// The rows that fit; the chosen one is among them.
pub(super) fn shown(model: &Model, mode: Mode, look: Look) -> Range<usize> {
    let room = look.height.saturating_sub(HEAD + below(model, mode, look).len() + 2).max(1);
    let first = (model.selected() + 1).saturating_sub(room);
    first..first + room
}

/// What is drawn below the queues.
fn below(model: &Model, mode: Mode, look: Look) -> Vec<String> {
    let mut below = Vec::new();
    if mode.help {
        below.extend(HELP.map(|line| look.fit(&format!("  {line}"))));
    } else if mode.details && !model.rows.is_empty() {
        below = details(&model.rows[model.selected()], look);
    }
    below.truncate(look.height / 2);
    below
}

fn head(model: &Model, mode: Mode, look: Look) -> String {
    let root = crate::failure::one_line(&model.root.display().to_string());
    let paused = if mode.paused { ", PAUSED" } else { "" };
    let interval = human_span_ms(u64::try_from(mode.interval.as_millis()).unwrap_or(u64::MAX));
    let (count, rate, sort) = (model.rows.len(), human_count(model.total_rate()), model.sort_by.word());
    let denied = match model.denied() {
        0 => String::new(),
        denied => format!(", {denied} directories can't be read"),
    };
    look.fit(&format!(
        "chron-cli top {root}: {count} queues, {rate} messages/s, every {interval}, by {sort}{paused}{denied}"
    ))
}

fn name_width(model: &Model, look: Look) -> usize {
    let longest = model.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    longest.clamp(5, look.width.saturating_sub(COLUMNS.len() + 16).max(12))
}

fn row(row: &Row, selected: bool, name_width: usize, look: Look) -> String {
    let name = shorten(&row.name, name_width);
    let mark = if selected { ">" } else { " " };
    if let Some(trouble) = &row.trouble {
        let line = look.fit(&format!("{mark} {name:<name_width$}  {trouble}"));
        return look.paint("31", &line);
    }
    let ready = if row.ready { "yes" } else { "-" };
    let (rate, lag) = (human_count(row.rate()), human_lag(row.lag()));
    let text = format!(
        "{mark} {name:<name_width$}  {ready:<5} {:<7} {:<7} {:>9} {rate:>8} {lag:>9} {:>7}  ",
        row.lease,
        row.writer,
        row.messages.map_or_else(|| "...".to_owned(), |messages| messages.to_string()),
        row.readers.len(),
    );
    let room = look.width.saturating_sub(text.chars().count());
    let line = look.fit(&format!("{text}{}", sparkline(row, room, look)));
    let code = match (row.writer, row.lease) {
        ("stuck" | "dead", _) | (_, "expired") => "31",
        _ if selected => "7",
        _ if row.rate() > 0.0 => "32",
        _ => return line,
    };
    look.paint(code, &line)
}

/// The newest rates that fit, the newest last, as parts of the highest one.
fn sparkline(row: &Row, room: usize, look: Look) -> String {
    let letters = if look.unicode { BLOCKS } else { LETTERS };
    let shown = row.rates.iter().skip(row.rates.len().saturating_sub(room.min(60)));
    let highest = row.rates.iter().copied().fold(0.0, f64::max);
    shown
        .map(|&rate| {
            // Between 0 and 7 by construction.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let level = if highest > 0.0 { (rate / highest * 7.0).round() as usize } else { 0 };
            letters[level.min(7)]
        })
        .collect()
}

/// The readers of a queue.
fn details(row: &Row, look: Look) -> Vec<String> {
    let mut lines = vec![look.paint("1", &look.fit(&format!("  readers of {}", row.name)))];
    if row.readers.is_empty() {
        lines.push(look.fit("  none are registered"));
    }
    for reader in &row.readers {
        let position = reader.position.map_or_else(|| "?".to_owned(), |position| position.to_string());
        let heartbeat =
            reader.heartbeat_age_ms.map_or_else(|| "never seen".to_owned(), |ms| format!("{} ago", human_span_ms(ms)));
        let pins = if reader.pins_segments == 0 {
            String::new()
        } else {
            format!(", keeps {}", human_bytes(reader.pins_bytes))
        };
        lines.push(look.fit(&format!(
            "  {:<20} {:<7} at {position}, lags by {} ({}), {heartbeat}{pins}",
            reader.name,
            reader.state(),
            reader.lag_messages,
            human_bytes(reader.lag_bytes),
        )));
    }
    lines
}

impl Look {
    /// Cuts a line to the screen's width.
    fn fit(self, text: &str) -> String {
        text.chars().take(self.width).collect()
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The end of a name says more than its beginning.
fn shorten(name: &str, width: usize) -> String {
    let count = name.chars().count();
    if count <= width {
        return name.to_owned();
    }
    let end: String = name.chars().skip(count - width.saturating_sub(2)).collect();
    format!("..{end}")
}

/// `950`, `12.3k`, `4.5M`.
fn human_count(value: f64) -> String {
    match value {
        value if value < 10_000.0 => format!("{value:.0}"),
        value if value < 1e6 => format!("{:.1}k", value / 1e3),
        value => format!("{:.1}M", value / 1e6),
    }
}

fn human_lag(lag: u64) -> String {
    // A lag for people.
    #[allow(clippy::cast_precision_loss)]
    human_count(lag as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MODE: Mode = Mode { interval: Duration::from_secs(1), paused: false, details: true, help: false };

    fn model(dir: &std::path::Path) -> Model {
        for name in ["a", "orders/queue/a-strategy-with-quite-a-long-name-indeed-and-more-of-it/orders_out"] {
            let queue = chronfs::Queue::create(dir.join(name), &chronfs::queue::Settings::default()).unwrap();
            queue.writer().unwrap().append(1, b"x").unwrap();
            queue.add_reader("billing").unwrap();
        }
        let mut model = Model::new(dir).unwrap();
        model.look_at_all().unwrap();
        model.look_at_all().unwrap();
        model
    }

    #[test]
    fn nothing_leaves_the_screen_however_small_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let model = model(dir.path());
        for (width, height) in [(80, 24), (200, 50), (20, 5), (1, 1), (0, 0), (40, 3)] {
            for help in [false, true] {
                let look = Look { width, height, color: false, unicode: true };
                let lines = draw(&model, Mode { help, ..MODE }, look);
                assert!(lines.len() <= height.max(1), "{width}x{height}: {}", lines.len());
                assert!(lines.iter().all(|line| line.chars().count() <= width), "{width}x{height}: {lines:#?}");
            }
        }
    }

    #[test]
    fn a_usual_screen_shows_queues_and_readers() {
        let dir = tempfile::tempdir().unwrap();
        let mut model = model(dir.path());
        model.select(1);
        let look = Look { width: 120, height: 24, color: false, unicode: false };
        let text = draw(&model, MODE, look).join("\n");
        for part in ["2 queues", "QUEUE", "> ..", "/orders_out", "billing", "lags by 1", "q quit", "none"] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn counts_are_short() {
        assert_eq!([0.4, 9_999.0, 12_345.0, 4_500_000.0].map(human_count), ["0", "9999", "12.3k", "4.5M"]);
    }
}
