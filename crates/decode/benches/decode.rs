//! Recorded tickers (a fixed layout of six fields in 40 bytes, and the same as SBE and protobuf) into JSON and into Arrow.
//! Beside them, as the floor, a program that knows the layout when it is compiled.
//!
//! ```text
//! cargo bench -p chronfs-decode --features arrow
//! ```

#[path = "../tests/common/ticker.rs"]
mod ticker;

use std::hint::black_box;

use chronfs_decode::{Columns, Schema};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde::Serialize;

/// Messages of a batch.
const BATCH: usize = 1 << 14;

/// The layout as a program has it that is made for it.
#[derive(Serialize)]
struct Known<'a> {
    update: u64,
    symbol: &'a str,
    bid: i64,
    ask: i64,
    bid_size: u32,
    ask_size: u32,
}

impl<'a> Known<'a> {
    fn read(payload: &'a [u8]) -> Option<Self> {
        let long = |at: usize| payload.get(at..)?.first_chunk().copied();
        let short = |at: usize| payload.get(at..)?.first_chunk().copied();
        Some(Self {
            update: u64::from_le_bytes(long(0)?),
            symbol: std::str::from_utf8(payload.get(8..16)?).ok()?.trim_end_matches('\0'),
            bid: i64::from_le_bytes(long(16)?),
            ask: i64::from_le_bytes(long(24)?),
            bid_size: u32::from_le_bytes(short(32)?),
            ask_size: u32::from_le_bytes(short(36)?),
        })
    }
}

fn decode(criterion: &mut Criterion) {
    let mut files = |name: &str| Ok(if name.ends_with("xml") { ticker::XML.into() } else { ticker::PROTO.into() });
    let Ok(schema) = Schema::parse(ticker::SCHEMA, &mut files) else { return };
    let Some(file) = ticker::recordings().into_iter().next() else { return };
    let tickers = ticker::recorded(&file, usize::MAX);
    let of = |bytes: fn(&ticker::Ticker) -> Vec<u8>| -> Vec<Vec<u8>> {
        tickers.iter().cycle().take(BATCH).map(|recorded| bytes(&recorded.ticker)).collect()
    };
    let (fixed, sbe, protobuf) = (of(ticker::Ticker::fixed), of(ticker::Ticker::sbe), of(ticker::Ticker::protobuf));

    let mut group = criterion.benchmark_group("json");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut out = Vec::new();
    group.bench_function("floor", |bencher| {
        bencher.iter(|| {
            out.clear();
            for payload in &fixed {
                if let Some(known) = Known::read(black_box(payload)) {
                    let _ = serde_json::to_writer(&mut out, &known);
                }
            }
            out.len()
        });
    });
    for (name, msg_type, payloads) in [("fixed", 1, &fixed), ("sbe", 2, &sbe), ("protobuf", 3, &protobuf)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                payloads.iter().filter(|payload| schema.json(msg_type, black_box(payload), &mut out).is_ok()).count()
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("arrow");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("floor", |bencher| {
        let (mut updates, mut bids, mut asks) = (Vec::new(), Vec::new(), Vec::new());
        let (mut bid_sizes, mut ask_sizes) = (Vec::new(), Vec::new());
        let (mut symbols, mut ends) = (Vec::new(), Vec::new());
        bencher.iter(|| {
            for known in fixed.iter().filter_map(|payload| Known::read(black_box(payload))) {
                updates.push(known.update);
                bids.push(known.bid);
                asks.push(known.ask);
                bid_sizes.push(known.bid_size);
                ask_sizes.push(known.ask_size);
                symbols.extend_from_slice(known.symbol.as_bytes());
                ends.push(symbols.len());
            }
            black_box((&updates, &bids, &asks, &bid_sizes, &ask_sizes, &symbols));
            (
                updates.clear(),
                bids.clear(),
                asks.clear(),
                bid_sizes.clear(),
                ask_sizes.clear(),
                symbols.clear(),
                ends.clear(),
            )
        });
    });
    for (name, msg_type, payloads) in [("fixed", 1, &fixed), ("sbe", 2, &sbe), ("protobuf", 3, &protobuf)] {
        let table = schema.table_of(msg_type, payloads.first().map_or(&[], Vec::as_slice)).ok().flatten();
        let Some(table) = table.and_then(|table| schema.tables().get(table)) else { continue };
        let mut columns = Columns::new(table);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for payload in payloads {
                    let _ = columns.append(&schema, msg_type, black_box(payload));
                }
                columns.finish().map(|columns| columns.len())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
