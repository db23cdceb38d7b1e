//! The mount: queues as files.
//!
//! Layers, from the kernel down: `kernel/` is the only place that names `fuser`; it turns requests into calls of `tree`
//! and results into replies. `tree` has directories and handles, in our own types, and is tested without a kernel; its
//! `children` lists what is in a directory. `nodes` is the one table of what a directory shows; `files/` has one file
//! per family of rows. `queues/` holds the state of each open queue (its handle, its writer) and the `indexer` that
//! creates indexes in the background; `waiting/` has the parked reads and the threads that sleep for them;
//! `page_cache/` keeps rendered text in the kernel. `budget` limits what users may hold. `backing` opens files in the
//! mirrored directory, `credentials` acts there with the caller's rights. `kind` has what other programs share that mount
//! file systems of their own.
//!
//! Lock order, outermost first: a handle's own state, a queue's writer. The tables (inodes,
//! handles, queues, a queue's list of parked reads) are leaves: nothing is rendered, read or locked under them.

mod attr;
mod backing;
mod budget;
mod callers;
mod credentials;
pub mod daemon;
mod daemon_log;
mod errno;
mod error;
mod files;
mod kernel;
pub mod kind;
mod log_limit;
pub mod mount;
mod mountinfo;
mod nodes;
mod options;
mod page_cache;
mod queues;
mod site;
mod survey;
mod tree;
#[cfg(test)]
mod tree_model;
mod waiting;

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Locks. Poisoning is ignored: a panic of an earlier holder has been answered with EIO, and the guarded state is still
/// consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a thread that nobody joins, with a stack of this many bytes: there may be many.
fn spawn(name: &str, stack_size: usize, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(stack_size).spawn(run).map(drop)
}

/// As [`lock`], for reading.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`], for writing.
fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
