//! `chron-cli append`: messages from files or standard input.
//!
//! Every message is visible to readers as soon as its line has been read, so a live pipe works. Input is read in
//! bounded pieces: a line without an end can't exhaust memory. Whatever ends the command early, even a signal: what was
//! appended before remains, is counted on stderr, and is synced if --sync asks for that.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chronfs::queue::{WriterOptions, layout};
use chronfs::view::{Input, InputFormat, longest_line, parse_line};
use chronfs::{Error, Queue, QueueWriter, report, settings};

use indicatif::ProgressBar;

use crate::AppendArgs;
use crate::create::check_place;
use crate::failure::{Done, Failure, Outcome, explained, note, of_too_large};
use crate::progress;
use crate::stop::{Stop, Stoppable};

/// From this size on an input takes long enough for a progress bar.
const LONG_INPUT: u64 = 16 << 20;
/// How long to wait for a writer that holds the queue, and how often to try.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_STEP: Duration = Duration::from_millis(5);
/// Bytes that are read at once, between two checks for a signal.
const INPUT_BUFFER: usize = 256 << 10;
/// Bytes between two steps of the bar.
const PROGRESS_STEP: u64 = 1 << 20;

/// What has been appended so far.
struct Appended {
    messages: u64,
    bytes: u64,
    first_seq: u64,
    /// How much of the input has been read; draws nothing where the input is small or of unknown size.
    progress: ProgressBar,
    /// Bytes read and not yet reported to the bar.
    unreported: u64,
}

pub(crate) fn run(args: &AppendArgs) -> Outcome {
    let stdin = [PathBuf::from("-")];
    let files = if args.files.is_empty() { &stdin[..] } else { &args.files[..] };
    // A misspelt name is found before anything is appended.
    for file in files.iter().filter(|file| !is_stdin(file)) {
        // Not a FIFO: whoever opens it first consumes what was written to it.
        if fs::metadata(file).map_or(true, |metadata| metadata.is_file() || metadata.is_dir()) {
            open(file)?;
        }
    }

    let stop = Stop::watch()?;
    let queue = open_or_create(&args.queue, args.quiet)?;
    let options = WriterOptions { max_ahead: Duration::from_nanos(args.max_ahead), ..WriterOptions::default() };
    let mut writer = writer(&queue, &options)?;
    let mut appended =
        Appended { messages: 0, bytes: 0, first_seq: writer.next_seq(), progress: progress_of(files), unreported: 0 };
    let started = Instant::now();
    let result = files.iter().try_for_each(|file| append_file(args, file, &stop, &mut writer, &mut appended));
    let kept = if args.sync { writer.flush_sync() } else { writer.check() };
    appended.progress.finish_and_clear();
    drop(writer);
    if !args.quiet {
        appended.report(&args.queue, started);
    }
    // A line that a signal cut short is not a bad line.
    stop.check()?;
    result?;
    kept?;
    Ok(Done::Well)
}

/// Waits a moment for a writer that is just exiting: a mount learns of a close(2) only after it has returned.
pub(crate) fn writer(queue: &Queue, options: &WriterOptions) -> chronfs::Result<QueueWriter> {
    let start = Instant::now();
    loop {
        match queue.writer_with(options) {
            Err(Error::Locked { .. }) if start.elapsed() < LOCK_PATIENCE => std::thread::sleep(LOCK_STEP),
            result => return result,
        }
    }
}

impl Appended {
    #[inline]
    fn has_read(&mut self, bytes: u64) {
        self.unreported += bytes;
        if self.unreported >= PROGRESS_STEP {
            self.progress.inc(self.unreported);
            self.unreported = 0;
        }
    }

    fn report(&self, queue: &Path, started: Instant) {
        let path = queue.display();
        if self.messages == 0 {
            note(&format!("{path}: nothing appended"));
            return;
        }
        let seconds = started.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss)]
        let rate = self.messages as f64 / seconds.max(1e-9);
        let last_seq = self.first_seq + self.messages - 1;
        note(&format!(
            "{path}: appended {}, seq {} to {last_seq}, {} of payload in {seconds:.3} s ({rate:.0} messages/s)",
            report::counted(self.messages, "message"),
            self.first_seq,
            report::human_bytes(self.bytes),
        ));
    }
}

/// A bar for large inputs of known size.
fn progress_of(files: &[PathBuf]) -> ProgressBar {
    let sizes = files.iter().map(|file| fs::metadata(file).ok().filter(|metadata| metadata.is_file()));
    match sizes.map(|metadata| metadata.map(|metadata| metadata.len())).sum::<Option<u64>>() {
        Some(total) if total >= LONG_INPUT => progress::bytes(total, "appending"),
        _ => ProgressBar::hidden(),
    }
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn open(path: &Path) -> Result<File, Failure> {
    // Without waiting for a FIFO's writer: nothing could stop that wait. Reading waits, and can be stopped.
    let mut options = File::options();
    let options = options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    let file = options.open(path).map_err(|e| {
        let is_text = e.kind() == io::ErrorKind::NotFound && path.components().count() == 1;
        let remedy = if is_text { "; to append it as text: chron-cli send QUEUE TEXT" } else { "" };
        Failure::new(format!("{}{remedy}", Failure::io(path, "open")(e).text()))
    })?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(Failure::new(format!("{}: it is a directory; name the files in it", path.display())));
    }
    Ok(file)
}

/// A directory may become a queue if it holds only the bus's markers, a schema and what a killed `create` left.
pub(crate) fn open_or_create(path: &Path, is_quiet: bool) -> Result<Queue, Failure> {
    let missing = match Queue::open(path) {
        Ok(queue) => return Ok(queue),
        Err(e) => e,
    };
    let is_ours = |name: &OsStr| {
        let known = ["READY", "LEASE", "schema.toml", layout::LOCK_FILE];
        name.to_str().is_some_and(|name| known.contains(&name) || name.ends_with(layout::TEMPORARY_SUFFIX))
    };
    let may_become_queue = match fs::read_dir(path) {
        Ok(mut entries) => entries.all(|entry| entry.is_ok_and(|e| is_ours(&e.file_name()))),
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    };
    if !may_become_queue {
        return Err(missing.into());
    }
    check_place(path)?;
    let settings = settings::by_the_way(path);
    let queue = Queue::open_or_create(path, &settings)?;
    if !is_quiet && let Some(kept) = settings.retain_bytes {
        note(&format!(
            "{}: created; it keeps {} of what its readers have consumed ('chron-cli set' changes that)",
            path.display(),
            report::human_bytes(kept)
        ));
    }
    Ok(queue)
}

fn append_file(
    args: &AppendArgs,
    file: &Path,
    stop: &Stop,
    writer: &mut QueueWriter,
    appended: &mut Appended,
) -> Result<(), Failure> {
    let (name, input) = if is_stdin(file) {
        let name = PathBuf::from("standard input");
        let input = Stoppable::stdin(stop).map_err(Failure::io(&name, "read"))?;
        (name, input)
    } else {
        (file.to_path_buf(), Stoppable { file: open(file)?, stop })
    };
    let mut input = BufReader::with_capacity(INPUT_BUFFER, input);
    let format = InputFormat::from(args.format);
    let max = writer.max_payload_len();
    let max_line = longest_line(format, max) as u64;
    let too_long = || format!("more than the {max} bytes that this queue takes{}", of_too_large(&args.queue, None));
    if matches!(format, InputFormat::Bin) {
        let mut payload = Vec::new();
        input.take(max_line.saturating_add(1)).read_to_end(&mut payload).map_err(Failure::io(&name, "read"))?;
        let is_too_long = payload.len() as u64 > max_line;
        let result =
            if is_too_long { Err(too_long()) } else { append_message(args, format, &payload, writer, appended) };
        return result.map_err(|e| Failure::new(format!("{}: {e}", name.display())));
    }
    let mut line = Vec::new();
    let mut number = 0_u64;
    loop {
        number += 1;
        let at_line = |e: String| Failure::new(format!("{}:{number}: {e}", name.display()));
        match read_line(&mut input, max_line, &mut line) {
            Ok(true) if line.len() as u64 > max_line => return Err(at_line(too_long())),
            Ok(true) => {
                append_message(args, format, &line, writer, appended).map_err(at_line)?;
                appended.has_read(line.len() as u64 + 1);
            }
            Ok(false) => return Ok(()),
            Err(e) => return Err(at_line(e.to_string())),
        }
    }
}

fn append_message(
    args: &AppendArgs,
    format: InputFormat,
    bytes: &[u8],
    writer: &mut QueueWriter,
    appended: &mut Appended,
) -> Result<(), String> {
    let Some(Input { msg_type, timestamp_ns, payload, .. }) = parse_line(format, bytes)? else {
        return Ok(());
    };
    let msg_type = args.msg_type.unwrap_or(msg_type);
    match timestamp_ns {
        Some(timestamp_ns) => writer.append_at(timestamp_ns, msg_type, &payload),
        None => writer.append(msg_type, &payload),
    }
    .map_err(|e| explained(&e))?;
    appended.messages += 1;
    appended.bytes += payload.len() as u64;
    Ok(())
}

/// The next line, without its newline; false at the end of the input. The last one may lack the newline. Of a line that
/// is longer than `max` this is the beginning, with one byte too many.
fn read_line(input: &mut impl BufRead, max: u64, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let read = input.take(max.saturating_add(1)).read_until(b'\n', line)?;
    line.pop_if(|last| *last == b'\n');
    Ok(read > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_at_newlines_and_at_the_end_of_the_input() {
        let mut input = &b"one\n\ntwo\r\nlast"[..];
        let mut line = Vec::new();
        let mut lines = Vec::new();
        while read_line(&mut input, 5, &mut line).unwrap() {
            lines.push(line.clone());
        }
        assert_eq!(lines, [b"one".to_vec(), b"".to_vec(), b"two\r".to_vec(), b"last".to_vec()]);
    }

    #[test]
    fn a_line_over_the_limit_is_read_one_byte_too_far() {
        let mut line = Vec::new();
        for (input, len) in [("12345\n", 5), ("12345", 5), ("123456\n", 6), ("123456", 6), ("1234567", 6)] {
            assert!(read_line(&mut input.as_bytes(), 5, &mut line).unwrap());
            assert_eq!(line.len(), len, "{input:?}");
        }
    }
}
