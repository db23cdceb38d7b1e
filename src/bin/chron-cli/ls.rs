//! `chron-cli ls`: the queues below a directory. Symbolic links are not followed; a queue's own directory is
//! not searched. A queue that can't be read is reported on stderr, and the others are listed all the same.

use std::fs;
use std::path::{Path, PathBuf};

use chronfs::queue::Inspection;
use chronfs::report::{self, Lease};
use chronfs::{Queue, view};

use crate::LsArgs;
use crate::failure::{Done, Failure, Outcome, note, refuse_mount, root_remedy};
use crate::inspect::endpoint;
use crate::output::print;

pub(crate) fn run(args: &LsArgs) -> Outcome {
    refuse_mount(&args.root)?;
    let mut done = Done::Well;
    let mut json = String::new();
    let mut rows = vec![["queue", "messages", "size", "newest", "ready", "lease"].map(str::to_owned)];
    for path in queues_below(&args.root, &mut done)? {
        let inspection = match Queue::open(&path).and_then(|queue| queue.inspect()) {
            Ok(inspection) => inspection,
            Err(e) => {
                note(&e.to_string());
                done = Done::Problems;
                continue;
            }
        };
        let (ready, lease) = endpoint(&path);
        if args.json {
            json.push_str(&report::summary_json(&inspection, ready, lease.as_ref()));
            json.push('\n');
        } else {
            rows.push(row(&args.root, &path, &inspection, ready, lease.as_ref()));
        }
    }
    if args.json {
        print(&json)?;
    } else if rows.len() > 1 {
        print(&report::table(&rows))?;
    } else if done == Done::Well {
        note(&format!("{}: no queues here", args.root.display()));
    }
    Ok(done)
}

fn row(root: &Path, path: &Path, inspection: &Inspection, ready: bool, lease: Option<&Lease>) -> [String; 6] {
    let relative = path.strip_prefix(root).unwrap_or(path);
    let name = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let newest = match inspection.bounds.last_timestamp_ns {
        0 => "-".to_owned(),
        timestamp_ns => {
            let mut text = Vec::new();
            view::format_time(timestamp_ns, &mut text);
            String::from_utf8_lossy(&text).into_owned()
        }
    };
    [
        name.display().to_string(),
        inspection.messages.to_string(),
        report::human_bytes(inspection.bytes),
        newest,
        if ready { "READY" } else { "-" }.to_owned(),
        lease.map_or_else(|| "-".to_owned(), |lease| lease.state.clone()),
    ]
}

/// The directories at and below `root` that hold a queue, sorted.
fn queues_below(root: &Path, done: &mut Done) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        match Queue::exists(&dir) {
            Ok(true) => {
                found.push(dir);
                continue;
            }
            // Listing the root reports what is wrong with it.
            Err(e) if dir != root => {
                Failure::from(e).tell();
                *done = Done::Problems;
                continue;
            }
            Ok(false) | Err(_) => {}
        }
        let entries = fs::read_dir(&dir).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = match entries {
            Ok(entries) => entries,
            Err(e) if dir == root => {
                return Err(Failure::new(format!("{}: cannot list: {e}{}", root.display(), root_remedy(&e))));
            }
            Err(e) => {
                Failure::io(&dir, "list")(e).tell();
                *done = Done::Problems;
                continue;
            }
        };
        for entry in entries {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                waiting.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}
