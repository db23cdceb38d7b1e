//! `chron-cli top`: the queues below a directory, live. Reads, draws, handles keys; nothing is registered, locked or
//! changed. The terminal is restored however this ends.

mod model;
mod screen;

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::{cursor, execute, queue, terminal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGTSTP};

use crate::TopArgs;
use crate::failure::{Done, Failure, Outcome};
use crate::output::{print, terminal_width};
use model::Model;
use screen::{Look, Mode};

/// The interval's bounds.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);

pub(crate) fn run(args: &TopArgs, color: bool) -> Outcome {
    let interval = Duration::from_nanos(args.interval);
    if !(SHORTEST..=LONGEST).contains(&interval) {
        return Err(Failure::Usage("--interval: choose a span between 100ms and 60s".to_owned()));
    }
    let mut model = Model::new(&args.root)?;
    if args.once {
        model.look_at_all()?;
        std::thread::sleep(interval);
        model.look_at_all()?;
        return once(&model, interval);
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let what = "top: not a terminal; for one snapshot as text: chron-cli top --once ROOT";
        return Err(Failure::Usage(what.to_owned()));
    }
    let terminal = Terminal::take()?;
    let mut top =
        Top { model, mode: Mode { interval, paused: false, details: false, help: false, cursor: true }, color };
    let result = top.run();
    drop(terminal);
    result.map(|()| Done::Well)
}

/// One snapshot: as wide as the terminal, elsewhere as it needs to be.
fn once(model: &Model, interval: Duration) -> Outcome {
    let height = model.rows.len() + 8;
    let look = Look { width: terminal_width().min(160), height, color: false, unicode: is_unicode() };
    let mode = Mode { interval, paused: false, details: false, help: false, cursor: false };
    let lines = screen::draw(model, mode, look);
    print(&lines.iter().map(|line| format!("{}\n", line.trim_end())).collect::<String>())?;
    Ok(Done::Well)
}

/// The terminal while it is ours.
struct Terminal;

impl Terminal {
    fn take() -> Result<Self, Failure> {
        // A signal that ends us restores the terminal, too.
        let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])
            .map_err(|e| Failure::new(format!("cannot wait for signals: {e}")))?;
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                if let Some(signal) = signals.forever().next() {
                    restore();
                    std::process::exit(128 + signal);
                }
            })
            .map_err(|e| Failure::new(format!("cannot start a thread: {e}")))?;
        let terminal = Self;
        enter().map_err(terminal_failure)?;
        Ok(terminal)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

fn enter() -> io::Result<()> {
    terminal::enable_raw_mode()?;
    execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)
}

/// Leaves the terminal to the shell until it continues us.
fn suspend() {
    restore();
    // Returns when it is continued.
    let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
    // Should this fail, the next drawing does, too.
    let _ = enter();
}

/// Nothing can be done if this fails: the terminal is gone.
fn restore() {
    let _ = execute!(io::stdout(), terminal::LeaveAlternateScreen, cursor::Show);
    let _ = terminal::disable_raw_mode();
}

fn terminal_failure(e: io::Error) -> Failure {
    Failure::new(format!("terminal: cannot use it: {e}"))
}

/// Whether the terminal shows more than ASCII, as far as the environment says.
fn is_unicode() -> bool {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

struct Top {
    model: Model,
    mode: Mode,
    color: bool,
}

impl Top {
    fn run(&mut self) -> Result<(), Failure> {
        // Twice: the first one finds the rows to show.
        self.model.look(0..0)?;
        self.look()?;
        let mut looked = Instant::now();
        loop {
            self.draw()?;
            let due = looked + self.mode.interval;
            // While paused only keys matter.
            let left = if self.mode.paused { LONGEST } else { due.saturating_duration_since(Instant::now()) };
            if event::poll(left).map_err(terminal_failure)?
                && let Event::Key(key) = event::read().map_err(terminal_failure)?
                && key.kind != KeyEventKind::Release
                && !self.obey(key)
            {
                return Ok(());
            }
            if !self.mode.paused && looked.elapsed() >= self.mode.interval {
                self.look()?;
                // Counted from here: however long a refresh takes, there is time for keys.
                looked = Instant::now();
            }
        }
    }

    /// False to quit.
    fn obey(&mut self, key: KeyEvent) -> bool {
        let selected = self.model.selected();
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if is_control => return false,
            KeyCode::Char('z') if is_control => suspend(),
            KeyCode::Esc if self.mode.help || self.mode.details => {
                (self.mode.help, self.mode.details) = (false, false);
            }
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Up | KeyCode::Char('k') => self.model.select(selected.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.model.select(selected + 1),
            KeyCode::PageUp => self.model.select(selected.saturating_sub(10)),
            KeyCode::PageDown => self.model.select(selected + 10),
            KeyCode::Home | KeyCode::Char('g') => self.model.select(0),
            KeyCode::End | KeyCode::Char('G') => self.model.select(usize::MAX),
            KeyCode::Enter => self.mode.details = !self.mode.details,
            KeyCode::Char('?' | 'h') => self.mode.help = !self.mode.help,
            KeyCode::Char('p' | ' ') => self.mode.paused = !self.mode.paused,
            KeyCode::Char('+') => self.mode.interval = (self.mode.interval * 2).min(LONGEST),
            KeyCode::Char('-') => self.mode.interval = (self.mode.interval / 2).max(SHORTEST),
            KeyCode::Char('s') => {
                self.model.sort_by = self.model.sort_by.next();
                self.model.sort();
            }
            _ => {}
        }
        true
    }

    fn look(&mut self) -> Result<(), Failure> {
        let shown = screen::shown(&self.model, self.mode, self.screen()?);
        self.model.look(shown)
    }

    fn screen(&self) -> Result<Look, Failure> {
        let (width, height) = terminal::size().map_err(terminal_failure)?;
        let (width, height) = (usize::from(width), usize::from(height));
        Ok(Look { width, height, color: self.color, unicode: is_unicode() })
    }

    /// Everything in one write, line over line, so that nothing flickers over a slow connection.
    fn draw(&self) -> Result<(), Failure> {
        let look = self.screen()?;
        let mut out = Vec::new();
        for (row, line) in (0_u16..).zip(screen::draw(&self.model, self.mode, look)) {
            let clear = terminal::Clear(terminal::ClearType::CurrentLine);
            queue!(out, cursor::MoveTo(0, row), clear).map_err(terminal_failure)?;
            out.extend_from_slice(line.as_bytes());
        }
        io::stdout().write_all(&out).and_then(|()| io::stdout().flush()).map_err(terminal_failure)
    }
}
