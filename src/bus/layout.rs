//! Where queues lie below a bus directory. Pure: makes paths, touches no file.

use std::path::{Path, PathBuf};

use super::{LEASE_FILE, READY_FILE};
use crate::queue::{Error, Result, check_name, is_internal_name};

/// Names that the mount shows in every directory that may become a queue.
const VIRTUAL: [&str; 6] = [READY_FILE, LEASE_FILE, "append.jsonl", "append.txt", "append.bin", "append.packets"];

/// Checks the name of a queue's directory, or of one above it: what [`check_name`] allows, except names that mean
/// something else in the parent directory. (A directory that held a queue named `control.meta` would look like a queue
/// itself.)
///
/// # Errors
/// [`Error::InvalidName`] or [`Error::NameTooLong`].
pub fn check_queue_name(name: &str) -> Result<()> {
    check_name(name)?;
    if is_internal_name(name) || VIRTUAL.contains(&name) {
        let reason = "the name is reserved in the directory of a queue";
        return Err(Error::InvalidName { name: name.to_owned(), reason });
    }
    Ok(())
}

/// The paths of a bus directory.
///
/// ```
/// use chronfs::bus::BusLayout;
/// # fn main() -> chronfs::Result<()> {
/// let bus = BusLayout::new("/srv/bus");
/// let endpoints = bus.strategy("momentum")?;
/// assert_eq!(endpoints.orders_out, std::path::Path::new("/srv/bus/orders/queue/momentum/orders_out"));
/// assert_eq!(bus.feed("binance")?, std::path::Path::new("/srv/bus/market_data/queue/binance"));
/// assert!(bus.feed("../etc").is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusLayout {
    root: PathBuf,
}

/// The two queues of a strategy.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StrategyEndpoints {
    /// Orders from the strategy: it writes, the router reads.
    pub orders_out: PathBuf,
    /// Answers to the strategy: the router writes, it reads.
    pub orders_in: PathBuf,
}

impl BusLayout {
    /// The layout below `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The bus directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory that holds a queue for every market data feed.
    pub fn feeds(&self) -> PathBuf {
        self.root.join("market_data/queue")
    }

    /// The directory that holds a directory for every strategy.
    pub fn strategies(&self) -> PathBuf {
        self.root.join("orders/queue")
    }

    /// The queue of a market data feed.
    ///
    /// # Errors
    /// [`InvalidName`](crate::Error::InvalidName) or [`NameTooLong`](crate::Error::NameTooLong).
    pub fn feed(&self, name: &str) -> Result<PathBuf> {
        check_queue_name(name)?;
        Ok(self.feeds().join(name))
    }

    /// The queues of a strategy.
    ///
    /// # Errors
    /// [`InvalidName`](crate::Error::InvalidName) or [`NameTooLong`](crate::Error::NameTooLong).
    pub fn strategy(&self, name: &str) -> Result<StrategyEndpoints> {
        check_queue_name(name)?;
        let directory = self.strategies().join(name);
        Ok(StrategyEndpoints { orders_out: directory.join("orders_out"), orders_in: directory.join("orders_in") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_something_else_are_refused() {
        for name in ["READY", "LEASE", "append.txt", "control.meta", "writer.lock", "000000000.q", "x.q", ".x", ""] {
            assert!(check_queue_name(name).is_err(), "{name}");
            assert!(BusLayout::new("/srv").strategy(name).is_err(), "{name}");
        }
        for name in ["ready", "messages", "orders_out", "control", "q", "at", "since"] {
            assert!(check_queue_name(name).is_ok(), "{name}");
        }
    }
}
