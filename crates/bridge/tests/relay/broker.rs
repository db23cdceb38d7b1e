//! Servers that queues are relayed to, for tests that hold for every kind of them.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What servers a test needs.
pub enum Setup<'a> {
    /// So many, if it takes several to survive the loss of one.
    Servers(usize),
    /// One that lets in the user `relay` with this password.
    Password(&'a str),
    /// One with a certificate and a key; it asks clients for a certificate of its authority if `asks`.
    Tls { ca: PathBuf, certificate: PathBuf, key: PathBuf, asks: bool },
}

/// A message of a stream.
pub struct Message {
    pub number: u64,
    pub headers: BTreeMap<String, String>,
    pub payload: Vec<u8>,
}

impl Message {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// Servers of one kind, killed when dropped.
pub trait Broker: Sized {
    /// For how long faults are injected in the short form.
    const FAULT_SECONDS: u64;
    /// What a relay says whose password is wrong.
    const NOT_LET_IN: &'static str;
    /// Servers that are well; None where there are none of this kind.
    #[track_caller]
    fn with(setup: &Setup) -> Option<Self>;
    /// Options of a relay that creates a stream.
    fn options(&self) -> Vec<&'static str>;
    /// The address of a stream.
    fn target(&self, stream: &str) -> String;
    fn count(&self) -> usize;
    fn start(&mut self, index: usize);
    /// Waits until a server is well.
    fn wait_for(&self, index: usize);
    /// kill -9.
    fn kill(&mut self, index: usize);
    /// Stops a server; returns when no thread of it runs any more.
    fn pause(&self, index: usize);
    fn resume(&self, index: usize);
    /// The directory of a server.
    fn store(&self, index: usize) -> PathBuf;
    /// Keeps a copy of the only server's store, as it is without it.
    fn keep(&mut self, older: &Path) {
        self.kill(0);
        copy(&self.store(0), older);
        self.start(0);
    }
    /// The only server comes back with an older store.
    fn put_back(&mut self, older: &Path) {
        self.kill(0);
        std::fs::remove_dir_all(self.store(0)).unwrap();
        copy(older, &self.store(0));
        self.start(0);
    }
    /// All messages of a stream.
    fn messages(&self, stream: &str) -> Vec<Message>;
    /// Removes a stream's messages.
    fn purge(&self, stream: &str);
    /// Removes a stream.
    fn delete(&self, stream: &str);
    /// Lets the user in with another password only.
    fn change_password(&mut self, from: &str, to: &str);
}

/// Copies a directory.
pub fn copy(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap().success());
}
