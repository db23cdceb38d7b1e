//! Streams that are full, emptied, removed, or somebody else's; messages that are too large; gaps.
use async_nats::jetstream::stream::Config;
use chronfs::Queue;
use chronfs::bus::RELAY_DIR;
use chronfs::queue::layout::READERS_DIR;
use chronfs::queue::{Entry, GapReason, Settings, UpstreamGap};

use crate::broker::Broker;
use crate::case::Case;
use crate::cluster::{self, Cluster, block_on, free_ports, get};
use crate::common::{SMALL, until};
use crate::relay::{check_exact, until_caught_up};
use crate::service::{Service, until_report};

#[test]
fn a_full_stream_is_waited_for() {
    if !cluster::is_there() {
        return;
    }
    let cluster = Cluster::new(1);
    let case = Case::new(1000);
    let relay = case.start(&cluster.target("Q"), &["--max-bytes", "100000"]);
    until_report(case.path(), "relay", "the target is full", |report| report["condition"] == "target-full");
    let stuck = case.report();
    assert!(
        stuck["lag_messages"].as_u64() > Some(0) && stuck["reason"].as_str().unwrap().contains("maximum"),
        "{stuck}"
    );
    block_on(async {
        let context = cluster.connect().await;
        let config = context.get_stream("Q").await.unwrap().cached_info().config.clone();
        context.update_stream(Config { max_bytes: -1, ..config }).await.unwrap();
    });
    case.until_caught_up();
    assert_eq!(case.report()["condition"], "running");
    relay.stop();
    assert_eq!(check_exact(&cluster, "Q", &case.queue), 1000);
}

/// The stored pair tells which message the removed one was; without it, the relay does not guess.
fn a_purged_stream_goes_on_where_it_was(mut servers: impl Broker) {
    let case = Case::new(50);
    let target = servers.target("Q");
    case.relay_all(&target, &[]);
    servers.purge("Q");
    servers.kill(0);
    servers.start(0);
    case.append(50);
    case.relay_all(&target, &[]);
    let left = servers.messages("Q");
    let numbers: Vec<_> =
        left.iter().map(|message| (message.number, message.header("Chron-Seq").unwrap().parse().unwrap())).collect();
    assert_eq!(numbers, (51..=100).map(|seq| (seq, seq)).collect::<Vec<(u64, u64)>>());

    servers.purge("Q");
    std::fs::remove_dir_all(case.path().join("relay")).unwrap();
    assert_eq!(case.start(&target, &[]).exit_code(), Some(77));
    assert!(case.log().contains("has been removed"));
}

/// The last message expires again and again, while the relay runs and while it does not.
#[test]
fn a_stream_that_forgets_by_age_goes_on_where_it_was() {
    if !cluster::is_there() {
        return;
    }
    let cluster = Cluster::new(1);
    let case = Case::new(0);
    let config = case.file("relay.toml");
    let toml = format!("from = {:?}\nto = {:?}\n[stream]\nmax_age_seconds = 1\n", case.path(), cluster.target("Q"));
    std::fs::write(&config, toml).unwrap();
    let start = || {
        let mut command = crate::relay::command();
        command.arg("run").arg("--config").arg(&config);
        Service::start(command, &case.file("log"))
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
        case.append(50);
        case.until_caught_up();
        stream(50 * round);
        if round % 2 == 0 {
            relay.stop();
            relay = start();
        }
    }
    case.append(1);
    case.until_caught_up();
    let report = case.report();
    assert_eq!((&report["counts"]["rewinds"], &report["counts"]["gaps"]), (&0.into(), &0.into()), "{report}");
    assert_eq!(report["pair"], serde_json::json!({ "seq": 201, "stream_seq": 201 }));
    relay.stop();
}

fn a_stream_that_was_deleted_is_made_again_with_all_that_is_left(servers: impl Broker) {
    let case = Case::new(300);
    let relay = case.start(&servers.target("Q"), &[]);
    case.until_caught_up();
    servers.delete("Q");
    case.append(1);
    case.until_caught_up();
    assert_eq!(case.report()["counts"]["rewinds"], 1);
    relay.stop();
    assert_eq!(check_exact(&servers, "Q", &case.queue), 301);
}

#[test]
fn messages_of_any_size_arrive() {
    if !cluster::is_there() {
        return;
    }
    let cluster = Cluster::with_lines(1, "max_payload: 65536");
    let case = Case::with(&Settings::default(), 0);
    let mut writer = case.queue.writer().unwrap();
    for limit in [65536 - 512, 65536, 2 * (65536 - 512), 1 << 20] {
        for len in [limit - 1, limit, limit + 1] {
            writer.append(1, &vec![u8::try_from(len % 251).unwrap(); len]).unwrap();
        }
    }
    for (stream, frames) in [("Q", None), ("F", Some("--frames"))] {
        let options: Vec<_> = ["--name", stream].into_iter().chain(frames).collect();
        let target = cluster.target(stream);
        let relay = case.start(&target, &options);
        until_caught_up(&case.queue, stream);
        relay.stop();
        case.copy_all(&target, &[]);
        assert_eq!(case.check_copy(), 12);
        std::fs::remove_dir_all(case.copy()).unwrap();
    }
    let relay = case.start(&cluster.target("S"), &["--name", "s", "--too-large", "stop"]);
    assert_eq!(relay.exit_code(), Some(77));
    assert!(case.log().contains("max_payload"));
}

fn two_queues_in_one_stream_are_refused(servers: impl Broker) {
    let cases = [Case::new(500), Case::new(500)];
    let target = servers.target("Q");
    let mut relays = cases.each_ref().map(|case| Some(case.start(&target, &[])));
    let mut loser = 2;
    crate::common::until("one of them gives up", || {
        loser = cases.iter().position(|case| case.report()["condition"] == "refused").unwrap_or(2);
        loser < 2
    });
    assert_eq!(relays[loser].take().unwrap().exit_code(), Some(77));
    let winner = 1 - loser;
    cases[winner].until_caught_up();
    relays[winner].take().unwrap().stop();
    assert_eq!(check_exact(&servers, "Q", &cases[winner].queue), 500);
}

/// The stream's last message says all that it needs to know.
fn a_relay_that_has_lost_its_own_state_goes_on_where_it_was(servers: impl Broker) {
    let case = Case::new(100);
    let target = servers.target("Q");
    for round in 1..=3 {
        case.relay_all(&target, &[]);
        assert_eq!(check_exact(&servers, "Q", &case.queue), 100 * round);
        let counts = case.report()["counts"].clone();
        assert_eq!((counts["messages"].as_u64(), counts["rewinds"].as_u64()), (Some(100), Some(0)), "{counts}");
        for state in [RELAY_DIR, READERS_DIR] {
            std::fs::remove_dir_all(case.path().join(state)).unwrap();
        }
        case.append(100);
    }
}

/// Of the same queue to the same stream: one as a stand-in for the other, by mistake or not.
fn two_relays_of_a_queue_bring_each_message_once(servers: impl Broker) {
    let case = Case::new(100);
    let target = servers.target("Q");
    let one = case.start(&target, &[]);
    case.until_caught_up();
    assert_eq!(case.start(&target, &[]).exit_code(), Some(1), "another one of that name");
    let two = case.start(&target, &["--name", "two"]);
    for _ in 0..5 {
        case.append(400);
        case.until_caught_up();
        until_caught_up(&case.queue, "two");
    }
    one.stop();
    two.stop();
    assert_eq!(check_exact(&servers, "Q", &case.queue), 2100);
}

/// Before messages are lost to it.
#[test]
fn a_relay_that_lags_by_half_of_what_is_allowed_says_so() {
    let settings = Settings { retain_bytes: Some(64 << 10), max_lag_bytes: Some(256 << 10), ..SMALL };
    let case = Case::with(&settings, 10);
    let relay = case.start("nats://127.0.0.1:1/Q", &[]);
    case.until_waiting("Connection refused");
    assert!(!case.log().contains("messages are lost"), "{}", case.log());
    case.append(1000);
    until("it says so", || case.log().contains("after which messages are lost to it"));
    relay.stop();
}

fn what_retention_has_removed_is_named(servers: impl Broker) {
    let settings = Settings { retain_bytes: Some(64 << 10), max_lag_bytes: Some(128 << 10), ..SMALL };
    let case = Case::with(&settings, 100);
    let target = servers.target("Q");
    case.relay_all(&target, &[]);
    case.append(5000);
    case.queue.apply_retention().unwrap();
    let first = case.queue.bounds().unwrap().first_seq;
    assert!(first > 101, "the queue still has all messages from {first} on");
    case.relay_all(&target, &[]);
    let messages = servers.messages("Q");
    let gap = messages.iter().find_map(|message| message.header("Chron-Gap"));
    assert_eq!(gap, Some(format!("101-{} retired", first - 1).as_str()));
    case.copy_all(&target, &[]);
    let copied = Queue::open(case.copy()).unwrap();
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
    let case = Case::new(10);
    let [port] = free_ports(1)[..] else { unreachable!() };
    let relay = case.start(&servers.target("Q"), &["--metrics", &format!("127.0.0.1:{port}")]);
    case.until_caught_up();
    assert!(get(port, "/health").unwrap().contains(" 200 "));
    let standby = case.standby(&servers.target("Q"), &[]);
    case.until_copied("relay", 10);
    servers.pause(0);
    case.append(7);
    until_report(case.path(), "relay", "it is unhealthy", |report| report["healthy"] == false);
    let stuck = case.report();
    assert_eq!(stuck["lag_messages"], 7, "{stuck}");
    assert!(
        stuck["last_progress_seconds"].as_f64() >= Some(30.0) && stuck["lag_seconds"].as_f64() > Some(20.0),
        "{stuck}"
    );
    assert!(get(port, "/health").unwrap().contains(" 503 "));
    let metrics = get(port, "/metrics").unwrap();
    assert!(metrics.contains("chronfs_relay_healthy{") && metrics.contains("direction=\"out\"} 7"), "{metrics}");
    let [told] = chronfs::bus::relays(case.path()).try_into().unwrap();
    assert!(told.trouble().is_some_and(|trouble| trouble.contains("lag 7 messages")), "{told:?}");
    // It can't know that there is more, and does not claim to be well either.
    until_report(&case.copy(), "relay", "the standby is unhealthy", |report| report["healthy"] == false);
    let [told] = chronfs::bus::relays(case.copy()).try_into().unwrap();
    assert!(told.trouble().is_some_and(|trouble| trouble.starts_with("waiting")), "{told:?}");
    servers.resume(0);
    case.until_caught_up();
    for path in [case.path(), &case.copy()] {
        until_report(path, "relay", "it is well", |report| report["healthy"] == true && report["pair"]["seq"] == 17);
    }
    relay.stop();
    standby.stop();
    assert_eq!(case.check_copy(), 17);
    assert_eq!(check_exact(&servers, "Q", &case.queue), 17);
}

with_each_broker! {
    a_relay_that_has_lost_its_own_state_goes_on_where_it_was: Servers(1),
    two_relays_of_a_queue_bring_each_message_once: Servers(1),
    a_purged_stream_goes_on_where_it_was: Servers(1),
    a_stream_that_was_deleted_is_made_again_with_all_that_is_left: Servers(1),
    two_queues_in_one_stream_are_refused: Servers(1),
    what_retention_has_removed_is_named: Servers(1),
    a_relay_that_is_stuck_says_so: Servers(1),
}
