//! Where queues lie below a bus directory. Pure: makes paths, touches no file.

use std::path::{Path, PathBuf};

use crate::queue::{Result, check_name};

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
        check_name(name)?;
        Ok(self.feeds().join(name))
    }

    /// The queues of a strategy.
    ///
    /// # Errors
    /// [`InvalidName`](crate::Error::InvalidName) or [`NameTooLong`](crate::Error::NameTooLong).
    pub fn strategy(&self, name: &str) -> Result<StrategyEndpoints> {
        check_name(name)?;
        let directory = self.strategies().join(name);
        Ok(StrategyEndpoints { orders_out: directory.join("orders_out"), orders_in: directory.join("orders_in") })
    }
}
