//! Payloads as JSON: a fixed layout of eight fields in 48 bytes, and the same as SBE with a header.
//! `cargo bench -p chronfs-decode`; messages a second are in docs/performance.md.

use std::hint::black_box;

use chronfs_decode::Schema;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const SCHEMA: &str = r#"
[[message]]
type = 1
name = "ticker"
format = "fixed"
fields = [
    { name = "exchange_ns", type = "u64" },
    { name = "symbol", type = "text[8]" },
    { name = "bid", type = "i64", scale = 2 },
    { name = "ask", type = "i64", scale = 2 },
    { name = "bid_size", type = "u32" },
    { name = "ask_size", type = "u32" },
    { name = "update", type = "u32" },
    { name = "flags", type = "u32" },
]

[[message]]
type = 2
format = "sbe"
file = "ticker.xml"
"#;

const XML: &str = r#"
<messageSchema id="17" version="0">
    <types>
        <composite name="messageHeader">
            <type name="blockLength" primitiveType="uint16"/>
            <type name="templateId" primitiveType="uint16"/>
            <type name="schemaId" primitiveType="uint16"/>
            <type name="version" primitiveType="uint16"/>
        </composite>
        <type name="symbol" primitiveType="char" length="8"/>
        <composite name="price">
            <type name="mantissa" primitiveType="int64"/>
            <type name="exponent" primitiveType="int8" presence="constant">-2</type>
        </composite>
    </types>
    <message name="sbe_ticker" id="5">
        <field name="exchange_ns" id="1" type="uint64"/>
        <field name="symbol" id="2" type="symbol"/>
        <field name="bid" id="3" type="price"/>
        <field name="ask" id="4" type="price"/>
        <field name="bid_size" id="5" type="uint32"/>
        <field name="ask_size" id="6" type="uint32"/>
        <field name="update" id="7" type="uint32"/>
        <field name="flags" id="8" type="uint32"/>
    </message>
</messageSchema>
"#;

fn payload() -> Vec<u8> {
    let mut bytes = 1_723_108_500_123_456_789_u64.to_le_bytes().to_vec();
    bytes.extend_from_slice(b"BTCUSDT\0");
    bytes.extend(5_712_345_i64.to_le_bytes());
    bytes.extend(5_712_355_i64.to_le_bytes());
    bytes.extend([827_u32, 43, 70_026, 1].iter().flat_map(|number| number.to_le_bytes()));
    bytes
}

fn decode(criterion: &mut Criterion) {
    let Ok(schema) = Schema::parse(SCHEMA, &mut |_| Ok(XML.into())) else { return };
    let fixed = payload();
    let header = [48_u16, 5, 17, 0];
    let sbe: Vec<u8> = header.iter().flat_map(|number| number.to_le_bytes()).chain(payload()).collect();
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(1));
    let mut out = Vec::with_capacity(1 << 20);
    for (name, msg_type, payload) in [("fixed", 1, &fixed), ("sbe", 2, &sbe)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                if out.len() > 1 << 19 {
                    out.clear();
                }
                schema.json(black_box(msg_type), black_box(payload), &mut out).is_ok()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
