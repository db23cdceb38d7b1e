//! Streams that are full, emptied, removed, or somebody else's; messages that are too large; gaps.
use std::path::Path;

use async_nats::jetstream::stream::Config;
use chronfs::Queue;
use chronfs::queue::{Entry, GapReason, Settings, UpstreamGap};

use crate::broker::Broker;
use crate::cluster::{self, Cluster, block_on, free_ports, get};
use crate::common::{SMALL, append, filled, payload, writer};
use crate::relay::{Relay, check_exact, check_same, until_caught_up};
use crate::service::{Service, report, until_report};

fn condition(path: &Path) -> String {
    report(path, "relay")["condition"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_full_stream_is_waited_for() {
    if !cluster::is_there() {
        return;
    }
    let cluster = Cluster::new(1);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    let queue = filled(&path, &SMALL, 1000, |seq| payload(seq, 300));
    let options = ["--max-bytes", "100000"];
    let relay = Relay::start(path.to_str().unwrap(), &cluster.target("Q"), &options, &dir.path().join("log"));
    until_report(&path, "relay", "the target is full", |report| report["condition"] == "target-full");
    let stuck = report(&path, "relay");
    assert!(
        stuck["lag_messages"].as_u64() > Some(0) && stuck["reason"].as_str().unwrap().contains("maximum"),
        "{stuck}"
    );
    block_on(async {
        let context = cluster.connect().await;
        let config = context.get_stream("Q").await.unwrap().cached_info().config.clone();
        context.update_stream(Config { max_bytes: -1, ..config }).await.unwrap();
    });
    until_caught_up(&queue, "relay");
    assert_eq!(condition(&path), "running");
    relay.stop();
    assert_eq!(check_exact(&cluster, "Q", &queue), 1000);
}

/// The stored pair tells which message the removed one was; without it, the relay does not guess.
fn a_purged_stream_goes_on_where_it_was(mut servers: impl Broker) {
    let dir = tempfile::tempdir().unwrap();
    let (path, log) = (dir.path().join("q"), dir.path().join("log"));
    let queue = filled(&path, &SMALL, 50, |seq| payload(seq, 300));
    let (from, target) = (path.to_str().unwrap(), servers.target("Q"));
    let relay = Relay::start(from, &target, &[], &log);
    until_caught_up(&queue, "relay");
    relay.stop();
    servers.purge("Q");
    servers.kill(0);
    servers.start(0);
    append(&mut writer(&queue), 50, |seq| payload(seq, 300));
    let relay = Relay::start(from, &target, &[], &log);
    until_caught_up(&queue, "relay");
    relay.stop();
    let left = servers.messages("Q");
    let numbers: Vec<_> =
        left.iter().map(|message| (message.number, message.header("Chron-Seq").unwrap().parse().unwrap())).collect();
    assert_eq!(numbers, (51..=100).map(|seq| (seq, seq)).collect::<Vec<(u64, u64)>>());

    servers.purge("Q");
    std::fs::remove_dir_all(path.join("relay")).unwrap();
    assert_eq!(Relay::start(from, &target, &[], &log).exit_code(), Some(77));
    assert!(std::fs::read_to_string(&log).unwrap().contains("has been removed"));
}

/// The last message expires again and again, while the relay runs and while it does not.
#[test]
fn a_stream_that_forgets_by_age_goes_on_where_it_was() {
    if !cluster::is_there() {
        return;
    }
    let cluster = Cluster::new(1);
    let dir = tempfile::tempdir().unwrap();
    let (path, config, log) = (dir.path().join("q"), dir.path().join("relay.toml"), dir.path().join("log"));
    let queue = Queue::create(&path, &SMALL).unwrap();
    let toml = format!("from = {path:?}\nto = {:?}\n[stream]\nmax_age_seconds = 1\n", cluster.target("Q"));
    std::fs::write(&config, toml).unwrap();
    let start = || {
        let mut command = crate::relay::command();
        command.arg("run").arg("--config").arg(&config);
        Service::start(command, &log)
    };
    let stream = |wanted: u64| {
        block_on(async {
            let context = cluster.connect().await;
            crate::relay::until_so("the stream is as wanted", async || {
                let state = context.get_stream("Q").await.unwrap().cached_info().state.clone();
                (state.messages == 0 && state.last_sequence == wanted).then_some(())
            })
            .await;
        });
    };
    let mut relay = start();
    for round in 1..=4 {
        append(&mut writer(&queue), 50, |seq| payload(seq, 300));
        until_caught_up(&queue, "relay");
        stream(50 * round);
        if round % 2 == 0 {
            relay.stop();
            relay = start();
        }
    }
    append(&mut writer(&queue), 1, |seq| payload(seq, 300));
    until_caught_up(&queue, "relay");
    let report = report(&path, "relay");
    assert_eq!((&report["counts"]["rewinds"], &report["counts"]["gaps"]), (&0.into(), &0.into()), "{report}");
    assert_eq!(report["pair"], serde_json::json!({ "seq": 201, "stream_seq": 201 }));
    relay.stop();
}

fn a_stream_that_was_deleted_is_made_again_with_all_that_is_left(servers: impl Broker) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    let queue = filled(&path, &SMALL, 300, |seq| payload(seq, 300));
    let relay = Relay::start(path.to_str().unwrap(), &servers.target("Q"), &[], &dir.path().join("log"));
    until_caught_up(&queue, "relay");
    servers.delete("Q");
    append(&mut writer(&queue), 1, |seq| payload(seq, 300));
    until_caught_up(&queue, "relay");
    assert_eq!(report(&path, "relay")["counts"]["rewinds"], 1);
    relay.stop();
    assert_eq!(check_exact(&servers, "Q", &queue), 301);
}

#[test]
fn messages_of_any_size_arrive() {
    if !cluster::is_there() {
        return;
    }
    let cluster = Cluster::with_lines(1, "max_payload: 65536");
    let dir = tempfile::tempdir().unwrap();
    let (path, copy, log) = (dir.path().join("q"), dir.path().join("copy"), dir.path().join("log"));
    let queue = Queue::create(&path, &Settings::default()).unwrap();
    let mut writer = queue.writer().unwrap();
    for limit in [65536 - 512, 65536, 2 * (65536 - 512), 1 << 20] {
        for len in [limit - 1, limit, limit + 1] {
            writer.append(1, &vec![u8::try_from(len % 251).unwrap(); len]).unwrap();
        }
    }
    for (stream, frames) in [("Q", None), ("F", Some("--frames"))] {
        let options: Vec<_> = ["--name", stream].into_iter().chain(frames).collect();
        let target = cluster.target(stream);
        let relay = Relay::start(path.to_str().unwrap(), &target, &options, &log);
        until_caught_up(&queue, stream);
        relay.stop();
        let copy = copy.with_extension(stream);
        let standby = Relay::start(&target, copy.to_str().unwrap(), &[], &log);
        until_report(&copy, "relay", "all is there", |report| report["pair"]["seq"] == 12);
        standby.stop();
        assert_eq!(check_same(&queue, &Queue::open(&copy).unwrap()), 12);
    }
    let relay =
        Relay::start(path.to_str().unwrap(), &cluster.target("S"), &["--name", "s", "--too-large", "stop"], &log);
    assert_eq!(relay.exit_code(), Some(77));
    assert!(std::fs::read_to_string(&log).unwrap().contains("max_payload"));
}

fn two_queues_in_one_stream_are_refused(servers: impl Broker) {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let paths = [dir.path().join("a"), dir.path().join("b")];
    let queues = paths.each_ref().map(|path| filled(path, &SMALL, 500, |seq| payload(seq, 300)));
    let target = servers.target("Q");
    let mut relays = paths.each_ref().map(|path| Some(Relay::start(path.to_str().unwrap(), &target, &[], &log)));
    let won = |path: &Path| condition(path) == "refused";
    let mut loser = 2;
    crate::common::until("one of them gives up", || {
        loser = paths.iter().position(|path| won(path)).unwrap_or(2);
        loser < 2
    });
    assert_eq!(relays[loser].take().unwrap().exit_code(), Some(77));
    let winner = 1 - loser;
    until_caught_up(&queues[winner], "relay");
    relays[winner].take().unwrap().stop();
    assert_eq!(check_exact(&servers, "Q", &queues[winner]), 500);
}

fn what_retention_has_removed_is_named(servers: impl Broker) {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy, log) = (dir.path().join("q"), dir.path().join("copy"), dir.path().join("log"));
    let settings = Settings { retain_bytes: Some(64 << 10), max_lag_bytes: Some(128 << 10), ..SMALL };
    let queue = filled(&path, &settings, 100, |seq| payload(seq, 300));
    let (from, target) = (path.to_str().unwrap(), servers.target("Q"));
    let relay = Relay::start(from, &target, &[], &log);
    until_caught_up(&queue, "relay");
    relay.stop();
    append(&mut writer(&queue), 5000, |seq| payload(seq, 300));
    queue.apply_retention().unwrap();
    let first = queue.bounds().unwrap().first_seq;
    assert!(first > 101, "the queue still has all messages from {first} on");
    let relay = Relay::start(from, &target, &[], &log);
    until_caught_up(&queue, "relay");
    relay.stop();
    let messages = servers.messages("Q");
    let gap = messages.iter().find_map(|message| message.header("Chron-Gap"));
    assert_eq!(gap, Some(format!("101-{} retired", first - 1).as_str()));
    let standby = Relay::start(&target, copy.to_str().unwrap(), &[], &log);
    until_report(&copy, "relay", "all is there", |report| report["pair"]["seq"] == 5100);
    standby.stop();
    let copied = Queue::open(&copy).unwrap();
    let mut reader = copied.tailer().unwrap();
    let mut gaps = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        if let Entry::Gap(gap) = entry {
            gaps.push((gap.from, gap.to, gap.reason));
        }
    }
    assert_eq!(gaps, [(101, first - 1, GapReason::Upstream(UpstreamGap::Retired))]);
}

/// "Lag 0 but dead" and "silently stuck" can't be.
fn a_relay_that_is_stuck_says_so(servers: impl Broker) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    let queue = filled(&path, &SMALL, 10, |seq| payload(seq, 300));
    let [port] = free_ports(1)[..] else { unreachable!() };
    let options = ["--metrics", &format!("127.0.0.1:{port}")];
    let relay = Relay::start(path.to_str().unwrap(), &servers.target("Q"), &options, &dir.path().join("log"));
    until_caught_up(&queue, "relay");
    assert!(get(port, "/health").unwrap().contains(" 200 "));
    let copy = dir.path().join("copy");
    let standby = Relay::start(&servers.target("Q"), copy.to_str().unwrap(), &[], &dir.path().join("log"));
    until_report(&copy, "relay", "all is there", |report| report["pair"]["seq"] == 10);
    servers.pause(0);
    append(&mut writer(&queue), 7, |seq| payload(seq, 300));
    until_report(&path, "relay", "it is unhealthy", |report| report["healthy"] == false);
    let stuck = report(&path, "relay");
    assert_eq!(stuck["lag_messages"], 7, "{stuck}");
    assert!(
        stuck["last_progress_seconds"].as_f64() >= Some(30.0) && stuck["lag_seconds"].as_f64() > Some(20.0),
        "{stuck}"
    );
    assert!(get(port, "/health").unwrap().contains(" 503 "));
    let metrics = get(port, "/metrics").unwrap();
    assert!(metrics.contains("chronfs_relay_healthy{") && metrics.contains("direction=\"out\"} 7"), "{metrics}");
    let [told] = chronfs::bus::relays(&path).try_into().unwrap();
    assert!(told.trouble().is_some_and(|trouble| trouble.contains("lag 7 messages")), "{told:?}");
    // It can't know that there is more, and does not claim to be well either.
    until_report(&copy, "relay", "the standby is unhealthy", |report| report["healthy"] == false);
    let [told] = chronfs::bus::relays(&copy).try_into().unwrap();
    assert!(told.trouble().is_some_and(|trouble| trouble.starts_with("waiting")), "{told:?}");
    servers.resume(0);
    until_caught_up(&queue, "relay");
    for path in [&path, &copy] {
        until_report(path, "relay", "it is well", |report| report["healthy"] == true && report["pair"]["seq"] == 17);
    }
    relay.stop();
    standby.stop();
    assert_eq!(check_same(&queue, &Queue::open(&copy).unwrap()), 17);
    assert_eq!(check_exact(&servers, "Q", &queue), 17);
}

with_each_broker! {
    a_purged_stream_goes_on_where_it_was: Servers(1),
    a_stream_that_was_deleted_is_made_again_with_all_that_is_left: Servers(1),
    two_queues_in_one_stream_are_refused: Servers(1),
    what_retention_has_removed_is_named: Servers(1),
    a_relay_that_is_stuck_says_so: Servers(1),
}
