//! `chron-cli replay`: appends what a queue has recorded to another queue, with the original spacing.

use std::time::{Duration, Instant};

use chronfs::queue::{Entry, Gap, WriterOptions};
use chronfs::report::counted;
use chronfs::{Error, Queue};

use crate::ReplayArgs;
use crate::append::{open_or_create, writer};
use crate::failure::{Done, Failure, Outcome, note};
use crate::pacer::Pacer;

pub(crate) fn run(args: &ReplayArgs) -> Outcome {
    let from = Queue::open(&args.from)?;
    let bounds = from.bounds()?;
    let mut scanner = from.scan()?;
    if let Some(since) = args.since {
        scanner.seek_time(since)?;
    }
    let to = open_or_create(&args.to, args.quiet)?;
    let same =
        |a: &Queue, b: &Queue| Some((std::fs::canonicalize(a.path()).ok()?, std::fs::canonicalize(b.path()).ok()?));
    if same(&from, &to).is_some_and(|(from, to)| from == to) {
        return Err(Failure::Usage("replay: both are the same queue; name another one to append to".to_owned()));
    }
    // Recorded times are in the past, but a clock may have been ahead.
    let options = WriterOptions { max_ahead: Duration::MAX, ..WriterOptions::default() };
    let mut writer = writer(&to, &options)?;
    let mut pacer = Pacer::new(args.speed, args.quiet)?;
    let started = Instant::now();
    let (mut messages, mut gaps) = (0_u64, 0_u64);
    // A bounded read: it ends at the head as it was at the start.
    let result = (|| -> Result<(), Failure> {
        while scanner.seq() < bounds.end_seq {
            let Some(entry) = scanner.next()? else { break };
            let message = match entry {
                Entry::Message(message) => message,
                Entry::Gap(Gap { from: first, to: last, reason, position }) => {
                    gaps += 1;
                    let (path, reason) = (from.path().display(), reason.as_str());
                    note(&format!("{path}: messages {first} to {last} are missing: {reason} ({position})"));
                    continue;
                }
            };
            if args.until.is_some_and(|until| message.timestamp_ns > until) {
                break;
            }
            let due = pacer.wait(message.timestamp_ns)?;
            if args.keep_times {
                writer.append_at(message.timestamp_ns, message.msg_type, message.payload)
            } else {
                writer.append(message.msg_type, message.payload)
            }
            .map_err(|e| of_newer(&to, e))?;
            pacer.done(due);
            messages += 1;
        }
        Ok(())
    })();
    writer.check()?;
    if !args.quiet && (messages > 0 || result.is_ok()) {
        let seconds = started.elapsed().as_secs_f64();
        let (path, messages) = (to.path().display(), counted(messages, "message"));
        note(&format!("{path}: replayed {messages} in {seconds:.3} s{}", pacer.report()));
    }
    result?;
    Ok(if gaps == 0 { Done::Well } else { Done::Problems })
}

/// A queue with newer messages does not take older ones.
fn of_newer(queue: &Queue, e: Error) -> Failure {
    match e {
        Error::TimestampInPast { .. } => {
            Failure::new(format!("{}: {e}; replay it to a new queue, or without --keep-times", queue.path().display()))
        }
        e => e.into(),
    }
}
