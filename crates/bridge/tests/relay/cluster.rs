//! NATS servers of the test's own, on loopback ports.
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use async_nats::jetstream::{self, consumer::DeliverPolicy, consumer::pull::OrderedConfig};
use async_nats::{ConnectOptions, HeaderMap};
use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::broker::{Broker, Message, Setup};
use crate::common::need::{Need, require};
use crate::common::{Running, until};
use crate::net::{HOSTS, Hosts};
use crate::relay::until_so;
use crate::service::{PATIENCE, start, until_well};

struct Node {
    /// Host and port.
    client: String,
    monitor: u16,
    config: PathBuf,
    /// The program and its arguments before `-c`.
    program: Vec<String>,
    server: Option<Running>,
}

/// One server, or a cluster of several, with JetStream. Killed when dropped.
pub struct Cluster {
    dir: tempfile::TempDir,
    nodes: Vec<Node>,
    /// User and password of the test's own connections.
    pub login: Option<(String, String)>,
    /// The authority that these connections trust, with TLS.
    pub ca: Option<PathBuf>,
}

pub fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// Whether the tests can run at all.
#[track_caller]
pub fn is_there() -> bool {
    require(Need::Program("nats-server", (2, 9)))
}

/// Whether the servers survive partitions: 2.9.10 delivers messages afterwards that its stream does not have.
#[track_caller]
pub fn survives_partitions() -> bool {
    require(Need::Program("nats-server", (2, 11)))
}

impl Cluster {
    pub fn new(count: usize) -> Self {
        Self::with_lines(count, "")
    }

    /// With these lines in each server's configuration.
    pub fn with_lines(count: usize, more: &str) -> Self {
        let program = vec!["nats-server".to_owned()];
        let ports = free_ports(3 * count);
        let place = |ports: &[u16]| ("127.0.0.1".to_owned(), ports.try_into().unwrap(), program.clone());
        let cluster = Self::at(ports.chunks(3).map(place).collect(), more);
        (0..count).for_each(|index| cluster.wait_until_well(index));
        cluster
    }

    /// One server on each host.
    pub fn on(hosts: &Hosts) -> Self {
        let place = |host| {
            let command = hosts.command(host, "nats-server");
            let words = std::iter::once(command.get_program()).chain(command.get_args());
            let program = words.map(|word| word.to_str().unwrap().to_owned()).collect();
            (hosts.address(host), [4222, 8222, 6222], program)
        };
        // A cable that was pulled is noticed soon.
        Self::at(HOSTS.map(place).into(), "ping_interval: 1s\nping_max: 2")
    }

    /// Servers: address, ports of clients, monitor and cluster, program.
    fn at(places: Vec<(String, [u16; 3], Vec<String>)>, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let routes: Vec<_> = places.iter().map(|(host, ports, _)| format!("nats://{host}:{}", ports[2])).collect();
        let (count, routes) = (places.len(), routes.join(", "));
        let node = |(index, (host, [client, monitor, cluster], program)): (usize, (String, [u16; 3], Vec<String>))| {
            let store = dir.path().join(format!("store{index}"));
            let config = dir.path().join(format!("{index}.conf"));
            let mut text = format!(
                "server_name: n{index}\nlisten: {host}:{client}\nhttp: {host}:{monitor}\n{more}\n\
                 jetstream {{ store_dir: {store:?}, max_file: 4G, max_mem: 64M }}\n"
            );
            if count > 1 {
                text += &format!("cluster {{ name: c, listen: {host}:{cluster}, routes: [{routes}] }}\n");
            }
            fs::write(&config, text).unwrap();
            Node { client: format!("{host}:{client}"), monitor, config, program, server: None }
        };
        let nodes = places.into_iter().enumerate().map(node).collect();
        let mut cluster = Self { dir, nodes, login: None, ca: None };
        (0..count).for_each(|index| cluster.run(index));
        cluster
    }

    fn run(&mut self, index: usize) {
        let Node { program, config, .. } = &self.nodes[index];
        let mut command = Command::new(&program[0]);
        command.args(&program[1..]).arg("-c").arg(config);
        self.nodes[index].server = Some(start(command, &self.log(index)));
    }

    fn log(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("{index}.log"))
    }

    /// Changes a server's configuration while it runs.
    pub fn reconfigure(&self, index: usize, from: &str, to: &str) {
        let Node { config, server, .. } = &self.nodes[index];
        let text = fs::read_to_string(config).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(config, text.replace(from, to)).unwrap();
        server.as_ref().unwrap().signal("HUP");
    }

    /// Waits until a server says that it is well.
    fn wait_until_well(&self, index: usize) {
        until_well(&self.log(index), || is_healthy(self.nodes[index].monitor));
    }

    pub async fn connect(&self) -> jetstream::Context {
        self.connect_to(&(0..self.count()).collect::<Vec<_>>()).await
    }

    /// Connects to one of these servers.
    pub async fn connect_to(&self, nodes: &[usize]) -> jetstream::Context {
        let mut options = ConnectOptions::new();
        if let Some((user, password)) = self.login.clone() {
            options = options.user_and_password(user, password);
        }
        if let Some(ca) = &self.ca {
            options = options.add_root_certificates(ca.clone()).require_tls(true);
        }
        let servers: Vec<_> = nodes.iter().map(|&node| self.nodes[node].client.clone()).collect();
        jetstream::new(options.connect(servers).await.unwrap())
    }
}

impl Broker for Cluster {
    const FAULT_SECONDS: u64 = 25;
    const NOT_LET_IN: &'static str = "authorization violation";

    #[track_caller]
    fn with(setup: &Setup) -> Option<Self> {
        if !is_there() {
            return None;
        }
        Some(match setup {
            Setup::Servers(count) => Self::with_lines(*count, ""),
            Setup::Password(password) => {
                let cluster = Self::with_lines(1, &format!("authorization {{ user: relay, password: {password} }}"));
                Self { login: Some(("relay".to_owned(), (*password).to_owned())), ..cluster }
            }
            Setup::Tls { ca, certificate, key, asks } => {
                let asks = if *asks { format!(", ca_file: {ca:?}, verify: true") } else { String::new() };
                let cluster =
                    Self::with_lines(1, &format!("tls {{ cert_file: {certificate:?}, key_file: {key:?}{asks} }}"));
                Self { ca: Some(ca.clone()), ..cluster }
            }
        })
    }

    fn options(&self) -> Vec<&'static str> {
        if self.nodes.len() == 3 { vec!["--replicas", "3"] } else { Vec::new() }
    }

    fn target(&self, stream: &str) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(|node| node.client.as_str()).collect();
        let scheme = if self.ca.is_some() { "tls" } else { "nats" };
        format!("{scheme}://{}/{stream}", hosts.join(","))
    }

    fn count(&self) -> usize {
        self.nodes.len()
    }

    fn start(&mut self, index: usize) {
        self.run(index);
    }

    fn wait_for(&self, index: usize) {
        self.wait_until_well(index);
    }

    fn kill(&mut self, index: usize) {
        self.nodes[index].server = None;
    }

    fn pause(&self, index: usize) {
        stop_threads(self.nodes[index].server.as_ref().unwrap());
    }

    fn resume(&self, index: usize) {
        self.nodes[index].server.as_ref().unwrap().signal("CONT");
    }

    fn store(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("store{index}"))
    }

    fn messages(&self, stream: &str) -> Vec<Message> {
        let found = block_on(async { messages(&self.connect().await, stream).await });
        let message = |(number, headers, payload): (u64, HeaderMap, Bytes)| {
            let headers =
                headers.iter().map(|(name, values)| (name.to_string(), values[0].as_str().to_owned())).collect();
            Message { number, headers, payload: payload.to_vec() }
        };
        found.into_iter().map(message).collect()
    }

    fn purge(&self, stream: &str) {
        block_on(async { self.connect().await.get_stream(stream).await.unwrap().purge().await.unwrap() });
    }

    fn delete(&self, stream: &str) {
        block_on(async { self.connect().await.delete_stream(stream).await.unwrap() });
    }

    fn change_password(&mut self, from: &str, to: &str) {
        // The server ends connections that the new password does not allow.
        self.reconfigure(0, from, to);
        self.login = Some(("relay".to_owned(), to.to_owned()));
    }
}

/// Stops a program; returns when no thread of it runs any more.
pub fn stop_threads(program: &Running) {
    program.signal("STOP");
    let tasks = format!("/proc/{}/task", program.id());
    until("every thread is stopped", || {
        fs::read_dir(&tasks).unwrap().flatten().all(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('T'))
        })
    });
}

fn is_healthy(port: u16) -> bool {
    get(port, "/healthz").is_ok_and(|answer| answer.contains(" 200 "))
}

/// What a server on loopback answers.
pub fn get(port: u16, path: &str) -> std::io::Result<String> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    connection.set_read_timeout(Some(Duration::from_secs(2)))?;
    connection.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Runs what talks to servers.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// All messages of a stream: number, headers, payload.
pub async fn messages(context: &jetstream::Context, stream: &str) -> Vec<(u64, HeaderMap, Bytes)> {
    let stream = until_so("the stream answers", async || context.get_stream(stream).await.ok()).await;
    let state = &stream.cached_info().state;
    let (first, last) = (state.first_sequence.max(1), state.last_sequence);
    let mut found = Vec::new();
    if first > last {
        return found;
    }
    let deliver_policy = DeliverPolicy::ByStartSequence { start_sequence: first };
    let config = OrderedConfig { deliver_policy, ..OrderedConfig::default() };
    let consumer = until_so("a consumer is made", async || stream.create_consumer(config.clone()).await.ok()).await;
    let mut messages = consumer.messages().await.unwrap();
    while found.last().is_none_or(|&(number, ..)| number < last) {
        let next = tokio::time::timeout(PATIENCE, messages.next()).await.unwrap().unwrap().unwrap();
        let number = next.info().unwrap().stream_sequence;
        found.push((number, next.headers.clone().unwrap_or_default(), next.payload.clone()));
    }
    found
}
