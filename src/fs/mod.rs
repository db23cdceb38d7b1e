//! The mount: queues as files.
//!
//! Layers, from the kernel down: `kernel/` is the only place that names `fuser`; it turns requests into calls of
//! `tree` and answers into replies. `tree` knows directories and handles, in our own types, and is tested without a
//! kernel; `children` knows what is in a directory. `nodes` is the one table of what a directory shows; `files/` has one file per family of rows. `queues`
//! holds what the mount knows of each queue (its open handle, its writer), `watch` the threads that sleep for blocked
//! readers, `parked` those readers, `budget` what users may hold, `indexer` the thread that makes indexes ahead of need.
//! `backing` is the way into the directory that is mirrored, `credentials` the way to act in it with the rights of whoever
//! calls.
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

/// Locks; a panic of an earlier holder has been answered with EIO, the state behind the lock is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`], shared.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`], alone.
fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
