//! The lock-free protocols, under every interleaving (loom): waking sleepers, publishing a record, committing a cursor,
//! retention beside a reader, a helper that ends the segment of an idle writer.
//!
//! The writer's half of the wake-up, and the gate between writer and helper, are the engine's own files, included here
//! over loom's atomics. The rest is modelled:
//! what a sleeper does by system calls on the control block (`Waiter::announce`), the futex, and membarrier, which
//! makes a full barrier on both sides and so is a SeqCst fence on each. Where a model loses a wake-up, loom reports the
//! deadlock; where one reads what has not been published, the race.
//!
//! Limits of the tool: loads are not moved after later stores (load buffering).
#![allow(clippy::unwrap_used, clippy::panic)]

use loom::cell::UnsafeCell;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use sync::{AtomicU32, Ordering, fence};

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU32, Ordering, fence};

    /// The sleeper's membarrier makes this a full barrier at run time.
    pub(crate) fn compiler_fence(order: Ordering) {
        fence(order);
    }
}

#[path = "../src/queue/write/gate.rs"]
mod gate;
#[path = "../src/queue/wait/handshake.rs"]
mod handshake;

/// A queue's words, as far as they matter here.
struct Queue {
    /// How many messages have been committed, instead of their commit words.
    committed: AtomicU32,
    sleeping: AtomicU32,
    notify_seq: AtomicU32,
    /// The kernel's side of the futex: its lock, and those asleep.
    kernel: Mutex<()>,
    asleep: Condvar,
}

impl Queue {
    fn new() -> Self {
        let zero = || AtomicU32::new(0);
        let (committed, sleeping, notify_seq) = (zero(), zero(), zero());
        Self { committed, sleeping, notify_seq, kernel: Mutex::new(()), asleep: Condvar::new() }
    }

    fn append(&self, asymmetric: bool) {
        let count = self.committed.load(Ordering::Relaxed);
        self.committed.store(count + 1, Ordering::Release);
        if handshake::is_somebody_asleep(&self.sleeping, asymmetric) {
            handshake::announce_news(&self.sleeping, &self.notify_seq);
            let _kernel = self.kernel.lock().unwrap();
            self.asleep.notify_all();
        }
    }

    /// `Waiter::announce`: system calls, each a barrier at least as strong as this.
    fn prepare(&self) -> u32 {
        let ticket = self.notify_seq.load(Ordering::Acquire);
        self.sleeping.store(1, Ordering::Release);
        fence(Ordering::SeqCst);
        ticket
    }

    /// `futex(FUTEX_WAIT)`: sleeps only if the word still holds the ticket. No timeout: a lost wake-up is a deadlock.
    fn sleep(&self, ticket: u32) {
        let kernel = self.kernel.lock().unwrap();
        if self.notify_seq.load(Ordering::Acquire) == ticket {
            drop(self.asleep.wait(kernel).unwrap());
        }
    }

    fn wait_for(&self, count: u32) {
        loop {
            let ticket = self.prepare();
            if self.committed.load(Ordering::Acquire) >= count {
                return;
            }
            self.sleep(ticket);
        }
    }
}

fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

#[test]
fn a_sleeper_is_woken_for_every_message() {
    for asymmetric in [true, false] {
        explore(4, move || {
            let queue = Arc::new(Queue::new());
            let sleeper = Arc::clone(&queue);
            let sleeper = thread::spawn(move || {
                sleeper.wait_for(1);
                sleeper.wait_for(2);
            });
            queue.append(asymmetric);
            queue.append(asymmetric);
            sleeper.join().unwrap();
        });
    }
}

#[test]
fn two_sleepers_are_both_woken() {
    explore(3, || {
        let queue = Arc::new(Queue::new());
        let sleepers = [1, 2].map(|count| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.wait_for(count))
        });
        queue.append(true);
        queue.append(true);
        sleepers.into_iter().for_each(|sleeper| sleeper.join().unwrap());
    });
}

/// A record: the commit word, and bytes that are not atomics.
struct Place {
    commit: AtomicU32,
    payload: UnsafeCell<u32>,
}

#[test]
#[allow(unsafe_code)]
fn a_reader_that_sees_the_commit_word_sees_the_whole_record() {
    explore(4, || {
        let place = || Place { commit: AtomicU32::new(0), payload: UnsafeCell::new(0) };
        let places = Arc::new([place(), place(), place()]);
        let writer = Arc::clone(&places);
        let writer = thread::spawn(move || {
            for index in 0..2 {
                // As in `append`: first the payload, then the successor's commit word, then this one's.
                // SAFETY: loom checks that no thread reads it meanwhile.
                writer[index].payload.with_mut(|payload| unsafe { *payload = 7 });
                writer[index + 1].commit.store(0, Ordering::Relaxed);
                writer[index].commit.store(1, Ordering::Release);
            }
        });
        for place in places.iter() {
            if place.commit.load(Ordering::Acquire) == 0 {
                break;
            }
            // SAFETY: loom checks that no thread stores to it meanwhile.
            assert_eq!(place.payload.with(|payload| unsafe { *payload }), 7);
        }
        writer.join().unwrap();
    });
}

/// How a writer leaves a segment.
#[derive(Clone, Copy, PartialEq)]
enum Roll {
    /// The next segment is started, then the seal is stored in line, where the next message would be.
    AsWeDo,
    /// The seal first.
    SealFirst,
    /// The seal is a flag beside the messages.
    FlagBeside,
}

/// A reader passes a segment of two messages while it is being written and left.
fn roll(how: Roll) {
    const MESSAGE: u32 = 1;
    const SEAL: u32 = 2;
    explore(4, move || {
        let words = Arc::new([(); 5].map(|()| AtomicU32::new(0)));
        let writer = Arc::clone(&words);
        let writer = thread::spawn(move || {
            let [first, second, end, flag, next_start] = &*writer;
            let seal = if how == Roll::FlagBeside { flag } else { end };
            first.store(MESSAGE, Ordering::Release);
            second.store(MESSAGE, Ordering::Release);
            let last = if how == Roll::SealFirst { [seal, next_start] } else { [next_start, seal] };
            for word in last {
                word.store(SEAL, Ordering::Release);
            }
        });
        let [first, second, end, flag, next_start] = &*words;
        let mut seen = 0;
        for word in [first, second, end] {
            let sealed = match word.load(Ordering::Acquire) {
                MESSAGE => {
                    seen += 1;
                    continue;
                }
                SEAL => true,
                _ => how == Roll::FlagBeside && flag.load(Ordering::Acquire) == SEAL,
            };
            if sealed {
                assert_eq!(seen, 2, "left a segment before its end");
                assert_eq!(next_start.load(Ordering::Acquire), SEAL, "nothing to go on in");
            }
            break;
        }
        writer.join().unwrap();
    });
}

#[test]
fn a_reader_leaves_a_segment_only_at_its_end_and_into_one_that_is_there() {
    roll(Roll::AsWeDo);
}

#[test]
#[should_panic(expected = "nothing to go on in")]
fn the_model_notices_a_seal_before_the_next_segment() {
    roll(Roll::SealFirst);
}

/// A reader sees "not committed", is delayed, then sees "sealed": messages committed in between would be lost to it.
#[test]
#[should_panic(expected = "left a segment before its end")]
fn the_model_notices_a_seal_that_is_not_in_line() {
    roll(Roll::FlagBeside);
}

/// A slot of a cursor or of the published head: generation, value, checksum.
#[derive(Default)]
struct Slot([AtomicU32; 3]);

impl Slot {
    fn store(&self, generation: u32, value: u32) {
        // A plain copy: in any order.
        let [first, second, third] = &self.0;
        first.store(generation, Ordering::Relaxed);
        second.store(value, Ordering::Relaxed);
        third.store(checksum(generation, value), Ordering::Relaxed);
    }

    fn load(&self) -> Option<(u32, u32)> {
        let [generation, value, sum] = [0, 1, 2].map(|index| self.0[index].load(Ordering::Relaxed));
        (checksum(generation, value) == sum && value != 0).then_some((generation, value))
    }
}

fn checksum(generation: u32, value: u32) -> u32 {
    generation.wrapping_mul(0x9E37_79B9) ^ value.wrapping_mul(0x85EB_CA6B) ^ 1
}

#[test]
fn a_cursor_read_during_a_commit_is_one_that_was_committed() {
    explore(3, || {
        let slots = Arc::new([Slot::default(), Slot::default()]);
        slots[0].store(0, 100);
        let owner = Arc::clone(&slots);
        let owner = thread::spawn(move || {
            for generation in 1..=2_u32 {
                owner[usize::from(generation % 2 == 1)].store(generation, 100 + generation);
            }
        });
        let sound = slots.iter().filter_map(Slot::load).max();
        // During two commits in a row both slots can be half written: the engine reads again then.
        assert!(sound.is_none_or(|(generation, value)| value == 100 + generation), "{sound:?}");
        owner.join().unwrap();
        assert_eq!(slots.iter().filter_map(Slot::load).max(), Some((2, 102)));
    });
}

/// Segments 1 to 3, and the cursor of a reader that needs everything from its value on.
#[test]
fn retention_never_takes_what_a_registered_reader_has_not_passed() {
    explore(4, || {
        let exists = Arc::new([1, 1, 1].map(AtomicU32::new));
        let cursor = Arc::new(AtomicU32::new(1));
        let retention = {
            let (exists, cursor) = (Arc::clone(&exists), Arc::clone(&cursor));
            thread::spawn(move || {
                for _ in 0..2 {
                    // First what readers need, then the removals, never the reverse.
                    let needed = cursor.load(Ordering::Relaxed);
                    for id in 1..needed {
                        exists[id as usize - 1].store(0, Ordering::Relaxed);
                    }
                }
            })
        };
        for id in 1..=3 {
            assert_eq!(exists[id as usize - 1].load(Ordering::Relaxed), 1, "segment {id} is gone");
            // The commit, a plain store: retention may see it late, never early.
            cursor.store(id + 1, Ordering::Release);
        }
        retention.join().unwrap();
    });
}

/// A segment of three places and the gate before it.
struct Segment {
    gate: gate::Gate,
    /// Where the helper has sealed it.
    rolled: Mutex<Option<u32>>,
    places: [Place; 4],
}

impl Segment {
    const MESSAGE: u32 = 1;
    const SEAL: u32 = 2;

    #[allow(unsafe_code)]
    fn store(&self, index: u32, commit: u32) {
        let place = &self.places[index as usize];
        // SAFETY: loom checks that no other thread accesses it meanwhile.
        place.payload.with_mut(|payload| unsafe { *payload = commit });
        place.commit.store(commit, Ordering::Release);
    }

    /// `claim`, and the append or not; false if the helper has rolled.
    fn append(&self, index: u32, is_dropped: bool) -> bool {
        let (offset, len) = (index * 8, 8);
        if offset + len > self.gate.enter(offset) {
            let mut rolled = self.rolled.lock().unwrap();
            self.gate.enter(offset);
            if let Some(end) = rolled.take() {
                assert_eq!(end, index, "sealed elsewhere than where the writer is");
                return false;
            }
            drop(rolled);
            // As `make_room` does.
            let _lock = self.rolled.lock().unwrap();
            self.gate.enter(offset);
            self.gate.open(1000);
        }
        if is_dropped {
            // A reservation.
            #[allow(unsafe_code)]
            // SAFETY: loom checks that no other thread accesses it meanwhile.
            self.places[index as usize].payload.with_mut(|payload| unsafe { *payload = 9 });
            self.gate.leave(offset);
        } else {
            self.store(index, Self::MESSAGE);
        }
        true
    }

    /// `Turn::roll`.
    fn roll(&self, has_barrier: bool) {
        let mut rolled = self.rolled.lock().unwrap();
        let Some(soft_limit) = self.gate.close() else { return };
        if has_barrier {
            fence(Ordering::SeqCst);
        }
        let is_free = |place: &Place| place.commit.load(Ordering::Acquire) == 0;
        let end = u32::try_from(self.places.iter().position(is_free).unwrap()).unwrap();
        if end > 0 && self.gate.is_outside(Some((end - 1) * 8), end * 8) {
            self.store(end, Self::SEAL);
            *rolled = Some(end);
        } else {
            self.gate.open(soft_limit);
        }
    }
}

fn idle_writer(has_barrier: bool) {
    explore(3, move || {
        let place = || Place { commit: AtomicU32::new(0), payload: UnsafeCell::new(0) };
        let places = [place(), place(), place(), place()];
        let segment = Arc::new(Segment { gate: gate::Gate::new(), rolled: Mutex::new(None), places });
        segment.gate.open(1000);
        let writer = Arc::clone(&segment);
        let writer = thread::spawn(move || {
            let mut count = 0;
            for is_dropped in [false, true, false] {
                if !writer.append(count, is_dropped) {
                    break;
                }
                count += u32::from(!is_dropped);
            }
            count
        });
        segment.roll(has_barrier);
        segment.roll(has_barrier);
        let count = writer.join().unwrap();
        let commits = segment.places.iter().map(|place| place.commit.load(Ordering::Acquire));
        let commits: Vec<_> = commits.take_while(|&commit| commit != 0).collect();
        let messages = commits.iter().take_while(|&&commit| commit == Segment::MESSAGE).count();
        assert_eq!(messages, count as usize, "a message was overwritten");
        assert!(commits.len() <= messages + 1, "messages after the seal");
    });
}

#[test]
fn a_segment_ends_after_its_messages_whenever_the_helper_looks() {
    idle_writer(true);
}

#[test]
#[should_panic]
fn the_model_notices_a_missing_barrier() {
    idle_writer(false);
}
