//! A real S3 server of the test's own, on a loopback port.
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use chronfs::Queue;

use crate::common::need::{Need, require};
use crate::common::{Running, append, payload, writer};
use crate::service::{report, start, until_report, until_well};
use crate::shelf::{Archive, SEVERAL, check_same, path, segments, several};

const BUCKET: &str = "bucket";

/// An S3 server that forgets everything when it is dropped.
pub struct Server {
    port: u16,
    log: PathBuf,
    server: Option<Running>,
}

/// Whether there can be one.
#[track_caller]
pub fn is_there() -> bool {
    require(Need::Program("moto_server", (0, 0)))
}

impl Server {
    /// With a bucket; it logs its requests there.
    pub fn start(log: &Path) -> Self {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut server = Self { port, log: log.to_path_buf(), server: None };
        server.begin();
        server
    }

    pub fn begin(&mut self) {
        let mut command = Command::new("moto_server");
        command.args(["-H", "127.0.0.1", "-p", &self.port.to_string()]);
        self.server = Some(start(command, &self.log));
        let has_bucket = || self.ask("PUT", &format!("/{BUCKET}")).is_ok_and(|answer| answer.contains(" 200 "));
        until_well(&self.log, has_bucket);
    }

    pub fn stop(&mut self) {
        self.server = None;
    }

    fn ask(&self, method: &str, path: &str) -> std::io::Result<String> {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        connection.set_read_timeout(Some(Duration::from_secs(5)))?;
        let host = "s3.amazonaws.com";
        write!(connection, "{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// An archive in its bucket; `credentials`: a file for them, which is written.
    pub fn archive(&self, credentials: &Path) -> Archive {
        archive_at(self.port, credentials)
    }

    /// What a person would export to use its bucket.
    pub fn variables(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
            ("AWS_ENDPOINT", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "eu-1".to_owned()),
        ]
    }

    /// The objects that were written successfully, each as often as that.
    pub fn puts(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap();
        let put = |line: &str| {
            let (object, answer) = line.split_once("PUT /bucket/prefix/")?.1.split_once(" HTTP/1.1\"")?;
            let is_segment = object.contains(".q.zst") || object.contains(".index");
            (is_segment && answer.trim_start().starts_with("200")).then(|| object.to_owned())
        };
        let mut puts: Vec<String> = log.lines().filter_map(put).collect();
        puts.sort();
        puts
    }

    /// Nothing was written twice; returns how many objects were.
    #[track_caller]
    pub fn check_once(&self) -> usize {
        let puts = self.puts();
        let mut once = puts.clone();
        once.dedup();
        assert_eq!(puts, once, "written twice");
        puts.len()
    }
}

/// An archive in the bucket of a server on this port.
fn archive_at(port: u16, credentials: &Path) -> Archive {
    fs::write(credentials, "# of the test\nAWS_ACCESS_KEY_ID=test\nAWS_SECRET_ACCESS_KEY=\"secret\"\n").unwrap();
    let endpoint = format!("endpoint=http://127.0.0.1:{port}");
    let options = ["--credentials", path(credentials), "-o", &endpoint, "-o", "allow_http=true", "-o", "region=eu-1"];
    Archive { url: format!("s3://{BUCKET}/prefix"), options: options.map(str::to_owned).to_vec() }
}

/// It would wait for a minute.
#[test]
fn an_archiver_ends_at_once_when_it_is_told_to_while_the_store_is_silent() {
    let dir = tempfile::tempdir().unwrap();
    let (one, log) = (dir.path().join("q"), dir.path().join("log"));
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let archive = archive_at(silent.local_addr().unwrap().port(), &dir.path().join("s3.env"));
    several(&one);
    let service = archive.start(&one, &log);
    let (_asked, _) = silent.accept().unwrap();
    let began = Instant::now();
    service.stop();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(report(&one, "archive")["condition"], "stopped");
    // With --once, one that fails says so: no operator need decide anything.
    drop(silent);
    assert_eq!(archive.once(&one).status.code(), Some(1));
    let report = report(&one, "archive");
    assert_eq!((&report["condition"], &report["healthy"]), (&"failed".into(), &false.into()), "{report:#}");
}

#[test]
fn a_queue_goes_to_s3_and_comes_back() {
    if !is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir.path().join("server.log"));
    let archive = server.archive(&dir.path().join("s3.env"));
    let (one, two, log) = (dir.path().join("q"), dir.path().join("copy"), dir.path().join("log"));
    let queue = several(&one);
    let service = archive.start(&one, &log);
    let archived = |queue: &Queue| {
        let last = queue.finished_segments(0).unwrap().last().unwrap().next_seq - 1;
        until_report(&one, "archive", "all is archived", |report| report["pair"]["seq"].as_u64() == Some(last));
    };
    archived(&queue);
    let restored = archive.restore(&two, &[]);
    assert_eq!((check_same(&one, &two), restored["kept"].as_u64()), (segments(&one).len(), Some(0)));
    // What was restored is there already.
    archive.archive(&two);
    assert_eq!(server.check_once(), 2 * segments(&one).len());
    let verdict = archive.json(&["verify", &archive.url, path(&one)], &[]);
    assert_eq!(verdict["equal"], segments(&one).len());
    // The server goes, and comes back empty: what is committed is not sent again, the rest is.
    server.stop();
    append(&mut writer(&queue), SEVERAL, |seq| payload(seq, 300));
    until_report(&one, "archive", "it waits", |report| report["condition"] == "waiting");
    let before = server.puts().len();
    server.begin();
    archived(&queue);
    service.stop();
    let added = segments(&one).len() - segments(&two).len();
    assert_eq!(server.puts().len() - before, 2 * added);
    // By age, with the server's clock.
    let pruned = archive.json(&["prune", &archive.url, "--older-than", "1d"], &[]);
    assert_eq!(pruned["segments"], 0);
    std::thread::sleep(Duration::from_millis(1100)); // S3 counts in seconds.
    let pruned = archive.json(&["prune", &archive.url, "--older-than", "1ms"], &[]);
    assert_eq!((&pruned["segments"], &pruned["first_seq"]), (&added.into(), &serde_json::Value::Null));
}

#[test]
fn what_is_wrong_with_the_way_to_it_is_named() {
    if !is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir.path().join("server.log"));
    let archive = server.archive(&dir.path().join("s3.env"));
    archive.fails(&["list", &archive.url, "-o", "regoin=x"], &[], 78, "unknown option regoin");
    archive.fails(&["list", "s3://nothing/there"], &[], 1, "NoSuchBucket");
    server.stop();
    archive.fails(&["list", &archive.url], &[], 1, "Connection refused");
    fs::write(dir.path().join("s3.env"), "AWS_ACCESS_KEY_ID\n").unwrap();
    archive.fails(&["list", &archive.url], &[], 78, "entry 1 is not NAME=VALUE");
}
