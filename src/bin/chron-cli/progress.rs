//! Progress bars: on stderr, and only where that is a terminal, so that logs and scripts never see one.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

/// A bar for a known number of bytes. It draws nothing where stderr is not a terminal.
pub(crate) fn bytes(total: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), target());
    let template = "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar
}

fn target() -> ProgressDrawTarget {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if std::io::stderr().is_terminal() && !is_dumb {
        ProgressDrawTarget::stderr_with_hz(10)
    } else {
        ProgressDrawTarget::hidden()
    }
}

/// A status line for work in steps.
pub(crate) fn steps(count: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(count), target());
    if let Ok(style) = ProgressStyle::with_template("{msg} ({pos} of {len}, {elapsed})") {
        bar.set_style(style);
    }
    bar
}

/// A line that says what is waited for. It goes when it is dropped.
pub(crate) fn line() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target()).with_finish(ProgressFinish::AndClear);
    if let Ok(style) = ProgressStyle::with_template("{msg}") {
        bar.set_style(style);
    }
    bar
}
