//! A message of the stream: headers and payload, both ways, whatever an engine calls them. Pure.
//!
//! Every message has `Chron-Origin` (the id of the queue that published it), `Chron-Term` and `Chron-Seq`. What else
//! it has says what it is:
//!
//! | header | is |
//! |---|---|
//! | none | the message of that number: `Chron-Time`, `Chron-Type`, `Chron-Crc` of the payload |
//! | `Chron-Part: 2/5` | a part of one; `Chron-Crc` is that of the whole payload |
//! | `Chron-Frame: count` | so many messages, from that number on; `Chron-Crc` is that of the frame |
//! | `Chron-Gap: from-to reason` | missing messages; `Chron-Seq` is `to` |
//! | `Chron-Fence: claim` | from here on what has a lower term is void |
//! | `Chron-Fence: begin` | the origin goes on after `Chron-Seq`, the last valid number before the claim |
//! | `Chron-Stub: length` | a message that was too large, without its payload |
//!
//! A frame's payload is, for each message: time (8 bytes), length (4), type (2), all little-endian, then its payload.

use bytes::{BufMut, Bytes, BytesMut};
use chronfs::queue::{GapReason, UpstreamGap};
use crc_fast::{CrcAlgorithm, checksum};

/// Bytes before each payload in a frame.
pub(super) const FRAME_HEAD: usize = 14;

/// One message of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) seq: u64,
    pub(super) time_ns: u64,
    pub(super) msg_type: u16,
    pub(super) payload: Bytes,
}

/// What a message of the stream holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body {
    Message(Record),
    /// `whole_crc`: that of the whole payload.
    Part {
        record: Record,
        part: u32,
        of: u32,
        whole_crc: u32,
    },
    /// At least one, with consecutive numbers.
    Frame(Vec<Record>),
    Gap {
        from: u64,
        to: u64,
        reason: UpstreamGap,
    },
    /// `begins`: else a claim, and `seq` may be less than the last number before it.
    Fence {
        seq: u64,
        begins: bool,
    },
    Stub {
        seq: u64,
        time_ns: u64,
        msg_type: u16,
        len: u64,
        crc: u32,
    },
}

/// A message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) origin: u64,
    pub(super) term: u64,
    pub(super) body: Body,
}

impl Body {
    /// The last number of the queue up to which the stream is complete with this.
    pub(super) fn last_seq(&self) -> u64 {
        match self {
            Self::Message(record) => record.seq,
            Self::Part { record, part, of, .. } => record.seq - u64::from(part < of),
            Self::Frame(records) => records.last().map_or(0, |record| record.seq),
            Self::Gap { to, .. } => *to,
            Self::Fence { seq, .. } | Self::Stub { seq, .. } => *seq,
        }
    }
}

pub(super) fn crc(bytes: &[u8]) -> u32 {
    // A CRC-32 in the low half.
    (checksum(CrcAlgorithm::Crc32Iscsi, bytes) & u64::from(u32::MAX)).try_into().unwrap_or(0)
}

/// Lays several messages out as one payload.
pub(super) fn frame(records: &[Record]) -> Bytes {
    let len = records.iter().map(|record| FRAME_HEAD + record.payload.len()).sum();
    let mut bytes = BytesMut::with_capacity(len);
    for Record { time_ns, msg_type, payload, .. } in records {
        bytes.put_u64_le(*time_ns);
        bytes.put_u32_le(payload.len().try_into().unwrap_or(u32::MAX));
        bytes.put_u16_le(*msg_type);
        bytes.put_slice(payload);
    }
    bytes.freeze()
}

fn unframe(first: u64, count: usize, bytes: &Bytes) -> Option<Vec<Record>> {
    let mut records = Vec::with_capacity(count.min(1 << 16));
    let mut at = 0;
    for seq in (first..).take(count) {
        let head = bytes.get(at..at + FRAME_HEAD)?;
        let time_ns = u64::from_le_bytes(head.get(..8)?.try_into().ok()?);
        let len = u32::from_le_bytes(head.get(8..12)?.try_into().ok()?) as usize;
        let msg_type = u16::from_le_bytes(head.get(12..14)?.try_into().ok()?);
        let from = at + FRAME_HEAD;
        at = from.checked_add(len).filter(|&end| end <= bytes.len())?;
        records.push(Record { seq, time_ns, msg_type, payload: bytes.slice(from..at) });
    }
    (at == bytes.len() && !records.is_empty()).then_some(records)
}

impl Stored {
    /// The headers and the payload.
    pub(super) fn encode(&self) -> (Vec<(&'static str, String)>, Bytes) {
        let mut headers = Vec::with_capacity(7);
        let mut set = |name: &'static str, value: String| headers.push((name, value));
        set("Chron-Origin", format!("{:016x}", self.origin));
        set("Chron-Term", self.term.to_string());
        let described = |set: &mut dyn FnMut(&'static str, String), record: &Record, crc: u32| {
            set("Chron-Seq", record.seq.to_string());
            set("Chron-Time", record.time_ns.to_string());
            set("Chron-Type", record.msg_type.to_string());
            set("Chron-Crc", format!("{crc:08x}"));
        };
        let payload = match &self.body {
            Body::Message(record) => {
                described(&mut set, record, crc(&record.payload));
                record.payload.clone()
            }
            Body::Part { record, part, of, whole_crc } => {
                described(&mut set, record, *whole_crc);
                set("Chron-Part", format!("{part}/{of}"));
                record.payload.clone()
            }
            Body::Frame(records) => {
                let payload = frame(records);
                set("Chron-Seq", records.first().map_or(0, |record| record.seq).to_string());
                set("Chron-Frame", records.len().to_string());
                set("Chron-Crc", format!("{:08x}", crc(&payload)));
                payload
            }
            Body::Gap { from, to, reason } => {
                set("Chron-Seq", to.to_string());
                set("Chron-Gap", format!("{from}-{to} {}", reason_name(*reason)));
                Bytes::new()
            }
            Body::Fence { seq, begins } => {
                set("Chron-Seq", seq.to_string());
                set("Chron-Fence", if *begins { "begin" } else { "claim" }.to_owned());
                Bytes::new()
            }
            Body::Stub { seq, time_ns, msg_type, len, crc } => {
                let payload = Bytes::new();
                described(&mut set, &Record { seq: *seq, time_ns: *time_ns, msg_type: *msg_type, payload }, *crc);
                set("Chron-Stub", len.to_string());
                Bytes::new()
            }
        };
        (headers, payload)
    }

    /// Reads a message of the stream; the error says what is wrong with it.
    pub(super) fn decode<'a>(text: impl Fn(&'static str) -> Option<&'a str>, payload: &Bytes) -> Result<Self, String> {
        let needed = |name: &'static str| text(name).ok_or_else(|| format!("it has no header {name}"));
        let bad = |name: &str| format!("its header {name} can't be read");
        let number = |name: &'static str| needed(name)?.parse::<u64>().map_err(|_| bad(name));
        let hex = |name: &'static str| u64::from_str_radix(needed(name)?, 16).map_err(|_| bad(name));
        let (origin, term, seq) = (hex("Chron-Origin")?, number("Chron-Term")?, number("Chron-Seq")?);
        let stored = |body| Ok(Self { origin, term, body });
        if let Some(gap) = text("Chron-Gap") {
            let parse = || {
                let (range, reason) = gap.split_once(' ')?;
                let (from, to) = range.split_once('-')?;
                Some((from.parse().ok()?, to.parse().ok()?, reason_of(reason)))
            };
            let (from, to, reason) = parse().filter(|(from, to, _)| from <= to).ok_or_else(|| bad("Chron-Gap"))?;
            return stored(Body::Gap { from, to, reason });
        }
        match text("Chron-Fence") {
            Some(kind @ ("begin" | "claim")) => return stored(Body::Fence { seq, begins: kind == "begin" }),
            Some(_) => return Err(bad("Chron-Fence")),
            None => {}
        }
        let sum = u32::try_from(hex("Chron-Crc")?).map_err(|_| bad("Chron-Crc"))?;
        let check =
            |sum_here: u32| if sum_here == sum { Ok(()) } else { Err("its checksum does not match".to_owned()) };
        if text("Chron-Frame").is_some() {
            check(crc(payload))?;
            let count = usize::try_from(number("Chron-Frame")?).map_err(|_| bad("Chron-Frame"))?;
            return stored(Body::Frame(unframe(seq, count, payload).ok_or("its frame does not add up")?));
        }
        let time_ns = number("Chron-Time")?;
        let msg_type = needed("Chron-Type")?.parse().map_err(|_| bad("Chron-Type"))?;
        if text("Chron-Stub").is_some() {
            return stored(Body::Stub { seq, time_ns, msg_type, len: number("Chron-Stub")?, crc: sum });
        }
        let record = Record { seq, time_ns, msg_type, payload: payload.clone() };
        if let Some(part) = text("Chron-Part") {
            let parsed = part.split_once('/').and_then(|(part, of)| Some((part.parse().ok()?, of.parse().ok()?)));
            let (part, of) = parsed.filter(|&(part, of)| part >= 1 && part <= of).ok_or_else(|| bad("Chron-Part"))?;
            return stored(Body::Part { record, part, of, whole_crc: sum });
        }
        check(crc(payload))?;
        stored(Body::Message(record))
    }
}

fn reason_name(reason: UpstreamGap) -> &'static str {
    let name = GapReason::Upstream(reason).as_str();
    name.strip_prefix("upstream-").unwrap_or("unknown")
}

fn reason_of(name: &str) -> UpstreamGap {
    let all = [UpstreamGap::Checksum, UpstreamGap::Segment, UpstreamGap::Lost, UpstreamGap::Retired];
    all.into_iter().find(|&reason| reason_name(reason) == name).unwrap_or(UpstreamGap::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seq: u64, payload: &'static [u8]) -> Record {
        Record { seq, time_ns: 1_000 + seq, msg_type: 7, payload: Bytes::from_static(payload) }
    }

    fn in_these<'a>(headers: &'a [(&str, String)]) -> impl Fn(&'static str) -> Option<&'a str> {
        move |name| headers.iter().find(|(other, _)| *other == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let bodies = [
            Body::Message(record(1, b"hello")),
            Body::Message(record(2, b"")),
            Body::Part { record: record(3, b"half"), part: 1, of: 2, whole_crc: 17 },
            Body::Frame(vec![record(4, b"a"), record(5, b""), record(6, b"ccc")]),
            Body::Gap { from: 7, to: 9, reason: UpstreamGap::Retired },
            Body::Gap { from: 7, to: 9, reason: UpstreamGap::Unknown },
            Body::Fence { seq: 9, begins: false },
            Body::Fence { seq: 9, begins: true },
            Body::Stub { seq: 10, time_ns: 5, msg_type: 1, len: 1 << 40, crc: 3 },
        ];
        for body in bodies {
            let stored = Stored { origin: 0xfeed, term: 3, body };
            let (headers, payload) = stored.encode();
            assert_eq!(Stored::decode(in_these(&headers), &payload), Ok(stored));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let (headers, payload) = Stored { origin: 1, term: 1, body: Body::Frame(vec![record(1, b"abc")]) }.encode();
        assert!(Stored::decode(|_| None, &payload).unwrap_err().contains("Chron-Origin"));
        assert!(Stored::decode(in_these(&headers), &payload.slice(1..)).unwrap_err().contains("checksum"));
        let more = [vec![("Chron-Frame", "2".to_owned())], headers].concat();
        assert!(Stored::decode(in_these(&more), &payload).unwrap_err().contains("add up"));
        let (headers, payload) =
            Stored { origin: 1, term: 1, body: Body::Gap { from: 1, to: 2, reason: UpstreamGap::Lost } }.encode();
        let wrong = [vec![("Chron-Gap", "3-2 lost".to_owned())], headers].concat();
        assert!(Stored::decode(in_these(&wrong), &payload).unwrap_err().contains("Chron-Gap"));
    }

    #[test]
    fn a_message_in_parts_is_complete_with_the_last_one() {
        let part = |part| Body::Part { record: record(5, b""), part, of: 2, whole_crc: 0 }.last_seq();
        assert_eq!((part(1), part(2)), (4, 5));
    }
}
