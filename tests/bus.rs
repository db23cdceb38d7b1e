//! Discovery as a router sees it: endpoints that are added, removed, replaced and renamed meanwhile; lost
//! notifications; ten thousand endpoints.
#![cfg(feature = "bus")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chronfs::Queue;
use chronfs::bus::{self, BusLayout, Change, LeaseState, RouterDiscovery};
use chronfs::queue::Settings;

mod common;

use common::need;

/// Time limit for anything that must happen.
const DEADLINE: Duration = Duration::from_secs(30);
/// So rare that no rescan hides what the notifications miss.
const NEVER: Duration = Duration::from_secs(100_000);

struct Bus {
    dir: tempfile::TempDir,
    discovery: RouterDiscovery,
}

impl Bus {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let discovery = RouterDiscovery::new(dir.path()).unwrap().with_rescan(NEVER);
        let mut bus = Self { dir, discovery };
        assert_eq!(bus.poll(), []);
        bus
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn create(&self, name: &str) -> Queue {
        let settings = Settings { segment_size: 64 << 10, ..Settings::default() };
        Queue::create(self.path(name), &settings).unwrap()
    }

    /// Path below the root, and what happened.
    fn poll(&mut self) -> Vec<(String, Change)> {
        let root = self.dir.path().to_path_buf();
        let name = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        self.discovery.poll().unwrap().into_iter().map(|event| (name(&event.path), event.change)).collect()
    }

    fn changes(&mut self) -> Vec<Change> {
        self.poll().into_iter().map(|(_, change)| change).collect()
    }
}

#[test]
fn endpoints_come_become_ready_and_go() {
    let mut bus = Bus::new();
    let queue = bus.create("orders/queue/momentum/orders_out");
    let name = "orders/queue/momentum/orders_out".to_owned();
    assert_eq!(bus.poll(), [(name.clone(), Change::Added)]);
    bus::mark_ready(queue.path()).unwrap();
    bus::write_lease(queue.path(), Duration::from_secs(3600), "").unwrap();
    assert_eq!(bus.poll(), [(name.clone(), Change::Ready), (name.clone(), Change::LeaseLive)]);
    bus::mark_ready(queue.path()).unwrap();
    bus::write_lease(queue.path(), Duration::from_secs(3600), "renewed").unwrap();
    assert_eq!(bus.poll(), [], "what has not changed is not reported");
    let (_, endpoint) = bus.discovery.endpoints().next().unwrap();
    assert_eq!((endpoint.ready, endpoint.lease), (true, Some(LeaseState::Live)));
    bus::unmark_ready(queue.path()).unwrap();
    bus::remove_lease(queue.path()).unwrap();
    assert_eq!(bus.changes(), [Change::Unready, Change::LeaseRemoved]);
    fs::remove_dir_all(bus.path("orders")).unwrap();
    assert_eq!(bus.poll(), [(name, Change::Removed)]);
    assert_eq!(bus.discovery.endpoints().count(), 0);
}

#[test]
fn existing_endpoints_are_found_and_links_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    for name in ["root/a", "root/deep/down/b", "outside"] {
        Queue::create(dir.path().join(name), &Settings::default()).unwrap();
    }
    std::os::unix::fs::symlink(dir.path().join("outside"), root.join("link")).unwrap();
    fs::create_dir_all(root.join("plain")).unwrap();
    let mut discovery = RouterDiscovery::new(&root).unwrap();
    let found: Vec<_> = discovery.poll().unwrap().into_iter().map(|event| event.path).collect();
    assert_eq!(found, [root.join("a"), root.join("deep/down/b")]);
    assert!(RouterDiscovery::new(root.join("missing")).is_err());
}

#[test]
fn a_lease_expires_by_itself() {
    let mut bus = Bus::new();
    let queue = bus.create("q");
    bus::write_lease(queue.path(), Duration::from_millis(60), "").unwrap();
    let deadline = Instant::now() + DEADLINE;
    let mut seen = Vec::new();
    while seen.last() != Some(&Change::LeaseExpired) {
        assert!(Instant::now() < deadline, "{seen:?}");
        seen.extend(bus.changes());
        if seen.last() == Some(&Change::LeaseLive) {
            // Wakes when it expires, not when a rescan is due.
            bus.discovery.wait(DEADLINE).unwrap();
        }
    }
    assert_eq!(seen, [Change::Added, Change::LeaseLive, Change::LeaseExpired]);
    bus::write_lease(queue.path(), Duration::from_secs(60), "").unwrap();
    assert_eq!(bus.changes(), [Change::LeaseLive]);
    fs::write(bus.path("q/.tmp-lease"), "").unwrap();
    fs::rename(bus.path("q/.tmp-lease"), bus.path("q/LEASE")).unwrap();
    assert_eq!(bus.changes(), [Change::LeaseUnknown]);
}

#[test]
fn an_endpoint_that_is_replaced_is_removed_and_added() {
    let mut bus = Bus::new();
    let queue = bus.create("s/out");
    bus::mark_ready(queue.path()).unwrap();
    assert_eq!(bus.changes(), [Change::Added, Change::Ready]);
    let replaced = [Change::Removed, Change::Added];

    // The directory: even while the old one is held open, so that the kernel keeps it.
    let held = fs::File::open(queue.path()).unwrap();
    fs::remove_dir_all(queue.path()).unwrap();
    bus.create("s/out");
    assert_eq!(bus.changes(), replaced);
    drop(held);
    assert_eq!(bus.poll(), []);

    // The directory above it.
    fs::remove_dir_all(bus.path("s")).unwrap();
    bus.create("s/out");
    assert_eq!(bus.changes(), replaced);

    // Only what is in it.
    for entry in fs::read_dir(bus.path("s/out")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }
    bus.create("s/out");
    assert_eq!(bus.changes(), replaced);

    // By rename.
    fs::rename(bus.path("s/out"), bus.path("s/old")).unwrap();
    bus.create("s/out");
    let events = bus.poll();
    let old = ("s/old".to_owned(), Change::Added);
    let out = |change| ("s/out".to_owned(), change);
    assert_eq!(events, [old, out(Change::Removed), out(Change::Added)]);
    bus::mark_ready(bus.path("s/old")).unwrap();
    assert_eq!(bus.poll(), [("s/old".to_owned(), Change::Ready)], "a renamed directory is still watched");
}

#[test]
fn a_queue_that_is_being_removed_is_removed_once() {
    let mut bus = Bus::new();
    let queue = bus.create("q");
    assert_eq!(bus.changes(), [Change::Added]);
    fs::remove_file(queue.path().join("control.meta")).unwrap();
    assert_eq!(bus.changes(), [Change::Removed]);
    fs::write(queue.path().join("000000007.q.tmp"), "").unwrap();
    fs::remove_file(queue.path().join("000000007.q.tmp")).unwrap();
    assert_eq!(bus.changes(), [], "its segments are still there, and are going, too");
    // If not, it is a damaged queue, and a full scan finds it.
    let mut fresh = RouterDiscovery::new(bus.dir.path()).unwrap();
    assert_eq!(fresh.poll().unwrap()[0].change, Change::Added);
    fs::remove_dir_all(queue.path()).unwrap();
    assert_eq!(bus.changes(), []);
}

#[test]
fn renamed_directories_take_their_endpoints_along() {
    let mut bus = Bus::new();
    bus.create("a/x/q");
    bus.create("b/y");
    assert_eq!(bus.poll().len(), 2);
    fs::rename(bus.path("a/x"), bus.path("b/x")).unwrap();
    let expected = [("a/x/q".to_owned(), Change::Removed), ("b/x/q".to_owned(), Change::Added)];
    assert_eq!(bus.poll(), expected);
    bus::mark_ready(bus.path("b/x/q")).unwrap();
    assert_eq!(bus.poll(), [("b/x/q".to_owned(), Change::Ready)]);
    fs::rename(bus.path("b/x"), bus.path("a/x")).unwrap();
    bus::unmark_ready(bus.path("a/x/q")).unwrap();
    let expected = [("a/x/q".to_owned(), Change::Added), ("b/x/q".to_owned(), Change::Removed)];
    assert_eq!(bus.poll(), expected);
}

#[test]
fn the_root_may_go_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("bus");
    Queue::create(root.join("q"), &Settings::default()).unwrap();
    let mut discovery = RouterDiscovery::new(&root).unwrap().with_rescan(Duration::from_millis(1));
    assert_eq!(discovery.poll().unwrap().len(), 1);
    fs::remove_dir_all(&root).unwrap();
    assert_eq!(discovery.poll().unwrap()[0].change, Change::Removed);
    Queue::create(root.join("q"), &Settings::default()).unwrap();
    let deadline = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < deadline);
        if let Some(event) = discovery.poll().unwrap().first() {
            assert_eq!(event.change, Change::Added);
            break;
        }
        discovery.wait(DEADLINE).unwrap();
    }
}

/// The kernel queues about 16,384 notifications; then it reports only that some were lost.
#[test]
fn lost_notifications_lose_no_endpoint() {
    let mut bus = Bus::new();
    bus.create("stays");
    bus.create("goes");
    assert_eq!(bus.poll().len(), 2);
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    if limit > 200_000 {
        return need::skip(&format!("the kernel keeps {limit} notifications"));
    }
    // Different names: the same notification twice in a row counts once.
    for n in 0..=limit / 2 {
        let file = bus.path(&format!("noise-{}", n % 2));
        fs::write(&file, "").unwrap();
        fs::remove_file(&file).unwrap();
    }
    // No notification of this arrives any more.
    fs::remove_dir_all(bus.path("goes")).unwrap();
    let queue = bus.create("comes/q");
    bus::mark_ready(queue.path()).unwrap();
    let expected = [("comes/q", Change::Added), ("comes/q", Change::Ready), ("goes", Change::Removed)];
    assert_eq!(bus.poll(), expected.map(|(name, change)| (name.to_owned(), change)));
    bus::unmark_ready(queue.path()).unwrap();
    assert_eq!(bus.poll(), [("comes/q".to_owned(), Change::Unready)], "and it is watched");
}

/// While one thread creates, marks, renames and removes endpoints, another one polls without pause. At the end it knows
/// what exists, and its reports add up to that.
#[test]
fn races_between_polling_and_changing_leave_nothing_out() {
    let mut bus = Bus::new();
    let root = bus.dir.path().to_path_buf();
    let done = AtomicBool::new(false);
    let mut known = BTreeSet::new();
    let mut apply = |bus: &mut Bus| {
        for event in bus.discovery.poll().unwrap() {
            match event.change {
                Change::Added => assert!(known.insert(event.path.clone()), "{event:?} twice"),
                Change::Removed => assert!(known.remove(&event.path), "{event:?}: it was never added"),
                _ => assert!(known.contains(&event.path), "{event:?}"),
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let settings = Settings { segment_size: 64 << 10, ..Settings::default() };
            for n in 0..300 {
                let (dir, other) = (root.join(format!("s{}", n % 7)), root.join(format!("t{}", n % 5)));
                if Queue::create(dir.join("out"), &settings).is_ok() {
                    bus::mark_ready(dir.join("out")).unwrap();
                }
                match n % 4 {
                    0 => fs::remove_dir_all(&dir).unwrap(),
                    1 => drop(fs::rename(&dir, &other)),
                    2 => drop(fs::remove_dir_all(&other)),
                    _ => {}
                }
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            apply(&mut bus);
        }
    });
    apply(&mut bus);
    // What exists, found by a new one.
    let mut fresh = RouterDiscovery::new(&root).unwrap();
    let there: BTreeSet<PathBuf> =
        fresh.poll().unwrap().into_iter().filter(|e| e.change == Change::Added).map(|e| e.path).collect();
    let ready =
        |discovery: &RouterDiscovery| discovery.endpoints().map(|(p, e)| (p.to_owned(), e.ready)).collect::<Vec<_>>();
    assert_eq!(ready(&bus.discovery), ready(&fresh));
    assert_eq!(known, there);
    assert!(!known.is_empty());
}

/// With `CHRONFS_SOAK` ten thousand.
#[test]
fn thousands_of_endpoints() {
    let count = if std::env::var_os("CHRONFS_SOAK").is_some() { 10_000 } else { 2_000 };
    let mut bus = Bus::new();
    let layout = BusLayout::new(bus.dir.path());
    // What discovery checks: a control block makes a directory a queue. Whole queues would take 640 MiB.
    let made = bus.create("template");
    let control = fs::read(made.path().join("control.meta")).unwrap();
    for n in 0..count {
        let out = layout.strategy(&format!("s{n:05}")).unwrap().orders_out;
        fs::create_dir_all(&out).unwrap();
        fs::write(out.join("control.meta"), &control).unwrap();
    }
    let started = Instant::now();
    let found = bus.changes().into_iter().filter(|change| *change == Change::Added).count();
    assert_eq!(found, count + 1);
    eprintln!("{count} endpoints found in {:?}", started.elapsed());
    if bus.discovery.unwatched() > 0 {
        return need::skip("max_user_watches is too low for the rest");
    }
    let started = Instant::now();
    for n in (0..count).step_by(100) {
        bus::mark_ready(layout.strategy(&format!("s{n:05}")).unwrap().orders_out).unwrap();
    }
    assert_eq!(bus.changes(), vec![Change::Ready; count / 100]);
    eprintln!("a hundred of them marked and noticed in {:?}", started.elapsed());
    let started = Instant::now();
    assert_eq!(bus.poll(), []);
    assert!(started.elapsed() < Duration::from_secs(1), "a poll without news does not scan everything");
    fs::remove_dir_all(layout.strategies()).unwrap();
    assert_eq!(bus.changes(), vec![Change::Removed; count]);
}
