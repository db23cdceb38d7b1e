//! A kill between any two instructions of an append, a roll, a cursor commit, a start of a writer or a repair leaves
//! the old or the new state, never a mix.
//!
//! Each test runs an operation in a child one instruction at a time (`trace.rs`). Wherever a byte of the queue's
//! files differs from the instruction before (`state.rs`), those files are what a kill would have left: they are
//! copied, read as they are, recovered, written to and read again. Every state is checked, not a sample; only where
//! a repair is stepped through, the states that it starts from are chosen, all of them with `CHRONFS_SOAK=1`:
//!
//! ```text
//! CHRONFS_SOAK=1 cargo test --release --test steps -- --nocapture
//! ```
//!
//! Not on ARM and RISC-V: the trace knows x86-64's system call, and a loop of exclusive loads and stores, as atomics are
//! there, never ends in single steps.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod readers;
mod state;
mod trace;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use chronfs::queue::{Entry, Queue, QueueWriter, ReaderOptions, Role, Settings, Start, WriterOptions};
use common::{SMALL, filled, scratch, until};
use state::{State, Watched};
use trace::Seen;

const LARGE: u64 = 40;

fn is_soak() -> bool {
    std::env::var_os("CHRONFS_SOAK").is_some()
}

/// Message 10 nearly fills a segment: a roll follows soon. Message [`LARGE`] needs a larger one.
fn payload(seq: u64) -> Vec<u8> {
    let len = match seq {
        10 => 60_000,
        LARGE => 150_000,
        _ => seq * 37 % 90,
    };
    let mut payload = seq.to_le_bytes().to_vec();
    payload.resize(8 + usize::try_from(len).unwrap(), u8::try_from(seq % 251).unwrap());
    payload
}

fn append(writer: &mut QueueWriter, count: u64) {
    common::append(writer, count, payload);
}

/// A queue of `count` messages, closed.
fn new_queue(path: &Path, count: u64) -> Queue {
    filled(path, &SMALL, count, payload)
}

/// How many messages there are: 1 to that number, whole, in order, without a gap.
fn count_messages(queue: &Queue) -> u64 {
    let mut count = 0;
    let mut scanner = queue.scan().unwrap();
    while let Some(entry) = scanner.next().unwrap() {
        let Entry::Message(message) = entry else { panic!("{entry:?}") };
        count += 1;
        assert_eq!(message.seq, count);
        assert!(message.payload == payload(count), "message {count} has other bytes");
    }
    count
}

/// What a kill has left is read, recovered, written to and read again. Returns the number of messages found.
fn check(state: &State) -> u64 {
    let dir = scratch();
    let path = dir.path().join("q");
    state.restore(&path);
    let queue = Queue::open(&path).unwrap();
    let count = count_messages(&queue);
    let mut writer = queue.writer().unwrap();
    assert_eq!(writer.next_seq(), count + 1, "a number is lost or assigned twice");
    append(&mut writer, 1);
    drop(writer);
    let queue = Queue::open(&path).unwrap();
    assert!(queue.control_damage().is_none());
    assert_eq!(count_messages(&queue), count + 1);
    let mut reader = queue.reader("checker").unwrap();
    for seq in reader.seq()..=count + 1 {
        let entry = reader.next().unwrap();
        assert_eq!(entry.and_then(Entry::message).map(|message| message.seq), Some(seq));
    }
    assert_eq!(reader.next().unwrap(), None);
    let temporary = std::fs::read_dir(&path).unwrap().find(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".tmp")
    });
    assert!(temporary.is_none(), "{temporary:?} was left");
    count
}

/// The result of a run.
#[derive(Default)]
struct Run {
    steps: u64,
    /// Every state that a kill could have left, in order, without repetitions.
    states: Vec<State>,
}

/// Steps through `work` (see [`trace::stepped`]) and collects the states of the queue at `path`.
fn run(path: &Path, work: impl FnOnce(&dyn Fn())) -> Run {
    let mut watched = Watched::new(path);
    let mut known = HashSet::new();
    let mut run = Run::default();
    let mut count = 0_u64;
    run.steps = trace::stepped(work, |seen| {
        count += 1;
        // Files appear and disappear in system calls, but the helper thread makes some too.
        let is_due = seen == Seen::SystemCall || count == 1 || count.is_multiple_of(64);
        if !is_due && !watched.is_changed_in_memory() {
            return;
        }
        if let Some(state) = watched.changed()
            && known.insert(hash(state))
        {
            run.states.push(state.clone());
        }
    });
    run
}

fn hash(state: &State) -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one(state)
}

fn report(what: &str, run: &Run) {
    eprintln!("{what}: {} instructions, {} states", run.steps, run.states.len());
}

/// Checks every state: the number of messages rises from `from` to `to` and takes every value between.
fn check_all(what: &str, run: &Run, from: u64, to: u64) {
    report(what, run);
    let mut counts: Vec<_> = run.states.iter().map(check).collect();
    assert!(counts.is_sorted(), "{what}: a committed message was lost: {counts:?}");
    counts.dedup();
    assert_eq!(counts, (from..=to).collect::<Vec<_>>(), "{what}");
}

/// Steps through `count` appends to a queue of `before` messages.
fn step_appends(path: &Path, before: u64, count: u64) -> Run {
    let queue = new_queue(path, before);
    queue.add_reader("checker").unwrap();
    run(path, |mark| {
        let mut writer = queue.writer().unwrap();
        mark();
        append(&mut writer, count);
        mark();
    })
}

#[test]
fn a_kill_at_any_instruction_of_an_append_leaves_the_message_whole_or_absent() {
    let dir = scratch();
    let count = 5;
    let run = step_appends(&dir.path().join("q"), 2, count);
    check_all("appends", &run, 2, 2 + count);
    if is_soak() {
        let run = step_appends(&dir.path().join("large"), 9, 1);
        check_all("an append of 60,000 bytes", &run, 9, 10);
    }
}

/// How many messages fit into the first segment.
fn until_roll() -> u64 {
    let mut left = u64::from(SMALL.segment_size) - 4096 - 64 - 32;
    let fits = |seq: &u64| {
        let needed = 32 + (payload(*seq).len() as u64).next_multiple_of(8);
        left = left.saturating_sub(needed);
        left > 0
    };
    (1..).take_while(fits).count() as u64
}

fn step_roll(path: &Path) -> Run {
    let run = step_appends(path, until_roll(), 2);
    let is_rolled = |state: &State| !state.is_zero("000000001.q", 64..128);
    assert!(!is_rolled(&run.states[0]) && run.states.iter().any(is_rolled), "it should have rolled");
    run
}

#[test]
fn a_kill_at_any_instruction_of_a_roll_loses_nothing() {
    let dir = scratch();
    let run = step_roll(&dir.path().join("q"));
    check_all("roll", &run, until_roll(), until_roll() + 2);
}

#[test]
fn a_kill_at_any_instruction_of_replacing_a_prepared_segment_loses_nothing() {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = Queue::create(&path, &SMALL).unwrap();
    let mut writer = queue.writer().unwrap();
    append(&mut writer, LARGE - 1);
    let prepared = path.join("000000002.q");
    until("the next segment is prepared", || prepared.exists());
    drop(writer);
    queue.update(|settings| settings.segment_size = 1 << 20).unwrap();
    let run = run(&path, |mark| {
        let mut writer = queue.writer().unwrap();
        mark();
        // It needs the segment, and is not appended.
        writer.reserve(1, payload(LARGE).len()).unwrap();
        mark();
    });
    assert_eq!(prepared.metadata().unwrap().len(), 256 << 10);
    check_all("replacing a segment", &run, LARGE - 1, LARGE - 1);
}

#[test]
fn a_kill_at_any_instruction_of_a_batch_leaves_each_message_whole_or_absent() {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = new_queue(&path, 3);
    let run = run(&path, |mark| {
        let mut writer = queue.writer().unwrap();
        mark();
        let mut batch = writer.batch();
        (4..=7).for_each(|seq| drop(batch.append(1, &payload(seq))));
        drop(batch);
        mark();
    });
    check_all("batch", &run, 3, 7);
}

#[test]
fn a_kill_at_any_instruction_of_a_record_filled_in_place_leaves_it_whole_or_absent() {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = new_queue(&path, 3);
    let run = run(&path, |mark| {
        let mut writer = queue.writer().unwrap();
        mark();
        // One that is abandoned, longer than the one that replaces it.
        writer.reserve(1, 200).unwrap().fill(0xFF);
        let payload = payload(4);
        let mut record = writer.reserve(1, payload.len()).unwrap();
        record.copy_from_slice(&payload);
        record.commit().unwrap();
        mark();
    });
    check_all("in place", &run, 3, 4);
}

#[test]
fn a_kill_at_any_instruction_of_retention_leaves_what_readers_need() {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = Queue::create(&path, &Settings { retain_segments: Some(1), ..SMALL }).unwrap();
    // A reader that has passed none of it, so that the writer's own retention removes nothing.
    queue.add_reader("alice").unwrap();
    let fill = |writer: &mut QueueWriter| assert!(writer.append(1, &[7; 60_000]).is_ok());
    let mut writer = queue.writer().unwrap();
    (0..6).for_each(|_| fill(&mut writer));
    drop(writer);
    let needed = 4;
    queue.seek_reader("alice", needed).unwrap();
    let run = run(&path, |mark| {
        mark();
        assert_eq!(queue.apply_retention().unwrap().removed.len(), 3);
        mark();
    });
    report("retention", &run);
    let firsts: Vec<u64> = run
        .states
        .iter()
        .map(|state| {
            let dir = scratch();
            state.restore(dir.path());
            let queue = Queue::open(dir.path()).unwrap();
            let first = queue.bounds().unwrap().first_seq;
            let mut scanner = queue.scan().unwrap();
            for seq in first..=6 {
                let message = scanner.next().unwrap().and_then(Entry::message).unwrap();
                assert!(message.seq == seq && message.payload.len() == 60_000);
            }
            assert_eq!(scanner.next().unwrap(), None);
            let mut reader = queue.reader("alice").unwrap();
            assert_eq!(reader.next().unwrap().and_then(Entry::message).map(|message| message.seq), Some(needed));
            drop(reader);
            // The next process finishes it.
            fill(&mut queue.writer().unwrap());
            queue.apply_retention().unwrap();
            assert_eq!(queue.bounds().unwrap().first_seq, needed);
            first
        })
        .collect();
    assert!(firsts.is_sorted() && firsts.first() == Some(&1) && firsts.last() == Some(&needed), "{firsts:?}");
}

/// Steps through the start of a writer on what a kill has left, and checks that what a kill of that leaves, the next
/// writer recovers.
fn step_recovery(what: &str, left: &State) -> u64 {
    let dir = scratch();
    let path = dir.path().join("q");
    left.restore(&path);
    let count = count_messages(&Queue::open(&path).unwrap());
    let run = run(&path, |mark| {
        mark();
        let writer = Queue::open(&path).unwrap().writer().unwrap();
        mark();
        drop(writer);
    });
    check_all(what, &run, count, count);
    run.steps
}

#[test]
fn a_kill_at_any_instruction_of_a_recovery_is_recovered_from() {
    let dir = scratch();
    let appends = step_appends(&dir.path().join("appends"), 12, 1);
    let roll = step_roll(&dir.path().join("roll"));
    let chosen: Vec<&State> = if is_soak() {
        appends.states.iter().chain(&roll.states).collect()
    } else {
        let in_append = appends.states.len() / 2;
        // The worst moment: the new segment has its start block, the old one is not sealed.
        let is_worst =
            |state: &&State| !state.is_zero("000000001.q", 64..128) && state.is_zero("000000000.q", 128..192);
        let in_roll = roll.states.iter().rfind(is_worst);
        vec![&appends.states[in_append], in_roll.unwrap()]
    };
    let steps: u64 = chosen.iter().map(|state| step_recovery("recovery", state)).sum();
    eprintln!("recovery from {} states: {steps} instructions", chosen.len());
}

#[test]
fn a_kill_at_any_instruction_of_closing_a_writer_changes_nothing() {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = new_queue(&path, 5);
    let run = run(&path, |mark| {
        let mut writer = queue.writer().unwrap();
        append(&mut writer, 2);
        mark();
        drop(writer);
        mark();
    });
    check_all("closing", &run, 7, 7);
}

#[test]
fn a_kill_at_any_instruction_of_creating_a_queue_leaves_none_or_a_valid_one() {
    let dir = scratch();
    let path = dir.path().join("q");
    let child_path: PathBuf = path.clone();
    let run = run(&path, |mark| {
        mark();
        Queue::create(&child_path, &SMALL).unwrap();
        mark();
    });
    report("create", &run);
    let mut made = 0;
    for state in &run.states {
        let dir = scratch();
        let path = dir.path().join("q");
        state.restore(&path);
        made += u64::from(Queue::exists(&path).unwrap());
        let queue = Queue::open_or_create(&path, &SMALL).unwrap();
        append(&mut queue.writer().unwrap(), 1);
        assert_eq!(count_messages(&Queue::open(&path).unwrap()), 1);
    }
    assert!(made > 0 && made < run.states.len() as u64);
}

#[test]
fn a_kill_at_any_instruction_of_registering_a_reader_leaves_none_or_a_valid_one() {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = new_queue(&path, 3);
    let run = run(&path, |mark| {
        mark();
        queue.add_reader("checker").unwrap();
        mark();
    });
    check_all("registering", &run, 3, 3);
}

#[test]
fn a_kill_at_any_instruction_of_a_change_leaves_the_old_settings_or_the_new_ones() {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = new_queue(&path, 3);
    let wanted = Settings { retain_segments: Some(7), ..SMALL };
    let run = run(&path, |mark| {
        mark();
        queue.set(&wanted).unwrap();
        mark();
    });
    report("a change of settings", &run);
    let found = run.states.iter().map(|state| {
        let dir = scratch();
        state.restore(dir.path());
        let found = Queue::open(dir.path()).unwrap().settings();
        drop(Queue::open(dir.path()).unwrap().writer().unwrap());
        let control = std::fs::read(dir.path().join("control.meta")).unwrap();
        assert_eq!(control[..128], control[128..256], "the next writer leaves two equal copies");
        assert_eq!(Queue::open(dir.path()).unwrap().settings(), found);
        found
    });
    let mut found: Vec<_> = found.collect();
    found.dedup();
    assert_eq!(found, [SMALL, wanted]);
}

#[test]
fn a_kill_at_any_instruction_of_a_change_of_roles_leaves_the_old_one_or_the_new_one() {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = new_queue(&path, 3);
    let (before, after) = (Role::default(), Role::Standby { term: 7 });
    let run = run(&path, |mark| {
        mark();
        queue.set_role(after).unwrap();
        mark();
    });
    report("a change of roles", &run);
    let found = run.states.iter().map(|state| {
        let dir = scratch();
        state.restore(dir.path());
        let queue = Queue::open(dir.path()).unwrap();
        let role = queue.role();
        let as_standby = role == after;
        drop(queue.writer_with(&WriterOptions { as_standby, ..WriterOptions::default() }).unwrap());
        assert_eq!((queue.role(), count_messages(&queue)), (role, 3));
        role
    });
    let mut found: Vec<_> = found.collect();
    found.dedup();
    assert_eq!(found, [before, after]);
}

#[test]
fn a_kill_at_any_instruction_of_a_gap_and_the_message_after_it_leaves_each_whole_or_absent() {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = new_queue(&path, 2);
    let now = chronfs::clock::now_ns();
    let run = run(&path, |mark| {
        let mut writer = queue.writer().unwrap();
        mark();
        writer.append_exact(6, now, 1, &payload(6)).unwrap();
        mark();
    });
    report("a gap and a message", &run);
    let found = run.states.iter().map(|state| {
        let dir = scratch();
        state.restore(dir.path());
        let mut writer = Queue::open(dir.path()).unwrap().writer().unwrap();
        let next_seq = writer.next_seq();
        // Whatever was left, the same call completes it.
        writer.append_exact(6, now, 1, &payload(6)).unwrap();
        drop(writer);
        let mut scanner = Queue::open(dir.path()).unwrap().scan().unwrap();
        let found: Vec<_> = std::iter::from_fn(|| scanner.next().unwrap().map(common::owned)).collect();
        assert!(
            matches!(&found[..], [Ok((1, _)), Ok((2, _)), Err(gap), Ok((6, last))]
            if (gap.from, gap.to) == (3, 5) && *last == payload(6)),
            "{found:?}"
        );
        next_seq
    });
    let mut found: Vec<_> = found.collect();
    found.dedup();
    assert_eq!(found, [3, 6, 7]);
}
