//! The connection to a stream: what is asked of the server, and what its errors mean.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream::consumer::{self, DeliverPolicy, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, HeaderMap, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;

use super::wire::Stored;
use super::{Failure, Result};

/// How long the server may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one server may take to let us in, before the next one is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An older server is good for tests only.
const WANTED_SERVER: (i64, i64) = (2, 11);

/// A stream: `nats://host[:port]/STREAM`, with `tls://` for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The server's address; several of a cluster, separated by commas.
    pub server: String,
    /// The stream's name.
    pub stream: String,
}

impl Target {
    /// Whether this is the address of a stream, and not a path.
    pub fn is_address(text: &str) -> bool {
        text.contains("://")
    }

    /// The servers' addresses, one by one.
    fn servers(&self) -> Vec<String> {
        let (scheme, hosts) = self.server.split_once("://").unwrap_or_default();
        hosts.split(',').map(|host| format!("{scheme}://{host}")).collect()
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || format!("{text}: not the address of a stream; it is nats://HOST[:PORT]/STREAM, or tls://…");
        let (scheme, rest) = text.split_once("://").ok_or_else(wanted)?;
        let (host, stream) = rest.split_once('/').ok_or_else(wanted)?;
        if !["nats", "tls"].contains(&scheme) || host.is_empty() || stream.is_empty() {
            return Err(wanted());
        }
        if host.contains('@') {
            return Err("no secrets in the address: put them into a file, see --credentials".to_owned());
        }
        if !stream.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
            return Err(format!("stream {stream}: allowed are letters, digits, - and _"));
        }
        Ok(Self { server: format!("{scheme}://{host}"), stream: stream.to_owned() })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.server, self.stream)
    }
}

/// How to get in. The files are read again at each connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// A NATS credentials file (JWT and seed).
    pub credentials: Option<PathBuf>,
    /// A file with a token in its first line.
    pub token_file: Option<PathBuf>,
    /// A file with `user:password` in its first line.
    pub password_file: Option<PathBuf>,
    /// Certificates of authorities (PEM) that are trusted instead of the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate and key (PEM).
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl Access {
    fn options(&self) -> Result<ConnectOptions> {
        let read = |path: &PathBuf| {
            let text = std::fs::read_to_string(path);
            text.map_err(|error| Failure::Again(format!("{}: cannot read it: {error}", path.display())))
        };
        let first_line = |path| read(path).map(|text| text.lines().next().unwrap_or_default().to_owned());
        let mut options = ConnectOptions::new();
        if let Some(path) = &self.credentials {
            let bad = |error| Failure::Again(format!("{}: not a credentials file: {error}", path.display()));
            options = options.credentials(&read(path)?).map_err(bad)?;
        }
        if let Some(path) = &self.token_file {
            options = options.token(first_line(path)?);
        }
        if let Some(path) = &self.password_file {
            let line = first_line(path)?;
            // It may just be being written.
            let (user, password) =
                line.split_once(':').ok_or_else(|| Failure::Again(format!("{}: not user:password", path.display())))?;
            options = options.user_and_password(user.to_owned(), password.to_owned());
        }
        // The client would read them itself, and say less where it can't.
        let pem = |path: &PathBuf, what: &str| match read(path)? {
            text if text.contains("-----BEGIN ") && text.contains(what) => Ok(()),
            _ => Err(Failure::Again(format!("{}: no {} in it", path.display(), what.to_lowercase()))),
        };
        if let Some(path) = &self.ca {
            pem(path, "CERTIFICATE")?;
            options = options.add_root_certificates(path.clone());
        }
        if let Some((certificate, key)) = &self.certificate {
            pem(certificate, "CERTIFICATE")?;
            pem(key, "PRIVATE KEY")?;
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        Ok(options)
    }

    /// An error of the connection, in terms of what was asked for.
    fn explained(&self, error: &async_nats::ConnectError) -> String {
        let text = error.to_string();
        let Some((_, why)) = text.split_once("invalid peer certificate: ") else { return text };
        let trusted = self.ca.as_ref().map_or("the system's authorities".to_owned(), |ca| ca.display().to_string());
        format!("the server's certificate is not trusted, going by {trusted}: {why}")
    }
}

/// How a stream is created if it does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamOptions {
    /// Whether it may be created at all.
    pub create: bool,
    /// On how many servers.
    pub replicas: usize,
    /// Its limit in bytes; None for none.
    pub max_bytes: Option<u64>,
    /// How long messages are kept; None for ever.
    pub max_age: Option<Duration>,
    /// The subject on which the queue is published; None for `chron.` and the stream's name.
    pub subject: Option<String>,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self { create: true, replicas: 1, max_bytes: None, max_age: None, subject: None }
    }
}

/// A connection to one stream.
pub(super) struct Link {
    pub(super) client: Client,
    context: Context,
    stream: Stream<()>,
    name: String,
    /// On which subject the queue is published.
    pub(super) subject: String,
    /// The largest message that the server and the stream take, headers included.
    pub(super) max_message: usize,
    /// Something that the operator should know.
    pub(super) warning: Option<String>,
}

/// What a stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// The number of its first message that is retained.
    pub(super) first: u64,
    /// The highest number given out.
    pub(super) last: u64,
    /// Nothing has ever been published to it.
    pub(super) is_new: bool,
}

fn again(doing: &str) -> impl Fn(&dyn std::fmt::Display) -> Failure {
    move |error| Failure::Again(format!("{doing}: {error}"))
}

impl Link {
    /// Connects. None if the stream does not exist.
    pub(super) async fn connect(target: &Target, access: &Access) -> Result<(Self, Option<Extent>)> {
        let options = access.options()?.name("chron-relay").connection_timeout(CONNECT_TIMEOUT);
        let options = options.ping_interval(Duration::from_secs(5)).request_timeout(Some(ANSWER_TIMEOUT));
        let servers = target.servers();
        let timeout = CONNECT_TIMEOUT.saturating_mul(servers.len().try_into().unwrap_or(u32::MAX)) + ANSWER_TIMEOUT;
        let connecting = tokio::time::timeout(timeout, options.connect(servers)).await;
        let connected = connecting.map_err(|_| Failure::Again(format!("{}: no answer", target.server)))?;
        let client =
            connected.map_err(|error| Failure::Again(format!("{}: {}", target.server, access.explained(&error))))?;
        let mut context = jetstream::new(client.clone());
        context.set_timeout(ANSWER_TIMEOUT);
        let name = &target.stream;
        let stream = context.get_stream_no_info(name).await.map_err(|error| Failure::Config(error.to_string()))?;
        let info = client.server_info();
        let (major, minor) = WANTED_SERVER;
        let warning = (!client.is_server_compatible(major, minor, 0)).then(|| {
            format!("the server is {}: run {major}.{minor} or newer, earlier ones can lose streams", info.version)
        });
        let subject = format!("chron.{name}");
        let max_message = info.max_payload;
        let mut link = Self { client, context, stream, name: name.clone(), subject, max_message, warning };
        let extent = link.look().await?;
        Ok((link, extent))
    }

    /// The stream's extent; None if it does not exist. The leader of the stream answers.
    pub(super) async fn look(&mut self) -> Result<Option<Extent>> {
        match self.context.get_stream(&self.name).await {
            Ok(stream) => Ok(Some(self.take_in(stream.cached_info()))),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error) if error.code() == 404 => Ok(None),
                _ => Err(again("stream info")(&error)),
            },
        }
    }

    fn take_in(&mut self, info: &Info) -> Extent {
        if let [subject] = info.config.subjects.as_slice()
            && !subject.contains(['*', '>'])
        {
            self.subject.clone_from(subject);
        }
        if let Ok(max @ 1..) = usize::try_from(info.config.max_message_size) {
            self.max_message = self.max_message.min(max);
        }
        let (first, last) = (info.state.first_sequence, info.state.last_sequence);
        // A stream may be told to start with a higher number.
        Extent { first, last, is_new: last < info.config.first_sequence.unwrap_or(1).max(1) }
    }

    /// Creates the stream, whose first message will have the number `first`, if the server can do that.
    pub(super) async fn create(&mut self, options: &StreamOptions, first: u64) -> Result<Extent> {
        if !options.create {
            return Err(Failure::Config(format!("there is no stream {}, and it shall not be created", self.name)));
        }
        let has_first = self.client.is_server_compatible(2, 10, 0) && first > 1;
        let config = Config {
            name: self.name.clone(),
            subjects: vec![options.subject.clone().unwrap_or_else(|| self.subject.clone())],
            num_replicas: options.replicas,
            max_bytes: options.max_bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or(-1),
            max_age: options.max_age.unwrap_or_default(),
            // What is in the stream is not removed for what is still in the queue.
            discard: DiscardPolicy::New,
            deny_delete: true,
            first_sequence: has_first.then_some(first),
            ..Config::default()
        };
        let created = self.context.create_stream(config).await.map_err(|error| again("create the stream")(&error))?;
        Ok(self.take_in(created.cached_info()))
    }

    /// The message of this number; None if it has been removed. The leader of the stream answers.
    pub(super) async fn get(&self, number: u64) -> Result<Option<Stored>> {
        match self.stream.get_raw_message(number).await {
            Ok(message) => self.decode(message.sequence, &message.headers, &message.payload).map(Some),
            Err(error) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok(None),
                LastRawMessageErrorKind::JetStream(error) if error.code() == 404 => Ok(None),
                _ => Err(again("read the stream")(&error)),
            },
        }
    }

    /// Whether the leader has this message, too, or no longer has any of this number.
    pub(super) async fn confirms(&self, number: u64, delivered: &Stored) -> Result<bool> {
        Ok(self.get(number).await?.is_none_or(|stored| stored == *delivered))
    }

    pub(super) fn decode(&self, number: u64, headers: &HeaderMap, payload: &Bytes) -> Result<Stored> {
        Stored::decode(headers, payload).map_err(|what| {
            Failure::Refused(format!(
                "message {number} of the stream {} is not a relay's: {what}; use a stream of its own for each queue",
                self.name
            ))
        })
    }

    /// Where the answers to publishes arrive, and what to send them to.
    pub(super) async fn answers(&self) -> Result<(String, Subscriber)> {
        let inbox = self.client.new_inbox();
        let answers = self.client.subscribe(format!("{inbox}.*")).await;
        Ok((inbox, answers.map_err(|error| again("subscribe")(&error))?))
    }

    /// Publishes a message that is to follow the one with the number `after`; None: whatever comes before it.
    pub(super) async fn publish(&self, stored: &Stored, after: Option<u64>, inbox: &str) -> Result<()> {
        let (mut headers, payload) = stored.encode();
        if let Some(after) = after {
            headers.insert("Nats-Expected-Last-Sequence", after.to_string());
        }
        headers.insert("Nats-Expected-Stream", self.name.as_str());
        let reply = format!("{inbox}.{}", after.unwrap_or_default());
        let sent = self.client.publish_with_reply_and_headers(self.subject.clone(), reply, headers, payload).await;
        sent.map_err(|error| again("publish")(&error))
    }

    /// The stream's messages from this number on, in order.
    pub(super) async fn read_from(&self, number: u64) -> Result<pull::Ordered> {
        let deliver_policy = DeliverPolicy::ByStartSequence { start_sequence: number.max(1) };
        let config = pull::OrderedConfig { deliver_policy, ..pull::OrderedConfig::default() };
        let created = self.stream.create_consumer(config).await.map_err(|error| again("read the stream")(&error))?;
        let consumer: consumer::Consumer<pull::OrderedConfig> = created;
        consumer.messages().await.map_err(|error| again("read the stream")(&error))
    }
}

/// The stream's next message, and its number.
pub(super) async fn next(link: &Link, messages: &mut pull::Ordered) -> Result<(u64, Stored)> {
    let message = messages.next().await.ok_or_else(|| Failure::Again("the stream's reader has ended".to_owned()))?;
    let message = message.map_err(|error| Failure::Again(format!("read the stream: {error}")))?;
    let info = message.info().map_err(|error| Failure::Again(format!("read the stream: {error}")))?;
    let number = info.stream_sequence;
    let headers = message.headers.clone().unwrap_or_default();
    Ok((number, link.decode(number, &headers, &message.payload)?))
}

/// The next message of a stream up to the number `last`, of which everything up to `read` has been read; None at the
/// end. The last one must be the one that the stream's leader has: a server that was cut off while it was the leader can
/// have others for a while, and delivers them.
pub(super) async fn next_up_to(
    link: &Link,
    messages: &mut pull::Ordered,
    read: u64,
    last: u64,
) -> Result<Option<(u64, Stored)>> {
    if read >= last {
        return Ok(None);
    }
    match tokio::time::timeout(ANSWER_TIMEOUT, next(link, messages)).await {
        Ok(taken) => {
            let (number, stored) = taken?;
            if number == last && !link.confirms(number, &stored).await? {
                return Err(Failure::Again(format!(
                    "message {number} of the stream came from a server that is behind"
                )));
            }
            Ok((number <= last).then_some((number, stored)))
        }
        // The last ones have been removed.
        Err(_) if link.get(last).await?.is_none() => Ok(None),
        Err(_) => Err(Failure::Again("read the stream: no message in time".to_owned())),
    }
}

/// What the server says to a publish.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is the stream's message of this number.
    Stored(u64),
    /// It is not, or is in doubt.
    Not(String),
    /// There is no room.
    Full(String),
}

#[derive(serde::Deserialize)]
struct RawAnswer {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<RawError>,
}

#[derive(serde::Deserialize)]
struct RawError {
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

/// "Storing failed": the description says which limit.
const STORE_FAILED: u32 = 10077;

impl Answer {
    pub(super) fn parse(message: &async_nats::Message) -> Self {
        if let Some(status) = message.status.filter(|status| *status != async_nats::StatusCode::OK) {
            return Self::Not(format!("the stream does not answer ({status})"));
        }
        match serde_json::from_slice::<RawAnswer>(&message.payload) {
            Ok(RawAnswer { error: Some(error), .. }) => {
                let text = format!("{} ({})", error.description, error.err_code);
                let is_full = error.err_code == STORE_FAILED && error.description.contains("maximum");
                if is_full { Self::Full(text) } else { Self::Not(text) }
            }
            Ok(RawAnswer { duplicate: true, .. }) => Self::Not("the server calls it a duplicate".to_owned()),
            Ok(RawAnswer { seq: 0, .. }) => Self::Not("the server did not say where it is".to_owned()),
            Ok(RawAnswer { seq, .. }) => Self::Stored(seq),
            Err(error) => Self::Not(format!("an answer that is none: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let target: Target = "nats://a:4222,b:4222/TICKS".parse().unwrap();
        assert_eq!((target.server.as_str(), target.stream.as_str()), ("nats://a:4222,b:4222", "TICKS"));
        assert!("nats://user:secret@a/TICKS".parse::<Target>().unwrap_err().contains("file"));
        for wrong in ["nats://a", "nats://a/", "http://a/TICKS", "nats:///TICKS", "nats://a/T.S", "/srv/bus/ticks"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
