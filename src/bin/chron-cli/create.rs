//! `chron-cli create`: a queue with custom settings.

use std::path::Path;

use chronfs::Queue;
use chronfs::bus::check_queue_name;
use chronfs::queue::Settings;

use crate::CreateArgs;
use crate::failure::{Done, Failure, Outcome};
use crate::set::advise;

pub(crate) fn run(args: &CreateArgs) -> Outcome {
    let mut settings = Settings::default();
    args.settings.apply(&mut settings);
    settings.validate()?;
    check_place(&args.queue)?;
    Queue::create(&args.queue, &settings)?;
    advise(&args.queue.display().to_string(), &settings);
    Ok(Done::Well)
}

/// Refuses a name that the mount does not allow, and a queue within a queue, which the mount does not show.
pub(crate) fn check_place(path: &Path) -> Result<(), Failure> {
    let refuse = |what: &dyn std::fmt::Display| Failure::new(format!("{}: {what}", path.display()));
    if let Some(name) = path.file_name() {
        check_queue_name(&name.to_string_lossy()).map_err(|e| refuse(&e))?;
    }
    match path.parent() {
        Some(parent) if Queue::exists(Path::new(".").join(parent))? => {
            Err(refuse(&"a queue can't lie in another queue's directory"))
        }
        _ => Ok(()),
    }
}
