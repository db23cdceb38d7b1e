//! `chron-cli readers`: persisted positions. Only adding, moving and removing change a file.

use std::ffi::OsString;

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

/// The words of the command line with `readers list QUEUE` as `readers QUEUE list`. A queue may have an action's name,
/// but then an action follows it.
pub(crate) fn in_order(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = words.collect();
    let is_action = |word: &OsString| ["list", "add", "seek", "rm"].iter().any(|action| word == action);
    let is_option = |word: &OsString| word.as_encoded_bytes().starts_with(b"-");
    let mut arguments = (1..words.len()).filter(|&index| !is_option(&words[index]));
    if let (Some(command), Some(first), Some(second)) = (arguments.next(), arguments.next(), arguments.next())
        && words[command] == "readers"
        && is_action(&words[first])
        && !is_action(&words[second])
    {
        words.swap(first, second);
    }
    words
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_action_may_come_first() {
        for (typed, parsed) in [
            ("c readers list q", "c readers q list"),
            ("c readers --json list q", "c readers --json q list"),
            ("c readers add q billing", "c readers q add billing"),
            ("c readers seek q billing -10", "c readers q seek billing -10"),
            ("c readers q rm list", "c readers q rm list"),
            ("c readers list add x", "c readers list add x"),
            ("c readers list", "c readers list"),
            ("c tail list q", "c tail list q"),
        ] {
            let words = in_order(typed.split(' ').map(OsString::from));
            assert_eq!(words, parsed.split(' ').collect::<Vec<_>>(), "{typed}");
        }
    }
}
