//! `chron-cli rm`: removes queues, and nothing else that lies in their directories.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;

use chronfs::bus::{self, Removal};
use chronfs::report::{counted, human_bytes};
use chronfs::{Error, Queue};

use crate::bus_args::RmArgs;
use crate::failure::{Done, Failure, Outcome, note, one_line};
use crate::output::print;

pub(crate) fn run(args: &RmArgs) -> Outcome {
    for path in &args.queues {
        let plan = bus::plan_removal(path).map_err(|e| of_missing(path, e))?;
        if args.dry_run {
            let contents = contents(path).unwrap_or_else(|| "it is empty".to_owned());
            let size = human_bytes(plan.bytes);
            let files = counted(plan.files, "file");
            print(&one_line(&format!("would remove {}: {contents}, {files}, {size}", path.display())))?;
            print("\n")?;
            name_what_stays(path, &plan);
            continue;
        }
        if let Some(contents) = contents(path).filter(|_| !args.force) {
            confirm(path, &contents)?;
        }
        name_what_stays(path, &bus::remove_queue(path).map_err(|e| of_half(path, e))?);
    }
    Ok(Done::Well)
}

/// A removal that has begun has hidden the queue.
fn of_half(path: &Path, e: Error) -> Failure {
    let has_begun = path.symlink_metadata().is_err() && bus::plan_removal(path).is_ok();
    let failure = Failure::from(e);
    if !has_begun {
        return failure;
    }
    let path = path.display();
    Failure::new(format!(
        "{}; the queue is hidden, and in part removed: chron-cli rm {path} removes the rest",
        failure.text()
    ))
}

/// There is nothing to remove where nothing is; the remedy for other commands, creating a queue, is none here.
fn of_missing(path: &Path, e: Error) -> Failure {
    match e {
        Error::NotAQueue { .. } if path.symlink_metadata().is_err() => {
            let text =
                "nothing to remove: there is no such directory; 'chron-cli ls DIRECTORY' lists the queues in one";
            Failure::new(format!("{}: {text}", path.display()))
        }
        e => e.into(),
    }
}

/// What would be missed; None for an empty queue without readers, and for what a killed `rm` has left.
fn contents(path: &Path) -> Option<String> {
    let inspection = match Queue::open(path).and_then(|queue| queue.inspect()) {
        Ok(inspection) => inspection,
        Err(Error::NotAQueue { .. }) => return None,
        Err(_) => return Some("it can't be read".to_owned()),
    };
    let (messages, readers) = (inspection.messages, inspection.readers.len() as u64);
    (messages + readers > 0).then(|| format!("{}, {}", counted(messages, "message"), counted(readers, "reader")))
}

/// Asks on a terminal; fails elsewhere.
fn confirm(path: &Path, contents: &str) -> Result<(), Failure> {
    let path = path.display();
    let no = |why: &str| Failure::new(format!("{path}: not removed: {contents}{why}"));
    if !io::stdin().is_terminal() {
        return Err(no("; --force removes it, --dry-run shows what goes"));
    }
    eprint!("{}", one_line(&format!("chron-cli: remove {path} ({contents})? [y/N] ")));
    let _ = io::stderr().flush();
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(Failure::io(Path::new("standard input"), "read"))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(no("")) }
}

fn name_what_stays(path: &Path, removal: &Removal) {
    if !removal.stays.is_empty() {
        let names: Vec<_> = removal.stays.iter().map(|path| path.display().to_string()).collect();
        note(&format!("{}: not the queue's own, so left there: {}", path.display(), names.join(", ")));
    }
}
