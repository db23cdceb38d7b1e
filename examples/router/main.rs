//! The router: finds the strategies on the bus, reads their orders by timestamp, acknowledges each one. Strategies
//! come, go, are killed and come back while it runs; it may be killed and restarted itself.
//!
//! An acknowledgement says which order it answers; an order is committed after its acknowledgement. So after a kill
//! the newest acknowledgement tells where to go on, and no order is answered twice.
//!
//! ```text
//! cargo run --release --example router -- /tmp/bus
//! ```

#[path = "../strategy/order.rs"]
mod order;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chronfs::bus::{BusLayout, Change, RouterDiscovery};
use chronfs::queue::{Entry, FanInReader, ReaderOptions, SourceId, Start};
use chronfs::{Queue, QueueWriter};
use clap::Parser;
use order::{Ack, Order, newest};

/// Message type of an acknowledgement.
const ACK: u16 = 11;
/// The name of its reader in every `orders_out`.
const READER: &str = "router";
/// Orders end a wait at once; new strategies are noticed after this long.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// Route the orders of all strategies
#[derive(Debug, Parser)]
struct Args {
    /// The bus directory
    bus: PathBuf,
    /// Print every order
    #[arg(short, long)]
    verbose: bool,
}

/// A strategy that is attached.
struct Strategy {
    source: SourceId,
    answers: QueueWriter,
    routed: u64,
    /// It is no longer ready: it is detached when its last order has been routed.
    leaving: bool,
}

struct Router {
    args: Args,
    discovery: RouterDiscovery,
    orders: FanInReader,
    /// By the path of `orders_out`.
    strategies: BTreeMap<PathBuf, Strategy>,
    routed: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let end = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&end))?;
    }
    let layout = BusLayout::new(&args.bus);
    std::fs::create_dir_all(layout.strategies())?;
    let discovery = RouterDiscovery::new(layout.strategies())?;
    let mut router = Router { args, discovery, orders: FanInReader::new(), strategies: BTreeMap::new(), routed: 0 };
    while !end.load(Ordering::Relaxed) {
        router.attach_and_detach()?;
        if !router.route()? {
            router.let_go();
            router.orders.wait(Some(LONGEST_WAIT))?;
        }
    }
    eprintln!("router: {} orders routed since it was started", router.routed);
    Ok(())
}

/// The strategy's name, if this is its `orders_out`.
fn strategy_of(path: &Path) -> Option<&str> {
    if path.file_name()? != "orders_out" {
        return None;
    }
    path.parent()?.file_name()?.to_str()
}

impl Router {
    fn attach_and_detach(&mut self) -> Result<(), Box<dyn Error>> {
        for event in self.discovery.poll()? {
            let Some(name) = strategy_of(&event.path) else { continue };
            eprintln!("router: {name}: {}", event.change.as_str());
            match event.change {
                Change::Ready => self.attach(&event.path, name)?,
                Change::Unready => {
                    if let Some(strategy) = self.strategies.get_mut(&event.path) {
                        strategy.leaving = true;
                    }
                }
                Change::Removed => {
                    if let Some(strategy) = self.strategies.remove(&event.path) {
                        self.orders.remove(strategy.source);
                    }
                }
                // One whose lease has expired may be dead. Its orders are routed all the same.
                _ => {}
            }
        }
        Ok(())
    }

    fn attach(&mut self, path: &Path, name: &str) -> Result<(), Box<dyn Error>> {
        if let Some(strategy) = self.strategies.get_mut(path) {
            strategy.leaving = false;
            return Ok(());
        }
        let answers = Queue::open(path.with_file_name("orders_in"))?;
        let writer = answers.writer()?;
        let orders = Queue::open(path)?;
        orders.add_reader(READER)?;
        let committed = orders.reader_position(READER)?;
        let after_last = newest::<Ack>(&answers)?.map_or(0, |ack| ack.order_seq + 1);
        let from = committed.max(after_last);
        let options = ReaderOptions { start: Start::Seq(from), ..ReaderOptions::default() };
        let source = self.orders.add(name, orders.reader_with(READER, &options)?)?;
        eprintln!("router: {name}: attached, starting at order {from}");
        let strategy = Strategy { source, answers: writer, routed: 0, leaving: false };
        self.strategies.insert(path.to_path_buf(), strategy);
        Ok(())
    }

    /// Routes pending orders, for a while; returns whether there were any.
    fn route(&mut self) -> Result<bool, Box<dyn Error>> {
        let before = self.routed;
        while self.routed < before + 1000 {
            let Some(next) = self.orders.next()? else { break };
            let source = next.source;
            let Some(strategy) = self.strategies.values_mut().find(|strategy| strategy.source == source) else {
                continue;
            };
            match next.entry {
                Entry::Message(message) => {
                    let order: Order = serde_json::from_slice(message.payload)?;
                    let ack = Ack { id: order.id, order_seq: message.seq };
                    if self.args.verbose {
                        let (id, symbol) = (&ack.id, &order.symbol);
                        println!("{} {id}: {} {symbol} at {}", message.timestamp_ns, order.side, order.price);
                    }
                    strategy.answers.append(ACK, &serde_json::to_vec(&ack)?)?;
                    strategy.routed += 1;
                }
                Entry::Gap(gap) => eprintln!("router: {}: orders {} to {} are missing", next.name, gap.from, gap.to),
            }
            // After the acknowledgement: see above.
            self.orders.commit(source);
            self.routed += 1;
        }
        Ok(self.routed > before)
    }

    /// Nothing is left to route: detaches the strategies that are leaving.
    fn let_go(&mut self) {
        let leaving = self.strategies.extract_if(.., |_, strategy| strategy.leaving);
        for (path, strategy) in leaving {
            self.orders.remove(strategy.source);
            let name = strategy_of(&path).unwrap_or("?");
            eprintln!("router: {name}: detached after {} orders", strategy.routed);
        }
    }
}
