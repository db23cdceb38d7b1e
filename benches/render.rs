//! How fast messages become text, beside a memcpy of the same bytes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::hint::black_box;

use chronfs::queue::{Entry, Message, Position, SegmentId};
use chronfs::view::{Format, parse_line, render, rendered_len};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const MESSAGES: u64 = 1000;

/// JSON text as exchanges send it: 150 to 190 bytes, a quote every four; one in twenty is a long one.
fn payloads() -> Vec<Vec<u8>> {
    (0..MESSAGES)
        .map(|i| {
            let (id, price, size) = (5_123_107_838_717 + i * 7, 61_800 + i % 97, i * 7919 % 10_000);
            if i % 20 == 19 {
                let levels: Vec<String> = (0..50).map(|n| format!("[\"{}.{n:02}\",\"0.{size}\"]", price - n)).collect();
                let levels = levels.join(",");
                return format!(
                    "{{\"stream\":\"btcusdt@depth@0ms\",\"data\":{{\"e\":\"depthUpdate\",\"u\":{id},\"b\":[{levels}]}}}}"
                );
            }
            format!(
                "{{\"stream\":\"btcusdt@bookTicker\",\"data\":{{\"e\":\"bookTicker\",\"u\":{id},\"s\":\"BTCUSDT\",\
                 \"b\":\"{price}.20\",\"B\":\"{size}.507\",\"a\":\"{price}.30\",\"A\":\"2.{size}\",\
                 \"T\":1723161256313,\"E\":1723161256313}}}}"
            )
        })
        .map(String::into_bytes)
        .collect()
}

fn entries(payloads: &[Vec<u8>]) -> Vec<Entry<'_>> {
    let position = Position { segment: SegmentId(0), offset: 4096 };
    (1..)
        .zip(payloads)
        .map(|(seq, payload)| {
            let timestamp_ns = 1_723_161_255_088_165_267 + seq * 2_345_678;
            Entry::Message(Message { seq: 100_000 + seq, timestamp_ns, msg_type: 1, payload, position })
        })
        .collect()
}

fn bench(c: &mut Criterion) {
    let payloads = payloads();
    let entries = entries(&payloads);
    let mut out = Vec::new();
    for format in Format::ALL {
        out.clear();
        entries.iter().for_each(|entry| render(format, entry, None, &mut out));
        let rendered = out.clone();
        let mut group = c.benchmark_group(format.name());
        group.throughput(Throughput::Bytes(u64::try_from(rendered.len()).unwrap()));
        group.bench_function("render", |b| {
            b.iter(|| {
                out.clear();
                black_box(&entries).iter().for_each(|entry| render(format, entry, None, &mut out));
                black_box(&out);
            });
        });
        group.bench_function("rendered_len", |b| {
            b.iter(|| black_box(&entries).iter().map(|entry| rendered_len(format, entry, None)).sum::<usize>());
        });
        group.bench_function("memcpy", |b| {
            b.iter(|| {
                out.clear();
                out.extend_from_slice(black_box(&rendered));
                black_box(&out);
            });
        });
        if format == Format::Jsonl {
            group.bench_function("parse_line", |b| {
                b.iter(|| {
                    for line in black_box(&rendered).split_inclusive(|&byte| byte == b'\n') {
                        black_box(parse_line(chronfs::view::InputFormat::Jsonl, line).unwrap());
                    }
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
