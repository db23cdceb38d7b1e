//! Standard output: buffered, flushed when the caller asks, with colours where they are wanted.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;

use chronfs::printable::{printable_json, printable_lines};
use clap::ValueEnum;

use crate::FormatName;
use crate::failure::Failure;

/// Bytes that are gathered before they are written.
const BUFFER: usize = 64 << 10;

// No doc comments on the variants: clap would turn them into ten more lines of help in every subcommand.
/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    Auto,
    Always,
    Never,
}

impl ColorChoice {
    pub(crate) fn enabled(self) -> bool {
        match self {
            Self::Auto => {
                io::stdout().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
                    && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
            }
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// Standard output. Std's own is line-buffered, which costs a search for newlines in every chunk.
pub(crate) struct Output {
    file: File,
    /// Written by the next [`Output::flush`]: render into it.
    pub(crate) buffer: Vec<u8>,
    /// Makes messages harmless for a terminal.
    escape: Option<fn(&str) -> Cow<'_, str>>,
}

impl Output {
    pub(crate) fn stdout() -> Result<Self, Failure> {
        let descriptor = io::stdout().as_fd().try_clone_to_owned().map_err(Failure::stdout)?;
        Ok(Self { file: File::from(descriptor), buffer: Vec::with_capacity(BUFFER + 4096), escape: None })
    }

    /// For messages in a format. What a terminal would obey is escaped on one; files and pipes get the format's own
    /// bytes, as does a terminal that `bin` was asked for. A hex dump is harmless as it is.
    pub(crate) fn messages(format: FormatName) -> Result<Self, Failure> {
        let mut out = Self::stdout()?;
        out.escape = match format {
            FormatName::Jsonl if out.file.is_terminal() => Some(printable_json),
            FormatName::Txt | FormatName::Auto if out.file.is_terminal() => Some(printable_lines),
            _ => None,
        };
        Ok(out)
    }

    /// Adds what is rendered of a message; returns where it starts in the buffer.
    pub(crate) fn put(&mut self, render: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.buffer.len();
        render(&mut self.buffer);
        if let Some(escape) = self.escape {
            let shown = escape(&String::from_utf8_lossy(&self.buffer[start..])).into_owned();
            self.buffer.truncate(start);
            self.buffer.extend_from_slice(shown.as_bytes());
        }
        start
    }

    /// Whether the buffer holds enough to be worth a system call.
    pub(crate) fn is_full(&self) -> bool {
        self.buffer.len() >= BUFFER
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        if !self.buffer.is_empty() {
            self.file.write_all(&self.buffer).map_err(Failure::stdout)?;
            self.buffer.clear();
        }
        Ok(())
    }
}

/// Columns of the terminal on stdout; without one, lines may have any length.
pub(crate) fn terminal_width() -> usize {
    let size = io::stdout().is_terminal().then(crossterm::terminal::size).and_then(Result::ok);
    // Some terminals, above all those of scripts, say 0.
    size.map(|(width, _)| usize::from(width)).filter(|&width| width > 0).unwrap_or(usize::MAX)
}

/// Prints a whole text.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = Output::stdout()?;
    out.buffer.extend_from_slice(text.as_bytes());
    out.flush()
}

/// Exits with 0 as soon as the pipe on stdout has lost its last reader: `tail -f q | head -n 1` must
/// not linger until the next message comes.
pub(crate) fn exit_when_pipe_closes() -> Result<(), Failure> {
    use rustix::event::{PollFd, PollFlags, poll};
    let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(Failure::stdout)?;
    std::thread::Builder::new()
        .name("pipe-watch".to_owned())
        .spawn(move || {
            let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
            loop {
                match poll(&mut watched, None) {
                    Ok(_) => std::process::exit(0),
                    Err(rustix::io::Errno::INTR) => {}
                    // Without the watch the program ends at the next message instead.
                    Err(_) => return,
                }
            }
        })
        .map_err(|e| Failure::new(format!("cannot start a thread: {e}")))?;
    Ok(())
}
