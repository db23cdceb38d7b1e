"""Columns: numpy, and Arrow for pyarrow, polars and duckdb."""

import gc
import os

import duckdb
import numpy
import polars
import pyarrow
import pyarrow.compute
import pytest

import chronfs

TICK = numpy.dtype([("time", "<u8"), ("price", "<f8"), ("size", "<u4")])


def ticks(count, start=0):
    array = numpy.zeros(count, TICK)
    array["time"] = numpy.arange(start, start + count)
    array["price"] = array["time"] / 2
    return array


def test_records_of_one_segment_are_not_copied(tmp_path):
    # The first message makes room for all that follow.
    queue = chronfs.Queue(tmp_path / "q", create=True)
    with queue.writer() as writer:
        writer.append(bytes(1 << 20), type=9)
        writer.append_items(ticks(1000), 1)
    scan = queue.scan(types=1)
    array = scan.to_numpy(TICK, copy=False)
    assert (array == ticks(1000)).all()
    assert not array.flags.owndata and not array.flags.writeable and array.strides == (56,)
    assert array["price"][10] == 5.0
    with pytest.raises(ValueError):
        array["price"][0] = 1
    copy = scan.to_numpy(TICK, copy=True)
    assert copy.flags.writeable and (copy == array).all()
    one, two = scan.to_numpy("V20"), scan.to_numpy((numpy.uint32, (5,)))
    assert one.shape == (1000,) and two.shape == (1000, 5) and two[10, 0] == 10


def test_records_of_several_segments_are_copied_if_that_is_allowed(queue, fill):
    fill(ticks(5000))
    scan = queue.scan()
    with pytest.raises(ValueError, match="a copy is needed"):
        scan.to_numpy(TICK, copy=False)
    assert (scan.to_numpy(TICK) == ticks(5000)).all()
    batches = list(scan.batches(700))
    assert [len(batch) for batch in batches] == [700] * 7 + [100]
    assert (numpy.concatenate([batch.seq for batch in batches]) == numpy.arange(1, 5001)).all()
    parts = [batch.to_numpy(TICK) for batch in batches]
    assert (numpy.concatenate(parts) == ticks(5000)).all()
    assert any(not part.flags.owndata and part.base is not None and part.strides != (20,) for part in parts)


def test_columns_and_what_is_not_a_column(queue):
    with queue.writer() as writer:
        for i in range(10):
            writer.append(bytes(i), type=i, timestamp_ns=100 + i)
    (batch,) = queue.scan().batches()
    assert batch.type.tolist() == list(range(10)) and batch.type.dtype == numpy.uint16
    assert batch.timestamp_ns.tolist() == list(range(100, 110))
    with pytest.raises(chronfs.InvalidInput, match="message 1 has 0 bytes and the dtype 8"):
        batch.to_numpy("<u8")
    for wrong in (object, "S0", [("a", object)], numpy.dtype([])):
        with pytest.raises(chronfs.InvalidInput):
            batch.to_numpy(wrong)
    for wrong in ("nonsense", 3.5, b"\xff"):
        with pytest.raises((TypeError, ValueError)):
            batch.to_numpy(wrong)
    assert queue.scan(types=99).to_numpy("<u8").shape == (0,)
    assert queue.scan(types=8).to_numpy("<u8").tolist() == [0]
    with pytest.raises(chronfs.InvalidInput):
        queue.scan().batches(0)


def test_arrow_tables_lend_the_payloads(queue, fill):
    payloads = [b"%d" % i * (i % 9) for i in range(5000)]
    fill(payloads, type=3)
    before = chronfs.kept()
    table = pyarrow.table(queue.scan())
    table.validate(full=True)
    assert table.column_names == ["seq", "timestamp", "type", "payload"]
    assert str(table.schema.field("payload").type) == "binary_view"
    assert str(table.schema.field("timestamp").type) == "timestamp[ns, tz=UTC]"
    assert table["payload"].to_pylist() == payloads
    assert table["seq"].to_pylist() == list(range(1, 5001))
    assert pyarrow.compute.unique(table["type"]).to_pylist() == [3]
    assert chronfs.kept()[0] > before[0] and chronfs.kept()[1] > before[1]
    del table
    gc.collect()
    assert chronfs.kept() == before
    (batch,) = queue.scan(from_seq=4990).batches()
    record_batch = pyarrow.record_batch(batch)
    assert record_batch["payload"].to_pylist() == payloads[4989:]
    empty = pyarrow.table(queue.scan(types=4))
    assert (empty.num_rows, empty.schema) == (0, pyarrow.table(queue.scan()).schema)


def test_polars_and_duckdb_read_scans(queue, fill):
    payloads = [b'{"price": %d, "text": "a rather long one"}' % i for i in range(3000)]
    fill(payloads)
    frame = polars.DataFrame(queue.scan())
    assert frame["payload"].to_list() == payloads
    prices = frame["payload"].cast(polars.String).str.json_path_match("$.price").cast(polars.Int64)
    assert prices.sum() == sum(range(3000))
    assert frame.schema["timestamp"] == polars.Datetime("ns", "UTC")

    scan = queue.scan()
    rows = duckdb.sql("SELECT count(*), max(seq), sum(octet_length(payload)) FROM scan").fetchall()
    assert rows == [(3000, 3000, sum(map(len, payloads)))]
    found = duckdb.sql("SELECT payload FROM scan WHERE seq = 1700").fetchall()
    assert found == [(payloads[1699],)]


def test_a_stream_ends_with_an_error_at_a_gap_or_calls_a_function(queue, fill, path):
    fill(b"%06d" % i for i in range(5000))
    lost = queue.inspect()["segments"][1]
    os.unlink(path / f"{lost['id']:09}.q")
    with pytest.raises(Exception, match=f"messages {lost['first_seq']} to {lost['last_seq']} are missing"):
        pyarrow.table(queue.scan())
    with pytest.raises(chronfs.InvalidInput, match="can't hold gaps"):
        pyarrow.table(queue.scan(on_gap="yield"))
    gaps = []
    table = pyarrow.table(queue.scan(on_gap=gaps.append))
    assert [gap.first_seq for gap in gaps] == [lost["first_seq"]]
    assert table.num_rows == 5000 - gaps[0].count

    def refuse(gap):
        raise KeyError("refused")

    with pytest.raises(Exception, match="refused"):
        pyarrow.table(queue.scan(on_gap=refuse))
    with pytest.raises(chronfs.GapError):
        queue.scan().to_numpy("S6")
    with pytest.raises(chronfs.GapError):
        queue.scan(on_gap="yield").to_numpy("S6")
    entries = list(queue.scan(on_gap="yield").batches())
    assert [type(entry) for entry in entries] == [chronfs.Batch, chronfs.Gap, chronfs.Batch]
    assert len(queue.scan(on_gap=gaps.append).to_numpy("S6")) == table.num_rows


def test_segments_retired_under_live_arrays_stay_readable(tmp_path):
    queue = chronfs.Queue(tmp_path / "q", create=True, segment_size=1 << 16, retain_segments=1)
    with queue.writer() as writer:
        writer.append_items(ticks(900))
        array = next(iter(queue.scan().batches(300))).to_numpy(TICK, copy=False)
        table = pyarrow.table(queue.scan())
        messages = list(queue.scan())
        held = table.slice(0, 900)
        files = {file.name for file in queue.path.glob("*.q")}
        for _ in range(200):
            writer.append_items(ticks(900, start=10**6))
        assert not files & {file.name for file in queue.path.glob("*.q")}, "they are gone"
        assert (array == ticks(300)).all()
        assert held["payload"].to_pylist() == [tick.tobytes() for tick in ticks(900)]
        assert [bytes(message) for message in messages] == [tick.tobytes() for tick in ticks(900)]


def test_much_that_is_kept_is_warned_of(tmp_path, queue, fill):
    fill(bytes(1000) for _ in range(500))
    gc.collect()
    segments, size = chronfs.kept()
    chronfs.warn_when_kept(size + (1 << 17))
    try:
        with pytest.warns(RuntimeWarning, match="keep 0 MiB of segments"):
            messages = list(queue.scan())
        assert chronfs.kept()[0] > segments + 2
        del messages
        gc.collect()
        assert chronfs.kept() == (segments, size)
    finally:
        chronfs.warn_when_kept(1 << 30)
