//! The commands of docs/distributed.md, as they stand there, beside a NATS server and a Redis server.
use std::path::Path;

use chronfs::Queue;

use crate::broker::Broker;
use crate::cluster::{self, Cluster};
use crate::common::need::{Need, built, require};
use crate::common::{SMALL, filled};
use crate::pages::{self, Scratch, blocks};
use crate::redis_server::{self, Redis};
use crate::relay::{Relay, until_caught_up};
use crate::service::until_report;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// A queue in a stream of these servers, and a standby of it if that is wanted.
fn relayed(servers: &impl Broker, queue: &Queue, standby: Option<&Path>, log: &Path) {
    let target = servers.target("TICKS");
    let relay = Relay::start(queue.path().to_str().unwrap(), &target, &[], log);
    until_caught_up(queue, "relay");
    relay.stop();
    if let Some(standby) = standby {
        let copier = Relay::start(&target, standby.to_str().unwrap(), &[], log);
        until_report(standby, "relay", "the standby follows", |report| report["pair"]["seq"] == 2);
        copier.stop();
    }
}

#[test]
fn the_page_does_what_it_says() {
    if !cluster::is_there() || !redis_server::is_there() || !require(Need::Built("chron-cli")) {
        return;
    }
    let mut servers = Vec::new();
    let run = pages::run(&blocks(Path::new(ROOT), "docs/distributed.md"), |block| {
        let (nats, redis) = (Cluster::new(1), Redis::new());
        let mut scratch = Scratch::new(&[Path::new(env!("CARGO_BIN_EXE_chron-relay")), &built("chron-cli")]);
        // Nothing of systemd is started here.
        scratch.program("systemctl", Path::new("/bin/true"));
        scratch.means("nats://a:4222/TICKS", &nats.target("TICKS"));
        scratch.means("redis-cli ", &format!("redis-cli -p {} ", redis.port()));
        let texts = ["BTC 61.25", "ETH 2650"];
        let text = |seq: u64| texts[usize::try_from(seq).unwrap() - 1].as_bytes().to_vec();
        let queue = filled(&scratch.at("srv/bus/ticks"), &SMALL, 2, text);
        let log = scratch.at("log");
        if block.text().contains("redis-cli") {
            relayed(&redis, &queue, None, &log);
        } else if block.text().contains("promote") {
            relayed(&nats, &queue, Some(&scratch.at("srv/bus/feeds/ticks")), &log);
        }
        servers.push((nats, redis));
        scratch
    });
    assert_eq!(run, 3);
}
