//! What only Redis can do to a relay: other keys, replicas, a memory that is full, a log that was cut.
use std::time::{Duration, Instant};

use chronfs::Queue;
use chronfs::queue::Settings;

use crate::broker::{Broker, copy};
use crate::case::Case;
use crate::common::{Random, count, text, until, writer};
use crate::redis_server::{self, Redis};
use crate::relay::{Feed, check_exact, command, fault_time, parts, until_caught_up};
use crate::service::until_report;
use crate::takeover::verify;

#[test]
fn a_server_without_memory_is_waited_for() {
    if !redis_server::is_there() {
        return;
    }
    let (server, case) = (Redis::with_lines("maxmemory-policy noeviction"), Case::new(3000));
    let info: String = server.ask(&["INFO", "memory"]).unwrap();
    let used: u64 = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().parse().unwrap();
    server.ask::<()>(&["CONFIG", "SET", "maxmemory", &(used + 200_000).to_string()]).unwrap();
    let relay = case.start(&server.target("Q"), &[]);
    until_report(case.path(), "relay", "the target is full", |report| report["condition"] == "target-full");
    let stuck = case.report();
    assert!(stuck["lag_messages"].as_u64() > Some(0) && stuck["reason"].as_str().unwrap().contains("OOM"), "{stuck}");
    server.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    case.until_caught_up();
    relay.stop();
    assert_eq!(check_exact(&server, "Q", &case.queue), 3000);
}

#[test]
fn keys_of_others_are_refused() {
    if !redis_server::is_there() {
        return;
    }
    let (server, case) = (Redis::new(), Case::new(10));
    server.ask::<()>(&["SET", "text", "x"]).unwrap();
    server.ask::<()>(&["XADD", "foreign", "*", "a", "b"]).unwrap();
    server.ask::<()>(&["XADD", "alike", "10-0", "a", "b"]).unwrap();
    for (key, reason) in
        [("text", "is not a stream"), ("foreign", "use a stream of its own"), ("alike", "has no field payload")]
    {
        assert_eq!(case.start(&server.target(key), &[]).exit_code(), Some(77), "{key}");
        assert!(case.log().contains(reason), "{key}: {}", case.log());
    }
    // While it runs.
    let relay = case.start(&server.target("Q"), &[]);
    case.until_caught_up();
    server.ask::<()>(&["SET", "Q", "x"]).unwrap();
    case.append(1);
    assert_eq!(relay.exit_code(), Some(77));
    assert!(case.log().contains("the key Q is not a stream"), "{}", case.log());
    // What NATS can do and Redis can't is not left out in silence.
    for options in [["--replicas", "3"], ["--max-bytes", "1000"]] {
        assert_eq!(case.start(&server.target("new"), &options).exit_code(), Some(78));
    }
    assert_eq!(case.start(&server.target("new"), &["--no-create"]).exit_code(), Some(78));
}

/// The relay goes to whichever server accepts writes; what the new one lacks is sent again.
#[test]
fn a_replica_that_takes_over_gets_what_it_lacks() {
    if !redis_server::is_there() {
        return;
    }
    let (mut primary, case) = (Redis::with_lines("repl-diskless-sync-delay 0"), Case::new(200));
    let replica = Redis::with_lines(&format!("replicaof 127.0.0.1 {}", primary.port()));
    let relay = case.start(&replica.target("Q"), &[]);
    case.until_waiting("a replica, which takes no messages");
    relay.stop();
    let both = format!("redis://127.0.0.1:{},127.0.0.1:{}/Q", replica.port(), primary.port());
    let relay = case.start(&both, &[]);
    case.until_caught_up();
    let standby = case.standby(&both, &[]);
    case.until_copied("relay", 200);
    until("the replica has it all", || replica.ask::<u64>(&["XLEN", "Q"]).is_ok_and(|len| len == 200));
    // It is told to stand alone before the primary has what comes now.
    replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]).unwrap();
    case.append(100);
    case.until_caught_up();
    case.until_copied("relay", 300);
    primary.kill(0);
    case.append(1);
    case.until_caught_up();
    let counts = case.report()["counts"].clone();
    assert_eq!((counts["rewinds"].as_u64(), counts["resent"].as_u64()), (Some(1), Some(100)), "{counts}");
    case.until_copied("relay", 301);
    relay.stop();
    standby.stop();
    assert_eq!(check_exact(&replica, "Q", &case.queue), 301);
    assert_eq!(case.check_copy(), 301);
}

/// A primary that is turned into a replica under the relay refuses to write.
#[test]
fn a_primary_that_becomes_a_replica_is_left() {
    if !redis_server::is_there() {
        return;
    }
    let (one, other, case) = (Redis::new(), Redis::new(), Case::new(100));
    let relay = case.start(&one.target("Q"), &[]);
    case.until_caught_up();
    one.ask::<()>(&["REPLICAOF", "127.0.0.1", &other.port().to_string()]).unwrap();
    case.append(1);
    case.until_waiting("a replica, which takes no messages");
    one.ask::<()>(&["REPLICAOF", "NO", "ONE"]).unwrap();
    case.until_caught_up();
    relay.stop();
    assert_eq!(check_exact(&one, "Q", &case.queue), 101);
}

#[test]
fn a_server_that_loads_its_log_is_waited_for() {
    if !redis_server::is_there() {
        return;
    }
    // A server that loads a log answers after each 1024 commands of it: many quick ones, so that it is asked often, and
    // at so many microseconds each until the relay has noticed.
    let (mut server, case) = (Redis::with_lines("key-load-delay 300"), Case::new(100));
    server.ask::<()>(&["EVAL", "for i = 1, 200000 do redis.call('SET', 'other', i) end", "0"]).unwrap();
    let relay = case.start(&server.target("Q"), &[]);
    case.until_caught_up();
    server.kill(0);
    case.append(1);
    server.start(0);
    case.until_waiting("loading the dataset");
    server.ask::<()>(&["CONFIG", "SET", "key-load-delay", "0"]).unwrap();
    case.until_caught_up();
    relay.stop();
    assert_eq!(check_exact(&server, "Q", &case.queue), 101);
}

/// Frames begin elsewhere each time, so that the same number of the stream is another message then. A standby must not
/// take one for the other.
#[test]
fn a_stream_that_is_made_again_under_a_standby_is_noticed() {
    if !redis_server::is_there() {
        return;
    }
    let (server, case) = (Redis::new(), Case::new(0));
    let target = server.target("Q");
    let relay = case.start(&target, &["--frames"]);
    let standby = case.standby(&target, &[]);
    for round in 1..=5 {
        // Many small frames, of which few large ones are made the next time.
        for _ in 0..5 {
            case.append(20);
            case.until_caught_up();
        }
        case.until_copied("relay", 100 * round);
        server.delete("Q");
    }
    case.append(1);
    case.until_caught_up();
    case.until_copied("relay", 501);
    relay.stop();
    standby.stop();
    assert_eq!(case.check_copy(), 501);
}

/// Again and again, the server comes back with an older log, while a queue is relayed and copied.
fn exact_over_rewinds(options: &[&str]) {
    if !redis_server::is_there() {
        return;
    }
    let seed = u64::from(std::process::id()) << 1 | 1;
    let mut random = Random(seed);
    let (started, mut older_logs, mut messages) = (Instant::now(), 0, 0);
    for end in parts(fault_time(Redis::FAULT_SECONDS)) {
        let (more_logs, more_messages) = exact_over_rewinds_until(end, options, &mut random);
        (older_logs, messages) = (older_logs + more_logs, messages + more_messages);
        let seconds = started.elapsed().as_secs();
        println!(
            "{options:?}, seed {seed}: {seconds} s, {older_logs} older logs, {messages} messages, none lost, none twice"
        );
    }
}

/// Older logs until then. Returns how many there were, and how many messages the queue has.
fn exact_over_rewinds_until(end: Instant, options: &[&str], random: &mut Random) -> (u64, u64) {
    // A server does not start with a copy of the directory from while the log is written anew.
    let mut server = Redis::with_lines("auto-aof-rewrite-percentage 0");
    let case = Case::new(1);
    let (copied, older, target) = (case.copy(), case.file("older"), server.target("Q"));
    let burst = if options.is_empty() { 2 } else { 20 };
    let feed = Feed::start(&case.queue, burst, &[(case.path(), "relay"), (&copied, "in")]);
    let relay = case.start(&target, options);
    let standby = case.standby(&target, &["--name", "in"]);
    let mut rewinds = 0;
    while Instant::now() < end {
        until_report(&copied, "in", "it is at work", |report| report["condition"] == "running");
        std::thread::sleep(Duration::from_millis(random.below(500)));
        // A copy of a log that is being written ends somewhere, as after a power cut.
        copy(&server.store(0), &older);
        let wanted = case.last() + 1 + random.below(300);
        let until_relayed = |wanted| {
            until_report(case.path(), "relay", "it goes on", |report| report["pair"]["seq"].as_u64() >= Some(wanted));
        };
        until_relayed(wanted);
        if random.below(2) == 0 {
            case.until_copied("in", wanted);
        }
        server.put_back(&older);
        std::fs::remove_dir_all(&older).unwrap();
        server.wait_for(0);
        rewinds += 1;
        until_relayed(wanted + 1);
    }
    feed.stop();
    case.until_caught_up();
    let last = case.last();
    case.until_copied("in", last);
    let counts = case.report()["counts"].clone();
    relay.stop();
    standby.stop();
    assert!(counts["rewinds"].as_u64() > Some(0), "{counts}");
    assert_eq!(case.check_copy(), last);
    if options.is_empty() {
        assert_eq!(check_exact(&server, "Q", &case.queue), last);
    }
    println!("{counts}");
    (rewinds, last)
}

#[test]
fn older_logs_lose_nothing_and_double_nothing() {
    exact_over_rewinds(&[]);
}

#[test]
fn older_logs_lose_nothing_and_double_nothing_in_frames() {
    exact_over_rewinds(&["--frames"]);
}

/// Nobody has said that the message is missing. Of a NATS stream that the relay has made, nothing can be deleted.
#[test]
fn a_hole_in_the_stream_stops_the_standby_by_name() {
    if !redis_server::is_there() {
        return;
    }
    let (server, case) = (Redis::new(), Case::new(100));
    let target = server.target("Q");
    case.relay_all(&target, &[]);
    assert_eq!(server.ask::<u64>(&["XDEL", "Q", "50-0"]).unwrap(), 1);
    assert_eq!(case.standby(&target, &[]).exit_code(), Some(77));
    assert!(case.log().contains("a hole in the stream: messages 50 to 50"), "{}", case.log());
    assert_eq!(count(&Queue::open(case.copy()).unwrap()), 49);
    let verdict = verify(case.path(), &target);
    assert_eq!(verdict["holes"], serde_json::json!([[50, 50]]), "{verdict}");
}

#[test]
fn large_messages_go_in_parts() {
    const MOST: usize = 8 << 20;
    if !redis_server::is_there() {
        return;
    }
    let server = Redis::new();
    let case = Case::with(&Settings { segment_size: 64 << 20, ..Settings::DEFAULT }, 0);
    let mut appending = writer(&case.queue);
    for len in [1, MOST, 2 * MOST + 1, 1] {
        appending.append(1, &vec![u8::try_from(len % 251).unwrap(); len]).unwrap();
    }
    for (stream, options, entries) in [("Q", &["--name", "Q"][..], 6), ("F", &["--name", "F", "--frames"], 6)] {
        let target = server.target(stream);
        let relay = case.start(&target, options);
        until_caught_up(&case.queue, stream);
        relay.stop();
        assert_eq!(server.ask::<u64>(&["XLEN", stream]).unwrap(), entries);
        case.copy_all(&target, &[]);
        assert_eq!(case.check_copy(), 4);
        std::fs::remove_dir_all(case.copy()).unwrap();
    }
}

/// By way of a socket, to another database than the first one, as a user who may not ask the server about itself.
#[test]
fn other_ways_in() {
    if !redis_server::is_there() {
        return;
    }
    let server = Redis::with_lines("user limited on >secret ~* +@all -info -@admin\nmaxmemory-policy allkeys-lru");
    let case = Case::new(50);
    let password = case.file("password");
    std::fs::write(&password, "limited:secret\n").unwrap();
    let target = format!("redis+unix://{}/3/feeds:q", server.socket().display());
    let options = ["--password-file", password.to_str().unwrap()];
    case.relay_all(&target, &options);
    let verified = command().args(["verify", case.path().to_str().unwrap(), &target]).args(options).output().unwrap();
    let verdict = text(&verified.stdout);
    assert!(verified.status.success() && verdict.contains("\"equal\": 50"), "{verdict}{}", text(&verified.stderr));
    // Whoever may ask is told.
    case.relay_all(&server.target("Q"), &[]);
    assert!(case.log().contains("may evict the stream"), "{}", case.log());
    assert_eq!(case.start(&server.target("Q"), &["--token-file", "/dev/null"]).exit_code(), Some(78));
}
