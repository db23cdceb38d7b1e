//! `chron-cli readers`: persisted positions. Only adding, moving and removing change a file.

use chronfs::Queue;
use chronfs::report;

use crate::failure::{Done, Failure, Outcome, note};
use crate::output::print;
use crate::{ReadersAction, ReadersArgs};

pub(crate) fn run(args: &ReadersArgs) -> Outcome {
    let queue = Queue::open(&args.queue)?;
    match &args.action {
        None | Some(ReadersAction::List) => list(&queue, args.json),
        Some(ReadersAction::Add { name }) => {
            if queue.add_reader(name)? {
                return Ok(Done::Well);
            }
            let path = queue.path().display();
            Err(Failure::new(format!("{path}: reader {name} is already registered; use it, or choose another name")))
        }
        Some(ReadersAction::Seek { name, position }) => {
            queue.seek_reader(name, position.find(&queue, name)?)?;
            Ok(Done::Well)
        }
        Some(ReadersAction::Rm { name }) => {
            queue.remove_reader(name)?;
            Ok(Done::Well)
        }
    }
}

fn list(queue: &Queue, json: bool) -> Outcome {
    let readers = queue.inspect()?.readers;
    if json {
        let lines: String = readers.iter().map(|reader| report::reader_json(reader) + "\n").collect();
        print(&lines)?;
    } else if readers.is_empty() {
        note(&format!("{}: no readers", queue.path().display()));
    } else {
        print(&report::readers_text(&readers))?;
    }
    Ok(Done::Well)
}
