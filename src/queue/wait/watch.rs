//! Threads of the process that sleep for many queues and raise alarms: one for every [`MAX_QUEUES`] queues.
//!
//! A thread sleeps on the wake words of its queues at once, and on a bell that tells it about changes of its list. The
//! first watch starts it, and it ends with the last one. Who arms an alarm announces a sleeper itself, so the thread is
//! not woken for that. Invariants:
//! - No wake is lost: `ticket` is what the thread last saw of a queue's word, or older. An alarm is armed, and the
//!   sleeper announced, under the lock under which the thread looks at the word: a message committed after that moves
//!   the word, and the thread finds the alarm armed.
//! - A queue that moves while no alarm is armed is not slept for until one is: the writer wakes others only.
//! - A forked child has none of the threads. It finds an empty list of its own (`GROUPS`), whatever its parent had
//!   locked at that moment, and leaves its parent's watches alone.
//!
//! Lock order: the list of groups, then a group's queues or a queue's state. Nothing is raised under a lock.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::queue::error::{Error, Result};
use crate::queue::files::store::Store;
use crate::queue::os::origin::Origin;
use crate::queue::os::thread::Joined;
use crate::queue::wait::wake::{Bell, WaitTicket, Waiter, Woken};

/// Queues that one thread sleeps for: as many as one system call accepts, with the thread's own bell.
const MAX_QUEUES: usize = 127;
/// How often everything is checked: a writer may have been killed between a commit and its wake.
const BACKSTOP: Duration = Duration::from_secs(1);

/// The groups of this process. Each generation of forked children has its own place; the origin tells a process 16
/// generations later from this one.
static GROUPS: [Mutex<Vec<Arc<Group>>>; 16] = [const { Mutex::new(Vec::new()) }; 16];

/// What is to happen when messages come.
pub(in crate::queue) trait Alarm: Send + Sync {
    fn raise(&self);

    /// Whether to raise it without a wake: asked once a second, and every millisecond if there can't be a wake.
    fn has_news(&self) -> bool;
}

/// An alarm that a thread raises for a queue, as long as this exists.
pub(in crate::queue) struct Watch {
    group: Arc<Group>,
    queue: Arc<Watched>,
    alarm: Arc<dyn Alarm>,
    origin: Origin,
}

/// Queues that one thread sleeps for.
struct Group {
    origin: Origin,
    /// Rung when a queue comes or goes, or the thread has to sleep for it again.
    bell: Bell,
    queues: Mutex<Vec<Arc<Watched>>>,
    thread: Mutex<Option<Joined>>,
}

struct Watched {
    store: Arc<Store>,
    waiter: Arc<Waiter>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// None: it has moved while no alarm was armed, and the thread does not sleep for it.
    ticket: Option<WaitTicket>,
    alarms: Vec<Armable>,
}

struct Armable {
    alarm: Arc<dyn Alarm>,
    is_armed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Watch {
    /// Starts to watch a queue; `waiter` is one of its. The alarm is not armed.
    pub(in crate::queue) fn start(store: &Arc<Store>, waiter: Arc<Waiter>, alarm: Arc<dyn Alarm>) -> Result<Self> {
        let origin = Origin::here();
        let mut groups = lock(origin.choose(&GROUPS));
        groups.retain(|group| group.origin.is_here());
        let new = Armable { alarm: Arc::clone(&alarm), is_armed: false };
        for group in groups.iter() {
            let known = lock(&group.queues).iter().find(|queue| Arc::ptr_eq(&queue.store, store)).cloned();
            if let Some(queue) = known {
                lock(&queue.state).alarms.push(new);
                return Ok(Self { group: Arc::clone(group), queue, alarm, origin });
            }
        }
        let state = Mutex::new(State { ticket: None, alarms: vec![new] });
        let queue = Arc::new(Watched { store: Arc::clone(store), waiter, state });
        let free = groups.iter().find(|group| lock(&group.queues).len() < MAX_QUEUES).cloned();
        let group = if let Some(group) = free {
            lock(&group.queues).push(Arc::clone(&queue));
            group
        } else {
            let group = Group::start(&queue, origin)?;
            groups.push(Arc::clone(&group));
            group
        };
        Ok(Self { group, queue, alarm, origin })
    }

    /// Has the alarm raised at the next message; false if it is armed already. Check for messages after this call: it
    /// is raised for later ones only.
    pub(in crate::queue) fn arm(&self) -> bool {
        let mut state = lock(&self.queue.state);
        let Some(own) = state.alarms.iter_mut().find(|other| Arc::ptr_eq(&other.alarm, &self.alarm)) else {
            return false;
        };
        if std::mem::replace(&mut own.is_armed, true) {
            return false;
        }
        let ticket = self.queue.waiter.prepare();
        if state.ticket.is_none_or(|known| known.is_announced() != ticket.is_announced()) {
            state.ticket = Some(ticket);
            drop(state);
            self.group.bell.ring();
        }
        true
    }

    /// The queue's directory.
    pub(in crate::queue) fn path(&self) -> &Path {
        self.queue.store.dir.path()
    }

    /// Fails in a process that was forked from the one that started it.
    pub(in crate::queue) fn check_origin(&self) -> Result<()> {
        self.origin.check(self.path())
    }

    /// Takes the alarm from the queue, and what is not needed then from the lists: the thread, if that is all.
    fn leave(&self) -> (Vec<Armable>, Option<Joined>) {
        let mut groups = lock(self.origin.choose(&GROUPS));
        let mut state = lock(&self.queue.state);
        let own = state.alarms.extract_if(.., |other| Arc::ptr_eq(&other.alarm, &self.alarm)).collect();
        if !state.alarms.is_empty() {
            return (own, None);
        }
        drop(state);
        let mut queues = lock(&self.group.queues);
        queues.retain(|queue| !Arc::ptr_eq(queue, &self.queue));
        if !queues.is_empty() {
            return (own, None);
        }
        groups.retain(|group| !Arc::ptr_eq(group, &self.group));
        (own, lock(&self.group.thread).take())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.origin.is_here() {
            // Outside the locks: a waker's drop is the user's code, and the thread is waited for.
            let (_own, _thread) = self.leave();
            self.group.bell.ring();
        }
    }
}

impl Group {
    fn start(queue: &Arc<Watched>, origin: Origin) -> Result<Arc<Self>> {
        let queues = Mutex::new(vec![Arc::clone(queue)]);
        let group = Arc::new(Self { origin, bell: Bell::default(), queues, thread: Mutex::default() });
        let this = Arc::clone(&group);
        let thread = std::thread::Builder::new().name("chronfs-notify".into()).spawn(move || this.run());
        let path = queue.store.dir.path();
        *lock(&group.thread) = Some(Joined::new(thread.map_err(Error::io(path, "start a thread that waits for it"))?));
        Ok(group)
    }

    fn run(&self) {
        let mut looked = Instant::now();
        loop {
            let rung = self.bell.listen();
            let queues = lock(&self.queues).clone();
            if queues.is_empty() {
                return;
            }
            let asleep: Vec<_> = queues.iter().filter_map(|queue| Some((queue, lock(&queue.state).ticket?))).collect();
            let waits: Vec<_> = asleep.iter().map(|(queue, ticket)| (Arc::clone(&queue.waiter), *ticket)).collect();
            match self.bell.wait_any(rung, &waits, BACKSTOP) {
                Woken::Bell => {}
                Woken::Queue(index) => asleep[index].0.look(false),
                Woken::Unknown => asleep.iter().for_each(|(queue, _)| queue.look(false)),
            }
            if looked.elapsed() >= BACKSTOP {
                looked = Instant::now();
                queues.iter().for_each(|queue| queue.look(true));
            }
        }
    }
}

impl Watched {
    /// Raises the armed alarms if the queue has moved, else those that have news if it is time to ask them.
    fn look(&self, is_backstop: bool) {
        let mut state = lock(&self.state);
        let Some(ticket) = state.ticket else { return };
        let moved = self.waiter.moved(ticket);
        if moved.is_none() && ticket.is_announced() && !is_backstop {
            return;
        }
        let mut due = Vec::new();
        let mut is_any_armed = false;
        for own in state.alarms.iter_mut().filter(|own| own.is_armed) {
            is_any_armed = true;
            if moved.is_some() || own.alarm.has_news() {
                own.is_armed = false;
                due.push(Arc::clone(&own.alarm));
            }
        }
        let is_quiet = moved.is_none() && ticket.is_announced();
        state.ticket = (is_any_armed || is_quiet).then_some(moved.unwrap_or(ticket));
        drop(state);
        for alarm in due {
            // A waker is the user's code. A panic in it has been reported by the panic hook.
            let _ = catch_unwind(AssertUnwindSafe(|| alarm.raise()));
        }
    }
}
