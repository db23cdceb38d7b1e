//! NATS servers of the test's own, on loopback ports.
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::{self, consumer::DeliverPolicy, consumer::pull::OrderedConfig};
use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::common::need::{Need, require};
use crate::common::{Running, until};

/// A server that elects a leader needs this long at worst, on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(60);

struct Node {
    client: u16,
    monitor: u16,
    config: PathBuf,
    server: Option<Running>,
}

/// One server, or a cluster of several, with JetStream. Killed when dropped.
pub struct Cluster {
    dir: tempfile::TempDir,
    nodes: Vec<Node>,
}

pub fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// Whether the tests can run at all.
#[track_caller]
pub fn is_there() -> bool {
    require(Need::Program("nats-server"))
}

impl Cluster {
    pub fn new(count: usize) -> Self {
        Self::with(count, "")
    }

    /// With these lines in each server's configuration.
    pub fn with(count: usize, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ports = free_ports(3 * count);
        let routes: Vec<_> = ports.chunks(3).map(|ports| format!("nats://127.0.0.1:{}", ports[2])).collect();
        let mut nodes = Vec::new();
        for (index, ports) in ports.chunks(3).enumerate() {
            let [client, monitor, cluster] = ports else { unreachable!() };
            let store = dir.path().join(format!("store{index}"));
            let config = dir.path().join(format!("{index}.conf"));
            let mut text = format!(
                "server_name: n{index}\nlisten: 127.0.0.1:{client}\nhttp: 127.0.0.1:{monitor}\n{more}\n\
                 jetstream {{ store_dir: {store:?}, max_file: 4G, max_mem: 64M }}\n"
            );
            if count > 1 {
                let routes = routes.join(", ");
                text += &format!("cluster {{ name: c, listen: 127.0.0.1:{cluster}, routes: [{routes}] }}\n");
            }
            fs::write(&config, text).unwrap();
            nodes.push(Node { client: *client, monitor: *monitor, config, server: None });
        }
        let mut cluster = Self { dir, nodes };
        (0..count).for_each(|index| cluster.start(index));
        (0..count).for_each(|index| cluster.wait_for(index));
        cluster
    }

    pub fn start(&mut self, index: usize) {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join(format!("{index}.log")));
        let node = &mut self.nodes[index];
        let child = Command::new("nats-server").arg("-c").arg(&node.config).stderr(log.unwrap()).spawn().unwrap();
        node.server = Some(Running::new(child));
    }

    /// Waits until a server says that it is well.
    pub fn wait_for(&self, index: usize) {
        let deadline = Instant::now() + PATIENCE;
        while !is_healthy(self.nodes[index].monitor) {
            let log = || fs::read_to_string(self.dir.path().join(format!("{index}.log"))).unwrap_or_default();
            assert!(Instant::now() < deadline, "server {index} does not get well:\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// kill -9.
    pub fn kill(&mut self, index: usize) {
        self.nodes[index].server = None;
    }

    /// Stops a server; returns when no thread of it runs any more.
    pub fn pause(&self, index: usize) {
        let server = self.nodes[index].server.as_ref().unwrap();
        server.signal("STOP");
        let tasks = format!("/proc/{}/task", server.id());
        until("every thread is stopped", || {
            fs::read_dir(&tasks).unwrap().flatten().all(|task| {
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('T'))
            })
        });
    }

    pub fn resume(&self, index: usize) {
        self.nodes[index].server.as_ref().unwrap().signal("CONT");
    }

    pub fn store(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("store{index}"))
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The address of a stream.
    pub fn target(&self, stream: &str) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.client)).collect();
        format!("nats://{}/{stream}", hosts.join(","))
    }

    pub async fn connect(&self) -> jetstream::Context {
        let servers: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.client)).collect();
        jetstream::new(async_nats::connect(servers).await.unwrap())
    }
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
    let stream = context.get_stream(stream).await.unwrap();
    let state = &stream.cached_info().state;
    let (first, last) = (state.first_sequence.max(1), state.last_sequence);
    let mut found = Vec::new();
    if first > last {
        return found;
    }
    let deliver_policy = DeliverPolicy::ByStartSequence { start_sequence: first };
    let config = OrderedConfig { deliver_policy, ..OrderedConfig::default() };
    let mut messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    while found.last().is_none_or(|&(number, ..)| number < last) {
        let next = tokio::time::timeout(PATIENCE, messages.next()).await.unwrap().unwrap().unwrap();
        let number = next.info().unwrap().stream_sequence;
        found.push((number, next.headers.clone().unwrap_or_default(), next.payload.clone()));
    }
    found
}
