//! A relay's configuration: a TOML file, or the command line's options.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::config_file;

use super::{Access, Failure, InboundOptions, OutboundOptions, Result, StreamOptions, Target, TooLarge};

/// One relay, as in its TOML file. Names of files that are not absolute are looked up in systemd's directory of
/// credentials, if there is one, or beside the configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A queue, a directory of queues, or the address of a stream.
    pub from: String,
    /// The address of a stream, or the queue that is to be its standby.
    pub to: String,
    /// The relay's name, by which the queue knows it.
    #[serde(default = "default_name")]
    pub name: String,
    /// Several messages in one of the stream's.
    #[serde(default)]
    pub frames: bool,
    /// For how long the queue keeps what the servers have acknowledged.
    #[serde(default = "default_hold_back")]
    pub hold_back_seconds: f64,
    /// What is done with a message that is larger than the server takes.
    #[serde(default)]
    pub too_large: TooLarge,
    /// Where figures are served: /metrics and /health.
    pub metrics: Option<SocketAddr>,
    /// How a stream is created.
    #[serde(default)]
    pub stream: StreamConfig,
    /// How to get in.
    #[serde(default)]
    pub access: AccessConfig,
    /// Take back what the stream has and the queue has lost.
    #[serde(skip)]
    pub refill: bool,
    /// Make a queue that was active a standby.
    #[serde(skip)]
    pub rejoin: bool,
}

/// The table `[stream]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamConfig {
    /// Whether it may be created.
    pub create: bool,
    /// On how many servers; NATS only, as are the others.
    pub replicas: usize,
    /// Its limit in bytes.
    pub max_bytes: Option<u64>,
    /// How long messages are kept.
    pub max_age_seconds: Option<u64>,
    /// The subject.
    pub subject: Option<String>,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self { create: true, replicas: 1, max_bytes: None, max_age_seconds: None, subject: None }
    }
}

/// The table `[access]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessConfig {
    /// A NATS credentials file.
    pub credentials: Option<PathBuf>,
    /// A file with a NATS token.
    pub token_file: Option<PathBuf>,
    /// A file with user:password.
    pub password_file: Option<PathBuf>,
    /// Certificates of authorities.
    pub ca: Option<PathBuf>,
    /// The client's certificate.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

fn default_name() -> String {
    "relay".to_owned()
}

fn default_hold_back() -> f64 {
    180.0
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Failure::Config`], with the line.
    pub fn read(path: &Path) -> Result<Self> {
        let mut config: Self = config_file::read(path)?;
        let AccessConfig { credentials, token_file, password_file, ca, certificate, key } = &mut config.access;
        config_file::find(path, [credentials, token_file, password_file, ca, certificate, key]);
        Ok(config)
    }

    /// Whether it copies a stream into a queue.
    pub fn is_inbound(&self) -> bool {
        Target::is_address(&self.from)
    }

    fn access(&self) -> Result<Access> {
        let AccessConfig { credentials, token_file, password_file, ca, certificate, key } = self.access.clone();
        if certificate.is_some() != key.is_some() {
            return Err(Failure::Config("certificate and key go together".to_owned()));
        }
        Ok(Access { credentials, token_file, password_file, ca, certificate: certificate.zip(key) })
    }

    /// What it says about a relay into a queue.
    ///
    /// # Errors
    /// [`Failure::Config`]
    pub fn inbound(&self) -> Result<InboundOptions> {
        Ok(InboundOptions {
            name: self.name.clone(),
            target: self.from.parse().map_err(Failure::Config)?,
            access: self.access()?,
            settings: chronfs::queue::Settings::default(),
            rejoin: self.rejoin,
        })
    }

    /// What it says about a relay to a stream; `below`: of the queue with this path below a directory of queues.
    ///
    /// # Errors
    /// [`Failure::Config`]
    pub fn outbound(&self, below: Option<&Path>) -> Result<OutboundOptions> {
        let mut target: Target = self.to.parse().map_err(Failure::Config)?;
        let names = below.into_iter().flatten().map(|name| plain(&name.to_string_lossy()));
        let below: Vec<_> = names.collect();
        below.iter().for_each(|name| target.stream = format!("{}-{name}", target.stream));
        let hold_back = Duration::try_from_secs_f64(self.hold_back_seconds);
        Ok(OutboundOptions {
            name: self.name.clone(),
            target,
            access: self.access()?,
            stream: StreamOptions {
                create: self.stream.create,
                replicas: self.stream.replicas,
                max_bytes: self.stream.max_bytes,
                max_age: self.stream.max_age_seconds.map(Duration::from_secs),
                subject: self.stream.subject.clone(),
                below,
            },
            frames: self.frames,
            hold_back: hold_back.map_err(|error| Failure::Config(format!("hold back: {error}")))?,
            too_large: self.too_large,
            refill: self.refill,
        })
    }
}

/// A name that streams and subjects can have.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_wrong_ones_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ticks.toml");
        let text =
            "from = '/srv/bus'\nto = 'nats://a/BUS'\nframes = true\n[stream]\nreplicas = 3\n[access]\nca = 'ca.pem'\n";
        std::fs::write(&path, text).unwrap();
        let options = Config::read(&path).unwrap().outbound(Some(Path::new("feeds/ticks.v2"))).unwrap();
        assert_eq!(options.target.stream, "BUS-feeds-ticks_v2");
        assert_eq!(options.stream.below, ["feeds", "ticks_v2"]);
        assert!(options.access.ca.unwrap().starts_with(dir.path()));
        assert_eq!((options.stream.replicas, options.hold_back), (3, Duration::from_secs(180)));
        std::fs::write(&path, format!("{text}[straem]\n")).unwrap();
        let error = Config::read(&path).unwrap_err();
        assert!(error.exit_code() == 78 && error.to_string().contains("straem"), "{error}");
    }
}
