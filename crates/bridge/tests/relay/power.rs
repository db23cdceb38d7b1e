//! Power cuts of the queue's host: numbers that were relayed are not given out again, and their messages come back.
use chronfs::Queue;

use crate::broker::Broker;
use crate::common::{Disk, SMALL, append, payload, writer};
use crate::relay::{Relay, check_exact, until_caught_up};

fn what_a_power_cut_took_comes_back_from_the_stream(servers: impl Broker) {
    let Some(disk) = Disk::new("ext4", 64) else { return };
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let path = disk.mountpoint().join("q");
    let target = servers.target("Q");
    let run = |more: &[&str]| Relay::start(path.to_str().unwrap(), &target, more, &log);
    let queue = Queue::create(&path, &SMALL).unwrap();
    let mut appending = queue.writer().unwrap();
    append(&mut appending, 50, |seq| payload(seq, 300));
    appending.flush_sync().unwrap();
    append(&mut appending, 100, |seq| payload(seq, 300));
    drop(appending);
    let relay = run(&[]);
    until_caught_up(&queue, "relay");
    drop(queue);
    disk.cut(false);
    drop(relay);
    disk.mount_again();

    let queue = Queue::open(&path).unwrap();
    let left = queue.bounds().unwrap().next_seq - 1;
    assert!((50..150).contains(&left), "{left} messages have survived: the cut took nothing, or too much");
    assert_eq!(run(&[]).exit_code(), Some(77));
    assert!(std::fs::read_to_string(&log).unwrap().contains(&format!("has lost messages {} to 150", left + 1)));
    let relay = run(&["--refill"]);
    until_caught_up(&queue, "relay");
    relay.stop();
    assert_eq!(queue.bounds().unwrap().next_seq, 151);
    append(&mut writer(&queue), 10, |seq| payload(seq, 300));
    let relay = run(&[]);
    until_caught_up(&queue, "relay");
    relay.stop();
    assert_eq!(check_exact(&servers, "Q", &queue), 160);
}

/// The feed is started again before anybody takes the messages back: its new ones have new numbers.
fn numbers_that_were_relayed_are_not_given_out_again(servers: impl Broker) {
    let Some(disk) = Disk::new("ext4", 64) else { return };
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let path = disk.mountpoint().join("q");
    let target = servers.target("Q");
    let run = || Relay::start(path.to_str().unwrap(), &target, &[], &log);
    let queue = Queue::create(&path, &SMALL).unwrap();
    append(&mut writer(&queue), 100, |seq| payload(seq, 300));
    let relay = run();
    until_caught_up(&queue, "relay");
    drop(queue);
    disk.cut(false);
    drop(relay);
    disk.mount_again();

    let queue = Queue::open(&path).unwrap();
    let mut appending = writer(&queue);
    assert!(appending.next_seq() >= 101, "number {} is given out again", appending.next_seq());
    append(&mut appending, 10, |seq| payload(seq, 300));
    let last = appending.next_seq() - 1;
    drop(appending);
    let relay = run();
    until_caught_up(&queue, "relay");
    relay.stop();
    let copy = dir.path().join("copy");
    let standby = Relay::start(&target, copy.to_str().unwrap(), &[], &log);
    crate::service::until_report(&copy, "relay", "all is there", |report| report["pair"]["seq"].as_u64() == Some(last));
    standby.stop();
    // The stream has what the queue has lost.
    assert_eq!(crate::common::count(&Queue::open(&copy).unwrap()), last);
}

with_each_broker! {
    what_a_power_cut_took_comes_back_from_the_stream: Servers(1),
    numbers_that_were_relayed_are_not_given_out_again: Servers(1),
}
