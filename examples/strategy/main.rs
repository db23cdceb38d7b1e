//! A strategy: reads market data, filters its symbols, writes orders. An example of a process on the bus that may be
//! killed at any instruction and started again, and neither loses nor repeats an order.
//!
//! How: an order says which market data message it answers, and what it says depends on that message alone. A message
//! is committed only after the order that it led to. So a new process finds in `orders_out` how far the last one came,
//! and goes on after that, whether or not it was committed before the kill.
//!
//! ```text
//! cargo run --release --example strategy -- /tmp/bus momentum --feed binance --symbol BTCUSDT
//! ```

mod order;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chronfs::bus::{self, BusLayout, RouterDiscovery, StrategyEndpoints};
use chronfs::queue::{Entry, ReaderOptions, Settings, Start};
use chronfs::{Queue, QueueReader, QueueWriter};
use clap::Parser;
use order::{Ack, Order, newest};
use serde::Deserialize;

/// Message type of an order.
const ORDER: u16 = 10;
/// How long a lease is valid, and how often it is renewed.
const LEASE_TTL: Duration = Duration::from_secs(1);
const LEASE_EVERY: Duration = Duration::from_millis(300);
/// A wait ends earlier, with the next message.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// Read market data, write orders
#[derive(Debug, Parser)]
struct Args {
    /// The bus directory
    bus: PathBuf,
    /// The strategy's name
    name: String,
    /// The feed that it listens to
    #[arg(long)]
    feed: String,
    /// A symbol that it trades; may be repeated
    #[arg(long = "symbol", required = true)]
    symbols: Vec<String>,
    /// It orders at every trade whose number is divisible by this
    #[arg(long, default_value_t = 5)]
    every: u64,
}

/// The part of a market data message that matters here. Borrowed from the queue's memory.
#[derive(Deserialize)]
struct Market<'a> {
    #[serde(borrow)]
    data: Option<Trade<'a>>,
}

#[derive(Deserialize)]
struct Trade<'a> {
    e: Option<&'a str>,
    s: Option<&'a str>,
    t: Option<u64>,
    p: Option<&'a str>,
    m: Option<bool>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let end = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&end))?;
    }
    let mut strategy = Strategy::start(args)?;
    while !end.load(Ordering::Relaxed) {
        strategy.step()?;
    }
    strategy.stop()
}

struct Strategy {
    args: Args,
    market: QueueReader,
    orders: QueueWriter,
    answers: QueueReader,
    endpoints: StrategyEndpoints,
    renewed: Option<Instant>,
    sent: u64,
    acknowledged: u64,
}

impl Strategy {
    fn start(args: Args) -> Result<Self, Box<dyn Error>> {
        let layout = BusLayout::new(&args.bus);
        let endpoints = layout.strategy(&args.name)?;
        let feed = open_feed(&layout, &args.feed)?;
        let orders = Queue::open_or_create(&endpoints.orders_out, &Settings::default())?;
        let answers = Queue::open_or_create(&endpoints.orders_in, &Settings::default())?;
        // First the lock: from here on no other process is this strategy, and what it finds does not change.
        let writer = orders.writer()?;
        feed.add_reader(&args.name)?;
        let committed = feed.reader_position(&args.name)?;
        let after_last = newest::<Order>(&orders)?.map_or(0, |order| order.market_seq + 1);
        let from = committed.max(after_last);
        let options = ReaderOptions { start: Start::Seq(from), ..ReaderOptions::default() };
        let market = feed.reader_with(&args.name, &options)?;
        eprintln!("strategy {}: starting at market message {from}", args.name);
        let answers = answers.reader(&args.name)?;
        bus::write_lease(&endpoints.orders_out, LEASE_TTL, args.symbols.join(","))?;
        bus::mark_ready(&endpoints.orders_out)?;
        let (renewed, sent, acknowledged) = (None, 0, 0);
        Ok(Self { args, market, orders: writer, answers, endpoints, renewed, sent, acknowledged })
    }

    /// Reads everything pending, then waits.
    fn step(&mut self) -> Result<(), Box<dyn Error>> {
        if self.renewed.is_none_or(|renewed| renewed.elapsed() > LEASE_EVERY) {
            bus::write_lease(&self.endpoints.orders_out, LEASE_TTL, self.args.symbols.join(","))?;
            self.renewed = Some(Instant::now());
        }
        while let Some(entry) = self.answers.next()? {
            if let Entry::Message(message) = entry {
                let _ack: Ack = serde_json::from_slice(message.payload)?;
                self.acknowledged += 1;
            }
        }
        self.answers.commit();
        if !self.market.wait(Some(LONGEST_WAIT))? {
            return Ok(());
        }
        while let Some(entry) = self.market.next()? {
            match entry {
                Entry::Message(message) => {
                    if let Some(order) = decide(&self.args, message.seq, message.payload) {
                        self.orders.append(ORDER, &serde_json::to_vec(&order)?)?;
                        self.sent += 1;
                    }
                }
                Entry::Gap(gap) => eprintln!("strategy {}: {} to {} are missing", self.args.name, gap.from, gap.to),
            }
            // After the order: if killed before this, the next process finds the order and does not repeat it.
            self.market.commit();
            if self.renewed.is_none_or(|renewed| renewed.elapsed() > LEASE_EVERY) {
                break;
            }
        }
        Ok(())
    }

    fn stop(self) -> Result<(), Box<dyn Error>> {
        bus::unmark_ready(&self.endpoints.orders_out)?;
        bus::remove_lease(&self.endpoints.orders_out)?;
        let (name, sent, acknowledged) = (&self.args.name, self.sent, self.acknowledged);
        eprintln!("strategy {name}: {sent} orders, {acknowledged} acknowledged since it was started");
        Ok(())
    }
}

/// The order that a market data message leads to, if any. Depends on nothing else.
fn decide(args: &Args, market_seq: u64, payload: &[u8]) -> Option<Order> {
    let trade = serde_json::from_slice::<Market>(payload).ok()?.data?;
    let (symbol, number) = (trade.s?, trade.t?);
    if trade.e != Some("trade") || !args.symbols.iter().any(|s| s == symbol) || number % args.every != 0 {
        return None;
    }
    Some(Order {
        id: format!("{}-{market_seq}", args.name),
        market_seq,
        symbol: symbol.to_owned(),
        side: if trade.m? { "sell" } else { "buy" }.to_owned(),
        price: trade.p?.to_owned(),
    })
}

/// Waits for the feed's queue: the strategy may have been started first.
fn open_feed(layout: &BusLayout, feed: &str) -> Result<Queue, Box<dyn Error>> {
    let path = layout.feed(feed)?;
    std::fs::create_dir_all(layout.feeds())?;
    let mut discovery = RouterDiscovery::new(layout.feeds())?;
    loop {
        discovery.poll()?;
        if discovery.endpoints().any(|(found, _)| found == path) {
            return Ok(Queue::open(path)?);
        }
        discovery.wait(Duration::from_secs(1))?;
    }
}
