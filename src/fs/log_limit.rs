//! Rate limit of the daemon's log, so that a process that causes errors in a loop neither fills it nor makes it
//! expensive. In each minute a few errors of one kind (operation, error number, queue) are logged and the others
//! counted; the errors of one user are limited too, and so is the number of kinds. Pure: the caller passes the time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use log::Level;

/// Length of a window, which starts with its first line.
const WINDOW: Duration = Duration::from_mins(1);
/// Lines of one kind per window.
const OF_A_KIND: u32 = 5;
/// Lines of one user per window.
const OF_A_USER: u32 = 50;
/// Kinds and users that are counted at the same time; the rest count as one kind.
const MAX_WINDOWS: usize = 1024;

/// What lines counted together have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Group {
    Kind { op: &'static str, errno: i32, queue: u64 },
    User(u32),
    Rest,
}

/// The properties of an error by which it is counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub(super) level: Level,
    pub(super) op: &'static str,
    pub(super) errno: i32,
    /// A hash that identifies the queue.
    pub(super) queue: u64,
    /// None for the daemon's own work.
    pub(super) uid: Option<u32>,
}

/// Suppressed lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) level: Level,
    /// What they have in common, in words.
    pub(super) like: String,
    pub(super) count: u64,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    said: u32,
    left_out: LeftOut,
}

/// The current windows.
#[derive(Debug, Default)]
pub(super) struct Limit {
    windows: HashMap<Group, Window>,
    /// When the first of them ends, or earlier.
    next_end: Option<Instant>,
}

impl Group {
    /// How many of its lines are logged in a window.
    fn most(self) -> u32 {
        if let Self::User(_) = self { OF_A_USER } else { OF_A_KIND }
    }
}

impl Limit {
    /// Counts an error; returns whether to log it. `like`: describes the ones suppressed after it.
    pub(super) fn admit(&mut self, error: Counted, like: &dyn Fn() -> String, now: Instant) -> bool {
        let Counted { level, op, errno, queue, uid } = error;
        let mut said = Vec::with_capacity(2);
        for group in uid.map(Group::User).into_iter().chain([Group::Kind { op, errno, queue }]) {
            let is_new = !self.windows.contains_key(&group);
            let group = if is_new && self.windows.len() >= MAX_WINDOWS { Group::Rest } else { group };
            self.next_end.get_or_insert(now + WINDOW);
            let window = self.windows.entry(group).or_insert_with(|| {
                let like = match group {
                    Group::Kind { .. } => like(),
                    Group::User(uid) => format!("errors of user {uid}"),
                    Group::Rest => "errors of other kinds".to_owned(),
                };
                Window { began: now, said: 0, left_out: LeftOut { level, like, count: 0 } }
            });
            if window.said >= group.most() {
                window.left_out.count += 1;
                return false;
            }
            said.push(group);
        }
        for group in said {
            self.windows.entry(group).and_modify(|window| window.said += 1);
        }
        true
    }

    /// Closes the windows that have ended, and returns what was suppressed in them.
    pub(super) fn end(&mut self, now: Instant) -> Vec<LeftOut> {
        if self.next_end.is_none_or(|end| now < end) {
            return Vec::new();
        }
        let is_over = |_: &Group, window: &mut Window| now >= window.began + WINDOW;
        let over = self.windows.extract_if(is_over).map(|(_, window)| window.left_out);
        let left_out = sorted(over.filter(|left_out| left_out.count > 0).collect());
        self.next_end = self.windows.values().map(|window| window.began + WINDOW).min();
        left_out
    }

    /// What has been suppressed so far in the current windows.
    pub(super) fn left_out(&self) -> Vec<LeftOut> {
        let left_out = self.windows.values().map(|window| &window.left_out);
        sorted(left_out.filter(|left_out| left_out.count > 0).cloned().collect())
    }

    /// When the first window with suppressed lines ends.
    pub(super) fn next_end(&self) -> Option<Instant> {
        let waiting = self.windows.values().filter(|window| window.left_out.count > 0);
        waiting.map(|window| window.began + WINDOW).min()
    }
}

fn sorted(mut left_out: Vec<LeftOut>) -> Vec<LeftOut> {
    left_out.sort_unstable_by(|a, b| a.like.cmp(&b.like));
    left_out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(op: &'static str, queue: u64, uid: u32) -> Counted {
        Counted { level: Level::Warn, op, errno: 5, queue, uid: Some(uid) }
    }

    fn count(limit: &mut Limit, errors: impl Iterator<Item = Counted>, now: Instant) -> usize {
        errors.filter(|error| limit.admit(*error, &|| format!("{} {}", error.op, error.queue), now)).count()
    }

    fn said(left_out: &[LeftOut]) -> Vec<(&str, u64)> {
        left_out.iter().map(|left_out| (left_out.like.as_str(), left_out.count)).collect()
    }

    #[test]
    fn a_loop_of_errors_is_said_a_few_times_and_counted() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        let errors = |n| std::iter::repeat_n(error("read", 1, 1000), n);
        assert_eq!(limit.next_end(), None);
        assert_eq!(count(&mut limit, errors(5), start), 5);
        assert_eq!((limit.next_end(), limit.left_out()), (None, vec![]), "nothing was left out");
        assert_eq!(count(&mut limit, errors(9_995), start + WINDOW / 2), 0);
        assert_eq!(said(&limit.left_out()), [("read 1", 9_995)]);
        assert_eq!(limit.next_end(), Some(start + WINDOW));
        assert_eq!(limit.end(start + WINDOW / 2), []);
        assert_eq!(said(&limit.end(start + WINDOW)), [("read 1", 9_995)]);
        assert!(limit.windows.is_empty());
        assert_eq!(count(&mut limit, errors(7), start + WINDOW), 5, "the next minute");
        assert_eq!(said(&limit.left_out()), [("read 1", 2)]);
    }

    #[test]
    fn one_kind_does_not_hide_another() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        count(&mut limit, std::iter::repeat_n(error("read", 1, 1000), 100), now);
        for other in [error("write", 1, 1000), error("read", 2, 1000), Counted { errno: 12, ..error("read", 1, 1000) }]
        {
            assert_eq!(count(&mut limit, [other].into_iter(), now), 1, "{other:?}");
        }
    }

    #[test]
    fn one_user_does_not_hide_another_with_errors_of_many_kinds() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        assert_eq!(count(&mut limit, (0..10_000).map(|queue| error("read", queue, 1000)), now), 50);
        assert_eq!(count(&mut limit, (0..10).map(|queue| error("read", queue, 1001)), now), 10);
        assert_eq!(said(&limit.left_out()), [("errors of user 1000", 9_950)]);
    }

    #[test]
    fn memory_is_bounded() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        let hostile = (0..100_000).map(|n| error("read", n, u32::try_from(n).unwrap()));
        let lines = count(&mut limit, hostile, now);
        assert!(lines <= MAX_WINDOWS / 2 + 5, "{lines}");
        assert!(limit.windows.len() <= MAX_WINDOWS + 1);
        let left_out: u64 = limit.end(now + WINDOW).iter().map(|left_out| left_out.count).sum();
        assert_eq!(left_out, 100_000 - u64::try_from(lines).unwrap());
    }
}
