"""What chron-export writes, as duckdb, polars and pyarrow read it. scripts/export.sh runs this."""

import datetime
import decimal
import os
import pathlib
import re
import shlex
import struct
import subprocess

import duckdb
import polars
import pyarrow.dataset
import pyarrow.parquet
import pytest

import chronfs

QUOTES = """
[[message]]
type = 1
name = "quote"
format = "fixed"
time = "at"
fields = [{ name = "at", type = "u64" }, { name = "symbol", type = "text[8]" }, { name = "bid", type = "i64", scale = 2 }]

[[message]]
type = 2
name = "note"
format = "json"
"""
TRADES = """
[[message]]
type = 1
name = "trade"
format = "fixed"
fields = [{ name = "symbol", type = "text[8]" }, { name = "price", type = "i64", scale = 2 }, { name = "sizes", type = "u16[2]" }]
"""
# 2024-08-08T23:59:59Z
LATE = 1_723_161_599_000_000_000


def quote(i):
    return struct.pack("<Q8sq", LATE + i * 10_000_000 - 5_000, b"BTC" if i % 2 else b"ETH", 5_000_000 + i)


@pytest.fixture
def bus(tmp_path):
    """Two queues over midnight: a quote every 10 ms, a trade every 70 ms."""
    quotes = chronfs.Queue(tmp_path / "bus/quotes", create=True, segment_size=1 << 16)
    with quotes.writer() as writer:
        for i in range(2000):
            writer.append(quote(i), type=1, timestamp_ns=LATE + i * 10_000_000)
        writer.append(b"short", type=1)
        writer.append(b'{"text": "closed"}', type=2)
        writer.append(b"\xff\xfe", type=9)
    (tmp_path / "bus/quotes/schema.toml").write_text(QUOTES)
    trades = chronfs.Queue(tmp_path / "bus/trades", create=True, segment_size=1 << 16)
    with trades.writer() as writer:
        for i in range(200):
            payload = struct.pack("<8sqHH", b"BTC", 5_000_000 + i, i, i + 1)
            writer.append(payload, type=1, timestamp_ns=LATE + i * 70_000_000 + 1)
    (tmp_path / "bus/trades/schema.toml").write_text(TRADES)
    return tmp_path / "bus"


@pytest.fixture
def export(bus, tmp_path):
    """Exports the bus in a format; returns the directory."""

    def run(format):
        command = [os.environ["CHRON_EXPORT"], bus, tmp_path / "data", "--unsealed", "--quiet", "--format", format]
        subprocess.run(command, check=True, stderr=subprocess.PIPE)
        return tmp_path / "data"

    return run


def test_duckdb_reads_parquet_with_partitions_and_skips_what_it_need_not_read(export):
    data = export("parquet")
    quotes = f"'{data}/queue=quotes/**/quote-*.parquet'"
    ((count, first, last, dates),) = duckdb.sql(
        f"SELECT count(*), min(bid), max(bid), count(DISTINCT date) FROM {quotes} WHERE undecoded IS NULL"
    ).fetchall()
    assert (count, first, last, dates) == (2000, decimal.Decimal("50000.00"), decimal.Decimal("50019.99"), 2)
    both = duckdb.sql(
        f"SELECT queue, count(*) FROM read_parquet('{data}/**/*.parquet', union_by_name = true) GROUP BY queue ORDER BY queue"
    ).fetchall()
    assert both == [("quotes", 2003), ("trades", 200)]
    (reason, payload), = duckdb.sql(f"SELECT undecoded, payload FROM {quotes} WHERE undecoded IS NOT NULL").fetchall()
    assert (reason, payload) == ("the layout has 24 bytes, the payload 5", b"short")
    plan = duckdb.sql(f"EXPLAIN ANALYZE SELECT * FROM {quotes} WHERE date = '2024-08-08' AND seq = 17").fetchall()[0][1]
    scanned, known = map(int, re.search(r"Scanning Files: (\d+)/(\d+)", plan).groups())
    assert scanned < known, plan
    # What lets readers skip row groups.
    for file in data.glob("queue=quotes/*/quote-*.parquet"):
        metadata = pyarrow.parquet.ParquetFile(file).metadata
        for group in range(metadata.num_row_groups):
            column = metadata.row_group(group).column(0)
            assert column.path_in_schema == "seq" and column.compression == "ZSTD"
            assert column.statistics.min <= column.statistics.max
            assert metadata.row_group(group).sorting_columns


def test_two_queues_are_joined_as_of_the_time_in_one_line(export):
    data = export("parquet")
    rows = duckdb.sql(
        f"SELECT t.seq, t.price, q.bid, t.timestamp::TIMESTAMPTZ - q.timestamp::TIMESTAMPTZ AS age FROM '{data}/queue=trades/**/trade-*.parquet' t "
        f"ASOF JOIN '{data}/queue=quotes/**/quote-*.parquet' q ON t.symbol = q.symbol AND t.timestamp >= q.timestamp "
        "ORDER BY t.seq"
    ).fetchall()
    # The first trade is before the first quote of its symbol.
    assert [row[0] for row in rows] == list(range(2, 201))
    for seq, price, bid, age in rows:
        i = seq - 1
        newest = i * 7 if i * 7 % 2 else i * 7 - 1
        assert (price, bid) == (decimal.Decimal(5_000_000 + i) / 100, decimal.Decimal(5_000_000 + newest) / 100)
        assert age <= datetime.timedelta(milliseconds=10.001)


def test_polars_reads_parquet_and_arrow(export):
    data = export("parquet")
    quotes = polars.scan_parquet(f"{data}/queue=quotes/**/quote-*.parquet", hive_partitioning=True)
    frame = quotes.filter(polars.col("undecoded").is_null()).sort("seq").collect()
    assert frame.height == 2000 and set(frame["queue"]) == {"quotes"}
    assert frame.schema["timestamp"] == polars.Datetime("ns", "UTC")
    assert frame.schema["exchange_time"] == polars.Datetime("ns", "UTC")
    assert frame["exchange_time"].cast(polars.Int64).to_list() == [LATE + i * 10_000_000 - 5_000 for i in range(2000)]
    assert frame["bid"][7] == decimal.Decimal("50000.07") and frame["symbol"][7] == "BTC"
    asof = polars.read_parquet(f"{data}/queue=trades/**/*.parquet").sort("timestamp").join_asof(
        frame.sort("timestamp"), on="timestamp", by="symbol", check_sortedness=False
    )
    assert asof["bid"].null_count() == 1
    data = export("arrow")
    files = sorted(data.glob("queue=quotes/*/quote-*.arrow"))
    again = polars.concat([polars.read_ipc(file) for file in files]).drop_nulls("bid").sort("seq")
    assert again["bid"].to_list() == frame["bid"].to_list()


def test_pyarrow_reads_all_three(export):
    tables = []
    for format, name in [("parquet", "parquet"), ("arrow", "ipc")]:
        files = sorted(export(format).glob(f"queue=trades/*/trade-*.{format}"))
        table = pyarrow.dataset.dataset(files, format=name).to_table().sort_by("seq")
        table.validate(full=True)
        tables.append(table)
    assert tables[0].equals(tables[1]) and tables[0].num_rows == 200
    assert tables[0]["sizes"].to_pylist()[5] == [5, 6]
    assert str(tables[0].schema.field("price").type) == "decimal128(19, 2)"
    for file in sorted(export("csv").glob("queue=trades/*/trade-*.csv.zst")):
        rows = polars.read_csv(file, try_parse_dates=True)
        assert rows.schema["timestamp"] == polars.Datetime("us", "UTC") or rows["timestamp"].dtype == polars.Datetime("ns", "UTC")
        tables.append(rows)
    assert sum(rows.height for rows in tables[2:]) == 200
    csv = duckdb.sql(f"SELECT sizes::INTEGER[], price FROM '{export('csv')}/queue=trades/**/trade-*.csv.zst' WHERE seq = 6")
    assert csv.fetchall() == [([5, 6], 50000.05)]


def test_lines_are_read_as_json(export):
    data = export("jsonl")
    rows = duckdb.sql(
        f"SELECT decoded->>'bid', name FROM read_json('{data}/queue=quotes/**/*.jsonl.zst', columns = {{seq: 'UBIGINT', "
        "name: 'VARCHAR', decoded: 'JSON'}) WHERE seq = 8"
    ).fetchall()
    assert rows == [("50000.07", "quote")]


def test_the_page_does_what_it_says(bus, tmp_path):
    page = (pathlib.Path(__file__).parents[3] / "docs/export.md").read_text()
    page = page.replace("/srv/bus", str(bus)).replace("/data", str(tmp_path / "data"))
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert [language for language, _ in blocks] == ["sh", "text", "sql", "python"]
    for line in blocks[0][1].splitlines():
        match shlex.split(line, comments=True):
            case ["chron-cli", "export", *args]:
                subprocess.run([os.environ["CHRON_EXPORT"], *args], check=True)
            case ["duckdb", "-c", query]:
                counts = dict(duckdb.sql(query).fetchall())
            case other:
                pytest.fail(f"{other}: how is it run?")
    assert counts == {1: 2001, 2: 1, 9: 1}

    def shape(path):
        return re.sub(r"-[0-9a-f]{16}-\d{12}-\d{12}", "-ID-SEQ-SEQ", str(path).strip())

    written = (tmp_path / "data").glob("queue=quotes/date=2024-08-08/*")
    assert shape(blocks[1][1]).replace("messages", "quote") in map(shape, written)
    joined = duckdb.sql(blocks[2][1].rstrip(";\n")).fetchall()
    assert len(joined) == 199
    names = {"polars": polars}
    exec(blocks[3][1], names)
    quotes = names["quotes"].sort("timestamp").collect()
    assert quotes.height == counts[1]
    trades = polars.read_parquet(f"{tmp_path}/data/queue=trades/**/trade-*.parquet").sort("timestamp")
    asof = trades.join_asof(quotes, on="timestamp", by="symbol", check_sortedness=False)
    assert sorted(asof["bid"].drop_nulls()) == sorted(row[-1] for row in joined)
