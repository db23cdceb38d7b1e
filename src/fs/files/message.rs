//! `messages/`: one file per message, named by its sequence number, with exactly its payload; `N.json` is its line of
//! messages.jsonl; `first` and `last` are symlinks.
//!
//! Invariants: a number stands for the same message for ever, so the kernel may cache its bytes; a number that was
//! retired or not used yet does not exist. A listing costs constant memory: the sequence number is the directory
//! offset.

use std::sync::{Arc, Mutex};

use crate::fs::attr::{Attr, Kind, READ, Ttl};
use crate::fs::budget::Kept;
use crate::fs::errno::{Errno, Result};
use crate::fs::lock;
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::site::{Access, Caller, File};
use crate::fs::tree::handles::{Caching, Handle, Progress};
use crate::queue::{Entry, Message, Position, Scanner};
use crate::view::{Format, render, rendered_len};

/// Payloads up to this many bytes are read when the file is opened, and stay readable when retention removes them.
const SMALL: u64 = 64 << 10;
/// Directory offsets from here on are those of the names that are not numbers.
const NAMES: u64 = 1 << 62;
const JSON: &str = ".json";

/// What a name in `messages/` is.
pub(crate) fn find(queue: &Arc<OpenQueue>, name: &str) -> Result<Arc<dyn File>> {
    let queue = Arc::clone(queue);
    match name {
        "first" => Ok(Arc::new(EndLink { queue, is_last: false })),
        "last" => Ok(Arc::new(EndLink { queue, is_last: true })),
        _ => {
            let (number, json) = match name.strip_suffix(JSON) {
                Some(number) => (number, true),
                None => (name, false),
            };
            let format = if json { Format::Jsonl } else { Format::Bin };
            let seq = parse(number).ok_or(Errno::ENOENT)?;
            Ok(Arc::new(with_message(&queue, seq, |message| MessageFile::new(&queue, format, message))?))
        }
    }
}

/// A sequence number as written in a name: no sign, no leading zeros.
fn parse(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

/// Finds a message in O(log n). ENOENT if it is not retained, or damaged.
fn with_message<T>(queue: &OpenQueue, seq: u64, run: impl FnOnce(&Message<'_>) -> T) -> Result<T> {
    let (first, mut scanner) = queue.scanner_at(seq)?;
    let result = match scanner.next()? {
        Some(Entry::Message(message)) if message.seq == seq => Ok(run(&message)),
        _ => Err(Errno::ENOENT),
    };
    if result.is_ok() {
        queue.keep_scanner(first, scanner);
    }
    result
}

/// A message as a file.
#[derive(Clone)]
pub(crate) struct MessageFile {
    queue: Arc<OpenQueue>,
    format: Format,
    seq: u64,
    position: Position,
    timestamp_ns: u64,
    size: u64,
}

impl MessageFile {
    fn new(queue: &Arc<OpenQueue>, format: Format, message: &Message<'_>) -> Self {
        let size = rendered_len(format, &Entry::Message(*message), None);
        Self {
            queue: Arc::clone(queue),
            format,
            seq: message.seq,
            position: message.position,
            timestamp_ns: message.timestamp_ns,
            size: u64::try_from(size).unwrap_or(u64::MAX),
        }
    }
}

impl File for MessageFile {
    fn messages_of(&self) -> Option<&OpenQueue> {
        Some(&self.queue)
    }

    fn attr(&self) -> Result<Attr> {
        Ok(Attr::file(&self.queue.data_stat()?, READ).with_size(self.size).modified_at(self.timestamp_ns))
    }

    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        let (seq, position, format) = (self.seq, self.position, self.format);
        let loaded = Mutex::new(Loaded { bytes: None, kept: self.queue.kept_by(caller) });
        let handle = NumberedHandle { queue: Arc::clone(&self.queue), seq, position, format, loaded };
        if self.size <= SMALL {
            handle.load_into(&mut lock(&handle.loaded))?;
        } else {
            // The message of a name that the kernel has cached may be retired.
            with_message(&self.queue, seq, |_| ())?;
        }
        Ok(Box::new(handle))
    }

    fn generation(&self) -> u64 {
        self.queue.identity
    }

    fn message(&self) -> Option<u64> {
        (self.format == Format::Bin).then_some(self.seq)
    }

    fn is_current(&self) -> bool {
        self.queue.is_current()
    }

    fn ttl(&self) -> Ttl {
        // Where messages are retired, a name must not outlive its message for long.
        if self.queue.queue.settings().has_retention() { Ttl::NAME } else { Ttl::LONG }
    }
}

struct NumberedHandle {
    queue: Arc<OpenQueue>,
    seq: u64,
    position: Position,
    format: Format,
    loaded: Mutex<Loaded>,
}

/// A message that is being read.
struct Loaded {
    bytes: Option<Vec<u8>>,
    kept: Kept,
}

impl NumberedHandle {
    fn load_into(&self, loaded: &mut Loaded) -> Result<()> {
        let whole = self.load()?;
        loaded.kept.set(whole.len())?;
        loaded.bytes = Some(whole);
        Ok(())
    }

    fn load(&self) -> Result<Vec<u8>> {
        let mut scanner = self.queue.queue.scan()?;
        scanner.seek(self.position, self.seq)?;
        match scanner.next()? {
            Some(entry @ Entry::Message(message)) if message.seq == self.seq => {
                let mut bytes = Vec::with_capacity(rendered_len(self.format, &entry, None));
                render(self.format, &entry, None, &mut bytes);
                Ok(bytes)
            }
            _ => Err(Errno::ESTALE),
        }
    }
}

impl Handle for NumberedHandle {
    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        let mut loaded = lock(&self.loaded);
        if loaded.bytes.is_none() {
            self.load_into(&mut loaded)?;
        }
        let Loaded { bytes, kept } = &mut *loaded;
        let whole = bytes.as_deref().unwrap_or_default();
        let rest = usize::try_from(offset).ok().and_then(|offset| whole.get(offset..)).unwrap_or_default();
        out.extend_from_slice(&rest[..rest.len().min(size)]);
        // A message read to its end is in the kernel's cache now.
        if rest.len() <= size && u64::try_from(whole.len()).is_ok_and(|len| len > SMALL) {
            *bytes = None;
            kept.set(0)?;
        }
        Ok(Progress::Done)
    }

    fn caching(&self) -> Caching {
        Caching::Always
    }
}

/// `first` or `last`.
struct EndLink {
    queue: Arc<OpenQueue>,
    is_last: bool,
}

impl File for EndLink {
    fn attr(&self) -> Result<Attr> {
        let size = self.target()?.len();
        link_attr(&self.queue, size)
    }

    fn open(&self, _access: Access, _caller: &Caller) -> Result<Box<dyn Handle>> {
        Err(Errno::EINVAL)
    }

    fn generation(&self) -> u64 {
        self.queue.identity
    }

    fn ttl(&self) -> Ttl {
        Ttl::NONE
    }

    fn target(&self) -> Result<Vec<u8>> {
        let bounds = self.queue.queue.bounds()?;
        if bounds.next_seq <= bounds.first_seq {
            return Err(Errno::ENOENT);
        }
        let seq = if self.is_last { bounds.next_seq - 1 } else { bounds.first_seq };
        Ok(seq.to_string().into_bytes())
    }
}

/// Attributes of a symlink that leads to a message.
pub(in crate::fs) fn link_attr(queue: &OpenQueue, target_len: usize) -> Result<Attr> {
    let attr = Attr::file(&queue.data_stat()?, READ);
    Ok(Attr { kind: Kind::Symlink, mode: 0o777, size: u64::try_from(target_len).unwrap_or(0), ..attr })
}

/// What a listing of `messages/` returns.
pub(crate) enum Listed {
    Message(MessageFile),
    /// A symlink, of this generation.
    Link(u64),
    /// The directory itself, or the one above.
    Itself,
}

/// A listing of `messages/`, which goes on where it was.
pub(crate) struct MessageListing {
    queue: Arc<OpenQueue>,
    scanner: Option<Scanner>,
    /// The last message to list: otherwise a listing during appends might never end.
    last: Option<u64>,
}

impl MessageListing {
    pub(crate) fn new(queue: &Arc<OpenQueue>) -> Self {
        Self { queue: Arc::clone(queue), scanner: None, last: None }
    }

    /// Passes the names after `offset` to `add`, each with the offset after it, until there is no more room. For a
    /// message, the node is passed too.
    pub(crate) fn list(&mut self, offset: u64, mut add: impl FnMut(&str, Listed, u64) -> bool) -> Result<()> {
        let bounds = self.queue.queue.bounds()?;
        let last = match self.last {
            Some(last) if offset > 0 => last,
            _ => *self.last.insert(bounds.next_seq - 1),
        };
        if offset < NAMES {
            let mut scanner = match self.scanner.take().filter(|scanner| offset > 0 && scanner.seq() == offset + 1) {
                Some(scanner) => scanner,
                None => {
                    let mut scanner = self.queue.queue.scan()?;
                    scanner.seek_seq(offset.max(bounds.first_seq - 1) + 1)?;
                    scanner
                }
            };
            let mut digits = String::with_capacity(20);
            while scanner.seq() <= last {
                let message = match scanner.next()? {
                    Some(Entry::Message(message)) => message,
                    Some(Entry::Gap(_)) => continue,
                    None => break,
                };
                use std::fmt::Write as _;
                let (seq, before) = (message.seq, message.position);
                digits.clear();
                let _ = write!(digits, "{seq}");
                let file = MessageFile::new(&self.queue, Format::Bin, &message);
                if !add(&digits, Listed::Message(file), seq) {
                    scanner.seek(before, seq)?;
                    scanner.trim(0);
                    self.scanner = Some(scanner);
                    return Ok(());
                }
            }
        }
        let is_empty = bounds.next_seq <= bounds.first_seq;
        let names = [".", "..", "first", "last"];
        for (name, next) in names.into_iter().take(if is_empty { 2 } else { 4 }).zip(NAMES + 1..) {
            let listed = if name.starts_with('.') { Listed::Itself } else { Listed::Link(self.queue.identity) };
            if next > offset && !add(name, listed, next) {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_one_way() {
        assert_eq!((parse("1"), parse("18446744073709551615")), (Some(1), Some(u64::MAX)));
        for name in ["", "0", "01", "+1", "-1", "1x", " 1", "18446744073709551616"] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
