//! Power cuts of the queue's host: numbers that were relayed are not given out again, and their messages come back.
use std::path::PathBuf;

use chronfs::Queue;

use crate::broker::Broker;
use crate::common::{Disk, SMALL, append, count, payload, writer};
use crate::relay::{Relay, check_exact, until_caught_up};
use crate::service::{Service, until_report};

/// A queue on a disk that loses power, and what is beside it.
struct Host {
    disk: Disk,
    dir: tempfile::TempDir,
    target: String,
}

impl Host {
    #[track_caller]
    fn new(servers: &impl Broker) -> Option<Self> {
        let disk = Disk::new("ext4", 64)?;
        let host = Self { disk, dir: tempfile::tempdir().unwrap(), target: servers.target("Q") };
        Queue::create(host.path(), &SMALL).unwrap();
        Some(host)
    }

    fn path(&self) -> PathBuf {
        self.disk.mountpoint().join("q")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn queue(&self) -> Queue {
        Queue::open(self.path()).unwrap()
    }

    fn run(&self, more: &[&str]) -> Service {
        Relay::start(self.path().to_str().unwrap(), &self.target, more, &self.log())
    }

    /// Relays all that there is.
    fn relay_all(&self, more: &[&str]) {
        let relay = self.run(more);
        until_caught_up(&self.queue(), "relay");
        relay.stop();
    }

    /// The power is cut when all has been relayed, while the relay runs.
    fn relay_and_cut(&self) {
        let relay = self.run(&[]);
        until_caught_up(&self.queue(), "relay");
        self.disk.cut(false);
        drop(relay);
        self.disk.mount_again();
    }
}

fn what_a_power_cut_took_comes_back_from_the_stream(servers: impl Broker) {
    let Some(host) = Host::new(&servers) else { return };
    let mut appending = host.queue().writer().unwrap();
    append(&mut appending, 50, |seq| payload(seq, 300));
    appending.flush_sync().unwrap();
    append(&mut appending, 100, |seq| payload(seq, 300));
    drop(appending);
    host.relay_and_cut();

    let queue = host.queue();
    let left = queue.bounds().unwrap().next_seq - 1;
    assert!((50..150).contains(&left), "{left} messages have survived: the cut took nothing, or too much");
    assert_eq!(host.run(&[]).exit_code(), Some(77));
    assert!(std::fs::read_to_string(host.log()).unwrap().contains(&format!("has lost messages {} to 150", left + 1)));
    host.relay_all(&["--refill"]);
    assert_eq!(queue.bounds().unwrap().next_seq, 151);
    append(&mut writer(&queue), 10, |seq| payload(seq, 300));
    host.relay_all(&[]);
    assert_eq!(check_exact(&servers, "Q", &queue), 160);
}

/// The feed is started again before anybody takes the messages back: its new ones have new numbers.
fn numbers_that_were_relayed_are_not_given_out_again(servers: impl Broker) {
    let Some(host) = Host::new(&servers) else { return };
    append(&mut writer(&host.queue()), 100, |seq| payload(seq, 300));
    host.relay_and_cut();

    let mut appending = writer(&host.queue());
    assert!(appending.next_seq() >= 101, "number {} is given out again", appending.next_seq());
    append(&mut appending, 10, |seq| payload(seq, 300));
    let last = appending.next_seq() - 1;
    drop(appending);
    host.relay_all(&[]);
    let copy = host.dir.path().join("copy");
    let standby = Relay::start(&host.target, copy.to_str().unwrap(), &[], &host.log());
    until_report(&copy, "relay", "all is there", |report| report["pair"]["seq"].as_u64() == Some(last));
    standby.stop();
    // The stream has what the queue has lost.
    assert_eq!(count(&Queue::open(&copy).unwrap()), last);
}

with_each_broker! {
    what_a_power_cut_took_comes_back_from_the_stream: Servers(1),
    numbers_that_were_relayed_are_not_given_out_again: Servers(1),
}
