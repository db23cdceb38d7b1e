//! `chron-cli tail`: prints messages, and follows.
//!
//! One rule for what is printed: the options that select (--from, --since, --until, --type, --grep) pick from the
//! retained messages; `-n N` keeps the last N of these, with N = 10 if no option says where to start. A bounded read
//! ends at the head as it was at the start, so that it ends on a busy queue too.
//!
//! Without --reader everything is read by `pread` through a [`Scanner`]: nothing is registered or changed. A gap is
//! printed in its place, reported on stderr, and makes the exit code 1: nothing is missing silently.

use std::collections::VecDeque;
use std::time::Duration;

use chronfs::Queue;
use chronfs::queue::{Bounds, Entry, Gap, GapReason, Message, Position, Scanner};
use chronfs::view::{Format, render};

use crate::TailArgs;
use crate::failure::{Done, Failure, Outcome, note};
use crate::output::{Output, exit_when_pipe_closes};

/// How many messages are printed if no option says where to start.
const DEFAULT_COUNT: u64 = 10;
/// How far the search for the last matching messages goes back at first.
const FIRST_SEARCH: u64 = 1024;
/// A sleep ends with the next message, and after a second at the latest.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// The value of -n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lines {
    /// The last N.
    Last(u64),
    /// All from the Nth retained one, counting from 1.
    FromNth(u64),
}

pub(crate) fn parse_lines(text: &str) -> Result<Lines, String> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    match digits.parse() {
        Ok(number) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(if text.starts_with('+') { Lines::FromNth(number) } else { Lines::Last(number) })
        }
        _ => Err("a number, or + and a number".to_owned()),
    }
}

pub(crate) fn run(args: &TailArgs, color: bool) -> Outcome {
    let queue = Queue::open(&args.queue)?;
    if args.follow {
        exit_when_pipe_closes()?;
    }
    let format = args.format.into();
    let out = Output::messages(format)?;
    let mut printer = Printer { args, format, color, from: 0, out, gaps: 0 };
    match &args.reader {
        Some(name) => print_registered(&queue, name, &mut printer)?,
        None => print_unregistered(&queue, &mut printer)?,
    }
    Ok(if printer.gaps == 0 { Done::Well } else { Done::Problems })
}

/// What is to be printed, and how.
struct Printer<'a> {
    args: &'a TailArgs,
    format: Format,
    color: bool,
    /// Messages before this one are not printed; lies past the head when following from a future time.
    from: u64,
    out: Output,
    gaps: u64,
}

impl Printer<'_> {
    /// Whether the options select this message, wherever printing starts.
    fn selects(&self, msg_type: u16, payload: &[u8]) -> bool {
        (self.args.types.is_empty() || self.args.types.contains(&msg_type))
            && self.args.grep.as_ref().is_none_or(|re| re.is_match(payload))
    }

    /// Renders the entry, if it is selected. False: everything after it is too late.
    fn put(&mut self, entry: &Entry<'_>) -> Result<bool, Failure> {
        match entry {
            Entry::Message(message) => {
                if self.args.until.is_some_and(|until| message.timestamp_ns > until) {
                    return Ok(false);
                }
                let too_early = message.seq < self.from || self.args.since.is_some_and(|t| message.timestamp_ns < t);
                if too_early || !self.selects(message.msg_type, message.payload) {
                    return Ok(true);
                }
            }
            Entry::Gap(gap) => {
                if gap.to < self.from {
                    return Ok(true);
                }
                self.note_gap(gap);
            }
        }
        let start = self.out.buffer.len();
        render(self.format, entry, None, &mut self.out.buffer);
        if self.color && self.format == Format::Hex {
            color_header(&mut self.out.buffer, start, matches!(entry, Entry::Gap(_)));
        }
        if self.out.is_full() {
            self.out.flush()?;
        }
        Ok(true)
    }

    fn note_gap(&mut self, gap: &Gap) {
        self.gaps += 1;
        let path = self.args.queue.display();
        let reason = gap.reason.as_str();
        note(&format!("{path}: messages {} to {} are missing: {reason} ({})", gap.from, gap.to, gap.position));
    }
}

/// The header line of a hex unit: cyan; a gap's: red.
fn color_header(buffer: &mut Vec<u8>, start: usize, is_gap: bool) {
    let end = buffer[start..].iter().position(|&b| b == b'\n').map_or(buffer.len(), |length| start + length);
    buffer.splice(end..end, *b"\x1b[0m");
    let color = if is_gap { *b"\x1b[31m" } else { *b"\x1b[36m" };
    buffer.splice(start..start, color);
}

/// Where printing starts, and where a bounded read ends.
struct Range {
    start: u64,
    end: u64,
}

fn print_unregistered(queue: &Queue, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let bounds = queue.bounds()?;
    let mut scanner = queue.scan()?;
    let range = range(&bounds, &mut scanner, printer)?;
    if let Some(from) = printer.args.from
        && from < bounds.first_seq
        && bounds.first_seq > 1
    {
        let path = printer.args.queue.display();
        note(&format!("{path}: messages before {} are no longer retained", bounds.first_seq));
    }
    scanner.seek_seq(range.start)?;
    printer.from = range.start;
    while scanner.seq() < range.end {
        match scanner.next()? {
            Some(entry) if printer.put(&entry)? => {}
            _ => break,
        }
    }
    if scanner.seq() == bounds.next_seq
        && bounds.end_seq > bounds.next_seq
        && let Some(Entry::Gap(gap)) = scanner.next()?
    {
        // The newest messages are missing: they don't count among the last N.
        printer.note_gap(&gap);
    }
    printer.out.flush()?;
    if printer.args.follow { follow(queue, &mut scanner, printer) } else { Ok(()) }
}

fn range(bounds: &Bounds, scanner: &mut Scanner, printer: &Printer<'_>) -> Result<Range, Failure> {
    let args = printer.args;
    let mut earliest = bounds.first_seq;
    if let Some(from) = args.from {
        earliest = earliest.max(from);
    }
    if let Some(since) = args.since {
        scanner.seek_time(since)?;
        earliest = earliest.max(scanner.seq());
    }
    let mut end = bounds.next_seq;
    if let Some(until) = args.until {
        scanner.seek_time(until.saturating_add(1))?;
        end = end.min(scanner.seq());
    }
    let start = match args.lines {
        Some(Lines::FromNth(n)) => earliest.max(bounds.first_seq.saturating_add(n.saturating_sub(1))),
        Some(Lines::Last(count)) => start_of_last(count, earliest, end, scanner, printer)?,
        None if args.from.is_none() && args.since.is_none() => {
            start_of_last(DEFAULT_COUNT, earliest, end, scanner, printer)?
        }
        None => earliest,
    };
    // Messages missing at the end are printed when everything from some message on is.
    let is_last = !matches!(args.lines, Some(Lines::FromNth(_))) && args.from.is_none() && args.since.is_none();
    let end = if end == bounds.next_seq && !is_last { bounds.end_seq } else { end };
    Ok(Range { start, end })
}

/// The sequence number of the first of the last `count` selected messages in `earliest..end`. With a filter this
/// searches backwards in growing steps, so that the newest matches of a long queue are found quickly.
fn start_of_last(
    count: u64,
    earliest: u64,
    end: u64,
    scanner: &mut Scanner,
    printer: &Printer<'_>,
) -> Result<u64, Failure> {
    let filtered = !printer.args.types.is_empty() || printer.args.grep.is_some();
    if !filtered || count == 0 {
        return Ok(end.saturating_sub(count).max(earliest));
    }
    let mut distance = count.max(FIRST_SEARCH);
    loop {
        let start = end.saturating_sub(distance).max(earliest);
        let mut matches = VecDeque::new();
        scanner.seek_seq(start)?;
        while scanner.seq() < end {
            let Some(entry) = scanner.next()? else { break };
            if let Entry::Message(message) = entry
                && printer.selects(message.msg_type, message.payload)
            {
                matches.push_back(message.seq);
                if matches.len() as u64 > count {
                    matches.pop_front();
                }
            }
        }
        match matches.front() {
            Some(&first) if matches.len() as u64 == count => return Ok(first),
            _ if start <= earliest => return Ok(earliest),
            _ => distance = distance.saturating_mul(4),
        }
    }
}

fn follow(queue: &Queue, scanner: &mut Scanner, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let waiter = queue.waiter()?;
    loop {
        // First announce the sleep, then check: a message that arrives in between ends the wait at once.
        let ticket = waiter.prepare();
        let mut came = false;
        while let Some(entry) = scanner.next()? {
            came = true;
            if !printer.put(&entry)? {
                return printer.out.flush();
            }
        }
        printer.out.flush()?;
        if !came && !waiter.wait(ticket, LONGEST_SLEEP) {
            queue.check_present()?;
        }
    }
}

/// Through a registered reader. Its position moves only after what was read has been handed to the kernel.
fn print_registered(queue: &Queue, name: &str, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let mut reader = queue.reader(name)?;
    let mut scanner = queue.scan()?;
    let end = if printer.args.follow { u64::MAX } else { queue.bounds()?.end_seq };
    loop {
        while reader.seq() < end {
            let Some(entry) = reader.next()? else { break };
            match entry {
                Entry::Message(Message { position, seq, .. }) => put_copy(&mut scanner, position, seq, printer)?,
                Entry::Gap(_) => drop(printer.put(&entry)?),
            }
            if printer.args.commit && printer.out.buffer.is_empty() {
                reader.commit();
            }
        }
        printer.out.flush()?;
        if printer.args.commit {
            reader.commit();
        }
        if !printer.args.follow {
            return Ok(());
        }
        reader.wait(None)?;
    }
}

/// Prints a message that a reader has lent. A process that may write to the queue may change it while it is lent: what
/// is printed is a copy that was itself verified.
fn put_copy(scanner: &mut Scanner, position: Position, seq: u64, printer: &mut Printer<'_>) -> Result<(), Failure> {
    if scanner.seq() != seq {
        scanner.seek(position, seq)?;
    }
    match scanner.next()? {
        Some(entry) => printer.put(&entry).map(drop),
        // It is gone by now.
        None => printer.put(&Entry::Gap(Gap { from: seq, to: seq, reason: GapReason::Lost, position })).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_numbers_with_or_without_a_plus() {
        assert_eq!(parse_lines("5"), Ok(Lines::Last(5)));
        assert_eq!(parse_lines("0"), Ok(Lines::Last(0)));
        assert_eq!(parse_lines("+1"), Ok(Lines::FromNth(1)));
        for wrong in ["", "+", "-5", "++1", "5x", "18446744073709551616"] {
            assert!(parse_lines(wrong).is_err(), "{wrong}");
        }
    }
}
