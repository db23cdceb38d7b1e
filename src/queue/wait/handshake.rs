//! The writer's half of the handshake with sleepers, on plain atomics: `tests/model.rs` includes this file and tries
//! every interleaving of it.
//!
//! Invariant: the flag is cleared before `notify_seq` is incremented. A sleeper reads `notify_seq` before it sets the
//! flag. So either its flag is set after the clearing and stays, or `notify_seq` has changed and the sleeper does not
//! fall asleep.

use crate::sync::{AtomicU32, Ordering, compiler_fence, fence};

/// Whether a reader may be asleep; to be called after a commit word has been stored.
///
/// SYNC POINT with `Waiter::announce`. `asymmetric`: the sleeper's barrier reaches us, so no fence is needed here.
#[inline]
pub(crate) fn is_somebody_asleep(sleeping: &AtomicU32, asymmetric: bool) -> bool {
    if asymmetric {
        // Keeps the compiler from moving the load before the store; the sleeper's barrier does the rest.
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
    sleeping.load(Ordering::Relaxed) != 0
}

/// What must be stored before sleepers are woken.
#[inline]
pub(crate) fn announce_news(sleeping: &AtomicU32, notify_seq: &AtomicU32) {
    sleeping.store(0, Ordering::Relaxed);
    notify_seq.fetch_add(1, Ordering::Release);
}
