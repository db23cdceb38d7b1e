//! Inode numbers of messages that say by themselves what they stand for, so that a listing of millions with
//! attributes costs the kernel memory that it can take back, and this process none.
//!
//! A number is made of a bit that no other inode number has, the place of the queue in a table that only grows, and
//! the sequence number. Nothing is kept for each message, but for the last few, which are mostly the next to be
//! asked for.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::backing::FileId;
use super::inodes::{Ino, MESSAGE_BIT};
use super::lock;

const SEQ_BITS: u32 = 44;
const MAX_HOMES: usize = 1 << 18;
/// Nodes that are remembered.
const RECENT: usize = 1024;

/// A queue whose messages have such numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Home {
    /// Path of its `messages/` in the mount.
    pub(crate) path: PathBuf,
    /// Its backing directory.
    pub(crate) id: FileId,
    /// The generation of its nodes.
    pub(crate) generation: u64,
}

/// The table. `N` is what a number stands for.
#[derive(Debug)]
pub(crate) struct Series<N> {
    state: Mutex<State<N>>,
}

#[derive(Debug)]
struct State<N> {
    homes: Vec<Home>,
    places: HashMap<Home, u64>,
    recent: HashMap<Ino, Arc<N>>,
    order: VecDeque<Ino>,
}

impl<N> Default for Series<N> {
    fn default() -> Self {
        let (homes, places) = (Vec::new(), HashMap::new());
        Self { state: Mutex::new(State { homes, places, recent: HashMap::new(), order: VecDeque::new() }) }
    }
}

impl<N> Series<N> {
    /// The number of a message; None where there is no room for it in one.
    pub(crate) fn number(&self, home: Home, seq: u64) -> Option<Ino> {
        let mut state = lock(&self.state);
        let place = match state.places.get(&home) {
            Some(place) => *place,
            None if state.homes.len() >= MAX_HOMES => return None,
            None => {
                let place = u64::try_from(state.homes.len()).ok()?;
                state.homes.push(home.clone());
                state.places.insert(home, place);
                place
            }
        };
        (seq >> SEQ_BITS == 0).then_some(Ino(MESSAGE_BIT | place << SEQ_BITS | seq))
    }

    /// What a number says; None if it is not of this kind.
    pub(crate) fn find(&self, ino: Ino) -> Option<(Home, u64)> {
        if ino.0 & MESSAGE_BIT == 0 {
            return None;
        }
        let place = usize::try_from((ino.0 & !MESSAGE_BIT) >> SEQ_BITS).ok()?;
        let home = lock(&self.state).homes.get(place).cloned()?;
        Some((home, ino.0 & ((1 << SEQ_BITS) - 1)))
    }

    pub(crate) fn remember(&self, ino: Ino, node: &Arc<N>) {
        let gone = {
            let mut state = lock(&self.state);
            let mut gone = state.recent.insert(ino, Arc::clone(node));
            if gone.is_none() {
                state.order.push_back(ino);
            }
            if state.order.len() > RECENT
                && let Some(oldest) = state.order.pop_front()
            {
                gone = state.recent.remove(&oldest);
            }
            gone
        };
        drop(gone);
    }

    pub(crate) fn recent(&self, ino: Ino) -> Option<Arc<N>> {
        lock(&self.state).recent.get(&ino).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(path: &str, generation: u64) -> Home {
        Home { path: path.into(), id: FileId { dev: 1, ino: 2 }, generation }
    }

    #[test]
    fn numbers_say_what_they_stand_for() {
        let series = Series::<()>::default();
        for (path, generation, seq) in [("a/messages", 1, 1), ("a/messages", 2, 1), ("b/messages", 1, (1 << 44) - 1)] {
            let ino = series.number(home(path, generation), seq).unwrap();
            assert_eq!(series.number(home(path, generation), seq), Some(ino));
            assert_eq!(series.find(ino), Some((home(path, generation), seq)));
        }
        assert_eq!(series.number(home("a/messages", 1), 1 << 44), None);
        assert_eq!(series.find(Ino(17)), None);
        assert_eq!(series.find(Ino(MESSAGE_BIT | 9 << SEQ_BITS | 1)), None);
    }

    #[test]
    fn only_the_last_ones_are_remembered() {
        let series = Series::default();
        (0..5000).for_each(|n| series.remember(Ino(MESSAGE_BIT | n), &Arc::new(n)));
        assert_eq!(series.recent(Ino(MESSAGE_BIT | 4999)).as_deref(), Some(&4999));
        assert_eq!(series.recent(Ino(MESSAGE_BIT | 1)), None);
        assert!(lock(&series.state).recent.len() <= RECENT);
    }
}
