//! `chron-cli watch`: changes of the queues below a directory, one per line, as they happen.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chronfs::bus::{DiscoveryEvent, RouterDiscovery};
use chronfs::queue::Error;
use chronfs::report::{counted, to_json};
use chronfs::{clock, view};
use serde::Serialize;

use crate::WatchArgs;
use crate::failure::{Done, Failure, Outcome, note, root_remedy};
use crate::names::name_below;
use crate::output::{Output, exit_when_pipe_closes};

/// A wait ends earlier, with the next event.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    time: &'a str,
    timestamp_ns: u64,
    event: &'static str,
    path: String,
}

pub(crate) fn run(args: &WatchArgs, color: bool) -> Outcome {
    let mut discovery = discover(&args.root)?;
    exit_when_pipe_closes()?;
    let mut out = Output::stdout()?;
    let mut complained = Complaints::default();
    loop {
        for event in discovery.poll()? {
            put(args, color, &event, &mut out)?;
        }
        out.flush()?;
        complained.about(&discovery, &args.root);
        if args.once {
            return Ok(if complained.denied.is_empty() { Done::Well } else { Done::Problems });
        }
        discovery.wait(LONGEST_WAIT)?;
    }
}

/// Starts to watch a directory, or says what to name instead.
pub(crate) fn discover(root: &Path) -> Result<RouterDiscovery, Failure> {
    RouterDiscovery::new(root).map_err(|error| match &error {
        Error::Io { source, .. } => Failure::new(format!("{error}{}", root_remedy(source))),
        _ => error.into(),
    })
}

/// What has been reported already: everything is reported once.
#[derive(Default)]
pub(crate) struct Complaints {
    unwatched: usize,
    /// Directories that can't be read.
    pub(crate) denied: BTreeSet<PathBuf>,
}

impl Complaints {
    /// Reports what can't be watched.
    pub(crate) fn about(&mut self, discovery: &RouterDiscovery, root: &Path) {
        let unwatched = discovery.unwatched();
        if unwatched > self.unwatched {
            note(&format!(
                "{}: checked only once a second: {}; raise /proc/sys/fs/inotify/max_user_watches",
                root.display(),
                counted(unwatched as u64, "directory"),
            ));
        }
        self.unwatched = unwatched;
        for (path, reason) in discovery.denied() {
            if self.denied.insert(path.to_path_buf()) {
                Failure::io(path, "list")(reason).tell();
            }
        }
    }
}

fn put(args: &WatchArgs, color: bool, event: &DiscoveryEvent, out: &mut Output) -> Result<(), Failure> {
    use std::io::Write as _;

    let timestamp_ns = clock::now_ns();
    let mut time = Vec::new();
    view::format_time(timestamp_ns, &mut time);
    let (time, what) = (String::from_utf8_lossy(&time), event.change.as_str());
    let text = if args.json {
        let line = Line { time: &time, timestamp_ns, event: what, path: event.path.display().to_string() };
        to_json(&line)
    } else {
        let (start, end) = if color { (shade(event), "\x1b[0m") } else { ("", "") };
        let name = crate::failure::one_line(&name_below(&args.root, &event.path));
        format!("{time}  {start}{what:<13}{end}  {name}")
    };
    writeln!(out.buffer, "{text}").map_err(Failure::stdout)
}

/// Green for what can now be used, yellow for what no longer can, red for possible trouble.
fn shade(event: &DiscoveryEvent) -> &'static str {
    use chronfs::bus::Change;
    match event.change {
        Change::Added | Change::Ready | Change::LeaseLive => "\x1b[32m",
        Change::Removed | Change::Unready | Change::LeaseRemoved => "\x1b[33m",
        _ => "\x1b[31m",
    }
}
