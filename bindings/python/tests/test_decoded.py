"""Payloads as schema.toml says: dicts, numpy, Arrow."""

import decimal
import struct

import duckdb
import numpy
import polars
import pyarrow
import pytest

import chronfs

SCHEMA = """
[[message]]
type = [1, 4]
name = "quote"
format = "fixed"
fields = [
    { name = "at", type = "u64", time = "ns" }, { name = "symbol", type = "text[4]" },
    { name = "bid", type = "i32", scale = 2, endian = "big" }, { name = "up", type = "bool" },
    { name = "sizes", type = "u16[2]" }, { name = "raw", type = "bytes[3]" },
]

[[message]]
type = 2
name = "note"
format = "json"
"""


def quote(i):
    return struct.pack("<Q4s", i, b"BTC") + struct.pack(">i", -i) + struct.pack("<?HH3s", i % 2, i, i + 1, b"\xff\0a")


@pytest.fixture
def queue(queue, path):
    """Quotes, a note, a quote that is too short, and a type that the schema does not know."""
    (path / "schema.toml").write_text(SCHEMA)
    with queue.writer() as writer:
        for i in range(1, 5001):
            writer.append(quote(i), type=1 if i % 2 else 4)
        writer.append(b' {"a": [1, null]}', type=2)
        writer.append(b"short", type=1)
        writer.append(b"hello", type=7)
    return queue


def test_messages_are_dicts_with_the_keys_of_jsonl(queue):
    rows = list(queue.scan().decoded())
    assert len(rows) == 5003
    decoded = {"at": 3, "symbol": "BTC", "bid": decimal.Decimal("-0.03"), "up": True, "sizes": [3, 4], "raw": b"\xff\0a"}
    first = next(iter(queue.scan(from_seq=3)))
    assert rows[2] == {"seq": 3, "timestamp_ns": first.timestamp_ns, "type": 1, "name": "quote", "decoded": decoded}
    tails = [{key: row[key] for key in row if key not in ("seq", "timestamp_ns", "type")} for row in rows[-3:]]
    assert tails == [
        {"name": "note", "decoded": {"a": [1, None]}},
        {"undecoded": "the layout has 24 bytes, the payload 5", "payload": b"short"},
        {"payload": b"hello"},
    ]
    notes = list(queue.scan().decoded(table="note"))
    assert [row["seq"] for row in notes] == [5001]


def test_fixed_layouts_are_structured_arrays(queue):
    quotes = queue.scan(until=None, from_seq=1).decoded(table="quote")
    assert quotes.dtype == numpy.dtype(
        {
            "names": ["at", "symbol", "bid", "up", "sizes", "raw"],
            "formats": ["<u8", "S4", ">i4", "?", ("<u2", (2,)), "V3"],
            "offsets": [0, 8, 12, 16, 17, 21],
            "itemsize": 24,
        }
    )
    with pytest.raises(chronfs.InvalidInput, match="has 5 bytes"):
        quotes.to_numpy()
    end = next(row for row in queue.scan().decoded(table="note"))["timestamp_ns"]
    array = queue.scan(until=end).decoded(table="quote").to_numpy()
    assert (array["at"] == numpy.arange(1, len(array) + 1)).all() and array["bid"][9] == -10
    assert set(array["symbol"]) == {b"BTC"}
    only = queue.scan(types=[4, 2], until=end).decoded(table="quote").to_numpy()
    assert (only["at"] % 2 == 0).all() and len(only) == len(array) // 2
    with pytest.raises(chronfs.InvalidInput, match="fixed layout"):
        queue.scan().decoded(table="note").to_numpy()
    with pytest.raises(chronfs.InvalidInput, match="choose a table: there are quote, note"):
        queue.scan().decoded().to_numpy()


def test_a_table_is_an_arrow_stream(queue):
    quotes = queue.scan().decoded(table="quote")
    table = pyarrow.table(quotes)
    table.validate(full=True)
    names = ["seq", "timestamp", "type", "at", "symbol", "bid", "up", "sizes", "raw", "payload", "undecoded"]
    assert table.column_names == names and table.num_rows == 5001
    assert table["bid"].to_pylist()[:2] == [decimal.Decimal("-0.01"), decimal.Decimal("-0.02")]
    assert table["undecoded"][5000].as_py() == "the layout has 24 bytes, the payload 5"
    assert table["payload"][5000].as_py() == b"short" and table["bid"][5000].as_py() is None
    frame = polars.DataFrame(queue.scan().decoded(table="quote"))
    assert frame["sizes"].to_list()[4] == [5, 6] and frame.schema["at"] == polars.Datetime("ns", "UTC")
    notes = queue.scan().decoded(table="note")
    assert duckdb.sql("SELECT seq, decoded FROM notes").fetchall() == [(5001, '{"a": [1, null]}')]
    with pytest.raises(chronfs.InvalidInput, match="choose a table"):
        pyarrow.table(queue.scan().decoded())
    empty = pyarrow.table(queue.scan(types=9).decoded(table="quote"))
    assert (empty.num_rows, empty.schema) == (0, table.schema)


def test_batches_of_long_payloads_are_bounded(queue):
    with queue.writer() as writer:
        for _ in range(400):
            writer.append(b"x" * 30_000, type=1)
    reader = pyarrow.RecordBatchReader.from_stream(queue.scan().decoded(table="quote"))
    sizes = [batch["payload"].nbytes for batch in reader]
    assert sum(sizes) > 12_000_000 and max(sizes) < 6 << 20, sizes


def test_gaps_are_not_silent(queue, path):
    lost = queue.inspect()["segments"][0]
    (path / f"{lost['id']:09}.q").unlink()
    again = chronfs.Queue(path)
    with pytest.raises(chronfs.GapError):
        list(again.scan(from_seq=1).decoded())
    rows = list(again.scan(from_seq=1, on_gap="yield").decoded(table="quote"))
    assert isinstance(rows[0], chronfs.Gap) and rows[1]["name"] == "quote"
    with pytest.raises(chronfs.InvalidInput, match="can't hold gaps"):
        pyarrow.table(again.scan(on_gap="yield").decoded(table="quote"))


def test_other_schemas_and_mistakes(queue, path, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text('[[message]]\ntype = "*"\nname = "all"\nformat = "fixed"\nfields = [{ name = "n", type = "u64" }]\nmay_be_longer = true\n')
    decoded = queue.scan().decoded(other)
    assert decoded.tables == ["all"]
    assert [row["decoded"]["n"] for row in decoded if "decoded" in row][:3] == [1, 2, 3]
    other.write_text("[[message]]\ntype = 1\n")
    with pytest.raises(chronfs.InvalidInput, match="other.toml:1: missing field"):
        queue.scan().decoded(other)
    with pytest.raises(chronfs.InvalidInput, match='no messages are called "trade"; there are quote, note'):
        queue.scan().decoded(table="trade")
    (path / "schema.toml").unlink()
    with pytest.raises(chronfs.InvalidInput, match="it has no schema.toml"):
        queue.scan().decoded()
