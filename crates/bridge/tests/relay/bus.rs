//! A relay of all queues of a bus, as they come; and what it tells systemd.
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use chronfs::{Queue, bus};

use crate::broker::Broker;
use crate::case::Case;
use crate::cluster::{self, Cluster, block_on};
use crate::common::{SMALL, append, filled, payload, text, writer};
use crate::relay::{Relay, check_exact, command, until_caught_up};
use crate::service::{Service, until_report};

fn queues_of_a_bus_are_relayed_as_they_become_ready(servers: impl Broker) {
    let dir = tempfile::tempdir().unwrap();
    let (root, log) = (dir.path().join("bus"), dir.path().join("log"));
    let make = |name: &str| filled(&root.join(name), &SMALL, 50, |seq| payload(seq, 300));
    let ready = |queue: &Queue| bus::mark_ready(queue.path()).unwrap();
    let first = make("feeds/a");
    ready(&first);
    let unready = make("feeds/unready");
    // Its stream is somebody else's.
    let refused = make("refused");
    Case::new(10).relay_all(&servers.target("BUS-refused"), &[]);
    ready(&refused);

    let relay = Relay::start(root.to_str().unwrap(), &servers.target("BUS"), &[], &log);
    until_caught_up(&first, "relay");
    until_report(refused.path(), "relay", "it is refused", |report| report["condition"] == "refused");
    let second = make("feeds/deep/b.v2");
    ready(&second);
    until_caught_up(&second, "relay");
    assert!(!unready.path().join("relay").exists(), "the other one is not ready");
    append(&mut writer(&first), 50, |seq| payload(seq, 300));
    until_caught_up(&first, "relay");
    ready(&unready);
    until_caught_up(&unready, "relay");
    // What an operator must decide about one of them is the exit code in the end.
    relay.end(77);

    assert_eq!(check_exact(&servers, "BUS-feeds-a", &first), 100);
    assert_eq!(check_exact(&servers, "BUS-feeds-deep-b_v2", &second), 50);
    assert_eq!(check_exact(&servers, "BUS-feeds-unready", &unready), 50);
}

#[test]
fn a_queue_of_a_bus_has_its_path_as_its_subject() {
    if !cluster::is_there() {
        return;
    }
    let cluster = Cluster::new(1);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("bus");
    let queue = filled(&root.join("feeds/deep/b.v2"), &SMALL, 5, |seq| payload(seq, 300));
    bus::mark_ready(queue.path()).unwrap();
    let relay = Relay::start(root.to_str().unwrap(), &cluster.target("BUS"), &[], &dir.path().join("log"));
    until_caught_up(&queue, "relay");
    relay.stop();
    let subjects = block_on(async {
        let stream = cluster.connect().await.get_stream("BUS-feeds-deep-b_v2").await.unwrap();
        stream.cached_info().config.subjects.clone()
    });
    assert_eq!(subjects, ["chron.feeds.deep.b_v2"]);
}

/// systemd's end of the socket: what is said is taken at once, as systemd does.
struct Systemd(Receiver<String>);

impl Systemd {
    fn new(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        let (lines, said) = channel();
        std::thread::spawn(move || {
            let mut message = [0; 4096];
            while let Ok(len) = socket.recv(&mut message) {
                let is_wanted = text(&message[..len]).lines().all(|line| lines.send(line.to_owned()).is_ok());
                if !is_wanted {
                    break;
                }
            }
        });
        Self(said)
    }

    /// Whether this is said before the deadline.
    fn hears(&self, line: &str, deadline: Instant) -> bool {
        let next = || self.0.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
        std::iter::from_fn(next).any(|said| said.starts_with(line))
    }

    #[track_caller]
    fn expects(&self, line: &str) {
        assert!(self.hears(line, Instant::now() + crate::service::PATIENCE), "{line} is not said");
    }
}

/// Ready at once; the watchdog is fed as long as there is progress; the status says what is going on.
#[test]
fn systemd_is_told_how_the_relay_is() {
    const WATCHDOG: Duration = Duration::from_millis(200);
    if !cluster::is_there() {
        return;
    }
    let cluster = Cluster::new(1);
    let case = Case::new(10);
    let socket = case.file("notify");
    let service = Systemd::new(&socket);
    let mut run = command();
    run.args(["run", case.path().to_str().unwrap(), &cluster.target("Q")]);
    run.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
    let relay = Service::start(run, &case.file("log"));
    service.expects("READY=1");
    case.until_caught_up();
    service.expects("STATUS=running, lag 0 messages");
    service.expects("WATCHDOG=1");

    cluster.pause(0);
    case.append(7);
    service.expects("STATUS=waiting, lag 7 messages");
    // It is not stuck yet.
    service.expects("WATCHDOG=1");
    until_report(case.path(), "relay", "it is unhealthy", |report| report["healthy"] == false);
    while service.0.try_recv().is_ok() {}
    assert!(!service.hears("WATCHDOG=1", Instant::now() + 5 * WATCHDOG), "systemd believes that it is well");

    cluster.resume(0);
    service.expects("STATUS=running, lag 0 messages");
    service.expects("WATCHDOG=1");
    crate::common::signal_to(relay.id(), "TERM");
    service.expects("STOPPING=1");
    assert_eq!(relay.exit_code(), Some(0));
}

with_each_broker! {
    queues_of_a_bus_are_relayed_as_they_become_ready: Servers(1),
}
