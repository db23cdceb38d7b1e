//! From a queue to a stream.
//!
//! ```text
//! connect -> how far is the stream? -> send what follows, each message expecting its predecessor's number
//! anything unexpected -> drop what is on its way, wait a little, from the top
//! ```

use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chronfs::queue::{Entry, Gap, Queue, QueueReader, ReaderOptions, Start, UpstreamGap};
use futures_util::FutureExt as _;

use super::link::{Access, Answer, Link, StreamOptions, Target};
use super::place::{Fence, Own, Place};
use super::state::{Condition, Lag, Monitor, Pair, State, Stop};
use super::wire::{Body, FRAME_HEAD, Record, Stored, crc};
use super::{Failure, Result, back_off, copier, takeover, term_of};

/// Messages on their way at once; and bytes.
const WINDOW: usize = 256;
const WINDOW_BYTES: usize = 8 << 20;
/// The most that goes into a frame.
const FRAME_BYTES: usize = 128 << 10;
const FRAME_RECORDS: usize = 4096;
/// How long an acknowledgement may take.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the queue is looked at for new messages: after one, and when there has been none for a second.
const POLL: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(4)];

/// What is done with a message that is larger than the server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TooLarge {
    /// It is sent in parts.
    #[default]
    Split,
    /// The relay stops.
    Stop,
    /// Its number, time, type, length and checksum are sent without it.
    Stub,
}

/// How a queue is relayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundOptions {
    /// The relay's name: its readers in the queue are NAME and NAME.sent.
    pub name: String,
    /// Where to.
    pub target: Target,
    /// How to get in there.
    pub access: Access,
    /// How the stream is created.
    pub stream: StreamOptions,
    /// Several messages in one of the stream's.
    pub frames: bool,
    /// What the server has acknowledged is kept in the queue for this long: it may lose it again.
    pub hold_back: Duration,
    /// For messages larger than the server takes.
    pub too_large: TooLarge,
    /// Take back what the stream has and the queue has lost.
    pub refill: bool,
}

/// What the queue has next.
enum Next {
    Record(Record),
    Gap(Gap),
}

/// A message of the stream that is on its way.
struct OnItsWay {
    /// The number that it will have.
    stream_seq: u64,
    /// The number of the queue with which the stream is complete then.
    seq: u64,
    messages: u64,
    bytes: usize,
    is_gap: bool,
    sent: Instant,
}

/// The relay of one queue.
pub struct Outbound {
    queue: Queue,
    options: OutboundOptions,
    stop: Stop,
    state: Rc<State>,
    /// What is acknowledged is committed here, late; pins.
    reader: QueueReader,
    /// Committed, on disk, before anything is sent.
    sent: QueueReader,
    /// Numbers below this are safe to send.
    safe: u64,
    /// Read, and not fit for the last message of the stream.
    held: Option<Next>,
    /// The rest of a message in parts: the part to send next, and how many there are.
    parts: Option<(Record, u32, u32)>,
    on_their_way: VecDeque<OnItsWay>,
    bytes_on_their_way: usize,
    /// What is acknowledged.
    acked: Pair,
    /// When what was acknowledged: to be committed when that is long ago.
    to_commit: VecDeque<(Instant, u64)>,
    last_message: Instant,
}

impl Outbound {
    /// Opens the queue and takes the relay's readers.
    ///
    /// # Errors
    /// If the queue can't be opened, or another relay of that name is at work.
    pub fn open(path: &Path, options: OutboundOptions, stop: Stop) -> Result<Self> {
        let queue = Queue::open(path)?;
        let reader = queue.reader(&options.name)?;
        let sent = queue.reader_with(&format!("{}.sent", options.name), &ReaderOptions::default())?;
        let state = State::shared(path, &options.name, "out", &options.target.to_string());
        let pair = state.pair();
        let acked = Pair { seq: pair.seq.max(reader.seq().saturating_sub(1)), ..pair };
        Ok(Self {
            safe: sent.seq(),
            queue,
            options,
            stop,
            state,
            reader,
            sent,
            held: None,
            parts: None,
            on_their_way: VecDeque::new(),
            bytes_on_their_way: 0,
            acked,
            to_commit: VecDeque::new(),
            last_message: Instant::now(),
        })
    }

    /// What it says of itself, while it runs.
    pub fn monitor(&self) -> Monitor {
        Monitor(Rc::clone(&self.state))
    }

    /// Relays until it is told to stop.
    ///
    /// # Errors
    /// What an operator must decide; everything else is tried again for ever.
    pub async fn run(&mut self) -> Result<()> {
        let mut failures = 0_u32;
        loop {
            let before = self.acked;
            let Err(failure) = self.session().await else {
                self.commit()?;
                self.note_lag()?;
                self.state.set(Condition::Stopped, None);
                return Ok(());
            };
            self.drop_what_is_on_its_way();
            if !failure.is_temporary() {
                self.state.set(Condition::Refused, Some(failure.to_string()));
                return Err(failure);
            }
            failures = if self.acked == before { failures.saturating_add(1) } else { 0 };
            let condition =
                if matches!(failure, Failure::Full(_)) { Condition::TargetFull } else { Condition::Waiting };
            self.state.count(|counts| counts.retries += 1);
            self.note_lag()?;
            self.state.set(condition, Some(failure.to_string()));
            if self.stop.is_set() {
                self.state.set(Condition::Stopped, None);
                return Ok(());
            }
            self.stop.sleep(back_off(failures)).await;
        }
    }

    /// Works from one look at the stream until something unexpected happens. Ok: it was told to stop.
    async fn session(&mut self) -> Result<()> {
        let (mut link, extent) = Link::connect(&self.options.target, &self.options.access).await?;
        if let Some(warning) = link.warning.take_if(|_| self.acked.stream_seq == 0) {
            self.state.say(&warning);
        }
        let extent = match extent {
            Some(extent) => extent,
            None => {
                // Its numbers are the queue's own then. What is retired already needs one for its gap record.
                let first = self.queue.bounds()?.first_seq.saturating_sub(1).max(1);
                link.create(&self.options.stream, first).await?
            }
        };
        let own = Own { queue: &self.queue, origin: self.queue.id(), term: term_of(&self.queue) };
        let place = own.find(&link, extent, self.acked).await?;
        let (origin, term) = (own.origin, own.term);
        self.state.change(|report| (report.origin, report.term) = (format!("{origin:016x}"), term));
        if place.is_ahead {
            return self.take_back(&link, place).await;
        }
        if let Some(fence) = place.needs {
            let body = Body::Fence { seq: place.seq, begins: fence == Fence::Beginning };
            takeover::publish(&link, &Stored { origin, term, body }).await?;
            self.state.say("the stream went back to before the promotion of this queue, which is published again");
            return Err(Failure::Again("looking at the stream again after the promotion".to_owned()));
        }
        self.start_at(place)?;
        let mut publisher = link.publisher().await?;
        self.state.set(Condition::Running, None);
        let mut last = place.stream_seq;
        // The first one alone: whoever else publishes to this stream is met before more is on its way.
        let mut window = 1;
        loop {
            while !self.stop.is_set() && self.on_their_way.len() < window && self.bytes_on_their_way < WINDOW_BYTES {
                let Some(body) = self.next_body(link.max_payload())? else { break };
                self.make_safe(&body)?;
                let stored = Stored { origin, term, body };
                publisher.publish(&stored, Some(last)).await?;
                last += 1;
                self.note_sent(&stored.body, last);
            }
            if self.on_their_way.is_empty() {
                if self.stop.is_set() {
                    return Ok(());
                }
                let is_quiet = self.last_message.elapsed() > Duration::from_secs(1);
                self.stop.sleep(POLL[usize::from(is_quiet)]).await;
            } else {
                let answer = tokio::time::timeout(ACK_TIMEOUT, publisher.answer()).await;
                let answer = answer.map_err(|_| Failure::Again("no acknowledgement in time".to_owned()))?;
                self.take_answer(answer?)?;
                while let Some(answer) = publisher.answer().now_or_never() {
                    self.take_answer(answer?)?;
                }
                window = if self.options.frames { 1 } else { WINDOW };
            }
            if self.state.is_due() {
                self.reader.keep_alive()?;
                self.sent.keep_alive()?;
                self.commit()?;
                self.note_lag()?;
            }
        }
    }

    /// Goes to where the stream ends.
    fn start_at(&mut self, place: Place) -> Result<()> {
        if place.seq < self.acked.seq {
            let count = self.acked.seq - place.seq;
            self.state.count(|counts| (counts.rewinds, counts.resent) = (counts.rewinds + 1, counts.resent + count));
            self.state.say(&format!(
                "the stream went back from message {} to {}: {count} messages that it had acknowledged are sent again",
                self.acked.seq, place.seq
            ));
        }
        self.to_commit.retain(|&(_, seq)| seq <= place.seq);
        self.acked = Pair { seq: place.seq, stream_seq: place.stream_seq };
        let acked = self.acked;
        self.state.change(|report| report.pair = acked);
        (self.held, self.parts) = (None, None);
        self.reader.seek_seq(place.seq + 1)?;
        if let Some((part, of)) = place.parts
            && let Some(Next::Record(record)) = self.next_entry()?
        {
            self.parts = Some((record, part + 1, of));
        }
        Ok(())
    }

    /// The stream has more than the queue: a power cut here.
    async fn take_back(&mut self, link: &Link, place: Place) -> Result<()> {
        let next = self.queue.bounds()?.next_seq;
        if !self.options.refill {
            return Err(Failure::Refused(format!(
                "this queue has lost messages {next} to {}, which the stream has: run with --refill to take them back \
                 before anybody appends",
                place.seq
            )));
        }
        let count = copier::refill(link, &self.queue, place).await?;
        self.state.say(&format!("took {count} messages back from the stream"));
        Err(Failure::Again("looking at the stream again after the refill".to_owned()))
    }

    fn next_entry(&mut self) -> Result<Option<Next>> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        Ok(self.reader.next()?.map(|entry| match entry {
            Entry::Message(message) => Next::Record(Record {
                seq: message.seq,
                time_ns: message.timestamp_ns,
                msg_type: message.msg_type,
                payload: Bytes::copy_from_slice(message.payload),
            }),
            Entry::Gap(gap) => Next::Gap(gap),
        }))
    }

    /// What the stream's next message is, at most `most` bytes of payload.
    fn next_body(&mut self, most: usize) -> Result<Option<Body>> {
        if let Some((record, part, of)) = self.parts.take() {
            let body = cut(&record, part, of);
            self.parts = (part < of).then_some((record, part + 1, of));
            return Ok(Some(body));
        }
        let record = match self.next_entry()? {
            None => return Ok(None),
            Some(Next::Gap(Gap { from, to, reason, .. })) => {
                return Ok(Some(Body::Gap { from, to, reason: UpstreamGap::from(reason) }));
            }
            Some(Next::Record(record)) => record,
        };
        self.last_message = Instant::now();
        if record.payload.len() > most {
            return self.large(record, most).map(Some);
        }
        if !self.options.frames {
            return Ok(Some(Body::Message(record)));
        }
        let most = most.min(FRAME_BYTES);
        let mut bytes = FRAME_HEAD + record.payload.len();
        let mut records = vec![record];
        while bytes < most && records.len() < FRAME_RECORDS {
            match self.next_entry()? {
                Some(Next::Record(record)) if bytes + FRAME_HEAD + record.payload.len() <= most => {
                    bytes += FRAME_HEAD + record.payload.len();
                    records.push(record);
                }
                other => {
                    self.held = other;
                    break;
                }
            }
        }
        Ok(Some(if records.len() == 1 { Body::Message(records.remove(0)) } else { Body::Frame(records) }))
    }

    /// A message that the server does not take in one piece.
    fn large(&mut self, record: Record, most: usize) -> Result<Body> {
        let Record { seq, time_ns, msg_type, .. } = record;
        let len = record.payload.len();
        match self.options.too_large {
            TooLarge::Stop => Err(Failure::Refused(format!(
                "message {seq} has {len} bytes, and a message of the stream can have {most} (NATS: max_payload): relay \
                 with --too-large split"
            ))),
            TooLarge::Stub => Ok(Body::Stub { seq, time_ns, msg_type, len: len as u64, crc: crc(&record.payload) }),
            TooLarge::Split => {
                let of = u32::try_from(len.div_ceil(most.max(1))).unwrap_or(u32::MAX);
                let first = cut(&record, 1, of);
                self.parts = Some((record, 2, of));
                Ok(first)
            }
        }
    }

    /// Makes certain that the numbers in a message are never given out again.
    fn make_safe(&mut self, body: &Body) -> Result<()> {
        let last = if let Body::Part { record, .. } = body { record.seq } else { body.last_seq() };
        if last >= self.safe {
            // As far as possible: the next ones need no sync then.
            self.sent.seek_end()?;
            self.sent.commit_sync()?;
            self.safe = self.sent.seq();
        }
        Ok(())
    }

    fn note_sent(&mut self, body: &Body, stream_seq: u64) {
        let (messages, bytes) = match body {
            Body::Message(record) => (1, record.payload.len()),
            Body::Part { record, part, of, .. } => (u64::from(part == of), record.payload.len()),
            Body::Frame(records) => (records.len() as u64, records.iter().map(|record| record.payload.len()).sum()),
            Body::Stub { .. } => (1, 0),
            Body::Gap { .. } | Body::Fence { .. } => (0, 0),
        };
        let (seq, is_gap, sent) = (body.last_seq(), matches!(body, Body::Gap { .. }), Instant::now());
        self.bytes_on_their_way += bytes;
        self.on_their_way.push_back(OnItsWay { stream_seq, seq, messages, bytes, is_gap, sent });
    }

    /// Each message must be where it was to be, in order.
    fn take_answer(&mut self, answer: Answer) -> Result<()> {
        let stored = match answer {
            Answer::Stored(stored) => stored,
            Answer::Not(reason) => return Err(Failure::Again(reason)),
            Answer::Full(reason) => return Err(Failure::Full(reason)),
        };
        let Some(sent) = self.on_their_way.pop_front().filter(|sent| sent.stream_seq == stored) else {
            return Err(Failure::Again(format!("an acknowledgement of message {stored} of the stream out of order")));
        };
        self.bytes_on_their_way -= sent.bytes;
        self.acked = Pair { seq: sent.seq, stream_seq: sent.stream_seq };
        let acked = self.acked;
        self.state.change(|report| report.pair = acked);
        self.state.count(|counts| {
            counts.messages += sent.messages;
            counts.bytes += sent.bytes as u64;
            counts.gaps += u64::from(sent.is_gap);
        });
        self.state.progressed();
        if self.to_commit.back().is_none_or(|&(at, _)| at.elapsed() >= Duration::from_secs(1)) {
            self.to_commit.push_back((sent.sent, sent.seq));
        } else if let Some((_, seq)) = self.to_commit.back_mut() {
            *seq = sent.seq;
        }
        Ok(())
    }

    fn drop_what_is_on_its_way(&mut self) {
        self.on_their_way.clear();
        self.bytes_on_their_way = 0;
    }

    /// Commits what was acknowledged long enough ago.
    fn commit(&mut self) -> Result<()> {
        let mut due = None;
        while let Some((_, seq)) = self.to_commit.pop_front_if(|(at, _)| at.elapsed() >= self.options.hold_back) {
            due = Some(seq);
        }
        if let Some(seq) = due {
            self.reader.commit_to(seq)?;
        }
        Ok(())
    }

    fn note_lag(&mut self) -> Result<()> {
        let lag = lag(&self.queue, self.acked.seq)?;
        self.state.lags_behind(&self.queue, lag);
        Ok(())
    }
}

/// A part of a message.
fn cut(record: &Record, part: u32, of: u32) -> Body {
    let len = record.payload.len();
    let size = len.div_ceil(of as usize);
    let (from, to) = ((part as usize - 1) * size, (part as usize * size).min(len));
    let payload = record.payload.slice(from.min(to)..to);
    Body::Part { record: Record { payload, ..*record }, part, of, whole_crc: crc(&record.payload) }
}

/// What a queue has after the message `seq`.
fn lag(queue: &Queue, seq: u64) -> Result<Lag> {
    let bounds = queue.bounds()?;
    let next = (seq + 1).max(bounds.first_seq);
    let messages = bounds.next_seq.saturating_sub(next);
    if messages == 0 {
        return Ok(Lag::default());
    }
    let options = ReaderOptions { start: Start::Seq(next), ..ReaderOptions::default() };
    let mut tailer = queue.tailer_with(&options)?;
    let from = tailer.position();
    let time_ns = tailer.next()?.and_then(Entry::message).map_or(bounds.last_timestamp_ns, |m| m.timestamp_ns);
    let bytes = if from.segment == bounds.head.segment {
        u64::from(bounds.head.offset.saturating_sub(from.offset))
    } else {
        // Of many segments nothing but their sizes is read: this is done every second.
        let size = |id| std::fs::metadata(queue.path().join(format!("{id:09}.q"))).map_or(0, |meta| meta.len());
        let between = (from.segment.0..bounds.head.segment.0).map(size);
        (between.sum::<u64>() + u64::from(bounds.head.offset)).saturating_sub(from.offset.into())
    };
    // Exact enough: nanoseconds since the epoch have a resolution of 256 ns as f64.
    #[allow(clippy::cast_precision_loss)]
    let seconds = (super::state::unix_seconds() - time_ns as f64 / 1e9).max(0.0);
    Ok(Lag { messages, bytes, seconds })
}
