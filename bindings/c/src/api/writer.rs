//! Writing.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

use engine::queue::{Exact, QueueWriter, Reservation};

use super::queue::Queue;
use super::reader::Stopper;
use super::{Out, given, open, payload_of, write};
use crate::failure::{Failure, Result, run, run_silently};
use crate::options::WriterOptions;

/// Appends messages to a queue, which has one writer at a time. One thread at a time uses it. In a child that was forked
/// while it was open all calls fail with CHRONFS_ERROR_POISONED; closing it there does not release the parent's lock.
#[derive(Debug)]
pub struct Writer {
    /// Borrows from `writer`, which nothing else uses while this is there.
    reserved: Option<Reservation<'static>>,
    /// From `Box::into_raw`; owned.
    writer: NonNull<QueueWriter>,
}

impl Writer {
    fn new(writer: QueueWriter) -> Self {
        Self { reserved: None, writer: NonNull::from(Box::leak(Box::new(writer))) }
    }

    #[inline]
    fn free(&mut self) -> Result<&mut QueueWriter> {
        if self.reserved.is_some() {
            return Err(Failure::invalid("a record is reserved: commit or cancel it first"));
        }
        // SAFETY: it lives until this is dropped, and nothing borrows from it now.
        Ok(unsafe { self.writer.as_mut() })
    }

    fn reserve(&mut self, msg_type: u16, len: usize) -> Result<*mut c_void> {
        self.free()?;
        // SAFETY: it lives until this is dropped, which drops the reservation first; until then `free` refuses.
        let writer: &'static mut QueueWriter = unsafe { self.writer.as_mut() };
        let reserved = self.reserved.insert(writer.reserve(msg_type, len)?);
        Ok(reserved.as_mut_ptr().cast())
    }

    fn take_reserved(&mut self) -> Result<Reservation<'static>> {
        self.reserved.take().ok_or_else(|| Failure::invalid("no record is reserved"))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.reserved = None;
        // SAFETY: it came from a box, and nothing borrows from it any more.
        drop(unsafe { Box::from_raw(self.writer.as_ptr()) });
    }
}

/// Calls `append` and stores the sequence number that it returns.
#[inline]
fn append(
    writer: Option<&mut Writer>,
    seq: Out<'_, u64>,
    append: impl FnOnce(&mut QueueWriter) -> Result<u64>,
) -> c_int {
    run(|| {
        write(seq, append(given(writer, "writer")?.free()?)?);
        Ok(0)
    })
}

/// Becomes the queue's writer: takes the lock and repairs what a killed writer left. options: NULL for the defaults. The
/// caller closes it by chronfs_writer_close(). It keeps what it needs of the queue, which may be closed before it. Its helper
/// threads end with it.
///
/// Returns 0. Errors: BUSY if there is another writer (chronfs_error_pid()), WRONG_ROLE, INVALID_INPUT, IO.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_writer_open(
    queue: Option<&Queue>,
    options: Option<&WriterOptions>,
    writer: Option<&mut MaybeUninit<Option<Box<Writer>>>>,
) -> c_int {
    open(writer, || {
        let options = options.copied().unwrap_or_default().to_engine()?;
        Ok(Writer::new(given(queue, "queue")?.inner.writer_with(&options)?))
    })
}

/// Closes a writer; a record that is reserved is cancelled. What has been appended stays, and is not synced by this. NULL:
/// nothing.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_writer_close(writer: Option<Box<Writer>>) {
    run_silently(|| drop(writer));
}

/// Appends a message of len bytes with the current time; payload may be NULL if len is 0. type: 0 to 65534. Its sequence
/// number is stored in *seq, which may be NULL. Every reader can see it when this returns, and it survives the process; it
/// survives a power cut after chronfs_writer_flush_sync().
///
/// Returns 0. Errors: FULL, INVALID_INPUT for a payload that is too long (chronfs_writer_max_payload_len()) or type 65535, IO;
/// nothing has been appended then. STOPPED if it waited for room. POISONED after a failure that can't be mended, and in a
/// forked child.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_writer_append(
    writer: Option<&mut Writer>,
    r#type: u16,
    payload: *const c_void,
    len: usize,
    seq: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    append(writer, seq, |writer| Ok(writer.append(r#type, payload_of(payload, len)?)?))
}

/// As chronfs_writer_append(), with an explicit timestamp in ns since the epoch: for imports and replays.
///
/// Errors: as chronfs_writer_append(); INVALID_INPUT if the timestamp is before that of the newest message, or further ahead
/// of the clock than the writer's max_ahead_ns.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_writer_append_at(
    writer: Option<&mut Writer>,
    timestamp_ns: u64,
    r#type: u16,
    payload: *const c_void,
    len: usize,
    seq: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    append(writer, seq, |writer| Ok(writer.append_at(timestamp_ns, r#type, payload_of(payload, len)?)?))
}

/// What chronfs_writer_append_exact() has done.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExactResult {
    /// The queue has an equal message with this number already.
    Ignored = 0,
    /// It was the next message, and has been appended.
    Appended = 1,
    /// It has been appended after a gap: the messages between the one before and it will never come.
    AppendedAfterGap = 2,
    /// Its number has been passed, and nothing is left to compare it with.
    Gone = 3,
}

/// Appends a message of another queue with its number and timestamp (ns since the epoch): for copies of a queue. It may be
/// called again with messages that the queue has already, and never assigns a number twice. seq: its number in the other
/// queue; payload as for chronfs_writer_append().
///
/// Returns one of CHRONFS_EXACT_IGNORED, ..., all of them 0 or more. Errors: as chronfs_writer_append_at(); INVALID_INPUT if
/// another message has this number here: the queues have diverged; NOT_FOUND for a number that no queue reaches.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_writer_append_exact(
    writer: Option<&mut Writer>,
    seq: u64,
    timestamp_ns: u64,
    r#type: u16,
    payload: *const c_void,
    len: usize,
) -> c_int {
    run(|| {
        let writer = given(writer, "writer")?.free()?;
        let done = match writer.append_exact(seq, timestamp_ns, r#type, payload_of(payload, len)?)? {
            Exact::Appended => ExactResult::Appended,
            Exact::AppendedAfterGap { .. } => ExactResult::AppendedAfterGap,
            Exact::Ignored => ExactResult::Ignored,
            // A number that has been passed; there is no other case yet.
            _ => ExactResult::Gone,
        };
        Ok(done as c_int)
    })
}

/// Reserves a record, to be filled in place: *payload points to len bytes in the mapped file, which may be written until
/// chronfs_writer_commit() or chronfs_writer_cancel(), one of which must follow: other calls on this writer but
/// chronfs_writer_close() fail until then. What is in them at first is unspecified: fill in all that is committed.
///
/// Returns 0. Errors: as chronfs_writer_append(). *payload is NULL then, and nothing is reserved.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_writer_reserve(
    writer: Option<&mut Writer>,
    r#type: u16,
    len: usize,
    payload: Option<&mut MaybeUninit<*mut c_void>>,
) -> c_int {
    run(|| {
        let payload = given(payload, "place for the payload")?.write(ptr::null_mut());
        *payload = given(writer, "writer")?.reserve(r#type, len)?;
        Ok(0)
    })
}

/// Appends the first len bytes of the record that is reserved, with the current time. Its sequence number is stored in *seq,
/// which may be NULL.
///
/// Returns 0. Errors: as chronfs_writer_append(); INVALID_INPUT if fewer bytes are reserved, or none. Nothing is reserved
/// afterwards in any case.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_writer_commit(
    writer: Option<&mut Writer>,
    len: usize,
    seq: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    run(|| {
        write(seq, given(writer, "writer")?.take_reserved()?.commit_len(len)?);
        Ok(0)
    })
}

/// As chronfs_writer_commit(), with an explicit timestamp as for chronfs_writer_append_at().
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_writer_commit_at(
    writer: Option<&mut Writer>,
    len: usize,
    timestamp_ns: u64,
    seq: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    run(|| {
        write(seq, given(writer, "writer")?.take_reserved()?.commit_len_at(len, timestamp_ns)?);
        Ok(0)
    })
}

/// Cancels the record that is reserved: nothing is appended.
///
/// Returns 0. Errors: INVALID_INPUT if none is.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_writer_cancel(writer: Option<&mut Writer>) -> c_int {
    run(|| {
        drop(given(writer, "writer")?.take_reserved()?);
        Ok(0)
    })
}

/// Returns when all that has been appended is on disk.
///
/// Returns 0. Errors: POISONED if the disk has failed: what has been appended since the last success may be lost. IO.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_writer_flush_sync(writer: Option<&mut Writer>) -> c_int {
    run(|| {
        given(writer, "writer")?.free()?.flush_sync()?;
        Ok(0)
    })
}

/// Starts to write what has been appended to disk, and does not wait for it; nor does chronfs_writer_close(), if that has not
/// begun by then.
///
/// Returns 0. Errors: as chronfs_writer_flush_sync().
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_writer_flush_async(writer: Option<&mut Writer>) -> c_int {
    run(|| {
        given(writer, "writer")?.free()?.flush_async()?;
        Ok(0)
    })
}

/// Stores the sequence number that the next message gets in *seq.
///
/// Returns 0.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_writer_next_seq(writer: Option<&mut Writer>, seq: Option<&mut MaybeUninit<u64>>) -> c_int {
    append(writer, seq, |writer| Ok(writer.next_seq()))
}

/// Stores the time that a message would have if it were appended now, in ns since the epoch, in *now_ns. Messages that arrive
/// together can share one reading of the clock, which is a third of what appending a short message costs: pass *now_ns to
/// chronfs_writer_append_at() for each, as long as nothing else is appended between them.
///
/// Returns 0.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_writer_now_ns(writer: Option<&mut Writer>, now_ns: Option<&mut MaybeUninit<u64>>) -> c_int {
    append(writer, now_ns, |writer| Ok(writer.now_ns()))
}

/// Stores the length of the longest payload that the queue takes, in bytes, in *len.
///
/// Returns 0.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_writer_max_payload_len(
    writer: Option<&mut Writer>,
    len: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    run(|| {
        write(len, given(writer, "writer")?.free()?.max_payload_len());
        Ok(0)
    })
}

/// From now on this stopper ends the writer's waits for room (wait_when_full_ns), instead of the one before. The stopper may
/// be freed before the writer.
///
/// Returns 0.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_writer_set_stopper(writer: Option<&mut Writer>, stopper: Option<&Stopper>) -> c_int {
    run(|| {
        given(writer, "writer")?.free()?.set_stopper(&given(stopper, "stopper")?.inner);
        Ok(0)
    })
}
