//! `follow.*`: messages committed after opening; in a reader's directory and below `since/`, first the existing
//! messages from that place on. A read with nothing to return waits. A follower that retention has overtaken gets one
//! EPIPE and continues at the oldest retained message: never a silent gap.

use std::sync::{Arc, Mutex};

use crate::fs::attr::{Attr, READ};
use crate::fs::budget::Kept;
use crate::fs::errno::Result;
use crate::fs::files::at_since;
use crate::fs::lock;
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::queues::permission::Permission;
use crate::fs::site::{Access, Caller, File, Site};
use crate::fs::tree::handles::{Handle, Progress};
use crate::queue::{Gap, GapReason};
use crate::view::{Format, Rendering, Stream};

struct Follow {
    queue: Arc<OpenQueue>,
    from: From,
    shows: Shows,
    /// See [`below_chunk`].
    max_chunk: usize,
}

/// How messages are shown.
#[derive(Clone, Copy)]
enum Shows {
    As(Format),
    /// Decoded, by the schema that the queue has when the file is opened.
    #[cfg(feature = "decode")]
    Decoded,
}

impl Shows {
    fn rendering(self, queue: &OpenQueue) -> Result<Rendering> {
        match self {
            Self::As(format) => {
                let _ = queue;
                Ok(format.into())
            }
            #[cfg(feature = "decode")]
            Self::Decoded => Ok(queue.schema()?.0.into()),
        }
    }
}

/// Where a follower starts.
enum From {
    End,
    /// At the reader's position at open.
    Reader(Arc<str>),
    /// At a place of `since/`.
    Place(Arc<str>),
}

/// Row constructor.
pub(crate) fn follow(site: &Site, format: Format) -> Result<Arc<dyn File>> {
    make(site, From::End, Shows::As(format))
}

/// Row constructor: decoded, where the queue has a schema.
#[cfg(feature = "decode")]
pub(crate) fn follow_decoded(site: &Site) -> Result<Arc<dyn File>> {
    site.queue()?.schema()?;
    make(site, From::End, Shows::Decoded)
}

/// Row constructor, in a reader's directory.
pub(crate) fn follow_reader(site: &Site, format: Format) -> Result<Arc<dyn File>> {
    make(site, From::Reader(site.subject()?), Shows::As(format))
}

/// Row constructor, below `since/`.
pub(crate) fn follow_since(site: &Site, format: Format) -> Result<Arc<dyn File>> {
    make(site, From::Place(site.subject()?), Shows::As(format))
}

fn make(site: &Site, from: From, shows: Shows) -> Result<Arc<dyn File>> {
    Ok(Arc::new(Follow { queue: Arc::clone(site.queue()?), from, shows, max_chunk: site.shared.max_chunk }))
}

impl File for Follow {
    fn messages_of(&self) -> Option<&OpenQueue> {
        Some(&self.queue)
    }

    fn attr(&self) -> Result<Attr> {
        Ok(Attr::file(&self.queue.data_stat()?, READ))
    }

    fn open(&self, access: Access, caller: &Caller) -> Result<Box<dyn Handle>> {
        access.reading()?;
        let mut scanner = self.queue.queue.scan()?;
        let (first, first_seq) = (scanner.position(), scanner.seq());
        let mut from = first_seq;
        match &self.from {
            From::End => scanner.seek_end()?,
            From::Reader(name) => {
                from = self.queue.queue.reader_position(name)?;
                scanner.seek_seq(from)?;
            }
            From::Place(place) => at_since::seek(&self.queue, &mut scanner, place)?,
        }
        // Messages that retention removed while the reader was not in use.
        let reason = GapReason::Retired;
        let overtaken = (from < first_seq).then(|| Gap { from, to: first_seq - 1, reason, position: first });
        let stream = Stream::new(scanner, self.shows.rendering(&self.queue)?).after(overtaken);
        Ok(Box::new(FollowHandle {
            queue: Arc::clone(&self.queue),
            permission: Permission::new(caller),
            stream: Mutex::new((stream, self.queue.kept_by(caller))),
            max_chunk: self.max_chunk,
        }))
    }

    fn generation(&self) -> u64 {
        self.queue.identity
    }

    fn is_current(&self) -> bool {
        // Whether there is a schema, opening it finds out.
        self.queue.is_current()
    }
}

/// How much a stream may return for a read of `size` bytes. The kernel splits a large read into chunks, and asks for
/// the next one when a chunk came back full: that request would block though there is data to return, or consume
/// messages that the caller did not ask for. So a chunk of that size is never filled.
pub(in crate::fs) fn below_chunk(size: usize, max_chunk: usize) -> usize {
    if size + 4096 > max_chunk { size.saturating_sub(1).max(1) } else { size }
}

struct FollowHandle {
    queue: Arc<OpenQueue>,
    permission: Permission,
    stream: Mutex<(Stream, Kept)>,
    /// See [`below_chunk`].
    max_chunk: usize,
}

/// Charges for what a stream keeps; what must not be kept is read again.
fn charge((stream, kept): &mut (Stream, Kept)) -> Result<()> {
    kept.set(stream.kept()).inspect_err(|_| {
        stream.put_back();
        // No more than before.
        let _ = kept.set(stream.kept());
    })
}

impl Handle for FollowHandle {
    fn read(&self, _offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        self.permission.check(|caller| self.queue.check_goes_on(caller))?;
        let size = below_chunk(size, self.max_chunk);
        let start = out.len();
        let mut stream = lock(&self.stream);
        // An error occurs again at the next read.
        let _ = stream.0.ready();
        charge(&mut stream)?;
        let result = stream.0.read(size, out);
        let _ = charge(&mut stream);
        match result {
            // Reported once; the next read continues after it.
            Ok(Some(gap)) => Err(gap.into()),
            Ok(None) if out.len() == start => Ok(Progress::Wait(vec![Arc::clone(&self.queue)])),
            Ok(None) => Ok(Progress::Done),
            // What was read before the error is returned; the error occurs again at the next read.
            Err(_) if out.len() > start => Ok(Progress::Done),
            Err(error) => Err(error.into()),
        }
    }

    fn blocked(&self) -> Option<Vec<Arc<OpenQueue>>> {
        let mut stream = lock(&self.stream);
        let is_ready = stream.0.ready();
        let _ = charge(&mut stream);
        match is_ready {
            Ok(false) => Some(vec![Arc::clone(&self.queue)]),
            // The read will report an error.
            Ok(true) | Err(_) => None,
        }
    }
}
