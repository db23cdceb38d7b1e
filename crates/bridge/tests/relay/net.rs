//! Three hosts on one machine: network namespaces with a switch between them, whose cables can be pulled.
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::common::need::{Need, require};
use crate::common::text;

/// Hosts a, b and c of one test. Host c has the switch; the cables of the others can be pulled. Removed when dropped.
pub struct Hosts(String);

pub const HOSTS: [&str; 3] = ["a", "b", "c"];
/// What the names of namespaces begin with; then come the number of the process and the host.
const PREFIX: &str = "chronfs";

impl Hosts {
    /// None where namespaces can't be created.
    #[track_caller]
    pub fn new() -> Option<Self> {
        if !may_create() {
            return None;
        }
        remove_abandoned();
        let hosts = Self(format!("{PREFIX}{}", std::process::id()));
        for host in HOSTS {
            ip(&["netns", "add", &hosts.space(host)]);
            hosts.ip(host, &["link", "set", "lo", "up"]);
        }
        hosts.ip("c", &["link", "add", "br0", "type", "bridge"]);
        hosts.ip("c", &["address", "add", &format!("{}/24", hosts.address("c")), "dev", "br0"]);
        hosts.ip("c", &["link", "set", "br0", "up"]);
        for host in ["a", "b"] {
            let (peer, c) = (format!("to-{host}"), hosts.space("c"));
            hosts.ip(host, &["link", "add", "eth0", "type", "veth", "peer", "name", &peer, "netns", &c]);
            hosts.ip(host, &["address", "add", &format!("{}/24", hosts.address(host)), "dev", "eth0"]);
            hosts.ip(host, &["link", "set", "eth0", "up"]);
            hosts.ip("c", &["link", "set", &peer, "master", "br0", "up"]);
        }
        Some(hosts)
    }

    /// Pulls the cable of a host, or puts it back.
    pub fn connect(&self, host: &str, is_connected: bool) {
        self.ip("c", &["link", "set", &format!("to-{host}"), if is_connected { "up" } else { "down" }]);
    }

    pub fn address(&self, host: &str) -> String {
        format!("10.99.0.{}", 1 + HOSTS.iter().position(|other| *other == host).unwrap())
    }

    /// A program on a host: it replaces `nsenter`, so that signals reach it. `ip netns exec` would keep copies of the
    /// mounts of tests beside this one, and with them their file systems.
    pub fn command(&self, host: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.space(host))).arg("--").arg(program);
        command
    }

    /// Runs something on a host: what it opens are that host's sockets.
    pub fn within<T: Send>(&self, host: &str, run: impl FnOnce() -> T + Send) -> T {
        let space = std::fs::File::open(format!("/run/netns/{}", self.space(host))).unwrap();
        let run = move || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            run()
        };
        std::thread::scope(|scope| scope.spawn(run).join().unwrap())
    }

    fn space(&self, host: &str) -> String {
        format!("{}{host}", self.0)
    }

    fn ip(&self, host: &str, args: &[&str]) {
        ip(&[&["-n", &self.space(host)][..], args].concat());
    }
}

#[track_caller]
fn may_create() -> bool {
    require(Need::Admin) && require(Need::Program("ip", (0, 0))) && require(Need::Program("nsenter", (0, 0)))
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", text(&output.stderr));
}

/// Removes the namespaces of tests that were killed.
fn remove_abandoned() {
    let process = |name: &str| -> Option<u32> {
        let rest = name.strip_prefix(PREFIX)?;
        HOSTS.iter().find_map(|host| rest.strip_suffix(host))?.parse().ok()
    };
    for space in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = space.file_name().to_string_lossy().into_owned();
        if process(&name).is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
            // Another test may do the same.
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in HOSTS {
            let _ = Command::new("ip").args(["netns", "del", &self.space(host)]).status();
        }
    }
}

#[test]
fn what_a_test_that_was_killed_has_left_is_removed() {
    if !may_create() {
        return;
    }
    let process = crate::common::Running::new(Command::new("sleep").arg("1000").spawn().unwrap());
    let name = format!("{PREFIX}{}b", process.id());
    let is_there = || Path::new("/run/netns").join(&name).exists();
    ip(&["netns", "add", &name]);
    remove_abandoned();
    assert!(is_there(), "its process runs");
    drop(process);
    remove_abandoned();
    // Or by another test that does the same now.
    crate::common::until("it is gone", || !is_there());
}
