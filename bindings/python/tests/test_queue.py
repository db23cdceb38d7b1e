"""Writers, readers, scans: what they return, and which exceptions they raise."""

import inspect
import os
import struct
import threading
from datetime import datetime, timedelta, timezone

import numpy
import pytest

import chronfs
from conftest import program


def payloads(entries):
    return [bytes(entry) for entry in entries]


def test_messages_come_out_as_they_went_in(queue):
    with queue.writer() as writer:
        assert writer.append(b"one") == 1
        assert writer.append(bytearray(b"two"), type=7) == 2
        assert writer.append(memoryview(b"..three")[2:], 7) == 3
    first, second, *_ = queue.scan()
    assert (first.seq, first.type, bytes(first), len(first)) == (1, 0, b"one", 3)
    assert (second.seq, second.type, memoryview(second)) == (2, 7, b"two")
    assert first.timestamp_ns <= second.timestamp_ns
    assert abs(first.time - datetime.now(timezone.utc)) < timedelta(minutes=5)
    assert repr(second) == f'Message(seq=2, timestamp_ns={second.timestamp_ns}, type=7, 3 bytes: b"two")'


def test_timestamps_are_kept_and_checked(queue):
    with queue.writer(max_ahead=10**9) as writer:
        writer.append(b"", timestamp_ns=2_000_000_000_000_000_000)
        with pytest.raises(chronfs.InvalidInput, match="before the newest"):
            writer.append(b"", timestamp_ns=1)
    (message,) = queue.scan()
    assert message.timestamp_ns == 2_000_000_000_000_000_000
    assert message.time == datetime(2033, 5, 18, 3, 33, 20, tzinfo=timezone.utc)
    assert message and len(message) == 0 and bytes(message) == b""


def test_a_payload_is_lent_read_only_and_outlives_everything(queue, fill, path):
    fill([struct.pack("<qd", 1, 2.5)])
    (message,) = queue.scan()
    view = memoryview(message)
    assert view.readonly and view.nbytes == 16
    assert struct.unpack_from("<qd", message) == (1, 2.5)
    del message, queue
    for file in path.iterdir():
        file.unlink() if file.is_file() else None
    assert struct.unpack("<qd", view) == (1, 2.5)
    with pytest.raises(TypeError):
        view[0] = 1


def test_scans_take_a_part(queue):
    with queue.writer() as writer:
        for i in range(100):
            writer.append(b"%d" % i, type=i % 3, timestamp_ns=1000 + i)
    assert payloads(queue.scan(from_seq=99)) == [b"98", b"99"]
    assert payloads(queue.scan(since=1098)) == [b"98", b"99"]
    assert payloads(queue.scan(since=1010, until=1012)) == [b"10", b"11"]
    assert payloads(queue.scan(since=1000, until=1007, types=1)) == [b"1", b"4"]
    assert payloads(queue.scan(since=1000, until=1005, types=[0, 2])) == [b"0", b"2", b"3"]
    assert payloads(queue.scan(since="15m")) == []
    assert payloads(queue.scan(since=datetime(1970, 1, 1, tzinfo=timezone.utc), until=1001)) == [b"0"]
    scan = queue.scan(types=2)
    assert len(list(scan)) == len(list(scan)) == 33, "each iteration starts at the beginning"
    with queue.writer() as writer:
        writer.append(b"later", type=2)
    assert len(list(scan)) == 33, "a scan ends where the queue ended when it was made"


def test_a_reader_goes_on_where_it_has_committed(queue, fill):
    fill([b"1", b"2", b"3"])
    with queue.reader("alice") as reader:
        assert (reader.name, reader.seq, reader.lag()) == ("alice", 1, 3)
        assert bytes(next(reader)) == b"1"
        assert bytes(next(reader)) == b"2"
        reader.commit(seq=1)
    with queue.reader("alice") as reader:
        assert payloads([reader.poll(), reader.poll()]) == [b"2", b"3"]
        assert reader.poll() is None
        assert reader.poll(timeout=0.01) is None
        assert reader.wait(0.01) is False
        reader.commit()
        reader.commit(sync=True)
        with pytest.raises(chronfs.NoSuchPosition):
            reader.commit(seq=17)
        reader.seek(first=True)
        assert bytes(next(reader)) == b"1"
        reader.seek(seq=3)
        assert bytes(next(reader)) == b"3"
        assert reader.stats()["received"] == 4
    assert queue.reader("alice").seq == 4
    assert queue.reader_names() == ["alice"]
    queue.remove_reader("alice")
    with pytest.raises(chronfs.NoSuchReader):
        queue.remove_reader("alice")


def test_readers_choose_types_and_where_they_start(queue):
    with queue.writer() as writer:
        for i in range(10):
            writer.append(b"%d" % i, type=i % 2)
        with queue.reader("odd", types={1}, start="first") as reader:
            assert [bytes(reader.poll()) for _ in range(5)] == [b"1", b"3", b"5", b"7", b"9"]
            assert reader.poll() is None
            writer.append(b"even", type=0)
            assert reader.poll(timeout=0.05) is None, "what comes is of another type"
        assert queue.tailer(start="end").poll() is None
        assert bytes(queue.tailer(from_seq=5).poll()) == b"4"
    with pytest.raises(chronfs.InvalidInput, match="no position"):
        queue.tailer().commit()


def test_exceptions_are_typed_and_say_where(queue, path, tmp_path):
    with pytest.raises(chronfs.NotAQueue) as caught:
        chronfs.Queue(tmp_path / "none")
    assert str(caught.value.path) == str(tmp_path / "none") in str(caught.value)
    writer = queue.writer()
    with pytest.raises(chronfs.Locked) as caught:
        queue.writer()
    assert caught.value.pid == os.getpid() and isinstance(caught.value, chronfs.Busy)
    with pytest.raises(chronfs.TooLarge) as caught:
        writer.append(bytes(1 << 20))
    assert caught.value.max_len == writer.max_payload_len
    with pytest.raises(ValueError, match="65535 is reserved"):
        writer.append(b"", type=65535)
    for wrong in (-1, 65536):
        with pytest.raises(OverflowError):
            writer.append(b"", type=wrong)
    for wrong in ("text", 1, None, [b"list"], numpy.array([object()])):
        with pytest.raises(TypeError):
            writer.append(wrong)
    reader = queue.reader("r")
    with pytest.raises(chronfs.ReaderInUse):
        queue.reader("r")
    with pytest.raises(chronfs.InvalidInput):
        queue.reader("../r")
    with pytest.raises(chronfs.InvalidInput, match="no setting"):
        queue.set(colour="red")
    (path / "control.meta").chmod(0o400)
    for closed in (writer, reader):
        closed.close()
        closed.close()
    for call in (lambda: writer.append(b""), reader.poll, reader.wait, reader.commit, reader.fileno, writer.flush_sync):
        with pytest.raises(chronfs.Closed) as caught:
            call()
        assert str(caught.value.path) == str(path)


def test_a_lock_held_by_another_process_names_it(queue, path):
    with program("import chronfs, sys; w = chronfs.Queue(sys.argv[1]).writer(); print('open', flush=True); input()", path) as other:
        other.stdout.readline()
        with pytest.raises(chronfs.Locked) as caught:
            queue.writer()
        assert caught.value.pid == other.pid and "python" in caught.value.command


def test_a_full_queue_refuses_or_waits(tmp_path):
    queue = chronfs.Queue(tmp_path / "q", create=True, segment_size=1 << 16, max_bytes=1 << 18)
    reader = queue.reader("r")
    with queue.writer() as writer, pytest.raises(chronfs.QueueFull) as caught:
        while True:
            writer.append(bytes(1000))
    assert caught.value.max_bytes == 1 << 18
    queue.set(retain_bytes=0)
    with queue.writer(when_full=60) as writer:

        def consume():
            while reader.poll():
                reader.commit()

        # It needs the GIL while the append waits.
        thread = threading.Timer(0.05, consume)
        thread.start()
        assert writer.append(bytes(1000)) > 200
        thread.join()
    with queue.writer(when_full="10ms") as writer, pytest.raises(chronfs.QueueFull):
        writer.extend(bytes(1000) for _ in range(1000))
    with queue.writer(when_full=60) as writer:
        threading.Timer(0.05, writer.stop).start()
        with pytest.raises(chronfs.Stopped):
            writer.extend(bytes(1000) for _ in range(1000))


def test_settings_are_given_read_and_changed(tmp_path):
    queue = chronfs.Queue(tmp_path / "q", create=True, retain_age="7d", roll_every=timedelta(hours=1), max_lag_bytes=1 << 30)
    settings = queue.settings
    assert (settings["retain_age"], settings["roll_every"], settings["max_lag_bytes"]) == (604800.0, 3600.0, 1 << 30)
    before = queue.set(retain_age=None, retain_segments=3)
    assert before == settings
    assert (queue.settings["retain_age"], queue.settings["retain_segments"]) == (None, 3)
    with pytest.raises(chronfs.InvalidInput, match="segment size"):
        queue.set(segment_size=1)
    queue.set(segment_size="1MiB", max_bytes="2GiB")
    assert (queue.settings["segment_size"], queue.settings["max_bytes"]) == (1 << 20, 2 << 30)
    with pytest.raises(chronfs.InvalidInput, match="write 2GiB"):
        queue.set(max_bytes="2GB")
    with pytest.raises(chronfs.InvalidInput, match="create=True"):
        chronfs.Queue(tmp_path / "q", retain_bytes=1)
    assert chronfs.Queue(tmp_path / "q", create=True, retain_segments=9).settings["retain_segments"] == 3
    assert chronfs.Queue.exists(tmp_path / "q") and not chronfs.Queue.exists(tmp_path)


def test_signatures_say_what_the_defaults_are():
    signatures = [inspect.signature(f) for f in (chronfs.Queue.scan, chronfs.Queue.reader, chronfs.Queue.tailer, chronfs.merge)]
    assert [signature.parameters["on_gap"].default for signature in signatures] == ["raise"] * 4
    assert all(inspect.signature(chronfs.Queue.scan).parameters[name].default is None for name in ("since", "types"))


def test_filtered_reads_go_on_where_the_others_end(queue):
    """Iterating, batches and waits take turns, over many segments."""
    queue.set(segment_size=1 << 16)
    expected, found = [], []
    with queue.writer() as writer, queue.tailer(types=1) as tailer:
        for turn in range(300):
            for i in range(50):
                seq = writer.append(b"x" * 97, type=i % 3)
                if i % 3 == 1:
                    expected.append(seq)
            if turn % 3 == 0:
                assert tailer.wait(1)
            if turn % 2 == 0:
                found += [tailer.poll().seq for _ in range(10)]
            else:
                for batch in tailer.batches(7):
                    found += batch.seq.tolist()
        while (message := tailer.poll()) is not None:
            found.append(message.seq)
    assert found == expected and len(queue.inspect()["segments"]) > 20


def test_gaps_are_raised_or_returned_and_never_silent(queue, fill, path):
    fill(b"%06d" % i for i in range(5000))
    segments = queue.inspect()["segments"]
    assert len(segments) >= 3
    lost = segments[1]
    os.unlink(path / f"{lost['id']:09}.q")
    expected = [i + 1 for i in range(5000) if not lost["first_seq"] <= i + 1 <= lost["last_seq"]]

    seqs, gaps = [], []
    messages = iter(queue.scan())
    while True:
        try:
            seqs.extend(m.seq for m in messages)
            break
        except chronfs.GapError as error:
            assert str(path) in str(error)
            gaps.append(error.gap)
    assert seqs == expected
    assert [(g.first_seq, g.last_seq, g.count) for g in gaps] == [
        (lost["first_seq"], lost["last_seq"], lost["last_seq"] - lost["first_seq"] + 1)
    ]
    entries = list(queue.scan(on_gap="yield"))
    assert [e.seq for e in entries if isinstance(e, chronfs.Message)] == expected
    assert [e for e in entries if isinstance(e, chronfs.Gap)] == gaps
    called = []
    assert [m.seq for m in queue.scan(on_gap=called.append)] == expected and called == gaps
    for wrong in ("ignore", 3, None):
        with pytest.raises(chronfs.InvalidInput):
            queue.scan(on_gap=wrong)
    # A registered reader that commits at the gap gets what comes after it next.
    with queue.reader("r", from_seq=lost["first_seq"], on_gap="yield") as reader:
        assert isinstance(reader.poll(), chronfs.Gap)
        reader.commit()
    assert queue.reader("r").poll().seq == lost["last_seq"] + 1


def test_inspect_says_what_there_is(queue, fill, path):
    fill([b"x"] * 3)
    with queue.writer(), queue.reader("r") as reader:
        next(reader)
        reader.commit()
        found = queue.inspect()
        assert (found["messages"], found["next_seq"], found["writer"]["pid"]) == (3, 4, os.getpid())
        assert found["path"] == path and found["role"] == "active"
        (info,) = found["readers"]
        assert (info["name"], info["position"], info["lag_messages"], info["state"]) == ("r", 2, 2, "alive")
    assert (queue.first_seq, queue.next_seq) == (1, 4)


def test_queues_are_found_and_merged(tmp_path):
    for name, stamps in (("b/x", [10, 30, 30]), ("a", [20, 30, 40])):
        with chronfs.Queue(tmp_path / name, create=True).writer() as writer:
            for stamp in stamps:
                writer.append(b"%s%d" % (name[:1].encode(), stamp), timestamp_ns=stamp)
    assert chronfs.discover(tmp_path) == [
        {"path": tmp_path / name, "ready": False, "lease": None} for name in ("a", "b/x")
    ]
    merged = [(path.relative_to(tmp_path), bytes(m)) for path, m in chronfs.merge(tmp_path)]
    assert [payload for _, payload in merged] == [b"b10", b"a20", b"a30", b"b30", b"b30", b"a40"]
    assert str(merged[0][0]) == "b/x"
    some = chronfs.merge([tmp_path / "a", tmp_path / "b/x"], since=15, until=40)
    assert [bytes(m) for _, m in some] == [b"a20", b"a30", b"b30", b"b30"]
    with pytest.raises(chronfs.NotAQueue):
        chronfs.merge([tmp_path / "none"])


def test_times_are_understood():
    from chronfs import _time

    assert _time.duration_ns("1h 30m") == 5400 * 10**9 == _time.duration_ns(5400) == _time.duration_ns(timedelta(hours=1.5))
    assert _time.duration_ns(0.25) == 250_000_000 and _time.duration_ns("1.5s") == 1_500_000_000
    assert _time.duration_ns(float("inf")) == 2**64 - 1
    assert _time.time_ns("1970-01-01T00:00:01+00:00") == 10**9
    for wrong in ("", "soon", "5", "-5m", "1m!"):
        with pytest.raises(chronfs.InvalidInput):
            _time.duration_ns(wrong)
        with pytest.raises(chronfs.InvalidInput):
            _time.time_ns(wrong)
    for wrong in (-1, float("nan"), timedelta(-1)):
        with pytest.raises(chronfs.InvalidInput):
            _time.duration_ns(wrong)
    for wrong in (None, 1.5, [], True):
        with pytest.raises(TypeError):
            _time.time_ns(wrong)


def test_many_are_appended_at_once(queue):
    with queue.writer() as writer:
        assert writer.extend([b"a", b"b"], 3) == 2
        array = numpy.arange(10_000, dtype="<u4")
        assert writer.append_items(array, 5) == 10_000
        assert writer.append_items(array.reshape(-1, 4)[:2]) == 2
        assert writer.append_items(b"") == 0
        with pytest.raises((BufferError, ValueError)):
            writer.append_items(array[::2])
        with pytest.raises(chronfs.InvalidInput):
            writer.append_items(numpy.empty((3, 0)))
        assert writer.stats()["appended"] == 10_004
    assert [struct.unpack("<I", m)[0] for m in queue.scan(types=5)] == list(range(10_000))
    assert bytes(list(queue.scan())[-1]) == array[4:8].tobytes()


def test_the_stubs_name_everything_and_everything_is_documented():
    import ast
    from pathlib import Path

    from chronfs import _chronfs

    stubs = ast.parse((Path(chronfs.__file__).parent / "_chronfs.pyi").read_text())
    declared = {}
    for node in stubs.body:
        if isinstance(node, ast.ClassDef):
            declared[node.name] = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            declared[node.name] = set()
    ignored = {"Memory", "__version__", "__all__"}
    present = {name for name in dir(_chronfs) if not name.startswith("__") or name == "__all__"} - ignored
    assert set(declared) == present
    for name in present:
        entry = getattr(_chronfs, name)
        assert entry.__doc__, f"{name} has no docstring"
        if isinstance(entry, type):
            own = {key for key in vars(entry) if not key.startswith("_")}
            assert own == {key for key in declared[name] if not key.startswith("_")}, name
            for key in own:
                assert getattr(entry, key).__doc__, f"{name}.{key} has no docstring"
    assert chronfs.__version__ == _chronfs.__version__
