//! A Redis server of the test's own, on a loopback port.
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use ::redis::{Client, ConnectionLike as _, RedisResult, TlsCertificates, Value, cmd};

use crate::broker::{Broker, Message, Setup};
use crate::cluster::{free_ports, stop_threads};
use crate::common::Running;
use crate::common::need::{Need, require};
use crate::service::{PATIENCE, start, until_well};

/// One server that logs what it does. Killed when dropped.
pub struct Redis {
    dir: tempfile::TempDir,
    port: u16,
    server: Option<Running>,
    password: Option<String>,
    /// The authority that the test's own connections trust, with TLS.
    ca: Option<PathBuf>,
}

/// Whether the tests can run at all.
#[track_caller]
pub fn is_there() -> bool {
    require(Need::Program("redis-server", (7, 0)))
}

impl Redis {
    pub fn new() -> Self {
        Self::with_lines("")
    }

    /// With these lines in its configuration.
    pub fn with_lines(more: &str) -> Self {
        let mut server = Self::prepared(more, None);
        server.start(0);
        server.wait_for(0);
        server
    }

    fn prepared(more: &str, tls: Option<(u16, PathBuf)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("store")).unwrap();
        let port = tls.as_ref().map_or_else(|| free_ports(1)[0], |&(port, _)| port);
        let listen = if tls.is_some() { format!("port 0\ntls-port {port}") } else { format!("port {port}") };
        let text = format!(
            "{listen}\nbind 127.0.0.1\ndir {}\nunixsocket {}\nappendonly yes\nsave \"\"\n{more}\n",
            dir.path().join("store").display(),
            dir.path().join("socket").display(),
        );
        fs::write(dir.path().join("redis.conf"), text).unwrap();
        Self { dir, port, server: None, password: None, ca: tls.map(|(_, ca)| ca) }
    }

    /// The server's address in the test's own words.
    fn client(&self) -> Client {
        let user = self.password.as_ref().map_or(String::new(), |password| format!("relay:{password}@"));
        let Some(ca) = &self.ca else {
            return Client::open(format!("redis://{user}127.0.0.1:{}", self.port)).unwrap();
        };
        let dir = ca.parent().unwrap();
        let client_tls = fs::read(dir.join("client.pem")).ok().map(|client_cert| ::redis::ClientTlsConfig {
            client_cert,
            client_key: fs::read(dir.join("client.key")).unwrap(),
        });
        let certificates = TlsCertificates { client_tls, root_cert: Some(fs::read(ca).unwrap()) };
        Client::build_with_tls(format!("rediss://{user}127.0.0.1:{}", self.port), certificates).unwrap()
    }

    pub fn connection(&self) -> ::redis::Connection {
        self.client().get_connection_with_timeout(PATIENCE).unwrap()
    }

    /// What the server answers to a command.
    pub fn ask<T: ::redis::FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        cmd(words[0]).arg(&words[1..]).query(&mut self.connection())
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn is_well(&self) -> bool {
        let connected = self.client().get_connection_with_timeout(std::time::Duration::from_secs(2));
        connected.is_ok_and(|mut connection| connection.req_command(&cmd("PING")).is_ok())
    }
}

impl Broker for Redis {
    const FAULT_SECONDS: u64 = 10;
    const NOT_LET_IN: &'static str = "Password authentication failed";

    #[track_caller]
    fn with(setup: &Setup) -> Option<Self> {
        if !is_there() {
            return None;
        }
        let mut server = match setup {
            Setup::Servers(_) => Self::prepared("", None),
            Setup::Password(password) => {
                let users = format!("user default off\nuser relay on >{password} ~* +@all");
                Self { password: Some((*password).to_owned()), ..Self::prepared(&users, None) }
            }
            Setup::Tls { ca, certificate, key, asks } => {
                let tls = format!(
                    "tls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients {}",
                    certificate.display(),
                    key.display(),
                    ca.display(),
                    if *asks { "yes" } else { "no" }
                );
                Self::prepared(&tls, Some((free_ports(1)[0], ca.clone())))
            }
        };
        server.start(0);
        server.wait_for(0);
        Some(server)
    }

    fn options(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn target(&self, stream: &str) -> String {
        let scheme = if self.ca.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}/{stream}", self.port)
    }

    fn count(&self) -> usize {
        1
    }

    fn start(&mut self, _: usize) {
        let mut command = Command::new("redis-server");
        command.arg(self.dir.path().join("redis.conf"));
        self.server = Some(start(command, &self.log()));
    }

    fn wait_for(&self, _: usize) {
        until_well(&self.log(), || self.is_well());
    }

    fn kill(&mut self, _: usize) {
        self.server = None;
    }

    fn pause(&self, _: usize) {
        stop_threads(self.server.as_ref().unwrap());
    }

    fn resume(&self, _: usize) {
        self.server.as_ref().unwrap().signal("CONT");
    }

    fn store(&self, _: usize) -> PathBuf {
        self.dir.path().join("store")
    }

    fn messages(&self, stream: &str) -> Vec<Message> {
        let entries: Vec<(String, HashMap<String, Value>)> = self.ask(&["XRANGE", stream, "-", "+"]).unwrap();
        let message = |(id, mut fields): (String, HashMap<String, Value>)| {
            let number = id.strip_suffix("-0").and_then(|number| number.parse().ok());
            let number = number.unwrap_or_else(|| panic!("{id} is not the id of a relay's entry"));
            let payload = ::redis::from_redis_value(fields.remove("payload").unwrap()).unwrap();
            let text = |value| ::redis::from_redis_value(value).unwrap();
            Message { number, headers: fields.into_iter().map(|(name, value)| (name, text(value))).collect(), payload }
        };
        entries.into_iter().map(message).collect()
    }

    fn purge(&self, stream: &str) {
        self.ask::<u64>(&["XTRIM", stream, "MAXLEN", "0"]).unwrap();
    }

    fn delete(&self, stream: &str) {
        assert_eq!(self.ask::<u64>(&["DEL", stream]).unwrap(), 1);
    }

    fn change_password(&mut self, from: &str, to: &str) {
        let config = self.dir.path().join("redis.conf");
        let text = fs::read_to_string(&config).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(config, text.replace(from, to)).unwrap();
        self.kill(0);
        self.password = Some(to.to_owned());
        self.start(0);
        self.wait_for(0);
    }
}
