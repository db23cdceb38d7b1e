//! The connection to a stream, whatever engine has it.
//!
//! An engine is a file beside this one and a row of [`ENGINES`]. What it must offer is [`Remote`]: a stream whose
//! messages have numbers that rise by one, which takes a message only if that is the next one, and returns any of them
//! again. Everything else of the relay knows nothing of engines.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use super::wire::Stored;
use super::{Failure, Result};

mod access;
mod nats;
#[cfg(feature = "redis")]
mod redis;

pub use access::Access;

/// How long the server may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one server may take to let us in, before the next one is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Everything that can be relayed to.
const ENGINES: &[Engine] = &[
    nats::ENGINE,
    #[cfg(feature = "redis")]
    redis::ENGINE,
];

/// A kind of target.
struct Engine {
    /// What its addresses begin with.
    schemes: &'static [&'static str],
    /// What they look like, for people.
    form: &'static str,
    /// What is wrong with an address that begins so.
    check: fn(&Target) -> Result<(), String>,
    connect: for<'a> fn(&'a Target, &'a Access) -> Asked<'a, Connected>,
}

/// A connection, and something that the operator should know.
struct Connected {
    remote: Box<dyn Remote>,
    warning: Option<String>,
}

/// What a server is asked for.
pub(super) type Asked<'a, T> = LocalBoxFuture<'a, Result<T>>;

/// A stream of one engine.
trait Remote {
    /// The stream's extent; None if it does not exist, or nothing has ever been published to it. Whoever accepts
    /// publishes answers.
    fn look(&mut self) -> Asked<'_, Option<Extent>>;

    /// Creates the stream, whose first message will have the number `first`, if the engine can do that.
    fn create<'a>(&'a mut self, options: &'a StreamOptions, first: u64) -> Asked<'a, Extent>;

    /// The largest payload of a message.
    fn max_payload(&self) -> usize;

    /// The message of this number; None if it has been removed. Whoever accepts publishes answers.
    fn get(&self, number: u64) -> Asked<'_, Option<Stored>>;

    /// The stream's messages from this number on, in order.
    fn read_from(&self, number: u64) -> Asked<'_, Box<dyn Messages>>;

    fn publisher(&self) -> Asked<'_, Box<dyn Publisher>>;
}

/// Reads a stream.
pub(super) trait Messages {
    /// The stream's next message, and its number. Dropped before it is done, it has taken nothing.
    fn next(&mut self) -> Asked<'_, (u64, Stored)>;
}

/// Publishes to a stream.
pub(super) trait Publisher {
    /// Publishes a message that is to follow the one with the number `after`; None: whatever comes before it. It may
    /// stay here until the next answer is asked for.
    fn publish<'a>(&'a mut self, stored: &'a Stored, after: Option<u64>) -> Asked<'a, ()>;

    /// What the server says to the next publish, in their order. Dropped before it is done, it has taken nothing.
    fn answer(&mut self) -> Asked<'_, Answer>;
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
    /// The subject on which the queue is published; None for `chron`, followed by `below` or the stream's name.
    pub subject: Option<String>,
    /// The queue's path below the bus that is relayed: the end of the subject.
    pub below: Vec<String>,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self { create: true, replicas: 1, max_bytes: None, max_age: None, subject: None, below: Vec::new() }
    }
}

/// A stream: `nats://host[:port]/STREAM`, `redis://host[:port][/db]/STREAM`, `redis+unix:///path/of/socket/STREAM`; for
/// TLS, `tls://` and `rediss://`.
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

    /// The scheme, and what follows it.
    fn parts(&self) -> (&str, &str) {
        self.server.split_once("://").unwrap_or_default()
    }

    fn engine(&self) -> Option<&'static Engine> {
        ENGINES.iter().find(|engine| engine.schemes.contains(&self.parts().0))
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = |engines: &[Engine]| {
            let forms: Vec<_> = engines.iter().map(|engine| engine.form).collect();
            format!("{text}: not the address of a stream; it is {}", forms.join(", or "))
        };
        let split = text.rsplit_once('/').filter(|(server, stream)| server.contains("://") && !stream.is_empty());
        let split = split.map(|(server, stream)| Self { server: server.to_owned(), stream: stream.to_owned() });
        let target = split.ok_or_else(|| wanted(ENGINES))?;
        let engine = target.engine().ok_or_else(|| wanted(ENGINES))?;
        let (_, hosts) = target.parts();
        if hosts.is_empty() {
            return Err(wanted(std::slice::from_ref(engine)));
        }
        if hosts.contains('@') {
            return Err("no secrets in the address: put them into a file, see --password-file".to_owned());
        }
        (engine.check)(&target).map_err(|what| format!("{what}; {}", wanted(std::slice::from_ref(engine))))?;
        Ok(target)
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.server, self.stream)
    }
}

/// Letters, digits, and these.
fn check_name(stream: &str, more: &str) -> Result<(), String> {
    if stream.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c)) {
        return Ok(());
    }
    Err(format!("stream {stream}: allowed are letters, digits and {more}"))
}

fn again(doing: &str) -> impl Fn(&dyn std::fmt::Display) -> Failure {
    move |error| Failure::Again(format!("{doing}: {error}"))
}

/// What is wrong with a message of a stream that no relay has published.
fn foreign(stream: &str, message: &dyn std::fmt::Display) -> impl Fn(&dyn std::fmt::Display) -> Failure {
    move |what| {
        Failure::Refused(format!(
            "message {message} of the stream {stream} is not a relay's: {what}; use a stream of its own for each queue"
        ))
    }
}

/// A connection to one stream.
pub(super) struct Link {
    remote: Box<dyn Remote>,
    name: String,
    /// Something that the operator should know.
    pub(super) warning: Option<String>,
}

impl Link {
    /// Connects. None if the stream does not exist.
    pub(super) async fn connect(target: &Target, access: &Access) -> Result<(Self, Option<Extent>)> {
        let engine =
            target.engine().ok_or_else(|| Failure::Config(format!("{target}: not the address of a stream")))?;
        let Connected { remote, warning } = (engine.connect)(target, access).await?;
        let mut link = Self { remote, name: target.stream.clone(), warning };
        let extent = link.look().await?;
        Ok((link, extent))
    }

    /// The stream's extent; None if it does not exist.
    pub(super) async fn look(&mut self) -> Result<Option<Extent>> {
        self.remote.look().await
    }

    /// Creates the stream, whose first message will have the number `first`, if the engine can do that.
    pub(super) async fn create(&mut self, options: &StreamOptions, first: u64) -> Result<Extent> {
        if !options.create {
            return Err(Failure::Config(format!("there is no stream {}, and it shall not be created", self.name)));
        }
        self.remote.create(options, first).await
    }

    /// The largest payload of a message.
    pub(super) fn max_payload(&self) -> usize {
        self.remote.max_payload()
    }

    /// The message of this number; None if it has been removed.
    pub(super) async fn get(&self, number: u64) -> Result<Option<Stored>> {
        self.remote.get(number).await
    }

    /// Whether the stream has this message, too, or no longer has any of this number.
    pub(super) async fn confirms(&self, number: u64, delivered: &Stored) -> Result<bool> {
        Ok(self.get(number).await?.is_none_or(|stored| stored == *delivered))
    }

    pub(super) async fn publisher(&self) -> Result<Box<dyn Publisher>> {
        self.remote.publisher().await
    }

    /// The stream's messages from this number on, in order.
    pub(super) async fn read_from(&self, number: u64) -> Result<Box<dyn Messages>> {
        self.remote.read_from(number.max(1)).await
    }
}

/// The next message of a stream up to the number `last`, of which everything up to `read` has been read; None at the
/// end. The last one must be the one that the stream has: a server that was cut off while others accepted publishes can
/// have others for a while, and delivers them.
pub(super) async fn next_up_to(
    link: &Link,
    messages: &mut dyn Messages,
    read: u64,
    last: u64,
) -> Result<Option<(u64, Stored)>> {
    if read >= last {
        return Ok(None);
    }
    match tokio::time::timeout(ANSWER_TIMEOUT, messages.next()).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let target: Target = "nats://a:4222,b:4222/TICKS".parse().unwrap();
        assert_eq!((target.server.as_str(), target.stream.as_str()), ("nats://a:4222,b:4222", "TICKS"));
        assert!("nats://user:secret@a/TICKS".parse::<Target>().unwrap_err().contains("file"));
        for wrong in ["nats://a", "nats://a/", "nats:///TICKS", "nats://a/T.S", "nats://a/2/TICKS"] {
            let said = wrong.parse::<Target>().unwrap_err();
            assert!(said.contains("nats://HOST"), "{said}");
        }
        for wrong in ["http://a/TICKS", "/srv/bus/ticks", "nats:/a/TICKS"] {
            let said = wrong.parse::<Target>().unwrap_err();
            assert!(said.contains("not the address of a stream"), "{said}");
        }
    }
}
