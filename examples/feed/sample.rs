//! A synthetic recording of two instruments, the same at every run: prices walk at random, messages come in bursts.
//!
//! It keeps what real feeds keep, so that loss, duplication and reordering show from the messages alone: within a
//! symbol each depth update's `pu` is the previous one's `u`, and trade numbers `t` rise by exactly one. Times never
//! go back.

use std::io::{self, Write};

/// When the recording starts: 2024-01-02T09:30:00Z, ns since the epoch.
const START_NS: u64 = 1_704_187_800_000_000_000;

/// Xorshift: good enough for prices, and needs no crate.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

struct Symbol {
    name: &'static str,
    stream: &'static str,
    /// In hundredths of the currency.
    price: u64,
    /// The last update's number, counted over all kinds of message.
    update: u64,
    /// The `u` of the last depth update.
    depth_update: u64,
    trade: u64,
}

/// Writes `count` lines of `<nanoseconds> <JSON>`.
pub(crate) fn generate(count: u32, out: &mut impl Write) -> io::Result<()> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut symbols = [
        Symbol { name: "ALPHA", stream: "alpha", price: 421_150, update: 70_000, depth_update: 69_990, trade: 5_100 },
        Symbol { name: "BETA", stream: "beta", price: 31_875, update: 70_000, depth_update: 69_990, trade: 880 },
    ];
    let mut time_ns = START_NS;
    for _ in 0..count {
        // One in five starts a new burst, up to 100 ms later; the others follow within microseconds.
        time_ns += if random.below(5) == 0 { random.below(100_000_000) } else { random.below(9_000) };
        let symbol = &mut symbols[usize::from(random.below(3) == 0)];
        symbol.price = (symbol.price + random.below(21)).saturating_sub(10).max(100);
        symbol.update += 1 + random.below(40);
        write!(out, "{time_ns} ")?;
        match random.below(10) {
            0 => symbol.write_depth(&mut random, out)?,
            1 | 2 => symbol.write_trade(&mut random, out)?,
            _ => symbol.write_ticker(&mut random, out)?,
        }
    }
    Ok(())
}

impl Symbol {
    fn write_ticker(&self, random: &mut Random, out: &mut impl Write) -> io::Result<()> {
        let (stream, name, update) = (self.stream, self.name, self.update);
        let (bid, ask) = (price(self.price - 1), price(self.price + 1));
        let (bids, asks) = (random.below(900) + 1, random.below(900) + 1);
        writeln!(
            out,
            r#"{{"stream":"{stream}@bookTicker","data":{{"e":"bookTicker","u":{update},"s":"{name}","b":"{bid}","B":"{bids}","a":"{ask}","A":"{asks}"}}}}"#
        )
    }

    fn write_trade(&mut self, random: &mut Random, out: &mut impl Write) -> io::Result<()> {
        self.trade += 1;
        let (stream, name, trade, at) = (self.stream, self.name, self.trade, price(self.price));
        let (quantity, is_sale) = (random.below(50) + 1, random.below(2) == 1);
        writeln!(
            out,
            r#"{{"stream":"{stream}@trade","data":{{"e":"trade","s":"{name}","t":{trade},"p":"{at}","q":"{quantity}","m":{is_sale}}}}}"#
        )
    }

    fn write_depth(&mut self, random: &mut Random, out: &mut impl Write) -> io::Result<()> {
        let (stream, name, update, previous) = (self.stream, self.name, self.update, self.depth_update);
        self.depth_update = update;
        let bids = levels(random, |level| self.price - 1 - level);
        let asks = levels(random, |level| self.price + 1 + level);
        writeln!(
            out,
            r#"{{"stream":"{stream}@depth","data":{{"e":"depthUpdate","s":"{name}","u":{update},"pu":{previous},"b":[{bids}],"a":[{asks}]}}}}"#
        )
    }
}

fn levels(random: &mut Random, at: impl Fn(u64) -> u64) -> String {
    let count = 1 + random.below(12);
    let level = |n| format!(r#"["{}","{}"]"#, price(at(n)), random.below(400));
    (0..count).map(level).collect::<Vec<_>>().join(",")
}

fn price(hundredths: u64) -> String {
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}
