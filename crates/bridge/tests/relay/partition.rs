//! Hosts that can't reach each other, and leaders that don't know that they no longer are.
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use async_nats::jetstream::context::traits::Publisher as _;
use async_nats::{HeaderMap, jetstream};
use chronfs::Queue;
use chronfs::queue::Role;

use crate::broker::Broker as _;
use crate::case::Case;
use crate::cluster::{self, Cluster, block_on, messages};
use crate::common::{SMALL, append, payload, writer};
use crate::net::Hosts;
use crate::relay::{Feed, check_exact, check_same, until_caught_up, until_so};
use crate::service::{Service, report, until_report};
use crate::takeover::{promote_by, verify_by};

/// The index of the server that leads the stream.
async fn leader(context: &jetstream::Context, stream: &str) -> usize {
    until_so("the stream has a leader", async || {
        let stream = context.get_stream(stream).await.ok()?;
        let name = stream.cached_info().cluster.as_ref()?.leader.clone()?;
        name.strip_prefix('n')?.parse().ok()
    })
    .await
}

/// A queue of 20 messages, and a relay that has brought them to a stream on three servers.
struct Relayed {
    cluster: Cluster,
    case: Case,
    relay: Service,
}

impl Relayed {
    /// None where there are no servers.
    #[track_caller]
    fn new() -> Option<Self> {
        let cluster = cluster::is_there().then(|| Cluster::new(3))?;
        let case = Case::new(20);
        let relay = case.start(&cluster.target("Q"), &cluster.options());
        case.until_caught_up();
        Some(Self { cluster, case, relay })
    }

    /// Ends the relay; the stream must have this many messages.
    fn end(self, count: u64) {
        self.case.until_caught_up();
        self.relay.stop();
        assert_eq!(check_exact(&self.cluster, "Q", &self.case.queue), count);
    }
}

/// A publish waits in a leader that is stopped; another leader takes the relay's for the same number. Only one can be
/// there in the end, and the one that was acknowledged is.
#[test]
fn a_publish_that_waits_in_a_stopped_leader_does_not_win_afterwards() {
    let Some(relayed) = Relayed::new() else { return };
    let Relayed { cluster, case, .. } = &relayed;
    block_on(async {
        let leader = leader(&cluster.connect().await, "Q").await;
        let conflicting = cluster.connect_to(&[leader]).await;
        cluster.pause(leader);
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Sequence", "20");
        for (name, value) in [("Origin", "1"), ("Term", "1"), ("Seq", "21"), ("Time", "1"), ("Type", "1")] {
            headers.insert(format!("Chron-{name}"), value);
        }
        headers.insert("Chron-Crc", "00000000");
        let message = jetstream::message::PublishMessage::build().headers(headers).outbound_message("chron.Q");
        let waiting = conflicting.publish_message(message).await.unwrap();
        conflicting.client().flush().await.unwrap();

        case.append(30);
        case.until_caught_up();
        cluster.resume(leader);
        // Refused, or not answered: by the time that the server is well again it has read what was waiting.
        cluster.wait_for(leader);
        let answer = tokio::time::timeout(Duration::from_secs(5), waiting).await;
        assert!(!matches!(answer, Ok(Ok(_))), "both were acknowledged: {answer:?}");
    });
    assert_eq!(check_exact(cluster, "Q", &case.queue), 50);
    case.append(10);
    relayed.end(60);
}

/// One of three servers acknowledges nothing.
#[test]
fn without_a_quorum_nothing_counts_as_stored() {
    let Some(relayed) = Relayed::new() else { return };
    let Relayed { cluster, case, .. } = &relayed;
    let leader = block_on(async { leader(&cluster.connect().await, "Q").await });
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    others.iter().for_each(|&node| cluster.pause(node));
    case.append(30);
    until_report(case.path(), "relay", "it waits", |report| report["condition"] == "waiting");
    let waiting = case.report();
    assert_eq!((&waiting["pair"]["seq"], &waiting["lag_messages"]), (&20.into(), &30.into()), "{waiting}");
    others.iter().for_each(|&node| cluster.resume(node));
    relayed.end(50);
}

/// Two hosts take turns: the active one is cut off in the middle of its work, the other one is promoted, and the first
/// one finds out when its cable is back. `CHRONFS_RELAY_SOAK` makes it 20 rounds instead of 5.
#[test]
fn ping_pong_over_a_partition() {
    let Some(hosts) = cluster::survives_partitions().then(Hosts::new).flatten() else { return };
    let cluster = Cluster::on(&hosts);
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let target = cluster.target("Q");
    let relay_of = |host: &str| hosts.command(host, env!("CARGO_BIN_EXE_chron-relay"));
    let run = |host: &str, args: &[&str]| {
        let mut command: Command = relay_of(host);
        command.arg("run").args(args);
        Service::start(command, &log)
    };
    let paths = ["a", "b"].map(|host| dir.path().join(host).join("q"));
    Queue::create(&paths[0], &SMALL).unwrap();
    let rounds = if std::env::var_os("CHRONFS_RELAY_SOAK").is_some() { 20 } else { 5 };
    let mut surplus = 0;
    for round in 0..rounds {
        let [(host, active), (other, standby)] =
            [round % 2, (round + 1) % 2].map(|index| (["a", "b"][index], &paths[index]));
        let queue = Queue::open(active).unwrap();
        let feed = Feed::start(&queue, 2, &[(active, "relay"), (standby, "in")]);
        let relay = run(host, &[active.to_str().unwrap(), &target, "--replicas", "3"]);
        let copier = run(other, &[&target, standby.to_str().unwrap(), "--name", "in", "--rejoin"]);
        let wanted = queue.bounds().unwrap().next_seq + 200;
        until_report(standby, "in", "the standby follows", |report| report["pair"]["seq"].as_u64() >= Some(wanted));

        hosts.within("c", || block_on(until_whole(&cluster)));

        hosts.connect(host, false);
        let cut = Instant::now();
        copier.stop();
        promote_by(relay_of(other), &target, standby);
        let promoted = cut.elapsed();
        feed.stop();
        hosts.connect(host, true);
        assert_eq!(relay.exit_code(), Some(77), "the relay that was cut off, round {round}");
        let acknowledged = report(active, "relay")["pair"]["seq"].as_u64().unwrap();
        println!(
            "round {round}: promoted after {promoted:.1?}, fenced after {:.1?}; acknowledged up to {acknowledged}",
            cut.elapsed()
        );
        let promoted = Queue::open(standby).unwrap();
        assert!(matches!(promoted.role(), Role::Active { term } if term == round as u64 + 2), "{}", promoted.role());
        let last = promoted.bounds().unwrap().next_seq - 1;
        hosts.within("c", || block_on(until_whole(&cluster)));
        let verdict = verify_by(relay_of("c"), active, &target);
        let records = || hosts.within("c", || block_on(last_records(&cluster)));
        assert_eq!(verdict["only_in_queue"][0].as_u64(), Some(last + 1), "{verdict}\n{}", records());
        assert_eq!((&verdict["different"], &verdict["holes"]), (&serde_json::json!([]), &serde_json::json!([])));
        surplus += queue.bounds().unwrap().next_seq - 1 - last;
    }
    assert!(surplus > 0, "no partition has kept anything back");

    let [(host, active), (other, standby)] =
        [rounds % 2, (rounds + 1) % 2].map(|index| (["a", "b"][index], &paths[index]));
    let queue = Queue::open(active).unwrap();
    append(&mut writer(&queue), 10, |seq| payload(seq, 300));
    let relay = run(host, &[active.to_str().unwrap(), &target]);
    until_caught_up(&queue, "relay");
    let copier = run(other, &[&target, standby.to_str().unwrap(), "--name", "in", "--rejoin"]);
    let last = queue.bounds().unwrap().next_seq - 1;
    until_report(standby, "in", "the standby follows", |report| report["pair"]["seq"].as_u64() == Some(last));
    relay.stop();
    copier.stop();
    let compared = check_same(&queue, &Queue::open(standby).unwrap());
    let verdict = verify_by(relay_of("c"), active, &target);
    assert_eq!(verdict["equal"].as_u64(), Some(last), "{verdict}");
    let kept = surplus_beside(&paths);
    println!(
        "{rounds} partitions, {compared} messages in one history; {surplus} were not replicated, {kept} queues aside"
    );
}

/// Waits until every server has all of the stream: whichever of them is cut off then, the others can go on.
async fn until_whole(cluster: &Cluster) {
    let context = cluster.connect().await;
    until_so("the cluster is whole", async || {
        let stream = context.get_stream("Q").await.ok()?;
        let replicas = &stream.cached_info().cluster.as_ref()?.replicas;
        let is_whole = replicas.len() == 2 && replicas.iter().all(|replica| replica.current && !replica.offline);
        is_whole.then_some(())
    })
    .await;
}

/// The last records of the stream, for people.
async fn last_records(cluster: &Cluster) -> String {
    let records = messages(&cluster.connect().await, "Q").await;
    let line = |(number, headers, _): &(u64, HeaderMap, _)| {
        let headers = headers.iter().map(|(name, values)| format!(" {name} {}", values[0].as_str()));
        format!("{number}:{}\n", headers.collect::<String>())
    };
    records.iter().rev().take(300).rev().map(line).collect()
}

/// How many queues were moved aside.
fn surplus_beside(paths: &[std::path::PathBuf; 2]) -> usize {
    let beside = |path: &Path| std::fs::read_dir(path.parent().unwrap()).unwrap().flatten().count() - 1;
    paths.iter().map(|path| beside(path)).sum()
}
