//! `poll` and its kin on streams. The kernel asks once, and is notified when to ask again.

use std::sync::{Arc, Mutex};

use crate::fs::errno::Result;
use crate::fs::lock;
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::tree::handles::{Notify, OpenFile};
use crate::fs::waiting::watch::Watches;

/// Whether the handle can be read without waiting. If not, `notify` is called once it can.
pub(crate) fn poll(watches: &Watches, open: &Arc<OpenFile>, notify: Option<Notify>) -> Result<bool> {
    let Some(queues) = open.handle.blocked() else {
        *lock(&open.edge) = notify;
        return Ok(true);
    };
    let Some(notify) = notify else { return Ok(false) };
    let notify = Arc::new(Mutex::new(Some(notify)));
    let is_ready = wait_for(watches, open, &queues, &notify)?;
    if is_ready {
        *lock(&open.edge) = lock(&notify).take();
    }
    Ok(is_ready)
}

/// A read found nothing and does not wait: an edge-triggered poller (`EPOLLET`) must be notified when there is data
/// again.
pub(crate) fn found_nothing(watches: &Watches, open: &Arc<OpenFile>) -> Result<()> {
    let Some(notify) = lock(&open.edge).take() else { return Ok(()) };
    let notify = Arc::new(Mutex::new(Some(notify)));
    let queues = open.handle.blocked().unwrap_or_default();
    if queues.is_empty() || wait_for(watches, open, &queues, &notify)? {
        call(&notify);
    }
    Ok(())
}

/// Has `notify` called when one of the queues moves; true if there is something already.
fn wait_for(
    watches: &Watches,
    open: &Arc<OpenFile>,
    queues: &[Arc<OpenQueue>],
    notify: &Arc<Mutex<Option<Notify>>>,
) -> Result<bool> {
    *lock(&open.polled) = queues.to_vec();
    let mut waits = true;
    for queue in queues {
        let notify = Arc::clone(notify);
        // Whichever queue moves first.
        waits &= watches.poll(queue, open, Box::new(move || call(&notify)))?;
    }
    // Checked again after entering, so that no message is missed in between.
    Ok(!waits || open.handle.blocked().is_none())
}

fn call(notify: &Mutex<Option<Notify>>) {
    let notify = lock(notify).take();
    if let Some(notify) = notify {
        notify();
    }
}
