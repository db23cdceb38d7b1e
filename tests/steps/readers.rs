//! Kills while a reader is opened and commits.

use super::*;

/// Where alice is after a kill; None if she is not registered.
fn alice(state: &State) -> Option<u64> {
    let dir = scratch();
    state.restore(dir.path());
    let queue = Queue::open(dir.path()).unwrap();
    let position = queue.reader_position("alice").ok()?;
    assert_eq!(queue.reader("alice").unwrap().seq(), position);
    Some(position)
}

/// Where she is after the kills, in order.
fn positions(run: &Run) -> Vec<Option<u64>> {
    let mut positions: Vec<_> = run.states.iter().map(alice).collect();
    positions.dedup();
    positions
}

#[test]
fn a_kill_at_any_instruction_of_opening_a_reader_at_the_end_leaves_none_or_one_at_the_end() {
    let options = ReaderOptions { start: Start::End, ..ReaderOptions::default() };
    for before in [None, Some(1)] {
        let dir = scratch();
        let path = dir.path().join("q");
        let queue = new_queue(&path, 8);
        if before.is_some() {
            queue.add_reader("alice").unwrap();
        }
        let run = run(&path, |mark| {
            mark();
            let mut reader = queue.reader_with("alice", &options).unwrap();
            assert!(reader.next().unwrap().is_none());
            mark();
        });
        report("opening at the end", &run);
        assert_eq!(positions(&run), [before, Some(9)]);
    }
}

#[test]
fn a_kill_at_any_instruction_of_commits_of_less_than_was_read_leaves_one_of_them() {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = new_queue(&path, 8);
    queue.add_reader("alice").unwrap();
    let run = run(&path, |mark| {
        let mut reader = queue.reader("alice").unwrap();
        while reader.next().unwrap().is_some() {}
        mark();
        [2, 5, 8].into_iter().for_each(|seq| reader.commit_to(seq).unwrap());
        mark();
    });
    report("commit up to a message", &run);
    assert_eq!(positions(&run), [1, 3, 6, 9].map(Some));
}

#[test]
fn a_kill_at_any_instruction_of_a_commit_leaves_the_cursor_before_or_after_it() {
    let dir = scratch();
    let path = dir.path().join("q");
    let queue = new_queue(&path, 8);
    queue.add_reader("alice").unwrap();
    let run = run(&path, |mark| {
        let mut reader = queue.reader("alice").unwrap();
        reader.next().unwrap();
        mark();
        for _ in 0..4 {
            reader.commit();
            reader.next().unwrap();
        }
        mark();
    });
    report("cursor commit", &run);
    let position = |state: &State| {
        let dir = scratch();
        state.restore(dir.path());
        let queue = Queue::open(dir.path()).unwrap();
        let position = queue.reader_position("alice").unwrap();
        let mut reader = queue.reader("alice").unwrap();
        assert_eq!(reader.next().unwrap().and_then(Entry::message).map(|message| message.seq), Some(position));
        reader.commit();
        assert_eq!(queue.reader_position("alice").unwrap(), position + 1);
        position
    };
    let mut positions: Vec<_> = run.states.iter().map(position).collect();
    assert!(positions.is_sorted(), "{positions:?}");
    positions.dedup();
    assert_eq!(positions, [1, 2, 3, 4, 5]);
}
