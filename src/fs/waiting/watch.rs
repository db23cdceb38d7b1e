//! Readers that wait for queues, and the threads that sleep for them.
//!
//! A thread sleeps for one user, on the wake words of up to [`MAX_QUEUES`] queues at once: it is woken by a native
//! writer's append as any reader is, retries the parked reads of that queue and notifies the kernel about polls. So a
//! user's slow file delays no other user. The first waiter starts the thread, and it ends soon after the last.
//!
//! No wake-up is lost: a read is entered into the list before it is tried a last time; the thread announces itself
//! (`prepare`) before it goes through the list. A message committed after the last try ends the thread's sleep.
//!
//! Lock order: the table of groups, then a group. No read is tried or answered under either.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::fs::errno::{Errno, Result};
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::tree::handles::{Notify, OpenFile};
use crate::fs::waiting::parked::ParkedRead;
use crate::fs::{lock, spawn};
use crate::queue::{Bell, WaitTicket, Waiter, Woken};

/// How often everything is checked. Only a backstop: waking does not depend on it.
const SLEEP: Duration = Duration::from_secs(1);
/// How long a queue is watched after its last waiter: a follower returns after each message.
const LINGER: Duration = Duration::from_secs(2);
/// Queues that one thread sleeps for: as many as one system call accepts, with the group's own bell.
const MAX_QUEUES: usize = 127;
/// Threads of one user, and of root.
const MAX_GROUPS: usize = 16;
const MAX_GROUPS_ROOT: usize = 128;

/// All readers that wait for queues of a mount.
#[derive(Default)]
pub(crate) struct Watches {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    groups: HashMap<u32, Vec<Arc<Group>>>,
    /// The mount is ending: nothing may wait any more.
    closed: bool,
}

/// Queues that one thread sleeps for.
#[derive(Default)]
struct Group {
    /// Rung when a queue is added, or the mount is ending.
    bell: Bell,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queues: Vec<Watched>,
    running: bool,
    closed: bool,
}

/// A queue and the readers that wait for it.
struct Watched {
    queue: Arc<OpenQueue>,
    waiter: Arc<Waiter>,
    /// None: it has moved, or is new.
    ticket: Option<WaitTicket>,
    waiting: Waiting,
    busy_until: Instant,
}

#[derive(Default)]
struct Waiting {
    reads: Vec<Arc<ParkedRead>>,
    polls: Vec<(Arc<OpenFile>, Notify)>,
}

impl Watches {
    /// Parks a read until one of the queues moves.
    pub(crate) fn park(&self, queues: &[Arc<OpenQueue>], read: &Arc<ParkedRead>) {
        for queue in queues {
            let entered = self.enter(read.uid(), queue, |waiting| {
                // A quiet queue would accumulate answered reads of readers that wait for several queues.
                waiting.reads.retain(|other| !other.is_answered());
                waiting.reads.push(Arc::clone(read));
            });
            match entered {
                Ok(true) => {}
                Ok(false) => return read.end(Errno::ENOTCONN),
                Err(errno) => return read.end(errno),
            }
        }
        // The last try: see the head of this file.
        read.attempt(&mut Vec::new());
    }

    /// Remembers a poll, replacing an earlier one of the same handle. False when there is nothing to wait for.
    pub(crate) fn poll(&self, queue: &Arc<OpenQueue>, open: &Arc<OpenFile>, notify: Notify) -> Result<bool> {
        self.enter(open.uid, queue, |waiting| {
            waiting.polls.retain(|(other, _)| other.fh != open.fh);
            waiting.polls.push((Arc::clone(open), notify));
        })
    }

    /// Forgets the polls of a handle that is closed.
    pub(crate) fn forget(&self, open: &OpenFile) {
        let groups = lock(&self.table).groups.get(&open.uid).cloned().unwrap_or_default();
        let mut gone = Vec::new();
        for group in groups {
            for watched in &mut lock(&group.state).queues {
                gone.extend(watched.waiting.polls.extract_if(.., |(other, _)| other.fh == open.fh));
            }
        }
    }

    /// Answers all readers with ENOTCONN. From now on no reader waits here.
    pub(crate) fn close(&self) {
        let groups = {
            let mut table = lock(&self.table);
            table.closed = true;
            std::mem::take(&mut table.groups)
        };
        for group in groups.into_values().flatten() {
            let waiting: Vec<_> = {
                let mut state = lock(&group.state);
                state.closed = true;
                state.queues.iter_mut().map(|watched| std::mem::take(&mut watched.waiting)).collect()
            };
            group.bell.ring();
            waiting.into_iter().for_each(Waiting::end);
        }
    }

    /// Enters a waiter and ensures that a thread sleeps for it. False: the mount is ending.
    fn enter(&self, uid: u32, queue: &Arc<OpenQueue>, add: impl FnOnce(&mut Waiting)) -> Result<bool> {
        let mut waiter = None;
        loop {
            let mut table = lock(&self.table);
            if table.closed {
                return Ok(false);
            }
            let groups = table.groups.entry(uid).or_default();
            // Groups whose thread has ended have no queues.
            groups.retain(|group| lock(&group.state).running);
            for group in groups.iter() {
                let mut state = lock(&group.state);
                let known = state.queues.iter_mut().find(|watched| Arc::ptr_eq(&watched.queue, queue));
                if let Some(watched) = known {
                    add(&mut watched.waiting);
                    return Ok(true);
                }
            }
            let Some(waiter) = waiter.take() else {
                // Opened outside the lock.
                drop(table);
                waiter = Some(Arc::new(queue.queue.waiter()?));
                continue;
            };
            let limit = if uid == 0 { MAX_GROUPS_ROOT } else { MAX_GROUPS };
            let group = match groups.iter().find(|group| lock(&group.state).queues.len() < MAX_QUEUES) {
                Some(group) => Arc::clone(group),
                None if groups.len() >= limit => return Err(Errno::EAGAIN),
                None => {
                    let group = Arc::<Group>::default();
                    groups.push(Arc::clone(&group));
                    group
                }
            };
            let mut waiting = Waiting::default();
            add(&mut waiting);
            let (queue, busy_until) = (Arc::clone(queue), Instant::now() + LINGER);
            return group.add(Watched { queue, waiter, ticket: None, waiting, busy_until }).map(|()| true);
        }
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.polls.is_empty()
    }

    fn end(self) {
        self.reads.iter().for_each(|read| read.end(Errno::ENOTCONN));
        self.polls.into_iter().for_each(|(_, notify)| notify());
    }

    /// Retries every waiter; keeps those that still have nothing.
    fn serve(&mut self, buffer: &mut Vec<u8>) {
        self.reads.retain(|read| !read.attempt(buffer));
        let is_blocked =
            |open: &Arc<OpenFile>| catch_unwind(AssertUnwindSafe(|| open.handle.blocked().is_some())).unwrap_or(false);
        self.polls.extract_if(.., |(open, _)| !is_blocked(open)).for_each(|(_, notify)| notify());
    }
}

impl Group {
    fn add(self: &Arc<Self>, watched: Watched) -> Result<()> {
        let mut state = lock(&self.state);
        if !state.running {
            let this = Arc::clone(self);
            spawn("chronfs-watch", 512 << 10, move || this.run())?;
            state.running = true;
        }
        state.queues.push(watched);
        drop(state);
        self.bell.ring();
        Ok(())
    }

    fn run(&self) {
        let mut buffer = Vec::new();
        let mut looked = Instant::now();
        loop {
            let rung = self.bell.listen();
            if looked.elapsed() >= SLEEP {
                looked = Instant::now();
                lock(&self.state).queues.iter_mut().for_each(|watched| watched.ticket = None);
            }
            self.announce(&mut buffer);
            let Some(waits) = self.waits() else { return };
            let moved = match self.bell.wait_any(rung, &waits, SLEEP) {
                Woken::Bell => continue,
                Woken::Queue(index) => index..index + 1,
                Woken::Unknown => 0..waits.len(),
            };
            for index in moved {
                let (waiter, ticket) = &waits[index];
                if !ticket.is_announced() || waiter.moved(*ticket).is_some() {
                    // Before the system calls of the next announcement.
                    self.serve(index, &mut buffer);
                    lock(&self.state).queues[index].ticket = None;
                }
            }
        }
    }

    /// Announces a sleeper for each queue that has moved or is new, and then retries its waiters.
    fn announce(&self, buffer: &mut Vec<u8>) {
        let due: Vec<(usize, Arc<Waiter>)> = {
            let state = lock(&self.state);
            let due = state.queues.iter().enumerate().filter(|(_, watched)| watched.ticket.is_none());
            due.map(|(index, watched)| (index, Arc::clone(&watched.waiter))).collect()
        };
        for (index, waiter) in due {
            let ticket = waiter.prepare();
            lock(&self.state).queues[index].ticket = Some(ticket);
            self.serve(index, buffer);
        }
    }

    fn serve(&self, index: usize, buffer: &mut Vec<u8>) {
        let mut waiting = std::mem::take(&mut lock(&self.state).queues[index].waiting);
        waiting.serve(buffer);
        let mut state = lock(&self.state);
        if state.closed {
            drop(state);
            return waiting.end();
        }
        let now = &mut state.queues[index].waiting;
        now.reads.append(&mut waiting.reads);
        // A poll that was renewed meanwhile replaces this one.
        waiting.polls.retain(|(open, _)| now.polls.iter().all(|(newer, _)| newer.fh != open.fh));
        now.polls.append(&mut waiting.polls);
    }

    /// What to sleep for, after dropping queues without waiters. None: nothing is left, the thread ends, and is marked
    /// as ended under the same lock.
    fn waits(&self) -> Option<Vec<(Arc<Waiter>, WaitTicket)>> {
        let mut state = lock(&self.state);
        let now = Instant::now();
        for watched in &mut state.queues {
            if !watched.waiting.is_empty() {
                watched.busy_until = now + LINGER;
            }
        }
        let gone: Vec<Watched> = state.queues.extract_if(.., |watched| watched.busy_until <= now).collect();
        let is_over = state.closed || state.queues.is_empty();
        if is_over {
            state.running = false;
        }
        let waits = state.queues.iter().filter_map(|watched| Some((Arc::clone(&watched.waiter), watched.ticket?)));
        // A queue added meanwhile has rung the bell, which is the last.
        let waits = waits.collect();
        drop(state);
        // Outside the lock, because this may close descriptors.
        drop(gone);
        (!is_over).then_some(waits)
    }
}
