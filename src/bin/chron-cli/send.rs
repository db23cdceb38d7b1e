//! `chron-cli send`: messages from the command line, one for each argument.

use std::os::unix::ffi::OsStrExt as _;

use crate::append::{open_or_create, writer};
use crate::bus_args::SendArgs;
use crate::failure::{Done, Outcome};
use crate::output::print;

pub(crate) fn run(args: &SendArgs) -> Outcome {
    let queue = open_or_create(&args.queue, false)?;
    let mut writer = writer(&queue, &Default::default())?;
    let mut numbers = String::new();
    for text in &args.texts {
        let seq = writer.append(args.msg_type, text.as_bytes())?;
        numbers.push_str(&format!("{seq}\n"));
    }
    if args.sync { writer.flush_sync() } else { writer.check() }?;
    drop(writer);
    if args.verbose {
        print(&numbers)?;
    }
    Ok(Done::Well)
}
