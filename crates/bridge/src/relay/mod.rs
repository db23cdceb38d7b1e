//! Relays a queue to a NATS JetStream stream, and a stream to a queue.
//!
//! [`outbound`] publishes a queue, [`inbound`] copies a stream into a standby; [`wire`] is what a message of the stream
//! looks like, [`place`] finds out how far the stream has come. Invariants:
//! - The truth is the stream's last message. A publish is accepted only if the stream's last sequence number is the one
//!   that it was made for, and which message of the queue comes at a number follows from the message before it alone:
//!   so a publish that was thought lost and arrives late is harmless.
//! - No number leaves the host before it is certain that it will not be given out again: a reader's position behind it
//!   is on disk.
//! - A record whose term is lower than that of one before it is void. It was on its way when another host took over.

use std::time::{Duration, Instant};

mod config;
mod copier;
mod fleet;
mod inbound;
mod link;
mod metrics;
mod outbound;
mod place;
mod state;
mod takeover;
mod verify;
mod wire;

pub use config::{AccessConfig, Config, StreamConfig};
pub use fleet::{Monitors, run};
pub use inbound::{Inbound, InboundOptions};
pub use link::{Access, StreamOptions, Target};
pub use metrics::serve;
pub use outbound::{Outbound, OutboundOptions, TooLarge};
pub use state::{Condition, Monitor, Stop, status};
pub use takeover::{Promotion, promote};
pub use verify::{Verdict, verify};

/// Why a relay can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It may go on later, from a fresh look at the stream.
    #[error("{0}")]
    Again(String),
    /// The stream takes no more messages for now.
    #[error("target full: {0}")]
    Full(String),
    /// The queue and the stream contradict each other, or somebody else has taken over: an operator must decide.
    #[error("{0}")]
    Refused(String),
    /// The configuration can't work.
    #[error("{0}")]
    Config(String),
    /// The local queue can't be used.
    #[error(transparent)]
    Queue(#[from] chronfs::Error),
}

impl Failure {
    /// Whether a later attempt can succeed without an operator.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Again(_) | Self::Full(_))
    }

    /// The exit code for it: 77 for a contradiction, 78 for the configuration, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) => 77,
            Self::Config(_) => 78,
            Self::Again(_) | Self::Full(_) | Self::Queue(_) => 1,
        }
    }
}

/// The result of what a relay does.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// The term of a queue's records on the wire: a queue that was never anything but active is in the first one.
pub(crate) fn term_of(queue: &chronfs::Queue) -> u64 {
    queue.role().term().max(1)
}

/// Tries again until it succeeds, it is of no use, or the time is over. Each new reason is said on stderr.
pub(crate) async fn persist<T>(timeout: Duration, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let (mut failures, mut said) = (0, String::new());
    loop {
        match attempt().await {
            Err(failure) if failure.is_temporary() && started.elapsed() < timeout => {
                let reason = failure.to_string();
                if reason != said {
                    eprintln!("chron-relay: {reason}; trying again");
                    said = reason;
                }
                tokio::time::sleep(back_off(failures)).await;
                failures += 1;
            }
            ended => return ended,
        }
    }
}

/// Back-off between attempts.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// The time before an attempt after so many failures.
pub(crate) fn back_off(failures: u32) -> Duration {
    let [least, most] = BACK_OFF;
    let time = least.saturating_mul(1 << failures.min(10)).min(most);
    let jitter = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    // 75 % to 125 %.
    time.mul_f64(0.75 + f64::from(jitter % 1000) / 2000.0)
}
