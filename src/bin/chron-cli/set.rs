//! `chron-cli set`: changes a queue's settings, or prints them.

use chronfs::Queue;
use chronfs::queue::Settings;
use chronfs::settings;

use crate::bus_args::SetArgs;
use crate::failure::{Done, Outcome, note};
use crate::output::print;

pub(crate) fn run(args: &SetArgs) -> Outcome {
    let queue = Queue::open(&args.queue)?;
    if args.settings.given().next().is_none() {
        let lines = settings::NAMES.iter().zip(settings::list(&queue.settings()));
        print(&lines.map(|(name, value)| format!("{name:<16} {value}\n")).collect::<String>())?;
        return Ok(Done::Well);
    }
    let (before, after) = queue.update(|settings| args.settings.apply(settings))?;
    let [old, new] = [&before, &after].map(settings::list);
    let values = settings::NAMES.iter().zip(old.iter().zip(&new)).filter(|(_, (old, new))| old != new);
    let lines: String = values.map(|(name, (old, new))| format!("{name:<16} {old} -> {new}\n")).collect();
    print(&lines)?;
    let path = args.queue.display();
    if before == after {
        note(&format!("{path}: nothing to change; it has these settings"));
    } else if let Some(holder) = queue.writer_info().holder {
        note(&format!("{path}: its writer, {holder}, takes them over at its next segment"));
    }
    advise(&args.queue.display().to_string(), &after);
    Ok(Done::Well)
}

/// Says on stderr what an operator may not have meant.
pub(crate) fn advise(queue: &str, settings: &Settings) {
    if settings::fills_for_good(settings) {
        let less = if settings.has_retention() { "less " } else { "" };
        note(&format!(
            "{queue}: once it is full, appends are refused for ever: let retention make room with {less}--retain-bytes: \
             chron-cli set {queue} --retain-bytes SIZE"
        ));
    } else if !settings.has_retention() && settings.max_bytes.is_none() {
        note(&format!(
            "{queue}: everything is kept, until the disk is full; to limit that: chron-cli set {queue} --retain-bytes \
             SIZE (or --retain-age SPAN)"
        ));
    }
}
