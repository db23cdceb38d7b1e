//! Work that may take long, such as indexing a queue of millions of messages before its size can be told.
//!
//! The threads that serve the kernel's requests are few. On them such work is cut off with [`Errno::LATER`]; the
//! request is then done again, from the start, on a thread of its own, where it may take as long as it takes. So one
//! large queue does not hold up the others.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::sync::{AtomicU32, Ordering};

use super::errno::{Errno, Result};

/// More requests than this are not done on threads of their own at a time; further ones hold up others after all.
const MAX_THREADS: u32 = 64;

thread_local! {
    static PATIENT: Cell<bool> = const { Cell::new(false) };
}

/// Whether the current thread may take long.
pub(crate) fn is_patient() -> bool {
    PATIENT.get()
}

/// Runs requests, the long ones aside.
#[derive(Default)]
pub(crate) struct Lanes {
    threads: Arc<AtomicU32>,
    /// How many serving threads run a request just now, where that is limited, and the limit.
    serving: Option<(AtomicU32, u32)>,
}

impl Lanes {
    /// For requests that wait for the server itself: at most so many serving threads run them at a time.
    pub(crate) fn at_most(limit: u32) -> Self {
        Self { serving: Some((AtomicU32::new(0), limit)), ..Self::default() }
    }

    /// Runs the request here, unless it takes long or too many threads do so already.
    fn run_here<T>(&self, request: impl Fn() -> Result<T>) -> Result<T> {
        let Some((serving, limit)) = &self.serving else { return request() };
        let is_free = serving.fetch_add(1, Ordering::Relaxed) < *limit;
        let result = if is_free { catch_unwind(AssertUnwindSafe(request)) } else { Ok(Err(Errno::LATER)) };
        serving.fetch_sub(1, Ordering::Relaxed);
        result.unwrap_or(Err(Errno::EIO))
    }

    /// Runs `request` and gives its result to `answer`; on another thread if it takes long.
    pub(crate) fn run<T>(
        &self,
        request: impl Fn() -> Result<T> + Send + 'static,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        match self.run_here(&request) {
            Err(Errno::LATER) => {}
            result => return answer(result),
        }
        let patiently = move || {
            PATIENT.set(true);
            // A panic drops the reply, which answers EIO.
            let done = catch_unwind(AssertUnwindSafe(|| answer(request())));
            PATIENT.set(false);
            drop(done);
        };
        if self.threads.fetch_add(1, Ordering::Relaxed) >= MAX_THREADS && self.serving.is_none() {
            self.threads.fetch_sub(1, Ordering::Relaxed);
            return patiently();
        }
        let threads = Arc::clone(&self.threads);
        let run = move || {
            patiently();
            threads.fetch_sub(1, Ordering::Relaxed);
        };
        // Without a thread the request is dropped, and with it the reply: the caller gets EIO.
        if std::thread::Builder::new().name("chronfs-long".into()).stack_size(512 << 10).spawn(run).is_err() {
            self.threads.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn what_takes_long_is_done_again_on_another_thread() {
        let (sender, receiver) = mpsc::channel();
        let here = std::thread::current().id();
        let request = move || if is_patient() { Ok(std::thread::current().id()) } else { Err(Errno::LATER) };
        Lanes::default().run(request, move |result| sender.send(result).unwrap());
        assert_ne!(receiver.recv().unwrap().unwrap(), here);
        assert!(!is_patient());
    }
}
