//! Redis Streams.
//!
//! The message of number `n` is the entry `n-0`. Its fields are the headers of [`wire`](crate::relay::wire), and
//! `payload`. Entries are appended by a script, which compares the stream's last id first: a batch is in the stream as a
//! whole, where it belongs, or not at all. One batch is on its way at a time, so that nothing of a queue can come after
//! the claim of another one.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _,
    ProtocolVersion, RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, Value, cmd,
};

use super::access::Access;
use super::{
    ANSWER_TIMEOUT, Answer, Asked, CONNECT_TIMEOUT, Connected, Engine, Extent, Messages, Publisher, Remote,
    StreamOptions, Target, again, check_name, foreign,
};
use crate::relay::wire::Stored;
use crate::{Failure, Result};

pub(super) const ENGINE: Engine = Engine {
    schemes: &["redis", "rediss", "redis+unix"],
    form: "redis://HOST[:PORT][/DATABASE]/STREAM, rediss://… for TLS, or redis+unix:///SOCKET[/DATABASE]/STREAM",
    check: |target| {
        check_name(&target.stream, "-_.:{}")?;
        servers(target).map(|_| ())
    },
    connect: |target, access| connect(target, access).boxed_local(),
};

const PORT: u16 = 6379;
/// The field that is no header.
const PAYLOAD: &str = "payload";
/// The largest payload of an entry. Redis would take more; this is what each side needs at once.
const MAX_PAYLOAD: usize = 8 << 20;
/// Entries that are asked for at once, at most; and bytes, going by those before them.
const READ_ENTRIES: usize = 256;
const READ_BYTES: usize = 8 << 20;
/// How long the server waits for new entries before it says that there are none. Less than [`ANSWER_TIMEOUT`].
const BLOCK_MS: usize = 1000;

/// Appends entries: to the stream of that key, if its last id is `ARGV[1]`; none given, whatever it is. `ARGV[2]` is the
/// first one's number; none given, the next one. Then come, for each entry, how many strings its fields are, and these.
/// Whatever can be refused is refused before the first entry. Numbers are exact up to 2^53.
const APPEND: &str = r"
local last = '0-0'
if redis.call('EXISTS', KEYS[1]) == 1 then
    local info = redis.call('XINFO', 'STREAM', KEYS[1])
    for at = 1, #info, 2 do
        if info[at] == 'last-generated-id' then last = info[at + 1] end
    end
end
local number = tonumber(ARGV[2])
if ARGV[1] == '' then
    if last == '0-0' then return {0, last} end
    number = tonumber(string.match(last, '^%d+')) + 1
elseif last ~= ARGV[1] then
    return {0, last}
end
local at = 3
while at <= #ARGV do
    local count = tonumber(ARGV[at])
    redis.call('XADD', KEYS[1], string.format('%.0f-0', number), unpack(ARGV, at + 1, at + count))
    at, number = at + count + 1, number + 1
end
return {1, string.format('%.0f-0', number - 1)}
";

/// Where the servers of a target are, and the database's number.
fn servers(target: &Target) -> Result<(Vec<ConnectionAddr>, i64), String> {
    let (scheme, rest) = target.parts();
    let numbered = rest.rsplit_once('/').and_then(|(server, db)| Some((server, db.parse::<u16>().ok()?)));
    let (hosts, db) = numbered.map_or((rest, 0), |(hosts, db)| (hosts, db.into()));
    if scheme == "redis+unix" {
        if !hosts.starts_with('/') {
            return Err(format!("socket {hosts}: its path does not begin with /"));
        }
        return Ok((vec![ConnectionAddr::Unix(hosts.into())], db));
    }
    let address = |text: &str| -> Result<ConnectionAddr, String> {
        // An IPv6 address is in brackets.
        let has_port = text.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
        let (host, port) = has_port.map_or((text, Ok(PORT)), |(host, port)| (host, port.parse()));
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = port.ok().filter(|_| !host.is_empty() && !host.contains('/'));
        let port = port.ok_or_else(|| format!("server {text}: not a host and a port"))?;
        Ok(match scheme {
            "rediss" => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            _ => ConnectionAddr::Tcp(host, port),
        })
    };
    Ok((hosts.split(',').map(address).collect::<Result<_, String>>()?, db))
}

/// Connects to the first one of the servers that accepts publishes.
async fn connect(target: &Target, access: &Access) -> Result<Connected> {
    if access.credentials.is_some() || access.token_file.is_some() {
        return Err(Failure::Config(
            "credentials and tokens are for NATS: for Redis, put USER:PASSWORD into the password file, with the user \
             default if there is but one"
                .to_owned(),
        ));
    }
    let (addresses, db) = servers(target).map_err(Failure::Config)?;
    let mut reasons = Vec::new();
    for address in addresses {
        let shown = address.to_string();
        let client = client(address, db, access)?;
        match open(&client).await {
            Ok((connection, about)) if about.is_primary => {
                let stream = target.stream.clone();
                let remote = Redis { client, connection, stream, before_first: None };
                return Ok(Connected { remote: Box::new(remote), warning: about.warning });
            }
            Ok(_) => reasons.push(format!("{shown}: a replica, which takes no messages")),
            Err(error) => reasons.push(format!("{shown}: {}", access.explained(&error))),
        }
    }
    Err(Failure::Again(reasons.join("; ")))
}

fn client(address: ConnectionAddr, db: i64, access: &Access) -> Result<Client> {
    let mut settings =
        RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2).set_db(db).set_skip_set_lib_name();
    if let Some((user, password)) = access.user_and_password()? {
        settings = settings.set_username(user).set_password(password);
    }
    let failed = |error: RedisError| again("connect")(&error);
    let is_tls = matches!(address, ConnectionAddr::TcpTls { .. });
    let info: ConnectionInfo = address.into_connection_info().map_err(failed)?.set_redis_settings(settings);
    if !is_tls {
        return Client::open(info).map_err(failed);
    }
    let pem = access.pem()?;
    let client_tls = pem.own.map(|(certificate, key)| ClientTlsConfig {
        client_cert: certificate.into_bytes(),
        client_key: key.into_bytes(),
    });
    Client::build_with_tls(info, TlsCertificates { client_tls, root_cert: pem.ca.map(String::into_bytes) })
        .map_err(failed)
}

async fn connection(client: &Client) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(ANSWER_TIMEOUT));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// What a server says of itself.
struct About {
    is_primary: bool,
    warning: Option<String>,
}

async fn open(client: &Client) -> RedisResult<(MultiplexedConnection, About)> {
    let mut connection = connection(client).await?;
    // Not every user may ask.
    let info = cmd("INFO").query_async::<String>(&mut connection).await.unwrap_or_default();
    let says = |line: &str| info.lines().any(|said| said == line);
    let mut warnings = Vec::new();
    if info.lines().any(|line| line.starts_with("maxmemory_policy:allkeys")) {
        warnings.push("the server may evict the stream: set maxmemory-policy noeviction");
    }
    if says("aof_enabled:0") {
        warnings.push(
            "the server keeps no log of what it has acknowledged: set appendonly yes, or hold messages back for longer \
             than it takes from one snapshot to the next",
        );
    }
    let warning = (!warnings.is_empty()).then(|| warnings.join("; "));
    Ok((connection, About { is_primary: !says("role:slave"), warning }))
}

struct Redis {
    client: Client,
    connection: MultiplexedConnection,
    /// The key.
    stream: String,
    /// The number before that of the first entry of a stream that is created.
    before_first: Option<u64>,
}

/// An error, in terms of what was asked for.
fn failure(stream: &str, doing: &str, error: &RedisError) -> Failure {
    match refusal(error) {
        Answer::Full(text) => Failure::Full(text),
        _ if error.to_string().contains("WRONGTYPE") => {
            Failure::Refused(format!("the key {stream} is not a stream: remove it, or use another one"))
        }
        _ => again(doing)(error),
    }
}

/// Why nothing was appended.
fn refusal(error: &RedisError) -> Answer {
    let text = error.to_string();
    let is_full = text.contains("OOM") || (text.contains("MISCONF") && text.contains("No space left"));
    if is_full { Answer::Full(text) } else { Answer::Not(text) }
}

impl Remote for Redis {
    fn look(&mut self) -> Asked<'_, Option<Extent>> {
        async {
            let asked = cmd("XINFO").arg("STREAM").arg(&self.stream).query_async::<Value>(&mut self.connection).await;
            let info = match asked {
                Err(error) if error.to_string().contains("no such key") => {
                    return Ok(None);
                }
                asked => asked.map_err(|error| failure(&self.stream, "stream info", &error))?,
            };
            let said = |name: &str| {
                let mut pairs = info.as_map_iter().into_iter().flatten();
                pairs.find(|(key, _)| bytes_of(key) == Some(name.as_bytes())).map(|(_, value)| value)
            };
            let unreadable = || again("stream info")(&"an answer that is none");
            let last = said("last-generated-id").and_then(bytes_of).ok_or_else(unreadable)?;
            if last == b"0-0" {
                return Ok(None);
            }
            let last = self.number(last)?;
            let first = match said("first-entry") {
                Some(Value::Array(entry)) => entry.first().and_then(bytes_of).map(|id| self.number(id)).transpose()?,
                _ => None,
            };
            Ok(Some(Extent { first: first.unwrap_or(last + 1), last, is_new: false }))
        }
        .boxed_local()
    }

    fn create<'a>(&'a mut self, options: &'a StreamOptions, first: u64) -> Asked<'a, Extent> {
        async move {
            let is_nats = options.replicas > 1 || options.subject.is_some();
            if is_nats || options.max_bytes.is_some() || options.max_age.is_some() {
                return Err(Failure::Config(
                    "replicas, max_bytes, max_age_seconds and subject are for NATS: a Redis server has its own replicas \
                     and its maxmemory, and its streams are trimmed with XTRIM"
                        .to_owned(),
                ));
            }
            // The first entry makes the stream.
            self.before_first = Some(first - 1);
            Ok(Extent { first, last: first - 1, is_new: true })
        }
        .boxed_local()
    }

    fn max_payload(&self) -> usize {
        MAX_PAYLOAD
    }

    fn get(&self, number: u64) -> Asked<'_, Option<Stored>> {
        let mut connection = self.connection.clone();
        async move { get(&mut connection, &self.stream, number).await }.boxed_local()
    }

    fn read_from(&self, number: u64) -> Asked<'_, Box<dyn Messages>> {
        async move {
            // One of its own: whoever waits for entries keeps everything after it waiting.
            let connection = connection(&self.client).await.map_err(|error| again("connect")(&error))?;
            let reading = Reading { connection, stream: self.stream.clone(), last: (number - 1, None), count: 1 };
            let entries: Box<dyn Messages> =
                Box::new(Entries { reading: Some(reading), waiting: None, read: VecDeque::new() });
            Ok(entries)
        }
        .boxed_local()
    }

    fn publisher(&self) -> Asked<'_, Box<dyn Publisher>> {
        let batches: Box<dyn Publisher> = Box::new(Batches {
            connection: self.connection.clone(),
            stream: self.stream.clone(),
            before_first: self.before_first,
            batch: None,
            on_its_way: None,
            answers: VecDeque::new(),
        });
        std::future::ready(Ok(batches)).boxed_local()
    }
}

impl Redis {
    fn number(&self, id: &[u8]) -> Result<u64> {
        number(&self.stream, id)
    }
}

/// The number of an entry with this id.
fn number(stream: &str, id: &[u8]) -> Result<u64> {
    let id = String::from_utf8_lossy(id);
    let number = id.strip_suffix("-0").and_then(|number| number.parse().ok());
    // Beyond this, the script would not count exactly.
    let number = number.filter(|&number: &u64| number < 1 << 53);
    number.ok_or_else(|| foreign(stream, &id)(&"its id is not a number followed by -0"))
}

fn bytes_of(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// An entry: its number, what it holds, and how many bytes that is.
fn entry(stream: &str, value: Value) -> Result<(u64, Stored, usize)> {
    let unreadable = || again("read the stream")(&"an answer that is none");
    let Ok([id, Value::Array(fields)]) = <[Value; 2]>::try_from(value.into_sequence().map_err(|_| unreadable())?)
    else {
        return Err(unreadable());
    };
    let id = bytes_of(&id).ok_or_else(unreadable)?;
    let number = number(stream, id)?;
    let (mut headers, mut payload, mut len) = (Vec::with_capacity(8), None, 0);
    let mut fields = fields.into_iter();
    while let (Some(name), Some(Value::BulkString(value))) = (fields.next(), fields.next()) {
        len += value.len();
        match bytes_of(&name) {
            Some(name) if name == PAYLOAD.as_bytes() => payload = Some(Bytes::from(value)),
            Some(name) => headers.push((name.to_vec(), value)),
            None => return Err(unreadable()),
        }
    }
    let header = |name: &'static str| {
        let found = headers.iter().find(|(other, _)| other == name.as_bytes());
        found.and_then(|(_, value)| std::str::from_utf8(value).ok())
    };
    let decoded = payload.ok_or_else(|| format!("it has no field {PAYLOAD}"));
    let decoded = decoded.and_then(|payload| Stored::decode(header, &payload));
    Ok((number, decoded.map_err(|what| foreign(stream, &number)(&what))?, len))
}

async fn get(connection: &mut MultiplexedConnection, stream: &str, number: u64) -> Result<Option<Stored>> {
    let id = format!("{number}-0");
    let found: Vec<Value> = cmd("XRANGE")
        .arg(stream)
        .arg(&id)
        .arg(&id)
        .query_async(connection)
        .await
        .map_err(|error| failure(stream, "read the stream", &error))?;
    match found.into_iter().next() {
        Some(value) => Ok(Some(entry(stream, value)?.1)),
        None => Ok(None),
    }
}

/// Where a reader is.
struct Reading {
    connection: MultiplexedConnection,
    stream: String,
    /// The last entry that was read, or the number before the first one.
    last: (u64, Option<Stored>),
    /// How many entries are asked for at once.
    count: usize,
}

type Read = Result<(Reading, VecDeque<(u64, Stored)>)>;

impl Reading {
    /// Waits for more entries, for a while.
    async fn more(mut self) -> Read {
        let Self { connection, stream, last, count } = &mut self;
        let asked = cmd("XREAD")
            .arg(&["COUNT", &count.to_string(), "BLOCK", &BLOCK_MS.to_string(), "STREAMS"])
            .arg(&*stream)
            .arg(format!("{}-0", last.0))
            .query_async::<Option<Vec<Vec<Value>>>>(connection)
            .await;
        let answered = asked.map_err(|error| failure(stream, "read the stream", &error))?;
        // Of each stream, its key and its entries: there is one.
        let values = answered.into_iter().flatten().filter_map(|mut of_stream| of_stream.pop()?.into_sequence().ok());
        let mut read = VecDeque::new();
        let mut bytes = 0;
        for value in values.flatten() {
            let (number, stored, len) = entry(stream, value)?;
            bytes += len;
            read.push_back((number, stored));
        }
        if let Some(newest) = read.back() {
            // A stream that was removed and made again has the same numbers for other messages.
            if let (number, Some(taken)) = last
                && get(connection, stream, *number).await?.is_some_and(|stored| stored != *taken)
            {
                return Err(Failure::Again(format!("message {number} of the stream is another one now")));
            }
            *last = (newest.0, Some(newest.1.clone()));
            *count = (READ_BYTES / (bytes / read.len()).max(1)).clamp(1, READ_ENTRIES);
        }
        Ok((self, read))
    }
}

/// What was read and not asked for, and what is being read. `reading` is None while it waits.
struct Entries {
    reading: Option<Reading>,
    waiting: Option<LocalBoxFuture<'static, Read>>,
    read: VecDeque<(u64, Stored)>,
}

impl Messages for Entries {
    fn next(&mut self) -> Asked<'_, (u64, Stored)> {
        async {
            loop {
                if let Some(next) = self.read.pop_front() {
                    return Ok(next);
                }
                if let Some(reading) = self.reading.take() {
                    self.waiting = Some(reading.more().boxed_local());
                }
                let waiting = self.waiting.as_mut();
                let waiting = waiting.ok_or_else(|| Failure::Again("the stream's reader has ended".to_owned()))?;
                let more = waiting.await;
                self.waiting = None;
                let (reading, read) = more?;
                (self.reading, self.read) = (Some(reading), read);
            }
        }
        .boxed_local()
    }
}

/// A batch that is on its way; how many entries it has.
type OnItsWay = (LocalBoxFuture<'static, RedisResult<(u8, String)>>, u64);

/// Publishes in batches: what was published while one is on its way is the next one.
struct Batches {
    connection: MultiplexedConnection,
    stream: String,
    before_first: Option<u64>,
    /// A call of the script, and how many entries it has.
    batch: Option<(Cmd, u64)>,
    on_its_way: Option<OnItsWay>,
    answers: VecDeque<Answer>,
}

impl Publisher for Batches {
    fn publish<'a>(&'a mut self, stored: &'a Stored, after: Option<u64>) -> Asked<'a, ()> {
        let (batch, count) = self.batch.get_or_insert_with(|| {
            let mut call = cmd("EVAL");
            call.arg(APPEND).arg(1).arg(&self.stream);
            match after {
                Some(after) if self.before_first == Some(after) => call.arg("0-0").arg(after + 1),
                Some(after) => call.arg(format!("{after}-0")).arg(after + 1),
                None => call.arg("").arg(""),
            };
            (call, 0)
        });
        let (headers, payload) = stored.encode();
        batch.arg(2 * (headers.len() + 1));
        for (name, value) in &headers {
            batch.arg(*name).arg(value);
        }
        batch.arg(PAYLOAD).arg(&payload[..]);
        *count += 1;
        std::future::ready(Ok(())).boxed_local()
    }

    fn answer(&mut self) -> Asked<'_, Answer> {
        async {
            loop {
                if let Some(answer) = self.answers.pop_front() {
                    return Ok(answer);
                }
                if self.on_its_way.is_none() {
                    let Some((call, count)) = self.batch.take() else { return std::future::pending().await };
                    let mut connection = self.connection.clone();
                    let sent = async move { call.query_async(&mut connection).await };
                    self.on_its_way = Some((sent.boxed_local(), count));
                }
                let Some((sent, count)) = self.on_its_way.as_mut() else { continue };
                let (answer, count) = (sent.await, *count);
                self.on_its_way = None;
                match answer {
                    Ok((1, last)) => {
                        let last = number(&self.stream, last.as_bytes())?;
                        self.answers.extend((last + 1 - count.min(last)..=last).map(Answer::Stored));
                    }
                    Ok((_, last)) => {
                        self.answers.push_back(Answer::Not(format!("the stream ends with {last}, unexpectedly")));
                    }
                    Err(error) => self.answers.push_back(refusal(&error)),
                }
            }
        }
        .boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let found = |text: &str| {
            let target: Target = text.parse().unwrap();
            let (servers, db) = servers(&target).unwrap();
            (servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), db, target.stream)
        };
        for (text, servers, db, stream) in [
            ("redis://a/TICKS", "a:6379", 0, "TICKS"),
            ("redis://a:7,b:8/3/ticks:eur", "a:7 b:8", 3, "ticks:eur"),
            ("rediss://[::1]:7/7", "::1:7", 0, "7"),
            ("redis+unix:///run/redis.sock/2/Q", "/run/redis.sock", 2, "Q"),
            ("redis+unix:///run/redis.sock/Q", "/run/redis.sock", 0, "Q"),
        ] {
            assert_eq!(found(text), (servers.to_owned(), db, stream.to_owned()), "{text}");
        }
        for wrong in ["redis://a/b/Q", "redis://a:x/Q", "redis://a:7,/Q", "redis+unix://run/Q", "redis://a/Q Q"] {
            let said = wrong.parse::<Target>().unwrap_err();
            assert!(said.contains("redis://HOST"), "{said}");
        }
        assert!("redis://:secret@a/Q".parse::<Target>().unwrap_err().contains("--password-file"));
    }
}
