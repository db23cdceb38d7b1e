//! Three hosts on one machine: network namespaces with a switch between them, whose cables can be pulled.
use std::os::fd::AsFd as _;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::common::need::{Need, require};
use crate::common::text;

/// Hosts a, b and c of one test. Host c has the switch; the cables of the others can be pulled. Removed when dropped.
pub struct Hosts(String);

pub const HOSTS: [&str; 3] = ["a", "b", "c"];

impl Hosts {
    /// None where namespaces can't be created.
    #[track_caller]
    pub fn new() -> Option<Self> {
        if !require(Need::Admin) || !require(Need::Program("ip", (0, 0))) || !require(Need::Program("nsenter", (0, 0)))
        {
            return None;
        }
        let hosts = Self(format!("chronfs{}", std::process::id()));
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

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", text(&output.stderr));
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in HOSTS {
            let _ = Command::new("ip").args(["netns", "del", &self.space(host)]).status();
        }
    }
}
