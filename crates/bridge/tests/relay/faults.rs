//! Servers and relays that are killed and stopped.
use std::time::{Duration, Instant};

use crate::broker::{Broker, Setup};
use crate::case::Case;
use crate::common::{Random, append, payload};
use crate::relay::{Feed, Follower, check_exact, command, fault_time, parts};
use crate::service::until_report;

/// Random faults of servers and relays while a queue is relayed to a stream and on to a standby.
fn exact_under_faults<B: Broker>(servers: B, frames: bool) {
    let (count, mut servers) = (servers.count(), Some(servers));
    let seed = u64::from(std::process::id()) << 1 | 1;
    let mut random = Random(seed);
    let (started, mut faults, mut compared) = (Instant::now(), 0, 0);
    for end in parts(fault_time(B::FAULT_SECONDS)) {
        let servers = servers.take().or_else(|| B::with(&Setup::Servers(count))).unwrap();
        let (more_faults, more_compared) = exact_until(end, servers, frames, &mut random);
        (faults, compared) = (faults + more_faults, compared + more_compared);
        println!(
            "{}, frames {frames}, seed {seed}: {} s, {faults} faults, {compared} messages compared, none lost, none twice",
            std::any::type_name::<B>(),
            started.elapsed().as_secs()
        );
    }
}

/// Random faults until then. Returns how many there were, and how many messages were compared.
fn exact_until(end: Instant, mut servers: impl Broker, frames: bool, random: &mut Random) -> (u64, u64) {
    let case = Case::new(0);
    let target = servers.target("Q");
    let mut options = servers.options();
    options.extend(frames.then_some("--frames"));
    let out = || case.start(&target, &options);
    let standby = || case.standby(&target, &["--name", "in"]);
    let followers: [Follower; 2] = [(case.path(), "relay"), (&case.copy(), "in")];
    let feed = Feed::start(&case.queue, if frames { 20 } else { 2 }, &followers);
    let (mut relay, mut copier) = (out(), standby());
    until_report(case.path(), "relay", "it is at work", |report| report["pair"]["seq"].as_u64() > Some(0));
    let mut faults = 0;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(random.below(1500)));
        let node = random.index(servers.count());
        match random.below(6) {
            0 | 1 => {
                servers.kill(node);
                std::thread::sleep(Duration::from_millis(random.below(1500)));
                servers.start(node);
            }
            2 | 3 => {
                servers.pause(node);
                std::thread::sleep(Duration::from_millis(500 + random.below(3500)));
                servers.resume(node);
            }
            4 => {
                // The old one first: they have the same readers.
                drop(relay);
                relay = out();
            }
            _ => {
                drop(copier);
                copier = standby();
            }
        }
        faults += 1;
    }
    feed.stop();
    (0..servers.count()).for_each(|node| servers.wait_for(node));
    case.until_caught_up();
    relay.stop();
    case.until_copied("in", case.last());
    copier.stop();
    let mut compared = case.check_copy();
    if !frames {
        compared += check_exact(&servers, "Q", &case.queue);
    }
    print!("{}", case.log());
    (faults, compared)
}

fn faults_lose_nothing_and_double_nothing(servers: impl Broker) {
    exact_under_faults(servers, false);
}

fn faults_lose_nothing_and_double_nothing_in_frames(servers: impl Broker) {
    exact_under_faults(servers, true);
}

/// The relay is killed at each of its system calls that others see.
fn a_relay_killed_at_any_system_call_loses_nothing(servers: impl Broker) {
    if !crate::common::need::require(crate::common::need::Need::Strace) {
        return;
    }
    const CALLS: &str =
        "write,writev,sendto,sendmsg,msync,fsync,fdatasync,rename,renameat,renameat2,pwrite64,ftruncate,recvfrom";
    let case = Case::new(0);
    let mut writer = case.queue.writer().unwrap();
    let target = servers.target("Q");
    // One of seven in the short form.
    let step = if std::env::var_os("CHRONFS_RELAY_SOAK").is_some() { 1 } else { 7 };
    let mut kills = 0;
    for at in (1..).step_by(step) {
        append(&mut writer, 5, |seq| payload(seq, 300));
        let last = writer.next_seq() - 1;
        let mut traced = std::process::Command::new("strace");
        traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={CALLS}")]);
        traced.args(["-e", &format!("inject={CALLS}:signal=KILL:when={at}")]);
        traced.arg(command().get_program()).args(["run", case.path().to_str().unwrap(), &target]);
        let mut traced = crate::common::Running::new(traced.stderr(std::process::Stdio::null()).spawn().unwrap());
        let mut was_killed = false;
        crate::common::until("it is killed, or has caught up", || {
            was_killed = traced.child().try_wait().unwrap().is_some();
            was_killed || case.report()["pair"]["seq"].as_u64() == Some(last)
        });
        if !was_killed {
            // strace leaves its tracee alone when it is killed itself. The relay may have got to the call only now.
            let pid = case.report()["pid"].as_u64().unwrap();
            let ended = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).output().unwrap();
            traced.output();
            if ended.status.success() {
                break;
            }
        }
        kills += 1;
    }
    assert!(kills > 3, "{kills} kills");
    case.relay_all(&target, &[]);
    println!("{kills} kills, {} messages", check_exact(&servers, "Q", &case.queue));
}

/// A server that comes back with an older store has lost what it had acknowledged.
fn a_stream_that_went_back_gets_it_all_again(mut servers: impl Broker) {
    let case = Case::new(300);
    let older = case.file("store");
    let relay = case.start(&servers.target("Q"), &[]);
    case.until_caught_up();
    servers.keep(&older);
    case.append(200);
    case.until_caught_up();
    servers.put_back(&older);
    case.append(1);
    case.until_caught_up();
    let counts = case.report()["counts"].clone();
    assert_eq!((counts["rewinds"].as_u64(), counts["resent"].as_u64()), (Some(1), Some(200)));
    relay.stop();
    assert_eq!(check_exact(&servers, "Q", &case.queue), 501);
}

with_each_broker! {
    faults_lose_nothing_and_double_nothing: Servers(3),
    faults_lose_nothing_and_double_nothing_in_frames: Servers(3),
    a_relay_killed_at_any_system_call_loses_nothing: Servers(1),
    a_stream_that_went_back_gets_it_all_again: Servers(1),
}
