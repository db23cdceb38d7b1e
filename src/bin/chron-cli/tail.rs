//! `chron-cli tail`: prints messages, and follows.
//!
//! One rule for what is printed: the options that select (--from, --since, --until, --type, --grep) pick from the
//! retained messages; `-n N` keeps the last N of these, with N = 10 if no option says where to start. A bounded read
//! ends at the head as it was at the start, so that it ends on a busy queue too.
//!
//! Without --reader everything is read by `pread` through a [`Scanner`]: nothing is registered or changed. A gap is
//! printed in its place, reported on stderr, and makes the exit code 1: nothing is missing silently.
//!
//! Several queues are printed as tail(1) prints several files: one after the other, then new messages as they come,
//! under a header wherever the queue changes. `chron-cli merge` orders by time.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use chronfs::queue::{Bounds, Entry, Gap, GapReason, Message, Position, Scanner, Waiter, wait_any};
use chronfs::{Error, Queue, bus};

use crate::decoding::Decoders;
use crate::failure::{Done, Failure, Outcome, note, one_line};
use crate::output::{Output, exit_when_pipe_closes};
use crate::pacer::Pacer;
use crate::{FormatName, TailArgs};

/// How many messages are printed if no option says where to start.
const DEFAULT_COUNT: u64 = 10;
/// How far the search for the last matching messages goes back at first.
const FIRST_SEARCH: u64 = 1024;
/// How many messages of a queue are printed before it is the next one's turn.
const TURN: usize = 1024;
/// A sleep ends with the next message, and after a second at the latest.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// Between two looks for the queue that replaces a removed one.
const RETRY: Duration = Duration::from_millis(250);

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
        _ => Err(format!("{text:?} is not a number of messages; use 10, or +10 for all from the tenth on")),
    }
}

pub(crate) fn run(args: &TailArgs, color: bool) -> Outcome {
    if args.follows() || args.waits() {
        exit_when_pipe_closes()?;
    }
    let queues: Vec<Queue> = args.queues.iter().map(|path| open(path, args.waits())).collect::<Result<_, _>>()?;
    let out = Output::messages(args.format)?;
    let decoders = Decoders::open(args, &queues)?;
    // Where payloads do not end a line, there is none for the pacer.
    let is_quiet = matches!(args.format, FormatName::Bin);
    let pacer = args.replay.map(|speed| Pacer::new(speed, is_quiet)).transpose()?;
    let mut printer = Printer { args, color, out, decoders, pacer, shown: None, problems: 0 };
    match (&args.reader, &queues[..]) {
        (Some(name), [queue]) => print_registered(queue, name, &mut printer)?,
        (Some(_), _) => return Err(Failure::Usage("tail: --reader takes one queue; name only one".to_owned())),
        (None, _) => print_unregistered(queues, &mut printer)?,
    }
    Ok(if printer.problems == 0 { Done::Well } else { Done::Problems })
}

fn open(path: &Path, wait: bool) -> Result<Queue, Failure> {
    // In a mount there never is one, only its files.
    let is_awaited = wait && chronfs::fs::mount::mounted_above(path).is_none();
    Ok(if is_awaited { bus::wait_for_queue(path)? } else { Queue::open(path)? })
}

/// A queue as it is printed, without a reader.
struct Source {
    queue: Queue,
    scanner: Scanner,
    /// While it is followed.
    waiter: Option<Waiter>,
    /// Messages before this one are not printed; may be past the head when following from a future time.
    from: u64,
    /// Everything from here on is too late.
    is_over: bool,
    /// The queue was removed or can't be read, and the next one at its path is waited for.
    is_gone: bool,
    /// Why it could not be opened again, and how often in a row.
    trouble: (String, u32),
}

/// What is to be printed, and how.
struct Printer<'a> {
    args: &'a TailArgs,
    color: bool,
    out: Output,
    decoders: Decoders,
    pacer: Option<Pacer>,
    /// The queue whose messages were printed last.
    shown: Option<String>,
    /// Gaps, and queues that were removed.
    problems: u64,
}

/// Whether the options select this message, wherever printing starts.
fn selects(args: &TailArgs, msg_type: u16, payload: &[u8]) -> bool {
    (args.types.is_empty() || args.types.contains(&msg_type))
        && args.grep.as_ref().is_none_or(|re| re.is_match(payload))
}

impl Printer<'_> {
    /// Renders the entry of a queue, if it is selected. False: everything after it is too late.
    fn put(&mut self, queue: &Queue, from: u64, entry: &Entry<'_>) -> Result<bool, Failure> {
        match entry {
            Entry::Message(message) => {
                if self.args.until.is_some_and(|until| message.timestamp_ns > until) {
                    return Ok(false);
                }
                let too_early = message.seq < from || self.args.since.is_some_and(|t| message.timestamp_ns < t);
                if too_early || !selects(self.args, message.msg_type, message.payload) {
                    return Ok(true);
                }
                if let Some(pacer) = &mut self.pacer {
                    pacer.wait(message.timestamp_ns)?;
                }
            }
            Entry::Gap(gap) => {
                if gap.to < from {
                    return Ok(true);
                }
                self.note_gap(queue, gap);
            }
        }
        let format = self.args.format;
        let name = (self.args.queues.len() > 1).then(|| queue.path().display().to_string());
        if let Some(name) = &name
            && !matches!(format, FormatName::Jsonl | FormatName::Bin)
            && self.shown.as_ref() != Some(name)
        {
            let blank = if self.shown.is_some() { "\n" } else { "" };
            self.out.buffer.extend_from_slice(format!("{blank}==> {} <==\n", one_line(name)).as_bytes());
        }
        let start = self.out.put(|out| self.decoders.render(format, queue, entry, name.as_deref(), out));
        self.shown = name;
        if self.color && matches!(format, FormatName::Hex | FormatName::Auto) {
            color_header(&mut self.out.buffer, start, matches!(entry, Entry::Gap(_)));
        }
        if self.out.is_full() || self.pacer.as_ref().is_some_and(Pacer::is_waiting) {
            self.out.flush()?;
        }
        Ok(true)
    }

    fn note_gap(&mut self, queue: &Queue, gap: &Gap) {
        self.problems += 1;
        let path = queue.path().display();
        let reason = gap.reason.as_str();
        note(&format!("{path}: messages {} to {} are missing: {reason} ({})", gap.from, gap.to, gap.position));
    }
}

/// The header line of a message: cyan; a gap's: red.
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

fn print_unregistered(queues: Vec<Queue>, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let mut sources = Vec::new();
    for mut queue in queues {
        let source = loop {
            match start(&queue, printer.args) {
                Ok((source, bounds, end)) => break print_retained(source, &bounds, end, printer)?,
                // Removed since it was opened, or being made.
                Err(error) if printer.args.retry => {
                    Failure::from(error).tell();
                    std::thread::sleep(RETRY);
                    queue = open(queue.path(), true)?;
                }
                Err(error) => return Err(error.into()),
            }
        };
        sources.push(source);
        printer.out.flush()?;
    }
    if printer.args.follows() { follow(&mut sources, printer) } else { Ok(()) }
}

/// A queue at the first message that is printed, what it holds, and the number of the first message that is not printed
/// before following.
fn start(queue: &Queue, args: &TailArgs) -> Result<(Source, Bounds, u64), Error> {
    let bounds = queue.bounds()?;
    let mut scanner = queue.scan()?;
    let range = range(&bounds, &mut scanner, args)?;
    scanner.seek_seq(range.start)?;
    Ok((Source::new(queue.clone(), scanner, range.start), bounds, range.end))
}

fn print_retained(mut source: Source, bounds: &Bounds, end: u64, printer: &mut Printer<'_>) -> Result<Source, Failure> {
    if let Some(from) = printer.args.from
        && from < bounds.first_seq
        && bounds.first_seq > 1
    {
        let path = source.queue.path().display();
        note(&format!("{path}: messages before {} are no longer retained", bounds.first_seq));
    }
    while source.scanner.seq() < end {
        match source.scanner.next() {
            Ok(Some(entry)) if printer.put(&source.queue, source.from, &entry)? => {}
            Ok(_) => break,
            Err(error) if printer.args.retry => {
                source.lose(error, printer);
                return Ok(source);
            }
            Err(error) => return Err(error.into()),
        }
    }
    if source.scanner.seq() == bounds.next_seq && bounds.end_seq > bounds.next_seq {
        match source.scanner.next() {
            // The newest messages are missing: they don't count among the last N.
            Ok(Some(Entry::Gap(gap))) => printer.note_gap(&source.queue, &gap),
            Ok(_) => {}
            Err(error) if printer.args.retry => source.lose(error, printer),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(source)
}

fn range(bounds: &Bounds, scanner: &mut Scanner, args: &TailArgs) -> Result<Range, Error> {
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
        Some(Lines::Last(count)) => start_of_last(count, earliest, end, scanner, args)?,
        None if args.from.is_none() && args.since.is_none() => {
            start_of_last(DEFAULT_COUNT, earliest, end, scanner, args)?
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
fn start_of_last(count: u64, earliest: u64, end: u64, scanner: &mut Scanner, args: &TailArgs) -> Result<u64, Error> {
    let filtered = !args.types.is_empty() || args.grep.is_some();
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
                && selects(args, message.msg_type, message.payload)
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

fn follow(sources: &mut [Source], printer: &mut Printer<'_>) -> Result<(), Failure> {
    for source in sources.iter_mut().filter(|source| source.is_open()) {
        match source.queue.waiter() {
            Ok(waiter) => source.waiter = Some(waiter),
            Err(error) => source.lose(error, printer),
        }
    }
    while sources.iter().any(|source| !source.is_over) {
        // First announce the sleep, then check: a message that arrives in between ends the wait at once. The tickets are
        // apart from the sources, which are changed meanwhile.
        let tickets: Vec<_> = sources.iter().map(|source| source.open_waiter().map(Waiter::prepare)).collect();
        let mut came = false;
        for source in sources.iter_mut().filter(|source| source.is_open()) {
            came |= source.print_new(printer)?;
        }
        printer.out.flush()?;
        if came {
            continue;
        }
        let waits: Vec<_> =
            sources.iter().zip(tickets).filter_map(|(source, ticket)| source.open_waiter().zip(ticket)).collect();
        if waits.is_empty() {
            std::thread::sleep(RETRY);
        } else if wait_any(&waits, if sources.iter().any(|source| source.is_gone) { RETRY } else { LONGEST_SLEEP }) {
            continue;
        }
        for source in sources.iter_mut().filter(|source| !source.is_over) {
            if source.is_gone {
                source.reopen();
            } else if let Err(error) = source.queue.check_present() {
                source.lose(error, printer);
            }
        }
    }
    Ok(())
}

impl Source {
    fn new(queue: Queue, scanner: Scanner, from: u64) -> Self {
        Self { queue, scanner, waiter: None, from, is_over: false, is_gone: false, trouble: (String::new(), 0) }
    }

    fn is_open(&self) -> bool {
        !self.is_over && !self.is_gone
    }

    fn open_waiter(&self) -> Option<&Waiter> {
        self.waiter.as_ref().filter(|_| self.is_open())
    }

    /// The queue can no longer be followed, which is reported; the others can.
    fn lose(&mut self, error: Error, printer: &mut Printer<'_>) {
        // While a queue is being removed, reading it fails in other ways, too.
        Failure::from(self.queue.check_present().err().unwrap_or(error)).tell();
        (self.is_gone, self.is_over) = (printer.args.retry, !printer.args.retry);
        printer.problems += u64::from(!printer.args.retry);
    }

    /// Goes on with the next queue at the path of one that was removed, from its first message, if it is there.
    fn reopen(&mut self) {
        match self.opened_again() {
            Ok(source) => *self = source,
            Err(Error::NotAQueue { .. }) => self.trouble.1 = 0,
            // Once may be a queue that is being made or removed just now.
            Err(error) => {
                let text = error.to_string();
                let times = if self.trouble.0 == text { self.trouble.1.saturating_add(1) } else { 1 };
                self.trouble = (text, times);
                if times == 2 {
                    Failure::from(error).tell();
                }
            }
        }
    }

    fn opened_again(&self) -> Result<Self, Error> {
        let queue = Queue::open(self.queue.path())?;
        let waiter = queue.waiter()?;
        let mut scanner = queue.scan()?;
        // The same one can be read again.
        let from = if queue.id() == self.queue.id() { self.scanner.seq() } else { 1 };
        scanner.seek_seq(from)?;
        Ok(Self { waiter: Some(waiter), ..Self::new(queue, scanner, from) })
    }

    /// Prints what has come; whether there was anything.
    fn print_new(&mut self, printer: &mut Printer<'_>) -> Result<bool, Failure> {
        for turn in 0..TURN {
            if self.is_over {
                return Ok(turn > 0);
            }
            match self.scanner.next() {
                Ok(Some(entry)) => self.is_over = !printer.put(&self.queue, self.from, &entry)?,
                Ok(None) => return Ok(turn > 0),
                Err(error) => {
                    self.lose(error, printer);
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }
}

/// Through a registered reader. Its position moves only after what was read has been handed to the kernel.
fn print_registered(queue: &Queue, name: &str, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let mut reader = queue.reader(name)?;
    let mut scanner = queue.scan()?;
    let end = if printer.args.follows() { u64::MAX } else { queue.bounds()?.end_seq };
    loop {
        while reader.seq() < end {
            let Some(entry) = reader.next()? else { break };
            match entry {
                Entry::Message(Message { position, seq, .. }) => put_copy(queue, &mut scanner, position, seq, printer)?,
                Entry::Gap(_) => drop(printer.put(queue, 0, &entry)?),
            }
            if printer.args.commit && printer.out.buffer.is_empty() {
                reader.commit();
            }
        }
        printer.out.flush()?;
        if printer.args.commit {
            reader.commit();
        }
        if !printer.args.follows() {
            return Ok(());
        }
        reader.wait(None)?;
    }
}

/// Prints a message that a reader has lent. A process that may write to the queue may change it while it is lent: what
/// is printed is a copy that was itself verified.
fn put_copy(
    queue: &Queue,
    scanner: &mut Scanner,
    position: Position,
    seq: u64,
    printer: &mut Printer<'_>,
) -> Result<(), Failure> {
    if scanner.seq() != seq {
        scanner.seek(position, seq)?;
    }
    let entry = scanner.next()?;
    // It may be gone by now.
    let entry = entry.unwrap_or(Entry::Gap(Gap { from: seq, to: seq, reason: GapReason::Lost, position }));
    printer.put(queue, 0, &entry).map(drop)
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
