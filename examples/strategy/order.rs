//! Orders and acknowledgements as `strategy` and `router` write them: JSON, so that they can be read through the mount.

use chronfs::Queue;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What a strategy writes into its `orders_out`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Made of the strategy's name and `market_seq`, so that a repeated order has the same id.
    pub(crate) id: String,
    /// The market data message that it answers.
    pub(crate) market_seq: u64,
    pub(crate) symbol: String,
    pub(crate) side: String,
    pub(crate) price: String,
}

/// What the router writes into the strategy's `orders_in`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ack {
    pub(crate) id: String,
    /// The order's sequence number in `orders_out`.
    pub(crate) order_seq: u64,
}

/// The newest message of a queue: where its writer stopped, even if it was killed.
pub(crate) fn newest<T: DeserializeOwned>(queue: &Queue) -> Result<Option<T>, Box<dyn std::error::Error>> {
    let bounds = queue.bounds()?;
    if bounds.next_seq == bounds.first_seq {
        return Ok(None);
    }
    let mut scanner = queue.scan()?;
    scanner.seek_seq(bounds.next_seq - 1)?;
    let message = scanner.next()?.and_then(|entry| entry.message());
    let message = message.ok_or_else(|| format!("{}: the newest message is damaged", queue.path().display()))?;
    Ok(Some(serde_json::from_slice(message.payload)?))
}
