//! What `top` draws: lines of text from what it knows. Pure; no line is wider or longer than the screen.

use std::ops::Range;
use std::time::Duration;

use chronfs::clock;
use chronfs::report::{counted, human_bytes, human_span_ms};

use super::model::{Model, Row};
use crate::names::shortened;

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
    /// Whether a row is chosen, by keys.
    pub(super) cursor: bool,
}

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const LETTERS: [char; 8] = ['_', '.', ':', '-', '=', '+', '*', '#'];
/// Lines above the queues.
const HEAD: usize = 3;
/// Columns before a name.
const MARK: usize = 2;
/// Columns of a name that is longer, where others have to give way.
const NAME: usize = 24;

/// A column: heading, width, content.
struct Column {
    head: &'static str,
    width: usize,
    text: fn(&Row) -> String,
}

/// The columns, from left to right.
const COLUMNS: [Column; 10] = [
    Column { head: "READY", width: 5, text: |row| if row.ready { "yes" } else { "-" }.to_owned() },
    Column { head: "LEASE", width: 7, text: |row| row.lease.to_owned() },
    Column { head: "WRITER", width: 7, text: |row| row.writer.to_owned() },
    Column { head: "MESSAGES", width: 9, text: |row| row.messages.map_or_else(|| "...".to_owned(), |n| n.to_string()) },
    Column { head: "MSG/S", width: 6, text: |row| human_count(row.rate()) },
    Column { head: "BYTES/S", width: 9, text: |row| human_bytes(row.bytes_rate()) },
    Column { head: "DISK", width: 9, text: |row| human_bytes(row.disk_bytes) },
    Column { head: "NEWEST", width: 8, text: newest },
    Column { head: "LAG", width: 6, text: |row| human_count(float(row.lag())) },
    Column { head: "READERS", width: 7, text: |row| row.readers.len().to_string() },
];
/// The columns in the order in which they give way to names.
const LEAST_FIRST: [&str; 10] =
    ["LEASE", "READY", "DISK", "READERS", "NEWEST", "BYTES/S", "MESSAGES", "LAG", "WRITER", "MSG/S"];
/// Lines of the help.
const HELP: [&str; 8] = [
    "up, down, k, j   choose a queue",
    "Home, End        the first, the last",
    "Enter            its readers and relays",
    "s                sort: name, rate, lag",
    "p, space         pause",
    "+, -             less, more often",
    "?                this help",
    "q, Esc, Ctrl-C   quit; Ctrl-Z: suspend",
];

/// What fits: the columns, and the width of names.
struct Layout {
    columns: Vec<&'static Column>,
    names: Vec<String>,
    name_width: usize,
    /// For the sparkline.
    room: usize,
}

impl Layout {
    fn new(model: &Model, look: Look) -> Self {
        let names: Vec<&str> = model.rows.iter().map(|row| row.name.as_str()).collect();
        let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(5);
        let mut columns: Vec<&Column> = COLUMNS.iter().collect();
        let width = |columns: &[&Column]| columns.iter().map(|column| column.width + 2).sum::<usize>();
        for least in LEAST_FIRST {
            if MARK + longest.min(NAME) + width(&columns) <= look.width {
                break;
            }
            columns.retain(|column| column.head != least);
        }
        let left = look.width.saturating_sub(MARK + width(&columns));
        let name_width = longest.min(left);
        Self { names: shortened(&names, name_width), name_width, room: left.saturating_sub(name_width + 2), columns }
    }

    fn line(&self, name: &str, cell: impl Fn(&Column) -> String) -> String {
        let mut line = format!("{name:<width$}", width = self.name_width);
        for column in &self.columns {
            // Words to the left, numbers to the right.
            let is_word = ["READY", "LEASE", "WRITER"].contains(&column.head);
            let (cell, width) = (cell(column), column.width);
            line.push_str(&if is_word { format!("  {cell:<width$}") } else { format!("  {cell:>width$}") });
        }
        line
    }
}

/// The whole screen, from top to bottom.
pub(super) fn draw(model: &Model, mode: Mode, look: Look) -> Vec<String> {
    let layout = Layout::new(model, look);
    let highest = model.rows.iter().flat_map(|row| row.rates.iter().copied()).fold(0.0, f64::max);
    let mut heading = format!("  {}", layout.line("QUEUE", |column| column.head.to_owned()));
    let scale = format!("  UP TO {}/S", human_count(highest));
    if layout.room >= scale.len() {
        heading.push_str(&scale);
    }
    let mut lines = vec![head(model, mode, look), String::new(), look.paint("1", &look.fit(&heading))];
    let mut below = below(model, mode, look);
    let selected = model.selected();
    let shown = shown(model, mode, look);
    for (index, (row, name)) in model.rows.iter().zip(&layout.names).enumerate().take(shown.end).skip(shown.start) {
        lines.push(self::row(row, name, mode.cursor && index == selected, highest, &layout, look));
    }
    if model.rows.is_empty() {
        lines.push(look.fit("  no queues here yet"));
    }
    if !below.is_empty() {
        lines.push(String::new());
        lines.append(&mut below);
    }
    if mode.cursor {
        while lines.len() + 1 < look.height {
            lines.push(String::new());
        }
        lines.truncate(look.height.saturating_sub(1));
        lines.push(look.paint("2", &last(model, look)));
    }
    lines
}

/// The keys, then the chosen queue's whole name: its end, if there is no room for all.
fn last(model: &Model, look: Look) -> String {
    let Some(row) = model.rows.get(model.selected()) else { return look.fit_parts(&["q quit", "? help"], "  ") };
    let room = look.width.saturating_sub("q quit  ? help  ".len());
    let count = row.name.chars().count();
    let name = if count <= room {
        row.name.clone()
    } else {
        let end: String = row.name.chars().skip(count - room.saturating_sub(2)).collect();
        format!("..{end}")
    };
    look.fit_parts(&["q quit", "? help", &name], "  ")
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
    let interval = human_span_ms(u64::try_from(mode.interval.as_millis()).unwrap_or(u64::MAX));
    let (rate, sort) = (human_count(model.total_rate()), model.sort_by.word());
    let mut parts = vec![counted(model.rows.len() as u64, "queue")];
    parts.extend(mode.paused.then(|| "PAUSED".to_owned()));
    parts
        .extend((model.denied() > 0).then(|| format!("{} can't be read", counted(model.denied() as u64, "directory"))));
    parts.extend([format!("{rate} messages/s"), format!("every {interval}"), format!("by {sort}")]);
    let start = format!("chron-cli top {root}: ");
    // A long root leaves no room for what counts.
    let start = if start.len() + 24 > look.width { String::new() } else { start };
    parts[0].insert_str(0, &start);
    look.fit_parts(&parts, ", ")
}

fn row(row: &Row, name: &str, selected: bool, highest: f64, layout: &Layout, look: Look) -> String {
    let mark = if selected { ">" } else { " " };
    if let Some(trouble) = &row.trouble {
        let line = look.fit(&format!("{mark} {name:<width$}  {trouble}", width = layout.name_width));
        return look.paint(if selected { "7;31" } else { "31" }, &line);
    }
    let text = layout.line(name, |column| (column.text)(row));
    let line = look.fit(format!("{mark} {text}  {}", sparkline(row, layout.room, highest, look)).trim_end());
    let is_bad = matches!((row.writer, row.lease), ("stuck" | "dead", _) | (_, "expired")) || row.relay_is_in_trouble();
    let code = match (is_bad, selected) {
        (true, true) => "7;31",
        (true, false) => "31",
        (false, true) => "7",
        (false, false) if row.rate() > 0.0 => "32",
        (false, false) => return line,
    };
    look.paint(code, &line)
}

/// The newest rates that fit, the newest last. The scale is that of all queues, and logarithmic: small ones show, too.
fn sparkline(row: &Row, room: usize, highest: f64, look: Look) -> String {
    let letters = if look.unicode { BLOCKS } else { LETTERS };
    let shown = row.rates.iter().skip(row.rates.len().saturating_sub(room.min(60)));
    shown
        .map(|&rate| {
            // Between 0 and 7 by construction.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let level = if highest > 0.0 { (rate.ln_1p() / highest.ln_1p() * 7.0).round() as usize } else { 0 };
            letters[level.min(7)]
        })
        .collect()
}

/// The age of the newest message.
fn newest(row: &Row) -> String {
    match row.newest_ns {
        0 => "-".to_owned(),
        newest_ns => human_span_ms(clock::now_ns().saturating_sub(newest_ns) / 1_000_000),
    }
}

/// The readers and relays of a queue.
fn details(row: &Row, look: Look) -> Vec<String> {
    let mut lines = vec![look.paint("1", &look.fit_parts(&["  readers", &format!("of {}", row.name)], " "))];
    if row.readers.is_empty() {
        lines.push(look.fit("  none are registered"));
    }
    for reader in &row.readers {
        let position = reader.position.map_or_else(|| "?".to_owned(), |position| position.to_string());
        let heartbeat =
            reader.heartbeat_age_ms.map_or_else(|| "never seen".to_owned(), |ms| format!("{} ago", human_span_ms(ms)));
        let mut parts = vec![
            format!("  {:<16} {:<7} lags by {}", reader.name, reader.state(), reader.lag_messages),
            human_bytes(reader.lag_bytes),
            format!("at {position}"),
            heartbeat,
        ];
        if reader.pins_segments > 0 {
            parts.insert(2, format!("keeps {}", human_bytes(reader.pins_bytes)));
        }
        lines.push(look.fit_parts(&parts, ", "));
    }
    if !row.relays.is_empty() {
        lines.push(look.paint("1", &look.fit("  relays")));
    }
    for relay in &row.relays {
        let state = relay.trouble().unwrap_or_else(|| relay.condition.clone());
        let text = format!(
            "  {:<16} {:<7} lags by {}, {}, {:.1} s: {state}, {}",
            relay.name,
            relay.direction,
            relay.lag_messages,
            human_bytes(relay.lag_bytes),
            relay.lag_seconds,
            relay.target,
        );
        lines.push(look.fit(&crate::failure::one_line(&text)));
    }
    lines
}

impl Look {
    /// Cuts a line to the screen's width.
    fn fit(self, text: &str) -> String {
        text.chars().take(self.width).collect()
    }

    /// As many parts as fit whole; the first one in any case.
    fn fit_parts(self, parts: &[impl AsRef<str>], between: &str) -> String {
        let mut line = String::new();
        for (index, part) in parts.iter().map(AsRef::as_ref).enumerate() {
            let between = if index == 0 { "" } else { between };
            if index > 0 && line.chars().count() + between.len() + part.chars().count() > self.width {
                break;
            }
            line.push_str(between);
            line.push_str(part);
        }
        self.fit(&line)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// `950`, `12.3k`, `4.5M`.
fn human_count(value: f64) -> String {
    match value {
        value if value < 10_000.0 => format!("{value:.0}"),
        value if value < 1e6 => format!("{:.1}k", value / 1e3),
        value => format!("{:.1}M", value / 1e6),
    }
}

/// A number for people.
#[allow(clippy::cast_precision_loss)]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MODE: Mode =
        Mode { interval: Duration::from_secs(1), paused: false, details: true, help: false, cursor: true };

    fn model(dir: &std::path::Path, names: &[&str]) -> Model {
        for name in names {
            let queue = chronfs::Queue::create(dir.join(name), &chronfs::queue::Settings::default()).unwrap();
            queue.writer().unwrap().append(1, b"x").unwrap();
            queue.add_reader("billing").unwrap();
        }
        let mut model = Model::new(dir).unwrap();
        model.look_at_all().unwrap();
        model.look_at_all().unwrap();
        model
    }

    const NAMES: [&str; 2] = ["a", "orders/queue/a-strategy-with-quite-a-long-name-indeed-and-more-of-it/orders_out"];
    const ENDPOINTS: [&str; 4] = [
        "orders/queue/momentum/orders_in",
        "orders/queue/momentum/orders_out",
        "orders/queue/pairs/orders_in",
        "orders/queue/pairs/orders_out",
    ];

    #[test]
    fn nothing_leaves_the_screen_however_small_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let model = model(dir.path(), &NAMES);
        for (width, height) in [(80, 24), (200, 50), (20, 5), (1, 1), (0, 0), (40, 3)] {
            for (help, cursor) in [(false, true), (true, true), (false, false)] {
                let look = Look { width, height, color: false, unicode: true };
                let lines = draw(&model, Mode { help, cursor, ..MODE }, look);
                assert!(!cursor || lines.len() <= height.max(1), "{width}x{height}: {}", lines.len());
                assert!(lines.iter().all(|line| line.chars().count() <= width), "{width}x{height}: {lines:#?}");
            }
        }
    }

    #[test]
    fn a_usual_screen_shows_queues_and_readers() {
        let dir = tempfile::tempdir().unwrap();
        let mut model = model(dir.path(), &NAMES);
        model.select(1);
        let look = Look { width: 120, height: 24, color: false, unicode: false };
        let text = draw(&model, MODE, look).join("\n");
        for part in ["2 queues", "QUEUE", "BYTES/S", "/orders_out", "billing", "lags by 1", "q quit", "none"] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains('\x1b'));
        assert!(!draw(&model, Mode { cursor: false, ..MODE }, look).join("\n").contains(">"), "nothing is chosen");
    }

    #[test]
    fn eighty_columns_tell_queues_apart_and_forty_cut_no_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut model = model(dir.path(), &ENDPOINTS);
        model.select(2);
        let screen = |width| draw(&model, MODE, Look { width, height: 24, color: false, unicode: false });
        let lines = screen(80);
        for part in ["../momentum/orders_in ", "../pairs/orders_out "] {
            assert_eq!(lines.iter().filter(|line| line.contains(part)).count(), 1, "{lines:#?}");
        }
        assert!(lines[2].contains("MSG/S") && lines[2].contains("WRITER"), "{lines:#?}");
        assert_eq!(lines[23], "q quit  ? help  orders/queue/pairs/orders_in");
        let words = |line: &str| line.split(' ').map(|word| word.trim_end_matches(',').to_owned()).collect::<Vec<_>>();
        let whole: Vec<String> = screen(200).iter().flat_map(|line| words(line)).collect();
        for line in screen(40).iter().filter(|line| !line.contains("..")) {
            assert!(words(line).iter().all(|word| whole.contains(word)), "{line:?}");
        }
    }

    #[test]
    fn what_is_wrong_stays_red_where_it_is_chosen() {
        let dir = tempfile::tempdir().unwrap();
        let mut model = model(dir.path(), &NAMES[..1]);
        model.rows[0].writer = "dead";
        let look = Look { width: 80, height: 24, color: true, unicode: false };
        assert!(draw(&model, MODE, look)[3].starts_with("\x1b[7;31m> a"));
    }

    #[test]
    fn relays_are_among_the_details_and_their_trouble_is_red() {
        let dir = tempfile::tempdir().unwrap();
        let mut model = model(dir.path(), &NAMES[..1]);
        let relay = |name: &str, healthy| chronfs::bus::Relay {
            name: name.to_owned(),
            direction: "out".to_owned(),
            target: "nats://host/A".to_owned(),
            condition: "waiting".to_owned(),
            reason: Some("no answer\u{1b}[0m".to_owned()),
            healthy,
            lag_messages: 12_345,
            lag_bytes: 4096,
            lag_seconds: 1.5,
            last_progress_seconds: 0.0,
            written: 1e15,
        };
        let look = Look { width: 160, height: 24, color: true, unicode: false };
        model.rows[0].relays = vec![relay("well", true)];
        let lines = draw(&model, Mode { cursor: false, ..MODE }, look);
        assert!(!lines[3].starts_with("\x1b[31m") && lines[3].contains("12.3k"), "{lines:#?}");
        model.rows[0].relays.push(relay("stuck", false));
        let lines = draw(&model, Mode { cursor: false, ..MODE }, look);
        assert!(lines[3].starts_with("\x1b[31m"), "{lines:#?}");
        let details = lines.join("\n");
        for part in ["well ", "out     lags by 12345, 4.0 KiB, 1.5 s: waiting, nats://host/A", "no answer\\u{1b}[0m"] {
            assert!(details.contains(part), "{part:?} is not in\n{details}");
        }
    }

    #[test]
    fn counts_are_short() {
        assert_eq!([0.4, 9_999.0, 12_345.0, 4_500_000.0].map(human_count), ["0", "9999", "12.3k", "4.5M"]);
    }
}
