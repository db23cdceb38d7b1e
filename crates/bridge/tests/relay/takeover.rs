//! Standbys, promotions, fences.
use std::path::Path;
use std::process::Command;

use chronfs::Queue;
use chronfs::queue::Role;

use crate::broker::Broker;
use crate::case::Case;
use crate::common::{SMALL, append, payload, text, writer};
use crate::relay::{Feed, Relay, check_same, command, until_caught_up};
use crate::service::until_report;

fn promote(target: &str, queue: &Path) -> String {
    promote_by(command(), target, queue)
}

/// `program` is chron-relay, wherever it is to run.
pub fn promote_by(mut program: Command, target: &str, queue: &Path) -> String {
    let output = program.args(["promote", "--timeout", "120", target, queue.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    print!("{}", text(&output.stderr));
    text(&output.stdout)
}

pub fn verify(queue: &Path, target: &str) -> serde_json::Value {
    verify_by(command(), queue, target)
}

/// As [`promote_by`].
pub fn verify_by(mut program: Command, queue: &Path, target: &str) -> serde_json::Value {
    let output = program.args(["verify", queue.to_str().unwrap(), target]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)))
}

/// The roles change hands under load, again and again; what the one that lost had more is kept, and named.
fn promotion_under_load(servers: impl Broker) {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let target = servers.target("Q");
    let hosts = [dir.path().join("a"), dir.path().join("b")];
    let paths = hosts.each_ref().map(|host| host.join("q"));
    Queue::create(&paths[0], &SMALL).unwrap();
    let rounds = if std::env::var_os("CHRONFS_RELAY_SOAK").is_some() { 20 } else { 2 };
    for round in 0..rounds {
        let [active, standby] = [&paths[round % 2], &paths[(round + 1) % 2]];
        let queue = Queue::open(active).unwrap();
        let feed = Feed::start(&queue, 2, &[(active, "relay"), (standby, "in")]);
        let relay = Relay::start(active.to_str().unwrap(), &target, &servers.options(), &log);
        let copier = Relay::start(&target, standby.to_str().unwrap(), &["--name", "in", "--rejoin"], &log);
        let wanted = queue.bounds().unwrap().next_seq + 200;
        until_report(standby, "in", "the standby follows", |report| report["pair"]["seq"].as_u64() >= Some(wanted));
        // The other host does not know that it is over: its feed and its relay go on.
        copier.stop();
        promote(&target, standby);
        assert_eq!(relay.exit_code(), Some(77), "the fenced relay, round {round}");
        feed.stop();
        let promoted = Queue::open(standby).unwrap();
        assert!(matches!(promoted.role(), Role::Active { term } if term == round as u64 + 2), "{}", promoted.role());
        let last = promoted.bounds().unwrap().next_seq - 1;
        let verdict = verify(active, &target);
        assert_eq!(verdict["only_in_queue"][0].as_u64(), Some(last + 1), "{verdict}");
        assert_eq!((&verdict["different"], &verdict["holes"]), (&serde_json::json!([]), &serde_json::json!([])));
    }
    // Everything that was promoted is one history.
    let [active, standby] = [&paths[rounds % 2], &paths[(rounds + 1) % 2]];
    let queue = Queue::open(active).unwrap();
    append(&mut writer(&queue), 10, |seq| payload(seq, 300));
    let relay = Relay::start(active.to_str().unwrap(), &target, &[], &log);
    until_caught_up(&queue, "relay");
    relay.stop();
    let last = queue.bounds().unwrap().next_seq - 1;
    let copier = Relay::start(&target, standby.to_str().unwrap(), &["--name", "in", "--rejoin"], &log);
    until_report(standby, "in", "the standby follows", |report| report["pair"]["seq"].as_u64() == Some(last));
    copier.stop();
    println!("{rounds} promotions, {} messages", check_same(&queue, &Queue::open(standby).unwrap()));
    let verdict = verify(active, &target);
    assert_eq!(verdict["equal"].as_u64(), Some(last), "{verdict}");
}

fn a_standby_takes_no_other_writer_and_promotes_once(servers: impl Broker) {
    let case = Case::new(100);
    let (path, copy, log) = (case.path(), case.copy(), case.file("log"));
    let target = servers.target("Q");
    case.relay_all(&target, &[]);
    let standby = case.standby(&target, &[]);
    case.until_copied("relay", 100);
    let copied = Queue::open(&copy).unwrap();
    assert!(copied.writer().is_err());
    standby.stop();
    assert!(matches!(copied.writer(), Err(chronfs::Error::Standby { .. })));
    assert!(promote(&target, &copy).contains("term 2, after message 100"));
    let again = command().args(["promote", &target, copy.to_str().unwrap()]).output().unwrap();
    assert_eq!(again.status.code(), Some(77));
    assert_eq!(case.check_copy(), 100);
    // The old host has nothing more, so its queue can go on as the standby.
    assert_eq!(case.start(&target, &[]).exit_code(), Some(77));
    append(&mut writer(&copied), 5, |seq| payload(seq, 300));
    let relay = Relay::start(copy.to_str().unwrap(), &target, &["--name", "out"], &log);
    let rejoin = || Relay::start(&target, path.to_str().unwrap(), &["--name", "in", "--rejoin"], &log);
    let rejoined = rejoin();
    until_report(path, "in", "the standby follows", |report| report["pair"]["seq"] == 105);
    rejoined.stop();
    assert!(matches!(Queue::open(path).unwrap().role(), Role::Standby { term: 2 }));
    // Started again, it meets the promotion again.
    append(&mut writer(&copied), 5, |seq| payload(seq, 300));
    let rejoined = rejoin();
    until_report(path, "in", "the standby follows", |report| report["pair"]["seq"] == 110);
    relay.stop();
    rejoined.stop();
    assert!(promote(&target, path).contains("term 3, after message 110"));
    assert_eq!(check_same(&copied, &Queue::open(path).unwrap()), 110);
}

/// The servers come back with a store from before the promotion: whoever was promoted says so again.
fn a_promotion_that_the_stream_has_forgotten_is_published_again(mut servers: impl Broker) {
    let case = Case::new(100);
    let (promoted, log, older) = (case.copy(), case.file("log"), case.file("older"));
    let target = servers.target("Q");
    case.relay_all(&target, &[]);
    let standby = case.standby(&target, &["--name", "in"]);
    case.until_copied("in", 100);
    standby.stop();
    servers.keep(&older);
    promote(&target, &promoted);
    let new = Queue::open(&promoted).unwrap();
    append(&mut writer(&new), 50, |seq| payload(seq, 300));
    let start = || Relay::start(promoted.to_str().unwrap(), &target, &[], &log);
    let relay = start();
    until_caught_up(&new, "relay");

    servers.put_back(&older);
    append(&mut writer(&new), 1, |seq| payload(seq, 300));
    until_caught_up(&new, "relay");
    assert_eq!(case.start(&target, &[]).exit_code(), Some(77), "the former owner");
    relay.stop();
    let verdict = verify(&promoted, &target);
    assert_eq!((verdict["equal"].as_u64(), verdict["term"].as_u64()), (Some(151), Some(2)), "{verdict}");
    let rejoined = case.file("rejoined");
    let standby = Relay::start(&target, rejoined.to_str().unwrap(), &[], &log);
    until_report(&rejoined, "relay", "all is there", |report| report["pair"]["seq"] == 151);
    standby.stop();
    assert_eq!(check_same(&new, &Queue::open(&rejoined).unwrap()), 151);

    // The former owner was faster, with a message of its own: there are two histories.
    servers.put_back(&older);
    append(&mut writer(&case.queue), 1, |seq| payload(seq, 200));
    case.relay_all(&target, &[]);
    assert_eq!(start().exit_code(), Some(77), "two histories");
}

with_each_broker! {
    promotion_under_load: Servers(3),
    a_promotion_that_the_stream_has_forgotten_is_published_again: Servers(1),
    a_standby_takes_no_other_writer_and_promotes_once: Servers(1),
}
