//! `chron-cli ls`: the queues below a directory. Symbolic links are not followed; a queue's own directory is
//! not searched. A queue that can't be read is reported on stderr, and the others are listed all the same.

use std::path::{Path, PathBuf};

use chronfs::queue::Inspection;
use chronfs::report::{self, Lease};
use chronfs::{Error, Queue, bus, view};

use crate::LsArgs;
use crate::failure::{Done, Failure, Outcome, note, refuse_mount, root_remedy};
use crate::inspect::endpoint;
use crate::names::{name_below, shortened};
use crate::output::{print, terminal_width};

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
        print(&fitted(rows, terminal_width()))?;
    } else if done == Done::Well {
        note(&format!("{}: no queues here", args.root.display()));
    }
    Ok(done)
}

fn row(root: &Path, path: &Path, inspection: &Inspection, ready: bool, lease: Option<&Lease>) -> [String; 6] {
    let newest = match inspection.bounds.last_timestamp_ns {
        0 => "-".to_owned(),
        timestamp_ns => {
            let mut text = Vec::new();
            view::format_time(timestamp_ns, &mut text);
            String::from_utf8_lossy(&text).into_owned()
        }
    };
    [
        name_below(root, path),
        inspection.messages.to_string(),
        report::human_bytes(inspection.bytes),
        newest,
        if ready { "READY" } else { "-" }.to_owned(),
        lease.map_or_else(|| "-".to_owned(), |lease| lease.state.clone()),
    ]
}

/// The table in a width: without nanoseconds, then without the columns that say least, then with shorter names.
fn fitted(mut rows: Vec<[String; 6]>, width: usize) -> String {
    /// Lease, ready, newest, size, messages.
    const LEAST_FIRST: [usize; 5] = [5, 4, 3, 2, 1];
    /// Columns of a name that is longer, where others have to give way.
    const NAME: usize = 24;
    let fits = |text: &str| text.lines().all(|line| line.chars().count() <= width);
    let mut text = report::table(&rows);
    if !fits(&text) {
        // `2024-08-08T09:15:00.123456789Z`
        rows.iter_mut().filter(|row| row[3].ends_with('Z')).for_each(|row| row[3].replace_range(19..29, ""));
        text = report::table(&rows);
    }
    let mut rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    let mut least = LEAST_FIRST.into_iter();
    loop {
        let longest = rows.iter().map(|row| row[0].chars().count()).max().unwrap_or(0);
        let others = text.lines().map(|line| line.chars().count()).max().unwrap_or(0).saturating_sub(longest);
        let column = if others + longest.min(NAME) <= width { None } else { least.next() };
        let Some(column) = column else {
            let names: Vec<&str> = rows.iter().skip(1).map(|row| row[0].as_str()).collect();
            let names = shortened(&names, width.saturating_sub(others));
            rows.iter_mut().skip(1).zip(names).for_each(|(row, name)| row[0] = name);
            return report::table(&rows);
        };
        rows.iter_mut().for_each(|row| drop(row.remove(column)));
        text = report::table(&rows);
    }
}

/// The directories at and below `root` that hold a queue, sorted. What can't be searched is reported.
pub(crate) fn queues_below(root: &Path, done: &mut Done) -> Result<Vec<PathBuf>, Failure> {
    let found = bus::queues_below(root, &mut |error| {
        Failure::from(error).tell();
        *done = Done::Problems;
    });
    found.map_err(|error| match error {
        Error::Io { source, .. } => {
            Failure::new(format!("{}: cannot list: {source}{}", root.display(), root_remedy(&source)))
        }
        error => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_table_has_whole_cells() {
        let row = |name: &str, messages: &str| {
            [name, messages, "1.2 MiB", "2024-08-08T09:15:00.123456789Z", "READY", "expired"].map(str::to_owned)
        };
        let rows = vec![
            ["queue", "messages", "size", "newest", "ready", "lease"].map(str::to_owned),
            row("orders/queue/momentum/orders_out", "168609"),
            row("orders/queue/pairs/orders_out", "7"),
        ];
        let fit = |width| fitted(rows.clone(), width);
        assert_eq!(fit(usize::MAX), report::table(&rows));
        let at_97 = fit(97);
        assert!(
            at_97.contains("orders/queue/pairs/orders_out") && at_97.contains("  2024-08-08T09:15:00Z  "),
            "{at_97}"
        );
        let at_80 = fit(80);
        assert!(at_80.contains("orders/queue/pairs/orders_out") && at_80.contains("READY"), "{at_80}");
        let at_40 = fit(40);
        assert!(at_40.contains("momentum") && at_40.contains("168609"), "{at_40}");
        for width in 20..120 {
            let text = fit(width);
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
            let names: Vec<_> = text.lines().map(|line| line.split_whitespace().next()).collect();
            assert!(width < 30 || names[1] != names[2], "{width}:\n{text}");
        }
    }
}
