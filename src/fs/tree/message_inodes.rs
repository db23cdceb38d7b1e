//! Inode numbers of messages that encode what they stand for, so that a listing of millions with attributes costs the
//! kernel only memory that it can reclaim, and this process none.
//!
//! A number is a bit that no other inode number has, plus a start derived from a hash of the queue, plus the sequence
//! number: it never changes, and differs for each message. Where the ranges of two queues would overlap, messages of
//! one get ordinary inode numbers. Nothing is kept per message, except for the last few, which are the most likely to
//! be used next.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::fs::backing::FileId;
use crate::fs::lock;
use crate::fs::tree::inodes::{Ino, MESSAGE_BIT, stable_hash};

const MAX_HOMES: usize = 1 << 18;
/// Nodes that are remembered.
const RECENT: usize = 1024;

/// A queue whose messages have such numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct MessageDir {
    /// Path of its `messages/` in the mount.
    pub(crate) path: PathBuf,
    /// Its backing directory.
    pub(crate) id: FileId,
    /// The generation of its nodes.
    pub(crate) generation: u64,
}

/// The table. `N` is what a number stands for.
#[derive(Debug)]
pub(crate) struct MessageInodes<N> {
    state: Mutex<State<N>>,
}

impl MessageDir {
    /// Where its numbers start.
    fn place(&self) -> u64 {
        let (path, number, generation) = (self.path.as_os_str().as_bytes(), self.id.ino, self.generation);
        stable_hash(&[path, &number.to_le_bytes(), &generation.to_le_bytes()]) % MESSAGE_BIT
    }
}

#[derive(Debug)]
struct State<N> {
    /// By start, each with the largest sequence number in use.
    homes: BTreeMap<u64, (MessageDir, u64)>,
    recent: HashMap<Ino, Arc<N>>,
    order: VecDeque<Ino>,
}

impl<N> Default for MessageInodes<N> {
    fn default() -> Self {
        Self { state: Mutex::new(State { homes: BTreeMap::new(), recent: HashMap::new(), order: VecDeque::new() }) }
    }
}

impl<N> MessageInodes<N> {
    /// The number of a message; None where there is no room for it.
    pub(crate) fn number(&self, home: &MessageDir, seq: u64) -> Option<Ino> {
        let mut state = lock(&self.state);
        let place = home.place();
        let number = place.checked_add(seq).filter(|number| *number < MESSAGE_BIT)?;
        let is_free = |(next, _): (&u64, &(MessageDir, u64))| number < *next;
        if !state.homes.range(place + 1..).next().is_none_or(is_free) {
            return None;
        }
        match state.homes.get_mut(&place) {
            Some((known, largest)) if known == home => *largest = seq.max(*largest),
            Some(_) => return None,
            None => {
                let before = state.homes.range(..place).next_back();
                let is_taken = before.is_some_and(|(start, (_, largest))| start + largest >= place);
                if is_taken || state.homes.len() >= MAX_HOMES {
                    return None;
                }
                state.homes.insert(place, (home.clone(), seq));
            }
        }
        Some(Ino(MESSAGE_BIT | number))
    }

    /// The queue and sequence number of an inode number; None if it is not of this kind.
    pub(crate) fn find(&self, ino: Ino) -> Option<(MessageDir, u64)> {
        if ino.0 & MESSAGE_BIT == 0 {
            return None;
        }
        let number = ino.0 & !MESSAGE_BIT;
        let state = lock(&self.state);
        let (place, (home, largest)) = state.homes.range(..=number).next_back()?;
        let seq = number - place;
        (seq > 0 && seq <= *largest).then(|| (home.clone(), seq))
    }

    /// Forgets the remembered nodes; they are created again when needed.
    pub(crate) fn forget_recent(&self) {
        let gone = {
            let mut state = lock(&self.state);
            state.order.clear();
            std::mem::take(&mut state.recent)
        };
        drop(gone);
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

    fn home(path: &str, generation: u64) -> MessageDir {
        MessageDir { path: path.into(), id: FileId { dev: 1, ino: 2 }, generation }
    }

    #[test]
    fn numbers_say_what_they_stand_for() {
        let series = MessageInodes::<()>::default();
        for (path, generation, seq) in
            [("a/messages", 1, 1), ("a/messages", 1, 2), ("a/messages", 2, 1), ("b/messages", 1, 1 << 40)]
        {
            let ino = series.number(&home(path, generation), seq).unwrap();
            assert_eq!(series.number(&home(path, generation), seq), Some(ino));
            assert_eq!(series.find(ino), Some((home(path, generation), seq)));
            assert!(ino.0 < 1 << 53);
            let elsewhere = MessageDir { id: FileId { dev: 9, ino: 2 }, ..home(path, generation) };
            assert_eq!(MessageInodes::<()>::default().number(&elsewhere, seq), Some(ino), "in another mount");
        }
        assert_eq!(series.number(&home("a/messages", 1), MESSAGE_BIT), None);
        assert_eq!(series.number(&home("a/messages", 1), u64::MAX), None);
        assert_eq!(series.find(Ino(17)), None);
        assert_eq!(series.find(Ino(MESSAGE_BIT)), None);
    }

    #[test]
    fn queues_never_share_a_number() {
        let series = MessageInodes::<()>::default();
        let mut homes: Vec<_> = (0..2).map(|n| home("a", n)).collect();
        homes.sort_by_key(MessageDir::place);
        let distance = homes[1].place() - homes[0].place();
        // The second queue's place is among the first one's messages.
        assert!(series.number(&homes[0], distance + 5).is_some());
        assert_eq!(series.number(&homes[1], 1), None);
        let series = MessageInodes::<()>::default();
        let first = series.number(&homes[1], 1).unwrap();
        assert_eq!(series.number(&homes[0], distance + 1), None);
        assert_eq!(series.find(first), Some((homes[1].clone(), 1)));
        assert!(series.number(&homes[0], distance - 1).is_some());
    }

    #[test]
    fn only_the_last_ones_are_remembered() {
        let series = MessageInodes::default();
        (0..5000).for_each(|n| series.remember(Ino(MESSAGE_BIT | n), &Arc::new(n)));
        assert_eq!(series.recent(Ino(MESSAGE_BIT | 4999)).as_deref(), Some(&4999));
        assert_eq!(series.recent(Ino(MESSAGE_BIT | 1)), None);
        assert!(lock(&series.state).recent.len() <= RECENT);
    }
}
