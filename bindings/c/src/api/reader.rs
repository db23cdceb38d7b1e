//! Reading.

use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use engine::queue::{self, KeptMessage};

use super::queue::Queue;
use super::{given, name_of, open, write};
use crate::entry::Entry;
use crate::failure::{Result, run, run_silently};
use crate::options::{self, ReaderOptions};
use crate::reader::{Reader, Source};

/// Ends waits, from any thread and from signal handlers; several readers and writers can share one.
#[derive(Debug)]
pub struct Stopper {
    pub(super) inner: queue::Stopper,
}

/// What keeps a payload where it is.
#[derive(Debug)]
pub struct Kept {
    _message: Arc<KeptMessage>,
}

fn options_of(options: Option<&ReaderOptions>) -> Result<queue::ReaderOptions> {
    options.copied().unwrap_or_default().to_engine()
}

/// Opens a registered reader, which keeps its position in the queue: chronfs_reader_commit() stores it, and retention keeps
/// what it has not read. A new one is registered. name: UTF-8; options: NULL for the defaults. The caller closes it by
/// chronfs_reader_close(). It keeps what it needs of the queue, which may be closed before it. In a child that was forked
/// while it was open all calls fail with CHRONFS_ERROR_POISONED; closing it there does not release the parent's lock.
///
/// Returns 0. Errors: BUSY if the reader is in use (chronfs_error_pid()), INVALID_INPUT, DAMAGED, IO.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_reader_open(
    queue: Option<&Queue>,
    name: *const c_char,
    options: Option<&ReaderOptions>,
    reader: Option<&mut MaybeUninit<Option<Box<Reader>>>>,
) -> c_int {
    open(reader, || {
        let reader = given(queue, "queue")?.inner.reader_with(name_of(name)?, &options_of(options)?)?;
        Ok(Reader::new(Source::Registered(Box::new(reader)), None))
    })
}

/// Opens a reader without a name: it stores nothing, and the permission to read is enough. If retention overtakes it, there
/// is a gap. options: NULL for the defaults. The caller closes it by chronfs_reader_close().
///
/// Returns 0. Errors: INVALID_INPUT, IO.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_tailer_open(
    queue: Option<&Queue>,
    options: Option<&ReaderOptions>,
    tailer: Option<&mut MaybeUninit<Option<Box<Reader>>>>,
) -> c_int {
    open(tailer, || {
        let tailer = given(queue, "queue")?.inner.tailer_with(&options_of(options)?)?;
        Ok(Reader::new(Source::Unregistered(Box::new(tailer)), None))
    })
}

/// Opens a tailer that ends after the messages that are there now: chronfs_reader_next() returns 0 then, and
/// chronfs_reader_wait() is not allowed. options: NULL for the defaults. The caller closes it by chronfs_reader_close().
///
/// Returns 0. Errors: INVALID_INPUT, IO.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_scan_open(
    queue: Option<&Queue>,
    options: Option<&ReaderOptions>,
    scan: Option<&mut MaybeUninit<Option<Box<Reader>>>>,
) -> c_int {
    open(scan, || {
        let (queue, options) = (&given(queue, "queue")?.inner, options_of(options)?);
        let end_seq = queue.bounds()?.end_seq;
        Ok(Reader::new(Source::Unregistered(Box::new(queue.tailer_with(&options)?)), Some(end_seq)))
    })
}

/// Closes a reader, tailer or scan, after which its payloads are invalid, but for those that are kept. NULL: nothing.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_reader_close(reader: Option<Box<Reader>>) {
    run_silently(|| drop(reader));
}

/// Stores the next message, or the next gap, in *entry. Does not wait. The payload is valid until the next call of this
/// function on this reader, or its close; chronfs_reader_keep_payload() makes it valid for longer. Other calls don't affect it.
///
/// Returns 1; 0 if there is none now (a scan: if it has ended). *entry is unchanged then. Errors: IO, POISONED in a forked
/// child. Damage is a gap, not an error.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_reader_next(reader: Option<&mut Reader>, entry: Option<&mut MaybeUninit<Entry>>) -> c_int {
    run(|| {
        let entry = given(entry, "place for the entry")?;
        match given(reader, "reader")?.next()? {
            Some(next) => {
                entry.write(next);
                Ok(1)
            }
            None => Ok(0),
        }
    })
}

/// Waits until there is something to read, at most timeout_ns ns; negative: for ever. Signals that the process handles don't
/// end it: their handlers may call chronfs_stopper_stop(), which does.
///
/// Returns 1 if there is something, 0 if the time has passed. Errors: STOPPED; INVALID_INPUT for a scan; IO, also if the
/// queue has been removed; POISONED in a forked child.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_reader_wait(reader: Option<&mut Reader>, timeout_ns: i64) -> c_int {
    run(|| {
        let timeout = u64::try_from(timeout_ns).ok().map(Duration::from_nanos);
        Ok(c_int::from(given(reader, "reader")?.wait(timeout)?))
    })
}

/// Keeps the payload of the last message that chronfs_reader_next() has returned where it is until chronfs_kept_release(),
/// also when the reader goes on or is closed. What is kept is the message's whole segment, with its space on the disk if
/// retention removes it meanwhile: don't keep it for long. *kept is the caller's.
///
/// Returns 0. Errors: INVALID_INPUT if the last entry was not a message.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_reader_keep_payload(
    reader: Option<&mut Reader>,
    kept: Option<&mut MaybeUninit<Option<Box<Kept>>>>,
) -> c_int {
    open(kept, || Ok(Kept { _message: given(reader, "reader")?.keep()? }))
}

/// Releases a payload that was kept. Any thread may do so. NULL: nothing.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_kept_release(kept: Option<Box<Kept>>) {
    run_silently(|| drop(kept));
}

/// Consumes everything that has been read: a registered reader of this name continues after it, even after a crash. Makes no
/// system call; survives the process at once, and a power cut after chronfs_reader_commit_sync().
///
/// Returns 0. Errors: INVALID_INPUT for a tailer or scan; POISONED in a forked child.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_reader_commit(reader: Option<&mut Reader>) -> c_int {
    run(|| {
        let reader = given(reader, "reader")?.registered()?;
        // Not `commit`, which does nothing after a fork and does not say so.
        reader.commit_to(reader.seq().saturating_sub(1))?;
        Ok(0)
    })
}

/// Consumes the messages up to seq, and not those that were read after it.
///
/// Returns 0. Errors: as chronfs_reader_commit(); NOT_FOUND if it has not been read yet, or if a later one has been committed.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_reader_commit_to(reader: Option<&mut Reader>, seq: u64) -> c_int {
    run(|| {
        given(reader, "reader")?.registered()?.commit_to(seq)?;
        Ok(0)
    })
}

/// As chronfs_reader_commit(), and returns when it is on disk.
///
/// Errors: as chronfs_reader_commit(); IO.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_reader_commit_sync(reader: Option<&mut Reader>) -> c_int {
    run(|| {
        given(reader, "reader")?.registered()?.commit_sync()?;
        Ok(0)
    })
}

/// Stores the sequence number that comes next in *seq.
///
/// Returns 0.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_reader_seq(reader: Option<&mut Reader>, seq: Option<&mut MaybeUninit<u64>>) -> c_int {
    run(|| {
        write(seq, given(reader, "reader")?.seq());
        Ok(0)
    })
}

/// Stores how many messages there are that it has not read in *messages. Reads files: not for each message.
///
/// Returns 0. Errors: IO.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_reader_lag(reader: Option<&mut Reader>, messages: Option<&mut MaybeUninit<u64>>) -> c_int {
    run(|| {
        write(messages, given(reader, "reader")?.lag()?);
        Ok(0)
    })
}

/// Moves to another place: start is one of CHRONFS_START_FIRST, ..., at as in chronfs_reader_options. A registered reader's
/// position is not stored until it commits.
///
/// Returns 0. Errors: INVALID_INPUT, IO.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_reader_seek(reader: Option<&mut Reader>, start: c_int, at: u64) -> c_int {
    run(|| {
        given(reader, "reader")?.seek(options::start(start, at)?)?;
        Ok(0)
    })
}

/// For programs that poll with chronfs_reader_next() and never wait: to be called about once a second. Shows that the reader
/// is alive (reader_ttl_ns), and notices changes that nobody announces.
///
/// Returns 0. Errors: IO if the queue has been removed; POISONED in a forked child.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_reader_keep_alive(reader: Option<&mut Reader>) -> c_int {
    run(|| {
        given(reader, "reader")?.keep_alive()?;
        Ok(0)
    })
}

/// From now on this stopper ends the reader's waits, instead of the one before. The stopper may be freed before the reader.
///
/// Returns 0.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_reader_set_stopper(reader: Option<&mut Reader>, stopper: Option<&Stopper>) -> c_int {
    run(|| {
        given(reader, "reader")?.set_stopper(&given(stopper, "stopper")?.inner);
        Ok(0)
    })
}

/// Makes a stopper. The caller frees it by chronfs_stopper_free().
///
/// Returns 0.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_stopper_new(stopper: Option<&mut MaybeUninit<Option<Box<Stopper>>>>) -> c_int {
    open(stopper, || Ok(Stopper { inner: queue::Stopper::new() }))
}

/// Ends the present waits, and all later ones at once, until chronfs_stopper_clear(): they fail with CHRONFS_ERROR_STOPPED.
/// May be called by any thread, and in signal handlers. NULL: nothing.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_stopper_stop(stopper: Option<&Stopper>) {
    if let Some(stopper) = stopper {
        stopper.inner.stop();
    }
}

/// Lets later waits wait again. NULL: nothing.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_stopper_clear(stopper: Option<&Stopper>) {
    if let Some(stopper) = stopper {
        stopper.inner.clear();
    }
}

/// Frees a stopper. What uses it can't be stopped any more. NULL: nothing.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_stopper_free(stopper: Option<Box<Stopper>>) {
    run_silently(|| drop(stopper));
}
