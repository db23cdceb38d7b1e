//! How fast queues are relayed, what an idle relay costs, and what the writer notices of one: with real servers on
//! loopback, a NATS cluster of three and one of Redis, beside floors of the same run.
//!
//! ```text
//! cargo bench -p chronfs-bridge --bench relay          # or with "-- nats", "-- redis" at the end
//! ```
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_precision_loss, unexpected_cfgs, unreachable_pub, dead_code)]

#[path = "../tests/relay/broker.rs"]
mod broker;
#[path = "../tests/relay/cluster.rs"]
mod cluster;
#[path = "../../../tests/common/mod.rs"]
mod common;
#[path = "../tests/relay/net.rs"]
mod net;
#[path = "../tests/relay/redis_server.rs"]
mod redis_server;
#[path = "../tests/relay/relay.rs"]
mod relay;
#[path = "../tests/service/mod.rs"]
mod service;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use chronfs::Queue;
use chronfs::queue::{QueueWriter, Settings};

use broker::{Broker, Setup};
use cluster::{Cluster, block_on};
use redis_server::Redis;
use relay::Relay;
use service::{PATIENCE, Service, until_report};

const PAYLOAD: [u8; 100] = [b'x'; 100];
/// Messages of a round, unframed and framed.
const UNFRAMED: u64 = 100_000;
const FRAMED: u64 = 2_000_000;
const ROUNDS: usize = 3;
/// Publishes on their way, as of the relay.
const WINDOW: usize = 256;
/// For how long an idle relay is watched.
const IDLE: Duration = Duration::from_secs(10);
/// The writer's rounds with and without a relay, alternating; its bursts, and the pause after each.
const APPEND_ROUNDS: usize = 9;
const BURSTS: usize = 1500;
const BURST: usize = 64;
const PAUSE: Duration = Duration::from_millis(1);

fn main() {
    let wanted: Vec<_> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|word| word == name);
    if is_wanted("nats") {
        measure::<Cluster>("NATS, three servers");
    }
    if is_wanted("redis") {
        measure::<Redis>("Redis, one server with its log");
    }
}

/// Servers to which a program can publish that does nothing else.
trait Floor: Broker {
    /// Messages a second; the stream is removed again.
    fn publish(&self, stream: &str) -> f64;
}

fn measure<B: Floor>(what: &str) {
    let Some(servers) = B::with(&Setup::Servers(3)) else { return };
    let bench = Bench { servers, dir: tempfile::tempdir().unwrap() };
    println!("{what} on loopback, messages of {} bytes, {ROUNDS} rounds each: the median", PAYLOAD.len());
    let published = median((0..ROUNDS).map(|round| bench.servers.publish(&format!("floor{round}"))).collect());
    println!("  floor: published by a program, {WINDOW} on their way       {published:>10.0}/s");
    let one_by_one = bench.relayed("unframed", UNFRAMED, &[]);
    let of_floor = one_by_one / published;
    println!(
        "  relayed, unframed, queue to standby                    {one_by_one:>10.0}/s, {of_floor:.2} of the floor"
    );
    let framed = bench.relayed("framed", FRAMED, &["--frames"]);
    let times = framed / one_by_one;
    println!("  relayed, framed, queue to standby                      {framed:>10.0}/s, {times:.1} times unframed");
    bench.idle();
    bench.appends();
}

struct Bench<B> {
    servers: B,
    dir: tempfile::TempDir,
}

impl Floor for Cluster {
    fn publish(&self, stream: &str) -> f64 {
        use jetstream::context::traits::Publisher as _;

        block_on(async {
            let context = self.connect().await;
            let (name, subject) = (stream.to_owned(), format!("chron.{stream}"));
            let config = stream::Config { name: name.clone(), num_replicas: 3, ..Default::default() };
            let config = stream::Config { subjects: vec![subject.clone()], ..config };
            relay::until_so("the stream is there", async || context.create_stream(config.clone()).await.ok()).await;
            let started = Instant::now();
            let mut waiting = VecDeque::new();
            for _ in 0..UNFRAMED {
                if waiting.len() == WINDOW {
                    acknowledged(waiting.pop_front().unwrap()).await;
                }
                let message = jetstream::message::PublishMessage::build().payload(PAYLOAD.to_vec().into());
                waiting.push_back(context.publish_message(message.outbound_message(subject.clone())).await.unwrap());
            }
            for ack in waiting {
                acknowledged(ack).await;
            }
            let rate = UNFRAMED as f64 / started.elapsed().as_secs_f64();
            context.delete_stream(name).await.unwrap();
            rate
        })
    }
}

impl Floor for Redis {
    fn publish(&self, stream: &str) -> f64 {
        let mut connection = self.connection();
        let started = Instant::now();
        for _ in 0..UNFRAMED / WINDOW as u64 {
            let mut batch = ::redis::pipe();
            for _ in 0..WINDOW {
                batch.cmd("XADD").arg(stream).arg("*").arg("payload").arg(&PAYLOAD[..]).ignore();
            }
            batch.query::<()>(&mut connection).unwrap();
        }
        let rate = UNFRAMED as f64 / started.elapsed().as_secs_f64();
        self.delete(stream);
        rate
    }
}

impl<B: Broker> Bench<B> {
    /// A queue of this many messages.
    fn queue(&self, name: &str, count: u64) -> (PathBuf, Queue) {
        let path = self.dir.path().join(name);
        let queue = Queue::create(&path, &Settings::default()).unwrap();
        let mut writer = queue.writer().unwrap();
        (0..count).for_each(|_| assert!(writer.append(1, &PAYLOAD).is_ok()));
        (path, queue)
    }

    fn start(&self, from: &str, to: &str, more: &[&str]) -> Service {
        Relay::start(from, to, &[&self.servers.options()[..], more].concat(), &self.dir.path().join("log"))
    }

    /// Messages a second from a queue through a stream into a standby.
    fn relayed(&self, what: &str, count: u64, options: &[&str]) -> f64 {
        let round = |round| {
            let name = format!("{what}{round}");
            let (path, _queue) = self.queue(&name, count);
            let (target, copy) = (self.servers.target(&name), self.dir.path().join(format!("{name}-copy")));
            let standby = self.start(&target, copy.to_str().unwrap(), &[]);
            let out = self.start(path.to_str().unwrap(), &target, options);
            let deadline = Instant::now() + PATIENCE;
            let at = |least: u64| loop {
                let last = Queue::open(&copy).and_then(|copy| copy.bounds()).map_or(0, |bounds| bounds.next_seq - 1);
                if last >= least {
                    return (last, Instant::now());
                }
                assert!(Instant::now() < deadline, "{name}: {last} of {count} messages have arrived");
                std::thread::sleep(Duration::from_millis(5));
            };
            // From the first message on: a new stream has to elect a leader first.
            let [(first, started), (last, arrived)] = [at(1), at(count)];
            out.stop();
            standby.stop();
            self.servers.delete(&name);
            for path in [&path, &copy] {
                std::fs::remove_dir_all(path).unwrap();
            }
            (last - first) as f64 / (arrived - started).as_secs_f64()
        };
        median((0..ROUNDS).map(round).collect())
    }

    /// The processor time of relays that have nothing to do.
    fn idle(&self) {
        let (path, queue) = self.queue("idle", 10);
        let (target, copy) = (self.servers.target("idle"), self.dir.path().join("idle-copy"));
        let relays =
            [self.start(path.to_str().unwrap(), &target, &[]), self.start(&target, copy.to_str().unwrap(), &[])];
        relay::until_caught_up(&queue, "relay");
        until_report(&copy, "relay", "it has caught up", |report| report["pair"]["seq"] == 10);
        let before = relays.each_ref().map(|relay| processor_seconds(relay.id()));
        std::thread::sleep(IDLE);
        let after = relays.each_ref().map(|relay| processor_seconds(relay.id()));
        for (index, what) in ["relay", "standby"].iter().enumerate() {
            let share = (after[index] - before[index]) / IDLE.as_secs_f64();
            println!("  idle {what}: {:.2} % of a processor", share * 100.0);
        }
        relays.into_iter().for_each(Service::stop);
    }

    /// What an append costs while a relay follows, and while none does.
    fn appends(&self) {
        let (path, queue) = self.queue("appends", 10);
        let target = self.servers.target("appends");
        let mut writer = queue.writer().unwrap();
        let (mut alone, mut followed) = (Vec::new(), Vec::new());
        for _ in 0..APPEND_ROUNDS {
            alone.push(bursts(&mut writer));
            let relay = self.start(path.to_str().unwrap(), &target, &["--frames"]);
            relay::until_caught_up(&queue, "relay");
            followed.push(bursts(&mut writer));
            relay::until_caught_up(&queue, "relay");
            relay.stop();
        }
        let wakes = writer.stats().wakes;
        let ratios: Vec<_> = followed.iter().zip(&alone).map(|(with, without)| with / without).collect();
        println!(
            "  append: {:.0} ns alone, {:.0} ns while a relay follows; ratio {:.2}, of {APPEND_ROUNDS} rounds {}; {wakes} wakes",
            median(alone),
            median(followed),
            median(ratios.clone()),
            ratios.iter().map(|ratio| format!("{ratio:.2}")).collect::<Vec<_>>().join(" "),
        );
    }
}

async fn acknowledged(
    ack: impl IntoFuture<Output = Result<jetstream::publish::PublishAck, jetstream::context::PublishError>>,
) {
    ack.await.unwrap();
}

/// The median time of an append, in nanoseconds, in short bursts with pauses in which the relay gets on.
fn bursts(writer: &mut QueueWriter) -> f64 {
    let burst = |_| {
        let started = Instant::now();
        (0..BURST).for_each(|_| assert!(writer.append(1, &PAYLOAD).is_ok()));
        let ns = started.elapsed().as_secs_f64() * 1e9 / BURST as f64;
        std::thread::sleep(PAUSE);
        ns
    };
    median((0..BURSTS).map(burst).collect())
}

/// What a process has used so far.
fn processor_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11..=12].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
