//! One queue: which of its messages are in no file yet, and writing these, a chunk after the other. A chunk is what
//! consecutive segments hold of one date: one segment, or as many as make a row group.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chronfs::Queue;
use chronfs::queue::{Entry, Gap, Message, Scanner, SegmentId};
use chronfs::view::{self, render_decoded};
use chronfs_decode::{Rows, Schema};

use crate::failure::{Failure, Result, note};
use crate::format::{BYTES_OF_A_GROUP, Format, ROWS_OF_A_GROUP, Writer};
use crate::store::{Draft, Range, Store};
use crate::{Args, tell};

const NS_PER_DAY: u64 = 86_400 * 1_000_000_000;
/// Lines are passed on when they are this many bytes.
const LINES: usize = 256 << 10;
/// The table of messages that are not decoded.
const PLAIN: &str = "messages";

/// What has been done.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) messages: u64,
    pub(crate) files: u64,
    pub(crate) gaps: u64,
    /// Messages of the segment that still takes some, which were not asked for.
    pub(crate) unsealed: u64,
}

/// Writes what is in no file yet. `value` is the queue's name, as it is written in the name of a directory.
pub(crate) fn export(path: &Path, value: &str, args: &Args, given: Option<&Arc<Schema>>) -> Result<Report> {
    let queue = Queue::open(path)?;
    let schema = match given {
        Some(given) => Some(Arc::clone(given)),
        None => Schema::load(path).map_err(|error| Failure(format!("{}/{error}", path.display())))?.map(Arc::new),
    };
    let mut scanner = queue.scan()?;
    let (start, end, unsealed) = wanted(&queue, &mut scanner, args)?;
    let store = Store::open(&args.dir, value, queue.id(), args.format.ending())?;
    let first_seq = queue.bounds()?.first_seq;
    let mut export = Export::new(&queue, &store, args, schema);
    for (from, to) in store.missing(start, end) {
        // From the message before it, where there is one: what is missing at the beginning is a gap then.
        scanner.seek_seq(from.saturating_sub(1).max(first_seq))?;
        while scanner.seq() < to {
            match scanner.next()? {
                Some(Entry::Message(message)) if message.seq < from => {}
                Some(Entry::Message(message)) => export.message(&message)?,
                Some(Entry::Gap(gap)) if gap.to < from => {}
                Some(Entry::Gap(gap)) => export.gap(&gap),
                None => break,
            }
        }
        export.end_chunk()?;
    }
    export.report.unsealed = unsealed;
    Ok(export.report)
}

/// The messages that the options ask for: the first, the one after the last, and how many follow in the segment that
/// still takes some.
fn wanted(queue: &Queue, scanner: &mut Scanner, args: &Args) -> Result<(u64, u64, u64)> {
    let bounds = queue.bounds()?;
    let mut end = bounds.end_seq;
    if !args.unsealed {
        let segments = queue.inspect()?.segments;
        let newest = segments.iter().rev().find(|segment| segment.first_seq > 0);
        end = newest.filter(|segment| !segment.sealed).map_or(end, |segment| segment.first_seq.min(end));
    }
    let mut seq_at = |time: u64| -> Result<u64> {
        scanner.seek_time(time)?;
        Ok(scanner.seq())
    };
    let start = args.since.map(&mut seq_at).transpose()?.unwrap_or(bounds.first_seq);
    let until = args.until.map(|until| seq_at(until.saturating_add(1))).transpose()?.unwrap_or(bounds.end_seq);
    Ok((start, until.min(end), until.saturating_sub(end.max(start))))
}

/// A queue that is being exported.
struct Export<'a> {
    queue: &'a Queue,
    store: &'a Store,
    args: &'a Args,
    schema: Option<Arc<Schema>>,
    /// The name of the table of what is not decoded.
    plain: String,
    chunk: Option<Chunk>,
    report: Report,
}

/// Messages of a date.
struct Chunk {
    /// Of the last one.
    segment: SegmentId,
    day: u64,
    date: String,
    range: Range,
    messages: usize,
    /// Of their payloads.
    bytes: usize,
    /// Whether messages are missing after the last one.
    has_gap: bool,
    /// By the number of the table; the last is that of what is not decoded.
    files: Vec<Option<Output>>,
}

/// A file of a chunk.
struct Output {
    draft: Draft,
    path: PathBuf,
    rows: Rows,
    lines: Vec<u8>,
    writer: Writer,
}

impl<'a> Export<'a> {
    fn new(queue: &'a Queue, store: &'a Store, args: &'a Args, schema: Option<Arc<Schema>>) -> Self {
        let mut plain = PLAIN.to_owned();
        while schema.as_ref().is_some_and(|schema| schema.tables().iter().any(|table| table.name() == plain)) {
            plain.push('_');
        }
        Self { queue, store, args, schema, plain, chunk: None, report: Report::default() }
    }

    fn gap(&mut self, gap: &Gap) {
        self.report.gaps += 1;
        self.chunk.iter_mut().for_each(|chunk| chunk.has_gap = true);
        let (path, reason) = (self.queue.path().display(), gap.reason.as_str());
        note(&format!("{path}: messages {} to {} are missing: {reason} ({})", gap.from, gap.to, gap.position));
    }

    fn message(&mut self, message: &Message<'_>) -> Result<()> {
        let (segment, day) = (message.position.segment, message.timestamp_ns / NS_PER_DAY);
        if self.chunk.as_ref().is_some_and(|chunk| chunk.day != day || chunk.segment != segment && chunk.is_enough()) {
            self.end_chunk()?;
        }
        let tables = self.schema.as_ref().map_or(0, |schema| schema.tables().len());
        let chunk = self.chunk.get_or_insert_with(|| Chunk {
            segment,
            day,
            date: date_of(message.timestamp_ns),
            range: Range { first: message.seq, last: message.seq },
            messages: 0,
            bytes: 0,
            has_gap: false,
            files: (0..=tables).map(|_| None).collect(),
        });
        (chunk.segment, chunk.range.last, chunk.has_gap) = (segment, message.seq, false);
        chunk.messages += 1;
        chunk.bytes += message.payload.len();
        self.report.messages += 1;
        if self.args.format == Format::Jsonl {
            return self.line(message);
        }
        let table = match &self.schema {
            Some(schema) => schema.table_of(message.msg_type, message.payload),
            None => Ok(None),
        };
        let output = self.output(*table.as_ref().unwrap_or(&None))?;
        output.rows.push(message.seq, message.timestamp_ns, message.msg_type, message.payload, table.as_ref().err());
        if output.rows.is_full() { output.write_rows() } else { Ok(()) }
    }

    fn line(&mut self, message: &Message<'_>) -> Result<()> {
        let schema = self.schema.clone();
        let output = self.output(None)?;
        match schema {
            Some(schema) => render_decoded(&Entry::Message(*message), None, &mut &*schema, &mut output.lines),
            None => view::render(view::Format::Jsonl, &Entry::Message(*message), None, &mut output.lines),
        }
        if output.lines.len() > LINES { output.write_lines() } else { Ok(()) }
    }

    /// The file of a table in this chunk.
    fn output(&mut self, table: Option<usize>) -> Result<&mut Output> {
        let nowhere = || Failure(format!("{}: there is no such table", self.queue.path().display()));
        let chunk = self.chunk.as_mut().ok_or_else(nowhere)?;
        let at = table.unwrap_or(chunk.files.len().saturating_sub(1));
        let file = chunk.files.get_mut(at).ok_or_else(nowhere)?;
        if file.is_none() {
            let known = self.schema.as_ref().and_then(|schema| schema.tables().get(table?));
            let name = known.map_or(self.plain.as_str(), |table| table.name());
            let (draft, opened) = self.store.draft(name, &chunk.date, chunk.range.first)?;
            let rows = Rows::new(self.schema.clone(), table);
            let path = draft.path().to_owned();
            let writer =
                Writer::new(self.args.format, opened, rows.schema()).map_err(Failure::io(&path, "write it"))?;
            *file = Some(Output { draft, path, rows, lines: Vec::new(), writer });
        }
        file.as_mut().ok_or_else(nowhere)
    }

    /// Gives the files of the chunk their names.
    fn end_chunk(&mut self) -> Result<()> {
        let Some(chunk) = self.chunk.take() else { return Ok(()) };
        let drafts = chunk.files.into_iter().flatten().map(Output::finish).collect::<Result<Vec<_>>>()?;
        for path in self.store.publish(&drafts, chunk.range)? {
            self.report.files += 1;
            tell(self.args, &path)?;
        }
        Ok(())
    }
}

impl Chunk {
    /// Whether the next segment is another chunk's. What a segment has lost is in no file's name, so that it is reported
    /// again.
    fn is_enough(&self) -> bool {
        self.has_gap || self.messages >= ROWS_OF_A_GROUP || self.bytes >= BYTES_OF_A_GROUP
    }
}

impl Output {
    fn write_rows(&mut self) -> Result<()> {
        let batch = self.rows.take().map_err(Failure::io(&self.path, "write it"))?;
        let Some(batch) = batch else { return Ok(()) };
        self.writer.batch(&batch).map_err(Failure::io(&self.path, "write it"))
    }

    fn write_lines(&mut self) -> Result<()> {
        self.writer.lines(&self.lines).map_err(Failure::io(&self.path, "write it"))?;
        self.lines.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<Draft> {
        self.write_rows()?;
        self.write_lines()?;
        self.writer.finish().map_err(Failure::io(&self.path, "write it"))?;
        Ok(self.draft)
    }
}

/// `2024-08-08`, in UTC.
fn date_of(timestamp_ns: u64) -> String {
    let mut text = Vec::new();
    view::format_time(timestamp_ns, &mut text);
    let text = String::from_utf8_lossy(&text);
    text.split('T').next().unwrap_or_default().to_owned()
}
