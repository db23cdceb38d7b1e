//! The queue.

use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;

use engine::report::{Lease, inspection_json};
use engine::{bus, queue};

use super::{given, open, path_of, write};
use crate::failure::{Result, c_string, run, run_silently};
use crate::options::Settings;

/// A queue: a directory of files. Any number of threads may use it at the same time, and both sides of a fork.
#[derive(Debug)]
pub struct Queue {
    pub(super) inner: queue::Queue,
}

fn settings_of(settings: Option<&Settings>) -> Result<queue::Settings> {
    settings.copied().unwrap_or_default().to_engine()
}

/// Opens the queue in the directory `path`. The caller closes it by chronfs_queue_close().
///
/// Returns 0. Errors: NOT_FOUND if there is none, DAMAGED, UNSUPPORTED, IO.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_queue_open(
    path: *const c_char,
    queue: Option<&mut MaybeUninit<Option<Box<Queue>>>>,
) -> c_int {
    open(queue, || Ok(Queue { inner: queue::Queue::open(path_of(path)?)? }))
}

/// Creates a queue in the directory `path`, and missing parent directories. settings: NULL for the defaults. The caller
/// closes it by chronfs_queue_close().
///
/// Returns 0. Errors: ALREADY_EXISTS, INVALID_INPUT for settings that are not allowed, BUSY if another process is creating
/// it, IO.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_queue_create(
    path: *const c_char,
    settings: Option<&Settings>,
    queue: Option<&mut MaybeUninit<Option<Box<Queue>>>>,
) -> c_int {
    open(queue, || Ok(Queue { inner: queue::Queue::create(path_of(path)?, &settings_of(settings)?)? }))
}

/// As chronfs_queue_create(), for a queue whose first message gets the number first_seq: a copy of another queue
/// (chronfs_writer_append_exact()).
///
/// Errors: as chronfs_queue_create(); NOT_FOUND for 0, and for a number that no queue reaches.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_queue_create_at(
    path: *const c_char,
    settings: Option<&Settings>,
    first_seq: u64,
    queue: Option<&mut MaybeUninit<Option<Box<Queue>>>>,
) -> c_int {
    open(queue, || {
        let inner = queue::Queue::create_at(path_of(path)?, &settings_of(settings)?, first_seq)?;
        Ok(Queue { inner })
    })
}

/// Opens a queue, or creates it with these settings if there is none. An existing one keeps its own settings.
///
/// Errors: as chronfs_queue_open() and chronfs_queue_create().
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_queue_open_or_create(
    path: *const c_char,
    settings: Option<&Settings>,
    queue: Option<&mut MaybeUninit<Option<Box<Queue>>>>,
) -> c_int {
    open(queue, || Ok(Queue { inner: queue::Queue::open_or_create(path_of(path)?, &settings_of(settings)?)? }))
}

/// Closes a queue. Its writers and readers stay open. NULL: nothing.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_queue_close(queue: Option<Box<Queue>>) {
    run_silently(|| drop(queue));
}

/// The sequence number of the first message that is still there, and the one that the next message gets. Either place
/// may be NULL. Reads files.
///
/// Returns 0. Errors: IO.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_queue_bounds(
    queue: Option<&Queue>,
    first_seq: Option<&mut MaybeUninit<u64>>,
    next_seq: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    run(|| {
        let bounds = given(queue, "queue")?.inner.bounds()?;
        write(first_seq, bounds.first_seq);
        write(next_seq, bounds.next_seq);
        Ok(0)
    })
}

/// All that is known of the queue as one line of JSON, as `chron-cli inspect --json` prints it: its messages, writer,
/// settings, segments and readers. Takes no lock and changes nothing. READY and LEASE files that can't be read don't count.
/// The text is the caller's: chronfs_string_free().
///
/// Returns 0. Errors: IO. *json is NULL then.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_queue_inspect(queue: Option<&Queue>, json: Option<&mut MaybeUninit<*mut c_char>>) -> c_int {
    run(|| {
        let json = given(json, "place for the text")?.write(std::ptr::null_mut());
        let queue = &given(queue, "queue")?.inner;
        let ready = bus::ready(queue.path()).ok().flatten().is_some();
        let lease = bus::lease(queue.path()).ok().flatten();
        let (lease, relays) = (lease.as_ref().map(Lease::from), bus::relays(queue.path()));
        let text = inspection_json(&queue.inspect()?, ready, lease.as_ref(), &relays);
        *json = c_string(text.as_bytes()).into_raw();
        Ok(0)
    })
}
