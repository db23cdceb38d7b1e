//! `at/` and `since/`: places in a queue by time or number, resolved at lookup.
//!
//! `at/<time>` is a symlink to the first message at or after that time. `since/<place>/` is a directory with the views
//! of everything from that place on. Times are those of `view::parse_time`, or nanoseconds since the epoch.

use std::sync::Arc;

use crate::clock;
use crate::fs::attr::{Attr, Ttl};
use crate::fs::errno::{Errno, Result};
use crate::fs::files::message::link_attr;
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::site::{Access, Caller, File};
use crate::fs::tree::handles::Handle;
use crate::queue::Scanner;
use crate::view::parse_time;

/// A number of at least this many digits is a time, not a sequence number.
const TIME_DIGITS: usize = 16;

/// What a name in `since/` can mean.
enum SeekPoint {
    Seq(u64),
    Time(u64),
}

fn place(text: &str) -> Result<SeekPoint> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number && text.len() < TIME_DIGITS {
        return text.parse().map(SeekPoint::Seq).map_err(|_| Errno::ENOENT);
    }
    parse_time(text, clock::now_ns()).map(SeekPoint::Time).map_err(|_| Errno::ENOENT)
}

/// ENOENT unless the queue has such a place, for a name in `since/`. There is none after the next message.
pub(crate) fn check(queue: &OpenQueue, text: &str) -> Result<()> {
    match place(text)? {
        SeekPoint::Seq(seq) if seq == 0 || seq > queue.queue.bounds()?.next_seq => Err(Errno::ENOENT),
        _ => Ok(()),
    }
}

/// Seeks a scanner to a place, or, if that is retired already, to the first retained message.
pub(in crate::fs) fn seek(queue: &OpenQueue, scanner: &mut Scanner, text: &str) -> Result<()> {
    match place(text)? {
        SeekPoint::Seq(seq) => scanner.seek_seq(seq)?,
        SeekPoint::Time(timestamp_ns) if timestamp_ns > queue.queue.bounds()?.last_timestamp_ns => {
            scanner.seek_end()?
        }
        SeekPoint::Time(timestamp_ns) => scanner.seek_time(timestamp_ns)?,
    }
    Ok(())
}

/// What a name in `at/` is. ENOENT when there is no message at or after that time.
pub(crate) fn at(queue: &Arc<OpenQueue>, text: &str) -> Result<Arc<dyn File>> {
    let timestamp_ns = match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().map_err(|_| Errno::ENOENT)?,
        false => parse_time(text, clock::now_ns()).map_err(|_| Errno::ENOENT)?,
    };
    let bounds = queue.queue.bounds()?;
    if bounds.next_seq <= bounds.first_seq || timestamp_ns > bounds.last_timestamp_ns {
        return Err(Errno::ENOENT);
    }
    let mut scanner = queue.queue.scan()?;
    scanner.seek_time(timestamp_ns)?;
    let seq = loop {
        match scanner.next()? {
            Some(entry) => {
                if let Some(message) = entry.message() {
                    break message.seq;
                }
            }
            None => return Err(Errno::ENOENT),
        }
    };
    Ok(Arc::new(At { queue: Arc::clone(queue), seq }))
}

struct At {
    queue: Arc<OpenQueue>,
    seq: u64,
}

impl File for At {
    fn attr(&self) -> Result<Attr> {
        link_attr(&self.queue, self.target()?.len())
    }

    fn open(&self, _access: Access, _caller: &Caller) -> Result<Box<dyn Handle>> {
        Err(Errno::EINVAL)
    }

    fn generation(&self) -> u64 {
        self.queue.identity.rotate_left(1) ^ self.seq
    }

    fn ttl(&self) -> Ttl {
        Ttl::NONE
    }

    fn target(&self) -> Result<Vec<u8>> {
        Ok(format!("../messages/{}", self.seq).into_bytes())
    }
}
