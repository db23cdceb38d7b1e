//! NATS JetStream.

use async_nats::jetstream::consumer::{self, DeliverPolicy, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, HeaderMap, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};

use super::access::{Access, first_line, read};
use super::{
    ANSWER_TIMEOUT, Answer, Asked, CONNECT_TIMEOUT, Connected, Engine, Extent, Messages, Publisher, Remote,
    StreamOptions, Target, again, check_name, foreign,
};
use crate::relay::wire::Stored;
use crate::{Failure, Result};

pub(super) const ENGINE: Engine = Engine {
    schemes: &["nats", "tls"],
    form: "nats://HOST[:PORT]/STREAM, or tls://… for TLS",
    check: |target| {
        let (_, hosts) = target.parts();
        if hosts.contains('/') {
            return Err(format!("server {hosts}: it has a path"));
        }
        check_name(&target.stream, "-_")
    },
    connect: |target, access| connect(target, access).boxed_local(),
};

/// An older server is good for tests only.
const WANTED_SERVER: (i64, i64) = (2, 11);
/// Room for the headers, which a server counts as part of the message.
const HEADERS: usize = 512;

fn options(access: &Access) -> Result<ConnectOptions> {
    let mut options = ConnectOptions::new();
    if let Some(path) = &access.credentials {
        let bad = |error| Failure::Again(format!("{}: not a credentials file: {error}", path.display()));
        options = options.credentials(&read(path)?).map_err(bad)?;
    }
    if let Some(path) = &access.token_file {
        options = options.token(first_line(path)?);
    }
    if let Some((user, password)) = access.user_and_password()? {
        options = options.user_and_password(user, password);
    }
    access.pem()?;
    if let Some(path) = &access.ca {
        options = options.add_root_certificates(path.clone());
    }
    if let Some((certificate, key)) = &access.certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(options)
}

async fn connect(target: &Target, access: &Access) -> Result<Connected> {
    let options = options(access)?.name("chron-relay").connection_timeout(CONNECT_TIMEOUT);
    let options = options.ping_interval(ANSWER_TIMEOUT).request_timeout(Some(ANSWER_TIMEOUT));
    let (scheme, hosts) = target.parts();
    let servers: Vec<_> = hosts.split(',').map(|host| format!("{scheme}://{host}")).collect();
    let timeout = CONNECT_TIMEOUT.saturating_mul(servers.len().try_into().unwrap_or(u32::MAX)) + ANSWER_TIMEOUT;
    let connecting = tokio::time::timeout(timeout, options.connect(servers)).await;
    let connected = connecting.map_err(|_| Failure::Again(format!("{}: no answer", target.server)))?;
    let client =
        connected.map_err(|error| Failure::Again(format!("{}: {}", target.server, access.explained(&error))))?;
    let mut context = jetstream::new(client.clone());
    context.set_timeout(ANSWER_TIMEOUT);
    let name = target.stream.clone();
    let stream = context.get_stream_no_info(&name).await.map_err(|error| Failure::Config(error.to_string()))?;
    let info = client.server_info();
    let (major, minor) = WANTED_SERVER;
    let warning = (!client.is_server_compatible(major, minor, 0)).then(|| {
        format!("the server is {}: run {major}.{minor} or newer, earlier ones can lose streams", info.version)
    });
    let subject = format!("chron.{name}");
    let max_message = info.max_payload;
    Ok(Connected { remote: Box::new(Nats { client, context, stream, name, subject, max_message }), warning })
}

struct Nats {
    client: Client,
    context: Context,
    stream: Stream<()>,
    name: String,
    /// On which subject the queue is published.
    subject: String,
    /// The largest message that the server and the stream take, headers included.
    max_message: usize,
}

impl Nats {
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
}

impl Remote for Nats {
    fn look(&mut self) -> Asked<'_, Option<Extent>> {
        async {
            match self.context.get_stream(&self.name).await {
                Ok(stream) => Ok(Some(self.take_in(stream.cached_info()))),
                Err(error) => match error.kind() {
                    GetStreamErrorKind::JetStream(error) if error.code() == 404 => Ok(None),
                    _ => Err(again("stream info")(&error)),
                },
            }
        }
        .boxed_local()
    }

    fn create<'a>(&'a mut self, options: &'a StreamOptions, first: u64) -> Asked<'a, Extent> {
        async move {
            let has_first = self.client.is_server_compatible(2, 10, 0) && first > 1;
            let subject = match (&options.subject, options.below.as_slice()) {
                (None, []) => self.subject.clone(),
                (Some(subject), []) => subject.clone(),
                (subject, below) => format!("{}.{}", subject.as_deref().unwrap_or("chron"), below.join(".")),
            };
            let config = Config {
                name: self.name.clone(),
                subjects: vec![subject],
                num_replicas: options.replicas,
                max_bytes: options.max_bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or(-1),
                max_age: options.max_age.unwrap_or_default(),
                // What is in the stream is not removed for what is still in the queue.
                discard: DiscardPolicy::New,
                deny_delete: true,
                first_sequence: has_first.then_some(first),
                ..Config::default()
            };
            let created =
                self.context.create_stream(config).await.map_err(|error| again("create the stream")(&error))?;
            Ok(self.take_in(created.cached_info()))
        }
        .boxed_local()
    }

    fn max_payload(&self) -> usize {
        self.max_message.saturating_sub(HEADERS)
    }

    fn get(&self, number: u64) -> Asked<'_, Option<Stored>> {
        async move {
            match self.stream.get_raw_message(number).await {
                Ok(message) => decode(&self.name, message.sequence, &message.headers, &message.payload).map(Some),
                Err(error) => match error.kind() {
                    LastRawMessageErrorKind::NoMessageFound => Ok(None),
                    LastRawMessageErrorKind::JetStream(error) if error.code() == 404 => Ok(None),
                    _ => Err(again("read the stream")(&error)),
                },
            }
        }
        .boxed_local()
    }

    fn read_from(&self, number: u64) -> Asked<'_, Box<dyn Messages>> {
        async move {
            let deliver_policy = DeliverPolicy::ByStartSequence { start_sequence: number };
            let config = pull::OrderedConfig { deliver_policy, ..pull::OrderedConfig::default() };
            let created =
                self.stream.create_consumer(config).await.map_err(|error| again("read the stream")(&error))?;
            let consumer: consumer::Consumer<pull::OrderedConfig> = created;
            let messages = consumer.messages().await.map_err(|error| again("read the stream")(&error))?;
            let delivered: Box<dyn Messages> = Box::new(Delivered { messages, name: self.name.clone() });
            Ok(delivered)
        }
        .boxed_local()
    }

    fn publisher(&self) -> Asked<'_, Box<dyn Publisher>> {
        async {
            let inbox = self.client.new_inbox();
            let answers = self.client.subscribe(format!("{inbox}.*")).await;
            let publishes: Box<dyn Publisher> = Box::new(Publishes {
                client: self.client.clone(),
                name: self.name.clone(),
                subject: self.subject.clone(),
                answers: answers.map_err(|error| again("subscribe")(&error))?,
                inbox,
            });
            Ok(publishes)
        }
        .boxed_local()
    }
}

fn decode(name: &str, number: u64, headers: &HeaderMap, payload: &Bytes) -> Result<Stored> {
    let header = |name: &'static str| headers.get(name).map(|value| value.as_str());
    Stored::decode(header, payload).map_err(|what| foreign(name, &number)(&what))
}

/// What a consumer delivers.
struct Delivered {
    messages: pull::Ordered,
    name: String,
}

impl Messages for Delivered {
    fn next(&mut self) -> Asked<'_, (u64, Stored)> {
        async {
            let message = self.messages.next().await;
            let message = message.ok_or_else(|| Failure::Again("the stream's reader has ended".to_owned()))?;
            let message = message.map_err(|error| again("read the stream")(&error))?;
            let info = message.info().map_err(|error| again("read the stream")(&error))?;
            let number = info.stream_sequence;
            let headers = message.headers.clone().unwrap_or_default();
            Ok((number, decode(&self.name, number, &headers, &message.payload)?))
        }
        .boxed_local()
    }
}

/// Publishes on their way, and where their answers arrive.
struct Publishes {
    client: Client,
    name: String,
    subject: String,
    inbox: String,
    answers: Subscriber,
}

impl Publisher for Publishes {
    fn publish<'a>(&'a mut self, stored: &'a Stored, after: Option<u64>) -> Asked<'a, ()> {
        async move {
            let (fields, payload) = stored.encode();
            let mut headers = HeaderMap::new();
            fields.into_iter().for_each(|(name, value)| headers.insert(name, value));
            if let Some(after) = after {
                headers.insert("Nats-Expected-Last-Sequence", after.to_string());
            }
            headers.insert("Nats-Expected-Stream", self.name.as_str());
            let reply = format!("{}.{}", self.inbox, after.unwrap_or_default());
            let sent = self.client.publish_with_reply_and_headers(self.subject.clone(), reply, headers, payload).await;
            sent.map_err(|error| again("publish")(&error))
        }
        .boxed_local()
    }

    fn answer(&mut self) -> Asked<'_, Answer> {
        async {
            let answer = self.answers.next().await;
            answer.as_ref().map(parse).ok_or_else(|| Failure::Again("the connection has ended".to_owned()))
        }
        .boxed_local()
    }
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

fn parse(message: &async_nats::Message) -> Answer {
    if let Some(status) = message.status.filter(|status| *status != async_nats::StatusCode::OK) {
        return Answer::Not(format!("the stream does not answer ({status})"));
    }
    match serde_json::from_slice::<RawAnswer>(&message.payload) {
        Ok(RawAnswer { error: Some(error), .. }) => {
            let text = format!("{} ({})", error.description, error.err_code);
            let is_full = error.err_code == STORE_FAILED && error.description.contains("maximum");
            if is_full { Answer::Full(text) } else { Answer::Not(text) }
        }
        Ok(RawAnswer { duplicate: true, .. }) => Answer::Not("the server calls it a duplicate".to_owned()),
        Ok(RawAnswer { seq: 0, .. }) => Answer::Not("the server did not say where it is".to_owned()),
        Ok(RawAnswer { seq, .. }) => Answer::Stored(seq),
        Err(error) => Answer::Not(format!("an answer that is none: {error}")),
    }
}
