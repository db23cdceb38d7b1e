//! How much one user may hold of the daemon's shared resources: handles, memory, writers.
//!
//! One rule for all: a user may hold at most as much as remains free. So the first user gets at most half, a second one
//! half of the rest, and a user who holds nothing yet always gets something. Root gets nearly all.
//!
//! | kind | limit | above it |
//! |---|---|---|
//! | open files and directories | three quarters of the process's descriptor limit, at most 100,000 | ENFILE |
//! | bytes that handles keep between calls (unfinished lines and messages, texts, listings), waiting reads | a quarter of the memory | ENOMEM |
//! | queues with a writer, each with its two or three threads | an eighth of the threads, at most 1,024 | EAGAIN |

use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::process::{Resource, getrlimit};

use crate::fs::errno::{Errno, Result};
use crate::fs::lock;

/// A limited resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Open files and directories.
    Handles,
    /// Bytes kept for handles.
    Bytes,
    /// Queues with a writer in the mount.
    Writers,
}

impl Kind {
    const COUNT: usize = 3;

    fn refusal(self) -> Errno {
        match self {
            Self::Handles => Errno::ENFILE,
            Self::Bytes => Errno::ENOMEM,
            Self::Writers => Errno::EAGAIN,
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Handles => "open files",
            Self::Bytes => "bytes of memory",
            Self::Writers => "queues that are appended to",
        }
    }
}

/// The fraction of every resource that root leaves to others: one part in this many.
const LEFT_BY_ROOT: u64 = 16;

/// The limits, and who holds how much.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: [u64; Kind::COUNT],
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    in_all: [u64; Kind::COUNT],
    by_user: HashMap<u32, [u64; Kind::COUNT]>,
}

thread_local! {
    static PAYER: Cell<u32> = const { Cell::new(0) };
}

/// From now on this thread works for this user.
pub(crate) fn set_payer(uid: u32) {
    PAYER.set(uid);
}

/// A user's share of one resource, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    uid: u32,
    kind: Kind,
    amount: u64,
}

impl Budget {
    /// The limits of this process and machine.
    pub(crate) fn of_this_process() -> Arc<Self> {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
        Self::new((descriptors / 4 * 3).min(100_000), memory() / 4, (tasks() / 8).clamp(8, 1024))
    }

    fn new(handles: u64, bytes: u64, writers: u64) -> Arc<Self> {
        Arc::new(Self { limits: [handles, bytes, writers], held: Mutex::default() })
    }

    /// As [`Budget::take`], for the user whom this thread works for.
    pub(crate) fn charge(self: &Arc<Self>, kind: Kind, amount: u64) -> Result<Share> {
        self.take(PAYER.get(), kind, amount)
    }

    /// Takes a share for a user.
    pub(crate) fn take(self: &Arc<Self>, uid: u32, kind: Kind, amount: u64) -> Result<Share> {
        let mut share = Share { budget: Arc::clone(self), uid, kind, amount: 0 };
        share.resize(amount)?;
        Ok(share)
    }
}

/// A handle that keeps at most this many bytes is not charged: small messages are frequent and short-lived.
const FREE: u64 = 16 << 10;
/// Bytes are charged in steps of this.
const STEP: u64 = 64 << 10;

/// Bytes that a handle keeps, charged to the user who opened it.
#[derive(Debug)]
pub(crate) struct Kept(Share);

impl Kept {
    /// Nothing yet.
    pub(crate) fn new(budget: &Arc<Budget>, uid: u32) -> Self {
        Self(Share { budget: Arc::clone(budget), uid, kind: Kind::Bytes, amount: 0 })
    }

    /// Charges for this many bytes instead of the previous charge. On ENOMEM they must not be kept.
    pub(crate) fn set(&mut self, bytes: usize) -> Result<()> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.0.resize(if bytes <= FREE { 0 } else { bytes.div_ceil(STEP).saturating_mul(STEP) })
    }
}

impl Share {
    /// Grows the share, where there is room.
    pub(crate) fn grow(&mut self, by: u64) -> Result<()> {
        self.resize(self.amount.saturating_add(by))
    }

    /// Grows the share, where there is room, or shrinks it.
    pub(crate) fn resize(&mut self, amount: u64) -> Result<()> {
        if amount == self.amount {
            return Ok(());
        }
        let kind = self.kind as usize;
        let limit = self.budget.limits[kind];
        let mut held = lock(&self.budget.held);
        let in_all = (held.in_all[kind] - self.amount).saturating_add(amount);
        let user = held.by_user.entry(self.uid).or_default();
        let by_user = (user[kind] - self.amount).saturating_add(amount);
        let left = limit.saturating_sub(in_all);
        let is_fair = if self.uid == 0 { left >= limit / LEFT_BY_ROOT } else { by_user <= left };
        if amount > self.amount && !is_fair {
            let (what, of_user) = (self.kind.what(), user[kind]);
            let text = format!("user {} has {of_user} {what}, others leave {left} of {limit}", self.uid);
            return Err(self.kind.refusal().because(text));
        }
        user[kind] = by_user;
        if *user == [0; Kind::COUNT] {
            held.by_user.remove(&self.uid);
        }
        held.in_all[kind] = in_all;
        self.amount = amount;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let _ = self.resize(0);
    }
}

/// Bytes of memory that the process may use.
fn memory() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let total = total.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(1 << 20) << 10;
    let data = getrlimit(Resource::Data).current;
    let limits = [data, control_group("", "memory.max"), control_group("memory", "memory.limit_in_bytes")];
    limits.into_iter().flatten().fold(total, u64::min)
}

/// Threads that the process may have.
pub(crate) fn tasks() -> u64 {
    let nproc = getrlimit(Resource::Nproc).current.filter(|_| !rustix::process::geteuid().is_root());
    let all = fs::read_to_string("/proc/sys/kernel/threads-max").ok().and_then(|text| text.trim().parse().ok());
    let limits = [nproc, all, control_group("", "pids.max"), control_group("pids", "pids.max")];
    limits.into_iter().flatten().min().unwrap_or(1024)
}

/// The tightest limit of the process's control group and its ancestors; None where there is none. `controller`: of
/// cgroup version 1; empty for version 2.
fn control_group(controller: &str, file: &str) -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let path = fields.next()?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })?;
    let mount = Path::new("/sys/fs/cgroup").join(controller);
    let below = Path::new(path.trim_start_matches('/'));
    let limit = |group: &Path| fs::read_to_string(mount.join(group).join(file)).ok()?.trim().parse::<u64>().ok();
    below.ancestors().filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_nothing_yet_gets_something() {
        let budget = Budget::new(1000, 1 << 20, 8);
        let greedy = |uid| {
            let mut shares = Vec::new();
            while let Ok(share) = budget.take(uid, Kind::Handles, 1) {
                shares.push(share);
            }
            assert_eq!(budget.take(uid, Kind::Handles, 1).unwrap_err(), Errno::ENFILE);
            shares
        };
        let first = greedy(1);
        let second = greedy(2);
        assert_eq!((first.len(), second.len()), (500, 250));
        let root = greedy(0);
        assert_eq!(root.len(), 250 - 62);
        assert!(budget.take(3, Kind::Handles, 20).is_ok());
        drop((first, second, root));
        assert!(lock(&budget.held).by_user.is_empty());
        assert_eq!(greedy(0).len(), 1000 - 62);
    }

    #[test]
    fn shares_grow_where_there_is_room_and_shrink_always() {
        let budget = Budget::new(10, 100, 8);
        let mut share = budget.take(1, Kind::Bytes, 10).unwrap();
        share.resize(50).unwrap();
        assert_eq!(share.resize(51), Err(Errno::ENOMEM));
        let other = budget.take(2, Kind::Bytes, 25).unwrap();
        share.resize(49).unwrap();
        drop(other);
        share.resize(50).unwrap();
        assert_eq!(budget.take(1, Kind::Writers, 5).unwrap_err(), Errno::EAGAIN);
    }

    #[test]
    fn the_process_has_something_of_everything() {
        let budget = Budget::of_this_process();
        assert!(budget.limits.iter().all(|limit| *limit >= 8), "{:?}", budget.limits);
    }
}
