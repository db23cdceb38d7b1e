//! Replays recorded market data into a queue at its own pace: the feed of `scripts/bus.sh`, and an example of a
//! native writer.
//!
//! Input: lines of `<nanoseconds since the epoch> <message>`, plain or gzipped. Each message is appended with its
//! recorded time, when that time has come: the first one at once, the others as long after it as in the recording,
//! divided by --speed.
//!
//! ```text
//! cargo run --release --example feed -- /tmp/bus/market testdata/market-sample.log.gz --speed 10
//! ```
//!
//! `feed --generate 2000` writes a recording instead (see `sample.rs`): the sample was made this way.

mod sample;

use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chronfs::queue::Settings;
use chronfs::{Queue, QueueWriter};
use clap::Parser;

/// The type under which the messages are appended.
const MARKET_DATA: u16 = 1;

/// Replay recorded market data into a queue
#[derive(Debug, Parser)]
struct Args {
    /// The queue; created if missing
    #[arg(required_unless_present = "generate", requires = "recording")]
    queue: Option<PathBuf>,
    /// The recording, plain or gzipped
    recording: Option<PathBuf>,
    /// How many times faster than recorded; 0: as fast as possible
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Stop after this many messages
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Start again at the end, with later times, until interrupted
    #[arg(long = "loop")]
    endless: bool,
    /// Write a synthetic recording of N messages to standard output, gzipped, and exit
    #[arg(long, value_name = "N", conflicts_with_all = ["queue", "recording"])]
    generate: Option<u32>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    if let Some(count) = args.generate {
        let mut out = flate2::write::GzEncoder::new(io::stdout().lock(), flate2::Compression::best());
        sample::generate(count, &mut out)?;
        out.finish()?.flush()?;
        return Ok(());
    }
    let (Some(queue), Some(recording)) = (&args.queue, &args.recording) else {
        return Err("a queue and a recording are required".into());
    };
    let queue = if queue.exists() { Queue::open(queue)? } else { Queue::create(queue, &Settings::default())? };
    let mut feed =
        Feed { writer: queue.writer()?, speed: args.speed, left: args.limit.unwrap_or(u64::MAX), shift_ns: 0 };
    let started = Instant::now();
    while feed.replay(recording)? && args.endless {}
    let seconds = started.elapsed().as_secs_f64();
    let last = feed.writer.next_seq() - 1;
    writeln!(io::stderr(), "feed: {}: done after {seconds:.1} s, last message {last}", queue.path().display())?;
    Ok(())
}

struct Feed {
    writer: QueueWriter,
    speed: f64,
    /// How many messages may still be appended.
    left: u64,
    /// Added to the recorded times, so that time goes on when the recording starts again.
    shift_ns: u64,
}

impl Feed {
    /// Replays the recording once. False: there is nothing left to do.
    fn replay(&mut self, recording: &Path) -> Result<bool, Box<dyn Error>> {
        let mut input = open(recording)?;
        let mut line = Vec::new();
        let mut start: Option<(Instant, u64)> = None;
        let mut newest_ns = 0;
        while self.left > 0 {
            line.clear();
            if input.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let (timestamp_ns, message) = split(&line).ok_or("a line is not `<nanoseconds> <message>`")?;
            let (started, first_ns) = *start.get_or_insert_with(|| (Instant::now(), timestamp_ns));
            if self.speed > 0.0 {
                let recorded = Duration::from_nanos(timestamp_ns.saturating_sub(first_ns));
                let due = started + recorded.div_f64(self.speed);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            self.writer.append_at(timestamp_ns + self.shift_ns, MARKET_DATA, message)?;
            newest_ns = timestamp_ns;
            self.left -= 1;
        }
        let Some((_, first_ns)) = start else { return Ok(false) };
        self.shift_ns += newest_ns - first_ns;
        Ok(self.left > 0)
    }
}

/// The recorded time and the message of a line.
fn split(line: &[u8]) -> Option<(u64, &[u8])> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let blank = line.iter().position(|&b| b == b' ')?;
    let timestamp_ns = std::str::from_utf8(&line[..blank]).ok()?.parse().ok()?;
    Some((timestamp_ns, &line[blank + 1..]))
}

fn open(recording: &Path) -> io::Result<Box<dyn BufRead>> {
    let mut file = BufReader::new(File::open(recording)?);
    if file.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
        let unzipped: Box<dyn Read> = Box::new(flate2::bufread::MultiGzDecoder::new(file));
        return Ok(Box::new(BufReader::new(unzipped)));
    }
    Ok(Box::new(file))
}
