//! `chron-cli umount`: unmounts, also a dead mount that a killed daemon left.

use chronfs::fs::mount::unmount_at;

use crate::UmountArgs;
use crate::failure::{Done, Outcome};

pub(crate) fn run(args: &UmountArgs) -> Outcome {
    unmount_at(&args.dir)?;
    Ok(Done::Well)
}
