//! Relays a queue to a stream of NATS JetStream or Redis, and a stream to a queue.
//!
//! `outbound` publishes a queue, `inbound` copies a stream into a standby; `wire` is what a message of the stream
//! looks like, `link` is the connection to the engine that has it, `place` finds out how far the stream has come.
//! Invariants:
//! - The truth is the stream's last message. A publish is accepted only if the stream's last sequence number is the one
//!   that it was made for, and which message of the queue comes at a number follows from the message before it alone:
//!   so a publish that was thought lost and arrives late is harmless.
//! - No number leaves the host before it is certain that it will not be given out again: a reader's position behind it
//!   is on disk.
//! - A record whose term is lower than that of one before it is void. It was on its way when another host took over.

use std::time::{Duration, Instant};

use crate::failure::back_off;
use crate::{fleet, state};

mod config;
mod copier;
mod inbound;
mod link;
mod outbound;
mod place;
mod takeover;
mod verify;
mod wire;

pub use crate::state::{Condition, Monitor, Stop, status};
pub use crate::{Failure, Monitors, Result};
pub use config::{AccessConfig, Config, StreamConfig};
pub use inbound::{Inbound, InboundOptions};
pub use link::{Access, StreamOptions, Target};
pub use outbound::{Outbound, OutboundOptions, TooLarge};
pub use takeover::{Promotion, promote};
pub use verify::{Verdict, verify};

/// Relays as the configuration says, until it is told to stop. In a [`tokio::task::LocalSet`].
///
/// # Errors
/// What an operator must decide. Of a bus: the first failure, once it is told to stop; the other queues are relayed
/// until then.
pub async fn run(config: &Config, stop: Stop, monitors: Monitors) -> Result<()> {
    if config.is_inbound() {
        let mut relay = Inbound::new(config.to.as_ref(), config.inbound()?, stop);
        monitors.add(config.to.as_ref(), relay.monitor());
        return relay.run().await;
    }
    fleet::run(config.from.as_ref(), false, (stop.clone(), monitors), |path, below| {
        Outbound::open(path, config.outbound(below)?, stop.clone())
    })
    .await
}

impl fleet::Job for Outbound {
    const PROGRAM: &'static str = "chron-relay";

    fn monitor(&self) -> Monitor {
        Self::monitor(self)
    }

    async fn run(mut self) -> Result<()> {
        Self::run(&mut self).await
    }
}

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
